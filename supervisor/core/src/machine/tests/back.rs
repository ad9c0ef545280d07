//! Every way back: by itself, by hand, and where there is none.

use super::*;

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
fn what_waits_behind_a_roll_back_that_fails_is_begun() {
    let mut state = table::typical(Phase::RollingBack(Back::Proving));
    step(&mut state, now(), Event::Intent { target: Target::Back(None), by: "t".into(), note: None });
    step(&mut state, now(), Event::Unhealthy { instance: 1, message: "m".into() });
    assert!(state.queued.is_none() && state.attempt.is_some());
}
