//! A start of Molt: which generation boots, what becomes of a trial that was under way, what is tried where nothing was
//! ever confirmed.
//!
//! In: what was found on disk, and what becomes of arming it. Out: effects. Must not: let any wall clock decide; go back to
//! a generation whose record cannot be read.

use super::{
    Attempt, Back, Effect, Kind, Mark, Moment, Phase, Purpose, Run, State,
    before::{arm, attempt, end, new_attempt, remember_bad},
    event::Found,
    rest::{backoff_ms, runs_now, settle},
    swap::stand_by,
    wanted,
};
use crate::{
    code::Code,
    ids::{Generation, UpdateId},
    journal::{Revision, Trial},
    wire::Outcome,
};

/// Starts in vain before the next candidate is tried.
const CRASHES: u32 = 3;
/// Within which they must be.
const CRASH_WINDOW_MS: u64 = 600_000;
/// How often the generation that boots is sent to its gate again before the next candidate is tried.
const ARM_TRIES: u32 = 3;

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
    if !state.settings.durable {
        // A trial neither goes on nor ends where nothing can be changed: the next start that can change something finds it
        // as it is.
        state.slot.trial = None;
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
