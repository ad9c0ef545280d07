//! What every root needs and no image may bring: `/proc` of the own PID namespace, a small `/dev`, `/tmp`,
//! `/run/molt`; and the mounts that could not be attached before.
//!
//! In: the attached root, by descriptor; PID 1's `/dev`, by path (this process still has the old root). Out: mounts.
//! Must not: resolve a path of the image except in-root, follow a symlink at a mount point, or trust a node that is not
//! the device it claims to be.

use std::os::fd::OwnedFd;

use molt_core::launch::{Failure, Launch, ProcMode};
use molt_sys::{
    mount::{Attributes, Propagation, set_attributes},
    mountpoint::{self, Kind, Problem},
};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxFlags, fstat, major, minor, mkdirat, openat,
        openat2, statx, symlinkat,
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
/// `/proc` files that show the host or command the kernel, and folders that do: hidden, or made read-only. What
/// containerd, podman and docker hide, and `sysrq-trigger`, which they make read-only.
const MASKED_FILES: [&str; 9] = [
    "interrupts",
    "kcore",
    "keys",
    "key-users",
    "latency_stats",
    "timer_list",
    "timer_stats",
    "sched_debug",
    "sysrq-trigger",
];
const MASKED_FOLDERS: [&str; 3] = ["acpi", "asound", "scsi"];
const READ_ONLY: [&str; 4] = ["bus", "fs", "irq", "sys"];
/// The same below `/sys`, where the container has one: firmware tables, and what tells how hard the processor works, by which
/// secrets of others can be guessed.
const MASKED_SYS: [&str; 3] = ["firmware", "dev/block", "devices/virtual/powercap"];
const PROCESSORS: &str = "devices/system/cpu";

/// Puts everything in place below `root`.
pub(crate) fn populate(
    root: &OwnedFd,
    launch: &Launch,
    late: &[OwnedFd],
    proc: Option<&OwnedFd>,
    sockets: [Option<&OwnedFd>; 2],
) -> Step<()> {
    for (mount, tree) in launch.late_mounts.iter().zip(late) {
        let folder = FileType::from_raw_mode(fstat(tree).at("fstat", &mount.target)?.st_mode) == FileType::Directory;
        let place = target(root, mount.target.trim_matches('/'), if folder { Kind::Folder } else { Kind::File })?;
        attach(tree, &place, &mount.target)?;
    }
    match (launch.proc, proc) {
        (ProcMode::Fresh, _) => fresh_proc(root)?,
        (ProcMode::Carried, Some(tree)) => {
            attach(tree, &target(root, "proc", Kind::Folder)?, "/proc")?;
            // It is read-only throughout already.
            mask_proc(tree, &names(tree).at("list", "/proc")?)?;
        }
        (ProcMode::Carried, None) => return Err(refuse("proc", "no tree to carry")),
    }
    mask_sys(root)?;
    dev(root)?;
    if !is_mount(root, "tmp")? {
        let tmp = tmpfs("tmp", "1777", None, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;
        attach(&tmp, &target(root, "tmp", Kind::Folder)?, "/tmp")?;
    }
    run(root, sockets)
}

fn fresh_proc(root: &OwnedFd) -> Step<()> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).at("fsopen", "proc")?;
    fsconfig_create(&context).at("fsconfig", "proc")?;
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).at("fsmount", "proc")?;
    attach(&proc, &target(root, "proc", Kind::Folder)?, "/proc")?;
    // What this kernel has is decided once; after that, not to find something is an error and not a reason to leave it
    // as it is.
    let there = names(&proc).at("list", "/proc")?;
    mask_proc(&proc, &there)?;
    for name in READ_ONLY.into_iter().filter(|name| is_in(&there, name)) {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone = open_tree(&proc, name, flags).at("open_tree", name)?;
        set_attributes(&clone, Attributes::RDONLY, Propagation::Keep).at("mount_setattr", name)?;
        attach(&clone, &inside(&proc, name)?, name)?;
    }
    Ok(())
}

/// Hides what is there of what shows the host; what is hidden already is hidden once more.
fn mask_proc(proc: &OwnedFd, there: &[Vec<u8>]) -> Step<()> {
    for name in MASKED_FILES.into_iter().filter(|name| is_in(there, name)) {
        attach(&device("null", 1, 3)?, &inside(proc, name)?, name)?;
    }
    for name in MASKED_FOLDERS.into_iter().filter(|name| is_in(there, name)) {
        mask(&inside(proc, name)?, name)?;
    }
    Ok(())
}

