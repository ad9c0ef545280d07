//! The container is killed or stopped at any time and started again; signals and exit codes of PID 1; its output.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use molt_core::journal;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::faulty::{Fault, Faulty};
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::{http, wait};

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("restart::enters_what_was_confirmed_and_not_the_image_of_the_spec", |bed| idle(bed, Kind::Light)),
    case("restart::enters_what_was_confirmed_in_a_user_namespace", |bed| idle(bed, Kind::LightUser)),
    case("restart::after_a_rollback_stays_with_it", |bed| after_a_rollback(bed, Kind::Light)),
    case("restart::after_a_rollback_stays_with_it_in_a_user_namespace_under_crun", |bed| {
        after_a_rollback(bed, Kind::CrunUser)
    }),
    case("restart::during_a_fetch_leaves_the_old_one", |bed| during_a_fetch(bed, Kind::Light)),
    case("restart::during_a_fetch_leaves_the_old_one_in_a_user_namespace", |bed| during_a_fetch(bed, Kind::LightUser)),
    case("restart::killed_in_a_trial_goes_back", |bed| killed_in_a_trial(bed, Kind::Light)),
    case("restart::killed_in_a_trial_goes_back_in_a_user_namespace_with_a_masked_proc", |bed| {
        killed_in_a_trial(bed, Kind::LightUserMasked)
    }),
    case("restart::stopped_in_a_trial_goes_on_with_it", |bed| stopped_in_a_trial(bed, Kind::Light)),
    case("restart::stopped_in_a_trial_goes_on_with_it_in_a_user_namespace_under_podman", |bed| {
        stopped_in_a_trial(bed, Kind::PodmanUser)
    }),
    case("restart::killed_at_any_time_something_proven_runs", any_time),
    case("restart::three_starts_in_vain_lead_to_the_version_before", starts_in_vain),
    case("restart::a_damaged_journal_boots_what_was_confirmed_and_goes_on", damaged_journal),
    case("restart::a_journal_of_a_newer_molt_boots_and_is_left_alone", newer_journal),
    case("restart::a_changed_image_in_the_spec_is_a_new_intent", changed_spec),
    case("restart::a_lost_journal_makes_no_wish_of_the_image_of_the_spec", lost_journal),
    case("exit::the_status_of_the_workload_is_that_of_the_container", status_passes),
    case("exit::a_signal_that_kills_the_workload_is_told_as_128_and_its_number", killed_by_signal),
    case("exit::term_int_and_quit_stop_the_workload", stopped_by_signal),
    case("exit::an_update_before_its_gate_is_given_up_when_the_workload_ends", ends_during_fetch),
    case("signal::others_are_passed_on_to_the_workload", forwarded),
    case("output::goes_to_the_container_and_to_molt_logs", output),
    case("output::what_the_workload_says_of_itself_is_shown_when_nothing_else_happens", says),
];

fn idle(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    for version in ["v1", "v2"] {
        bed.small(version)?;
    }
    let proxy = Faulty::start(bed.registry()?.address)?;
    let setup = Setup::new(bed, kind, &proxy.reference("small:v1"))?;
    let mut molt = setup.with("/registries/insecure", json!([proxy.address.to_string()])).start()?;
    molt.click()?;
    molt.expect(0, &["update", "--reason", "a test", &proxy.reference("small:v2")])?;
    proxy.heal();
    ensure!(molt.sandbox.kill()? == 137);
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    molt.serves("v2", 3)?;
    ensure!(molt.clicks()? == 1);
    ensure!(proxy.requests().is_empty(), "the registry is not needed: {:?}", proxy.requests());
    ensure!(status["confirmed"]["generation"] == 2 && status["previous"]["generation"] == 1, "{status:#}");
    let history = molt.json(&["history"])?;
    let update = history.as_array().and_then(|all| all.iter().find(|one| one["id"] == "u2")).context("u2")?;
    ensure!(update["outcome"] == "confirmed" && update["note"] == "a test", "{history:#}");
    ensure!(status["lastUpdate"]["id"] == "u2", "{status:#}");
    // The numbers go on, and so does the way back.
    molt.expect(0, &["rollback"])?;
    molt.serves("v1", 4)?;
    molt.sound()
}

fn after_a_rollback(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let mut molt = Setup::new(bed, kind, &bed.small("v1")?)?.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.expect(0, &["rollback"])?;
    ensure!(molt.sandbox.stop(SOON)? == 0);
    ensure!(molt.state_file("clean-stop").as_deref() == Some("v1 3\n"));
    molt.sandbox.restart()?;
    molt.settled()?;
    molt.serves("v1", 4)?;
    ensure!((molt.generation("confirmed")?, molt.generation("previous")?) == (Some(1), Some(2)));
    molt.sound()
}

