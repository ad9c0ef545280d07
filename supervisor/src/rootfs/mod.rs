//! Putting a generation's root together, as detached mounts: overlay, carried mounts, state.
//!
//! In: layer folders and the generation's upper, by descriptor; PID 1's own mounts. Out: one tree, by descriptor, which
//! no path leads to. Must not: resolve a path of an image except in-root; mount anything where PID 1 itself would see it
//! (before Linux 6.15 apart, see `compat`).

pub(crate) mod carry;
mod compat;
mod overlay;
pub(crate) mod place;
pub(crate) mod table;
pub(crate) mod users;

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc};

use molt_core::{code::Code, generation::Record};
use molt_sys::mount::{Attributes, Propagation, set_attributes};
use rustix::{
    fs::CWD,
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

pub(crate) use compat::remember_pretended_kernel;

use crate::store::Store;

/// Why a root could not be put together.
#[derive(Debug, thiserror::Error)]
#[error("{step} {about}: {why}")]
pub(crate) struct RootError {
    /// Which step.
    pub(crate) step: &'static str,
    /// What it was about.
    pub(crate) about: String,
    /// The kernel's answer, or ours.
    pub(crate) why: String,
    /// Stable code.
    pub(crate) code: Code,
}

impl RootError {
    pub(crate) fn new(step: &'static str, about: impl Into<String>, why: impl std::fmt::Display, code: Code) -> Self {
        Self { step, about: about.into(), why: why.to_string(), code }
    }
}

/// What is said of a root that could be had read-only alone.
pub(crate) const FULL: &str = "the store's disk is full: all but the state and carried mounts is read-only; make room, and its next start can write";

/// The same, where nothing can be written at all.
pub(crate) const READ_ONLY: &str = "the store's file system is read-only: all but the state and carried mounts is, too; mend it or mount it read-write, and its next start can write";

/// The overlay (or bind) that is a generation's root, before anything is mounted on it. As long as it is held, the last
/// process of the generation can end without the file system below being flushed.
#[derive(Debug)]
pub(crate) struct Rootfs {
    mount: OwnedFd,
    anchor: Option<compat::Anchor>,
    /// Why it is none that can be written to.
    pub(crate) read_only: Option<&'static str>,
}

/// Holds a root until a worker lets go of it. The last one to let go takes the root apart, for which the kernel may write
/// a file system back: the thread that serves must not be that one, whichever way its future ends.
#[derive(Debug)]
pub(crate) struct LetGoAside(Option<Arc<Rootfs>>);

impl LetGoAside {
    /// Of `rootfs`; to be dropped after every other reference of this thread.
    pub(crate) fn of(rootfs: &Arc<Rootfs>) -> Self {
        Self(Some(Arc::clone(rootfs)))
    }
}

impl Drop for LetGoAside {
    fn drop(&mut self) {
        if let Some(rootfs) = self.0.take() {
            crate::aside::start("let go", move || drop(rootfs));
        }
    }
}

/// One kept folder.
#[derive(Debug)]
pub(crate) struct StateMount {
    /// Where it is shown.
    pub(crate) path: String,
    /// PID 1's own mount of it, held since boot.
    pub(crate) source: OwnedFd,
}

/// What every generation's root is made of, held since boot.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Kept folders.
    pub(crate) state: Vec<StateMount>,
    /// Carried mounts, outer before inner.
    pub(crate) carried: Vec<carry::Carried>,
    /// PID 1's root, for generation 0.
    pub(crate) own_root: OwnedFd,
    /// Folder below which mounts are anchored on kernels that need it.
    pub(crate) anchors: PathBuf,
}

/// A tree with everything attached that this kernel lets PID 1 attach.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The detached root mount.
    pub(crate) root: OwnedFd,
    /// What the init must attach itself: target and mount.
    pub(crate) late: Vec<(String, OwnedFd)>,
}

/// Mounts the overlay of `record`: its layers, and its own upper folder. What `ran` before is mounted on a full disk, too.
pub(crate) fn mount(
    store: Option<&Store>,
    parts: &Parts,
    record: &Record,
    ran: bool,
) -> Result<Arc<Rootfs>, RootError> {
    let Some(store) = store else {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let mount = open_tree(&parts.own_root, "", flags)
            .map_err(|errno| RootError::new("clone", "the container's root", errno, Code::Unsupported))?;
        apart(&mount)?;
        return Ok(Arc::new(Rootfs { mount, anchor: None, read_only: None }));
    };
    let (mount, read_only) = overlay::mount(store, parts, record, ran)?;
    let (mount, anchor) = compat::anchor(mount, &parts.anchors, record.generation)?;
    Ok(Arc::new(Rootfs { mount, anchor, read_only }))
}

impl Rootfs {
    /// A fresh tree on this root: carried mounts and state attached.
    pub(crate) fn tree(&self, parts: &Parts) -> Result<Tree, RootError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let root = match &self.anchor {
            Some(anchor) => open_tree(CWD, anchor.path(), flags & !OpenTreeFlags::AT_EMPTY_PATH),
            None => open_tree(&self.mount, "", flags),
        };
        let root = root.map_err(|errno| RootError::new("clone", "the generation's root", errno, Code::Internal))?;
        apart(&root)?;
        let mut late = Vec::new();
        // The state before what it does not lie in: where it is mounted, no link of the image leads another mount.
        let (holds_state, others): (Vec<_>, Vec<_>) = parts
            .carried
            .iter()
            .partition(|carried| parts.state.iter().any(|state| table::within(&state.path, &carried.path)));
        let carry = |carried: &carry::Carried, late: &mut Vec<(String, OwnedFd)>| {
            let target = place::for_carried(&root, &carried.path, carried.kind)?;
            compat::attach(carried.clone_mount()?, &target, &carried.path, late)
        };
        holds_state.into_iter().try_for_each(|carried| carry(carried, &mut late))?;
        for state in &parts.state {
            let target = place::for_state(&root, &state.path)?;
            let mount = clone_state(state)?;
            compat::attach(mount, &target, &state.path, &mut late)?;
        }
        others.into_iter().try_for_each(|carried| carry(carried, &mut late))?;
        Ok(Tree { root, late })
    }

    /// The root itself, to look things up in before it runs.
    pub(crate) fn look(&self) -> &OwnedFd {
        &self.mount
    }
}

/// What is mounted on it stays on it: a clone is in its original's peer group, and PID 1's root may be a shared mount.
fn apart(mount: &OwnedFd) -> Result<(), RootError> {
    set_attributes(mount, Attributes::NOSUID.and(Attributes::NODEV), Propagation::Private)
        .map_err(|error| RootError::new("set apart", "the generation's root", error.errno, Code::Unsupported))
}

fn clone_state(state: &StateMount) -> Result<OwnedFd, RootError> {
    let fail = |step, errno: Errno| RootError::new(step, &state.path, errno, Code::StateUnmountable);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(&state.source, "", flags).map_err(|errno| fail("clone the mount of", errno))?;
    set_attributes(&mount, Attributes::NOSUID.and(Attributes::NODEV), Propagation::Slave)
        .map_err(|error| fail("set nosuid,nodev on", error.errno))?;
    Ok(mount)
}
