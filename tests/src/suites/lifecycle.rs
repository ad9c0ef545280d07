//! Updates and rollbacks, as an operator sees them: the state stays, the version changes, what is sick goes back.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::faulty::{Fault, Faulty};
use crate::harness::fuse::Fuse;
use crate::harness::image::{Format, Layer, Packing};
use crate::harness::molt::{Molt, PROGRAM, SOON, Setup};
use crate::harness::process::{self, Background};
use crate::harness::runtime::Kind;
use crate::harness::{http, images, registry, wait};

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
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
    case("rollback::enters_the_same_generation_with_its_upper_as_it_was", |bed| by_hand(bed, Kind::Light)),
    case("rollback::enters_the_same_generation_in_a_user_namespace", |bed| by_hand(bed, Kind::LightUser)),
    case("rollback::to_a_numbered_generation_and_the_chain_of_previous", chain),
    case("rollback::with_nothing_to_go_back_to_is_refused", nothing_to_go_back_to),
    case("rollback::by_itself_when_the_new_version_exits_at_once", |bed| sick(bed, "exits", 1, "status 1")),
    case("rollback::by_itself_when_the_new_version_dies_after_a_second", dies_later),
    case("rollback::by_itself_when_the_new_version_is_never_ready", never_ready),
    case("rollback::by_itself_when_the_new_version_is_unhealthy", |bed| sick(bed, "ill", 0, "503")),
    case("rollback::by_itself_when_the_new_version_falls_ill_in_its_trial", falls_ill),
    case("rollback::not_by_itself_where_the_spec_says_so", no_auto_rollback),
    case("bad::an_image_that_failed_is_refused_until_forgotten_or_forced", remembered),
    case("bad::nothing_is_forgotten_while_a_workload_is_swapped", not_forgotten_in_the_gap),
    case("bad::good_comes_after_bad", bad_good_bad),
    case("exclusive::two_at_once_are_noticed", two_at_once),
    case("exclusive::a_workload_that_ignores_the_signal_is_killed_after_its_grace", ignores_term),
    case("exclusive::a_workload_that_stops_slowly_is_waited_for", slow_stop),
    case("exclusive::a_real_time_signal_stops_it_too", real_time_stop),
    case("exclusive::a_process_that_forked_away_is_gone_before_the_new_one_starts", double_forks),
    case("exclusive::where_the_old_one_cannot_be_killed_no_other_one_starts", unkillable),
];

fn number(value: &Value) -> anyhow::Result<u64> {
    value.as_u64().with_context(|| format!("a number, not {value}"))
}

fn v1(bed: &Bed) -> anyhow::Result<Molt> {
    Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()
}

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

/// `small:VERSION` with a folder `/data` that belongs to the workload.
fn with_data(bed: &Bed, version: &str) -> anyhow::Result<String> {
    bed.image(&format!("data:{version}"), || {
        let folder = Layer::new().owner(1000, 1000).dir("data", 0o755).pack(Packing::Gzip);
        let testd = bed.program("molt-testd")?;
        Ok(images::small_as(version, &testd, Packing::Gzip, Format::Oci)?.layer(folder).build())
    })
}

fn data_policy() -> Value {
    json!({
        "version": 1,
        "filesystem_policy": {
            "include_workdir": false,
            "read_only": ["/bin", "/app", "/etc", "/proc"],
            "read_write": ["/sandbox/state", "/tmp", "/data"],
        },
    })
}

