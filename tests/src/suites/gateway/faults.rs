//! A gateway, a network and a Molt that fail at every step: in the end both sides tell the same, and nothing was done twice.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;

use nix::sys::signal::Signal;

use super::{acted_once, agreed, known, pair};
use crate::harness::{
    bed::Bed,
    cases::{Case, case},
    faulty::{Fault, Faulty},
    gateway::{Between, Gateway, calls},
    http,
    molt::{Molt, SOON, Setup},
    runtime::Kind,
    wait,
};

/// The tests.
pub(in crate::suites) const CASES: &[Case] = &[
    case("gateway::answers_of_every_kind_of_nonsense_change_nothing", nonsense),
    case("gateway::an_answer_that_is_late_comes_twice_or_out_of_order_counts_once", out_of_order),
    case("gateway::a_report_whose_receipt_is_lost_is_told_again_and_kept_once", lost_receipts),
    case("gateway::that_dies_in_each_phase_and_comes_back_has_the_truth", gateway_dies),
    case("gateway::molt_killed_in_each_phase_acts_once_and_tells_the_truth", |bed| molt_dies(bed, Signal::SIGKILL)),
    case("gateway::molt_stopped_in_each_phase_acts_once_and_tells_the_truth", |bed| molt_dies(bed, Signal::SIGTERM)),
    case("gateway::whoever_dies_in_a_phase_by_name_has_the_truth_after_it", |bed| in_phases(bed, Dies::Molt)),
    case("gateway::a_gateway_that_dies_in_a_phase_by_name_has_the_truth_after_it", |bed| in_phases(bed, Dies::Gateway)),
    case("gateway::a_registry_that_is_away_is_asked_again_until_it_is_back", registry_away),
    case("gateway::what_it_wants_newest_is_what_counts", newest_counts),
];

/// A sandbox that calls by way of something that fails.
fn apart(bed: &Bed, listen: &str) -> anyhow::Result<(Gateway, Between, Molt)> {
    let gateway = Gateway::start(bed, &["tested"])?;
    let between = Between::start(&gateway, "tested")?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let molt = calls(setup, &gateway.of("tested"), between.address, listen)?.start()?;
    known(&gateway)?;
    Ok((gateway, between, molt))
}

fn asked(between: &Between, what: &str) -> usize {
    between.faulty.requests().iter().filter(|request| request.contains(what)).count()
}

