//! How long it takes from a trigger until the old workload is asked to stop, by each way in, in one run.
//!
//! In: two images whose layers are there. Out: a case, and a line for each way. Must not: pull anything: the registry is asked
//! what a tag means, and no more.

use std::fs;

use anyhow::{Context, ensure};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{own, tls, watched};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{Molt, SOON};
use crate::harness::wait;

/// The case.
pub(super) const CASES: &[Case] = &[case("triggers::every_way_in_reaches_the_old_workload_in_a_moment", every_way)];

const ROUNDS: usize = 6;
/// Generous: the machine may be busy.
const MOST_MS: i64 = 10_000;

/// When the old workload was first asked to stop, after `since`.
fn quiesced(molt: &Molt, since: Timestamp) -> anyhow::Result<Timestamp> {
    wait::until_ok("the end of the update", SOON, || {
        let status = molt.told()?;
        ensure!(status["phase"] == "Idle" && status["workload"]["ready"] == true, "{status:#}");
        let events = molt.ask("GET", "/v1/events?follow=0", &Value::Null)?;
        let text = events.text();
        let found = text.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
        let mut times = found
            .filter(|event| event["phase"] == "Quiescing")
            .filter_map(|event| event["time"].as_str()?.parse().ok());
        // Times of events are whole milliseconds.
        times.find(|time: &Timestamp| time.as_millisecond() >= since.as_millisecond()).context("no update yet")
    })
}

fn measure(
    name: &str,
    molt: &Molt,
    images: &[String; 2],
    mut ask: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        let running = molt.told()?["confirmed"]["image"].clone();
        let image = images.iter().find(|image| running != json!(image)).context("another image")?;
        let since = Timestamp::now();
        ask(image).with_context(|| format!("{name}, round {round}"))?;
        let at = quiesced(molt, since).with_context(|| format!("{name}, round {round}"))?;
        took.push(at.as_millisecond() - since.as_millisecond());
    }
    took.sort_unstable();
    println!("{name:>18}: {} ms (from {} to {})", took[ROUNDS / 2], took[0], took[ROUNDS - 1]);
    ensure!(took[ROUNDS - 1] < MOST_MS, "{name}: {took:?}");
    Ok(())
}

fn every_way(bed: &Bed) -> anyhow::Result<()> {
    let images = [bed.small("v1")?, bed.small("v2")?];
    let pattern = images[0].replace(":v1", ":*");
    let rule = json!({"update": {"images": [pattern], "digest": false, "every": "0s"}});
    let stage = tls::Stage::with(bed, |setup| setup.with("/api/workload", rule))?;
    let molt = &stage.molt;
    molt.expect(0, &["update", &images[1]])?;
    measure("operator socket", molt, &images, |image| {
        molt.operator("POST", "/v1/updates", &json!({"image": image})).map(drop)
    })?;
    measure("own socket", molt, &images, |image| {
        own::expect(molt, 202, "POST", "/v1/updates", &json!({"image": image})).map(drop)
    })?;
    measure("TLS", molt, &images, |image| {
        stage.expect(202, "deploy", "POST", "/v1/updates", &json!({"image": image})).map(drop)
    })?;
    // The spec says v1 since the start: only another text is a request.
    molt.expect(0, &["update", &images[0]])?;
    measure("SIGHUP", molt, &images, |image| {
        watched::rewrite(molt, |spec| spec["image"] = json!(image))?;
        molt.sandbox.signal(Signal::SIGHUP)
    })?;
    molt.sound()?;
    let molt = watched::annotated(bed, &images[0])?.start()?;
    let mut version = 1;
    measure("annotation", &molt, &images, |image| {
        version += 1;
        watched::swap(&molt.config.join("podinfo"), version, "annotations", &watched::notes(image, None))
    })?;
    ensure!(fs::read_dir(molt.config.join("podinfo"))?.count() >= 3);
    molt.sound()
}
