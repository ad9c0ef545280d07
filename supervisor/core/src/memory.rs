//! What must outlive a restart and does not decide what boots, and its exact bytes: who holds updates back, how far events
//! are numbered, which revision of the spec is in force, which requests are under way, which keys requests came with.
//!
//! In: values, or the bytes of a file. Out: bytes and where they go, or the newest values that are whole. Must not: do I/O.
//!
//! Two files of fixed size, written in place, so that a full disk takes nothing away. `memory` has two places of
//! [`PLACE_BYTES`] each, written in turn: magic `MOLTMEMO` (8), format (u32), payload length (u32), sequence (u64), CRC-32C of
//! the whole with this field zero (u32), zero (u32), JSON. `requests` is a ring of [`KEYS`] records of [`KEY_BYTES`] each,
//! [`Key`]'s layout; a record that is torn is one that is not there.

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, UpdateId};

/// Bytes of one of the two places.
pub const PLACE_BYTES: usize = 32 << 10;
/// Records in the ring of keys.
pub const KEYS: u64 = 256;
/// Bytes of one of them.
pub const KEY_BYTES: usize = 96;
/// Format this code writes, and the newest it reads, of both files.
pub const FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"MOLTMEMO";
const HEADER: usize = 32;
const CRC_AT: usize = 24;

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Rises by one a write; picks the place.
    #[serde(skip)]
    pub sequence: u64,
    /// Events up to this number may have been given out.
    #[serde(default)]
    pub events: u64,
    /// Revision of the spec.
    #[serde(default)]
    pub revision: u64,
    /// Digest of that spec.
    #[serde(default)]
    pub spec: Option<Digest>,
    /// The hold, if there is one.
    #[serde(default)]
    pub hold: Option<Held>,
    /// Requests that were taken and have not been seen to end.
    #[serde(default)]
    pub under_way: Vec<UnderWay>,
}

/// A hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Whose it is.
    pub owner: String,
    /// Who asked for it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// When it was asked for last, milliseconds since 1970.
    pub since_ms: u64,
    /// How long it lasts from then, milliseconds.
    pub ttl_ms: u64,
}

impl Held {
    /// When it ends by itself, milliseconds since 1970.
    pub fn until_ms(&self) -> u64 {
        self.since_ms.saturating_add(self.ttl_ms)
    }

    /// Milliseconds that are left at `now_ms`. A clock that was set back makes no hold longer than it was asked for.
    pub fn left_ms(&self, now_ms: u64) -> u64 {
        self.until_ms().saturating_sub(now_ms).min(self.ttl_ms)
    }
}

/// A request whose end is not known yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnderWay {
    /// Its id.
    pub update: UpdateId,
    /// `update` or `rollback`.
    pub kind: String,
    /// The image asked for, as text.
    pub image: Option<String>,
    /// Who asked.
    pub by: String,
    /// Why.
    pub note: Option<String>,
    /// When, milliseconds since 1970.
    pub since_ms: u64,
}

impl Memory {
    /// The bytes to write and where; `None` where it is more than a place holds.
    pub fn encode(&self) -> Option<(u64, Vec<u8>)> {
        let payload = serde_json::to_vec(self).ok()?;
        if HEADER + payload.len() > PLACE_BYTES {
            return None;
        }
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(payload.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&payload);
        let crc = crc32c::crc32c(&bytes).to_le_bytes();
        bytes.get_mut(CRC_AT..CRC_AT + 4)?.copy_from_slice(&crc);
        Some(((self.sequence % 2) * PLACE_BYTES as u64, bytes))
    }

    /// The newest of the two places that is whole; `None` where neither is. A newer format is not understood, and lost: none
    /// of it decides what boots.
    pub fn read(file: &[u8]) -> Option<Self> {
        file.chunks(PLACE_BYTES).take(2).filter_map(decode).max_by_key(|memory| memory.sequence)
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Whether the checksum at `at` is that of `bytes` without it.
fn whole(bytes: &[u8], at: usize) -> Option<bool> {
    let mut checked = bytes.to_vec();
    checked.get_mut(at..at + 4)?.fill(0);
    Some(crc32c::crc32c(&checked).to_le_bytes() == number(bytes, at)?)
}

fn decode(place: &[u8]) -> Option<Memory> {
    let format = u32::from_le_bytes(number(place, 8)?);
    if place.get(..8)? != MAGIC || format == 0 || format > FORMAT {
        return None;
    }
    let length = usize::try_from(u32::from_le_bytes(number(place, 12)?)).ok()?;
    let bytes = place.get(..HEADER.checked_add(length)?)?;
    if !whole(bytes, CRC_AT)? {
        return None;
    }
    let memory: Memory = serde_json::from_slice(bytes.get(HEADER..)?).ok()?;
    Some(Memory { sequence: u64::from_le_bytes(number(place, 16)?), ..memory })
}

/// A key that a request came with. On disk, little endian: sequence (u64), update (u64), SHA-256 of the key (32), of the
/// request (32), format (u32), CRC-32C of the whole with this field zero (u32), zero (8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Rises by one a record; picks its place in the ring.
    pub sequence: u64,
    /// What the request became.
    pub update: UpdateId,
    /// Of the key's text.
    pub key: [u8; 32],
    /// Of the request, in canonical form.
    pub request: [u8; 32],
}

impl Key {
    /// The bytes to write, and where.
    pub fn encode(&self) -> (u64, Vec<u8>) {
        let mut bytes = Vec::with_capacity(KEY_BYTES);
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.update.0.to_le_bytes());
        bytes.extend_from_slice(&self.key);
        bytes.extend_from_slice(&self.request);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.resize(KEY_BYTES, 0);
        let crc = crc32c::crc32c(&bytes).to_le_bytes();
        if let Some(place) = bytes.get_mut(84..88) {
            place.copy_from_slice(&crc);
        }
        ((self.sequence % KEYS) * KEY_BYTES as u64, bytes)
    }