fn nonsense(bed: &Bed) -> anyhow::Result<()> {
    let (gateway, between, molt) = apart(bed, "poll")?;
    let id = "f".repeat(32);
    let desired = |want: &str| {
        format!(r#"{{"apiVersion": "molt.dev/v1alpha1", "gateway": "{id}", "revision": 9, "want": {want}}}"#)
    };
    let faults = [
        Fault::Status(500, ""),
        Fault::Status(503, "Retry-After: 86400\r\n"),
        Fault::Status(302, "Location: https://127.0.0.1:1/v1/sandboxes/tested/desired\r\n"),
        Fault::Status(401, ""),
        Fault::Close,
        Fault::Truncate(20),
        Fault::Body(String::new()),
        Fault::Body("<html>come back later</html>".to_owned()),
        Fault::Body("null".to_owned()),
        Fault::Body("[".repeat(100_000)),
        Fault::Body("x".repeat(5 << 20)),
        Fault::Body(
            r#"{"apiVersion": "molt.dev/v1alpha1", "gateway": "../../etc", "revision": 9, "want": null}"#.to_owned(),
        ),
        Fault::Body(desired(r#"{"image": "oci:/etc"}"#)),
        Fault::Body(desired(r#"{"image": "localhost/x:1", "rollback": {}}"#)),
        Fault::Body(desired(r#"{"image": "localhost/x:1", "teleport": true}"#)),
        Fault::Body(desired("17")),
    ];
    for fault in faults {
        let seen = asked(&between, "/desired");
        between.faulty.rule("/desired", fault.clone(), 2);
        between.faulty.rule("/status", fault.clone(), 1);
        wait::until("the sandbox to ask on", SOON, || asked(&between, "/desired") > seen + 2)
            .with_context(|| format!("{fault:?}"))?;
        let status = molt.told()?;
        ensure!(status["phase"] == "Idle" && status["confirmed"]["generation"] == 1, "{fault:?}: {status:#}");
    }
    between.faulty.heal();
    let v2 = bed.small("v2")?;
    gateway.expect(0, &["update", "tested", &v2])?;
    acted_once(&molt, 1, "confirmed")?;
    agreed(&gateway, &molt)?;
    molt.sound()
}

fn out_of_order(bed: &Bed) -> anyhow::Result<()> {
    let (gateway, between, molt) = apart(bed, "poll")?;
    let (v2, v3) = (bed.small("v2")?, bed.small("v3")?);
    gateway.expect(0, &["update", "tested", &v2])?;
    let old = gateway.json(&["get", "tested"])?["desired"].to_string();
    gateway.expect(0, &["update", "tested", &v3])?;
    // The first answer once more, for as long as it takes to be believed; then late ones.
    for fault in [Fault::Body(old), Fault::Delay(Duration::from_millis(700))] {
        let seen = asked(&between, "/desired");
        between.faulty.rule("/desired", fault, 3);
        wait::until("the sandbox to ask on", SOON, || asked(&between, "/desired") > seen + 3)?;
    }
    molt.settled()?;
    ensure!(molt.version()?.0 == "v3");
    for revision in [1, 2] {
        acted_once(&molt, revision, "confirmed")?;
    }
    agreed(&gateway, &molt)?;
    molt.sound()
}

fn lost_receipts(bed: &Bed) -> anyhow::Result<()> {
    let (gateway, between, mut molt) = apart(bed, "poll")?;
    between.faulty.rule("/reports", Fault::Deaf, 3);
    between.faulty.rule("/status", Fault::Deaf, 2);
    gateway.expect(3, &["update", "tested", &bed.small("ill")?])?;
    agreed(&gateway, &molt)?;
    // Nothing gets through until Molt is another one; what happened meanwhile is told all the same.
    between.faulty.rule("/reports", Fault::Close, None);
    between.faulty.rule("/status", Fault::Close, None);
    let revision = gateway.want(&["update", "tested", &bed.small("v2")?])?;
    molt.until("the update", |status| {
        status["phase"] == "Idle" && status["confirmed"]["image"].as_str().is_some_and(|image| image.ends_with("v2"))
    })?;
    ensure!(molt.sandbox.kill()? == 137);
    between.faulty.heal();
    molt.sandbox.restart()?;
    molt.settled()?;
    agreed(&gateway, &molt)?;
    acted_once(&molt, revision, "confirmed")?;
    molt.sound()
}

/// Milliseconds after a request at which something dies: from before it is heard of to after its end.
const MOMENTS: [u64; 9] = [0, 20, 60, 100, 160, 240, 340, 480, 700];

fn gateway_dies(bed: &Bed) -> anyhow::Result<()> {
    let (mut gateway, molt) = pair(bed, "poll")?;
    let images = [bed.small("v1")?, bed.small("v2")?, bed.small("ill")?];
    for (round, moment) in MOMENTS.into_iter().enumerate() {
        let revision = gateway.want(&["update", "tested", &images[(round + 1) % 3], "--force"])?;
        std::thread::sleep(Duration::from_millis(moment));
        gateway.kill();
        gateway.restart()?;
        let outcome = wait::until_ok("the end", SOON, || {
            let record = gateway.json(&["get", "tested"])?;
            ensure!(record["sandbox"]["stage"] == "done" && record["sandbox"]["revision"] == revision, "{record:#}");
            Ok(if (round + 1) % 3 == 2 { "rolledBack" } else { "confirmed" })
        })
        .with_context(|| format!("killed {moment} ms after the request"))?;
        acted_once(&molt, revision, outcome).with_context(|| format!("killed {moment} ms after the request"))?;
        agreed(&gateway, &molt)?;
    }
    molt.sound()
}

fn molt_dies(bed: &Bed, by: Signal) -> anyhow::Result<()> {
    let (gateway, mut molt) = pair(bed, "stream")?;
    let images = [bed.small("v1")?, bed.small("v2")?];
    for (round, moment) in MOMENTS.into_iter().enumerate() {
        let other =
            images.iter().find(|image| !image.ends_with(&molt.version().map(|found| found.0).unwrap_or_default()));
        let revision = gateway.want(&["update", "tested", other.context("another image")?, "--force"])?;
        std::thread::sleep(Duration::from_millis(moment));
        molt.sandbox.signal(by)?;
        // Stopped, it passes that on, and ends as its workload does.
        let status = molt.sandbox.wait(SOON)?;
        ensure!(
            if by == Signal::SIGKILL { status == 137 } else { matches!(status, 0 | 143) },
            "it ended with {status}"
        );
        molt.sandbox.restart()?;
        let context = || format!("round {round}: {by} {moment} ms after the request");
        wait::until_ok("the end", SOON, || {
            let record = gateway.json(&["get", "tested"])?;
            ensure!(record["sandbox"]["stage"] == "done" && record["sandbox"]["revision"] == revision, "{record:#}");
            Ok(())
        })
        .with_context(context)?;
        molt.settled()?;
        let updates = super::updates_of(&molt, revision)?;
        let outcome = updates.last().and_then(|one| one["outcome"].as_str()).unwrap_or_default().to_owned();
        ensure!(matches!(outcome.as_str(), "confirmed" | "rolledBack"), "{}: {updates:#?}", context());
        acted_once(&molt, revision, &outcome).with_context(context)?;
        agreed(&gateway, &molt).with_context(context)?;
        molt.sound()?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    Molt,
    Gateway,
}

/// Each phase that can be made to last, held until somebody has died in it.
fn in_phases(bed: &Bed, dies: Dies) -> anyhow::Result<()> {
    let mut gateway = Gateway::start(bed, &["tested"])?;
    for version in ["v1", "v2", "v3", "ill"] {
        bed.small(version)?;
    }
    let registry = Faulty::start(bed.registry()?.address)?;
    let setup = Setup::new(bed, Kind::Light, &registry.reference("small:v1"))?;
    let setup = setup.with("/registries/insecure", json!([registry.address.to_string()]));
    let setup = setup.with("/health/monitor", json!("2s"));
    let mut molt = calls(setup, &gateway.of("tested"), gateway.address, "poll")?.start()?;
    known(&gateway)?;
    let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
    let manifest = http::request(registry.address, "GET", "/v2/small/manifests/v3", &accept, &[], SOON)?.json()?;
    let layer = manifest["layers"][2]["digest"].as_str().context("a layer")?;
    for (phase, version, stalled) in
        [("Resolving", "v2", "/manifests/"), ("Fetching", "v3", layer), ("Held", "v2", ""), ("Proving", "v3", "")]
    {
        let context = || format!("{dies:?} in {phase}");
        if !stalled.is_empty() {
            registry.rule(stalled, Fault::Delay(Duration::from_secs(2)), None);
        }
        if phase == "Held" {
            molt.expect(0, &["hold"])?;
        }
        let revision = gateway.want(&["update", "tested", &registry.reference(&format!("small:{version}"))])?;
        molt.until(phase, |status| status["phase"] == phase).with_context(context)?;
        match dies {
            Dies::Molt => {
                ensure!(molt.sandbox.kill()? == 137);
                registry.heal();
                molt.sandbox.restart()?;
            }
            Dies::Gateway => {
                gateway.kill();
                registry.heal();
                gateway.restart()?;
            }
        }
        if phase == "Held" {
            wait::until_ok("the socket", SOON, || molt.told().map(drop))?;
            molt.expect(0, &["release"])?;
        }
        let outcome = if (dies, phase) == (Dies::Molt, "Proving") { "rolledBack" } else { "confirmed" };
        wait::until_ok("the end", SOON, || {
            let record = gateway.json(&["get", "tested"])?;
            ensure!(record["sandbox"]["stage"] == "done" && record["sandbox"]["revision"] == revision, "{record:#}");
            Ok(())
        })
        .with_context(context)?;
        acted_once(&molt, revision, outcome).with_context(context)?;
        molt.settled()?;
        agreed(&gateway, &molt).with_context(context)?;
    }
    molt.sound()
}

fn registry_away(bed: &Bed) -> anyhow::Result<()> {
    let gateway = Gateway::start(bed, &["tested"])?;
    for version in ["v1", "v2"] {
        bed.small(version)?;
    }
    let registry = Faulty::start(bed.registry()?.address)?;
    let setup = Setup::new(bed, Kind::Light, &registry.reference("small:v1"))?;
    let setup = setup.with("/registries/insecure", json!([registry.address.to_string()]));
    let setup = setup.with("/update/pullDeadline", json!("2s"));
    let molt = calls(setup, &gateway.of("tested"), gateway.address, "poll")?.start()?;
    known(&gateway)?;
    registry.rule("/v2/small/", Fault::Close, None);
    let revision = gateway.want(&["update", "tested", &registry.reference("small:v2")])?;
    wait::until_ok("a failure that is told and not the end", SOON, || {
        let record = gateway.json(&["get", "tested"])?;
        ensure!(record["sandbox"]["stage"] == "retrying", "{record:#}");
        Ok(())
    })?;
    molt.serves("v1", 1)?;
    registry.heal();
    wait::until_ok("the update", SOON, || molt.serves("v2", 2))?;
    acted_once(&molt, revision, "confirmed")?;
    ensure!(super::updates_of(&molt, revision)?.len() > 1, "it failed first");
    agreed(&gateway, &molt)?;
    molt.sound()
}

fn newest_counts(bed: &Bed) -> anyhow::Result<()> {
    let (gateway, molt) = pair(bed, "stream")?;
    let images = [bed.small("v2")?, bed.small("v3")?];
    let mut last = 0;
    for round in 0..20 {
        last = gateway.want(&["update", "tested", &images[round % 2]])?;
    }
    wait::until_ok("the newest", SOON, || {
        ensure!(gateway.json(&["get", "tested"])?["sandbox"]["stage"] == "done");
        ensure!(molt.version()?.0 == "v3");
        Ok(())
    })?;
    molt.settled()?;
    ensure!(last == 20);
    agreed(&gateway, &molt)?;
    molt.sound()
}
