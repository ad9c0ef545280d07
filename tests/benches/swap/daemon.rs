//! The daemon that is replaced, and how a replacement is watched from outside.
//!
//! In: the responder, a way to replace it. Out: images and root folders of two versions, [`Seen`]. Must not: count
//! anything that happens before the first signal or after the first answer.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use molt_tests::harness::client::{Failure, Prober, gaps};
use molt_tests::harness::image::{Built, Format, ImageBuilder, Layer, Packing};
use molt_tests::harness::{http, wait};
use serde_json::json;

const STEP: Duration = Duration::from_secs(30);
const CALM: Duration = Duration::from_millis(500);
/// Enough for the prober to have seen what was before.
const LEAD: Duration = Duration::from_millis(8);
pub(crate) const PROGRAM: &str = "/app/bench-responder";

/// Two versions of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    A,
    B,
}

impl Version {
    /// B and A in turn.
    pub(crate) fn of(round: usize) -> Self {
        if round.is_multiple_of(2) { Self::B } else { Self::A }
    }

    /// The other one.
    pub(crate) fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }

    /// As the daemon says it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// One replacement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// Last answer of the old one to the first of the new one.
    pub(crate) gap: Duration,
    /// Exit of the old one to exec of the new one.
    pub(crate) downtime: Option<Duration>,
    /// Last moment ready to the first one again.
    pub(crate) unready: Option<Duration>,
}

/// A port nobody listens on now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Waits until `version` answers.
pub(crate) fn await_version(port: u16, version: &str) -> anyhow::Result<()> {
    wait::until_ok(&format!("version {version}"), STEP, || {
        let said = http::get(address(port), "/", STEP)?.json()?;
        anyhow::ensure!(said["version"] == version, "{said}");
        Ok(())
    })
}

/// Has the daemon write to its root.
pub(crate) fn dirty(port: u16, megabytes: usize) -> anyhow::Result<()> {
    let answer = http::get(address(port), &format!("/dirty/{megabytes}"), STEP)?;
    anyhow::ensure!(answer.status == 200, "writing {megabytes} MB: {}", answer.status);
    Ok(())
}

/// Waits, at most half a second, until nothing else has run for some milliseconds: on a machine with other work on it,
/// what is measured would be that.
fn calm() {
    let start = Instant::now();
    let mut quiet = 0;
    while quiet < 5 && start.elapsed() < CALM {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let running = stat.lines().find_map(|line| line.strip_prefix("procs_running "));
        quiet = if running.is_none_or(|count| count.trim() == "1") { quiet + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Does `replace` under the eyes of a client that asks every millisecond.
pub(crate) fn watched<T>(
    port: u16,
    version: &str,
    replace: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(Duration, T)> {
    calm();
    let prober = Prober::start(address(port));
    std::thread::sleep(LEAD);
    let done = replace().and_then(|value| await_version(port, version).map(|()| value));
    std::thread::sleep(LEAD);
    let samples = prober.stop();
    let value = done?;
    let gaps = gaps(&samples);
    let [gap] = gaps.as_slice() else { anyhow::bail!("{} changes of version, not one: {gaps:?}", gaps.len()) };
    anyhow::ensure!(gap.to == version, "{gap:?}, not to {version}");
    anyhow::ensure!(!gap.failures.contains(&Failure::Timeout), "a request took two seconds: {gap:?}");
    Ok((gap.length, value))
}

/// The image of one version, for a user without rights.
pub(crate) fn image(version: Version, responder: &Path) -> anyhow::Result<Built> {
    let program = fs::read(responder).with_context(|| format!("reading {}", responder.display()))?;
    let busybox = fs::read("/bin/busybox").context("reading busybox (Debian package busybox-static)")?;
    let mut base = Layer::new();
    for folder in ["bin", "dev", "etc", "proc", "run", "sandbox", "sys"] {
        base = base.dir(folder, 0o755);
    }
    base = base.dir("tmp", 0o1777).file("bin/busybox", 0o755, &busybox).symlink("bin/sh", "busybox");
    base = base.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\napp:x:1000:1000:app:/:/bin/sh\n");
    base = base.file("etc/group", 0o644, b"root:x:0:\napp:x:1000:\n");
    base = base.owner(1000, 1000).dir("sandbox/state", 0o755).dir("scratch", 0o755);
    let middle = Layer::new().dir("app", 0o755).file("app/bench-responder", 0o755, &program);
    let last = Layer::new().dir("app", 0o755).file("app/VERSION", 0o644, version.name().as_bytes());
    let image = ImageBuilder::new(Format::Oci)
        .layer(base.pack(Packing::Gzip))
        .layer(middle.pack(Packing::Gzip))
        .layer(last.pack(Packing::Gzip))
        .set("Entrypoint", json!([PROGRAM]))
        .set("WorkingDir", json!("/app"))
        .set("User", json!("app"));
    Ok(image.build())
}

/// The same as a folder.
pub(crate) fn root(folder: &Path, version: Version, responder: &Path) -> anyhow::Result<()> {
    for name in ["bin", "dev", "etc", "proc", "run", "sandbox/state", "sys", "tmp", "app"] {
        fs::create_dir_all(folder.join(name))?;
    }
    fs::copy("/bin/busybox", folder.join("bin/busybox"))?;
    symlink("busybox", folder.join("bin/sh"))?;
    fs::copy(responder, folder.join("app/bench-responder"))?;
    fs::write(folder.join("app/VERSION"), version.name())?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
