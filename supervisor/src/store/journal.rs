//! The journal's file: written in place and synced, so that it works on a full disk.
//!
//! In: what [`molt_core::journal::Journal`] wants read, written and synced. Out: just that. Must not: decide anything,
//! retry a failed sync, or grow the file.

use std::os::fd::OwnedFd;

use molt_core::journal::{self, FILE_BYTES, Medium};
use rustix::{
    fs::{Mode, OFlags, fdatasync, fsync, openat},
    io::{Errno, pread, pwrite},
};

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
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(store, "journal", flags, Mode::from_raw_mode(0o600))?;
        let store = rustix::io::fcntl_dupfd_cloexec(store, 0)?;
        Ok(Self { file, store })
    }
}

impl Medium for File {
    type Error = Errno;

    fn load(&mut self) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; FILE_BYTES];
        let mut length = 0;
        loop {
            match pread(&self.file, bytes.get_mut(length..).unwrap_or_default(), length as u64) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Errno> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match pwrite(&self.file, rest, offset + done as u64) {
                Ok(0) => return Err(Errno::IO),
                Ok(more) => done += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
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
