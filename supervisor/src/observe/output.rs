//! The workload's output: passed on to the container's own streams and kept in a bounded ring for `molt logs`.
//!
//! In: bytes from the pipes of the generations. Out: lines, numbered. Must not: block the workload for long, grow, or
//! parse what it carries. A line longer than 16 KiB is split, and its pieces say so; the oldest lines go first.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use molt_core::ids::Generation;
use tokio::sync::watch;

use crate::clock;

const KEPT_BYTES: usize = 1 << 20;
const KEPT_LINES: usize = 1 << 14;
/// More of one line is the next line.
pub(crate) const LINE_BYTES: usize = 16 << 10;

/// How a line ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With a newline, or with the stream.
    Line,
    /// It goes on, and was cut.
    Cut,
}

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line, without its newline.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub(crate) struct Line {
    /// Rises by one a line.
    pub(crate) seq: u64,
    /// When it was read.
    pub(crate) time: String,
    /// Who wrote it.
    pub(crate) generation: Generation,
    /// Where to.
    pub(crate) stream: Stream,
    /// The text; bytes that are not UTF-8 are replaced.
    pub(crate) text: String,
    /// Whether the same line goes on in the next one of its stream: it was longer than 16 KiB.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) more: bool,
}

/// Shared by everyone; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct OutputRing {
    inner: Arc<Mutex<Ring>>,
    last: Arc<watch::Sender<u64>>,
}

/// What is kept of a line beside its bytes.
#[derive(Debug, Clone, Copy)]
struct Mark {
    unix_ms: u64,
    generation: Generation,
    length: u16,
    stream: Stream,
    more: bool,
}

/// The bytes of the lines, and the lines. Room for either grows to what is kept, and is not given back.
#[derive(Debug, Default)]
struct Ring {
    bytes: VecDeque<u8>,
    marks: VecDeque<Mark>,
    /// Number of the newest line.
    last: u64,
}

impl Ring {
    /// Adds a line of at most [`LINE_BYTES`]. The oldest make room before it is there: no buffer gets longer than what is kept.
    fn push(&mut self, mark: Mark, bytes: &[u8]) {
        while self.bytes.len() + bytes.len() > KEPT_BYTES || self.marks.len() == KEPT_LINES {
            let Some(gone) = self.marks.pop_front() else { break };
            self.bytes.drain(..usize::from(gone.length));
        }
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            let room = (2 * self.bytes.capacity()).clamp(needed, KEPT_BYTES);
            self.bytes.reserve_exact(room - self.bytes.len());
        }
        self.bytes.extend(bytes);
        self.marks.push_back(mark);
        self.last += 1;
    }

    /// Newest first.
    fn newest(&self) -> impl Iterator<Item = Line> {
        let mut end = self.bytes.len();
        self.marks.iter().rev().zip(0..).map(move |(mark, before)| {
            let text = end - usize::from(mark.length)..end;
            end = text.start;
            let text: Vec<u8> = self.bytes.range(text).copied().collect();
            Line {
                seq: self.last - before,
                time: clock::text(mark.unix_ms),
                generation: mark.generation,
                stream: mark.stream,
                text: String::from_utf8_lossy(&text).into_owned(),
                more: mark.more,
            }
        })
    }
}

impl OutputRing {
    /// An empty ring.
    pub(crate) fn new() -> Self {
        Self { inner: Arc::new(Mutex::new(Ring::default())), last: Arc::new(watch::Sender::new(0)) }
    }

    /// Adds one line, or a piece of one.
    pub(crate) fn push(&self, generation: Generation, stream: Stream, text: &[u8], end: End) {
        let unix_ms = clock::unix_ms();
        let mut ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pieces = text.chunks(LINE_BYTES).chain(text.is_empty().then_some(&[][..])).peekable();
        while let Some(piece) = pieces.next() {
            let more = pieces.peek().is_some() || end == End::Cut;
            let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
            ring.push(Mark { unix_ms, generation, length, stream, more }, piece);
        }
        let last = ring.last;
        drop(ring);
        self.last.send_replace(last);
    }

    /// The kept lines with numbers above `after`.
    pub(crate) fn after(&self, after: u64) -> Vec<Line> {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines: Vec<Line> = ring.newest().take_while(|line| line.seq > after).collect();
        drop(ring);
        lines.reverse();
        lines
    }

    /// The last `count` lines of `generation`, oldest first, at most `bytes` in all.
    pub(crate) fn tail(&self, generation: Generation, count: usize, bytes: usize) -> Vec<String> {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = bytes;
        let mut lines: Vec<String> = ring
            .newest()
            .filter(|line| line.generation == generation)
            .take(count)
            .take_while(|line| {
                let fits = line.text.len() <= left;
                left = left.saturating_sub(line.text.len());
                fits
            })
            .map(|line| line.text)
            .collect();
        drop(ring);
        lines.reverse();
        lines
    }

    /// A receiver that changes with each line.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

const _: () = assert!(LINE_BYTES <= u16::MAX as usize && LINE_BYTES < KEPT_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_in_order_and_no_more_of_them_than_fit() {
        let ring = OutputRing::new();
        let (old, new) = (Generation(1), Generation(2));
        for number in 0..50_000_u32 {
            let stream = if number % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
            ring.push(
                if number < 49_990 { old } else { new },
                stream,
                format!("line {number:05}").as_bytes(),
                End::Line,
            );
        }
        let lines = ring.after(0);
        let (first, last) = (lines.first().unwrap(), lines.last().unwrap());
        assert_eq!((last.seq, last.text.as_str(), last.stream), (50_000, "line 49999", Stream::Stderr));
        assert!(
            lines
                .iter()
                .zip(first.seq..)
                .all(|(line, seq)| line.seq == seq && line.text == format!("line {:05}", seq - 1))
        );
        assert_eq!(lines.len(), KEPT_LINES);
        assert_eq!(
            ring.after(49_998).into_iter().map(|line| line.text).collect::<Vec<_>>(),
            ["line 49998", "line 49999"]
        );
        assert!(ring.after(50_000).is_empty());
        assert_eq!(ring.tail(new, 2, 100), ["line 49998", "line 49999"]);
        assert_eq!(ring.tail(new, 200, 25), ["line 49998", "line 49999"]);
        assert_eq!(ring.tail(new, 200, 1000).len(), 10);
    }

    #[test]
    fn a_long_line_pushes_out_what_it_needs() {
        let ring = OutputRing::new();
        ring.push(Generation(1), Stream::Stdout, b"", End::Line);
        ring.push(Generation(1), Stream::Stdout, b"\xff", End::Line);
        let lines: Vec<String> = ring.after(0).into_iter().map(|line| line.text).collect();
        assert_eq!(lines, ["", "\u{fffd}"]);
        ring.push(Generation(1), Stream::Stdout, &vec![b'x'; KEPT_BYTES], End::Line);
        let lines = ring.after(0);
        assert!(lines.iter().all(|line| line.text.len() == LINE_BYTES) && lines.len() == KEPT_BYTES / LINE_BYTES);
        assert!(lines.last().is_some_and(|line| !line.more && line.seq == 66) && lines.first().unwrap().more);
        for _ in 0..3 * KEPT_LINES {
            ring.push(Generation(1), Stream::Stdout, &[b'y'; 100], End::Line);
        }
        let inner = ring.inner.lock().unwrap();
        assert_eq!((inner.bytes.capacity(), inner.marks.capacity()), (KEPT_BYTES, KEPT_LINES));
    }
}