fn write_data(molt: &Molt) -> anyhow::Result<()> {
    molt.expect(0, &["exec", "--", "sh", "-c", "echo mark > /data/mark"])?;
    ensure!(molt.get("/read?path=/data/mark")? == "mark\n");
    Ok(())
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

fn by_hand(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let setup = Setup::new(bed, kind, &with_data(bed, "v1")?)?.with("/policy", data_policy());
    let molt = setup.start()?;
    write_data(&molt)?;
    molt.click()?;
    molt.expect(0, &["update", &with_data(bed, "v2")?])?;
    molt.click()?;
    let output = molt.expect(0, &["rollback", "--reason", "a test"])?;
    ensure!(output.stdout.contains("downtime"), "{output:?}");
    molt.serves("v1", 3)?;
    ensure!(molt.clicks()? == 2, "the state is not rolled back");
    ensure!(molt.get("/read?path=/data/mark")? == "mark\n", "the upper folder is as it was left");
    let status = molt.status()?;
    ensure!(status["confirmed"]["generation"] == 1 && status["previous"]["generation"] == 2, "{status:#}");
    let last = &status["lastUpdate"];
    ensure!(last["outcome"] == "confirmed" && last["kind"] == "rollback" && last["note"] == "a test", "{last:#}");
    ensure!(number(&last["downtimeUs"])? < 2_000_000, "{last:#}");
    ensure!(molt.json(&["bad", "list"])? == json!([]), "what was left by hand is not bad");
    molt.sound()
}

fn chain(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    for version in ["v2", "v3"] {
        molt.expect(0, &["update", &bed.small(version)?])?;
    }
    molt.expect(0, &["rollback", "--to", "1"])?;
    molt.serves("v1", 4)?;
    let roles = || -> anyhow::Result<_> { Ok((molt.generation("confirmed")?, molt.generation("previous")?)) };
    ensure!(roles()? == (Some(1), Some(3)), "{:?}", roles()?);
    molt.expect(0, &["rollback"])?;
    molt.serves("v3", 5)?;
    ensure!(roles()? == (Some(3), Some(1)), "{:?}", roles()?);
    molt.expect(6, &["rollback", "--to", "3"])?;
    molt.expect(6, &["rollback", "--to", "9"])?;
    molt.serves("v3", 5)?;
    ensure!(molt.stored("generations")? == ["1", "2", "3"], "a rollback makes no generation");
    // A -> B -> A by image is a new generation.
    molt.expect(0, &["update", &bed.small("v1")?])?;
    ensure!(molt.generation("confirmed")? == Some(4));
    molt.sound()
}

fn nothing_to_go_back_to(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    let output = molt.expect(6, &["rollback"])?;
    ensure!(output.stderr.contains("no previous generation"), "{output:?}");
    molt.serves("v1", 1)?;
    ensure!(molt.last()?["reason"] == "nothing-to-roll-back-to");
    molt.sound()
}

/// Updates from v1 to `variant`, which must go back by itself; `starts` is how often the sick one gets as far as
/// counting its start, `why` is to be found in the evidence.
fn sick(bed: &Bed, variant: &str, exits: u64, why: &str) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    goes_back(bed, &molt, variant, why)?;
    let evidence = &molt.json(&["show", "u2", "--evidence"])?["evidence"];
    if exits > 0 {
        ensure!(evidence["exitStatus"] == exits, "{evidence:#}");
        let output = evidence["output"].to_string();
        ensure!(output.contains("testd: leaving"), "the sick one's last words are missing: {evidence:#}");
    } else {
        ensure!(evidence["exitStatus"].is_null(), "{evidence:#}");
        let probes = evidence["probes"].as_array().context("probes")?;
        ensure!(probes.iter().any(|line| line.to_string().contains(why)), "{evidence:#}");
        ensure!(evidence["output"].to_string().contains(&format!("version {variant}")), "{evidence:#}");
    }
    molt.sound()
}

fn goes_back(bed: &Bed, molt: &Molt, variant: &str, why: &str) -> anyhow::Result<()> {
    let clicks = molt.click()?;
    let image = bed.small(variant)?;
    let output = molt.expect(3, &["update", &image])?;
    ensure!(output.stdout.contains("generation 1 is back and healthy"), "{output:?}");
    ensure!(output.stderr.contains("--evidence") && output.stderr.contains("--force"), "what to type next: {output:?}");
    let (version, _) = molt.version()?;
    ensure!(version == "v1" && molt.clicks()? == clicks, "{version} answers");
    let status = molt.status()?;
    let last = &status["lastUpdate"];
    ensure!(last["outcome"] == "rolledBack" && last["to"] == 2 && number(&last["downtimeUs"])? > 0, "{last:#}");
    ensure!(status["confirmed"]["generation"] == 1 && status["trial"].is_null(), "{status:#}");
    let text = molt.expect(0, &["show", "u2", "--evidence"])?.stdout;
    ensure!(text.contains(why), "{why:?} is not to be found in\n{text}");
    let bad = molt.json(&["bad", "list"])?;
    ensure!(bad[0]["update"] == "u2" && bad.as_array().map(Vec::len) == Some(1), "{bad:#}");
    let refused = molt.expect(6, &["update", &image])?;
    ensure!(refused.stderr.contains("failed before"), "{refused:?}");
    Ok(())
}

fn dies_later(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health/monitor", json!("3s"));
    let molt = setup.start()?;
    goes_back(bed, &molt, "dies-1s", "Exit status 1")?;
    let evidence = &molt.json(&["show", "u2", "--evidence"])?["evidence"];
    ensure!(evidence["output"].to_string().contains("testd: leaving as told"), "{evidence:#}");
    ensure!(evidence["probes"].to_string().contains(": ok"), "it was healthy for a second: {evidence:#}");
    molt.sound()
}

