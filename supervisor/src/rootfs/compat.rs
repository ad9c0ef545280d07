//! Older kernels, all in one file. Before Linux 6.15 a mount cannot be attached to a detached tree and a detached tree
//! cannot be cloned: the overlay is anchored at a root-only folder of PID 1's mount namespace, and the init attaches what
//! PID 1 could not. Before 6.13 and 6.8 overlayfs takes its folders in other forms (`overlay`).
//!
//! In: mounts. Out: the same ones, attached or handed on. Must not: be reached on a kernel that can do better.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use molt_core::{code::Code, ids::Generation};
use rustix::{
    fs::CWD,
    io::Errno,
    mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount},
};

use super::{Parts, RootError};

/// Whether to do as on a kernel before `major.minor`: `MOLT_PRETEND_KERNEL=5.15` drives the old paths on a new kernel.
pub(super) fn pretend_older_than(major: u32, minor: u32) -> bool {
    static PRETENDED: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    PRETENDED
        .get_or_init(|| {
            let text = std::env::var("MOLT_PRETEND_KERNEL").ok()?;
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        })
        .is_some_and(|kernel| kernel < (major, minor))
}

/// Reads the variable now: PID 1 forgets its environment.
pub(crate) fn remember_pretended_kernel() {
    let _ = pretend_older_than(0, 0);
}

/// Where an overlay is mounted on kernels that cannot clone a detached one.
#[derive(Debug)]
pub(super) struct Anchor(PathBuf);

impl Anchor {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        if let Err(errno) = unmount(&self.0, UnmountFlags::DETACH) {
            tracing::warn!(path = %self.0.display(), %errno, "failed to unmount an anchored root");
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

static SERIAL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Puts a small tmpfs of this process on the folder `anchors`, once: mount points are made there, so that a full disk is
/// no hindrance to a start or a rollback.
fn make_room(anchors: &Path) -> rustix::io::Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if *done {
        return Ok(());
    }
    std::fs::create_dir_all(anchors).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", anchors, "tmpfs", flags, c"mode=0700,size=64k,nr_inodes=1k")?;
    *done = true;
    Ok(())
}

/// Keeps `mount` detached where that is enough, else mounts it below `anchors`.
pub(super) fn anchor(
    mount: OwnedFd,
    anchors: &Path,
    generation: Generation,
) -> Result<(OwnedFd, Option<Anchor>), RootError> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if !pretend_older_than(6, 15) && open_tree(&mount, "", clone).is_ok() {
        return Ok((mount, None));
    }
    let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let place = anchors.join(format!("{generation}-{serial}"));
    let fail = |step, path: &Path, why: &dyn std::fmt::Display, code| {
        RootError::new(step, path.display().to_string(), why.to_string(), code)
    };
    // Neither is the image's fault, nor for ever.
    make_room(anchors).map_err(|errno| fail("mount a tmpfs at", anchors, &errno, Code::StoreUnusable))?;
    std::fs::create_dir(&place).map_err(|error| fail("make", &place, &error, Code::StoreUnusable))?;
    move_mount(&mount, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| fail("mount the overlay at", &place, &errno, Code::Unsupported))?;
    Ok((mount, Some(Anchor(place))))
}

/// Attaches `mount` to the detached tree that `target` lies in, or leaves it to the init.
pub(super) fn attach(
    mount: OwnedFd,
    target: &OwnedFd,
    path: &str,
    late: &mut Vec<(String, OwnedFd)>,
) -> Result<(), RootError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    if !late.is_empty() || pretend_older_than(6, 15) {
        late.push((path.to_owned(), mount));
        return Ok(());
    }
    match move_mount(&mount, "", target, "", flags) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL) => {
            late.push((path.to_owned(), mount));
            Ok(())
        }
        Err(errno) => Err(RootError::new("attach", path, errno, Code::StateUnmountable)),
    }
}

/// A clone of PID 1's root without what is mounted below it: generation 0's lower.
pub(super) fn own_root(parts: &Parts) -> Result<OwnedFd, RootError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    match open_tree(&parts.own_root, "", flags) {
        // In a user namespace mounts inherited from outside are locked together; the root as it is shows no more, as
        // overlayfs does not cross mounts.
        Err(Errno::INVAL) => open_tree(&parts.own_root, "", flags & !OpenTreeFlags::OPEN_TREE_CLONE),
        result => result,
    }
    .map_err(|errno| RootError::new("clone", "the container's root", errno, Code::Unsupported))
}
