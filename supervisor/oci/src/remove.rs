//! Removes a tree by descriptor: follows no link, crosses no mount, and needs neither memory nor descriptors in
//! proportion to its depth or width.
//!
//! In: the parent's descriptor and a name; an attic for what is too deep. Out: the name is gone. Must not: take a path.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// Levels that are walked with a descriptor each; deeper folders are first moved to the attic.
const LEVELS: usize = 48;
/// Names that are read at a time, before they are removed.
const NAMES: usize = 1024;

/// Removes `name` in `parent`, whatever it is. Not there is fine. With an `attic` (a folder of the same file system that
/// the caller empties until nothing is left) any depth is taken.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &[u8], attic: Option<BorrowedFd<'_>>) -> rustix::io::Result<()> {
    level(parent, name, attic, LEVELS)
}

fn level(parent: BorrowedFd<'_>, name: &[u8], attic: Option<BorrowedFd<'_>>, left: usize) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    if let Ok(()) | Err(Errno::NOENT) = rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        return Ok(());
    }
    if left == 0
        && let Some(attic) = attic
    {
        return to_attic(parent, name, attic);
    }
    let folder = open_folder(parent, name)?;
    loop {
        let names = some(&folder)?;
        if names.is_empty() {
            return rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
        for child in names {
            level(folder.as_fd(), &child, attic, left.saturating_sub(1))?;
        }
    }
}

/// Some names in an open folder, without `.` and `..`; none only where there is none.
pub(crate) fn some(folder: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    Ok(listed(folder, NAMES)?.into_iter().map(|(name, _)| name).collect())
}

fn to_attic(parent: BorrowedFd<'_>, name: &[u8], attic: BorrowedFd<'_>) -> rustix::io::Result<()> {
    for number in 0u32.. {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(parent, name, attic, format!("deep-{number}").as_bytes(), flags) {
            Err(Errno::EXIST) => {}
            done => return done,
        }
    }
    Err(Errno::MLINK)
}

/// Opens a folder to read it: itself, not through a link, and not a mount point.
fn open_folder(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    )
}

/// Names in an open folder, without `.` and `..`.
pub(crate) fn children(folder: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    Ok(typed_children(folder)?.into_iter().map(|(name, _)| name).collect())
}

/// Names in an open folder and their types, as far as the file system says.
pub(crate) fn typed_children(folder: impl AsFd) -> rustix::io::Result<Vec<(Vec<u8>, FileType)>> {
    listed(folder, usize::MAX)
}

/// Up to `most` of them.
fn listed(folder: impl AsFd, most: usize) -> rustix::io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut names = Vec::new();
    for item in Dir::read_from(folder)? {
        let item = item?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), item.file_type()));
        }
        if names.len() == most {
            break;
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn links_are_removed_and_their_targets_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("kept")).unwrap();
        fs::write(dir.path().join("kept/file"), "x").unwrap();
        fs::create_dir_all(dir.path().join("gone/a/b")).unwrap();
        std::os::unix::fs::symlink("../kept", dir.path().join("gone/link")).unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        remove(root.as_fd(), b"gone", None).unwrap();
        remove(root.as_fd(), b"gone", None).unwrap();
        assert!(!dir.path().join("gone").exists());
        assert!(dir.path().join("kept/file").exists());
    }

    /// What is mounted in a tree is somebody's: the removal of the tree fails there.
    #[test]
    fn a_mount_point_is_not_entered() {
        let root = fs::File::open("/").unwrap();
        assert!(fs::exists("/proc/self").unwrap());
        assert_eq!(open_folder(root.as_fd(), b"proc").unwrap_err(), Errno::XDEV);
    }

    #[test]
    fn a_folder_of_any_width_goes_a_part_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("wide")).unwrap();
        let most = 2 * NAMES + 1;
        for number in 0..most {
            fs::write(dir.path().join(format!("wide/{number}")), "").unwrap();
        }
        let wide = fs::File::open(dir.path().join("wide")).unwrap();
        assert_eq!(some(&wide).unwrap().len(), NAMES);
        assert_eq!(children(&wide).unwrap().len(), most);
        let root = fs::File::open(dir.path()).unwrap();
        remove(root.as_fd(), b"wide", None).unwrap();
        assert!(!dir.path().join("wide").exists());
    }

    #[test]
    fn a_tree_of_any_depth_goes_through_the_attic() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("attic")).unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        let mut at: OwnedFd = fs::File::open(dir.path().join("deep")).unwrap().into();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open_folder(at.as_fd(), b"d").unwrap();
        }
        drop(at);
        let root = fs::File::open(dir.path()).unwrap();
        let attic = fs::File::open(dir.path().join("attic")).unwrap();
        remove(root.as_fd(), b"deep", Some(attic.as_fd())).unwrap();
        loop {
            let names = children(fs::File::open(dir.path().join("attic")).unwrap()).unwrap();
            if names.is_empty() {
                break;
            }
            for name in names {
                remove(attic.as_fd(), &name, Some(attic.as_fd())).unwrap();
            }
        }
        assert!(!dir.path().join("deep").exists());
    }
}
