//! What stands between the init and a program that is run beside the workload, so that the program can be ended with all
//! that it forked: what a parent leaves behind comes to its keeper (PR_SET_CHILD_SUBREAPER), whatever session it is in.
//!
//! In: signals to pass on, from the init. Out: an exit with the program's status. Must not: need `/proc`, which a policy may
//! leave out; hold a stream of the program; outlive its init. It has the workload's own rights, as the init has: a program
//! that kills its keeper gets away from it, as the workload's own processes do, and goes with the generation.

use std::{
    ops::RangeInclusive,
    os::fd::{AsRawFd as _, OwnedFd},
};

use molt_sys::process::{Fork, close_except, close_from, exit_now, fork};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, set_child_subreaper, wait, waitid},
    time::Timespec,
};

use crate::step::{At as _, Step};

/// The largest number a process can have on any Linux: PID_MAX_LIMIT.
const HIGHEST: i32 = 4 << 20;
#[expect(clippy::reversed_empty_ranges, reason = "no number is in it, and none is meant to be")]
const NONE: RangeInclusive<i32> = 1..=0;
/// How often what is left is looked for, and killed, among the numbers given since; and then among all there can be. What
/// forks faster than it is killed goes with the generation.
const ROUNDS: (usize, usize) = (500, 4);
/// The byte that asks for all of it to be killed; other bytes are signals for the program alone.
const ALL: u8 = 9;

/// The init's hold on a keeper.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Of the request.
    pub(crate) id: u32,
    orders: OwnedFd,
}

impl Kept {
    /// Signals the program; SIGKILL kills all that it has forked, too.
    pub(crate) fn signal(&self, number: i32) {
        if let Ok(byte) = u8::try_from(number) {
            // EAGAIN: it has more to do than it can; EPIPE: it has ended, and will be reaped in this same turn.
            let _ = rustix::io::write(&self.orders, &[byte]);
        }
    }
}

/// Forks a keeper, and the program `run` becomes below it. `run` is called in the program's process, and ends it.
pub(crate) fn keep(id: u32, run: impl FnOnce() -> i32) -> Step<(Pid, Kept)> {
    let (heard, orders) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).at("pipe", "exec")?;
    match fork().at("fork", "exec")? {
        Fork::Parent(pid) => Ok((pid, Kept { id, orders })),
        Fork::Child => {
            drop(orders);
            exit_now(watch(&heard, run).unwrap_or_else(crate::spawn::not_run))
        }
    }
}

/// The keeper's life; the status of the program.
fn watch(heard: &OwnedFd, run: impl FnOnce() -> i32) -> Result<i32, Errno> {
    set_child_subreaper(Pid::from_raw(1))?;
    let errno = |error: molt_sys::Error| error.errno;
    let program = match fork().map_err(errno)? {
        Fork::Parent(pid) => pid,
        Fork::Child => exit_now(run()),
    };
    // The program's streams and the init's socket are not the keeper's business: whoever reads them waits for their end.
    let heard = rustix::io::fcntl_dupfd_cloexec(heard, 64)?;
    let number = heard.as_raw_fd();
    close_except(0, number, [number; 3]).and_then(|()| close_from(number + 1)).map_err(errno)?;
    let children = molt_sys::signal::descriptor(&[17]).map_err(errno)?;
    loop {
        if let Some(status) = reap(program) {
            return Ok(status);
        }
        let mut fds = [PollFd::new(&heard, PollFlags::IN), PollFd::new(&children, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        while let Ok(Some(_)) = molt_sys::signal::receive(&children) {}
        let mut byte = [0u8; 1];
        match rustix::io::read(&heard, &mut byte) {
            Ok(1) if byte == [ALL] => return Ok(kill_all(program)),
            Ok(1) => {
                // ESRCH: it has ended, and is reaped in the next turn.
                let _ = molt_sys::signal::send(program, byte[0].into());
            }
            // The init is gone; the kernel kills what is left.
            Ok(_) => return Ok(128 + 9),
            Err(_) => {}
        }
    }
}

/// Reaps what has ended; the status of the program, if it is among them. What it left behind goes to the init then.
fn reap(program: Pid) -> Option<i32> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == program => return Some(crate::init::code(status)),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Kills all children, and those that come to be its own when their parents are dead, until there are none.
fn kill_all(program: Pid) -> i32 {
    let mut status = 128 + 9;
    let first = program.as_raw_nonzero().get();
    for round in 0..ROUNDS.0 + ROUNDS.1 {
        let (newer, older) = if round < ROUNDS.0 { since(first) } else { (1..=HIGHEST, NONE) };
        for number in newer.chain(older) {
            let Some(pid) = Pid::from_raw(number) else { continue };
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            // ECHILD: not a child of this process, or no process.
            if waitid(WaitId::Pid(pid), look).is_ok() {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, ended))) if pid == program => status = crate::init::code(ended),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                Err(_) => return status,
            }
        }
        // Killed, and not dead yet.
        let moment = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let _ = poll(&mut [], Some(&moment));
    }
    status
}

/// The numbers of processes made after the one that was given `first`: they are given in turn, and begin anew.
fn since(first: i32) -> (RangeInclusive<i32>, RangeInclusive<i32>) {
    let newest = match fork() {
        Ok(Fork::Child) => exit_now(0),
        Ok(Fork::Parent(pid)) => pid.as_raw_nonzero().get(),
        Err(_) => HIGHEST,
    };
    if newest >= first { (first..=newest, NONE) } else { (first..=HIGHEST, 1..=newest) }
}
