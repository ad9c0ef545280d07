//! Signals for PID 1: stop requests, forwards, and the children that ended.
//!
//! In: a signalfd. Out: what the dispatcher must know. Must not: run anything in a signal handler.

use std::{
    cell::Cell,
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use molt_oci::unpacker::Ended;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::io::unix::AsyncFd;

/// SIGHUP SIGINT SIGQUIT SIGUSR1 SIGUSR2 SIGTERM SIGCHLD SIGWINCH. signal(7).
pub(crate) const TAKEN: [i32; 8] = [1, 2, 3, 10, 12, 15, 17, 28];

/// SIGHUP.
pub(crate) const HANGUP: i32 = 1;

/// What a signal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Stop the workload with this signal, then exit.
    Stop(i32),
    /// SIGHUP, from whom: read the spec again, or pass it on to the workload.
    Hangup {
        /// 0 where it is not of this PID namespace.
        pid: u32,
        /// Its user.
        uid: u32,
    },
    /// Pass it on to the workload.
    Forward(i32),
}

/// The last children that were reaped, for whoever started one and comes too late to wait for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaped(Arc<Mutex<VecDeque<(Pid, Ended)>>>);

/// More than can end before whoever started one comes to look: [`reap`] makes way after [`REAP_A_TURN`].
const REAPED: usize = 4 * REAP_A_TURN;

impl Reaped {
    /// How the child `pid` ended.
    pub(crate) fn ended(&self, pid: Pid) -> Option<Ended> {
        let ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ended.iter().rev().find(|(of, _)| *of == pid).map(|(_, ended)| *ended)
    }

    /// Takes one child off the process table. Under the lock, so that who finds it gone finds it here.
    fn reap(&self) -> rustix::io::Result<Option<(Pid, WaitStatus)>> {
        let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let child = wait(WaitOptions::NOHANG)?;
        if let Some((pid, status)) = child
            && let Some(how) = status.terminating_signal().map(Ended::Signal).or(status.exit_status().map(Ended::Exit))
        {
            if ended.len() >= REAPED {
                ended.pop_front();
            }
            ended.push_back((pid, how));
        }
        Ok(child)
    }
}

/// The signals of this process.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: AsyncFd<OwnedFd>,
    reaped: Reaped,
    /// There may be more to reap: its signal was read.
    more: Cell<bool>,
}

/// Most children reaped in one turn.
const REAP_A_TURN: usize = 256;

impl Signals {
    /// Takes over the descriptor made before the first thread was.
    pub(crate) fn new(fd: OwnedFd, reaped: Reaped) -> std::io::Result<Self> {
        Ok(Self { fd: crate::watch::readable(fd)?, reaped, more: Cell::new(false) })
    }

    /// Waits for the next signal that asks for something; children are reaped on the way. May be dropped at any point.
    pub(crate) async fn next(&self) -> Asked {
        loop {
            if self.more.get() {
                reap(&self.reaped).await;
                self.more.set(false);
            }
            let Ok(mut ready) = self.fd.readable().await else { std::future::pending().await };
            // An init that ended is known by its pidfd too, and who waits for that comes first: reaping takes longer than
            // opening a gate. Nothing has been taken yet, so this may be dropped here.
            tokio::task::yield_now().await;
            match molt_sys::signal::receive(self.fd.get_ref()) {
                Ok(Some(received)) => match received.signal {
                    17 => self.more.set(true),
                    HANGUP => return Asked::Hangup { pid: received.pid, uid: received.uid },
                    signal @ (2 | 3 | 15) => return Asked::Stop(signal),
                    signal => return Asked::Forward(signal),
                },
                Ok(None) | Err(_) => ready.clear_ready(),
            }
        }
    }
}

/// Every child of PID 1: launchers, inits, and orphans of whoever was exec'd into the container. Which of them was an
/// init its pidfd tells.
async fn reap(reaped: &Reaped) {
    loop {
        for _ in 0..REAP_A_TURN {
            match reaped.reap() {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
        tokio::task::yield_now().await;
    }
}
