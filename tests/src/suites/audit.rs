//! The history as an audit: who asked for what, what was refused, that nobody changed it since, and that no secret is in it or
//! in anything else that Molt writes.
//!
//! In: sandboxes, and their stores while they are stopped. Out: cases. Must not: take Molt's word for a chain that the test
//! can follow itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::registry::PASSWORD;
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("audit::who_asked_for_what_and_what_was_refused_is_written", written),
    case("audit::a_torn_line_is_cut_off_and_told", torn),
    case("audit::a_line_that_was_changed_is_found", changed),
    case("audit::lines_of_before_there_was_a_chain_are_read_and_held", before),
    case("audit::refusals_without_end_are_counted", flood),
    case("audit::no_secret_is_in_anything_that_is_written", secrets),
];

fn file(molt: &Molt) -> PathBuf {
    molt.store.join("history.jsonl")
}

/// Follows the chain, as anybody could: its lines.
fn followed(molt: &Molt) -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(file(molt))?;
    ensure!(text.ends_with('\n'), "the last line has no end");
    let (mut prev, mut seq) = ("0".repeat(64), 0);
    let mut lines = Vec::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        seq += 1;
        ensure!(value["seq"] == seq && value["prev"] == prev.as_str(), "line {seq}: {line}");
        prev = Sha256::digest(line.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(value);
    }
    let found = molt.json(&["history", "--verify"])?;
    ensure!(found["ok"] == true && found["head"] == prev.as_str() && found["last"] == seq, "{found:#}");
    Ok(lines)
}

/// Until a line is there that is like `wanted`.
fn line(molt: &Molt, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    wait::until_ok(what, SOON, || followed(molt)?.into_iter().rev().find(&wanted).context("no such line"))
}

fn written(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let molt = setup.with("/health/monitor", json!("60s")).start()?;
    let v2 = bed.small("v2")?;
    molt.expect(0, &["hold", "--ttl", "5m", "--reason", "night \u{1b}[31m"])?;
    molt.expect(0, &["release"])?;
    molt.expect(0, &["update", "--no-wait", &v2])?;
    molt.until("the trial", |status| status["phase"] == "Proving")?;
    molt.expect(0, &["confirm"])?;
    ensure!(molt.molt(&["confirm"])?.code == 1);
    molt.expect(0, &["gc"])?;
    ensure!(molt.molt(&["bad", "remove", &format!("sha256:{}", "0".repeat(64))])?.code != 0);
    ensure!(molt.molt(&["update", "no reference at all"])?.code == 2);
    let by = |line: &Value| {
        line["by"].as_str().is_some_and(|by| by.starts_with("uid 0, pid ") && by.ends_with("operator socket"))
    };
    for (kind, what) in
        [("request", "hold"), ("request", "release"), ("request", "confirm"), ("request", "gc"), ("refusal", "confirm")]
    {
        let line = line(&molt, what, |line| line["kind"] == kind && line["what"] == what)?;
        ensure!(by(&line), "{line}");
    }
    let hold = line(&molt, "hold", |line| line["what"] == "hold")?;
    ensure!(hold["detail"].as_str().is_some_and(|detail| detail.ends_with(" for 300 s: night \u{1b}[31m")), "{hold}");
    let confirm = line(&molt, "confirm", |line| line["what"] == "confirm" && line["kind"] == "request")?;
    ensure!(confirm["update"] == "u2" && confirm["outcome"] == "done", "{confirm}");
    let refused = line(&molt, "a refusal", |line| line["what"] == "POST /v1/updates")?;
    ensure!(refused["reason"] == "reference-invalid" && refused["outcome"] == "refused" && by(&refused), "{refused}");
    line(&molt, "a refusal", |line| line["what"] == "DELETE /v1/bad/{digest}" && line["reason"] == "not-found")?;
    let update = line(&molt, "the update", |line| line["kind"] == "update")?;
    ensure!(update["outcome"] == "confirmed" && by(&update), "{update}");

    let table = molt.expect(0, &["history", "--all"])?.stdout;
    for wanted in ["SEQ", "hold", "release", "refused: busy", "refused: reference-invalid", "confirmed"] {
        ensure!(table.contains(wanted), "{wanted} is not in\n{table}");
    }
    ensure!(!table.contains('\u{1b}'), "a reason drives the terminal:\n{table}");
    let only = molt.json(&["history", "--kind", "refusal"])?;
    ensure!(
        only.as_array().is_some_and(|all| all.len() == 3 && all.iter().all(|one| one["kind"] == "refusal")),
        "{only:#}"
    );
    let shown = molt.json(&["history"])?;
    ensure!(shown.as_array().is_some_and(|all| all.len() == 2), "without --all it is as ever: {shown:#}");
    molt.sound()
}

