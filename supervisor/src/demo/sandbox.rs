//! The demo's sandbox: namespaces, a root made of nothing but `/proc`, a few devices and the demo's folder, and Molt as
//! PID 1 in it.
//!
//! In: the demo's folder. Out: a process whose end is the end of everything in it. Must not: be called once this process
//! has threads; mount anything that outlives it.

use std::{ffi::CString, fs::File, os::fd::AsFd as _, path::Path};

use anyhow::{Context as _, bail};
use molt_sys::process::{Fork, exec, exit_now, fork, unshare_namespaces};
use rustix::{
    fs::{CWD, Mode, OFlags, mkdirat, openat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
    },
    process::{
        Pid, Signal, WaitOptions, chdir, fchdir, getegid, geteuid, kill_process, pivot_root,
        set_parent_process_death_signal, waitpid,
    },
    thread::UnshareFlags,
};

/// The running sandbox; dropping it ends it.
#[derive(Debug)]
pub(super) struct Sandbox {
    pid: Pid,
    ended: std::cell::Cell<bool>,
}

impl Sandbox {
    /// Whether PID 1 is gone.
    pub(super) fn ended(&self) -> bool {
        if !self.ended.get() && matches!(waitpid(Some(self.pid), WaitOptions::NOHANG), Ok(Some(_))) {
            self.ended.set(true);
        }
        self.ended.get()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.ended() {
            return;
        }
        let _ = kill_process(self.pid, Signal::KILL);
        while matches!(waitpid(Some(self.pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    }
}

/// Starts it.
pub(super) fn start(folder: &Path) -> anyhow::Result<Sandbox> {
    for name in ["root", "run", "state", "store"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    // Beside the socket, where nothing is carried into a generation from.
    std::fs::copy("/proc/self/exe", folder.join("run/molt")).context("failed to copy this program")?;
    if geteuid().is_root() {
        let id = crate::rootfs::users::DEFAULT_ID;
        std::os::unix::fs::lchown(folder.join("state"), Some(id), Some(id))?;
    }
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let log = File::from(openat(CWD, folder.join("log"), flags, Mode::from_raw_mode(0o644))?);
    match fork().context("failed to fork")? {
        Fork::Parent(pid) => Ok(Sandbox { pid, ended: std::cell::Cell::new(false) }),
        Fork::Child => {
            let error = match outer(folder, &log) {
                Ok(status) => exit_now(status),
                Err(error) => error,
            };
            let _ = rustix::io::write(log.as_fd(), format!("{error:#}\n").as_bytes());
            exit_now(1)
        }
    }
}

/// Leaves the user's world; its child is PID 1.
fn outer(folder: &Path, log: &File) -> anyhow::Result<i32> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if !geteuid().is_root() {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        unshare_namespaces(UnshareFlags::NEWUSER).context(
            "failed to make a user namespace, and this is not root; allow them (sysctl kernel.unprivileged_userns_clone=1, \
             user.max_user_namespaces, or an AppArmor profile that does), or run it as root",
        )?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1\n"))?;
    }
    unshare_namespaces(namespaces).context("failed to make namespaces")?;
    match fork().context("failed to fork")? {
        Fork::Parent(pid) => loop {
            match waitpid(Some(pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Ok(status.exit_status().unwrap_or(255)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        },
        Fork::Child => {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            let Err(error) = inner(folder, log);
            let _ = rustix::io::write(log.as_fd(), format!("{error:#}\n").as_bytes());
            exit_now(1)
        }
    }
}

/// Builds the root, enters it, becomes Molt.
fn inner(folder: &Path, log: &File) -> anyhow::Result<std::convert::Infallible> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let root = filesystem("tmpfs", flags)?;
    move_mount(&root, "", CWD, folder.join("root"), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    for name in ["proc", "dev", "images", "store", "run", "run/molt", "sandbox", "sandbox/state", "tmp", "etc"] {
        mkdirat(&root, name, Mode::from_raw_mode(0o755))?;
    }
    for (from, to) in [("images", "images"), ("store", "store"), ("run", "run/molt"), ("state", "sandbox/state")] {
        bind(&folder.join(from), &root, to)?;
    }
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(openat(&root, format!("dev/{name}"), flags, Mode::from_raw_mode(0o666))?);
        bind(&Path::new("/dev").join(name), &root, &format!("dev/{name}"))?;
    }
    let proc = filesystem("proc", flags | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    move_mount(&proc, "", &root, "proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fchdir(&root)?;
    pivot_root(".", ".").context("failed to change the root")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(log)?;
    rustix::stdio::dup2_stderr(log)?;
    let words = ["molt", "init", "--spec", "/images/sandbox.yaml", "--store", "/store"];
    let argv: Vec<CString> = words.iter().map(|word| CString::new(*word)).collect::<Result<_, _>>()?;
    let errno = exec(c"/run/molt/molt", &argv, &[]);
    bail!("failed to execute /run/molt/molt: {errno}")
}

fn filesystem(kind: &str, flags: MountAttrFlags) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if kind == "tmpfs" {
        fsconfig_set_string(&context, "mode", "0755")?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

fn bind(from: &Path, root: &std::os::fd::OwnedFd, to: &str) -> anyhow::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    // What is mounted below comes along only where a user namespace insists on it.
    let mount = open_tree(CWD, from, flags)
        .or_else(|_| open_tree(CWD, from, flags | OpenTreeFlags::AT_RECURSIVE))
        .with_context(|| format!("failed to bind {}", from.display()))?;
    move_mount(&mount, "", root, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("failed to bind {} at /{to}", from.display()))
}
