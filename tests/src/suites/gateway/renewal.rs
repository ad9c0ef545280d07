//! Certificates and authorities that are renewed while everything runs, and what all of it costs at rest.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{agreed, known, pair};
use crate::harness::{
    bed::Bed,
    cases::{Case, case},
    forward::Forward,
    gateway::{Between, Gateway, calls},
    holdings::{resident, wakes},
    molt::{Molt, SOON, Setup},
    process,
    runtime::Kind,
    wait,
};

/// The tests.
pub(in crate::suites) const CASES: &[Case] = &[
    case("gateway::certificates_and_authorities_are_renewed_while_it_runs", |bed| renewed(bed, "poll")),
    case("gateway::a_stream_ends_for_a_renewed_certificate", |bed| renewed(bed, "stream")),
    case("gateway::costs_little_at_rest_and_is_heard_at_once", figures).alone(),
    case("gateway::costs_so_many_bytes_an_hour_at_rest", bytes).long(),
];

/// Puts credentials in the place of others: half of them first, as who copies them does.
fn replace(from: &Path, to: &Path) -> anyhow::Result<()> {
    for name in ["certificate.pem", "key.pem", "ca.pem"] {
        if from.join(name).exists() {
            let new = to.join(format!("{name}.coming"));
            fs::copy(from.join(name), &new)?;
            fs::rename(new, to.join(name))?;
        }
    }
    Ok(())
}

fn renewed(bed: &Bed, listen: &str) -> anyhow::Result<()> {
    let (gateway, molt) = pair(bed, listen)?;
    let mine = molt.config.join("gateway");
    gateway.expect(0, &["update", "tested", &bed.small("v2")?])?;
    // A new certificate of the same authority.
    fs::remove_file(gateway.of("tested").join("certificate.pem"))?;
    let mut init = Command::new(bed.molt()?);
    process::run(init.args(["gateway", "init"]).arg(&gateway.config).args(["--sandbox", "tested"]), SOON)?;
    replace(&gateway.of("tested"), &mine)?;
    gateway.expect(0, &["update", "tested", &bed.small("v3")?])?;
    // Another authority for both sides: the gateway first, then its sandbox. Nobody is restarted.
    let new = bed.scratch("renewed")?;
    let mut init = Command::new(bed.molt()?);
    process::run(init.args(["gateway", "init"]).arg(&new).args(["--sandbox", "tested"]), SOON)?;
    replace(&new.join("server"), &gateway.config.join("server"))?;
    fs::copy(new.join("ca.pem"), gateway.config.join("ca.pem"))?;
    replace(&new.join("operators/admin"), &gateway.config.join("operators/admin"))?;
    let revision = gateway.want(&["update", "tested", &bed.small("v2")?])?;
    if listen == "poll" {
        // The old authority's words are worth nothing any more.
        wait::until_ok("the sandbox to miss its gateway", SOON, || {
            ensure!(molt.sandbox.logs().contains("failed to reach the gateway"), "{}", molt.sandbox.logs());
            Ok(())
        })?;
        ensure!(molt.version()?.0 == "v3");
    }
    replace(&new.join("sandboxes/tested"), &mine)?;
    wait::until_ok("the update", SOON, || molt.serves("v2", 4))?;
    super::acted_once(&molt, revision, "confirmed")?;
    agreed(&gateway, &molt)?;
    molt.sound()
}

/// From an operator's word to the first signal of the old workload in milliseconds, the median of five: by `molt update` on
/// the sandbox's socket, or by a gateway. By the wall clock, which is the same for both.
fn heard(bed: &Bed, molt: &Molt, gateway: &Gateway, by_gateway: bool) -> anyhow::Result<i64> {
    let mut delays = Vec::new();
    for version in ["v2", "v3", "v2", "v3", "v2"] {
        let image = bed.small(version)?;
        let began = jiff::Timestamp::now();
        if by_gateway {
            gateway.want(&["update", "tested", &image, "--force"])?;
        } else {
            molt.expect(0, &["update", "--no-wait", "--force", &image])?;
        }
        wait::until_ok("the end", SOON, || {
            ensure!(molt.version()?.0 == version && molt.told()?["phase"] == "Idle");
            Ok(())
        })?;
        let events = molt.ask("GET", "/v1/events?follow=0", &Value::Null)?.text();
        let mut quiesced =
            events.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
        let last = quiesced.rfind(|event| event["phase"] == "Quiescing").context("a workload that is stopped")?;
        let at: jiff::Timestamp = last["time"].as_str().context("a time")?.parse()?;
        delays.push(at.as_millisecond() - began.as_millisecond());
        // Another version than the next one's.
        if !by_gateway && version == "v2" && delays.len() == 5 {
            molt.expect(0, &["update", "--force", &bed.small("v1")?])?;
        }
    }
    delays.sort_unstable();
    Ok(delays[2])
}

