//! Requests that are repeated, race, or meet a restart: keys, `If-Match`, holds, events, what Molt died over.
//!
//! In: the bed. Out: cases. Must not: look into the store; what a client can see is what counts.

use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::faulty::{Fault, Faulty};
use crate::harness::http;
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The tests of this file.
pub(in crate::suites) const CASES: &[Case] = &[
    case("operator::a_key_gives_the_same_update_again_also_after_a_restart", keys),
    case("operator::a_key_that_comes_in_the_gap_is_taken_after_it_and_kept", key_in_the_gap),
    case("operator::of_two_who_saw_the_same_only_one_is_heard", if_match),
    case("operator::a_hold_outlives_a_restart_and_says_whose_it_is", hold),
    case("operator::a_hold_ends_in_time_and_the_update_goes_on", hold_ends),
    case("operator::events_go_on_over_a_restart_and_tell_of_ends_nobody_heard", events),
    case("operator::what_molt_died_over_has_an_end", interrupted),
    case("operator::fifty_at_once_each_get_a_true_end", fifty),
    case("operator::a_plan_tells_the_policy_s_difference_and_the_gap_to_expect", plan),
    case("operator::evidence_has_output_probes_status_and_difference", evidence),
];

fn v1(bed: &Bed) -> anyhow::Result<Molt> {
    Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()
}

fn killed_and_started(molt: &mut Molt) -> anyhow::Result<()> {
    molt.sandbox.kill()?;
    molt.sandbox.restart()?;
    molt.settled().map(drop)
}

fn keys(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = v1(bed)?;
    let body = json!({"image": bed.small("v2")?, "reason": "once"});
    let key = [("Idempotency-Key", "deploy-17")];
    let once = |molt: &Molt, body: &Value| molt.ask_with("POST", "/v1/updates", &key, body);
    let first = once(&molt, &body)?;
    ensure!(first.status == 202, "{}", first.text());
    let id = first.json()?["id"].as_str().context("an id")?.to_owned();
    ensure!(first.header("location") == Some(&format!("/v1/updates/{id}")), "{first:?}");
    // The same words in another order are the same request.
    let again = once(&molt, &json!({"reason": "once", "image": body["image"], "force": false}))?;
    ensure!(again.status == 202 && again.json()?["id"] == id.as_str(), "{}", again.text());
    ensure!(molt.ended(&id)?["outcome"] == "confirmed");
    killed_and_started(&mut molt)?;
    let again = once(&molt, &body)?;
    ensure!(again.status == 202 && again.json()?["id"] == id.as_str(), "{}", again.text());
    ensure!(molt.ended(&id)?["outcome"] == "confirmed");
    let other = once(&molt, &json!({"image": bed.small("v3")?}))?;
    ensure!(other.status == 422 && other.json()?["code"] == "key-reused", "{}", other.text());
    let other = molt.ask_with("POST", "/v1/rollback", &key, &Value::Null)?;
    ensure!(other.status == 422, "{}", other.text());
    // v1, v2, and v2 after the kill: what was asked for again did nothing.
    molt.serves("v2", 3)?;
    molt.sound()
}

fn key_in_the_gap(bed: &Bed) -> anyhow::Result<()> {
    // It takes 700 ms to stop.
    let mut molt = Setup::new(bed, Kind::Light, &bed.small("slow-stop")?)?.start()?;
    let first = molt.operator("POST", "/v1/updates", &json!({"image": bed.small("v2")?}))?;
    let phase =
        |molt: &Molt| -> anyhow::Result<String> { Ok(molt.told()?["phase"].as_str().context("a phase")?.to_owned()) };
    wait::until_ok("the gap", SOON, || {
        ensure!(phase(&molt)? == "Quiescing");
        Ok(())
    })?;
    // Nothing is written in the gap, and a key that was not written was not taken: the answer waits.
    let key = [("Idempotency-Key", "in-the-gap")];
    let answer = molt.ask_with("POST", "/v1/rollback", &key, &Value::Null)?;
    ensure!(answer.status == 202, "{}", answer.text());
    let now = phase(&molt)?;
    ensure!(!["Quiescing", "Swapping"].contains(&now.as_str()) || now.is_empty(), "answered in {now}");
    let id = answer.json()?["id"].as_str().context("an id")?.to_owned();
    ensure!(molt.ended(first["id"].as_str().context("an id")?)?["outcome"] == "confirmed");
    ensure!(molt.ended(&id)?["outcome"] == "confirmed");
    molt.settled()?;
    killed_and_started(&mut molt)?;
    let again = molt.ask_with("POST", "/v1/rollback", &key, &Value::Null)?;
    ensure!(again.status == 202 && again.json()?["id"] == id.as_str(), "{}", again.text());
    molt.serves("slow-stop", 4)?;
    molt.sound()
}

