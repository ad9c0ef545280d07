//! Clean-up: generations beyond `keep`, layers and blobs nothing needs.
//!
//! In: what may go. Out: what was removed. Must not: touch confirmed, previous, trial, staged, or generation 0.

use std::collections::{BTreeMap, BTreeSet};

use molt_core::{
    generation::Record,
    ids::{Digest, Generation},
    wire::Collected,
};

use super::{Fault, image::config_of};
use crate::store::Store;

/// Removes the generations that go, and the layers and blobs that no other one needs. Blocking.
pub(crate) fn collect(
    store: &Store,
    known: &BTreeMap<Generation, Record>,
    going: &[Generation],
) -> Result<Collected, Fault> {
    let before = store.content.space()?.bytes_free;
    let mut left = known.clone();
    let mut done = Collected::default();
    for number in going {
        store.remove(*number)?;
        left.remove(number);
        done.generations.push(*number);
    }
    // It may need any layer, and may be read again: by the next start, or by a newer Molt.
    if let Some(number) = store.withheld()? {
        tracing::warn!(generation = number.0, "the record of a generation cannot be read: no layer is cleaned up");
        store.content.empty_trash()?;
        done.bytes = store.content.space()?.bytes_free.saturating_sub(before);
        return Ok(done);
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
