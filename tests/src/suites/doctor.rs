//! `molt doctor`: every row is there in every kind of sandbox, and each that can be spoilt here says what it costs and what
//! to type.
//!
//! In: sandboxes as they should be, and with one thing amiss each. Out: an error that shows all rows. Must not: take a row
//! that is not there for one that is well.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{PROGRAM, SOON, STATE, STORE, Setup};
use crate::harness::runtime::{Kind, Options, Sandbox};
use crate::harness::wait;

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("doctor::finds_a_sandbox_well", |bed| well(bed, Kind::Light)),
    case("doctor::finds_a_user_namespace_well", |bed| well(bed, Kind::LightUser)),
    case("doctor::finds_what_a_masked_proc_costs", |bed| well(bed, Kind::LightUserMasked)),
    case("doctor::finds_a_sandbox_well_under_crun", |bed| well(bed, Kind::Crun)),
    case("doctor::finds_a_sandbox_well_under_podman", |bed| well(bed, Kind::Podman)),
    case("doctor::finds_a_user_namespace_well_under_crun", |bed| well(bed, Kind::CrunUser)),
    case("doctor::finds_a_user_namespace_well_under_podman", |bed| well(bed, Kind::PodmanUser)),
    case("doctor::says_what_lacks_of_folders_memory_and_devices", folders),
    case("doctor::says_what_lacks_of_landlock_and_ids", kernel),
    case("doctor::says_what_a_seccomp_profile_takes", seccomp),
    case("doctor::says_which_capabilities_lack", capabilities),
];

/// Every row beside a running Molt.
const ROWS: [&str; 17] = [
    "/dev",
    "/proc",
    "CAP_SYS_ADMIN",
    "Landlock",
    "capabilities",
    "cgroup",
    "kernel",
    "memory",
    "mode",
    "mounts",
    "namespaces",
    "overlayfs",
    "seccomp",
    "state",
    "store",
    "unpacking",
    "user ids",
];

type Rows = BTreeMap<String, Value>;

fn rows(text: &str) -> anyhow::Result<Rows> {
    let all: Vec<Value> = serde_json::from_str(text).with_context(|| format!("reading {text:?}"))?;
    let named = |row: Value| Ok((row["what"].as_str().context("what")?.to_owned(), row));
    all.into_iter().map(named).collect()
}

/// That row is of this grade, its words contain these, and one that is not well says what it costs and what to type.
fn row(rows: &Rows, what: &str, grade: &str, words: &[&str]) -> anyhow::Result<()> {
    let row = rows.get(what).with_context(|| format!("no row {what} in {rows:#?}"))?;
    ensure!(row["grade"] == grade, "{what} is not {grade}: {row:#}");
    let text = row.to_string();
    for word in words {
        ensure!(text.contains(word), "nothing of {word:?} in {row:#}");
    }
    for field in ["costs", "mend"] {
        let said = row[field].as_str().is_some_and(|text| !text.is_empty());
        ensure!(said == (grade != "ok"), "{field}: {row:#}");
    }
    Ok(())
}

fn well(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let molt = Setup::new(bed, kind, &bed.small("v1")?)?.start()?;
    let rows = rows(&molt.expect(0, &["doctor", "-o", "json"])?.stdout)?;
    ensure!(rows.keys().map(String::as_str).eq(ROWS), "{:?}", rows.keys());
    let masked = kind == Kind::LightUserMasked;
    for what in ROWS {
        let grade = if masked && what == "/proc" { "degraded" } else { "ok" };
        row(&rows, what, grade, &[])?;
    }
    let (mode, overlay) = if kind.in_user_namespace() {
        ("a user namespace of 65536 ids", "user.overlay.*")
    } else {
        ("the machine's own users", "trusted.overlay.*")
    };
    row(&rows, "mode", "ok", &[mode])?;
    row(&rows, "overlayfs", "ok", &[overlay])?;
    let filter = matches!(kind, Kind::Podman | Kind::PodmanUser);
    row(&rows, "seccomp", "ok", &[if filter { "allows all that is used" } else { "no filter" }])?;
    // For people: a line a row, and no more where nothing lacks.
    let text = molt.expect(0, &["doctor"])?.stdout;
    let lines = text.lines().count();
    ensure!(lines == if masked { 19 } else { 17 }, "{lines} lines:\n{text}");
    molt.sound()
}

/// A container in which something else than Molt is PID 1.
fn beside(bed: &Bed, kind: Kind, change: impl FnOnce(Options) -> Options) -> anyhow::Result<Sandbox> {
    let sandbox = Sandbox::start(bed, kind, change(Options::new(bed, &["/bin/busybox", "sleep", "1000"])?))?;
    wait::until_ok("the container's root", SOON, || {
        // What sets it up is a busybox, too.
        let words = fs::read_to_string(format!("/proc/{}/cmdline", sandbox.pid1()?))?;
        ensure!(words.starts_with("/bin/busybox\0sleep\0"), "PID 1 is {words:?}");
        Ok(())
    })?;
    Ok(sandbox)
}

/// What it says there; something is missing always: PID 1.
fn asked(sandbox: &Sandbox, env: &[&str]) -> anyhow::Result<Rows> {
    let words = [&["/bin/busybox", "env"][..], env, &[PROGRAM, "doctor", "-o", "json"]].concat();
    let rows = rows(&sandbox.exec(&words)?.expect_code(1)?.stdout)?;
    row(&rows, "PID 1", "missing", &["ENTRYPOINT"])?;
    Ok(rows)
}

