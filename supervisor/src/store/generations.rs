//! `generations/N/`: record, policy, upper and work folder, and the mark that it was confirmed once.
//!
//! In: records. Out: records, descriptors. Must not: change a record, or leave half of one; the order of writes, syncs
//! and the rename is [`molt_core::publish`]'s.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
};

use molt_core::{
    confined::{self, InForce},
    generation::{Record, VERSION},
    ids::Generation,
    journal::Shelved,
    publish::{self, CONFIRMED, POLICY, RECORD, Shelf},
};
use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, fsync, mkdirat, openat, renameat, statat, unlinkat},
    io::Errno,
};

use super::{Store, StoreError};
use crate::planted;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const CONFINEMENT: &str = "confinement.json";
const LARGEST: u64 = 8 << 20;

impl Store {
    fn failed(&self, verb: &'static str, generation: Generation) -> impl FnOnce(Errno) -> StoreError {
        let path = format!("{}/generations/{generation}", self.path.display());
        move |errno| StoreError::Call { verb, path, errno }
    }

    /// Makes a generation durable: folders, record, policy; synced before it has its name.
    pub(crate) fn stage(&self, record: &Record, policy: &str) -> Result<(), StoreError> {
        publish::publish(&mut Folder { store: self, number: record.generation }, record, policy)
    }

    /// Marks a generation as confirmed, durably.
    pub(crate) fn mark(&self, generation: Generation) -> Result<(), StoreError> {
        publish::mark(&mut Folder { store: self, number: generation }, generation)
    }

    /// Takes the mark away again.
    pub(crate) fn unmark(&self, generation: Generation) -> Result<(), StoreError> {
        publish::unmark(&mut Folder { store: self, number: generation }, generation)
    }

