//! An error of any call that can have one: the change is made, taken back, or fails with the old one serving, in time; and
//! the next start finds all as promised.
//!
//! In: each [`Change`]; the calls a dry run counts; [`ERRNOS`]. One error in the life of a sandbox. Out: a count of faults
//! by how they ended. With `--long` all, else a share, drawn by `MOLT_TESTS_SEED`; one again by `MOLT_TESTS_POINT=171:EIO`.
//! Must not: count an error that was not met.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;

use super::ground::Ground;
use super::kill::gate;
use super::run::{Acted, Ending, Run};
use super::scene::{Change, Scene};
use super::sweep::{Extent, Scenes, is_sync, sweep, tell};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::chance::Chance;
use crate::harness::tracer::wire::{Blow, Made, Strike, Which};

/// The tests of this suite.
pub(in super::super) const CASES: &[Case] = &[
    case("errno::a_share_of_all_errors_ends_in_time_with_something_proven", share),
    case("errno::an_error_is_felt_by_pid_1_from_its_exec_on", felt),
    case("errno::a_failed_sync_ends_the_attempt", syncs),
    case("errno::a_trial_that_cannot_be_recorded_is_not_noticed_by_the_old_version", |bed| {
        trial(&Scene::prepare(bed, Change::Update, Ground::Memory)?)
    }),
    case("errno::every_error_of_a_first_start", |bed| every(bed, Change::FirstBoot)).long(),
    case("errno::every_error_of_an_update", |bed| every(bed, Change::Update)).long(),
    case("errno::every_error_of_a_rollback", |bed| every(bed, Change::Rollback)).long(),
    case("errno::every_error_of_a_clean_up", |bed| every(bed, Change::CleanUp)).long(),
    case("errno::every_error_of_a_recovery", |bed| every(bed, Change::Recovery)).long(),
];

/// What a disk, a quota, a limit, memory, a security module or a signal may answer with.
const ERRNOS: [Errno; 12] = [
    Errno::EIO,
    Errno::ENOSPC,
    Errno::EDQUOT,
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::ENOMEM,
    Errno::EPERM,
    Errno::EACCES,
    Errno::EROFS,
    Errno::EINTR,
    Errno::EAGAIN,
    Errno::EINVAL,
];
/// How long the shares may take, with what prepares them.
const BUDGET: Duration = Duration::from_secs(18);

/// Files of the store that decide nothing of what boots.
const BESIDE: [&str; 2] = ["/memory", "/requests"];

/// A point: what fails, at which call, with what.
type Point = (Change, u64, Errno);

/// What a change does when nothing fails.
fn calls(bed: &Bed, change: Change) -> anyhow::Result<Vec<Made>> {
    let calls = Scene::prepare(bed, change, Ground::Memory)?.dry(Which::Failing)?;
    tell(change, &calls);
    Ok(calls)
}

fn points(change: Change, calls: &[Made]) -> Vec<Point> {
    (1..=calls.len() as u64).flat_map(|at| ERRNOS.map(|errno| (change, at, errno))).collect()
}

fn strike(scenes: &mut Scenes<'_>, &(change, at, errno): &Point) -> anyhow::Result<Option<(Change, Ending)>> {
    let struck = fails(scenes.get(change, Ground::Memory)?, at, errno)?;
    Ok(struck.map(|(_, ending)| (change, ending)))
}

/// The record of a trial fails: the old workload never notices, for it was not signalled yet.
pub(super) fn trial(scene: &Scene<'_>) -> anyhow::Result<()> {
    let calls = scene.dry(Which::Failing)?;
    let gate = gate(&calls)?;
    let is_slot = |made: &Made| is_sync(made) && made.file.ends_with("/journal");
    let record = calls[..gate].iter().rposition(is_slot).context("no trial was recorded")?;
    // By number: another call, should it be there this time, says nothing. What is remembered beside the journal is
    // written when it comes, now before that call and now after it.
    for shift in [1, 2, 0, 3, 1, 2, 0, 4] {
        if let Some((struck, ending)) = fails(scene, record as u64 + shift, Errno::EIO)?
            && is_slot(&struck)
        {
            ensure!(ending == Ending::Failed, "it ended as {ending:?}");
            return Ok(());
        }
    }
    bail!("the record of the trial was never struck")
}

fn fails(scene: &Scene<'_>, at: u64, errno: Errno) -> anyhow::Result<Option<(Made, Ending)>> {
    let change = scene.change;
    let mut run = Run::begin(scene)?;
    let strike = Strike { at, blow: Blow::Fail(errno as i32) };
    let acted = run.act(Which::Failing, Some(strike)).with_context(|| run.log())?;
    let Some(struck) = acted.counted.struck.clone() else {
        run.end()?;
        return Ok(None);
    };
    let name = format!("{} {}", struck.call, struck.file);
    let ending = run.stands(&acted).with_context(|| format!("{name}\n{}", run.log()))?;
    honest(change, at, errno, &acted, ending).with_context(|| format!("{name}\n{}", run.log()))?;
    if acted.ended.is_none() {
        run.end()?;
    }
    run.verify().with_context(|| format!("{name}, {ending:?}, and started again\n{}", run.log()))?;
    Ok(Some((struck, ending)))
}

