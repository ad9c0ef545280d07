//! The folder a layer is unpacked into: finds or makes the parent of each entry, inside the root, by descriptor.
//!
//! In: normalised paths. Out: `O_PATH` descriptors of folders and their real paths; what the layer left unsaid, as
//! [`Asks`]. Must not: follow a link out of the root, or hold descriptors or names without bound.

use std::{
    collections::{BTreeSet, HashMap},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::entry::split;
use crate::{
    config::Limits,
    error::{Error, Result, show},
};

/// Open folders kept at hand: tars are written depth first, so few are enough.
const CACHE: usize = 32;
/// As the kernel: more links in one path are a loop.
pub(crate) const LINKS: usize = 40;
/// Scoped to the root, no link followed.
pub(crate) const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// To name a folder, not to read it.
pub(crate) const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Which extended attributes the overlay that will use the store understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XattrNamespace {
    /// `trusted.overlay.*`: needs CAP_SYS_ADMIN in the first user namespace.
    Trusted,
    /// `user.overlay.*`: overlays mounted with `userxattr`.
    User,
}

impl XattrNamespace {
    /// The attribute that makes a folder hide what is below it.
    pub fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// What a layer alone does not say, settled once the layers below it are there. Paths are real ones inside the layer.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    /// Folders that had to be made without an entry of their own.
    pub(crate) parents: BTreeSet<Vec<u8>>,
    /// Folders whose lower content this layer hides.
    pub(crate) hidden: BTreeSet<Vec<u8>>,
    /// Those of them that replace what was there, so that nothing is inherited either.
    pub(crate) cut: BTreeSet<Vec<u8>>,
    /// Hard links to files that are not in this layer: link, target.
    pub(crate) links: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Asks {
    /// Whether the layer is the same whatever it lies on.
    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty() && self.parents.iter().all(|path| self.masked(path))
    }

    /// Whether nothing of the lower layers shows at `path`.
    pub(crate) fn masked(&self, path: &[u8]) -> bool {
        let mut at = path;
        if self.cut.contains(at) {
            return true;
        }
        while !at.is_empty() {
            at = split(at).0;
            if self.hidden.contains(at) {
                return true;
            }
        }
        false
    }
}

/// An open folder of the layer.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) fd: OwnedFd,
    /// Its path from the root without links.
    pub(crate) real: Vec<u8>,
}

impl Folder {
    /// The real path of a name in this folder.
    pub(crate) fn join(&self, name: &[u8]) -> Vec<u8> {
        join(&self.real, name)
    }
}

/// `parent/name`, or `name` in the root.
pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// What a walk does where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

