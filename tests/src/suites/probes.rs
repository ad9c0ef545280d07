//! Probes of every kind, their thresholds, and what liveness and readiness lead to after an update is over.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("probe::exec_is_run_inside_and_its_status_counts", exec),
    case("probe::an_exec_that_takes_too_long_goes_with_all_it_forked", forks),
    case("probe::a_bomb_that_takes_every_process_goes_with_its_probe", bomb).alone(),
    case("probe::tcp_wants_a_connection", tcp),
    case("probe::notify_waits_for_ready", notify),
    case("probe::notify_may_ask_for_more_time", extends),
    case("probe::notify_names_another_process_the_main_one", |bed| hands_over(bed, Kind::Light)),
    case("probe::and_in_a_user_namespace", |bed| hands_over(bed, Kind::LightUser)),
    case("probe::startup_goes_before_readiness", startup),
    case("probe::successes_in_a_row_are_counted", successes),
    case("probe::a_miss_below_the_threshold_is_forgiven", forgiven),
    case("probe::liveness_starts_the_same_generation_again", liveness),
    case("probe::each_is_asked_in_its_own_time", own_time),
    case("probe::a_program_that_never_says_watchdog_fails_its_trial", never_barks),
    case("probe::liveness_waits_for_its_initial_delay", delayed),
    case("probe::an_attempt_that_hangs_is_given_up_at_the_deadline", hangs),
    case("probe::readiness_is_shown_and_restarts_nothing", readiness),
];

fn shell(script: &str) -> Value {
    json!({"exec": {"command": ["sh", "-c", script]}, "period": "100ms", "timeout": "2s"})
}

fn setup<'a>(bed: &'a Bed, image: &str, readiness: Value) -> anyhow::Result<Setup<'a>> {
    let setup = Setup::new(bed, Kind::Light, &bed.small(image)?)?.with("/health/readiness", readiness);
    Ok(setup.with("/health/startupDeadline", json!("1s")))
}

fn exec(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed, "v1", shell("grep -q 'v[12]' /app/VERSION && test $(id -u) = 1000"))?.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.expect(3, &["update", &bed.small("v3")?])?;
    let probes = &molt.json(&["show", "u3", "--evidence"])?["evidence"]["probes"];
    ensure!(probes.to_string().contains("status 1"), "{probes:#}");
    ensure!(molt.version()?.0 == "v2");
    molt.sound()
}

/// What a probe leaves behind when its time is over: a child, one in a session of its own, and one whose parent is gone.
fn forks(bed: &Bed) -> anyhow::Result<()> {
    let script = "test -e /sandbox/state/asked && exit 0; echo > /sandbox/state/asked; \
                  sleep 1111 & setsid sh -c 'sleep 1111' & (setsid sh -c 'setsid sleep 1111 & sleep 1111' &); \
                  sh -c '(trap \"\" TERM HUP INT; while true; do sleep 1111; done) & echo > /sandbox/state/forked'; sleep 1111";
    for kind in [Kind::Light, Kind::LightUserMasked] {
        let setup = Setup::new(bed, kind, &bed.small("v1")?)?.workload_env("PATH", "/bin");
        let mut probe = shell(&script.replace("setsid", "busybox setsid"));
        probe["timeout"] = json!("1s");
        let molt = setup.with("/health/liveness", probe).start()?;
        let left = || -> anyhow::Result<usize> {
            let family = molt.family()?;
            let command = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            Ok(family.into_iter().filter(|(pid, _)| command(*pid).contains("1111")).count())
        };
        wait::until("the probe to fork", SOON, || molt.state.join("forked").exists())?;
        wait::until_ok("all of it to be there", SOON, || {
            ensure!(left()? >= 6, "{:?}", molt.family()?);
            Ok(())
        })?;
        wait::until_ok("all of it to be gone", SOON, || {
            ensure!(left()? == 0, "{:?}", molt.family()?);
            Ok(())
        })?;
        // The workload is none of it, nor is what an operator leaves running on purpose.
        molt.expect(0, &["exec", "--", "sh", "-c", "busybox setsid sleep 1111 >/dev/null 2>&1 &"])?;
        ensure!(left()? == 1, "what was left on purpose went: {:?}", molt.family()?);
        molt.serves("v1", 1)?;
        molt.sound()?;
    }
    Ok(())
}

