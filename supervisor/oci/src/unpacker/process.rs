//! One unpacker as PID 1 has it: a pidfd, a socket, a way to be ended from another thread.
//!
//! In: an order with its descriptors. Out: what the process says, in time, or what became of it. Must not: wait without a
//! bound, believe more than a bounded message, or leave the process behind when dropped.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use molt_core::ids::DiffId;
use molt_sys::process::spawn;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
    time::Timespec,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

use super::{
    ENTRY, Ended, Unpacker,
    wire::{Job, Order, Said, VERSION},
};
use crate::{
    config::Limits,
    error::{Error, Result},
    layer::tree::XattrNamespace,
    reserve::Reserve,
};

/// How often it is looked whether a silent process still works, and what it leaves free.
const LOOK: Duration = Duration::from_millis(50);
/// From its start to its word that it is confined.
const CONFINED_WITHIN: Duration = Duration::from_secs(30);
/// Until a process that was killed is gone; longer only where the kernel itself hangs.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// Lower layers in one message.
const LOWERS: usize = 64;

/// Where another thread finds an unpacker: to end it, now or as soon as it is started, or to see it end.
#[derive(Debug)]
pub(crate) struct Switch {
    off: AtomicBool,
    process: watch::Sender<Option<Arc<OwnedFd>>>,
}

impl Default for Switch {
    fn default() -> Self {
        Self { off: AtomicBool::new(false), process: watch::Sender::new(None) }
    }
}

impl Switch {
    /// Kills what is registered, and what will be.
    pub(crate) fn off(&self) {
        self.off.store(true, Ordering::SeqCst);
        self.kill_if_off();
    }

    /// Whether nobody waits for the work any more.
    pub(crate) fn is_off(&self) -> bool {
        self.off.load(Ordering::SeqCst)
    }

    /// Whoever comes second, the one who registers or the one who switches off, sees the other.
    fn kill_if_off(&self) {
        if let (true, Some(process)) = (self.is_off(), &*self.process.borrow()) {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    fn register(&self, process: Option<Arc<OwnedFd>>) {
        self.process.send_replace(process);
        self.kill_if_off();
    }

    /// Ready when an unpacker was started and has ended; never where there was none.
    pub(crate) async fn ended(&self) {
        let mut process = self.process.subscribe();
        let started = process.wait_for(Option::is_some).await.ok().and_then(|started| started.clone());
        #[expect(
            deprecated,
            reason = "the constructor that replaces it is unsafe for types that may close their descriptor early; an \
                      OwnedFd never does"
        )]
        let watched = started.and_then(|pidfd| AsyncFd::with_interest(pidfd, Interest::READABLE).ok());
        match watched {
            Some(pidfd) => drop(pidfd.readable().await),
            None => std::future::pending().await,
        }
    }
}

/// What to do and with what.
pub(super) struct Task<'a> {
    pub(super) layer: DiffId,
    pub(super) job: Job,
    pub(super) xattrs: XattrNamespace,
    pub(super) limits: &'a Limits,
    pub(super) fds: &'a [BorrowedFd<'a>],
    pub(super) lowers: &'a [OwnedFd],
}

/// A confined process.
pub(super) struct Process<'a> {
    layer: DiffId,
    stall: Duration,
    reserve: Option<&'a Reserve<'a>>,
    unpacker: &'a Unpacker,
    switch: &'a Switch,
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    control: OwnedFd,
}

/// What a wait was ended by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// There is room in the pipe.
    Room,
    /// It said something, or is gone.
    Said,
}

impl<'a> Process<'a> {
    /// Starts an unpacker and waits until it is confined. Gives the walls it could not build, too. It must leave
    /// `reserve` free; none where it writes nothing.
    pub(super) fn start(
        unpacker: &'a Unpacker,
        switch: &'a Switch,
        reserve: Option<&'a Reserve<'a>>,
        task: &Task<'_>,
    ) -> Result<(Self, Vec<String>)> {
        let layer = task.layer;
        reserve.map_or(Ok(()), Reserve::check)?;
        let failed = |why: String| Error::Unpacker { layer, why: format!("its unpacker could not be started: {why}") };
        let (control, theirs) = molt_sys::socket::pair().map_err(|error| failed(error.to_string()))?;
        let null = unpacker.null.as_fd();
        let pid = spawn(&unpacker.path, &[c"molt", ENTRY], &[null, null, null, theirs.as_fd()])
            .map_err(|error| failed(error.to_string()))?;
        drop(theirs);
        let pidfd = Arc::new(pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| failed(errno.to_string()))?);
        switch.register(Some(Arc::clone(&pidfd)));
        let stall = task.limits.unpack_stall;
        let process = Self { layer, stall, reserve, unpacker, switch, pid, pidfd, control };
        let order = Order { version: VERSION, job: task.job, xattrs: task.xattrs, limits: task.limits.clone() };
        let order = serde_json::to_vec(&order).map_err(|error| failed(error.to_string()))?;
        process.send(&order, task.fds)?;
        for some in task.lowers.chunks(LOWERS) {
            let some: Vec<_> = some.iter().map(AsFd::as_fd).collect();
            process.send(b"lowers", &some)?;
        }
        match process.hear(CONFINED_WITHIN)? {
            Said::Ready { missing } => {
                let missing = missing.iter().take(16).map(|wall| super::wire::clean(wall)).collect();
                Ok((process, missing))
            }
            Said::Failed(fault) => Err(fault.into_error(layer)),
            other => Err(process.nonsense(&other)),
        }
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        match molt_sys::socket::send(&self.control, bytes, fds) {
            Ok(()) => Ok(()),
            // It is gone: why, its end tells.
            Err(error) if matches!(error.errno, Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Err(self.died()),
            Err(error) => Err(self.error(format!("its unpacker could not be given its order: {error}"))),
        }
    }

