//! What the `OpenAPI` document promises, tried by a program that reads it: schemathesis, against a live socket.
//!
//! In: the bed; schemathesis from `PyPI`, a pinned version, in a folder of its own below cargo's target folder. Out: cases.
//! Must not: leave a failure unexplained: what is not tried stands in `schemathesis.toml`, with the reason.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::forward::Forward;
use crate::harness::molt::Setup;
use crate::harness::runtime::Kind;
use crate::harness::{process, python};

/// The tests of this file.
pub(in crate::suites) const CASES: &[Case] = &[
    case("operator::the_api_keeps_what_its_document_promises", promises).alone(),
    case("operator::the_document_is_open_api_3_1", valid).alone(),
    case("operator::curl_reaches_every_route", curl),
];

const VERSION: &str = "4.32.5";
const RUN: Duration = Duration::from_mins(5);

fn promises(bed: &Bed) -> anyhow::Result<()> {
    let program = python::program(bed, "schemathesis", VERSION, "schemathesis")?;
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let folder = bed.scratch("schemathesis")?;
    let document = molt.ask("GET", "/v1/openapi.json", &Value::Null)?;
    fs::write(folder.join("openapi.json"), &document.body)?;
    fs::write(folder.join("schemathesis.toml"), include_str!("schemathesis.toml"))?;
    let forward = Forward::to(&molt.socket()?)?;
    let mut command = Command::new(program);
    command.args(["run", "openapi.json", "--url", &format!("http://{}", forward.address)]);
    command.args(["--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1"]);
    command.args(["--request-timeout", "20", "--no-color", "--generation-database", "none"]);
    command.current_dir(&folder).env("HOME", &folder);
    let said = process::output(&mut command, RUN)?;
    ensure!(said.code == 0, "schemathesis ended with {}:\n{}\n{}", said.code, said.stdout, said.stderr);
    // It did try: every operation but those that are left out.
    ensure!(said.stdout.contains("passed") || said.stdout.contains("No issues found"), "{}", said.stdout);
    molt.settled()?;
    molt.sound()
}

fn valid(bed: &Bed) -> anyhow::Result<()> {
    let program = python::program(bed, "openapi-spec-validator", "0.9.0", "openapi-spec-validator")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the project's folder")?;
    let document = root.join("docs/openapi.json");
    let check = |file: &Path| process::output(Command::new(&program).arg(file), Duration::from_mins(1));
    check(&document)?.ok()?;
    let spoilt = bed.scratch("openapi")?.join("openapi.json");
    fs::write(&spoilt, fs::read_to_string(&document)?.replacen("\"responses\"", "\"answers\"", 1))?;
    ensure!(check(&spoilt)?.code != 0, "an operation without answers was taken");
    Ok(())
}

/// Every operation, by a client that knows nothing of Molt: each answers with a status that the document has, or a problem.
fn curl(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let socket = molt.socket()?;
    let document: Value = molt.ask("GET", "/v1/openapi.json", &Value::Null)?.json()?;
    let mut tried = 0;
    for (path, operations) in document["paths"].as_object().context("paths")? {
        for (method, operation) in operations.as_object().context("operations")? {
            let digest = format!("sha256:{}", "0".repeat(64));
            let mut url = format!("http://molt{path}").replace("{id}", "u1").replace("{number}", "1");
            url = url.replace("{digest}", &digest);
            url.push_str(match path.as_str() {
                "/v1/events" | "/v1/logs" => "?follow=0",
                "/v1/difference" => "?from=1&to=1",
                _ => "",
            });
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--max-time", "30", "--request", &method.to_uppercase()]);
            command.args(["--write-out", "\n%{http_code} %{content_type}", "--unix-socket"]).arg(&socket).arg(&url);
            let said = process::output(&mut command, Duration::from_mins(1))?.ok()?.stdout;
            let (body, last) = said.rsplit_once('\n').context("what curl adds")?;
            let (status, media) = last.split_once(' ').context("a status and a type")?;
            let known = operation["responses"].as_object().is_some_and(|all| all.contains_key(status));
            let problem = media == "application/problem+json" && body.contains("\"code\"");
            ensure!(known || problem, "{method} {url}: {status} {media}\n{body}");
            tried += 1;
        }
    }
    ensure!(tried >= 25, "{tried} operations");
    molt.sound()
}
