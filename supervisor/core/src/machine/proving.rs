//! The trial: proof, confirmation, and the way back.
//!
//! In: what probes and operators say. Out: confirm or roll back. Must not: roll back a roll back, or roll back after
//! the confirmation is durable.

use super::{
    Back, Effect, HookName, Kind, Mark, Moment, Patience, Phase, Purpose, Run, State,
    before::{arm, drop_standby, end, finish_before_gate, remember_bad},
    leave,
    rest::{self, degrade, retry_later, runs_now},
    swap::{fail_attempt, restore},
    wanted,
};
use crate::{code::Code, journal::Verdict, wire::Outcome};

pub(super) fn ready(state: &mut State, instance: u64, ready: bool, at_ns: u64) {
    if !state.serves(instance) {
        return;
    }
    state.ready = ready;
    if ready
        && let Some(attempt) = state.attempt.as_mut()
        && let (Some(since), None) = (attempt.signalled_ns, attempt.unready_ns)
        && matches!(state.phase, Phase::Proving | Phase::RollingBack(_) | Phase::Swapping)
    {
        attempt.unready_ns = Some(at_ns.saturating_sub(since));
    }
}

pub(super) fn proven(state: &mut State, now: Moment, instance: u64, out: &mut Vec<Effect>) {
    if !state.serves(instance) {
        return;
    }
    let Some(run) = state.serving else { return };
    match (state.phase, state.settings.confirm_within_ms) {
        (Phase::Proving, None) => confirm_now(state, out),
        (Phase::Proving, Some(within)) => {
            state.phase = Phase::AwaitingConfirm;
            out.push(Effect::Wait(within));
            out.push(Effect::Probe(run, Purpose::Watch));
        }
        (Phase::RollingBack(Back::Proving), _) => {
            state.phase = Phase::RollingBack(Back::Recording);
            state.restarts = 0;
            state.slot.trial = None;
            state.slot.confirmed = Some(run.generation);
            state.slot.starts = 0;
            judge(state, Outcome::RolledBack);
            let mark = unconfirmed(state);
            out.push(Effect::Record(Box::new(state.slot.clone()), mark));
        }
        (Phase::Degraded, _) => {
            out.push(Effect::Warn(format!("generation {} is healthy again", run.generation)));
            out.push(Effect::Unwait);
            state.phase = Phase::Idle;
            healthy(state, run, out);
            rest::settle(state, now, out);
        }
        // After the first signal nothing is written and nobody is probed: a late word of the old run.
        (phase, _) if phase != Phase::Idle && !phase.before_gate() => {}
        _ => healthy(state, run, out),
    }
}

/// What runs outside of a trial was healthy for its monitor window.
fn healthy(state: &mut State, run: Run, out: &mut Vec<Effect>) {
    state.restarts = 0;
    state.shaky = false;
    state.sick = false;
    let stands_in = state.slot.confirmed != Some(run.generation);
    if stands_in {
        // What was started instead has proven itself: it is what boots from now on, the other one a rollback away.
        state.slot.previous = state.slot.confirmed.filter(|confirmed| state.known.contains_key(confirmed));
        state.slot.confirmed = Some(run.generation);
    }
    if state.slot.starts != 0 || stands_in {
        state.slot.starts = 0;
        let mark = if stands_in { Mark::Set(run.generation) } else { Mark::Keep };
        out.push(Effect::Record(Box::new(state.slot.clone()), mark));
    }
    out.push(Effect::Probe(run, Purpose::Watch));
}

/// The mark of an update's generation goes when it is rolled back: should the journal be lost, it must not boot.
pub(super) fn unconfirmed(state: &State) -> Mark {
    let update = state.attempt.as_ref().filter(|attempt| attempt.kind == Kind::Update);
    let failed = update.and_then(|attempt| attempt.to).filter(|to| state.known.contains_key(to));
    failed.filter(|to| Some(*to) != state.slot.confirmed).map_or(Mark::Keep, Mark::Clear)
}

