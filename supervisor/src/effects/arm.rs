//! `Arming`: the generation mounted, its init forked, confined and waiting at its gate. Whether what it reports is good
//! enough is judged in `confine`.
//!
//! In: a staged generation, what confines the running one. Out: a [`Live`] run, or a fault that cost no downtime. Must
//! not: open a gate; accept a report weaker than the policy asks.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use molt_core::{
    code::Code,
    confined::InForce,
    generation::Record,
    ids::UpdateId,
    launch::{Failure, Fds, FromShim, Identity, LateMount, Launch, Limits, NAMESPACES, ProcMode, Report, VERSION},
    machine::{Event, Run},
    order::cut,
    spec::{Action, UserRef},
    wire::{Section, What},
};
use rustix::{
    fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fstat, memfd_create, openat},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    pipe::{PipeFlags, pipe_with},
    process::{Signal, pidfd_send_signal},
};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{Answers, Context, Fault, bounded, confine, keep, plan::Policy};
use crate::{
    api::Door,
    observe::output::Stream,
    preflight,
    rootfs::{LetGoAside, RootError, Rootfs, Tree, users},
    timer::{Instant, timeout_at},
    workload::{
        door::Socket,
        notify::Notify,
        pump::pump,
        run::{Init, Live, Place, hear},
    },
};

/// From the first look at the new root to the report of the shim.
const ARMED_WITHIN: Duration = Duration::from_secs(30);
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to arm.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) run: Run,
    pub(crate) record: Record,
    pub(crate) policy: String,
    pub(crate) rootfs: Arc<Rootfs>,
    /// The update it belongs to, for what is said about it.
    pub(crate) update: Option<UpdateId>,
    /// What it is compared with.
    pub(crate) against: Against,
}

/// What a generation may not be wider than.
#[derive(Debug)]
pub(crate) enum Against {
    /// Nothing: it ran before, or goes back, or the request takes a wider one.
    Nothing,
    /// Nothing ran before: what its policy says by name.
    Itself,
    /// What runs, or ran last.
    InForce(Box<InForce>),
}

/// What is prepared before the shim starts.
struct Prepared {
    launch: Launch,
    tree: Tree,
    proc: Option<OwnedFd>,
    default_identity: bool,
    notes: Vec<String>,
    sections: Vec<Section>,
}