/// With the settings of the documentation's spec: no wait and no pause of the tests'.
fn bytes(bed: &Bed) -> anyhow::Result<()> {
    // Two of the client's own silences.
    const REST: Duration = Duration::from_mins(2);
    for listen in ["poll", "stream"] {
        let gateway = Gateway::start(bed, &["tested"])?;
        let relay = Forward::to_tcp(gateway.address)?;
        let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health/readiness/period", json!("1h"));
        let mut setup =
            calls(setup.with("/health/monitor", json!("0s")), &gateway.of("tested"), relay.address, listen)?;
        for name in ["wait", "retry"] {
            setup.spec["spec"]["gateway"].as_object_mut().context("a gateway")?.remove(name);
        }
        let molt = setup.start()?;
        known(&gateway)?;
        agreed(&gateway, &molt)?;
        let before = relay.carried();
        std::thread::sleep(REST);
        let bytes = (relay.carried() - before) * 3600 / REST.as_secs();
        println!("{listen}: {bytes} bytes an hour at rest, both ways, TLS included");
        ensure!(bytes < 200_000, "{listen}: {bytes} bytes an hour");
    }
    Ok(())
}

/// What follows from rest is measured; what is promised is that it stays in proportion.
fn figures(bed: &Bed) -> anyhow::Result<()> {
    const REST: Duration = Duration::from_secs(20);
    let mut sandboxes = Vec::new();
    for listen in ["none", "poll", "stream"] {
        let gateway = Gateway::start(bed, &["tested"])?;
        let between = Between::start(&gateway, "tested")?;
        let mut setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
        // Asked for its health once in a while only, or that is all there is to see.
        setup = setup.with("/health/readiness/period", json!("1h")).with("/health/readiness/timeout", json!("1s"));
        setup = setup.with("/health/monitor", json!("0s"));
        if listen != "none" {
            setup = calls(setup, &gateway.of("tested"), between.address, listen)?.with("/gateway/wait", json!("1m"));
        }
        let molt = setup.start()?;
        if listen != "none" {
            known(&gateway)?;
            wait::until("the sandbox to listen", SOON, || !between.faulty.requests().is_empty())?;
        }
        sandboxes.push((listen, gateway, between, molt));
    }
    // All rest at once: what one is woken for is counted for it alone.
    std::thread::sleep(Duration::from_secs(3));
    let mut before = Vec::new();
    for (_, _, between, molt) in &sandboxes {
        between.faulty.heal();
        before.push(wakes(molt)?);
    }
    std::thread::sleep(REST);
    let mut said = String::new();
    for ((listen, _, between, molt), before) in sandboxes.iter().zip(before) {
        let (woken, asked) = (wakes(molt)? - before, between.faulty.requests().len());
        // Not PSS: the three run the same file.
        let memory = resident(molt)?;
        said.push_str(&format!(
            "{listen}: {woken} wake-ups and {asked} requests in {} s, {memory} KiB resident\n",
            REST.as_secs()
        ));
        ensure!(asked <= 1, "{listen}: {asked} requests at rest: {:?}", between.faulty.requests());
        ensure!(woken <= 60, "{listen}: {woken} wake-ups in {} s", REST.as_secs());
    }
    for (listen, gateway, _, molt) in sandboxes.iter().filter(|(listen, ..)| *listen != "none") {
        let delays = [heard(bed, molt, gateway, false)?, heard(bed, molt, gateway, true)?];
        said.push_str(&format!(
            "{listen}: from the word to the first signal {delays:?} ms by the socket, by the gateway\n"
        ));
        ensure!(delays[1] < delays[0] + 2000, "{listen}: {delays:?}");
    }
    eprint!("{said}");
    Ok(())
}
