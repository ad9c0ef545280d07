//! The machine: totality, the story of an update, every way back, and the bugs other systems had.

use proptest::prelude::*;

use super::{table, *};
use crate::{
    code::Code,
    ids::{Generation, UpdateId},
    wire::Outcome,
};

pub(super) fn now() -> Moment {
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

/// Plays the supervisor: answers every effect well, except where `fail` says otherwise.
pub(super) struct World {
    pub(super) state: State,
    pub(super) ended: Vec<Ended>,
    pub(super) log: Vec<Effect>,
    pub(super) sick: Vec<Generation>,
    exit: Option<i32>,
}

impl World {
    pub(super) fn new() -> Self {
        let mut state = table::typical(Phase::Idle);
        state.slot.previous = None;
        Self { state, ended: vec![], log: vec![], sick: vec![], exit: None }
    }

    pub(super) fn send(&mut self, event: Event) {
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

    pub(super) fn update(&mut self, image: &str) {
        let image = image.parse().unwrap();
        let target =
            Target::Image { image, policy: None, stage_only: false, force: false, allow_wider: false, spec: None };
        self.send(Event::Intent { target, by: "test".into(), note: None });
    }

    pub(super) fn serving(&self) -> Generation {
        self.state.serving.expect("something must run").generation
    }

    pub(super) fn last(&self) -> &Ended {
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
fn an_update_is_confirmed_and_its_gap_measured() {
    let mut world = World::new();
    world.update("registry.example.com/app:9");
    assert_eq!(world.last().outcome, Outcome::Confirmed);
    assert_eq!(world.last().attempt.downtime_ns, Some(15));
    assert_eq!(world.serving(), Generation(4));
    assert_eq!(world.state.slot.confirmed, Some(Generation(4)));
    assert_eq!(world.state.slot.previous, Some(Generation(1)));
    assert_eq!(world.state.phase, Phase::Idle);
    assert_eq!(world.state.standby, None);
}

#[test]
fn the_trial_is_durable_before_the_first_signal_and_nothing_is_synced_in_the_gap() {
    let mut world = World::new();
    world.update("registry.example.com/app:9");
    let at = |what: fn(&Effect) -> bool| world.log.iter().position(what).unwrap();
    let recorded = at(|e| matches!(e, Effect::Record(slot, _) if slot.trial.is_some()));
    let stop = at(|e| matches!(e, Effect::Stop(..)));
    let open = at(|e| matches!(e, Effect::Open(_)));
    let confirmed = at(|e| matches!(e, Effect::Record(slot, _) if slot.confirmed == Some(Generation(4))));
    assert!(recorded < stop && stop < open && open < confirmed);
    let in_gap = world.log.get(stop..open).unwrap();
    assert!(!in_gap.iter().any(|e| matches!(e, Effect::Record(..) | Effect::Collect(_))));
}

#[test]
fn how_an_attempt_ended_is_in_the_slot_that_it_changed() {
    let mut world = World::new();
    let verdict = |world: &World| world.state.slot.verdict.clone().unwrap();
    world.update("registry.example.com/app:9");
    let update = world.last().attempt.id;
    assert_eq!(verdict(&world), crate::journal::Verdict { update, kind: "update".into(), outcome: Outcome::Confirmed });
    world.sick = vec![Generation(5)];
    world.update("registry.example.com/app:bad");
    let update = world.last().attempt.id;
    assert_eq!(
        verdict(&world),
        crate::journal::Verdict { update, kind: "update".into(), outcome: Outcome::RolledBack }
    );
    // Never one without the other.
    let slots = world.log.iter().filter_map(|e| if let Effect::Record(slot, _) = e { Some(slot) } else { None });
    for slot in slots.filter(|slot| slot.confirmed == Some(Generation(4))) {
        assert!(slot.verdict.is_some(), "{slot:?}");
    }
}

#[test]
fn a_sick_update_comes_back_by_itself_and_is_remembered() {
    let mut world = World::new();
    world.sick = vec![Generation(4)];
    world.update("registry.example.com/app:bad");
    assert_eq!(world.last().outcome, Outcome::RolledBack);
    assert_eq!(world.last().reason, Some(Code::Unhealthy));
    assert_eq!(world.serving(), Generation(1));
    assert_eq!(world.state.slot.confirmed, Some(Generation(1)));
    assert_eq!(world.state.slot.trial, None);
    assert_eq!(world.state.slot.bad.len(), 1);
}

#[test]
fn good_bad_good_works() {
    let mut world = World::new();
    world.update("registry.example.com/app:2");
    world.sick = vec![Generation(5)];
    world.update("registry.example.com/app:bad");
    world.update("registry.example.com/app:3");
    let ends: Vec<_> = world.ended.iter().map(|ended| ended.outcome).collect();
    assert_eq!(ends, [Outcome::Confirmed, Outcome::RolledBack, Outcome::Confirmed]);
    assert_eq!(world.serving(), Generation(6));
}

#[test]
fn rollback_by_hand_re_enters_the_same_generation() {
    let mut world = World::new();
    world.update("registry.example.com/app:2");
    world.send(Event::Intent { target: Target::Back(None), by: "test".into(), note: None });
    assert_eq!(world.last().outcome, Outcome::Confirmed);
    assert_eq!(world.serving(), Generation(1));
    assert_eq!(world.state.slot.confirmed, Some(Generation(1)));
    assert_eq!(world.state.slot.previous, Some(Generation(4)));
}

#[test]
fn a_rollback_is_never_rolled_back() {
    let mut world = World::new();
    world.update("registry.example.com/app:2");
    world.sick = vec![Generation(1)];
    world.send(Event::Intent { target: Target::Back(None), by: "test".into(), note: None });
    assert_eq!(world.last().outcome, Outcome::Degraded);
    let verdict = world.state.slot.verdict.clone().unwrap();
    assert_eq!((verdict.update, verdict.outcome), (world.last().attempt.id, Outcome::Degraded));
    assert_eq!(world.state.phase, Phase::Degraded);
    assert!(matches!(world.log.iter().rev().find(|e| matches!(e, Effect::Wait(_))), Some(Effect::Wait(1000))));
    world.send(Event::Waited);
    assert_eq!(world.serving(), Generation(4), "the confirmed one is tried again");
    assert_eq!(world.state.phase, Phase::Idle);
}

#[test]
fn if_both_fail_it_degrades_and_keeps_trying() {
    let mut world = World::new();
    world.sick = vec![Generation(1), Generation(4)];
    world.update("registry.example.com/app:bad");
    assert_eq!(world.last().outcome, Outcome::Degraded);
    world.send(Event::Waited);
    assert_eq!(world.state.phase, Phase::Degraded);
    world.sick.clear();
    world.send(Event::Waited);
    assert_eq!(world.state.phase, Phase::Idle);
    assert_eq!(world.serving(), Generation(1));
}

#[test]
fn rollback_with_nothing_to_go_back_to_is_refused() {
    let mut world = World::new();
    world.send(Event::Intent { target: Target::Back(None), by: "test".into(), note: None });
    assert_eq!(world.last().outcome, Outcome::Refused);
    assert_eq!(world.last().reason, Some(Code::NothingToRollBackTo));
    assert_eq!(world.serving(), Generation(1));
}

#[test]
fn nobody_goes_below_the_floor_by_hand_but_with_a_marked_key_and_the_way_back_stays_open() {
    let floor = |floor: u32| Some(crate::order::Memory { floor: Generation(floor), ..Default::default() });
    let mut world = World::new();
    world.update("registry.example.com/app:2");
    world.state.slot.orders = floor(4);
    for to in [None, Some(Generation(1))] {
        world.send(Event::Intent { target: Target::Back(to), by: "test".into(), note: None });
        assert_eq!((world.last().outcome, world.last().reason), (Outcome::Refused, Some(Code::BelowFloor)));
        assert_eq!(world.serving(), Generation(4));
    }
    // By itself Molt goes wherever something healthy is: never neither.
    let mut sick = World::new();
    sick.sick = vec![Generation(4)];
    sick.state.slot.orders = floor(4);
    sick.update("registry.example.com/app:bad");
    assert_eq!((sick.last().outcome, sick.serving()), (Outcome::RolledBack, Generation(1)));
    world.send(Event::Intent { target: Target::BackBelow(None), by: "test".into(), note: None });
    assert_eq!((world.last().outcome, world.serving()), (Outcome::Confirmed, Generation(1)));
}

#[test]
fn a_newer_intent_supersedes_one_before_the_gate_and_waits_behind_one_after_it() {
    for phase in Phase::ALL.into_iter().filter(|phase| phase.before_gate()) {
        let mut state = table::typical(phase);
        let target = Target::Back(None);
        let effects = step(&mut state, now(), Event::Intent { target, by: "t".into(), note: None });
        assert_eq!(outcomes(&effects), [Outcome::Aborted], "{phase:?}");
    }
    for phase in [Phase::Quiescing, Phase::Swapping, Phase::Proving, Phase::RollingBack(Back::Proving)] {
        let mut state = table::typical(phase);
        let target = Target::Back(None);
        let effects = step(&mut state, now(), Event::Intent { target, by: "t".into(), note: None });
        assert_eq!(outcomes(&effects), [], "{phase:?}");
        assert!(state.queued.is_some(), "{phase:?}");
    }
}

#[test]
fn the_workload_s_exit_is_pid_1_s_exit_and_aborts_an_update_before_its_gate() {
    for phase in Phase::ALL.into_iter().filter(|phase| phase.before_gate() || *phase == Phase::Idle) {
        let mut state = table::typical(phase);
        let mut effects = step(&mut state, now(), Event::Exited { instance: 1, status: 7, at_ns: 1 });
        effects.extend(step(&mut state, now(), Event::Gone { instance: 1, at_ns: 2 }));
        assert!(effects.contains(&Effect::Exit(7)), "{phase:?}: {effects:?}");
    }
}

#[test]
fn a_clean_stop_does_not_burn_the_trial_and_a_kill_does() {
    let mut world = World::new();
    world.state = table::typical(Phase::Proving);
    let effects = step(&mut world.state, now(), Event::Terminate { signal: 15 });
    let slot =
        effects.iter().find_map(|e| if let Effect::Record(slot, _) = e { Some(slot.clone()) } else { None }).unwrap();
    assert!(slot.trial.as_ref().unwrap().clean_stop);
    let known = world.state.known.clone();

    let mut again = World::new();
    again.state = State::new((*slot).clone(), known.clone(), Settings::default());
    again.send(Event::Boot(Found::default()));
    assert_eq!(again.last().outcome, Outcome::Confirmed);
    assert_eq!(again.serving(), Generation(2));

    let mut killed = *slot;
    killed.trial.as_mut().unwrap().clean_stop = false;
    let mut again = World::new();
    again.state = State::new(killed, known, Settings::default());
    again.send(Event::Boot(Found::default()));
    assert_eq!(again.ended.first().unwrap().outcome, Outcome::RolledBack);
    assert_eq!(again.serving(), Generation(1));
    assert_eq!(again.state.slot.bad.len(), 1);
}

#[test]
fn liveness_restarts_the_same_generation_with_back_off() {
    let mut world = World::new();
    world.send(Event::Unhealthy { instance: 1, message: "no answer".into() });
    assert_eq!(world.serving(), Generation(1));
    assert_eq!(world.last().attempt.kind, Kind::Restart);
    let instance = world.state.serving.unwrap().instance;
    world.log.clear();
    world.send(Event::Unhealthy { instance, message: "no answer".into() });
    assert!(world.log.contains(&Effect::Wait(1000)), "{:?}", world.log);
}

#[test]
fn a_first_image_that_cannot_be_had_is_tried_for_ever() {
    let mut state = State::new(crate::journal::Slot::first(), std::collections::BTreeMap::new(), Settings::default());
    let effects = step(&mut state, now(), Event::Boot(first_boot()));
    let id = UpdateId(1);
    assert!(effects.contains(&Effect::Resolve(id)));
    for wait in [1000, 2000, 4000] {
        let failed = Event::Failed { id, code: Code::RegistryUnreachable, message: "no".into(), refused: false };
        assert!(step(&mut state, now(), failed).contains(&Effect::Wait(wait)));
        assert_eq!(step(&mut state, now(), Event::Waited), [Effect::Resolve(id)]);
    }
}

#[test]
fn a_program_that_completes_confirms_and_ends_pid_1() {
    let mut world = World::new();
    world.state = table::typical(Phase::Proving);
    world.state.settings.completes = true;
    world.send(Event::Exited { instance: 1, status: 0, at_ns: 5 });
    world.send(Event::Gone { instance: 1, at_ns: 6 });
    assert_eq!(world.last().outcome, Outcome::Confirmed);
    assert_eq!(world.exit, Some(0));
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

#[test]
fn nothing_takes_the_place_of_the_confirmed_generation_while_it_boots() {
    let mut state = table::typical(Phase::Arming);
    state.serving = None;
    state.attempt.as_mut().unwrap().kind = Kind::Boot;
    let effects = step(&mut state, now(), Event::Intent { target: Target::Back(None), by: "t".into(), note: None });
    // Only its number is written down.
    assert!(matches!(effects.as_slice(), [Effect::Record(_, Mark::Keep)]), "{effects:?}");
    assert!(state.queued.is_some() && state.standby.is_some());
}

#[test]
fn a_first_image_is_still_wanted_after_another_one_failed() {
    let mut state = State::new(crate::journal::Slot::first(), std::collections::BTreeMap::new(), Settings::default());
    step(&mut state, now(), Event::Boot(first_boot()));
    let other = "registry.example.com/typo:1".parse().unwrap();
    let target =
        Target::Image { image: other, policy: None, stage_only: false, force: false, allow_wider: false, spec: None };
    step(&mut state, now(), Event::Intent { target, by: "t".into(), note: None });
    let id = state.attempt.as_ref().unwrap().id;
    step(&mut state, now(), Event::Failed { id, code: Code::NotFound, message: "no".into(), refused: false });
    let effects = step(&mut state, now(), Event::Waited);
    // Under a number of its own: the first one was told to have ended.
    assert!(effects.contains(&Effect::Resolve(UpdateId(3))), "{effects:?}");
    assert_eq!(state.attempt.as_ref().map(|attempt| attempt.kind), Some(Kind::Boot));
}

#[test]
fn a_first_image_is_still_wanted_after_a_trial_that_a_stop_interrupted() {
    let first = table::typical(Phase::Proving);
    let mut slot = first.slot;
    (slot.confirmed, slot.previous) = (None, None);
    slot.trial.as_mut().unwrap().clean_stop = true;
    let mut state = State::new(slot, first.known, Settings::default());
    step(&mut state, now(), Event::Boot(first_boot()));
    let instance = state.standby.unwrap().instance;
    for event in [
        Event::Armed { instance },
        Event::Execed { instance, at_ns: 1 },
        Event::Unhealthy { instance, message: "m".into() },
        Event::Exited { instance, status: 143, at_ns: 2 },
        Event::Gone { instance, at_ns: 2 },
    ] {
        step(&mut state, now(), event);
    }
    let effects = step(&mut state, now(), Event::Waited);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Resolve(_))), "{effects:?}");
    assert_eq!(state.attempt.as_ref().map(|attempt| attempt.kind), Some(Kind::Boot));
}

#[test]
fn a_degraded_sandbox_outlives_its_workload_while_the_mend_is_staged() {
    let mut state = table::typical(Phase::Held);
    state.shaky = true;
    let mut effects = step(&mut state, now(), Event::Exited { instance: 1, status: 1, at_ns: 1 });
    effects.extend(step(&mut state, now(), Event::Gone { instance: 1, at_ns: 2 }));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Exit(_) | Effect::End(_))), "{effects:?}");
    assert_eq!(state.phase, Phase::Held);
}

