//! One confined process as PID 1 has it: a pidfd, a socket, a way to be ended from another thread.
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
    wire::{Fault, Job, Order, Said, VERSION},
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
/// From the end of its socket to its own: longer only where it has something to hide, or a lot of memory to give back.
const SILENT_FOR: Duration = Duration::from_secs(5);
/// Lower layers in one message.
const LOWERS: usize = 64;

/// Where another thread finds the processes of a layer: to end them, now or as soon as they are started, or to see the
/// first of them end.
#[derive(Debug)]
pub(crate) struct Switch {
    off: AtomicBool,
    processes: watch::Sender<Vec<Arc<OwnedFd>>>,
}

impl Default for Switch {
    fn default() -> Self {
        Self { off: AtomicBool::new(false), processes: watch::Sender::new(Vec::new()) }
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
        if self.is_off() {
            for process in &*self.processes.borrow() {
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
        }
    }

    fn register(&self, process: &Arc<OwnedFd>) {
        self.processes.send_modify(|all| all.push(Arc::clone(process)));
        self.kill_if_off();
    }

    fn forget(&self, process: &Arc<OwnedFd>) {
        self.processes.send_modify(|all| all.retain(|other| !Arc::ptr_eq(other, process)));
    }

    /// Ready when the first of them was started and has ended; never where there was none.
    pub(crate) async fn ended(&self) {
        let mut processes = self.processes.subscribe();
        let started = processes.wait_for(|all| !all.is_empty()).await.ok().and_then(|all| all.first().cloned());
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
    job: Job,
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
    /// This one, the first that did, said something or is gone.
    Said(usize),
}

impl<'a> Process<'a> {
    /// Starts a process and gives it its order. While it is watched `reserve` must stay free; none where nothing is written.
    pub(super) fn start(
        unpacker: &'a Unpacker,
        switch: &'a Switch,
        reserve: Option<&'a Reserve<'a>>,
        task: &Task<'_>,
    ) -> Result<Self> {
        let (layer, job) = (task.layer, task.job);
        reserve.map_or(Ok(()), Reserve::check)?;
        let failed =
            |why: String| Error::Unpacker { layer, why: format!("its {} could not be started: {why}", job.name()) };
        let (control, theirs) = molt_sys::socket::pair().map_err(|error| failed(error.to_string()))?;
        let null = unpacker.null.as_fd();
        let pid = spawn(&unpacker.path, &[c"molt", ENTRY], &[null, null, null, theirs.as_fd()])
            .map_err(|error| failed(error.to_string()))?;
        drop(theirs);
        let pidfd = Arc::new(pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| failed(errno.to_string()))?);
        switch.register(&pidfd);
        let stall = task.limits.unpack_stall;
        let process = Self { layer, job, stall, reserve, unpacker, switch, pid, pidfd, control };
        let order = Order { version: VERSION, job, xattrs: task.xattrs, limits: task.limits.clone() };
        let order = serde_json::to_vec(&order).map_err(|error| failed(error.to_string()))?;
        process.send(&order, task.fds)?;
        for some in task.lowers.chunks(LOWERS) {
            let some: Vec<_> = some.iter().map(AsFd::as_fd).collect();
            process.send(b"lowers", &some)?;
        }
        Ok(process)
    }

    /// Waits until it is confined. Gives the walls it could not build.
    pub(super) fn confined(&self) -> Result<Vec<String>> {
        match self.hear(CONFINED_WITHIN)? {
            Said::Ready { missing } => Ok(missing.iter().take(16).map(|wall| super::wire::clean(wall)).collect()),
            Said::Failed(fault) => Err(self.failed(fault)),
            other => Err(self.nonsense(&other)),
        }
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        match molt_sys::socket::send(&self.control, bytes, fds) {
            Ok(()) => Ok(()),
            // It is gone: why, its end tells.
            Err(error) if matches!(error.errno, Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Err(self.died()),
            Err(error) => Err(self.error(format!("could not be given its order: {error}"))),
        }
    }

    fn error(&self, why: impl std::fmt::Display) -> Error {
        Error::Unpacker { layer: self.layer, why: format!("its {} {why}", self.job.name()) }
    }

    /// The error for a word that is not one of those that may come now.
    pub(super) fn nonsense(&self, said: &Said) -> Error {
        let word = match said {
            Said::Ready { .. } => "Ready",
            Said::Decoded { .. } => "Decoded",
            Said::Unread => "Unread",
            Said::Unpacked { .. } => "Unpacked",
            Said::Short(_) => "Short",
            Said::Settled => "Settled",
            Said::Failed(_) => "Failed",
        };
        self.error(format!("said '{word}' where that makes no sense"))
    }

    /// What it says went wrong.
    pub(super) fn failed(&self, fault: Fault) -> Error {
        match (self.job, fault) {
            (Job::Decode(_), Fault::NoSpace { .. } | Fault::UnmappedOwner { .. }) => {
                self.error("said something of files, of which it knows none")
            }
            (job, fault) => fault.into_error(self.layer, job.name()),
        }
    }

    /// The verdict on the job.
    pub(super) fn verdict(&self) -> Result<Said> {
        match self.hear(self.stall)? {
            Said::Failed(fault) => Err(self.failed(fault)),
            // What is missing may be why.
            short @ Said::Short(_) => Ok(short),
            ready @ Said::Ready { .. } => Err(self.nonsense(&ready)),
            said => self.reserve.map_or(Ok(()), Reserve::check).map(|()| said),
        }
    }

    fn hear(&self, within: Duration) -> Result<Said> {
        watch(&[self], None, within)?;
        let mut bytes = Vec::new();
        match molt_sys::socket::receive(&self.control, &mut bytes) {
            // Descriptors that come along are closed here; it has none to give.
            Ok(Some(_)) => serde_json::from_slice(&bytes).map_err(|_| self.error("said something that is no verdict")),
            Ok(None) => Err(self.died()),
            Err(error) if error.errno == Errno::CONNRESET => Err(self.died()),
            Err(error) => Err(self.error(format!("could not be heard: {error}"))),
        }
    }

    /// An error when it has used up what must stay free. Cheap enough to be called for each piece.
    pub(super) fn look(&self) -> Result<()> {
        self.reserve.map_or(Ok(()), Reserve::look)
    }

    /// The error for bytes that could not be passed on.
    pub(super) fn lost(&self, errno: Errno) -> Error {
        self.error(format!("could not be fed: {errno}"))
    }

    /// The error for a process that went away without a verdict.
    fn died(&self) -> Error {
        // Its socket is closed before it is a zombie; one that closed it and lives on is ended here.
        let ended = self.gone(SILENT_FOR).or_else(|| {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            self.gone(GONE_WITHIN);
            None
        });
        if self.switch.is_off() {
            return Error::Unpacker { layer: self.layer, why: "nobody waits for it any more".to_owned() };
        }
        self.error(match ended {
            Some(Ended::Signal(9)) => "was killed (SIGKILL): memory ran out, or somebody ended it".to_owned(),
            Some(Ended::Signal(31)) => {
                "was killed (SIGSYS): it made a system call that it has no business with".to_owned()
            }
            Some(Ended::Signal(24)) => "was killed (SIGXCPU): it ran for too long".to_owned(),
            Some(Ended::Signal(signal)) => format!("crashed (signal {signal})"),
            Some(Ended::Exit(status)) => format!("ended with status {status} and without a verdict"),
            None => "went away without a verdict".to_owned(),
        })
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
        self.switch.forget(&self.pidfd);
    }
}

/// Waits until one of `processes` says something, or `pipe` takes bytes. An error when they neither did so nor used the
/// processor for `within`, and when one uses up what must stay free.
pub(super) fn watch(processes: &[&Process<'_>], pipe: Option<&OwnedFd>, within: Duration) -> Result<Woken> {
    let Some(first) = processes.first() else { return Ok(Woken::Room) };
    let used =
        || processes.iter().filter_map(|process| molt_sys::process::cpu_time(process.pid).ok()).sum::<Duration>();
    let (mut moved, mut before) = (Instant::now(), used());
    loop {
        let mut fds: Vec<_> = processes.iter().map(|process| PollFd::new(&process.control, PollFlags::IN)).collect();
        fds.extend(pipe.map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        match poll(&mut fds, Some(&timespec(LOOK.min(within)))) {
            Ok(0) => {}
            Ok(_) => {
                let said = fds.iter().take(processes.len()).position(|control| !control.revents().is_empty());
                return Ok(said.map_or(Woken::Room, Woken::Said));
            }
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(first.error(format!("could not be watched: {errno}"))),
        }
        for process in processes {
            process.look()?;
        }
        let now = used();
        if now != before {
            (moved, before) = (Instant::now(), now);
        } else if moved.elapsed() >= within {
            let names: Vec<_> = processes.iter().map(|process| process.job.name()).collect();
            let (names, was) = (names.join(" and its "), if names.len() > 1 { "were" } else { "was" });
            let why = format!("its {names} made no progress for {} s and {was} killed", within.as_secs_f64());
            return Err(Error::Unpacker { layer: first.layer, why });
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
