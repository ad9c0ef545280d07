//! A power cut at any call that changes something, on ext4 and xfs: the old version runs afterwards, or the new one.
//!
//! In: each [`Change`]; the calls a dry run counts; what the file system's log still takes. Store and state are on a disk
//! of their own. At the call everything stands still, the disk is cut off (`FS_IOC_SHUTDOWN`), all is killed, and the disk
//! mounted again: what was not synced is lost, or is not. Out: a count of cuts. With `--long` all, else a share, drawn by
//! `MOLT_TESTS_SEED`. Must not: let anything reach the disk after the cut.

use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::ground::Ground;
use super::run::Run;
use super::scene::{Change, Scene};
use super::sweep::{Extent, Scenes, counted, sweep, tell};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::chance::Chance;
use crate::harness::disk::{FileSystem, Log};
use crate::harness::tracer::wire::{Blow, Strike, Which};

/// The tests of this suite.
pub(in super::super) const CASES: &[Case] = &[
    case("power::after_a_share_of_all_cuts_something_proven_runs", share),
    case("power::what_was_confirmed_lasts", confirmed),
    case("power::after_every_cut_something_proven_runs", every).long(),
];

const KINDS: [FileSystem; 2] = [FileSystem::Ext4, FileSystem::Xfs];
const LOGS: [Log; 2] = [Log::Lost, Log::Flushed];
/// How long the share may take, with what prepares it.
const BUDGET: Duration = Duration::from_secs(18);

/// A cut: of what, on what, at which call, with what of the log.
type Cut = (Change, FileSystem, u64, Log);

fn cuts(change: Change, kind: FileSystem, calls: usize) -> Vec<Cut> {
    (1..=calls as u64).flat_map(|at| LOGS.map(|log| (change, kind, at, log))).collect()
}

fn strike(
    scenes: &mut Scenes<'_>,
    &(change, kind, at, log): &Cut,
) -> anyhow::Result<Option<(FileSystem, Log, Change)>> {
    let scene = scenes.get(change, Ground::Disk(kind))?;
    let mut run = Run::begin(scene)?;
    let acted = run.act(Which::Changing, Some(Strike { at, blow: Blow::Halt })).with_context(|| run.log())?;
    let struck = acted.counted.struck.map(|made| made.call);
    ensure!(struck.is_some(), "the call was never made");
    run.cut(log)?;
    run.verify().with_context(|| format!("{struck:?}\n{}", run.log()))?;
    Ok(Some((kind, log, change)))
}

fn share(bed: &Bed) -> anyhow::Result<()> {
    let extent = Extent::share(BUDGET);
    let mut chance = Chance::new()?;
    let change = Change::ALL[chance.below(Change::ALL.len())];
    let kind = KINDS[chance.below(KINDS.len())];
    let calls = Scene::prepare(bed, change, Ground::Disk(kind))?.dry(Which::Changing)?;
    tell(change, &calls);
    let points = chance.shuffled(cuts(change, kind, calls.len()));
    let what = format!("power sweep ({change:?}, {kind:?}, MOLT_TESTS_SEED={})", chance.seed());
    sweep(bed, &what, points, extent, strike).with_context(|| what.clone())
}

fn confirmed(bed: &Bed) -> anyhow::Result<()> {
    for kind in KINDS {
        lasts(&Scene::prepare(bed, Change::Update, Ground::Disk(kind))?)?;
    }
    Ok(())
}

/// When the slot that confirms an update was synced the power goes, before anything else is done, and nothing of the file
/// system's log is saved: it is confirmed all the same. Later, what syncs everything by the way would hide a fault: so does
/// an overlay when it is taken apart.
pub(super) fn lasts(scene: &Scene<'_>) -> anyhow::Result<()> {
    let calls = scene.dry(Which::Changing)?;
    let confirmed = calls.iter().rposition(|made| made.file.ends_with("/journal")).context("nothing is recorded")?;
    let strike = Strike { at: confirmed as u64 + 2, blow: Blow::Halt };
    for _ in 0..5 {
        let mut run = Run::begin(scene)?;
        let acted = run.act(Which::Changing, Some(strike)).with_context(|| run.log())?;
        if acted.counted.struck.is_none() {
            // What is done beside it was done by fewer calls this time.
            run.end()?;
            continue;
        }
        run.cut(Log::Lost)?;
        run.verify().with_context(|| run.log())?;
        let (ran, new) = (run.recovered.as_deref(), scene.change.versions().1);
        ensure!(ran == new, "what was confirmed is lost: {ran:?}");
        return Ok(());
    }
    bail!("nothing is done after the confirmation")
}

fn every(bed: &Bed) -> anyhow::Result<()> {
    let mut chance = Chance::new()?;
    let mut all = Vec::new();
    for kind in KINDS {
        for change in Change::ALL {
            let calls = counted(bed, change, Ground::Disk(kind), Which::Changing)?;
            all.extend(cuts(change, kind, calls.len()));
        }
    }
    // Shuffled, so that a part of it says something of the whole.
    let all = chance.shuffled(all);
    let what = format!("power sweep (all, MOLT_TESTS_SEED={})", chance.seed());
    sweep(bed, &what, all, Extent::All, strike).with_context(|| what.clone())
}
