//! Everything before the first signal to the old workload. Whatever fails here costs no downtime.
//!
//! In: intents, and the answers of resolve, plan, fetch, stage. Out: the next effect, or the end of the attempt. Must not:
//! touch the serving run.

use super::{
    Attempt, Effect, Ended, Kind, Mark, Moment, Phase, State, boot,
    event::Target,
    rest::{self, runs_now},
    swap, wanted,
};
use crate::{code::Code, generation::Record, ids::UpdateId, journal::Bad, wire::Outcome};

/// Takes an intent: begins it, lets it supersede one before the gate, or queues it behind one past the gate.
pub(super) fn intent(
    state: &mut State,
    now: Moment,
    target: Target,
    by: String,
    note: Option<String>,
    out: &mut Vec<Effect>,
) {
    let mut attempt = new_attempt(state, now, by, note);
    match target {
        Target::Image { image, policy, stage_only, force, allow_wider, spec } => {
            attempt.image = Some(image);
            attempt.policy = policy;
            attempt.stage_only = stage_only;
            attempt.force = force;
            attempt.allow_wider = allow_wider;
            attempt.spec = spec;
        }
        Target::Back(to) => {
            attempt.kind = Kind::Rollback;
            attempt.to = to;
        }
        Target::BackBelow(to) => {
            attempt.kind = Kind::Rollback;
            attempt.to = to;
            attempt.force = true;
        }
    }
    if state.stopping.is_some() {
        end(state, attempt, Outcome::Refused, Some(Code::Busy), "molt is stopping".to_owned(), out);
        return;
    }
    match state.phase {
        Phase::Idle | Phase::Degraded => {
            if let Some(waiting) = state.queued.take() {
                let by = format!("superseded by {}", attempt.id);
                end(state, waiting, Outcome::Aborted, Some(Code::Superseded), by, out);
            }
            begin(state, now, attempt, out);
        }
        phase if phase.before_gate() && !boots(state) && !resumes(state) => {
            let by = attempt.id;
            state.sick |= state.attempt.as_ref().is_some_and(|under_way| under_way.kind == Kind::Restart);
            abort(state, Code::Superseded, &format!("superseded by {by}"), out);
            begin(state, now, attempt, out);
        }
        _ => {
            let by = attempt.id;
            if let Some(waiting) = state.queued.replace(attempt) {
                end(state, waiting, Outcome::Aborted, Some(Code::Superseded), format!("superseded by {by}"), out);
            }
        }
    }
}

/// The confirmed generation is on its way to its gate: nothing takes its place before it runs.
fn boots(state: &State) -> bool {
    state.slot.confirmed.is_some() && state.attempt.as_ref().is_some_and(|attempt| attempt.kind == Kind::Boot)
}

/// A trial that a clean stop interrupted is on its way to its gate again.
pub(super) fn resumes(state: &State) -> bool {
    let trial = state.attempt.as_ref().is_some_and(|attempt| matches!(attempt.kind, Kind::Update | Kind::Rollback));
    trial && state.phase == Phase::Arming && state.serving.is_none() && state.slot.trial.is_some()
}

/// An attempt with the next id.
pub(super) fn new_attempt(state: &mut State, now: Moment, by: String, note: Option<String>) -> Attempt {
    let id = UpdateId(state.next_update);
    state.next_update += 1;
    attempt(id, now, by, note)
}

/// An attempt that has its id.
pub(super) fn attempt(id: UpdateId, now: Moment, by: String, note: Option<String>) -> Attempt {
    Attempt {
        id,
        kind: Kind::Update,
        image: None,
        policy: None,
        stage_only: false,
        force: false,
        allow_wider: false,
        by,
        note,
        spec: None,
        from: None,
        to: None,
        started_ms: now.unix_ms,
        signalled_ns: None,
        gap_from_ns: None,
        downtime_ns: None,
        unready_ns: None,
        undecided: None,
        failure: None,
        exit_status: None,
    }
}

/// Starts an attempt with nothing else under way.
pub(super) fn begin(state: &mut State, now: Moment, mut attempt: Attempt, out: &mut Vec<Effect>) {
    attempt.from = state.serving.map(|run| run.generation).or(state.slot.confirmed);
    // The confirmed generation that does not run is tried again whatever else is under way.
    if state.serving.is_some() || !state.shaky {
        out.push(Effect::Unwait);
    }
    // A restart that waited for its back-off is not forgotten.
    state.sick |= state.phase == Phase::Idle && state.waiting && state.serving.is_some();
    if !state.settings.durable {
        let message = "there is no usable store, so nothing can be updated or rolled back; see condition Durable";
        end(state, attempt, Outcome::Refused, Some(Code::StoreUnusable), message.to_owned(), out);
        rest::settle(state, now, out);
        return;
    }
    let id = attempt.id;
    if attempt.kind == Kind::Rollback {
        rollback(state, now, attempt, out);
        return;
    }
    state.attempt = Some(attempt);
    state.phase = Phase::Resolving;
    out.push(Effect::Resolve(id));
}

