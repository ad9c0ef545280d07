//! Small file systems of their own, on a loop device: to fill, to cut off, to measure on.
//!
//! In: a size and a kind. Out: a mounted folder; unmounted when dropped. Must not: be seen outside
//! the bed (its mount namespace is private), or cut off what is not on a loop device.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::{process, wait};

const STEP: Duration = Duration::from_mins(1);
const STEP_DOWN: u64 = 128 << 10;
/// Of loop devices, as `Documentation/admin-guide/devices.txt` of the kernel has it.
const LOOP_MAJOR: u32 = 7;
/// `FS_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`; by perl, as a system call by number is `unsafe`, and there is none here.
const SHUT_DOWN: &str = r#"
open(my $disk, "<", $ARGV[0]) or die "opening: $!";
my $how = pack("L", $ARGV[1]);
ioctl($disk, 0x8004587d, $how) or die "shutting down: $!";
"#;

/// What is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileSystem {
    /// ext4 with its journal.
    Ext4,
    /// xfs (300 MB at least).
    Xfs,
}

/// What becomes of the file system's own log when the power goes: the ends between which a real cut falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Log {
    /// What was changed last is written to it, as if its turn had come a moment before.
    Flushed,
    /// Nothing more is written.
    Lost,
}

/// A disk, mounted unless it [rests](Disk::rest).
#[derive(Debug)]
pub struct Disk {
    /// Where it is mounted.
    pub path: PathBuf,
    image: PathBuf,
    kind: FileSystem,
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
        let disk = Self { path, image, kind };
        disk.wake()?;
        Ok(disk)
    }

    /// Mounts it. What its log holds is replayed.
    pub fn wake(&self) -> anyhow::Result<()> {
        let options = match self.kind {
            FileSystem::Ext4 => "loop",
            // Copies of one disk have one name.
            FileSystem::Xfs => "loop,nouuid",
        };
        process::run(Command::new("mount").args(["-o", options]).arg(&self.image).arg(&self.path), STEP).map(drop)
    }

    /// Unmounts it, and waits until nobody has it mounted any more: what is mounted next is what is on the disk, and not
    /// what the kernel remembers.
    pub fn rest(&self) -> anyhow::Result<()> {
        process::run(Command::new("umount").arg(&self.path), STEP)?;
        wait::until_ok("the loop device to be free", STEP, || {
            for entry in fs::read_dir("/sys/block")? {
                let backing = entry?.path().join("loop/backing_file");
                // Not there: not in use.
                let Ok(text) = fs::read_to_string(backing) else { continue };
                if Path::new(text.trim_end()) == self.image {
                    bail!("{} is still in use", self.image.display());
                }
            }
            Ok(())
        })
    }

    /// A copy of one that rests, mounted below `folder`.
    pub fn copy(&self, folder: &Path) -> anyhow::Result<Self> {
        let (image, path) = (folder.join("disk.img"), folder.join("mnt"));
        fs::create_dir_all(&path)?;
        let mut copy = Command::new("cp");
        process::run(copy.args(["--sparse=always", "--reflink=auto"]).arg(&self.image).arg(&image), STEP)?;
        let disk = Self { path, image, kind: self.kind };
        disk.wake()?;
        Ok(disk)
    }

    /// Cuts it off: from now on nothing that is written reaches it, and everybody is told so, as of a disk without power.
    pub fn cut(&self, log: Log) -> anyhow::Result<()> {
        // Asked of the wrong folder this would take the machine's own disk.
        let device = rustix::fs::stat(&self.path)?.st_dev;
        ensure!(rustix::fs::major(device) == LOOP_MAJOR, "{} is not on a loop device", self.path.display());
        let how = match log {
            Log::Flushed => "1",
            Log::Lost => "2",
        };
        let mut perl = Command::new("perl");
        process::run(perl.args(["-e", SHUT_DOWN]).arg(&self.path).arg(how), STEP).context("cutting a disk off")?;
        let probe = File::create(self.path.join("probe")).and_then(|file| file.sync_all());
        ensure!(probe.is_err(), "{} still takes writes after it was cut off", self.path.display());
        Ok(())
    }

    /// As after an error that ext4 finds in itself, mounted with `errors=remount-ro`: it is read, and no longer written.
    pub fn turn_read_only(&self) -> anyhow::Result<()> {
        ensure!(self.kind == FileSystem::Ext4, "only ext4 can be told to find an error");
        self.remount("errors=remount-ro")?;
        let device = rustix::fs::stat(&self.path)?.st_dev;
        ensure!(rustix::fs::major(device) == LOOP_MAJOR, "{} is not on a loop device", self.path.display());
        let trigger = format!("/sys/fs/ext4/loop{}/trigger_fs_error", rustix::fs::minor(device));
        fs::write(&trigger, "asked for by a test").with_context(|| trigger)?;
        let probe = File::create(self.path.join("probe"));
        ensure!(probe.is_err(), "{} still takes writes", self.path.display());
        Ok(())
    }

    /// Mounts it again, with another option.
    pub fn remount(&self, option: &str) -> anyhow::Result<()> {
        let mut mount = Command::new("mount");
        process::run(mount.arg("-o").arg(format!("remount,{option}")).arg(&self.path), STEP).map(drop)
    }

    /// Mends one that rests, after an error was found.
    pub fn mend(&self) -> anyhow::Result<()> {
        let mut check = Command::new("e2fsck");
        let done = process::output(check.args(["-f", "-y"]).arg(&self.image), STEP)?;
        // 1: there was something to mend, e2fsck(8).
        ensure!(done.code <= 1, "{done:?}");
        Ok(())
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

/// A file system in memory, with so many inodes.
#[derive(Debug)]
pub struct InMemory {
    /// Where it is mounted.
    pub path: PathBuf,
}

impl InMemory {
    /// Mounts one of `megabytes` under `folder`.
    pub fn new(folder: &Path, megabytes: u64, inodes: u64) -> anyhow::Result<Self> {
        let path = folder.join("mnt");
        fs::create_dir_all(&path)?;
        let options = format!("size={megabytes}m,nr_inodes={inodes}");
        process::run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&path), STEP)?;
        Ok(Self { path })
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let _ = process::output(Command::new("umount").arg("-l").arg(&self.path), STEP);
    }
}
