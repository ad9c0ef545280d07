//! What the OpenAPI document promises, tried by a program that reads it: schemathesis, against a live socket.
//!
//! In: the bed; schemathesis from PyPI, a pinned version, in a folder of its own below cargo's target folder. Out: cases.
//! Must not: leave a failure unexplained: what is not tried stands in `schemathesis.toml`, with the reason.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::forward::Forward;
use crate::harness::molt::Setup;
use crate::harness::runtime::Kind;
use crate::harness::{process, python};

/// The tests of this file.
pub(in crate::suites) const CASES: &[Case] =
    &[case("operator::the_api_keeps_what_its_document_promises", promises).alone()];

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
