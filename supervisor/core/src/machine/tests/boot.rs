//! What a start makes of what it finds: a first image, a trial, an interrupted way back, starts in vain.

use super::*;

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
fn where_nothing_can_be_changed_a_trial_waits_and_what_is_confirmed_runs() {
    for (clean_stop, rollback) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = killed_in(Phase::Proving);
        let trial = world.state.slot.trial.as_mut().unwrap();
        (trial.clean_stop, trial.rollback) = (clean_stop, rollback);
        world.state.settings.durable = false;
        world.send(Event::Boot(Found::default()));
        assert_eq!((world.serving(), world.state.slot.bad.len()), (Generation(1), 0));
        assert!(world.ended.iter().all(|ended| ended.attempt.kind == Kind::Boot), "{:?}", world.ended);
        world.update("registry.example.com/app:9");
        assert_eq!((world.last().outcome, world.last().reason), (Outcome::Refused, Some(Code::StoreUnusable)));
        assert_eq!(world.serving(), Generation(1));
    }
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
