//! What a gateway is for, told from its start: `molt --gateway URL update NAME IMAGE --policy FILE`.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{acted_once, agreed, pair, updates_of};
use crate::harness::{
    bed::Bed,
    cases::{Case, case},
    gateway::{Gateway, calls},
    molt::{SOON, Setup},
    runtime::Kind,
    wait,
};

/// The tests.
pub(in crate::suites) const CASES: &[Case] = &[
    case("gateway::a_stateful_daemon_is_updated_and_a_sick_version_comes_back_by_itself", |bed| story(bed, "poll")),
    case("gateway::the_same_by_a_stream", |bed| story(bed, "stream")),
    case("gateway::what_is_refused_is_told_with_the_same_exit_status", refusals),
    case("gateway::a_wider_policy_needs_the_word_of_the_spec", wider),
    case("gateway::an_operator_may_leave_and_come_back", left_alone),
    case("gateway::a_new_sandbox_gets_what_is_wanted_and_an_old_one_is_left_alone", new_store),
];

const POLICY: &str = "version: 1\nfilesystem_policy:\n  read_only: [/bin, /usr, /app, /etc, /lib]\n  \
                      read_write: [/sandbox/state, /tmp, /srv/data]\n";
const NARROWER: &str = "version: 1\nfilesystem_policy:\n  read_only: [/bin, /usr, /app, /etc, /lib]\n  \
                        read_write: [/sandbox/state, /tmp]\n";
const WIDER: &str = "version: 1\nfilesystem_policy:\n  read_only: [/bin, /usr, /app, /etc, /lib]\n  \
                     read_write: [/sandbox/state, /tmp, /srv/data, /var]\n";

fn story(bed: &Bed, listen: &str) -> anyhow::Result<()> {
    let gateway = Gateway::start(bed, &["tested"])?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/policyFile", json!("policy.yaml"));
    fs::write(setup.config.join("policy.yaml"), POLICY)?;
    let molt = calls(setup, &gateway.of("tested"), gateway.address, listen)?.start()?;
    super::known(&gateway)?;
    for click in 1..=3 {
        ensure!(molt.click()? == click);
    }
    let (pid1, before) = (molt.sandbox.pid1()?, molt.status()?["confirmed"]["policyDigest"].clone());

    // The request this all began with: a new image, a new policy; state, address and container stay.
    let policy = gateway.config.join("p2.yaml");
    fs::write(&policy, NARROWER)?;
    let policy = policy.display().to_string();
    let v2 = bed.small("v2")?;
    let said = gateway.expect(0, &["update", "tested", "--image", &v2, "--policy", &policy, "--reason", "a story"])?;
    ensure!(
        said.stdout.starts_with("confirmed: generation 2 runs") && said.stdout.contains("downtime"),
        "{}",
        said.stdout
    );
    molt.serves("v2", 2)?;
    ensure!(molt.clicks()? == 3 && molt.sandbox.pid1()? == pid1, "state and container stay");
    let status = molt.status()?;
    ensure!(status["confirmed"]["policyDigest"] != before, "the policy is another one");
    let update = acted_once(&molt, 1, "confirmed")?;
    ensure!(update["note"] == "a story", "{update:#}");

    // A version that falls ill goes by itself, and the gateway is told why.
    let ill = bed.small("ill")?;
    let said = gateway.expect(3, &["update", "tested", &ill, "-o", "json"])?;
    let told = said.json()?;
    ensure!(told["outcome"] == "rolledBack" && told["reason"] == "unhealthy", "{told:#}");
    ensure!(!told["evidence"]["probes"].as_array().context("probes")?.is_empty(), "{told:#}");
    ensure!(!told["evidence"]["output"].as_array().context("output")?.is_empty(), "{told:#}");
    ensure!(said.stderr.contains("rolled back: unhealthy"), "{}", said.stderr);
    ensure!(molt.version()?.0 == "v2" && molt.clicks()? == 3);
    ensure!(acted_once(&molt, 2, "rolledBack")? == told, "what is told is what is so");

    // Back by hand.
    let said = gateway.expect(0, &["rollback", "tested", "--reason", "by hand"])?;
    ensure!(said.stdout.starts_with("confirmed: generation 1 runs"), "{}", said.stdout);
    ensure!(molt.version()?.0 == "v1" && molt.clicks()? == 3);
    acted_once(&molt, 3, "confirmed")?;

    let record = agreed(&gateway, &molt)?;
    ensure!(record["sandbox"]["stage"] == "done" && record["sandbox"]["revision"] == 3, "{record:#}");
    let text = gateway.expect(0, &["get"])?.stdout;
    ensure!(text.contains("tested") && text.contains("done") && text.contains("small:v1"), "{text}");
    let text = gateway.expect(0, &["history", "tested"])?.stdout;
    ensure!(text.contains("rolled back: unhealthy") && text.contains("gateway 127.0.0.1:"), "{text}");
    molt.sound()
}

