//! The workload's own socket: what it may ask for, and what it cannot do with it.
//!
//! In: its section of the page. Out: cases. Must not: know another way in.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::PAGE;
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::docs::{self, Section};
use crate::harness::http;
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// Its section.
pub(super) const HEADING: &str = "The workload's own socket";

/// The tests of this way in.
pub(super) const CASES: &[Case] = &[
    case("triggers::own_socket_as_the_page_says", as_the_page_says),
    case("own::is_there_only_where_the_spec_asks", only_where_asked),
    case("own::a_hold_ends_by_itself_and_touches_nobody_else_s", holds),
    case("own::the_workload_judges_its_own_trial_where_the_spec_lets_it", |bed| judges(bed, Kind::Light)),
    case("own::the_workload_judges_its_trial_in_a_user_namespace", |bed| judges(bed, Kind::LightUser)),
    case("own::only_images_that_the_spec_allows_can_be_asked_for", updates),
    case("own::nothing_else_can_be_had", nothing_else),
    case("own::a_workload_that_floods_its_socket_starves_nobody", floods),
];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the workload is answered: status and body.
fn ask(molt: &Molt, method: &str, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let query = format!("/own?method={method}&path={path}&body={}", hex(body.as_bytes()));
    let answer = molt.get(&query)?;
    let text = answer.as_str().with_context(|| format!("{method} {path}: {answer}"))?;
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status")?;
    let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
    Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

pub(super) fn expect(molt: &Molt, status: u16, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
    let (found, answer) = ask(molt, method, path, body)?;
    ensure!(found == status, "{method} {path}: {found}, not {status}: {answer:#}");
    Ok(answer)
}

fn own<'a>(bed: &'a Bed, image: &str, may: &Value) -> anyhow::Result<Setup<'a>> {
    Ok(Setup::new(bed, Kind::Light, &bed.small(image)?)?.with("/api", json!({"workload": may})))
}