fn if_match(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    let seen = molt.ask("GET", "/v1/status", &Value::Null)?;
    let tag = seen.header("etag").context("an ETag")?.to_owned();
    let images = [bed.small("v2")?, bed.small("v3")?];
    let answers: Vec<_> = std::thread::scope(|scope| {
        let ask = |image: &String| {
            molt.ask_with("POST", "/v1/updates", &[("If-Match", &tag)], &json!({"image": image})).map(|one| one.status)
        };
        let threads: Vec<_> = images.iter().map(|image| scope.spawn(move || ask(image))).collect();
        threads.into_iter().map(|thread| thread.join().expect("asking does not panic")).collect::<anyhow::Result<_>>()
    })?;
    let mut sorted = answers.clone();
    sorted.sort_unstable();
    ensure!(sorted == [202, 412], "{answers:?}");
    molt.settled()?;
    let stale = molt.ask_with("POST", "/v1/rollback", &[("If-Match", &tag)], &Value::Null)?;
    ensure!(stale.status == 412 && stale.json()?["code"] == "stale", "{}", stale.text());
    let fresh = molt.ask("GET", "/v1/status", &Value::Null)?;
    let tag = fresh.header("etag").context("an ETag")?;
    let back = molt.ask_with("POST", "/v1/rollback", &[("If-Match", tag)], &Value::Null)?;
    ensure!(back.status == 202, "{}", back.text());
    let id = back.json()?["id"].as_str().context("an id")?.to_owned();
    ensure!(molt.ended(&id)?["outcome"] == "confirmed");
    ensure!(molt.version()?.0 == "v1");
    molt.sound()
}

fn hold(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = v1(bed)?;
    let asked = json!({"ttlMs": 600_000, "owner": "ci", "reason": "a migration"});
    let held = molt.operator("PUT", "/v1/hold", &asked)?;
    ensure!(held["owner"] == "ci" && held["reason"] == "a migration", "{held:#}");
    let other = molt.ask("PUT", "/v1/hold", &json!({"owner": "nightly"}))?;
    let problem = other.json()?;
    ensure!(other.status == 409 && problem["code"] == "held" && problem["hold"]["owner"] == "ci", "{problem:#}");
    ensure!(problem["ttlMs"].as_u64().is_some_and(|left| left > 500_000 && left <= 600_000), "{problem:#}");
    ensure!(molt.ask("DELETE", "/v1/hold?owner=nightly", &Value::Null)?.status == 409);
    killed_and_started(&mut molt)?;
    let status = molt.told()?;
    ensure!(status["hold"] == held, "{:#} is not {held:#}", status["hold"]);
    let condition = |status: &Value, name: &str| -> Option<String> {
        let all = status["conditions"].as_array()?;
        all.iter().find(|one| one["type"] == name)?["status"].as_str().map(str::to_owned)
    };
    ensure!(condition(&status, "Held").as_deref() == Some("True"), "{status:#}");
    // It is made ready, and waits: for `molt update` that is an end, for now.
    let said = molt.expect(5, &["update", &bed.small("v2")?])?;
    ensure!(said.stdout.contains("held"), "{said:?}");
    molt.until("generation 2 to be staged", |status| status["phase"] == "Held")?;
    let apply = molt.ask("POST", "/v1/apply", &Value::Null)?;
    ensure!(apply.status == 409 && apply.json()?["hold"]["owner"] == "ci", "{}", apply.text());
    molt.serves("v1", 2)?;
    ensure!(molt.ask("DELETE", "/v1/hold?owner=ci", &Value::Null)?.status == 204);
    molt.until("the update to be over", |status| status["lastUpdate"]["outcome"] == "confirmed")?;
    molt.serves("v2", 3)?;
    killed_and_started(&mut molt)?;
    ensure!(molt.told()?["hold"].is_null(), "a hold that was released stays so");
    molt.sound()
}

fn hold_ends(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = v1(bed)?;
    let begun = SystemTime::now();
    molt.operator("PUT", "/v1/hold", &json!({"ttlMs": 3000}))?;
    killed_and_started(&mut molt)?;
    let accepted = molt.operator("POST", "/v1/updates", &json!({"image": bed.small("v2")?}))?;
    let record = molt.ended(accepted["id"].as_str().context("an id")?)?;
    ensure!(record["outcome"] == "confirmed", "{record:#}");
    ensure!(begun.elapsed()? >= Duration::from_secs(3), "it did not wait for the end of the hold");
    ensure!(molt.told()?["hold"].is_null());
    molt.sound()
}

