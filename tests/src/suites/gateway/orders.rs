//! Signed orders by way of a gateway: as on every other channel, and once for the revision they come as.
//!
//! In: a gateway, a key, kills. Out: what the sandbox did, and what the gateway was told. Must not: sign with Molt's own code.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{acted_once, agreed, known, updates_of};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::gateway::{Gateway, calls};
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::signer::{Signer, pinned};
use crate::harness::wait;

/// The tests of this suite.
pub(in super::super) const CASES: &[Case] = &[
    case("gateway::a_signed_order_is_taken_and_told_as_any_other_wish", taken),
    case("gateway::a_signed_order_is_done_once_whenever_molt_dies", molt_dies),
];

/// A gateway, a sandbox that calls it, and whose orders that takes.
struct Three {
    gateway: Gateway,
    molt: Molt,
    signer: Signer,
    folder: PathBuf,
}

impl Three {
    fn start(bed: &Bed) -> anyhow::Result<Self> {
        let gateway = Gateway::start(bed, &["tested"])?;
        let signer = Signer::new(bed, "release")?;
        let key = signer.key(&json!({"operations": ["update", "rollback", "hold", "release"], "policy": true}))?;
        let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/orders/keys", json!([key]));
        let molt = calls(setup, &gateway.of("tested"), gateway.address, "stream")?.start()?;
        known(&gateway)?;
        Ok(Self { gateway, molt, signer, folder: bed.scratch("orders")? })
    }

    /// The file of an order.
    fn order(&self, seq: u64, claims: &serde_json::Value) -> anyhow::Result<String> {
        let file = self.folder.join(format!("{seq}.jws"));
        fs::write(&file, self.signer.sign(seq, claims)?)?;
        Ok(file.display().to_string())
    }
}

fn taken(bed: &Bed) -> anyhow::Result<()> {
    let mut three = Three::start(bed)?;
    let v2 = pinned(&three.molt, &bed.small("v2")?)?;
    let order = three.order(4, &json!({"op": "update", "image": v2}))?;
    let to = ["--to", "tested"];
    let said = three.gateway.expect(0, &[&["apply-order", &order][..], &to].concat())?;
    ensure!(said.stdout.contains("confirmed"), "{said:?}");
    three.molt.serves("v2", 2)?;
    let update = acted_once(&three.molt, 1, "confirmed")?;
    ensure!(
        update["by"].as_str().is_some_and(|by| by.starts_with("order release 4 (test-4) via gateway ")),
        "{update:#}"
    );
    // Another revision is another asking: the ratchet holds.
    let again = three.gateway.molt(&[&["apply-order", &order][..], &to].concat())?;
    ensure!(again.code != 0 && again.stderr.contains("release") && again.stderr.contains('4'), "{again:?}");
    ensure!(updates_of(&three.molt, 2)?.is_empty(), "a replay began an update");
    // What begins no update is told, too, and is not done again by the next start.
    let hold = three.order(5, &json!({"op": "hold", "ttl": 3600}))?;
    let said = three.gateway.expect(0, &[&["apply-order", &hold][..], &to].concat())?;
    ensure!(said.stderr.contains("order release 5 (test-5): hold is taken by tested"), "{said:?}");
    ensure!(three.molt.told()?["hold"]["owner"] == "order release", "{:#}", three.molt.told()?);
    let release = three.order(6, &json!({"op": "release"}))?;
    three.gateway.expect(0, &[&["apply-order", &release][..], &to].concat())?;
    ensure!(three.molt.told()?["hold"].is_null(), "{:#}", three.molt.told()?);
    ensure!(three.molt.sandbox.kill()? == 137);
    three.molt.sandbox.restart()?;
    three.molt.settled()?;
    agreed(&three.gateway, &three.molt)?;
    ensure!(three.molt.told()?["hold"].is_null(), "the order was done again: {:#}", three.molt.told()?);
    ensure!(three.gateway.json(&["get", "tested"])?["sandbox"]["stage"] == "done");
    // One that is only staged is told, and its end, too, whoever brings it about.
    let v1 = pinned(&three.molt, &bed.small("v1")?)?;
    let staged = three.order(7, &json!({"op": "update", "image": v1, "force": true, "stageOnly": true}))?;
    let said = three.gateway.expect(0, &[&["apply-order", &staged][..], &to].concat())?;
    ensure!(said.stdout.contains("staged"), "{said:?}");
    three.molt.expect(0, &["apply"])?;
    agreed(&three.gateway, &three.molt)?;
    let told = three.gateway.json(&["history", "tested"])?;
    ensure!(told[0]["outcome"] == "confirmed", "{told:#}");
    // No key, no order.
    let forged = Signer::new(bed, "stranger")?.sign(1, &json!({"op": "hold"}))?;
    let file = three.folder.join("forged.jws");
    fs::write(&file, forged)?;
    let said = three.gateway.molt(&[&["apply-order", file.to_str().context("a path")?][..], &to].concat())?;
    ensure!(said.code != 0 && said.stderr.contains("stranger"), "{said:?}");
    three.molt.sound()
}

/// Milliseconds after a request at which Molt dies.
const MOMENTS: [u64; 8] = [0, 30, 60, 100, 160, 240, 400, 700];

fn molt_dies(bed: &Bed) -> anyhow::Result<()> {
    let mut three = Three::start(bed)?;
    let images = [pinned(&three.molt, &bed.small("v1")?)?, pinned(&three.molt, &bed.small("v2")?)?];
    for (round, moment) in MOMENTS.into_iter().enumerate() {
        let image = &images[usize::from(three.molt.version()?.0 == "v1")];
        let order = three.order(round as u64 + 1, &json!({"op": "update", "image": image, "force": true}))?;
        let revision = three.gateway.want(&["apply-order", &order, "--to", "tested"])?;
        std::thread::sleep(Duration::from_millis(moment));
        ensure!(three.molt.sandbox.kill()? == 137);
        three.molt.sandbox.restart()?;
        let context = || format!("round {round}: killed {moment} ms after the request");
        wait::until_ok("the end", SOON, || {
            let record = three.gateway.json(&["get", "tested"])?;
            ensure!(record["sandbox"]["stage"] == "done" && record["sandbox"]["revision"] == revision, "{record:#}");
            Ok(())
        })
        .with_context(context)?;
        three.molt.settled()?;
        let updates = updates_of(&three.molt, revision)?;
        let outcome = updates.last().and_then(|one| one["outcome"].as_str()).unwrap_or_default().to_owned();
        ensure!(matches!(outcome.as_str(), "confirmed" | "rolledBack"), "{}: {updates:#?}", context());
        acted_once(&three.molt, revision, &outcome).with_context(context)?;
        agreed(&three.gateway, &three.molt).with_context(context)?;
        three.molt.sound()?;
    }
    Ok(())
}
