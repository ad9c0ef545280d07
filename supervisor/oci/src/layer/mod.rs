//! One layer: from the bytes of its blob to a folder that overlayfs can use as a lower layer.
//!
//! In: a reader of the packed blob, an empty folder, limits. Out: the folder filled, after every digest was checked. Must not:
//! know where the bytes come from, or where the folder goes.

pub(crate) mod apply;
mod asks;
pub(crate) mod decode;
pub(crate) mod entry;
pub(crate) mod lowers;
pub(crate) mod packed;
pub(crate) mod settle;
pub(crate) mod tar;
pub(crate) mod tree;
pub(crate) mod whiteout;

use std::{
    io::BufRead,
    os::fd::{AsFd, OwnedFd},
};

use molt_core::ids::DiffId;

use self::{
    apply::Options,
    decode::{Packing, Plain},
    packed::{Hashed, Promise},
    tree::{Asks, mark_hidden},
};
use crate::{
    config::Limits,
    error::{Error, Result},
};

/// Unpacks `source` into `root` and checks that it was what `promise` says. Gives what it asks of the layers below. In the
/// process that calls it: the product does this in processes of their own, [`crate::unpacker`].
pub(crate) fn unpack(source: impl BufRead, root: OwnedFd, promise: Promise, options: Options<'_>) -> Result<Asks> {
    // Of the whole process, as for one that does nothing else.
    rustix::process::umask(apply::UMASK);
    let mut source = Hashed::new(source);
    let kept = root.try_clone().map_err(|error| Error::store("keep a folder open", error))?;
    let extracted = extract(&mut source, root, promise.packing, options.limits);
    let asks = promise.judge(source, extracted)?;
    mark_hidden(kept.as_fd(), &asks, options.xattrs)?;
    Ok(asks)
}

/// Decompresses and unpacks `source` into `root`. What the folders hide is noted in the asks, not marked yet.
pub(crate) fn extract(
    source: impl BufRead,
    root: OwnedFd,
    packing: Packing,
    limits: &Limits,
) -> Result<(DiffId, Asks)> {
    let mut stream = Plain::new(source, packing, limits)?;
    let asks = apply::apply(&mut stream, root, limits)?;
    Ok((stream.finish()?, asks))
}
