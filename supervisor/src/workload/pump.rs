//! Moving the workload's output: pipe to the container's own stream and to the ring.
//!
//! In: the read end of a pipe. Out: bytes, unchanged; lines for `molt logs`. Must not: block the supervisor: a reader of
//! the container's log that stalls fills a pipe, and then the workload waits, not PID 1.

use std::os::fd::OwnedFd;

use molt_core::ids::Generation;
use rustix::io::Errno;

use crate::observe::{
    output::{OutputRing, Stream},
    standard,
};

const CHUNK: usize = 32 << 10;
const LONGEST_LINE: usize = 16 << 10;

/// Pumps until end of file.
pub(crate) async fn pump(pipe: OwnedFd, generation: Generation, stream: Stream, ring: OutputRing) {
    let Ok(pipe) = crate::watch::readable(pipe) else { return };
    let mut chunk = vec![0; CHUNK];
    let mut line = Vec::new();
    while let Ok(mut ready) = pipe.readable().await {
        match rustix::io::read(pipe.get_ref(), &mut chunk) {
            Ok(0) => break,
            Ok(length) => {
                let bytes = chunk.get(..length).unwrap_or_default();
                pass_on(stream, bytes).await;
                keep(&ring, generation, stream, &mut line, bytes);
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    if !line.is_empty() {
        ring.push(generation, stream, &line);
    }
}

fn keep(ring: &OutputRing, generation: Generation, stream: Stream, line: &mut Vec<u8>, bytes: &[u8]) {
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        match piece.strip_suffix(b"\n") {
            Some(end) => {
                line.extend_from_slice(end);
                ring.push(generation, stream, line);
                line.clear();
            }
            None => line.extend_from_slice(piece),
        }
        if line.len() >= LONGEST_LINE {
            ring.push(generation, stream, line);
            line.clear();
        }
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
