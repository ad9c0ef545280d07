//! Where the store and the state of a scene lie: in memory, or on a disk that can be cut off.
//!
//! In: which of the two. Out: a place, and copies of it. Must not: be copied while anything uses it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::harness::bed::Bed;
use crate::harness::disk::{Disk, FileSystem, Log};
use crate::harness::molt::SOON;
use crate::harness::{process, world};

/// What the place is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ground {
    /// A tmpfs.
    Memory,
    /// A disk with this on it.
    Disk(FileSystem),
}

/// Store and state of one sandbox.
pub(super) struct Place {
    folder: PathBuf,
    disk: Option<Disk>,
}

impl Place {
    /// An empty one.
    pub(super) fn new(bed: &Bed, ground: Ground) -> anyhow::Result<Self> {
        let folder = short(bed, "kept")?;
        let disk = match ground {
            Ground::Memory => None,
            // A little more than the smallest xfs.
            Ground::Disk(kind) => Some(Disk::new(&folder, kind, 320)?),
        };
        let place = Self { folder, disk };
        fs::create_dir_all(place.store())?;
        fs::create_dir_all(place.state())?;
        Ok(place)
    }

    /// The same again, for a sandbox to change. This one [rests](Self::rest).
    pub(super) fn copy(&self, bed: &Bed) -> anyhow::Result<Self> {
        let folder = short(bed, "run")?;
        let disk = self.disk.as_ref().map(|disk| disk.copy(&folder)).transpose()?;
        if disk.is_none() {
            let mut copy = Command::new("cp");
            process::run(copy.args(["--reflink=auto", "-a"]).arg(self.folder.join(".")).arg(&folder), SOON)?;
        }
        Ok(Self { folder, disk })
    }

    fn top(&self) -> &Path {
        self.disk.as_ref().map_or(&self.folder, |disk| &disk.path)
    }

    pub(super) fn store(&self) -> PathBuf {
        self.top().join("store")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.top().join("state")
    }

    /// Nobody uses it any more, and nothing of it is in flight.
    pub(super) fn rest(&self) -> anyhow::Result<()> {
        self.disk.as_ref().map_or(Ok(()), Disk::rest)
    }

    /// The power goes: nothing that is written from now on lasts.
    pub(super) fn cut(&self, log: Log) -> anyhow::Result<()> {
        self.disk.as_ref().context("memory has no power to cut")?.cut(log)
    }

    /// The power is back, and the file system recovers.
    pub(super) fn again(&self) -> anyhow::Result<()> {
        let disk = self.disk.as_ref().context("memory has no power to cut")?;
        disk.rest()?;
        disk.wake()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.disk = None;
        // In memory, where space is short; what is left ends with the world.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A folder in memory.
fn short(bed: &Bed, name: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(world::SHORT).join(format!("{name}-{}", bed.next()));
    fs::create_dir_all(&path)?;
    Ok(path)
}
