//! Whole layers, unpacked one on top of the other into a folder on tmpfs.
//!
//! In: one or two tars. Out: a panic where anything outside the layers' own folders changed, or where something is in one
//! that no layer may make. Must not: touch a folder that is not its own.

use std::{
    fs::{self, File, Metadata},
    os::{fd::OwnedFd, unix::fs::FileTypeExt as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use molt_oci::{Limits, XattrNamespace, fuzzing::unpack};

use super::is_plain;
use crate::tar_input::expand;

/// Between two raw tars, or two programs of entries.
const BETWEEN: &[u8] = b"--next layer--";

pub(super) fn run(data: &[u8]) {
    let world = world();
    let before = picture(&world.join("outside"));
    let at = data.windows(BETWEEN.len()).position(|window| window == BETWEEN);
    let (first, second) = at.map_or((data, None), |at| (&data[..at], data.get(at + BETWEEN.len()..)));
    let limits = Limits { entries: 300, layer_bytes: 4 << 20, deferred_bytes: 1 << 20, ..Limits::default() };
    let mut lowers: Vec<OwnedFd> = Vec::new();
    for (tar, name) in [(Some(first), "first"), (second, "second")] {
        let Some(tar) = tar else { break };
        let root = world.join(name);
        fs::create_dir(&root).expect("make a root");
        let folder: OwnedFd = File::open(&root).expect("open it").into();
        let done = unpack(&expand(tar), &folder, &lowers, &limits, XattrNamespace::Trusted);
        walk(&root, &mut |path, found| {
            let kind = found.file_type();
            let whiteout = kind.is_char_device() && found.rdev() == 0;
            let plain = kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_fifo();
            assert!(plain || whiteout, "{} is {kind:?}", path.display());
            assert!(!path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".wh.")));
        });
        if let Err(error) = done {
            is_plain(&error.to_string());
            break;
        }
        lowers.insert(0, folder);
    }
    for name in ["first", "second"] {
        match fs::remove_dir_all(world.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("failed to remove {name}: {error}"),
            _ => {}
        }
    }
    assert_eq!(picture(&world.join("outside")), before, "something outside was changed");
    let left: Vec<_> = fs::read_dir(world).expect("list").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["outside"], "something was made beside the root");
}

/// The folder with the sentinel tree, made at the first call: what links of the inputs lead to when they lead out.
fn world() -> &'static Path {
    static WORLD: OnceLock<PathBuf> = OnceLock::new();
    WORLD.get_or_init(|| {
        let world = std::env::temp_dir().join(format!("molt-fuzz-{}", std::process::id()));
        let outside = world.join("outside");
        fs::create_dir_all(outside.join("a")).expect("make the sentinel tree");
        fs::write(outside.join("b"), "outside").expect("make the sentinel tree");
        std::os::unix::fs::symlink("b", outside.join("c")).expect("make the sentinel tree");
        world
    })
}

/// Everything about a tree that unpacking into it, or setting owners and modes in it, would change.
fn picture(root: &Path) -> Vec<(PathBuf, [i64; 9])> {
    let mut list = Vec::new();
    walk(root, &mut |path, found| {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let facts = [
            signed(found.ino()),
            found.mode().into(),
            found.uid().into(),
            found.gid().into(),
            signed(found.size()),
            signed(found.nlink()),
            found.mtime(),
            found.ctime(),
            found.ctime_nsec(),
        ];
        list.push((path.to_owned(), facts));
    });
    list.sort();
    list
}

fn walk(root: &Path, see: &mut impl FnMut(&Path, &Metadata)) {
    let found = fs::symlink_metadata(root).expect("look at a file");
    see(root, &found);
    if found.is_dir() {
        for entry in fs::read_dir(root).expect("list a folder").flatten() {
            walk(&entry.path(), see);
        }
    }
}
