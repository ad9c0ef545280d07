//! The files `memory` and `requests`: what outlives a restart beside the journal, and the keys that requests came with.
//!
//! In: what is to be remembered. Out: the same, after the next start. Must not: be written between the first signal to the
//! old workload and the exec of the new one (the dispatcher sees to that), grow, or keep Molt from starting: where the files
//! cannot be had, what is remembered goes with the process.

use std::{collections::VecDeque, os::fd::OwnedFd};

use molt_core::{
    ids::UpdateId,
    memory::{KEY_BYTES, KEYS, Key, Memory, PLACE_BYTES},
};
use rustix::{
    fs::{fdatasync, fsync},
    io::{Errno, pread},
};

use super::Store;

/// So many numbers of events are set aside at once: a start and, much later, another write.
const EVENTS: u64 = 1 << 20;
/// Set aside anew when so few are left; more than a gap can use up.
const EVENTS_LEFT: u64 = EVENTS / 2;

/// A key that is known: what became of its request, or that it came with another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// The same request: this update.
    Same(UpdateId),
    /// Another request.
    Other(UpdateId),
}

/// What is remembered, and where.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// To be changed, then [`Remembered::save`]d.
    pub(crate) facts: Memory,
    keys: VecDeque<Key>,
    files: Option<[OwnedFd; 2]>,
}

impl Remembered {
    /// Of a store; without one, or where it cannot be read, empty.
    pub(crate) fn open(store: Option<&Store>) -> Self {
        let Some(store) = store else { return Self::default() };
        let open = |name, bytes| open(store, name, bytes).map_err(|errno| (name, errno));
        let ring = usize::try_from(KEYS).unwrap_or_default() * KEY_BYTES;
        let both = open("memory", 2 * PLACE_BYTES).and_then(|memory| Ok((memory, open("requests", ring)?)));
        match both {
            Ok(((memory, facts), (requests, keys))) => Self {
                facts: Memory::read(&facts).unwrap_or_default(),
                keys: Key::read(&keys).into(),
                files: Some([memory, requests]),
            },
            Err((name, errno)) => {
                tracing::warn!(
                    "failed to open {name} in the store: {errno}; holds and request keys end with this start"
                );
                Self::default()
            }
        }
    }

    /// Writes the facts, durably.
    pub(crate) fn save(&mut self) -> Result<(), String> {
        self.facts.sequence += 1;
        let Some([memory, _]) = &self.files else { return Ok(()) };
        // The words of requests are bounded, so that it fits; of what does not, the requests under way go first.
        let encoded = self.facts.encode().or_else(|| Memory { under_way: Vec::new(), ..self.facts.clone() }.encode());
        let Some((at, bytes)) = encoded else {
            return Err("failed to fit what is remembered into its place".to_owned());
        };
        write(memory, &bytes, at).map_err(|errno| format!("failed to write memory in the store: {errno}"))
    }

    /// Sets aside numbers for events above `last`, where few are left.
    pub(crate) fn number(&mut self, last: u64) {
        if self.facts.events >= last.saturating_add(EVENTS_LEFT) {
            return;
        }
        self.facts.events = last.saturating_add(EVENTS);
        if let Err(why) = self.save() {
            tracing::warn!("{why}; events may get numbers after the next start that were given out before");
        }
    }

    /// What is known of a key.
    pub(crate) fn known(&self, key: &[u8; 32], request: &[u8; 32]) -> Option<Known> {
        let found = self.keys.iter().rev().find(|known| known.key == *key)?;
        Some(if found.request == *request { Known::Same(found.update) } else { Known::Other(found.update) })
    }

    /// Remembers the key of a request that is about to be taken as `update`, durably.
    pub(crate) fn remember(&mut self, key: [u8; 32], request: [u8; 32], update: UpdateId) -> Result<(), String> {
        let sequence = self.keys.back().map_or(0, |last| last.sequence + 1);
        let key = Key { sequence, update, key, request };
        if let Some([_, requests]) = &self.files {
            let (at, bytes) = key.encode();
            write(requests, &bytes, at).map_err(|errno| format!("failed to write requests in the store: {errno}"))?;
        }
        if self.keys.len() as u64 >= KEYS {
            self.keys.pop_front();
        }
        self.keys.push_back(key);
        Ok(())
    }

    /// The highest id that was given to a request: none at or below it is given out again.
    pub(crate) fn newest(&self) -> u64 {
        let keyed = self.keys.iter().map(|key| key.update.0);
        keyed.chain(self.facts.under_way.iter().map(|request| request.update.0)).max().unwrap_or(0)
    }
}

/// The file, of its full size, and what is in it.
fn open(store: &Store, name: &str, size: usize) -> Result<(OwnedFd, Vec<u8>), Errno> {
    let file = super::kept(&store.dir, name, store.read_only)?;
    let mut bytes = vec![0; size];
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match pread(&file, rest, read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    if read < size {
        // Room for all of it now: a disk that fills up later takes nothing away.
        write(&file, bytes.get(read..).unwrap_or_default(), read as u64)?;
        fsync(&file)?;
        fsync(&store.dir)?;
    }
    Ok((file, bytes))
}

fn write(file: &OwnedFd, bytes: &[u8], at: u64) -> Result<(), Errno> {
    super::write(file, bytes, at)?;
    fdatasync(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_outlives_a_start_and_a_key_is_bound_to_its_request() {
        let folder = std::env::temp_dir().join(format!("molt-memory-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let store = Store::open(&folder).unwrap();
        let mut one = Remembered::open(Some(&store));
        assert_eq!(one.facts, Memory::default());
        one.number(0);
        one.remember([1; 32], [2; 32], UpdateId(9)).unwrap();
        let two = Remembered::open(Some(&store));
        assert_eq!((two.facts.events, two.newest()), (EVENTS, 9));
        assert_eq!(two.known(&[1; 32], &[2; 32]), Some(Known::Same(UpdateId(9))));
        assert_eq!(two.known(&[1; 32], &[3; 32]), Some(Known::Other(UpdateId(9))));
        assert_eq!(two.known(&[4; 32], &[2; 32]), None);
        // Plenty is left: nothing is written.
        one.number(10);
        assert_eq!(one.facts.sequence, two.facts.sequence);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
