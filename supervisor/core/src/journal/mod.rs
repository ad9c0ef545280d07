//! The journal's slot: the few facts that decide what boots, and their exact bytes.
//!
//! In: [`Slot`] values, or 8192 bytes read from disk. Out: 4096 bytes for one of two places, or the newest valid slot.
//! Must not: do I/O; `file` has the order of writes and syncs, over a file that the caller brings.
//!
//! Layout of a slot, little endian: magic `MOLTJRNL` (8), format version (u32), feature flags (u32), sequence (u64),
//! payload length (u32), CRC-32C over the whole slot with this field zero (u32), JSON payload, zero padding. Slot
//! `sequence % 2` is written, so the other one always holds the state before.

mod file;

use serde::{Deserialize, Serialize};

pub use self::file::{Journal, JournalError, Medium, Opened, Recovered, Shelved, recover};
use crate::{
    code::Code,
    ids::{Digest, Generation, UpdateId},
    order::{Memory, Ratchet},
    wire::Outcome,
};

/// Bytes of one slot.
pub const SLOT_BYTES: usize = 4096;
/// Bytes of the journal file.
pub const FILE_BYTES: usize = 2 * SLOT_BYTES;
/// Format version this code writes.
pub const FORMAT: u32 = 1;
/// Feature flags this code understands.
pub const FEATURES: u32 = FEATURE_ORDERS;
/// The slot has [`Slot::orders`]. A Molt that does not know them would forget how far each key was used, and where the
/// floor is: it may boot from such a slot and write none.
pub const FEATURE_ORDERS: u32 = 1;
/// Most digests remembered as bad; the oldest goes first.
pub const MAX_BAD: usize = 9;

const MAGIC: &[u8; 8] = b"MOLTJRNL";
const HEADER: usize = 32;

/// What is durable. `confirmed` and `trial` alone decide what boots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// Rises by one a write; picks the place.
    #[serde(skip)]
    pub sequence: u64,
    /// The generation that boots.
    pub confirmed: Option<Generation>,
    /// A generation that runs, or is about to, and is not proven.
    pub trial: Option<Trial>,
    /// The generation `rollback` returns to.
    pub previous: Option<Generation>,
    /// Number of the next generation.
    pub next_generation: u32,
    /// Number of the next update.
    pub next_update: u64,
    /// Digests that failed.
    pub bad: Vec<Bad>,
    /// Digest of the spec's `image` text last acted on.
    pub spec_image: Option<Digest>,
    /// Digest of the spec's policy text last acted on.
    pub spec_policy: Option<Digest>,
    /// Starts of PID 1 in a row that were not stopped from outside and did not become healthy, this one included.
    pub starts: u32,
    /// `/proc/sys/kernel/random/boot_id` at the first of them: another kernel begins another count.
    #[serde(default)]
    pub starts_boot_id: String,
    /// CLOCK_BOOTTIME at the first of them, milliseconds.
    #[serde(default)]
    pub starts_since_ms: u64,
    /// How the last attempt that reached the slot ended. The history is written after the slot: where Molt died in
    /// between, the next start completes it from here.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// How far the keys of signed orders were used, and the rollback floor; `None` until the first order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders: Option<Memory>,
    /// The revision of a gateway's desired state that was acted on last. Written in one with the number of its update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
}

/// What a gateway wanted, and the update that came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Names the gateway's store.
    pub gateway: String,
    /// Where it is, for people: at most 64 characters.
    pub host: String,
    /// Number of the revision.
    pub number: u64,
    /// The update that was made of it last.
    pub update: UpdateId,
    /// The update has passed its gate or ended for good: it is not to be done again, whatever else is remembered.
    pub done: bool,
    /// The signed order that was taken for it, if it was one: that very order may be taken for it again while it is not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Ratchet>,
    /// What came of an order that began no update. One without it was cut off while it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub came: Option<Came>,
}

/// What came of an order that begins no update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Came {
    /// It was done.
    Done,
    /// It could not be: why.
    Refused(Code),
}

impl Revision {
    /// Whether the order `taken` may be taken again for the revision `asked`: it was taken for that very one, and nothing was
    /// touched by it yet.
    pub fn again(&self, asked: &Self, taken: &Ratchet) -> bool {
        !self.done
            && self.order.as_ref() == Some(taken)
            && (&self.gateway, self.number) == (&asked.gateway, asked.number)
    }

