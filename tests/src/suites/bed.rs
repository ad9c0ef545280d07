//! The bed proves itself: registries, images, faults, runtimes, without the product.
//!
//! When one of these fails, the machine or the bed is to blame, and no other failure means anything.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::client::{Prober, gaps};
use crate::harness::disk::{Disk, FileSystem, Log};
use crate::harness::faulty::{Fault, Faulty};
use crate::harness::image::{Built, Format, ImageBuilder, Layer, Packing, digest};
use crate::harness::registry::{PASSWORD, Registry, free_port};
use crate::harness::runtime::{Kind, Options, Sandbox};
use crate::harness::{http, images, process, wait};

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("bed::every_variant_of_small_is_pushed_and_readable", every_variant),
    case("bed::small_travels_in_every_packing_and_format", every_packing),
    case("bed::a_registry_behind_tls_and_a_password_lets_only_the_right_one_in", guarded),
    case("bed::a_registry_behind_a_token_server_lets_only_the_right_one_in", bearer),
    case("bed::a_registry_keeps_an_image_that_lies", lying),
    case("bed::faults_strike_where_and_as_often_as_told", faults),
    case("bed::a_light_sandbox_runs_the_daemon_as_pid_1", |bed| runs_daemon(bed, Kind::Light)),
    case("bed::a_crun_sandbox_runs_the_daemon_as_pid_1", |bed| runs_daemon(bed, Kind::Crun)),
    case("bed::a_podman_sandbox_runs_the_daemon_as_pid_1", |bed| runs_daemon(bed, Kind::Podman)),
    case("bed::podman_confines_as_users_will_have_it", podman_confines),
    case("bed::a_sandbox_in_a_user_namespace_runs_the_daemon_as_pid_1", |bed| each_user(bed, runs_daemon)),
    case("bed::a_sandbox_in_a_user_namespace_allows_what_an_update_needs", |bed| {
        for kind in Kind::USER {
            if kind != Kind::LightUserMasked {
                allows(bed, kind).with_context(|| format!("{kind:?}"))?;
            }
        }
        Ok(())
    }),
    case("bed::a_masked_proc_in_a_user_namespace_forbids_a_fresh_one", masked),
    case("bed::a_light_sandbox_allows_what_an_update_needs", |bed| allows(bed, Kind::Light)),
    case("bed::a_crun_sandbox_allows_what_an_update_needs", |bed| allows(bed, Kind::Crun)),
    case("bed::a_podman_sandbox_allows_what_an_update_needs", |bed| allows(bed, Kind::Podman)),
    case("bed::the_prober_sees_the_gap_of_a_restart", gap),
    case("bed::a_disk_can_be_filled_and_mended", full_disk),
    case("bed::a_disk_that_is_cut_off_keeps_what_was_synced", cut_disk),
    case("bed::redis_keeps_its_data_in_the_state_volume", redis),
];

const SOON: Duration = Duration::from_secs(10);

fn inspect(bed: &Bed, name: &str) -> anyhow::Result<Value> {
    let registry = bed.registry()?;
    let mut command = registry.skopeo("inspect", "");
    process::run(command.args(["--raw", &format!("docker://{}", registry.reference(name))]), SOON)?.json()
}

fn every_variant(bed: &Bed) -> anyhow::Result<()> {
    for variant in images::SMALL {
        bed.small(variant)?;
    }
    let layers = |tag: &str| -> anyhow::Result<Vec<Value>> {
        let manifest = inspect(bed, &format!("small:{tag}"))?;
        Ok(manifest["layers"].as_array().context("layers")?.iter().map(|layer| layer["digest"].clone()).collect())
    };
    let (one, two) = (layers("v1")?, layers("v2")?);
    ensure!(one.len() == 3 && one[..2] == two[..2] && one[2] != two[2], "v1 {one:?} and v2 {two:?}");
    Ok(())
}

