//! Layers on their way into the store.
//!
//! In: nothing but the store. Out: an empty folder in `tmp/`, then a published layer. Must not: leave the folder behind
//! when it is dropped, take long for that, or publish before everything is on disk.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::{
    fs::{Mode, RenameFlags},
    io::Errno,
};

use super::{LayerId, Store, reopen};
use crate::{
    error::{Error, Result},
    layer::tree::XattrNamespace,
    remove,
};

/// A folder in `tmp/`, moved to the trash when dropped unless published.
#[derive(Debug)]
pub(crate) struct Staged {
    store: Store,
    name: String,
    folder: OwnedFd,
    published: bool,
}

impl Staged {
    /// The folder, for reading and for names below it.
    pub(crate) fn folder(&self) -> Result<OwnedFd> {
        self.folder.try_clone().map_err(|error| Error::store("keep a folder open", error))
    }

    pub(crate) fn xattrs(&self) -> XattrNamespace {
        self.store.xattrs()
    }

    /// Where it will be published.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // Whoever drops it may have others to serve, and a layer has up to a million entries: a rename, and no more
        // here.
        let tmp = &self.store.inner.tmp;
        let Err(error) = self.store.discard(tmp, self.name.as_bytes()) else { return self.store.empty_trash_aside() };
        tracing::warn!(name = self.name, %error, "a half-made layer is removed where it is");
        // A full disk may have no room for a new name, but for one less.
        if let Err(error) = remove::remove(tmp.as_fd(), self.name.as_bytes(), None) {
            tracing::warn!(name = self.name, %error, "a half-made layer stays until the store is opened again");
        }
    }
}

impl Store {
    /// An empty folder with the owner and mode a root has when its layer does not say.
    pub(crate) fn stage(&self) -> Result<Staged> {
        let name = self.fresh();
        let failed = |error: Errno| Error::store("make a folder in tmp", error);
        rustix::fs::mkdirat(&self.inner.tmp, &name, Mode::RWXU).map_err(failed)?;
        let folder = reopen(&self.inner.tmp, name.as_bytes())?;
        let staged = Staged { store: self.clone(), name, folder, published: false };
        // The store's own folder may be setgid.
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        rustix::fs::fchown(&staged.folder, Some(uid), Some(gid)).map_err(failed)?;
        rustix::fs::fchmod(&staged.folder, Mode::from_raw_mode(0o755)).map_err(failed)?;
        Ok(staged)
    }

    /// Puts staged layers under their names: one sync for all of them, then the renames, then the folder.
    pub(crate) fn publish(&self, layers: Vec<(Staged, LayerId)>) -> Result<()> {
        if layers.is_empty() {
            return Ok(());
        }
        self.sync()?;
        for (mut staged, id) in layers {
            match rustix::fs::renameat_with(
                &self.inner.tmp,
                &staged.name,
                &self.inner.layers,
                id.to_string(),
                RenameFlags::NOREPLACE,
            ) {
                Ok(()) => staged.published = true,
                // The same layer by another way: the one that is there is as good.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(Error::store(format!("publish layer {id}"), error)),
            }
        }
        rustix::fs::fsync(&self.inner.layers).map_err(|error| Error::store("sync the folder of layers", error))
    }
}
