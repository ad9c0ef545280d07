//! `generations/N/`: record, policy, upper and work folder, and the mark that it was confirmed once.
//!
//! In: records. Out: records, descriptors. Must not: change a record, or leave half of one: a generation is made under
//! another name, synced, and renamed.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
};

use molt_core::{
    generation::{Record, VERSION},
    ids::Generation,
};
use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, fsync, mkdirat, openat, renameat, statat},
    io::Errno,
};

use super::{Store, StoreError};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const RECORD: &str = "generation.json";
const POLICY: &str = "policy.yaml";
const CONFIRMED: &str = "confirmed";
const LARGEST: u64 = 8 << 20;

impl Store {
    fn failed(&self, verb: &'static str, generation: Generation) -> impl FnOnce(Errno) -> StoreError {
        let path = format!("{}/generations/{generation}", self.path.display());
        move |errno| StoreError::Call { verb, path, errno }
    }

    /// Makes a generation durable: folders, record, policy; synced before it has its name.
    pub(crate) fn stage(&self, record: &Record, policy: &str) -> Result<(), StoreError> {
        let number = record.generation;
        let new = format!("{number}.new");
        self.discard(&new)?;
        mkdirat(&self.generations, &new, Mode::from_raw_mode(0o700)).map_err(self.failed("make", number))?;
        let folder = openat(&self.generations, &new, FOLDER, Mode::empty()).map_err(self.failed("open", number))?;
        for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
            mkdirat(&folder, name, Mode::from_raw_mode(mode)).map_err(self.failed("make", number))?;
            // The upper folder is the generation's `/`: a store with a set-group-id bit must not show in it.
            let made = openat(&folder, name, FOLDER, Mode::empty()).map_err(self.failed("open", number))?;
            let root = (Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT));
            rustix::fs::fchown(&made, root.0, root.1)
                .and_then(|()| rustix::fs::fchmod(&made, Mode::from_raw_mode(mode)))
                .map_err(self.failed("own", number))?;
        }
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        write(&folder, RECORD, &text).map_err(self.failed("write", number))?;
        write(&folder, POLICY, policy.as_bytes()).map_err(self.failed("write", number))?;
        fsync(&folder).map_err(self.failed("sync", number))?;
        self.sync()?;
        // A folder of that number is one whose trial was never recorded.
        self.discard(&number.to_string())?;
        renameat(&self.generations, &new, &self.generations, number.to_string())
            .map_err(self.failed("name", number))?;
        fsync(&self.generations).map_err(self.failed("sync", number))
    }

    /// Marks a generation as confirmed, durably.
    pub(crate) fn mark(&self, generation: Generation) -> Result<(), StoreError> {
        let folder = self.folder(generation)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            openat(&folder, CONFIRMED, flags, Mode::from_raw_mode(0o600)).map_err(self.failed("mark", generation))?;
        fsync(&file).and_then(|()| fsync(&folder)).map_err(self.failed("sync", generation))
    }

    /// Whether a generation was confirmed once.
    pub(crate) fn marked(&self, generation: Generation) -> bool {
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

    /// Every whole generation in the store; what is not whole is thrown away.
    pub(crate) fn known(&self) -> Result<BTreeMap<Generation, Record>, StoreError> {
        let mut known = BTreeMap::new();
        let names: Vec<String> = Dir::read_from(&self.generations)
            .map_err(self.failed("list", Generation(0)))?
            .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned))
            .filter(|name| !name.starts_with('.'))
            .collect();
        for name in names {
            match name.parse::<Generation>() {
                Ok(number) => {
                    if let Some(record) = self.record(number) {
                        known.insert(number, record);
                    } else {
                        tracing::warn!(generation = number.0, "generation without a readable record is ignored");
                    }
                }
                Err(_) => self.discard(&name)?,
            }
        }
        Ok(known)
    }

    fn record(&self, number: Generation) -> Option<Record> {
        let folder = self.folder(number).ok()?;
        let record: Record = serde_json::from_str(&read(&folder, RECORD).ok()?).ok()?;
        (record.generation == number && record.version <= VERSION).then_some(record)
    }

    /// Removes a generation: renamed away first, so that what is left of it is never taken for one.
    pub(crate) fn remove(&self, generation: Generation) -> Result<(), StoreError> {
        self.discard(&generation.to_string())
    }

    fn discard(&self, name: &str) -> Result<(), StoreError> {
        if statat(&self.generations, name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            return Ok(());
        }
        self.content
            .discard(&self.generations, name.as_bytes())
            .map_err(|error| StoreError::Content(format!("{}/generations/{name}", self.path.display()), error))
    }
}

fn write(folder: &OwnedFd, name: &str, bytes: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(folder, name, flags, Mode::from_raw_mode(0o600))?);
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    file.write_all(bytes).map_err(errno)?;
    file.sync_all().map_err(errno)
}

fn read(folder: &OwnedFd, name: &str) -> rustix::io::Result<String> {
    let file = openat(folder, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file)
        .take(LARGEST)
        .read_to_string(&mut text)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(text)
}
