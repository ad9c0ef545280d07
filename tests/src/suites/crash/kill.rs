//! `kill -9` of everything, at any call that changes something: the old version runs afterwards, or the new one.
//!
//! In: each [`Change`]; the calls a dry run counts. Out: a count of points. With `--long` every point, and random pairs of
//! two; else a share, drawn by `MOLT_TESTS_SEED`. Must not: pass where two dry runs do not count the same.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::ground::Ground;
use super::run::Run;
use super::scene::{Change, Scene};
use super::sweep::{Extent, Scenes, counted, is_sync, sweep};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::chance::Chance;
use crate::harness::tracer::wire::{Blow, Made, Strike, Which};

/// The tests of this suite.
pub(in super::super) const CASES: &[Case] = &[
    case("kill::at_a_share_of_all_points_something_proven_runs", share),
    case("kill::what_must_be_durable_is_so_before_what_needs_it", |bed| {
        order(&Scene::prepare(bed, Change::Update, Ground::Memory)?)
    }),
    case("kill::nobody_is_signalled_by_a_number_that_may_be_another_s_by_now", by_descriptor),
    case("kill::at_every_point_something_proven_runs", every).long(),
    case("kill::a_share_of_pairs_and_again_while_it_recovers", |bed| twice(bed, Extent::share(SHORT))),
    case("kill::and_again_while_it_recovers_something_proven_runs", |bed| twice(bed, Extent::All)).long(),
];

/// How long the share may take, beside what prepares it.
const BUDGET: Duration = Duration::from_mins(1);
/// How long the share of pairs may take.
const SHORT: Duration = Duration::from_secs(30);
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
fn strike(scenes: &mut Scenes<'_>, (change, kills): &Point) -> anyhow::Result<Option<Change>> {
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
    Ok(Some(*change))
}

fn all_points(counts: &BTreeMap<Change, usize>) -> Vec<Point> {
    counts.iter().flat_map(|(change, count)| (1..=*count as u64).map(|kill| (*change, vec![kill]))).collect()
}

/// In what an update does: the new generation and its name are synced before the trial is recorded, the trial before the
/// gate is opened, the mark of the confirmed one before the slot that says so; and nothing is synced in the gap. (That the
/// trial is recorded before the first signal is seen where its record fails, in `errno::`.)
pub(super) fn order(scene: &Scene<'_>) -> anyhow::Result<()> {
    let calls = scene.dry(Which::Changing)?;
    let told = || calls.iter().map(|made| format!("\n  {} {}", made.call, made.file)).collect::<String>();
    let find = |from: usize, what: &str, wanted: &dyn Fn(&Made) -> bool| {
        let found = calls.iter().skip(from).position(wanted).map(|at| from + at);
        found.with_context(|| format!("{what} is not there, or too late:{}", told()))
    };
    let is_slot = |made: &Made| is_sync(made) && made.file.ends_with("/journal");
    let ran = find(0, "the exec", &|made| made.call == "gate execve")?;
    let gate = gate(&calls[..ran])?;
    let written = find(0, "the sync of the record", &|made| is_sync(made) && made.file.ends_with("/generation.json"))?;
    let is_folder = |made: &Made| {
        let name = made.file.strip_suffix(".new").unwrap_or_default();
        is_sync(made) && !name.is_empty() && !name.contains(".json")
    };
    let filled = find(written, "the sync of the generation's folder", &is_folder)?;
    let whole = find(filled, "the sync of the store", &|made| made.call.contains("syncfs"))?;
    let named = find(whole, "the name of the generation", &|made| made.call.contains("rename"))?;
    let durable = find(named, "the sync of its name", &|made| is_sync(made) && made.file.ends_with("/generations"))?;
    let trial = find(durable, "the record of the trial", &is_slot)?;
    ensure!(trial < gate, "the gate is call {gate}, the trial is recorded by call {trial}:{}", told());
    let waits = calls[gate..ran].iter().find(|made| is_sync(made));
    ensure!(waits.is_none(), "{waits:?} between the gate and the exec:{}", told());
    let marked = find(ran, "the sync of the mark", &|made| is_sync(made) && made.file.ends_with("/confirmed"))?;
    find(marked, "the confirmation", &is_slot).map(drop)
}

/// PID 1 signals by descriptor: a process id may be somebody else's by the time that the signal arrives.
fn by_descriptor(bed: &Bed) -> anyhow::Result<()> {
    for change in Change::ALL {
        let calls = Scene::prepare(bed, change, Ground::Memory)?.dry(Which::Changing)?;
        let made = |name: &str| calls.iter().filter(|made| made.call == format!("supervisor {name}")).count();
        for name in ["kill", "tkill", "tgkill", "rt_sigqueueinfo"] {
            ensure!(made(name) == 0, "{change:?}: {name} is called");
        }
        // Who unpacked is ended so; a workload is told to stop by its init.
        ensure!(change != Change::Update || made("pidfd_send_signal") > 0, "{change:?}: nobody was signalled at all");
    }
    Ok(())
}

/// Where the gate is opened: the last byte that PID 1 gives somebody before the exec.
pub(super) fn gate(calls: &[Made]) -> anyhow::Result<usize> {
    let ran = calls.iter().position(|made| made.call == "gate execve").unwrap_or(calls.len());
    calls[..ran].iter().rposition(|made| made.call == "supervisor write of a pipe").context("no gate was opened")
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

fn twice(bed: &Bed, extent: Extent) -> anyhow::Result<()> {
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
    sweep(bed, &what, pairs, extent, strike).with_context(|| what.clone())
}
