//! What the workload does not see: PID 1's secrets, the store by another mount, the kernel's own files; and that nothing of
//! a mount that hangs reaches the generation that runs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::fuse::Fuse;
use crate::harness::image::{Format, Layer, Packing};
use crate::harness::images;
use crate::harness::molt::{Molt, PROGRAM, SOON, STORE, Setup, names};
use crate::harness::runtime::{Kind, Options, Sandbox};
use crate::harness::wait;

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("isolation::the_environment_of_pid_1_is_nowhere_to_be_read", forgets_environment),
    case("isolation::a_second_mount_of_the_store_is_not_shown", store_again),
    case("isolation::a_store_in_the_state_by_a_link_or_another_mount_is_refused", store_in_state),
    case("isolation::credentials_in_the_state_are_refused", credentials_in_state),
    case("isolation::files_of_the_kernel_are_masked_as_runtimes_do", masked),
    case("isolation::marks_in_a_layer_do_not_steer_the_overlay", marks),
    case("isolation::root_of_another_user_namespace_is_no_operator", no_operator),
    case("isolation::a_mount_that_hangs_ends_the_arming_and_the_old_one_serves", hangs),
    case("isolation::more_time_to_start_is_not_given_for_ever", extends_for_ever),
    case("userns::ids_out_of_the_map_are_refused_before_anything_is_stopped", out_of_the_map),
    case("userns::a_proc_that_is_not_fresh_is_said", not_fresh),
    case("userns::an_owner_in_a_layer_that_is_not_mapped_is_refused_before_anything_is_kept", unmapped_owner),
    case("isolation::a_device_that_is_another_file_arms_nothing", no_device),
];

fn errno(molt: &Molt, query: &str) -> anyhow::Result<i64> {
    molt.get(&format!("/try?{query}"))?["errno"].as_i64().context("an errno")
}

fn forgets_environment(bed: &Bed) -> anyhow::Result<()> {
    for kind in [Kind::Light, Kind::LightUser, Kind::Podman] {
        let setup = Setup::own_root(bed, kind, &["/app/molt-testd"])?.with("/workload/user", json!("1000:1000"));
        let molt = setup.env("POD_SECRET", "s3cr3t-of-the-pod").env("MOLT_PRETEND_KERNEL", "6.14").start()?;
        ensure!(molt.get("/env")?["POD_SECRET"] == "s3cr3t-of-the-pod", "it is the workload's all the same");
        let environ = fs::read(format!("/proc/{}/environ", molt.sandbox.pid1()?))?;
        ensure!(environ.iter().all(|byte| *byte == 0), "{kind:?}: {}", String::from_utf8_lossy(&environ));
        for (pid, name) in molt.family()? {
            let environ = fs::read(format!("/proc/{pid}/environ"))?;
            let found = String::from_utf8_lossy(&environ).contains("s3cr3t");
            ensure!(found == (name == "molt-testd"), "{kind:?}: the environment of {name}");
            let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
            let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("a limit")?;
            ensure!(core.split_whitespace().nth(5) == Some("0"), "{kind:?}: {name} may dump core: {core}");
        }
        // The variable was read before it was forgotten.
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", molt.sandbox.pid1()?))?;
        ensure!(mounts.contains("/anchors/"), "{kind:?}: not as on Linux 6.14:\n{mounts}");
        molt.sound()?;
    }
    Ok(())
}

