//! What all sweeps together tried, for the last line of a run.
//!
//! In: counts of one sweep. Out: their sums. Must not: count a fault that was not met.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Points tried in the real program.
    pub points: u64,
    /// Faults that it met: errors, kills, power cuts, wants.
    pub faults: u64,
    /// Points after which something was not as promised.
    pub unrecovered: u64,
    /// Seeds of the simulator.
    pub seeds: u64,
    /// Faults, kills and power cuts in those.
    pub simulated: u64,
}

static ALL: Mutex<Tally> = Mutex::new(Tally { points: 0, faults: 0, unrecovered: 0, seeds: 0, simulated: 0 });

/// Adds what one sweep tried.
pub fn add(more: Tally) {
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.points += more.points;
    all.faults += more.faults;
    all.unrecovered += more.unrecovered;
    all.seeds += more.seeds;
    all.simulated += more.simulated;
}

/// The sums; none where nothing was tried.
pub fn all() -> Option<Tally> {
    let all = *ALL.lock().unwrap_or_else(PoisonError::into_inner);
    (all != Tally::default()).then_some(all)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { points, faults, unrecovered, seeds, simulated } = self;
        write!(
            f,
            "points tried: {points}, faults injected: {faults}, simulated: {simulated} in {seeds} worlds, \
             unrecovered: {unrecovered}"
        )
    }
}
