//! A run from the supervisor's side: its init by pidfd and control socket, its gate, its execs.
//!
//! In: what the init says, and what the kernel says of it. Out: events. Must not: believe the init over the pidfd.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use molt_core::{
    generation::Record,
    launch::{Confinement, ExecRequest, FromShim, Report, ToShim},
    machine::{Event, Run},
};
use rustix::{
    io::Errno,
    process::{Signal, pidfd_send_signal},
};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot, watch},
};

use super::notify::Said;
use crate::{clock::mono_ns, rootfs::Rootfs};

/// The part of a run that tasks share.
#[derive(Debug)]
pub(crate) struct Init {
    control: AsyncFd<OwnedFd>,
    pidfd: AsyncFd<OwnedFd>,
    execs: Mutex<HashMap<u32, oneshot::Sender<i32>>>,
    next_exec: AtomicU32,
    gone: watch::Sender<bool>,
}

/// A run that reached its gate.
#[derive(Debug)]
pub(crate) struct Live {
    /// Which.
    pub(crate) run: Run,
    /// What it was made from.
    pub(crate) record: Record,
    /// What was asked of the shim.
    pub(crate) confinement: Confinement,
    /// What it reports.
    pub(crate) report: Report,
    /// Its init.
    pub(crate) init: Arc<Init>,
    /// The write end of its gate, until it is opened or thrown away.
    pub(crate) gate: Option<OwnedFd>,
    /// The read end of its exec pipe, until exec.
    pub(crate) exec: Option<OwnedFd>,
    /// Its root and its mount namespace: held so that nothing of them is taken apart in the gap.
    #[expect(dead_code, reason = "held, not used: dropping it takes the root apart")]
    pub(crate) kept: (Arc<Rootfs>, OwnedFd),
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
        })
    }

    fn tell(&self, message: &ToShim, fds: &[BorrowedFd<'_>]) -> bool {
        let bytes = serde_json::to_vec(message).unwrap_or_default();
        match molt_sys::socket::send(self.control.get_ref(), &bytes, fds) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "failed to send to a shim");
                false
            }
        }
    }

    /// Signals the workload's main process.
    pub(crate) fn signal(&self, signal: i32) {
        self.tell(&ToShim::Signal(signal), &[]);
    }

    /// Kills every process of the run at once.
    pub(crate) fn kill(&self) {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            // Without CAP_KILL another user's process cannot be signalled; its init ends itself when asked.
            Err(_) => {
                self.tell(&ToShim::Kill, &[]);
            }
        }
    }

    /// Changes to true when every process of the run is gone.
    pub(crate) fn gone(&self) -> watch::Receiver<bool> {
        self.gone.subscribe()
    }

    /// Starts a process beside the workload; the receiver gets its exit status.
    pub(crate) fn exec(
        &self,
        argv: Vec<String>,
        env: BTreeMap<String, String>,
        tty: bool,
        streams: [BorrowedFd<'_>; 3],
    ) -> (u32, oneshot::Receiver<i32>) {
        let id = self.next_exec.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        if !self.tell(&ToShim::Exec(ExecRequest { id, argv, env, tty }), &streams) {
            self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        (id, receiver)
    }

    /// Signals a process of [`Init::exec`].
    pub(crate) fn signal_exec(&self, id: u32, signal: i32) {
        self.tell(&ToShim::SignalExec { id, signal }, &[]);
    }

    /// Waits for the next message; `None` when the init has closed the socket.
    pub(crate) async fn next(&self) -> Option<(FromShim, Vec<OwnedFd>)> {
        let mut buffer = Vec::new();
        loop {
            let mut ready = self.control.readable().await.ok()?;
            match molt_sys::socket::receive(self.control.get_ref(), &mut buffer) {
                Ok(Some(fds)) => match serde_json::from_slice(&buffer) {
                    Ok(message) => return Some((message, fds)),
                    Err(error) => {
                        tracing::warn!(%error, "a shim sent what it must not; it is killed");
                        self.kill();
                        return None;
                    }
                },
                Err(error) if error.errno == Errno::AGAIN => ready.clear_ready(),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Waits until the init is a zombie: every process of its PID namespace is gone then. pid_namespaces(7).
    pub(crate) async fn wait_gone(&self) {
        if let Ok(ready) = self.pidfd.readable().await {
            drop(ready);
        }
    }

    /// Follows the run to its end.
    pub(crate) async fn follow(self: Arc<Self>, run: Run, events: mpsc::UnboundedSender<Event>) {
        let mut exited_at = None;
        loop {
            let message = tokio::select! {
                biased;
                message = self.next() => message,
                () = self.wait_gone() => {
                    // Whatever was sent before the end is still in the socket.
                    tokio::time::timeout(std::time::Duration::ZERO, self.next()).await.unwrap_or_default()
                }
            };
            match message {
                Some((FromShim::Exited { status, at }, _)) if exited_at.is_none() => {
                    // The clock is the kernel's, the number is the shim's: it cannot lie in the future.
                    let at_ns = at.min(mono_ns());
                    exited_at = Some(at_ns);
                    let _ = events.send(Event::Exited { instance: run.instance, status, at_ns });
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
        self.wait_gone().await;
        let at_ns = exited_at.unwrap_or_else(mono_ns);
        self.gone.send_replace(true);
        let _ = events.send(Event::Gone { instance: run.instance, at_ns });
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).clear();
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
