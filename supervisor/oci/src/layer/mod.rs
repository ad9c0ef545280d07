//! One layer: from the bytes of its blob to a folder that overlayfs can use as a lower layer.
//!
//! In: a reader of the packed blob, an empty folder, limits. Out: the folder filled, after every digest was checked. Must not:
//! know where the bytes come from, or where the folder goes.

pub(crate) mod apply;
pub(crate) mod decode;
pub(crate) mod entry;
pub(crate) mod lowers;
pub(crate) mod settle;
pub(crate) mod tar;
pub(crate) mod tree;
mod whiteout;

use std::{io::BufRead, os::fd::OwnedFd};

use molt_core::ids::{DiffId, Digest};

use self::{
    apply::Options,
    decode::{Packing, Plain},
    tree::Asks,
};
use crate::error::{Error, Result};

/// After a layer was found bad, this much more of it is read to tell a broken download from a bad layer.
const ABANDON: u64 = 64 << 20;

/// What a layer must turn out to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) diff_id: DiffId,
    pub(crate) packing: Packing,
}

/// Unpacks `source` into `root` and checks that it was what `promise` says. Gives what it asks of the layers below.
pub(crate) fn unpack(source: impl BufRead, root: OwnedFd, promise: Promise, options: Options<'_>) -> Result<Asks> {
    let named = |error: Error| error.in_layer(promise.diff_id);
    let mut stream = Plain::new(source, promise.packing, options.limits).map_err(named)?;
    let asks = match apply::apply(&mut stream, root, options).and_then(|asks| stream.exhaust().map(|()| asks)) {
        Ok(asks) => asks,
        // A layer that makes no sense may be one that was damaged on its way.
        Err(error @ Error::Layer { .. }) => {
            return match stream.abandon(ABANDON) {
                Some(actual) if actual != promise.digest => Err(mismatch("blob", promise.digest, actual)),
                _ => Err(named(error)),
            };
        }
        Err(error) => return Err(error),
    };
    let sums = stream.finish().map_err(named)?;
    if sums.packed_bytes != promise.size {
        return Err(Error::Mismatch {
            what: format!("the size of blob {}", promise.digest),
            expected: format!("{} bytes", promise.size),
            actual: format!("{} bytes", sums.packed_bytes),
        });
    }
    if sums.packed != promise.digest {
        return Err(mismatch("blob", promise.digest, sums.packed));
    }
    if sums.plain != promise.diff_id {
        return Err(mismatch("unpacked layer (diff_id)", promise.diff_id.0, sums.plain.0));
    }
    Ok(asks)
}

pub(crate) fn mismatch(what: &str, expected: Digest, actual: Digest) -> Error {
    Error::Mismatch { what: format!("{what} {expected}"), expected: expected.to_string(), actual: actual.to_string() }
}
