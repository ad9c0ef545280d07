//! `Arming`: the generation mounted, its init forked, confined and waiting at its gate; and the decision whether what it
//! reports is good enough.
//!
//! In: a staged generation, what confines the running one. Out: a [`Live`] run, or a fault that cost no downtime. Must
//! not: open a gate; accept a report weaker than the policy asks.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use molt_core::{
    code::Code,
    generation::Record,
    launch::{Confinement, Failure, Fds, FromShim, Identity, LateMount, Launch, Limits, ProcMode, Report, VERSION},
    machine::{Event, Run},
    spec::UserRef,
};
use molt_policy::{Resolved, Wider, compare};
use rustix::{
    fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fstat, memfd_create, openat},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    pipe::{PipeFlags, pipe_with},
};
use tokio::sync::watch;

use super::{Answers, Context, Fault, plan::Policy};
use crate::{
    observe::output::Stream,
    rootfs::{RootError, Rootfs, Tree, users},
    workload::{
        notify::{Notify, Said},
        pump::pump,
        run::{Init, Live},
    },
};

/// From the start of the shim to its report.
const ARMED_WITHIN: Duration = Duration::from_secs(30);
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What confines the running generation, for the comparison.
#[derive(Debug, Clone)]
pub(crate) struct InForce {
    pub(crate) policy_digest: molt_core::ids::Digest,
    pub(crate) confinement: Confinement,
    pub(crate) report: Report,
}

/// What to arm.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) run: Run,
    pub(crate) record: Record,
    pub(crate) policy: String,
    pub(crate) rootfs: Arc<Rootfs>,
    /// Compared with, unless the change may be wider.
    pub(crate) in_force: Option<InForce>,
}

/// What is prepared before the shim starts.
struct Prepared {
    launch: Launch,
    tree: Tree,
    proc: Option<OwnedFd>,
    default_identity: bool,
}