    /// Every record of a ring that is whole, oldest first.
    pub fn read(file: &[u8]) -> Vec<Self> {
        let mut keys: Vec<Self> = file.chunks_exact(KEY_BYTES).filter_map(Self::decode).collect();
        keys.sort_by_key(|key| key.sequence);
        keys
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let format = u32::from_le_bytes(number(bytes, 80)?);
        if format == 0 || format > FORMAT || !whole(bytes, 84)? {
            return None;
        }
        let (sequence, update) = (u64::from_le_bytes(number(bytes, 0)?), u64::from_le_bytes(number(bytes, 8)?));
        Some(Self { sequence, update: UpdateId(update), key: number(bytes, 16)?, request: number(bytes, 48)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(sequence: u64) -> Memory {
        let hold =
            Held { owner: "ci".into(), by: "uid 0".into(), reason: Some("é".repeat(512)), since_ms: 1, ttl_ms: 1000 };
        Memory { sequence, events: 7 + sequence, revision: 2, hold: Some(hold), ..Memory::default() }
    }

    fn file(memories: &[Memory]) -> Vec<u8> {
        let mut file = vec![0; 2 * PLACE_BYTES];
        for memory in memories {
            let (at, bytes) = memory.encode().unwrap();
            let at = usize::try_from(at).unwrap();
            file[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        file
    }

    #[test]
    fn the_newest_whole_memory_wins_and_a_torn_one_is_passed_over() {
        let both = file(&[memory(4), memory(5)]);
        assert_eq!(Memory::read(&both), Some(memory(5)));
        for flipped in PLACE_BYTES..PLACE_BYTES + 300 {
            let mut torn = both.clone();
            torn[flipped] ^= 0x10;
            assert_eq!(Memory::read(&torn), Some(memory(4)), "a flip at {flipped}");
        }
        assert_eq!(Memory::read(&[]), None);
        assert_eq!(Memory::read(&vec![0xff; 2 * PLACE_BYTES]), None);
    }

    #[test]
    fn a_memory_of_another_hand_that_lacks_fields_is_read_and_a_newer_format_is_not() {
        let (_, mut bytes) = memory(2).encode().unwrap();
        bytes[8] = 9;
        bytes[CRC_AT..CRC_AT + 4].fill(0);
        let crc = crc32c::crc32c(&bytes).to_le_bytes();
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc);
        assert_eq!(Memory::read(&bytes), None);
        assert_eq!(serde_json::from_str::<Memory>("{\"events\": 5, \"more\": 1}").unwrap().events, 5);
    }

    #[test]
    fn a_ring_keeps_the_last_keys_and_forgets_what_is_torn() {
        let mut file = vec![0; usize::try_from(KEYS).unwrap() * KEY_BYTES];
        for sequence in 0..KEYS + 3 {
            let key = [u8::try_from(sequence % 256).unwrap(); 32];
            let (at, bytes) = Key { sequence, update: UpdateId(sequence + 10), key, request: [1; 32] }.encode();
            let at = usize::try_from(at).unwrap();
            file[at..at + KEY_BYTES].copy_from_slice(&bytes);
        }
        let keys = Key::read(&file);
        assert_eq!((keys.len() as u64, keys[0].sequence), (KEYS, 3));
        assert_eq!(keys.last().unwrap().update, UpdateId(KEYS + 12));
        file[5 * KEY_BYTES + 20] ^= 1;
        assert_eq!(Key::read(&file).len() as u64, KEYS - 1);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_hold_longer() {
        let hold = memory(1).hold.unwrap();
        assert_eq!((hold.left_ms(0), hold.left_ms(501), hold.left_ms(5000)), (1000, 500, 0));
    }
}