/// A sync that failed has lost what was written, and the next one of the same file says nothing of that: it is not asked
/// again before the file was written again, and nothing that needed it is done.
fn honest(change: Change, at: u64, errno: Errno, acted: &Acted, ending: Ending) -> anyhow::Result<()> {
    let at = usize::try_from(at)? - 1;
    let calls = &acted.counted.calls;
    let struck = calls.get(at).context("it was counted")?;
    // After a signal nothing is lost, and the library asks again by itself.
    if !is_sync(struck) || errno == Errno::EINTR {
        return Ok(());
    }
    let mut written = false;
    for later in calls.iter().skip(at + 1).filter(|later| later.file == struck.file) {
        written |= later.call.contains("write");
        ensure!(written || !is_sync(later) || is_folder(struck), "asked again, without a write: {later:?}");
    }
    // Until the confirmation is in the journal: what is done later tidies up.
    let is_slot = |made: &Made| is_sync(made) && made.file.ends_with("/journal");
    let confirmed = calls.iter().rposition(is_slot);
    let needed = change == Change::Update && confirmed.is_some_and(|confirmed| at <= confirmed);
    if !needed || ending != Ending::Committed {
        return Ok(());
    }
    // What decides nothing: it is told, and written whole the next time.
    if BESIDE.iter().any(|name| struck.file.ends_with(name)) {
        return Ok(());
    }
    // The one way on: the whole slot anew, before the old workload is told anything.
    ensure!(is_slot(struck), "it was confirmed all the same");
    let mut until = calls.iter().skip(at + 1).take_while(|made| !is_slot(made));
    let signal = until.find(|made| made.call == "supervisor pidfd_send_signal" || made.call == "supervisor kill");
    ensure!(signal.is_none(), "a signal before the slot was durable: {signal:?}");
    ensure!(calls.iter().skip(at + 1).any(is_slot), "confirmed, and never synced");
    Ok(())
}

/// A folder is written by other calls than those on its descriptor.
fn is_folder(made: &Made) -> bool {
    let name = made.file.rsplit('/').next().unwrap_or_default();
    !["journal", "memory", "requests"].contains(&name) && !name.contains('.')
}

/// The tool itself: what it answers in place of the kernel is what PID 1 meets, on its first thread, too.
fn felt(bed: &Bed) -> anyhow::Result<()> {
    let scene = Scene::prepare(bed, Change::FirstBoot, Ground::Memory)?;
    let calls = scene.dry(Which::Failing)?;
    let sync = calls.iter().position(|made| is_sync(made) && made.file.ends_with("/memory")).context("a sync")?;
    let mut run = Run::begin(&scene)?;
    let strike = Strike { at: sync as u64 + 1, blow: Blow::Fail(Errno::EDQUOT as i32) };
    run.act(Which::Failing, Some(strike))?;
    let log = run.molt.sandbox.logs();
    let text = "failed to open memory in the store: Disk quota exceeded";
    ensure!(log.contains(text), "it says nothing of {text:?}:\n{log}");
    run.end()
}

fn share(bed: &Bed) -> anyhow::Result<()> {
    let extent = Extent::share(BUDGET);
    let mut chance = Chance::new()?;
    let change = Change::ALL[chance.below(Change::ALL.len())];
    let points = chance.shuffled(points(change, &calls(bed, change)?));
    let what = format!("errno sweep ({change:?}, MOLT_TESTS_SEED={})", chance.seed());
    sweep(bed, &what, points, extent, strike).with_context(|| what.clone())
}

fn syncs(bed: &Bed) -> anyhow::Result<()> {
    let extent = Extent::share(BUDGET);
    let calls = calls(bed, Change::Update)?;
    let of = |(at, _): (usize, &Made)| (Change::Update, at as u64 + 1, Errno::EIO);
    let points: Vec<Point> = calls.iter().enumerate().filter(|(_, made)| is_sync(made)).map(of).collect();
    ensure!(points.len() > 8, "an update has {} syncs: the tracer is blind", points.len());
    let mut chance = Chance::new()?;
    let points = chance.shuffled(points);
    let what = format!("failed syncs (MOLT_TESTS_SEED={})", chance.seed());
    sweep(bed, &what, points, extent, strike).with_context(|| what.clone())
}

fn every(bed: &Bed, change: Change) -> anyhow::Result<()> {
    let mut chance = Chance::new()?;
    // Shuffled, so that a part of it says something of the whole.
    let mut all = chance.shuffled(points(change, &calls(bed, change)?));
    if let Some(one) = std::env::var_os("MOLT_TESTS_POINT") {
        all.retain(|(_, at, errno)| *format!("{at}:{errno:?}") == one);
    }
    let what = format!("errno sweep (all of {change:?}, MOLT_TESTS_SEED={})", chance.seed());
    sweep(bed, &what, all, Extent::All, strike).with_context(|| what.clone())
}
