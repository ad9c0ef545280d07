//! Signed orders: as the page says, and what is refused.
//!
//! In: its section of the page; tokens signed by openssl. Out: cases. Must not: sign anything with Molt's own code.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use molt_core::journal;
use serde_json::{Value, json};

use super::{PAGE, own, tls};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::docs::{self, Reader, Section};
use crate::harness::molt::{Molt, PROGRAM, SOON, Setup};
use crate::harness::process::{self, Output};
use crate::harness::runtime::Kind;
use crate::harness::signer::{Signer, digest_of, pinned};
use crate::harness::wait;

/// Its section.
pub(super) const HEADING: &str = "Signed orders";

/// The tests of this way in.
pub(super) const CASES: &[Case] = &[
    case("triggers::signed_orders_as_the_page_says", as_the_page_says),
    case("triggers::an_order_is_done_once_and_its_ratchet_survives_a_kill", once),
    case("triggers::an_order_comes_by_standard_input_and_is_waited_for", by_input),
    case("triggers::orders_that_are_not_for_this_sandbox_key_or_time_are_refused_and_told", refused),
    case("triggers::a_clock_that_is_set_back_brings_no_order_back", set_back),
    case("triggers::the_floor_holds_against_hands_and_not_against_the_way_back", floor),
    case("triggers::a_policy_travels_beside_its_order", with_policy),
    case("triggers::an_order_is_taken_from_hands_that_may_do_nothing", by_any_hands),
];

fn as_the_page_says(bed: &Bed) -> anyhow::Result<()> {
    let section = Section::of(PAGE, HEADING)?;
    let [spec] = &section.blocks("yaml")?[..] else { anyhow::bail!("one yaml block") };
    // What the page shows of the spec is what Molt gets. YAML of this kind is read by its own checker first.
    let mut setup = docs::setup(bed)?;
    let file = bed.scratch("page")?.join("spec.yaml");
    fs::write(&file, format!("apiVersion: molt.dev/v1alpha1\nkind: Sandbox\n{spec}"))?;
    let molt = bed.molt()?;
    process::output(Command::new(&molt).args(["spec", "check"]).arg(&file), SOON)?.ok()?;
    ensure!(spec.contains("file: /etc/molt/release.pem") && spec.contains("id: release"), "{spec}");
    setup.spec["metadata"]["name"] = json!("whatsapp-daemon");
    let keys = json!([{"id": "release", "algorithm": "EdDSA", "file": "/etc/molt/release.pem", "policy": true,
        "operations": ["update", "rollback", "confirm", "reject", "hold", "release", "floor"]}]);
    let molt = setup.with("/orders/keys", keys).start()?;
    let reader = Reader::new(bed, &molt)?;
    let digest = digest_of(&molt, "registry.example.com/acme/daemon:1.5")?;
    let blocks = section.blocks("sh")?;
    reader.types(&blocks[0])?;
    // As whoever deploys it does.
    fs::copy(reader.folder.join("release.pem"), molt.config.join("release.pem"))?;
    let reader = reader.env("DIGEST", digest);
    let said = reader.types(&blocks[1..].concat())?;
    ensure!(said.stdout.contains("confirmed"), "{said:?}");
    molt.serves("v2", 2)?;
    ensure!(molt.last()?["by"].as_str().is_some_and(|by| by.starts_with("order release 1 (")), "{:#}", molt.last()?);
    molt.sound()
}

fn send(molt: &Molt, token: &str) -> anyhow::Result<(u16, Value)> {
    let answer = molt.ask("POST", "/v1/orders", &json!({"jws": token}))?;
    Ok((answer.status, answer.json()?))
}

fn taken(molt: &Molt, token: &str) -> anyhow::Result<Value> {
    let (status, answer) = send(molt, token)?;
    ensure!(status == 202, "{status}: {answer:#}");
    Ok(answer)
}

/// It is refused, with these words.
fn refuses(molt: &Molt, token: &str, words: &str) -> anyhow::Result<()> {
    let (status, answer) = send(molt, token)?;
    let detail = answer["detail"].as_str().unwrap_or_default();
    ensure!(status == 403 && answer["code"] == "order-refused" && detail.contains(words), "not {words:?}: {answer:#}");
    Ok(())
}

