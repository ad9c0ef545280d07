//! The journal's file: written in place and synced, so that it works on a full disk.
//!
//! In: what [`molt_core::journal::Journal`] wants read, written and synced. Out: just that; a place that the disk cannot
//! read, asked [`TRIES`] times, as a damaged one. Must not: decide anything, retry a failed sync, or grow the file.

use std::os::fd::OwnedFd;

use molt_core::journal::{self, FILE_BYTES, Medium, Opened, SLOT_BYTES};
use rustix::{
    fs::{fdatasync, fsync},
    io::{Errno, pread},
};

use super::Store;
use crate::planted;

/// The open journal.
pub(crate) type Journal = journal::Journal<File>;

/// The file, and the folder that has its name.
#[derive(Debug)]
pub(crate) struct File {
    file: OwnedFd,
    store: OwnedFd,
}

impl File {
    /// The journal of a store, made if it is not there.
    pub(crate) fn open(store: &OwnedFd) -> rustix::io::Result<Self> {
        let file = super::kept(store, "journal", false)?;
        let store = rustix::io::fcntl_dupfd_cloexec(store, 0)?;
        Ok(Self { file, store })
    }

    /// What the journal of a store says that takes no writes; what is not there, or is too short, is not made.
    pub(crate) fn peek(store: &Store) -> Opened {
        let read = super::kept(&store.dir, "journal", true)
            .and_then(|file| load(FILE_BYTES / SLOT_BYTES, |bytes, offset| pread(&file, bytes, offset)));
        match read {
            Err(Errno::ROFS) => Opened::First,
            Err(errno) => {
                tracing::warn!(%errno, "failed to read the journal");
                Opened::Damaged
            }
            Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => Opened::First,
            Ok(mut bytes) => {
                bytes.resize(FILE_BYTES, 0);
                journal::read(&bytes).map_or(Opened::Damaged, |read| Opened::Found(Box::new(read)))
            }
        }
    }
}

/// How often an unreadable place is read. An error that passes must not be taken for a slot that is gone: the one before
/// it may be of another generation.
const TRIES: u32 = 3;
/// What stands for a place that cannot be read: no slot begins so, and it is not empty.
const UNREADABLE: u8 = 0xff;

/// Reads a file of `places` by `read`; each by itself, so that a sector that cannot be read takes one with it and not both.
fn load(places: usize, mut read: impl FnMut(&mut [u8], u64) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    for place in 0..places {
        let mut slot = [0; SLOT_BYTES];
        let mut length = 0;
        let mut failed = 0;
        while let Some(rest) = slot.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match read(rest, (place * SLOT_BYTES + length) as u64) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(Errno::INTR) => {}
                Err(Errno::IO) if failed + 1 < TRIES => failed += 1,
                Err(Errno::IO) => {
                    tracing::warn!(place, "a place of the journal cannot be read (EIO): it is taken as damaged");
                    slot.fill(UNREADABLE);
                    length = SLOT_BYTES;
                }
                Err(errno) => return Err(errno),
            }
        }
        bytes.extend_from_slice(slot.get(..length).unwrap_or_default());
        if length < SLOT_BYTES {
            break;
        }
    }
    Ok(bytes)
}

impl Medium for File {
    type Error = Errno;

    fn load(&mut self) -> Result<Vec<u8>, Errno> {
        load(FILE_BYTES / SLOT_BYTES, |bytes, offset| pread(&self.file, bytes, offset))
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Errno> {
        super::write(&self.file, bytes, offset)
    }

    fn sync(&mut self) -> Result<(), Errno> {
        if planted::is(planted::Fault::NoSlotSync) {
            return Ok(());
        }
        fdatasync(&self.file)
    }

    fn sync_name(&mut self) -> Result<(), Errno> {
        fsync(&self.file)?;
        fsync(&self.store)
    }
}

#[cfg(test)]
mod tests {
    use molt_core::{
        ids::Generation,
        journal::{Opened, Slot},
    };

    use super::*;

    /// A journal in memory, of which some places cannot be read; `passing` errors come before what can be.
    #[derive(Debug)]
    struct Disk {
        bytes: Vec<u8>,
        bad: Vec<usize>,
        passing: u32,
    }

    impl Medium for Disk {
        type Error = Errno;

        fn load(&mut self) -> Result<Vec<u8>, Errno> {
            load(FILE_BYTES / SLOT_BYTES, |rest, offset| {
                let at = usize::try_from(offset).unwrap();
                if self.bad.contains(&(at / SLOT_BYTES)) || self.passing > 0 {
                    self.passing = self.passing.saturating_sub(1);
                    return Err(Errno::IO);
                }
                // By halves, as a read may be short.
                let from = self.bytes.get(at..).unwrap_or_default();
                let length = from.len().min(rest.len()).min(SLOT_BYTES / 2);
                rest[..length].copy_from_slice(&from[..length]);
                Ok(length)
            })
        }

        fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Errno> {
            let at = usize::try_from(offset).unwrap();
            self.bytes.resize(self.bytes.len().max(at + bytes.len()), 0);
            self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }

        fn sync(&mut self) -> Result<(), Errno> {
            Ok(())
        }

        fn sync_name(&mut self) -> Result<(), Errno> {
            Ok(())
        }
    }

    /// Two slots, and what a start finds where `bad` places cannot be read.
    fn found(bad: &[usize], passing: u32) -> Opened {
        let disk = Disk { bytes: Vec::new(), bad: Vec::new(), passing: 0 };
        let (mut journal, _) = journal::Journal::open(disk).unwrap();
        for number in [4, 5] {
            journal.record(&Slot { confirmed: Some(Generation(number)), ..Slot::first() }).unwrap();
        }
        let bytes = journal.medium().bytes.clone();
        journal::Journal::open(Disk { bytes, bad: bad.to_vec(), passing }).unwrap().1
    }

    fn confirmed(opened: Opened) -> Option<Generation> {
        let Opened::Found(read) = opened else { return None };
        read.slot.and_then(|slot| slot.confirmed)
    }

    #[test]
    fn a_place_that_cannot_be_read_leaves_the_other_one() {
        assert_eq!(confirmed(found(&[], 0)), Some(Generation(5)));
        // The first slot is in the second place.
        assert_eq!(confirmed(found(&[1], 0)), Some(Generation(5)));
        assert_eq!(confirmed(found(&[0], 0)), Some(Generation(4)));
        assert_eq!(found(&[0, 1], 0), Opened::Damaged);
    }

    #[test]
    fn an_error_that_passes_costs_no_slot() {
        assert_eq!(confirmed(found(&[], TRIES - 1)), Some(Generation(5)));
    }

    #[test]
    fn a_file_that_is_cut_short_is_read_to_its_end() {
        for length in [0, 1, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 7, FILE_BYTES] {
            let mut disk = Disk { bytes: vec![1; length], bad: Vec::new(), passing: 0 };
            assert_eq!(disk.load().unwrap(), vec![1; length]);
        }
    }
}
