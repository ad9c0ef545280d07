//! What the spec asks for: a changed image or policy text is a new intent, an unchanged one never is.
//!
//! In: the spec as it was read, at boot or again. Out: an attempt, or the end of one that it asks for no more. Must not: let
//! an unchanged text undo an update, a rollback, or what somebody asked for since.
//!
//! Three things are told apart: what was *acted on* (the journal: the texts whose attempt ran to its end), what is *under
//! way* (an attempt that carries its texts), and what was *seen* last (so that an update by somebody else covers it). An
//! attempt that never came to its gate, because a registry was down, say, was not acted on: the same text is tried again
//! when it is read again.

use super::{
    Attempt, Effect, Kind, Moment, State,
    before::{self, abort, new_attempt, resumes},
    event::{Target, Wanted},
    rest,
};
use crate::{
    code::Code,
    ids::{Digest, ImageRef},
    journal::Slot,
    wire::Outcome,
};

/// Digests of the spec's image and policy text.
type Texts = (Option<Digest>, Option<Digest>);

/// What an attempt that ran to its end has acted on: its own texts; or, as somebody else's word counts for more than what
/// the spec said before it, those that were seen last, unless an attempt waits for them.
pub(super) fn covered(state: &State) -> Option<Texts> {
    let waits = state.queued.as_ref().is_some_and(|waiting| waiting.spec.is_some());
    state.attempt.as_ref()?.spec.or(state.seen.filter(|_| !waits))
}

/// Remembers what was acted on; whether that is news.
pub(super) fn acted_on(slot: &mut Slot, texts: Option<Texts>) -> bool {
    let Some((image, policy)) = texts.filter(|texts| *texts != (slot.spec_image, slot.spec_policy)) else {
        return false;
    };
    slot.spec_image = image;
    slot.spec_policy = policy;
    true
}

fn acted(state: &State) -> Texts {
    (state.slot.spec_image, state.slot.spec_policy)
}

/// The newest texts that an attempt is on its way with.
fn under_way(state: &State) -> Option<Texts> {
    let spec = |attempt: &Option<Attempt>| attempt.as_ref().and_then(|attempt| attempt.spec);
    spec(&state.queued).or(spec(&state.attempt))
}

/// What the spec wants to go to. What did not change in its text stays as it runs.
fn target(state: &State, wanted: &Wanted) -> Option<(ImageRef, Option<String>)> {
    let (acted, under_way) = (acted(state), under_way(state));
    let runs = state.serving.map(|run| run.generation);
    let mut candidates = [runs, state.slot.confirmed, state.slot.previous].into_iter().flatten();
    let readable = candidates.find_map(|one| state.known.get(&one));
    let changed = |of: fn(&Texts) -> &Option<Digest>| {
        let now = of(&wanted.texts);
        now != of(&acted) || under_way.is_some_and(|texts| now != of(&texts))
    };
    let image = match readable {
        Some(record) if !changed(|texts| &texts.0) || wanted.image.is_none() => record.image.clone(),
        _ => wanted.image.clone(),
    };
    Some((image?, changed(|texts| &texts.1).then(|| wanted.policy.clone())))
}

/// At boot: an attempt, if a text changed since it was acted on.
pub(super) fn changed(state: &mut State, now: Moment, wanted: &Wanted, by: &str) -> Option<Attempt> {
    if wanted.texts == acted(state) {
        return None;
    }
    let (image, policy) = target(state, wanted)?;
    let mut attempt = new_attempt(state, now, by.to_owned(), None);
    attempt.image = Some(image);
    attempt.policy = policy;
    attempt.spec = Some(wanted.texts);
    Some(attempt)
}

/// While Molt runs: the newest text counts, whatever is under way.
pub(super) fn reread(state: &mut State, now: Moment, wanted: Wanted, by: String, out: &mut Vec<Effect>) {
    state.seen = Some(wanted.texts);
    if state.slot.confirmed.is_none() {
        return first(state, now, wanted, by, out);
    }
    let acted = acted(state);
    if wanted.texts == under_way(state).unwrap_or(acted) {
        return;
    }
    if wanted.texts == acted && given_up(state, now, out) {
        return;
    }
    let Some((image, policy)) = target(state, &wanted) else { return };
    let spec = Some(wanted.texts);
    let target = Target::Image { image, policy, stage_only: false, force: false, allow_wider: false, spec };
    before::intent(state, now, target, by, None, out);
}

/// It says again what was acted on: what it asked for in between is given up, where that costs nothing.
fn given_up(state: &mut State, now: Moment, out: &mut Vec<Effect>) -> bool {
    const WHY: &str = "the spec asks for it no more";
    if let Some(waiting) = state.queued.take_if(|waiting| waiting.spec.is_some()) {
        before::end(state, waiting, Outcome::Aborted, Some(Code::Superseded), WHY.to_owned(), out);
    }
    let asked = state.attempt.as_ref().is_some_and(|attempt| attempt.spec.is_some() && attempt.kind == Kind::Update);
    let early = asked && state.phase.before_gate() && !resumes(state);
    if early {
        abort(state, Code::Superseded, WHY, out);
        rest::settle(state, now, out);
    }
    early || !asked
}

/// Nothing was ever confirmed: the newest text is what is fetched first.
fn first(state: &mut State, now: Moment, wanted: Wanted, by: String, out: &mut Vec<Effect>) {
    let Some(image) = wanted.image else { return };
    let boots = state.attempt.as_ref().is_none_or(|attempt| attempt.kind == Kind::Boot && state.phase.before_gate());
    match state.first.as_mut() {
        Some(first) if first.spec == Some(wanted.texts) => {}
        Some(first) if boots => {
            first.image = Some(image);
            first.policy = Some(wanted.policy);
            first.spec = Some(wanted.texts);
            first.by = by;
            out.push(Effect::Unwait);
            if state.attempt.is_some() {
                abort(state, Code::Superseded, "the spec asks for something else", out);
            }
            state.restarts = 0;
            rest::retry(state, now, out);
        }
        _ => {
            let (policy, spec) = (Some(wanted.policy), Some(wanted.texts));
            let target = Target::Image { image, policy, stage_only: false, force: false, allow_wider: false, spec };
            before::intent(state, now, target, by, None, out);
        }
    }
}
