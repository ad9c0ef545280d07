//! Moving the workload's output: pipe to the container's own stream and to the ring.
//!
//! In: the read end of a pipe. Out: bytes, unchanged, or lines, marked; lines for `molt logs`. Must not: block the
//! supervisor: a reader of the container's log that stalls fills a pipe, and then the workload waits, not PID 1; hold more
//! than a line of [`LINE_BYTES`].

use std::os::fd::OwnedFd;

use molt_core::ids::Generation;
use rustix::io::Errno;

use crate::observe::{
    marked,
    output::{End, LINE_BYTES, OutputRing, Stream},
    standard,
};

const CHUNK: usize = 32 << 10;

/// Pumps until end of file.
pub(crate) async fn pump(pipe: OwnedFd, generation: Generation, stream: Stream, ring: OutputRing) {
    let Ok(pipe) = crate::watch::readable(pipe) else { return };
    let mut chunk = vec![0; CHUNK];
    let mut lines = Lines { generation, stream, ring, marked: marked::wanted(), line: Vec::new(), ready: Vec::new() };
    while let Ok(mut ready) = pipe.readable().await {
        match rustix::io::read(pipe.get_ref(), &mut chunk) {
            Ok(0) => break,
            Ok(length) => {
                let bytes = chunk.get(..length).unwrap_or_default();
                if !lines.marked {
                    pass_on(stream, bytes).await;
                }
                lines.take(bytes);
                pass_on(stream, &std::mem::take(&mut lines.ready)).await;
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    if !lines.line.is_empty() {
        lines.end(End::Line);
        pass_on(stream, &lines.ready).await;
    }
}

/// Finds the lines in a stream of bytes.
struct Lines {
    generation: Generation,
    stream: Stream,
    ring: OutputRing,
    marked: bool,
    /// What has no end yet.
    line: Vec<u8>,
    /// Marked lines to be passed on.
    ready: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (mut text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            while let Some((some, rest)) =
                text.split_at_checked(LINE_BYTES - self.line.len()).filter(|(_, rest)| !rest.is_empty())
            {
                self.line.extend_from_slice(some);
                self.end(End::Cut);
                text = rest;
            }
            self.line.extend_from_slice(text);
            if ends {
                self.end(End::Line);
            }
        }
    }

    fn end(&mut self, end: End) {
        self.ring.push(self.generation, self.stream, &self.line, end);
        if self.marked {
            self.ready.extend(marked::line(self.generation, self.stream, &self.line, end));
        }
        self.line.clear();
    }
}

/// Writes to the container's own stream. While that takes nothing, this pump waits and the workload's pipe fills.
async fn pass_on(stream: Stream, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match standard::offer(stream, rest) {
            Ok(0) => crate::timer::sleep(std::time::Duration::from_millis(5)).await,
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(_) => return, // the container's log reader is gone; the ring still has it
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_line_is_cut_and_says_so() {
        let ring = OutputRing::new();
        let generation = Generation(3);
        let mut lines = Lines {
            generation,
            stream: Stream::Stdout,
            ring: ring.clone(),
            marked: true,
            line: Vec::new(),
            ready: Vec::new(),
        };
        let long = vec![b'x'; 3 * LINE_BYTES];
        for piece in [&long[..], b"end\n", b"", b"short\n", b"\n", b"no end"] {
            lines.take(piece);
            assert!(lines.line.len() <= LINE_BYTES);
        }
        let kept: Vec<_> = ring.after(0).into_iter().map(|line| (line.text.len(), line.more)).collect();
        let full = (LINE_BYTES, true);
        assert_eq!(kept, [full, full, full, (3, false), (5, false), (0, false)]);
        let text = String::from_utf8(lines.ready).unwrap();
        let marked: Vec<&str> = text.lines().collect();
        assert!(marked.iter().all(|line| line.starts_with("[3 out] ")), "{text}");
        assert_eq!(marked.iter().filter(|line| line.ends_with('…')).count(), 3);
    }
}
