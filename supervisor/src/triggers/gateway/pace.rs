//! How long to wait before something that failed is tried again.
//!
//! In: failures in a row. Out: pauses that double from a sixty-fourth of the longest, each less up to a third at random, so
//! that many sandboxes do not come back together. Must not: wait itself.

use std::time::Duration;

/// Counts failures in a row.
#[derive(Debug)]
pub(super) struct Pace {
    most: Duration,
    failed: u32,
}

impl Pace {
    /// With this for the longest pause.
    pub(super) fn new(most: Duration) -> Self {
        Self { most, failed: 0 }
    }

    /// It went well.
    pub(super) fn well(&mut self) {
        self.failed = 0;
    }

    /// It failed once more: the pause before the next attempt.
    pub(super) fn failed(&mut self) -> Duration {
        self.failed = self.failed.saturating_add(1).min(7);
        molt_oci::backoff(self.most / 64, self.failed).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_stay_below_the_longest() {
        let most = Duration::from_secs(64);
        let mut pace = Pace::new(most);
        for doubled in [1, 2, 4, 8, 16, 32, 64, 64, 64] {
            let (pause, full) = (pace.failed(), Duration::from_secs(doubled));
            assert!(pause <= full && pause >= full * 2 / 3, "{pause:?} of {full:?}");
        }
        pace.well();
        assert!(pace.failed() <= Duration::from_secs(1));
    }
}
