//! Updates, as an operator sees them: the state stays, the version changes; what can be held, awaited and cancelled.

use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{data_policy, number, v1, with_data, write_data};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::faulty::{Fault, Faulty};
use crate::harness::molt::{Molt, PROGRAM, SOON, Setup};
use crate::harness::process::{self, Background};
use crate::harness::runtime::Kind;
use crate::harness::{http, wait};

/// The tests of this suite.
pub(in crate::suites) const CASES: &[Case] = &[
    case("update::keeps_the_state_and_runs_the_new_version", |bed| keeps_the_state(bed, Kind::Light)),
    case("update::keeps_the_state_in_a_user_namespace", |bed| keeps_the_state(bed, Kind::LightUser)),
    case("update::starts_with_a_fresh_upper_folder", fresh_upper),
    case("update::to_the_image_that_runs_restarts_nothing", noop),
    case("update::dry_run_shows_the_plan_and_changes_nothing", dry_run),
    case("update::stage_only_waits_for_apply", stage_only),
    case("update::hold_stops_before_the_gate_and_release_goes_on", hold),
    case("update::external_confirmation_and_rejection", external),
    case("update::a_newer_one_supersedes_one_before_the_gate", supersedes),
    case("update::a_newer_one_waits_for_one_after_the_gate", queues),
    case("update::no_wait_and_a_wait_that_times_out", waits),
    case("update::cancel_leaves_the_old_one_untouched", cancel),
];

fn keeps_the_state(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let molt = Setup::new(bed, kind, &bed.small("v1")?)?.start()?;
    ensure!(molt.click()? == 1 && molt.click()? == 2);
    let output = molt.expect(0, &["update", &bed.small("v2")?])?;
    ensure!(output.stdout.contains("confirmed: generation 2"), "{output:?}");
    ensure!(output.stdout.contains("downtime"), "no downtime is said: {output:?}");
    molt.serves("v2", 2)?;
    ensure!(molt.clicks()? == 2 && molt.click()? == 3, "the counter goes on");
    ensure!(molt.state_file("clean-stop").as_deref() == Some("v1 1\n"), "v1 was stopped by its signal");
    let status = molt.status()?;
    let last = &status["lastUpdate"];
    ensure!(last["outcome"] == "confirmed" && last["from"] == 1 && last["to"] == 2, "{last:#}");
    let downtime = number(&last["downtimeUs"])?;
    ensure!((1..2_000_000).contains(&downtime), "{downtime} us");
    ensure!(number(&last["unreadyUs"])? >= downtime, "{last:#}");
    ensure!(status["confirmed"]["generation"] == 2 && status["previous"]["generation"] == 1, "{status:#}");
    ensure!(status["trial"].is_null() && status["update"].is_null(), "{status:#}");
    ensure!(molt.stored("generations")? == ["1", "2"]);
    molt.sound()
}

fn fresh_upper(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &with_data(bed, "v1")?)?.with("/policy", data_policy());
    let molt = setup.start()?;
    write_data(&molt)?;
    ensure!(molt.upper(1, "data/mark").exists(), "the upper folder of generation 1 holds what it wrote");
    molt.expect(0, &["update", &with_data(bed, "v2")?])?;
    molt.serves("v2", 2)?;
    ensure!(molt.get("/read?path=/data/mark")?["errno"] == 2, "the new one sees what the old one wrote");
    ensure!(!molt.upper(2, "data/mark").exists());
    molt.sound()
}

fn noop(bed: &Bed) -> anyhow::Result<()> {
    let image = bed.small("v1")?;
    let molt = Setup::new(bed, Kind::Light, &image)?.start()?;
    let before = molt.get("/")?;
    let output = molt.expect(0, &["update", &image])?;
    ensure!(output.stdout.contains("nothing to do"), "{output:?}");
    ensure!(molt.get("/")? == before, "the workload was restarted");
    ensure!(molt.last()?["outcome"] == "noop", "{}", molt.last()?);
    ensure!(molt.stored("generations")? == ["1"]);
    molt.sound()
}

fn dry_run(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    let plan = molt.json(&["update", "--dry-run", &bed.small("v2")?])?;
    ensure!(plan["noop"] == false && plan["layers"] == 3 && plan["layersToFetch"] == 1, "{plan:#}");
    ensure!(plan["command"] == json!(["/app/molt-testd"]), "{plan:#}");
    ensure!(molt.json(&["update", "--dry-run", &bed.small("v1")?])?["noop"] == true);
    molt.serves("v1", 1)?;
    ensure!(molt.last()?.is_null() && molt.stored("generations")? == ["1"]);
    molt.sound()
}

fn stage_only(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    // It waits until there is nothing more to wait for, and says what would go on.
    let staged = molt.expect(0, &["update", "--stage-only", &bed.small("v2")?])?;
    ensure!(staged.stdout.contains("staged: generation 2 holds") && staged.stdout.contains("molt apply"), "{staged:?}");
    let status = molt.status()?;
    ensure!(status["phase"] == "Held" && status["staged"]["generation"] == 2, "{status:#}");
    molt.serves("v1", 1)?;
    molt.expect(0, &["apply"])?;
    molt.serves("v2", 2)?;
    molt.sound()
}

