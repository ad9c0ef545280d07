//! From the armed gate to the exec of the new program, and the same way back.
//!
//! In: what shims and the journal answer. Out: the next effect. Must not: signal the old workload before the trial is
//! durable, or open a gate while a process of the old run is left.

use super::{
    Back, Effect, HookName, Kind, Mark, Moment, Patience, Phase, Purpose, Run, State,
    before::{arm, begin, drop_standby, end, finish_before_gate, resumes},
    boot, leave,
    proving::{finish_back, finish_confirm, trial_failed},
    rest::{self, degrade, retry_later, runs_now, wait_to_retry},
};
use crate::{code::Code, ids::UpdateId, journal::Trial, wire::Outcome};

pub(super) fn armed(state: &mut State, now: Moment, instance: u64, out: &mut Vec<Effect>) {
    if !state.stands_by(instance) {
        return;
    }
    state.armed = true;
    match state.phase {
        Phase::Arming => {}
        Phase::RollingBack(Back::Arming) | Phase::Degraded if state.serving.is_none() => return open(state, out),
        phase if phase.leaves_the_gate_free() && state.serving.is_none() => return open(state, out),
        _ => return,
    }
    let Some(attempt) = state.attempt.as_ref() else { return };
    let id = attempt.id;
    match (attempt.kind, state.serving) {
        (Kind::Restart, Some(_)) => quiesce(state, now, out),
        (Kind::Boot, _) | (Kind::Restart, None) => open(state, out),
        // A trial that a clean stop interrupted goes on: it is recorded already.
        (Kind::Update | Kind::Rollback, None) if state.slot.trial.is_some() => open(state, out),
        (_, Some(_)) if state.hold => rest::hold(state, now, out),
        (_, None) if state.hold && rest::something_can_run(state) => {
            // A hold may last; meanwhile the confirmed generation is tried again.
            drop_standby(state, out);
            state.phase = Phase::Held;
            wait_to_retry(state, out);
        }
        (Kind::Update | Kind::Rollback, None) => record_trial(state, out),
        (Kind::Update | Kind::Rollback, Some(run)) => {
            state.phase = Phase::PreStop;
            out.push(Effect::PreStop { id, run });
        }
    }
}

pub(super) fn not_armed(
    state: &mut State,
    now: Moment,
    instance: u64,
    code: Code,
    message: String,
    out: &mut Vec<Effect>,
) {
    if !state.stands_by(instance) {
        return;
    }
    state.standby = None;
    state.armed = false;
    match state.phase {
        Phase::Arming => match state.attempt.as_ref().map(|attempt| attempt.kind) {
            Some(Kind::Boot) => boot::boot_fallback(state, code, &message, out),
            Some(Kind::Restart) => {
                let message = format!("failed to arm a restart: {message}; {}", runs_now(state));
                if let Some(attempt) = state.attempt.take() {
                    end(state, attempt, Outcome::Aborted, Some(code), message, out);
                }
                retry_later(state, out);
            }
            _ if resumes(state) => {
                fail_attempt(state, code, message);
                restore(state, now, out);
            }
            _ => {
                finish_before_gate(state, code, &message, code == Code::PolicyWider, out);
                rest::settle(state, now, out);
            }
        },
        Phase::RollingBack(Back::Arming) => degrade(state, now, Some((code, message)), out),
        Phase::Degraded => {
            out.push(Effect::Warn(format!("failed to arm the confirmed generation: {message}")));
            retry_later(state, out);
        }
        phase if phase.leaves_the_gate_free() && state.serving.is_none() => {
            out.push(Effect::Warn(format!("failed to arm the confirmed generation: {message}")));
            wait_to_retry(state, out);
        }
        Phase::Held | Phase::PreStop | Phase::Recording => {
            finish_before_gate(state, code, &message, code == Code::PolicyWider, out);
            rest::settle(state, now, out);
        }
        Phase::Quiescing => {
            // The old workload has been signalled and the new one is gone: the old generation comes back.
            fail_attempt(state, code, message);
            state.phase = Phase::RollingBack(Back::Stopping);
        }
        _ => out.push(Effect::Warn(format!("failed to keep the old generation armed: {message}"))),
    }
}

pub(super) fn pre_stop_done(state: &mut State, id: UpdateId, out: &mut Vec<Effect>) {
    let mine = state.attempt.as_ref().is_some_and(|attempt| attempt.id == id);
    if mine && state.phase == Phase::PreStop {
        record_trial(state, out);
    }
}

