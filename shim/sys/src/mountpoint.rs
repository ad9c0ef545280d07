//! A mount point in a root that an image made: found inside the root, made where it is missing.
//!
//! In: the root, by descriptor, and a path below it. Out: the mount point, by descriptor. Must not: resolve a path out of
//! the root, follow a magic link, or make or remove anything except on the root's own mount: what is mounted on that is
//! somebody's volume, and the image's links may lead into it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstat, mkdirat, openat, openat2, statx, unlinkat},
    io::Errno,
};

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const ITSELF: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const LEAF: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is mounted there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// Anything else.
    File,
}

/// Why there is no mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The kernel's answer.
    #[error("{0}")]
    Kernel(#[from] Errno),
    /// It is missing, and the place for it is not the root's own.
    #[error("it is missing in what is mounted above it, where nothing is made")]
    Elsewhere,
    /// A file is to be mounted on a folder with something in it.
    #[error("it is a folder in the image, and not an empty one")]
    IsFolder,
    /// There is a link on the way to it, in what is mounted above it.
    #[error("a symbolic link is on the way to it, in what is mounted above it, which the image does not own")]
    Link,
}

/// The mount point at `path`, if it is there and fits. Parents may be links inside the root; the last part may not.
///
/// What a volume holds is not the image's, and whoever may write it changes it meanwhile: no link in it is followed, and
/// each step is taken from the descriptor of the one before.
fn find(root: impl AsFd, path: &str, kind: Kind) -> Result<Option<OwnedFd>, Problem> {
    let (parents, name) = split(path);
    let mut here = rustix::io::fcntl_dupfd_cloexec(&root, 0)?;
    for part in parents.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match look(&here, part)? {
            Some((next, FileType::Directory)) => here = next,
            Some((_, FileType::Symlink)) if !same_mount(&root, &here)? => return Err(Problem::Link),
            Some((_, FileType::Symlink)) => return Ok(find_by_links(root, path, kind)?),
            _ => return Ok(None),
        }
    }
    Ok(look(&here, name)?.and_then(|found| fits(found, kind)))
}

/// The same where a link of the image is on the way.
fn find_by_links(root: impl AsFd, path: &str, kind: Kind) -> rustix::io::Result<Option<OwnedFd>> {
    let (parent, name) = split(path);
    let parent = match openat2(&root, parent, FOLDER, Mode::empty(), IN_ROOT) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    Ok(look(&parent, name)?.and_then(|found| fits(found, kind)))
}

fn fits((found, is): (OwnedFd, FileType), kind: Kind) -> Option<OwnedFd> {
    let fits = match kind {
        Kind::Folder => is == FileType::Directory,
        Kind::File => is == FileType::RegularFile,
    };
    fits.then_some(found)
}

/// The mount point at `path`. What is in its way on the root's own mount is replaced: a link that leads nowhere or into
/// another mount, a file where a folder must be. What the image has behind such a link stays where it is.
pub fn find_or_make(root: impl AsFd, path: &str, kind: Kind) -> Result<OwnedFd, Problem> {
    if let Some(found) = find(&root, path, kind)? {
        return Ok(found);
    }
    let path = path.trim_matches('/');
    let (parents, name) = split(path);
    let mut here = rustix::io::fcntl_dupfd_cloexec(&root, 0)?;
    let mut walked = String::new();
    for name in parents.split('/').filter(|name| !matches!(*name, "" | ".")) {
        walked = format!("{walked}/{name}");
        here = parent(&root, &here, &walked, name)?;
    }
    match look(&here, name)? {
        Some((found, FileType::Directory)) if kind == Kind::Folder => return Ok(found),
        Some((found, FileType::RegularFile)) if kind == Kind::File => return Ok(found),
        Some((_, FileType::Directory)) => match unlinkat(&here, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::BUSY) => return Err(Problem::IsFolder),
            result => result?,
        },
        Some(_) => unlinkat(&here, name, AtFlags::empty())?,
        None => {}
    }
    match kind {
        Kind::Folder => mkdirat(&here, name, Mode::from_raw_mode(0o755))?,
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            drop(openat(&here, name, flags, Mode::from_raw_mode(0o644))?);
        }
    }
    Ok(openat2(&here, name, LEAF, Mode::empty(), ITSELF)?)
}

