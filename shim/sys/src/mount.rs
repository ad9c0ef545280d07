//! Mount attributes on a tree that is held by descriptor. mount_setattr(2), Linux 5.12.
//!
//! In: a mount descriptor and attributes. Out: nothing. Must not: take paths.

use std::os::fd::{AsFd, AsRawFd};

use crate::error::{Result, check};

/// Attributes of `mount_attr.attr_set`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes(u64);

impl Attributes {
    /// Read-only.
    pub const RDONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    /// Set-id bits and file capabilities are ignored.
    pub const NOSUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    /// Device nodes cannot be opened.
    pub const NODEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// Nothing can be executed.
    pub const NOEXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How mounts and unmounts travel between peers of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// As it is.
    Keep,
    /// Neither in nor out.
    Private,
    /// In, not out.
    Slave,
}

/// Sets `attributes` on every mount of the tree below `tree`.
pub fn set_attributes(tree: impl AsFd, attributes: Attributes, propagation: Propagation) -> Result<()> {
    let propagation = match propagation {
        Propagation::Keep => 0,
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
    };
    let attr = libc::mount_attr { attr_set: attributes.0, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the descriptor is live for the call, the path is a static empty C string, and `attr` is a valid
    // `mount_attr` of exactly the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of_val(&attr),
        )
    };
    check("mount_setattr", || format!("{:#x}, propagation {propagation:#x}", attributes.0), result).map(drop)
}