/// Numbers and documents of the events after a number.
fn after(molt: &Molt, last: u64) -> anyhow::Result<Vec<(u64, Value)>> {
    let last = last.to_string();
    let text = molt.ask_with("GET", "/v1/events?follow=0", &[("Last-Event-ID", &last)], &Value::Null)?.text();
    let parse = |event: &str| -> anyhow::Result<(u64, Value)> {
        let (id, data) = event.split_once("\ndata: ").with_context(|| format!("an event: {event}"))?;
        let id = id.trim().strip_prefix("id: ").context("a number")?.parse()?;
        Ok((id, serde_json::from_str(data)?))
    };
    text.split("\n\n").filter(|event| event.trim_start().starts_with("id: ")).map(parse).collect()
}

fn events(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = v1(bed)?;
    let mut heard = after(&molt, 0)?.last().context("events")?.0;
    for (image, outcome) in [("v2", "confirmed"), ("ill", "rolledBack")] {
        // Nobody listens while it happens, and Molt is killed before anybody does.
        let accepted = molt.operator("POST", "/v1/updates", &json!({"image": bed.small(image)?}))?;
        let id = accepted["id"].as_str().context("an id")?.to_owned();
        let record = molt.ended(&id)?;
        ensure!(record["outcome"] == outcome, "{record:#}");
        let last = after(&molt, 0)?.last().context("events")?.0;
        killed_and_started(&mut molt)?;
        let missed = after(&molt, heard)?;
        ensure!(missed.iter().all(|(number, _)| *number > heard), "{missed:?}");
        ensure!(missed.windows(2).all(|pair| pair[0].0 < pair[1].0), "numbers rise: {missed:?}");
        let told: Vec<_> = missed.iter().filter(|(_, event)| event["update"] == id.as_str()).collect();
        ensure!(told.len() == 1 && told[0].1["result"] == record, "{told:?} is not the end of {record:#}");
        let new: Vec<u64> = missed.iter().map(|(number, _)| *number).filter(|number| *number > last).collect();
        ensure!(!new.is_empty(), "this start has events of its own");
        heard = missed.last().context("events")?.0;
        ensure!(after(&molt, heard)?.iter().all(|(number, _)| *number > heard));
    }
    molt.sound()
}

fn interrupted(bed: &Bed) -> anyhow::Result<()> {
    for version in ["v1", "v2"] {
        bed.small(version)?;
    }
    let proxy = Faulty::start(bed.registry()?.address)?;
    let setup = Setup::new(bed, Kind::Light, &proxy.reference("small:v1"))?;
    let mut molt = setup.with("/registries/insecure", json!([proxy.address.to_string()])).start()?;
    proxy.rule("GET /v2/small/manifests/v2", Fault::Stall(10), None);
    proxy.rule("HEAD /v2/small/manifests/v2", Fault::Stall(10), None);
    let body = json!({"image": proxy.reference("small:v2"), "reason": "never ends"});
    let accepted = molt.operator("POST", "/v1/updates", &body)?;
    let id = accepted["id"].as_str().context("an id")?.to_owned();
    let heard = accepted["afterSeq"].as_u64().context("a number")?;
    killed_and_started(&mut molt)?;
    let record = molt.ended(&id)?;
    ensure!(record["outcome"] == "aborted" && record["reason"] == "interrupted", "{record:#}");
    ensure!(record["note"] == "never ends" && record["image"] == body["image"], "{record:#}");
    let told = after(&molt, heard)?;
    ensure!(told.iter().any(|(_, event)| event["type"] == "outcome" && event["update"] == id.as_str()), "{told:?}");
    // Its number is not given out again.
    proxy.heal();
    let next = molt.operator("POST", "/v1/updates", &body)?;
    ensure!(next["id"] != id.as_str(), "{next:#}");
    ensure!(molt.ended(next["id"].as_str().context("an id")?)?["outcome"] == "confirmed");
    molt.sound()
}