fn as_the_page_says(bed: &Bed) -> anyhow::Result<()> {
    let section = Section::of(PAGE, HEADING)?;
    let yaml = section.blocks("yaml")?.concat();
    let head = "apiVersion: molt.dev/v1alpha1\nkind: Sandbox\n";
    let said = molt_core::spec::parse(&format!("{head}{yaml}")).map_err(|faults| anyhow::anyhow!("{faults}"))?;
    let molt = docs::setup(bed)?.with("/api/workload", serde_json::to_value(said.api.workload)?).start()?;
    // The image has no curl: what its lines say is sent by the program of the image.
    let mut asked = 0;
    for line in section.blocks("sh")?.concat().lines().filter(|line| line.starts_with("$own ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let path = words.iter().find_map(|word| word.strip_prefix("http://molt")).context("a path")?;
        let body = line.split_once(" -d '").and_then(|(_, rest)| rest.split('\'').next());
        let method = line.split_once("-X ").and_then(|(_, rest)| rest.split(' ').next());
        let method = method.unwrap_or(if body.is_some() { "POST" } else { "GET" });
        let body = body.map_or(Ok(Value::Null), serde_json::from_str)?;
        let (status, answer) = ask(&molt, method, path, &body)?;
        ensure!((200..300).contains(&status), "{line}: {status} {answer:#}");
        asked += 1;
    }
    ensure!(asked >= 4, "{asked} lines");
    molt.until("the update", |status| status["phase"] == "Idle" && status["confirmed"]["generation"] == 2)?;
    molt.serves("v2", 2)?;
    let by = molt.last()?;
    ensure!(by["by"].as_str().is_some_and(|by| by.starts_with("workload of generation 1, pid ")), "{by:#}");
    molt.sound()
}

fn only_where_asked(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    ensure!(molt.get("/own?method=GET&path=/v1/status")? == json!({"errno": 2}), "a socket is there");
    let molt = own(bed, "v1", &json!({}))?.start()?;
    let status = expect(&molt, 200, "GET", "/v1/status", &Value::Null)?;
    ensure!(
        status["generation"]["generation"] == 1 && status["ready"] == true && status["trial"] == false,
        "{status:#}"
    );
    // All else is off.
    let image = bed.small("v2")?;
    for (method, path, body) in [
        ("PUT", "/v1/hold", json!({"ttlMs": 1000})),
        ("POST", "/v1/confirm", Value::Null),
        ("POST", "/v1/reject", Value::Null),
        ("POST", "/v1/updates", json!({"image": image})),
    ] {
        expect(&molt, 403, method, path, &body)?;
    }
    ensure!(molt.status()?["hold"].is_null());
    // A socket of each run: gone with it.
    molt.expect(0, &["update", &image])?;
    ensure!(expect(&molt, 200, "GET", "/v1/status", &Value::Null)?["generation"]["generation"] == 2);
    let names = std::fs::read_dir(format!("/proc/{}/root/run/molt", molt.sandbox.pid1()?))?;
    let names: Vec<String> =
        names.map(|one| Ok(one?.file_name().to_string_lossy().into_owned())).collect::<anyhow::Result<_>>()?;
    ensure!(names.iter().filter(|name| name.starts_with("workload-")).count() <= 2, "{names:?}");
    // Root of the sandbox is no workload.
    let socket = names.iter().find(|name| name.starts_with("workload-")).context("a socket")?;
    let socket = format!("/proc/{}/root/run/molt/{socket}", molt.sandbox.pid1()?);
    let answer = http::operator(std::path::Path::new(&socket), "GET", "/v1/status", &[], SOON)?;
    ensure!(answer.status == 403, "{}", answer.text());
    molt.sound()
}

fn holds(bed: &Bed) -> anyhow::Result<()> {
    // Before the hold begins to run.
    let image = bed.small("v2")?;
    let molt = own(bed, "v1", &json!({"hold": "5s"}))?.start()?;
    // The operator's hold is not the workload's to end, and it has none of its own meanwhile.
    molt.expect(0, &["hold", "--ttl", "1h"])?;
    expect(&molt, 409, "PUT", "/v1/hold", &json!({"ttlMs": 1000}))?;
    expect(&molt, 409, "DELETE", "/v1/hold", &Value::Null)?;
    let hold = molt.status()?["hold"].clone();
    ensure!(hold["by"].as_str().is_some_and(|by| by.contains("operator")), "{hold:#}");
    molt.expect(0, &["release"])?;
    // Its own holds an update back until it is over, whatever it asks for meanwhile.
    expect(&molt, 204, "PUT", "/v1/hold", &json!({"ttlMs": 3_600_000, "reason": "a call"}))?;
    molt.expect(0, &["update", "--no-wait", &image])?;
    let held = molt.until("the hold", |status| status["phase"] == "Held")?;
    ensure!(held["hold"]["reason"] == "a call" && held["hold"]["owner"] == "workload", "{held:#}");
    let mut refused = false;
    wait::until_ok("the update", SOON, || {
        let (status, _) = ask(&molt, "PUT", "/v1/hold", &json!({"ttlMs": 3_600_000}))?;
        refused |= status == 409;
        ensure!(molt.told()?["confirmed"]["generation"] == 2);
        Ok(())
    })?;
    molt.settled()?;
    ensure!(refused, "it was never told that it has held for long enough");
    molt.serves("v2", 2)?;
    // Whoever may release ends it, too.
    wait::until_ok("a new hold", SOON, || expect(&molt, 204, "PUT", "/v1/hold", &json!({"ttlMs": 3000})))?;
    molt.expect(0, &["release"])?;
    ensure!(molt.status()?["hold"].is_null());
    molt.sound()
}

fn judges(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let may = json!({"workload": {"trial": true}});
    let setup = Setup::new(bed, kind, &bed.small("v1")?)?.with("/api", may);
    let molt = setup.with("/update/confirm", json!("external")).start()?;
    // No trial, nothing to judge.
    expect(&molt, 409, "POST", "/v1/confirm", &Value::Null)?;
    for (version, path, outcome) in [("v2", "/v1/confirm", "confirmed"), ("v3", "/v1/reject", "rolledBack")] {
        molt.expect(0, &["update", "--no-wait", &bed.small(version)?])?;
        wait::until_ok("the trial to answer", SOON, || {
            ensure!(molt.version()?.0 == version);
            let status = expect(&molt, 200, "GET", "/v1/status", &Value::Null)?;
            ensure!(status["trial"] == true && status["ready"] == true, "{status:#}");
            Ok(())
        })?;
        expect(&molt, 202, "POST", path, &Value::Null)?;
        let status = molt.until("the end", |status| {
            status["phase"] == "Idle"
                && status["lastUpdate"]["outcome"] == outcome
                && status["workload"]["ready"] == true
        })?;
        ensure!(status["confirmed"]["generation"] == 2, "{status:#}");
    }
    ensure!(molt.version()?.0 == "v2");
    molt.sound()
}

fn updates(bed: &Bed) -> anyhow::Result<()> {
    let (v2, v3) = (bed.small("v2")?, bed.small("v3")?);
    let pattern = v2.replace(":v2", ":*2");
    let rule = json!({"update": {"images": [pattern], "digest": false, "every": "1h"}});
    let molt = own(bed, "v1", &rule)?.start()?;
    for (image, code) in [(v3.as_str(), 403), ("oci:/sandbox/state/evil", 403), ("NOT", 400)] {
        expect(&molt, code, "POST", "/v1/updates", &json!({"image": image}))?;
    }
    for more in ["policy", "force", "allowWider", "stageOnly"] {
        expect(&molt, 400, "POST", "/v1/updates", &json!({"image": v2, more: true}))?;
    }
    ensure!(molt.json(&["history"])?.as_array().is_some_and(|all| all.len() == 1));
    expect(&molt, 202, "POST", "/v1/updates", &json!({"image": v2, "reason": "I want to"}))?;
    molt.until("the update", |status| status["phase"] == "Idle" && status["confirmed"]["generation"] == 2)?;
    let last = molt.last()?;
    ensure!(last["note"] == "I want to", "{last:#}");
    // Not again so soon, from the next generation neither.
    expect(&molt, 409, "POST", "/v1/updates", &json!({"image": v2}))?;
    molt.sound()
}

fn nothing_else(bed: &Bed) -> anyhow::Result<()> {
    let may = json!({"hold": "1m", "trial": true, "update": {"images": ["localhost/*"]}});
    let molt = own(bed, "v1", &may)?.workload_env("SECRET", "hunter2").start()?;
    for (method, path) in [
        ("POST", "/v1/exec"),
        ("GET", "/v1/logs"),
        ("GET", "/v1/events"),
        ("GET", "/v1/generations"),
        ("GET", "/v1/execs"),
        ("GET", "/metrics"),
        ("POST", "/v1/rollback"),
        ("POST", "/v1/gc"),
        ("POST", "/v1/apply"),
        ("DELETE", "/v1/bad/sha256:00"),
    ] {
        expect(&molt, 404, method, path, &Value::Null)?;
    }
    expect(&molt, 405, "DELETE", "/v1/status", &Value::Null)?;
    let status = expect(&molt, 200, "GET", "/v1/status", &Value::Null)?;
    ensure!(!status.to_string().contains("hunter2") && status["spec"].is_null(), "{status:#}");
    expect(&molt, 400, "PUT", "/v1/hold", &json!({"ttlMs": 1000, "reason": "x".repeat(600)}))?;
    for raw in ["GARBAGE\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\0\0\0\0"] {
        molt.get(&format!("/own?raw={}", hex(raw.as_bytes())))?;
    }
    molt.sound()
}

fn floods(bed: &Bed) -> anyhow::Result<()> {
    let molt = own(bed, "v1", &json!({"hold": "1m"}))?.start()?;
    let files =
        || -> anyhow::Result<usize> { Ok(std::fs::read_dir(format!("/proc/{}/fd", molt.sandbox.pid1()?))?.count()) };
    let before = files()?;
    let there = molt.get("/own-idle?count=10000")?;
    ensure!(there.as_u64().is_some_and(|count| count >= 4), "{there}");
    // They take a place each among few, and the operator is answered all the same, at once.
    let began = std::time::Instant::now();
    for _ in 0..20 {
        ensure!(files()? <= before + 16, "{} descriptors, {before} before", files()?);
        molt.told()?;
    }
    ensure!(began.elapsed() < Duration::from_secs(10), "20 answers took {:?}", began.elapsed());
    molt.expect(0, &["update", &bed.small("v2")?])?;
    // The next generation has a socket of its own, which is free.
    ensure!(expect(&molt, 200, "GET", "/v1/status", &Value::Null)?["generation"]["generation"] == 2);
    molt.sound()
}
