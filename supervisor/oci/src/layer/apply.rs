//! Carries out the entries of one layer in its own empty folder, by descriptor only.
//!
//! In: a tar stream, the folder, the limits. Out: the folder filled, as a lower layer for overlayfs, and what it asks of
//! the layers below. Must not: resolve a path except inside the folder, follow a link at a leaf, or sync.
//!
//! Setuid and setgid bits are kept: roots are mounted nosuid and programs run with no_new_privs, so they do nothing, and
//! programs that check their own files find what was shipped. Device nodes are refused, those below `/dev` left out.
//! Folders get owner, mode and times last, so that while the layer is written no setgid folder gives its group away.

use std::{
    collections::HashMap,
    io::{Read, Write as _},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{
    entry::{Entry, Kind, split},
    tar::TarReader,
    tree::{Asks, FOLDER, Folder, INSIDE, Tree, XattrNamespace, kind_of, open_to_change},
    whiteout::Whiteout,
};
use crate::{
    config::Limits,
    error::{Error, Result, show},
    remove,
};

/// How to unpack and settle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) xattrs: XattrNamespace,
}

/// Owner, mode and time of a folder, set at the end.
#[derive(Debug, Clone, Copy)]
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
}

impl Meta {
    fn of(entry: &Entry) -> Self {
        Self { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime }
    }
}

/// Unpacks `stream` into `root`, which must be empty and nobody else's, up to the end of the tar.
pub(crate) fn apply<R: Read>(stream: &mut R, root: OwnedFd, limits: &Limits) -> Result<Asks> {
    let mut tar = TarReader::new(stream, limits);
    let mut applier = Applier {
        bare: bare(&root),
        tree: Tree::new(root, limits),
        folders: HashMap::new(),
        me: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    };
    while let Some(entry) = tar.next()? {
        applier.entry(&entry, &mut tar)?;
    }
    applier.finish()
}

struct Applier<'a> {
    tree: Tree<'a>,
    folders: HashMap<Vec<u8>, Meta>,
    me: (u32, u32),
    /// Whether a new file has the mode it is made with, less [`UMASK`].
    bare: bool,
}

/// The umask of whoever unpacks: what most files of an image do not grant anyway.
pub(crate) const UMASK: Mode = Mode::WGRP.union(Mode::WOTH);

/// Whether no list for new files (acl(5)) comes with the store's folder: all folders below would inherit it.
fn bare(root: &OwnedFd) -> bool {
    let mut none = [0u8; 0];
    let asked = rustix::fs::fgetxattr(root, "system.posix_acl_default", &mut none[..]);
    matches!(asked, Err(Errno::NODATA | Errno::OPNOTSUPP))
}