    /// Whether a generation was confirmed once.
    fn marked(&self, generation: Generation) -> bool {
        statat(&self.generations, format!("{generation}/{CONFIRMED}"), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// A generation's folder.
    pub(crate) fn folder(&self, generation: Generation) -> Result<OwnedFd, StoreError> {
        openat(&self.generations, generation.to_string(), FOLDER, Mode::empty())
            .map_err(self.failed("open", generation))
    }

    /// Its policy, as text.
    pub(crate) fn policy(&self, generation: Generation) -> Result<String, StoreError> {
        let folder = self.folder(generation)?;
        read(&folder, POLICY).map_err(self.failed("read the policy of", generation))
    }

    /// What confined it when it was armed last; none where that was not kept, cannot be read, or is of a later version.
    pub(crate) fn confinement(&self, generation: Generation) -> Option<InForce> {
        let folder = self.folder(generation).ok()?;
        let in_force: InForce = serde_json::from_str(&read(&folder, CONFINEMENT).ok()?).ok()?;
        (in_force.version <= confined::VERSION).then_some(in_force)
    }

    /// Keeps what confines it: under another name, synced, and renamed. Writes nothing where it is there already.
    pub(crate) fn keep_confinement(&self, generation: Generation, in_force: &InForce) -> Result<(), StoreError> {
        if self.confinement(generation).as_ref() == Some(in_force) {
            return Ok(());
        }
        let folder = self.folder(generation)?;
        let new = format!("{CONFINEMENT}.new");
        let text = serde_json::to_vec(in_force).unwrap_or_default();
        write(&folder, &new, &text)
            .and_then(|()| renameat(&folder, &new, &folder, CONFINEMENT))
            .and_then(|()| fsync(&folder))
            .inspect_err(|_| {
                let _ = unlinkat(&folder, &new, AtFlags::empty());
            })
            .map_err(self.failed("keep the confinement of", generation))
    }

    /// Every whole generation in the store, and what a start without a journal needs; what is not whole is thrown away.
    pub(crate) fn known(&self) -> Result<(BTreeMap<Generation, Record>, Shelved), StoreError> {
        let (mut known, mut shelved) = (BTreeMap::new(), Shelved::default());
        // A name may be in the page cache alone: given by a process that was killed before it synced the folder.
        if let Err(errno) = fsync(&self.generations) {
            tracing::warn!(%errno, "failed to sync the names of the generations");
        }
        for name in self.names()? {
            match name.parse::<Generation>() {
                Ok(number) => {
                    shelved.highest = shelved.highest.max(number.0);
                    if let Some(record) = self.record(number)? {
                        if self.marked(number) {
                            shelved.marked = shelved.marked.max(Some(number));
                        }
                        known.insert(number, record);
                    } else {
                        tracing::warn!(generation = number.0, "generation without a readable record is ignored");
                    }
                }
                // It stays where nothing can be moved, and is still no generation.
                Err(_) if self.read_only => {}
                Err(_) => self.discard(&name)?,
            }
        }
        Ok((known, shelved))
    }

    /// All of what is in `generations/`. A part of the list is none: the rest would be taken for lost.
    fn names(&self) -> Result<Vec<String>, StoreError> {
        let listed =
            |errno| StoreError::Call { verb: "list", path: format!("{}/generations", self.path.display()), errno };
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.generations).map_err(listed)? {
            // What is not UTF-8 is no generation's.
            names.extend(entry.map_err(listed)?.file_name().to_str().ok().map(str::to_owned));
        }
        names.retain(|name| !name.starts_with('.'));
        Ok(names)
    }

    /// A generation that is there and whose record may be whole, but is not for this start to read: the disk gives it not
    /// now, or a newer Molt wrote it. What is damaged is not meant.
    pub(crate) fn withheld(&self) -> Result<Option<Generation>, StoreError> {
        #[derive(serde::Deserialize)]
        struct Version {
            version: u32,
        }
        let numbers = self.names()?.into_iter().filter_map(|name| name.parse::<Generation>().ok());
        Ok(numbers.into_iter().find(|number| {
            let folder = openat(&self.generations, number.to_string(), FOLDER, Mode::empty());
            match folder.and_then(|folder| read(&folder, RECORD)) {
                Ok(text) => serde_json::from_str(&text).is_ok_and(|found: Version| found.version > VERSION),
                Err(errno) => !matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ILSEQ),
            }
        }))
    }

    /// What is damaged is none. What could not be read for want of something may be whole, and is an error.
    fn record(&self, number: Generation) -> Result<Option<Record>, StoreError> {
        let folder = openat(&self.generations, number.to_string(), FOLDER, Mode::empty());
        let text = match folder.and_then(|folder| read(&folder, RECORD)) {
            Ok(text) => text,
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR | Errno::AGAIN)) => {
                return Err(self.failed("read the record of", number)(errno));
            }
            Err(_) => return Ok(None),
        };
        let whole = |record: &Record| record.generation == number && record.version <= VERSION;
        Ok(serde_json::from_str(&text).ok().filter(whole))
    }

    /// Removes a generation: renamed away first, so that what is left of it is never taken for one.
    pub(crate) fn remove(&self, generation: Generation) -> Result<(), StoreError> {
        self.discard(&generation.to_string())
    }

    fn discard(&self, name: &str) -> Result<(), StoreError> {
        if statat(&self.generations, name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            return Ok(());
        }
        let path = || format!("{}/generations/{name}", self.path.display());
        self.content.discard(&self.generations, name.as_bytes()).map_err(|error| StoreError::Content(path(), error))?;
        // Before anything of it is removed: a power cut brings back all of it, or nothing.
        fsync(&self.generations).map_err(|errno| StoreError::Call { verb: "forget", path: path(), errno })
    }
}

/// `generations/` as [`publish`] wants it, for one generation: its number is for messages.
struct Folder<'a> {
    store: &'a Store,
    number: Generation,
}

impl Folder<'_> {
    fn open(&self, name: &str) -> Result<OwnedFd, StoreError> {
        openat(&self.store.generations, name, FOLDER, Mode::empty()).map_err(self.store.failed("open", self.number))
    }
}

