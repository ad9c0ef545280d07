//! The journal file: written in place and synced, so that it works on a full disk.
//!
//! In: slots. Out: the slot that counts. Must not: retry a failed sync as if it could succeed; never grow.

use std::os::fd::OwnedFd;

use molt_core::journal::{FILE_BYTES, Read, Slot, SlotError, read};
use rustix::{
    fs::{Mode, OFlags, fdatasync, fsync, openat},
    io::{Errno, pread, pwrite},
};

/// Why a slot is not durable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The kernel's answer.
    #[error("{verb} the journal: {errno}")]
    Call {
        /// What was tried.
        verb: &'static str,
        /// The answer.
        errno: Errno,
    },
    /// The slot itself.
    #[error(transparent)]
    Slot(#[from] SlotError),
}

/// What the journal said when it was opened.
#[derive(Debug)]
pub(crate) enum Opened {
    /// It was made just now.
    First,
    /// It was read.
    Found(Read),
    /// It is there and not readable.
    Damaged,
}

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    file: OwnedFd,
    sequence: u64,
    newer: Option<SlotError>,
}

impl Journal {
    /// Opens the journal in the store, making it at the first start.
    pub(crate) fn open(store: &OwnedFd) -> Result<(Self, Opened), JournalError> {
        let call = |verb| move |errno| JournalError::Call { verb, errno };
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (file, made) = match openat(store, "journal", flags, Mode::empty()) {
            Ok(file) => (file, false),
            Err(Errno::NOENT) => {
                let file = openat(store, "journal", flags | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(0o600))
                    .map_err(call("make"))?;
                (file, true)
            }
            Err(errno) => return Err(call("open")(errno)),
        };
        let mut bytes = vec![0; FILE_BYTES];
        let length = if made { 0 } else { read_all(&file, &mut bytes).map_err(call("read"))? };
        // A file cut short is one whose making was interrupted, before anything else was.
        let opened = if made || length < FILE_BYTES || bytes.iter().all(|byte| *byte == 0) {
            write_all(&file, &vec![0; FILE_BYTES], 0).map_err(call("fill"))?;
            fsync(&file).map_err(call("sync"))?;
            fsync(store).map_err(call("sync the folder of"))?;
            Opened::First
        } else {
            read(&bytes).map_or(Opened::Damaged, Opened::Found)
        };
        let (sequence, newer) = match &opened {
            Opened::Found(read) => (read.slot.sequence, read.newer.clone()),
            Opened::First | Opened::Damaged => (0, None),
        };
        Ok((Self { file, sequence, newer }, opened))
    }

    /// Makes `slot` durable: one write in the older place, one fdatasync.
    pub(crate) fn record(&mut self, slot: &Slot) -> Result<(), JournalError> {
        if let Some(newer) = &self.newer {
            return Err(newer.clone().into());
        }
        let slot = Slot { sequence: self.sequence + 1, ..slot.clone() };
        let bytes = slot.encode()?;
        // If it fails, what reached the disk is not known: the next number then skips one, so that it goes over this
        // doubtful place again and never over the last good slot.
        self.sequence = slot.sequence + 1;
        write_all(&self.file, &bytes, slot.offset()).map_err(|errno| JournalError::Call { verb: "write", errno })?;
        fdatasync(&self.file).map_err(|errno| JournalError::Call { verb: "sync", errno })?;
        self.sequence = slot.sequence;
        Ok(())
    }
}

fn read_all(file: &OwnedFd, bytes: &mut [u8]) -> rustix::io::Result<usize> {
    let mut length = 0;
    loop {
        match pread(file, bytes.get_mut(length..).unwrap_or_default(), length as u64) {
            Ok(0) => return Ok(length),
            Ok(more) => length += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn write_all(file: &OwnedFd, bytes: &[u8], offset: u64) -> rustix::io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match pwrite(file, rest, offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(more) => done += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
