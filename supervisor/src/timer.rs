//! Waiting, by CLOCK_BOOTTIME: it goes on while the machine sleeps, and nobody can set it.
//!
//! In: how long, or until when. Out: the end of the wait. Must not: look at the wall clock. The runtime's own timers stand
//! still while the machine sleeps; they are for what talks to a socket, never for a deadline of an update.

use std::{
    ops::Add,
    os::fd::OwnedFd,
    pin::pin,
    time::{Duration, Instant as Steady},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::{clock, watch};

/// A point of CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(Duration);

impl Instant {
    /// Now.
    pub(crate) fn now() -> Self {
        Self(clock::boot())
    }

    /// From `earlier` to this; zero if that is not earlier.
    pub(crate) fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Since then.
    pub(crate) fn elapsed(self) -> Duration {
        Self::now().saturating_duration_since(self)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, more: Duration) -> Self {
        Self(self.0.saturating_add(more))
    }
}

/// It was not done in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Late;

/// Waits for `limit`.
pub(crate) async fn sleep(limit: Duration) {
    sleep_until(Instant::now() + limit).await;
}

/// Waits until then.
pub(crate) async fn sleep_until(until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return tokio::task::yield_now().await;
    }
    match armed(until) {
        Ok(timer) => drop(timer.readable().await),
        // No descriptor is left: a timer that stands still while the machine sleeps is better than none.
        Err(_) => fallback(left).await,
    }
}

#[expect(clippy::disallowed_methods, reason = "where the kernel gives no timer of its own")]
async fn fallback(left: Duration) {
    // Far beyond what a timer wheel takes is never.
    match Steady::now().checked_add(left) {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// What `future` gives, if it does within `limit`.
pub(crate) async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Late> {
    timeout_at(Instant::now() + limit, future).await
}

/// What `future` gives, if it does until then.
pub(crate) async fn timeout_at<F: Future>(until: Instant, future: F) -> Result<F::Output, Late> {
    let (future, late) = (pin!(future), pin!(sleep_until(until)));
    tokio::select! {
        biased;
        done = future => Ok(done),
        () = late => Err(Late),
    }
}

/// A timer that is readable once `until` is over.
fn armed(until: Instant) -> std::io::Result<AsyncFd<OwnedFd>> {
    let fd = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let seconds = i64::try_from(until.0.as_secs()).unwrap_or(i64::MAX);
    let at = Timespec { tv_sec: seconds, tv_nsec: until.0.subsec_nanos().into() };
    let once = Itimerspec { it_interval: Timespec::default(), it_value: at };
    timerfd_settime(&fd, TimerfdTimerFlags::ABSTIME, &once)?;
    watch::readable(fd)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_wait_is_as_long_as_was_asked_for_and_on_the_boot_time_clock() {
        run(async {
            let began = Instant::now();
            sleep(Duration::from_millis(30)).await;
            assert!(began.elapsed() >= Duration::from_millis(30));
            let timer = armed(Instant::now() + Duration::from_hours(1)).unwrap();
            let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", timer.as_raw_fd())).unwrap();
            // CLOCK_BOOTTIME, TFD_TIMER_ABSTIME.
            assert!(about.contains("clockid: 7\n") && about.contains("settime flags: 01\n"), "{about}");
        });
    }

    #[test]
    fn what_is_done_in_time_is_given_and_what_is_not_is_late() {
        run(async {
            assert_eq!(timeout(Duration::from_hours(1), async { 7 }).await, Ok(7));
            assert_eq!(timeout(Duration::ZERO, async { 7 }).await, Ok(7));
            assert_eq!(timeout(Duration::from_millis(5), std::future::pending::<()>()).await, Err(Late));
            assert_eq!(timeout(Duration::MAX, async { 7 }).await, Ok(7));
        });
    }

    #[test]
    fn a_wait_without_an_end_does_not_end_at_once() {
        run(async {
            let short = timeout(Duration::from_millis(20), sleep(Duration::MAX)).await;
            assert_eq!(short, Err(Late));
        });
    }

    #[test]
    fn without_a_descriptor_it_is_waited_all_the_same() {
        run(async {
            let began = Instant::now();
            fallback(Duration::from_millis(10)).await;
            assert!(began.elapsed() >= Duration::from_millis(10));
        });
    }
}
