//! Whatever the kernel refuses while a generation is confined: no program of it ever runs with less confinement than
//! it would have had.
//!
//! In: a running sandbox, and errors injected into the calls of the shims that its updates start, one an update: each
//! call a shim makes, each occurrence, each errno (with `--long`; else a share, drawn by `MOLT_TESTS_SEED`). Out: a count
//! of faults. After each, either the old workload serves on and the update is reported as failed, or the new one runs,
//! and the kernel (asked at its exec, before its first instruction) and the workload itself (by trying) say the same of
//! its confinement as without a fault. Must not: take the shim's word for anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::chance::Chance;
use crate::harness::image::{Format, Layer, Packing};
use crate::harness::images;
use crate::harness::molt::{Molt, Setup};
use crate::harness::runtime::Kind;
use crate::harness::tracer::handle::{Scope, Tracer};
use crate::harness::tracer::wire::{Fault, Role, Seen, Step};
use crate::harness::world;

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("fail_closed::a_share_of_all_faults_leaves_nothing_unconfined", share),
    case("fail_closed::faults_of_landlock_under_best_effort_leave_nothing_unconfined", best_effort),
    case("fail_closed::finds_errors_that_are_not_looked_at", swallowed),
    case("fail_closed::every_fault_leaves_nothing_unconfined", every).long(),
];

/// What a kernel, a security module or a runtime's filter may answer.
const ERRNOS: [Errno; 17] = [
    Errno::EPERM,
    Errno::EACCES,
    Errno::EINVAL,
    Errno::ENOSYS,
    Errno::EOPNOTSUPP,
    Errno::ENOMEM,
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::EIO,
    Errno::EBUSY,
    Errno::ENOSPC,
    Errno::ELOOP,
    Errno::ENOENT,
    Errno::EAGAIN,
    Errno::EINTR,
    Errno::E2BIG,
    Errno::ENODEV,
];
/// Calls without which there is no confinement as `docs/THREAT-MODEL.md` has it: if one is missing in what the tracer
/// sees, then it is the tracer that is blind.
const EXPECTED: [&str; 33] = [
    "unshare",
    "clone",
    "prctl(PDEATHSIG)",
    "prctl(DUMPABLE)",
    "prctl(NO_NEW_PRIVS)",
    "prctl(CAPBSET_DROP)",
    "prctl(SECUREBITS)",
    "prctl(CAP_AMBIENT)",
    "setsid",
    "close_range",
    "mount",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "mount_setattr",
    "pivot_root",
    "umount2",
    "chdir",
    "fchdir",
    "openat2",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
    "prlimit64",
    "keyctl(1)",
    "setgroups",
    "setresgid",
    "setresuid",
    "capset",
    "seccomp",
    "execve",
];
/// How many faults the share has, beside one for each call.
const SHARE: usize = 250;

/// A sandbox under faults.
struct Subject {
    molt: Molt,
    tracer: Tracer,
    images: [String; 2],
    /// What the shim does when nothing fails.
    steps: Vec<Step>,
    /// Of a workload that started when nothing failed: as the kernel says, and as it says itself.
    seen: BTreeMap<String, String>,
    confessed: Value,
}

/// How an update under a fault ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// The old one never noticed.
    Aborted,
    /// The old one is back.
    RolledBack,
    /// The new one runs, as confined as ever.
    Harmless,
}

impl Subject {
    fn start(bed: &Bed, policy: Option<&str>) -> anyhow::Result<Self> {
        Self::start_with(bed, |setup| {
            Ok(match policy {
                Some(text) => setup.with("/policy", serde_json::from_str(text)?),
                None => setup,
            })
        })
    }