fn seq(molt: &Molt, key: usize) -> anyhow::Result<Value> {
    Ok(molt.told()?["orders"]["keys"][key]["seq"].take())
}

fn ended(molt: &Molt, id: &Value) -> anyhow::Result<Value> {
    let path = format!("/v1/updates/{}", id.as_str().context("an id")?);
    wait::until_ok("the order to be done", SOON, || {
        let record = molt.operator("GET", &path, &Value::Null)?;
        ensure!(!record["outcome"].is_null(), "{record:#}");
        Ok(record)
    })
}

fn whole_history(molt: &Molt) -> anyhow::Result<()> {
    let found = molt.json(&["history", "--verify"])?;
    ensure!(found["ok"] == true && found["last"].as_u64() > Some(1), "{found:#}");
    Ok(())
}

fn once(bed: &Bed) -> anyhow::Result<()> {
    let signer = Signer::new(bed, "release")?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let key = signer.key(&json!({"operations": ["update", "hold", "release"]}))?;
    let mut molt = setup.with("/orders/keys", json!([key])).start()?;
    ensure!(seq(&molt, 0)? == 0 && molt.told()?["orders"]["audience"] == "molt:tested", "{:#}", molt.told()?);
    let order =
        signer.sign(7, &json!({"op": "update", "image": pinned(&molt, &bed.small("v2")?)?, "reason": "signed"}))?;
    let answer = taken(&molt, &order)?;
    ensure!(answer["key"] == "release" && answer["seq"] == 7 && answer["op"] == "update", "{answer:#}");
    // The ratchet is there before the update has an end.
    ensure!(seq(&molt, 0)? == 7, "{:#}", molt.told()?);
    refuses(&molt, &order, "replay")?;
    let record = ended(&molt, &answer["id"])?;
    ensure!(record["outcome"] == "confirmed" && record["note"] == "signed", "{record:#}");
    let by = record["by"].as_str().unwrap_or_default();
    ensure!(by.starts_with("order release 7 (test-7) via uid 0"), "{by}");
    molt.serves("v2", 2)?;

    ensure!(molt.sandbox.kill()? == 137);
    molt.sandbox.restart()?;
    molt.settled()?;
    ensure!(seq(&molt, 0)? == 7, "the ratchet went with Molt: {:#}", molt.told()?);
    refuses(&molt, &order, "replay")?;
    let hold = |seq| signer.sign(seq, &json!({"op": "hold", "ttl": 600, "reason": "night"}));
    refuses(&molt, &hold(6)?, "a later one came first")?;
    taken(&molt, &hold(8)?)?;
    let held = molt.told()?["hold"].take();
    ensure!(held["reason"] == "night" && held["by"].as_str().is_some_and(|by| by.contains("release 8")), "{held:#}");
    taken(&molt, &signer.sign(9, &json!({"op": "release"}))?)?;
    ensure!(molt.told()?["hold"].is_null());
    let orders = molt.json(&["history", "--kind", "order"])?;
    let seen: Vec<_> = orders.as_array().context("lines")?.iter().map(|line| line["what"].as_str()).collect();
    ensure!(seen == [Some("update"), Some("hold"), Some("release")], "{orders:#}");
    let refusals = molt.json(&["history", "--kind", "refusal"])?;
    ensure!(refusals.as_array().is_some_and(|all| all.iter().all(|one| one["what"] == "order")), "{refusals:#}");
    whole_history(&molt)?;
    molt.serves("v2", 3)?;
    molt.sound()
}

/// `molt apply-order -` inside of the sandbox, with a token on its standard input.
fn typed(molt: &Molt, token: &str, words: &[&str], file: &Path) -> anyhow::Result<Output> {
    fs::write(file, format!("{token}\n"))?;
    let words = [&[PROGRAM, "apply-order", "-"], words].concat();
    let mut command = molt.sandbox.exec_command(&words)?;
    process::output_for(&mut command, Stdio::from(fs::File::open(file)?), SOON)
}

