//! What a probe is, and how one is run: in a child of its own, with a deadline, so that none disturbs another.
//!
//! In: a function. Out: one word: `ok`, the name of an errno, the name of the signal that ended it, `TIMEOUT`, or a word of
//! the probe's own. Must not: print a pid, a time, or anything else that differs from run to run.

use std::{io::Write as _, os::fd::OwnedFd, time::Duration};

use nix::errno::Errno;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno as Code,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group, pidfd_open, setpgid, waitpid},
};

use crate::raw::{self, Fork};

const DEADLINE: Duration = Duration::from_secs(20);

/// One attack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe {
    /// Row of the list of attacks, a dot, a name.
    pub(crate) id: &'static str,
    /// What is tried, and what a success would open; or why one is accepted.
    pub(crate) why: &'static str,
    /// Tries it.
    pub(crate) run: fn() -> Answer,
}

/// A probe.
pub(crate) const fn probe(id: &'static str, why: &'static str, run: fn() -> Answer) -> Probe {
    Probe { id, why, run }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer(String);

impl Answer {
    pub(crate) fn word(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The first of `found`, or a word for there being none.
    pub(crate) fn first(found: impl IntoIterator<Item = String>, none: &str) -> Self {
        Self(found.into_iter().next().unwrap_or_else(|| none.to_owned()))
    }
}

impl<T> From<Result<T, Errno>> for Answer {
    fn from(result: Result<T, Errno>) -> Self {
        Self(result.map_or_else(|errno| format!("{errno:?}"), |_| "ok".to_owned()))
    }
}

impl<T> From<Result<T, Code>> for Answer {
    fn from(result: Result<T, Code>) -> Self {
        result.map_err(|code| Errno::from_raw(code.raw_os_error())).into()
    }
}

impl<T> From<std::io::Result<T>> for Answer {
    fn from(result: std::io::Result<T>) -> Self {
        result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0))).into()
    }
}

/// Runs `attempt` in a child.
pub(crate) fn run(attempt: fn() -> Answer) -> String {
    apart(attempt).unwrap_or_else(|errno| format!("harness-{errno:?}"))
}

fn apart(attempt: fn() -> Answer) -> Result<String, Errno> {
    let code = |code: Code| Errno::from_raw(code.raw_os_error());
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(code)?;
    let child = match raw::fork()? {
        Fork::Child => {
            drop(read);
            // A group of its own, so that what it leaves behind can be ended with it.
            let _ = setpgid(None, None);
            let answer = attempt();
            let _ = std::fs::File::from(write).write_all(answer.0.as_bytes());
            raw::exit(0)
        }
        Fork::Parent(pid) => Pid::from_raw(pid).ok_or(Errno::ECHILD)?,
    };
    drop(write);
    let answer = wait(child, &read).map_err(code);
    // ESRCH: there is nobody left in it.
    let _ = kill_process_group(child, Signal::KILL);
    answer
}

fn wait(child: Pid, pipe: &OwnedFd) -> Result<String, Code> {
    let deadline = Timespec { tv_sec: i64::try_from(DEADLINE.as_secs()).unwrap_or(0), tv_nsec: 0 };
    let pidfd = pidfd_open(child, PidfdFlags::empty())?;
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let ended = loop {
        match poll(&mut fds, Some(&deadline)) {
            Err(Code::INTR) => {}
            result => break result? != 0,
        }
    };
    if !ended {
        kill_process(child, Signal::KILL)?;
    }
    let status = loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(Code::INTR) => {}
            result => break result?.map(|(_, status)| status),
        }
    };
    if !ended {
        return Ok("TIMEOUT".to_owned());
    }
    // Something that it left behind may hold the other end: what is there is all that comes.
    let mut buffer = [0; 512];
    rustix::io::ioctl_fionbio(pipe, true)?;
    let length = rustix::io::read(pipe, &mut buffer).unwrap_or(0);
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    let signal = status.and_then(rustix::process::WaitStatus::terminating_signal);
    Ok(match signal {
        Some(number) => nix::sys::signal::Signal::try_from(number)
            .map_or_else(|_| format!("signal-{number}"), |signal| signal.as_str().to_owned()),
        None if text.is_empty() => "nothing-said".to_owned(),
        None => text.replace([' ', '\n'], "_"),
    })
}

/// Runs `attempt` in a grandchild, for those that must see how a process of its own ends.
pub(crate) fn in_child(attempt: fn() -> Answer) -> Answer {
    Answer(run(attempt))
}