impl Shelf for Folder<'_> {
    type Error = StoreError;

    fn discard(&mut self, name: &str) -> Result<(), StoreError> {
        self.store.discard(name)
    }

    fn make(&mut self, name: &str) -> Result<(), StoreError> {
        let failed = |verb| self.store.failed(verb, self.number);
        mkdirat(&self.store.generations, name, Mode::from_raw_mode(0o700)).map_err(failed("make"))?;
        let folder = self.open(name)?;
        for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
            mkdirat(&folder, name, Mode::from_raw_mode(mode)).map_err(failed("make"))?;
            // The upper folder is the generation's `/`: a store with a set-group-id bit must not show in it.
            let made = openat(&folder, name, FOLDER, Mode::empty()).map_err(failed("open"))?;
            let root = (Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT));
            rustix::fs::fchown(&made, root.0, root.1)
                .and_then(|()| rustix::fs::fchmod(&made, Mode::from_raw_mode(mode)))
                .map_err(failed("own"))?;
        }
        Ok(())
    }

    fn write(&mut self, name: &str, file: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let folder = self.open(name)?;
        write(&folder, file, bytes).map_err(self.store.failed("write", self.number))
    }

    fn unlink(&mut self, name: &str, file: &str) -> Result<(), StoreError> {
        match unlinkat(&self.open(name)?, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.store.failed("unmark", self.number)(errno)),
        }
    }

    fn sync(&mut self, name: &str) -> Result<(), StoreError> {
        if planted::is(planted::Fault::NoFolderSync) {
            return Ok(());
        }
        fsync(&self.open(name)?).map_err(self.store.failed("sync", self.number))
    }

    fn sync_store(&mut self) -> Result<(), StoreError> {
        if planted::is(planted::Fault::NoFolderSync) {
            return Ok(());
        }
        self.store.sync()
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), StoreError> {
        let folder = &self.store.generations;
        renameat(folder, from, folder, to).map_err(self.store.failed("name", self.number))
    }

    fn sync_names(&mut self) -> Result<(), StoreError> {
        fsync(&self.store.generations).map_err(self.store.failed("sync", self.number))
    }
}

fn write(folder: &OwnedFd, name: &str, bytes: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut file = std::fs::File::from(openat(folder, name, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(bytes).map_err(errno)?;
    file.sync_all().map_err(errno)
}

fn read(folder: &OwnedFd, name: &str) -> rustix::io::Result<String> {
    let file = openat(folder, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file)
        .take(LARGEST)
        .read_to_string(&mut text)
        // No number of the kernel's: it is not UTF-8.
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::ILSEQ))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_may_be_whole_is_withheld_and_what_is_damaged_is_not() {
        let path = std::env::temp_dir().join(format!("molt-generations-{}", std::process::id()));
        let store = Store::open(&path).unwrap();
        let folder = path.join("generations/7");
        fs::create_dir(&folder).unwrap();
        assert_eq!(store.withheld().unwrap(), None, "half of one");
        for (bytes, withheld) in [
            (b"{\"version\": 1, \"generation\": 7}".as_slice(), false),
            (b"no record", false),
            (b"\xff\xfe", false),
            (b"{\"version\": 2, \"generation\": 7, \"new\": true}", true),
        ] {
            fs::write(folder.join(RECORD), bytes).unwrap();
            assert_eq!(store.withheld().unwrap(), withheld.then_some(Generation(7)), "{bytes:?}");
        }
        // A folder in the record's place cannot be read: EISDIR, as a disk might say EIO.
        fs::remove_file(folder.join(RECORD)).unwrap();
        fs::create_dir(folder.join(RECORD)).unwrap();
        assert_eq!(store.withheld().unwrap(), Some(Generation(7)));
        drop(store);
        fs::remove_dir_all(&path).unwrap();
    }
}