fn never_ready(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health/startupDeadline", json!("700ms"));
    let molt = setup.with("/health/readiness/timeout", json!("500ms")).start()?;
    goes_back(bed, &molt, "hangs", "not ready within 700ms")?;
    let evidence = &molt.json(&["show", "u2", "--evidence"])?["evidence"];
    ensure!(!evidence["probes"].as_array().context("probes")?.is_empty(), "{evidence:#}");
    molt.sound()
}

fn falls_ill(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health/monitor", json!("3s"));
    let molt = setup.start()?;
    goes_back(bed, &molt, "ill-later", "503")?;
    let failed = molt.json(&["show", "u2"])?;
    ensure!(failed["reason"] == "unhealthy", "{failed:#}");
    molt.sound()
}

fn no_auto_rollback(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/update/autoRollback", json!(false));
    let setup = setup.with("/health/readiness/timeout", json!("500ms"));
    let molt = setup.with("/health/startupDeadline", json!("700ms")).start()?;
    // It ends all the same: nothing more will happen until somebody decides.
    let output = molt.expect(4, &["update", &bed.small("ill")?])?;
    ensure!(output.stdout.contains("undecided: unhealthy; generation 2 runs "), "{output:?}");
    for said in
        ["autoRollback is off, so generation 2 runs ", "keep it: molt confirm", "go back to generation 1: molt reject"]
    {
        ensure!(output.stderr.contains(said), "{said}: {output:?}");
    }
    let under_way = molt.json(&["show", "u2"])?;
    ensure!(under_way["outcome"].is_null() && under_way["reason"] == "unhealthy", "{under_way:#}");
    molt.serves("ill", 2)?;
    ensure!(molt.generation("confirmed")? == Some(1) && molt.generation("trial")? == Some(2));
    molt.expect(0, &["reject"])?;
    molt.serves("v1", 3)?;
    molt.sound()
}

fn not_forgotten_in_the_gap(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("ignores-term")?)?;
    let molt = setup.start()?;
    molt.expect(3, &["update", &bed.small("exits")?])?;
    let bad = molt.json(&["bad", "list"])?;
    let path = format!("/v1/bad/{}", bad[0]["digest"].as_str().context("a digest")?);
    let asked = || molt.state_file("signals").unwrap_or_default().matches("SIGTERM").count();
    let before = asked();
    molt.expect(0, &["update", "--no-wait", &bed.small("v2")?])?;
    wait::until("the old one to be asked", SOON, || asked() > before)?;
    // It stays for two seconds more, and meanwhile nothing is written.
    let journal = || std::fs::read(molt.store.join("journal"));
    let written = journal()?;
    let answer = molt.ask("DELETE", &path, &Value::Null)?;
    ensure!(answer.status == 409 && answer.text().contains("try again"), "{} {}", answer.status, answer.text());
    ensure!(journal()? == written, "the journal was written in the gap");
    molt.settled()?;
    ensure!(molt.ask("DELETE", &path, &Value::Null)?.status == 204);
    ensure!(molt.json(&["bad", "list"])? == json!([]));
    molt.sound()
}

fn remembered(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    let image = bed.small("exits")?;
    molt.expect(3, &["update", &image])?;
    let starts = molt.version()?.1;
    molt.expect(6, &["update", &image])?;
    molt.serves("v1", starts)?;
    ensure!(molt.last()?["reason"] == "known-bad");
    let bad = molt.json(&["bad", "list"])?;
    let digest = bad[0]["digest"].as_str().context("a digest")?.to_owned();
    ensure!(molt.expect(0, &["bad", "list"])?.stdout.contains(&digest));
    // Forced: tried again.
    molt.expect(3, &["update", "--force", &image])?;
    molt.serves("v1", starts + 1)?;
    molt.expect(6, &["update", &image])?;
    // Forgotten: tried again, too.
    molt.expect(0, &["bad", "remove", &digest])?;
    ensure!(molt.json(&["bad", "list"])? == json!([]));
    ensure!(molt.molt(&["bad", "remove", &digest])?.code == 1, "it cannot be forgotten twice");
    molt.expect(3, &["update", &image])?;
    molt.serves("v1", starts + 2)?;
    molt.sound()
}

fn bad_good_bad(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    molt.expect(3, &["update", &bed.small("exits")?])?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 3)?;
    molt.expect(6, &["update", &bed.small("exits")?])?;
    molt.expect(3, &["update", "--force", &bed.small("exits")?])?;
    molt.serves("v2", 4)?;
    molt.expect(3, &["update", &bed.small("ill")?])?;
    let status = molt.status()?;
    ensure!(status["previous"]["generation"] == 1, "what failed is never the one to go back to: {status:#}");
    molt.expect(0, &["rollback"])?;
    ensure!(molt.version()?.0 == "v1");
    molt.sound()
}

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