fn during_a_fetch(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    for version in ["v1", "v2"] {
        bed.small(version)?;
    }
    let proxy = Faulty::start(bed.registry()?.address)?;
    let setup = Setup::new(bed, kind, &proxy.reference("small:v1"))?;
    let mut molt = setup.with("/registries/insecure", json!([proxy.address.to_string()])).start()?;
    let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
    let manifest = http::request(proxy.address, "GET", "/v2/small/manifests/v2", &accept, &[], SOON)?.json()?;
    let layer = format!("GET /v2/small/blobs/{}", manifest["layers"][2]["digest"].as_str().context("a layer")?);
    proxy.rule(&layer, Fault::Stall(100), 1);
    molt.expect(0, &["update", "--no-wait", &proxy.reference("small:v2")])?;
    wait::until("the fetch to stall", SOON, || proxy.requests().contains(&layer))?;
    ensure!(molt.sandbox.kill()? == 137);
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    molt.serves("v1", 2)?;
    ensure!(status["trial"].is_null() && status["bad"] == json!([]), "{status:#}");
    molt.expect(0, &["update", &proxy.reference("small:v2")])?;
    molt.serves("v2", 3)?;
    ensure!(molt.stored("trash").map_or(true, |left| left.is_empty()), "{:?}", molt.stored("trash"));
    molt.sound()
}

fn killed_in_a_trial(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let setup = Setup::new(bed, kind, &bed.small("v1")?)?.with("/health/monitor", json!("5s"));
    let mut molt = setup.start()?;
    molt.expect(0, &["update", "--no-wait", &bed.small("v2")?])?;
    molt.until("the trial", |status| status["phase"] == "Proving" && status["trial"]["generation"] == 2)?;
    ensure!(molt.sandbox.kill()? == 137);
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    ensure!(molt.version()?.0 == "v1", "an unproven trial was entered");
    ensure!(status["confirmed"]["generation"] == 1 && status["trial"].is_null(), "{status:#}");
    let last = &status["lastUpdate"];
    ensure!(last["id"] == "u2" && last["outcome"] == "rolledBack", "{last:#}");
    molt.expect(6, &["update", &bed.small("v2")?])?;
    molt.sound()
}

fn stopped_in_a_trial(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let setup = Setup::new(bed, kind, &bed.small("v1")?)?.with("/health/monitor", json!("2s"));
    let mut molt = setup.start()?;
    molt.expect(0, &["update", "--no-wait", &bed.small("v2")?])?;
    molt.until("the trial", |status| status["phase"] == "Proving" && status["workload"]["ready"] == true)?;
    ensure!(molt.sandbox.stop(SOON)? == 0);
    molt.sandbox.restart()?;
    molt.until("the trial to go on", |status| status["trial"]["generation"] == 2)?;
    let status = molt.until("the confirmation", |status| status["confirmed"]["generation"] == 2)?;
    ensure!(status["lastUpdate"]["id"] == "u2" && status["lastUpdate"]["outcome"] == "confirmed", "{status:#}");
    ensure!(status["bad"] == json!([]), "{status:#}");
    ensure!(molt.version()?.0 == "v2");
    molt.sound()
}

fn any_time(bed: &Bed) -> anyhow::Result<()> {
    let images = [bed.small("v1")?, bed.small("v2")?];
    let mut molt = Setup::new(bed, Kind::Light, &images[0])?.start()?;
    let mut clicks = 0;
    for (round, pause) in [0, 15, 30, 45, 60, 80, 120, 200, 300, 450].into_iter().enumerate() {
        clicks += 1;
        ensure!(molt.click()? == clicks, "the state is lost in round {round}");
        let serving = molt.generation("confirmed")?;
        let other = usize::from(molt.version()?.0 == "v1");
        molt.expect(0, &["update", "--force", "--no-wait", &images[other]])?;
        std::thread::sleep(Duration::from_millis(pause));
        ensure!(molt.sandbox.kill()? == 137);
        molt.sandbox.restart()?;
        let status = molt.settled().with_context(|| format!("killed {pause} ms after the request"))?;
        ensure!(status["trial"].is_null(), "{status:#}");
        let confirmed = status["confirmed"]["generation"].as_u64();
        let version = molt.version()?.0;
        let image = status["confirmed"]["image"].as_str().context("an image")?;
        ensure!(image.ends_with(&version), "{version} runs, {image} is shown");
        ensure!(confirmed >= serving, "{confirmed:?} after {serving:?}");
        molt.sound()?;
    }
    Ok(())
}

