//! Signals for PID 1: stop requests, forwards, and the children that ended.
//!
//! In: a signalfd. Out: what the dispatcher must know. Must not: run anything in a signal handler.

use std::os::fd::OwnedFd;

use rustix::process::{WaitOptions, wait};
use tokio::io::unix::AsyncFd;

/// SIGHUP SIGINT SIGQUIT SIGUSR1 SIGUSR2 SIGTERM SIGCHLD SIGWINCH. signal(7).
pub(crate) const TAKEN: [i32; 8] = [1, 2, 3, 10, 12, 15, 17, 28];

/// What a signal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Stop the workload with this signal, then exit.
    Stop(i32),
    /// Pass it on to the workload.
    Forward(i32),
}

/// The signals of this process.
#[derive(Debug)]
pub(crate) struct Signals(AsyncFd<OwnedFd>);

/// Most children reaped in one turn.
const REAP_A_TURN: usize = 256;

impl Signals {
    /// Takes over the descriptor made before the first thread was.
    pub(crate) fn new(fd: OwnedFd) -> std::io::Result<Self> {
        crate::watch::readable(fd).map(Self)
    }

    /// Waits for the next signal that asks for something; children are reaped on the way.
    pub(crate) async fn next(&self) -> Asked {
        loop {
            let Ok(mut ready) = self.0.readable().await else { std::future::pending().await };
            // An init that ended is known by its pidfd too, and who waits for that comes first: reaping takes longer than
            // opening a gate. Nothing has been taken yet, so this may be dropped here.
            tokio::task::yield_now().await;
            match molt_sys::signal::receive(self.0.get_ref()) {
                Ok(Some(received)) => match received.signal {
                    17 => reap().await,
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
async fn reap() {
    loop {
        for _ in 0..REAP_A_TURN {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
        tokio::task::yield_now().await;
    }
}
