//! What never comes: a program that is not executed. And the clock that is waited by.
//!
//! In: a sandbox, and something in it that stands still. Out: an error unless the update ends, and the old version serves.
//! Must not: wait for a time instead of what it is to bring.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("deadline::a_program_that_is_not_executed_in_time_goes_back_and_is_not_blamed", not_executed),
    case("deadline::all_timers_are_on_the_boot_time_clock", boot_time),
    case("deadline::an_init_that_is_killed_before_its_gate_leaves_the_old_one", armed_init_killed),
    case("deadline::an_init_that_is_killed_takes_its_workload_along", running_init_killed),
];

/// A hook that waits for a word from the test.
fn held() -> serde_json::Value {
    let script = "until [ -e /sandbox/state/go ]; do sleep 0.05; done";
    json!({"exec": {"command": ["/bin/sh", "-c", script]}, "timeout": "20s"})
}

/// The process that waits at the gate: the child of an init that is still the shim, where nothing else runs yet. The
/// keeper of an exec is such a child too, beside a workload.
fn at_the_gate(molt: &Molt) -> anyhow::Result<u32> {
    let first = molt.sandbox.pid1()?;
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let waits =
        |pid: &u32| parent(*pid).is_some_and(|init| parent(init) == Some(first) && program(*pid) == program(init));
    let family = molt.family()?;
    let beside_another =
        |pid: &u32| family.iter().any(|(other, _)| parent(*other) == parent(*pid) && program(*other) != program(*pid));
    let found: Vec<u32> = family.iter().map(|(pid, _)| *pid).filter(|pid| waits(pid) && !beside_another(pid)).collect();
    ensure!(found.len() == 1, "{found:?} wait at a gate, of {family:?}");
    Ok(found[0])
}

fn not_executed(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/hooks", json!({"preStop": held()})).start()?;
    molt.expect(0, &["update", "--no-wait", &bed.small("v2")?])?;
    molt.until("the hook", |status| status["phase"] == "Quiescing")?;
    let stopped = wait::until_ok("the gate", SOON, || at_the_gate(&molt))?;
    kill(Pid::from_raw(stopped.cast_signed()), Signal::SIGSTOP)?;
    fs::write(molt.state.join("go"), "")?;
    let last = wait::until_ok("the way back", SOON, || {
        let status = molt.settled()?;
        ensure!(status["lastUpdate"]["id"] == "u2", "{status:#}");
        Ok(status["lastUpdate"].clone())
    })?;
    ensure!(last["outcome"] == "rolledBack" && last["reason"] == "deadline-exceeded", "{last:#}");
    let message = last["message"].as_str().context("a message")?;
    ensure!(message.contains("was not executed within 5 s of its gate; generation 1 runs "), "{message}");
    molt.serves("v1", 2)?;
    ensure!(molt.json(&["bad", "list"])? == json!([]), "it was not the image's fault");
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 3)?;
    molt.sound()
}

fn parent(pid: u32) -> anyhow::Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)).context("a parent")?.parse()?)
}

fn armed_init_killed(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/hooks", json!({"preStop": held()})).start()?;
    let before = molt.get("/")?;
    molt.expect(0, &["update", "--no-wait", &bed.small("v2")?])?;
    molt.until("the hook", |status| status["phase"] == "Quiescing")?;
    let gate = wait::until_ok("the gate", SOON, || at_the_gate(&molt))?;
    kill(Pid::from_raw(parent(gate)?.cast_signed()), Signal::SIGKILL)?;
    wait::until("who waited at the gate to go along", SOON, || fs::metadata(format!("/proc/{gate}")).is_err())?;
    fs::write(molt.state.join("go"), "")?;
    let last = wait::until_ok("the end of the update", SOON, || {
        let status = molt.settled()?;
        ensure!(status["lastUpdate"]["id"] == "u2", "{status:#}");
        Ok(status["lastUpdate"].clone())
    })?;
    ensure!(last["outcome"] == "aborted", "{last:#}");
    ensure!(molt.get("/")? == before, "the old workload was touched");
    ensure!(molt.json(&["bad", "list"])? == json!([]), "it was not the image's fault");
    wait::until_ok("nothing of it to be left", SOON, || {
        let family = molt.family()?;
        ensure!(family.len() == 3, "{family:?}");
        Ok(())
    })?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    molt.sound()
}

/// As when the workload is killed: the container ends with 137, and the next start has it back.
fn running_init_killed(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.click()?;
    let family = molt.family()?;
    let (daemon, _) = family.iter().find(|(_, name)| name == "molt-testd").context("a workload")?;
    let init = parent(*daemon)?;
    ensure!(init != molt.sandbox.pid1()?, "there is no init between");
    kill(Pid::from_raw(init.cast_signed()), Signal::SIGKILL)?;
    let ended = molt.sandbox.wait(SOON)?;
    ensure!(ended == 137, "{ended}: {}", molt.sandbox.logs());
    for (pid, name) in family {
        ensure!(fs::metadata(format!("/proc/{pid}")).is_err(), "{name} outlived it");
    }
    molt.sandbox.restart()?;
    molt.settled()?;
    molt.serves("v1", 2)?;
    ensure!(molt.clicks()? == 1);
    molt.sound()
}

/// Clocks of all timers of PID 1, by number.
fn clocks(molt: &Molt) -> anyhow::Result<Vec<String>> {
    let folder = format!("/proc/{}/fdinfo", molt.sandbox.pid1()?);
    let mut clocks = Vec::new();
    for entry in fs::read_dir(&folder)? {
        // It may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        clocks.extend(text.lines().filter_map(|line| line.strip_prefix("clockid: ").map(str::to_owned)));
    }
    Ok(clocks)
}

fn boot_time(bed: &Bed) -> anyhow::Result<()> {
    /// `CLOCK_BOOTTIME` of `clock_gettime(2)`.
    const BOOT_TIME: &str = "7";
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health/monitor", json!("1m")).start()?;
    let some = |more: usize, what: &str| {
        wait::until_ok(what, Duration::from_secs(10), || {
            let found = clocks(&molt)?;
            ensure!(found.len() >= more && found.iter().all(|clock| clock == BOOT_TIME), "{what}: {found:?}");
            Ok(())
        })
    };
    let settled = clocks(&molt)?.len();
    molt.expect(0, &["hold", "--ttl", "1h"])?;
    some(settled.max(1), "the end of the hold")?;
    molt.expect(0, &["release"])?;
    molt.expect(0, &["update", "--no-wait", &bed.small("v2")?])?;
    molt.until("the trial", |status| status["phase"] == "Proving")?;
    some(1, "the end of the trial")?;
    molt.expect(0, &["confirm"])?;
    molt.sound()
}