    fn start_with(bed: &Bed, more: impl FnOnce(Setup<'_>) -> anyhow::Result<Setup<'_>>) -> anyhow::Result<Self> {
        let mut images = Vec::new();
        for version in ["v1", "v2"] {
            // A folder that no policy names, and a file that anybody may write but for Landlock.
            let open = Layer::new().dir("vault", 0o755).dir("app", 0o755).file("app/loose", 0o666, b"");
            let build = || {
                let recipe = images::small_as(version, &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)?;
                Ok(recipe.layer(open.pack(Packing::Gzip)).build())
            };
            images.push(bed.image(&format!("sealed:{version}"), build)?);
        }
        let images: [String; 2] = images.try_into().ok().context("two images")?;
        let mut setup = Setup::new(bed, Kind::Light, &images[0])?;
        // The store in memory: thousands of updates are about the kernel's answers, not about a disk.
        setup.store = PathBuf::from(world::SHORT).join(format!("store-{}", bed.next()));
        fs::create_dir_all(&setup.store)?;
        let setup = setup.workload_env("TESTD_CONFESS", "1").with("/health/monitor", json!("0s"));
        let setup = setup.with("/update/keep", json!(1));
        let setup = more(setup)?;
        let molt = setup.start()?;
        let tracer = Tracer::seize(bed, molt.sandbox.pid1()?, Scope::Shims)?;
        let mut subject =
            Self { molt, tracer, images, steps: Vec::new(), seen: BTreeMap::new(), confessed: Value::Null };
        let first = subject.dry()?;
        let second = subject.dry()?;
        let [one, other] = [steps(&first), steps(&second)];
        let differ: Vec<&Step> = one.symmetric_difference(&other).collect();
        ensure!(differ.is_empty(), "two shims for images alike did not do the same: {differ:?}");
        ensure!(first.workload == second.workload, "{:#?}\nis not\n{:#?}", first.workload, second.workload);
        subject.steps = other.into_iter().collect();
        subject.seen = second.workload.context("a workload")?;
        subject.confessed = subject.confession()?.0;
        subject.is_confined()?;
        Ok(subject)
    }

    /// An update without a fault.
    fn dry(&mut self) -> anyhow::Result<Seen> {
        self.tracer.watch(None)?;
        let record = self.molt.updated(&self.other()?)?;
        ensure!(record["outcome"] == "confirmed", "{record:#}");
        let [seen] = self.tracer.report()?.try_into().ok().context("one update starts one shim")?;
        Ok(seen)
    }

    /// The baseline itself: what is compared with has to be what is promised.
    fn is_confined(&self) -> anyhow::Result<()> {
        let (kernel, own) = (&self.seen, &self.confessed);
        let status = |key: &str| kernel.get(key).map(String::as_str).unwrap_or_default();
        for key in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk", "SigIgn"] {
            ensure!(u64::from_str_radix(status(key), 16) == Ok(0), "{key}: {kernel:#?}");
        }
        ensure!(status("Uid") == "1000 1000 1000 1000" && status("NoNewPrivs") == "1", "{kernel:#?}");
        ensure!(status("Seccomp") == "2" && status("limit Max core file size").starts_with("0 0"), "{kernel:#?}");
        ensure!(status("descriptors") == "0 /dev/null, 1 pipe, 2 pipe", "{kernel:#?}");
        for space in ["mnt", "pid", "ipc", "uts"] {
            ensure!(status(&format!("namespace {space}")) == "its own", "{kernel:#?}");
        }
        // EACCES by Landlock; EAFNOSUPPORT and EPERM by the filters; EACCES or EROFS for what is both.
        for (attempt, errno) in
            [("list /vault", "13"), ("write /app/loose", "13"), ("mptcp", "97"), ("user namespace", "1")]
        {
            ensure!(own[attempt] == errno, "{attempt}: {own:#}");
        }
        ensure!(own["sysctl"] == "13" || own["sysctl"] == "30", "{own:#}");
        let told = self.molt.told()?;
        ensure!(told["degraded"] == json!([]), "{told:#}");
        Ok(())
    }

    /// The last confession, without what may differ, and how many there were.
    fn confession(&self) -> anyhow::Result<(Value, usize)> {
        let text = self.molt.state_file("confessions").context("no workload ever confessed")?;
        let mut last: Value = serde_json::from_str(text.lines().last().context("a line")?)?;
        last["version"].take();
        Ok((last, text.lines().count()))
    }

    /// The image that does not run.
    fn other(&self) -> anyhow::Result<String> {
        Ok(self.images[usize::from(self.molt.version()?.0 == "v1")].clone())
    }

