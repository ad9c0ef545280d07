//! Effects, started. What takes time runs elsewhere and answers; what must be durable first is done here.
//!
//! In: an effect. Out: an answer, if it is known at once. Must not: block, but for the journal's one write.

use std::{sync::Arc, time::Duration};

use molt_core::{
    code::Code,
    ids::{Generation, UpdateId},
    machine::{Effect, Event, HookName, Kind, Mark, Patience, Phase, Purpose, Run},
    wire::What,
};

use super::{Brought, Dispatcher, Work};
use crate::{
    aside,
    effects::{Fault, arm, confine, hook, prove, quiesce, swap},
    planted, rootfs, timer,
};

/// How long arming the way back waits for the new workload to be ready, to fail or to end.
const BESIDE: Duration = Duration::from_millis(100);

impl Dispatcher {
    pub(super) fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Open(run) => return self.open(run),
            Effect::Record(slot, mark) => return Some(self.record(&slot, mark)),
            Effect::Stop(run, patience) => self.stop(run, patience),
            Effect::Resolve(id) => self.resolve(id),
            Effect::Plan(id) => return Some(self.plan(id)),
            Effect::Fetch(id) => self.fetch(id),
            Effect::Stage { id, as_number } => self.stage(id, as_number),
            Effect::Arm(run) => self.arm(run),
            Effect::Disarm(run) => self.disarm(run),
            Effect::PreStop { id, run } => return self.pre_stop(id, run),
            Effect::Probe(run, Purpose::Trial) if planted::is(planted::Fault::EarlyConfirm) => {
                return Some(Event::Proven { instance: run.instance });
            }
            Effect::Probe(run, purpose) => self.probe(run, purpose),
            Effect::Unprobe => {
                if let Some(prober) = self.prober.take() {
                    prober.abort();
                }
            }
            Effect::Hook(name, run) => self.hook(name, run),
            Effect::Cancel(id) => {
                if let Some((_, task)) = self.task.take_if(|(of, _)| *of == id) {
                    task.abort();
                }
                self.work.remove(&id);
                self.untidy.take_if(|(of, _)| *of == id);
            }
            Effect::Wait(ms) => self.wait(ms),
            Effect::Unwait => {
                if let Some(timer) = self.timer.take() {
                    timer.abort();
                }
            }
            Effect::End(ended) => self.end(*ended),
            Effect::Collect(spent) => return self.collect(spent),
            Effect::Warn(message) => self.warn(message),
            Effect::Exit(status) => self.exit = Some(status),
        }
        None
    }

    pub(super) fn warn(&self, message: String) {
        tracing::warn!("{message}");
        let id = self.state.attempt.as_ref().map(|attempt| attempt.id);
        self.context.events.publish(id, What::Warning { message });
    }

    fn record(&mut self, slot: &molt_core::journal::Slot, mark: Mark) -> Event {
        if planted::is(planted::Fault::LateTrial)
            && self.state.phase == Phase::Recording
            && let Some(init) = self.serving_init()
        {
            init.stop(rustix::process::Signal::TERM.as_raw());
            // So that the order shows.
            std::thread::sleep(Duration::from_millis(50));
        }
        let store = self.context.store.clone().filter(|store| !store.read_only);
        if let (Mark::Set(generation), Some(store)) = (mark, &store)
            && let Err(error) = store.mark(generation)
        {
            return Event::NotRecorded { message: format!("failed to {error}") };
        }
        let answer = self.write(slot);
        if let (Mark::Clear(generation), Some(store)) = (mark, &store)
            && let Err(error) = store.unmark(generation)
        {
            self.warn(format!("failed to {error}"));
        }
        answer
    }

    fn write(&mut self, slot: &molt_core::journal::Slot) -> Event {
        match self.journal.as_mut().map(|journal| journal.record(slot)) {
            None | Some(Ok(())) => Event::Recorded,
            Some(Err(error)) => {
                tracing::error!(%error, "failed to write the journal");
                Event::NotRecorded { message: format!("failed to {error}") }
            }
        }
    }

    /// What effects bring that is more than an event.
    pub(super) fn receive(&mut self, brought: Brought) {
        match brought {
            Brought::Resolved(id, Ok(resolved)) => {
                let wanted = self.state.attempt.as_ref().is_some_and(|attempt| attempt.id == id);
                if !wanted || self.state.phase != Phase::Resolving {
                    return;
                }
                self.work.insert(id, Work { resolved: Some(resolved), ..Work::default() });
                self.take(Event::Resolved { id });
            }
            Brought::Fetched(id, Ok((layers, untidy))) => {
                if let Some(work) = self.work.get_mut(&id) {
                    work.layers = layers;
                    self.untidy = Some((id, untidy));
                }
                self.take(Event::Fetched { id });
            }
            Brought::Order(read) => self.ordered(*read),
            Brought::Resolved(id, Err(fault)) | Brought::Fetched(id, Err(fault)) => self.take(failed(id, fault)),
            Brought::Alone(alone, reply) => self.collect_alone(alone, reply),
            Brought::Spec(by, result) => self.read_again(by, result),
            Brought::Armed(run, result) => {
                self.arming.remove(&run.instance);
                let result = match result {
                    // Nobody waits for it any more: dropping it closes its gate, and takes its root apart.
                    Ok(live) if self.state.standby != Some(run) => {
                        live.init.kill();
                        return aside::start("let go", move || drop(live));
                    }
                    Ok(live) => {
                        self.tell_degraded(&live);
                        self.live.insert(run.instance, *live);
                        Ok(())
                    }
                    Err(fault) => Err(fault),
                };
                self.take(arm::answer(run, &result));
            }
        }
    }

    /// What a generation's confinement lacks is said when that changes: at the first start, and by an update that loses
    /// something more.
    fn tell_degraded(&mut self, live: &crate::workload::run::Live) {
        let degraded = &live.in_force.report.degraded;
        if *degraded != self.degraded {
            self.degraded.clone_from(degraded);
            if !degraded.is_empty() {
                let message =
                    format!("generation {} is confined in part: {}", live.run.generation, degraded.join("; "));
                self.warn(message);
            }
        }
    }

    /// The root of a generation, shared by all its runs.
    fn root(&mut self, generation: Generation) -> Result<Arc<rootfs::Rootfs>, Fault> {
        let mounted = self.roots.get(&generation).and_then(std::sync::Weak::upgrade);
        // There may be room by now.
        if let Some(root) = mounted.filter(|root| root.read_only.is_none()) {
            return Ok(root);
        }
        let missing = || Fault::new(Code::NothingToRollBackTo, format!("generation {generation} is not in the store"));
        let record = self.state.known.get(&generation).ok_or_else(missing)?;
        let ran = [self.state.slot.confirmed, self.state.slot.previous].contains(&Some(generation));
        let root = rootfs::mount(self.context.store.as_deref(), &self.context.parts, record, ran)?;
        self.roots.insert(generation, Arc::downgrade(&root));
        Ok(root)
    }

    fn arm(&mut self, run: Run) {
        // What is started over and over and never gets ready must not pile up.
        if !self.quiet() && self.state.phase != Phase::Proving {
            self.let_go();
        }
        let order = self.order(run);
        let (context, answers, brought) = (Arc::clone(&self.context), self.answers.clone(), self.brought.clone());
        // The way back is armed while the new workload starts: it must not take the processor from it.
        let beside = self.state.phase == Phase::Proving;
        let hurry = Arc::clone(&self.hurry).notified_owned();
        let task = tokio::spawn(async move {
            if beside {
                let _ = timer::timeout(BESIDE, hurry).await;
            }
            let result = match order {
                Ok(order) => arm::arm(&context, order, answers).await,
                Err(fault) => Err(fault),
            };
            let _ = brought.send(Brought::Armed(run, result.map(Box::new)));
        });
        self.arming.insert(run.instance, task);
    }

    fn order(&mut self, run: Run) -> Result<arm::Order, Fault> {
        let generation = run.generation;
        let missing = || Fault::new(Code::NothingToRollBackTo, format!("generation {generation} is not in the store"));
        let record = self.state.known.get(&generation).cloned().ok_or_else(missing)?;
        let policy = match &self.context.store {
            Some(store) if generation != Generation(0) || store.read_only => store.policy(generation)?,
            _ => self.context.policy.clone(),
        };
        let update = self.state.attempt.as_ref().map(|attempt| attempt.id);
        let against = self.against(run);
        Ok(arm::Order { run, record, policy, rootfs: self.root(generation)?, update, against })
    }

    /// What a generation that is armed now may not be wider than: what runs; where nothing does, what ran last. Going
    /// back, and starting what ran before, is never a widening.
    fn against(&self, run: Run) -> arm::Against {
        let slot = &self.state.slot;
        let trial = slot.trial.as_ref().is_some_and(|trial| trial.generation == run.generation);
        let new = match self.state.attempt.as_ref() {
            Some(attempt) if self.state.phase == Phase::Arming && !trial => match attempt.kind {
                Kind::Update => !attempt.allow_wider && !self.context.spec.update.allow_wider,
                // The first one; or one from the spec, where no record of what was confirmed can be read.
                Kind::Boot => attempt.image.is_some() || slot.confirmed.is_none(),
                _ => false,
            },
            _ => false,
        };
        if !new {
            return arm::Against::Nothing;
        }
        self.before().map_or(arm::Against::Itself, |before| arm::Against::InForce(Box::new(before)))
    }

    /// What confines the running generation; where nothing runs, what confined the confirmed one.
    pub(super) fn before(&self) -> Option<molt_core::confined::InForce> {
        if let Some(live) = self.state.serving.and_then(|run| self.live.get(&run.instance)) {
            return Some(live.in_force.clone());
        }
        let record = self.state.slot.confirmed.and_then(|confirmed| self.state.known.get(&confirmed))?;
        confine::recorded(&self.context, record)
    }

    fn disarm(&mut self, run: Run) {
        if let Some(task) = self.arming.remove(&run.instance) {
            task.abort();
        }
        if let Some(live) = self.live.remove(&run.instance) {
            live.init.kill();
            aside::start("let go", move || drop(live));
        }
    }

    fn pre_stop(&mut self, id: UpdateId, run: Run) -> Option<Event> {
        let Some(hook) = self.context.spec.hooks.pre_stop.clone() else { return Some(Event::PreStopDone { id }) };
        let init = Arc::clone(&self.live.get(&run.instance)?.init);
        let env = hook::environment("preStop", self.state.attempt.as_ref());
        let answers = self.answers.clone();
        let task = tokio::spawn(async move {
            let event = match hook::run(&hook, &init, env).await {
                Ok(()) => Event::PreStopDone { id },
                Err(why) => failed(id, Fault::new(Code::HookFailed, format!("the preStop hook failed: {why}"))),
            };
            let _ = answers.send(event);
        });
        self.task = Some((id, task));
        None
    }

    fn stop(&mut self, run: Run, patience: Patience) {
        let Some(live) = self.live.get(&run.instance) else { return };
        let init = Arc::clone(&live.init);
        let grace = self.context.spec.workload.stop_grace_period.as_duration();
        let signal = live.record.program.stop_signal;
        let answers = self.answers.clone();
        if patience == Patience::Kill {
            init.kill();
        }
        drop(tokio::spawn(quiesce::stop(init, run, signal, grace, patience, answers)));
    }

    fn open(&mut self, run: Run) -> Option<Event> {
        let live = self.live.get_mut(&run.instance)?;
        let program = live.record.program.argv.first().cloned().unwrap_or_default();
        let swapping = live.init.swapping();
        let pipe = match live.open() {
            Ok(Some(pipe)) => crate::watch::readable(pipe).ok(),
            Ok(None) => None,
            Err(error) => {
                return Some(not_opened(run, format!("failed to open the gate: {error}")));
            }
        };
        let Some(pipe) = pipe else {
            return Some(not_opened(run, "the gate was open already".to_owned()));
        };
        drop(tokio::spawn(swap::swap(pipe, run, program, self.answers.clone(), swapping)));
        None
    }

    fn probe(&mut self, run: Run, purpose: Purpose) {
        if let Some(prober) = self.prober.take() {
            prober.abort();
        }
        let Some(live) = self.live.get(&run.instance) else { return };
        let new = || prove::Transcript::new(run.generation);
        let transcript = self.transcripts.entry(run.instance).or_insert_with(new).clone();
        let prover = prove::Prover {
            run,
            init: Arc::clone(&live.init),
            said: live.said.clone(),
            health: self.context.spec.health.clone(),
            transcript,
            answers: self.answers.clone(),
        };
        self.prober = Some(tokio::spawn(prover.prove(purpose)));
    }

    pub(super) fn serving_init(&self) -> Option<Arc<crate::workload::run::Init>> {
        let run = self.state.serving?;
        self.live.get(&run.instance).map(|live| Arc::clone(&live.init))
    }

    fn hook(&mut self, name: HookName, run: Run) {
        let hooks = &self.context.spec.hooks;
        let (hook, text) = match name {
            HookName::PostStart => (&hooks.post_start, "postStart"),
            HookName::PostConfirm => (&hooks.post_confirm, "postConfirm"),
            HookName::OnRollback => (&hooks.on_rollback, "onRollback"),
        };
        let (Some(hook), Some(live)) = (hook.clone(), self.live.get(&run.instance)) else { return };
        let (init, events) = (Arc::clone(&live.init), self.context.events.clone());
        let env = hook::environment(text, self.state.attempt.as_ref());
        let id = self.state.attempt.as_ref().map(|attempt| attempt.id);
        drop(tokio::spawn(async move {
            if let Err(why) = hook::run(&hook, &init, env).await {
                events.publish(id, What::Warning { message: format!("the {text} hook failed: {why}") });
            }
        }));
    }

    fn wait(&mut self, ms: u64) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
        let answers = self.answers.clone();
        self.timer = Some(tokio::spawn(async move {
            timer::sleep(Duration::from_millis(ms)).await;
            let _ = answers.send(Event::Waited);
        }));
    }
}

/// Not for anything in the image.
fn not_opened(run: Run, message: String) -> Event {
    Event::NotExeced { instance: run.instance, code: Code::Internal, message }
}

pub(super) fn failed(id: UpdateId, fault: Fault) -> Event {
    let refused = fault.refused();
    Event::Failed { id, code: fault.code, message: fault.message, refused }
}
