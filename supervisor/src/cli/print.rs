//! The two streams: data on standard output in the format asked for, people's text on standard error.
//!
//! In: documents and lines. Out: bytes. Must not: colour or animate what is not a terminal; pass on a character that drives
//! one; fail over a closed pipe with more than an exit status.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::{args::Format, fault::Fault};
use crate::observe::marked;

/// Writes to standard output.
pub(crate) fn out(bytes: &[u8]) -> Result<(), Fault> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Fault::Closed,
        _ => Fault::Local(format!("failed to write to standard output: {error}")),
    })
}

/// A line for people.
pub(crate) fn say(text: &str) {
    // Standard error may be closed; there is nobody to tell then.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Colours people know the meaning of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Fine.
    Good,
    /// Look here.
    Bad,
    /// By the way.
    Faint,
}

/// Knows the format and what standard error is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    format: Format,
    rich: bool,
}

impl Printer {
    /// For this process.
    pub(crate) fn new(format: Format) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { format, rich: !plain && io::stderr().is_terminal() }
    }

    /// Whether people's text may have colours and moving parts.
    pub(crate) fn is_rich(self) -> bool {
        self.rich
    }

    /// Whether a program reads standard output.
    pub(crate) fn is_data(self) -> bool {
        self.format != Format::Table
    }

    /// A document: in the data formats itself, else what `table` makes of it.
    pub(crate) fn document<T: Serialize + ?Sized>(
        self,
        document: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Fault> {
        let text = match self.format {
            Format::Table => table(document),
            Format::Json => json(document)? + "\n",
            Format::Yaml => yaml(document)?,
        };
        out(text.as_bytes())
    }

    /// One document of a stream.
    pub(crate) fn item<T: Serialize>(self, document: &T, line: impl FnOnce(&T) -> String) -> Result<(), Fault> {
        let text = match self.format {
            Format::Table => line(document),
            Format::Json => json_line(document)?,
            Format::Yaml => format!("---\n{}", yaml(document)?.trim_end()),
        };
        out(format!("{text}\n").as_bytes())
    }

    /// A faint line for people: what to type next.
    pub(crate) fn hint(self, text: &str) {
        say(&self.paint(Tone::Faint, text));
    }

    /// Text in a colour, where there are colours.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Faint => "2",
        };
        if self.rich { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Why the command ends with a status that is not 0.
    pub(crate) fn fault(self, fault: &Fault) {
        if matches!(fault, Fault::Closed) {
            return;
        }
        let text = fault.to_string();
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        say(&format!("{} {first}", self.paint(Tone::Bad, "molt:")));
        for line in lines {
            self.hint(line);
        }
    }

    /// `molt version`.
    pub(crate) fn version(self) -> Result<u8, Fault> {
        let version = serde_json::json!({"version": env!("CARGO_PKG_VERSION"), "api": molt_core::wire::API_VERSION});
        self.document(&version, |_| format!("molt {}\n", env!("CARGO_PKG_VERSION")))?;
        Ok(0)
    }
}

fn json<T: Serialize + ?Sized>(document: &T) -> Result<String, Fault> {
    let text = serde_json::to_string_pretty(document).map_err(|error| Fault::Local(error.to_string()))?;
    Ok(marked::json(&text))
}

fn json_line<T: Serialize + ?Sized>(document: &T) -> Result<String, Fault> {
    let text = serde_json::to_string(document).map_err(|error| Fault::Local(error.to_string()))?;
    Ok(marked::json(&text))
}

/// YAML; where it would hold a character that drives a terminal, in its flow style, which is JSON.
fn yaml<T: Serialize + ?Sized>(document: &T) -> Result<String, Fault> {
    let text = serde_saphyr::to_string(&document).map_err(|error| Fault::Local(error.to_string()))?;
    if text.chars().any(|c| marked::is_hostile(c) && c != '\n') {
        json(document).map(|text| text + "\n")
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_drives_no_terminal_and_reads_as_it_did() {
        let value = serde_json::json!({"a": "\u{9b}2J\u{85}\u{202e}\u{2028}\u{7f}\u{1b}", "b": "two\nlines\tand é"});
        for text in [json(&value).unwrap(), json_line(&value).unwrap(), yaml(&value).unwrap()] {
            assert!(!text.chars().any(|c| marked::is_hostile(c) && c != '\n'), "{text:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        }
        let fine = serde_json::json!({"b": "two\nlines"});
        assert!(yaml(&fine).unwrap().starts_with("b: "));
    }
}
