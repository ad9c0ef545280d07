//! A process run inside a running generation, with its streams.
//!
//! In: an exec request that the generation's init has taken, or that was run unconfined. Out: descriptors to pump and the exit status. Must not:
//! hand out a descriptor of PID 1's own terminal.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use molt_core::wire::ExecOptions;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    pipe::{PipeFlags, pipe_with},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
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

/// The streams of a process, and what the other ends are for.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Standard input, output and error of the process.
    pub(crate) theirs: [OwnedFd; 3],
    /// As [`ExecSession::stdin`].
    pub(crate) stdin: Option<OwnedFd>,
    /// As [`ExecSession::stdout`].
    pub(crate) stdout: OwnedFd,
    /// As [`ExecSession::stderr`].
    pub(crate) stderr: Option<OwnedFd>,
}

impl Streams {
    /// A terminal, or pipes.
    pub(crate) fn new(options: &ExecOptions) -> rustix::io::Result<Self> {
        if options.tty {
            let (stdout, terminal) = terminal()?;
            if options.rows > 0 && options.cols > 0 {
                let size = Winsize { ws_row: options.rows, ws_col: options.cols, ws_xpixel: 0, ws_ypixel: 0 };
                tcsetwinsize(&stdout, size)?;
            }
            let again = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 0);
            let theirs = [again(&terminal)?, again(&terminal)?, terminal];
            return Ok(Self { theirs, stdin: Some(again(&stdout)?), stdout, stderr: None });
        }
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let ((stdout, out), (stderr, err)) = (pipe()?, pipe()?);
        let (stdin, input) = if options.stdin {
            let (read, write) = pipe()?;
            (Some(write), read)
        } else {
            (None, openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
        };
        Ok(Self { theirs: [input, out, err], stdin, stdout, stderr: Some(stderr) })
    }

    /// The ends that the process gets.
    pub(crate) fn lent(&self) -> [BorrowedFd<'_>; 3] {
        self.theirs.each_ref().map(|fd| fd.as_fd())
    }

    /// Those of a process that has its own, with its end and what takes signals for it.
    pub(crate) fn session(self, exited: oneshot::Receiver<i32>, signals: mpsc::Sender<i32>) -> ExecSession {
        let Self { stdin, stdout, stderr, .. } = self;
        ExecSession { stdin, stdout, tty: stderr.is_none(), stderr, exited, signals }
    }
}

/// A running exec; dropping it closes the streams, and SIGHUP is then sent to it, as a closed terminal would.
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
