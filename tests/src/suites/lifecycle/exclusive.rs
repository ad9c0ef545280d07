//! Never two at once, whatever the old workload does about its end.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{number, v1};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::fuse::Fuse;
use crate::harness::molt::{PROGRAM, SOON, Setup};
use crate::harness::process::Background;
use crate::harness::runtime::Kind;
use crate::harness::{http, registry, wait};

/// The tests of this suite.
pub(in crate::suites) const CASES: &[Case] = &[
    case("exclusive::two_at_once_are_noticed", two_at_once),
    case("exclusive::a_workload_that_ignores_the_signal_is_killed_after_its_grace", ignores_term),
    case("exclusive::a_workload_that_stops_slowly_is_waited_for", slow_stop),
    case("exclusive::a_real_time_signal_stops_it_too", real_time_stop),
    case("exclusive::a_process_that_forked_away_is_gone_before_the_new_one_starts", double_forks),
    case("exclusive::where_the_old_one_cannot_be_killed_no_other_one_starts", unkillable),
];

/// What every test relies on when it asks whether a sandbox is sound.
fn two_at_once(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    molt.sound()?;
    let port = format!("TESTD_PORT={}", registry::free_port()?);
    let mut second = molt.sandbox.exec_command(&[PROGRAM, "exec", "-e", &port, "--", "/app/molt-testd"])?;
    let _second = Background::spawn(second.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
    wait::until("the overlap to be noticed", SOON, || molt.sound().is_err())
}

fn ignores_term(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("ignores-term")?)?;
    let molt = setup.with("/workload/stopGracePeriod", json!("1s")).start()?;
    let began = Instant::now();
    molt.expect(0, &["update", &bed.small("v2")?])?;
    ensure!(began.elapsed().as_millis() >= 1000, "it had its grace");
    molt.serves("v2", 2)?;
    ensure!(molt.state_file("signals").is_some_and(|text| text.contains("SIGTERM")), "it was asked first");
    ensure!(molt.state_file("clean-stop").is_none());
    molt.sound()
}

fn slow_stop(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("slow-stop")?)?.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    ensure!(molt.state_file("clean-stop").as_deref() == Some("slow-stop 1\n"), "it was not given its time");
    let last = molt.last()?;
    ensure!(number(&last["unreadyUs"])? >= 600_000, "{last:#}");
    ensure!(number(&last["downtimeUs"])? < 600_000, "waiting for the old one is no downtime: {last:#}");
    molt.sound()
}

/// As systemd in a container asks for it. What does not handle it ends by it, at once.
fn real_time_stop(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/workload/stopSignal", json!("SIGRTMIN+3"));
    let molt = setup.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    let events = molt.molt(&["events", "-o", "json"])?.stdout;
    let ended: Vec<Value> = events
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|event: &Value| event["type"] == "workloadExited")
        .collect();
    ensure!(ended.len() == 1 && ended[0]["status"] == 128 + 34 + 3, "{ended:#?}");
    molt.sound()
}

fn double_forks(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("double-forks")?)?.start()?;
    let beat = || molt.state_file("stray");
    wait::until("the stray to be alive", SOON, || beat().is_some_and(|text| !text.is_empty()))?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    // It beats every 20 ms; the monitor window alone was 300 ms.
    let seen = beat();
    std::thread::sleep(std::time::Duration::from_millis(200));
    ensure!(beat() == seen, "the stray of the old generation lives on");
    let running = molt.family()?;
    ensure!(running.len() == 3, "molt, the shim and the workload, not {running:?}");
    molt.sound()
}

/// A process that waits for a file system which answers nobody any more survives SIGKILL until it is answered.
fn unkillable(bed: &Bed) -> anyhow::Result<()> {
    let folder = bed.scratch("fuse")?;
    // Dropped after the file system, without which it can end.
    let molt;
    let fuse = Fuse::mount(&folder)?;
    let mut setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/workload/stopGracePeriod", json!("1s"));
    setup.options = setup.options.volume(&folder, "/mnt/far");
    molt = setup.start()?;
    molt.expect(0, &["update", "--stage-only", "--no-wait", &bed.small("v2")?])?;
    molt.until("generation 2 to be staged", |status| status["phase"] == "Held")?;
    fuse.hang_names();
    let address = molt.address;
    let asker = std::thread::spawn(move || http::get(address, "/try?open=/mnt/far/file", SOON));
    wait::until("the workload to wait for an answer", SOON, || fuse.unanswered() > 0)?;
    let output = molt.expect(4, &["apply"])?;
    ensure!(output.stderr.contains("was killed and is still there"), "{output:?}");
    let status = molt.status()?;
    ensure!(status["phase"] == "Degraded" && status["lastUpdate"]["reason"] == "quiesce-failed", "{status:#}");
    ensure!(molt.get("/").is_err(), "another one serves while the old one is there");
    drop(fuse);
    asker.join().expect("asking does not panic").err().context("an answer of a workload that was killed")?;
    let status = molt.settled()?;
    ensure!(status["workload"]["generation"] == 1 && status["bad"] == json!([]), "{status:#}");
    molt.serves("v1", 2)?;
    molt.sound()
}