fn store_again(bed: &Bed) -> anyhow::Result<()> {
    for kind in [Kind::Light, Kind::LightUser] {
        let mut setup = Setup::new(bed, kind, &bed.small("v1")?)?;
        let disk = bed.scratch("disk")?;
        setup.store = disk.join("store");
        let (layers, other) = (setup.store.join("layers"), disk.join("other"));
        for folder in [&layers, &other] {
            fs::create_dir_all(folder)?;
        }
        let options = setup.options.volume(&disk, "/mnt/disk").volume(&layers, "/mnt/layers");
        setup.options = options.volume(&other, "/mnt/other");
        let molt = setup.start()?;
        let paths = ["/mnt/disk", "/mnt/disk/store/lock", "/mnt/layers", "/var/lib/molt", "/etc/molt"];
        for path in paths {
            let found = errno(&molt, &format!("open={path}"))?;
            ensure!(found == 2, "{kind:?}: {path}: errno {found}, not ENOENT");
        }
        let mounts = molt.get("/mounts")?;
        let mounts = mounts.as_str().context("mounts")?;
        ensure!(mounts.contains(" /mnt/other "), "another folder of the same disk is carried: {mounts}");
        ensure!(!mounts.contains(" /mnt/disk ") && !mounts.contains(" /mnt/layers "), "{mounts}");
        molt.sound()?;
    }
    Ok(())
}

/// PID 1 ends with 122 and says why.
fn refused(bed: &Bed, options: Options, words: &[&str]) -> anyhow::Result<()> {
    let mut sandbox = Sandbox::start(bed, Kind::Light, options)?;
    let (ended, log) = (sandbox.wait(SOON)?, sandbox.logs());
    ensure!(ended == 122, "exit status {ended}:\n{log}");
    for word in words {
        ensure!(log.contains(word), "nothing of {word:?} in\n{log}");
    }
    Ok(())
}

fn store_in_state(bed: &Bed) -> anyhow::Result<()> {
    let run = ["--", "/app/molt-testd"];
    let words = ["lies in the state path /sandbox/state", "a folder of its own"];
    // The store is a folder of the state's volume, mounted again.
    let state = bed.volume("state")?;
    let store = state.join("deep/store");
    fs::create_dir_all(&store)?;
    let program = [&[PROGRAM, "init"][..], &run].concat();
    let options = Options::new(bed, &program)?.volume(&state, "/sandbox/state").volume(&store, STORE);
    refused(bed, options, &words)?;
    ensure!(names(&store)?.is_empty(), "the store was touched");
    // The store's path leads there by a link, and is not there yet.
    let links = bed.volume("links")?;
    std::os::unix::fs::symlink("/sandbox/state/deep", links.join("link"))?;
    let program = [&[PROGRAM, "init", "--store", "/srv/links/link/new"][..], &run].concat();
    let options = Options::new(bed, &program)?.volume(&state, "/sandbox/state").volume(&links, "/srv/links");
    refused(bed, options, &words)?;
    // The state's path leads to a folder that holds the store.
    std::os::unix::fs::symlink("/srv/data", links.join("state"))?;
    let data = bed.volume("data")?;
    let program = [PROGRAM, "init", "--store", "/srv/data/store", "--state", "/srv/links/state"];
    let options = Options::new(bed, &[&program[..], &run].concat())?;
    let options = options.volume(&data, "/srv/data").volume(&links, "/srv/links");
    refused(bed, options, &["lies in the state path /srv/links/state"])?;
    ensure!(names(&data)?.is_empty() && names(&state.join("deep"))? == ["store"], "something was touched");
    Ok(())
}

fn credentials_in_state(bed: &Bed) -> anyhow::Result<()> {
    let mut setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let keys = setup.state.join("keys");
    fs::create_dir(&keys)?;
    fs::write(keys.join("config.json"), "{}")?;
    setup.options = setup.options.volume(&keys, "/run/keys");
    let mut molt = setup.with("/registries/credentials", json!("/run/keys/config.json")).launch()?;
    let (ended, log) = (molt.sandbox.wait(SOON)?, molt.sandbox.logs());
    let said = log.contains("/run/keys/config.json is shown to the workload with the state");
    ensure!(ended == 122 && said, "{ended}: {log}");
    Ok(())
}

/// A policy that lets everything be read that is looked at here.
fn open_policy() -> Value {
    json!({"version": 1, "filesystem_policy": {
        "include_workdir": true,
        "read_only": ["/bin", "/app", "/etc", "/proc", "/sys"],
        "read_write": ["/sandbox/state", "/tmp"],
    }})
}