/// The one step that makes the trial what boots.
pub(super) fn confirm_now(state: &mut State, out: &mut Vec<Effect>) {
    let Some(attempt) = state.attempt.as_mut() else { return };
    let Some(to) = attempt.to else { return };
    attempt.undecided = None;
    state.phase = Phase::Confirming;
    out.push(Effect::Unwait);
    state.undo = Some(state.slot.clone());
    if state.slot.confirmed != Some(to) {
        state.slot.previous = state.slot.confirmed;
    }
    state.slot.confirmed = Some(to);
    state.slot.trial = None;
    state.slot.starts = 0;
    state.fallback = None;
    judge(state, Outcome::Confirmed);
    out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Set(to)));
}

/// What becomes of the attempt goes into the slot together with what it changes.
pub(super) fn verdict(state: &mut State, outcome: Outcome) {
    if let Some(attempt) = &state.attempt {
        let kind = attempt.kind.as_str().to_owned();
        state.slot.verdict = Some(Verdict { update: attempt.id, kind, outcome });
    }
}

/// The same, of one that decided what is wanted.
fn judge(state: &mut State, outcome: Outcome) {
    verdict(state, outcome);
    let covered = wanted::covered(state);
    wanted::acted_on(&mut state.slot, covered);
}

pub(super) fn finish_confirm(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    drop_standby(state, out);
    state.restarts = 0;
    state.shaky = false;
    state.first = None;
    state.undo = None;
    if let Some(run) = state.serving {
        out.push(Effect::Probe(run, Purpose::Watch));
        out.push(Effect::Hook(HookName::PostConfirm, run));
    }
    if let Some(attempt) = state.attempt.take() {
        let message = match state.exit_status {
            Some(status) => format!("the program ended with status {status}, as the spec lets it"),
            None => runs_now(state),
        };
        end(state, attempt, Outcome::Confirmed, None, message, out);
    }
    out.push(Effect::Collect(None));
    after_end(state, now, out);
}

pub(super) fn finish_back(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    state.shaky = false;
    if let Some(run) = state.serving {
        out.push(Effect::Probe(run, Purpose::Watch));
        out.push(Effect::Hook(HookName::OnRollback, run));
    }
    if let Some(attempt) = state.attempt.take() {
        let (code, why) = attempt.failure.clone().unwrap_or((Code::Internal, "the trial failed".to_owned()));
        let message = format!("{why}; {}", runs_now(state));
        end(state, attempt, Outcome::RolledBack, Some(code), message, out);
    }
    out.push(Effect::Collect(None));
    after_end(state, now, out);
}

fn after_end(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    if state.exit_status.is_some() {
        state.phase = Phase::Stopping;
        if state.serving.is_none() {
            leave::leave(state, out);
        }
        return;
    }
    rest::settle(state, now, out);
}

/// The trial failed after the gate: stop it, and bring the old generation back.
pub(super) fn trial_failed(
    state: &mut State,
    now: Moment,
    code: Code,
    message: String,
    exit_status: Option<i32>,
    out: &mut Vec<Effect>,
) {
    fail_attempt(state, code, message);
    if let Some(attempt) = state.attempt.as_mut() {
        attempt.undecided = None;
        attempt.exit_status = attempt.exit_status.or(exit_status);
    }
    if let Some(attempt) = state.attempt.clone()
        && attempt.kind == Kind::Update
        && code.blames_image()
    {
        remember_bad(state, now, &attempt, code);
    }
    out.push(Effect::Unprobe);
    out.push(Effect::Unwait);
    if let Some(trial) = state.slot.trial.as_mut().filter(|trial| trial.suspect && !code.blames_image()) {
        // Should Molt be killed on the way back, the image is still not to blame.
        trial.suspect = false;
        out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
    }
    state.phase = Phase::RollingBack(Back::Stopping);
    match state.serving {
        Some(run) if exit_status.is_some() => out.push(Effect::Stop(run, Patience::Kill)),
        Some(run) => out.push(Effect::Stop(run, Patience::Grace(None))),
        None => restore(state, now, out),
    }
}

