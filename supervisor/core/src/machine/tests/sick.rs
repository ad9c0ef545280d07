//! What runs and is not well, while something else is under way.

use super::*;
use crate::journal::Revision;

fn back() -> Event {
    Event::Intent { target: Target::Back(Some(Generation(3))), by: "t".into(), note: None }
}

#[test]
fn what_was_found_sick_on_the_way_is_started_again_before_anything_waits() {
    let restarts = |effects: &[Effect], state: &State| {
        let told = |e: &Effect| matches!(e, Effect::End(ended) if ended.reason == Some(Code::Unhealthy));
        assert!(effects.iter().any(told), "{effects:?}");
        assert!(state.attempt.as_ref().is_some_and(|attempt| attempt.kind == Kind::Restart), "{state:?}");
        assert_eq!(state.standby.map(|run| run.generation), Some(Generation(1)));
    };
    let sick = || Event::Unhealthy { instance: 1, message: "m".into() };
    // Staged only: it waits for somebody.
    let mut state = table::typical(Phase::Staging);
    state.attempt.as_mut().unwrap().stage_only = true;
    step(&mut state, now(), sick());
    let record = Box::new(state.known[&Generation(2)].clone());
    let id = state.attempt.as_ref().unwrap().id;
    let effects = step(&mut state, now(), Event::Staged { id, record });
    restarts(&effects, &state);
    // Armed, and held.
    let mut state = table::typical(Phase::Arming);
    state.hold = true;
    step(&mut state, now(), sick());
    let effects = step(&mut state, now(), Event::Armed { instance: 2 });
    restarts(&effects, &state);
    // Without a hold it is replaced.
    let mut state = table::typical(Phase::Arming);
    step(&mut state, now(), sick());
    step(&mut state, now(), Event::Armed { instance: 2 });
    assert_eq!((state.phase, state.sick), (Phase::PreStop, true));
}

#[test]
fn a_restart_is_not_given_up() {
    let mut state = table::typical(Phase::Idle);
    let instance = state.serving.unwrap().instance;
    step(&mut state, now(), Event::Unhealthy { instance, message: "m".into() });
    assert!(state.attempt.as_ref().is_some_and(|attempt| attempt.kind == Kind::Restart), "{state:?}");
    let before = state.clone();
    assert_eq!(step(&mut state, now(), Event::Cancel), vec![]);
    assert_eq!(state, before);
}

/// Degraded, the confirmed one runs and is not proven, and its successor is armed and held.
fn shaky_and_held() -> State {
    let mut state = table::typical(Phase::Held);
    (state.shaky, state.hold) = (true, true);
    step(&mut state, now(), Event::Exited { instance: 1, status: 1, at_ns: 1 });
    let effects = step(&mut state, now(), Event::Gone { instance: 1, at_ns: 2 });
    assert!(effects.iter().any(|e| matches!(e, Effect::Wait(_))), "{effects:?}");
    state
}

#[test]
fn what_died_before_it_was_proven_is_tried_again_beside_what_is_armed_and_held() {
    let mut state = shaky_and_held();
    let effects = step(&mut state, now(), Event::Waited);
    assert!(effects.iter().any(|e| matches!(e, Effect::Arm(run) if run.generation == Generation(1))), "{effects:?}");
    let instance = state.standby.unwrap().instance;
    step(&mut state, now(), Event::Armed { instance });
    assert_eq!((state.phase, state.serving.map(|run| run.generation)), (Phase::Held, Some(Generation(1))));
    // The same where what was held is given up.
    let mut state = shaky_and_held();
    step(&mut state, now(), Event::Cancel);
    step(&mut state, now(), Event::Waited);
    assert_eq!(state.standby.map(|run| run.generation), Some(Generation(1)));
}