#[test]
fn a_stop_while_the_old_one_is_quiesced_blames_nobody() {
    let mut state = table::typical(Phase::Quiescing);
    let effects = step(&mut state, now(), Event::Terminate { signal: 15 });
    assert_eq!(outcomes(&effects), [Outcome::Aborted]);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Record(slot, _) if slot.trial.is_none())));
}

#[test]
fn liveness_that_failed_during_an_update_is_acted_upon_when_it_fails() {
    let mut state = table::typical(Phase::Fetching);
    step(&mut state, now(), Event::Unhealthy { instance: 1, message: "no answer".into() });
    let failed = Event::Failed { id: UpdateId(5), code: Code::NotFound, message: "no".into(), refused: false };
    let effects = step(&mut state, now(), failed);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Arm(_))), "{effects:?}");
    assert_eq!(state.attempt.as_ref().unwrap().kind, Kind::Restart);
}

#[test]
fn an_unreadable_confirmed_generation_leaves_the_previous_one() {
    let mut world = World::new();
    let mut state = State::new(world.state.slot.clone(), world.state.known.clone(), Settings::default());
    state.slot.confirmed = Some(Generation(9));
    state.slot.previous = Some(Generation(3));
    world.state = state;
    world.send(Event::Boot(Found::default()));
    assert_eq!(world.serving(), Generation(3));
}