fn starts_in_vain(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    // From here on nothing is healthy for long enough before it is killed.
    let spec = molt.config.join("sandbox.yaml");
    fs::write(&spec, fs::read_to_string(&spec)?.replace("\"300ms\"", "\"1m\""))?;
    let mut number = 2;
    for version in ["v2", "v2", "v2", "v1"] {
        ensure!(molt.sandbox.kill()? == 137);
        molt.sandbox.restart()?;
        let status = molt.settled()?;
        number += 1;
        molt.serves(version, number)?;
        ensure!(status["confirmed"]["generation"] == 2, "{status:#}");
        let conditions = status["conditions"].as_array().context("conditions")?;
        let fallback = conditions.iter().find(|one| one["type"] == "Fallback");
        let told = fallback.is_some_and(|one| one["status"] == "True");
        ensure!(told == (version == "v1"), "{version}: {conditions:#?}");
        if let Some(one) = fallback.filter(|_| told) {
            let why = one["message"].as_str().unwrap_or_default();
            ensure!(why.contains("generation 2 was started 3 times in a row and never was healthy"), "{why}");
        }
    }
    // What stands in may be replaced like anything else.
    molt.expect(0, &["update", "--no-wait", &bed.small("v3")?])?;
    molt.until("the trial", |status| status["phase"] == "Proving")?;
    molt.expect(0, &["confirm"])?;
    ensure!(molt.version()?.0 == "v3");
    molt.sound()
}

/// v2 in the place of v1, one click, and nothing running.
fn ended_with_v2(bed: &Bed) -> anyhow::Result<Molt> {
    let mut molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.click()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    ensure!(molt.sandbox.kill()? == 137);
    // Somebody has written down what runs.
    let spec = molt.config.join("sandbox.yaml");
    fs::write(&spec, fs::read_to_string(&spec)?.replace(&bed.small("v1")?, &bed.small("v2")?))?;
    Ok(molt)
}

fn condition(status: &Value, kind: &str) -> Option<Value> {
    status["conditions"].as_array()?.iter().find(|one| one["type"] == kind).cloned()
}

/// The bytes of a journal, to be damaged; the offset of the newest slot.
type Spoil = fn(&mut Vec<u8>, usize);

/// What is done to the journal, whether nothing can be made out in it then, and which versions may serve.
const DAMAGES: [(&str, Spoil, bool, &[&str]); 5] = [
    ("a byte of the newest slot", |bytes, newest| bytes[newest + 100] ^= 1, false, &["v1", "v2"]),
    ("a byte of the slot before it", |bytes, newest| bytes[(newest ^ journal::SLOT_BYTES) + 100] ^= 1, false, &["v2"]),
    ("both slots 0xff", |bytes, _| bytes.fill(0xff), true, &["v2"]),
    ("an empty file", |bytes, _| bytes.clear(), true, &["v2"]),
    ("100 bytes", |bytes, _| bytes.truncate(100), true, &["v2"]),
];

fn damaged_journal(bed: &Bed) -> anyhow::Result<()> {
    for (what, spoil, reset, serve) in DAMAGES {
        damaged(bed, spoil, reset, serve).context(what)?;
    }
    Ok(())
}

fn damaged(bed: &Bed, spoil: Spoil, reset: bool, serve: &[&str]) -> anyhow::Result<()> {
    let mut molt = ended_with_v2(bed)?;
    let path = molt.store.join("journal");
    let mut bytes = fs::read(&path)?;
    let newest = journal::read(&bytes)?.slot.context("a slot")?.offset();
    spoil(&mut bytes, usize::try_from(newest)?);
    fs::write(&path, bytes)?;
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    let version = molt.version()?.0;
    ensure!(serve.contains(&version.as_str()), "{version} serves: {status:#}");
    let image = status["confirmed"]["image"].as_str().context("an image")?;
    ensure!(image.ends_with(&version), "{version} runs, {image} is shown");
    ensure!(molt.clicks()? == 1, "the state is lost");
    let said = condition(&status, "JournalReset");
    ensure!(said.as_ref().is_some_and(|one| one["status"] == "True") == reset, "{said:?}");
    ensure!(molt.sandbox.logs().contains("journal") || !reset, "the log does not say it: {}", molt.sandbox.logs());
    // Numbers go on: nothing that was there is taken for something else.
    molt.expect(0, &["update", "--force", &bed.small("v3")?])?;
    let status = molt.settled()?;
    ensure!(molt.version()?.0 == "v3" && molt.clicks()? == 1);
    let (generation, last) = (status["confirmed"]["generation"].as_u64().context("a number")?, &status["lastUpdate"]);
    ensure!(generation > 2 && last["outcome"] == "confirmed", "{status:#}");
    let number = last["id"].as_str().and_then(|id| id.strip_prefix('u')?.parse::<u64>().ok());
    ensure!(number > Some(2), "{last:#}");
    // What is written now is whole.
    ensure!(molt.sandbox.kill()? == 137);
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    ensure!(molt.version()?.0 == "v3" && condition(&status, "JournalReset").is_none(), "{status:#}");
    molt.sound()
}