fn by_input(bed: &Bed) -> anyhow::Result<()> {
    let signer = Signer::new(bed, "release")?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let key = signer.key(&json!({"operations": ["update", "rollback", "floor"]}))?;
    let molt = setup.with("/orders/keys", json!([key])).start()?;
    let file = signer.folder.join("token");
    let v2 = pinned(&molt, &bed.small("v2")?)?;
    let order = signer.sign(1, &json!({"op": "update", "image": v2}))?;
    let done = typed(&molt, &order, &[], &file)?;
    ensure!(done.code == 0 && done.stdout.contains("confirmed"), "{done:?}");
    molt.serves("v2", 2)?;
    let again = typed(&molt, &order, &[], &file)?;
    ensure!(
        again.code == 6 && again.stderr.contains("replay") && again.stderr.contains("docs/TRIGGERS.md"),
        "{again:?}"
    );
    let sick = pinned(&molt, &bed.small("ill")?)?;
    let sick = typed(&molt, &signer.sign(2, &json!({"op": "update", "image": sick}))?, &[], &file)?;
    ensure!(sick.code == 3, "a sick one is rolled back: {sick:?}");
    let back = typed(&molt, &signer.sign(3, &json!({"op": "rollback"}))?, &[], &file)?;
    ensure!(back.code == 0 && back.stdout.contains("confirmed"), "{back:?}");
    ensure!(molt.version()?.0 == "v1", "{:?}", molt.version()?);
    let floor = typed(&molt, &signer.sign(4, &json!({"op": "floor", "floor": 1}))?, &["-o", "json"], &file)?;
    ensure!(floor.code == 0 && floor.json()?["seq"] == 4, "{floor:?}");
    molt.sound()
}

fn refused(bed: &Bed) -> anyhow::Result<()> {
    let (signer, thief) = (Signer::new(bed, "release")?, Signer::new(bed, "thief")?);
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let key = signer.key(&json!({"operations": ["update", "confirm"]}))?;
    let molt = setup.with("/orders/keys", json!([key])).start()?;
    let v2 = bed.small("v2")?;
    let image = pinned(&molt, &v2)?;
    let now = jiff::Timestamp::now().as_second();
    let update = |more: Value| -> anyhow::Result<String> {
        let mut claims = json!({"op": "update", "image": image});
        if let (Some(claims), Some(more)) = (claims.as_object_mut(), more.as_object()) {
            claims.extend(more.clone());
        }
        signer.sign(1, &claims)
    };
    let good = update(json!({}))?;
    refuses(&molt, &thief.sign(1, &json!({"op": "confirm"}))?, "no key")?;
    refuses(&molt, &good[..good.len() - 4], "malformed")?;
    refuses(&molt, &format!("{good}."), "malformed")?;
    let mut forged = good.split('.').map(str::to_owned).collect::<Vec<_>>();
    forged[1] = URL_SAFE_NO_PAD.encode(json!({"ver": 1}).to_string());
    refuses(&molt, &forged.join("."), "signature")?;
    refuses(&molt, &update(json!({"aud": "molt:other"}))?, "molt:other")?;
    refuses(&molt, &update(json!({"iat": now - 900, "exp": now - 400}))?, "expired")?;
    refuses(&molt, &update(json!({"iat": now + 400, "exp": now + 500}))?, "not valid yet")?;
    refuses(&molt, &update(json!({"exp": now + 4000}))?, "maxLifetime")?;
    refuses(&molt, &update(json!({"image": v2}))?, "by digest")?;
    refuses(&molt, &update(json!({"allowWider": true}))?, "bring a policy")?;
    refuses(&molt, &update(json!({"floor": 1}))?, "floor is not among its operations")?;
    refuses(&molt, &update(json!({"policyDigest": format!("sha256:{}", "1".repeat(64))}))?, "no text came with it")?;
    refuses(&molt, &signer.sign(1, &json!({"op": "rollback"}))?, "may not order rollback")?;
    // Of all that nothing has moved; and an order that has come to nothing is spent.
    ensure!(seq(&molt, 0)? == 0, "{:#}", molt.told()?);
    let confirm = signer.sign(1, &json!({"op": "confirm"}))?;
    let (status, answer) = send(&molt, &confirm)?;
    ensure!(status == 409 && answer["code"] == "busy", "{answer:#}");
    refuses(&molt, &confirm, "replay")?;
    let about = signer.sign(2, &json!({"op": "confirm", "update": "u99"}))?;
    ensure!(send(&molt, &about)?.1["detail"].as_str().is_some_and(|why| why.contains("u99 is not under way")));
    let reasons = molt.json(&["history", "--kind", "refusal"])?;
    let reasons: Vec<_> =
        reasons.as_array().context("lines")?.iter().filter_map(|one| one["reason"].as_str()).collect();
    for wanted in ["unknown-key", "malformed", "signature", "order-refused"] {
        ensure!(reasons.contains(&wanted), "{wanted} is not among {reasons:?}");
    }
    molt.serves("v1", 1)?;
    whole_history(&molt)?;
    molt.sound()
}

