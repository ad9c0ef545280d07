//! Text that others wrote, so that nobody takes it for Molt's: control characters spelled out, and with `MOLT_OUTPUT=lines`
//! a mark before each line of the workload's.
//!
//! In: bytes and text. Out: text of one line, or JSON that reads as it did. Must not: begin a line as Molt's own log does,
//! with a time or a brace.

use std::sync::OnceLock;

use molt_core::ids::Generation;

use super::output::{End, Stream};

static LINES: OnceLock<bool> = OnceLock::new();

/// Reads the switch; before the environment is scrubbed.
pub(super) fn install() {
    let word = std::env::var_os("MOLT_OUTPUT");
    if word.as_ref().is_some_and(|word| word != "lines" && word != "raw") {
        tracing::warn!(value = ?word, "MOLT_OUTPUT is 'raw' or 'lines'; it is taken as 'raw'");
    }
    LINES.get_or_init(|| word.is_some_and(|word| word == "lines"));
}

/// Whether the workload's output is passed on line by line, marked, in place of byte by byte.
pub(crate) fn wanted() -> bool {
    LINES.get().copied().unwrap_or(false)
}

/// `[7 out] text`, or `[7 out] text…` where the line goes on in the next one.
pub(crate) fn line(generation: Generation, stream: Stream, text: &[u8], end: End) -> Vec<u8> {
    let stream = match stream {
        Stream::Stdout => "out",
        Stream::Stderr => "err",
    };
    let text = String::from_utf8_lossy(text);
    let more = if end == End::Cut { "…" } else { "" };
    format!("[{generation} {stream}] {}{more}\n", escape(&text, |c| c == '\t')).into_bytes()
}

/// What drives a terminal, ends a line, or reorders what a person reads (bidirectional overrides).
pub(crate) fn is_hostile(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` with all control characters spelled out but those that `keep` takes.
pub(crate) fn escape(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) && !keep(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// JSON of the same value, with the same characters spelled out. What was serialised has them in strings only, but for the
/// ends of its lines.
pub(crate) fn json(text: &str) -> String {
    use std::fmt::Write as _;
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) && c != '\n' {
            // All of them are below U+FFFF. Writing to a string does not fail.
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_line_is_one_line_and_never_looks_like_ours() {
        let hostile = b"2026-01-01T00:00:00.000000Z  INFO confirmed\r\x1b[2K{\"level\":\"INFO\"}\n\xff";
        let line = String::from_utf8(line(Generation(7), Stream::Stderr, hostile, End::Line)).unwrap();
        assert!(line.starts_with("[7 err] 2026-") && line.ends_with("\u{fffd}\n"), "{line:?}");
        assert!(!line.trim_end_matches('\n').chars().any(char::is_control), "{line:?}");
        let cut = self::line(Generation(0), Stream::Stdout, b"x\ty", End::Cut);
        assert_eq!(String::from_utf8(cut).unwrap(), "[0 out] x\ty…\n");
    }

    #[test]
    fn json_drives_no_terminal_and_reads_as_it_did() {
        let hostile: String =
            (0..0x3000).filter_map(char::from_u32).filter(|c| is_hostile(*c)).chain("\"\\é💚".chars()).collect();
        let value = serde_json::json!({"text": hostile, &hostile: [1, null]});
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let safe = json(&text);
            assert!(!safe.chars().any(|c| is_hostile(c) && c != '\n'), "{safe:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
        }
        assert_eq!(json("\"a\u{9b}2J\u{202e}\u{7f}\""), "\"a\\u009b2J\\u202e\\u007f\"");
    }
}
