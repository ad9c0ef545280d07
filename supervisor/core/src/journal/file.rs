//! The journal as two places in a file: what is written where, in which order, and what a start makes of what it finds.
//!
//! In: a [`Medium`], the few calls a file answers. Out: durable slots, and the slot that counts. Must not: name a file
//! system; grow the file; retry a failed sync as if it could succeed. `supervisor/src/store/journal.rs` is the medium of
//! the product, the simulator in `tests/` another one: both run this code.

use super::{FILE_BYTES, Read, SLOT_BYTES, Slot, SlotError, read};
use crate::ids::Generation;

/// A file that the journal lies in.
pub trait Medium {
    /// What the kernel answers when it refuses.
    type Error;

    /// All bytes of the file, made empty if it is not there; at most [`FILE_BYTES`].
    fn load(&mut self) -> Result<Vec<u8>, Self::Error>;
    /// Writes all of `bytes` at `offset`.
    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Self::Error>;
    /// fdatasync: what was written is on disk when this returns.
    fn sync(&mut self) -> Result<(), Self::Error>;
    /// The file's length and name are on disk, too, when this returns.
    fn sync_name(&mut self) -> Result<(), Self::Error>;
}

/// Why a slot is not durable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError<E> {
    /// The kernel's answer.
    #[error("{verb} the journal: {source}")]
    Call {
        /// What was tried.
        verb: &'static str,
        /// The answer.
        source: E,
    },
    /// The slot itself.
    #[error(transparent)]
    Slot(#[from] SlotError),
}

/// What the journal said when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// It was made just now.
    First,
    /// It was read.
    Found(Box<Read>),
    /// It is there, and nothing in it can be read.
    Damaged,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal<M> {
    medium: M,
    sequence: u64,
    newer: Option<SlotError>,
    /// Whether its name is durable.
    named: bool,
}

impl<M: Medium> Journal<M> {
    /// Opens the journal, making it at the first start.
    pub fn open(mut medium: M) -> Result<(Self, Opened), JournalError<M::Error>> {
        let mut bytes = medium.load().map_err(call("read"))?;
        let length = bytes.len().min(FILE_BYTES);
        bytes.resize(FILE_BYTES, 0);
        let empty = bytes.iter().all(|byte| *byte == 0);
        if length < FILE_BYTES || empty {
            // Its making was interrupted, or somebody cut it short: what is there stays, the rest is made. Zeros are
            // written again where only zeros are: they may never have come to disk, nor its name.
            let made = if empty { 0 } else { length };
            medium.write(bytes.get(made..).unwrap_or_default(), made as u64).map_err(call("fill"))?;
            medium.sync_name().map_err(call("sync"))?;
        }
        if empty {
            return Ok((Self { medium, sequence: 0, newer: None, named: true }, Opened::First));
        }
        let Ok(read) = read(&bytes) else {
            // What cannot be read now must not be read later, and go over what is written meanwhile. A start that is
            // interrupted here finds no journal, which leads to the same.
            // The name, too: what is damaged may be what an interrupted first start left.
            let named = medium.write(&[0; FILE_BYTES], 0).is_ok() && medium.sync_name().is_ok();
            return Ok((Self { medium, sequence: 0, newer: None, named }, Opened::Damaged));
        };
        let mut journal = Self { medium, sequence: read.sequence, newer: read.newer.clone(), named: true };
        journal.settle(&bytes);
        Ok((journal, Opened::Found(Box::new(read))))
    }

    /// Makes durable what was read. It may be in the page cache alone: written by a process that was killed before its
    /// sync, or after a sync that failed and left the pages clean. Writing the next slot over the one before would then
    /// put both at risk at once; the same bytes again, in their own place, put none.
    fn settle(&mut self, bytes: &[u8]) {
        if self.newer.is_some() {
            return;
        }
        let offset = offset(self.sequence);
        let at = usize::try_from(offset).unwrap_or(0);
        let slot = bytes.get(at..at + SLOT_BYTES).unwrap_or_default();
        if self.medium.write(slot, offset).is_err() || self.medium.sync().is_err() {
            // As after any failed write: the next one goes over this doubtful place.
            self.sequence += 1;
        }
    }

