//! How long to wait before trying again, and when to stop.
//!
//! In: the error of an attempt. Out: a pause, or the error. Must not: retry what will never work.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use crate::{
    config::Limits,
    error::{Error, Result},
    fetch::Progress,
};

/// Counts the attempts of one request.
pub(crate) struct Pace<'a> {
    limits: &'a Limits,
    what: &'a str,
    progress: Option<&'a dyn Progress>,
    failed: u32,
    failed_in_all: u32,
}

impl<'a> Pace<'a> {
    pub(crate) fn new(limits: &'a Limits, what: &'a str, progress: Option<&'a dyn Progress>) -> Self {
        Self { limits, what, progress, failed: 0, failed_in_all: 0 }
    }

    /// An attempt brought something: it does not count against the next ones.
    pub(crate) fn moved(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt; gives the error back when there is none.
    pub(crate) async fn pause(&mut self, error: Error) -> Result<()> {
        self.failed += 1;
        self.failed_in_all += 1;
        if !error.transient() || self.failed >= self.limits.attempts || self.failed_in_all >= 10 * self.limits.attempts
        {
            return Err(error);
        }
        let asked = if let Error::Unavailable { after, .. } = &error { *after } else { None };
        let pause = asked.unwrap_or_else(|| backoff(self.limits.backoff, self.failed)).min(self.limits.backoff_max);
        if let Some(progress) = self.progress {
            progress.retry(self.what, pause, &error.to_string());
        }
        tracing::debug!(what = self.what, ?pause, %error, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Doubles each time, less up to a third at random, so that many sandboxes do not come back together.
pub fn backoff(base: Duration, failed: u32) -> Duration {
    let full = base.saturating_mul(1 << failed.saturating_sub(1).min(16));
    let random = u32::try_from(RandomState::new().hash_one(failed) % 1000).unwrap_or(0);
    full.saturating_sub(full / 3 * random / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_in_bounds() {
        for failed in 1..6 {
            let full = Duration::from_millis(500) * (1 << (failed - 1));
            let got = backoff(Duration::from_millis(500), failed);
            assert!(got <= full && got >= full * 2 / 3, "{got:?} of {full:?}");
        }
    }
}