pub(super) fn unhealthy(state: &mut State, now: Moment, instance: u64, message: String, out: &mut Vec<Effect>) {
    if !state.serves(instance) {
        return;
    }
    let Some(run) = state.serving else { return };
    match state.phase {
        Phase::Proving | Phase::AwaitingConfirm if !state.settings.auto_rollback => {
            state.phase = Phase::AwaitingConfirm;
            let message =
                format!("{message}; update.autoRollback is off, so {} until somebody decides", runs_now(state));
            if let Some(attempt) = state.attempt.as_mut() {
                attempt.undecided = Some(message.clone());
            }
            out.push(Effect::Warn(format!("{message}: `molt confirm` keeps it, `molt reject` goes back")));
            out.push(Effect::Unwait);
        }
        Phase::Proving | Phase::AwaitingConfirm => trial_failed(state, now, Code::Unhealthy, message, None, out),
        Phase::RollingBack(Back::Proving) => degrade(state, now, Some((Code::Unhealthy, message)), out),
        Phase::Idle => {
            state.restarts += 1;
            out.push(Effect::Warn(format!("{message}; generation {} is started again", run.generation)));
            out.push(Effect::Unprobe);
            if state.restarts == 1 {
                rest::restart(state, now, out);
            } else {
                out.push(Effect::Wait(rest::backoff_ms(state.restarts - 2)));
            }
        }
        phase if phase == Phase::Degraded || (state.shaky && phase.leaves_the_gate_free()) => {
            out.push(Effect::Warn(message));
            out.push(Effect::Unprobe);
            out.push(Effect::Stop(run, Patience::Grace(None)));
        }
        // What is staged may wait for hours; the running one cannot.
        Phase::Held => {
            state.sick = true;
            finish_before_gate(state, Code::Unhealthy, &format!("{message}, and is started again"), false, out);
            rest::settle(state, now, out);
        }
        phase if phase.before_gate() => {
            state.sick = true;
            let waits = state.hold || state.attempt.as_ref().is_some_and(|attempt| attempt.stage_only);
            let next = if waits { "is staged before that is started again" } else { "goes on and replaces it" };
            out.push(Effect::Warn(format!("{message}; the update under way {next}")));
        }
        _ => {}
    }
}

pub(super) fn confirm(state: &mut State, out: &mut Vec<Effect>) {
    if matches!(state.phase, Phase::Proving | Phase::AwaitingConfirm) {
        out.push(Effect::Unprobe);
        confirm_now(state, out);
    }
}

pub(super) fn reject(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    if matches!(state.phase, Phase::Proving | Phase::AwaitingConfirm) {
        trial_failed(state, now, Code::Rejected, "rejected by the operator".to_owned(), None, out);
    }
}

fn boots(state: &State) -> bool {
    state.attempt.as_ref().is_some_and(|attempt| attempt.kind == Kind::Boot)
}

pub(super) fn waited(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    match state.phase {
        Phase::AwaitingConfirm => {
            let message = "nobody confirmed it in time".to_owned();
            trial_failed(state, now, Code::DeadlineExceeded, message, None, out);
        }
        Phase::Idle if state.restarts > 0 && state.serving.is_some() => rest::restart(state, now, out),
        Phase::Resolving if boots(state) => {
            if let Some(attempt) = state.attempt.as_ref() {
                out.push(Effect::Resolve(attempt.id));
            }
        }
        Phase::Arming if boots(state) && state.standby.is_none() => arm(state, out),
        phase if phase.leaves_the_gate_free() && state.serving.is_none() && state.standby.is_none() => {
            rest::retry_confirmed(state, out);
        }
        Phase::Degraded if state.serving.is_none() && state.standby.is_none() => rest::retry(state, now, out),
        Phase::Degraded if state.serving.is_none() => retry_later(state, out),
        _ => {}
    }
}
