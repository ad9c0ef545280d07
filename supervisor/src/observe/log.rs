//! The supervisor's own log: lines on standard error, text or JSON, level from `MOLT_LOG`.
//!
//! In: tracing events. Out: standard error of the container, a line each, whatever text of others is in them. Must not: hold
//! secrets; wait for whoever reads it, or fail with him.

use tracing_subscriber::EnvFilter;

/// Takes each event whole, in one write.
#[derive(Clone, Copy)]
enum Line {
    Text,
    /// It spells some control characters out already, in its own way.
    Json,
}

impl std::io::Write for Line {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Text => super::standard::log(one(line).as_bytes()),
            Self::Json => super::standard::log(super::marked::json(&String::from_utf8_lossy(line)).as_bytes()),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An event as one line, whatever its fields hold.
fn one(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event.strip_suffix(b"\n").unwrap_or(event));
    super::marked::escape(&text, |c| c == '\t') + "\n"
}

/// Installs the subscriber; `MOLT_LOG` as in `info` or `molt=debug`, `MOLT_LOG_FORMAT=json` for JSON lines;
/// `MOLT_OUTPUT=lines` marks the workload's.
pub(crate) fn install() {
    let filter = EnvFilter::try_from_env("MOLT_LOG").unwrap_or_else(|_| EnvFilter::new("warn,molt=info"));
    let json = std::env::var_os("MOLT_LOG_FORMAT").is_some_and(|format| format == "json");
    let form = if json { Line::Json } else { Line::Text };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || form).with_target(false);
    // Of which it would tell standard error, and panic where that fails.
    let builder = builder.log_internal_errors(false);
    // A second installation (tests in one process) keeps the first.
    let _ = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
    super::marked::install();
}

/// The wall clock as RFC 3339 in UTC with milliseconds. For people and the audit; never for deadlines.
pub(crate) fn now() -> String {
    crate::clock::text(crate::clock::unix_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        assert_eq!(one(b"INFO a\tb\n"), "INFO a\tb\n");
        assert_eq!(one(b"INFO a\nERROR b\x1b[2J\n"), "INFO a\\nERROR b\\u{1b}[2J\n");
    }
}