fn set_back(bed: &Bed) -> anyhow::Result<()> {
    let signer = Signer::new(bed, "release")?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let key = signer.key(&json!({"operations": ["hold", "release"]}))?;
    let mut molt = setup.with("/orders/keys", json!([key])).start()?;
    taken(&molt, &signer.sign(1, &json!({"op": "hold"}))?)?;
    ensure!(molt.sandbox.kill()? == 137);
    // What a clock that is set back by two hours looks like from where the journal stands.
    let path = molt.store.join("journal");
    let mut bytes = fs::read(&path)?;
    let mut slot = journal::read(&bytes)?.slot.context("a slot")?;
    slot.orders.as_mut().context("orders in the slot")?.clock += 7200;
    let at = usize::try_from(slot.offset())?;
    bytes[at..at + journal::SLOT_BYTES].copy_from_slice(&slot.encode()?);
    fs::write(&path, bytes)?;
    molt.sandbox.restart()?;
    molt.settled()?;
    refuses(&molt, &signer.sign(2, &json!({"op": "release"}))?, "the clock was set back")?;
    let now = jiff::Timestamp::now().as_second();
    taken(&molt, &signer.sign(2, &json!({"op": "release", "iat": now + 7200, "exp": now + 7500}))?)?;
    molt.sound()
}

fn floor(bed: &Bed) -> anyhow::Result<()> {
    let (signer, master) = (Signer::new(bed, "release")?, Signer::new(bed, "break-glass")?);
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let keys = json!([
        signer.key(&json!({"operations": ["rollback", "floor"]}))?,
        master.key(&json!({"operations": ["rollback"], "downgrade": true}))?,
    ]);
    let mut molt = setup.with("/orders/keys", keys).start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    refuses(&molt, &signer.sign(1, &json!({"op": "floor", "floor": 3}))?, "2 at most")?;
    taken(&molt, &signer.sign(1, &json!({"op": "floor", "floor": 2}))?)?;
    refuses(&molt, &signer.sign(2, &json!({"op": "floor", "floor": 1}))?, "only rises")?;
    ensure!(molt.told()?["orders"]["floor"] == 2);
    let refused = molt.expect(6, &["rollback"])?;
    ensure!(refused.stderr.contains("below the rollback floor 2"), "{refused:?}");
    let refused = molt.expect(6, &["update", &bed.small("v1")?])?;
    ensure!(refused.stderr.contains("below the rollback floor 2"), "nor by its image: {refused:?}");
    let answer = taken(&molt, &signer.sign(2, &json!({"op": "rollback", "to": 1}))?)?;
    ensure!(ended(&molt, &answer["id"])?["reason"] == "below-floor");
    refuses(&molt, &signer.sign(3, &json!({"op": "rollback", "to": 1, "downgrade": true}))?, "downgrade: true")?;

    ensure!(molt.sandbox.kill()? == 137);
    molt.sandbox.restart()?;
    molt.settled()?;
    ensure!(molt.told()?["orders"]["floor"] == 2, "the floor went with Molt");
    molt.expect(6, &["rollback", "--to", "1"])?;
    // By itself Molt goes back wherever something healthy is.
    molt.expect(3, &["update", &bed.small("ill")?])?;
    ensure!(molt.version()?.0 == "v2");
    let answer = taken(&molt, &master.sign(1, &json!({"op": "rollback", "to": 1, "downgrade": true}))?)?;
    ensure!(ended(&molt, &answer["id"])?["outcome"] == "confirmed");
    ensure!(molt.version()?.0 == "v1");
    molt.settled()?;
    whole_history(&molt)?;
    molt.sound()
}