    /// Makes `slot` durable: one write in the older place, one sync.
    pub fn record(&mut self, slot: &Slot) -> Result<(), JournalError<M::Error>> {
        if let Some(newer) = &self.newer {
            return Err(newer.clone().into());
        }
        let slot = Slot { sequence: self.sequence + 1, ..slot.clone() };
        let bytes = slot.encode()?;
        // If it fails, what reached the disk is not known: the next number then skips one, so that it goes over this
        // doubtful place again and never over the last good slot.
        self.sequence = slot.sequence + 1;
        self.medium.write(&bytes, slot.offset()).map_err(call("write"))?;
        if self.named { self.medium.sync() } else { self.medium.sync_name() }.map_err(call("sync"))?;
        self.named = true;
        self.sequence = slot.sequence;
        Ok(())
    }

    /// What the journal lies in.
    pub fn medium(&mut self) -> &mut M {
        &mut self.medium
    }
}

fn call<E>(verb: &'static str) -> impl FnOnce(E) -> JournalError<E> {
    move |source| JournalError::Call { verb, source }
}

/// Where slot `sequence` is written.
pub(super) fn offset(sequence: u64) -> u64 {
    (sequence % 2) * SLOT_BYTES as u64
}

/// What `generations/` holds, as far as a start without a journal needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shelved {
    /// The newest whole generation with its `confirmed` mark.
    pub marked: Option<Generation>,
    /// The highest number any folder has, readable or not.
    pub highest: u32,
}

/// What a start begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The slot that decides what boots.
    pub slot: Slot,
    /// The journal did not say, and what was taken instead: the condition `JournalReset`.
    pub reset: Option<String>,
    /// Written by a newer Molt: it may be booted from, not changed.
    pub newer: Option<SlotError>,
}

