//! What can happen at any time: boot, exits, stop requests, degradation, restarts.
//!
//! In: events that are not an answer to the attempt's own effects. Out: effects. Must not: leave PID 1 without a
//! workload and without a plan to start one.

use super::{
    Attempt, Back, Effect, Kind, Mark, Moment, Patience, Phase, Purpose, Run, State,
    before::{arm, attempt, begin, drop_standby, end, finish_before_gate, new_attempt, remember_bad, resumes},
    event::Found,
    proving::{confirm_now, trial_failed, unconfirmed},
    swap::stand_by,
    wanted,
};
use crate::{
    code::Code,
    ids::{Generation, UpdateId},
    journal::{Revision, Trial},
    wire::Outcome,
};

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

/// Starts in vain before the next candidate is tried.
const CRASHES: u32 = 3;
/// Within which they must be.
const CRASH_WINDOW_MS: u64 = 600_000;
/// How often the generation that boots is sent to its gate again before the next candidate is tried.
const ARM_TRIES: u32 = 3;

/// 1 s, 2 s, 4 s … 5 min.
pub(super) fn backoff_ms(failures: u32) -> u64 {
    1000u64.saturating_mul(1 << failures.min(16)).min(300_000)
}

pub(super) fn boot(state: &mut State, now: Moment, found: Found, out: &mut Vec<Effect>) {
    if state.phase != Phase::Idle || state.serving.is_some() || state.attempt.is_some() {
        return;
    }
    count_start(state, found.up_ms);
    let boots = what_boots(state);
    state.seen = found.spec.as_ref().map(|spec| spec.texts);
    if boots.is_some()
        && let Some(spec) = &found.spec
        && let Some(wanted) = wanted::changed(state, now, spec, "spec")
    {
        state.queued = Some(wanted);
    }
    if boots.is_none()
        && let Some(spec) = found.spec.filter(|spec| spec.image.is_some())
    {
        // Nothing was ever confirmed: until something is, this is what is wanted, whatever else is tried first.
        let mut first = attempt(UpdateId(0), now, "boot".to_owned(), None);
        (first.kind, first.image, first.spec) = (Kind::Boot, spec.image, Some(spec.texts));
        // Nothing else can run: what failed once as an update is still better.
        first.force = true;
        state.first = Some(first);
    }
    if let Some(trial) = state.slot.trial.clone()
        && boot_trial(state, now, &trial, boots, out)
    {
        return;
    }
    out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
    let mut attempt = new_attempt(state, now, "boot".to_owned(), None);
    attempt.kind = Kind::Boot;
    if let Some(boots) = boots {
        attempt.to = Some(boots);
        attempt.from = state.slot.confirmed;
        state.attempt = Some(attempt);
        return arm(state, out);
    }
    if let Some(first) = state.first.clone() {
        out.push(Effect::Resolve(attempt.id));
        state.attempt = Some(Attempt { id: attempt.id, ..first });
        state.phase = Phase::Resolving;
    } else {
        attempt.spec = state.seen;
        attempt.force = true;
        attempt.to = Some(Generation(0));
        state.attempt = Some(attempt);
        arm(state, out);
    }
}

/// A trial was under way when Molt ended. Whether that is all there is to do.
fn boot_trial(state: &mut State, now: Moment, trial: &Trial, boots: Option<Generation>, out: &mut Vec<Effect>) -> bool {
    let asked = state.slot.revision.as_ref().filter(|revision| revision.update == trial.update);
    let by = asked.map_or_else(|| "boot".to_owned(), Revision::by);
    let mut attempt = attempt(trial.update, now, by, None);
    attempt.kind = if trial.rollback { Kind::Rollback } else { Kind::Update };
    attempt.from = boots;
    attempt.to = Some(trial.generation);
    attempt.image = state.known.get(&trial.generation).and_then(|record| record.image.clone());
    if trial.clean_stop && state.known.contains_key(&trial.generation) {
        // The end of the last run was the platform's doing: the trial goes on, from zero.
        if let Some(trial) = state.slot.trial.as_mut() {
            trial.clean_stop = false;
            trial.suspect = false;
        }
        state.fallback = None;
        out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
        state.attempt = Some(attempt);
        arm(state, out);
        return true;
    }
    let (code, why) = if trial.suspect {
        (Code::ExitedInTrial, "molt was killed during the trial")
    } else {
        (Code::Interrupted, "molt was killed while the new version was being started or taken back")
    };
    if attempt.kind == Kind::Update && code.blames_image() {
        remember_bad(state, now, &attempt, code);
    }
    attempt.failure = Some((code, why.to_owned()));
    match boots {
        // As a trial that failed before Molt's eyes: the old one must prove itself before anybody is told. The trial
        // stays in the slot until then, so that a start which is interrupted, too, begins again here.
        Some(boots) if attempt.kind == Kind::Update => {
            out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
            state.attempt = Some(attempt);
            state.phase = Phase::RollingBack(Back::Arming);
            stand_by(state, boots, out);
            true
        }
        // A rollback is not rolled back: it failed, and what is confirmed boots as ever.
        _ => {
            state.slot.trial = None;
            out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
            let next =
                boots.map_or("nothing is confirmed".to_owned(), |boots| format!("generation {boots} is started"));
            end(state, attempt, Outcome::Degraded, Some(code), format!("{why}; {next}"), out);
            false
        }
    }
}