fn hold(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    molt.expect(0, &["hold", "--ttl", "5m", "--reason", "a call is going on"])?;
    ensure!(molt.status()?["hold"]["reason"] == "a call is going on");
    molt.expect(0, &["update", "--no-wait", &bed.small("v2")?])?;
    molt.until("the update to be held", |status| status["phase"] == "Held")?;
    molt.serves("v1", 1)?;
    molt.expect(0, &["release"])?;
    molt.until("the update to be over", |status| status["lastUpdate"]["outcome"] == "confirmed")?;
    molt.serves("v2", 2)?;
    molt.sound()
}

fn external(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let molt = setup.with("/update/confirm", json!("external")).with("/health/monitor", json!("0s")).start()?;
    molt.expect(0, &["update", "--no-wait", &bed.small("v2")?])?;
    let trial = |status: &Value| status["phase"] == "Proving" && status["workload"]["ready"] == true;
    molt.until("the trial", trial)?;
    let output = molt.expect(0, &["reject"])?;
    ensure!(molt.last()?["outcome"] == "rolledBack" && molt.last()?["reason"] == "rejected", "{output:?}");
    molt.serves("v1", 3)?;
    molt.expect(0, &["update", "--no-wait", &bed.small("v3")?])?;
    molt.until("the trial", trial)?;
    ensure!(molt.generation("confirmed")? == Some(1));
    molt.expect(0, &["confirm"])?;
    ensure!(molt.generation("confirmed")? == Some(3));
    molt.serves("v3", 4)?;
    molt.sound()
}

/// A sandbox whose registry is slow to give out the last layer of v2.
fn slow(bed: &Bed) -> anyhow::Result<(Molt, Faulty, String)> {
    for version in ["v1", "v2", "v3"] {
        bed.small(version)?;
    }
    let proxy = Faulty::start(bed.registry()?.address)?;
    let setup = Setup::new(bed, Kind::Light, &proxy.reference("small:v1"))?;
    let molt = setup.with("/registries/insecure", json!([proxy.address.to_string()])).start()?;
    let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
    let manifest = http::request(proxy.address, "GET", "/v2/small/manifests/v2", &accept, &[], SOON)?.json()?;
    let layer = manifest["layers"][2]["digest"].as_str().context("a layer")?;
    let stalls = format!("GET /v2/small/blobs/{layer}");
    proxy.rule(&stalls, Fault::Stall(10), 1);
    Ok((molt, proxy, stalls))
}

fn until_stalled(proxy: &Faulty, stalls: &str) -> anyhow::Result<()> {
    wait::until("the fetch to stall", SOON, || proxy.requests().iter().any(|request| request == stalls))
}

fn supersedes(bed: &Bed) -> anyhow::Result<()> {
    let (molt, proxy, stalls) = slow(bed)?;
    let words = [PROGRAM, "update", &proxy.reference("small:v2")];
    let mut first = molt.sandbox.exec_command(&words)?;
    let mut first = Background::spawn(first.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
    until_stalled(&proxy, &stalls)?;
    ensure!(molt.status()?["phase"] == "Fetching");
    molt.expect(0, &["update", &proxy.reference("small:v3")])?;
    molt.serves("v3", 2)?;
    let code = process::code(process::wait(&mut first.0, SOON)?);
    ensure!(code == 1, "the superseded update ended with {code}");
    let given_up = molt.json(&["show", "u2"])?;
    ensure!(given_up["outcome"] == "aborted" && given_up["reason"] == "superseded", "{given_up:#}");
    ensure!(molt.json(&["bad", "list"])? == json!([]), "a superseded image is not a bad one");
    molt.sound()
}

fn cancel(bed: &Bed) -> anyhow::Result<()> {
    let (molt, proxy, stalls) = slow(bed)?;
    molt.expect(0, &["update", "--no-wait", &proxy.reference("small:v2")])?;
    until_stalled(&proxy, &stalls)?;
    ensure!(molt.status()?["phase"] == "Fetching");
    molt.expect(0, &["cancel"])?;
    molt.serves("v1", 1)?;
    ensure!(molt.last()?["outcome"] == "aborted", "{}", molt.last()?);
    ensure!(molt.molt(&["cancel"])?.code != 0, "nothing is left to cancel");
    molt.expect(0, &["update", &proxy.reference("small:v2")])?;
    molt.serves("v2", 2)?;
    molt.sound()
}

fn queues(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health/monitor", json!("1500ms"));
    let molt = setup.start()?;
    molt.expect(0, &["update", "--no-wait", &bed.small("v2")?])?;
    molt.until("the trial", |status| status["phase"] == "Proving")?;
    molt.expect(0, &["update", &bed.small("v3")?])?;
    molt.serves("v3", 3)?;
    let second = molt.json(&["show", "u2"])?;
    ensure!(second["outcome"] == "confirmed" && second["to"] == 2, "the first one came to its end: {second:#}");
    ensure!(molt.generation("previous")? == Some(2));
    molt.sound()
}

fn waits(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health/monitor", json!("1s"));
    let molt = setup.start()?;
    molt.expect(7, &["update", "--wait=200ms", &bed.small("v2")?])?;
    molt.until("the update to be over", |status| status["lastUpdate"]["outcome"] == "confirmed")?;
    molt.serves("v2", 2)?;
    let output = molt.expect(0, &["update", "--no-wait", &bed.small("v3")?])?;
    ensure!(output.stdout.trim() == "u3", "the id is what is printed: {output:?}");
    molt.until("the update to be over", |status| status["confirmed"]["generation"] == 3)?;
    molt.sound()
}
