//! A run from the supervisor's side: its init by pidfd and control socket, its gate, its execs.
//!
//! In: what the init says, and what the kernel says of it. Out: events. Must not: believe the init over the pidfd.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use molt_core::{
    confined::InForce,
    generation::Record,
    launch::{ExecRequest, FromShim, ToShim},
    machine::{Event, Run},
    wire::Section,
};
use molt_sys::socket::MAX_BYTES;
use rustix::{
    io::Errno,
    process::{Signal, pidfd_send_signal},
};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot, watch},
};

use super::notify::{Notify, Said};
use crate::{clock::mono_ns, rootfs::Rootfs, timer::timeout};

/// The part of a run that tasks share.
#[derive(Debug)]
pub(crate) struct Init {
    control: AsyncFd<OwnedFd>,
    pidfd: AsyncFd<OwnedFd>,
    execs: Mutex<HashMap<u32, oneshot::Sender<i32>>>,
    next_exec: AtomicU32,
    gone: watch::Sender<bool>,
    /// Whether its gate was opened and it is not yet known what became of the exec.
    swapping: watch::Sender<bool>,
    /// Processes in its namespaces that are not its children; none may join any more where this is `None`.
    unconfined: Mutex<Option<Vec<Weak<AsyncFd<OwnedFd>>>>>,
}

/// What a process needs to join a run.
#[derive(Debug)]
pub(crate) struct Place {
    /// In the order of `molt_core::launch::NAMESPACES`. That of the mounts also keeps them from being taken apart in the
    /// gap.
    pub(crate) namespaces: Vec<OwnedFd>,
    /// The workload's environment.
    pub(crate) env: BTreeMap<String, String>,
    /// The workload's.
    pub(crate) oom_score_adj: i32,
}

impl Place {
    /// Another hold of the same place.
    pub(crate) fn again(&self) -> std::io::Result<Self> {
        let namespaces = self.namespaces.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?;
        Ok(Self { namespaces, env: self.env.clone(), oom_score_adj: self.oom_score_adj })
    }
}

/// Why nothing was sent to an init.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotSent {
    /// More than a datagram holds.
    #[error("argv and env are longer than {} KiB together, as JSON", MAX_BYTES >> 10)]
    TooLong,
    /// What was sent before is still on its way.
    #[error("the init of the generation has not taken yet what was sent before")]
    Busy,
    /// There is no other side any more.
    #[error("the generation went away")]
    Gone,
}

/// A run that reached its gate.
#[derive(Debug)]
pub(crate) struct Live {
    /// Which.
    pub(crate) run: Run,
    /// What it was made from.
    pub(crate) record: Record,
    /// What confines it.
    pub(crate) in_force: InForce,
    /// What becomes of each section of its policy.
    pub(crate) sections: Vec<Section>,
    /// Its init.
    pub(crate) init: Arc<Init>,
    /// The write end of its gate, until it is opened or thrown away.
    pub(crate) gate: Option<OwnedFd>,
    /// The read end of its exec pipe, until exec.
    pub(crate) exec: Option<OwnedFd>,
    /// Its root: held so that nothing of it is taken apart in the gap.
    pub(crate) kept: Arc<Rootfs>,
    /// Its namespaces, and what else is wanted to join them.
    pub(crate) place: Place,
    /// The tasks that move its output, done when its last writer is gone.
    pub(crate) pumps: Vec<tokio::task::JoinHandle<()>>,
    /// What the program said.
    pub(crate) said: watch::Receiver<Said>,
    /// Whether nobody was named and it runs as the default user.
    pub(crate) default_identity: bool,
}

