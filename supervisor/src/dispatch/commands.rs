//! Requests from the API: each becomes an event, or is answered at once.
//!
//! In: a command. Out: its reply. Must not: leave a reply unsent; say yes before the machine has the event.

use std::sync::Arc;

use molt_core::{
    code::Code,
    ids::{Digest, UpdateId},
    journal::Revision,
    machine::{Event, Phase, Target},
    memory::Held,
    wire::{Accepted, Collected, Expected, PlanView, Problem, UpdateRequest},
};

use super::{Brought, Dispatcher, Tidy};
use crate::{
    aside, clock,
    command::Command,
    effects::{Fault, collect, confine, difference, plan, resolve},
    timer,
};

/// How long a clean-up that was asked for waits for its turn.
const ALONE: std::time::Duration = std::time::Duration::from_secs(20);

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
                if let Some(problem) = self.held("the staged generation is kept back") {
                    return drop(reply.send(Err(problem)));
                }
                let staged = self.state.phase == Phase::Held && !self.state.hold;
                drop(reply.send(self.nudge(staged, Event::Apply, &by, "nothing is staged")));
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
            Command::Hold { owner, ttl_ms, reason, by, reply } => {
                drop(reply.send(self.hold(Held { owner, by, reason, since_ms: clock::unix_ms(), ttl_ms })));
            }
            Command::Release { owner, by, reply } => drop(reply.send(self.release(owner.as_deref(), &by))),
            Command::Compare { from, to, reply } => self.compare(from, to, reply),
            Command::Ping { reply } => drop(reply.send(Ok(()))),
            Command::On { terms, command } => self.on(terms, *command),
            Command::Collect { by, reply } => {
                self.context.audit.asked(&by, "gc", None, None);
                self.collect_now(reply);
            }
            Command::ForgetBad { digest, by, reply } => drop(reply.send(self.forget(digest, &by))),
            Command::Order { jws, policy, by, reply } => self.read_order(jws, policy, by, None, reply),
            Command::Reread { by } => self.reread(by),
            Command::Own { instance, wish, by, reply } => drop(reply.send(self.wish(instance, wish, by))),
            Command::Revision { revision, command } => self.act_on(revision, *command),
            Command::Reached { gateway } => self.gateway = Some(gateway),
            Command::Exec { options, by, reply } => self.exec(options, by, reply),
        }
    }

    /// Takes what a gateway wants: the slot that makes the number of its update durable says which revision it is for.
    fn act_on(&mut self, revision: Revision, command: Command) {
        if let Command::Order { jws, policy, by, reply } = command {
            return self.read_order(jws, policy, by, Some(revision), reply);
        }
        let (before, number) = (self.state.slot.revision.clone(), self.state.next_update);
        self.state.slot.revision = Some(Revision { update: UpdateId(number), done: false, ..revision });
        self.command(command);
        // Nothing came of it.
        if self.state.next_update == number {
            self.state.slot.revision = before;
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

    pub(super) fn intent(&mut self, target: Target, by: String, note: Option<String>) -> Accepted {
        self.remember(&target, &by, note.as_ref());
        let accepted = Accepted { id: UpdateId(self.state.next_update), after_seq: self.context.events.last() };
        self.take(Event::Intent { target, by, note });
        accepted
    }

    pub(super) fn nudge(&mut self, possible: bool, event: Event, by: &str, why: &str) -> Result<Accepted, Problem> {
        let attempt = self.state.attempt.as_ref().filter(|_| possible);
        let Some(id) = attempt.map(|attempt| attempt.id) else {
            self.context.audit.refused(by, &format!("{event:?}").to_lowercase(), Code::Busy.as_str(), None);
            return Err(Problem::new(Code::Busy, why));
        };
        tracing::info!(%id, by, ?event, "asked");
        let after_seq = self.context.events.last();
        self.context.audit.asked(by, &format!("{event:?}").to_lowercase(), Some(id), None);
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
        let before = self.before();
        let alike = self.state.known.clone();
        let expected = Expected::of(self.history.iter());
        drop(tokio::spawn(async move {
            let plan = async {
                let policy = request.policy.clone().unwrap_or_else(|| in_force.clone());
                plan::Policy::read(&policy)?;
                let resolved = resolve::resolve(&context, None, &request.image).await?;
                let draft = plan::draft(&context, &request.image, &resolved, &policy)?;
                plan::refuse_bad(&slot, &draft.record, request.force)?;
                plan::refuse_below(&slot, &alike, &draft.record)?;
                let record = &draft.record;
                let noop =
                    now.is_some_and(|now| now.same_triple(record.digest, record.policy_digest, record.settings_digest));
                let mut view = plan::view(&context, &resolved, &draft, noop)?;
                view.policy_difference = difference::policy_lines(&context, &in_force, &policy)?;
                view.expected_downtime = expected.filter(|_| !noop);
                if let Some(before) = before {
                    let ran = alike.values().filter(|known| known.digest == record.digest);
                    let ran = ran.rev().find_map(|known| context.store.as_ref()?.confinement(known.generation));
                    view.wider = confine::foreseen(&context, &before, record, &policy, ran.as_ref())?;
                }
                Ok(view)
            };
            let plan: Result<PlanView, Fault> = plan.await;
            let _ = reply.send(plan.map_err(|fault| Problem::new(fault.code, fault.message)));
        }));
    }

    fn collect_now(&mut self, reply: crate::command::Reply<Collected>) {
        if self.context.store.is_none() {
            drop(reply.send(Err(Problem::new(Code::StoreUnusable, "there is no usable store"))));
            return;
        }
        if self.state.attempt.is_some() {
            drop(
                reply.send(Err(Problem::new(
                    Code::Busy,
                    "an update is under way; what it fetches is not to be removed",
                ))),
            );
            return;
        }
        // What is fetched or cleaned up right now ends by itself.
        let (tidy, brought) = (Arc::clone(&self.context.tidy), self.brought.clone());
        drop(tokio::spawn(async move {
            match timer::timeout(ALONE, tidy.write_owned()).await {
                Ok(alone) => drop(brought.send(Brought::Alone(alone, reply))),
                Err(_) => drop(reply.send(Err(Problem::new(
                    Code::Busy,
                    "layers are being fetched or cleaned up right now; try again",
                )))),
            }
        }));
    }

    /// The clean-up that was asked for, now that nothing else is at the store.
    pub(super) fn collect_alone(&mut self, alone: Tidy, reply: crate::command::Reply<Collected>) {
        let Some(store) = self.context.store.clone().filter(|_| self.state.attempt.is_none()) else {
            return self.collect_now(reply);
        };
        let (known, removed) = self.removable(None);
        self.take(Event::Collected { removed: removed.clone() });
        aside::start("gc", move || {
            let result = collect::collect(&store, &known, &removed);
            drop(alone);
            let _ = reply.send(result.map_err(|fault| Problem::new(fault.code, fault.message)));
        });
    }

    fn forget(&mut self, digest: Digest, by: &str) -> Result<(), Problem> {
        // Between the first signal and the exec nothing is written; and a slot that is being taken back is not for others.
        if self.state.phase.past_signal() {
            let why = "a workload is being stopped and another one started; nothing else is written meanwhile: try again \
                       in a moment";
            return Err(Problem::new(Code::Busy, why));
        }
        let before = self.state.slot.bad.len();
        self.state.slot.bad.retain(|bad| bad.digest != digest);
        if self.state.slot.bad.len() == before {
            return Err(Problem::new(
                Code::NotFound,
                format!("{digest} is not remembered as bad; `molt bad list` shows what is"),
            ));
        }
        tracing::info!(%digest, by, "forgotten as bad");
        self.context.audit.asked(by, "bad remove", None, Some(digest.to_string()));
        let slot = self.state.slot.clone();
        match self.journal.as_mut().map(|journal| journal.record(&slot)) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(Problem::new(Code::StoreUnusable, format!("failed to {error}"))),
        }
    }
}