/// Arms a generation.
pub(crate) async fn arm(context: &Arc<Context>, order: Order, answers: Answers) -> Result<Live, Fault> {
    let _aside = LetGoAside::of(&order.rootfs);
    let deadline = Instant::now() + ARMED_WITHIN;
    let prepared = prepared(context, &order, deadline).await?;
    let internal = |errno: Errno| Fault::new(Code::Internal, format!("failed to prepare a shim: {errno}"));

    let (notify, socket) = Notify::bind(&context.run, order.run.instance)
        .map_err(|error| Fault::new(Code::Internal, format!("failed to make the notify socket: {error}")))?;
    let socket = clone_file(&socket).map_err(internal)?;
    let door = context.spec.api.workload.is_some().then(|| Socket::bind(&context.run, order.run.instance)).transpose();
    let door =
        door.map_err(|error| Fault::new(Code::Internal, format!("failed to make the workload's socket: {error}")))?;
    let (door, door_node) = door.unzip();
    let door_node = door_node.map(|node| clone_file(&node)).transpose().map_err(internal)?;
    let spec = sealed(&prepared.launch).map_err(internal)?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let Streams { stdin, stdout, stderr, ours } = streams(context.spec.workload.tty).map_err(internal)?;
    let (gate_read, gate) = pipe().map_err(internal)?;
    let (exec, exec_write) = pipe().map_err(internal)?;
    rustix::io::ioctl_fionbio(&exec, true).map_err(internal)?;
    let sys = |error: molt_sys::Error| Fault::new(Code::Internal, format!("failed to talk to a shim: {error}"));
    let (control, theirs) = molt_sys::socket::pair().map_err(sys)?;
    context.shim.launch(&theirs).map_err(|error| Fault::new(Code::Internal, format!("failed to {error}")))?;
    drop(theirs);
    let mut fds: Vec<BorrowedFd<'_>> = vec![
        spec.as_fd(),
        prepared.tree.root.as_fd(),
        stdin.as_fd(),
        stdout.as_fd(),
        stderr.as_fd(),
        gate_read.as_fd(),
        exec_write.as_fd(),
        socket.as_fd(),
    ];
    fds.extend(door_node.as_ref().map(|node| node.as_fd()));
    fds.extend(prepared.tree.late.iter().map(|(_, mount)| mount.as_fd()));
    fds.extend(prepared.proc.as_ref().map(|proc| proc.as_fd()));
    if fds.len() > Fds::MAX {
        return Err(Fault::new(Code::Unsupported, format!("{} mounts are more than can be carried", fds.len())));
    }
    molt_sys::socket::send(&control, b"launch", &fds).map_err(sys)?;
    drop(fds);
    drop((stdout, stderr, gate_read, exec_write, socket, door_node, spec, stdin));
    rustix::io::ioctl_fionbio(&control, true).map_err(internal)?;

    let said = notify.said();
    tokio::spawn(Arc::clone(&notify).listen());
    let generation = order.record.generation;
    let pumps = ours
        .into_iter()
        .map(|(fd, stream)| tokio::spawn(pump(fd, generation, stream, context.output.clone())))
        .collect();

    let (init, report, namespaces) = timeout_at(deadline, report(control))
        .await
        .map_err(|_| late("the shim did not report; a path of the policy may lie on a mount that does not answer"))??;
    // Returning without a `Live` closes control and gate: the init ends itself.
    confine::as_asked(&prepared.launch.confinement, &report, &prepared.launch.identity, context.kernel_abi)?;
    let mut in_force = confine::in_force(context, &prepared.launch.confinement, report, &prepared.launch.limits);
    let mut notes = prepared.notes;
    match &order.against {
        Against::Nothing => {}
        Against::Itself => in_force.report.degraded.extend(confine::astray(&in_force)),
        Against::InForce(before) => notes.extend(confine::not_wider(before, &in_force)?),
    }
    for message in notes {
        context.events.publish(order.update, What::Note { message: bounded(message) });
    }
    keep::keep(context, &order, &in_force).await?;
    let init = Arc::new(init);
    if let Some(door) = door {
        let own =
            own_door(order.run, &in_force.report, prepared.launch.identity.nested, &namespaces).map_err(internal)?;
        tokio::spawn(door.serve(context.handle.clone(), own, init.gone()));
    }
    let live = Live {
        run: order.run,
        record: order.record,
        in_force,
        sections: prepared.sections,
        init: Arc::clone(&init),
        gate: Some(gate),
        exec: Some(exec),
        kept: order.rootfs,
        place: Place { namespaces, env: prepared.launch.env, oom_score_adj: prepared.launch.oom_score_adj },
        pumps,
        said,
        default_identity: prepared.default_identity,
    };
    tokio::spawn(init.follow(order.run, notify, answers));
    Ok(live)
}

/// Whom the workload's socket of a run serves.
fn own_door(run: Run, report: &Report, nested: bool, namespaces: &[OwnedFd]) -> rustix::io::Result<Door> {
    let place = NAMESPACES.iter().position(|name| *name == "pid").and_then(|place| namespaces.get(place));
    let pid_namespace = fstat(place.ok_or(Errno::INVAL)?)?.st_ino;
    let uid = (!nested).then_some(report.uid);
    Ok(Door { instance: run.instance, generation: run.generation, uid, pid_namespace })
}

/// Whoever prepares a root and has not come back; a mount that never answers keeps its thread for ever.
static PREPARING: AtomicUsize = AtomicUsize::new(0);
const MOST_PREPARING: usize = 8;

