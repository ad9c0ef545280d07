//! Small file systems of their own, on a loop device: to fill, to cut off, to measure on.
//!
//! In: a size and a kind. Out: a mounted folder; unmounted when dropped. Must not: be seen outside
//! the bed (its mount namespace is private).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process;

const STEP: Duration = Duration::from_mins(1);
const STEP_DOWN: u64 = 128 << 10;

/// What is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4 with its journal.
    Ext4,
    /// xfs (300 MB at least).
    Xfs,
}

/// A mounted disk.
#[derive(Debug)]
pub struct Disk {
    /// Where it is mounted.
    pub path: PathBuf,
}

impl Disk {
    /// Makes and mounts one of `megabytes` under `folder`.
    pub fn new(folder: &Path, kind: FileSystem, megabytes: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let image = folder.join("disk.img");
        File::create(&image)?.set_len(megabytes << 20)?;
        let mut make = match kind {
            FileSystem::Ext4 => {
                let mut make = Command::new("mkfs.ext4");
                make.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
                make
            }
            FileSystem::Xfs => {
                let mut make = Command::new("mkfs.xfs");
                make.args(["-q", "-f"]);
                make
            }
        };
        process::run(make.arg(&image), STEP)?;
        let path = folder.join("mnt");
        fs::create_dir_all(&path)?;
        process::run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path), STEP)?;
        Ok(Self { path })
    }

    /// Fills it up to `spare` bytes with one file; removing that file mends it.
    pub fn fill(&self, spare: u64) -> anyhow::Result<PathBuf> {
        let free = rustix::fs::statvfs(&self.path)?;
        let mut size = (free.f_bavail * free.f_frsize).saturating_sub(spare);
        let ballast = self.path.join("ballast");
        let file = File::create(&ballast)?;
        // The file system keeps a little of what it calls free for the file's own extents.
        loop {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
                Err(rustix::io::Errno::NOSPC) if size > STEP_DOWN => size -= STEP_DOWN,
                result => break result?,
            }
        }
        Ok(ballast)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is about to die may still stand in it.
        let _ = process::output(Command::new("umount").arg("-l").arg(&self.path), STEP);
    }
}
