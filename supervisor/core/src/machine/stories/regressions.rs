//! Bugs that other update systems had, each named for what must not happen here.
//!
//! In: the [`World`] of the table. Out: tests. Must not: be told apart from the table by another machine.

use super::world::{Blow, Doing, How, World};
use crate::{
    code::Code,
    ids::Generation,
    machine::{Back, Event, Kind, Phase, Target},
    wire::Outcome,
};

fn ended(world: &World) -> Vec<Outcome> {
    let ours = |kind: Kind| matches!(kind, Kind::Update | Kind::Rollback);
    world.ended.iter().filter(|ended| ours(ended.attempt.kind)).map(|ended| ended.outcome).collect()
}

fn runs(world: &World, number: u32) {
    assert_eq!(world.serving(), Some(Generation(number)), "{:?}", world.seen);
    assert_eq!(world.slot().confirmed, Some(Generation(number)), "{:?}", world.seen);
}

/// In the middle of `doing` the machine waits for ever; the world as it is then.
fn stopped_at(phase: Phase, doing: Doing, sick: &[u32]) -> World {
    let mut world = World::running();
    world.sick = sick.iter().map(|number| Generation(*number)).collect();
    world.pause = Some((phase, doing));
    world.update("2");
    assert_eq!(world.state().phase, phase, "{:?}", world.seen);
    world
}

/// Every point of an update at which somebody can ask for another thing. Nobody can during the journal's one write.
const POINTS: [(Phase, Doing, &[u32]); 12] = [
    (Phase::Resolving, Doing::Resolve, &[]),
    (Phase::Planning, Doing::Plan, &[]),
    (Phase::Fetching, Doing::Fetch, &[]),
    (Phase::Staging, Doing::Stage, &[]),
    (Phase::Arming, Doing::Arm, &[]),
    (Phase::PreStop, Doing::PreStop, &[]),
    (Phase::Quiescing, Doing::Stop, &[]),
    (Phase::Swapping, Doing::Open, &[]),
    (Phase::Proving, Doing::Probe, &[]),
    (Phase::RollingBack(Back::Stopping), Doing::Stop, &[4]),
    (Phase::RollingBack(Back::Opening), Doing::Open, &[4]),
    (Phase::RollingBack(Back::Proving), Doing::Probe, &[4]),
];

#[test]
fn good_bad_good_does_not_deadlock_and_a_second_bad_one_neither() {
    let mut world = World::running();
    world.sick = vec![Generation(5), Generation(7)];
    for (tag, outcome, then) in [
        ("a", Outcome::Confirmed, 4),
        ("bad", Outcome::RolledBack, 4),
        ("a-again", Outcome::Confirmed, 6),
        ("bad-too", Outcome::RolledBack, 6),
        ("b", Outcome::Confirmed, 8),
    ] {
        world.update(tag);
        assert_eq!(world.outcome().unwrap().0, outcome, "{tag}: {:?}", world.seen);
        runs(&world, then);
    }
}

#[test]
fn one_failure_does_not_stall_what_waits_behind_it() {
    let mut world = stopped_at(Phase::RollingBack(Back::Proving), Doing::Probe, &[4]);
    world.update("3");
    world.go_on();
    assert_eq!(ended(&world), [Outcome::RolledBack, Outcome::Confirmed], "{:?}", world.seen);
    runs(&world, 5);
}

#[test]
fn the_same_digest_under_a_new_tag_is_nothing_to_do_and_does_not_hang() {
    let mut world = World::running();
    let before = world.state().serving;
    world.update("one-again");
    assert_eq!(world.outcome(), Some((Outcome::Noop, None)));
    assert_eq!(world.state().serving, before, "nothing is started again");
}

#[test]
fn a_second_request_in_each_state_is_answered_and_the_last_one_wins() {
    for (phase, doing, sick) in POINTS {
        let mut world = stopped_at(phase, doing, sick);
        world.update("3");
        world.go_on();
        let all = ended(&world);
        assert_eq!(all.len(), 2, "{phase:?}: {:?}", world.seen);
        assert_eq!(all.last(), Some(&Outcome::Confirmed), "{phase:?}: {:?}", world.seen);
        let image = world.state().known[&world.serving().unwrap()].image.as_ref().unwrap().to_string();
        assert!(image.ends_with(":3"), "{phase:?}: {image} runs: {:?}", world.seen);
    }
}

#[test]
fn a_rollback_while_a_hook_is_pending_goes_back() {
    for (phase, doing) in [(Phase::Staging, Doing::Stage), (Phase::PreStop, Doing::PreStop)] {
        let mut world = stopped_at(phase, doing, &[]);
        world.rollback();
        world.go_on();
        assert_eq!(ended(&world), [Outcome::Aborted, Outcome::Confirmed], "{phase:?}: {:?}", world.seen);
        runs(&world, 3);
    }
}

