//! What must be true, whatever happens: the promises, checked at every step against what really happened.
//!
//! In: the machine before and after a step, the disk, the simulated processes. Out: the first promise that was broken.
//! Must not: believe anything the machine says; it keeps its own account of what ran, what was healthy and what was written.

use std::collections::{BTreeMap, BTreeSet};

use molt_core::{
    code::Code,
    ids::{Digest, Generation, UpdateId},
    journal::{Bad, Slot},
    machine::{Ended, Kind, Mark, Phase, State},
    wire::Outcome,
};

use super::disk::{Disk, View};
use super::store;

/// The simulated program's own story, which the machine only hears of.
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
#[derive(Debug, Clone)]
pub struct Truth {
    /// What it runs.
    pub generation: Generation,
    /// Its gate was opened: it has the state until it is gone.
    pub open: bool,
    /// Its program was executed.
    pub ran: bool,
    /// Its main process ended.
    pub ended: bool,
    /// Every process of it is gone.
    pub gone: bool,
    /// It was healthy for all of its window.
    pub proven: bool,
    /// It did something an image is to blame for.
    pub failed: bool,
}

/// The account.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    /// The last slot whose write was acknowledged.
    pub acked: Option<Slot>,
    /// Whether any write ever was.
    written: bool,
    /// Slots that may be on disk as well: written since, and not acknowledged.
    maybe: Vec<Slot>,
    /// A write failed since the last acknowledged one.
    pub doubt: bool,
    /// The last life ended in doubt: what this one found may be older than what was told.
    tainted: bool,
    /// Update numbers given out.
    given: BTreeSet<UpdateId>,
    /// Numbers that nobody has heard of yet.
    fresh: Vec<UpdateId>,
    /// Updates that were said to have ended.
    ended: BTreeMap<UpdateId, Outcome>,
    /// Generations that were ever confirmed, or whose confirmation was tried.
    pub confirmed_once: BTreeSet<Generation>,
    /// Images that did something to be blamed for, by digest.
    pub blamed: BTreeSet<Digest>,
    /// Images that somebody took off the list.
    pub forgiven: BTreeSet<Digest>,
    /// Policy text of each generation, as it was staged.
    pub policies: BTreeMap<Generation, String>,
    /// A trial that this start found, and did not stop cleanly: it must not be opened.
    pub stale_trial: Option<Generation>,
    /// `molt confirm` was said, or the program completed, in this trial.
    pub vouched: Option<u64>,
}

/// Which promise, and how.
pub type Broken = String;

/// What decides: everything of a slot but its counters.
fn gist(slot: &Slot) -> Slot {
    Slot { sequence: 0, next_generation: 0, next_update: 0, ..slot.clone() }
}

