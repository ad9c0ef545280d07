//! The store: one folder, one owner. `docs/STATE-DIR.md` describes every byte.
//!
//! In: a path, once, at boot; afterwards descriptors only. Out: journal, generations, history, and the content store of
//! `molt-oci`. Must not: be used by two processes, or live on a file system that cannot hold an overlay's upper folder.

pub(crate) mod audit;
mod chain;
pub(crate) mod generations;
pub(crate) mod history;
pub(crate) mod journal;
pub(crate) mod memory;

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use molt_core::code::Code;
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock, fstatfs, fsync, mkdirat, openat},
    io::{Errno, pread, pwrite},
};

/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAY: u64 = 0x794c_7630;

/// Why a folder cannot be the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Something the kernel refused.
    #[error("{verb} {path}: {errno}")]
    Call {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: String,
        /// The answer.
        errno: Errno,
    },
    /// An overlay cannot hold the upper folder of another.
    #[error(
        "use {0} as the store: it lies on the container's own overlay, which cannot hold the writable layer of a generation"
    )]
    OnOverlay(String),
    /// Nothing can be written.
    #[error("use {0} as the store: it is read-only")]
    ReadOnly(String),
    /// Another Molt owns it.
    #[error("use {0} as the store: another molt holds its lock")]
    Locked(String),
    /// The content store of `molt-oci`.
    #[error("open the content store in {0}")]
    Content(String, #[source] molt_oci::Error),
}

impl StoreError {
    /// The line that mends it.
    pub(crate) fn mend(&self) -> &'static str {
        match self {
            Self::OnOverlay(_) => {
                "mount a volume there: an emptyDir or PersistentVolumeClaim in a pod, `-v molt:/var/lib/molt` with podman or docker"
            }
            Self::ReadOnly(_) => "mount the volume read-write, and start molt again",
            Self::Locked(_) => "stop the other molt, or give this one a store of its own with --store",
            Self::Call { .. } | Self::Content(..) => "look at the folder's owner and mode; it must be root's alone",
        }
    }

    /// The stable code: a full disk has one of its own.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Call { errno: Errno::NOSPC | Errno::DQUOT, .. } => Code::NoSpace,
            Self::Content(_, error) => error.code(),
            _ => Code::StoreUnusable,
        }
    }

    /// Exit status of PID 1.
    pub(crate) fn exit_status(&self) -> u8 {
        if matches!(self, Self::Locked(_)) { 124 } else { 120 }
    }
}

/// The opened, locked store.
#[derive(Debug)]
pub(crate) struct Store {
    /// Where it is, for messages and to keep it out of every generation.
    pub(crate) path: PathBuf,
    /// The folder.
    pub(crate) dir: OwnedFd,
    /// `generations/`.
    pub(crate) generations: OwnedFd,
    /// Blobs and layers.
    pub(crate) content: molt_oci::Store,
    /// It takes no writes: what is confirmed can be run, and nothing can be changed.
    pub(crate) read_only: bool,
    _lock: OwnedFd,
}

