//! A gateway that says what runs, and is told what came of it.
//!
//! In: a gateway of our own, sandboxes that call it, a way between them that fails. Out: records on both sides that must be
//! the same at the end. Must not: call the sandbox; only it dials.

pub(super) mod admission;
pub(super) mod faults;
pub(super) mod orders;
pub(super) mod renewal;
pub(super) mod story;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::harness::{
    bed::Bed,
    gateway::{Gateway, calls},
    molt::{Molt, SOON, Setup},
    runtime::Kind,
    wait,
};

/// A gateway and a sandbox `tested` on `small:v1` that calls it.
fn pair(bed: &Bed, listen: &str) -> anyhow::Result<(Gateway, Molt)> {
    let gateway = Gateway::start(bed, &["tested"])?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let molt = calls(setup, &gateway.of("tested"), gateway.address, listen)?.start()?;
    known(&gateway)?;
    Ok((gateway, molt))
}

/// Waits until the gateway knows the sandbox.
fn known(gateway: &Gateway) -> anyhow::Result<()> {
    wait::until_ok("the sandbox to call", SOON, || gateway.expect(0, &["get", "tested"]).map(drop))
}

/// Updates of the sandbox that a gateway asked for at `revision`, as the sandbox has them.
fn updates_of(molt: &Molt, revision: u64) -> anyhow::Result<Vec<Value>> {
    let history = molt.operator("GET", "/v1/updates", &Value::Null)?;
    let by = format!(" revision {revision}");
    let all = history.as_array().context("updates")?.iter();
    Ok(all
        .filter(|one| one["by"].as_str().is_some_and(|text| text.contains("gateway ") && text.ends_with(&by)))
        .cloned()
        .collect())
}

/// Waits until both sides tell the same: status, and every update that ended. What the gateway has.
fn agreed(gateway: &Gateway, molt: &Molt) -> anyhow::Result<Value> {
    wait::until_ok("gateway and sandbox to agree", SOON, || {
        let mut ours = molt.operator("GET", "/v1/status", &Value::Null)?;
        // What variables hold is root's alone.
        let env = ours.pointer_mut("/spec/workload/env").and_then(Value::as_array_mut).into_iter().flatten();
        env.filter_map(Value::as_object_mut).for_each(|variable| drop(variable.remove("value")));
        let record = gateway.json(&["get", "tested"])?;
        ensure!(record["status"] == ours, "the gateway has\n{:#}\nthe sandbox\n{ours:#}", record["status"]);
        let truth = molt.operator("GET", "/v1/updates", &Value::Null)?;
        let mut truth: Vec<Value> = truth.as_array().context("updates")?.clone();
        truth.retain(|update| !update["outcome"].is_null());
        let mut told: Vec<Value> = gateway.json(&["history", "tested"])?.as_array().context("reports")?.clone();
        for update in &truth {
            ensure!(told.contains(update), "the gateway was not told of {update:#}");
        }
        told.sort_by_key(|update| update["id"].to_string());
        let ids: Vec<&Value> = told.iter().map(|update| &update["id"]).collect();
        ensure!(ids.windows(2).all(|pair| pair[0] != pair[1]), "told twice: {ids:?}");
        ensure!(told.len() == truth.len(), "{} of {} updates were told", told.len(), truth.len());
        let events = gateway.json(&["events", "tested"])?;
        let seqs: Vec<u64> =
            events.as_array().context("events")?.iter().filter_map(|one| one["seq"].as_u64()).collect();
        ensure!(!seqs.is_empty() && seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
        let newest = truth.iter().filter_map(|update| update["event"].as_u64()).max();
        ensure!(
            newest.is_none_or(|newest| seqs.contains(&newest)),
            "no event tells of the end of the newest: {seqs:?}"
        );
        Ok(record)
    })
}

/// An error unless a revision was acted on just once, as far as the workload can tell.
fn acted_once(molt: &Molt, revision: u64, outcome: &str) -> anyhow::Result<Value> {
    let updates = wait::until_ok("the end", SOON, || {
        let updates = updates_of(molt, revision)?;
        ensure!(!updates.is_empty() && updates.iter().all(|one| !one["outcome"].is_null()), "{updates:#?}");
        Ok(updates)
    })?;
    let touched: Vec<&Value> = updates
        .iter()
        .filter(|one| matches!(one["outcome"].as_str(), Some("confirmed" | "rolledBack" | "degraded" | "noop")))
        .collect();
    ensure!(touched.len() == 1, "revision {revision} was acted on {} times: {updates:#?}", touched.len());
    ensure!(touched[0]["outcome"] == outcome, "{:#}", touched[0]);
    Ok(touched[0].clone())
}
