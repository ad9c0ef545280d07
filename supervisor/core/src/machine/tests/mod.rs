//! The machine: that every pair has an answer and random events keep the promises. A room for each part of the story;
//! what they share is here.

use proptest::prelude::*;

mod back;
mod boot;
mod sick;
mod update;
mod wanted;

use super::{table, *};
use crate::{
    code::Code,
    ids::{Generation, UpdateId},
    wire::Outcome,
};

fn now() -> Moment {
    Moment { mono_ns: 1_000, unix_ms: 1 }
}

/// A spec with an image.
fn first_boot() -> Found {
    let image = "registry.example.com/app:1".parse().ok();
    Found { spec: Some(Wanted { image, ..Wanted::default() }), ..Found::default() }
}

fn outcomes(effects: &[Effect]) -> Vec<Outcome> {
    effects.iter().filter_map(|e| if let Effect::End(ended) = e { Some(ended.outcome) } else { None }).collect()
}

/// Plays the supervisor: answers every effect well, but for a trial of what is `sick`.
struct World {
    state: State,
    ended: Vec<Ended>,
    log: Vec<Effect>,
    sick: Vec<Generation>,
    exit: Option<i32>,
}

impl World {
    fn new() -> Self {
        let mut state = table::typical(Phase::Idle);
        state.slot.previous = None;
        Self { state, ended: vec![], log: vec![], sick: vec![], exit: None }
    }

    fn send(&mut self, event: Event) {
        let mut queue = std::collections::VecDeque::from([event]);
        let mut fuel = 500;
        while let Some(event) = queue.pop_front() {
            fuel -= 1;
            assert!(fuel > 0, "the machine runs in circles: {:?}", self.log);
            let effects = step(&mut self.state, now(), event);
            for effect in effects {
                self.log.push(effect.clone());
                match effect {
                    Effect::Resolve(id) => queue.push_back(Event::Resolved { id }),
                    Effect::Plan(id) => queue.push_back(Event::Planned { id, noop: false }),
                    Effect::Fetch(id) => queue.push_back(Event::Fetched { id }),
                    Effect::Stage { id, as_number } => {
                        let mut record = self.state.known.values().next().unwrap().clone();
                        record.generation = as_number;
                        record.digest = Some(crate::ids::Digest::from_bytes([u8::try_from(as_number.0).unwrap(); 32]));
                        queue.push_back(Event::Staged { id, record: Box::new(record) });
                    }
                    Effect::Arm(run) => queue.push_back(Event::Armed { instance: run.instance }),
                    Effect::PreStop { id, .. } => queue.push_back(Event::PreStopDone { id }),
                    Effect::Record(..) => queue.push_front(Event::Recorded),
                    Effect::Stop(run, _) => {
                        queue.push_back(Event::Exited { instance: run.instance, status: 0, at_ns: 10 });
                        queue.push_back(Event::Gone { instance: run.instance, at_ns: 10 });
                    }
                    Effect::Open(run) => queue.push_back(Event::Execed { instance: run.instance, at_ns: 25 }),
                    Effect::Probe(run, Purpose::Trial) if self.sick.contains(&run.generation) => {
                        queue.push_back(Event::Unhealthy { instance: run.instance, message: "sick".into() });
                    }
                    Effect::Probe(run, Purpose::Trial) => queue.push_back(Event::Proven { instance: run.instance }),
                    Effect::End(ended) => self.ended.push(*ended),
                    Effect::Exit(status) => self.exit = Some(status),
                    _ => {}
                }
            }
        }
    }

    fn update(&mut self, image: &str) {
        let image = image.parse().unwrap();
        let target =
            Target::Image { image, policy: None, stage_only: false, force: false, allow_wider: false, spec: None };
        self.send(Event::Intent { target, by: "test".into(), note: None });
    }

    fn serving(&self) -> Generation {
        self.state.serving.expect("something must run").generation
    }

    fn last(&self) -> &Ended {
        self.ended.last().expect("an attempt must have ended")
    }
}

#[test]
fn every_pair_of_phase_and_event_has_an_answer() {
    for phase in Phase::ALL {
        for (name, event) in table::events() {
            let mut state = table::typical(phase);
            let effects = step(&mut state, now(), event);
            assert!(
                !(state.phase == Phase::Degraded
                    && state.serving.is_none()
                    && state.standby.is_none()
                    && phase != Phase::Degraded
                    && !effects.iter().any(|e| matches!(e, Effect::Wait(_)))),
                "{phase:?} x {name}: degraded without a timer"
            );
        }
    }
}

#[test]
fn the_table_in_docs_is_the_code_s() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/STATE-MACHINE.md");
    let made = table::markdown();
    if std::env::var_os("MOLT_BLESS").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == made, "docs/STATE-MACHINE.md is stale: MOLT_BLESS=1 cargo test -p molt-core");
}

/// What a restart finds of `typical(phase)` when Molt was killed there.
fn killed_in(phase: Phase) -> World {
    let before = table::typical(phase);
    let mut world = World::new();
    world.state = State::new(before.slot, before.known, Settings::default());
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random events in random order: no panic, one store truth, and never neither without a plan.
    #[test]
    fn random_events_keep_the_promises(picks in proptest::collection::vec((0usize..64, 1u64..6), 1..60)) {
        let mut state = table::typical(Phase::Idle);
        for (pick, instance) in picks {
            let events = table::events();
            let (_, mut event) = events[pick % events.len()].clone();
            match &mut event {
                Event::Exited { instance: i, .. } | Event::Gone { instance: i, .. } | Event::Execed { instance: i, .. }
                | Event::Armed { instance: i } | Event::NotArmed { instance: i, .. } | Event::Proven { instance: i }
                | Event::Unhealthy { instance: i, .. } | Event::NotGone { instance: i } => *i = instance,
                Event::Resolved { id } | Event::Planned { id, .. } | Event::Fetched { id } | Event::Staged { id, .. }
                | Event::Failed { id, .. } | Event::PreStopDone { id } => {
                    if let Some(attempt) = &state.attempt { *id = attempt.id; }
                }
                _ => {}
            }
            let before = state.clone();
            let effects = step(&mut state, now(), event.clone());
            // Something boots, always.
            prop_assert!(state.slot.confirmed.is_some());
            // The gate opens only when nobody serves.
            if effects.iter().any(|e| matches!(e, Effect::Open(_))) {
                let serving_before = before.serving.is_some() && !matches!(event, Event::Gone { .. });
                prop_assert!(!serving_before, "{before:?} {event:?}");
            }
            // No signal to the confirmed workload for an update before its trial is durable.
            if effects.iter().any(|e| matches!(e, Effect::Stop(..)))
                && state.phase == Phase::Quiescing
                && state.attempt.as_ref().is_some_and(|a| a.kind != Kind::Restart)
            {
                prop_assert!(before.slot.trial.is_some());
            }
        }
    }
}
