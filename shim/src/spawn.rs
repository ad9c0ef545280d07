//! The child's side of every fork: the workload behind its gate, and what is run beside it later.
//!
//! In: streams, argv, environment. Out: a pid. Must not: do anything after the gate but exec.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ffi::{CStr, CString},
    os::fd::OwnedFd,
};

use molt_core::launch::{ExecRequest, Launch};
use molt_sys::process::{Fork, close_from, exec, exit_now, fork};
use rustix::{
    io::Errno,
    process::{Pid, Signal, ioctl_tiocsctty, set_parent_process_death_signal, setsid},
};

use crate::{
    check,
    step::{At as _, Step, refuse},
};

/// Standard streams of a child.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Forks the workload: all is done but the exec, which waits for one byte.
pub(crate) fn workload(
    launch: &Launch,
    program: &CStr,
    streams: &Streams,
    gate: OwnedFd,
    exec_pipe: OwnedFd,
) -> Step<Pid> {
    let argv = strings(launch.argv.iter())?;
    let environment = environment(&launch.env, &BTreeMap::new())?;
    match fork().at("fork", "workload")? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => {
            let errno = match behind_gate(program, &argv, &environment, streams, (gate, exec_pipe), launch.tty) {
                Ok(never) => match never {},
                Err(errno) => errno,
            };
            // The exec pipe has told why; a failure before the gate PID 1 sees as an exit.
            let status = if errno == Errno::NOENT { 127 } else { 126 };
            exit_now(status)
        }
    }
}

fn behind_gate(
    program: &CStr,
    argv: &[CString],
    environment: &[CString],
    streams: &Streams,
    (gate, exec_pipe): (OwnedFd, OwnedFd),
    tty: bool,
) -> Result<Infallible, Errno> {
    prepare(streams, tty)?;
    // Moved up, so that everything below and above the two can be closed. Both are CLOEXEC.
    let gate = rustix::io::fcntl_dupfd_cloexec(&gate, 64)?;
    let exec_pipe = rustix::io::fcntl_dupfd_cloexec(&exec_pipe, 64)?;
    close_between(&gate, &exec_pipe)?;
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(&gate, &mut byte) {
            Ok(1) => break,
            Ok(_) => exit_now(0), // the gate was closed for good
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let errno = exec(program, argv, environment);
    let _ = rustix::io::write(&exec_pipe, &errno.raw_os_error().to_ne_bytes());
    Err(errno)
}

/// Closes everything above the standard streams but the two that were moved up, which are the highest.
fn close_between(gate: &OwnedFd, exec_pipe: &OwnedFd) -> Result<(), Errno> {
    use std::os::fd::AsRawFd as _;
    let keep = [gate.as_raw_fd(), exec_pipe.as_raw_fd()];
    let highest = keep.iter().max().copied().unwrap_or(3);
    molt_sys::process::close_except(3, highest, keep).map_err(|error| error.errno)?;
    close_from(highest + 1).map_err(|error| error.errno)
}

/// Session, terminal, streams, signals: what every child needs.
fn prepare(streams: &Streams, tty: bool) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    setsid()?;
    rustix::stdio::dup2_stdin(&streams.stdin)?;
    rustix::stdio::dup2_stdout(&streams.stdout)?;
    rustix::stdio::dup2_stderr(&streams.stderr)?;
    if tty {
        ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    set_parent_process_death_signal(None)?;
    molt_sys::signal::reset().map_err(|error| error.errno)
}

/// Forks a process beside the workload, in the same confinement.
pub(crate) fn beside(launch: &Launch, request: &ExecRequest, streams: &Streams) -> Step<Pid> {
    let name = request.argv.first().ok_or_else(|| refuse("exec", "no program"))?;
    let path = launch.env.get("PATH").map_or("", String::as_str);
    let program = check::find(name, if path.is_empty() { "/usr/bin:/bin" } else { path })?;
    let program = CString::new(program).map_err(|_| refuse("exec", "a path with a zero byte"))?;
    let argv = strings(request.argv.iter())?;
    let environment = environment(&launch.env, &request.env)?;
    match fork().at("fork", "exec")? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => {
            let errno = match prepare(streams, request.tty).and_then(|()| close_from(3).map_err(|error| error.errno)) {
                Ok(()) => exec(&program, &argv, &environment),
                Err(errno) => errno,
            };
            exit_now(if errno == Errno::NOENT { 127 } else { 126 })
        }
    }
}

fn strings<'a>(strings: impl Iterator<Item = &'a String>) -> Step<Vec<CString>> {
    strings
        .map(|text| CString::new(text.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|_| refuse("argv", "an argument with a zero byte"))
}

fn environment(base: &BTreeMap<String, String>, more: &BTreeMap<String, String>) -> Step<Vec<CString>> {
    let mut all = base.clone();
    all.extend(more.iter().map(|(name, value)| (name.clone(), value.clone())));
    let lines: Vec<String> = all.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    strings(lines.iter()).map_err(|_| refuse("env", "a variable with a zero byte"))
}
