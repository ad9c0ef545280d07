//! The simulator by itself: `molt-sim [--seeds N] [--minutes N] [--plant BUG] [SEED]`.
//!
//! In: `MOLT_SIM_SEED`, or a seed to run alone with its trace. Out: figures; exit code 1 and the seed if a promise was
//! broken. Must not: need root, or touch a file.

use std::{process::ExitCode, time::Duration};

use molt_tests::sim::{run, world::Plant};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1));
    let number = |name: &str| value(name).and_then(|text| text.parse::<u64>().ok());
    let plant = value("--plant").map(|text| match text.as_str() {
        "no-slot-sync" => Plant::NoSlotSync,
        "no-folder-sync" => Plant::NoFolderSync,
        "trial-after-signal" => Plant::TrialAfterSignal,
        "confirm-before-proof" => Plant::ConfirmBeforeProof,
        _ => Plant::OnePlace,
    });
    if let Some(seed) = words.last().and_then(|text| text.parse().ok()).filter(|_| words.len() % 2 == 1) {
        let (mut world, verdict) = run::one(seed, plant, true);
        for line in world.trace() {
            println!("{line}");
        }
        println!("seed {seed}: {verdict:?}");
        return if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let limit = number("--minutes").map(|minutes| Duration::from_secs(minutes * 60));
    let seeds = number("--seeds").unwrap_or(if limit.is_some() { u64::MAX } else { 50_000 });
    let report = run::many(run::base(), seeds, limit, plant);
    println!("{report}");
    println!("rarest: {:#?}", report.coverage.rarest(20));
    if let Some((seed, broken)) = &report.broken {
        println!("seed {seed}: {broken}; `molt-sim {seed}` shows it");
        return ExitCode::FAILURE;
    }
    let (missing, possible) = report.coverage.wrong();
    println!("not seen: {missing:#?}\nseen though impossible: {possible:#?}");
    ExitCode::SUCCESS
}
