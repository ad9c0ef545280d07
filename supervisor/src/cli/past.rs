//! `molt history --all`, `--kind` and `--verify`: the lines of the history as they were written.
//!
//! In: lines from the API. Out: a table, or what was found. Must not: change anything.

use std::fmt::Write as _;

use molt_core::wire::HistoryCheck;
use serde_json::Value;

use super::{
    client::Client,
    fault::Fault,
    print::{Printer, Tone, say},
    text,
};

/// Longest text of a cell.
const CELL: usize = 60;

/// `molt history --all` and `--kind KIND`.
pub(crate) async fn lines(printer: Printer, client: &Client, kind: Option<String>) -> Result<u8, Fault> {
    if let Some(kind) = kind.as_ref().filter(|kind| !kind.bytes().all(|byte| byte.is_ascii_alphabetic())) {
        return Err(Fault::Usage(format!("'{}' is no kind of line", text::clean(kind))));
    }
    let path = kind.map_or_else(|| "/v1/history".to_owned(), |kind| format!("/v1/history?kind={kind}"));
    let lines: Vec<Value> = client.get(&path).await?;
    printer.document(lines.as_slice(), table)?;
    Ok(0)
}

/// Newest first.
pub(crate) fn table(lines: &[Value]) -> String {
    text::table(["SEQ", "KIND", "WHAT", "OUTCOME", "WHEN", "BY", "MORE"], lines.iter().rev().map(row))
}

fn row(line: &Value) -> [String; 7] {
    let word = |name: &str| match line.get(name) {
        Some(Value::String(text)) => text::line(text, CELL),
        Some(Value::Null) | None => String::new(),
        Some(other) => text::line(&other.to_string(), CELL),
    };
    let or = |first: String, second: String| if first.is_empty() { second } else { first };
    let outcome = [word("outcome"), word("reason")].iter().filter(|word| !word.is_empty()).cloned().collect::<Vec<_>>();
    let count = line.get("count").and_then(Value::as_u64).map(|count| format!("{count} times")).unwrap_or_default();
    let more = [word("update"), word("id"), word("detail"), word("message"), count];
    let more = more.iter().filter(|word| !word.is_empty()).cloned().collect::<Vec<_>>().join(" ");
    [
        word("seq"),
        word("kind"),
        or(word("what"), or(word("image"), word("argv"))),
        outcome.join(": "),
        text::time(&or(word("time"), word("started"))),
        text::line(&word("by"), 40),
        text::line(&more, CELL),
    ]
}

/// `molt history --verify`: 1 where it is broken.
pub(crate) async fn verify(printer: Printer, client: &Client) -> Result<u8, Fault> {
    let check: HistoryCheck = client.get("/v1/history/verify").await?;
    printer.document(&check, found)?;
    if check.ok {
        return Ok(0);
    }
    say(&printer.paint(Tone::Bad, "the history is not as it was written"));
    Ok(1)
}

/// What was found, in lines.
pub(crate) fn found(check: &HistoryCheck) -> String {
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let mut text = text::pairs([
        ("Lines", Some(check.lines.to_string())),
        ("Chain", Some(format!("{} to {}", number(check.first), number(check.last)))),
        ("Without a chain", (check.unchained > 0).then(|| check.unchained.to_string())),
        ("Head", check.head.clone()),
        ("Broken", (check.ok).then(|| "nowhere".to_owned())),
    ]);
    for one in &check.breaks {
        let (file, why) = (text::clean(&one.file), text::clean(&one.why));
        let _ = writeln!(text, "broken at {file}:{}: {why}", one.line);
    }
    text
}
