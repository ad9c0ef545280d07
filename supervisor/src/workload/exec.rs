//! A process run inside a running generation, in the workload's confinement, with its streams.
//!
//! In: an exec request that the generation's init has taken. Out: descriptors to pump and the exit status. Must not:
//! hand out a descriptor of PID 1's own terminal.

use std::os::fd::OwnedFd;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use tokio::sync::{mpsc, oneshot};

/// A new terminal of PID 1's: its master side and the side a program gets. pty(7).
pub(crate) fn terminal() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let program = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, program))
}

/// A running exec; dropping it closes the streams, and the dispatcher then sends SIGHUP, as a closed terminal would.
#[derive(Debug)]
pub(crate) struct ExecSession {
    /// Where to write its standard input; `None` when it reads from `/dev/null`. With a terminal: its master side.
    pub(crate) stdin: Option<OwnedFd>,
    /// Its standard output (non-blocking); with a terminal: the master side again, carrying both streams.
    pub(crate) stdout: OwnedFd,
    /// Its standard error (non-blocking); `None` with a terminal.
    pub(crate) stderr: Option<OwnedFd>,
    /// Whether the descriptors are the master side of a terminal.
    pub(crate) tty: bool,
    /// Its exit status: code, or 128 + signal. Closed without a value when the generation went away first.
    pub(crate) exited: oneshot::Receiver<i32>,
    /// Signals to send to it.
    pub(crate) signals: mpsc::Sender<i32>,
}