macro_rules! must {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

impl Judge {
    /// A start read its journal.
    pub fn started(&mut self, disk: &Disk, slot: &Slot, reset: bool, damaged: bool) -> Result<(), Broken> {
        // A mark is written before its slot: of a disk that failed in between, a mark is all there ever was.
        let lost = damaged || (reset && !self.written);
        must!(lost || !reset, "the journal was whole and is taken as lost");
        self.tainted = self.doubt;
        if lost {
            if let Some(taken) = slot.confirmed {
                must!(
                    self.confirmed_once.contains(&taken),
                    "generation {taken} was never confirmed and boots without a journal"
                );
            }
            // Without a journal, numbers begin again, and what it knew is gone.
            self.given.clear();
            self.ended.clear();
            self.acked = None;
            self.maybe.clear();
        } else {
            let possible: Vec<Slot> = self.acked.iter().chain(&self.maybe).map(gist).collect();
            let first = possible.is_empty() || (self.acked.is_none() && gist(slot) == gist(&Slot::first()));
            must!(
                first || possible.contains(&gist(slot)),
                "the journal says what was never last: {slot:?}, not {possible:?}"
            );
        }
        let durable = store::look(disk.worst());
        let settled = durable.as_ref().map(gist) == Some(gist(slot));
        if settled {
            self.maybe.clear();
        } else {
            self.maybe.extend(self.acked.take());
        }
        self.acked = Some(slot.clone());
        self.doubt = !settled && !self.maybe.is_empty();
        let unclean = slot.trial.as_ref().filter(|trial| !trial.clean_stop).map(|trial| trial.generation);
        // Where nothing else is confirmed, it is all there is.
        self.stale_trial = unclean.filter(|trial| slot.confirmed.is_some_and(|confirmed| confirmed != *trial));
        self.vouched = None;
        self.fresh.clear();
        Ok(())
    }

    /// A slot is about to be written.
    pub fn writes(&mut self, slot: &Slot, mark: Mark) {
        self.maybe.push(slot.clone());
        if let Mark::Set(generation) = mark {
            self.confirmed_once.insert(generation);
        }
    }

    /// It was written, or not.
    pub fn wrote(
        &mut self,
        disk: &Disk,
        state: &State,
        runs: &BTreeMap<u64, Truth>,
        slot: &Slot,
        mark: Mark,
        written: bool,
    ) -> Result<(), Broken> {
        if !written {
            self.doubt = true;
            return Ok(());
        }
        let before = self.acked.replace(slot.clone());
        self.written = true;
        self.maybe.clear();
        self.doubt = false;
        let (was, is) = (before.as_ref().and_then(|slot| slot.confirmed), slot.confirmed);
        let trial = |slot: &Slot| slot.trial.as_ref().map(|trial| trial.generation);
        let worst = disk.worst();
        // The journal itself: what was acknowledged is on disk.
        let found = store::look(worst);
        must!(found.as_ref().map(gist) == Some(gist(slot)), "a slot was acknowledged and is not on disk: {slot:?}");
        // Files first, then the slot that names them.
        let retried = trial(slot).is_some_and(|_| {
            before.as_ref().and_then(|slot| slot.trial.as_ref().map(|t| t.update))
                != slot.trial.as_ref().map(|t| t.update)
        });
        if retried {
            // Somebody asked for it again.
            self.stale_trial = None;
        }
        if let Some(new) = trial(slot).filter(|new| Some(*new) != before.as_ref().and_then(trial)) {
            must!(
                disk.names_in_doubt || self.whole(worst, new),
                "the trial, generation {new}, was recorded before all of it was on disk"
            );
        }
        let Some(new) = is.filter(|_| is != was) else { return Ok(()) };
        must!(self.whole(worst, new), "generation {new} was confirmed before all of it was on disk");
        if let Mark::Set(generation) = mark {
            must!(store::marked(worst, generation), "generation {generation} is confirmed before its mark is on disk");
        }
        // A new one needs proof; the first one is all there is.
        if was.is_some() {
            let serving = state.serving.and_then(|run| Some((run.instance, runs.get(&run.instance)?)));
            // A write that failed may be made good when the run that proved it is gone.
            let proven = |run: &Truth| run.generation == new && run.proven;
            let proof = match serving {
                Some((instance, run)) => proven(run) || (run.generation == new && self.vouched == Some(instance)),
                None => runs.values().any(proven),
            };
            must!(proof, "generation {new} was confirmed without proof: {serving:?}");
        }
        Ok(())
    }

    fn whole(&self, worst: View<'_>, generation: Generation) -> bool {
        store::whole(worst, generation, self.policies.get(&generation).map_or("", String::as_str))
    }

    /// The first signal to what serves.
    pub fn signals(&self, disk: &Disk, state: &State) -> Result<(), Broken> {
        let Some(attempt) = state.attempt.as_ref().filter(|_| state.phase == Phase::Quiescing) else { return Ok(()) };
        if attempt.kind == Kind::Restart {
            return Ok(());
        }
        let durable = store::look(disk.worst()).and_then(|slot| slot.trial);
        must!(
            durable.as_ref().map(|trial| trial.generation) == attempt.to,
            "the old one was signalled before the trial was on disk: {durable:?}"
        );
        Ok(())
    }

    /// A gate opens.
    pub fn opens(&self, state: &State, runs: &BTreeMap<u64, Truth>, instance: u64) -> Result<(), Broken> {
        for (other, run) in runs {
            must!(
                *other == instance || !run.open || run.gone,
                "run {instance} gets the state while run {other} ({}) has it",
                run.generation
            );
        }
        let Some(opened) = runs.get(&instance).map(|run| run.generation) else { return Ok(()) };
        // The way back of an interrupted rollback may be what stands in when the confirmed one starts in vain.
        let again = self.stale_trial == Some(opened) && state.fallback.is_none();
        must!(!again, "generation {opened} was killed in its trial and is started again");
        let Some(acked) = &self.acked else { return Ok(()) };
        let Some(confirmed) = acked.confirmed else { return Ok(()) };
        let from = state.attempt.as_ref().and_then(|attempt| attempt.from);
        let named = opened == confirmed
            || acked.trial.as_ref().is_some_and(|trial| trial.generation == opened)
            || state.fallback.is_some()
            || (matches!(state.phase, Phase::RollingBack(_)) && from == Some(opened))
            || self.doubt
            || state.serving.is_some_and(|run| run.generation == opened) && restarts(state);
        must!(named, "generation {opened} is started; the journal names {confirmed} and {:?}", acked.trial);
        Ok(())
    }

    /// Numbers were given out, and images remembered as bad, by one step.
    pub fn stepped(&mut self, before: &State, after: &State) -> Result<(), Broken> {
        self.fresh.extend((before.next_update..after.next_update).map(UpdateId));
        for bad in &after.slot.bad {
            let new = !before.slot.bad.iter().any(|old| same(old, bad));
            must!(
                !new || self.tainted || self.blamed.contains(&bad.digest),
                "an image is remembered as bad for {}",
                bad.reason
            );
            if new {
                // Of a trial that the disk kept too long, the next start says the same again.
                self.blamed.insert(bad.digest);
            }
        }
        let rollback = after.attempt.as_ref().is_some_and(|attempt| attempt.kind == Kind::Rollback);
        must!(
            !(rollback
                && matches!(after.phase, Phase::RollingBack(back) if back != molt_core::machine::Back::Stopping)),
            "a rollback is rolled back"
        );
        Ok(())
    }

    /// All that a step wanted was done: whoever asked is told the number.
    pub fn heard(&mut self) -> Result<(), Broken> {
        for number in std::mem::take(&mut self.fresh) {
            // On a disk that takes no writes a number cannot be kept.
            must!(self.doubt || self.given.insert(number), "update number {number} was given out twice");
        }
        Ok(())
    }

    /// An update is said to have ended.
    pub fn ends(&mut self, state: &State, runs: &BTreeMap<u64, Truth>, ended: &Ended) -> Result<(), Broken> {
        let Ended { attempt, outcome, .. } = ended;
        let id = attempt.id;
        // Where nothing can be written, the next start cannot know what was told.
        if !self.doubt
            && let Some(earlier) = self.ended.insert(id, *outcome)
        {
            return Err(format!("update {id} ended as {earlier:?} and then as {outcome:?}"));
        }
        let serving = state.serving.and_then(|run| runs.get(&run.instance));
        let serves = serving.filter(|run| !run.gone).map(|run| run.generation);
        let acked = self.acked.clone().unwrap_or_default();
        let changes = matches!(attempt.kind, Kind::Update | Kind::Rollback);
        match outcome {
            Outcome::Confirmed if changes => {
                must!(acked.confirmed == attempt.to, "{id} is told as confirmed, and {:?} is", acked.confirmed);
                must!(acked.trial.is_none(), "{id} is told as confirmed, and a trial is left");
                must!(
                    serves == attempt.to || state.exit_status.is_some(),
                    "{id} is told as confirmed, and {serves:?} runs"
                );
            }
            Outcome::RolledBack => {
                must!(attempt.kind == Kind::Update, "{id}, a {:?}, was rolled back", attempt.kind);
                let gone = state.exit_status.is_some();
                must!(serves == attempt.from || gone, "{id} is told as rolled back, and {serves:?} runs");
                must!(self.doubt || acked.trial.is_none(), "{id} is told as rolled back, and its trial is left");
                must!(self.doubt || acked.confirmed == attempt.from, "{id} is rolled back to {:?}", acked.confirmed);
                self.remembered(state, attempt.to, ended.reason)?;
            }
            Outcome::Aborted | Outcome::Refused | Outcome::Noop if changes => {
                let own = acked.trial.as_ref().is_some_and(|trial| trial.update == id);
                must!(self.doubt || !own, "{id} is told as {outcome:?}, and its trial is left");
            }
            _ => {}
        }
        Ok(())
    }

    fn remembered(&self, state: &State, to: Option<Generation>, reason: Option<Code>) -> Result<(), Broken> {
        let digest = to.and_then(|to| state.known.get(&to)).and_then(|record| record.digest);
        let (Some(digest), Some(reason)) = (digest, reason.filter(|reason| reason.blames_image())) else {
            return Ok(());
        };
        let bad = &state.slot.bad;
        must!(
            self.forgiven.contains(&digest)
                || bad.iter().any(|bad| bad.digest == digest)
                || bad.len() >= molt_core::journal::MAX_BAD,
            "an image failed as {reason} and is not remembered"
        );
        Ok(())
    }
}

fn same(one: &Bad, other: &Bad) -> bool {
    (one.digest, one.policy, one.update) == (other.digest, other.policy, other.update)
}

fn restarts(state: &State) -> bool {
    state.attempt.as_ref().is_some_and(|attempt| attempt.kind == Kind::Restart)
}