/// Whoever kills it can fork no more, and it forks as it is killed: in one process group, and in a session for each process.
fn bomb(bed: &Bed) -> anyhow::Result<()> {
    let again = "busybox setsid sh /sandbox/state/bomb & ".repeat(2);
    for bomb in ["bomb() { bomb & bomb & wait; }; bomb", "sh /sandbox/state/bomb"] {
        let script = format!(
            "test -e /sandbox/state/asked && exit 0; echo > /sandbox/state/asked; {bomb} 2>/sandbox/state/said & exec sleep 1111"
        );
        let mut probe = shell(&script);
        probe["timeout"] = json!("2s");
        probe["failureThreshold"] = json!(300);
        let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.workload_env("PATH", "/bin");
        fs::write(setup.state.join("bomb"), format!("{again} wait"))?;
        let setup = setup.with("/workload/limits", json!({"nproc": 150})).with("/health/monitor", json!("1m"));
        let molt = setup.with("/health/liveness", probe).start()?;
        wait::until("the bomb to go off", SOON, || {
            fs::read_to_string(molt.state.join("said")).is_ok_and(|said| said.contains("can't fork"))
        })?;
        wait::until_ok("it to be gone", SOON, || {
            let family = molt.family()?;
            // PID 1, the init, the workload; and a later probe with its keeper.
            ensure!(family.len() <= 5 && family.iter().all(|(_, name)| name != "sleep"), "{family:?}");
            Ok(())
        })?;
        // The workload is none of it: it is still at its first start.
        molt.serves("v1", 1)?;
        molt.sound()?;
    }
    Ok(())
}

fn tcp(bed: &Bed) -> anyhow::Result<()> {
    let setup = setup(bed, "v1", Value::Null)?;
    let probe = json!({"tcpSocket": {"port": setup.port}, "period": "100ms"});
    let molt = setup.with("/health/readiness", probe).start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    // It never listens.
    molt.expect(3, &["update", &bed.small("hangs")?])?;
    molt.serves("v2", 4)?;
    molt.sound()
}

fn notify(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed, "notifies", json!({"notify": {}}))?.start()?;
    ensure!(molt.status()?["workload"]["message"] == "serving", "STATUS= is shown");
    molt.expect(3, &["update", &bed.small("never-notifies")?])?;
    molt.serves("notifies", 3)?;
    molt.sound()
}

fn extends(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed, "notifies", json!({"notify": {}}))?.start()?;
    let began = Instant::now();
    // It asks for 5 s and needs 2 of them; 1 s is the deadline.
    molt.expect(0, &["update", &bed.small("extends")?])?;
    ensure!(began.elapsed() >= Duration::from_secs(2));
    molt.serves("extends", 2)?;
    molt.sound()
}

fn hands_over(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let setup = Setup::new(bed, kind, &bed.small("hands-over")?)?;
    let mut molt = setup.with("/health/readiness", json!({"notify": {}})).start()?;
    molt.serves("hands-over", 1)?;
    // Signals reach it, and its end is waited for.
    molt.expect(0, &["update", &bed.small("notifies")?])?;
    ensure!(
        molt.state_file("clean-stop").is_some_and(|text| text.starts_with("hands-over ")),
        "it was not told to end"
    );
    molt.expect(0, &["update", &bed.small("hands-over")?])?;
    molt.serves("hands-over", 3)?;
    molt.sound()?;
    // Its end is the workload's, and its status.
    let pid = molt.get("/")?["pid"].to_string();
    molt.molt(&["exec", "--", "kill", "-KILL", &pid])?;
    let ended = molt.sandbox.wait(SOON)?;
    ensure!(ended == 137, "{ended}");
    Ok(())
}