#[test]
fn a_confirmation_that_cannot_be_written_leaves_the_slot_as_it_was() {
    let mut state = table::typical(Phase::Proving);
    let before = state.slot.clone();
    step(&mut state, now(), Event::Proven { instance: 1 });
    assert_ne!(state.slot, before);
    step(&mut state, now(), Event::NotRecorded { message: "EIO".into() });
    assert_eq!((state.slot.confirmed, state.slot.previous), (before.confirmed, before.previous));
    assert_eq!(state.phase, Phase::RollingBack(Back::Stopping));
}

#[test]
fn a_late_word_of_the_old_run_writes_nothing_in_the_gap() {
    let mut state = table::typical(Phase::Quiescing);
    state.slot.starts = 3;
    assert_eq!(step(&mut state, now(), Event::Proven { instance: 1 }), []);
}

/// What a restart finds of `typical(phase)` when Molt was killed there.
fn killed_in(phase: Phase) -> World {
    let before = table::typical(phase);
    let mut world = World::new();
    world.state = State::new(before.slot, before.known, Settings::default());
    world
}

#[test]
fn a_trial_that_a_start_finds_is_told_as_rolled_back_only_when_the_old_one_is_healthy() {
    let mut state = killed_in(Phase::Proving).state;
    let effects = step(&mut state, now(), Event::Boot(Found::default()));
    assert_eq!(outcomes(&effects), []);
    assert_eq!(state.phase, Phase::RollingBack(Back::Arming));
    // Killed again on the way: the same again.
    let kept = effects.iter().find_map(|e| if let Effect::Record(slot, _) = e { Some(slot.clone()) } else { None });
    let mut world = World::new();
    world.state = State::new(*kept.unwrap(), state.known, Settings::default());
    world.send(Event::Boot(Found::default()));
    assert_eq!(world.last().outcome, Outcome::RolledBack);
    assert_eq!(world.last().reason, Some(Code::ExitedInTrial));
    assert_eq!((world.serving(), world.state.slot.bad.len()), (Generation(1), 1));
}

