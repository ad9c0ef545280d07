//! Chance that can be had again: a share of many cases, drawn by a seed that is printed.
//!
//! In: `MOLT_TESTS_SEED`, else the time. Out: the seed, numbers, shares. Must not: draw differently for the same seed.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

/// A generator; xorshift64*, which is good enough to choose cases by.
#[derive(Debug, Clone)]
pub struct Chance {
    seed: u64,
    state: u64,
}

impl Chance {
    /// From `MOLT_TESTS_SEED` where that is set; else another one each time.
    pub fn new() -> anyhow::Result<Self> {
        let seed = match std::env::var("MOLT_TESTS_SEED") {
            Ok(text) => text.parse().context("MOLT_TESTS_SEED is a number")?,
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        Ok(Self::of(seed))
    }

    /// From a seed.
    pub const fn of(seed: u64) -> Self {
        // Not 0, where xorshift stands still; spread, so that seeds in a row differ in more than their last bits.
        Self { seed, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// What it was made from.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let drawn = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(drawn).unwrap_or(0) % limit.max(1)
    }

    /// `all` in another order.
    #[must_use]
    pub fn shuffled<T>(&mut self, mut all: Vec<T>) -> Vec<T> {
        for end in (1..all.len()).rev() {
            all.swap(end, self.below(end + 1));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_and_every_case_once() {
        let drawn = Chance::of(7).shuffled((0..100).collect());
        assert_eq!(drawn, Chance::of(7).shuffled((0..100).collect::<Vec<_>>()));
        assert_ne!(drawn, Chance::of(8).shuffled((0..100).collect::<Vec<_>>()));
        let mut sorted = drawn;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}
