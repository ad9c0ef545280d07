//! The images of the tests, by name.
//!
//! In: `molt-testd`, Debian's static busybox, and for redis Debian's own packages. Out: [`Built`]
//! images, OCI layouts, root folders. Must not: fetch anything but Debian packages, and those only
//! when the cache does not hold the recipe's hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;

use super::image::{Built, Format, ImageBuilder, Layer, Packed, Packing, architecture, digest};
use super::process;

/// Variants of `small` that are images as they should be, with programs that may misbehave.
pub const SMALL: [&str; 28] = [
    "v1",
    "v2",
    "v3",
    "exits",
    "dies-1s",
    "hangs",
    "ill",
    "ill-later",
    "ignores-term",
    "double-forks",
    "floods",
    "notifies",
    "never-notifies",
    "barks",
    "extends",
    "hands-over",
    "slow-stop",
    "no-entrypoint-file",
    "not-executable",
    "bad-interpreter",
    "wrong-arch",
    "unknown-user",
    "no-state-dir",
    "state-symlink",
    "of-root",
    "s6",
    "systemd",
    "gosu",
];

/// For what goes over the network, or packs a whole Debian.
const LONG: Duration = Duration::from_mins(10);
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 24] = [
    "sh", "cat", "chmod", "cp", "echo", "env", "false", "grep", "id", "kill", "ln", "ls", "mkdir", "mount", "mv", "ps",
    "rm", "sleep", "stat", "test", "touch", "true", "umount", "wc",
];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/app:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1000:\nextra:x:1001:app\n";

fn base_layer() -> anyhow::Result<Layer> {
    let busybox = fs::read(BUSYBOX).context("reading busybox (Debian package busybox-static)")?;
    let mut layer = Layer::new();
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sandbox", "sys", "usr", "usr/local", "usr/local/bin"] {
        layer = layer.dir(folder, 0o755);
    }
    layer = layer.dir("tmp", 0o1777).dir("var", 0o755).dir("var/lib", 0o755).file("bin/busybox", 0o755, &busybox);
    for applet in APPLETS {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(layer.file("etc/passwd", 0o644, PASSWD.as_bytes()).file("etc/group", 0o644, GROUP.as_bytes()))
}

fn daemon_layer(testd: &Path) -> anyhow::Result<Layer> {
    let daemon = fs::read(testd).with_context(|| format!("reading {}", testd.display()))?;
    Ok(Layer::new().dir("app", 0o755).file("app/molt-testd", 0o755, &daemon))
}

fn version_layer(version: &str) -> Layer {
    Layer::new().dir("app", 0o755).file("app/VERSION", 0o644, format!("{version}\n").as_bytes())
}

fn with_state(layer: Layer) -> Layer {
    layer.dir("sandbox", 0o755).owner(1000, 1000).dir("sandbox/state", 0o755).owner(0, 0)
}

/// `small:VARIANT`: busybox, `molt-testd`, and a last layer with `/app/VERSION` that holds the variant's name.
pub fn small(variant: &str, testd: &Path) -> anyhow::Result<Built> {
    small_as(variant, testd, Packing::Gzip, Format::Oci).map(ImageBuilder::build)
}

/// The same, packed and described in another way.
pub fn small_as(variant: &str, testd: &Path, packing: Packing, format: Format) -> anyhow::Result<ImageBuilder> {
    let mut last = version_layer(variant);
    last = match variant {
        "no-state-dir" => last,
        "state-symlink" => last.dir("sandbox", 0o755).symlink("sandbox/state", "/etc"),
        "of-root" => last.dir("sandbox", 0o755).dir("sandbox/state", 0o755),
        _ => with_state(last),
    };
    let behaviour = match variant {
        "exits" => "exit=1",
        "dies-1s" => "exit=1,after=1000",
        "hangs" => "deaf",
        "ill" => "unhealthy",
        "ill-later" => "unhealthy,after=1500",
        "ignores-term" => "ignore-term",
        "double-forks" => "double-fork",
        "floods" => "flood",
        "notifies" => "notify,ready=300",
        "barks" => "notify,watchdog",
        "extends" => "notify,extend=5000,ready=2000",
        "hands-over" => "notify,hand-over",
        "slow-stop" => "slow-stop=700",
        _ => "",
    };
    let daemon = "/app/molt-testd";
    let mut entrypoint = vec![daemon];
    match variant {
        "no-entrypoint-file" => entrypoint = vec!["/app/absent"],
        "not-executable" => {
            last = last.file("app/data", 0o644, b"#!/bin/sh\nexec /app/molt-testd\n");
            entrypoint = vec!["/app/data"];
        }
        "bad-interpreter" => {
            last = last.file("app/start", 0o755, b"#!/opt/absent/bin/sh\nexec /app/molt-testd\n");
            entrypoint = vec!["/app/start"];
        }
        "s6" => {
            last = last.dir("package", 0o755).dir("package/admin", 0o755).dir("package/admin/s6-overlay", 0o755);
            last = last.dir("etc/s6-overlay", 0o755).file("init", 0o755, b"#!/bin/sh\nexec \"$@\"\n");
            entrypoint = vec!["/init", daemon];
        }
        "systemd" => {
            last = last.dir("lib", 0o755).dir("lib/systemd", 0o755).dir("sbin", 0o755);
            last = last.file("lib/systemd/systemd", 0o755, b"#!/bin/sh\nexec /app/molt-testd\n");
            last = last.symlink("sbin/init", "/lib/systemd/systemd");
            entrypoint = vec!["/sbin/init"];
        }
        "gosu" => {
            let gosu = b"#!/bin/sh\nuser=$1; shift; exec busybox su -s /bin/sh $user -c 'exec \"$0\" \"$@\"' \"$@\"\n";
            last = last.file("usr/local/bin/gosu", 0o755, gosu);
            last = last.file("app/entry.sh", 0o755, b"#!/bin/sh\nexec gosu app \"$@\"\n");
            entrypoint = vec!["/app/entry.sh", daemon];
        }
        name if SMALL.contains(&name) => {}
        // More versions than the three with a name: v4, v5, ...
        name if name.strip_prefix('v').is_some_and(|rest| rest.parse::<u32>().is_ok()) => {}
        other => bail!("no variant {other} of the small image"),
    }
    let mut image = ImageBuilder::new(format)
        .layer(base_layer()?.pack(packing))
        .layer(daemon_layer(testd)?.pack(packing))
        .layer(last.pack(packing))
        .set("Entrypoint", json!(entrypoint))
        .set("Env", json!(["PATH=/usr/local/bin:/usr/bin:/bin", format!("TESTD_BEHAVIOUR={behaviour}")]))
        .set("WorkingDir", json!("/app"));
    image = match variant {
        "unknown-user" => image.set("User", json!("nobody-here")),
        "gosu" => image,
        _ => image.set("User", json!("app")),
    };
    if variant == "wrong-arch" {
        let other = if architecture() == "s390x" { "amd64" } else { "s390x" };
        image = image.bend_config(|config| config["architecture"] = json!(other));
    }
    Ok(image)
}