/// [`prepare`] on a thread of its own: one that hangs must not take a place among those that others wait for.
async fn prepared(context: &Arc<Context>, order: &Order, deadline: Instant) -> Result<Prepared, Fault> {
    if PREPARING.load(Ordering::Relaxed) >= MOST_PREPARING {
        return Err(Fault::new(
            Code::DeadlineExceeded,
            format!("{MOST_PREPARING} earlier attempts still wait for a mount that does not answer; mend it first"),
        ));
    }
    let (context, record) = (Arc::clone(context), order.record.clone());
    let (policy, rootfs) = (order.policy.clone(), Arc::clone(&order.rootfs));
    let (sender, receiver) = oneshot::channel();
    PREPARING.fetch_add(1, Ordering::Relaxed);
    let work = move || {
        let result = prepare(&context, &record, &policy, &rootfs);
        PREPARING.fetch_sub(1, Ordering::Relaxed);
        // Nobody waits for it any more: it is dropped here.
        let _ = sender.send(result);
    };
    // Not the kept thread, for the same reason.
    molt_oci::thread::start("prepare", work).map_err(|(_, error)| {
        PREPARING.fetch_sub(1, Ordering::Relaxed);
        let what = "failed to start a thread to prepare the root; the sandbox may have used up its processes";
        Fault::new(Code::Internal, format!("{what}: {error}"))
    })?;
    match timeout_at(deadline, receiver).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Fault::new(Code::Internal, "preparing the root ended without a result")),
        Err(_) => Err(late("the new root could not be put together; a state or carried mount does not answer")),
    }
}

fn late(why: &str) -> Fault {
    Fault::new(Code::DeadlineExceeded, format!("not armed within {} s: {why}", ARMED_WITHIN.as_secs()))
}

/// The workload's standard streams, and the ends of them that PID 1 reads.
struct Streams {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    ours: Vec<(OwnedFd, Stream)>,
}

/// Two pipes; or with `tty` one terminal of its own, never the container's.
fn streams(tty: bool) -> rustix::io::Result<Streams> {
    if tty {
        let (master, terminal) = crate::workload::exec::terminal()?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let again = || rustix::io::fcntl_dupfd_cloexec(&terminal, 0);
        let (stdin, stdout) = (again()?, again()?);
        return Ok(Streams { stdin, stdout, stderr: terminal, ours: vec![(master, Stream::Stdout)] });
    }
    let stdin = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (out_read, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err_read, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&out_read, true)?;
    rustix::io::ioctl_fionbio(&err_read, true)?;
    Ok(Streams { stdin, stdout, stderr, ours: vec![(out_read, Stream::Stdout), (err_read, Stream::Stderr)] })
}

/// An init that is not waited for any more is killed: while it hangs in a mount that does not answer it does not notice
/// that its control socket is closed.
struct Doomed(Option<OwnedFd>);