impl Store {
    /// Opens and locks the store, making what is missing. Nothing is changed before the lock is held.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let text = path.display().to_string();
        let call = |verb: &'static str, path: &str| {
            let path = path.to_owned();
            move |errno: Errno| match errno {
                Errno::ROFS => StoreError::ReadOnly(path),
                errno => StoreError::Call { verb, path, errno },
            }
        };
        make_path(path).map_err(call("make", &text))?;
        let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, folder, Mode::empty()).map_err(call("open", &text))?;
        let kind = fstatfs(&dir).map_err(call("look at", &text))?.f_type;
        if u64::try_from(kind).ok() == Some(OVERLAY) {
            return Err(StoreError::OnOverlay(text));
        }
        let read_only = takes_no_writes(&dir);
        let lock = kept(&dir, "lock", read_only).map_err(call("open the lock of", &text))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Err(StoreError::Locked(text)),
            Err(errno) => return Err(call("lock", &text)(errno)),
        }
        let content = molt_oci::Store::open(&dir).map_err(|error| StoreError::Content(text.clone(), error))?;
        match mkdirat(&dir, "generations", Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(call("make generations/ in", &text)(errno)),
        }
        // While there is room for it; most kernels need it never (`rootfs/compat.rs`).
        let _ = mkdirat(&dir, "anchors", Mode::from_raw_mode(0o700));
        let generations = openat(&dir, "generations", folder | OFlags::NOFOLLOW, Mode::empty())
            .map_err(call("open generations/ in", &text))?;
        // By two signs: one that is taken for read-only is changed by no one until the next start.
        if content.read_only() && !read_only {
            return Err(StoreError::ReadOnly(text));
        }
        let read_only = content.read_only();
        Ok(Self { path: path.to_owned(), dir, generations, content, read_only, _lock: lock })
    }

    /// What tells this store from every other one, and its numbers from theirs: `new`, where it has none yet.
    pub(crate) fn id(&self, new: &str) -> Result<String, StoreError> {
        let call = |verb: &'static str| {
            let path = self.path.join("id").display().to_string();
            move |errno: Errno| match errno {
                Errno::ROFS => StoreError::ReadOnly(path),
                errno => StoreError::Call { verb, path, errno },
            }
        };
        let file = kept(&self.dir, "id", self.read_only).map_err(call("open"))?;
        let mut text = [0; 64];
        let length = pread(&file, &mut text, 0).map_err(call("read"))?;
        let found = text.get(..length).and_then(|text| std::str::from_utf8(text).ok()).map(str::trim);
        if let Some(found) = found.filter(|found| molt_core::gateway::is_id(found)) {
            return Ok(found.to_owned());
        }
        // Empty, or torn when it was made: nobody has been told of it.
        write(&file, format!("{new}\n").as_bytes(), 0).map_err(call("write"))?;
        fsync(&file).and_then(|()| fsync(&self.dir)).map_err(call("sync"))?;
        Ok(new.to_owned())
    }

    /// Everything of the store that was written so far is on disk when this returns.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        rustix::fs::syncfs(self.dir.as_fd()).map_err(|errno| StoreError::Call {
            verb: "sync",
            path: self.path.display().to_string(),
            errno,
        })
    }
}

/// Whether the file system of `folder` is read-only, by its mount or since it found an error in itself, of which statvfs(3)
/// need not tell. A file without a name leaves nothing.
pub(crate) fn takes_no_writes(folder: &OwnedFd) -> bool {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(folder, ".", flags, Mode::from_raw_mode(0o600)).is_err_and(|errno| errno == Errno::ROFS)
}

/// A file of the store that is kept open: made if it is not there; in a store that is `read_only`, to be read alone.
fn kept(store: &OwnedFd, name: &str, read_only: bool) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(store, name, flags | OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o600)) {
        Err(Errno::ROFS) if read_only => {
            openat(store, name, flags | OFlags::RDONLY, Mode::empty()).map_err(|errno| match errno {
                Errno::NOENT => Errno::ROFS,
                errno => errno,
            })
        }
        opened => opened,
    }
}

/// Writes all of it into a file that is [`kept`] open.
fn write(file: &OwnedFd, bytes: &[u8], at: u64) -> rustix::io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match pwrite(file, rest, at + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(more) => done += more,
            Err(Errno::INTR) => {}
            // Opened to be read alone.
            Err(Errno::BADF) => return Err(Errno::ROFS),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// `mkdir -p`, root-only.
fn make_path(path: &Path) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(0o700);
    match mkdirat(CWD, path, mode) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => {
            if let Some(parent) = path.parent() {
                make_path(parent)?;
            }
            match mkdirat(CWD, path, mode) {
                Err(Errno::EXIST) => Ok(()),
                result => result,
            }
        }
        // A read-only file system says so even where the folder exists.
        Err(errno) => openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).map(drop).map_err(|_| errno),
    }
}
