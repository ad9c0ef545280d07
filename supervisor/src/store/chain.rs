//! The chain through the history: every line says the hash of the one before it.
//!
//! In: records, and lines as they are in the files. Out: lines with `seq` and `prev`, and where a chain is broken. Must not:
//! do I/O; take lines for whole that are not. What a chain shows is that lines were changed, taken out or put in after they
//! were written; who can write the files and make all hashes anew is found out only by a hash that was noted elsewhere.

use molt_core::{
    ids::Digest,
    wire::{HistoryBreak, HistoryCheck},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Breaks that are told.
const TOLD: usize = 16;
/// `what` of the line that follows lines without a chain.
pub(super) const UNCHAINED: &str = "unchained lines";

/// Where a chain has come to: the next line says this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Of the newest line; 0 where there is none.
    pub(super) seq: u64,
    /// Of the newest line; zeros where there is none.
    pub(super) hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self { seq: 0, hash: "0".repeat(64) }
    }
}

/// What a line says of its place.
#[derive(Debug, Deserialize)]
pub(super) struct Link {
    pub(super) seq: Option<u64>,
    pub(super) prev: Option<String>,
    #[serde(default)]
    what: Option<String>,
}

impl Link {
    pub(super) fn of(line: &[u8]) -> Option<Self> {
        line.starts_with(b"{").then(|| serde_json::from_slice(line).ok()).flatten()
    }
}

/// SHA-256 of a line without its end, in hex.
pub(super) fn hash(line: &[u8]) -> String {
    Digest::from_bytes(Sha256::digest(line).into()).hex()
}

impl Head {
    /// The line of a record, which is a JSON object with at least one field, and with its end; the head moves on.
    pub(super) fn link(&mut self, record: &[u8]) -> Vec<u8> {
        self.seq += 1;
        let fields = record.strip_prefix(b"{").unwrap_or(record);
        let mut line = format!("{{\"seq\":{},\"prev\":\"{}\",", self.seq, self.hash).into_bytes();
        line.extend_from_slice(fields);
        self.hash = hash(&line);
        line.push(b'\n');
        line
    }

    /// As it is after a line that is in a file. Whether the line is of the chain.
    pub(super) fn pass(&mut self, line: &[u8]) -> bool {
        self.hash = hash(line);
        let seq = Link::of(line).and_then(|link| link.prev.and(link.seq));
        if let Some(seq) = seq {
            self.seq = seq;
        }
        seq.is_some()
    }
}

/// Goes along the lines of all files, oldest first.
#[derive(Debug, Default)]
pub(super) struct Walk {
    found: HistoryCheck,
    head: Option<Head>,
    /// Lines without a chain since the last one with it.
    loose: u64,
}