fn with_policy(bed: &Bed) -> anyhow::Result<()> {
    let signer = Signer::new(bed, "release")?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let key = signer.key(&json!({"operations": ["update"], "policy": true}))?;
    let molt = setup.with("/orders/keys", json!([key])).start()?;
    let image = pinned(&molt, &bed.small("v2")?)?;
    let policy = "unconfined";
    fs::write(signer.folder.join("policy"), policy)?;
    let sum = Command::new("sha256sum").arg(signer.folder.join("policy")).output()?;
    let sum = String::from_utf8(sum.stdout)?.split(' ').next().context("a sum")?.to_owned();
    let order = |seq: u64| {
        let claims =
            json!({"op": "update", "image": image, "policyDigest": format!("sha256:{sum}"), "allowWider": true});
        signer.sign(seq, &claims)
    };
    let with = |token: &str, policy: &str| molt.ask("POST", "/v1/orders", &json!({"jws": token, "policy": policy}));
    let other = with(&order(1)?, "unconfined\n")?;
    ensure!(other.status == 403 && other.text().contains("not the one that was signed"), "{}", other.text());
    let answer = with(&order(1)?, policy)?.json()?;
    let record = ended(&molt, &answer["id"])?;
    ensure!(record["outcome"] == "confirmed", "{record:#}");
    let changed = molt.json(&["history", "--kind", "policy"])?;
    ensure!(changed[0]["update"] == record["id"] && changed[0]["by"] == record["by"], "{changed:#}");
    // From now on an order that names the digest of what is in force needs no text.
    let claims = json!({"op": "update", "image": image, "policyDigest": format!("sha256:{sum}")});
    let answer = taken(&molt, &signer.sign(2, &claims)?)?;
    ensure!(ended(&molt, &answer["id"])?["outcome"] == "noop");
    molt.sound()
}

/// A certificate that may only look, and the workload itself, bring what the operator signed; and nothing else by it.
fn by_any_hands(bed: &Bed) -> anyhow::Result<()> {
    let signer = Signer::new(bed, "release")?;
    let key = signer.key(&json!({"operations": ["hold", "release"]}))?;
    let keys = json!([key]);
    let stage = tls::Stage::with(bed, |setup| setup.with("/orders/keys", keys).with("/api/workload", json!({})))?;
    let molt = &stage.molt;
    let order = |seq, op: &str| anyhow::Ok(json!({"jws": signer.sign(seq, &json!({"op": op}))?}));
    let hold = order(1, "hold")?;
    stage.expect(202, "monitor", "POST", "/v1/orders", &hold)?;
    ensure!(molt.told()?["hold"]["by"].as_str().is_some_and(|by| by.contains("release 1")), "{:#}", molt.told()?);
    stage.expect(403, "monitor", "DELETE", "/v1/hold", &Value::Null)?;
    own::expect(molt, 403, "POST", "/v1/orders", &hold)?;
    own::expect(molt, 202, "POST", "/v1/orders", &order(2, "release")?)?;
    ensure!(molt.told()?["hold"].is_null(), "{:#}", molt.told()?);
    let lines = molt.json(&["history", "--kind", "order"])?;
    let by: Vec<_> = lines.as_array().context("lines")?.iter().filter_map(|line| line["by"].as_str()).collect();
    let [certificate, workload] = by[..] else { anyhow::bail!("{lines:#}") };
    ensure!(certificate.contains("spiffe://example.com/monitor") && workload.contains("workload"), "{by:?}");
    molt.sound()
}
