//! Runs every suite: `molt-e2e [--long] [FILTER]` and what `cargo test -- --help` knows.
//!
//! In: root, and the packages `tests/run` installs. Out: one line a test, exit code 101 if one
//! failed. It re-executes itself in a private world first, so nothing outlives it.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use libtest_mimic::Arguments;
use molt_tests::harness::bed::Bed;
use molt_tests::harness::cases::{self, Case};
use molt_tests::harness::tally;
use molt_tests::harness::world::{self, World};
use molt_tests::suites;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("molt-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let long = std::env::args().any(|argument| argument == "--long");
    let arguments = Arguments::from_iter(std::env::args().filter(|argument| argument != "--long"));
    let mut selected = suites::all();
    selected.retain(|case| long || !case.long);
    // Those that want the machine for themselves in one go: before each of them all others had to come to an end.
    selected.sort_by_key(|case| !case.alone);
    if arguments.list {
        let trials = selected.into_iter().map(Case::listed).collect();
        return Ok(libtest_mimic::run(&arguments, trials).exit_code());
    }
    if let World::Outside(code) = world::enter()? {
        return Ok(code);
    }
    let bed = Arc::new(Bed::new()?);
    let trials = selected.into_iter().map(|case| cases::trial(case, &bed)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let bed = Arc::into_inner(bed).context("a test still holds the bed")?;
    bed.close()?;
    if let Some(tally) = tally::all() {
        println!("{tally}");
    }
    Ok(conclusion.exit_code())
}