#[test]
fn a_cancel_is_honoured_in_each_state_before_the_first_signal_and_in_none_after() {
    for (phase, doing, sick) in POINTS {
        let mut world = stopped_at(phase, doing, sick);
        world.send(Event::Cancel);
        world.go_on();
        if phase.before_gate() {
            assert_eq!(ended(&world), [Outcome::Aborted], "{phase:?}: {:?}", world.seen);
            runs(&world, 1);
            assert_eq!(world.slot().trial, None, "{phase:?}");
        } else {
            let outcome = if sick.is_empty() { Outcome::Confirmed } else { Outcome::RolledBack };
            assert_eq!(ended(&world), [outcome], "{phase:?}: {:?}", world.seen);
        }
    }
}

#[test]
fn a_failed_hook_before_the_stop_leaves_the_old_one_and_its_retry_begins_anew() {
    for (phase, doing) in [(Phase::Staging, Doing::PreStage), (Phase::PreStop, Doing::PreStop)] {
        let mut world = World::running();
        let before = world.state().serving;
        world.blow = Some(Blow { phase, doing, how: How::Error });
        world.update("2");
        assert_eq!(world.outcome(), Some((Outcome::Aborted, Some(Code::HookFailed))), "{phase:?}");
        assert_eq!(world.state().serving, before, "{phase:?}: the old one never noticed");
        assert_eq!(world.slot().previous, Some(Generation(3)), "{phase:?}: the way back is what it was");
        assert!(world.slot().bad.is_empty(), "{phase:?}: a hook says nothing of the image");
        world.update("2");
        assert_eq!(world.outcome().unwrap().0, Outcome::Confirmed, "{phase:?}: {:?}", world.seen);
        assert_eq!(world.slot().previous, Some(Generation(1)), "{phase:?}");
    }
}

#[test]
fn a_rollback_target_that_is_bad_too_degrades_once_and_does_not_flap() {
    let mut world = World::running();
    world.sick = vec![Generation(1), Generation(4)];
    world.update("2");
    assert_eq!(world.outcome().unwrap().0, Outcome::Degraded);
    let before = world.opened.len();
    for _ in 0..6 {
        assert!(world.ring(), "it is tried again: {:?}", world.seen);
    }
    // What is tried again is the confirmed one, and nothing else.
    assert!(world.opened[before..].iter().all(|one| *one == Generation(1)), "{:?}", world.opened);
    assert_eq!(ended(&world), [Outcome::Degraded], "{:?}", world.seen);
    world.sick.clear();
    world.ring();
    runs(&world, 1);
}

#[test]
fn a_rollback_is_never_rolled_back_to_the_same_version_again() {
    let mut world = World::running();
    world.sick = vec![Generation(3)];
    world.rollback();
    assert_eq!(world.outcome().unwrap().0, Outcome::Degraded);
    world.ring();
    runs(&world, 1);
    assert!(world.slot().bad.is_empty(), "what was confirmed once is not refused by digest");
}

#[test]
fn nothing_after_the_confirmation_rolls_back() {
    // A report that cannot be delivered, a hook that fails, a clean-up that fails: all of it comes after.
    use crate::machine::HookName::PostConfirm;
    for doing in [Doing::Hook(PostConfirm), Doing::Collect] {
        for how in [How::Error, How::Hang, How::Kill] {
            let mut world = World::running();
            world.blow = Some(Blow { phase: Phase::Idle, doing, how });
            world.update("2");
            assert_eq!(world.met, 1, "{doing:?} {how:?}");
            // Where nobody was told before Molt was killed, the journal says it.
            assert_eq!(world.outcome().map(|(outcome, _)| outcome), Some(Outcome::Confirmed), "{doing:?} {how:?}");
            runs(&world, 4);
        }
    }
}

#[test]
fn five_stops_from_outside_in_a_trial_do_not_roll_back() {
    let mut world = World::running();
    world.pause = Some((Phase::Proving, Doing::Probe));
    world.update("2");
    for stop in 0..5 {
        world.send(Event::Terminate { signal: 15 });
        assert_eq!(world.exit, Some(0), "{stop}: {:?}", world.seen);
        let trial = world.slot().trial.unwrap();
        assert!(trial.clean_stop && trial.generation == Generation(4), "{stop}: {trial:?}");
        world.boot();
        assert_eq!(world.serving(), Some(Generation(4)), "{stop}: {:?}", world.seen);
    }
    assert_eq!(ended(&world), [] as [Outcome; 0]);
    world.go_on();
    assert_eq!(ended(&world), [Outcome::Confirmed], "{:?}", world.seen);
    runs(&world, 4);
}

