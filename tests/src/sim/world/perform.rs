//! Effects, carried out as `supervisor/src/dispatch/perform.rs` does, well or badly.
//!
//! In: an effect. Out: an answer at once, or items that bring one later. Must not: answer for what was given up, unless
//! the real one could.

use std::collections::BTreeMap;

use molt_core::{
    code::Code,
    gc,
    generation::Record,
    ids::{Generation, UpdateId},
    journal::Slot,
    machine::{Effect, Ended, Event, Mark, Phase},
    publish,
};

use super::{Item, Plant, Work, World, boot, digest};
use crate::sim::{
    disk::Fault,
    store::{self, Folder},
};

impl World {
    pub(super) fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Record(slot, mark) => return Some(self.record(&slot, mark)),
            Effect::Resolve(id) => self.resolve(id),
            Effect::Plan(id) => return Some(self.planned(id)),
            Effect::Fetch(id) => self.fetch(id),
            Effect::Stage { id, as_number } => self.stage(id, as_number),
            Effect::Arm(run) => self.arm(run),
            Effect::Disarm(run) => {
                self.queue.retain(|_, (_, item)| !matches!(item, Item::Armed(armed, _) if *armed == run));
                self.runs.remove(&run.instance);
            }
            Effect::PreStop { id, .. } => self.pre_stop(id),
            Effect::Stop(run, patience) => self.stop(run, patience),
            Effect::Open(run) => self.open(run),
            Effect::Probe(run, purpose) => return self.probe(run, purpose),
            Effect::Unprobe => self.unprobe(),
            Effect::Cancel(id) => self.cancel(id),
            Effect::Wait(ms) => {
                let life = self.life.as_mut()?;
                life.timer += 1;
                let timer = life.timer;
                self.later(ms, Item::Timer(timer));
            }
            Effect::Unwait => self.life.as_mut()?.timer += 1,
            Effect::End(ended) => self.end(&ended),
            Effect::Collect(spent) => return self.collect(spent),
            Effect::Hook(..) | Effect::Warn(_) => {}
            Effect::Exit(status) => {
                self.note(|| format!("PID 1 exits with {status}"));
                self.end_of_life();
            }
        }
        None
    }

    fn record(&mut self, slot: &Slot, mark: Mark) -> Event {
        if let Some(life) = self.life.as_mut()
            && self.plant == Some(Plant::TrialAfterSignal)
            && slot.trial.is_some()
            && life.state.phase == Phase::Recording
        {
            life.postponed = Some((slot.clone(), mark));
            return Event::Recorded;
        }
        match self.write(slot, mark) {
            Ok(()) => Event::Recorded,
            Err(message) => Event::NotRecorded { message },
        }
    }

    pub(super) fn write(&mut self, slot: &Slot, mark: Mark) -> Result<(), String> {
        self.judge.writes(slot, mark);
        let disk = self.shared();
        let Some(life) = self.life.as_mut() else { return Ok(()) };
        let marked = match mark {
            Mark::Set(generation) => {
                publish::mark(&mut Folder(&mut disk.borrow_mut()), generation).map_err(|fault| fault.to_string())
            }
            Mark::Keep | Mark::Clear(_) => Ok(()),
        };
        let result = marked.and_then(|()| life.journal.record(slot).map_err(|error| error.to_string()));
        self.rotten &= result.is_err();
        if let Err(why) = &result {
            let why = why.clone();
            self.note(|| format!("the write failed: {why}"));
        }
        let Some(life) = self.life.as_ref() else { return Ok(()) };
        let verdict = self.judge.wrote(&disk.borrow(), &life.state, &self.runs, slot, mark, result.is_ok());
        self.must(verdict);
        if let Mark::Clear(generation) = mark {
            let _ = publish::unmark(&mut Folder(&mut disk.borrow_mut()), generation);
        }
        result
    }

    fn answer(&mut self, after: u64, id: UpdateId, event: Event) {
        self.later(after, Item::Answer(Some(id), event));
    }

    fn failed(&mut self, after: u64, id: UpdateId, code: Code) {
        let event = Event::Failed { id, code, message: "simulated".to_owned(), refused: false };
        self.answer(after, id, event);
    }

    fn resolve(&mut self, id: UpdateId) {
        let image = self.life.as_ref().and_then(|life| life.state.attempt.as_ref()?.image.clone());
        let tag = image.and_then(|image| image.to_string().rsplit(':').next()?.parse().ok()).unwrap_or(1);
        let pause = self.rng.u64(1..800);
        if self.mishap() {
            let hangs = self.rng.u32(..4) == 0;
            return self.failed(if hangs { 30_000 } else { pause }, id, Code::RegistryUnreachable);
        }
        self.later(pause, Item::Resolved(id, tag));
    }

    /// As `Brought::Resolved`: what nobody waits for any more is dropped.
    pub(super) fn resolved(&mut self, id: UpdateId, tag: u8) {
        let Some(life) = self.life.as_mut() else { return };
        let wanted = life.state.attempt.as_ref().is_some_and(|attempt| attempt.id == id);
        if wanted && life.state.phase == Phase::Resolving {
            life.work.insert(id, Work { tag, record: None });
            self.take(Event::Resolved { id });
        }
    }

    fn planned(&mut self, id: UpdateId) -> Event {
        let failed = |code: Code, refused: bool| Event::Failed { id, code, message: "planned".to_owned(), refused };
        let mishap = self.mishap();
        let policies = &self.judge.policies;
        let Some(life) = self.life.as_mut() else { return failed(Code::Internal, false) };
        let (Some(attempt), Some(work)) = (life.state.attempt.as_ref(), life.work.get_mut(&id)) else {
            return failed(Code::Internal, false);
        };
        if mishap {
            return failed(Code::NoSpace, true);
        }
        let serving = life.state.serving.map(|run| run.generation);
        let in_force = serving.or(life.state.slot.confirmed).and_then(|one| policies.get(&one)).cloned();
        let text = attempt.policy.clone().or(in_force).unwrap_or_else(|| boot::POLICY.to_owned());
        let number = text.bytes().last().map_or(0, |byte| byte - b'0');
        let draft = boot::record(Generation(0), Some(work.tag), number);
        if life.state.slot.bad(digest(work.tag), digest(number)).is_some() && !attempt.force {
            return failed(Code::KnownBad, true);
        }
        let now = serving.and_then(|serving| life.state.known.get(&serving));
        let noop = now.is_some_and(|now| now.same_triple(draft.digest, draft.policy_digest, draft.settings_digest));
        work.record = Some((draft, text));
        Event::Planned { id, noop }
    }

    fn fetch(&mut self, id: UpdateId) {
        let (now, pause) = (self.now, self.rng.u64(5..6_000));
        let Some(life) = self.life.as_mut() else { return };
        life.untidy = Some(id);
        let after = pause.max(life.removing.saturating_sub(now));
        if self.mishap() {
            let code = if self.rng.bool() { Code::ContentMismatch } else { Code::RegistryUnavailable };
            return self.failed(after, id, code);
        }
        self.later(after, Item::Fetched(id));
    }

    pub(super) fn fetched(&mut self, id: UpdateId) {
        let tag = self.life.as_ref().and_then(|life| life.work.get(&id)).map(|work| work.tag);
        let Some(tag) = tag else { return };
        let disk = self.shared();
        let done = ["base".to_owned(), format!("app-{tag}")]
            .iter()
            .try_for_each(|name| store::publish_layer(&mut disk.borrow_mut(), name));
        match done {
            Err(Fault::Crashed) => {}
            Ok(()) => self.take(Event::Fetched { id }),
            Err(fault) => self.take(store_failed(id, fault)),
        }
    }

    fn stage(&mut self, id: UpdateId, number: Generation) {
        let pause = self.rng.u64(5..1_500);
        if self.mishap() {
            return self.failed(pause, id, Code::HookFailed);
        }
        self.later(pause, Item::Staged { id, number, heard: true });
    }

    pub(super) fn staged(&mut self, id: UpdateId, number: Generation, heard: bool) {
        let work = self.life.as_mut().and_then(|life| life.work.remove(&id));
        let Some((record, text)) = work.and_then(|work| work.record) else { return };
        let record = Record { generation: number, ..record };
        let disk = self.shared();
        let done = publish::publish(&mut Folder(&mut disk.borrow_mut()), &record, &text);
        self.judge.policies.insert(number, text);
        if !heard {
            return;
        }
        if let Some(life) = self.life.as_mut() {
            life.untidy = None;
        }
        match done {
            Err(Fault::Crashed) => {}
            Ok(()) => self.take(Event::Staged { id, record: Box::new(record) }),
            Err(fault) => self.take(store_failed(id, fault)),
        }
    }

    fn pre_stop(&mut self, id: UpdateId) {
        let pause = self.rng.u64(0..500);
        if self.mishap() {
            let hangs = self.rng.bool();
            return self.failed(if hangs { 60_000 } else { pause }, id, Code::HookFailed);
        }
        self.answer(pause, id, Event::PreStopDone { id });
    }

    fn cancel(&mut self, id: UpdateId) {
        let Some(life) = self.life.as_mut() else { return };
        life.untidy.take_if(|of| *of == id);
        // What was sent already still arrives; what writes the generation on a thread of its own goes on unheard.
        let (late, writes) = (self.rng.u32(..3) == 0, self.rng.bool());
        let mut written = false;
        for (_, item) in self.queue.values_mut() {
            match item {
                Item::Staged { id: of, heard, .. } if *of == id => {
                    *heard = false;
                    written = writes;
                }
                _ => {}
            }
        }
        self.queue.retain(|_, (_, item)| match item {
            Item::Answer(Some(of), _) | Item::Fetched(of) => *of != id || late,
            Item::Staged { id: of, .. } => *of != id || written,
            _ => true,
        });
        if !written
            && !late
            && let Some(life) = self.life.as_mut()
        {
            life.work.remove(&id);
        }
    }

    fn end(&mut self, ended: &Ended) {
        let Some(life) = self.life.as_mut() else { return };
        life.work.remove(&ended.attempt.id);
        life.untidy.take_if(|of| *of == ended.attempt.id);
        let verdict = self.judge.ends(&life.state, &self.runs, ended);
        self.coverage.ended(ended.outcome);
        self.must(verdict);
    }

    fn collect(&mut self, spent: Option<Generation>) -> Option<Event> {
        let life = self.life.as_mut()?;
        if life.untidy.is_some() || life.removing > self.now {
            return None;
        }
        let state = &life.state;
        let removed = gc::going(state, spent, self.keep);
        let (known, pause) = (life.state.known.clone(), self.rng.u64(0..2_000));
        life.removing = self.now + pause + 1;
        self.later(pause, Item::Remove(removed.clone(), known));
        Some(Event::Collected { removed })
    }

    pub(super) fn gc(&mut self) {
        if let Some(event) = self.collect(None) {
            self.take(event);
        }
    }

    pub(super) fn remove(&mut self, going: &[Generation], known: &BTreeMap<Generation, Record>) {
        let disk = self.shared();
        let _ = store::collect(&mut disk.borrow_mut(), going, known);
        let Some(life) = self.life.as_ref() else { return };
        let needed = gc::pinned(&life.state);
        let whole = |one: &Generation| {
            let policy = self.judge.policies.get(one).map_or("", String::as_str);
            store::whole(disk.borrow().cached(), *one, policy)
        };
        let lost: Vec<Generation> =
            needed.into_iter().filter(|one| life.state.known.contains_key(one) && !whole(one)).collect();
        if !lost.is_empty() && !disk.borrow().crashed {
            self.must(Err(format!("the clean-up took what is needed: {lost:?}")));
        }
    }

    /// As `Dispatcher::forget`.
    pub(super) fn forget(&mut self) {
        let Some(life) = self.life.as_mut() else { return };
        if let Some(bad) = life.state.slot.bad.pop() {
            self.judge.forgiven.insert(bad.digest);
            let slot = life.state.slot.clone();
            let _ = self.write(&slot, Mark::Keep);
        }
    }
}

fn store_failed(id: UpdateId, fault: Fault) -> Event {
    let code = if fault == Fault::NoSpace { Code::NoSpace } else { Code::StoreUnusable };
    Event::Failed { id, code, message: fault.to_string(), refused: false }
}
