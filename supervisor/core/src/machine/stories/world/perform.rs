//! Carries out what the machine asks for: struck where the script says so, else well and at once.
//!
//! In: an effect. Out: its answer in the queue, and what outlives PID 1. Must not: decide which effect comes.

use super::{Doing, How, World};
use crate::{
    code::Code,
    generation::Record,
    ids::{Digest, UpdateId},
    journal::Slot,
    machine::{Effect, Event, Kind, Mark, Patience, Phase, Purpose, table},
};

impl World {
    pub(super) fn perform(&mut self, effect: Effect) {
        let doing = match &effect {
            Effect::Resolve(_) => Some(Doing::Resolve),
            Effect::Plan(_) => Some(Doing::Plan),
            Effect::Fetch(_) => Some(Doing::Fetch),
            Effect::Stage { .. } if self.strikes(Doing::PreStage).is_some() => Some(Doing::PreStage),
            Effect::Stage { .. } => Some(Doing::Stage),
            Effect::Arm(_) => Some(Doing::Arm),
            Effect::PreStop { .. } => Some(Doing::PreStop),
            Effect::Record(..) => Some(Doing::Record),
            Effect::Stop(..) => Some(Doing::Stop),
            Effect::Open(_) => Some(Doing::Open),
            Effect::Probe(_, Purpose::Trial | Purpose::Boot) => Some(Doing::Probe),
            Effect::Hook(name, _) => Some(Doing::Hook(*name)),
            Effect::Collect(_) => Some(Doing::Collect),
            _ => None,
        };
        if doing.is_some_and(|doing| self.pause == Some((self.state().phase, doing))) {
            self.paused = Some(effect);
            return;
        }
        match doing.and_then(|doing| Some((doing, self.strikes(doing)?))) {
            Some((doing, how)) => {
                if let (Effect::Stop(run, _), How::Hang) = (&effect, how) {
                    self.stuck = Some(*run);
                }
                let failed = self.failed(&effect, doing, how);
                self.strike(doing, failed);
            }
            None => self.do_well(effect),
        }
    }

    pub(super) fn do_well(&mut self, effect: Effect) {
        let at_ns = self.up_ms * 1_000_000;
        match effect {
            Effect::Resolve(id) => self.queue.push_back(Event::Resolved { id }),
            Effect::Plan(id) => {
                let event = self.planned(id);
                self.queue.push_back(event);
            }
            Effect::Fetch(id) => self.queue.push_back(Event::Fetched { id }),
            Effect::Stage { id, as_number } => {
                let record = Record { generation: as_number, ..self.draft() };
                self.shelf.insert(as_number, record.clone());
                self.queue.push_back(Event::Staged { id, record: Box::new(record) });
            }
            Effect::Arm(run) => self.queue.push_back(Event::Armed { instance: run.instance }),
            Effect::PreStop { id, .. } => self.queue.push_back(Event::PreStopDone { id }),
            Effect::Record(slot, mark) => self.record(&slot, mark),
            Effect::Stop(run, patience) => {
                if self.slot().trial.is_none() && self.state().phase == Phase::Quiescing && patience != Patience::Kill {
                    let restart = self.state().attempt.as_ref().is_some_and(|of| of.kind == Kind::Restart);
                    self.early.extend(Some(run).filter(|_| !restart));
                }
                self.queue.push_back(Event::Exited { instance: run.instance, status: 0, at_ns });
                self.queue.push_back(Event::Gone { instance: run.instance, at_ns });
            }
            Effect::Open(run) => {
                self.opened.push(run.generation);
                self.seen.push(format!("{} runs", run.generation));
                if self.kills_left > 0 {
                    self.kills_left -= 1;
                    return self.end_of_life("killed");
                }
                self.queue.push_back(Event::Execed { instance: run.instance, at_ns });
            }
            Effect::Probe(run, Purpose::Trial | Purpose::Boot) if self.sick.contains(&run.generation) => {
                self.queue.push_back(Event::Unhealthy { instance: run.instance, message: "sick".into() });
            }
            Effect::Probe(run, Purpose::Trial | Purpose::Boot) => {
                self.queue.push_back(Event::Ready { instance: run.instance, ready: true, at_ns });
                self.queue.push_back(Event::Proven { instance: run.instance });
            }
            Effect::Wait(ms) => self.timer(Some(ms)),
            Effect::Unwait => self.timer(None),
            Effect::End(ended) => {
                if ended.attempt.kind != Kind::Boot {
                    let why = ended.reason.map(|code| format!(", {code}")).unwrap_or_default();
                    self.seen.push(format!("told: {:?}{why}", ended.outcome));
                }
                self.ended.push(*ended);
            }
            Effect::Exit(status) => {
                self.exit = Some(status);
                self.end_of_life(&format!("PID 1 ends with {status}"));
            }
            Effect::Collect(_)
            | Effect::Hook(..)
            | Effect::Warn(_)
            | Effect::Probe(_, Purpose::Watch)
            | Effect::Unprobe
            | Effect::Disarm(_)
            | Effect::Cancel(_) => {}
        }
    }

    pub(super) fn timer(&mut self, timer: Option<u64>) {
        if let Some(life) = self.life.as_mut() {
            life.timer = timer;
        }
    }

    /// As the supervisor: the mark first, then the slot, then the mark that goes.
    fn record(&mut self, slot: &Slot, mark: Mark) {
        if let Mark::Set(generation) = mark {
            self.marks.insert(generation);
        }
        let Some(life) = self.life.as_mut() else { return };
        life.journal.record(slot).unwrap();
        if let Mark::Clear(generation) = mark {
            self.marks.remove(&generation);
        }
        self.queue.push_front(Event::Recorded);
    }

    /// The record of what the attempt under way wants: a digest for each tag, another each time for `latest`.
    fn draft(&mut self) -> Record {
        let image = self.state().attempt.as_ref().and_then(|attempt| attempt.image.clone());
        let tag = image.as_ref().map(ToString::to_string).unwrap_or_default();
        let next = 100 + u8::try_from(self.digests.len()).unwrap();
        let of = match tag.rsplit(':').next().unwrap_or_default() {
            "latest" => self.floating,
            // The same bytes as the one that runs in the beginning.
            "one-again" => 1,
            _ => *self.digests.entry(tag.clone()).or_insert(next),
        };
        let like = table::typical(Phase::Idle).known.into_values().next().unwrap();
        Record { image, digest: Some(Digest::from_bytes([of; 32])), ..like }
    }

    fn planned(&mut self, id: UpdateId) -> Event {
        let draft = self.draft();
        let state = self.state();
        let (digest, policy) = (draft.digest.unwrap(), draft.policy_digest);
        let force = state.attempt.as_ref().is_some_and(|attempt| attempt.force);
        if state.slot.bad(digest, policy).is_some() && !force {
            return Event::Failed { id, code: Code::KnownBad, message: "known".into(), refused: true };
        }
        let runs = state.serving.and_then(|run| state.known.get(&run.generation));
        let noop = runs.is_some_and(|now| now.same_triple(draft.digest, policy, draft.settings_digest));
        Event::Planned { id, noop }
    }
}