fn rollback(state: &mut State, now: Moment, mut attempt: Attempt, out: &mut Vec<Effect>) {
    let floor = state.slot.floor();
    let nothing = |message: String| Some((Code::NothingToRollBackTo, message));
    let refusal = match attempt.to.or(state.slot.previous) {
        None => nothing("there is no previous generation; `molt history` shows what ran".to_owned()),
        Some(to) if !state.known.contains_key(&to) => {
            nothing(format!("generation {to} is not in the store; `molt status` and `molt history` show what is"))
        }
        Some(to) if Some(to) == attempt.from && state.serving.is_some() => {
            nothing(format!("generation {to} is what runs"))
        }
        Some(to) if to < floor && !attempt.force => Some((
            Code::BelowFloor,
            format!(
                "generation {to} is below the rollback floor {floor}; only an order of a key marked downgrade goes there"
            ),
        )),
        Some(to) => {
            attempt.to = Some(to);
            None
        }
    };
    if let Some((code, message)) = refusal {
        let message = format!("{message}; {}", runs_now(state));
        end(state, attempt, Outcome::Refused, Some(code), message, out);
        rest::settle(state, now, out);
        return;
    }
    let to = attempt.to;
    attempt.image = to.and_then(|to| state.known.get(&to)).and_then(|record| record.image.clone());
    state.attempt = Some(attempt);
    arm(state, out);
}

fn current(state: &State, id: UpdateId, phase: Phase) -> bool {
    state.phase == phase && state.attempt.as_ref().is_some_and(|attempt| attempt.id == id)
}

pub(super) fn resolved(state: &mut State, id: UpdateId, out: &mut Vec<Effect>) {
    if current(state, id, Phase::Resolving) {
        state.phase = Phase::Planning;
        out.push(Effect::Plan(id));
    }
}

pub(super) fn planned(state: &mut State, now: Moment, id: UpdateId, noop: bool, out: &mut Vec<Effect>) {
    if !current(state, id, Phase::Planning) {
        return;
    }
    if noop && state.serving.is_some() {
        if let Some(attempt) = state.attempt.take() {
            if attempt.spec.is_some() && wanted::acted_on(&mut state.slot, attempt.spec) {
                out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
            }
            let message = format!("nothing to do: {}", runs_now(state));
            end(state, attempt, Outcome::Noop, None, message, out);
        }
        rest::settle(state, now, out);
        return;
    }
    state.phase = Phase::Fetching;
    out.push(Effect::Fetch(id));
}

pub(super) fn fetched(state: &mut State, id: UpdateId, out: &mut Vec<Effect>) {
    if current(state, id, Phase::Fetching) {
        state.phase = Phase::Staging;
        let as_number = crate::ids::Generation(state.slot.next_generation);
        state.slot.next_generation += 1;
        out.push(Effect::Stage { id, as_number });
    }
}

pub(super) fn staged(state: &mut State, now: Moment, id: UpdateId, record: Record, out: &mut Vec<Effect>) {
    let generation = record.generation;
    state.known.insert(generation, record);
    if !current(state, id, Phase::Staging) {
        return;
    }
    let Some(attempt) = state.attempt.as_mut() else { return };
    attempt.to = Some(generation);
    if attempt.kind == Kind::Boot {
        boot::start(state, now, out);
    } else if (attempt.stage_only || state.hold) && rest::something_can_run(state) {
        rest::hold(state, now, out);
        // Nothing serves and nothing is about to: not while it waits for somebody.
        if state.serving.is_none() && state.standby.is_none() && !state.waiting {
            rest::wait_to_retry(state, out);
        }
    } else {
        arm(state, out);
    }
}

/// Sends the attempt's generation to its gate.
pub(super) fn arm(state: &mut State, out: &mut Vec<Effect>) {
    let Some(to) = state.attempt.as_ref().and_then(|attempt| attempt.to) else { return };
    let run = state.new_run(to);
    if let Some(old) = state.standby.replace(run) {
        out.push(Effect::Disarm(old));
    }
    state.armed = false;
    state.phase = Phase::Arming;
    out.push(Effect::Arm(run));
}

