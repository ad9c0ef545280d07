//! What is done while nothing is under way, or cannot go on: degradation, retries with back-off, restarts, holds.
//!
//! In: attempts that ended or wait, programs that are not well. Out: effects. Must not: leave PID 1 without a workload and
//! without a plan to start one.

use super::{
    Attempt, Effect, Kind, Moment, Patience, Phase, State,
    before::{arm, begin, drop_standby, end, finish_before_gate, new_attempt},
    proving::{unconfirmed, verdict},
    swap::stand_by,
};
use crate::{code::Code, ids::Generation, wire::Outcome};

/// What runs now, for the end of every message.
pub(super) fn runs_now(state: &State) -> String {
    match state.serving {
        Some(run) => {
            let image = state.known.get(&run.generation).and_then(|record| record.image.as_ref());
            match image {
                Some(image) => format!("generation {} runs {image}", run.generation),
                None => format!("generation {} runs the container's own root", run.generation),
            }
        }
        None => "nothing runs".to_owned(),
    }
}

/// 1 s, 2 s, 4 s … 5 min.
pub(super) fn backoff_ms(failures: u32) -> u64 {
    1000u64.saturating_mul(1 << failures.min(16)).min(300_000)
}

/// Neither version is healthy: stop flapping, stay reachable, try the confirmed one again with back-off.
pub(super) fn degrade(state: &mut State, now: Moment, why: Option<(Code, String)>, out: &mut Vec<Effect>) {
    let mark = unconfirmed(state);
    drop_standby(state, out);
    out.push(Effect::Unprobe);
    // First what is, then what is said of it.
    state.slot.trial = None;
    verdict(state, Outcome::Degraded);
    out.push(Effect::Record(Box::new(state.slot.clone()), mark));
    if let Some(attempt) = state.attempt.take() {
        let first = attempt.failure.clone();
        let reason = first.as_ref().map(|(code, _)| *code).or(why.as_ref().map(|(code, _)| *code));
        let parts: Vec<String> = first.into_iter().chain(why).map(|(_, message)| message).collect();
        let confirmed = state.slot.confirmed.map_or_else(|| "no generation".to_owned(), |c| format!("generation {c}"));
        let message = format!("{}; {confirmed} is tried again with back-off, the endpoint stays up", parts.join("; "));
        end(state, attempt, Outcome::Degraded, reason, message, out);
    }
    state.phase = Phase::Degraded;
    state.shaky = true;
    match state.serving {
        Some(run) => out.push(Effect::Stop(run, Patience::Kill)),
        None => retry_later(state, out),
    }
    // What waited may be what mends it.
    if let Some(waiting) = state.queued.take() {
        begin(state, now, waiting, out);
    }
}

/// Sets the back-off timer, and the phase that answers it.
pub(super) fn retry_later(state: &mut State, out: &mut Vec<Effect>) {
    if state.serving.is_none() {
        state.phase = Phase::Degraded;
        state.shaky = true;
    } else {
        state.phase = Phase::Idle;
    }
    back_off(state, out);
}

fn back_off(state: &mut State, out: &mut Vec<Effect>) {
    let wait = backoff_ms(state.restarts);
    state.restarts = state.restarts.saturating_add(1);
    out.push(Effect::Wait(wait));
}

/// Nothing runs, and the attempt under way may take long: the confirmed generation is tried beside it.
pub(super) fn wait_to_retry(state: &mut State, out: &mut Vec<Effect>) {
    if confirmed(state).is_some() {
        state.shaky = true;
        back_off(state, out);
    }
}

/// Tries the confirmed generation beside an attempt that has not come to its gate.
pub(super) fn retry_confirmed(state: &mut State, out: &mut Vec<Effect>) {
    if let Some(generation) = confirmed(state) {
        stand_by(state, generation, out);
    }
}

/// Something serves, or is tried again until it does. Without that nothing is held back: it would be the first to run.
pub(super) fn something_can_run(state: &State) -> bool {
    state.serving.is_some() || confirmed(state).is_some()
}

fn confirmed(state: &State) -> Option<Generation> {
    state.slot.confirmed.filter(|confirmed| state.known.contains_key(confirmed))
}

/// Tries the confirmed generation again.
pub(super) fn retry(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    if let Some(generation) = confirmed(state) {
        stand_by(state, generation, out);
    } else if let Some(first) = state.first.clone() {
        // Nothing was ever confirmed: the spec's image is what is wanted. The attempt before was told to have ended.
        let id = new_attempt(state, now, first.by.clone(), None).id;
        state.attempt = Some(Attempt { id, started_ms: now.unix_ms, ..first });
        state.phase = Phase::Resolving;
        out.push(Effect::Resolve(id));
    } else if let Some(generation) = state.known.keys().next().copied() {
        stand_by(state, generation, out);
    } else {
        retry_later(state, out);
    }
}

/// The serving generation again, because its liveness failed.
pub(super) fn restart(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    let Some(run) = state.serving else { return };
    let mut attempt: Attempt = new_attempt(state, now, "liveness".to_owned(), None);
    attempt.kind = Kind::Restart;
    attempt.from = Some(run.generation);
    attempt.to = Some(run.generation);
    attempt.image = state.known.get(&run.generation).and_then(|record| record.image.clone());
    state.attempt = Some(attempt);
    arm(state, out);
}

/// What is ready waits for somebody. That may take hours: one that runs and was found sick on the way cannot wait for it.
pub(super) fn hold(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    state.phase = Phase::Held;
    let Some(run) = state.serving.filter(|_| state.sick) else { return };
    if state.shaky {
        state.sick = false;
        out.push(Effect::Unprobe);
        out.push(Effect::Stop(run, Patience::Grace(None)));
    } else {
        finish_before_gate(state, Code::Unhealthy, "what runs is unhealthy, and is started again", false, out);
        settle(state, now, out);
    }
}

/// Nothing is under way any more: idle, or degraded if nothing runs; then whatever waits.
pub(super) fn settle(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    if state.stopping.is_some() || state.exit_status.is_some() {
        return;
    }
    if state.serving.is_none() && state.shaky && (state.waiting || state.standby.is_some()) {
        // It is being tried again already.
        state.phase = Phase::Degraded;
    } else if state.serving.is_none() {
        retry_later(state, out);
    } else if state.shaky {
        state.phase = Phase::Degraded;
        // It was found sick while the attempt was on its way to its gate; nobody probes it any more.
        if let Some(run) = state.serving.filter(|_| std::mem::take(&mut state.sick)) {
            out.push(Effect::Unprobe);
            out.push(Effect::Stop(run, Patience::Grace(None)));
        }
    } else {
        state.phase = Phase::Idle;
        if std::mem::take(&mut state.sick) && state.queued.is_none() {
            restart(state, now, out);
        }
    }
    if let Some(waiting) = state.queued.take() {
        begin(state, now, waiting, out);
    }
}