#[test]
fn an_update_interrupted_before_its_program_ran_is_not_held_against_the_image() {
    for phase in [Phase::Recording, Phase::Quiescing, Phase::Swapping] {
        let mut world = killed_in(phase);
        world.send(Event::Boot(Found::default()));
        assert_eq!((world.last().outcome, world.last().reason), (Outcome::RolledBack, Some(Code::Interrupted)));
        assert_eq!((world.serving(), world.state.slot.bad.len()), (Generation(1), 0), "{phase:?}");
    }
}

#[test]
fn an_interrupted_rollback_is_not_rolled_back() {
    let mut world = killed_in(Phase::Proving);
    world.state.slot.trial.as_mut().unwrap().rollback = true;
    world.send(Event::Boot(Found::default()));
    assert_eq!(world.ended.first().unwrap().outcome, Outcome::Degraded);
    assert_eq!(world.serving(), Generation(1));
}

#[test]
fn a_clean_stop_again_and_again_never_burns_a_trial() {
    let mut world = killed_in(Phase::Proving);
    world.state.slot.trial.as_mut().unwrap().clean_stop = true;
    for _ in 0..5 {
        let mut state = State::new(world.state.slot.clone(), world.state.known.clone(), Settings::default());
        step(&mut state, now(), Event::Boot(Found::default()));
        let intent = Event::Intent { target: Target::Back(None), by: "t".into(), note: None };
        assert_eq!(outcomes(&step(&mut state, now(), intent)), [], "nothing supersedes it");
        state.queued = None;
        let effects = step(&mut state, now(), Event::Terminate { signal: 15 });
        assert_eq!(outcomes(&effects), []);
        world.state.slot = state.slot;
    }
    world.state = State::new(world.state.slot, world.state.known, Settings::default());
    world.send(Event::Boot(Found::default()));
    assert_eq!((world.last().outcome, world.serving()), (Outcome::Confirmed, Generation(2)));
}

