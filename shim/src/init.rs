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
    process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open, wait},
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

/// The process whose end is the workload's.
struct Main {
    pid: Pid,
    /// Of one that took over: it may be another's child.
    pidfd: Option<OwnedFd>,
    /// The pidfd says that it has ended; it is among this process's children, or is not.
    gone: bool,
    /// It was told to stop.
    stopping: bool,
    /// It has ended, and whether another one takes over is not known yet: status, time.
    ended: Option<(i32, u64)>,
}

/// Of a main process whose end its own parent alone was told.
const UNKNOWN: i32 = 255;

/// Runs until the workload ends.
pub(crate) fn run(control: &OwnedFd, launch: &Launch, main: Pid) -> Step<Infallible> {
    let children = molt_sys::signal::descriptor(&[17]).at("signalfd", "SIGCHLD")?;
    rustix::io::ioctl_fionbio(control, true).at("ioctl", "control")?;
    // The first look at the clock finds the vDSO, which takes longer than all later ones; it belongs before the gap.
    let _ = clock_gettime(ClockId::Monotonic);
    let mut main = Main { pid: main, pidfd: None, gone: false, stopping: false, ended: None };
    let mut execs = HashMap::new();
    let mut buffer = Vec::new();
    // A child that ended before SIGCHLD was blocked is reaped by this first look.
    loop {
        let more = reap(control, &mut main, &mut execs);
        if main.gone && !more && main.ended.is_none() {
            // Not among them.
            main.end(control, UNKNOWN);
        }
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = vec![PollFd::new(control, PollFlags::IN), PollFd::new(&children, PollFlags::IN)];
        let heir = main.pidfd.as_ref().filter(|_| main.ended.is_none());
        fds.extend(heir.map(|pidfd| PollFd::new(pidfd, PollFlags::IN)));
        match poll(&mut fds, more.then_some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).at("poll", "init"),
        }
        main.gone = fds.get(2).is_some_and(|heir| heir.revents().contains(PollFlags::IN));
        while let Ok(Some(_)) = molt_sys::signal::receive(&children) {}
        listen(control, launch, &mut main, &mut execs, &mut buffer);
    }
}

impl Main {
    /// It has ended. Does not return where that is the workload's end.
    fn end(&mut self, control: &OwnedFd, status: i32) {
        let now = clock_gettime(ClockId::Monotonic);
        let at = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
        self.ended = Some((status, at));
        // Nobody answers a question that could not be asked.
        if self.stopping || report::send(control, &FromShim::Left, &[]).is_err() {
            self.finish(control);
        }
    }

    /// The end of the workload, if its main process has ended; does not return then.
    fn finish(&self, control: &OwnedFd) {
        let Some((status, at)) = self.ended else { return };
        report::tell(control, &FromShim::Exited { status, at });
        if left_out(Wall::KillGroup) {
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
        exit_now(0);
    }

    /// Another process takes over, if there is one of this number.
    fn hand_over(&mut self, control: &OwnedFd, number: u32) {
        let heir = i32::try_from(number).ok().filter(|number| *number > 1).and_then(Pid::from_raw);
        match heir.map(|pid| (pid, pidfd_open(pid, PidfdFlags::empty()))) {
            Some((pid, Ok(pidfd))) => {
                *self = Self { pid, pidfd: Some(pidfd), gone: false, stopping: self.stopping, ended: None }
            }
            Some((_, Err(_))) | None => self.finish(control),
        }
    }

    fn signal(&self, number: i32) {
        if self.ended.is_some() {
            return;
        }
        // ESRCH: it ended and will be reaped in this same turn.
        let _ = match &self.pidfd {
            Some(pidfd) => molt_sys::signal::send_to(pidfd, number),
            None => molt_sys::signal::send(self.pid, number),
        };
    }
}

/// Reaps what has ended; true if there may be more. Does not return when the workload itself has ended.
fn reap(control: &OwnedFd, main: &mut Main, execs: &mut HashMap<Pid, Kept>) -> bool {
    for _ in 0..REAP_A_TURN {
        let (pid, status) = match wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Err(Errno::INTR) => continue,
            Ok(None) | Err(_) => return false,
        };
        let status = code(status);
        if pid == main.pid && main.ended.is_none() {
            main.end(control, status);
        }
        if let Some(kept) = execs.remove(&pid) {
            report::tell(control, &FromShim::ExecExited { id: kept.id, status });
        }
    }
    true
}

fn listen(control: &OwnedFd, launch: &Launch, main: &mut Main, execs: &mut HashMap<Pid, Kept>, buffer: &mut Vec<u8>) {
    loop {
        let fds = match molt_sys::socket::receive(control, buffer) {
            Ok(Some(fds)) => fds,
            Err(error) if error.errno == Errno::AGAIN => return,
            Ok(None) | Err(_) => exit_now(0), // PID 1 is gone, or has let go of this generation
        };
        match serde_json::from_slice(buffer) {
            Ok(ToShim::Signal(number)) => main.signal(number),
            Ok(ToShim::Stop(number)) => {
                main.stopping = true;
                main.finish(control);
                main.signal(number);
            }
            Ok(ToShim::Main(number)) => main.hand_over(control, number),
            Ok(ToShim::End) => main.finish(control),
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
