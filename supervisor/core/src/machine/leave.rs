//! The ends of things: a workload that exits, a stop that is asked for, and PID 1's own exit.
//!
//! In: exits, signals. Out: effects, the status of PID 1 among them. Must not: blame a generation for a stop from outside.

use super::{
    Back, Effect, Kind, Mark, Moment, Patience, Phase, State,
    before::{drop_standby, end, finish_before_gate, resumes},
    proving::{confirm_now, trial_failed},
    rest::degrade,
};
use crate::{code::Code, wire::Outcome};

pub(super) fn exited(state: &mut State, now: Moment, instance: u64, status: i32, at_ns: u64, out: &mut Vec<Effect>) {
    if !state.serves(instance) {
        return;
    }
    state.ready = false;
    let after_gate = state.attempt.as_ref().is_some_and(|_| !state.phase.before_gate());
    if let Some(attempt) = state.attempt.as_mut().filter(|_| after_gate) {
        attempt.gap_from_ns.get_or_insert(at_ns);
    }
    match state.phase {
        Phase::Proving | Phase::AwaitingConfirm | Phase::Swapping
            if status == 0
                && state.settings.completes
                && state.attempt.as_ref().is_some_and(|attempt| attempt.kind != Kind::Boot) =>
        {
            state.exit_status = Some(0);
            out.push(Effect::Unprobe);
            confirm_now(state, out);
        }
        Phase::Swapping
            if state.attempt.as_ref().is_some_and(|attempt| matches!(attempt.kind, Kind::Boot | Kind::Restart)) =>
        {
            leave_with(state, status, out);
        }
        Phase::Proving | Phase::AwaitingConfirm | Phase::Swapping => {
            let message = format!("the new version exited with status {status} during its trial");
            trial_failed(state, now, Code::ExitedInTrial, message, Some(status), out);
        }
        Phase::Confirming | Phase::RollingBack(Back::Recording) => state.exit_status = Some(status),
        Phase::RollingBack(Back::Opening | Back::Proving) => {
            let message = format!("the restored generation exited with status {status}");
            degrade(state, now, Some((Code::ExitedInTrial, message)), out);
        }
        Phase::Stopping => state.exit_status = Some(state.exit_status.unwrap_or(status)),
        phase if state.shaky && (phase == Phase::Idle || phase.before_gate()) => {
            out.push(Effect::Warn(format!(
                "the confirmed generation exited with status {status} before it was healthy"
            )));
            clear_away(state, out);
        }
        Phase::Idle => leave_with(state, status, out),
        phase if phase.before_gate() => {
            let message = format!("the running workload exited with status {status}, so molt exits too");
            finish_before_gate(state, Code::Interrupted, &message, false, out);
            leave_with(state, status, out);
        }
        Phase::Degraded => {
            out.push(Effect::Warn(format!("the confirmed generation exited with status {status}")));
            clear_away(state, out);
        }
        _ => {}
    }
}

/// The shim says that its workload ended; whether that is so, only its own end shows.
fn clear_away(state: &State, out: &mut Vec<Effect>) {
    out.push(Effect::Unprobe);
    if let Some(run) = state.serving {
        out.push(Effect::Stop(run, Patience::Kill));
    }
}

/// This start is not one of those in vain: it was ended from outside, or did what it was for.
fn not_in_vain(state: &mut State, out: &mut Vec<Effect>) {
    if state.slot.starts > 0 {
        state.slot.starts -= 1;
        out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
    }
}

fn leave_with(state: &mut State, status: i32, out: &mut Vec<Effect>) {
    out.push(Effect::Unprobe);
    out.push(Effect::Unwait);
    if status == 0 {
        not_in_vain(state, out);
    }
    state.exit_status = Some(status);
    state.phase = Phase::Stopping;
    if let Some(run) = state.serving {
        out.push(Effect::Stop(run, Patience::Kill));
    }
}

/// Nothing is left to wait for.
pub(super) fn leave(state: &mut State, out: &mut Vec<Effect>) {
    let by_signal = state.stopping.map(|signal| 128 + signal);
    state.phase = Phase::Exited;
    out.push(Effect::Exit(state.exit_status.or(by_signal).unwrap_or(0)));
}

pub(super) fn terminate(state: &mut State, signal: i32, out: &mut Vec<Effect>) {
    if state.stopping.is_some() {
        if let Some(run) = state.serving {
            out.push(Effect::Stop(run, Patience::Kill));
        }
        return;
    }
    state.stopping = Some(signal);
    not_in_vain(state, out);
    if resumes(state) {
        // Stopped again before it came to its gate again.
        state.attempt = None;
        if let Some(trial) = state.slot.trial.as_mut() {
            trial.clean_stop = true;
        }
        out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
    } else if state.phase.before_gate() {
        finish_before_gate(state, Code::Interrupted, "molt was asked to stop", false, out);
    }
    if state.phase == Phase::Quiescing {
        // The new one has not run: it is neither a trial nor to blame.
        state.slot.trial = None;
        if let Some(revision) = state.slot.revision.as_mut()
            && state.attempt.as_ref().is_some_and(|attempt| attempt.id == revision.update)
        {
            revision.done = false;
        }
        out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
        if let Some(attempt) = state.attempt.take() {
            end(state, attempt, Outcome::Aborted, Some(Code::Interrupted), "molt was asked to stop".to_owned(), out);
        }
    }
    if matches!(state.phase, Phase::Swapping | Phase::Proving | Phase::AwaitingConfirm)
        && let Some(trial) = state.slot.trial.as_mut()
    {
        trial.clean_stop = true;
        out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
    }
    if let Some(waiting) = state.queued.take() {
        end(state, waiting, Outcome::Aborted, Some(Code::Interrupted), "molt was asked to stop".to_owned(), out);
    }
    drop_standby(state, out);
    out.push(Effect::Unprobe);
    out.push(Effect::Unwait);
    state.phase = Phase::Stopping;
    match state.serving {
        Some(run) => out.push(Effect::Stop(run, Patience::Grace(Some(signal)))),
        None => leave(state, out),
    }
}