/// Arms a generation.
pub(crate) async fn arm(context: &Arc<Context>, order: Order, answers: Answers) -> Result<Live, Fault> {
    let blocking = {
        let (context, record) = (Arc::clone(context), order.record.clone());
        let (policy, rootfs) = (order.policy.clone(), Arc::clone(&order.rootfs));
        move || prepare(&context, &record, &policy, &rootfs)
    };
    let prepared = tokio::task::spawn_blocking(blocking)
        .await
        .map_err(|error| Fault::new(Code::Internal, error.to_string()))??;
    let internal = |errno: Errno| Fault::new(Code::Internal, format!("failed to prepare a shim: {errno}"));

    let (notify, socket) = Notify::bind(&context.run, order.run.instance)
        .map_err(|error| Fault::new(Code::Internal, format!("failed to make the notify socket: {error}")))?;
    let socket = clone_file(&socket).map_err(internal)?;
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
    fds.extend(prepared.tree.late.iter().map(|(_, mount)| mount.as_fd()));
    fds.extend(prepared.proc.as_ref().map(|proc| proc.as_fd()));
    if fds.len() > Fds::MAX {
        return Err(Fault::new(Code::Unsupported, format!("{} mounts are more than can be carried", fds.len())));
    }
    molt_sys::socket::send(&control, b"launch", &fds).map_err(sys)?;
    drop(fds);
    drop((stdout, stderr, gate_read, exec_write, socket, spec, stdin));
    rustix::io::ioctl_fionbio(&control, true).map_err(internal)?;

    let (said_sender, said) = watch::channel(Said::default());
    tokio::spawn(notify.listen(said_sender));
    let generation = order.record.generation;
    let pumps = ours
        .into_iter()
        .map(|(fd, stream)| tokio::spawn(pump(fd, generation, stream, context.output.clone())))
        .collect();

    let (init, report, namespace) = tokio::time::timeout(ARMED_WITHIN, report(control)).await.map_err(|_| {
        let message = format!("the shim did not report within {} s", ARMED_WITHIN.as_secs());
        Fault::new(Code::DeadlineExceeded, message)
    })??;
    let init = Arc::new(init);
    let live = Live {
        run: order.run,
        record: order.record,
        confinement: prepared.launch.confinement.clone(),
        report,
        init: Arc::clone(&init),
        gate: Some(gate),
        exec: Some(exec),
        kept: (order.rootfs, namespace),
        pumps,
        said,
        default_identity: prepared.default_identity,
    };
    // Dropping `live` on a refusal closes control and gate: the init ends itself.
    good_enough(&live, &prepared.launch.identity, order.in_force.as_ref())?;
    tokio::spawn(init.follow(order.run, answers));
    Ok(live)
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

/// Waits for the two messages that lead to the gate.
async fn report(control: OwnedFd) -> Result<(Init, Report, OwnedFd), Fault> {
    let gone = || Fault::new(Code::ConfinementFailed, "the shim went away before it reported");
    let io = |error: std::io::Error| Fault::new(Code::Internal, format!("failed to wait for a shim: {error}"));
    // The launcher's message brings the pidfd that everything else hangs on.
    let (pidfd, control) = {
        let early = crate::watch::readable(control).map_err(io)?;
        let mut buffer = Vec::new();
        let fds = loop {
            let mut ready = early.readable().await.map_err(io)?;
            match molt_sys::socket::receive(early.get_ref(), &mut buffer) {
                Ok(Some(fds)) => break fds,
                Err(error) if error.errno == Errno::AGAIN => ready.clear_ready(),
                Ok(None) | Err(_) => return Err(gone()),
            }
        };
        match serde_json::from_slice(&buffer) {
            Ok(FromShim::Forked) => {}
            Ok(FromShim::Failed(failure)) => return Err(explain(&failure)),
            _ => return Err(gone()),
        }
        (fds.into_iter().next().ok_or_else(gone)?, early.into_inner())
    };
    let init = Init::new(control, pidfd).map_err(io)?;
    match init.next().await {
        Some((FromShim::Armed(report), fds)) => Ok((init, *report, fds.into_iter().next().ok_or_else(gone)?)),
        Some((FromShim::Failed(failure), _)) => Err(explain(&failure)),
        _ => Err(gone()),
    }
}

/// A failed step of the shim, for people.
fn explain(failure: &Failure) -> Fault {
    let why = match failure.errno {
        0 => String::new(),
        errno => format!(": {}", Errno::from_raw_os_error(errno)),
    };
    let (step, detail) = (failure.step.as_str(), failure.detail.as_str());
    match step {
        "program" => Fault::new(Code::ProgramUnusable, detail.to_owned()),
        "chdir" => Fault::new(Code::ProgramUnusable, format!("the working directory {detail} cannot be entered{why}")),
        "landlock" if failure.policy && failure.errno != 0 => Fault::new(
            Code::PolicyUnmet,
            format!("the policy names {detail}, which the new root does not have{why}, and says hard_requirement"),
        ),
        "landlock" if failure.policy => Fault::new(Code::PolicyUnmet, detail.to_owned()),
        _ => Fault::new(Code::ConfinementFailed, format!("the shim failed at {step} ({detail}){why}")),
    }
}

/// Refuses a report that is weaker than what was asked for, or wider than what runs.
fn good_enough(live: &Live, identity: &Identity, in_force: Option<&InForce>) -> Result<(), Fault> {
    let (asked, report) = (&live.confinement, &live.report);
    let mut weak = Vec::new();
    if let Some(landlock) = &asked.landlock
        && report.handled_fs == 0
        && landlock.min_abi > 1
    {
        weak.push("no Landlock domain".to_owned());
    }
    if !asked.seccomp.is_empty()
        && (report.seccomp_mode != 2 || (report.seccomp_filters as usize) < asked.seccomp.len())
    {
        weak.push("no seccomp filter".to_owned());
    }
    if !report.no_new_privs {
        weak.push("no_new_privs is off".to_owned());
    }
    if report.capabilities != 0 {
        weak.push(format!("capabilities {:#x} are left", report.capabilities));
    }
    if (report.uid, report.gid) != (identity.uid, identity.gid) {
        weak.push(format!("it runs as {}:{}", report.uid, report.gid));
    }
    if !weak.is_empty() {
        return Err(Fault::new(
            Code::ConfinementFailed,
            format!("the new generation is not confined: {}", weak.join(", ")),
        ));
    }
    let Some(before) = in_force else { return Ok(()) };
    let same_policy = before.policy_digest == live.record.policy_digest;
    let wider: Vec<Wider> = compare(
        &Resolved { confinement: &before.confinement, report: &before.report },
        &Resolved { confinement: asked, report },
    )
    .into_iter()
    // The same policy names the same paths; where they lead is the image's business.
    .filter(|wider| !(same_policy && matches!(wider, Wider::Path { .. })))
    .collect();
    if wider.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = wider.iter().map(|wider| format!("  {wider}")).collect();
    let message = format!("the policy is wider than the one in force (--allow-wider takes it):\n{}", list.join("\n"));
    Err(Fault::new(Code::PolicyWider, message))
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
            Fault::new(Code::UserInvalid, format!("the image's user '{}' is not one: {error}", record.program.user))
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
        groups.extend(&user.groups);
        groups.retain(|gid| *gid != 0 && *gid != user.gid);
        groups.sort_unstable();
        groups.dedup();
        groups
    });
    let nested = !context.mapped.has(user.uid, user.gid);
    let groups = if nested { Vec::new() } else { groups };
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
    let first = program.argv.first().cloned().unwrap_or_default();
    let first = if first.contains('/') && !first.starts_with('/') {
        format!("{}/{first}", program.cwd.trim_end_matches('/'))
    } else {
        first
    };
    let confinement = confine(context, &policy, record, &first, &env)?;
    let launch = Launch {
        version: VERSION,
        program: first,
        argv: program.argv.clone(),
        env,
        cwd: program.cwd.clone(),
        hostname: String::new(),
        identity,
        confinement,
        limits: Limits { nofile: spec.workload.limits.nofile, nproc: spec.workload.limits.nproc, core: 0 },
        late_mounts: tree.late.iter().map(|(target, _)| LateMount { target: target.clone() }).collect(),
        proc: context.proc,
        notify: true,
        tty: spec.workload.tty,
        oom_score_adj: spec.workload.oom_score_adj,
    };
    let proc = (context.proc == ProcMode::Carried).then(carried_proc).transpose()?;
    Ok(Prepared { launch, tree, proc, default_identity: user.by_default })
}

