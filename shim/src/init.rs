//! The init's life after the report: reap, forward, spawn, and end with the workload.
//!
//! In: messages from PID 1, SIGCHLD. Out: exits, reported. Must not: be trusted: it has the workload's own rights. When
//! it ends, for whatever reason, the kernel kills everything in its PID namespace.

use std::{collections::HashMap, convert::Infallible, os::fd::OwnedFd};

use molt_core::launch::{FromShim, Launch, ToShim};
use molt_sys::process::exit_now;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait},
    time::{ClockId, clock_gettime},
};

use crate::{
    keeper::Kept,
    planted::{Wall, left_out},
    report, spawn,
    step::{At as _, Step},
};

/// Most children reaped in one turn, so that a flood of zombies does not keep signals and messages waiting.
const REAP_A_TURN: usize = 256;

/// Runs until the workload ends.
pub(crate) fn run(control: &OwnedFd, launch: &Launch, main: Pid) -> Step<Infallible> {
    let children = molt_sys::signal::descriptor(&[17]).at("signalfd", "SIGCHLD")?;
    rustix::io::ioctl_fionbio(control, true).at("ioctl", "control")?;
    // The first look at the clock finds the vDSO, which takes longer than all later ones; it belongs before the gap.
    let _ = clock_gettime(ClockId::Monotonic);
    let mut execs = HashMap::new();
    let mut buffer = Vec::new();
    // A child that ended before SIGCHLD was blocked is reaped by this first look.
    loop {
        let more = reap(control, main, &mut execs);
        let mut fds = [PollFd::new(control, PollFlags::IN), PollFd::new(&children, PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, more.then_some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).at("poll", "init"),
        }
        while let Ok(Some(_)) = molt_sys::signal::receive(&children) {}
        listen(control, launch, main, &mut execs, &mut buffer);
    }
}

/// Reaps what has ended; true if there may be more. Does not return when the workload itself has ended.
fn reap(control: &OwnedFd, main: Pid, execs: &mut HashMap<Pid, Kept>) -> bool {
    for _ in 0..REAP_A_TURN {
        let (pid, status) = match wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Err(Errno::INTR) => continue,
            Ok(None) | Err(_) => return false,
        };
        let status = code(status);
        if pid == main {
            let now = clock_gettime(ClockId::Monotonic);
            let at = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
            report::tell(control, &FromShim::Exited { status, at });
            if left_out(Wall::KillGroup) {
                let _ = rustix::process::kill_process_group(main, Signal::KILL);
            }
            exit_now(0);
        }
        if let Some(kept) = execs.remove(&pid) {
            report::tell(control, &FromShim::ExecExited { id: kept.id, status });
        }
    }
    true
}

fn listen(control: &OwnedFd, launch: &Launch, main: Pid, execs: &mut HashMap<Pid, Kept>, buffer: &mut Vec<u8>) {
    loop {
        let fds = match molt_sys::socket::receive(control, buffer) {
            Ok(Some(fds)) => fds,
            Err(error) if error.errno == Errno::AGAIN => return,
            Ok(None) | Err(_) => exit_now(0), // PID 1 is gone, or has let go of this generation
        };
        match serde_json::from_slice(buffer) {
            Ok(ToShim::Signal(number)) => send_signal(main, number),
            Ok(ToShim::SignalExec { id, signal }) => {
                if let Some(kept) = execs.values().find(|kept| kept.id == id) {
                    kept.signal(signal);
                }
            }
            Ok(ToShim::Exec(request)) => {
                let mut fds = fds.into_iter();
                let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else { continue };
                match spawn::beside(launch, &request, &spawn::Streams { stdin, stdout, stderr }) {
                    Ok((pid, kept)) => {
                        execs.insert(pid, kept);
                    }
                    Err(failure) => {
                        let status = spawn::not_run(Errno::from_raw_os_error(failure.errno));
                        report::tell(control, &FromShim::ExecExited { id: request.id, status });
                    }
                }
            }
            Ok(ToShim::Kill) | Err(_) => exit_now(0),
        }
    }
}

/// A shell's way to say how a process ended.
pub(crate) fn code(status: WaitStatus) -> i32 {
    status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(255)
}

fn send_signal(pid: Pid, number: i32) {
    if let Some(signal) = Signal::from_named_raw(number) {
        // ESRCH: it ended and will be reaped in this same turn.
        let _ = kill_process(pid, signal);
    }
}
