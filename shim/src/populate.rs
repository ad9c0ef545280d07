//! What every root needs and no image may bring: `/proc` of the own PID namespace, a small `/dev`, `/tmp`,
//! `/run/molt`; and the mounts that could not be attached before.
//!
//! In: the attached root, by descriptor; PID 1's `/dev`, by path (this process still has the old root). Out: mounts.
//! Must not: resolve a path of the image except in-root, follow a symlink at a mount point, or trust a node that is not
//! the device it claims to be.

use std::os::fd::OwnedFd;

use molt_core::launch::{Launch, ProcMode};
use molt_sys::mount::{Attributes, Propagation, set_attributes};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstat, major, minor, mkdirat, openat, openat2,
        statx, symlinkat,
    },
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
        fsmount, fsopen, move_mount, open_tree,
    },
};

use crate::step::{At as _, Step, refuse};

/// Device nodes of every generation: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// `/proc` files that show the host or command the kernel, and folders that do: hidden, or made read-only.
const MASKED_FILES: [&str; 8] =
    ["kcore", "keys", "key-users", "latency_stats", "timer_list", "timer_stats", "sched_debug", "sysrq-trigger"];
const MASKED_FOLDERS: [&str; 2] = ["acpi", "scsi"];
const READ_ONLY: [&str; 4] = ["bus", "fs", "irq", "sys"];

/// Puts everything in place below `root`.
pub(crate) fn populate(
    root: &OwnedFd,
    launch: &Launch,
    late: &[OwnedFd],
    proc: Option<&OwnedFd>,
    notify: Option<&OwnedFd>,
) -> Step<()> {
    for (mount, tree) in launch.late_mounts.iter().zip(late) {
        let target = target(root, mount.target.trim_start_matches('/'), Kind::Any)?;
        attach(tree, &target, &mount.target)?;
    }
    match (launch.proc, proc) {
        (ProcMode::Fresh, _) => fresh_proc(root)?,
        (ProcMode::Carried, Some(tree)) => {
            attach(tree, &target(root, "proc", Kind::Folder)?, "/proc")?;
        }
        (ProcMode::Carried, None) => return Err(refuse("proc", "no tree to carry")),
    }
    dev(root)?;
    if !is_mount(root, "tmp")? {
        let tmp = tmpfs("tmp", "1777", None, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;
        attach(&tmp, &target(root, "tmp", Kind::Folder)?, "/tmp")?;
    }
    run(root, notify)
}

fn fresh_proc(root: &OwnedFd) -> Step<()> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).at("fsopen", "proc")?;
    fsconfig_create(&context).at("fsconfig", "proc")?;
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).at("fsmount", "proc")?;
    attach(&proc, &target(root, "proc", Kind::Folder)?, "/proc")?;
    for name in MASKED_FILES {
        if let Some(place) = existing(&proc, name)? {
            attach(&device("null", 1, 3)?, &place, name)?;
        }
    }
    for name in MASKED_FOLDERS {
        if let Some(place) = existing(&proc, name)? {
            let empty = tmpfs("mask", "0555", Some("4k"), flags | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            attach(&empty, &place, name)?;
        }
    }
    for name in READ_ONLY {
        if let Some(place) = existing(&proc, name)? {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let clone = open_tree(&proc, name, flags).at("open_tree", name)?;
            set_attributes(&clone, Attributes::RDONLY, Propagation::Keep).at("mount_setattr", name)?;
            attach(&clone, &place, name)?;
        }
    }
    Ok(())
}

fn dev(root: &OwnedFd) -> Step<()> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = tmpfs("dev", "0755", Some("64k"), flags)?;
    attach(&dev, &target(root, "dev", Kind::Folder)?, "/dev")?;
    for (name, major, minor) in DEVICES {
        match device(name, major, minor) {
            Ok(node) => attach(&node, &target(&dev, name, Kind::File)?, name)?,
            // A container without a terminal may lack it; the others must be there.
            Err(failure) if name != "tty" => return Err(failure),
            Err(_) => {}
        }
    }
    for (name, to) in LINKS {
        symlinkat(to, &dev, name).at("symlink", name)?;
    }
    let nosuid_noexec = flags;
    let pts = devpts(nosuid_noexec)?;
    attach(&pts, &target(&dev, "pts", Kind::Folder)?, "/dev/pts")?;
    let shm = tmpfs("shm", "1777", Some("64m"), nosuid_noexec | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    attach(&shm, &target(&dev, "shm", Kind::Folder)?, "/dev/shm")?;
    if let Ok(context) = fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC)
        && fsconfig_create(&context).is_ok()
        && let Ok(queue) =
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, nosuid_noexec | MountAttrFlags::MOUNT_ATTR_NODEV)
    {
        attach(&queue, &target(&dev, "mqueue", Kind::Folder)?, "/dev/mqueue")?;
    }
    Ok(())
}