#[test]
fn three_starts_in_vain_lead_to_the_generation_before_and_no_wall_clock_matters() {
    let first = table::typical(Phase::Idle);
    let (mut slot, known) = (first.slot, first.known);
    let mut started = Vec::new();
    for start in 0..7u64 {
        let mut state = State::new(slot.clone(), known.clone(), Settings::default());
        // The wall clock goes back ten years at each start.
        let moment = Moment { mono_ns: 1, unix_ms: 2_000_000_000_000 - start * 315_000_000_000 };
        step(&mut state, moment, Event::Boot(Found { up_ms: start * 20_000, ..Found::default() }));
        started.push(state.standby.unwrap().generation.0);
        slot = state.slot;
    }
    assert_eq!(started, [1, 1, 1, 3, 3, 3, 3]);
    // Another kernel, or ten minutes later, is another count.
    for (boot_id, up_ms) in [("other", 130_000), ("", 700_000)] {
        let settings = Settings { boot_id: boot_id.to_owned(), ..Settings::default() };
        let mut state = State::new(slot.clone(), known.clone(), settings);
        step(&mut state, now(), Event::Boot(Found { up_ms, ..Found::default() }));
        assert_eq!(state.standby.unwrap().generation, Generation(1));
    }
    // What stands in is confirmed when it has proven itself.
    let mut world = World::new();
    world.state = State::new(slot, known, Settings::default());
    world.send(Event::Boot(Found { up_ms: 140_000, ..Found::default() }));
    assert_eq!(world.state.slot.confirmed, Some(Generation(1)));
    let instance = world.state.serving.unwrap().instance;
    world.send(Event::Proven { instance });
    assert_eq!((world.state.slot.confirmed, world.state.slot.previous), (Some(Generation(3)), Some(Generation(1))));
}

