//! Mount points inside a root that an image made: found in-root, never followed at the last step, made where missing.
//!
//! In: the root, by descriptor. Out: the mount point, by descriptor. Must not: write through a symlink of the image.

use std::os::fd::OwnedFd;

use molt_core::code::Code;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, unlinkat},
    io::Errno,
};

use super::{RootError, carry::Kind};

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const LEAF: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Where a state folder goes. A symlink there would put the state elsewhere, so the image is refused.
pub(super) fn for_state(root: &OwnedFd, path: &str) -> Result<OwnedFd, RootError> {
    let refuse = |why: &str| RootError::new("mount state at", path, why, Code::StateUnmountable);
    let mut here = rustix::io::fcntl_dupfd_cloexec(root, 0).map_err(|errno| refuse(&errno.to_string()))?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let open = || openat2(&here, name, LEAF, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS);
        let next = match open() {
            Err(Errno::NOENT) => {
                mkdirat(&here, name, Mode::from_raw_mode(0o755)).map_err(|errno| refuse(&errno.to_string()))?;
                open()
            }
            result => result,
        };
        let next = next.map_err(|errno| match errno {
            Errno::LOOP => {
                refuse(&format!("'{name}' is a symbolic link in the image; state is mounted on folders only"))
            }
            errno => refuse(&errno.to_string()),
        })?;
        let kind = fstat(&next).map(|stat| FileType::from_raw_mode(stat.st_mode));
        match kind.map_err(|errno| refuse(&errno.to_string()))? {
            FileType::Directory => here = next,
            FileType::Symlink => {
                return Err(refuse(&format!(
                    "'{name}' is a symbolic link in the image; state is mounted on folders only"
                )));
            }
            _ => return Err(refuse(&format!("'{name}' is not a folder in the image"))),
        }
    }
    Ok(here)
}

/// Where a carried mount goes. Parents may be symlinks inside the root; the last part is replaced if it is one.
pub(super) fn for_carried(root: &OwnedFd, path: &str, kind: Kind) -> Result<OwnedFd, RootError> {
    let fail = |errno: Errno| RootError::new("carry the mount at", path, errno, Code::Unsupported);
    make(root, path.trim_start_matches('/'), kind).map_err(fail)
}

fn make(root: &OwnedFd, path: &str, kind: Kind) -> rustix::io::Result<OwnedFd> {
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let parent = match openat2(root, parent, FOLDER, Mode::empty(), IN_ROOT) {
        Err(Errno::NOENT) => make(root, parent, Kind::Folder)?,
        result => result?,
    };
    let open = || openat2(&parent, name, LEAF, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS);
    match open() {
        Ok(found) => match (FileType::from_raw_mode(fstat(&found)?.st_mode), kind) {
            (FileType::Directory, Kind::Folder) | (FileType::RegularFile, Kind::File) => return Ok(found),
            (FileType::Directory, Kind::File) => return Err(Errno::ISDIR),
            _ => unlinkat(&parent, name, AtFlags::empty())?,
        },
        Err(Errno::LOOP) => unlinkat(&parent, name, AtFlags::empty())?,
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    match kind {
        Kind::Folder => mkdirat(&parent, name, Mode::from_raw_mode(0o755))?,
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            drop(openat(&parent, name, flags, Mode::from_raw_mode(0o644))?);
        }
    }
    open()
}
