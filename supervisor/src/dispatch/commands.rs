//! Requests from the API: each becomes an event, or is answered at once.
//!
//! In: a command. Out: its reply. Must not: leave a reply unsent; say yes before the machine has the event.

use std::{collections::BTreeMap, os::fd::AsFd as _, sync::Arc, time::Instant};

use molt_core::{
    code::Code,
    ids::{Digest, UpdateId},
    machine::{Event, Phase, Target},
    wire::{Accepted, Collected, ExecOptions, PlanView, Problem, UpdateRequest},
};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    termios::{Winsize, tcsetwinsize},
};
use tokio::sync::mpsc;

use super::Dispatcher;
use crate::{
    command::Command,
    effects::{Fault, collect, plan, resolve},
    workload::exec::{ExecSession, terminal},
};

/// Updates are held back until then.
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    pub(crate) by: String,
    pub(crate) reason: Option<String>,
    pub(crate) until: Instant,
    pub(crate) timer: tokio::task::AbortHandle,
}

impl Dispatcher {
    pub(super) fn command(&mut self, command: Command) {
        // A reply nobody waits for any more is not an error.
        match command {
            Command::Update { request, by, reply } => drop(reply.send(self.update(request, by))),
            Command::DryRun { request, reply } => self.dry_run(request, reply),
            Command::Rollback { request, by, reply } => {
                drop(reply.send(Ok(self.intent(Target::Back(request.to), by, request.reason))));
            }
            Command::Apply { by, reply } => {
                let staged = self.state.phase == Phase::Held && !self.state.hold;
                let why =
                    if self.state.hold { "updates are held; `molt release` ends that" } else { "nothing is staged" };
                drop(reply.send(self.nudge(staged, Event::Apply, &by, why)));
            }
            Command::Confirm { by, reply } => {
                let trial = matches!(self.state.phase, Phase::Proving | Phase::AwaitingConfirm);
                drop(reply.send(self.nudge(trial, Event::Confirm, &by, "no trial is under way")));
            }
            Command::Reject { by, reply } => {
                let trial = matches!(self.state.phase, Phase::Proving | Phase::AwaitingConfirm);
                drop(reply.send(self.nudge(trial, Event::Reject, &by, "no trial is under way")));
            }
            Command::Cancel { id, by, reply } => {
                let mine = self.state.attempt.as_ref().is_some_and(|attempt| id.is_none_or(|id| attempt.id == id));
                let early = mine && self.state.phase.before_gate();
                let why = "no such update is under way, or it has passed its gate (`molt rollback` goes back)";
                drop(reply.send(self.nudge(early, Event::Cancel, &by, why)));
            }
            Command::Hold { ttl_ms, reason, by, reply } => {
                let ttl = std::time::Duration::from_millis(ttl_ms);
                let answers = self.answers.clone();
                let timer = tokio::spawn(async move {
                    tokio::time::sleep(ttl).await;
                    let _ = answers.send(Event::Release);
                });
                let hold = Hold { by, reason, until: Instant::now() + ttl, timer: timer.abort_handle() };
                if let Some(old) = self.hold.replace(hold) {
                    old.timer.abort();
                }
                self.take(Event::Hold);
                drop(reply.send(Ok(())));
            }
            Command::Release { by, reply } => {
                tracing::info!(by, "hold released");
                if let Some(old) = self.hold.take() {
                    old.timer.abort();
                }
                self.take(Event::Release);
                drop(reply.send(Ok(())));
            }
            Command::Collect { reply } => self.collect_now(reply),
            Command::ForgetBad { digest, by, reply } => drop(reply.send(self.forget(digest, &by))),
            Command::Exec { options, by, reply } => drop(reply.send(self.exec(&options, &by))),
        }
    }

    fn update(&mut self, request: UpdateRequest, by: String) -> Result<Accepted, Problem> {
        if request.reason.as_ref().is_some_and(|reason| reason.chars().count() > 512) {
            return Err(Problem::new(Code::Invalid, "reason is longer than 512 characters"));
        }
        let target = Target::Image {
            image: request.image,
            policy: request.policy,
            stage_only: request.stage_only,
            force: request.force,
            allow_wider: request.allow_wider,
            spec: None,
        };
        Ok(self.intent(target, by, request.reason))
    }

    fn intent(&mut self, target: Target, by: String, note: Option<String>) -> Accepted {
        let accepted = Accepted { id: UpdateId(self.state.slot.next_update), after_seq: self.context.events.last() };
        self.take(Event::Intent { target, by, note });
        accepted
    }

    fn nudge(&mut self, possible: bool, event: Event, by: &str, why: &str) -> Result<Accepted, Problem> {
        let attempt = self.state.attempt.as_ref().filter(|_| possible);
        let Some(id) = attempt.map(|attempt| attempt.id) else { return Err(Problem::new(Code::Busy, why)) };
        tracing::info!(%id, by, ?event, "asked");
        let after_seq = self.context.events.last();
        self.take(event);
        Ok(Accepted { id, after_seq })
    }