#[test]
fn a_stop_from_outside_is_no_start_in_vain() {
    let mut state = table::typical(Phase::Idle);
    state.slot.starts = 3;
    step(&mut state, now(), Event::Terminate { signal: 15 });
    assert_eq!(state.slot.starts, 2);
}

#[test]
fn arming_at_boot_is_tried_again_before_the_confirmed_generation_is_passed_over() {
    let first = table::typical(Phase::Idle);
    let mut state = State::new(first.slot, first.known, Settings::default());
    step(&mut state, now(), Event::Boot(Found::default()));
    for wait in [1000, 2000, 4000] {
        let instance = state.standby.unwrap().instance;
        let failed = Event::NotArmed { instance, code: Code::Internal, message: "EAGAIN".into() };
        assert!(step(&mut state, now(), failed).contains(&Effect::Wait(wait)));
        step(&mut state, now(), Event::Waited);
        assert_eq!(state.standby.unwrap().generation, Generation(1));
    }
    let instance = state.standby.unwrap().instance;
    step(&mut state, now(), Event::NotArmed { instance, code: Code::Internal, message: "EAGAIN".into() });
    assert_eq!(state.standby.unwrap().generation, Generation(3));
    assert_eq!(state.slot.confirmed, Some(Generation(1)), "nothing is proven yet");
}

#[test]
fn the_confirmed_generation_is_tried_again_beside_what_is_fetched_staged_or_held() {
    let free = [Phase::Resolving, Phase::Fetching, Phase::Staging, Phase::Held];
    for phase in free {
        let mut state = table::typical(phase);
        (state.shaky, state.hold) = (true, phase == Phase::Held);
        state.standby = None;
        step(&mut state, now(), Event::Exited { instance: 1, status: 1, at_ns: 1 });
        let effects = step(&mut state, now(), Event::Gone { instance: 1, at_ns: 2 });
        assert!(effects.iter().any(|e| matches!(e, Effect::Wait(_))), "{phase:?}: {effects:?}");
        step(&mut state, now(), Event::Waited);
        let instance = state.standby.unwrap().instance;
        let effects = step(&mut state, now(), Event::Armed { instance });
        assert!(effects.iter().any(|e| matches!(e, Effect::Open(_))), "{phase:?}: {effects:?}");
        assert_eq!((state.phase, state.serving.unwrap().generation), (phase, Generation(1)));
    }
}

