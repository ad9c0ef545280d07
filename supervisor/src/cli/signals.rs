//! Signals, for commands that have something to do when they come.
//!
//! In: which ones. Out: each of them, by number. Must not: bring the runtime's own handling of signals: that is made with
//! every runtime of a program that has it, PID 1's too, and panics where it cannot be.

use std::os::fd::OwnedFd;

use rustix::process::Signal;
use tokio::io::unix::AsyncFd;

use super::fault::Fault;

pub(super) const HANGUP: i32 = Signal::HUP.as_raw();
pub(super) const INTERRUPT: i32 = Signal::INT.as_raw();
pub(super) const TERMINATE: i32 = Signal::TERM.as_raw();
pub(super) const WINDOW: i32 = Signal::WINCH.as_raw();

/// Signals that do nothing by themselves any more. signalfd(2).
#[derive(Debug)]
pub(super) struct Signals(AsyncFd<OwnedFd>);

impl Signals {
    /// From now on.
    pub(super) fn listen(which: &[i32]) -> Result<Self, Fault> {
        let failed = |error: String| Fault::Local(format!("failed to listen for signals: {error}"));
        let signals = molt_sys::signal::descriptor(which).map_err(|error| failed(error.to_string()))?;
        crate::watch::readable(signals).map(Self).map_err(|error| failed(error.to_string()))
    }

    /// Signals as a test writes them.
    #[cfg(test)]
    pub(super) fn of(told: OwnedFd) -> Self {
        Self(crate::watch::readable(told).unwrap())
    }

    /// The next one. May be dropped at any point: none is lost.
    pub(super) async fn next(&self) -> i32 {
        loop {
            let Ok(mut ready) = self.0.readable().await else { std::future::pending().await };
            match molt_sys::signal::receive(self.0.get_ref()) {
                Ok(Some(received)) => return received.signal,
                Ok(None) | Err(_) => ready.clear_ready(),
            }
        }
    }
}

/// Resolves at Ctrl-C. Where that cannot be listened for it ends the program, as it does by itself.
pub(super) async fn interrupted() {
    match Signals::listen(&[INTERRUPT]) {
        Ok(signals) => drop(signals.next().await),
        Err(_) => std::future::pending().await,
    }
}
