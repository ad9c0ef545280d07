//! The straight line from a fresh exec to a confined process at its gate. The order is the security argument:
//! namespaces, root, mounts, pivot; then rules opened as root in the new root; limits; ids; no_new_privs; Landlock;
//! seccomp; read back; fork; report.
//!
//! In: an [`Order`]. Out: never returns when all went well. Must not: reorder.

use std::{
    convert::Infallible,
    os::fd::{AsFd as _, OwnedFd},
};

use molt_core::launch::{FromShim, Launch, ProcMode, Report};
use molt_sys::process::{Fork, exit_now, fork, unshare_namespaces};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, mount_move, move_mount, unmount},
    process::{
        PidfdFlags, Signal, chdir, chroot, fchdir, getpid, pidfd_open, pivot_root, set_parent_process_death_signal,
        setsid, umask,
    },
    thread::UnshareFlags,
};

use crate::{
    check, confine, init, populate, report, spawn,
    step::{At as _, Step, refuse},
    takeover::Order,
};

/// Runs the whole order: the launcher half here, the rest in the forked init.
pub(crate) fn launch(control: &OwnedFd, order: Order) -> Step<Infallible> {
    set_parent_process_death_signal(Some(Signal::KILL)).at("pdeathsig", "launcher")?;
    umask(Mode::from_raw_mode(0o022));
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    unshare_namespaces(namespaces).at("unshare", "mount, pid, ipc, uts")?;
    let launcher = pidfd_open(getpid(), PidfdFlags::empty()).at("pidfd_open", "launcher")?;
    match fork().at("fork", "init")? {
        Fork::Parent(child) => {
            let pidfd = pidfd_open(child, PidfdFlags::empty()).at("pidfd_open", "init")?;
            report::send(control, &FromShim::Forked, &[pidfd.as_fd()]);
            exit_now(0)
        }
        Fork::Child => {}
    }
    // The init is adopted by PID 1 when the launcher is a zombie, which its pidfd shows only after the adoption; a
    // death signal armed earlier would be raised by that very exit.
    wait_readable(&launcher)?;
    drop(launcher);
    arm_death_signal(control)?;
    setsid().at("setsid", "")?;
    let Order { launch, root, stdin, stdout, stderr, gate, exec, notify, late, proc } = order;

    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).at("mount", "/ as slave")?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at("move_mount", "root")?;
    populate::populate(&root, &launch, &late, proc.as_ref(), notify.as_ref())?;
    drop((late, proc, notify));
    pivot(root)?;
    // The init itself has nothing to say but on its control socket; it must not hold the container's own streams.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).at("open", "/dev/null")?;
    rustix::stdio::dup2_stdout(&null).at("dup2", "stdout")?;
    rustix::stdio::dup2_stderr(&null).at("dup2", "stderr")?;
    drop(null);
    let namespace = rustix::fs::open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .at("open", "/proc/self/ns/mnt")?;

    let mut report = Report::default();
    if launch.proc == ProcMode::Carried {
        report.degraded.push("no fresh /proc: the kernel refuses one here, the supervisor's is shown read-only".into());
    }
    confine(control, &launch, &mut report)?;
    chdir(launch.cwd.as_str()).at("chdir", &launch.cwd)?;
    let program = check::program(&launch)?;

    let streams = spawn::Streams { stdin, stdout, stderr };
    let main = spawn::workload(&launch, &program, &streams, gate, exec)?;
    report::send(control, &FromShim::Armed(Box::new(report)), &[namespace.as_fd()]);
    drop((namespace, streams));
    init::run(control, &launch, main)
}

/// Everything that takes rights away.
fn confine(control: &OwnedFd, launch: &Launch, report: &mut Report) -> Step<()> {
    if !launch.hostname.is_empty() {
        rustix::system::sethostname(launch.hostname.as_bytes()).at("sethostname", &launch.hostname)?;
    }
    let domain = confine::landlock::prepare(launch.confinement.landlock.as_ref(), report)?;
    confine::limits::apply(&launch.limits, launch.oom_score_adj, report)?;
    confine::ids::assume(&launch.identity, report)?;
    arm_death_signal(control)?;
    // What it says is made when it is read, with ids as whoever opened it has them: in the user namespace of `assume`.
    let mut status = std::fs::File::open("/proc/self/status")
        .map_err(|error| refuse("status", format!("/proc/self/status: {error}")))?;
    rustix::thread::set_no_new_privs(true).at("prctl", "no_new_privs")?;
    confine::landlock::enforce(domain, report)?;
    for (number, program) in launch.confinement.seccomp.iter().enumerate() {
        molt_sys::sandbox::load_filter(program).at("seccomp", format!("filter {number}"))?;
    }
    report::read_back(&mut status, report, launch.confinement.seccomp.len())
}

/// KILL when PID 1 dies, and a look whether it already has. An id change clears the signal (prctl(2)), hence twice.
fn arm_death_signal(control: &OwnedFd) -> Step<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).at("pdeathsig", "init")?;
    let mut fds = [PollFd::new(control, PollFlags::empty())];
    let zero = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&zero)).at("poll", "control")?;
    let [control] = &fds;
    if control.revents().intersects(PollFlags::HUP | PollFlags::ERR) {
        return Err(refuse("pdeathsig", "the supervisor is gone"));
    }
    Ok(())
}

fn wait_readable(pidfd: &OwnedFd) -> Step<()> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            result => return result.map(drop).at("poll", "launcher"),
        }
    }
}

/// Makes the mounted tree the root and lets go of the old one. pivot_root(2), "pivot_root(".", ".")".
fn pivot(root: OwnedFd) -> Step<()> {
    fchdir(&root).at("fchdir", "root")?;
    drop(root);
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH).at("umount", "old root")?,
        // Docker's default seccomp profile has no pivot_root, with CAP_SYS_ADMIN or without.
        Err(Errno::PERM | Errno::NOSYS | Errno::INVAL) => {
            match mount_move(".", "/") {
                // It covers "/" already.
                Ok(()) | Err(Errno::INVAL | Errno::LOOP) => {}
                Err(errno) => return Err(errno).at("mount", "move root"),
            }
            chroot(".").at("chroot", "root")?;
        }
        Err(errno) => return Err(errno).at("pivot_root", "root"),
    }
    chdir("/").at("chdir", "/")
}