fn masked(bed: &Bed) -> anyhow::Result<()> {
    for kind in [Kind::Light, Kind::LightUser, Kind::LightUserMasked] {
        let molt = Setup::new(bed, kind, &bed.small("v1")?)?.with("/policy", open_policy()).start()?;
        for path in ["/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug"] {
            let read = molt.get(&format!("/read?path={path}"))?;
            // Empty is what masks it; a kernel that has none says ENOENT.
            ensure!(read == "" || read["errno"] == 2 || read["errno"] == 13, "{kind:?}: {path} holds {read}");
        }
        ensure!(molt.get("/read?path=/proc/uptime")?.is_string(), "what is not masked can be read");
        let mounts = molt.get("/mounts")?;
        let mounts = mounts.as_str().context("mounts")?;
        let hidden = ["/proc/interrupts", "/proc/acpi", "/proc/asound", "/sys/firmware", "/sys/dev/block"];
        for path in hidden
            .into_iter()
            .chain(["/sys/devices/virtual/powercap"])
            .filter(|path| fs::exists(path).is_ok_and(|is| is))
        {
            ensure!(mounts.contains(&format!(" {path} ")), "{kind:?}: {path} is not masked\n{mounts}");
        }
        for path in ["/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq"] {
            let line = mounts.lines().find(|line| line.contains(&format!(" {path} "))).context(path)?;
            ensure!(line.contains(" ro,"), "{kind:?}: {path} is writable\n{mounts}");
        }
        molt.sound()?;
    }
    Ok(())
}

/// The second wall: marks that the unpacker has let through say nothing to the overlay.
fn marks(bed: &Bed) -> anyhow::Result<()> {
    let image = bed.image("marked:v2", || {
        let lower = Layer::new().dir("app/secret", 0o755).file("app/secret/file", 0o644, b"secret");
        let upper = Layer::new().dir("app/shown", 0o755).file("app/shown-file", 0o644, b"shown!");
        let image = images::small_as("v2", &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)?;
        Ok(image.layer(lower.pack(Packing::Gzip)).layer(upper.pack(Packing::Gzip)).build())
    })?;
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.expect(0, &["update", "--stage-only", "--no-wait", &image])?;
    molt.until("generation 2 to be staged", |status| status["phase"] == "Held")?;
    let layers = molt.store.join("layers/sha256");
    let mut marked = 0;
    for layer in names(&layers)? {
        let app = layers.join(layer).join("app");
        let mark = |name: &str, key: &str, value: &[u8]| {
            rustix::fs::setxattr(app.join(name), key, value, rustix::fs::XattrFlags::empty())
        };
        if app.join("shown").exists() {
            mark("shown", "trusted.overlay.redirect", b"/app/secret")?;
            mark("shown-file", "trusted.overlay.metacopy", b"")?;
            mark("shown-file", "trusted.overlay.redirect", b"/app/secret/file")?;
            marked += 1;
        }
    }
    ensure!(marked == 1, "{marked} layers with the folder");
    molt.expect(0, &["apply"])?;
    molt.serves("v2", 2)?;
    ensure!(errno(&molt, "open=/app/secret/file")? == 0, "the layer below is there");
    // Linux refuses what has a redirect that it may not follow.
    for path in ["/app/shown/file", "/app/shown-file"] {
        let found = errno(&molt, &format!("open={path}"))?;
        ensure!([1, 2].contains(&found), "{path}: the mark was followed: errno {found}");
    }
    molt.sound()
}

/// As a workload is that has the ids of PID 1 itself: the kernel says uid 0 of it, and its user namespace tells it apart.
fn no_operator(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.sandbox.exec(&[PROGRAM, "status"])?.ok()?;
    let nested = molt.sandbox.exec(&["/bin/busybox", "unshare", "-U", "-r", PROGRAM, "status"])?;
    ensure!(nested.code != 0 && nested.stderr.contains("the peer is in another user namespace"), "{nested:?}");
    molt.sound()
}