fn devpts(flags: MountAttrFlags) -> Step<OwnedFd> {
    // gid 5 is `tty` everywhere; where it is not mapped, the terminal's group is the opener's.
    let make = |gid: Option<&str>| -> rustix::io::Result<OwnedFd> {
        let context = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "mode", "0620")?;
        fsconfig_set_string(&context, "ptmxmode", "0666")?;
        if let Some(gid) = gid {
            fsconfig_set_string(&context, "gid", gid)?;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    };
    make(Some("5")).or_else(|_| make(None)).at("fsmount", "devpts")
}

/// A private `/run/molt`, whatever is carried at `/run`: nothing of the supervisor shows through, and the notify socket
/// has a place.
fn run(root: &OwnedFd, notify: Option<&OwnedFd>) -> Step<()> {
    let place = match target(root, "run/molt", Kind::Folder) {
        Ok(place) => place,
        Err(failure) if notify.is_none() && failure.errno == Errno::ROFS.raw_os_error() => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let folder = tmpfs("molt", "0755", Some("4k"), flags)?;
    attach(&folder, &place, "/run/molt")?;
    match notify {
        Some(socket) => attach(socket, &target(&folder, "notify", Kind::File)?, "/run/molt/notify"),
        None => Ok(()),
    }
}

fn tmpfs(name: &str, mode: &str, size: Option<&str>, flags: MountAttrFlags) -> Step<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).at("fsopen", "tmpfs")?;
    fsconfig_set_string(&context, "source", name).at("fsconfig", "source")?;
    fsconfig_set_string(&context, "mode", mode).at("fsconfig", "mode")?;
    if let Some(size) = size {
        fsconfig_set_string(&context, "size", size).at("fsconfig", "size")?;
    }
    fsconfig_create(&context).at("fsconfig", format!("tmpfs {name}"))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).at("fsmount", format!("tmpfs {name}"))
}

/// A clone of one of PID 1's device nodes, checked to be that device.
fn device(name: &str, want_major: u32, want_minor: u32) -> Step<OwnedFd> {
    let path = format!("/dev/{name}");
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let node = open_tree(CWD, &path, flags).at("open_tree", &path)?;
    let stat = fstat(&node).at("fstat", &path)?;
    let right = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (want_major, want_minor);
    if right { Ok(node) } else { Err(refuse("dev", format!("{path} is not device {want_major}:{want_minor}"))) }
}

#[derive(PartialEq, Clone, Copy)]
enum Kind {
    Folder,
    File,
    Any,
}

/// A mount point below `root`, made if it is missing. Parents may be symlinks inside the root, the last part may not.
fn target(root: &OwnedFd, path: &str, kind: Kind) -> Step<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent_fd = match openat2(root, parent, folder, Mode::empty(), resolve) {
        Err(Errno::NOENT) if kind != Kind::Any => target(root, parent, Kind::Folder)?,
        result => result.at("mount point", format!("/{parent}"))?,
    };
    let leaf = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || openat2(&parent_fd, name, leaf, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS);
    let found = match (open(), kind) {
        (Err(Errno::NOENT), Kind::Folder) => {
            mkdirat(&parent_fd, name, Mode::from_raw_mode(0o755)).at("mkdir", format!("/{path}"))?;
            open()
        }
        (Err(Errno::NOENT), Kind::File) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            drop(openat(&parent_fd, name, flags, Mode::from_raw_mode(0o644)).at("create", format!("/{path}"))?);
            open()
        }
        (result, _) => result,
    };
    let found = found.at("mount point", format!("/{path}"))?;
    let is_folder =
        FileType::from_raw_mode(fstat(&found).at("fstat", format!("/{path}"))?.st_mode) == FileType::Directory;
    if kind != Kind::Any && is_folder != (kind == Kind::Folder) {
        return Err(refuse("mount point", format!("/{path} is of the wrong type")));
    }
    Ok(found)
}

fn existing(folder: &OwnedFd, name: &str) -> Step<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(folder, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno).at("open", name),
    }
}

fn is_mount(root: &OwnedFd, path: &str) -> Step<bool> {
    let id = |fd: &OwnedFd, path: &str| {
        statx(fd, path, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id)
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(id(&fd, "").at("statx", path)? != id(root, "").at("statx", "/")?),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno).at("open", path),
    }
}

fn attach(tree: &OwnedFd, place: &OwnedFd, what: &str) -> Step<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", place, "", flags).at("move_mount", what)
}