/// Lowers the policy for this kernel.
fn confine(
    context: &Context,
    policy: &Policy,
    record: &Record,
    program: &str,
    env: &BTreeMap<String, String>,
) -> Result<Confinement, Fault> {
    let spec = &context.spec;
    let ports = proxy_ports(env);
    let lowering = molt_policy::Context {
        workdir: &record.program.cwd,
        state: &spec.state,
        program: program.starts_with('/').then_some(program),
        proxy_ports: &ports,
        kernel_abi: context.kernel_abi,
    };
    let lowered = match policy {
        Policy::Unconfined => molt_policy::unconfined(),
        Policy::Written(policy) => molt_policy::lower(policy, &lowering),
        Policy::Default => {
            let readable: Vec<&str> =
                [program, record.program.cwd.as_str()].into_iter().filter(|path| path.starts_with('/')).collect();
            molt_policy::lower(&molt_policy::default_policy_for(&spec.state, &readable), &lowering)
        }
    };
    if lowered.unmet.is_empty() {
        Ok(lowered.confinement)
    } else {
        Err(Fault::new(Code::PolicyUnmet, lowered.unmet.join("; ")))
    }
}

/// Ports of the egress proxy, from the variables programs take it from.
fn proxy_ports(env: &BTreeMap<String, String>) -> Vec<u16> {
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
        .iter()
        .filter_map(|name| env.get(*name)?.trim_end_matches('/').rsplit(':').next()?.parse().ok())
        .collect()
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

fn sealed(launch: &Launch) -> rustix::io::Result<OwnedFd> {
    let bytes = serde_json::to_vec(launch).unwrap_or_default();
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

fn clone_file(node: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(node, "", flags)
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