    fn error(&self, why: impl Into<String>) -> Error {
        Error::Unpacker { layer: self.layer, why: why.into() }
    }

    fn nonsense(&self, said: &Said) -> Error {
        let word = match said {
            Said::Ready { .. } => "Ready",
            Said::Unpacked { .. } => "Unpacked",
            Said::Settled => "Settled",
            Said::Failed(_) => "Failed",
        };
        self.error(format!("its unpacker said '{word}' where that makes no sense"))
    }

    /// The verdict on the job.
    pub(super) fn verdict(&self) -> Result<Said> {
        match self.hear(self.stall)? {
            Said::Failed(fault) => Err(fault.into_error(self.layer)),
            ready @ Said::Ready { .. } => Err(self.nonsense(&ready)),
            said => self.reserve.map_or(Ok(()), Reserve::check).map(|()| said),
        }
    }

    fn hear(&self, within: Duration) -> Result<Said> {
        self.watch(None, within)?;
        let mut bytes = Vec::new();
        match molt_sys::socket::receive(&self.control, &mut bytes) {
            // Descriptors that come along are closed here; it has none to give.
            Ok(Some(_)) => {
                serde_json::from_slice(&bytes).map_err(|_| self.error("its unpacker said something that is no verdict"))
            }
            Ok(None) => Err(self.died()),
            Err(error) if error.errno == Errno::CONNRESET => Err(self.died()),
            Err(error) => Err(self.error(format!("its unpacker could not be heard: {error}"))),
        }
    }

    /// An error when it has used up what must stay free. Cheap enough to be called for each piece.
    pub(super) fn look(&self) -> Result<()> {
        self.reserve.map_or(Ok(()), Reserve::look)
    }

    /// Waits until it says something, or `pipe` takes bytes. An error when it neither did so nor used the processor for
    /// `within`, and when it uses up what must stay free.
    pub(super) fn watch(&self, pipe: Option<&OwnedFd>, within: Duration) -> Result<Woken> {
        let mut moved = Instant::now();
        let mut used = molt_sys::process::cpu_time(self.pid).ok();
        loop {
            let mut fds = vec![PollFd::new(&self.control, PollFlags::IN)];
            fds.extend(pipe.map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
            match poll(&mut fds, Some(&timespec(LOOK.min(within)))) {
                Ok(0) => {}
                Ok(_) => {
                    let said = fds.first().is_some_and(|control| !control.revents().is_empty());
                    return Ok(if said { Woken::Said } else { Woken::Room });
                }
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(self.error(format!("its unpacker could not be watched: {errno}"))),
            }
            self.look()?;
            let now = molt_sys::process::cpu_time(self.pid).ok();
            if now != used {
                (moved, used) = (Instant::now(), now);
            } else if moved.elapsed() >= within {
                let seconds = within.as_secs_f64();
                return Err(self.error(format!("its unpacker made no progress for {seconds} s and was killed")));
            }
        }
    }

    /// The error for bytes that could not be passed on.
    pub(super) fn lost(&self, errno: Errno) -> Error {
        self.error(format!("its unpacker could not be fed: {errno}"))
    }

    /// The error for a process that went away without a verdict.
    fn died(&self) -> Error {
        // Its socket is closed before it is a zombie.
        let ended = self.gone(GONE_WITHIN);
        if self.switch.is_off() {
            return self.error("nobody waits for it any more");
        }
        let why = match ended {
            Some(Ended::Signal(9)) => {
                "its unpacker was killed (SIGKILL): memory ran out, or somebody ended it".to_owned()
            }
            Some(Ended::Signal(31)) => {
                "its unpacker was killed (SIGSYS): it made a system call that it has no business with".to_owned()
            }
            Some(Ended::Signal(24)) => "its unpacker was killed (SIGXCPU): it ran for too long".to_owned(),
            Some(Ended::Signal(signal)) => format!("its unpacker crashed (signal {signal})"),
            Some(Ended::Exit(status)) => format!("its unpacker ended with status {status} and without a verdict"),
            None => "its unpacker went away without a verdict".to_owned(),
        };
        self.error(why)
    }

    /// Waits for its end and takes it off the process table, where nobody else did.
    fn gone(&self, within: Duration) -> Option<Ended> {
        let start = Instant::now();
        loop {
            let mut fds = [PollFd::new(self.pidfd.as_ref(), PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(within.saturating_sub(start.elapsed())))) {
                Ok(0) => return None,
                Err(Errno::INTR) => {}
                _ => break,
            }
        }
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(status) => status.and_then(|status| {
                status.terminating_signal().map(Ended::Signal).or(status.exit_status().map(Ended::Exit))
            }),
            // PID 1 reaps whatever ends.
            Err(_) => (self.unpacker.reaped)(self.pid),
        }
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        // Whoever comes next removes the folder it writes to.
        let _ = self.gone(GONE_WITHIN);
        self.switch.register(None);
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
