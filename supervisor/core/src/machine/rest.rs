//! What can happen at any time: boot, exits, stop requests, degradation, restarts.
//!
//! In: events that are not an answer to the attempt's own effects. Out: effects. Must not: leave PID 1 without a
//! workload and without a plan to start one.

use super::{
    Attempt, Back, Effect, Kind, Moment, Patience, Phase, Purpose, Run, State,
    before::{arm, begin, drop_standby, end, finish_before_gate, new_attempt, remember_bad},
    event::Found,
    proving::{confirm_now, trial_failed},
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

pub(super) fn boot(state: &mut State, now: Moment, found: Found, out: &mut Vec<Effect>) {
    if state.phase != Phase::Idle || state.serving.is_some() || state.attempt.is_some() {
        return;
    }
    state.slot.starts = state.slot.starts.saturating_add(1);
    if let Some(trial) = state.slot.trial.clone() {
        let mut attempt = new_attempt(state, now, "boot".to_owned(), None);
        attempt.id = trial.update;
        attempt.kind = if trial.rollback { Kind::Rollback } else { Kind::Update };
        attempt.from = state.slot.confirmed;
        attempt.to = Some(trial.generation);
        attempt.image = state.known.get(&trial.generation).and_then(|record| record.image.clone());
        if trial.clean_stop && state.known.contains_key(&trial.generation) {
            if let Some(trial) = state.slot.trial.as_mut() {
                trial.clean_stop = false;
            }
            out.push(Effect::Record(Box::new(state.slot.clone())));
            state.attempt = Some(attempt);
            return arm(state, out);
        }
        if attempt.kind == Kind::Update {
            remember_bad(state, now, &attempt, Code::ExitedInTrial);
        }
        state.slot.trial = None;
        let message = match state.slot.confirmed {
            Some(confirmed) => format!("molt was killed during the trial; generation {confirmed} is started again"),
            None => "molt was killed during the trial".to_owned(),
        };
        end(state, attempt, Outcome::RolledBack, Some(Code::ExitedInTrial), message, out);
    }
    out.push(Effect::Record(Box::new(state.slot.clone())));
    let mut attempt = new_attempt(state, now, "boot".to_owned(), None);
    attempt.kind = Kind::Boot;
    attempt.spec = Some(found.spec);
    // A record that cannot be read any more is not the end: the one before it is.
    let slot = &state.slot;
    let confirmed = [slot.confirmed, slot.previous].into_iter().flatten().find(|one| state.known.contains_key(one));
    if let Some(confirmed) = confirmed {
        attempt.to = Some(confirmed);
        attempt.from = Some(confirmed);
        if found.spec_changed
            && let Some(image) = found.image
        {
            let mut wanted = new_attempt(state, now, "spec".to_owned(), None);
            wanted.image = Some(image);
            wanted.spec = Some(found.spec);
            state.queued = Some(wanted);
        }
        attempt.spec = None;
        state.attempt = Some(attempt);
        return arm(state, out);
    }
    let id = attempt.id;
    attempt.image = found.image;
    if attempt.image.is_some() {
        state.first = Some(attempt.clone());
        state.attempt = Some(attempt);
        state.phase = Phase::Resolving;
        out.push(Effect::Resolve(id));
    } else {
        attempt.to = Some(Generation(0));
        state.attempt = Some(attempt);
        arm(state, out);
    }
}

/// First boot: staged, now to its gate.
pub(super) fn start(state: &mut State, _now: Moment, out: &mut Vec<Effect>) {
    arm(state, out);
}

/// A confirmed generation (or the first one) runs again.
pub(super) fn started(state: &mut State, now: Moment, run: Run, out: &mut Vec<Effect>) {
    let Some(attempt) = state.attempt.take() else { return };
    state.shaky = false;
    state.first = None;
    if attempt.kind == Kind::Boot && state.slot.confirmed != Some(run.generation) {
        state.slot.previous = state.slot.confirmed.filter(|old| state.known.contains_key(old));
        state.slot.confirmed = Some(run.generation);
        if let Some((image, policy)) = attempt.spec {
            state.slot.spec_image = image;
            state.slot.spec_policy = policy;
        }
        out.push(Effect::Mark(run.generation));
        out.push(Effect::Record(Box::new(state.slot.clone())));
    }
    out.push(Effect::Probe(run, Purpose::Boot));
    state.phase = Phase::Idle;
    let message = runs_now(state);
    end(state, attempt, Outcome::Confirmed, None, message, out);
    settle(state, now, out);
}

/// No image to be had yet: the endpoint is up, it is tried again for ever.
pub(super) fn first_boot_failed(state: &mut State, code: Code, message: &str, out: &mut Vec<Effect>) {
    state.phase = Phase::Resolving;
    let wait = backoff_ms(state.restarts);
    state.restarts = state.restarts.saturating_add(1);
    out.push(Effect::Warn(format!(
        "failed to get the first image ({code}): {message}; tried again in {} s",
        wait / 1000
    )));
    out.push(Effect::Wait(wait));
}

/// The generation that should boot cannot: the previous one, then the container's own root, then give up.
pub(super) fn boot_fallback(state: &mut State, code: Code, message: &str, out: &mut Vec<Effect>) {
    let Some(failed) = state.attempt.as_ref().and_then(|attempt| attempt.to) else { return };
    let next = if Some(failed) == state.slot.confirmed {
        state.slot.previous.filter(|previous| *previous != failed && state.known.contains_key(previous))
    } else {
        None
    };
    let next = next.or_else(|| {
        Some(Generation(0))
            .filter(|zero| *zero != failed && state.known.contains_key(zero) && state.slot.confirmed.is_some())
    });
    if let Some(next) = next {
        out.push(Effect::Warn(format!("failed to start generation {failed}: {message}; generation {next} is tried")));
        if let Some(attempt) = state.attempt.as_mut() {
            attempt.to = Some(next);
        }
        arm(state, out);
        return;
    }
    out.push(Effect::Warn(format!("failed to start generation {failed}: {message}; nothing else can be started")));
    let status = match code {
        Code::ConfinementFailed | Code::PolicyUnmet => 125,
        Code::ProgramUnusable | Code::ExecFailed => 126,
        _ => 121,
    };
    state.phase = Phase::Exited;
    out.push(Effect::Exit(status));
}

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
            degrade(state, Some((Code::ExitedInTrial, message)), out);
        }
        Phase::Stopping => state.exit_status = Some(state.exit_status.unwrap_or(status)),
        phase if state.shaky && (phase == Phase::Idle || phase.before_gate()) => {
            out.push(Effect::Warn(format!(
                "the confirmed generation exited with status {status} before it was healthy"
            )));
            out.push(Effect::Unprobe);
        }
        Phase::Idle => leave_with(state, status, out),
        phase if phase.before_gate() => {
            let message = format!("the running workload exited with status {status}, so molt exits too");
            finish_before_gate(state, Code::Superseded, &message, false, out);
            leave_with(state, status, out);
        }
        Phase::Degraded => {
            out.push(Effect::Warn(format!("the confirmed generation exited with status {status}")));
            out.push(Effect::Unprobe);
        }
        _ => {}
    }
}