fn torn(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.expect(0, &["hold"])?;
    line(&molt, "the hold", |line| line["what"] == "hold")?;
    let whole = followed(&molt)?.len();
    ensure!(molt.sandbox.kill()? == 137);
    let mut text = fs::read_to_string(file(&molt))?;
    text.push_str("{\"seq\":99,\"prev\":\"00");
    fs::write(file(&molt), &text)?;
    molt.sandbox.restart()?;
    molt.settled()?;
    let told = line(&molt, "the mark", |line| line["kind"] == "repair")?;
    ensure!(told["seq"] == whole + 1 && told["what"] == "torn line", "{told}");
    ensure!(told["detail"].as_str().is_some_and(|detail| detail.starts_with("20 bytes")), "{told}");
    ensure!(molt.sandbox.logs().contains("the history: 20 bytes without an end"), "{}", molt.sandbox.logs());
    molt.sound()
}

fn changed(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.expect(0, &["hold", "--reason", "mine"])?;
    molt.expect(0, &["release"])?;
    line(&molt, "the release", |line| line["what"] == "release")?;
    let good = fs::read_to_string(file(&molt))?;
    fs::write(file(&molt), good.replace("mine", "hers"))?;
    let found = molt.expect(1, &["history", "--verify"])?;
    ensure!(found.stdout.contains("broken at history.jsonl:3") && found.stderr.contains("not as it was"), "{found:?}");
    let mut lines: Vec<&str> = good.lines().collect();
    lines.remove(1);
    fs::write(file(&molt), lines.join("\n") + "\n")?;
    let found = molt.expect(1, &["history", "--verify"])?;
    ensure!(found.stdout.contains("broken at history.jsonl:2") && found.stdout.contains("missing"), "{found:?}");
    fs::write(file(&molt), good)?;
    molt.expect(0, &["history", "--verify"])?;
    molt.sound()
}

fn before(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    ensure!(molt.sandbox.stop(SOON)? >= 0);
    // As an older Molt left it.
    let strip = |line: &str| -> anyhow::Result<String> {
        let mut value: Value = serde_json::from_str(line)?;
        let fields = value.as_object_mut().context("an object")?;
        fields.remove("seq");
        fields.remove("prev");
        Ok(value.to_string() + "\n")
    };
    let old = fs::read_to_string(file(&molt))?.lines().map(strip).collect::<Result<String, _>>()?;
    fs::write(file(&molt), &old)?;
    molt.sandbox.restart()?;
    molt.settled()?;
    molt.expect(0, &["hold"])?;
    wait::until_ok("the hold", SOON, || {
        let found = molt.json(&["history", "--verify"])?;
        let lines = old.lines().count();
        ensure!(found["ok"] == true && found["unchained"] == lines && found["first"] == 1, "{found:#}");
        ensure!(found["last"].as_u64() >= Some(2), "{found:#}");
        Ok(())
    })?;
    ensure!(molt.json(&["history"])?[0]["kind"] == "boot", "the old ones are read");
    let text = fs::read_to_string(file(&molt))?.replacen("\"boot\"", "\"Boot\"", 1);
    fs::write(file(&molt), text)?;
    molt.expect(1, &["history", "--verify"])?;
    Ok(())
}

fn flood(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    for _ in 0..400 {
        let answer = molt.ask("POST", "/v1/updates", &json!({"image": "x"}))?;
        ensure!(answer.status == 400, "{}", answer.status);
    }
    for _ in 0..100 {
        ensure!(molt.ask("POST", "/v1/confirm", &Value::Null)?.status == 409);
    }
    ensure!(molt.sandbox.stop(SOON)? >= 0);
    let text = fs::read_to_string(file(&molt))?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let refusals: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "refusal").collect();
    ensure!(refusals.len() <= 24, "{} lines", refusals.len());
    let all = |what: &str| -> u64 {
        refusals.iter().filter(|line| line["what"] == what).map(|line| line["count"].as_u64().unwrap_or(1)).sum()
    };
    ensure!(all("POST /v1/updates") == 400 && all("confirm") == 100, "{refusals:#?}");
    Ok(())
}

