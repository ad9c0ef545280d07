//! `molt exec --unconfined`: the operator's own command in a generation that runs, outside of its confinement.
//!
//! In: a run that serves, a command, who asks. Out: a session like any other. Must not: start what is not in the history,
//! or what would outlive the run; hand out a descriptor of PID 1's.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use molt_core::{
    code::Code,
    ids::Generation,
    launch::{FromShim, Unconfined, VERSION},
    wire::{ExecOptions, Problem},
};
use molt_oci::unpacker::Ended;
use rustix::{
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, waitid},
};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
};

use super::{
    exec::{ExecSession, Streams},
    run::{Init, Place, hear},
};
use crate::{
    effects::{Context, arm},
    store::audit::Entry,
    triggers::signal::Reaped,
};

/// From the first datagram to the process: a few system calls.
const ENTERED_WITHIN: Duration = Duration::from_secs(10);
/// Not the workload's, in which it may have left what a shell reads when it starts.
const HOME: &str = "/root";

/// What to run, where, and for whom.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) options: ExecOptions,
    /// Of `options`, read.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) by: String,
    pub(crate) generation: Generation,
    pub(crate) init: Arc<Init>,
    pub(crate) place: Place,
}

/// A process in a generation, by pidfd and by its number here.
#[derive(Debug)]
struct Process {
    pidfd: Arc<AsyncFd<OwnedFd>>,
    pid: Pid,
}

/// Writes it down, and starts it, if `waited` says that somebody still waits for it then.
pub(crate) async fn start(
    context: &Context,
    request: Request,
    waited: impl Fn() -> bool,
) -> Result<ExecSession, Problem> {
    let Request { options, env, by, generation, init, place } = request;
    let internal = |errno: Errno| Problem::new(Code::Internal, format!("failed to make streams: {errno}"));
    let streams = Streams::new(&options).map_err(internal)?;
    let entry = context.audit.begin(generation, options.argv.clone(), by.clone()).await.map_err(|error| {
        let message = format!(
            "failed to write to the history: {error}; nothing was run, as nothing is run unconfined that the history does \
             not have. `molt exec` without --unconfined needs none"
        );
        Problem::new(Code::StoreUnusable, message)
    })?;
    tracing::warn!(by, argv = ?options.argv, %generation, "exec outside of the confinement");
    let started = enter(context, &options, env, place, &init, &streams, waited).await;
    let process = match started {
        Ok(process) => process,
        Err(problem) => {
            entry.end(Err(problem.detail.clone())).await;
            return Err(problem);
        }
    };
    let (tell, exited) = oneshot::channel();
    let (signals, asked) = mpsc::channel(8);
    tokio::spawn(attend(process, asked, entry, context.reaped.clone(), tell));
    Ok(streams.session(exited, signals))
}

/// Sends a shim into the generation. When this returns, the process may run; it is the run's to kill.
async fn enter(
    context: &Context,
    options: &ExecOptions,
    more: BTreeMap<String, String>,
    place: Place,
    init: &Init,
    streams: &Streams,
    waited: impl Fn() -> bool,
) -> Result<Process, Problem> {
    let failed =
        |why: &dyn std::fmt::Display| Problem::new(Code::Internal, format!("failed to enter the generation: {why}"));
    let mut env = place.env;
    env.insert("HOME".to_owned(), HOME.to_owned());
    env.extend(more);
    let order = Unconfined {
        version: VERSION,
        argv: options.argv.clone(),
        env,
        tty: options.tty,
        oom_score_adj: place.oom_score_adj,
    };
    let document = arm::sealed(&order).map_err(|errno| failed(&errno))?;
    let (control, theirs) = molt_sys::socket::pair().map_err(|error| failed(&error))?;
    rustix::io::ioctl_fionbio(&control, true).map_err(|errno| failed(&errno))?;
    context.shim.enter(&theirs).map_err(|error| failed(&error))?;
    drop(theirs);
    let fds: Vec<BorrowedFd<'_>> = [document.as_fd()]
        .into_iter()
        .chain(place.namespaces.iter().map(OwnedFd::as_fd))
        .chain(streams.lent())
        .collect();
    molt_sys::socket::send(&control, b"enter", &fds).map_err(|error| failed(&error))?;
    drop(fds);
    let control = crate::watch::readable(control).map_err(|error| failed(&error))?;
    let said = crate::timer::timeout(ENTERED_WITHIN, hear(&control)).await;
    let (said, fds) = said.ok().flatten().ok_or_else(|| failed(&"the shim went away before it was inside"))?;
    let process = match serde_json::from_slice(&said) {
        Ok(FromShim::Entered { pid }) => {
            let pid = Pid::from_raw(pid).ok_or_else(|| failed(&"no pid"))?;
            let pidfd = fds.into_iter().next().ok_or_else(|| failed(&"no pidfd"))?;
            Process { pidfd: Arc::new(crate::watch::readable(pidfd).map_err(|error| failed(&error))?), pid }
        }
        Ok(FromShim::Failed(failure)) => return Err(failed(&arm::explain(&failure).message)),
        _ => return Err(failed(&"the shim said what it must not")),
    };
    // Closing the socket ends it where this says no.
    if !init.admit(&process.pidfd) {
        return Err(Problem::new(Code::Busy, "the workload is being stopped; try again when another one runs"));
    }
    // A disk may have taken its time for the line.
    if !waited() {
        return Err(Problem::new(Code::DeadlineExceeded, "it was not run: nobody waited for it any more"));
    }
    molt_sys::socket::send(control.get_ref(), b"go", &[]).map_err(|error| failed(&error))?;
    Ok(process)
}

/// Passes signals on, waits for the end, and has it written down.
async fn attend(
    process: Process,
    mut asked: mpsc::Receiver<i32>,
    entry: Entry,
    reaped: Reaped,
    tell: oneshot::Sender<i32>,
) {
    let mut listening = true;
    loop {
        tokio::select! {
            biased;
            _ = process.pidfd.readable() => break,
            signal = asked.recv(), if listening => {
                listening = signal.is_some();
                // The session was dropped: as when a terminal is closed.
                process.signal(signal.unwrap_or(1));
            }
        }
    }
    let status = process.status(&reaped);
    // Nobody may listen any more.
    let _ = tell.send(status);
    drop(process);
    entry.end(Ok(status)).await;
}

impl Process {
    fn signal(&self, number: i32) {
        // ESRCH: it has ended, and is about to be seen to.
        let _ = molt_sys::signal::send_to(self.pidfd.get_ref(), number);
    }

    /// How it ended, once it has.
    fn status(&self, reaped: &Reaped) -> i32 {
        let ended =
            match waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                Ok(Some(status)) => {
                    status.terminating_signal().map(Ended::Signal).or(status.exit_status().map(Ended::Exit))
                }
                // PID 1 reaps whatever ends.
                Ok(None) | Err(_) => reaped.ended(self.pid),
            };
        match ended {
            Some(Ended::Exit(status)) => status,
            Some(Ended::Signal(signal)) => 128 + signal,
            None => 255,
        }
    }
}
