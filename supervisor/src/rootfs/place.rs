//! Mount points inside a root that an image made: found in-root, never followed at the last step, made where missing.
//!
//! In: the root, by descriptor. Out: the mount point, by descriptor. Must not: write through a symlink of the image, or
//! into anything that is mounted on the root.

use std::os::fd::OwnedFd;

use molt_core::code::Code;
use molt_sys::mountpoint::{self, Kind};
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2},
    io::Errno,
};

use super::RootError;

const LEAF: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Where a state folder goes. A symlink there would put the state elsewhere, so the image is refused.
pub(super) fn for_state(root: &OwnedFd, path: &str) -> Result<OwnedFd, RootError> {
    let refuse = |why: &str| RootError::new("mount state at", path, why, Code::StateUnmountable);
    let mut here = rustix::io::fcntl_dupfd_cloexec(root, 0).map_err(|errno| refuse(&errno.to_string()))?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let ours = mountpoint::same_mount(root, &here).map_err(|errno| refuse(&errno.to_string()))?;
        let open = || openat2(&here, name, LEAF, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS);
        let next = match open() {
            Err(Errno::NOENT) if !ours => {
                return Err(refuse(&format!("'{name}' is missing in what is mounted above it, where nothing is made")));
            }
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

/// Where a carried mount goes. Parents may be links inside the root; what the image has in its way is replaced in the
/// generation's upper folder. Nothing is made in another mount: an image's link may lead into a volume.
pub(super) fn for_carried(root: &OwnedFd, path: &str, kind: Kind) -> Result<OwnedFd, RootError> {
    mountpoint::find_or_make(root, path, kind)
        .map_err(|problem| RootError::new("carry the mount at", path, problem, Code::Unsupported))
}