impl Drop for Doomed {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.0 {
            // ESRCH: it has ended. Without CAP_KILL it ends when it looks at its socket.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

/// Waits for the two messages that lead to the gate.
async fn report(control: OwnedFd) -> Result<(Init, Report, Vec<OwnedFd>), Fault> {
    let gone = || Fault::new(Code::ConfinementFailed, "the shim went away before it reported");
    let io = |error: std::io::Error| Fault::new(Code::Internal, format!("failed to wait for a shim: {error}"));
    // The launcher's message brings the pidfd that everything else hangs on.
    let (pidfd, control) = {
        let early = crate::watch::readable(control).map_err(io)?;
        let (said, fds) = hear(&early).await.ok_or_else(gone)?;
        match serde_json::from_slice(&said) {
            Ok(FromShim::Forked) => {}
            Ok(FromShim::Failed(failure)) => return Err(explain(&failure)),
            _ => return Err(gone()),
        }
        (fds.into_iter().next().ok_or_else(gone)?, early.into_inner())
    };
    let mut doomed = Doomed(Some(rustix::io::fcntl_dupfd_cloexec(&pidfd, 0).map_err(|errno| io(errno.into()))?));
    let init = Init::new(control, pidfd).map_err(io)?;
    match init.next().await {
        Some((FromShim::Armed(report), namespaces)) if namespaces.len() == NAMESPACES.len() => {
            doomed.0 = None;
            Ok((init, *report, namespaces))
        }
        Some((FromShim::Failed(failure), _)) => Err(explain(&failure)),
        _ => Err(gone()),
    }
}

/// Text of an image, fit for one line of a log: control and other invisible characters spelled out.
fn spelled_out(text: &str) -> String {
    let quote = |c: char| matches!(c, '"' | '\'' | '\\');
    let parts = text.chars().map(|c| if quote(c) { c.to_string() } else { c.escape_debug().to_string() });
    parts.collect()
}

/// A failed step of the shim, for people.
pub(crate) fn explain(failure: &Failure) -> Fault {
    let why = match failure.errno {
        0 => String::new(),
        errno => format!(": {}", Errno::from_raw_os_error(errno)),
    };
    // It holds names of the image.
    let (step, detail) = (failure.step.as_str(), spelled_out(&failure.detail));
    match step {
        "program" => Fault::new(Code::ProgramUnusable, detail),
        "chdir" => Fault::new(Code::ProgramUnusable, format!("the working directory {detail} cannot be entered{why}")),
        "landlock" if failure.policy && failure.errno != 0 => Fault::new(
            Code::PolicyUnmet,
            format!("the policy names {detail}, which the new root does not have{why}, and says hard_requirement"),
        ),
        "landlock" if failure.policy => Fault::new(Code::PolicyUnmet, detail),
        _ => Fault::new(Code::ConfinementFailed, format!("the shim failed at {step} ({detail}){why}")),
    }
}

/// Everything that is looked up in the new root, and the mounts on it. Blocking.
fn prepare(context: &Context, record: &Record, policy: &str, rootfs: &Rootfs) -> Result<Prepared, Fault> {
    let spec = &context.spec;
    let policy = Policy::read(policy)?;
    let run_as = match &policy {
        Policy::Written(policy) => policy.run_as(),
        Policy::Default | Policy::Unconfined => molt_policy::RunAs::default(),
    };
    let wanted: Option<UserRef> = match run_as.user {
        Some(user) => Some(UserRef { user, group: run_as.group.clone() }),
        None if record.program.user.is_empty() => None,
        None => Some(record.program.user.parse().map_err(|error| {
            let user = cut(&record.program.user);
            Fault::new(Code::UserInvalid, spelled_out(&format!("the image's user '{user}' is not one: {error}")))
        })?),
    };
    let user = users::resolve(rootfs.look(), wanted.as_ref(), run_as.group.as_ref())?;
    if user.uid == 0 && !spec.workload.allow_root {
        let message = "the workload would run as root; name another user with workload.user or the policy's run_as_user, \
                       or say workload.allowRoot: true";
        return Err(Fault::new(Code::UserInvalid, message));
    }
    let groups = spec.workload.supplemental_groups.clone().unwrap_or_else(|| {
        let mut groups: Vec<u32> =
            rustix::process::getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()).collect();
        // In a user namespace this is how a group shows that is not mapped there.
        groups.retain(|gid| *gid != preflight::OVERFLOW || context.mapped.is_initial());
        groups.extend(&user.groups);
        groups.retain(|gid| *gid != 0 && *gid != user.gid);
        groups.sort_unstable();
        groups.dedup();
        groups
    });
    let nested = context.mapped.is_single() && !context.mapped.has(user.uid, user.gid);
    let groups = if nested { Vec::new() } else { groups };
    if !nested && let Some(why) = context.mapped.lacks(user.uid, user.gid, &groups) {
        return Err(Fault::new(Code::UserInvalid, why));
    }
    let identity = Identity { uid: user.uid, gid: user.gid, groups, nested };
    let tree = rootfs.tree(&context.parts)?;
    for state in &context.parts.state {
        writable(&state.path, &state.source, &identity)?;
    }