pub(super) fn apply(state: &mut State, out: &mut Vec<Effect>) {
    if state.phase == Phase::Held && !state.hold {
        arm(state, out);
    }
}

pub(super) fn release(state: &mut State, out: &mut Vec<Effect>) {
    state.hold = false;
    let staged_only = state.attempt.as_ref().is_some_and(|attempt| attempt.stage_only);
    if state.phase == Phase::Held && !staged_only {
        arm(state, out);
    }
}

pub(super) fn cancel(state: &mut State, now: Moment, out: &mut Vec<Effect>) {
    if resumes(state) {
        swap::fail_attempt(state, Code::Rejected, "cancelled".to_owned());
        drop_standby(state, out);
        swap::restore(state, now, out);
    } else if state.phase.before_gate()
        // What would be left of a restart is a run that was found sick, and that nobody probes.
        && state.attempt.as_ref().is_some_and(|attempt| !matches!(attempt.kind, Kind::Boot | Kind::Restart))
    {
        abort(state, Code::Superseded, "cancelled", out);
        rest::settle(state, now, out);
    }
}

pub(super) fn failed(
    state: &mut State,
    now: Moment,
    id: UpdateId,
    code: Code,
    message: &str,
    refused: bool,
    out: &mut Vec<Effect>,
) {
    let mine = state.attempt.as_ref().is_some_and(|attempt| attempt.id == id);
    if !mine || !state.phase.before_gate() {
        return;
    }
    if state.attempt.as_ref().is_some_and(|attempt| attempt.kind == Kind::Boot) {
        boot::first_boot_failed(state, code, message, out);
        return;
    }
    finish_before_gate(state, code, message, refused, out);
    rest::settle(state, now, out);
}

/// Ends the attempt before the gate; the serving run never noticed.
pub(super) fn finish_before_gate(state: &mut State, code: Code, message: &str, refused: bool, out: &mut Vec<Effect>) {
    // What stands by while nothing serves and the attempt has not come to its gate is the confirmed one.
    let its_own =
        state.standby.is_some_and(|run| state.attempt.as_ref().is_some_and(|it| it.to == Some(run.generation)));
    if state.serving.is_some() || its_own || !state.phase.leaves_the_gate_free() {
        drop_standby(state, out);
    }
    let Some(attempt) = state.attempt.take() else { return };
    out.push(Effect::Cancel(attempt.id));
    // A trial that was recorded and never signalled must not be found at the next start.
    if state.slot.trial.take().is_some() {
        out.push(Effect::Record(Box::new(state.slot.clone()), Mark::Keep));
    }
    let outcome = if refused { Outcome::Refused } else { Outcome::Aborted };
    let message = format!("{message}; {}", runs_now(state));
    let no_space = code == Code::NoSpace;
    let spent = attempt.to.filter(|_| no_space && attempt.kind == Kind::Update);
    let staged = attempt.to.is_some();
    end(state, attempt, outcome, Some(code), message, out);
    state.phase = Phase::Idle;
    // A source that keeps sending images that cannot be armed must not fill the disk; and a disk that is full gets back
    // what the attempt took.
    if staged || no_space {
        out.push(Effect::Collect(spent));
    }
}

pub(super) fn abort(state: &mut State, code: Code, message: &str, out: &mut Vec<Effect>) {
    finish_before_gate(state, code, message, false, out);
}

/// Lets the armed shim go.
pub(super) fn drop_standby(state: &mut State, out: &mut Vec<Effect>) {
    if let Some(run) = state.standby.take() {
        out.push(Effect::Disarm(run));
    }
    state.armed = false;
}

/// Remembers that the attempt's image failed, if it is known by digest.
pub(super) fn remember_bad(state: &mut State, now: Moment, attempt: &Attempt, code: Code) {
    let Some(record) = attempt.to.and_then(|to| state.known.get(&to)) else { return };
    let (Some(digest), policy) = (record.digest, record.policy_digest) else { return };
    state.slot.remember_bad(Bad { digest, policy, update: attempt.id, reason: code, since_ms: now.unix_ms });
}

/// Hands the end of an attempt to the dispatcher.
pub(super) fn end(
    _state: &State,
    attempt: Attempt,
    outcome: Outcome,
    reason: Option<Code>,
    message: String,
    out: &mut Vec<Effect>,
) {
    out.push(Effect::End(Box::new(Ended { attempt, outcome, reason, message })));
}