/// CRC-32C of a slot whose field for it is zero.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

fn newer_journal(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = ended_with_v2(bed)?;
    let path = molt.store.join("journal");
    let ours = fs::read(&path)?;
    let mut newer = ours.clone();
    for slot in newer.chunks_exact_mut(journal::SLOT_BYTES) {
        let told = slot[28..32].to_vec();
        slot[28..32].fill(0);
        ensure!(told == checksum(slot).to_le_bytes(), "the checksum is not that of docs/STATE-DIR.md");
        slot[8..12].copy_from_slice(&(journal::FORMAT + 1).to_le_bytes());
        let sum = checksum(slot).to_le_bytes();
        slot[28..32].copy_from_slice(&sum);
    }
    fs::write(&path, &newer)?;
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    molt.serves("v2", 3)?;
    ensure!(molt.clicks()? == 1 && condition(&status, "JournalReset").is_none(), "{status:#}");
    let durable = condition(&status, "Durable").context("Durable")?;
    let why = durable["message"].as_str().context("a message")?;
    ensure!(durable["status"] == "False" && why.contains("a journal of format 2"), "{durable:#}");
    for words in [&["update", &bed.small("v3")?, "--force"][..], &["rollback"]] {
        let refused = molt.expect(1, words)?;
        let said = "failed to write a journal of format 2 with features 0x0: this Molt knows 1 and 0x1";
        ensure!(refused.stderr.contains(said), "{words:?}: {refused:?}");
        let last = molt.settled()?["lastUpdate"].take();
        ensure!(last["outcome"] == "aborted" && last["reason"] == "store-unusable", "{words:?}: {last:#}");
        molt.serves("v2", 3)?;
    }
    ensure!(molt.sandbox.stop(SOON)? == 0, "{}", molt.sandbox.logs());
    ensure!(fs::read(&path)? == newer, "it wrote to a journal that it does not understand");
    // With one that it understands everything goes on.
    fs::write(&path, &ours)?;
    molt.sandbox.restart()?;
    molt.settled()?;
    molt.expect(0, &["update", "--force", &bed.small("v3")?])?;
    molt.serves("v3", 5)?;
    molt.sound()
}

fn lost_journal(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    ensure!(molt.sandbox.kill()? == 137);
    fs::write(molt.store.join("journal"), vec![0xff; journal::FILE_BYTES])?;
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    ensure!(molt.version()?.0 == "v2" && status["confirmed"]["generation"] == 2, "{status:#}");
    ensure!(condition(&status, "JournalReset").is_some(), "{status:#}");
    molt.sound()
}

fn changed_spec(bed: &Bed) -> anyhow::Result<()> {
    let (v1, v3) = (bed.small("v1")?, bed.small("v3")?);
    let mut molt = Setup::new(bed, Kind::Light, &v1)?.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    let spec = molt.config.join("sandbox.yaml");
    fs::write(&spec, fs::read_to_string(&spec)?.replace(&v1, &v3))?;
    molt.sandbox.stop(SOON)?;
    molt.sandbox.restart()?;
    let status = molt
        .until("the image of the spec", |status| status["phase"] == "Idle" && status["confirmed"]["generation"] == 3)?;
    ensure!(molt.version()?.0 == "v3" && status["previous"]["generation"] == 2, "{status:#}");
    // It is not wanted again after somebody went back.
    molt.expect(0, &["rollback"])?;
    molt.sandbox.stop(SOON)?;
    molt.sandbox.restart()?;
    molt.settled()?;
    ensure!(molt.version()?.0 == "v2");
    molt.sound()
}

fn status_passes(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let mut molt = setup.workload_env("TESTD_BEHAVIOUR", "exit=7,after=300").launch()?;
    ensure!(molt.sandbox.wait(SOON)? == 7, "{}", molt.sandbox.logs());
    // The same, after an update.
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health/monitor", json!("0s"));
    let mut molt = setup.start()?;
    molt.expect(0, &["update", &bed.small("dies-1s")?])?;
    ensure!(molt.sandbox.wait(SOON)? == 1, "{}", molt.sandbox.logs());
    Ok(())
}