/// The folder `name` in `here`, which is on the root's own mount; so is the answer.
fn parent(root: &impl AsFd, here: &OwnedFd, walked: &str, name: &str) -> Result<OwnedFd, Problem> {
    let ours = |folder: &OwnedFd| same_mount(root, folder);
    match look(here, name)? {
        Some((folder, FileType::Directory)) => {
            return if ours(&folder)? { Ok(folder) } else { Err(Problem::Elsewhere) };
        }
        Some((_, FileType::Symlink)) => match openat2(root, walked, FOLDER, Mode::empty(), IN_ROOT) {
            Ok(folder) if ours(&folder)? => return Ok(folder),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => unlinkat(here, name, AtFlags::empty())?,
            Err(errno) => return Err(errno.into()),
        },
        Some(_) => unlinkat(here, name, AtFlags::empty())?,
        None => {}
    }
    mkdirat(here, name, Mode::from_raw_mode(0o755))?;
    Ok(openat2(here, name, FOLDER, Mode::empty(), ITSELF)?)
}

/// Whether both are on one mount. statx(2), `STATX_MNT_ID`, Linux 5.8.
pub fn same_mount(one: impl AsFd, other: impl AsFd) -> rustix::io::Result<bool> {
    let id = |fd: rustix::fd::BorrowedFd<'_>| {
        statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id)
    };
    Ok(id(one.as_fd())? == id(other.as_fd())?)
}

fn split(path: &str) -> (&str, &str) {
    let path = path.trim_matches('/');
    path.rsplit_once('/').unwrap_or((".", path))
}

/// What `name` is, itself; none where nothing is.
fn look(at: &OwnedFd, name: &str) -> rustix::io::Result<Option<(OwnedFd, FileType)>> {
    match openat2(at, name, LEAF, Mode::empty(), ITSELF) {
        Ok(found) => {
            let kind = FileType::from_raw_mode(fstat(&found)?.st_mode);
            Ok(Some((found, kind)))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{FileTypeExt as _, symlink},
        path::{Path, PathBuf},
    };

    use super::*;

    /// A root with links of every kind in it, and beside it what they would like to reach.
    fn with_root(name: &str, test: impl FnOnce(&OwnedFd, &Path)) {
        let base =
            PathBuf::from(format!("{}/molt-mountpoint-{}-{name}", std::env::temp_dir().display(), std::process::id()));
        let root = base.join("root");
        fs::create_dir_all(root.join("var/tmp")).unwrap();
        fs::create_dir_all(base.join("outside")).unwrap();
        for (link, target) in [
            ("up", "../../outside"),
            ("absolute", "/var/tmp"),
            ("dangling", "nowhere/at/all"),
            ("loop", "loop"),
            ("round", "square"),
            ("square", "round"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        fs::write(root.join("file"), "kept").unwrap();
        let fd = rustix::fs::open(&root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        test(&fd, &root);
        assert_eq!(fs::read_dir(base.join("outside")).unwrap().count(), 0, "something was made outside");
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn parents_are_followed_inside_the_root_only() {
        with_root("parents", |fd, root| {
            find_or_make(fd, "absolute/a/b", Kind::Folder).unwrap();
            assert!(root.join("var/tmp/a/b").is_dir());
            // Inside the root `../../outside` is `/outside`, which is not there: the link makes room.
            find_or_make(fd, "/up/x", Kind::File).unwrap();
            assert!(root.join("up/x").is_file());
            assert!(fs::symlink_metadata(root.join("up")).unwrap().is_dir());
        });
    }

    #[test]
    fn links_to_nowhere_and_files_make_room() {
        with_root("room", |fd, root| {
            for name in ["dangling", "loop", "round", "file", "absolute"] {
                find_or_make(fd, name, Kind::Folder).unwrap();
                assert!(fs::symlink_metadata(root.join(name)).unwrap().is_dir(), "{name}");
            }
            find_or_make(fd, "square/below", Kind::Folder).unwrap();
            assert!(root.join("var/tmp").is_dir(), "what the link led to is gone");
        });
    }

    #[test]
    fn a_file_takes_the_place_of_anything_but_a_full_folder() {
        with_root("file", |fd, root| {
            let pipe = root.join("pipe");
            rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
            fs::create_dir(root.join("empty")).unwrap();
            for name in ["pipe", "empty", "loop", "file"] {
                find_or_make(fd, name, Kind::File).unwrap();
                let kind = fs::symlink_metadata(root.join(name)).unwrap().file_type();
                assert!(kind.is_file() && !kind.is_fifo(), "{name}");
            }
            assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept");
            assert_eq!(find_or_make(fd, "var", Kind::File).unwrap_err(), Problem::IsFolder);
        });
    }

    #[test]
    fn what_is_only_looked_for_is_never_made() {
        with_root("find", |fd, root| {
            for name in ["missing", "dangling", "loop/x", "file/x"] {
                assert!(find(fd, name, Kind::Folder).unwrap().is_none(), "{name}");
            }
            assert!(find(fd, "absolute", Kind::Folder).unwrap().is_none(), "the last part was followed");
            assert!(find(fd, "file", Kind::File).unwrap().is_some());
            assert!(!root.join("missing").exists());
        });
    }
}