    /// One update under one fault.
    fn strike(&mut self, fault: &Fault) -> anyhow::Result<Ending> {
        let before = self.molt.get("/")?;
        let (_, confessions) = self.confession()?;
        self.tracer.watch(Some(fault))?;
        let record = self.molt.updated(&self.other()?)?;
        let [seen] = self.tracer.report()?.try_into().ok().context("one update starts one shim")?;
        ensure!(seen.injected, "the call was never made: {record:#}");
        let after = self.molt.get("/")?;
        let told = self.molt.told()?;
        let (confessed, now) = self.confession()?;
        let degraded = told["degraded"].as_array().context("a list")?;
        let lost = |word: &str| degraded.iter().any(|line| line.as_str().is_some_and(|line| line.contains(word)));
        if let Some(workload) = &seen.workload {
            for (key, value) in &self.seen {
                let found = workload.get(key);
                let tolerated = match key.as_str() {
                    // What may be missing is shown to be.
                    "oom_score_adj" => lost("oom_score_adj"),
                    "mounts" => found.is_some_and(|found| only_without(found, value)),
                    _ => false,
                };
                ensure!(found == Some(value) || tolerated, "unconfined: {key} is {found:?}, not {value}");
            }
        }
        match record["outcome"].as_str() {
            Some("aborted") => {
                ensure!(seen.workload.is_none() && now == confessions, "a workload ran, but {record:#}");
                ensure!(before == after, "the old one noticed: {before} became {after}");
                ensure!(told["lastUpdate"]["id"] == record["id"] && !record["message"].is_null(), "{told:#}");
                Ok(Ending::Aborted)
            }
            Some("rolledBack") => {
                ensure!(behind_the_gate(fault), "a fault before the gate cost downtime: {record:#}");
                ensure!(before["version"] == after["version"], "{before} became {after}");
                ensure!(confessed == self.confessed, "unconfined: {confessed:#}");
                Ok(Ending::RolledBack)
            }
            Some("confirmed") => {
                ensure!(seen.workload.is_some() && now == confessions + 1, "nobody ran, but {record:#}");
                ensure!(confessed == self.confessed, "unconfined: {confessed:#}");
                // A keyring of its own is not missed: its filters forbid the workload every key.
                ensure!(degraded.is_empty() || lost("oom_score_adj"), "{degraded:?}");
                Ok(Ending::Harmless)
            }
            _ => bail!("{record:#}"),
        }
    }

    /// Every fault there can be.
    fn faults(&self) -> Vec<Fault> {
        let of = |step: &Step| {
            let step = step.clone();
            ERRNOS.map(|errno| Fault {
                role: step.role,
                call: step.call.clone(),
                occurrence: step.occurrence,
                errno: errno as i32,
            })
        };
        self.steps.iter().flat_map(of).collect()
    }

    /// Strikes with all of `faults`, and says how it went.
    fn run(mut self, what: &str, faults: &[Fault]) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut endings: BTreeMap<Ending, usize> = BTreeMap::new();
        let (mut failures, mut slowest) = (Vec::new(), (Duration::ZERO, String::new()));
        for fault in faults {
            let start = Instant::now();
            let name = format!(
                "{} {} #{} {:?}",
                fault.role.name(),
                fault.call,
                fault.occurrence,
                Errno::from_raw(fault.errno)
            );
            match self.strike(fault) {
                Ok(ending) => *endings.entry(ending).or_default() += 1,
                Err(error) => {
                    failures.push(format!("{name}: {error:#}"));
                    if failures.len() >= 40 || self.molt.settled().is_err() {
                        break;
                    }
                }
            }
            slowest = slowest.max((start.elapsed(), name));
        }
        let calls: BTreeSet<&str> = faults.iter().map(|fault| fault.call.as_str()).collect();
        println!(
            "fail closed ({what}): {} syscalls, {} faults, {} unconfined; {endings:?}, {:.1} s, slowest {:?} ({})",
            calls.len(),
            faults.len(),
            failures.len(),
            began.elapsed().as_secs_f64(),
            slowest.0,
            slowest.1,
        );
        ensure!(failures.is_empty(), "{} faults of {}:\n{}", failures.len(), faults.len(), failures.join("\n"));
        self.molt.sound()
    }
}

/// What a shim does until it says that it is at its gate, and what its child does until its exec. How often an init that
/// waits looks up in between is a matter of time.
fn steps(seen: &Seen) -> BTreeSet<Step> {
    let said = seen.steps.iter().rposition(|step| step.role == Role::Init && step.call == "sendmsg");
    let all = seen.steps.iter().enumerate();
    let kept = all.filter(|(at, step)| step.role != Role::Init || Some(*at) <= said);
    kept.map(|(_, step)| step.clone()).collect()
}

