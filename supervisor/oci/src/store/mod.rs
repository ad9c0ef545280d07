//! The content store: blobs and unpacked layers, each named by its digest, below one folder descriptor.
//!
//! Layout, all of it root-only:
//!
//! ```text
//! blobs/sha256/HEX              manifests, configs, signatures; never layers
//! layers/sha256/HEX-BLOB/       an unpacked layer that is the same on any parents; HEX of its diff id, BLOB of its blob
//! layers/sha256/HEX-BLOB-CHAIN/ one that is not (see `layer::settle`), on exactly the parents CHAIN stands for
//! tmp/                          what is being written; moved to the trash when the store is opened
//! trash/                        renamed here, then removed
//! ```
//!
//! In: a descriptor. Out: descriptors and verified bytes. Must not: make a name from anything but a digest or a counter,
//! or show a blob or layer under its name before it is whole and on disk.

mod blob;
mod id;
mod stage;
mod trash;

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use molt_core::ids::Digest;
use rustix::{
    fs::{AtFlags, Mode, OFlags, XattrFlags},
    io::Errno,
};

pub use self::id::LayerId;
pub(crate) use self::stage::Staged;
use self::trash::Emptying;
use crate::{
    error::{Error, Result},
    layer::tree::{FOLDER, XattrNamespace},
    remove,
};

/// Room in the store's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can still be written.
    pub bytes_free: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// Inodes left; `u64::MAX` where the file system makes them as needed.
    pub inodes_free: u64,
    /// Inodes in all; 0 where the file system makes them as needed.
    pub inodes_total: u64,
}

/// The content store. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: OwnedFd,
    blobs: OwnedFd,
    layers: OwnedFd,
    trash: OwnedFd,
    tmp: OwnedFd,
    xattrs: XattrNamespace,
    read_only: bool,
    serial: AtomicU64,
    emptying: Mutex<Emptying>,
}

impl Store {
    /// Opens the store in `dir`, making what is missing. What an earlier run left in `tmp/` goes to the trash.
    /// Overlay attributes are `trusted.*` where the kernel lets this process set them, `user.*` otherwise. One that was
    /// made before opens on a file system that takes no writes, too: what is in it can be read.
    pub fn open(dir: impl AsFd) -> Result<Self> {
        let root = reopen(dir.as_fd(), b".")?;
        let blobs = make(&make(&root, "blobs")?, "sha256")?;
        let layers = make(&make(&root, "layers")?, "sha256")?;
        let (trash, tmp) = (make(&root, "trash")?, make(&root, "tmp")?);
        let (xattrs, read_only) = match probe_xattrs(&tmp) {
            Err(Errno::ROFS) => (xattrs_of_this_process()?, true),
            probed => (probed.map_err(|error| Error::store(PROBING, error))?, false),
        };
        let (serial, emptying) = (AtomicU64::new(0), Mutex::default());
        let inner = Inner { root, blobs, layers, trash, tmp, xattrs, read_only, serial, emptying };
        let store = Self { inner: Arc::new(inner) };
        let left = if read_only { Ok(Vec::new()) } else { remove::children(&store.inner.tmp) };
        for name in left.map_err(|error| Error::store("list tmp", error))? {
            store.discard(&store.inner.tmp, &name)?;
        }
        Ok(store)
    }

    /// The attributes that mark opaque folders here; overlays of these layers must be mounted to match.
    pub fn xattrs(&self) -> XattrNamespace {
        self.inner.xattrs
    }

    /// Whether its file system took no writes when it was opened.
    pub fn read_only(&self) -> bool {
        self.inner.read_only
    }

    /// Whether a layer is there, whole.
    pub fn has_layer(&self, id: &LayerId) -> bool {
        rustix::fs::accessat(&self.inner.layers, id.to_string(), rustix::fs::Access::EXISTS, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok()
    }

    /// A layer's folder, `O_PATH`.
    pub fn layer(&self, id: &LayerId) -> Result<OwnedFd> {
        rustix::fs::openat(&self.inner.layers, id.to_string(), FOLDER, Mode::empty())
            .map_err(|error| Error::store(format!("open layer {id}"), error))
    }

    /// All layers.
    pub fn layers(&self) -> Result<BTreeSet<LayerId>> {
        let names = remove::children(&self.inner.layers).map_err(|error| Error::store("list layers", error))?;
        Ok(names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect())
    }

    /// Some form of this layer, whatever its parents.
    pub fn has_any(&self, layer: &LayerId) -> bool {
        self.has_layer(layer) || self.layers().is_ok_and(|layers| layers.iter().any(|id| id.is_form_of(layer)))
    }

    /// Room left.
    pub fn space(&self) -> Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.inner.root).map_err(|error| Error::store("ask for free space", error))?;
        let counted = stat.f_files != 0;
        Ok(Space {
            bytes_free: stat.f_bavail.saturating_mul(stat.f_frsize),
            bytes_total: stat.f_blocks.saturating_mul(stat.f_frsize),
            inodes_free: if counted { stat.f_favail } else { u64::MAX },
            inodes_total: stat.f_files,
        })
    }

    /// Everything written so far is on disk when this returns.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.inner.root).map_err(|error| Error::store("sync", error))
    }

    /// A name nobody else uses: this process alone owns the store.
    fn fresh(&self) -> String {
        format!("{}-{}", std::process::id(), self.inner.serial.fetch_add(1, Ordering::Relaxed))
    }
}

/// The parents' names, nearest last, as one digest: what `CHAIN` in a layer's name stands for.
pub(crate) fn chain(parents: &[LayerId]) -> Digest {
    let text: String = parents.iter().flat_map(|id| [id.to_string(), "\n".to_owned()]).collect();
    crate::layer::decode::digest_of(text.as_bytes())
}

fn reopen(at: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
        .map_err(|error| Error::store(format!("open {}", String::from_utf8_lossy(name)), error))
}

fn make(at: &OwnedFd, name: &str) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => reopen(at, name.as_bytes()),
        Err(error) => Err(Error::store(format!("make {name}/"), error)),
    }
}

const PROBING: &str = "set overlay attributes (the file system must hold an overlay: ext4, xfs, btrfs, tmpfs)";

fn probe_xattrs(tmp: &OwnedFd) -> rustix::io::Result<XattrNamespace> {
    let mut answer = Errno::OPNOTSUPP;
    for namespace in [XattrNamespace::Trusted, XattrNamespace::User] {
        match rustix::fs::fsetxattr(tmp, namespace.opaque(), b"n", XattrFlags::empty()) {
            Ok(()) => {
                let _ = rustix::fs::fremovexattr(tmp, namespace.opaque());
                return Ok(namespace);
            }
            Err(error) => answer = error,
        }
    }
    Err(answer)
}

/// The same, where nothing can be set on the store itself: xattr(7) lets processes set `trusted.*` by their capability
/// alone, whatever the file.
fn xattrs_of_this_process() -> Result<XattrNamespace> {
    let file = rustix::fs::memfd_create("molt-probe", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| Error::store("make a file in memory", error))?;
    let set = rustix::fs::fsetxattr(&file, XattrNamespace::Trusted.opaque(), b"n", XattrFlags::empty());
    Ok(if set == Err(Errno::PERM) { XattrNamespace::User } else { XattrNamespace::Trusted })
}
