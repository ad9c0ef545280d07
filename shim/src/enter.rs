//! The straight line from a fresh exec to a confined process at its gate. The order is the security argument:
//! namespaces, root, mounts, pivot; then rules opened as root in the new root; limits; ids; no_new_privs; Landlock;
//! seccomp; read back; fork; report.
//!
//! In: an [`Order`]. Out: never returns when all went well. Must not: reorder.

use std::{
    convert::Infallible,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use molt_confine::{parent::arm_death_signal, root};
use molt_core::launch::{FromShim, Launch, NAMESPACES, ProcMode, Report};
use molt_sys::process::{Fork, exit_now, fork, unshare_namespaces};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    process::{PidfdFlags, Signal, fchdir, getpid, pidfd_open, set_parent_process_death_signal, setsid, umask},
    thread::UnshareFlags,
};

use crate::{
    check, confine, init,
    planted::{self, Wall, left_out},
    populate, report, spawn,
    step::{At as _, Step, refuse},
    takeover::Order,
};

/// Runs the whole order: the launcher half here, the rest in the forked init.
pub(crate) fn launch(control: &OwnedFd, order: Order) -> Step<Infallible> {
    set_parent_process_death_signal(Some(Signal::KILL)).at("pdeathsig", "launcher")?;
    umask(Mode::from_raw_mode(0o022));
    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if left_out(Wall::PidNamespace) || left_out(Wall::KillGroup) {
        namespaces -= UnshareFlags::NEWPID;
    }
    unshare_namespaces(namespaces).at("unshare", "mount, pid, ipc, uts")?;
    let launcher = pidfd_open(getpid(), PidfdFlags::empty()).at("pidfd_open", "launcher")?;
    match fork().at("fork", "init")? {
        Fork::Parent(child) => {
            let pidfd = pidfd_open(child, PidfdFlags::empty()).at("pidfd_open", "init")?;
            report::send(control, &FromShim::Forked, &[pidfd.as_fd()]).at("sendmsg", "forked")?;
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
    let Order { launch, root, stdin, stdout, stderr, gate, exec, notify, door, late, proc } = order;

    let mut report = Report::default();
    confine::limits::score(&launch, &mut report);
    root::attach(&root)?;
    populate::populate(&root, &launch, &late, proc.as_ref(), [notify.as_ref(), door.as_ref()])?;
    drop((late, proc, notify, door));
    root::pivot(root)?;
    // The init itself has nothing to say but on its control socket; it must not hold the container's own streams.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).at("open", "/dev/null")?;
    rustix::stdio::dup2_stdout(&null).at("dup2", "stdout")?;
    rustix::stdio::dup2_stderr(&null).at("dup2", "stderr")?;
    drop(null);
    let namespaces: Vec<OwnedFd> = NAMESPACES.iter().map(|name| namespace(name)).collect::<Step<_>>()?;

    planted::spoil()?;
    if launch.proc == ProcMode::Carried {
        report.degraded.push("no fresh /proc: the kernel refuses one here, the supervisor's is shown read-only".into());
    }
    confine(control, &launch, &mut report)?;
    work_in(&launch.cwd)?;
    let program = check::program(&launch)?;

    let streams = spawn::Streams { stdin, stdout, stderr };
    let main = spawn::workload(&launch, &program, &streams, gate, exec)?;
    let held: Vec<BorrowedFd<'_>> = namespaces.iter().map(OwnedFd::as_fd).collect();
    report::send(control, &FromShim::Armed(Box::new(report)), &held).at("sendmsg", "armed")?;
    drop(held);
    drop((namespaces, streams));
    init::run(control, &launch, main)
}

/// What a process that is to join this generation needs; PID 1 cannot get at it without ptrace rights.
fn namespace(name: &str) -> Step<OwnedFd> {
    let path = format!("/proc/self/ns/{name}");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at("open", &path)
}

/// The working directory, which is the image's to name: links lead anywhere in the root, but none of `/proc` (CVE-2024-21626).
fn work_in(path: &str) -> Step<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS).at("chdir", path)?;
    fchdir(&folder).at("chdir", path)
}

/// Everything that takes rights away.
fn confine(control: &OwnedFd, launch: &Launch, report: &mut Report) -> Step<()> {
    if !launch.hostname.is_empty() {
        rustix::system::sethostname(launch.hostname.as_bytes()).at("sethostname", &launch.hostname)?;
    }
    let domain = confine::landlock::prepare(launch.confinement.landlock.as_ref(), report)?;
    confine::limits::apply(launch, report)?;
    let domain = if left_out(Wall::NoNewPrivs) {
        // Without it only root may enter them.
        enclose(domain, launch)?;
        None
    } else {
        Some(domain)
    };
    confine::ids::assume(&launch.identity, report)?;
    arm_death_signal(control)?;
    // What it says is made when it is read, with ids as whoever opened it has them: in the user namespace of `assume`.
    let mut status = std::fs::File::open("/proc/self/status")
        .map_err(|error| refuse("status", format!("/proc/self/status: {error}")))?;
    let guarded = domain.as_ref().and_then(confine::landlock::Domain::guarded);
    if let Some(domain) = domain {
        enclose(domain, launch)?;
    }
    report::read_back(&mut status, report, launch.confinement.seccomp.len(), guarded)?;
    planted::lie(launch, report);
    Ok(())
}

/// no_new_privs, Landlock, seccomp.
fn enclose(domain: confine::landlock::Domain, launch: &Launch) -> Step<()> {
    if !left_out(Wall::NoNewPrivs) {
        rustix::thread::set_no_new_privs(true).at("prctl", "no_new_privs")?;
    }
    confine::landlock::enforce(domain)?;
    if left_out(Wall::Seccomp) {
        return Ok(());
    }
    for (number, program) in launch.confinement.seccomp.iter().enumerate() {
        molt_sys::sandbox::load_filter(program).at("seccomp", format!("filter {number}"))?;
    }
    Ok(())
}

/// Waits for the end of a process.
pub(crate) fn wait_readable(pidfd: &OwnedFd) -> Step<()> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            result => return result.map(drop).at("poll", "launcher"),
        }
    }
}
