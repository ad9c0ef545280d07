//! `kill -9` of everything, at any call that changes something: the old version runs afterwards, or the new one.
//!
//! In: each [`Change`]; the calls a dry run counts. Out: a count of points. With `--long` every point, and random pairs of
//! two; else a share, drawn by `MOLT_TESTS_SEED`. Must not: pass where two dry runs do not count the same.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;

use super::ground::Ground;
use super::run::Run;
use super::scene::Change;
use super::sweep::{Extent, Scenes, counted, sweep};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::chance::Chance;
use crate::harness::tracer::wire::{Blow, Strike, Which};

/// The tests of this suite.
pub(in super::super) const CASES: &[Case] = &[
    case("kill::at_a_share_of_all_points_something_proven_runs", share),
    case("kill::at_every_point_something_proven_runs", every).long(),
    case("kill::and_again_while_it_recovers_something_proven_runs", twice).long(),
];

/// How long the share may take, beside what prepares it.
const BUDGET: Duration = Duration::from_mins(1);
/// Pairs of kills.
const PAIRS: usize = 300;

/// A point: what is cut off, and at which calls.
type Point = (Change, Vec<u64>);

fn counts(bed: &Bed) -> anyhow::Result<BTreeMap<Change, usize>> {
    let of = |change| Ok((change, counted(bed, change, Ground::Memory, Which::Changing)?.len()));
    Change::ALL.into_iter().map(of).collect()
}

/// Kills at the entry of each call in turn, the first while the change is made, the others while PID 1 starts again; then
/// looks whether all is as promised.
fn strike(scenes: &mut Scenes<'_>, (change, kills): &Point) -> anyhow::Result<Change> {
    let scene = scenes.get(*change, Ground::Memory)?;
    let mut run = Run::begin(scene)?;
    let mut struck = Vec::new();
    for (number, at) in kills.iter().enumerate() {
        if number > 0 {
            run.restart_held()?;
        }
        let strike = Strike { at: *at, blow: Blow::Kill };
        let acted = run.act(Which::Changing, Some(strike));
        let acted = acted.with_context(|| format!("kill {number} of {kills:?}\n{}", run.log()))?;
        struck.push(acted.counted.struck.map(|made| made.call));
        run.end()?;
    }
    run.verify().with_context(|| format!("killed at {kills:?}: {struck:?}\n{}", run.log()))?;
    Ok(*change)
}

fn all_points(counts: &BTreeMap<Change, usize>) -> Vec<Point> {
    counts.iter().flat_map(|(change, count)| (1..=*count as u64).map(|kill| (*change, vec![kill]))).collect()
}

fn share(bed: &Bed) -> anyhow::Result<()> {
    let counts = counts(bed)?;
    let mut chance = Chance::new()?;
    let points = chance.shuffled(all_points(&counts));
    let what = format!("kill sweep (MOLT_TESTS_SEED={})", chance.seed());
    sweep(bed, &what, points, Extent::share(BUDGET), strike).with_context(|| what.clone())
}

fn every(bed: &Bed) -> anyhow::Result<()> {
    let counts = counts(bed)?;
    sweep(bed, &format!("kill sweep (all: {counts:?})"), all_points(&counts), Extent::All, strike)
}

fn twice(bed: &Bed) -> anyhow::Result<()> {
    let counts = counts(bed)?;
    let mut chance = Chance::new()?;
    let all = all_points(&counts);
    let again = *counts.get(&Change::Recovery).context("the recovery was counted")?;
    let pair = |chance: &mut Chance| {
        let (change, kills) = all[chance.below(all.len())].clone();
        (change, [kills, vec![1 + chance.below(again) as u64]].concat())
    };
    let pairs: Vec<Point> = (0..PAIRS).map(|_| pair(&mut chance)).collect();
    let what = format!("kill sweep (two kills, MOLT_TESTS_SEED={})", chance.seed());
    sweep(bed, &what, pairs, Extent::All, strike).with_context(|| what.clone())
}
