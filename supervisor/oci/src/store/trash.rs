//! Removal in two steps: a rename into the trash, which is atomic and quick, then the slow part.
//!
//! In: names that nothing refers to any more. Out: space. Must not: follow a link or cross a mount, however deep.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{MutexGuard, PoisonError},
};

use molt_core::ids::Digest;
use rustix::io::Errno;

use super::{LayerId, Store};
use crate::{
    error::{Error, Result},
    remove, thread,
};

/// Whether somebody removes what is in the trash, aside.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Emptying {
    /// Nobody.
    #[default]
    Nobody,
    /// A thread.
    Someone,
    /// A thread, and what came since may have escaped it.
    Again,
}

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

    /// Removes what is in the trash on a thread of its own, one for all who ask. Where there is no thread it stays
    /// until the trash is emptied the next time.
    pub(super) fn empty_trash_aside(&self) {
        let mut emptying = self.emptying();
        if *emptying != Emptying::Nobody {
            *emptying = Emptying::Again;
            return;
        }
        let store = self.clone();
        match thread::start("trash", move || store.empty_until_nobody_asks()) {
            Ok(()) => *emptying = Emptying::Someone,
            Err((_, error)) => tracing::warn!(%error, "no thread to empty the trash with; it is emptied another time"),
        }
    }

    fn empty_until_nobody_asks(&self) {
        loop {
            if let Err(error) = self.empty_trash() {
                tracing::warn!(%error, "something stays in the trash");
            }
            let mut emptying = self.emptying();
            if *emptying != Emptying::Again {
                *emptying = Emptying::Nobody;
                return;
            }
            *emptying = Emptying::Someone;
        }
    }

    fn emptying(&self) -> MutexGuard<'_, Emptying> {
        self.inner.emptying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what is in the trash. Blocks for as long as that takes; what cannot be removed does not stop the rest.
    /// Several may do this at once.
    pub fn empty_trash(&self) -> Result<()> {
        let trash = self.inner.trash.as_fd();
        loop {
            let names = remove::some(trash).map_err(|error| Error::store("list the trash", error))?;
            if names.is_empty() {
                return Ok(());
            }
            // What comes back by a power cut must come back whole: first the new names, then the removal of these.
            for folder in [&self.inner.trash, &self.inner.layers, &self.inner.blobs] {
                rustix::fs::fsync(folder).map_err(|error| Error::store("sync what goes to the trash", error))?;
            }
            let mut problem = None;
            let mut removed = 0usize;
            for name in &names {
                match remove::remove(trash, name, Some(trash)) {
                    // Another one who empties it was here.
                    Ok(()) | Err(Errno::NOENT) => removed += 1,
                    Err(error) => problem = Some(error),
                }
            }
            match problem {
                Some(error) if removed == 0 => return Err(Error::store("empty the trash", error)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        time::{Duration, Instant},
    };

    use super::*;

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    /// A store, and a half-made layer in it with so many files in each of ten folders.
    fn half_made(dir: &Path, files: usize) -> (Store, super::super::Staged) {
        let store = Store::open(fs::File::open(dir).unwrap()).unwrap();
        let staged = store.stage().unwrap();
        let root = fs::read_dir(dir.join("tmp")).unwrap().next().unwrap().unwrap().path();
        for folder in 0..10 {
            fs::create_dir(root.join(folder.to_string())).unwrap();
            for file in 0..files {
                fs::write(root.join(format!("{folder}/{file}")), "").unwrap();
            }
        }
        (store, staged)
    }

    #[test]
    fn a_half_made_layer_goes_to_the_trash_whole_and_is_removed_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (tmp, trash) = (dir.path().join("tmp"), dir.path().join("trash"));
        let (store, staged) = half_made(dir.path(), 10);
        // As if a thread was at it that does not get on.
        *store.emptying() = Emptying::Someone;
        drop(staged);
        assert_eq!((names(&tmp), names(&trash)), (0, 1), "whoever drops it does no more than a rename");
        assert_eq!(*store.emptying(), Emptying::Again, "the thread is told");
        store.empty_until_nobody_asks();
        assert_eq!((names(&trash), *store.emptying()), (0, Emptying::Nobody));

        let (_store, staged) = half_made(dir.path(), 10);
        drop(staged);
        assert_eq!(names(&tmp), 0);
        let deadline = Instant::now() + Duration::from_secs(10);
        while names(&trash) > 0 {
            assert!(Instant::now() < deadline, "nobody empties the trash");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn several_may_empty_the_trash_at_once() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let (store, staged) = half_made(dir.path(), 20);
            *store.emptying() = Emptying::Someone;
            drop(staged);
            std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(|| store.empty_trash())).collect();
                for one in all {
                    one.join().unwrap().unwrap();
                }
            });
            assert_eq!(names(&dir.path().join("trash")), 0);
        }
    }
}
