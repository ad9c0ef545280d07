//! The story of an update: its order, what is written when, and what waits behind it.

use super::*;

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
fn a_stop_while_the_old_one_is_quiesced_blames_nobody() {
    let mut state = table::typical(Phase::Quiescing);
    let effects = step(&mut state, now(), Event::Terminate { signal: 15 });
    assert_eq!(outcomes(&effects), [Outcome::Aborted]);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Record(slot, _) if slot.trial.is_none())));
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
