//! The supervisor's own log: lines on standard error, text or JSON, level from `MOLT_LOG`.
//!
//! In: tracing events. Out: standard error of the container. Must not: hold secrets; escape the workload's text here; wait
//! for whoever reads it, or fail with him.

use tracing_subscriber::EnvFilter;

/// Takes each event whole, in one write.
struct Line;

impl std::io::Write for Line {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        super::standard::log(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Installs the subscriber; `MOLT_LOG` as in `info` or `molt=debug`, `MOLT_LOG_FORMAT=json` for JSON lines.
pub(crate) fn install() {
    let filter = EnvFilter::try_from_env("MOLT_LOG").unwrap_or_else(|_| EnvFilter::new("warn,molt=info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Line).with_target(false);
    // Of which it would tell standard error, and panic where that fails.
    let builder = builder.log_internal_errors(false);
    let json = std::env::var_os("MOLT_LOG_FORMAT").is_some_and(|format| format == "json");
    // A second installation (tests in one process) keeps the first.
    let _ = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
}

/// The wall clock as RFC 3339 in UTC with milliseconds. For people and the audit; never for deadlines.
pub(crate) fn now() -> String {
    crate::clock::text(crate::clock::unix_ms())
}
