//! What a fetch will take, before it starts, and whether there is room for it: blocks and inodes.
//!
//! In: a resolved image and the store. Out: bytes to fetch, guesses at bytes and inodes on disk, or a refusal with the
//! figures. Must not: promise the guesses. A manifest has packed sizes only: how large a layer unpacks, and how many
//! entries it has, is known when it is unpacked. Packed layers count 3 times their size, which is what distribution images
//! come to; each 8 KiB of that counts as an entry, twice as many as `mkfs.ext4` makes inodes for, and as many as the
//! smallest files in bulk (`node_modules`) come to. A fifth is on top of both. What takes more all the same is
//! stopped at the reserve (see [`crate::reserve`]), and what it wrote is removed.

use std::collections::HashSet;

use crate::{
    error::{Error, Result},
    fetch::present,
    layer::decode::Packing,
    reserve,
    resolve::Resolved,
    store::Store,
};

/// Bytes for which an entry is counted.
const ENTRY: u64 = 8 << 10;
/// Folders and small files that a layer has, however small it is.
const LAYER: u64 = 32;
/// A generation's own: its folders, records, manifest and config.
const GENERATION: u64 = 16;

/// What a fetch will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Packed bytes of the layers that are not in the store.
    pub bytes_to_fetch: u64,
    /// Layers that are not in the store.
    pub layers_to_fetch: usize,
    /// A guess at the bytes they will take unpacked.
    pub bytes_on_disk_estimate: u64,
    /// A guess at the inodes they and their generation will take.
    pub inodes_estimate: u64,
}

/// What fetching `resolved` into `store` will take.
pub fn need(resolved: &Resolved, store: &Store) -> Need {
    let mut need =
        Need { bytes_to_fetch: 0, layers_to_fetch: 0, bytes_on_disk_estimate: 0, inodes_estimate: GENERATION };
    let mut seen = HashSet::new();
    for (layer, there) in resolved.layers.iter().zip(present(resolved, store)) {
        if there.is_some() || !seen.insert(layer.id()) {
            continue;
        }
        let factor = if layer.packing == Packing::Tar { 1 } else { 3 };
        let unpacked = layer.size.saturating_mul(factor);
        need.layers_to_fetch += 1;
        need.bytes_to_fetch = need.bytes_to_fetch.saturating_add(layer.size);
        need.bytes_on_disk_estimate = need.bytes_on_disk_estimate.saturating_add(and_a_fifth(unpacked));
        need.inodes_estimate = need.inodes_estimate.saturating_add(and_a_fifth(unpacked / ENTRY + LAYER));
    }
    need
}

fn and_a_fifth(count: u64) -> u64 {
    count.saturating_add(count / 5)
}

/// Refuses what will not fit beside `reserve`. What fetches nothing may use up the reserve.
pub(crate) fn check(need: &Need, what: &str, store: &Store, reserve: u64) -> Result<()> {
    let space = store.space()?;
    let reserve = if need.layers_to_fetch > 0 { reserve } else { 0 };
    let bytes = need.bytes_on_disk_estimate.saturating_add(reserve);
    let inodes = need.inodes_estimate.saturating_add(reserve::inodes(reserve));
    if bytes <= space.bytes_free && inodes <= space.inodes_free {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let free = match space.inodes_total {
        0 => String::new(),
        total => format!(" and {} of {total} inodes", space.inodes_free),
    };
    Err(Error::NoSpace {
        operation: format!("fetch {what}"),
        why: format!(
            "{} layers of {} MiB need about {} MiB and {} inodes, and {} MiB and {} inodes stay in reserve; {} of {} MiB{free} \
             are free",
            need.layers_to_fetch,
            mib(need.bytes_to_fetch),
            mib(need.bytes_on_disk_estimate),
            need.inodes_estimate,
            mib(reserve),
            reserve::inodes(reserve),
            mib(space.bytes_free),
            mib(space.bytes_total),
        ),
    })
}