fn fifty(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    let images: Vec<String> =
        ["v2", "v3", "exits", "slow-stop"].map(|one| bed.small(one)).into_iter().collect::<Result<_, _>>()?;
    let socket = molt.socket()?;
    let ids: Vec<(String, String)> = std::thread::scope(|scope| {
        let ask = |number: usize| -> anyhow::Result<(String, String)> {
            let image =
                if number % 7 == 6 { "127.0.0.1:1/nobody/there:1".to_owned() } else { images[number % 4].clone() };
            let body = serde_json::to_vec(&json!({"image": image, "force": true}))?;
            let answer = http::operator(&socket, "POST", "/v1/updates", &body, SOON)?;
            ensure!(answer.status == 202, "{} {}", answer.status, answer.text());
            Ok((answer.json()?["id"].as_str().context("an id")?.to_owned(), image))
        };
        let threads: Vec<_> = (0..50).map(|number| scope.spawn(move || ask(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("asking does not panic")).collect::<anyhow::Result<_>>()
    })?;
    let mut seen: Vec<&String> = ids.iter().map(|(id, _)| id).collect();
    seen.sort();
    seen.dedup();
    ensure!(seen.len() == 50, "each request has an id of its own");
    let mut last = json!({});
    for (id, image) in &ids {
        let record = molt.ended(id)?;
        ensure!(record["image"] == image.as_str(), "{record:#} is not about {image}");
        let outcome = record["outcome"].as_str().context("an outcome")?;
        let fits = match outcome {
            "confirmed" => !image.contains("exits") && !image.contains("nobody"),
            "rolledBack" => image.contains("exits"),
            "aborted" => record["reason"] == "superseded" || image.contains("nobody"),
            "noop" => true,
            _ => false,
        };
        ensure!(fits, "{image}: {record:#}");
        let number = |record: &Value| record["id"].as_str().and_then(|id| id[1..].parse::<u64>().ok());
        if matches!(outcome, "confirmed" | "noop") && number(&record) > number(&last) {
            last = record;
        }
    }
    let status = molt.settled()?;
    if !last["to"].is_null() && last["outcome"] == "confirmed" {
        ensure!(status["confirmed"]["generation"] == last["to"], "{status:#} does not run what {last:#} says");
    }
    molt.sound()
}

fn plan(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    let wish = json!({"image": bed.small("v2")?});
    let plan = molt.operator("POST", "/v1/updates?dryRun=All", &wish)?;
    ensure!(plan["expectedDowntime"].is_null() && plan["policyDifference"] == json!([]), "{plan:#}");
    ensure!(molt.updated(&bed.small("v2")?)?["outcome"] == "confirmed");
    ensure!(molt.updated(&bed.small("v1")?)?["outcome"] == "confirmed");
    let policy = "version: 1\nfilesystem_policy:\n  include_workdir: true\n  read_only: [/bin, /app, /etc, /proc]\n  \
                  read_write: [/sandbox/state, /tmp, /dev/null]\n";
    let plan =
        molt.operator("POST", "/v1/updates?dryRun=All", &json!({"image": bed.small("v2")?, "policy": policy}))?;
    let gap = &plan["expectedDowntime"];
    let (median, worst) = (gap["medianUs"].as_u64().context("a median")?, gap["worstUs"].as_u64().context("a worst")?);
    ensure!(gap["of"] == 2 && median <= worst && worst > 0, "{plan:#}");
    ensure!(plan["policyDifference"].as_array().is_some_and(|lines| !lines.is_empty()), "{plan:#}");
    molt.sound()
}

fn evidence(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.workload_env("SECRET", "hunter2");
    let molt = setup.start()?;
    molt.expect(3, &["update", &bed.small("exits")?])?;
    let shown = molt.json(&["show", "u2", "--evidence"])?;
    let evidence = &shown["evidence"];
    ensure!(evidence["exitStatus"] == 1 && !evidence["output"].as_array().context("output")?.is_empty(), "{shown:#}");
    ensure!(evidence["probes"].is_array(), "{shown:#}");
    let difference = &evidence["difference"];
    ensure!(difference["from"] == 1 && difference["to"] == 2, "{shown:#}");
    let fields: Vec<&str> =
        difference["fields"].as_array().context("fields")?.iter().filter_map(|one| one["field"].as_str()).collect();
    ensure!(fields.contains(&"image") && fields.contains(&"digest"), "{fields:?}");
    ensure!(fields.contains(&"program.env.TESTD_BEHAVIOUR"), "{fields:?}");
    ensure!(!shown.to_string().contains("hunter2"), "a variable's value is nobody's business");
    let text = molt.expect(0, &["diff", "1", "2"])?.stdout;
    ensure!(text.contains("- image: ") && text.contains("+ image: "), "{text}");
    ensure!(molt.json(&["diff", "1", "2"])? == *difference);
    molt.expect(1, &["diff", "1", "99"])?;
    molt.sound()
}
