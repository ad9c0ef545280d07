//! The packed bytes of a layer on their way from who gets them to who unpacks them, as readers.
//!
//! In: pieces from a channel, or a file of a layout. Out: the same bytes. Must not: take the end of the bytes for their
//! rightness: sums tell.

use std::{
    io::{self, BufRead, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc::Receiver;

use crate::unpacker::Switch;

/// What the pump sends, as a reader. The end of the channel is the end of the blob. An empty piece is not the end: it
/// wakes who reads, as a signal would.
pub(crate) struct Pieces {
    receiver: Receiver<Bytes>,
    piece: Bytes,
}

impl Pieces {
    pub(crate) fn new(receiver: Receiver<Bytes>) -> Self {
        Self { receiver, piece: Bytes::new() }
    }
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.len().min(out.len());
        self.piece.copy_to_slice(out.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) if piece.is_empty() => return Err(io::ErrorKind::Interrupted.into()),
                Some(piece) => self.piece = piece,
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount.min(self.piece.len()));
    }
}

/// Ends the processes of the layer and stops its reader when the fetch is dropped.
#[derive(Default)]
pub(crate) struct Stop(pub(crate) Arc<Switch>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.off();
    }
}

/// Counts what is read, and stops when nobody waits for it any more.
pub(crate) struct Counted {
    pub(crate) inner: Box<dyn Read + Send>,
    pub(crate) count: Arc<AtomicU64>,
    pub(crate) stop: Arc<Switch>,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_off() {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        let count = self.inner.read(out)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
