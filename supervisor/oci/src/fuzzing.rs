//! The parsers, reachable for `tests/fuzz`; only with the feature `fuzzing`, which no shipped build has.
//!
//! In: bytes from outside. Out: what was read of them, as plain data. Must not: judge, or do anything that the product
//! does not do the same way.

use std::{
    io::{BufRead, Read},
    os::fd::{AsFd as _, OwnedFd},
};

use molt_core::ids::{DiffId, Digest};
use reqwest::Url;
use sha2::{Digest as _, Sha256};

pub use crate::layer::{decode::Packing, tree::XattrNamespace};
use crate::{
    config::{Limits, Platform},
    error::{Error, Result},
    layer::{
        apply::Options,
        decode::{Plain, stream_error},
        entry::Kind,
        extract,
        packed::{Hashed, Promise},
        settle::settle,
        tar::TarReader,
        tree::{Asks, mark_hidden},
        whiteout::Whiteout,
    },
    manifest::{self, Parsed},
    remote::{address, challenge},
    unpacker::wire,
};

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A folder.
    Directory,
    /// A regular file: size and SHA-256 of its data.
    File(u64, [u8; 32]),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A hard link.
    Hardlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// Hides a name, or everything, of the lower layers.
    Whiteout(Option<Vec<u8>>),
    /// Left out.
    Nothing,
}

/// An entry of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Normalised path.
    pub path: Vec<u8>,
    /// What it makes.
    pub what: What,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Every entry of a tar stream.
pub fn members(tar: impl Read, limits: &Limits) -> Result<Vec<Member>> {
    let mut reader = TarReader::new(tar, limits);
    let mut list = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut hash = Sha256::new();
        reader.data(&entry, |piece| {
            hash.update(piece);
            Ok(())
        })?;
        let what = match entry.kind {
            Kind::Directory => What::Directory,
            Kind::File(size) => What::File(size, hash.finalize().into()),
            Kind::Symlink(target) => What::Symlink(target),
            Kind::Hardlink(target) => What::Hardlink(target),
            Kind::Fifo => What::Fifo,
            Kind::Whiteout(Whiteout::Name(name)) => What::Whiteout(Some(name)),
            Kind::Whiteout(Whiteout::Opaque) => What::Whiteout(None),
            Kind::Nothing => What::Nothing,
        };
        let (path, xattrs) = (entry.path, entry.xattrs);
        list.push(Member { path, what, mode: entry.mode, uid: entry.uid, gid: entry.gid, xattrs });
    }
    Ok(list)
}

/// Unpacks a blob without looking into it: the tar stream and its digest.
pub fn decode(blob: impl BufRead, packing: Packing, limits: &Limits) -> Result<(Vec<u8>, DiffId)> {
    let mut stream = Plain::new(blob, packing, limits)?;
    let mut plain = Vec::new();
    stream.read_to_end(&mut plain).map_err(|source| stream_error("read to its end", source))?;
    Ok((plain, stream.finish()?))
}

/// Judges a blob against what a manifest says of it, after all of it was unpacked that can be.
pub fn judge(
    blob: impl BufRead,
    packing: Packing,
    limits: &Limits,
    (digest, size, diff_id): (Digest, u64, DiffId),
) -> Result<()> {
    let mut source = Hashed::new(blob);
    let unpacked = decode(&mut source, packing, limits).map(|(_, diff_id)| (diff_id, ()));
    Promise { digest, size, diff_id, packing }.judge(source, unpacked)
}

/// Unpacks the tar of a layer into an empty folder, on top of `lowers`, nearest first, by way of what an unpacker writes
/// down for the next one.
pub fn unpack(tar: &[u8], into: &OwnedFd, lowers: &[OwnedFd], limits: &Limits, xattrs: XattrNamespace) -> Result<()> {
    rustix::process::umask(crate::layer::apply::UMASK);
    let root = into.try_clone().map_err(|error| Error::store("clone a descriptor", error))?;
    let (_, asks) = extract(tar, root, Packing::Tar, limits)?;
    let mut written = Vec::new();
    asks.write(&mut written).map_err(|error| Error::store("keep what a layer asks", error))?;
    let asks = Asks::read(&mut written.as_slice(), limits)?;
    mark_hidden(into.as_fd(), &asks, xattrs)?;
    if asks.is_empty() { Ok(()) } else { settle(into, asks, lowers, Options { limits, xattrs }) }
}

/// Reads what an unpacker wrote down, and writes it again.
pub fn asks(mut bytes: &[u8], limits: &Limits) -> Result<Vec<u8>> {
    let mut again = Vec::new();
    let asks = Asks::read(&mut bytes, limits)?;
    asks.write(&mut again).map_err(|error| Error::store("write", error))?;
    Ok(again)
}

/// What is shown of a message of an unpacker.
pub fn verdict(bytes: &[u8], layer: DiffId) -> Option<String> {
    wire::shown(bytes, layer)
}

/// What a manifest or index says.
#[derive(Debug, Clone)]
pub enum Document {
    /// Number of entries, and the one for the platform asked for.
    Index(usize, Option<Digest>),
    /// Size of the config, and sizes of the layers.
    Manifest(u64, Vec<u64>),
}

/// Reads a manifest or index.
pub fn manifest(bytes: &[u8], media_type: Option<&str>, limits: &Limits, wanted: &Platform) -> Result<Document> {
    Ok(match manifest::parse("fuzz", bytes, media_type, limits)? {
        Parsed::Index(entries) => {
            Document::Index(entries.len(), manifest::choose("fuzz", &entries, wanted).ok().map(|entry| entry.digest))
        }
        Parsed::Manifest(manifest) => {
            Document::Manifest(manifest.config.size, manifest.layers.iter().map(|(layer, _)| layer.size).collect())
        }
    })
}

/// Reads challenges, a line each. Basic gives none, Bearer its realm and the URL that a token is asked from.
pub fn challenge(headers: &str, repository: &str) -> Result<Option<(Url, Url)>, String> {
    Ok(match challenge::parse(headers.lines())? {
        challenge::Challenge::Basic => None,
        challenge::Challenge::Bearer { realm, service } => {
            Some((realm.clone(), challenge::token_url(realm, service.as_deref(), repository)))
        }
    })
}

/// `host[:port]` of the URL that a registry host of a reference leads to; none where it is no URL.
pub fn authority(host: &str) -> Option<String> {
    format!("https://{host}/v2/").parse().ok().map(|url| address::authority(&url))
}

/// Whether a URL that a registry named may be asked.
pub fn url_allowed(url: &Url) -> bool {
    address::url_allowed(url, address::Reach::Told, &[]).is_ok()
}
