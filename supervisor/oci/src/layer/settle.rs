//! Settles what a layer alone does not say, once the layers below it are there.
//!
//! A layer's tar may name `bin/tool` without an entry for `bin`. Applied onto its parents, `bin` keeps the owner and mode
//! it has there, and where it is a link there, the file lands behind the link. A hard link may name a file of a lower
//! layer. [`super::apply`] unpacks each layer alone, so it makes plain folders for such parents, leaves such links out and
//! writes both down in [`Asks`]. Here they are answered: folders inherit owner, mode, time and attributes; content under a
//! linked parent is moved to where the link leads; the target of a hard link is copied up and linked.
//!
//! In: the unpacked folder, its asks, the lower layers. Out: the folder as it must be on top of exactly these. Must not:
//! run for a layer that asks nothing; such a layer is the same on any parents and keeps its plain name in the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, XattrFlags},
    io::Errno,
};

use super::{
    apply::{Options, times},
    entry::split,
    lowers::{Lowers, Seen},
    tree::{Asks, FOLDER, INSIDE, LINKS, join, kind_of, mark_opaque},
};
use crate::{
    error::{Error, Result, show},
    remove,
};

/// Answers `asks` for the layer in `root` on top of `lowers`, nearest first.
pub(crate) fn settle(root: &OwnedFd, asks: Asks, lowers: &[OwnedFd], options: Options<'_>) -> Result<()> {
    let lowers = Lowers { roots: lowers, xattrs: options.xattrs };
    let mut settling = Settling {
        root,
        asks,
        lowers,
        options,
        inherit: BTreeSet::new(),
        bare: BTreeSet::new(),
        times: BTreeMap::new(),
    };
    while let Some(path) = settling.asks.parents.first().cloned() {
        settling.parent(&path)?;
        settling.asks.parents.remove(&path);
    }
    for (link, target) in std::mem::take(&mut settling.asks.links) {
        settling.link(&link, &target)?;
    }
    settling.drop_bare()?;
    settling.restore_times()?;
    settling.inherit_all()
}

struct Settling<'a> {
    root: &'a OwnedFd,
    asks: Asks,
    lowers: Lowers<'a>,
    options: Options<'a>,
    inherit: BTreeSet<Vec<u8>>,
    /// Made for entries of this layer where the layers below have no folder.
    bare: BTreeSet<Vec<u8>>,
    /// Times of folders from before anything was put into them here.
    times: BTreeMap<Vec<u8>, i64>,
}