fn record_trial(state: &mut State, out: &mut Vec<Effect>) {
    let Some(attempt) = state.attempt.as_ref() else { return };
    let Some(generation) = attempt.to else { return };
    state.slot.trial = Some(Trial {
        generation,
        update: attempt.id,
        rollback: attempt.kind == Kind::Rollback,
        boot_id: state.settings.boot_id.clone(),
        clean_stop: false,
        suspect: false,
    });
    state.phase = Phase::Recording;
    out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
}

pub(super) fn recorded(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    match state.phase {
        Phase::Recording if state.serving.is_some() => quiesce(state, now, out),
        Phase::Recording => open(state, out),
        Phase::Confirming => finish_confirm(state, now, out),
        Phase::RollingBack(Back::Recording) => finish_back(state, now, out),
        _ => {}
    }
}

pub(super) fn not_recorded(state: &mut State, now: Moment, message: String, out: &mut Vec<Effect>) {
    match state.phase {
        Phase::Recording => {
            // What reached the disk is not known: without a second write the next start might find a trial that never was.
            finish_before_gate(state, Code::StoreUnusable, &message, false, out);
            rest::settle(state, now, out);
        }
        Phase::Confirming => {
            // What reached the disk is not known; going back writes the truth again.
            if let Some(before) = state.undo.take() {
                state.slot = before;
            }
            state.exit_status = None;
            trial_failed(state, now, Code::StoreUnusable, message, None, out);
        }
        Phase::RollingBack(Back::Recording) => {
            fail_attempt(state, Code::StoreUnusable, String::new());
            if let Some((_, why)) = state.attempt.as_mut().and_then(|attempt| attempt.failure.as_mut()) {
                *why = format!("{why}; that it was rolled back could not be recorded: {message}");
            }
            finish_back(state, now, out);
        }
        _ if state.behind => {}
        _ => out.push(Effect::Warn(format!("failed to write the journal: {message}; it is tried again"))),
    }
}

fn quiesce(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    let Some(run) = state.serving else { return open(state, out) };
    let was_ready = state.ready;
    if let Some(attempt) = state.attempt.as_mut() {
        attempt.signalled_ns = was_ready.then_some(now.mono_ns);
    }
    state.phase = Phase::Quiescing;
    out.push(Effect::Unprobe);
    out.push(Effect::Stop(run, Patience::Grace(None)));
}

/// One byte: from here the standby is what serves.
pub(super) fn open(state: &mut State, out: &mut Vec<Effect>) {
    let Some(run) = state.standby.take() else { return };
    state.armed = false;
    state.serving = Some(run);
    state.ready = false;
    state.sick = false;
    state.phase = match state.phase {
        Phase::RollingBack(_) => Phase::RollingBack(Back::Opening),
        phase if phase == Phase::Degraded || phase.leaves_the_gate_free() => phase,
        _ => Phase::Swapping,
    };
    out.push(Effect::Open(run));
    if state.phase == Phase::Swapping {
        // What was to be tried again by then is not any more; a trial has clocks of its own.
        out.push(Effect::Unwait);
    }
}

pub(super) fn gone(state: &mut State, now: Moment, instance: u64, at_ns: u64, out: &mut Vec<Effect>) {
    if state.stands_by(instance) {
        let message = "the armed process went away".to_owned();
        return not_armed(state, now, instance, Code::Internal, message, out);
    }
    if !state.serves(instance) {
        return;
    }
    let unexpected = !matches!(
        state.phase,
        Phase::Quiescing | Phase::Stopping | Phase::Confirming | Phase::RollingBack(Back::Stopping | Back::Recording)
    );
    if unexpected {
        // The init went without its workload's exit having been reported: killed from outside, or out of memory.
        leave::exited(state, now, instance, 128 + 9, at_ns, out);
    }
    state.serving = None;
    state.ready = false;
    if let Some(attempt) = state.attempt.as_mut().filter(|_| !state.phase.before_gate()) {
        attempt.gap_from_ns.get_or_insert(at_ns);
    }
    match state.phase {
        Phase::Quiescing => open(state, out),
        Phase::RollingBack(Back::Stopping) => restore(state, now, out),
        Phase::Stopping => leave::leave(state, out),
        Phase::Degraded => retry_later(state, out),
        Phase::Idle if state.shaky => retry_later(state, out),
        // Nothing else could run meanwhile, so it is not held back any more.
        Phase::Held if state.shaky && !rest::something_can_run(state) => arm(state, out),
        phase if state.shaky && phase.leaves_the_gate_free() => {
            // Beside one that ran, only what is held can stand by; it must not be in the way of what is tried again.
            drop_standby(state, out);
            wait_to_retry(state, out);
        }
        _ => {}
    }
}

