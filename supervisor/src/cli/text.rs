//! Small pieces of text for people: times, sizes, downtimes, tables, and text that others wrote.
//!
//! In: numbers and untrusted text. Out: text fit for a terminal. Must not: pass on a control character that could move
//! the cursor, rename the window or hide a line.

use comfy_table::{Table, presets};

use crate::observe::marked::escape;

/// Text of others as part of a line: control characters are spelled out, newlines too.
pub(crate) fn clean(text: &str) -> String {
    escape(text, |c| c == '\t')
}

/// Text that may have more lines than one. What follows the first is indented: none of it looks like a line of Molt's.
pub(crate) fn block(text: &str) -> String {
    escape(text.trim_end(), |c| c == '\n' || c == '\t').replace('\n', "\n  ")
}

/// A line of output, with colours but with no other control sequence.
pub(crate) fn clean_line(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        let (before, sequence) = rest.split_at(at);
        safe.push_str(&escape(before, |c| c == '\t'));
        let colour = sequence.get(2..).and_then(|tail| {
            let end = tail.find(|c: char| !c.is_ascii_digit() && c != ';')?;
            tail.get(end..)?.starts_with('m').then_some(end + 3)
        });
        let (kept, tail) = sequence.split_at(colour.unwrap_or(2));
        if colour.is_some() {
            safe.push_str(kept);
        } else {
            safe.push_str(&escape(kept, |_| false));
        }
        rest = tail;
    }
    safe.push_str(&escape(rest, |c| c == '\t'));
    safe
}

/// A downtime: `0.8 ms`, `340 ms`, `2.1 s`.
pub(crate) fn micros(us: u64) -> String {
    let (ms, tenth) = (us / 1000, us % 1000 / 100);
    match us {
        0..10_000 => format!("{ms}.{tenth} ms"),
        10_000..1_000_000 => format!("{ms} ms"),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

/// A size: `812 B`, `3.4 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    let units = [("TiB", 40u32), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| count >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (u128::from(count) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{count} B"),
    }
}

/// Seconds left, rounded up: `9 s`, `2 min`.
pub(crate) fn seconds(left: std::time::Duration) -> String {
    match left.as_secs() + u64::from(left.subsec_millis() > 0) {
        seconds @ 0..=120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

/// A time of the wire as a person reads it: seconds, no fraction.
pub(crate) fn time(text: &str) -> String {
    clean(&text.get(..19).map_or_else(|| text.to_owned(), |whole| format!("{}Z", whole.replace('T', " "))))
}

/// One line, cut to `width` characters.
pub(crate) fn line(text: &str, width: usize) -> String {
    let one = text.lines().next().unwrap_or_default();
    let mut cut: String = clean(one).chars().take(width).collect();
    if one.chars().count() > width {
        cut.push('…');
    }
    cut
}

/// A table without lines, as `kubectl` prints it.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = plain();
    table.set_header(header);
    table.add_rows(rows);
    finish(&table)
}

/// Names and values in two columns; rows without a value are left out.
pub(crate) fn pairs(rows: impl IntoIterator<Item = (&'static str, Option<String>)>) -> String {
    let mut table = plain();
    for (name, value) in rows {
        if let Some(value) = value {
            table.add_row([name.to_owned(), value]);
        }
    }
    finish(&table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn finish(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        // The style pads each cell by one space on both sides.
        let line = line.strip_prefix(' ').unwrap_or(&line);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
