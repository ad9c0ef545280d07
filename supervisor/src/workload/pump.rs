//! Moving the workload's output: pipe to the container's own stream and to the ring.
//!
//! In: the read end of a pipe. Out: bytes, unchanged; lines for `molt logs`. Must not: block the supervisor: a reader of
//! the container's log that stalls fills a pipe, and then the workload waits, not PID 1.

use std::os::fd::{AsFd as _, OwnedFd};

use molt_core::ids::Generation;
use rustix::io::Errno;

use crate::observe::output::{OutputRing, Stream};

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

/// Writes to the container's own stream. It may be a blocking descriptor shared with others, so it is only written to
/// when it takes bytes; while it does not, this pump waits and the workload's pipe fills.
async fn pass_on(stream: Stream, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let (fd, events) = match stream {
            Stream::Stdout => (rustix::stdio::stdout(), rustix::event::PollFlags::OUT),
            Stream::Stderr => (rustix::stdio::stderr(), rustix::event::PollFlags::OUT),
        };
        let zero = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut polled = [rustix::event::PollFd::new(&fd, events)];
        match rustix::event::poll(&mut polled, Some(&zero)) {
            Ok(0) => {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                continue;
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        // A pipe that polls writable takes PIPE_BUF (4096) bytes without blocking, pipe(7).
        let piece = rest.get(..rest.len().min(4096)).unwrap_or_default();
        match rustix::io::write(fd.as_fd(), piece) {
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => return, // the container's log reader is gone; the ring still has it
        }
    }
}