/// The failed trial is gone: open the old generation's gate, or send it there first.
pub(super) fn restore(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    let Some(attempt) = state.attempt.as_ref() else { return };
    let back_to = attempt.from.filter(|from| state.known.contains_key(from));
    let Some(back_to) = back_to.filter(|_| attempt.kind == Kind::Update) else {
        return degrade(state, now, None, out);
    };
    match state.standby {
        Some(run) if run.generation == back_to && state.armed => open(state, out),
        Some(run) if run.generation == back_to => state.phase = Phase::RollingBack(Back::Arming),
        other => {
            if let Some(run) = other {
                out.push(Effect::Disarm(run));
            }
            stand_by(state, back_to, out);
            state.phase = Phase::RollingBack(Back::Arming);
        }
    }
}

/// Sends `generation` to its gate beside whatever runs.
pub(super) fn stand_by(state: &mut State, generation: crate::ids::Generation, out: &mut Vec<Effect>) -> Run {
    let run = state.new_run(generation);
    state.standby = Some(run);
    state.armed = false;
    out.push(Effect::Arm(run));
    run
}

pub(super) fn not_gone(state: &mut State, now: Moment, instance: u64, out: &mut Vec<Effect>) {
    if !state.serves(instance) {
        return;
    }
    let message = "the old workload was killed and is still there; no other one gets its state meanwhile".to_owned();
    match state.phase {
        Phase::Stopping => leave::leave(state, out),
        Phase::Quiescing => {
            drop_standby(state, out);
            state.slot.trial = None;
            out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
            if let Some(attempt) = state.attempt.take() {
                end(state, attempt, Outcome::Degraded, Some(Code::QuiesceFailed), message, out);
            }
            state.phase = Phase::Degraded;
            if let Some(waiting) = state.queued.take() {
                begin(state, now, waiting, out);
            }
        }
        Phase::RollingBack(_) => degrade(state, now, Some((Code::QuiesceFailed, message)), out),
        _ => out.push(Effect::Warn(message)),
    }
}

pub(super) fn execed(state: &mut State, now: Moment, instance: u64, at_ns: u64, out: &mut Vec<Effect>) {
    if !state.serves(instance) {
        return;
    }
    let Some(run) = state.serving else { return };
    if let Some(attempt) = state.attempt.as_mut()
        && let Some(from) = attempt.gap_from_ns.take()
    {
        let gap = at_ns.saturating_sub(from);
        attempt.downtime_ns = Some(attempt.downtime_ns.unwrap_or(0) + gap);
    }
    match state.phase {
        Phase::Swapping => match state.attempt.as_ref().map(|attempt| (attempt.kind, attempt.from)) {
            Some((Kind::Boot | Kind::Restart, _)) => boot::started(state, now, run, out),
            Some((kind, from)) => {
                state.phase = Phase::Proving;
                out.push(Effect::Probe(run, Purpose::Trial));
                out.push(Effect::Hook(HookName::PostStart, run));
                // The gap is over. From here on a death of Molt is held against what runs.
                if let Some(trial) = state.slot.trial.as_mut().filter(|trial| !trial.suspect) {
                    trial.suspect = true;
                    out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
                }
                let from = from.filter(|from| state.known.contains_key(from));
                if let Some(from) = from.filter(|_| kind == Kind::Update && state.settings.auto_rollback) {
                    stand_by(state, from, out);
                }
            }
            None => {}
        },
        Phase::RollingBack(Back::Opening) => {
            state.phase = Phase::RollingBack(Back::Proving);
            out.push(Effect::Probe(run, Purpose::Trial));
        }
        phase if phase == Phase::Degraded || phase.before_gate() => out.push(Effect::Probe(run, Purpose::Trial)),
        _ => {}
    }
}

pub(super) fn not_execed(
    state: &mut State,
    now: Moment,
    instance: u64,
    code: Code,
    message: String,
    out: &mut Vec<Effect>,
) {
    if !state.serves(instance) {
        return;
    }
    match state.phase {
        Phase::Swapping if state.attempt.as_ref().is_some_and(|attempt| attempt.kind == Kind::Boot) => {
            out.push(Effect::Warn(message));
            state.exit_status = Some(126);
            state.phase = Phase::Stopping;
            out.extend(state.serving.map(|run| Effect::Stop(run, Patience::Kill)));
        }
        Phase::Swapping => trial_failed(state, now, code, message, None, out),
        Phase::RollingBack(Back::Opening) => degrade(state, now, Some((code, message)), out),
        _ => {
            out.push(Effect::Warn(message));
            out.extend(state.serving.filter(|_| state.shaky).map(|run| Effect::Stop(run, Patience::Kill)));
        }
    }
}

/// Notes why an attempt failed after the gate.
pub(super) fn fail_attempt(state: &mut State, code: Code, message: String) {
    if let Some(attempt) = state.attempt.as_mut() {
        attempt.failure.get_or_insert((code, message));
    }
}
