//! A spec that is read again: when it is a new intent, and when it is none.

use super::*;
use crate::ids::Digest;

fn digest(byte: u8) -> Option<Digest> {
    (byte != 0).then(|| Digest::from_bytes([byte; 32]))
}

/// A spec whose image text is `image` and whose policy text is `policy`; 0 is none.
fn spec(image: u8, policy: u8) -> Event {
    let wanted = Wanted {
        image: format!("registry.example.com/app:{image}").parse().ok(),
        policy: format!("policy {policy}"),
        texts: (digest(image), digest(policy)),
    };
    Event::Reread { wanted, by: "test".into() }
}

fn acted(state: &State) -> (Option<Digest>, Option<Digest>) {
    (state.slot.spec_image, state.slot.spec_policy)
}

/// A world in which the spec's image 1 and policy 1 were acted on.
fn world() -> World {
    let mut world = World::new();
    (world.state.slot.spec_image, world.state.slot.spec_policy) = (digest(1), digest(1));
    world
}

#[test]
fn a_changed_text_is_a_new_intent_and_the_same_text_is_none() {
    let mut world = world();
    world.send(spec(1, 1));
    assert!(world.ended.is_empty() && world.log.is_empty(), "{:?}", world.log);
    world.send(spec(2, 1));
    assert_eq!((world.last().outcome, world.ended.len()), (Outcome::Confirmed, 1));
    assert_eq!(world.last().attempt.policy, None, "the policy did not change: what is in force stays");
    assert_eq!(acted(&world.state), (digest(2), digest(1)));
    world.send(spec(2, 1));
    assert_eq!(world.ended.len(), 1, "it acted twice on the same content");
}

#[test]
fn a_policy_that_changed_alone_keeps_the_image_that_runs() {
    let mut world = world();
    world.update("registry.example.com/other:7");
    let runs = world.state.known[&world.serving()].image.clone();
    world.send(spec(1, 2));
    assert_eq!(world.last().attempt.image, runs);
    assert_eq!(world.last().attempt.policy.as_deref(), Some("policy 2"));
}

#[test]
fn an_image_that_failed_was_acted_on() {
    let mut world = world();
    world.sick = vec![Generation(4)];
    world.send(spec(2, 1));
    assert_eq!((world.last().outcome, acted(&world.state)), (Outcome::RolledBack, (digest(2), digest(1))));
    world.send(spec(2, 1));
    assert_eq!(world.ended.len(), 1);
    // The old text is another text now, and leads nowhere new.
    world.send(spec(1, 1));
    assert_eq!(acted(&world.state), (digest(1), digest(1)));
}

/// A spec that asks for image 2, on its way.
fn under_way() -> State {
    let mut state = world().state;
    step(&mut state, now(), spec(2, 1));
    assert_eq!(state.phase, Phase::Resolving);
    state
}

fn fail(state: &mut State) {
    let id = state.attempt.as_ref().unwrap().id;
    step(state, now(), Event::Failed { id, code: Code::RegistryUnreachable, message: "no".into(), refused: false });
    assert_eq!((state.phase, acted(state)), (Phase::Idle, (digest(1), digest(1))));
}

#[test]
fn what_a_registry_kept_from_its_gate_is_tried_when_it_is_read_again() {
    let mut state = under_way();
    fail(&mut state);
    step(&mut state, now(), spec(2, 1));
    assert_eq!(state.phase, Phase::Resolving);
}

#[test]
fn what_somebody_else_asked_for_since_is_not_undone() {
    let mut world = world();
    world.state = under_way();
    fail(&mut world.state);
    world.update("registry.example.com/other:7");
    assert_eq!(acted(&world.state), (digest(2), digest(1)), "what the spec said before is covered");
    let ended = world.ended.len();
    world.send(spec(2, 1));
    assert_eq!(world.ended.len(), ended);
    // Nor at the next start.
    let spec = Some(Wanted { image: None, policy: String::new(), texts: (digest(2), digest(1)) });
    let mut again = State::new(world.state.slot.clone(), world.state.known.clone(), Settings::default());
    step(&mut again, now(), Event::Boot(Found { spec, up_ms: 0 }));
    assert!(again.queued.is_none());
}

