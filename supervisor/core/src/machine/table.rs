//! The machine as a table for people: what each phase answers to each event.
//!
//! In: nothing. Out: Markdown, which `docs/STATE-MACHINE.md` holds and a test compares. Must not: describe anything the
//! code does not do; it is made by running `step`.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    Attempt, Back, Effect, Event, Found, Kind, Mark, Moment, Phase, Run, Settings, State, Target, Wanted, step,
};
use crate::{
    code::Code,
    generation::{Program, Record},
    ids::{Digest, Generation, UpdateId},
    journal::{Slot, Trial},
};

const SERVING: u64 = 1;
const STANDBY: u64 = 2;
pub(super) const ATTEMPT: UpdateId = UpdateId(5);

fn record(generation: u32) -> Record {
    Record {
        version: crate::generation::VERSION,
        generation: Generation(generation),
        image: format!("registry.example.com/app:{generation}").parse().ok(),
        digest: Some(Digest::from_bytes([u8::try_from(generation).unwrap_or(0); 32])),
        layers: Vec::new(),
        policy_digest: Digest::from_bytes([0; 32]),
        settings_digest: Digest::from_bytes([0; 32]),
        program: Program::default(),
        since: String::new(),
    }
}

/// A state that is typical for `phase`: generation 1 confirmed, an update to generation 2 under way.
pub fn typical(phase: Phase) -> State {
    let known = BTreeMap::from([(Generation(1), record(1)), (Generation(2), record(2)), (Generation(3), record(3))]);
    let slot = Slot {
        confirmed: Some(Generation(1)),
        previous: Some(Generation(3)),
        next_generation: 4,
        next_update: 6,
        ..Slot::first()
    };
    let mut state = State::new(slot, known, Settings::default());
    state.next_instance = 3;
    state.phase = phase;
    let old = Some(Run { instance: SERVING, generation: Generation(1) });
    let new = Some(Run { instance: STANDBY, generation: Generation(2) });
    let attempt = |to: Option<u32>| {
        Some(Attempt {
            id: ATTEMPT,
            kind: Kind::Update,
            image: "registry.example.com/app:2".parse().ok(),
            policy: None,
            stage_only: false,
            force: false,
            allow_wider: false,
            by: "table".to_owned(),
            note: None,
            spec: None,
            from: Some(Generation(1)),
            to: to.map(Generation),
            started_ms: 0,
            signalled_ns: None,
            gap_from_ns: None,
            downtime_ns: None,
            unready_ns: None,
            undecided: None,
            failure: None,
            exit_status: None,
        })
    };
    let trial = Some(Trial {
        generation: Generation(2),
        update: ATTEMPT,
        rollback: false,
        boot_id: String::new(),
        clean_stop: false,
        suspect: matches!(phase, Phase::Proving | Phase::AwaitingConfirm | Phase::Confirming | Phase::RollingBack(_)),
    });
    let set = |state: &mut State, serving: Option<Run>, standby: Option<Run>, armed: Armed, to: Option<u32>| {
        state.serving = serving.map(|run| Run { instance: SERVING, ..run });
        state.standby = standby.map(|run| Run { instance: STANDBY, ..run });
        state.armed = armed == Armed::Yes;
        state.attempt = attempt(to);
    };
    match phase {
        Phase::Idle => state.serving = old,
        Phase::Resolving | Phase::Planning | Phase::Fetching | Phase::Staging => {
            set(&mut state, old, None, Armed::No, None);
        }
        Phase::Arming => set(&mut state, old, new, Armed::No, Some(2)),
        Phase::Held | Phase::PreStop => set(&mut state, old, new, Armed::Yes, Some(2)),
        Phase::Recording | Phase::Quiescing => {
            set(&mut state, old, new, Armed::Yes, Some(2));
            state.slot.trial = trial;
        }
        Phase::Swapping => {
            set(&mut state, new, None, Armed::No, Some(2));
            state.slot.trial = trial;
        }
        Phase::Proving | Phase::AwaitingConfirm | Phase::Confirming | Phase::RollingBack(Back::Stopping) => {
            set(&mut state, new, old, Armed::Yes, Some(2));
            state.slot.trial = trial;
        }
        Phase::RollingBack(Back::Arming) => {
            set(&mut state, None, old, Armed::No, Some(2));
            state.slot.trial = trial;
        }
        Phase::RollingBack(_) => {
            set(&mut state, old, None, Armed::No, Some(2));
            state.slot.trial = trial;
        }
        Phase::Degraded => {}
        Phase::Stopping => {
            state.serving = old;
            state.stopping = Some(15);
        }
        Phase::Exited => state.stopping = Some(15),
    }
    state
}

#[derive(PartialEq, Clone, Copy)]
enum Armed {
    Yes,
    No,
}

