//! The demo's folder: nobody else's, so that nothing in it is somebody's trap.
//!
//! In: where temporary files lie, or the folder that was asked for. Out: a folder that only its owner enters (PID 1 takes from
//! it what the sandbox sees, by mounts; nobody in the sandbox passes through it). Must not: take one that is there already
//! and that others have, or may write to.

use std::{
    fs::{DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rustix::process::geteuid;

use crate::gateway::files;

/// A folder; one that nobody named is gone with it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    kept: bool,
}

impl Folder {
    /// A new one in `below`, with a name that nobody foresees.
    pub(super) fn fresh(below: &Path) -> anyhow::Result<Self> {
        let below = std::fs::canonicalize(below)
            .with_context(|| format!("failed to find {}; TMPDIR says where the demo's folder goes", below.display()))?;
        let random = files::random::<8>().map_err(anyhow::Error::msg)?;
        let path = below.join(format!("molt-demo-{}", files::hex(&random)));
        // One that is there is an error, and no link is followed: mkdir(2).
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("failed to make {}; --keep DIR names another folder", path.display()))?;
        Ok(Self { path, kept: false })
    }

    /// The one that was asked for, made if it is not there.
    pub(super) fn named(path: &Path) -> anyhow::Result<Self> {
        // With a slash at its end a link would be followed.
        let path: &Path = &path.components().collect::<PathBuf>();
        let shown = path.display();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("failed to make {shown}"))?;
        let found = std::fs::symlink_metadata(path).with_context(|| format!("failed to look at {shown}"))?;
        if !found.is_dir() {
            bail!("{shown} is a link; name the folder itself");
        }
        let (belongs, user, bits) = (found.uid(), geteuid().as_raw(), found.mode() & 0o7777);
        if belongs != user {
            bail!(
                "{shown} belongs to user {belongs}, and this is user {user}; name a folder of your own, or a new one"
            );
        }
        if bits & 0o022 != 0 {
            bail!("others may write to {shown} (mode {bits:o}); `chmod go-w` it, or name a new one");
        }
        let path = std::fs::canonicalize(path).with_context(|| format!("failed to find {shown}"))?;
        Ok(Self { path, kept: true })
    }

    /// Where it is, in full.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.kept {
            open_up(&self.path.join("store/generations"));
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Overlayfs leaves a folder of mode 0 in each generation, which who is not root cannot look into to remove it.
fn open_up(generations: &Path) {
    for generation in std::fs::read_dir(generations).into_iter().flatten().flatten() {
        let _ = std::fs::set_permissions(generation.path().join("work/work"), Permissions::from_mode(0o700));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_that_nobody_named_is_new_and_closed_and_goes() {
        let below = Folder::fresh(&std::env::temp_dir()).unwrap();
        let (one, other) = (Folder::fresh(below.path()).unwrap(), Folder::fresh(below.path()).unwrap());
        assert_ne!(one.path(), other.path());
        let found = fs::symlink_metadata(one.path()).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid()), (0o700, geteuid().as_raw()));
        let name = one.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("molt-demo-") && name.len() == 26, "{name}");
        let path = one.path().to_owned();
        let overlay = path.join("store/generations/1/work/work");
        fs::create_dir_all(&overlay).unwrap();
        fs::set_permissions(overlay, Permissions::from_mode(0o000)).unwrap();
        drop(one);
        assert!(!path.exists());
    }

    #[test]
    fn a_named_folder_is_taken_where_nobody_else_writes_to_it() {
        let below = Folder::fresh(&std::env::temp_dir()).unwrap();
        let at = |name: &str| below.path().join(name);
        let new = Folder::named(&at("a/new")).unwrap();
        assert_eq!(fs::metadata(new.path()).unwrap().mode() & 0o7777, 0o700);
        drop(new);
        assert!(at("a/new").exists(), "it was named to be kept");
        fs::create_dir(at("there")).unwrap();
        std::os::unix::fs::symlink("there", at("link")).unwrap();
        let refused = |path: &Path| Folder::named(path).map(drop).unwrap_err().to_string();
        for (mode, good) in [(0o755, true), (0o775, false), (0o757, false), (0o1777, false), (0o700, true)] {
            fs::set_permissions(at("there"), Permissions::from_mode(mode)).unwrap();
            match Folder::named(&at("there")) {
                Ok(_) => assert!(good, "{mode:o}"),
                Err(error) => assert!(!good && error.to_string().contains("others may write"), "{mode:o}: {error}"),
            }
        }
        for link in ["link", "link/"] {
            assert!(refused(&at(link)).contains("is a link"));
        }
        fs::write(at("file"), "").unwrap();
        assert!(refused(&at("file")).contains("failed to make"));
        // Root gives one away; who is not root has none of root's.
        let others = if geteuid().is_root() { at("there") } else { PathBuf::from("/usr") };
        if geteuid().is_root() {
            std::os::unix::fs::chown(&others, Some(12345), None).unwrap();
        }
        assert!(refused(&others).contains(" belongs to user "));
    }
}
