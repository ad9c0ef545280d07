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

const KEPT_BYTES: usize = 1 << 20;
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

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
    last: u64,
}

impl OutputRing {
    /// An empty ring.
    pub(crate) fn new() -> Self {
        Self { inner: Arc::new(Mutex::new(Ring::default())), last: Arc::new(watch::Sender::new(0)) }
    }

    /// Adds one line, or a piece of one.
    pub(crate) fn push(&self, generation: Generation, stream: Stream, text: &[u8], end: End) {
        let mut ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pieces = text.chunks(LINE_BYTES).chain(text.is_empty().then_some(&[][..])).peekable();
        while let Some(piece) = pieces.next() {
            ring.last += 1;
            let line = Line {
                seq: ring.last,
                time: crate::observe::log::now(),
                generation,
                stream,
                text: String::from_utf8_lossy(piece).into_owned(),
                more: pieces.peek().is_some() || end == End::Cut,
            };
            ring.bytes += line.text.len() + 64;
            ring.lines.push_back(line);
            while ring.bytes > KEPT_BYTES {
                let Some(gone) = ring.lines.pop_front() else { break };
                ring.bytes -= gone.text.len() + 64;
            }
        }
        let last = ring.last;
        drop(ring);
        self.last.send_replace(last);
    }

    /// The kept lines with numbers above `after`.
    pub(crate) fn after(&self, after: u64) -> Vec<Line> {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        ring.lines.iter().filter(|line| line.seq > after).cloned().collect()
    }

    /// The last `count` lines of `generation`, oldest first, at most `bytes` in all.
    pub(crate) fn tail(&self, generation: Generation, count: usize, bytes: usize) -> Vec<String> {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = bytes;
        let mut lines: Vec<String> = ring
            .lines
            .iter()
            .rev()
            .filter(|line| line.generation == generation)
            .take(count)
            .take_while(|line| {
                let fits = line.text.len() <= left;
                left = left.saturating_sub(line.text.len());
                fits
            })
            .map(|line| line.text.clone())
            .collect();
        lines.reverse();
        lines
    }

    /// A receiver that changes with each line.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}