fn startup(bed: &Bed) -> anyhow::Result<()> {
    let setup = setup(bed, "v1", shell("echo readiness >> /sandbox/state/asked"))?;
    let first = "echo startup >> /sandbox/state/asked; test $(grep -c startup /sandbox/state/asked) -ge 3";
    let molt = setup.with("/health/startup", shell(first)).start()?;
    let asked = molt.state_file("asked").context("asked")?;
    let lines: Vec<&str> = asked.lines().take(4).collect();
    ensure!(lines == ["startup", "startup", "startup", "readiness"], "{asked}");
    molt.sound()
}

fn successes(bed: &Bed) -> anyhow::Result<()> {
    // Yes, no, then yes for ever: three in a row are reached with the fifth.
    let script = "echo x >> /sandbox/state/asked; test $(wc -l < /sandbox/state/asked) -ne 2";
    let mut probe = shell(script);
    probe["successThreshold"] = json!(3);
    let setup = setup(bed, "v1", probe)?.with("/health/startupDeadline", json!("5s"));
    let molt = setup.with("/health/monitor", json!("0s")).launch()?;
    molt.until("the workload to be ready", |status| status["workload"]["ready"] == true)?;
    let asked = molt.state_file("asked").context("asked")?.lines().count();
    ensure!(asked >= 5, "ready after {asked} attempts");
    molt.sound()
}

fn forgiven(bed: &Bed) -> anyhow::Result<()> {
    let script = "if test -e /sandbox/state/miss; then rm /sandbox/state/miss; exit 1; fi";
    let mut probe = shell(script);
    probe["failureThreshold"] = json!(2);
    let molt = setup(bed, "v1", Value::Null)?.with("/health/liveness", probe).start()?;
    let miss = molt.state.join("miss");
    for _ in 0..3 {
        fs::write(&miss, "")?;
        wait::until("the probe to miss once", SOON, || !miss.exists())?;
        // One good answer at least before the next miss.
        std::thread::sleep(Duration::from_millis(350));
    }
    molt.serves("v1", 1)?;
    molt.sound()
}

fn liveness(bed: &Bed) -> anyhow::Result<()> {
    let script = "if test -e /sandbox/state/dead; then rm /sandbox/state/dead; exit 1; fi";
    let mut probe = shell(script);
    probe["failureThreshold"] = json!(1);
    let molt = setup(bed, "v1", Value::Null)?.with("/health/liveness", probe).start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    fs::write(molt.state.join("dead"), "")?;
    wait::until_ok("another start", SOON, || molt.serves("v2", 3))?;
    let status = molt.settled()?;
    ensure!(status["workload"]["restarts"] == 1, "{status:#}");
    ensure!(status["confirmed"]["generation"] == 2 && status["previous"]["generation"] == 1, "{status:#}");
    ensure!(molt.stored("generations")? == ["1", "2"]);
    let kinds = molt.json(&["history"])?;
    ensure!(kinds.to_string().contains("\"restart\""), "{kinds:#}");
    molt.sound()
}

/// Readiness is asked ten times in the period of liveness, which wants a word a period.
fn own_time(bed: &Bed) -> anyhow::Result<()> {
    let setup = setup(bed, "barks", shell("echo >> /sandbox/state/asked"))?;
    let probe = json!({"notify": {}, "period": "1s", "failureThreshold": 2});
    let setup = setup.with("/health/liveness", probe).with("/health/monitor", json!("2s"));
    let molt = setup.start()?;
    let asked = || molt.state_file("asked").map_or(0, |text| text.lines().count());
    let before = asked();
    wait::until("readiness to be asked", SOON, || asked() >= before + 25)?;
    ensure!(molt.status()?["workload"]["restarts"] == 0, "{:#}", molt.status()?);
    molt.serves("barks", 1)?;
    let quiet = molt.state.join("quiet");
    fs::write(&quiet, "")?;
    wait::until_ok("another start", SOON, || {
        ensure!(molt.status()?["workload"]["restarts"] == 1, "{:#}", molt.status()?);
        Ok(())
    })?;
    fs::remove_file(&quiet)?;
    ensure!(molt.sandbox.logs().contains("no WATCHDOG=1 within 1s"), "why it was started again");
    molt.settled()?;
    molt.sound()
}