/// Starts in a row that end before anything was healthy are counted: within ten minutes of the boot-time clock, and of
/// one kernel. No clock that can be set has a part in it.
fn count_start(state: &mut State, up_ms: u64) {
    let (slot, boot_id) = (&mut state.slot, &state.settings.boot_id);
    let recent = up_ms.checked_sub(slot.starts_since_ms).is_some_and(|ms| ms < CRASH_WINDOW_MS);
    if slot.starts > 0 && slot.starts_boot_id == *boot_id && recent {
        slot.starts = slot.starts.saturating_add(1);
    } else {
        slot.starts = 1;
        slot.starts_boot_id.clone_from(boot_id);
        slot.starts_since_ms = up_ms;
    }
}

/// The confirmed generation; the one before it if its record cannot be read, or if it was started three times in vain;
/// then the container's own root.
fn what_boots(state: &mut State) -> Option<Generation> {
    let confirmed = state.slot.confirmed?;
    let mut candidates: Vec<Generation> = Vec::new();
    for one in [Some(confirmed), state.slot.previous, Some(Generation(0))].into_iter().flatten() {
        if state.known.contains_key(&one) && !candidates.contains(&one) {
            candidates.push(one);
        }
    }
    let passed_over = usize::try_from(state.slot.starts.saturating_sub(1) / CRASHES).unwrap_or(usize::MAX);
    let boots = candidates.get(passed_over).or(candidates.last()).copied()?;
    if boots != confirmed {
        let why = if state.known.contains_key(&confirmed) {
            format!("generation {confirmed} was started {CRASHES} times in a row and never was healthy")
        } else {
            format!("the record of generation {confirmed} cannot be read")
        };
        state.fallback = Some((confirmed, why));
    }
    Some(boots)
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
    // The first one is all there is. One that stands in for the confirmed generation must prove itself.
    if attempt.kind == Kind::Boot && state.slot.confirmed.is_none() {
        state.slot.confirmed = Some(run.generation);
        if let Some((image, policy)) = attempt.spec {
            state.slot.spec_image = image;
            state.slot.spec_policy = policy;
        }
        out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Set(run.generation)));
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
    // What may pass by itself is waited for.
    if !lasting(code) && state.arm_tries < ARM_TRIES {
        let wait = backoff_ms(state.arm_tries);
        state.arm_tries += 1;
        out.push(Effect::Warn(format!(
            "failed to start generation {failed}: {message}; it is tried again in {} s",
            wait / 1000
        )));
        out.push(Effect::Wait(wait));
        return;
    }
    state.arm_tries = 0;
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
        if let Some(confirmed) = state.slot.confirmed {
            state.fallback = Some((confirmed, format!("generation {failed} could not be started: {message}")));
        }
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

/// Nothing but another generation, or another kernel, helps.
fn lasting(code: Code) -> bool {
    matches!(code, Code::ProgramUnusable | Code::PolicyUnmet | Code::UserInvalid | Code::Unsupported | Code::Invalid)
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

/// Neither version is healthy: stop flapping, stay reachable, try the confirmed one again with back-off.
pub(super) fn degrade(state: &mut State, now: Moment, why: Option<(Code, String)>, out: &mut Vec<Effect>) {
    let mark = unconfirmed(state);
    drop_standby(state, out);
    out.push(Effect::Unprobe);
    // First what is, then what is said of it.
    state.slot.trial = None;
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