fn killed_by_signal(bed: &Bed) -> anyhow::Result<()> {
    for (signal, code) in [("KILL", 137), ("ABRT", 134)] {
        let mut molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
        let pid = molt.get("/")?["pid"].to_string();
        // It takes itself along.
        molt.molt(&["exec", "--", "kill", &format!("-{signal}"), &pid])?;
        let ended = molt.sandbox.wait(SOON)?;
        ensure!(ended == code, "{signal}: {ended}, not {code}");
    }
    Ok(())
}

fn stopped_by_signal(bed: &Bed) -> anyhow::Result<()> {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGQUIT, 131)] {
        let setup = Setup::own_root(bed, Kind::Light, &["sleep", "1000"])?;
        let mut molt = setup.with("/health/readiness", json!(null)).start()?;
        molt.sandbox.signal(signal)?;
        let ended = molt.sandbox.wait(SOON)?;
        ensure!(ended == code, "{signal}: {ended}, not {code}");
    }
    Ok(())
}

fn ends_during_fetch(bed: &Bed) -> anyhow::Result<()> {
    for version in ["v1", "v2"] {
        bed.small(version)?;
    }
    let proxy = Faulty::start(bed.registry()?.address)?;
    let setup = Setup::new(bed, Kind::Light, &proxy.reference("small:v1"))?;
    let mut molt = setup.with("/registries/insecure", json!([proxy.address.to_string()])).start()?;
    proxy.rule("GET /v2/small/blobs/", Fault::Stall(10), None);
    molt.expect(0, &["update", "--no-wait", &proxy.reference("small:v2")])?;
    let pid = molt.get("/")?["pid"].to_string();
    molt.molt(&["exec", "--", "kill", "-KILL", &pid])?;
    ensure!(molt.sandbox.wait(SOON)? == 137);
    proxy.heal();
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    ensure!(status["lastUpdate"]["outcome"] == "aborted", "{status:#}");
    molt.serves("v1", 2)?;
    molt.sound()
}

fn forwarded(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let molt = setup.with("/watch", json!({"hangup": false})).start()?;
    let mut wanted = Vec::new();
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGHUP, Signal::SIGWINCH] {
        molt.sandbox.signal(signal)?;
        wanted.push(signal.as_str());
        wait::until_ok("the signal to arrive", SOON, || {
            let text = molt.state_file("signals").unwrap_or_default();
            let seen: Vec<&str> = text.lines().collect();
            ensure!(seen == wanted, "{seen:?}, not {wanted:?}");
            Ok(())
        })?;
    }
    molt.serves("v1", 1)?;
    molt.sound()
}

fn output(bed: &Bed) -> anyhow::Result<()> {
    let script = "echo to stdout; echo to stderr >&2; printf 'no newline'; exec sleep 1000";
    let setup = Setup::own_root(bed, Kind::Podman, &["sh", "-c", script])?;
    let molt = setup.with("/health/readiness", json!(null)).start()?;
    wait::until_ok("the output", SOON, || {
        let (log, kept) = (molt.sandbox.logs(), molt.expect(0, &["logs"])?.stdout);
        for line in ["to stdout", "to stderr"] {
            ensure!(log.contains(line), "{line:?} is missing in the container's log:\n{log}");
            ensure!(kept.contains(line), "{line:?} is missing in molt logs:\n{kept}");
        }
        ensure!(log.contains("no newline"), "{log}");
        Ok(())
    })?;
    let lines = molt.expect(0, &["logs", "-o", "json"])?.stdout;
    let lines: Vec<serde_json::Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of = |stream: &str| lines.iter().filter(|line| line["stream"] == stream).count();
    ensure!(of("stdout") >= 1 && of("stderr") == 1, "{lines:?}");
    let tail = molt.expect(0, &["logs", "--tail", "1"])?.stdout;
    ensure!(tail.lines().count() == 1, "{tail}");
    Ok(())
}

fn says(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("extends")?)?.with("/health/readiness", json!({"notify": {}}));
    let molt = setup.launch()?;
    // Two seconds before it is ready, and nothing else happens in them. To look wakes nobody.
    wait::until_ok("what it says before it is ready", SOON, || {
        let workload = molt.told()?["workload"].take();
        ensure!(workload["message"] == "thinking" && workload["ready"] == false, "{workload:#}");
        Ok(())
    })?;
    ensure!(molt.settled()?["workload"]["message"] == "serving");
    molt.sound()
}