fn never_barks(bed: &Bed) -> anyhow::Result<()> {
    let probe = json!({"notify": {}, "period": "500ms", "failureThreshold": 2});
    let setup = setup(bed, "barks", Value::Null)?.with("/health/liveness", probe);
    let molt = setup.with("/health/monitor", json!("1s")).start()?;
    let said = molt.expect(3, &["update", &bed.small("notifies")?])?.stderr;
    ensure!(said.contains("failed 2 times in its trial: no WATCHDOG=1 within 500ms"), "{said}");
    molt.serves("barks", 3)?;
    molt.sound()
}

/// From the start on, in a trial and after it: with no monitor window it is asked after confirm only.
fn delayed(bed: &Bed) -> anyhow::Result<()> {
    for monitor in ["2s", "0s"] {
        let mut probe = shell("echo >> /sandbox/state/asked");
        probe["initialDelay"] = json!("1500ms");
        let setup = setup(bed, "v1", Value::Null)?.with("/health/liveness", probe);
        let molt = setup.with("/health/monitor", json!(monitor)).launch()?;
        molt.until("the workload to be ready", |status| status["workload"]["ready"] == true)?;
        let asked = molt.state.join("asked");
        ensure!(!asked.exists(), "asked at once, with a window of {monitor}");
        let since = Instant::now();
        wait::until("liveness to be asked", SOON, || asked.exists())?;
        ensure!(since.elapsed() >= Duration::from_millis(500), "asked after {:?}, window {monitor}", since.elapsed());
        molt.settled()?;
        molt.sound()?;
    }
    Ok(())
}

fn hangs(bed: &Bed) -> anyhow::Result<()> {
    // With v2 the first attempt fails late, and the second would take until well after the deadline.
    let script = "grep -q v1 /app/VERSION && exit 0; if test -e /sandbox/state/asked; then sleep 1111; fi; \
                  echo > /sandbox/state/asked; sleep 1; exit 1";
    let mut probe = shell(script);
    probe["timeout"] = json!("2s");
    let setup = setup(bed, "v1", probe)?.with("/health/startupDeadline", json!("2s"));
    let molt = setup.start()?;
    let said = molt.expect(3, &["update", &bed.small("v2")?])?.stderr;
    ensure!(said.contains("not ready within 2s") && said.contains("no answer yet after "), "{said}");
    molt.serves("v1", 3)?;
    molt.sound()
}

fn readiness(bed: &Bed) -> anyhow::Result<()> {
    let mut probe = shell("test ! -e /sandbox/state/unready");
    probe["failureThreshold"] = json!(2);
    let molt = setup(bed, "v1", probe)?.start()?;
    ensure!(molt.molt(&["probe", "ready"])?.code == 0 && molt.molt(&["probe", "startup"])?.code == 0);
    fs::write(molt.state.join("unready"), "")?;
    molt.until("the workload to be shown as not ready", |status| status["workload"]["ready"] == false)?;
    ensure!(molt.molt(&["probe", "ready"])?.code == 1 && molt.molt(&["probe", "live"])?.code == 0);
    fs::remove_file(molt.state.join("unready"))?;
    molt.until("the workload to be ready again", |status| status["workload"]["ready"] == true)?;
    ensure!(molt.molt(&["probe", "ready"])?.code == 0);
    molt.serves("v1", 1)?;
    molt.sound()
}