/// Whether a fault strikes when the old workload is gone: the read of the gate, which ends when it opens, and the exec.
fn behind_the_gate(fault: &Fault) -> bool {
    fault.role == Role::Gate && (fault.call == "read" || fault.call == "execve")
}

/// Whether all that `found` lacks of the mounts `whole` are two that some containers cannot have, and that hide nothing.
fn only_without(found: &str, whole: &str) -> bool {
    let (found, whole): (BTreeSet<&str>, BTreeSet<&str>) = (found.lines().collect(), whole.lines().collect());
    let missing = |mount: &&str| mount.starts_with("/dev/mqueue ") || mount.starts_with("/dev/tty ");
    found.is_subset(&whole) && whole.difference(&found).all(missing)
}

/// The calls of the shim are those that confine, or the tracer is blind.
fn complete(steps: &[Step]) -> anyhow::Result<()> {
    let found: BTreeSet<&str> = steps.iter().map(|step| step.call.as_str()).collect();
    let missing: Vec<&&str> = EXPECTED.iter().filter(|name| !found.contains(**name)).collect();
    ensure!(missing.is_empty(), "{missing:?} are not among {found:?}");
    Ok(())
}

fn share(bed: &Bed) -> anyhow::Result<()> {
    let subject = Subject::start(bed, None)?;
    complete(&subject.steps)?;
    let mut chance = Chance::new()?;
    let drawn = chance.shuffled(subject.faults());
    // One of each call in each role, then as they come.
    let mut kinds = BTreeSet::new();
    let (mut faults, rest): (Vec<Fault>, Vec<Fault>) =
        drawn.into_iter().partition(|fault| kinds.insert((fault.role, fault.call.clone())));
    faults.extend(rest.into_iter().take(SHARE));
    let seed = chance.seed();
    subject.run(&format!("MOLT_TESTS_SEED={seed}"), &faults).with_context(|| format!("MOLT_TESTS_SEED={seed}"))
}

fn every(bed: &Bed) -> anyhow::Result<()> {
    let subject = Subject::start(bed, None)?;
    let faults = subject.faults();
    subject.run("all", &faults)
}

fn best_effort(bed: &Bed) -> anyhow::Result<()> {
    let policy = json!({
        "version": 1,
        "filesystem_policy": {
            "read_only": ["/bin", "/usr", "/etc", "/app", "/proc"],
            "read_write": ["/tmp", "/sandbox/state"],
        },
        "landlock": {"compatibility": "best_effort"},
    });
    let subject = Subject::start(bed, Some(&policy.to_string()))?;
    let faults = subject.faults().into_iter().filter(|fault| fault.call.contains("landlock")).collect::<Vec<_>>();
    ensure!(faults.len() > 100, "{} faults of Landlock", faults.len());
    let mut chance = Chance::new()?;
    let faults: Vec<Fault> = chance.shuffled(faults).into_iter().take(SHARE).collect();
    let seed = chance.seed();
    let what = format!("best effort, MOLT_TESTS_SEED={seed}");
    subject.run(&what, &faults).with_context(|| what.clone())
}

/// The suite itself: a build that does not look whether the domain was entered and the user changed is found out.
fn swallowed(bed: &Bed) -> anyhow::Result<()> {
    let root = bed.scratch("planted")?;
    images::unpack_outer(&root, &bed.program("molt-testd")?, Some(&bed.planted()?))?;
    let mut subject = Subject::start_with(bed, |mut setup| {
        setup.options.root = root;
        Ok(setup.env("MOLT_PLANT", "no-errors"))
    })?;
    for call in ["landlock_restrict_self", "setresuid"] {
        for errno in [Errno::EPERM, Errno::ENOMEM] {
            let fault = Fault { role: Role::Init, call: call.to_owned(), occurrence: 1, errno: errno as i32 };
            match subject.strike(&fault) {
                Err(error) if error.to_string().starts_with("unconfined") => {}
                other => bail!("{call} {errno:?} was ignored, and the suite says {other:?}"),
            }
        }
    }
    Ok(())
}
