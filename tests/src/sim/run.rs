//! Many seeds: how they are shared among processors, and what is told of them.
//!
//! In: a first seed and a count. Out: a [`Report`]. Must not: let one seed know of another.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    coverage::Coverage,
    judge::Broken,
    world::{Plant, World},
};

/// Names the first seed: every run with it is the same.
pub const SEED: &str = "MOLT_SIM_SEED";

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The first seed.
    pub base: u64,
    /// Seeds run.
    pub seeds: u64,
    /// Calls of the simulated file system.
    pub calls: u64,
    /// Faults it answered.
    pub faults: u64,
    /// Starts of PID 1.
    pub starts: u64,
    /// Kills and power cuts.
    pub blows: u64,
    /// Pairs and outcomes.
    pub coverage: Coverage,
    /// The first broken promise of a seed, for the lowest such seed.
    pub broken: Option<(u64, Broken)>,
    /// How long it took.
    pub took: Duration,
}

/// The first seed: that of the environment, or another one every run.
pub fn base() -> u64 {
    let given = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Short enough to be typed.
        now.as_secs() % 1_000_000_000 * 1_000_000
    })
}

/// One seed.
pub fn one(seed: u64, plant: Option<Plant>, traced: bool) -> (World, Result<(), Broken>) {
    let mut world = World::new(seed, plant, traced);
    let verdict = catch_unwind(AssertUnwindSafe(|| world.run()));
    let verdict = verdict.unwrap_or_else(|_| Err("something panicked".to_owned()));
    (world, verdict)
}

/// One seed, with the wall clock set by so many milliseconds.
pub fn shifted(seed: u64, by: i64) -> (World, Result<(), Broken>) {
    let mut world = World::new(seed, None, false);
    world.set_clock(by);
    let verdict = world.run();
    (world, verdict)
}

/// `count` seeds from `base` on, or as many as `limit` allows; stops at the first broken promise.
pub fn many(base: u64, count: u64, limit: Option<Duration>, plant: Option<Plant>) -> Report {
    let started = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let worker = || {
        let mut report = Report { base, ..Report::default() };
        while !stop.load(Ordering::Relaxed) && limit.is_none_or(|limit| started.elapsed() < limit) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            let seed = base.wrapping_add(index);
            let (world, verdict) = one(seed, plant, false);
            let (calls, faults) = world.figures();
            report.seeds += 1;
            report.calls += calls;
            report.faults += faults;
            report.starts += world.starts;
            report.blows += world.blows;
            report.coverage.add(&world.coverage);
            if let Err(broken) = verdict {
                report.broken = Some((seed, broken));
                stop.store(true, Ordering::Relaxed);
            }
        }
        report
    };
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut all = Report { base, ..Report::default() };
    for report in reports {
        all.seeds += report.seeds;
        all.calls += report.calls;
        all.faults += report.faults;
        all.starts += report.starts;
        all.blows += report.blows;
        all.coverage.add(&report.coverage);
        all.broken = match (all.broken.take(), report.broken) {
            (Some(one), Some(other)) => Some(if one.0 <= other.0 { one } else { other }),
            (one, other) => one.or(other),
        };
    }
    all.took = started.elapsed();
    all
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { base, seeds, calls, faults, starts, blows, coverage, took, .. } = self;
        write!(
            f,
            "{seeds} seeds from {base} in {:.1} s: {} events, {calls} calls of the file system, {faults} of them failed, \
             {blows} kills and power cuts, {starts} starts, {} pairs of phase and event; ends: {:?}",
            took.as_secs_f64(),
            coverage.events(),
            coverage.pairs(),
            coverage.ends,
        )
    }
}
