//! What a fetch will take, before it starts.
//!
//! In: a resolved image and the store. Out: bytes to fetch and a guess at bytes on disk. Must not: promise the guess: how
//! large a layer unpacks is only known once it is unpacked. Packed layers count 3 times their size, which is what
//! distribution images come to, and a fifth on top for blocks and inodes.

use std::collections::HashSet;

use crate::{
    error::{Error, Result},
    layer::decode::Packing,
    resolve::Resolved,
    store::Store,
};

/// What a fetch will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Packed bytes of the layers that are not in the store.
    pub bytes_to_fetch: u64,
    /// Layers that are not in the store.
    pub layers_to_fetch: usize,
    /// A guess at the bytes they will take unpacked.
    pub bytes_on_disk_estimate: u64,
}

/// What fetching `resolved` into `store` will take.
pub fn need(resolved: &Resolved, store: &Store) -> Need {
    let mut need = Need { bytes_to_fetch: 0, layers_to_fetch: 0, bytes_on_disk_estimate: 0 };
    let mut seen = HashSet::new();
    for layer in &resolved.layers {
        if !seen.insert(layer.diff_id) || store.has_any(&layer.diff_id) {
            continue;
        }
        let factor = if layer.packing == Packing::Tar { 1 } else { 3 };
        need.layers_to_fetch += 1;
        need.bytes_to_fetch = need.bytes_to_fetch.saturating_add(layer.size);
        let disk = layer.size.saturating_mul(factor);
        need.bytes_on_disk_estimate = need.bytes_on_disk_estimate.saturating_add(disk.saturating_add(disk / 5));
    }
    need
}

/// Refuses what will not fit beside `reserve`.
pub(crate) fn check(need: &Need, what: &str, store: &Store, reserve: u64) -> Result<()> {
    let space = store.space()?;
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let wanted = need.bytes_on_disk_estimate.saturating_add(reserve);
    if need.layers_to_fetch > 0 && wanted > space.bytes_free {
        return Err(Error::NoSpace {
            operation: format!("fetch {what}"),
            why: format!(
                "{} layers of {} MiB will take about {} MiB and {} MiB stay in reserve, {} of {} MiB are free",
                need.layers_to_fetch,
                mib(need.bytes_to_fetch),
                mib(need.bytes_on_disk_estimate),
                mib(reserve),
                mib(space.bytes_free),
                mib(space.bytes_total)
            ),
        });
    }
    if need.layers_to_fetch > 0 && space.inodes_free < 1024 {
        return Err(Error::NoSpace {
            operation: format!("fetch {what}"),
            why: format!("only {} of {} inodes are free", space.inodes_free, space.inodes_total),
        });
    }
    Ok(())
}