#[test]
fn a_healthy_workload_is_not_started_again_by_an_update_that_fails() {
    for (waiting, phase) in [(false, Phase::Idle), (true, Phase::Arming)] {
        let mut state = table::typical(Phase::Idle);
        // It was started again twice, some time ago; or waits for the third time.
        (state.restarts, state.waiting) = (2, waiting);
        let target = Target::Image {
            image: "registry.example.com/app:typo".parse().unwrap(),
            policy: None,
            stage_only: false,
            force: false,
            allow_wider: false,
            spec: None,
        };
        step(&mut state, now(), Event::Intent { target, by: "t".into(), note: None });
        let id = state.attempt.as_ref().unwrap().id;
        let failed = Event::Failed { id, code: Code::NotFound, message: "m".into(), refused: true };
        step(&mut state, now(), failed);
        assert_eq!(state.phase, phase, "waiting: {waiting}");
    }
}

#[test]
fn no_clock_of_before_decides_a_trial_that_somebody_must_decide() {
    let mut state = table::typical(Phase::Proving);
    state.settings.auto_rollback = false;
    let effects = step(&mut state, now(), Event::Unhealthy { instance: 1, message: "m".into() });
    assert_eq!(state.phase, Phase::AwaitingConfirm);
    assert!(effects.contains(&Effect::Unwait), "{effects:?}");
    let mut state = table::typical(Phase::Quiescing);
    state.waiting = true;
    step(&mut state, now(), Event::Exited { instance: 1, status: 0, at_ns: 1 });
    step(&mut state, now(), Event::Gone { instance: 1, at_ns: 1 });
    assert_eq!((state.phase, state.waiting), (Phase::Swapping, false));
}

#[test]
fn what_waits_behind_one_that_cannot_be_killed_is_begun() {
    let mut state = table::typical(Phase::Quiescing);
    step(&mut state, now(), back());
    assert!(state.queued.is_some());
    step(&mut state, now(), Event::NotGone { instance: 1 });
    assert!(state.queued.is_none() && state.attempt.is_some(), "{state:?}");
}

#[test]
fn a_stop_of_molt_ends_nothing_that_a_gateway_wants() {
    let revision = |done| {
        let (gateway, host) = ("0".repeat(32), "gw".to_owned());
        Some(Revision { gateway, host, number: 7, update: table::ATTEMPT, done, order: None, came: None })
    };
    for phase in [Phase::Resolving, Phase::Fetching, Phase::Staging, Phase::Arming, Phase::Held, Phase::Quiescing] {
        let mut state = table::typical(phase);
        // The record of the trial, before the first signal, said that it was done.
        state.slot.revision = revision(phase == Phase::Quiescing);
        let effects = step(&mut state, now(), Event::Terminate { signal: 15 });
        let told = |e: &Effect| matches!(e, Effect::End(ended) if ended.reason == Some(Code::Interrupted));
        assert!(effects.iter().any(told), "{phase:?}: {effects:?}");
        assert_eq!(state.slot.revision, revision(false), "{phase:?}");
        let written = effects.iter().rev().find_map(|e| match e {
            Effect::Record(slot, _) => Some(slot.revision.clone()),
            _ => None,
        });
        assert!(written.is_none_or(|written| written == revision(false)), "{phase:?}: {effects:?}");
    }
    let mut state = table::typical(Phase::Fetching);
    state.slot.revision = revision(false);
    step(&mut state, now(), Event::Exited { instance: 1, status: 3, at_ns: 1 });
    assert_eq!(state.slot.revision, revision(false), "the workload's own end");
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
fn a_degraded_sandbox_outlives_its_workload_while_the_mend_is_staged() {
    let mut state = table::typical(Phase::Held);
    state.shaky = true;
    let mut effects = step(&mut state, now(), Event::Exited { instance: 1, status: 1, at_ns: 1 });
    effects.extend(step(&mut state, now(), Event::Gone { instance: 1, at_ns: 2 }));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Exit(_) | Effect::End(_))), "{effects:?}");
    assert_eq!(state.phase, Phase::Held);
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