#[test]
fn a_floating_tag_does_not_bring_the_bad_digest_again() {
    let mut world = World::running();
    world.sick = vec![Generation(4)];
    world.update("latest");
    assert_eq!(world.outcome().unwrap().0, Outcome::RolledBack);
    for _ in 0..3 {
        world.update("latest");
        assert_eq!(world.outcome(), Some((Outcome::Refused, Some(Code::KnownBad))), "{:?}", world.seen);
        runs(&world, 1);
    }
    // What was learned outlives a kill; and the tag may move on.
    world.kill();
    world.update("latest");
    assert_eq!(world.outcome(), Some((Outcome::Refused, Some(Code::KnownBad))), "{:?}", world.seen);
    world.floating += 1;
    world.update("latest");
    assert_eq!(world.outcome().unwrap().0, Outcome::Confirmed);
}

#[test]
fn a_registry_that_is_down_costs_nothing_and_is_held_against_nobody() {
    for doing in [Doing::Resolve, Doing::Fetch] {
        let phase = if doing == Doing::Resolve { Phase::Resolving } else { Phase::Fetching };
        for how in [How::Error, How::Hang] {
            let mut world = World::running();
            let before = world.state().serving;
            world.blow = Some(Blow { phase, doing, how });
            world.update("2");
            assert_eq!(world.outcome().unwrap().0, Outcome::Aborted);
            assert_eq!((world.state().serving, world.slot().bad.len()), (before, 0));
            world.update("2");
            assert_eq!(world.outcome().unwrap().0, Outcome::Confirmed);
        }
    }
}

#[test]
fn liveness_that_fails_during_a_swap_starts_nothing_beside_it() {
    for (phase, doing, sick) in POINTS {
        let mut world = stopped_at(phase, doing, sick);
        let old = 1;
        world.send(Event::Unhealthy { instance: old, message: "no answer".into() });
        if !phase.before_gate() && phase != Phase::Proving && !matches!(phase, Phase::RollingBack(Back::Proving)) {
            assert_eq!(world.state().phase, phase, "{:?}", world.seen);
        }
        world.go_on();
        let outcome = if sick.is_empty() { Outcome::Confirmed } else { Outcome::RolledBack };
        assert_eq!(world.outcome().map(|(outcome, _)| outcome), Some(outcome), "{phase:?}: {:?}", world.seen);
    }
}

#[test]
fn a_wall_clock_that_jumps_by_a_day_changes_nothing() {
    let story = |jump: i64| {
        let mut world = World::running();
        world.sick = vec![Generation(5)];
        for tag in ["2", "bad", "3"] {
            world.pause = Some((Phase::Proving, Doing::Probe));
            world.update(tag);
            world.set_clock(jump);
            world.go_on();
            world.set_clock(-2 * jump);
        }
        world.kill();
        (world.seen, world.opened)
    };
    let usual = story(0);
    for jump in [86_400_000, -86_400_000, 1_000_000_000_000] {
        assert_eq!(story(jump), usual, "{jump} ms");
    }
}

#[test]
fn crashes_of_molt_do_not_count_against_what_was_confirmed_for_ever() {
    // A start that becomes healthy ends the count: three crashes in a row, not three in a life.
    let mut world = World::running();
    for _ in 0..12 {
        world.kill();
        runs(&world, 1);
    }
}

#[test]
fn an_update_that_was_cut_off_before_anything_changed_can_be_asked_for_again() {
    for (phase, doing, sick) in POINTS.into_iter().filter(|(phase, ..)| phase.before_gate()) {
        let mut world = stopped_at(phase, doing, sick);
        world.pause = None;
        world.kill();
        runs(&world, 1);
        assert!(world.slot().bad.is_empty() && world.slot().trial.is_none(), "{phase:?}");
        world.update("2");
        assert_eq!(world.outcome().unwrap().0, Outcome::Confirmed, "{phase:?}: {:?}", world.seen);
    }
}

#[test]
fn a_number_told_to_somebody_is_never_given_out_twice() {
    let mut world = World::running();
    let mut last = 0;
    for round in 0..6 {
        world.update(&format!("v{round}"));
        let id = world.ended.iter().map(|ended| ended.attempt.id.0).max().unwrap();
        assert!(id > last, "{id} after {last}");
        last = id;
        world.kill();
    }
}

#[test]
fn what_is_held_can_be_replaced_cancelled_or_gone_back_from() {
    for then in 0..3 {
        let mut world = World::running();
        world.send(Event::Hold);
        world.update("2");
        assert_eq!(world.state().phase, Phase::Held);
        match then {
            0 => world.send(Event::Cancel),
            1 => world.intend("3", false, false),
            _ => world.send(Event::Intent { target: Target::Back(None), by: "operator".into(), note: None }),
        }
        world.send(Event::Release);
        let expected = [1, 5, 3][then];
        runs(&world, expected);
    }
}