fn hangs(bed: &Bed) -> anyhow::Result<()> {
    let folder = bed.scratch("fuse")?;
    // Dropped last: who waits for an answer that was asked for cannot even be killed.
    let molt;
    let fuse = Fuse::mount(&folder)?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let mut setup = setup.with("/state", json!(["/sandbox/state", "/sandbox/far"]));
    setup.options = setup.options.volume(&folder, "/sandbox/far");
    molt = setup.start()?;
    let before = molt.get("/")?;
    fuse.hang();
    let begun = Instant::now();
    let output = molt.expect(1, &["update", &bed.small("v2")?])?;
    let took = begun.elapsed();
    ensure!(output.stderr.contains("does not answer"), "{output:?}");
    ensure!(took < Duration::from_secs(50), "{took:?}");
    ensure!(molt.get("/")? == before, "the old workload was touched");
    let status = molt.settled()?;
    ensure!(status["lastUpdate"]["reason"] == "deadline-exceeded" && status["bad"] == json!([]), "{status:#}");
    // Nothing of the attempt is left but the thread that waits.
    let shims = molt.family()?.iter().filter(|(_, name)| !["molt", "molt-testd"].contains(&name.as_str())).count();
    ensure!(shims == 1, "{:?}", molt.family()?);
    molt.sound()
}

fn extends_for_ever(bed: &Bed) -> anyhow::Result<()> {
    let image = bed.image("extends:for-ever", || {
        let image = images::small_as("extends", &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)?;
        Ok(image.set("Env", json!(["PATH=/bin", "TESTD_BEHAVIOUR=notify,extend=500000,ready=500000"])).build())
    })?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("notifies")?)?.with("/health/startupDeadline", json!("1s"));
    let molt = setup.with("/health/readiness", json!({"notify": {}})).start()?;
    let begun = Instant::now();
    let output = molt.expect(3, &["update", &image])?;
    let took = begun.elapsed();
    ensure!(output.stderr.contains("10 times that"), "{output:?}");
    ensure!((Duration::from_secs(9)..Duration::from_secs(40)).contains(&took), "{took:?}");
    molt.sound()
}

fn out_of_the_map(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::LightUser, &bed.small("v1")?)?.start()?;
    let before = molt.get("/")?;
    let policy = |user: &str| {
        let mut policy = open_policy();
        policy["process"] = json!({"run_as_user": user, "run_as_group": user});
        policy.to_string()
    };
    let file = molt.config.join("policy.yaml");
    fs::write(&file, policy("70000"))?;
    let update = ["update", "--allow-wider", "--policy", "/etc/molt/policy.yaml"];
    let image = bed.small("v2")?;
    let output = molt.expect(1, &[&update[..], &[&image]].concat())?;
    ensure!(output.stderr.contains("70000 does not exist in this user namespace, which has 0-65535"), "{output:?}");
    ensure!(molt.get("/")? == before, "the old workload was touched");
    fs::write(&file, policy("1000"))?;
    molt.expect(0, &[&update[..], &[&image]].concat())?;
    molt.serves("v2", 2)?;
    molt.sound()
}