/// Every file below a folder that Molt itself wrote, with its content. What an image holds is the image's.
fn contents(folder: &Path, into: &mut Vec<(PathBuf, Vec<u8>)>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let kind = path.symlink_metadata()?.file_type();
        if kind.is_dir() && !path.ends_with("layers") && !path.ends_with("upper") {
            contents(&path, into)?;
        } else if kind.is_file() {
            into.push((path.clone(), fs::read(&path)?));
        }
    }
    Ok(())
}

fn secrets(bed: &Bed) -> anyhow::Result<()> {
    const USERINFO: &str = "passw0rd-of-a-url";
    const TOKEN: &str = "eyJhbGciOiJFZERTQSIsImtpZCI6InJlbGVhc2UifQ.c2VjcmV0LXBheWxvYWQ.c2VjcmV0LXNpZ25hdHVyZQ";
    let registry = bed.guarded()?;
    let (v1, v2) = (registry.reference("small:v1"), registry.reference("small:v2"));
    bed.small("v1")?;
    bed.small("v2")?;
    let setup = Setup::new(bed, Kind::Light, &v1)?;
    let pull = bed.scratch("pull")?;
    registry.docker_config(&pull.join("config.json"), PASSWORD)?;
    let auth: Value = serde_json::from_slice(&fs::read(pull.join("config.json"))?)?;
    let auth = auth["auths"].as_object().and_then(|all| all.values().next()).context("an entry")?["auth"].clone();
    let auth = auth.as_str().context("auth")?.to_owned();
    let authority = &registry.certificates.as_ref().context("it speaks TLS")?.authority;
    fs::copy(authority, setup.config.join("ca.crt"))?;
    let mut setup = setup.env("MOLT_LOG", "trace");
    setup.options = setup.options.read_only(&pull, "/run/secrets/pull");
    let key = json!({"id": "release", "algorithm": "EdDSA", "file": "/etc/molt/none.pem", "operations": ["update"]});
    let setup = setup.with("/registries/credentials", json!("/run/secrets/pull/config.json"));
    let setup = setup.with("/registries/certificates", json!("/etc/molt/ca.crt")).with("/orders/keys", json!([key]));
    let mut molt = setup.workload_env("APP_TOKEN", "app-t0ken").start()?;
    molt.expect(0, &["update", &v2])?;
    // Somebody who mistakes it for a URL, and a password for a part of one.
    for image in [format!("https://user:{USERINFO}@example.com/a/b"), format!("user:{USERINFO}@example.com/a/b:1")] {
        molt.ask("POST", "/v1/updates", &json!({"image": image}))?;
        molt.ask("POST", "/v1/updates?dryRun=All", &json!({"image": image}))?;
    }
    ensure!(molt.ask("POST", "/v1/orders", &json!({"jws": TOKEN}))?.status == 403);
    registry.docker_config(&pull.join("config.json"), "another-passw0rd")?;
    molt.molt(&["update", "--force", &registry.reference("small:none")])?;
    molt.expect(0, &["rollback"])?;

    let pid = molt.sandbox.pid1()?;
    let mut seen: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for name in ["cmdline", "environ"] {
        seen.push((name.into(), fs::read(format!("/proc/{pid}/{name}"))?));
    }
    for path in ["/v1/events?follow=0", "/v1/history", "/v1/updates", "/metrics", "/v1/generations"] {
        seen.push((path.into(), molt.ask("GET", path, &Value::Null)?.text().into_bytes()));
    }
    seen.push(("status".into(), molt.told()?.to_string().into_bytes()));
    ensure!(molt.sandbox.stop(SOON)? >= 0);
    seen.push(("the log".into(), molt.sandbox.logs().into_bytes()));
    contents(&molt.store, &mut seen)?;
    ensure!(seen.len() > 15 && seen.iter().any(|(path, _)| path.ends_with("history.jsonl")), "{}", seen.len());
    let payload = TOKEN.split('.').nth(1).context("a payload")?;
    let signature = TOKEN.split('.').nth(2).context("a signature")?;
    for secret in [PASSWORD, auth.as_str(), USERINFO, "another-passw0rd", payload, signature, "app-t0ken"] {
        for (path, content) in &seen {
            // The workload's environment is there in clear text, and the docs say so.
            let told = secret == "app-t0ken" && path.ends_with("generation.json");
            let found = content.windows(secret.len()).any(|window| window == secret.as_bytes());
            ensure!(found == told || (told && !found), "{secret} is in {}", path.display());
        }
    }
    Ok(())
}
