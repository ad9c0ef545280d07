//! Requests from the API: each becomes an event, or is answered at once.
//!
//! In: a command. Out: its reply. Must not: leave a reply unsent; say yes before the machine has the event.

use std::sync::Arc;

use molt_core::{
    code::Code,
    ids::{Digest, UpdateId},
    journal::Revision,
    machine::{Attempt, Event, Kind, Phase, State, Target},
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
                let late = too_late(&self.state, id);
                let why = late.as_deref().unwrap_or("nothing is under way");
                drop(reply.send(self.nudge(late.is_none(), Event::Cancel, &by, why)));
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
        plan::Policy::given(request.policy.as_deref()).map_err(|fault| Problem::new(fault.code, fault.message))?;
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
                plan::Policy::given(request.policy.as_deref())?;
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

/// Why an update cannot be given up, and what can be done in its place; nothing where it can.
fn too_late(state: &State, id: Option<UpdateId>) -> Option<String> {
    const NEXT: &str = "an update that is asked for now takes its place";
    let queued = state.queued.as_ref().map(|attempt| attempt.id);
    let Some(attempt) = &state.attempt else {
        let waits = queued.filter(|queued| id.is_none_or(|id| id == *queued));
        let waits = waits.map(|queued| format!("{queued} waits until something runs again; {NEXT}"));
        return Some(waits.unwrap_or_else(|| nothing(id)));
    };
    let about = about(state, attempt);
    match id.filter(|id| *id != attempt.id) {
        Some(id) if queued == Some(id) => {
            let (what, _) = about.unwrap_or(("is under way", ""));
            Some(format!("{id} waits behind {}, which {what}; {NEXT}", attempt.id))
        }
        Some(_) => Some(nothing(id)),
        None => {
            let (what, mend) = about?;
            let waits = queued.map(|queued| format!("; {queued} waits behind it, and {NEXT}")).unwrap_or_default();
            Some(format!("{} {what}: {mend}{waits}", attempt.id))
        }
    }
}

fn nothing(id: Option<UpdateId>) -> String {
    id.map_or_else(
        || "no update is under way".to_owned(),
        |id| format!("{id} is not under way; `molt show {id}` tells"),
    )
}

/// What an attempt is, where it cannot be given up, and what can be done about it.
fn about(state: &State, attempt: &Attempt) -> Option<(&'static str, &'static str)> {
    match state.phase {
        _ if attempt.kind == Kind::Boot && state.slot.confirmed.is_none() => {
            Some(("is the first start, and nothing else could run", "`molt update IMAGE` gives another image"))
        }
        _ if attempt.kind == Kind::Boot => {
            Some(("starts what is confirmed", "`molt update IMAGE` is taken up when that runs"))
        }
        phase if phase.before_gate() && attempt.kind == Kind::Restart => {
            Some(("starts again what is not healthy", "`molt update IMAGE` takes its place"))
        }
        phase if phase.before_gate() => None,
        Phase::Proving | Phase::AwaitingConfirm => Some((
            "has passed its gate",
            "`molt reject` ends its trial, and what ran before runs again; `molt rollback` goes back once it is confirmed",
        )),
        Phase::RollingBack(_) => Some(("has passed its gate", "it is being rolled back")),
        _ => Some(("has passed its gate", "`molt rollback` goes back")),
    }
}

#[cfg(test)]
mod tests {
    use molt_core::machine::table::typical;

    use super::{super::fake, *};

    fn cancel(dispatcher: &mut Dispatcher, id: Option<u64>) -> Result<UpdateId, String> {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        dispatcher.command(Command::Cancel { id: id.map(UpdateId), by: "a test".to_owned(), reply });
        answer.try_recv().unwrap().map(|accepted| accepted.id).map_err(|problem| problem.detail)
    }

    fn said(answer: Result<UpdateId, String>, parts: &[&str]) {
        let text = answer.unwrap_err();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }

    #[tokio::test]
    async fn a_first_start_is_not_cancelled_and_the_answer_says_what_helps() {
        let mut state = typical(Phase::Fetching);
        (state.serving, state.slot.confirmed) = (None, None);
        state.attempt.as_mut().unwrap().kind = Kind::Boot;
        let mut dispatcher = fake::dispatcher(state, "image: registry.example.com/app:1");
        for id in [None, Some(5)] {
            said(cancel(&mut dispatcher, id), &["u5 is the first start", "`molt update IMAGE` gives another image"]);
        }
        assert_eq!(dispatcher.state.phase, Phase::Fetching);
        dispatcher.state.slot.confirmed = Some(molt_core::ids::Generation(1));
        said(cancel(&mut dispatcher, None), &["u5 starts what is confirmed", "is taken up when that runs"]);
    }

    #[tokio::test]
    async fn what_waits_behind_another_one_is_refused_with_what_it_waits_for() {
        let mut state = typical(Phase::Proving);
        let waiting = Attempt { id: UpdateId(6), ..state.attempt.clone().unwrap() };
        state.queued = Some(waiting);
        state.next_update = 7;
        let mut dispatcher = fake::dispatcher(state, "image: registry.example.com/app:1");
        said(cancel(&mut dispatcher, Some(6)), &["u6 waits behind u5, which has passed its gate", "takes its place"]);
        said(cancel(&mut dispatcher, None), &["u5 has passed its gate", "`molt reject`", "u6 waits behind it"]);
        said(cancel(&mut dispatcher, Some(4)), &["u4 is not under way"]);
        (dispatcher.state.attempt, dispatcher.state.queued) = (None, None);
        said(cancel(&mut dispatcher, None), &["no update is under way"]);
    }

    #[test]
    fn an_update_before_its_gate_can_be_given_up() {
        for phase in [Phase::Resolving, Phase::Fetching, Phase::Arming, Phase::Held, Phase::Recording] {
            for id in [None, Some(UpdateId(5))] {
                assert_eq!(too_late(&typical(phase), id), None, "{phase:?}");
            }
        }
        assert!(too_late(&typical(Phase::Quiescing), None).is_some_and(|why| why.contains("`molt rollback`")));
    }
}
