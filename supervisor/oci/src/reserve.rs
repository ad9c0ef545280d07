//! What stays free in the store while something is written to it.
//!
//! In: the store and the reserve of the spec. Out: nothing, or an error with the figures. Must not: be told how much
//! will be written (nobody knows): it looks at what is left, again and again.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    store::{Space, Store},
};

/// Bytes kept in reserve for which an inode is, too.
const INODE: u64 = 64 << 10;
/// How often it is looked at most. The fastest unpacker writes some ten MiB in this time.
const EVERY: Duration = Duration::from_millis(20);

/// Inodes that are kept beside so many bytes.
pub(crate) fn inodes(bytes: u64) -> u64 {
    bytes / INODE
}

/// Watches over the reserve of a store. One of 0 is never short.
#[derive(Debug)]
pub(crate) struct Reserve<'a> {
    store: &'a Store,
    bytes: u64,
    looked: Cell<Option<Instant>>,
}

impl<'a> Reserve<'a> {
    pub(crate) fn new(store: &'a Store, bytes: u64) -> Self {
        Self { store, bytes, looked: Cell::new(None) }
    }

    /// Looks, if that was not done a moment ago.
    pub(crate) fn look(&self) -> Result<()> {
        if self.looked.get().is_some_and(|at| at.elapsed() < EVERY) {
            return Ok(());
        }
        self.check()
    }

    /// Looks now.
    pub(crate) fn check(&self) -> Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        let short = short(&self.store.space()?, self.bytes);
        self.looked.set(Some(Instant::now()));
        short.map_or(Ok(()), |why| Err(Error::NoSpace { operation: "unpack into the store".to_owned(), why }))
    }
}

/// Why `space` is less than a reserve of so many bytes; none where it is not.
fn short(space: &Space, bytes: u64) -> Option<String> {
    if bytes <= space.bytes_free && inodes(bytes) <= space.inodes_free {
        return None;
    }
    let mib = |bytes: u64| bytes >> 20;
    let counted = if space.inodes_total == 0 { String::new() } else { format!(" and {} inodes", space.inodes_free) };
    Some(format!(
        "it came to more than the estimate: {} of {} MiB{counted} were left, and {} MiB and {} inodes stay in reserve",
        mib(space.bytes_free),
        mib(space.bytes_total),
        bytes.div_ceil(1 << 20),
        inodes(bytes),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_inodes_are_kept() {
        let space = |bytes_free, inodes_free, inodes_total| Space {
            bytes_free,
            bytes_total: 1 << 30,
            inodes_free,
            inodes_total,
        };
        for (space, reserve, enough) in [
            (space(64 << 20, 1024, 5000), 64 << 20, true),
            (space((64 << 20) - 1, 1024, 5000), 64 << 20, false),
            (space(64 << 20, 1023, 5000), 64 << 20, false),
            (space(64 << 20, u64::MAX, 0), 64 << 20, true),
            (space(0, 0, 5000), 0, true),
        ] {
            assert_eq!(short(&space, reserve).is_none(), enough, "{space:?} beside {reserve}");
        }
        let why = short(&space(40 << 20, 7, 5000), 64 << 20).unwrap();
        assert!(why.contains("40 of 1024 MiB and 7 inodes were left, and 64 MiB and 1024 inodes stay"), "{why}");
    }
}