fn is_in(names: &[Vec<u8>], name: &str) -> bool {
    names.iter().any(|entry| entry == name.as_bytes())
}

/// Names in a folder that is held by a mount's descriptor.
fn names(mount: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let folder = openat(mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Raw: readdir(3) and what imitates it take an ENOENT for the end of the list.
    let mut buffer = Vec::with_capacity(16 << 10);
    let mut listing = RawDir::new(folder, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = listing.next() {
        names.push(entry?.file_name().to_bytes().to_vec());
    }
    Ok(names)
}

/// Hides a folder behind an empty one.
fn mask(place: &OwnedFd, name: &str) -> Step<()> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    attach(&tmpfs("mask", "0555", Some("4k"), flags)?, place, name)
}

/// Hides parts of a carried `/sys`; a folder of that name that the image has is its own.
fn mask_sys(root: &OwnedFd) -> Step<()> {
    if !is_in(&names(root).at("list", "/")?, "sys") {
        return Ok(());
    }
    // Listed, so that not to find it is an error. A link of the image is no mount.
    let sys = inside(root, "sys")?;
    if mountpoint::same_mount(root, &sys).at("statx", "/sys")? {
        return Ok(());
    }
    for path in MASKED_SYS {
        if let Some(place) = below(&sys, path)? {
            mask(&place, path)?;
        }
    }
    let Some(processors) = below(&sys, PROCESSORS)? else { return Ok(()) };
    for name in names(&processors).at("list", PROCESSORS)? {
        let Ok(name) = String::from_utf8(name) else { continue };
        let number = name.strip_prefix("cpu").is_some_and(|rest| rest.parse::<u32>().is_ok());
        if number && let Some(place) = below(&inside(&processors, &name)?, "thermal_throttle")? {
            mask(&place, &name)?;
        }
    }
    Ok(())
}

/// A folder some steps below another, if each step is listed.
fn below(folder: &OwnedFd, path: &str) -> Step<Option<OwnedFd>> {
    let mut here = rustix::io::fcntl_dupfd_cloexec(folder, 0).at("dup", path)?;
    for name in path.split('/') {
        if !is_in(&names(&here).at("list", path)?, name) {
            return Ok(None);
        }
        here = inside(&here, name)?;
    }
    Ok(Some(here))
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

/// A private `/run/molt`, whatever is carried at `/run`: nothing of the supervisor shows through, and the sockets of this
/// run, notify and the workload's own, have a place.
fn run(root: &OwnedFd, sockets: [Option<&OwnedFd>; 2]) -> Step<()> {
    // A mount of the container's own at /run is no image's trick, and gets the folder.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(run) = openat2(root, "run", flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
        && !mountpoint::same_mount(root, &run).at("statx", "/run")?
    {
        match mkdirat(&run, "molt", Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(Errno::ROFS) if sockets.iter().all(Option::is_none) => return Ok(()),
            Err(errno) => return Err(errno).at("mkdir", "/run/molt"),
        }
    }
    let place = target(root, "run/molt", Kind::Folder)?;
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let folder = tmpfs("molt", "0755", Some("4k"), flags)?;
    attach(&folder, &place, "/run/molt")?;
    for (name, socket) in ["notify", "workload.sock"].into_iter().zip(sockets) {
        if let Some(socket) = socket {
            attach(socket, &target(&folder, name, Kind::File)?, name)?;
        }
    }
    Ok(())
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

/// A mount point below `root`; what an image has in its way is replaced on the root's own mount.
fn target(root: &OwnedFd, path: &str, kind: Kind) -> Step<OwnedFd> {
    mountpoint::find_or_make(root, path, kind).map_err(|problem| match problem {
        Problem::Kernel(errno) => Failure { errno: errno.raw_os_error(), ..refuse("mount point", format!("/{path}")) },
        problem => refuse("mount point", format!("/{path}: {problem}")),
    })
}

fn inside(folder: &OwnedFd, name: &str) -> Step<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(folder, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS).at("open", name)
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
