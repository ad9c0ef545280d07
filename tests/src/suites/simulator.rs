//! The promises of a crash, in a simulated world: many seeds, what they must have seen, and bugs they must find.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::tally::{self, Tally};
use crate::sim::{run, world::Plant};

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("simulator::every_promise_holds_whatever_fails_and_everything_was_seen", seeds).alone(),
    case("simulator::every_promise_holds_for_ten_minutes", long).alone().long(),
    case("simulator::a_seed_is_the_same_run_each_time", replay),
    case("simulator::another_century_is_the_same_run", other_century),
    case("simulator::finds_a_slot_that_is_not_synced", no_slot_sync),
    case("simulator::finds_a_generation_s_folder_that_is_not_synced", no_folder_sync),
    case("simulator::finds_a_trial_recorded_after_the_first_signal", trial_after_signal),
    case("simulator::finds_a_confirmation_before_proof", confirm_before_proof),
    case("simulator::finds_slots_that_share_a_place", one_place),
];

/// Seeds of an ordinary run.
const SEEDS: u64 = 50_000;

fn told(report: &run::Report) -> anyhow::Result<()> {
    println!("simulator: {report}");
    tally::add(Tally {
        seeds: report.seeds,
        simulated: report.faults + report.blows,
        unrecovered: u64::from(report.broken.is_some()),
        ..Tally::default()
    });
    if let Some((seed, broken)) = &report.broken {
        anyhow::bail!("{broken}: `{}={seed}` or `molt-sim {seed}` shows it; {report}", run::SEED);
    }
    Ok(())
}

fn seeds(_: &Bed) -> anyhow::Result<()> {
    let mut report = run::many(run::base(), SEEDS, None, None);
    told(&report)?;
    // Some pairs are rare: what these seeds did not see, more of them must.
    while !report.coverage.wrong().0.is_empty() && report.seeds < 8 * SEEDS {
        let more = run::many(run::base() + report.seeds, SEEDS / 2, None, None);
        told(&more)?;
        report.seeds += more.seeds;
        report.coverage.add(&more.coverage);
    }
    let (missing, possible) = report.coverage.wrong();
    ensure!(missing.is_empty(), "never seen, and not listed as impossible: {missing:#?}");
    ensure!(possible.is_empty(), "seen, and listed as impossible: {possible:#?}");
    Ok(())
}

fn long(_: &Bed) -> anyhow::Result<()> {
    told(&run::many(run::base(), 5_000_000, Some(Duration::from_mins(10)), None))
}

fn replay(_: &Bed) -> anyhow::Result<()> {
    for seed in run::base()..run::base() + 20 {
        let ((mut one, first), (mut other, second)) = (run::one(seed, None, true), run::one(seed, None, true));
        ensure!(first == second, "seed {seed}: {first:?} and {second:?}");
        let (one, other) = (one.trace(), other.trace());
        ensure!(one.len() > 5 && one == other, "seed {seed} differs");
    }
    Ok(())
}

/// A world in another century comes to the same decisions. What is written for people has other times in it, and no other
/// length: thirteen digits.
fn other_century(_: &Bed) -> anyhow::Result<()> {
    for seed in run::base()..run::base() + 200 {
        let (one, first) = run::one(seed, None, false);
        let (other, second) = run::shifted(seed, 6_000_000_000_000);
        ensure!(first == second, "seed {seed}: {first:?} and {second:?}");
        ensure!(one.coverage == other.coverage, "seed {seed}: the wall clock decides something");
        ensure!((one.starts, one.blows, one.figures()) == (other.starts, other.blows, other.figures()), "seed {seed}");
    }
    Ok(())
}

fn finds(plant: Plant, what: &str) -> anyhow::Result<()> {
    let report = run::many(run::base(), SEEDS, None, Some(plant));
    let (seed, broken) = report.broken.with_context(|| format!("{plant:?} was not found"))?;
    ensure!(broken.contains(what), "{plant:?} was found for another reason, seed {seed}: {broken}");
    Ok(())
}

fn no_slot_sync(_: &Bed) -> anyhow::Result<()> {
    finds(Plant::NoSlotSync, "")
}

fn no_folder_sync(_: &Bed) -> anyhow::Result<()> {
    finds(Plant::NoFolderSync, "")
}

fn trial_after_signal(_: &Bed) -> anyhow::Result<()> {
    finds(Plant::TrialAfterSignal, "was signalled before the trial was on disk")
}

fn confirm_before_proof(_: &Bed) -> anyhow::Result<()> {
    finds(Plant::ConfirmBeforeProof, "was confirmed without proof")
}

fn one_place(_: &Bed) -> anyhow::Result<()> {
    finds(Plant::OnePlace, "")
}
