//! Programs that do not start, do not get ready, do not stop, or do too much; and going back where there is nothing.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use super::{daemons, fails, recipe, rolled_back, says, setup};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::holdings::resident;
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The tests of this suite.
pub(in crate::suites) const CASES: &[Case] = &[
    case("bad::workload::never_gets_ready", never_ready),
    case("bad::workload::is_ill_from_the_start", ill),
    case("bad::workload::falls_ill_in_its_trial", ill_later),
    case("bad::workload::dies_at_once", dies_at_once),
    case("bad::workload::dies_after_a_second", dies_later),
    case("bad::workload::ignores_sigterm", ignores_term),
    case("bad::workload::is_ill_and_ignores_sigterm", ill_and_ignores_term),
    case("bad::workload::forks_away", forks_away),
    case("bad::workload::floods_its_output", floods),
    case("bad::workload::s6_overlay_is_warned_of", |bed| init_system(bed, "s6", S6)),
    case("bad::workload::systemd_is_warned_of", |bed| init_system(bed, "systemd", SYSTEMD)),
    case("bad::workload::gosu_under_allow_root_is_warned_of", gosu),
    case("bad::workload::bad_then_good_then_bad", bad_good_bad),
    case("bad::workload::nothing_to_go_back_to", nothing_to_go_back_to),
];

fn evidence(molt: &Molt, parts: &[&str]) -> anyhow::Result<()> {
    let last = molt.last()?;
    let id = last["id"].as_str().context("an id")?;
    says(&molt.expect(0, &["show", id, "--evidence"])?.stdout, parts)
}

fn never_ready(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.with("/health/startupDeadline", json!("1s")).start()?;
    let parts = ["not ready within 1s: the readiness probe (GET http://127.0.0.1:", "/healthz) says: "];
    rolled_back(&molt, &bed.small("hangs")?, &parts)?;
    evidence(&molt, &["Probes", "GET http://127.0.0.1:", "Output", "testd: version hangs start 2"])?;
    molt.serves("v1", 3)
}

fn ill(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.with("/health/startupDeadline", json!("1s")).start()?;
    rolled_back(&molt, &bed.small("ill")?, &["not ready within 1s: the readiness probe", "503"])?;
    evidence(&molt, &["Probes", "503"])?;
    // What is shown is what the failed one answered, not the one that is back.
    let last = molt.last()?;
    let probes = last["evidence"]["probes"].as_array().context("probes")?;
    let well = |line: &serde_json::Value| line.as_str().is_none_or(|line| line.ends_with(": ok"));
    ensure!(!probes.is_empty() && !probes.iter().any(well), "{probes:?}");
    molt.serves("v1", 3)
}

fn ill_later(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.with("/health/monitor", json!("3s")).start()?;
    let parts = ["the readiness probe (GET ", "failed 3 times in its trial: ", "503"];
    rolled_back(&molt, &bed.small("ill-later")?, &parts)?;
    molt.serves("v1", 3)
}

fn dies_at_once(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    rolled_back(&molt, &bed.small("exits")?, &["the new version exited with status 1 during its trial"])?;
    evidence(&molt, &["Exit status 1", "testd: leaving at once"])?;
    // It was gone before it touched the state.
    molt.serves("v1", 2)
}

fn dies_later(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.with("/health/monitor", json!("3s")).start()?;
    rolled_back(
        &molt,
        &bed.small("dies-1s")?,
        &["generation 2 is ready\n", "the new version exited with status 1 during its trial"],
    )?;
    evidence(&molt, &["Exit status 1", "testd: leaving as told"])?;
    molt.serves("v1", 3)
}

fn ignores_term(bed: &Bed) -> anyhow::Result<()> {
    let image = bed.small("ignores-term")?;
    let molt = Setup::new(bed, Kind::Light, &image)?.with("/workload/stopGracePeriod", json!("500ms")).start()?;
    let start = Instant::now();
    molt.expect(0, &["update", &bed.small("v2")?])?;
    ensure!(start.elapsed() > Duration::from_millis(500), "it was killed before its time");
    molt.serves("v2", 2)?;
    ensure!(molt.state_file("signals").is_some_and(|text| text.contains("SIGTERM")), "it was not asked to stop");
    ensure!(daemons(&molt)?.len() == 1);
    // The gap is from its end, which was the kill: the wait for it is not downtime.
    let downtime = molt.last()?["downtimeUs"].as_u64().context("a downtime")?;
    ensure!(downtime < 300_000, "{downtime} µs");
    molt.sound()
}

fn ill_and_ignores_term(bed: &Bed) -> anyhow::Result<()> {
    let image = bed.image("bad/stubborn:1", || {
        Ok(recipe(bed, "v4")?.set("Env", json!(["TESTD_BEHAVIOUR=unhealthy,ignore-term"])).build())
    })?;
    let setup = setup(bed)?.with("/workload/stopGracePeriod", json!("500ms"));
    let molt = setup.with("/health/startupDeadline", json!("1s")).start()?;
    rolled_back(&molt, &image, &["not ready within 1s"])?;
    molt.serves("v1", 3)
}

