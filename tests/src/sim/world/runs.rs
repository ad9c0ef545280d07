//! Runs of a workload: armed, opened, probed, stopped, ended; each as its image's fate has it.
//!
//! In: an effect that names a run. Out: what the run says of itself, in time, late or never. Must not: let a run that is
//! gone say anything that a real one could not.

use molt_core::{
    code::Code,
    machine::{Event, Patience, Purpose, Run},
};

use super::{Fate, Item, Plant, World};
use crate::sim::{judge::Truth, store};

impl World {
    pub(super) fn arm(&mut self, run: Run) {
        let generation = run.generation;
        let policy = self.judge.policies.get(&generation).cloned().unwrap_or_default();
        let whole = store::whole(self.disk.borrow().cached(), generation, &policy);
        let refused = if !whole {
            Some(Code::StoreUnusable)
        } else if self.fate(generation) == Fate::NoArm {
            Some(Code::ProgramUnusable)
        } else if self.mishap() {
            Some(if self.rng.bool() { Code::ConfinementFailed } else { Code::Internal })
        } else {
            None
        };
        let truth =
            Truth { generation, open: false, ran: false, ended: false, gone: false, proven: false, failed: false };
        self.runs.insert(run.instance, truth);
        let slow = refused.is_some() && self.rng.u32(..8) == 0;
        let pause = match self.rng.u32(..12) {
            _ if slow => 30_000,
            0 => self.rng.u64(900..9_000),
            _ => self.rng.u64(3..900),
        };
        self.later(pause, Item::Armed(run, refused));
    }

    /// As `Brought::Armed`.
    pub(super) fn armed(&mut self, run: Run, refused: Option<Code>) {
        let stands_by = self.life.as_ref().is_some_and(|life| life.state.standby == Some(run));
        match refused {
            None if !stands_by => {
                self.runs.remove(&run.instance);
            }
            None => {
                if self.mishap() {
                    let after = self.rng.u64(1..3_000);
                    self.later(after, Item::Gone(run.instance));
                }
                self.take(Event::Armed { instance: run.instance });
            }
            Some(code) => {
                self.runs.remove(&run.instance);
                self.take(Event::NotArmed { instance: run.instance, code, message: "simulated".to_owned() });
            }
        }
    }

    pub(super) fn stop(&mut self, run: Run, patience: Patience) {
        let disk = self.shared();
        if let Some(life) = self.life.as_mut() {
            // Planted: only now.
            let verdict = self.judge.signals(&disk.borrow(), &life.state);
            let postponed = life.postponed.take();
            self.must(verdict);
            if let Some((slot, mark)) = postponed {
                let _ = self.write(&slot, mark);
            }
        }
        let Some(truth) = self.runs.get(&run.instance).cloned() else { return };
        if truth.gone {
            return;
        }
        let stubborn = self.fate(run.generation) == Fate::Stubborn;
        let after = match patience {
            Patience::Kill => self.rng.u64(0..20),
            Patience::Grace(_) if stubborn => 10_000,
            Patience::Grace(_) => self.rng.u64(0..3_000),
        };
        if !truth.ended {
            let (status, told) = (if stubborn { 137 } else { 143 }, self.rng.u32(..12) != 0);
            self.later(after, Item::Dies { instance: run.instance, status, told, asked: true });
        }
        // In uninterruptible sleep: killed, and still there.
        if self.rng.u32(..60) == 0 && self.mishap() {
            let slow = after + 20_000 + self.rng.u64(..60_000);
            self.later(after + 20_000, Item::Answer(None, Event::NotGone { instance: run.instance }));
            return self.later(slow, Item::Gone(run.instance));
        }
        let grave = self.rng.u64(0..30);
        self.later(after + grave, Item::Gone(run.instance));
    }