    /// Who asked, for the audit.
    pub fn by(&self) -> String {
        format!("gateway {} revision {}", self.host, self.number)
    }
}

/// How an attempt ended, written in one with what it changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Which.
    pub update: UpdateId,
    /// `update`, `rollback` or `boot`, as in the history.
    pub kind: String,
    /// `Confirmed`, or `RolledBack`.
    pub outcome: Outcome,
}

/// An unproven generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// Which.
    pub generation: Generation,
    /// The update it belongs to.
    pub update: UpdateId,
    /// Whether it is a rollback (which is never itself rolled back).
    pub rollback: bool,
    /// `/proc/sys/kernel/random/boot_id` when it was recorded.
    pub boot_id: String,
    /// Molt was asked to stop while it ran: the stop says nothing about the generation.
    pub clean_stop: bool,
    /// Its program was seen to run and nothing else is why it ends: if Molt dies now, that counts against the image.
    #[serde(default = "yes")]
    pub suspect: bool,
}

fn yes() -> bool {
    true
}

/// A digest that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bad {
    /// The image.
    pub digest: Digest,
    /// The policy it failed with; another policy is another attempt.
    pub policy: Digest,
    /// The update that found out.
    pub update: UpdateId,
    /// Why.
    pub reason: Code,
    /// Milliseconds since 1970.
    pub since_ms: u64,
}

/// Why a slot cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// More facts than a slot holds.
    #[error("fit {0} bytes of journal payload into a slot")]
    TooLarge(usize),
    /// Neither place holds a valid slot.
    #[error("find a valid slot in the journal")]
    NoneValid,
    /// Written by a newer Molt: it may be booted from, not changed.
    #[error(
        "write a journal of format {format} with features {features:#x}: this Molt knows {FORMAT} and {FEATURES:#x}"
    )]
    Newer {
        /// Its format version.
        format: u32,
        /// Its feature flags.
        features: u32,
    },
}

/// A journal that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The newest valid slot; `None` where a newer Molt wrote what this one cannot make out.
    pub slot: Option<Slot>,
    /// Its sequence.
    pub sequence: u64,
    /// Set when it was written by a newer Molt, which forbids writing.
    pub newer: Option<SlotError>,
    /// How many of the two places were valid.
    pub valid: usize,
}

impl Slot {
    /// A store's first slot.
    pub fn first() -> Self {
        Self { next_generation: 1, next_update: 1, ..Self::default() }
    }

    /// Byte offset this slot is written at.
    pub fn offset(&self) -> u64 {
        file::offset(self.sequence)
    }

    /// Generations below it are not gone back to by hand.
    pub fn floor(&self) -> Generation {
        self.orders.as_ref().map(|orders| orders.floor).unwrap_or_default()
    }

    /// Whether `digest` under `policy` is remembered as bad.
    pub fn bad(&self, digest: Digest, policy: Digest) -> Option<&Bad> {
        self.bad.iter().find(|bad| bad.digest == digest && bad.policy == policy)
    }

    /// Remembers a failure, forgetting the oldest beyond [`MAX_BAD`].
    pub fn remember_bad(&mut self, bad: Bad) {
        self.bad.retain(|old| !(old.digest == bad.digest && old.policy == bad.policy));
        self.bad.push(bad);
        self.forget_excess();
    }

    fn forget_excess(&mut self) {
        let excess = self.bad.len().saturating_sub(MAX_BAD);
        self.bad.drain(..excess);
    }