/// What boots, from whatever is left: the journal's word; else the newest generation that was confirmed once; else
/// nothing yet, which is generation 0 or the spec's image.
pub fn recover(opened: Opened, shelved: Shelved) -> Recovered {
    let reset = |why: &str| {
        let what = shelved.marked.map_or("generation 0".to_owned(), |generation| format!("generation {generation}"));
        let message = format!("the journal {why}; {what}, the newest that was confirmed, is taken as confirmed");
        (Slot { confirmed: shelved.marked, ..Slot::first() }, Some(message))
    };
    let mut newer = None;
    let (mut slot, reset) = match opened {
        Opened::First if shelved.marked.is_some() => reset("is missing"),
        Opened::First => (Slot::first(), None),
        Opened::Damaged => reset("cannot be read"),
        Opened::Found(read) => {
            newer = read.newer;
            match read.slot {
                Some(slot) => (slot, None),
                None => reset("is of a newer Molt, whose words this one does not know"),
            }
        }
    };
    // A folder nobody can read still has its number: what is in its upper folder is not thrown away for another one.
    slot.next_generation = slot.next_generation.max(shelved.highest.saturating_add(1)).max(1);
    slot.next_update = slot.next_update.max(1);
    Recovered { slot, reset, newer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::FORMAT;

    /// A file in memory; `fails` counts down to a sync that fails.
    #[derive(Debug, Default)]
    struct Memory {
        bytes: Vec<u8>,
        writes: Vec<u64>,
        fails: Option<u32>,
        /// How often the name was synced, and whether the next time fails.
        names: u32,
        name_fails: bool,
    }

    impl Medium for Memory {
        type Error = &'static str;

        fn load(&mut self) -> Result<Vec<u8>, Self::Error> {
            Ok(self.bytes.clone())
        }

        fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Self::Error> {
            let at = usize::try_from(offset).unwrap();
            self.bytes.resize(self.bytes.len().max(at + bytes.len()), 0);
            self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
            self.writes.push(offset);
            Ok(())
        }

        fn sync(&mut self) -> Result<(), Self::Error> {
            match self.fails.as_mut() {
                Some(0) => {
                    self.fails = None;
                    Err("EIO")
                }
                Some(left) => {
                    *left -= 1;
                    Ok(())
                }
                None => Ok(()),
            }
        }

        fn sync_name(&mut self) -> Result<(), Self::Error> {
            if std::mem::take(&mut self.name_fails) {
                return Err("EIO");
            }
            self.names += 1;
            Ok(())
        }
    }

    fn slot(confirmed: u32) -> Slot {
        Slot { confirmed: Some(Generation(confirmed)), ..Slot::first() }
    }

    fn written(slots: u32) -> Memory {
        let (mut journal, _) = Journal::open(Memory::default()).unwrap();
        for number in 1..=slots {
            journal.record(&slot(number)).unwrap();
        }
        Memory { bytes: journal.medium().bytes.clone(), ..Memory::default() }
    }

    #[test]
    fn a_name_that_could_not_be_synced_is_with_the_first_slot() {
        let damaged = Memory { bytes: vec![7; FILE_BYTES], name_fails: true, ..Memory::default() };
        let (mut journal, opened) = Journal::open(damaged).unwrap();
        assert_eq!((opened, journal.medium().names), (Opened::Damaged, 0));
        journal.record(&slot(1)).unwrap();
        journal.record(&slot(2)).unwrap();
        assert_eq!(journal.medium().names, 1);
    }

    #[test]
    fn a_start_writes_what_it_read_in_its_own_place_before_the_next_slot() {
        let (mut journal, opened) = Journal::open(written(3)).unwrap();
        assert!(matches!(opened, Opened::Found(read) if read.slot == Some(Slot { sequence: 3, ..slot(3) })));
        assert_eq!(journal.medium().writes, [offset(3)]);
        journal.record(&slot(4)).unwrap();
        assert_eq!(journal.medium().writes, [offset(3), offset(4)]);
    }

    #[test]
    fn after_a_failed_sync_the_next_slot_goes_over_the_doubtful_place() {
        let memory = Memory { fails: Some(0), ..written(3) };
        let (mut journal, _) = Journal::open(memory).unwrap();
        journal.record(&slot(4)).unwrap();
        assert_eq!(journal.medium().writes, [offset(3), offset(5)], "slot 2 is the last one that is surely there");
    }

    #[test]
    fn a_journal_cut_short_keeps_the_slot_that_is_left() {
        let mut memory = written(4);
        memory.bytes.truncate(SLOT_BYTES);
        let (journal, opened) = Journal::open(memory).unwrap();
        assert!(matches!(opened, Opened::Found(read) if read.sequence == 4));
        assert_eq!(journal.medium.bytes.len(), FILE_BYTES);
    }

    #[test]
    fn a_damaged_journal_gives_the_newest_marked_generation_and_is_never_read_again() {
        let mut memory = written(2);
        memory.bytes.fill(0x5a);
        let (journal, opened) = Journal::open(memory).unwrap();
        assert!(journal.medium.bytes.iter().all(|byte| *byte == 0));
        let found = recover(opened, Shelved { marked: Some(Generation(6)), highest: 9 });
        assert_eq!((found.slot.confirmed, found.slot.next_generation), (Some(Generation(6)), 10));
        assert!(found.reset.is_some());
        let none = recover(Opened::Damaged, Shelved::default());
        assert_eq!(none.slot.confirmed, None);
        assert!(none.reset.unwrap().contains("generation 0"));
    }

    #[test]
    fn words_of_a_newer_molt_are_left_alone_and_something_marked_boots() {
        let mut bytes = slot(1).encode().unwrap();
        bytes[8..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
        bytes[32] = b'?';
        bytes[28..32].fill(0);
        let crc = crc32c::crc32c(&bytes).to_le_bytes();
        bytes[28..32].copy_from_slice(&crc);
        bytes.resize(FILE_BYTES, 0);
        let memory = Memory { bytes, ..Memory::default() };
        let (mut journal, opened) = Journal::open(memory).unwrap();
        let found = recover(opened, Shelved { marked: Some(Generation(2)), highest: 2 });
        assert_eq!(found.slot.confirmed, Some(Generation(2)));
        assert!(found.newer.is_some() && found.reset.is_some());
        assert!(journal.record(&slot(2)).is_err());
        assert_eq!(journal.medium().writes, [] as [u64; 0]);
    }
}