fn not_fresh(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::LightUserMasked, &bed.small("v1")?)?.start()?;
    let status = molt.status()?;
    let says = |value: &Value| value.to_string().contains("no fresh /proc");
    ensure!(says(&status["degraded"]), "{status:#}");
    ensure!(!status["degraded"].to_string().contains("oom_score_adj"), "PID 1's own can be written: {status:#}");
    let conditions = status["conditions"].as_array().context("conditions")?;
    let confined = conditions.iter().find(|condition| condition["type"] == "Confined").context("Confined")?;
    ensure!(confined["status"] == "False" && says(confined), "{confined:#}");
    let events = molt.expect(0, &["events"])?.stdout;
    ensure!(events.contains("no fresh /proc"), "{events}");
    let doctor = molt.molt(&["doctor"])?.stdout;
    let line = doctor.lines().find(|line| line.contains("  /proc ")).context("a line")?;
    ensure!(line.starts_with("degraded"), "{doctor}");
    // PID 1 and the shim can be seen, not touched: other ids, not dumpable, another Landlock domain.
    let supervisor = molt.get("/read?path=/proc/1/cmdline")?;
    ensure!(supervisor.as_str().is_some_and(|text| text.contains("init")), "{supervisor}");
    for name in ["environ", "mem", "maps", "auxv", "root/etc/passwd", "cwd/etc/passwd", "fd/0", "ns/mnt"] {
        let found = errno(&molt, &format!("open=/proc/1/{name}"))?;
        ensure!(found == 13 || found == 1, "/proc/1/{name}: errno {found}");
    }
    ensure!(errno(&molt, "open=/proc/sys/kernel/hostname&write=1")? != 0, "a sysctl can be set");
    // A PID namespace of its own there is all the same: what it sees it cannot name.
    let answer = molt.get("/")?;
    ensure!(answer["pid"].as_u64().is_some_and(|pid| pid < 5), "{answer}");
    molt.sound()
}

fn unmapped_owner(bed: &Bed) -> anyhow::Result<()> {
    let image = bed.image("isolation/unmapped:1", || {
        let recipe = images::small_as("v2", &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)?;
        let layer = Layer::new().dir("app", 0o755).owner(70_000, 70_000).file("app/far", 0o644, b"far\n");
        Ok(recipe.layer(layer.pack(Packing::Gzip)).build())
    })?;
    let molt = Setup::new(bed, Kind::LightUser, &bed.small("v1")?)?.start()?;
    let (before, layers) = (molt.get("/")?, molt.stored("layers/sha256")?);
    let output = molt.expect(1, &["update", &image])?;
    let said = "app/far to 70000:70000: not mapped in this user namespace; map more ids";
    ensure!(output.stderr.contains(said), "{output:?}");
    ensure!(molt.get("/")? == before, "the old workload was touched");
    let bad = molt.json(&["bad", "list"])?;
    ensure!(bad == json!([]), "it is held against the image: {bad}");
    wait::until_ok("the store to be tidy", SOON, || {
        for folder in ["tmp", "trash"] {
            let left = molt.stored(folder)?;
            ensure!(left.is_empty(), "{folder} holds {left:?}");
        }
        Ok(())
    })?;
    molt.expect(0, &["gc"])?;
    let left = molt.stored("layers/sha256")?;
    ensure!(left == layers, "{left:?} are stored, {layers:?} were");
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    molt.sound()
}

/// What a generation gets for `/dev/zero` is the device, or nothing is started.
fn no_device(bed: &Bed) -> anyhow::Result<()> {
    let said = "/dev/zero is not device 1:5";
    let around = bed.scratch("around")?;
    fs::write(around.join("zero"), "not a device")?;
    let mut setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    setup.options = setup.options.volume(&around.join("zero"), "/dev/zero");
    let mut molt = setup.launch()?;
    let ended = molt.sandbox.wait(SOON)?;
    ensure!((120..=126).contains(&ended) && molt.sandbox.logs().contains(said), "{ended}: {}", molt.sandbox.logs());
    ensure!(molt.state_file("starts").is_none(), "a workload was started all the same");
    // The same beside one that runs.
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let before = molt.get("/")?;
    molt.sandbox.exec(&["/bin/mount", "-o", "bind", "/etc/hostname", "/dev/zero"])?.ok()?;
    let output = molt.expect(1, &["update", &bed.small("v2")?])?;
    ensure!(output.stderr.contains(said), "{output:?}");
    ensure!(molt.get("/")? == before, "the old workload was touched");
    ensure!(molt.json(&["bad", "list"])? == json!([]), "it is held against the image");
    molt.sandbox.exec(&["/bin/umount", "/dev/zero"])?.ok()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    molt.sound()
}