    /// The bytes to write at [`Slot::offset`].
    pub fn encode(&self) -> Result<Vec<u8>, SlotError> {
        let payload = serde_json::to_vec(self).unwrap_or_default();
        if payload.is_empty() || HEADER + payload.len() > SLOT_BYTES {
            return Err(SlotError::TooLarge(payload.len()));
        }
        let length = u32::try_from(payload.len()).map_err(|_| SlotError::TooLarge(payload.len()))?;
        let mut bytes = Vec::with_capacity(SLOT_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        let features = if self.orders.is_some() { FEATURE_ORDERS } else { 0 };
        bytes.extend_from_slice(&features.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&payload);
        bytes.resize(SLOT_BYTES, 0);
        let crc = crc32c::crc32c(&bytes).to_le_bytes();
        if let Some(place) = bytes.get_mut(28..32) {
            place.copy_from_slice(&crc);
        }
        Ok(bytes)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// A place whose checksum is right.
struct Place {
    sequence: u64,
    format: u32,
    features: u32,
    slot: Option<Slot>,
}

impl Place {
    fn newer(&self) -> Option<SlotError> {
        let (format, features) = (self.format, self.features);
        (format > FORMAT || features & !FEATURES != 0).then_some(SlotError::Newer { format, features })
    }
}

fn decode(bytes: &[u8]) -> Option<Place> {
    if bytes.get(..8)? != MAGIC {
        return None;
    }
    let (format, features) = (word(bytes, 8)?, word(bytes, 12)?);
    let sequence = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
    let (length, crc) = (word(bytes, 24)?, word(bytes, 28)?);
    let mut checked = bytes.to_vec();
    checked.get_mut(28..32)?.fill(0);
    if crc32c::crc32c(&checked) != crc {
        return None;
    }
    let end = HEADER.checked_add(usize::try_from(length).ok()?);
    let payload = end.and_then(|end| bytes.get(HEADER..end));
    let slot = payload.and_then(|payload| serde_json::from_slice::<Slot>(payload).ok()).map(|mut slot| {
        slot.sequence = sequence;
        // Older versions kept more of them, and had less beside them.
        slot.forget_excess();
        slot
    });
    let place = Place { sequence, format, features, slot };
    // Of this format, it can be made out or it is damaged; of a newer one, it is only not understood.
    (place.slot.is_some() || place.newer().is_some()).then_some(place)
}

/// Picks the newest valid slot of a journal file.
pub fn read(file: &[u8]) -> Result<Read, SlotError> {
    let places: Vec<_> = file.chunks_exact(SLOT_BYTES).take(2).filter_map(decode).collect();
    let valid = places.len();
    let newest = places.into_iter().max_by_key(|place| place.sequence).ok_or(SlotError::NoneValid)?;
    Ok(Read { newer: newest.newer(), sequence: newest.sequence, slot: newest.slot, valid })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(sequence: u64) -> Slot {
        Slot { sequence, confirmed: Some(Generation(7)), ..Slot::first() }
    }

    fn file(slots: &[&Slot]) -> Vec<u8> {
        let mut file = vec![0; FILE_BYTES];
        for slot in slots {
            let at = usize::try_from(slot.offset()).unwrap();
            file[at..at + SLOT_BYTES].copy_from_slice(&slot.encode().unwrap());
        }
        file
    }

    #[test]
    fn the_newest_valid_slot_wins() {
        let read = read(&file(&[&slot(4), &slot(5)])).unwrap();
        assert_eq!((read.sequence, read.valid, read.newer), (5, 2, None));
    }

    #[test]
    fn a_torn_newest_slot_leaves_the_one_before() {
        let whole = file(&[&slot(4), &slot(5)]);
        for torn in SLOT_BYTES..SLOT_BYTES + 400 {
            let mut file = whole.clone();
            file[torn] ^= 0x40;
            assert_eq!(read(&file).unwrap().sequence, 4, "flip at {torn}");
        }
    }

    #[test]
    fn no_valid_slot_is_an_error_not_a_panic() {
        assert_eq!(read(&[]), Err(SlotError::NoneValid));
        assert_eq!(read(&vec![0xff; FILE_BYTES]), Err(SlotError::NoneValid));
        assert_eq!(read(&vec![0; 3 * SLOT_BYTES + 1]), Err(SlotError::NoneValid));
    }

    #[test]
    fn a_newer_format_boots_but_forbids_writing() {
        let mut bytes = slot(2).encode().unwrap();
        bytes[8] = 9;
        bytes[28..32].fill(0);
        let crc = crc32c::crc32c(&bytes).to_le_bytes();
        bytes[28..32].copy_from_slice(&crc);
        let read = read(&bytes).unwrap();
        assert_eq!(read.slot.unwrap().confirmed, Some(Generation(7)));
        assert!(matches!(read.newer, Some(SlotError::Newer { format: 9, .. })));
    }

    #[test]
    fn an_order_comes_again_for_its_own_revision_only() {
        let ratchet = |key: &str, seq| Ratchet { key: key.to_owned(), seq };
        let (gateway, host) = ("0".repeat(32), "gw".to_owned());
        let asked = Revision { gateway, host, number: 8, update: UpdateId(0), done: false, order: None, came: None };
        let last = Revision { order: Some(ratchet("release", 9)), ..asked.clone() };
        assert!(last.again(&asked, &ratchet("release", 9)));
        // The revision is unfinished, but it was another order, or none, that it came as.
        assert!(!last.again(&asked, &ratchet("release", 8)) && !last.again(&asked, &ratchet("other", 9)));
        assert!(!asked.again(&asked, &ratchet("release", 9)));
        assert!(!last.again(&Revision { number: 9, ..asked.clone() }, &ratchet("release", 9)));
        assert!(!last.again(&Revision { gateway: "1".repeat(32), ..asked.clone() }, &ratchet("release", 9)));
        assert!(!Revision { done: true, ..last }.again(&asked, &ratchet("release", 9)));
    }

    #[test]
    fn a_slot_with_everything_in_it_still_fits() {
        let mut slot = slot(1);
        slot.trial = Some(Trial {
            generation: Generation(u32::MAX),
            update: UpdateId(u64::MAX),
            rollback: true,
            boot_id: "x".repeat(36),
            clean_stop: true,
            suspect: false,
        });
        slot.revision = Some(Revision {
            gateway: "f".repeat(32),
            host: "x".repeat(64),
            number: u64::MAX,
            update: UpdateId(u64::MAX),
            done: false,
            order: Some(Ratchet { key: "k".repeat(32), seq: u64::MAX }),
            came: Some(Came::Refused(Code::NothingToRollBackTo)),
        });
        slot.starts_boot_id = "x".repeat(36);
        slot.starts_since_ms = u64::MAX;
        slot.spec_image = Some(Digest::from_bytes([255; 32]));
        slot.spec_policy = slot.spec_image;
        (slot.confirmed, slot.previous) = (Some(Generation(u32::MAX)), Some(Generation(u32::MAX)));
        (slot.next_generation, slot.next_update, slot.starts) = (u32::MAX, u64::MAX, u32::MAX);
        let kind = "rollback".to_owned();
        slot.verdict = Some(Verdict { update: UpdateId(u64::MAX), kind, outcome: Outcome::RolledBack });
        let ratchet = |key: usize| Ratchet { key: format!("{key:032}"), seq: u64::MAX };
        slot.orders = Some(Memory {
            ratchets: (0..crate::order::MAX_KEYS).map(ratchet).collect(),
            floor: Generation(u32::MAX),
            clock: u64::MAX,
        });
        for number in 0..40u8 {
            slot.remember_bad(Bad {
                digest: Digest::from_bytes([number; 32]),
                policy: Digest::from_bytes([255; 32]),
                update: UpdateId(u64::MAX),
                reason: Code::NothingToRollBackTo,
                since_ms: u64::MAX,
            });
        }
        assert_eq!(slot.bad.len(), MAX_BAD);
        let bytes = slot.encode().expect("must fit");
        assert_eq!(read(&bytes).unwrap().slot, Some(slot));
    }

    #[test]
    fn a_slot_of_an_older_molt_with_more_bad_digests_is_read_without_the_oldest() {
        let bad = |number: u8| Bad {
            digest: Digest::from_bytes([number; 32]),
            policy: Digest::from_bytes([255; 32]),
            update: UpdateId(u64::from(number)),
            reason: Code::Unhealthy,
            since_ms: 0,
        };
        let old = Slot { bad: (0..12).map(bad).collect(), ..slot(1) };
        let found = read(&file(&[&old])).unwrap().slot.unwrap();
        assert_eq!(found.bad.iter().map(|bad| bad.update.0).collect::<Vec<_>>(), (3..12).collect::<Vec<_>>());
    }

    #[test]
    fn orders_forbid_an_older_molt_to_write() {
        let without = slot(1).encode().unwrap();
        assert_eq!(word(&without, 12), Some(0), "stores without orders stay everybody's");
        let with = Slot { orders: Some(Memory::default()), ..slot(1) };
        assert_eq!(word(&with.encode().unwrap(), 12), Some(FEATURE_ORDERS));
        let found = read(&file(&[&with])).unwrap();
        assert_eq!((found.newer, found.slot), (None, Some(with)));
    }

    #[test]
    fn a_slot_of_before_there_were_orders_is_read() {
        let text = serde_json::to_string(&slot(1)).unwrap();
        assert!(!text.contains("orders"));
        assert_eq!(serde_json::from_str::<Slot>(&text).unwrap().orders, None);
        assert_eq!(slot(1).floor(), Generation(0));
    }
}
