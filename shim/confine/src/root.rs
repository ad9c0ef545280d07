//! Another root for this process, in its own mount namespace.
//!
//! In: a detached mount tree. Out: it is `/`, and the old root is out of reach. Must not: leave a descriptor of the old
//! one; that is the caller's to see to.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, mount_move, move_mount, unmount},
    process::{chdir, chroot, fchdir, pivot_root},
};

use crate::step::{At as _, Step};

/// Lays `root` over the root of this mount namespace, which hears nothing more of the outer one's mounts from here on,
/// nor the outer one of its own.
pub fn attach(root: impl AsFd) -> Step<()> {
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).at("mount", "/ as slave")?;
    move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at("move_mount", "root")
}

/// Makes the attached tree the root and lets go of the old one. pivot_root(2), "pivot_root(".", ".")".
pub fn pivot(root: OwnedFd) -> Step<()> {
    fchdir(&root).at("fchdir", "root")?;
    drop(root);
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH).at("umount", "old root")?,
        // Docker's default seccomp profile has no pivot_root, with CAP_SYS_ADMIN or without.
        Err(Errno::PERM | Errno::NOSYS | Errno::INVAL) => {
            match mount_move(".", "/") {
                // It covers "/" already.
                Ok(()) | Err(Errno::INVAL | Errno::LOOP) => {}
                Err(errno) => return Err(errno).at("mount", "move root"),
            }
            chroot(".").at("chroot", "root")?;
        }
        Err(errno) => return Err(errno).at("pivot_root", "root"),
    }
    chdir("/").at("chdir", "/")
}
