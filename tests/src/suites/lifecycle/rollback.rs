//! Ways back, by hand and by themselves, and what is remembered of an image that failed.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{data_policy, number, v1, with_data, write_data};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The tests of this suite.
pub(in crate::suites) const CASES: &[Case] = &[
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
];

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