fn folders(bed: &Bed) -> anyhow::Result<()> {
    let plain = beside(bed, Kind::Light, |options| options)?;
    let found = asked(&plain, &[])?;
    row(&found, "store", "degraded", &["/var/lib/molt is not there", "-v molt:/var/lib/molt"])?;
    row(
        &found,
        "state",
        "degraded",
        &["/sandbox/state is a folder of the container's own", "-v state:/sandbox/state"],
    )?;
    let found = asked(&plain, &["MOLT_STORE=/etc"])?;
    row(&found, "store", "missing", &["lies on the container's overlay"])?;

    let volume = |name: &str| bed.volume(name);
    let (store, state, config, cgroup) = (volume("store")?, volume("state")?, volume("config")?, volume("cgroup")?);
    fs::write(config.join("spec.yaml"), spec("/nowhere"))?;
    fs::write(config.join("zero"), "not a device")?;
    for (name, text) in [("memory.oom.group", "1"), ("memory.max", "33554432"), ("memory.current", "1048576")] {
        fs::write(cgroup.join(name), format!("{text}\n"))?;
    }
    let spoilt = beside(bed, Kind::Light, |options| {
        let options = options.read_only(&store, STORE).read_only(&state, STATE).read_only(&config, "/etc/molt");
        options.volume(&config.join("zero"), "/dev/zero").volume(&cgroup, "/sys/fs/cgroup")
    })?;
    let found = asked(&spoilt, &[])?;
    row(&found, "store", "missing", &["/var/lib/molt is read-only"])?;
    row(&found, "state", "missing", &["/sandbox/state is read-only", "cannot write its state"])?;
    row(&found, "/dev", "missing", &["/dev/zero", "nothing can be armed"])?;
    row(&found, "cgroup", "degraded", &["memory.oom.group", "singleProcessOOMKill"])?;
    row(&found, "memory", "degraded", &["31 MiB left", "by 97 MiB or more"])?;
    let found = asked(&spoilt, &["MOLT_SPEC=/etc/molt/spec.yaml"])?;
    row(&found, "state", "degraded", &["/nowhere is not there", "nothing that lives through an update"])
}

fn spec(state: &str) -> String {
    let head = json!({"apiVersion": "molt.dev/v1alpha1", "kind": "Sandbox", "metadata": {"name": "asked"}});
    let mut spec = head;
    spec["spec"] = json!({"state": [state]});
    spec.to_string()
}

fn kernel(bed: &Bed) -> anyhow::Result<()> {
    let plain = beside(bed, Kind::Light, |options| options)?;
    for (abi, grade, words) in [
        (0, "missing", ["only owner and mode would guard files", "best_effort"]),
        (2, "missing", ["could be emptied", "Linux 6.2"]),
        (3, "degraded", ["TCP ports are not limited", "Linux 6.12"]),
        (4, "degraded", ["device ioctls are not guarded", "Linux 6.12"]),
        (5, "degraded", ["signals and abstract sockets are not scoped", "Linux 6.12"]),
    ] {
        let found = asked(&plain, &[&format!("MOLT_PRETEND_LANDLOCK={abi}")])?;
        row(&found, "Landlock", grade, &words)?;
    }
    // Root of a user namespace with one id, in which nothing was mounted.
    let found = asked(&plain, &["unshare", "-U", "-r"])?;
    row(&found, "mode", "ok", &["a user namespace of 1 ids"])?;
    row(&found, "user ids", "degraded", &["there is one only", "hostUsers: false"])?;
    Ok(())
}

fn profile(folder: &Path, forbidden: &[&str]) -> anyhow::Result<String> {
    let calls = json!({"names": forbidden, "action": "SCMP_ACT_ERRNO", "errnoRet": 1});
    let file = folder.join("profile.json");
    fs::write(&file, json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [calls]}).to_string())?;
    Ok(format!("seccomp={}", file.display()))
}

fn with_profile(bed: &Bed, forbidden: &[&str]) -> anyhow::Result<Rows> {
    let profile = profile(&bed.scratch("profile")?, forbidden)?;
    let sandbox = beside(bed, Kind::Podman, |mut options| {
        options.podman.extend(["--security-opt".to_owned(), profile]);
        options
    })?;
    asked(&sandbox, &[])
}

fn seccomp(bed: &Bed) -> anyhow::Result<()> {
    let found = with_profile(bed, &["pivot_root", "keyctl"])?;
    row(&found, "seccomp", "degraded", &["without pivot_root", "without keyctl", "seccompProfile"])?;
    row(&found, "mounts", "ok", &[])?;
    let found = with_profile(bed, &["unshare", "landlock_create_ruleset", "fsopen"])?;
    row(&found, "seccomp", "ok", &[])?;
    row(&found, "namespaces", "missing", &["cannot be made", "allows unshare"])?;
    row(&found, "Landlock", "missing", &["forbidden"])?;
    row(&found, "mounts", "missing", &["apparmor=unconfined"])?;
    row(&found, "overlayfs", "missing", &["no image can be mounted"])?;
    row(&found, "/proc", "degraded", &["procMount: Unmasked"])?;
    row(&found, "unpacking", "degraded", &["Landlock ABI 0", "fewer walls"])
}

fn capabilities(bed: &Bed) -> anyhow::Result<()> {
    let without = |names: &[&str]| {
        let dropped: Vec<String> = names.iter().flat_map(|name| ["--cap-drop", name]).map(str::to_owned).collect();
        let sandbox = beside(bed, Kind::Podman, |mut options| {
            options.podman.extend(dropped);
            options
        })?;
        asked(&sandbox, &[])
    };
    let found = without(&["CHOWN", "SETPCAP"])?;
    let words = ["without SETPCAP, CHOWN", "bounding set stays", "are refused", "--cap-add SETPCAP,CHOWN"];
    row(&found, "capabilities", "degraded", &words)?;
    let found = without(&["SETUID", "KILL"])?;
    row(&found, "capabilities", "missing", &["without SETUID, KILL", "nothing can be armed"])
}