#[test]
fn what_is_held_is_not_held_back_any_more_where_nothing_else_can_run() {
    let mut state = table::typical(Phase::Held);
    (state.shaky, state.hold, state.slot.confirmed) = (true, true, None);
    step(&mut state, now(), Event::Exited { instance: 1, status: 1, at_ns: 1 });
    let effects = step(&mut state, now(), Event::Gone { instance: 1, at_ns: 2 });
    assert!(effects.iter().any(|e| matches!(e, Effect::Arm(run) if run.generation == Generation(2))), "{effects:?}");
}

#[test]
fn what_waits_behind_a_roll_back_that_fails_is_begun() {
    let mut state = table::typical(Phase::RollingBack(Back::Proving));
    step(&mut state, now(), Event::Intent { target: Target::Back(None), by: "t".into(), note: None });
    step(&mut state, now(), Event::Unhealthy { instance: 1, message: "m".into() });
    assert!(state.queued.is_none() && state.attempt.is_some());
}

#[test]
fn a_generation_whose_confirmation_was_not_written_loses_its_mark() {
    let mut state = table::typical(Phase::Proving);
    step(&mut state, now(), Event::Proven { instance: 1 });
    step(&mut state, now(), Event::NotRecorded { message: "EIO".into() });
    step(&mut state, now(), Event::Gone { instance: 1, at_ns: 1 });
    let instance = state.serving.unwrap().instance;
    step(&mut state, now(), Event::Execed { instance, at_ns: 2 });
    let effects = step(&mut state, now(), Event::Proven { instance });
    let clears = |e: &Effect| matches!(e, Effect::Record(_, Mark::Clear(Generation(2))));
    assert!(effects.iter().any(clears), "{effects:?}");
}

#[test]
fn what_was_found_sick_while_its_successor_was_armed_in_vain_is_stopped_and_tried_again() {
    let mut state = table::typical(Phase::Arming);
    state.shaky = true;
    step(&mut state, now(), Event::Unhealthy { instance: 1, message: "m".into() });
    let failed = Event::NotArmed { instance: 2, code: Code::ProgramUnusable, message: "m".into() };
    let effects = step(&mut state, now(), failed);
    assert!(effects.iter().any(|e| matches!(e, Effect::Stop(..))), "{effects:?}");
    let effects = step(&mut state, now(), Event::Gone { instance: 1, at_ns: 1 });
    assert!(effects.iter().any(|e| matches!(e, Effect::Wait(_))), "{effects:?}");
}

#[test]
fn a_number_is_durable_before_anyone_hears_of_it() {
    let mut state = table::typical(Phase::Idle);
    let intent = || Event::Intent { target: Target::Back(Some(Generation(9))), by: "t".into(), note: None };
    let effects = step(&mut state, now(), intent());
    assert!(matches!(effects.first(), Some(Effect::Record(slot, _)) if slot.next_update == 7), "{effects:?}");
    // In the gap nothing is written: the trial has set numbers aside.
    let mut state = table::typical(Phase::PreStop);
    step(&mut state, now(), Event::PreStopDone { id: UpdateId(5) });
    step(&mut state, now(), Event::Recorded);
    assert_eq!(state.phase, Phase::Quiescing);
    assert_eq!(step(&mut state, now(), intent()), []);
    assert!(state.next_update <= state.slot.next_update);
}

#[test]
fn what_could_not_be_written_is_written_when_something_happens() {
    let mut state = table::typical(Phase::Idle);
    step(&mut state, now(), Event::NotRecorded { message: "EROFS".into() });
    let effects = step(&mut state, now(), Event::Ready { instance: 1, ready: true, at_ns: 1 });
    assert!(matches!(effects.as_slice(), [Effect::Record(_, Mark::Set(Generation(1)))]), "{effects:?}");
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