impl Init {
    /// A forked init. `control` must be non-blocking.
    pub(crate) fn new(control: OwnedFd, pidfd: OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            control: crate::watch::readable(control)?,
            pidfd: crate::watch::readable(pidfd)?,
            execs: Mutex::new(HashMap::new()),
            next_exec: AtomicU32::new(1),
            gone: watch::Sender::new(false),
            swapping: watch::Sender::new(false),
            unconfined: Mutex::new(Some(Vec::new())),
        })
    }

    /// Says something that nobody waits for an answer to: where it does not arrive, the pidfd says why.
    fn tell(&self, message: &ToShim) {
        let _ = self.send(message, &[]);
    }

    fn send(&self, message: &ToShim, fds: &[BorrowedFd<'_>]) -> Result<(), NotSent> {
        let bytes = serde_json::to_vec(message).unwrap_or_default();
        molt_sys::socket::send(self.control.get_ref(), &bytes, fds).map_err(|error| {
            tracing::debug!(%error, "failed to send to a shim");
            match error.errno {
                Errno::MSGSIZE => NotSent::TooLong,
                Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS => NotSent::Busy,
                _ => NotSent::Gone,
            }
        })
    }

    /// Signals the workload's main process.
    pub(crate) fn signal(&self, signal: i32) {
        self.tell(&ToShim::Signal(signal));
    }

    /// Stops it by a signal: when its main process has ended, the run has.
    pub(crate) fn stop(&self, signal: i32) {
        self.tell(&ToShim::Stop(signal));
    }

    /// Takes a process that joined the run, to be killed with it; false where the run is being stopped.
    pub(crate) fn admit(&self, process: &Arc<AsyncFd<OwnedFd>>) -> bool {
        let mut inside = self.unconfined.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inside) = inside.as_mut() else { return false };
        inside.retain(|other| other.strong_count() > 0);
        inside.push(Arc::downgrade(process));
        true
    }

    /// Kills what joined the run, and lets nothing more join it. What that leaves (children, another user's where CAP_KILL
    /// is missing) the kernel kills with the init.
    pub(crate) fn shut(&self) {
        let inside = self.unconfined.lock().unwrap_or_else(PoisonError::into_inner).take();
        for process in inside.iter().flatten().filter_map(Weak::upgrade) {
            let _ = pidfd_send_signal(process.get_ref(), Signal::KILL);
        }
    }

    /// Kills every process of the run at once.
    pub(crate) fn kill(&self) {
        self.shut();
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            // Without CAP_KILL another user's process cannot be signalled; its init ends itself when asked.
            Err(_) => self.tell(&ToShim::Kill),
        }
    }

    /// Changes to true when every process of the run is gone.
    pub(crate) fn gone(&self) -> watch::Receiver<bool> {
        self.gone.subscribe()
    }

    /// To be held from before the gate is opened until it was told what became of the exec. Meanwhile no exit is told: a
    /// program that could not be executed ends too, and that it ended is not why.
    pub(crate) fn swapping(self: &Arc<Self>) -> Swapping {
        self.swapping.send_replace(true);
        Swapping(Arc::clone(self))
    }

    /// Starts a process beside the workload; the receiver gets its exit status. An error: nothing was started.
    pub(crate) fn exec(
        &self,
        argv: Vec<String>,
        env: BTreeMap<String, String>,
        tty: bool,
        streams: [BorrowedFd<'_>; 3],
    ) -> Result<(u32, oneshot::Receiver<i32>), NotSent> {
        let id = self.next_exec.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        if let Err(why) = self.send(&ToShim::Exec(ExecRequest { id, argv, env, tty }), &streams) {
            self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            return Err(why);
        }
        Ok((id, receiver))
    }

    /// Signals a process of [`Init::exec`].
    pub(crate) fn signal_exec(&self, id: u32, signal: i32) {
        self.tell(&ToShim::SignalExec { id, signal });
    }

    /// Waits for the next message; `None` when the init has closed the socket.
    pub(crate) async fn next(&self) -> Option<(FromShim, Vec<OwnedFd>)> {
        let (bytes, fds) = hear(&self.control).await?;
        match serde_json::from_slice(&bytes) {
            Ok(message) => Some((message, fds)),
            Err(error) => {
                tracing::warn!(%error, "a shim sent what it must not; it is killed");
                self.kill();
                None
            }
        }
    }

    /// Waits until the init is a zombie: every process of its PID namespace is gone then. pid_namespaces(7).
    pub(crate) async fn wait_gone(&self) {
        if let Ok(ready) = self.pidfd.readable().await {
            drop(ready);
        }
    }

    /// Follows the run to its end. Whom the program names as its main process is told to the init, before it is answered
    /// whether one takes the place of another: who hands over may end right after saying so.
    pub(crate) async fn follow(self: Arc<Self>, run: Run, notify: Arc<Notify>, events: mpsc::UnboundedSender<Event>) {
        let (mut exited_at, mut said, mut main) = (None, notify.said(), None);
        loop {
            let named = said.borrow_and_update().main;
            if named != main {
                main = named;
                self.tell(&ToShim::Main(named.unwrap_or_default()));
            }
            let message = tokio::select! {
                biased;
                message = self.next() => message,
                Ok(()) = said.changed() => continue,
                () = self.wait_gone() => {
                    // Whatever was sent before the end is still in the socket.
                    timeout(Duration::ZERO, self.next()).await.unwrap_or_default()
                }
            };
            match message {
                Some((FromShim::Exited { status, at }, _)) if exited_at.is_none() => {
                    // The clock is the kernel's, the number is the shim's: it cannot lie in the future.
                    let at_ns = at.min(mono_ns());
                    exited_at = Some(at_ns);
                    let _ = self.swapping.subscribe().wait_for(|swapping| !swapping).await;
                    let _ = events.send(Event::Exited { instance: run.instance, status, at_ns });
                }
                Some((FromShim::Left, _)) => {
                    notify.hear();
                    let named = notify.said().borrow().main;
                    // The one who left is not its own heir.
                    let answer = named.filter(|named| main != Some(*named)).map_or(ToShim::End, ToShim::Main);
                    main = named;
                    self.tell(&answer);
                }
                Some((FromShim::ExecExited { id, status }, _)) => {
                    let waiter = self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                    if let Some(waiter) = waiter {
                        let _ = waiter.send(status);
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        self.shut();
        self.wait_gone().await;
        let _ = self.swapping.subscribe().wait_for(|swapping| !swapping).await;
        let at_ns = exited_at.unwrap_or_else(mono_ns);
        self.gone.send_replace(true);
        let _ = events.send(Event::Gone { instance: run.instance, at_ns });
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// See [`Init::swapping`].
#[derive(Debug)]
pub(crate) struct Swapping(Arc<Init>);

impl Drop for Swapping {
    fn drop(&mut self) {
        self.0.swapping.send_replace(false);
    }
}

/// Waits for the next datagram; `None` when the other side has closed the socket.
pub(crate) async fn hear(control: &AsyncFd<OwnedFd>) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = Vec::new();
    loop {
        let mut ready = control.readable().await.ok()?;
        match molt_sys::socket::receive(control.get_ref(), &mut buffer) {
            Ok(Some(fds)) => return Some((buffer, fds)),
            Err(error) if error.errno == Errno::AGAIN => ready.clear_ready(),
            Ok(None) | Err(_) => return None,
        }
    }
}

impl Live {
    /// Opens the gate: one byte. The receiver of the exec pipe's answer is the caller.
    pub(crate) fn open(&mut self) -> std::io::Result<Option<OwnedFd>> {
        let Some(gate) = self.gate.take() else { return Ok(None) };
        loop {
            match rustix::io::write(gate.as_fd(), b"!") {
                Ok(_) => return Ok(self.exec.take()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    use super::*;

    /// An init, and its own end of the socket, which nobody reads.
    fn init() -> (Init, OwnedFd) {
        let (ours, theirs) = molt_sys::socket::pair().unwrap();
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        (Init::new(ours, pidfd_open(getpid(), PidfdFlags::empty()).unwrap()).unwrap(), theirs)
    }

    fn exec(init: &Init, bytes: usize) -> Result<(), NotSent> {
        let null = std::fs::File::open("/dev/null").unwrap();
        let argv = vec!["echo".to_owned(), "x".repeat(bytes)];
        init.exec(argv, BTreeMap::new(), false, [null.as_fd(); 3]).map(drop)
    }

    #[tokio::test]
    async fn what_an_init_was_not_sent_is_said_and_nobody_waits_for_its_end() {
        let (init, theirs) = init();
        let waiting = |init: &Init| init.execs.lock().unwrap().len();
        assert_eq!(exec(&init, MAX_BYTES), Err(NotSent::TooLong));
        assert_eq!(waiting(&init), 0);
        // What is nearly as long is sent.
        assert_eq!(exec(&init, MAX_BYTES - 200), Ok(()));
        let sent = (1..100).take_while(|_| exec(&init, 60_000).is_ok()).count() + 1;
        assert!(sent < 99, "{sent}");
        assert_eq!(exec(&init, 60_000), Err(NotSent::Busy));
        assert_eq!(waiting(&init), sent);
        drop(theirs);
        assert_eq!(exec(&init, 1), Err(NotSent::Gone));
        assert_eq!(waiting(&init), sent);
    }
}