/// Unpacks what an outer sandbox runs on into `root`.
pub fn unpack_outer(root: &Path, testd: &Path, molt: Option<&Path>) -> anyhow::Result<()> {
    for layer in [base_layer()?, daemon_layer(testd)?, with_state(version_layer("outer"))] {
        let packed = layer.pack(Packing::Plain);
        tar::Archive::new(packed.bytes.as_slice()).unpack(root)?;
    }
    if let Some(molt) = molt {
        fs::copy(molt, root.join("usr/local/bin/molt"))?;
    }
    Ok(())
}

/// How the Debian base of the redis image is made.
const REDIS_BASE: [&str; 8] = [
    "--variant=minbase",
    "--include=redis-server",
    "--mode=root",
    "--skip=output/dev",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
];
const REDIS_HOOK: &str = "--customize-hook=rm -rf \"$1\"/var/lib/redis";
const REDIS_SUITE: &str = "bookworm";
const REDIS_START: &[u8] = b"#!/bin/sh\nexec redis-server /etc/redis/molt.conf --port \"${REDIS_PORT:-6390}\"\n";
const REDIS_CONF: &str = "bind 127.0.0.1\ndir /sandbox/state\nappendonly yes\nappendfsync everysec\nsave \"\"\n\
                          logfile \"\"\ndaemonize no\n";

/// An OCI layout folder with `v1` and `v2` of a Debian image that runs redis with its append-only file in
/// `/sandbox/state`. They differ in the last layer: `/app/VERSION`, and `databases` 17 or 18.
pub fn redis_layout(cache: &Path) -> anyhow::Result<PathBuf> {
    let recipe = format!("1 {REDIS_BASE:?}{REDIS_HOOK}{REDIS_SUITE}{REDIS_START:?}{REDIS_CONF}{}", architecture());
    let key = &digest(recipe.as_bytes())[7..23];
    let done = cache.join(format!("redis-{key}"));
    if done.join("index.json").exists() {
        return Ok(done);
    }
    fs::create_dir_all(cache)?;
    let work = tempfile::Builder::new().prefix("redis.").tempdir_in(cache)?;
    let base = work.path().join("base.tar");
    let mut make = Command::new("mmdebstrap");
    make.args(REDIS_BASE).arg(REDIS_HOOK).arg(REDIS_SUITE).arg(&base).env("SOURCE_DATE_EPOCH", "1700000000");
    process::timed("mmdebstrap", || process::run(&mut make, LONG)).context("making a Debian root")?;

    let layout = work.path().join("layout");
    let umoci = |args: &[&str]| process::run(Command::new("umoci").args(args), LONG);
    let image = |tag: &str| format!("{}:{tag}", layout.display());
    umoci(&["init", "--layout", &layout.display().to_string()])?;
    umoci(&["new", "--image", &image("base")])?;
    umoci(&["raw", "add-layer", "--image", &image("base"), &base.display().to_string()])?;
    let middle = Layer::new().dir("app", 0o755).file("app/start", 0o755, REDIS_START);
    umoci_layer(&umoci, work.path(), &image("base"), middle)?;
    umoci(&[
        "config",
        "--image",
        &image("base"),
        "--config.entrypoint",
        "/app/start",
        "--config.user",
        "redis",
        "--config.workingdir",
        "/app",
    ])?;
    for (tag, databases) in [("v1", 17), ("v2", 18)] {
        umoci(&["tag", "--image", &image("base"), tag])?;
        let conf = format!("{REDIS_CONF}databases {databases}\n");
        let last = version_layer(tag).file("etc/redis/molt.conf", 0o644, conf.as_bytes());
        let last = last.dir("sandbox", 0o755).dir("sandbox/state", 0o777);
        umoci_layer(&umoci, work.path(), &image(tag), last)?;
    }
    fs::rename(&layout, &done)?;
    Ok(done)
}

fn umoci_layer(
    umoci: &impl Fn(&[&str]) -> anyhow::Result<process::Output>,
    work: &Path,
    image: &str,
    layer: Layer,
) -> anyhow::Result<()> {
    let tar = work.join("layer.tar");
    let packed: Packed = layer.pack(Packing::Plain);
    fs::write(&tar, packed.bytes)?;
    umoci(&["raw", "add-layer", "--image", image, &tar.display().to_string()])?;
    Ok(())
}