impl Applier<'_> {
    fn entry<R: Read>(&mut self, entry: &Entry, tar: &mut TarReader<'_, R>) -> Result<()> {
        if entry.kind == Kind::Nothing {
            return Ok(());
        }
        let (parent, name) = split(&entry.path);
        let parent = self.tree.folder(parent)?;
        let real = parent.join(name);
        match &entry.kind {
            Kind::Directory => return self.directory(&parent, name, entry),
            Kind::Whiteout(Whiteout::Opaque) => return self.opaque(&parent),
            Kind::Whiteout(Whiteout::Name(hidden)) => return self.whiteout(&parent, hidden),
            Kind::Hardlink(target) => return self.hardlink(&parent, name, target),
            Kind::File(_) => {
                // With all of its mode from the start, where that is what it will have in the end: one call less a file.
                let whole = Mode::from_raw_mode(entry.mode);
                let at_once = self.bare
                    && self.mine(entry)
                    && (Mode::RWXU | Mode::RWXG | Mode::RWXO).difference(UMASK).contains(whole);
                let made = if at_once { whole } else { Mode::RUSR | Mode::WUSR };
                let file = self.place(&parent, name, |at| {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(at, name, flags, made)
                })?;
                let mut file = std::fs::File::from(file);
                tar.data(entry, |piece| {
                    file.write_all(piece).map_err(|error| Error::store(format!("write '{}'", show(&real)), error))
                })?;
                self.own(entry, &real, |uid, gid| rustix::fs::fchown(&file, uid, gid))?;
                set_xattrs(&file, entry)?;
                let settle = |error| Error::store(format!("set the mode and time of '{}'", show(&real)), error);
                if !at_once {
                    rustix::fs::fchmod(&file, whole).map_err(settle)?;
                }
                rustix::fs::futimens(&file, &times(entry.mtime)).map_err(settle)?;
            }
            Kind::Symlink(target) => {
                self.place(&parent, name, |at| rustix::fs::symlinkat(target.as_slice(), at, name))?;
                self.own_leaf(&parent, name, entry)?;
            }
            Kind::Fifo => {
                self.place(&parent, name, |at| {
                    rustix::fs::mknodat(at, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                })?;
                self.own_leaf(&parent, name, entry)?;
                rustix::fs::chmodat(&parent.fd, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                    .map_err(|error| Error::store(format!("set the mode of '{}'", show(&real)), error))?;
            }
            Kind::Nothing => {}
        }
        self.superseded(&real);
        Ok(())
    }

    /// Makes `name` by `make`, after removing what an earlier entry of this layer put there.
    fn place<T>(
        &mut self,
        parent: &Folder,
        name: &[u8],
        make: impl Fn(rustix::fd::BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let failed = |error| Error::store(format!("make '{}'", show(&parent.join(name))), error);
        match make(parent.fd.as_fd()) {
            Ok(new) => return Ok(new),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(error)),
        }
        self.clear(parent, name)?;
        make(parent.fd.as_fd()).map_err(failed)
    }

    /// Removes what is at `name`, with everything below.
    fn clear(&mut self, parent: &Folder, name: &[u8]) -> Result<()> {
        let real = parent.join(name);
        // Open folders may have been reached through it.
        self.tree.forget();
        if kind_of(&parent.fd, name)? == Some(FileType::Directory) {
            if self.tree.asks.parents.contains(&real) {
                // In a lower layer it may be a link, and what was put behind it is not to be lost.
                return Err(Error::layer(format!("'{}' is replaced after entries were put below it", show(&real))));
            }
            let below = [real.as_slice(), b"/"].concat();
            let gone = |path: &[u8]| path == real || path.starts_with(&below);
            self.folders.retain(|path, _| !gone(path));
            self.tree.asks.parents.retain(|path| !gone(path));
            self.tree.asks.hidden.retain(|path| !gone(path));
            self.tree.asks.cut.retain(|path| !gone(path));
            self.tree.asks.links.retain(|(path, _)| !gone(path));
        }
        remove::remove(parent.fd.as_fd(), name, None)
            .map_err(|error| Error::store(format!("replace '{}'", show(&real)), error))
    }

    /// A later entry took the place of a hard link that was still open.
    fn superseded(&mut self, real: &[u8]) {
        if !self.tree.asks.links.is_empty() {
            self.tree.asks.links.retain(|(path, _)| path != real);
        }
    }

    fn directory(&mut self, parent: &Rc<Folder>, name: &[u8], entry: &Entry) -> Result<()> {
        if name.is_empty() {
            set_xattrs(open_to_change(parent, b"")?, entry)?;
            self.folders.insert(Vec::new(), Meta::of(entry));
            return Ok(());
        }
        let real = parent.join(name);
        match rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) if kind_of(&parent.fd, name)? == Some(FileType::Directory) => {}
            Err(Errno::EXIST) => {
                // A whiteout or another entry of this layer: either way the lower folder does not show.
                self.clear(parent, name)?;
                self.superseded(&real);
                rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU)
                    .map_err(|error| Error::store(format!("make the folder '{}'", show(&real)), error))?;
                self.tree.hide(parent, name, true)?;
            }
            Err(error) => return Err(Error::store(format!("make the folder '{}'", show(&real)), error)),
        }
        if !entry.xattrs.is_empty() {
            set_xattrs(open_to_change(parent, name)?, entry)?;
        }
        self.tree.asks.parents.remove(&real);
        self.superseded(&real);
        if self.folders.insert(real.clone(), Meta::of(entry)).is_none() {
            self.tree.keep(&real)?;
        }
        Ok(())
    }

    fn opaque(&mut self, parent: &Folder) -> Result<()> {
        if parent.real.is_empty() {
            self.tree.asks.hidden.insert(Vec::new());
            return Ok(());
        }
        let (above, name) = split(&parent.real);
        let above = self.tree.folder(above)?;
        self.tree.hide(&above, name, false)
    }

    /// Hides `hidden` of the lower layers; what this layer itself has there stays.
    fn whiteout(&mut self, parent: &Folder, hidden: &[u8]) -> Result<()> {
        match kind_of(&parent.fd, hidden)? {
            None => rustix::fs::mknodat(&parent.fd, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(|error| Error::store(format!("make the whiteout of '{}'", show(&parent.join(hidden))), error)),
            Some(FileType::Directory) => self.tree.hide(parent, hidden, true),
            Some(_) => Ok(()),
        }
    }

    fn hardlink(&mut self, parent: &Rc<Folder>, name: &[u8], target: &[u8]) -> Result<()> {
        let real = parent.join(name);
        let refuse = |why: &str| Error::layer(format!("hard link '{}' to '{}': {why}", show(&real), show(target)));
        let (above, leaf) = split(target);
        if leaf.is_empty() {
            return Err(refuse("the target is the root"));
        }
        let found = match self.tree.look_up(above)? {
            Some(folder) => kind_of(&folder.fd, leaf)?.map(|kind| (folder, kind)),
            None => None,
        };
        match found {
            Some((folder, FileType::RegularFile | FileType::Symlink)) => {
                if folder.real == parent.real && leaf == name {
                    return Err(refuse("a link to itself"));
                }
                self.place(parent, name, |at| rustix::fs::linkat(&folder.fd, leaf, at, name, AtFlags::empty()))?;
                self.superseded(&real);
                Ok(())
            }
            // Gone in this layer, or not of a kind that can be linked.
            Some(_) => Err(refuse("the target is not a file")),
            None => {
                if kind_of(&parent.fd, name)?.is_some() {
                    self.clear(parent, name)?;
                }
                self.tree.keep(&real)?;
                self.tree.keep(target)?;
                self.superseded(&real);
                self.tree.asks.links.push((real, target.to_vec()));
                Ok(())
            }
        }
    }

    /// Whether what the process makes has this owner already.
    fn mine(&self, entry: &Entry) -> bool {
        (entry.uid, entry.gid) == self.me
    }

    /// Gives away what the process would not make its own anyway. Before the mode: chown clears setuid.
    fn own(
        &self,
        entry: &Entry,
        real: &[u8],
        chown: impl FnOnce(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
    ) -> Result<()> {
        if self.mine(entry) {
            return Ok(());
        }
        chown(Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(|error| chown_error(error, real, entry.uid, entry.gid))
    }

    /// Owner and time of a link or pipe, never through it.
    fn own_leaf(&self, parent: &Folder, name: &[u8], entry: &Entry) -> Result<()> {
        let real = parent.join(name);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        self.own(entry, &real, |uid, gid| rustix::fs::chownat(&parent.fd, name, uid, gid, flags))?;
        rustix::fs::utimensat(&parent.fd, name, &times(entry.mtime), flags)
            .map_err(|error| Error::store(format!("set the time of '{}'", show(&real)), error))
    }

    /// A folder that hides what is below it, and was made only for whiteouts in it, is a whiteout itself.
    fn prune_hidden(&mut self) -> Result<()> {
        let hidden: Vec<_> =
            self.tree.asks.parents.iter().filter(|path| self.tree.asks.masked(path)).cloned().collect();
        for path in hidden.into_iter().rev() {
            let (above, name) = split(&path);
            let Some(above) = self.tree.look_up(above)? else { continue };
            let failed = |error| Error::store(format!("hide '{}'", show(&path)), error);
            let Ok(folder) = open_to_change(&above, name) else { continue };
            let children = remove::typed_children(&folder).map_err(failed)?;
            self.tree.asks.parents.remove(&path);
            if children.iter().all(|(_, kind)| *kind == FileType::CharacterDevice) {
                self.tree.forget();
                remove::remove(above.fd.as_fd(), name, None).map_err(failed)?;
                if self.tree.asks.cut.remove(&path) {
                    self.tree.asks.hidden.remove(&path);
                    rustix::fs::mknodat(&above.fd, name, FileType::CharacterDevice, Mode::empty(), 0)
                        .map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// Owner, mode and time of every folder; opened anew, by name inside the root, and only if still a folder.
    fn finish(mut self) -> Result<Asks> {
        self.prune_hidden()?;
        for (real, meta) in self.folders.drain() {
            let path = if real.is_empty() { b".".as_slice() } else { real.as_slice() };
            let flags = (FOLDER - OFlags::PATH) | OFlags::RDONLY;
            let fd = match rustix::fs::openat2(&self.tree.root().fd, path, flags, Mode::empty(), INSIDE) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(Error::store(format!("open '{}'", show(&real)), error)),
            };
            let failed = |error| Error::store(format!("set the mode and time of '{}'", show(&real)), error);
            rustix::fs::fchown(&fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
                .map_err(|error| chown_error(error, &real, meta.uid, meta.gid))?;
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(meta.mode)).map_err(failed)?;
            rustix::fs::futimens(&fd, &times(meta.mtime)).map_err(failed)?;
        }
        Ok(self.tree.asks)
    }
}

fn chown_error(error: Errno, real: &[u8], uid: u32, gid: u32) -> Error {
    match error {
        Errno::INVAL | Errno::OVERFLOW | Errno::PERM => Error::UnmappedOwner { path: show(real), uid, gid },
        error => Error::store(format!("give '{}' to {uid}:{gid}", show(real)), error),
    }
}

/// Access time and change time alike.
pub(crate) fn times(mtime: i64) -> Timestamps {
    let at = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: at, last_modification: at }
}

fn set_xattrs(fd: impl AsFd, entry: &Entry) -> Result<()> {
    for (name, value) in &entry.xattrs {
        match rustix::fs::fsetxattr(&fd, name.as_slice(), value, XattrFlags::empty()) {
            // A file system without them loses what only programs that ask for them see.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(Errno::TOOBIG | Errno::RANGE | Errno::NOSPC) if value.len() > 2048 => {
                return Err(Error::layer(format!(
                    "'{}': the attribute {} of {} bytes does not fit the file system",
                    show(&entry.path),
                    show(name),
                    value.len()
                )));
            }
            Err(error) => return Err(Error::store(format!("set an attribute of '{}'", show(&entry.path)), error)),
        }
    }
    Ok(())
}