    fn dry_run(&mut self, request: UpdateRequest, reply: crate::command::Reply<PlanView>) {
        let context = Arc::clone(&self.context);
        let slot = self.state.slot.clone();
        let now = self.state.serving.and_then(|run| self.state.known.get(&run.generation)).cloned();
        let in_force = self
            .state
            .serving
            .zip(self.context.store.as_ref())
            .and_then(|(run, store)| store.policy(run.generation).ok())
            .unwrap_or_else(|| self.context.policy.clone());
        drop(tokio::spawn(async move {
            let plan = async {
                let policy = request.policy.clone().unwrap_or(in_force);
                plan::Policy::read(&policy)?;
                let resolved = resolve::resolve(&context, None, &request.image).await?;
                let draft = plan::draft(&context, &request.image, &resolved, &policy)?;
                plan::refuse_bad(&slot, &draft.record, request.force)?;
                let record = &draft.record;
                let noop =
                    now.is_some_and(|now| now.same_triple(record.digest, record.policy_digest, record.settings_digest));
                plan::view(&context, &resolved, &draft, noop)
            };
            let plan: Result<PlanView, Fault> = plan.await;
            let _ = reply.send(plan.map_err(|fault| Problem::new(fault.code, fault.message)));
        }));
    }

    fn collect_now(&mut self, reply: crate::command::Reply<Collected>) {
        let Some(store) = self.context.store.clone() else {
            drop(reply.send(Err(Problem::new(Code::StoreUnusable, "there is no usable store"))));
            return;
        };
        if self.state.attempt.is_some() {
            drop(
                reply.send(Err(Problem::new(
                    Code::Busy,
                    "an update is under way; what it fetches is not to be removed",
                ))),
            );
            return;
        }
        let (known, pinned) = (self.state.known.clone(), self.pinned());
        let keep = usize::try_from(self.context.spec.update.keep).unwrap_or(usize::MAX);
        let answers = self.answers.clone();
        let Ok(alone) = Arc::clone(&self.context.tidy).try_write_owned() else {
            drop(
                reply
                    .send(Err(Problem::new(Code::Busy, "layers are being fetched or cleaned up right now; try again"))),
            );
            return;
        };
        drop(tokio::task::spawn_blocking(move || {
            let result = collect::collect(&store, &known, &pinned, keep).inspect(|done| {
                let _ = answers.send(Event::Collected { removed: done.generations.clone() });
            });
            drop(alone);
            let _ = reply.send(result.map_err(|fault| Problem::new(fault.code, fault.message)));
        }));
    }

    fn forget(&mut self, digest: Digest, by: &str) -> Result<(), Problem> {
        let before = self.state.slot.bad.len();
        self.state.slot.bad.retain(|bad| bad.digest != digest);
        if self.state.slot.bad.len() == before {
            return Err(Problem::new(
                Code::NotFound,
                format!("{digest} is not remembered as bad; `molt bad list` shows what is"),
            ));
        }
        tracing::info!(%digest, by, "forgotten as bad");
        let slot = self.state.slot.clone();
        match self.journal.as_mut().map(|journal| journal.record(&slot)) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(Problem::new(Code::StoreUnusable, format!("failed to {error}"))),
        }
    }

    fn exec(&mut self, options: &ExecOptions, by: &str) -> Result<ExecSession, Problem> {
        let live = self.state.serving.and_then(|run| self.live.get(&run.instance));
        let Some(live) = live else { return Err(Problem::new(Code::Busy, "nothing runs at the moment")) };
        if options.argv.is_empty() {
            return Err(Problem::new(Code::Invalid, "no program given"));
        }
        let mut env = BTreeMap::new();
        for pair in &options.env {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(Problem::new(Code::Invalid, format!("'{pair}' is not NAME=VALUE")));
            };
            env.insert(name.to_owned(), value.to_owned());
        }
        tracing::info!(by, argv = ?options.argv, "exec");
        let internal = |errno: Errno| Problem::new(Code::Internal, format!("failed to make streams: {errno}"));
        let init = Arc::clone(&live.init);
        let (signals, mut asked) = mpsc::channel::<i32>(8);
        let argv = options.argv.clone();
        let (id, session) = if options.tty {
            env.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
            let (master, terminal) = terminal().map_err(internal)?;
            if options.rows > 0 && options.cols > 0 {
                let size = Winsize { ws_row: options.rows, ws_col: options.cols, ws_xpixel: 0, ws_ypixel: 0 };
                tcsetwinsize(&master, size).map_err(internal)?;
            }
            let fd = terminal.as_fd();
            let (id, exited) = init.exec(argv, env, true, [fd, fd, fd]);
            let stdin = rustix::io::fcntl_dupfd_cloexec(&master, 0).map_err(internal)?;
            (id, ExecSession { stdin: Some(stdin), stdout: master, stderr: None, tty: true, exited, signals })
        } else {
            let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(internal);
            let ((stdout, out), (stderr, err)) = (pipe()?, pipe()?);
            let (stdin, input) = if options.stdin {
                let (read, write) = pipe()?;
                (Some(write), read)
            } else {
                (None, openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(internal)?)
            };
            let (id, exited) = init.exec(argv, env, false, [input.as_fd(), out.as_fd(), err.as_fd()]);
            (id, ExecSession { stdin, stdout, stderr: Some(stderr), tty: false, exited, signals })
        };
        drop(tokio::spawn(async move {
            while let Some(signal) = asked.recv().await {
                init.signal_exec(id, signal);
            }
            // The session was dropped: as when a terminal is closed.
            init.signal_exec(id, 1);
        }));
        Ok(session)
    }
}