fn forks_away(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("double-forks")?)?.start()?;
    wait::until("the stray to live", SOON, || molt.state_file("stray").is_some())?;
    let before = daemons(&molt)?;
    ensure!(before.len() == 2, "{before:?}");
    molt.expect(0, &["update", &bed.small("v2")?])?;
    let after = daemons(&molt)?;
    ensure!(after.len() == 1 && !before.contains(&after[0]), "{before:?} became {after:?}");
    fs::remove_file(molt.state.join("stray"))?;
    std::thread::sleep(Duration::from_millis(100));
    ensure!(molt.state_file("stray").is_none(), "the stray still writes to the state");
    molt.serves("v2", 2)?;
    molt.sound()
}

fn floods(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    molt.expect(0, &["update", &bed.small("floods")?])?;
    molt.serves("floods", 2)?;
    let kib = resident(&molt)?;
    ensure!(kib < 40 << 10, "the supervisor has {kib} KiB");
    let lines = molt.expect(0, &["logs", "--tail", "3"])?.stdout;
    ensure!(lines.lines().count() == 3 && lines.contains("xxxx"), "{lines}");
    let start = Instant::now();
    molt.expect(0, &["update", &bed.small("v2")?])?;
    ensure!(start.elapsed() < Duration::from_secs(10), "the flood slows everything down: {:?}", start.elapsed());
    molt.serves("v2", 3)?;
    molt.sound()
}

const S6: &str = "warning: /init looks like s6-overlay, which wants to be PID 1 and root; run its program directly";
const SYSTEMD: &str = "warning: /sbin/init looks like systemd, which wants to be PID 1, root, and cgroups";

fn init_system(bed: &Bed, variant: &str, warning: &str) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.small(variant)?;
    says(&molt.expect(0, &["update", &image, "--dry-run"])?.stdout, &[warning])?;
    // It is said, and tried all the same: this one gets along without.
    says(&molt.expect(0, &["update", &image])?.stderr, &[warning])?;
    molt.serves(variant, 2)
}

fn gosu(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.with("/workload/allowRoot", json!(true)).with("/workload/user", json!("0:0")).start()?;
    let conditions = molt.status()?["conditions"].to_string();
    says(&conditions, &["RunsAsRoot"])?;
    let parts = [
        "warning: allowRoot: user 0 may run, without a capability; entrypoints that chown or switch user (gosu) will fail",
        "the new version exited with status ",
    ];
    rolled_back(&molt, &bed.small("gosu")?, &parts)?;
    evidence(&molt, &["Operation not permitted"])?;
    let direct = bed.image("bad/gosu:direct", || {
        Ok(recipe(bed, "gosu")?.set("Entrypoint", json!(["/usr/local/bin/gosu", "app", "/app/molt-testd"])).build())
    })?;
    let parts = ["warning: the command changes its user with gosu or the like", "set workload.user instead"];
    rolled_back(&molt, &direct, &parts)?;
    molt.serves("v1", 3)
}

fn bad_good_bad(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let (bad, good) = (bed.small("exits")?, bed.small("v2")?);
    rolled_back(&molt, &bad, &["the new version exited with status 1 during its trial"])?;
    molt.expect(0, &["update", &good])?;
    molt.serves("v2", 3)?;
    let parts = ["failed before (exited-in-trial, update u", "forgets it, --force tries it again", "molt bad list"];
    fails(&molt, 6, &["update", &bad], &parts)?;
    let digest = molt.status()?["bad"][0]["digest"].as_str().context("a digest")?.to_owned();
    ensure!(molt.expect(0, &["bad", "list"])?.stdout.contains(&digest));
    molt.expect(3, &["update", &bad, "--force"])?;
    molt.serves("v2", 4)?;
    molt.expect(0, &["bad", "remove", &digest])?;
    rolled_back(&molt, &bad, &["the new version exited with status 1 during its trial"])?;
    molt.serves("v2", 5)?;
    // v1 is still the way back, not the one that failed.
    molt.expect(0, &["rollback"])?;
    molt.serves("v1", 6)?;
    molt.sound()
}

fn nothing_to_go_back_to(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let history = "see what there is: molt history";
    fails(&molt, 6, &["rollback"], &["there is no previous generation", "generation 1 runs ", history])?;
    fails(&molt, 6, &["rollback", "--to", "99"], &["generation 99 is not in the store", history])?;
    fails(&molt, 6, &["rollback", "--to", "1"], &["generation 1 is what runs", history])?;
    fails(&molt, 2, &["rollback", "--to", "nonsense"], &["nonsense"])?;
    Ok(())
}
