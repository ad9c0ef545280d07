//! Where the paths of a policy lead in the new root, and over which links; and which of them the workload could lead
//! elsewhere itself.
//!
//! In: the root, paths. Out: descriptors, each with its way; the rules that are left out. Must not: take a descriptor
//! from another walk than the one its links were noted in: an older generation may change links meanwhile.

use std::{collections::VecDeque, ffi::OsString, os::fd::OwnedFd, os::unix::ffi::OsStringExt as _};

use molt_core::launch::Access;
use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxFlags, fstat, fstatvfs, openat, openat2,
        readlinkat, statx,
    },
    io::{Errno, Result},
};

/// As many as the kernel follows.
const MOST_LINKS: usize = 40;
/// Mounted anew in each generation by Molt, or the kernel's own: links in them are nobody's to change.
const KERNEL: [&str; 3] = ["/proc", "/dev", "/sys"];

/// A path, opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// `O_PATH`.
    pub(crate) fd: OwnedFd,
    /// How it was reached.
    pub(crate) way: Way,
}

/// How a path leads where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// Where it ends, without a link on the way.
    pub(crate) resolved: String,
    /// The links that were followed.
    pub(crate) links: Vec<Link>,
}

/// A link that was followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// Where it lies, without a link on the way.
    pub(crate) place: String,
    /// It lies on a volume that some generation may write to, and leads out of it.
    pub(crate) leaves_volume: bool,
}

/// Opens `path` below `root`. Symlinks are followed inside the root, magic links never.
pub(crate) fn open(root: &OwnedFd, path: &str) -> Result<Opened> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Opened { fd, way: Way::straight(path) }),
        Err(Errno::LOOP) => Walk::along(root, path),
        Err(errno) => Err(errno),
    }
}

impl Way {
    /// Of a path without a link.
    pub(crate) fn straight(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        Self { resolved: format!("/{}", parts.join("/")), links: Vec::new() }
    }
}

/// A path on its way, part by part.
struct Walk<'a> {
    root: &'a OwnedFd,
    /// Every folder from the root down to here: `..` is the one before, wherever it was moved meanwhile.
    above: Vec<(OsString, OwnedFd)>,
    todo: VecDeque<OsString>,
    /// Where each link lies, and the volume it lies on.
    links: Vec<(String, Option<u64>)>,
}

impl<'a> Walk<'a> {
    fn along(root: &'a OwnedFd, path: &str) -> Result<Opened> {
        let mut walk = Self { root, above: Vec::new(), todo: parts(path.as_bytes()).collect(), links: Vec::new() };
        while let Some(name) = walk.todo.pop_front() {
            if name == ".." {
                walk.above.pop();
            } else {
                walk.step(name)?;
            }
        }
        walk.end()
    }

    fn here(&self) -> &OwnedFd {
        self.above.last().map_or(self.root, |(_, fd)| fd)
    }

    fn place(&self) -> String {
        let names = self.above.iter().map(|(name, _)| format!("/{}", name.to_string_lossy()));
        let path: String = names.collect();
        if path.is_empty() { "/".to_owned() } else { path }
    }

    fn step(&mut self, name: OsString) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.here(), &name, flags, Mode::empty())?;
        match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::Symlink => return self.follow(&name, &fd),
            FileType::Directory => {}
            _ if self.todo.is_empty() => {}
            _ => return Err(Errno::NOTDIR),
        }
        self.above.push((name, fd));
        Ok(())
    }

    fn follow(&mut self, name: &OsString, link: &OwnedFd) -> Result<()> {
        if self.links.len() == MOST_LINKS || is_magic(self.here(), name)? {
            return Err(Errno::LOOP);
        }
        let place = format!("{}/{}", self.place().trim_end_matches('/'), name.to_string_lossy());
        let volume = self.volume(&place)?;
        self.links.push((place, volume));
        let target = readlinkat(link, "", Vec::new())?;
        if target.as_bytes().starts_with(b"/") {
            self.above.clear();
        }
        for part in parts(target.as_bytes()).rev() {
            self.todo.push_front(part);
        }
        Ok(())
    }

    /// The mount of the folder this is in, where it is a volume that can be written to.
    fn volume(&self, place: &str) -> Result<Option<u64>> {
        let mount = mount_of(self.here())?;
        let own = mount == mount_of(self.root)? || KERNEL.iter().any(|folder| within(place, folder));
        if own || fstatvfs(self.here())?.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Ok(None);
        }
        Ok(Some(mount))
    }

    fn end(mut self) -> Result<Opened> {
        let resolved = self.place();
        let fd = match self.above.pop() {
            Some((_, fd)) => fd,
            None => rustix::io::fcntl_dupfd_cloexec(self.root, 0)?,
        };
        let mount = mount_of(&fd)?;
        let leaves = |volume: Option<u64>| volume.is_some_and(|volume| volume != mount);
        let links = self.links.into_iter().map(|(place, volume)| Link { place, leaves_volume: leaves(volume) });
        Ok(Opened { fd, way: Way { resolved, links: links.collect() } })
    }
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| OsString::from_vec(part.to_vec()))
}

/// Whether a link is one of the kernel's that lead past every path (`/proc/self/exe`). Nobody can make one.
fn is_magic(folder: &OwnedFd, name: &OsString) -> Result<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(folder, name, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(false),
        Err(Errno::LOOP) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// statx(2), `STATX_MNT_ID`, Linux 5.8.
fn mount_of(fd: &OwnedFd) -> Result<u64> {
    statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id)
}

fn within(path: &str, folder: &str) -> bool {
    folder == "/" || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// For each rule, the link for which it is left out: one that the workload may change, because it lies in a tree that it
/// may write to. What lies in such a tree in the end is in the domain with or without the rule, and stays.
pub(crate) fn loose(rules: &[(Access, &Way)]) -> Vec<Option<String>> {
    let written = || rules.iter().filter(|(access, _)| *access == Access::ReadWrite).map(|(_, way)| *way);
    let plain: Vec<&str> = written().filter(|way| way.links.is_empty()).map(|way| way.resolved.as_str()).collect();
    // A link that may be changed must not say what may be changed.
    let firm = written().filter(|way| changeable(way, &plain).is_none()).map(|way| way.resolved.as_str());
    let trees: Vec<&str> = firm.collect();
    let kept: Vec<&str> =
        written().filter(|way| changeable(way, &trees).is_none()).map(|way| way.resolved.as_str()).collect();
    let covered = |way: &Way| kept.iter().any(|tree| within(&way.resolved, tree));
    let links = rules.iter().map(|(_, way)| changeable(way, &trees).filter(|_| !covered(way)));
    links.map(|link| link.map(|link| link.place.clone())).collect()
}

/// The first link on the way that lies in one of `trees`, or leads out of a volume.
fn changeable<'a>(way: &'a Way, trees: &[&str]) -> Option<&'a Link> {
    way.links.iter().find(|link| link.leaves_volume || trees.iter().any(|tree| within(&link.place, tree)))
}

#[cfg(test)]
#[path = "paths_tests.rs"]
mod tests;