fn every_packing(bed: &Bed) -> anyhow::Result<()> {
    let testd = bed.program("molt-testd")?;
    for (name, packing, format, media) in [
        ("zstd", Packing::Zstd, Format::Oci, "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("plain", Packing::Plain, Format::Oci, "application/vnd.oci.image.layer.v1.tar"),
        ("docker", Packing::Gzip, Format::Docker, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        let name = format!("small:{name}");
        bed.lying_image(&name, || Ok(images::small_as("v1", &testd, packing, format)?.build()))?;
        ensure!(inspect(bed, &name)?["layers"][0]["mediaType"] == media, "{name}");
    }
    bed.image("small:index", || {
        let here = images::small("v1", &testd)?;
        Ok(Built::index(Format::Oci, vec![images::small("wrong-arch", &testd)?, here]))
    })?;
    let index = inspect(bed, "small:index")?;
    ensure!(index["manifests"].as_array().map(Vec::len) == Some(2), "{index}");
    Ok(())
}

fn guarded(bed: &Bed) -> anyhow::Result<()> {
    lets_only_the_right_one_in(bed, &*bed.guarded()?)
}

fn bearer(bed: &Bed) -> anyhow::Result<()> {
    let registry = bed.bearer()?;
    lets_only_the_right_one_in(bed, &registry)?;
    let seen = registry.tokens.as_ref().context("a token server")?.requests();
    ensure!(seen.iter().any(|path| path.contains("service=molt-tests-registry")), "{seen:?}");
    Ok(())
}

fn lets_only_the_right_one_in(bed: &Bed, registry: &Registry) -> anyhow::Result<()> {
    bed.small("v1")?;
    let target = format!("docker://{}", registry.reference("small:v1"));
    process::run(registry.skopeo("inspect", "").args(["--raw", &target]), SOON)?;
    let config = bed.scratch("auth")?.join("config.json");
    for (password, good) in [(PASSWORD, true), ("wrong", false)] {
        registry.docker_config(&config, password)?;
        let mut command = Command::new("skopeo");
        command.args(["inspect", "--raw", "--authfile"]).arg(&config);
        match &registry.certificates {
            Some(certificates) => {
                command.arg("--cert-dir").arg(certificates.authority.parent().context("a file has a folder")?)
            }
            None => command.arg("--tls-verify=false"),
        };
        let output = process::output(command.arg(&target), SOON)?;
        ensure!((output.code == 0) == good, "{password}: {output:?}");
        let refused = ["authentication required", "unable to retrieve auth token"];
        ensure!(good || refused.iter().any(|text| output.stderr.contains(text)), "{output:?}");
    }
    let layout = bed.scratch("layout")?;
    images::small("v2", &bed.program("molt-testd")?)?.write_layout(&layout, "v2")?;
    registry.push_layout(&layout, "v2", "pushed/with/a/password:v2")
}

fn lying(bed: &Bed) -> anyhow::Result<()> {
    let layer = Layer::new().file("../climb", 0o644, b"x").claiming("big", 5 << 30, b"").pack(Packing::Gzip);
    let image = ImageBuilder::new(Format::Oci)
        .layer(layer)
        .bend_config(|config| config["rootfs"]["diff_ids"][0] = json!(digest(b"something else")))
        .build_bent(|manifest| manifest["layers"][0]["size"] = json!(5_u64 << 30));
    bed.lying_image("bed/lying:1", || Ok(image))?;
    ensure!(inspect(bed, "bed/lying:1")?["layers"][0]["size"] == json!(5_u64 << 30));
    Ok(())
}

fn faults(bed: &Bed) -> anyhow::Result<()> {
    bed.small("v1")?;
    let registry = bed.registry()?;
    let proxy = Faulty::start(registry.address)?;
    let manifest = inspect(bed, "small:v1")?;
    let blob = format!("/v2/small/blobs/{}", manifest["layers"][0]["digest"].as_str().context("digest")?);
    let get = |path: &str| http::get(proxy.address, path, Duration::from_millis(500));
    let whole = get(&blob)?.body;
    ensure!(digest(&whole) == manifest["layers"][0]["digest"], "the proxy alters what no rule names");

    proxy.rule("/manifests/", Fault::Status(429, "Retry-After: 1\r\n"), 2);
    let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
    let path = "/v2/small/manifests/v1";
    let statuses: Vec<_> = (0..3)
        .map(|_| http::request(proxy.address, "GET", path, &accept, &[], SOON).map(|answer| answer.status))
        .collect::<Result<_, _>>()?;
    ensure!(statuses == [429, 429, 200], "{statuses:?}");

    proxy.rule("/blobs/", Fault::Truncate(1000), 1);
    ensure!(get(&blob).is_err_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof));
    proxy.rule("/blobs/", Fault::Corrupt(1000), 1);
    let other = get(&blob)?.body;
    ensure!(other.len() == whole.len() && other[1000] == !whole[1000] && other[1001..] == whole[1001..]);
    proxy.rule("/blobs/", Fault::Stall(1000), 1);
    ensure!(get(&blob).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    proxy.rule("/blobs/", Fault::ContentType("text/html"), 1);
    ensure!(get(&blob)?.header("content-type") == Some("text/html"));
    proxy.rule("/blobs/", Fault::Close, 1);
    ensure!(get(&blob).is_err());
    ensure!(get(&blob)?.body == whole, "all faults wear off");
    let seen = proxy.requests().iter().filter(|request| request.as_str() == format!("GET {blob}")).count();
    ensure!(seen == 7, "{:?}", proxy.requests());
    proxy.heal();

    let target = format!("docker://{}", proxy.reference("small:v1"));
    process::run(Command::new("skopeo").args(["inspect", "--tls-verify=false", &target]), SOON)?;
    Ok(())
}

fn testd(bed: &Bed, state: &Path) -> anyhow::Result<(Options, SocketAddr)> {
    let port = free_port()?;
    let options = Options::new(bed, &["/app/molt-testd"])?.env("TESTD_PORT", port).volume(state, "/sandbox/state");
    Ok((options, SocketAddr::from(([127, 0, 0, 1], port))))
}

fn answer(address: SocketAddr, path: &str) -> anyhow::Result<Value> {
    wait::until_ok("the daemon to answer", SOON, || http::get(address, path, SOON)?.json())
}

fn each_user(bed: &Bed, test: fn(&Bed, Kind) -> anyhow::Result<()>) -> anyhow::Result<()> {
    Kind::USER.into_iter().try_for_each(|kind| test(bed, kind).with_context(|| format!("{kind:?}")))
}

fn runs_daemon(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let state = bed.volume("state")?;
    let (options, address) = testd(bed, &state)?;
    let mut sandbox = Sandbox::start(bed, kind, options.env("GREETING", "hello there"))?;
    let first = answer(address, "/")?;
    ensure!(first == json!({"version": "outer", "starts": 1, "clicks": 0, "pid": 1}), "{first}");
    ensure!(answer(address, "/incr")? == 1);
    ensure!(answer(address, "/env")?["GREETING"] == "hello there");
    ensure!(answer(address, "/read?path=/run/secrets/token")? == "of no worth\n");
    ensure!(answer(address, "/try?open=/run/secrets/token&write=1")?["errno"] == 30, "a read-only volume");
    let output = sandbox.exec(&["cat", "/proc/1/comm", "/sandbox/state/starts"])?.ok()?;
    ensure!(output.stdout == "molt-testd\n1\n", "{output:?}");
    ensure!(sandbox.exec(&["sh", "-c", "exit 3"])?.code == 3);
    sandbox.exec(&["touch", "/var/lib/mark"])?.ok()?;
    ensure!(sandbox.processes()?.len() == 1, "{:?}", sandbox.processes()?);
    sandbox.signal(Signal::SIGUSR1)?;
    wait::until("SIGUSR1 to arrive", SOON, || sandbox.logs().contains("SIGUSR1"))?;

    ensure!(sandbox.kill()? == 137, "SIGKILL");
    ensure!(sandbox.pid1().is_err());
    sandbox.restart()?;
    let second = answer(address, "/")?;
    ensure!(second["starts"] == 2 && second["clicks"] == 1, "{second}");
    sandbox.exec(&["test", "-e", "/var/lib/mark"])?.ok().context("the root outlives a restart")?;
    ensure!(sandbox.stop(SOON)? == 0, "SIGTERM");
    let mark = std::fs::read_to_string(state.join("clean-stop"))?;
    ensure!(mark == "outer 2\n", "{mark:?}");
    ensure!(!state.join("overlap").exists());
    Ok(())
}

fn podman_confines(bed: &Bed) -> anyhow::Result<()> {
    let (options, address) = testd(bed, &bed.volume("state")?)?;
    let _sandbox = Sandbox::start(bed, Kind::Podman, options)?;
    let status = answer(address, "/whoami")?;
    ensure!(status["Seccomp"] == "2", "the default seccomp profile is not in force: {status}");
    let effective = u64::from_str_radix(status["CapEff"].as_str().context("CapEff")?, 16)?;
    let (admin, resource, ptrace) = (1 << 21, 1 << 24, 1 << 19);
    ensure!(effective & admin != 0 && effective & (resource | ptrace) == 0, "{status}");
    let mounts = answer(address, "/mounts")?;
    let mounts = mounts.as_str().context("text")?;
    for point in ["/proc/keys", "/proc/sys", "/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/run/secrets/token"] {
        ensure!(mounts.contains(&format!(" {point} ")), "{point} is not a mount\n{mounts}");
    }
    ensure!(mounts.lines().any(|line| line.contains(" / / ") && line.contains(" overlay ")), "{mounts}");
    Ok(())
}

fn allows(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let store = bed.volume("store")?;
    std::fs::create_dir(store.join("probe"))?;
    let probe = bed.program("molt-kernel-probe")?;
    let options = Options::new(bed, &["/bin/probe", "/store/probe"])?.volume(&store, "/store");
    let mut sandbox = Sandbox::start(bed, kind, options.read_only(&probe, "/bin/probe"))?;
    ensure!(sandbox.wait(SOON)? == 0, "{}", sandbox.logs());
    ensure!(store.join("probe/state/mark").exists(), "{}", sandbox.logs());
    Ok(())
}

fn masked(bed: &Bed) -> anyhow::Result<()> {
    let probe = bed.program("molt-kernel-probe")?;
    let store = bed.volume("store")?;
    std::fs::create_dir(store.join("probe"))?;
    let options = Options::new(bed, &["/bin/probe", "/store/probe"])?.volume(&store, "/store");
    let mut sandbox = Sandbox::start(bed, Kind::LightUserMasked, options.read_only(&probe, "/bin/probe"))?;
    ensure!(sandbox.wait(SOON)? != 0, "the probe found nothing amiss: {}", sandbox.logs());
    let logs = sandbox.logs();
    ensure!(logs.contains("fresh /proc: Operation not permitted"), "{logs}");
    Ok(())
}

fn gap(bed: &Bed) -> anyhow::Result<()> {
    let state = bed.volume("state")?;
    let (options, address) = testd(bed, &state)?;
    let mut old = Sandbox::start(bed, Kind::Light, options.clone().env("TESTD_VERSION", "old"))?;
    answer(address, "/")?;
    let prober = Prober::start(address);
    std::thread::sleep(Duration::from_millis(50));
    old.stop(SOON)?;
    let _new = Sandbox::start(bed, Kind::Light, options.env("TESTD_VERSION", "new"))?;
    wait::until("the new one", SOON, || {
        http::get(address, "/", SOON).is_ok_and(|response| response.text().contains("\"new\""))
    })?;
    std::thread::sleep(Duration::from_millis(20));
    let gaps = gaps(&prober.stop());
    ensure!(gaps.len() == 1 && gaps[0].from == "old" && gaps[0].to == "new", "{gaps:?}");
    ensure!(!gaps[0].failures.is_empty() && gaps[0].length > Duration::from_millis(1), "{gaps:?}");
    Ok(())
}

fn full_disk(bed: &Bed) -> anyhow::Result<()> {
    let disk = Disk::new(&bed.scratch("disk")?, FileSystem::Ext4, 64)?;
    let ballast = disk.fill(0)?;
    let file = disk.path.join("file");
    let error = std::fs::write(&file, vec![1; 1 << 20]).err().context("the disk is not full")?;
    ensure!(error.kind() == std::io::ErrorKind::StorageFull, "{error}");
    std::fs::remove_file(ballast)?;
    std::fs::write(&file, vec![1; 1 << 20])?;
    Ok(())
}

fn cut_disk(bed: &Bed) -> anyhow::Result<()> {
    for (kind, log) in [FileSystem::Ext4, FileSystem::Xfs]
        .into_iter()
        .flat_map(|kind| [Log::Lost, Log::Flushed].map(|log| (kind, log)))
    {
        let disk = Disk::new(&bed.scratch("disk")?, kind, 320)?;
        let (synced, written) = (disk.path.join("synced"), disk.path.join("written"));
        std::fs::write(&synced, [1; 4096])?;
        File::open(&synced)?.sync_all()?;
        File::open(&disk.path)?.sync_all()?;
        std::fs::write(&written, [2; 4096])?;
        disk.cut(log)?;
        disk.rest()?;
        disk.wake()?;
        ensure!(std::fs::read(&synced)? == [1; 4096], "{kind:?} {log:?}: what was synced is lost");
        // Data is written out after many seconds; the name may be in the log.
        ensure!(!std::fs::read(&written).is_ok_and(|data| data == [2; 4096]), "{kind:?} {log:?}: nothing was cut off");
    }
    Ok(())
}

fn redis(bed: &Bed) -> anyhow::Result<()> {
    let podman = bed.podman()?;
    let state = bed.volume("state")?;
    let port = free_port()?;
    let cli = |words: &[&str]| -> anyhow::Result<String> {
        let mut all = vec!["redis", "redis-cli", "-p"];
        let port = port.to_string();
        all.push(&port);
        all.extend(words);
        Ok(process::output(podman.command("exec").args(all), SOON)?.ok()?.stdout.trim().to_owned())
    };
    for (tag, databases) in [("v1", "17"), ("v2", "18")] {
        let image = podman.pull(&format!("docker://{}", bed.redis(tag)?))?;
        let volume = format!("{}:/sandbox/state", state.display());
        let port = format!("REDIS_PORT={port}");
        podman.run("run", &["--detach", "--replace", "--name", "redis", "-v", &volume, "-e", &port, &image])?;
        wait::until_ok("redis", SOON, || {
            let pong = cli(&["ping"])?;
            ensure!(pong == "PONG", "{pong}");
            Ok(())
        })?;
        ensure!(cli(&["config", "get", "databases"])?.ends_with(databases));
        cli(&["incr", "starts"])?;
    }
    ensure!(cli(&["get", "starts"])? == "2");
    podman.run("rm", &["--force", "--time=5", "redis"])?;
    Ok(())
}