#[test]
fn a_text_that_flips_back_before_the_gate_costs_nothing() {
    let mut state = under_way();
    let effects = step(&mut state, now(), spec(1, 1));
    let ended = effects.iter().find_map(|effect| if let Effect::End(ended) = effect { Some(ended) } else { None });
    assert_eq!(ended.map(|ended| (ended.outcome, ended.reason)), Some((Outcome::Aborted, Some(Code::Superseded))));
    assert!(state.phase == Phase::Idle && state.attempt.is_none() && state.queued.is_none());
    // And once more, and a third text: the newest is on its way, alone.
    for image in [2, 1, 2, 3] {
        step(&mut state, now(), spec(image, 1));
    }
    assert_eq!(state.attempt.as_ref().and_then(|attempt| attempt.spec), Some((digest(3), digest(1))));
    assert!(state.queued.is_none());
}

#[test]
fn a_text_that_flips_back_after_the_gate_is_gone_to_next() {
    let mut state = table::typical(Phase::Proving);
    (state.slot.spec_image, state.slot.spec_policy) = (digest(1), digest(1));
    state.attempt.as_mut().unwrap().spec = Some((digest(2), digest(1)));
    step(&mut state, now(), spec(3, 1));
    step(&mut state, now(), spec(1, 1));
    let queued = state.queued.as_ref().unwrap();
    assert_eq!((queued.spec, queued.policy.as_ref()), (Some((digest(1), digest(1))), None));
    assert_eq!(queued.image, "registry.example.com/app:1".parse().ok());
    // The same again: it waits already.
    let id = queued.id;
    step(&mut state, now(), spec(1, 1));
    assert_eq!(state.queued.as_ref().map(|queued| queued.id), Some(id));
    // The trial's own text once more: nothing else is wanted.
    step(&mut state, now(), spec(2, 1));
    assert_eq!(state.queued.as_ref().and_then(|queued| queued.spec), Some((digest(2), digest(1))));
}

#[test]
fn what_waits_for_its_turn_is_not_covered_by_what_ends_before_it() {
    let mut state = table::typical(Phase::Proving);
    (state.slot.spec_image, state.slot.spec_policy) = (digest(1), digest(1));
    step(&mut state, now(), spec(3, 1));
    step(&mut state, now(), Event::Proven { instance: 1 });
    assert_eq!((state.phase, acted(&state)), (Phase::Confirming, (digest(1), digest(1))));
}

#[test]
fn nothing_to_do_is_remembered() {
    let mut state = under_way();
    let id = state.attempt.as_ref().unwrap().id;
    step(&mut state, now(), Event::Resolved { id });
    let effects = step(&mut state, now(), Event::Planned { id, noop: true });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Record(slot, _) if slot.spec_image == digest(2))));
}

#[test]
fn a_first_image_that_cannot_be_had_is_mended_in_the_spec() {
    let mut state = State::new(crate::journal::Slot::first(), std::collections::BTreeMap::new(), Settings::default());
    let typo = Wanted { image: "registry.example.com/typo:1".parse().ok(), ..Wanted::default() };
    step(&mut state, now(), Event::Boot(Found { spec: Some(typo), up_ms: 0 }));
    let id = state.attempt.as_ref().unwrap().id;
    step(&mut state, now(), Event::Failed { id, code: Code::NotFound, message: "no".into(), refused: false });
    let effects = step(&mut state, now(), spec(2, 1));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Resolve(_))), "{effects:?}");
    let attempt = state.attempt.as_ref().unwrap();
    assert_eq!((attempt.kind, attempt.policy.as_deref()), (Kind::Boot, Some("policy 1")));
    assert_eq!(attempt.image, "registry.example.com/app:2".parse().ok());
    assert_eq!(state.first.as_ref().and_then(|first| first.spec), Some((digest(2), digest(1))));
}

#[test]
fn a_spec_that_could_not_be_read_asks_for_nothing() {
    let mut state = world().state;
    state.serving = None;
    step(&mut state, now(), Event::Boot(Found { spec: None, up_ms: 0 }));
    assert!(state.queued.is_none() && state.seen.is_none());
}
