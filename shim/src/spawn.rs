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
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, ioctl_tiocsctty, set_parent_process_death_signal, setsid},
};

use crate::{
    check,
    keeper::{self, Kept},
    planted::{Wall, left_out},
    step::{At as _, Step, refuse},
};

/// Standard streams of a child.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// What joins the waiting child to PID 1 and to the init. All are CLOEXEC.
struct Ends {
    gate: OwnedFd,
    exec: OwnedFd,
    /// Takes one errno: 0 when the child waits at the gate.
    waits: OwnedFd,
}

/// Forks the workload, and returns when it waits at its gate: all is done but the exec.
pub(crate) fn workload(launch: &Launch, program: &CStr, streams: &Streams, gate: OwnedFd, exec: OwnedFd) -> Step<Pid> {
    let argv = strings(launch.argv.iter())?;
    let environment = environment(&launch.env, &BTreeMap::new())?;
    let (heard, waits) = pipe_with(PipeFlags::CLOEXEC).at("pipe", "workload")?;
    let ends = Ends { gate, exec, waits };
    match fork().at("fork", "workload")? {
        Fork::Parent(pid) => {
            drop(ends);
            at_gate(&heard).map(|()| pid)
        }
        Fork::Child => {
            let result = go_to_gate(streams, &ends, launch.tty);
            let errno = match result.and_then(|ends| behind_gate(program, &argv, &environment, ends)) {
                Ok(never) => match never {},
                Err(errno) => errno,
            };
            // Heard only by an init that still asks: what happens behind the gate the exec pipe has told.
            let _ = rustix::io::write(&ends.waits, &errno.raw_os_error().to_ne_bytes());
            exit_now(not_run(errno))
        }
    }
}

/// What the child says of its way to the gate.
fn at_gate(heard: &OwnedFd) -> Step<()> {
    let mut bytes = [0u8; 4];
    loop {
        match rustix::io::read(heard, &mut bytes) {
            Ok(4) => break,
            Ok(_) => return Err(refuse("gate", "the child ended on its way there")),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).at("gate", "read"),
        }
    }
    match i32::from_ne_bytes(bytes) {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)).at("gate", "the child on its way there"),
    }
}

/// Everything that can fail before the gate.
fn go_to_gate(streams: &Streams, ends: &Ends, tty: bool) -> Result<Ends, Errno> {
    prepare(streams, tty)?;
    // Moved up, so that everything below and above the three can be closed.
    let up = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 64);
    let moved = Ends { gate: up(&ends.gate)?, exec: up(&ends.exec)?, waits: up(&ends.waits)? };
    if !left_out(Wall::Close) {
        close_between(&moved)?;
    }
    Ok(moved)
}

fn behind_gate(
    program: &CStr,
    argv: &[CString],
    environment: &[CString],
    Ends { gate, exec: exec_pipe, waits }: Ends,
) -> Result<Infallible, Errno> {
    rustix::io::write(&waits, &0i32.to_ne_bytes())?;
    drop(waits);
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

/// Closes everything above the standard streams but the three that were moved up, which are the highest.
fn close_between(Ends { gate, exec, waits }: &Ends) -> Result<(), Errno> {
    use std::os::fd::AsRawFd as _;
    let keep = [gate.as_raw_fd(), exec.as_raw_fd(), waits.as_raw_fd()];
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

/// A program that was found, with all that exec wants.
#[derive(Debug)]
pub(crate) struct Program {
    path: CString,
    argv: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Looks the first word of `argv` up in `path`.
    pub(crate) fn find(path: Option<&String>, argv: &[String], environment: Vec<CString>) -> Step<Self> {
        let name = argv.first().ok_or_else(|| refuse("exec", "no program"))?;
        let folders = path.map_or("", String::as_str);
        let found = check::find(name, if folders.is_empty() { "/usr/bin:/bin" } else { folders })?;
        let path = CString::new(found).map_err(|_| refuse("exec", "a path with a zero byte"))?;
        Ok(Self { path, argv: strings(argv.iter())?, environment })
    }

    /// Becomes it, in a session of its own and with these streams alone; gives the exit status if that fails.
    pub(crate) fn become_it(&self, streams: &Streams, tty: bool) -> i32 {
        let close = || if left_out(Wall::Close) { Ok(()) } else { close_from(3).map_err(|error| error.errno) };
        not_run(match prepare(streams, tty).and_then(|()| close()) {
            Ok(()) => exec(&self.path, &self.argv, &self.environment),
            Err(errno) => errno,
        })
    }
}

/// The exit status for what could not be run, as a shell's.
pub(crate) fn not_run(errno: Errno) -> i32 {
    if errno == Errno::NOENT { 127 } else { 126 }
}

/// Forks a process beside the workload, in the same confinement, and its keeper.
pub(crate) fn beside(launch: &Launch, request: &ExecRequest, streams: &Streams) -> Step<(Pid, Kept)> {
    let environment = environment(&launch.env, &request.env)?;
    let program = Program::find(launch.env.get("PATH"), &request.argv, environment)?;
    keeper::keep(request.id, || program.become_it(streams, request.tty))
}

fn strings<'a>(strings: impl Iterator<Item = &'a String>) -> Step<Vec<CString>> {
    strings
        .map(|text| CString::new(text.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|_| refuse("argv", "an argument with a zero byte"))
}

/// `more` over `base`.
pub(crate) fn environment(base: &BTreeMap<String, String>, more: &BTreeMap<String, String>) -> Step<Vec<CString>> {
    let mut all = base.clone();
    all.extend(more.iter().map(|(name, value)| (name.clone(), value.clone())));
    let lines: Vec<String> = all.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    strings(lines.iter()).map_err(|_| refuse("env", "a variable with a zero byte"))
}
