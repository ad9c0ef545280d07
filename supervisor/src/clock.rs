//! The clocks: gaps are measured on CLOCK_MONOTONIC, as the shim does; deadlines and the count of starts on CLOCK_BOOTTIME
//! (`timer`); the wall clock is for people alone. No other file asks a clock: `supervisor/clippy.toml` sees to that.
//!
//! In: nothing. Out: numbers. Must not: be called from `molt-core`.

#![expect(clippy::disallowed_methods, reason = "the one place that asks")]

use std::time::Duration;

use molt_core::machine::Moment;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds, the clock the shim stamps exits with.
pub(crate) fn mono_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// CLOCK_BOOTTIME: goes on while the machine sleeps, and nobody can set it.
pub(crate) fn boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Both.
pub(crate) fn now() -> Moment {
    Moment { mono_ns: mono_ns(), unix_ms: unix_ms() }
}

/// RFC 3339 text of milliseconds since 1970.
pub(crate) fn text(unix_ms: u64) -> String {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
        .unwrap_or_default()
}
