//! Removal in two steps: a rename into the trash, which is atomic and quick, then the slow part.
//!
//! In: names that nothing refers to any more. Out: space. Must not: follow a link or cross a mount, however deep.

use std::os::fd::{AsFd as _, OwnedFd};

use molt_core::ids::Digest;
use rustix::io::Errno;

use super::{LayerId, Store};
use crate::{
    error::{Error, Result},
    remove,
};

impl Store {
    /// Takes a layer out of the store. Not there is fine.
    pub fn trash_layer(&self, id: &LayerId) -> Result<()> {
        self.discard(&self.inner.layers, id.to_string().as_bytes())
    }

    /// Takes a blob out of the store. Not there is fine.
    pub fn trash_blob(&self, digest: &Digest) -> Result<()> {
        self.discard(&self.inner.blobs, digest.hex().as_bytes())
    }

    /// Moves `name` in a folder of the same file system, a generation for example, to the trash. Not there is fine.
    pub fn discard(&self, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        loop {
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(parent, name, &self.inner.trash, self.fresh(), flags) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // Left by an earlier process with our id: the counter goes on.
                Err(Errno::EXIST) => {}
                Err(error) => {
                    let name = crate::error::show(name);
                    return Err(Error::store(format!("move '{name}' to the trash"), error));
                }
            }
        }
    }

    /// Removes what is in the trash. Blocks for as long as that takes; what cannot be removed does not stop the rest.
    pub fn empty_trash(&self) -> Result<()> {
        let trash = self.inner.trash.as_fd();
        // What comes back by a power cut must come back whole: first the new names, then the removal.
        for folder in [&self.inner.trash, &self.inner.layers, &self.inner.blobs] {
            rustix::fs::fsync(folder).map_err(|error| Error::store("sync what goes to the trash", error))?;
        }
        loop {
            let names = remove::children(trash).map_err(|error| Error::store("list the trash", error))?;
            let mut problem = None;
            let mut removed = 0usize;
            for name in &names {
                match remove::remove(trash, name, Some(trash)) {
                    Ok(()) => removed += 1,
                    Err(error) => problem = Some(error),
                }
            }
            match problem {
                Some(error) if removed == 0 => return Err(Error::store("empty the trash", error)),
                None if names.is_empty() => return Ok(()),
                _ => {}
            }
        }
    }
}
