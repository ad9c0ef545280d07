//! Trying many points, each by itself: what the sweeps have in common.
//!
//! In: points, and how one is tried. Out: how many there were, how each ended, which were not recovered. Must not: know
//! what strikes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sched::CpuSet;
use nix::unistd::Pid;

use super::ground::Ground;
use super::scene::{Change, Scene};
use crate::harness::bed::Bed;
use crate::harness::tally::{self, Tally};
use crate::harness::tracer::wire::{Made, Which};

/// Sandboxes at once, where every point is wanted.
const WORKERS: usize = 8;
/// After so many unrecovered ones the rest says nothing new.
const ENOUGH: usize = 12;

/// The scenes of one worker, made when they are first wanted.
pub(super) struct Scenes<'a> {
    bed: &'a Bed,
    made: BTreeMap<(Change, Ground), Scene<'a>>,
}

impl<'a> Scenes<'a> {
    pub(super) fn get(&mut self, change: Change, ground: Ground) -> anyhow::Result<&Scene<'a>> {
        match self.made.entry((change, ground)) {
            Entry::Occupied(made) => Ok(made.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(Scene::prepare(self.bed, change, ground)?)),
        }
    }
}

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub(super) enum Extent {
    /// What can be until then, by one worker.
    Share(Instant),
    /// All; where `MOLT_TESTS_MINUTES` is set, what can be in so many.
    All,
}

impl Extent {
    /// A share that ends so long from now.
    pub(super) fn share(time: Duration) -> Self {
        Self::Share(Instant::now() + time)
    }

    fn until(self) -> anyhow::Result<Option<Instant>> {
        match (self, std::env::var("MOLT_TESTS_MINUTES")) {
            (Self::Share(until), _) => Ok(Some(until)),
            (Self::All, Err(_)) => Ok(None),
            (Self::All, Ok(text)) => {
                let minutes = text.parse().context("MOLT_TESTS_MINUTES is a number")?;
                Ok(Some(Instant::now() + Duration::from_mins(minutes)))
            }
        }
    }
}

/// What a change does when nothing strikes; the same twice in a row.
pub(super) fn counted(bed: &Bed, change: Change, ground: Ground, which: Which) -> anyhow::Result<Vec<Made>> {
    let scene = Scene::prepare(bed, change, ground).with_context(|| format!("preparing {change:?}"))?;
    let (mut first, mut second) = (scene.dry(which)?, scene.dry(which)?);
    // Where the machine is busy with something else a timer may come once more, or once less.
    for _ in 0..2 {
        if differing(&first, &second).is_empty() {
            break;
        }
        (first, second) = (second, scene.dry(which)?);
    }
    let differ = differing(&first, &second);
    ensure!(
        differ.is_empty(),
        "{change:?} is not the same twice: {} and {} calls\n{}",
        first.len(),
        second.len(),
        differ.join("\n")
    );
    tell(change, &first);
    Ok(first)
}

/// With `MOLT_TESTS_TIMES` set, says what a change does.
pub(super) fn tell(change: Change, calls: &[Made]) {
    if std::env::var_os("MOLT_TESTS_TIMES").is_some() {
        let lines: Vec<String> = calls.iter().map(|made| format!("{} {}", made.call, made.file)).collect();
        eprintln!("{change:?}:\n  {}", lines.join("\n  "));
    }
}

/// Whether it waits until something is on disk.
pub(super) fn is_sync(made: &Made) -> bool {
    ["fsync", "fdatasync", "syncfs"].iter().any(|name| made.call.split(' ').nth(1) == Some(name))
}

fn differing(one: &[Made], other: &[Made]) -> Vec<String> {
    let mut balance: BTreeMap<&str, i64> = BTreeMap::new();
    for made in one {
        *balance.entry(&made.call).or_default() += 1;
    }
    for made in other {
        *balance.entry(&made.call).or_default() -= 1;
    }
    balance.into_iter().filter(|(_, more)| *more != 0).map(|(call, more)| format!("{more:+} {call}")).collect()
}

/// This thread and what it starts have one processor: a tracer and what it traces take turns, and waking another processor
/// for each turn costs more than the turn.
fn stay_on(worker: usize) -> anyhow::Result<()> {
    let all = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
    let there: Vec<usize> = (0..CpuSet::count()).filter(|number| all.is_set(*number).unwrap_or(false)).collect();
    let mut one = CpuSet::new();
    one.set(*there.get(worker % there.len().max(1)).context("no processor")?)?;
    nix::sched::sched_setaffinity(Pid::from_raw(0), &one).context("staying on a processor")
}

/// Tries `points` as far as `extent` allows; says how many there were. A point is nothing where its call was never made.
pub(super) fn sweep<P, E>(
    bed: &Bed,
    what: &str,
    points: Vec<P>,
    extent: Extent,
    strike: impl Fn(&mut Scenes<'_>, &P) -> anyhow::Result<Option<E>> + Sync,
) -> anyhow::Result<()>
where
    P: Debug + Send,
    E: Debug + Ord + Send,
{
    let (began, until, total) = (Instant::now(), extent.until()?, points.len());
    let workers = if matches!(extent, Extent::Share(_)) { 1 } else { WORKERS };
    let todo = Mutex::new(points.into_iter());
    let failures = Mutex::new(Vec::new());
    let endings = Mutex::new(BTreeMap::<Option<E>, usize>::new());
    // Two suites at once are not to share the first processor.
    let first = fastrand::usize(..64);
    let work = |worker: usize| -> anyhow::Result<()> {
        stay_on(first + worker)?;
        let mut scenes = Scenes { bed, made: BTreeMap::new() };
        loop {
            let late = until.is_some_and(|until| Instant::now() >= until);
            if late || failures.lock().unwrap_or_else(PoisonError::into_inner).len() >= ENOUGH {
                return Ok(());
            }
            let next = todo.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(point) = next else { return Ok(()) };
            match strike(&mut scenes, &point) {
                Ok(ending) => *endings.lock().unwrap_or_else(PoisonError::into_inner).entry(ending).or_default() += 1,
                Err(error) => {
                    let text = format!("{point:?}: {error:#}");
                    failures.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                }
            }
        }
    };
    let work = &work;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        all.into_iter().try_for_each(|worker| worker.join().expect("a worker returns its errors"))
    })?;
    let endings = endings.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (tried, seconds) = (endings.values().sum::<usize>() + failures.len(), began.elapsed().as_secs_f64());
    let not_met = endings.get(&None).copied().unwrap_or(0);
    tally::add(Tally {
        points: tried as u64,
        faults: (tried - not_met) as u64,
        unrecovered: failures.len() as u64,
        ..Tally::default()
    });
    let endings: BTreeMap<E, usize> =
        endings.into_iter().filter_map(|(ending, count)| Some((ending?, count))).collect();
    let each = seconds / f64::from(u32::try_from(tried)?.max(1));
    println!(
        "{what}: {tried} points tried of {total}, {not_met} not met, {} unrecovered; {endings:?}; {seconds:.1} s, \
         {each:.2} each",
        failures.len(),
    );
    ensure!(tried > 0, "nothing was tried");
    ensure!(failures.is_empty(), "{} points:\n{}", failures.len(), failures.join("\n\n"));
    Ok(())
}
