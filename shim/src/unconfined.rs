//! Into a generation that runs, without its confinement: the operator's own command, for `molt exec --unconfined`.
//!
//! In: a document, the generation's namespaces and three streams, from PID 1. Out: a process in these namespaces, run as
//! PID 1's user. The order is the argument: everything of PID 1's is left, capabilities and the way to get them back are
//! given up, and only then there is a process that the workload can see. Must not: look at a path of the image before it
//! is inside; keep a capability that leads out of the mounts, or none at all: one more than the workload has is what keeps
//! a workload of the same user from tracing it (ptrace(2), "access mode checking").

use std::{
    collections::BTreeMap,
    convert::Infallible,
    os::fd::{AsFd as _, OwnedFd},
};

use molt_confine::{capabilities, limits::set};
use molt_core::launch::{FromShim, NAMESPACES, Unconfined};
use molt_sys::process::{Fork, exit_now, fork};
use rustix::{
    fs::Mode,
    io::Errno,
    process::{
        DumpableBehavior, PidfdFlags, Resource, Signal, chdir, getpid, pidfd_open, set_dumpable_behavior,
        set_parent_process_death_signal, umask,
    },
    thread::{
        CapabilitiesSecureBits, CapabilitySet, LinkNameSpaceType, capabilities_secure_bits, move_into_link_name_space,
    },
};

use crate::{
    confine,
    enter::wait_readable,
    report, spawn,
    step::{At as _, Step, refuse},
    takeover,
};

/// What root needs to look after files and processes. None of these mounts, traces, opens by handle, leaves a root, makes
/// devices or reaches the kernel.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// Kinds of [`NAMESPACES`].
const KINDS: [LinkNameSpaceType; NAMESPACES.len()] = [
    LinkNameSpaceType::Mount,
    LinkNameSpaceType::ProcessID,
    LinkNameSpaceType::InterProcessCommunication,
    LinkNameSpaceType::HostNameAndNISDomainName,
];

/// Goes in, forks, and hands the pidfd of the fork to PID 1, which adopts it.
pub(crate) fn enter(control: &OwnedFd) -> Step<Infallible> {
    set_parent_process_death_signal(Some(Signal::KILL)).at("pdeathsig", "launcher")?;
    let (order, namespaces, streams) = receive(control)?;
    umask(Mode::from_raw_mode(0o022));
    set(Resource::Core, 0, "RLIMIT_CORE")?;
    // While /proc is still PID 1's own. Where it cannot be set, the workload's could not be either.
    let _ = std::fs::write("/proc/self/oom_score_adj", order.oom_score_adj.to_string());
    // As a workload without filters, it may have to do with the container's own, which holds nothing of ours.
    let _ = confine::limits::keyring()?;
    for ((namespace, kind), name) in namespaces.iter().zip(KINDS).zip(NAMESPACES) {
        // The mount namespace brings its root and working directory with it. setns(2).
        move_into_link_name_space(namespace.as_fd(), Some(kind)).at("setns", name)?;
    }
    drop(namespaces);
    chdir("/").at("chdir", "/")?;
    give_up()?;
    let launcher = pidfd_open(getpid(), PidfdFlags::empty()).at("pidfd_open", "launcher")?;
    match fork().at("fork", "unconfined")? {
        Fork::Parent(child) => {
            let pidfd = pidfd_open(child, PidfdFlags::empty()).at("pidfd_open", "unconfined")?;
            let entered = FromShim::Entered { pid: child.as_raw_nonzero().get() };
            report::send(control, &entered, &[pidfd.as_fd()]).at("sendmsg", "entered")?;
            exit_now(0)
        }
        Fork::Child => exit_now(start(control, &launcher, &order, &streams)),
    }
}

fn receive(control: &OwnedFd) -> Step<(Unconfined, Vec<OwnedFd>, spawn::Streams)> {
    let fds = molt_sys::socket::receive(control, &mut Vec::new()).at("receive", "unconfined")?;
    let mut fds = fds.ok_or_else(|| refuse("receive", "the supervisor is gone"))?.into_iter();
    let mut next = |what: &str| fds.next().ok_or_else(|| refuse("receive", format!("no descriptor for {what}")));
    let document = next("the document")?;
    let namespaces = NAMESPACES.iter().map(|name| next(name)).collect::<Step<_>>()?;
    let streams = spawn::Streams { stdin: next("stdin")?, stdout: next("stdout")?, stderr: next("stderr")? };
    if fds.next().is_some() {
        return Err(refuse("receive", "a descriptor too many"));
    }
    let order: Unconfined = takeover::read(document)?;
    takeover::of_this_version(order.version)?;
    Ok((order, namespaces, streams))
}

/// What it is to be without, for good: no_new_privs keeps an exec from giving back even what is left in the bounding set
/// of a container without CAP_SETPCAP.
fn give_up() -> Step<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("prctl", "not dumpable")?;
    if capabilities_secure_bits().at("prctl", "secure bits")?.contains(CapabilitiesSecureBits::NO_ROOT) {
        return Err(refuse("capabilities", "the container's secure bits take them from root"));
    }
    capabilities::bound(KEPT)?;
    if capabilities::keep(KEPT)?.is_empty() {
        let why = "the container has none of those it may keep (CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETUID, …), and \
                   without one a workload of the same user could trace it";
        return Err(refuse("capabilities", why));
    }
    rustix::thread::set_no_new_privs(true).at("prctl", "no_new_privs")
}

/// Waits for PID 1 to adopt it and to say yes, and becomes the command; gives the exit status if that fails.
fn start(control: &OwnedFd, launcher: &OwnedFd, order: &Unconfined, streams: &spawn::Streams) -> i32 {
    // Whoever is not adopted yet when it ends is reaped by nobody who knows of it.
    if wait_readable(launcher).is_err() {
        return 126;
    }
    match molt_sys::socket::receive(control, &mut Vec::new()) {
        Ok(Some(_)) => {}
        Ok(None) | Err(_) => return 126,
    }
    let program = spawn::environment(&order.env, &BTreeMap::new())
        .and_then(|environment| spawn::Program::find(order.env.get("PATH"), &order.argv, environment));
    match program {
        Ok(program) => program.become_it(streams, order.tty),
        Err(failure) => spawn::not_run(Errno::from_raw_os_error(failure.errno)),
    }
}
