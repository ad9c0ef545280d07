//! `step`: one event, one answer.
//!
//! In: a state and an event. Out: effects; the state is changed in place. Must not: panic, or ignore an event without
//! meaning to. Which file answers: `boot` for a start of Molt, `before` up to the first signal, `swap` from there to exec,
//! `proving` for trials and roll backs, `wanted` for a spec that was read again, `leave` for exits and stops. `rest` has
//! what they do when nothing goes on.

use super::{Effect, Event, Kind, Mark, Moment, Phase, State, before, boot, leave, proving, swap, wanted};
use crate::gateway;

/// Update numbers that a trial or a restart sets aside for requests that come while nothing may be written.
const ASIDE: u64 = 64;

/// Answers `event`. Effects must be started in the order given.
pub fn step(state: &mut State, now: Moment, event: Event) -> Vec<Effect> {
    let mut out = Vec::new();
    if state.phase == Phase::Exited {
        return out;
    }
    let behind = state.behind && !matches!(event, Event::Recorded | Event::NotRecorded { .. });
    match event {
        Event::Boot(found) => boot::boot(state, now, found, &mut out),
        Event::Intent { target, by, note } => before::intent(state, now, target, by, note, &mut out),
        Event::Reread { wanted, by } => wanted::reread(state, now, wanted, by, &mut out),
        Event::Cancel => before::cancel(state, now, &mut out),
        Event::Apply => before::apply(state, &mut out),
        Event::Hold => state.hold = true,
        Event::Release => before::release(state, &mut out),
        Event::Resolved { id } => before::resolved(state, id, &mut out),
        Event::Planned { id, noop } => before::planned(state, now, id, noop, &mut out),
        Event::Fetched { id } => before::fetched(state, id, &mut out),
        Event::Staged { id, record } => before::staged(state, now, id, *record, &mut out),
        Event::Failed { id, code, message, refused } => {
            before::failed(state, now, id, code, &message, refused, &mut out);
        }
        Event::Armed { instance } => swap::armed(state, now, instance, &mut out),
        Event::NotArmed { instance, code, message } => {
            swap::not_armed(state, now, instance, code, message, &mut out);
        }
        Event::PreStopDone { id } => swap::pre_stop_done(state, id, &mut out),
        Event::Recorded => {
            state.behind = false;
            swap::recorded(state, now, &mut out);
        }
        Event::NotRecorded { message } => {
            swap::not_recorded(state, now, message, &mut out);
            state.behind = true;
        }
        Event::Exited { instance, status, at_ns } => leave::exited(state, now, instance, status, at_ns, &mut out),
        Event::Gone { instance, at_ns } => swap::gone(state, now, instance, at_ns, &mut out),
        Event::NotGone { instance } => swap::not_gone(state, now, instance, &mut out),
        Event::Execed { instance, at_ns } => swap::execed(state, now, instance, at_ns, &mut out),
        Event::NotExeced { instance, code, message } => {
            swap::not_execed(state, now, instance, code, message, &mut out);
        }
        Event::Ready { instance, ready, at_ns } => proving::ready(state, instance, ready, at_ns),
        Event::Proven { instance } => proving::proven(state, now, instance, &mut out),
        Event::Unhealthy { instance, message } => proving::unhealthy(state, now, instance, message, &mut out),
        Event::Confirm => proving::confirm(state, &mut out),
        Event::Reject => proving::reject(state, now, &mut out),
        Event::Waited => {
            state.waiting = false;
            proving::waited(state, now, &mut out);
        }
        Event::Terminate { signal } => leave::terminate(state, signal, &mut out),
        Event::Collected { removed } => state.known.retain(|number, _| !removed.contains(number)),
    }
    settle_revision(state, &mut out);
    number(state, behind, &mut out);
    for effect in &out {
        match effect {
            Effect::Wait(_) => state.waiting = true,
            Effect::Unwait => state.waiting = false,
            _ => {}
        }
    }
    out
}

/// What a gateway asked for is not done again once its update is about to touch the workload, or has ended for good: in
/// the very slot that says so.
fn settle_revision(state: &mut State, out: &mut [Effect]) {
    let Some(revision) = state.slot.revision.as_mut().filter(|revision| !revision.done) else { return };
    let ends = |effect: &Effect| match effect {
        Effect::Record(slot, _) => slot.trial.as_ref().is_some_and(|trial| trial.update == revision.update),
        Effect::End(ended) => ended.attempt.id == revision.update && gateway::settled(ended.outcome, ended.reason),
        _ => false,
    };
    if !out.iter().any(ends) {
        return;
    }
    revision.done = true;
    for effect in out {
        if let Effect::Record(slot, _) = effect {
            slot.revision.clone_from(&state.slot.revision);
        }
    }
}

/// Numbers that were given out are durable before anyone hears of them, so that no start gives one out again; and what
/// could not be written is tried again.
fn number(state: &mut State, behind: bool, out: &mut Vec<Effect>) {
    let writes = |effect: &Effect| matches!(effect, Effect::Record(..));
    let kind = state.attempt.as_ref().map(|attempt| attempt.kind);
    // At boot nobody waits for the end of a gap.
    let gap = state.phase.past_signal() && !(state.phase == Phase::Swapping && kind == Some(Kind::Boot));
    let quiet = state.phase == Phase::Recording || gap;
    let given_out = state.next_update > state.slot.next_update;
    if (given_out || behind) && !quiet && !out.iter().any(writes) {
        // The mark may be what could not be made.
        let mark = state.slot.confirmed.filter(|_| behind).map_or(Mark::Keep, Mark::Set);
        out.insert(0, Effect::Record(Box::new(state.slot.clone()), mark));
    }
    for effect in out {
        if let Effect::Record(slot, _) = effect {
            let aside = if slot.trial.is_some() || kind == Some(Kind::Restart) { ASIDE } else { 0 };
            slot.next_update = state.next_update + aside;
            state.slot.next_update = slot.next_update;
        }
    }
}