fn leave_with(state: &mut State, status: i32, out: &mut Vec<Effect>) {
    out.push(Effect::Unprobe);
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
    if state.phase.before_gate() {
        finish_before_gate(state, Code::Superseded, "molt was asked to stop", false, out);
    }
    if state.phase == Phase::Quiescing {
        // The new one has not run: it is neither a trial nor to blame.
        state.slot.trial = None;
        out.push(Effect::Record(Box::new(state.slot.clone())));
        if let Some(attempt) = state.attempt.take() {
            end(state, attempt, Outcome::Aborted, Some(Code::Superseded), "molt was asked to stop".to_owned(), out);
        }
    }
    if matches!(state.phase, Phase::Swapping | Phase::Proving | Phase::AwaitingConfirm)
        && let Some(trial) = state.slot.trial.as_mut()
    {
        trial.clean_stop = true;
        out.push(Effect::Record(Box::new(state.slot.clone())));
    }
    if let Some(waiting) = state.queued.take() {
        end(state, waiting, Outcome::Aborted, Some(Code::Superseded), "molt was asked to stop".to_owned(), out);
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

/// Neither version is healthy: stop flapping, stay reachable, try the confirmed one again with back-off.
pub(super) fn degrade(state: &mut State, why: Option<(Code, String)>, out: &mut Vec<Effect>) {
    drop_standby(state, out);
    out.push(Effect::Unprobe);
    if let Some(attempt) = state.attempt.take() {
        let first = attempt.failure.clone();
        let reason = first.as_ref().map(|(code, _)| *code).or(why.as_ref().map(|(code, _)| *code));
        let parts: Vec<String> = first.into_iter().chain(why).map(|(_, message)| message).collect();
        let confirmed = state.slot.confirmed.map_or_else(|| "no generation".to_owned(), |c| format!("generation {c}"));
        let message = format!("{}; {confirmed} is tried again with back-off, the endpoint stays up", parts.join("; "));
        end(state, attempt, Outcome::Degraded, reason, message, out);
    }
    state.slot.trial = None;
    out.push(Effect::Record(Box::new(state.slot.clone())));
    state.phase = Phase::Degraded;
    state.shaky = true;
    match state.serving {
        Some(run) => out.push(Effect::Stop(run, Patience::Kill)),
        None => retry_later(state, out),
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
    let wait = backoff_ms(state.restarts);
    state.restarts = state.restarts.saturating_add(1);
    out.push(Effect::Wait(wait));
}

/// Tries the confirmed generation again.
pub(super) fn retry(state: &mut State, out: &mut Vec<Effect>) {
    let confirmed = state.slot.confirmed.filter(|confirmed| state.known.contains_key(confirmed));
    if let Some(generation) = confirmed {
        stand_by(state, generation, out);
    } else if let Some(first) = state.first.clone() {
        // Nothing was ever confirmed: the spec's image is what is wanted.
        let id = first.id;
        state.attempt = Some(first);
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

/// Nothing is under way any more: idle, or degraded if nothing runs; then whatever waits.
pub(super) fn settle(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    if state.stopping.is_some() || state.exit_status.is_some() {
        return;
    }
    if state.serving.is_none() {
        retry_later(state, out);
    } else if state.shaky {
        state.phase = Phase::Degraded;
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
