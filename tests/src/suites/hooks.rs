//! Hooks: where each runs, what it is told, and what its failure does.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::holdings::resident;
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("hook::each_runs_in_its_generation_as_the_workload_would", order),
    case("hook::a_failing_pre_stage_aborts_the_update", |bed| aborts(bed, "preStage")),
    case("hook::a_failing_pre_stop_aborts_the_update", |bed| aborts(bed, "preStop")),
    case("hook::one_that_takes_too_long_has_failed", too_long),
    case("hook::a_failure_after_the_gate_only_warns", warns),
    case("hook::one_that_prints_for_ever_fills_nothing", |bed| prints_for_ever(bed, true)),
    case("hook::a_probe_that_prints_for_ever_fills_nothing", |bed| prints_for_ever(bed, false)),
];

fn shell(script: &str) -> Value {
    json!({"exec": {"command": ["sh", "-c", script]}})
}

fn order(bed: &Bed) -> anyhow::Result<()> {
    let script = "echo $MOLT_PHASE in $(cat /app/VERSION) as $(id -u) >> /sandbox/state/hooks";
    let names = ["preStage", "preStop", "postStart", "postConfirm", "onRollback"];
    let hooks: Value = names.iter().map(|name| ((*name).to_owned(), shell(script))).collect();
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/hooks", hooks).start()?;
    let ran = |molt: &Molt, wanted: &[&str]| {
        wait::until_ok("the hooks", SOON, || {
            let text = molt.state_file("hooks").context("no hook has run")?;
            let lines: Vec<&str> = text.lines().collect();
            ensure!(lines == wanted, "{lines:?}, not {wanted:?}");
            Ok(())
        })
    };
    molt.expect(0, &["update", &bed.small("v2")?])?;
    let mut wanted = vec!["preStage in v1 as 1000", "preStop in v1 as 1000"];
    wanted.extend(["postStart in v2 as 1000", "postConfirm in v2 as 1000"]);
    ran(&molt, &wanted)?;
    std::fs::remove_file(molt.state.join("hooks"))?;
    molt.expect(3, &["update", &bed.small("ill")?])?;
    let mut wanted = vec!["preStage in v2 as 1000", "preStop in v2 as 1000"];
    wanted.extend(["postStart in ill as 1000", "onRollback in v2 as 1000"]);
    ran(&molt, &wanted)?;
    molt.sound()
}

fn aborts(bed: &Bed, name: &str) -> anyhow::Result<()> {
    let hooks = json!({name: shell("echo the disk is not ready; exit 9")});
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/hooks", hooks).start()?;
    let before = molt.get("/")?;
    let output = molt.expect(1, &["update", &bed.small("v2")?])?;
    ensure!(output.stderr.contains("the disk is not ready") && output.stderr.contains("status 9"), "{output:?}");
    ensure!(molt.get("/")? == before, "the old workload was touched");
    let status = molt.status()?;
    ensure!(status["lastUpdate"]["reason"] == "hook-failed" && status["trial"].is_null(), "{status:#}");
    ensure!(
        molt.json(&["bad", "list"])? == json!([]),
        "a failing hook of the old one does not count against the image"
    );
    wait::until_ok("the armed one to be gone", SOON, || {
        let family = molt.family()?;
        ensure!(family.len() == 3, "{family:?}");
        Ok(())
    })?;
    molt.sound()
}

fn too_long(bed: &Bed) -> anyhow::Result<()> {
    let hooks = json!({"preStop": {"exec": {"command": ["sleep", "60"]}, "timeout": "300ms"}});
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/hooks", hooks).start()?;
    let output = molt.expect(1, &["update", &bed.small("v2")?])?;
    ensure!(output.stderr.contains("took longer than"), "{output:?}");
    molt.serves("v1", 1)?;
    wait::until_ok("the hook to be gone", SOON, || {
        let family = molt.family()?;
        ensure!(family.len() == 3, "{family:?}");
        Ok(())
    })?;
    molt.sound()
}

fn warns(bed: &Bed) -> anyhow::Result<()> {
    let hooks = json!({"postStart": shell("exit 3"), "postConfirm": shell("exit 4"), "onRollback": shell("exit 5")});
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/hooks", hooks).start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.expect(3, &["update", &bed.small("exits")?])?;
    molt.serves("v2", 3)?;
    wait::until_ok("the warnings", SOON, || {
        let events = molt.expect(0, &["events"])?.stdout;
        for (name, status) in [("postStart", 3), ("postConfirm", 4), ("onRollback", 5)] {
            let told = events.lines().any(|line| line.contains(name) && line.contains(&format!("status {status}")));
            ensure!(told, "nothing about {name} in\n{events}");
        }
        Ok(())
    })?;
    molt.sound()
}

/// Some gigabytes a second, on both streams, as long as anybody reads them.
fn prints_for_ever(bed: &Bed, hook: bool) -> anyhow::Result<()> {
    let endless = json!({"command": ["sh", "-c", "busybox yes error >&2 & exec busybox yes output"]});
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let molt = if hook {
        setup.with("/hooks", json!({"preStop": {"exec": endless, "timeout": "2s"}})).start()?
    } else {
        let probe = json!({"exec": endless, "timeout": "1s", "period": "1s", "failureThreshold": 2});
        setup.with("/health/monitor", json!("3s")).with("/health/liveness", probe).start()?
    };
    if hook {
        molt.expect(0, &["update", "--no-wait", &bed.small("v2")?])?;
    }
    let (mut most, mut printed) = (0, false);
    let status = wait::until_ok("its end", SOON, || {
        most = most.max(resident(&molt)?);
        printed |= molt.family()?.iter().any(|(_, name)| name == "yes" || name == "busybox");
        let status = molt.told()?;
        let ended = if hook { !status["lastUpdate"].is_null() } else { status["workload"]["restarts"] == 1 };
        ensure!(ended && status["phase"] == "Idle", "{status:#}");
        Ok(status)
    })?;
    ensure!(printed, "nothing was seen to print");
    ensure!(most > 0 && most < 40 << 10, "the supervisor had {most} KiB");
    if hook {
        let last = &status["lastUpdate"];
        let message = last["message"].as_str().context("a message")?;
        ensure!(last["reason"] == "hook-failed" && message.contains("took longer than"), "{last:#}");
        ensure!(message.len() < 11 << 10, "{} bytes are said", message.len());
        molt.serves("v1", 1)?;
    }
    let events = molt.expect(0, &["events", "-o", "json"])?.stdout;
    let longest = events.lines().map(str::len).max().unwrap_or_default();
    ensure!(longest < 12 << 10, "an event of {longest} bytes");
    wait::until_ok("it to be gone", SOON, || {
        let family = molt.family()?;
        ensure!(family.len() == 3, "{family:?}");
        Ok(())
    })?;
    molt.sound()
}