    pub(super) fn open(&mut self, run: Run) {
        if let Some(life) = self.life.as_ref() {
            let verdict = self.judge.opens(&life.state, &self.runs, run.instance);
            self.must(verdict);
        }
        let Some(truth) = self.runs.get_mut(&run.instance) else { return };
        truth.open = true;
        let fate = self.fate(run.generation);
        let pause = self.rng.u64(0..40);
        let instance = run.instance;
        if fate == Fate::NoExec {
            self.blame(run.generation);
            let event = Event::NotExeced { instance, code: Code::ExecFailed, message: "simulated".to_owned() };
            self.later(pause, Item::Answer(None, event));
            return self.later(pause + 1, Item::Dies { instance, status: 127, told: true, asked: false });
        }
        let at_ns = self.moment().mono_ns + pause * 1_000_000;
        self.later(pause, Item::Answer(None, Event::Execed { instance, at_ns }));
        if let Some(truth) = self.runs.get_mut(&instance) {
            truth.ran = true;
        }
        let dies = match fate {
            Fate::Dies => Some((self.rng.u64(0..2_000), 1)),
            Fate::Lingers => Some((self.rng.u64(0..3_000), 3)),
            Fate::EndsLate => Some((self.rng.u64(4_000..40_000), 2)),
            _ if self.completes && self.chance(20) => Some((self.rng.u64(0..4_000), 0)),
            _ => None,
        };
        if let Some((after, status)) = dies {
            let told = fate == Fate::Lingers || self.rng.u32(..10) != 0;
            self.later(pause + after, Item::Dies { instance, status, told, asked: false });
        }
        if fate == Fate::KillsMolt {
            let after = self.rng.u64(0..1_500);
            self.later(pause + after, Item::KillIfThere);
        }
    }

    pub(super) fn dies(&mut self, instance: u64, status: i32, told: bool, asked: bool) {
        let Some(truth) = self.runs.get_mut(&instance) else { return };
        if truth.ended || truth.gone {
            return;
        }
        truth.ended = true;
        let (generation, at_gate) = (truth.generation, !truth.open);
        if !asked {
            truth.failed = true;
            self.blame(generation);
            if status == 0 && self.completes {
                self.judge.vouched = Some(instance);
            }
            // A shim that lies: its workload goes on until it is killed.
            if self.fate(generation) != Fate::Lingers {
                let grave = self.rng.u64(0..30);
                self.later(grave, Item::Gone(instance));
            }
        }
        if told && !at_gate {
            let at_ns = self.moment().mono_ns;
            self.take(Event::Exited { instance, status, at_ns });
        }
    }

    pub(super) fn gone(&mut self, instance: u64) {
        let Some(truth) = self.runs.get_mut(&instance) else { return };
        if truth.gone {
            return;
        }
        let alone = truth.open && !truth.ended;
        (truth.ended, truth.gone) = (true, true);
        let generation = truth.generation;
        if alone {
            // Nobody asked it to: out of memory, say.
            self.blame(generation);
        }
        let at_ns = self.moment().mono_ns;
        self.take(Event::Gone { instance, at_ns });
    }

    pub(super) fn probe(&mut self, run: Run, purpose: Purpose) -> Option<Event> {
        self.unprobe();
        let instance = run.instance;
        let prober = self.life.as_ref()?.prober;
        let fate = self.fate(run.generation);
        let ready = self.rng.u64(20..2_000);
        let say = |world: &mut Self, after: u64, event: Event| world.later(after, Item::Said(prober, event));
        if self.plant == Some(Plant::ConfirmBeforeProof) && purpose == Purpose::Trial {
            return Some(Event::Proven { instance });
        }
        let unhealthy = Event::Unhealthy { instance, message: "simulated".to_owned() };
        let at_ns = self.moment().mono_ns + ready * 1_000_000;
        match purpose {
            Purpose::Watch => {
                if self.chance(20) {
                    let after = self.rng.u64(1_000..40_000);
                    say(self, after / 2, Event::Ready { instance, ready: false, at_ns });
                    say(self, after, unhealthy);
                }
            }
            _ if fate == Fate::Sick => {
                let after = self.rng.u64(500..8_000);
                say(self, after, unhealthy);
            }
            _ => {
                say(self, ready, Event::Ready { instance, ready: true, at_ns });
                say(self, ready + 2_000, Event::Proven { instance });
            }
        }
        None
    }

    pub(super) fn unprobe(&mut self) {
        if let Some(life) = self.life.as_mut() {
            life.prober += 1;
        }
    }

    pub(super) fn said(&mut self, prober: u64, event: Event) {
        let current = self.life.as_ref().is_some_and(|life| life.prober == prober);
        // What was sent before the prober was stopped arrives after.
        if !current && self.rng.u32(..12) != 0 {
            return;
        }
        let (Event::Ready { instance, .. } | Event::Proven { instance } | Event::Unhealthy { instance, .. }) = event
        else {
            return;
        };
        let Some(truth) = self.runs.get_mut(&instance).filter(|truth| truth.open && !truth.ended) else { return };
        match &event {
            Event::Proven { .. } => truth.proven = true,
            Event::Unhealthy { .. } => {
                truth.failed = true;
                let generation = truth.generation;
                self.blame(generation);
            }
            _ => {}
        }
        self.take(event);
    }
}