/// The layer's folder.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    root: Rc<Folder>,
    cache: HashMap<Vec<u8>, Rc<Folder>>,
    limits: &'a Limits,
    /// What is left open.
    pub(crate) asks: Asks,
    deferred: usize,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(root: OwnedFd, limits: &'a Limits) -> Self {
        let root = Rc::new(Folder { fd: root, real: Vec::new() });
        Self { root, cache: HashMap::new(), limits, asks: Asks::default(), deferred: 0 }
    }

    pub(crate) fn root(&self) -> &Rc<Folder> {
        &self.root
    }

    /// Accounts for a name that is kept until the end of the layer.
    pub(crate) fn keep(&mut self, name: &[u8]) -> Result<()> {
        self.deferred += name.len() + 96;
        if self.deferred > self.limits.deferred_bytes {
            return Err(Error::layer(format!(
                "the names of its folders take more than {} bytes of memory",
                self.limits.deferred_bytes
            )));
        }
        Ok(())
    }

    /// Forgets open folders: something that they may lie below was removed.
    pub(crate) fn forget(&mut self) {
        self.cache.clear();
    }

    /// The folder at `path`, made where it is missing.
    pub(crate) fn folder(&mut self, path: &[u8]) -> Result<Rc<Folder>> {
        self.find(path, Missing::Make)?.ok_or_else(|| Error::layer(format!("'{}' cannot be made", show(path))))
    }

    /// The folder at `path`, if there is one in this layer.
    pub(crate) fn look_up(&mut self, path: &[u8]) -> Result<Option<Rc<Folder>>> {
        self.find(path, Missing::Leave)
    }

    fn find(&mut self, path: &[u8], missing: Missing) -> Result<Option<Rc<Folder>>> {
        if path.is_empty() {
            return Ok(Some(Rc::clone(&self.root)));
        }
        if let Some(folder) = self.cache.get(path) {
            return Ok(Some(Rc::clone(folder)));
        }
        let found = match rustix::fs::openat2(&self.root.fd, path, FOLDER, Mode::empty(), INSIDE) {
            Ok(fd) => Some(Rc::new(Folder { fd, real: path.to_vec() })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.walk(path, missing)?,
            Err(error) => return Err(Error::store(format!("open '{}'", show(path)), error)),
        };
        if let Some(folder) = &found {
            if self.cache.len() >= CACHE {
                self.cache.clear();
            }
            self.cache.insert(path.to_vec(), Rc::clone(folder));
        }
        Ok(found)
    }

    /// Component by component, links followed inside the root.
    fn walk(&mut self, path: &[u8], missing: Missing) -> Result<Option<Rc<Folder>>> {
        let refuse = |why: &str| Error::layer(format!("'{}': {why}", show(path)));
        let mut stack = vec![Rc::clone(&self.root)];
        let mut todo: Vec<Vec<u8>> = path.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let Some(at) = stack.last().map(Rc::clone) else { return Err(refuse("no folder to start from")) };
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    // As in a chroot, the root is its own parent.
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ if name.len() > self.limits.component || stack.len() > self.limits.depth => {
                    return Err(refuse("too long or too deep once its links are followed"));
                }
                _ => {}
            }
            let real = at.join(&name);
            match (kind_of(&at.fd, &name)?, missing) {
                (Some(FileType::Directory), _) => {}
                (Some(FileType::Symlink), _) => {
                    links += 1;
                    if links > LINKS || todo.len() > self.limits.path {
                        return Err(refuse("too many links"));
                    }
                    let target = rustix::fs::readlinkat(&at.fd, name.as_slice(), Vec::new())
                        .map_err(|error| Error::store(format!("read the link '{}'", show(&real)), error))?;
                    let target = target.to_bytes();
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    todo.extend(target.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec));
                    continue;
                }
                (None, Missing::Make) => {
                    Self::make(&at, &name)?;
                    self.keep(&real)?;
                    self.asks.parents.insert(real.clone());
                }
                // A whiteout of this layer: the name is gone below, this folder is new.
                (Some(FileType::CharacterDevice), Missing::Make) => {
                    Self::unlink(&at, &name)?;
                    Self::make(&at, &name)?;
                    self.hide(&at, &name, true)?;
                    self.keep(&real)?;
                    self.asks.parents.insert(real.clone());
                }
                (_, Missing::Make) => return Err(refuse("a folder above it is not a folder in this layer")),
                (_, Missing::Leave) => return Ok(None),
            }
            let fd = rustix::fs::openat(&at.fd, name.as_slice(), FOLDER, Mode::empty())
                .map_err(|error| Error::store(format!("open '{}'", show(&real)), error))?;
            stack.push(Rc::new(Folder { fd, real }));
        }
        Ok(stack.pop())
    }

    fn make(at: &Folder, name: &[u8]) -> Result<()> {
        rustix::fs::mkdirat(&at.fd, name, Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH)
            .map_err(|error| Error::store(format!("make the folder '{}'", show(&at.join(name))), error))
    }

    fn unlink(at: &Folder, name: &[u8]) -> Result<()> {
        rustix::fs::unlinkat(&at.fd, name, AtFlags::empty())
            .map_err(|error| Error::store(format!("replace '{}'", show(&at.join(name))), error))
    }

    /// Notes that the folder `name` in `at` hides what the lower layers have there; with `cut` it also replaces it.
    pub(crate) fn hide(&mut self, at: &Folder, name: &[u8], cut: bool) -> Result<()> {
        let real = at.join(name);
        self.keep(&real)?;
        if cut {
            self.keep(&real)?;
            self.asks.cut.insert(real.clone());
        }
        self.asks.hidden.insert(real);
        Ok(())
    }
}

/// Marks the folders that hide what is below them, as overlays are told. Left for last, and for whoever may:
/// `trusted.*` takes a capability that unpacking does without.
pub(crate) fn mark_hidden(root: BorrowedFd<'_>, asks: &Asks, xattrs: XattrNamespace) -> Result<()> {
    for real in &asks.hidden {
        let path = if real.is_empty() { b".".as_slice() } else { real.as_slice() };
        let flags = (FOLDER - OFlags::PATH) | OFlags::RDONLY;
        match rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE) {
            Ok(fd) => mark_opaque(&fd, xattrs, real)?,
            // A whiteout took its place.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(Error::store(format!("open '{}'", show(real)), error)),
        }
    }
    Ok(())
}

/// Sets the opaque attribute.
pub(crate) fn mark_opaque(fd: impl AsFd, xattrs: XattrNamespace, real: &[u8]) -> Result<()> {
    rustix::fs::fsetxattr(fd, xattrs.opaque(), b"y", XattrFlags::empty())
        .map_err(|error| Error::store(format!("mark '{}' opaque ({})", show(real), xattrs.opaque()), error))
}

/// A folder opened so that its owner, mode and attributes can be set. An empty name is the folder itself.
pub(crate) fn open_to_change(at: &Folder, name: &[u8]) -> Result<OwnedFd> {
    let name = if name.is_empty() { b"." } else { name };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&at.fd, name, flags, Mode::empty())
        .map_err(|error| Error::store(format!("open '{}'", show(&at.join(name))), error))
}

/// What `name` is, itself; none where nothing is.
pub(crate) fn kind_of(at: impl AsFd, name: &[u8]) -> Result<Option<FileType>> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(Error::store(format!("look at '{}'", show(name)), error)),
    }
}