impl Settling<'_> {
    fn folder(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        rustix::fs::openat2(self.root, path, flags, Mode::empty(), INSIDE)
    }

    /// Keeps the time of a folder that is about to be changed: its entry says what it is.
    fn remember(&mut self, path: &[u8]) {
        if !self.times.contains_key(path)
            && let Ok(folder) = self.folder(path, FOLDER)
            && let Ok(stat) = rustix::fs::fstat(&folder)
        {
            self.times.insert(path.to_vec(), stat.st_mtime);
        }
    }

    fn restore_times(&self) -> Result<()> {
        for (path, time) in &self.times {
            let Ok(folder) = self.folder(path, (FOLDER - OFlags::PATH) | OFlags::RDONLY) else { continue };
            rustix::fs::futimens(&folder, &times(*time))
                .map_err(|error| Error::store(format!("set the time of '{}'", show(path)), error))?;
        }
        Ok(())
    }

    fn below(&self, path: &[u8]) -> Result<Seen> {
        if self.asks.masked(path) { Ok(Seen::Nothing) } else { self.lowers.look_up(path) }
    }

    fn parent(&mut self, path: &[u8]) -> Result<()> {
        if self.folder(path, FOLDER).is_err() {
            return Ok(());
        }
        match self.below(path)? {
            Seen::Folder(_) => {
                self.inherit.insert(path.to_vec());
                Ok(())
            }
            Seen::Link(_) => {
                let to = self.resolve(path)?;
                if to == path || to.starts_with(&[path, b"/"].concat()) {
                    return Err(Error::layer(format!("'{}' is below a link that leads to itself", show(path))));
                }
                self.ensure(&to)?;
                self.merge(path, &to)
            }
            Seen::Nothing | Seen::File(..) | Seen::Other => {
                self.bare.insert(path.to_vec());
                Ok(())
            }
        }
    }

    /// A folder that was made only to hold whiteouts, where the layers below have none, holds nothing that hides anything.
    fn drop_bare(&mut self) -> Result<()> {
        for path in self.bare.clone().iter().rev() {
            self.remember(split(path).0);
            let failed = |error| Error::store(format!("remove '{}'", show(path)), error);
            let Ok(folder) = self.folder(path, (FOLDER - OFlags::PATH) | OFlags::RDONLY) else { continue };
            let children = remove::typed_children(&folder).map_err(failed)?;
            if !children.iter().all(|(_, kind)| *kind == FileType::CharacterDevice) {
                continue;
            }
            let (above, name) = split(path);
            let above = self.folder(above, FOLDER).map_err(failed)?;
            remove::remove(above.as_fd(), name, None).map_err(failed)?;
        }
        Ok(())
    }

    /// Where `path` leads in this layer on top of the others. What does not exist yet is taken as a folder to be.
    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>> {
        let mut real: Vec<u8> = Vec::new();
        let mut todo: Vec<Vec<u8>> = path.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    real = split(&real).0.to_vec();
                    continue;
                }
                _ => {}
            }
            let next = join(&real, &name);
            let (limits, depth) = (self.options.limits, next.split(|byte| *byte == b'/').count());
            if next.len() > limits.path || name.len() > limits.component || depth > limits.depth {
                return Err(Error::layer(format!(
                    "'{}' is too long or too deep once its links are followed",
                    show(path)
                )));
            }
            let Some(target) = self.link_at(&real, &name, &next)? else {
                real = next;
                continue;
            };
            links += 1;
            if links > LINKS {
                return Err(Error::layer(format!("'{}' leads through too many links", show(path))));
            }
            if target.starts_with(b"/") {
                real.clear();
            }
            todo.extend(target.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec));
        }
        Ok(real)
    }

    /// The target if `real/name` is a link. A folder that only a missing parent made does not hide a lower link.
    fn link_at(&self, real: &[u8], name: &[u8], next: &[u8]) -> Result<Option<Vec<u8>>> {
        let own = match self.folder(real, FOLDER) {
            Ok(folder) => kind_of(&folder, name)?.map(|kind| (folder, kind)),
            Err(_) => None,
        };
        match own {
            Some((folder, FileType::Symlink)) => rustix::fs::readlinkat(&folder, name, Vec::new())
                .map(|target| Some(target.into_bytes()))
                .map_err(|error| Error::store(format!("read the link '{}'", show(next)), error)),
            Some((_, FileType::Directory)) if self.asks.parents.contains(next) => Ok(self.lower_link(next)?),
            Some(_) => Ok(None),
            None => self.lower_link(next),
        }
    }

    fn lower_link(&self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(if let Seen::Link(target) = self.below(path)? { Some(target) } else { None })
    }

    /// Makes the folders of a real path that this layer lacks.
    fn ensure(&mut self, path: &[u8]) -> Result<()> {
        let mut at: Vec<u8> = Vec::new();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            self.remember(&at);
            let parent =
                self.folder(&at, FOLDER).map_err(|error| Error::store(format!("open '{}'", show(&at)), error))?;
            let next = join(&at, name);
            let failed = |error| Error::store(format!("make the folder '{}'", show(&next)), error);
            let kind = kind_of(&parent, name)?;
            if kind == Some(FileType::CharacterDevice) {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty()).map_err(failed)?;
            }
            match kind {
                Some(FileType::Directory) => {}
                None | Some(FileType::CharacterDevice) => {
                    rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
                    if kind.is_some() {
                        let flags = (FOLDER - OFlags::PATH) | OFlags::RDONLY;
                        let made = self.folder(&next, flags).map_err(failed)?;
                        mark_opaque(&made, self.options.xattrs, &next)?;
                        self.asks.cut.insert(next.clone());
                        self.asks.hidden.insert(next.clone());
                    }
                    self.inherit.insert(next.clone());
                }
                Some(_) => return Err(Error::layer(format!("'{}' is not a folder", show(&next)))),
            }
            at = next;
        }
        Ok(())
    }

    /// Moves all that is in `from` into `to` and removes `from`.
    fn merge(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        let failed = |error| Error::store(format!("move '{}' to '{}'", show(from), show(to)), error);
        self.remember(to);
        self.remember(split(from).0);
        let source = self.folder(from, (FOLDER - OFlags::PATH) | OFlags::RDONLY).map_err(failed)?;
        let target = self.folder(to, (FOLDER - OFlags::PATH) | OFlags::RDONLY).map_err(failed)?;
        if self.asks.hidden.contains(from) {
            mark_opaque(&target, self.options.xattrs, to)?;
            self.asks.hidden.insert(to.to_vec());
        }
        for name in remove::children(&source).map_err(failed)? {
            match rustix::fs::renameat_with(&source, name.as_slice(), &target, name.as_slice(), RenameFlags::NOREPLACE)
            {
                Ok(()) => self.rebase(&join(from, &name), &join(to, &name)),
                Err(Errno::EXIST) => {
                    let folder = Some(FileType::Directory);
                    if kind_of(&source, &name)? != folder || kind_of(&target, &name)? != folder {
                        return Err(Error::layer(format!(
                            "it names '{}' also by way of '{}', a link in a lower layer",
                            show(&join(to, &name)),
                            show(from)
                        )));
                    }
                    let (inner_from, inner_to) = (join(from, &name), join(to, &name));
                    if !self.asks.parents.remove(&inner_from) && self.asks.parents.remove(&inner_to) {
                        let flags = (FOLDER - OFlags::PATH) | OFlags::RDONLY;
                        let (like, fd) = (
                            self.folder(&inner_from, flags).map_err(failed)?,
                            self.folder(&inner_to, flags).map_err(failed)?,
                        );
                        copy_meta(&like, &fd, &inner_to)?;
                    }
                    self.merge(&inner_from, &inner_to)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let (above, name) = split(from);
        let above = self.folder(above, FOLDER).map_err(failed)?;
        rustix::fs::unlinkat(&above, name, AtFlags::REMOVEDIR).map_err(failed)
    }

    /// What was noted about `from` and below now holds for `to`.
    fn rebase(&mut self, from: &[u8], to: &[u8]) {
        let moved = |path: &[u8]| {
            let rest = path.strip_prefix(from)?;
            (rest.is_empty() || rest.starts_with(b"/")).then(|| [to, rest].concat())
        };
        for set in [&mut self.asks.parents, &mut self.asks.hidden, &mut self.asks.cut] {
            let paths: Vec<_> = set.iter().filter(|path| path.starts_with(from)).cloned().collect();
            for path in paths {
                if let Some(new) = moved(&path) {
                    set.remove(&path);
                    set.insert(new);
                }
            }
        }
    }

    fn link(&mut self, link: &[u8], target: &[u8]) -> Result<()> {
        let refuse = |why: &str| Error::layer(format!("hard link '{}' to '{}': {why}", show(link), show(target)));
        let failed = |error| Error::store(format!("link '{}' to '{}'", show(link), show(target)), error);
        let place = |settling: &mut Self, path: &[u8]| -> Result<(OwnedFd, Vec<u8>, Vec<u8>)> {
            let (above, name) = split(path);
            let above = settling.resolve(above)?;
            settling.ensure(&above)?;
            settling.remember(&above);
            let folder = settling.folder(&above, FOLDER).map_err(failed)?;
            Ok((folder, name.to_vec(), above))
        };
        let (from, leaf, above) = place(self, target)?;
        match kind_of(&from, &leaf)? {
            Some(FileType::RegularFile | FileType::Symlink) => {}
            Some(_) => return Err(refuse("the target is not a file")),
            None => match self.below(&join(&above, &leaf))? {
                Seen::File(folder, stat) => copy_up(&folder, &stat, &from, &leaf, &join(&above, &leaf))?,
                _ => return Err(refuse("the target is no file of this layer or the ones below")),
            },
        }
        let (to, name, _) = place(self, link)?;
        if kind_of(&to, &name)? == Some(FileType::CharacterDevice) {
            rustix::fs::unlinkat(&to, name.as_slice(), AtFlags::empty()).map_err(failed)?;
        }
        rustix::fs::linkat(&from, leaf.as_slice(), &to, name.as_slice(), AtFlags::empty()).map_err(failed)
    }

    /// Owner, mode, time and attributes of every folder that has no entry of its own, innermost first.
    fn inherit_all(&mut self) -> Result<()> {
        for path in self.inherit.iter().rev() {
            if let Seen::Folder(like) = self.below(path)? {
                let flags = (FOLDER - OFlags::PATH) | OFlags::RDONLY;
                match self.folder(path, flags) {
                    Ok(fd) => copy_meta(&like, &fd, path)?,
                    Err(Errno::NOENT | Errno::NOTDIR) => {}
                    Err(error) => return Err(Error::store(format!("open '{}'", show(path)), error)),
                }
            }
        }
        Ok(())
    }
}

fn copy_meta(like: &OwnedFd, fd: &OwnedFd, path: &[u8]) -> Result<()> {
    let failed = |error| Error::store(format!("give '{}' the owner and mode it has below", show(path)), error);
    let stat = rustix::fs::fstat(like).map_err(failed)?;
    copy_xattrs(like, fd).map_err(failed)?;
    set_stat(fd, &stat).map_err(failed)
}

fn set_stat(fd: impl AsFd, stat: &Stat) -> rustix::io::Result<()> {
    rustix::fs::fchown(&fd, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    rustix::fs::futimens(&fd, &times(stat.st_mtime))
}

fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let mut names = vec![0u8; 64 << 10];
    let count = match rustix::fs::flistxattr(from, names.as_mut_slice()) {
        Ok(count) => count,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut value = vec![0u8; 64 << 10];
    for name in names.get(..count).unwrap_or_default().split(|byte| *byte == 0) {
        if name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") {
            let length = rustix::fs::fgetxattr(from, name, value.as_mut_slice())?;
            rustix::fs::fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn copy_up(folder: &OwnedFd, stat: &Stat, to: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
    let failed = |error: io::Error| Error::store(format!("copy '{}' from the layer below", show(path)), error);
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = rustix::fs::openat(folder, name, read, Mode::empty()).map_err(|error| failed(error.into()))?;
    let to = rustix::fs::openat(to, name, write, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
    let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
    // Behind the traits it is read and write, nothing else: who settles may call little more.
    let (source, sink): (&mut dyn io::Read, &mut dyn io::Write) = (&mut from, &mut to);
    io::copy(source, sink).map_err(failed)?;
    let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
    copy_xattrs(&from, &to).and_then(|()| set_stat(&to, stat)).map_err(|error| failed(error.into()))
}
