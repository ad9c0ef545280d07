//! Tries what an update needs of the kernel and of the runtime that confines us, and says how it went.
//!
//! In: `molt-kernel-probe FOLDER`, an empty folder on a volume. Out: a line `NAME: ok` or
//! `NAME: ERRNO` each, exit code 1 if one failed. It shares no code with the product, so that a
//! failure here accuses the machine, and a failure there the product. Must not: change the caller's
//! namespaces.

use std::env;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::process::{fchdir, pivot_root};

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--inner", folder] => inner(Path::new(folder)),
        [folder] => outer(Path::new(folder)),
        _ => {
            eprintln!("usage: molt-kernel-probe FOLDER");
            return ExitCode::from(2);
        }
    };
    if result.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn step<T>(name: &str, result: Result<T, impl std::fmt::Display>) -> Option<T> {
    match result {
        Ok(value) => {
            println!("{name}: ok");
            Some(value)
        }
        Err(error) => {
            println!("{name}: {error}");
            None
        }
    }
}

fn outer(folder: &Path) -> Option<()> {
    let folders = ["lower", "upper", "work", "state"].map(|name| folder.join(name));
    for path in &folders {
        step("make folder", fs::create_dir_all(path))?;
    }
    for name in ["proc", "sandbox"] {
        step("make folder", fs::create_dir_all(folders[0].join(name)))?;
    }
    // Afterwards it would be the path in a mount that the new namespace does not have.
    let program = step("own program", env::current_exe())?;
    let namespaces =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    step("new mount, PID, IPC and UTS namespaces", nix::sched::unshare(namespaces))?;
    step("private propagation", mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC))?;
    let status = step("PID 1 of a nested namespace", Command::new(program).arg("--inner").arg(folder).status())?;
    status.success().then_some(())
}

fn overlay(folder: &Path) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, name) in [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")] {
        fsconfig_set_string(context.as_fd(), key, folder.join(name))?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)
}

fn inner(folder: &Path) -> Option<()> {
    let root: PathBuf = folder.join("root");
    step("make folder", fs::create_dir_all(&root))?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let state = step("open_tree of the state", open_tree(CWD, folder.join("state"), clone))?;
    let tree = step("overlay by fsopen", overlay(folder))?;
    let from_path = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    step("move_mount of the root", move_mount(tree.as_fd(), "", CWD, &root, from_path))?;
    step("move_mount of the state", move_mount(state.as_fd(), "", CWD, root.join("sandbox"), from_path))?;
    step(
        "fresh /proc",
        mount("proc", root.join("proc"), "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None),
    )?;
    let top = step(
        "open the new root",
        rustix::fs::open(&root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()),
    )?;
    step("enter it", fchdir(&top))?;
    step("pivot_root", pivot_root(".", "."))?;
    step("detach the old root", unmount(".", UnmountFlags::DETACH))?;
    let own = step("read the fresh /proc", fs::read_link("/proc/self"))?;
    step("be PID 1 there", if own == Path::new("1") { Ok(()) } else { Err(format!("{}", own.display())) })?;
    step("write to the state", fs::write("/sandbox/mark", "here"))
}