    let program = &record.program;
    let mut env = program.env.clone();
    env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    env.entry("HOME".to_owned()).or_insert_with(|| user.home.clone());
    env.insert("NOTIFY_SOCKET".to_owned(), "/run/molt/notify".to_owned());
    // As sd_watchdog_enabled(3) has it: who wants to be heard in time sends twice as often.
    if let Some(probe) = spec.health.liveness.as_ref().filter(|probe| probe.action == Action::Notify) {
        env.insert("WATCHDOG_USEC".to_owned(), probe.period.as_duration().as_micros().to_string());
    }
    let first = program.argv.first().cloned().unwrap_or_default();
    let first = if first.contains('/') && !first.starts_with('/') {
        format!("{}/{first}", program.cwd.trim_end_matches('/'))
    } else {
        first
    };
    let lowered = confine::lowered(context, &policy, record, &first, &env)?;
    let launch = Launch {
        version: VERSION,
        program: first,
        argv: program.argv.clone(),
        env,
        cwd: program.cwd.clone(),
        hostname: String::new(),
        identity,
        confinement: lowered.confinement,
        limits: Limits { nofile: spec.workload.limits.nofile, nproc: spec.workload.limits.nproc, core: 0 },
        late_mounts: tree.late.iter().map(|(target, _)| LateMount { target: target.clone() }).collect(),
        proc: context.proc,
        notify: true,
        door: spec.api.workload.is_some(),
        tty: spec.workload.tty,
        oom_score_adj: spec.workload.oom_score_adj,
    };
    let proc = (context.proc == ProcMode::Carried).then(carried_proc).transpose()?;
    let sections = confine::sections(context, &policy);
    Ok(Prepared { launch, tree, proc, default_identity: user.by_default, notes: lowered.notes, sections })
}

/// Whether the workload's user can write its state; the line that mends it if not.
fn writable(path: &str, source: &OwnedFd, identity: &Identity) -> Result<(), Fault> {
    let stat =
        fstat(source).map_err(|errno| Fault::from(RootError::new("look at", path, errno, Code::StateUnmountable)))?;
    let mode = stat.st_mode;
    let own = stat.st_uid == identity.uid && mode & 0o300 == 0o300;
    let group = (stat.st_gid == identity.gid || identity.groups.contains(&stat.st_gid)) && mode & 0o030 == 0o030;
    if own || group || mode & 0o003 == 0o003 || identity.nested {
        return Ok(());
    }
    let (uid, gid) = (identity.uid, identity.gid);
    Err(Fault::new(
        Code::StateUnmountable,
        format!(
            "{path} belongs to {}:{} with mode {:o} and cannot be written by {uid}:{gid}, as whom the workload runs; \
             `chown {uid}:{gid} {path}`, or in a pod `securityContext.fsGroup: {gid}`",
            stat.st_uid,
            stat.st_gid,
            mode & 0o7777
        ),
    ))
}

/// A document that nobody can change any more.
pub(crate) fn sealed(document: &impl Serialize) -> rustix::io::Result<OwnedFd> {
    let bytes = serde_json::to_vec(document).unwrap_or_default();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create("molt-launch", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create("molt-launch", flags),
        result => result,
    }?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let length = rustix::io::write(&file, rest)?;
        rest = rest.get(length..).unwrap_or_default();
    }
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}

/// A mount of one file that is good for nothing but being connected to.
fn clone_file(node: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    use molt_sys::mount::{Attributes, Propagation, set_attributes};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(node, "", flags)?;
    let attributes = Attributes::NOSUID.and(Attributes::NODEV).and(Attributes::NOEXEC);
    set_attributes(&mount, attributes, Propagation::Private).map_err(|error| error.errno)?;
    Ok(mount)
}

/// PID 1's `/proc`, read-only, where the kernel refuses a fresh one.
fn carried_proc() -> Result<OwnedFd, Fault> {
    use molt_sys::mount::{Attributes, Propagation, set_attributes};
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let fail = |errno: Errno| Fault::new(Code::Unsupported, format!("failed to clone /proc: {errno}"));
    let proc = open_tree(CWD, "/proc", flags).map_err(fail)?;
    let attributes = Attributes::RDONLY.and(Attributes::NOSUID).and(Attributes::NODEV);
    set_attributes(&proc, attributes, Propagation::Slave).map_err(|error| fail(error.errno))?;
    Ok(proc)
}

/// The event that says how arming ended.
pub(crate) fn answer(run: Run, result: &Result<(), Fault>) -> Event {
    match result {
        Ok(()) => Event::Armed { instance: run.instance },
        Err(fault) => Event::NotArmed { instance: run.instance, code: fault.code, message: fault.message.clone() },
    }
}