fn refusals(bed: &Bed) -> anyhow::Result<()> {
    let (gateway, molt) = pair(bed, "poll")?;
    // Refused while planning, failed before the gate, nothing to do, nothing to go back to.
    ensure!(gateway.expect(6, &["rollback", "tested"])?.stderr.contains("no previous generation"));
    gateway.expect(1, &["update", "tested", &bed.small("no-entrypoint-file")?])?;
    gateway.expect(0, &["update", "tested", &bed.small("v1")?])?;
    gateway.expect(3, &["update", "tested", &bed.small("exits")?])?;
    let said = gateway.expect(6, &["update", "tested", &bed.small("exits")?])?;
    ensure!(said.stdout.contains("refused: known bad"), "{}", said.stdout);
    gateway.expect(3, &["update", "tested", &bed.small("exits")?, "--force"])?;
    // Known here already to make no sense: the gateway says so.
    ensure!(gateway.expect(2, &["update", "tested", "oci:/tmp/x"])?.stderr.contains("comes from a registry"));
    ensure!(gateway.expect(2, &["update", "tested", "busybox"])?.stderr.contains("registry"));
    ensure!(gateway.expect(2, &["update", &bed.small("v2")?])?.stderr.contains("which sandbox"));
    ensure!(gateway.expect(1, &["update", "unheard-of", &bed.small("v2")?])?.stderr.contains("has ever called"));
    ensure!(gateway.expect(2, &["logs"])?.stderr.contains("without --gateway"));
    agreed(&gateway, &molt)?;
    ensure!(molt.version()?.0 == "v1");
    molt.sound()
}

fn wider(bed: &Bed) -> anyhow::Result<()> {
    let v2 = bed.small("v2")?;
    for allowed in [false, true] {
        let gateway = Gateway::start(bed, &["tested"])?;
        let wide = gateway.config.join("wide.yaml");
        fs::write(&wide, WIDER)?;
        let wide = wide.display().to_string();
        let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/policyFile", json!("policy.yaml"));
        fs::write(setup.config.join("policy.yaml"), NARROWER)?;
        let setup = calls(setup, &gateway.of("tested"), gateway.address, "poll")?;
        let molt = setup.with("/gateway/allowWider", json!(allowed)).start()?;
        super::known(&gateway)?;
        let said = gateway.molt(&["update", "tested", &v2, "--policy", &wide])?;
        ensure!(said.code == 6, "{said:?}");
        let said = gateway.molt(&["update", "tested", &v2, "--policy", &wide, "--allow-wider"])?;
        if allowed {
            ensure!(said.code == 0, "{said:?}");
            molt.serves("v2", 2)?;
        } else {
            ensure!(said.code == 6 && said.stderr.contains("spec.gateway.allowWider"), "{said:?}");
            molt.serves("v1", 1)?;
        }
    }
    Ok(())
}

fn left_alone(bed: &Bed) -> anyhow::Result<()> {
    let (mut gateway, molt) = pair(bed, "poll")?;
    gateway.kill();
    // The sandbox runs on, and does what it is asked to by others.
    molt.expect(0, &["update", &bed.small("v2")?])?;
    gateway.restart()?;
    agreed(&gateway, &molt)?;
    let revision = gateway.want(&["update", "tested", &bed.small("v3")?])?;
    wait::until("the update to begin", SOON, || updates_of(&molt, revision).is_ok_and(|all| !all.is_empty()))?;
    gateway.kill();
    molt.until("the update", |status| status["confirmed"]["generation"] == 3)?;
    gateway.restart()?;
    agreed(&gateway, &molt)?;
    acted_once(&molt, revision, "confirmed")?;
    // What an operator of the sandbox does after it is not undone.
    molt.expect(0, &["rollback"])?;
    agreed(&gateway, &molt)?;
    ensure!(molt.version()?.0 == "v2");
    acted_once(&molt, revision, "confirmed")?;
    molt.sound()
}

fn new_store(bed: &Bed) -> anyhow::Result<()> {
    let (gateway, mut molt) = pair(bed, "stream")?;
    gateway.expect(0, &["update", "tested", &bed.small("v2")?])?;
    molt.expect(0, &["rollback"])?;
    for _ in 0..2 {
        molt.sandbox.kill()?;
        molt.sandbox.restart()?;
        molt.settled()?;
        ensure!(molt.version()?.0 == "v1", "a revision was acted on again");
    }
    agreed(&gateway, &molt)?;
    ensure!(updates_of(&molt, 1)?.len() == 1);
    // Another one of that name, with nothing in its store.
    molt.sandbox.kill()?;
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let molt = calls(setup, &gateway.of("tested"), gateway.address, "poll")?.start()?;
    wait::until_ok("what is wanted", SOON, || {
        ensure!(molt.version()?.0 == "v2");
        Ok(())
    })?;
    acted_once(&molt, 1, "confirmed").map(drop)
}