/// One event of each kind, with the ids of [`typical`].
pub fn events() -> Vec<(&'static str, Event)> {
    let message = || "m".to_owned();
    let image = || "registry.example.com/app:3".parse();
    let mut events = vec![
        ("Boot", Event::Boot(Found::default())),
        ("Cancel", Event::Cancel),
        ("Apply", Event::Apply),
        ("Confirm", Event::Confirm),
        ("Reject", Event::Reject),
        ("Hold", Event::Hold),
        ("Release", Event::Release),
        ("Resolved", Event::Resolved { id: ATTEMPT }),
        ("Planned", Event::Planned { id: ATTEMPT, noop: false }),
        ("Planned (noop)", Event::Planned { id: ATTEMPT, noop: true }),
        ("Fetched", Event::Fetched { id: ATTEMPT }),
        ("Staged", Event::Staged { id: ATTEMPT, record: Box::new(record(2)) }),
        ("Failed", Event::Failed { id: ATTEMPT, code: Code::NotFound, message: message(), refused: false }),
        ("Failed (refused)", Event::Failed { id: ATTEMPT, code: Code::KnownBad, message: message(), refused: true }),
        ("Armed", Event::Armed { instance: STANDBY }),
        ("NotArmed", Event::NotArmed { instance: STANDBY, code: Code::ProgramUnusable, message: message() }),
        ("PreStopDone", Event::PreStopDone { id: ATTEMPT }),
        ("Recorded", Event::Recorded),
        ("NotRecorded", Event::NotRecorded { message: message() }),
        ("Exited", Event::Exited { instance: SERVING, status: 1, at_ns: 1 }),
        ("Gone (serving)", Event::Gone { instance: SERVING, at_ns: 2 }),
        ("Gone (standby)", Event::Gone { instance: STANDBY, at_ns: 2 }),
        ("NotGone", Event::NotGone { instance: SERVING }),
        ("Execed", Event::Execed { instance: SERVING, at_ns: 3 }),
        ("NotExeced", Event::NotExeced { instance: SERVING, code: Code::ExecFailed, message: message() }),
        ("Ready", Event::Ready { instance: SERVING, ready: true, at_ns: 4 }),
        ("Proven", Event::Proven { instance: SERVING }),
        ("Unhealthy", Event::Unhealthy { instance: SERVING, message: message() }),
        ("Waited", Event::Waited),
        ("Terminate", Event::Terminate { signal: 15 }),
        ("Collected", Event::Collected { removed: Vec::new() }),
    ];
    if let Ok(image) = image() {
        let target =
            Target::Image { image, policy: None, stage_only: false, force: false, allow_wider: false, spec: None };
        events.insert(1, ("Intent (update)", Event::Intent { target, by: "table".to_owned(), note: None }));
    }
    let texts = (Some(Digest::from_bytes([3; 32])), None);
    let wanted = Wanted { image: image().ok(), policy: String::new(), texts };
    events.insert(2, ("Reread (another image)", Event::Reread { wanted, by: "table".to_owned() }));
    events.insert(
        2,
        ("Intent (rollback)", Event::Intent { target: Target::Back(None), by: "table".to_owned(), note: None }),
    );
    events
}

fn effect_name(effect: &Effect) -> String {
    match effect {
        Effect::Stage { as_number, .. } => format!("stage as {as_number}"),
        Effect::Arm(run) => format!("arm {}", run.generation),
        Effect::Disarm(run) => format!("disarm {}", run.generation),
        Effect::Stop(run, patience) => format!("stop {} ({patience:?})", run.generation),
        Effect::Open(run) => format!("open {}", run.generation),
        Effect::Probe(run, purpose) => format!("probe {} ({purpose:?})", run.generation),
        Effect::Hook(name, run) => format!("hook {name:?} in {}", run.generation),
        Effect::PreStop { run, .. } => format!("preStop in {}", run.generation),
        Effect::Record(slot, mark) => format!(
            "record confirmed={} trial={}{}",
            slot.confirmed.map_or("-".to_owned(), |c| c.to_string()),
            slot.trial.as_ref().map_or("-".to_owned(), |t| t.generation.to_string()),
            match mark {
                Mark::Keep => String::new(),
                Mark::Set(generation) => format!(" with the mark of {generation}"),
                Mark::Clear(generation) => format!(" without the mark of {generation}"),
            }
        ),
        Effect::End(ended) => format!("end {:?}", ended.outcome),
        Effect::Resolve(_) => "resolve".to_owned(),
        Effect::Plan(_) => "plan".to_owned(),
        Effect::Fetch(_) => "fetch".to_owned(),
        Effect::Cancel(_) => "cancel".to_owned(),
        Effect::Wait(ms) => format!("wait {ms} ms"),
        Effect::Unwait => "unwait".to_owned(),
        Effect::Unprobe => "unprobe".to_owned(),
        Effect::Collect(None) => "collect".to_owned(),
        Effect::Collect(Some(spent)) => format!("collect, {spent} too"),
        Effect::Warn(_) => "warn".to_owned(),
        Effect::Exit(status) => format!("exit {status}"),
    }
}

/// The whole table as Markdown.
pub fn markdown() -> String {
    let mut text = String::from(
        "# State machine\n\nMade from the code by `cargo test -p molt-core`; edit `supervisor/core/src/machine`, not this file.\n\
         Each section is a phase with generation 1 confirmed and an update to generation 2 under way; each row an event, the\n\
         phase after it, and the effects in order. Events that change nothing are left out.\n",
    );
    for phase in Phase::ALL {
        let _ = write!(
            text,
            "\n## {phase:?}\n\nShown as `{}`.\n\n| event | next | effects |\n|---|---|---|\n",
            phase.name()
        );
        for (name, event) in events() {
            let mut state = typical(phase);
            let before = state.clone();
            let effects = step(&mut state, Moment::default(), event);
            if effects.is_empty() && state == before {
                continue;
            }
            let next = if state.phase == phase { "·".to_owned() } else { format!("{:?}", state.phase) };
            let effects: Vec<String> = effects.iter().map(effect_name).collect();
            let _ = writeln!(text, "| {name} | {next} | {} |", effects.join(", "));
        }
    }
    text
}
