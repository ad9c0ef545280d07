//! Clean-up: generations beyond `keep`, layers and blobs nothing needs.
//!
//! In: what must stay. Out: what was removed. Must not: touch confirmed, previous, trial, staged, or generation 0.

use std::collections::{BTreeMap, BTreeSet};

use molt_core::{
    generation::Record,
    ids::{Digest, Generation},
    wire::Collected,
};

use super::Fault;
use crate::store::Store;

/// Which generations may go: all but `pinned` and the newest `keep` others.
fn removable(known: &BTreeMap<Generation, Record>, pinned: &BTreeSet<Generation>, keep: usize) -> Vec<Generation> {
    let mut others: Vec<Generation> =
        known.keys().copied().filter(|number| !pinned.contains(number) && *number != Generation(0)).collect();
    // The newest stay; those that are pinned count towards what is kept.
    let room = keep.saturating_sub(pinned.iter().filter(|number| **number != Generation(0)).count());
    others.reverse();
    others.split_off(room.min(others.len()))
}

/// Removes what may go. Blocking.
pub(crate) fn collect(
    store: &Store,
    known: &BTreeMap<Generation, Record>,
    pinned: &BTreeSet<Generation>,
    keep: usize,
) -> Result<Collected, Fault> {
    let before = store.content.space()?.bytes_free;
    let mut left = known.clone();
    let mut done = Collected::default();
    for number in removable(known, pinned, keep) {
        store.remove(number)?;
        left.remove(&number);
        done.generations.push(number);
    }
    let layers: BTreeSet<&str> =
        left.values().flat_map(|record| &record.layers).map(|layer| layer.folder.as_str()).collect();
    for id in store.content.layers()? {
        if !layers.contains(id.to_string().as_str()) {
            store.content.trash_layer(&id)?;
            done.layers += 1;
        }
    }
    let mut blobs: BTreeSet<Digest> = BTreeSet::new();
    for digest in left.values().filter_map(|record| record.digest) {
        blobs.insert(digest);
        blobs.extend(config_of(store, &digest));
    }
    for digest in store.content.blobs()? {
        if !blobs.contains(&digest) {
            store.content.trash_blob(&digest)?;
            done.blobs += 1;
        }
    }
    store.content.empty_trash()?;
    done.bytes = store.content.space()?.bytes_free.saturating_sub(before);
    Ok(done)
}

/// The config that a kept manifest names.
fn config_of(store: &Store, manifest: &Digest) -> Option<Digest> {
    let bytes = store.content.get_blob(manifest, molt_oci::Limits::default().manifest).ok()??;
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    manifest.get("config")?.get("digest")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use molt_core::generation::Program;

    fn known(numbers: &[u32]) -> BTreeMap<Generation, Record> {
        let record = |number: u32| Record {
            version: 1,
            generation: Generation(number),
            image: None,
            digest: None,
            layers: vec![],
            policy_digest: Digest::from_bytes([0; 32]),
            settings_digest: Digest::from_bytes([0; 32]),
            program: Program::default(),
            since: String::new(),
        };
        numbers.iter().map(|number| (Generation(*number), record(*number))).collect()
    }

    fn gone(numbers: &[u32], pinned: &[u32], keep: usize) -> Vec<u32> {
        let pinned = pinned.iter().map(|number| Generation(*number)).collect();
        removable(&known(numbers), &pinned, keep).into_iter().map(|number| number.0).collect()
    }

    #[test]
    fn the_newest_stay_and_pinned_ones_always() {
        assert_eq!(gone(&[0, 1, 2, 3, 4, 5], &[5, 4], 3), [2, 1]);
        assert_eq!(gone(&[1, 2, 3, 4, 5], &[1, 5], 3), [3, 2]);
        assert_eq!(gone(&[1, 2], &[1, 2], 1), Vec::<u32>::new());
        assert_eq!(gone(&[0, 1, 2, 3], &[0], 1), [2, 1]);
    }
}
