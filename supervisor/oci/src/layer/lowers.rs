//! What the layers below show at a path, as an overlay of them would: merged folders, whiteouts, opaque folders.
//!
//! In: descriptors of the unpacked lower layers, nearest first. Out: [`Seen`]. Must not: follow any link, or change them.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::tree::XattrNamespace;
use crate::error::{Error, Result, show};

/// What is at a path.
#[derive(Debug)]
pub(crate) enum Seen {
    /// Nothing, or something hidden.
    Nothing,
    /// A folder: the topmost one, whose owner and mode show.
    Folder(OwnedFd),
    /// A link and its target.
    Link(Vec<u8>),
    /// A regular file: the folder it is in, and what it is.
    File(OwnedFd, Stat),
    /// Anything else.
    Other,
}

/// The lower layers of one layer.
#[derive(Debug)]
pub(crate) struct Lowers<'a> {
    /// Nearest first.
    pub(crate) roots: &'a [OwnedFd],
    pub(crate) xattrs: XattrNamespace,
}

impl Lowers<'_> {
    /// Looks `path` up, component by component, in all layers at once.
    pub(crate) fn look_up(&self, path: &[u8]) -> Result<Seen> {
        let failed = |error| Error::store(format!("look at '{}' in the layers below", show(path)), error);
        let mut merged = Vec::new();
        for root in self.roots {
            merged.push(open(root, b".").map_err(failed)?);
            if self.opaque(root).map_err(failed)? {
                break;
            }
        }
        let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).peekable();
        while let Some(name) = parts.next() {
            let mut next = Vec::new();
            for at in &merged {
                let stat = match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(failed(error)),
                };
                let kind = FileType::from_raw_mode(stat.st_mode);
                if kind != FileType::Directory {
                    // Below a folder it is hidden by it; on top it hides the rest.
                    if next.is_empty() && parts.peek().is_none() {
                        return leaf(at, name, kind, stat).map_err(failed);
                    }
                    break;
                }
                let folder = open(at, name).map_err(failed)?;
                let last = self.opaque(&folder).map_err(failed)?;
                next.push(folder);
                if last {
                    break;
                }
            }
            if next.is_empty() {
                return Ok(Seen::Nothing);
            }
            merged = next;
        }
        Ok(merged.into_iter().next().map_or(Seen::Nothing, Seen::Folder))
    }

    fn opaque(&self, folder: impl AsFd) -> rustix::io::Result<bool> {
        let readable = open(&folder, b".")?;
        let mut value = [0u8; 1];
        match rustix::fs::fgetxattr(&readable, self.xattrs.opaque(), &mut value[..]) {
            Ok(count) => Ok(count == 1 && value == *b"y"),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn open(at: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn leaf(at: &OwnedFd, name: &[u8], kind: FileType, stat: Stat) -> rustix::io::Result<Seen> {
    Ok(match kind {
        FileType::Symlink => Seen::Link(rustix::fs::readlinkat(at, name, Vec::new())?.into_bytes()),
        FileType::RegularFile => Seen::File(open(at, b".")?, stat),
        // A whiteout: overlays know no other device in a layer of ours.
        FileType::CharacterDevice => Seen::Nothing,
        _ => Seen::Other,
    })
}