impl Walk {
    /// The next file.
    pub(super) fn file(&mut self, name: &str, bytes: &[u8]) {
        let mut rest = bytes;
        let mut number = 0;
        while !rest.is_empty() {
            number += 1;
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                return self.broken(name, number, "the line has no end".to_owned());
            };
            let (line, after) = rest.split_at(end);
            self.line(name, number, line);
            rest = after.get(1..).unwrap_or_default();
        }
    }

    fn broken(&mut self, file: &str, line: u64, why: String) {
        if self.found.breaks.len() < TOLD {
            self.found.breaks.push(HistoryBreak { file: file.to_owned(), line, why });
        }
    }

    fn line(&mut self, file: &str, number: u64, line: &[u8]) {
        self.found.lines += 1;
        let chained = self.found.first.is_some();
        let says = Link::of(line);
        let place = says.as_ref().and_then(|link| link.seq.zip(link.prev.clone()));
        let Some((seq, prev)) = place else {
            self.found.unchained += 1;
            self.loose += 1;
            if says.is_none() && chained {
                self.broken(file, number, "it is not a JSON object".to_owned());
            }
            self.head.get_or_insert_default().hash = hash(line);
            return;
        };
        if let Some(head) = self.head.clone() {
            if chained && seq != head.seq + 1 {
                let why = format!("seq is {seq} after {}: lines are missing, or in another order", head.seq);
                self.broken(file, number, why);
            }
            if prev != head.hash {
                let why = "prev is not the hash of the line before: one of the two was changed, or lines are missing";
                self.broken(file, number, why.to_owned());
            }
        } else if seq == 1 && prev != Head::default().hash {
            self.broken(file, number, "it is the first line, and speaks of one before it".to_owned());
        }
        let told = says.and_then(|link| link.what).is_some_and(|what| what == UNCHAINED);
        if chained && self.loose > 0 && !told {
            let why = format!("{} lines before it are not of the chain", self.loose);
            self.broken(file, number, why);
        }
        self.loose = 0;
        self.found.first.get_or_insert(seq);
        self.head = Some(Head { seq, hash: hash(line) });
    }

    /// What was found.
    pub(super) fn end(mut self) -> HistoryCheck {
        self.found.ok = self.found.breaks.is_empty();
        if self.found.first.is_some() {
            self.found.last = self.head.as_ref().map(|head| head.seq);
        }
        self.found.head = self.head.map(|head| head.hash);
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(records: usize) -> Vec<Vec<u8>> {
        let mut head = Head::default();
        (0..records).map(|number| head.link(format!("{{\"kind\":\"x\",\"n\":{number}}}").as_bytes())).collect()
    }

    fn check(lines: &[Vec<u8>]) -> HistoryCheck {
        let mut walk = Walk::default();
        walk.file("history.jsonl", &lines.concat());
        walk.end()
    }

    #[test]
    fn a_whole_chain_is_whole_wherever_its_oldest_files_end() {
        let lines = chain(9);
        for from in 0..9 {
            let mut walk = Walk::default();
            walk.file("history.jsonl.1", &lines[from..from.max(5)].concat());
            walk.file("history.jsonl", &lines[from.max(5)..].concat());
            let found = walk.end();
            assert!(found.ok, "{found:?}");
            assert_eq!((found.first, found.last), (Some(from as u64 + 1), Some(9)));
            assert_eq!(found.head, Some(hash(lines[8].strip_suffix(b"\n").unwrap())));
        }
        assert!(check(&[]).ok);
    }

    #[test]
    fn every_line_that_is_changed_taken_out_put_in_or_moved_is_found() {
        let lines = chain(6);
        for at in 0..6 {
            let broken = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
                let mut lines = lines.clone();
                change(&mut lines);
                let found = check(&lines);
                assert!(!found.ok, "line {at}: {found:?}");
            };
            // The newest has none after it that would tell; its hash is the head.
            if at < 5 {
                broken(&|lines| {
                    let place = lines[at].len() - 3;
                    lines[at][place] ^= 1;
                });
                broken(&|lines| lines.swap(at, at + 1));
                if at > 0 {
                    broken(&|lines| drop(lines.remove(at)));
                }
            }
            broken(&|lines| lines.insert(at + 1, lines[at].clone()));
            let end = lines[at].len() - 1;
            broken(&|lines| lines[at].truncate(end));
            broken(&|lines| lines[at].truncate(9));
        }
        let mut changed = lines.clone();
        *changed[5].iter_mut().rev().nth(2).unwrap() ^= 1;
        assert_ne!(check(&changed).head, check(&lines).head);
    }

    #[test]
    fn lines_of_before_there_was_a_chain_are_where_it_begins() {
        let mut head = Head::default();
        let mut lines = vec![b"{\"id\":\"u1\"}\n".to_vec(), b"not even json\n".to_vec(), b"{\"id\":\"u2\"}\n".to_vec()];
        for line in &lines {
            assert!(!head.pass(line.strip_suffix(b"\n").unwrap()));
        }
        lines.push(head.link(b"{\"kind\":\"x\"}"));
        let found = check(&lines);
        assert!(found.ok, "{found:?}");
        assert_eq!((found.unchained, found.first, found.lines), (3, Some(1), 4));
        lines[2][3] = b'x';
        assert!(!check(&lines).ok, "what the chain begins with is held by it");
    }

    #[test]
    fn an_older_molts_lines_in_between_are_told_and_held() {
        let mut head = Head::default();
        let mut lines = vec![head.link(b"{\"kind\":\"x\"}"), b"{\"id\":\"u2\"}\n".to_vec()];
        assert!(!head.pass(b"{\"id\":\"u2\"}"));
        let told = head.link(format!("{{\"kind\":\"repair\",\"what\":\"{UNCHAINED}\"}}").as_bytes());
        lines.push(told);
        let found = check(&lines);
        assert!(found.ok && found.unchained == 1 && found.last == Some(2), "{found:?}");
        lines.remove(1);
        assert!(!check(&lines).ok);
    }
}
