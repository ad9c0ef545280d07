//! What the machine wants done.
//!
//! In: nothing. Out: orders to the dispatcher, to be started in order. Must not: hold closures or handles.

use crate::{
    code::Code,
    ids::{Generation, UpdateId},
    journal::Slot,
    machine::{Attempt, Run},
    wire::Outcome,
};

/// What becomes of a generation's `confirmed` mark, which says what boots when the journal cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// Nothing.
    Keep,
    /// Made before the slot is written; if that fails, the slot is not written.
    Set(Generation),
    /// Taken away after the slot was written: the generation was not confirmed after all.
    Clear(Generation),
}

/// How patiently to stop a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Patience {
    /// The workload's stop signal (or this one), its grace period, then kill.
    Grace(Option<i32>),
    /// Kill at once.
    Kill,
}

/// Why probes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A trial: startup, readiness, monitor window, then `Proven`.
    Trial,
    /// A confirmed generation that was started: as a trial, then liveness for ever.
    Boot,
    /// A confirmed generation that passed: liveness and readiness for ever.
    Watch,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The attempt, with everything measured.
    pub attempt: Attempt,
    /// How.
    pub outcome: Outcome,
    /// Why, unless it went well.
    pub reason: Option<Code>,
    /// For people: what happened and what runs now.
    pub message: String,
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Resolve the attempt's image; answers `Resolved` or `Failed`.
    Resolve(UpdateId),
    /// Gather facts and refuse what must be refused; answers `Planned` or `Failed`.
    Plan(UpdateId),
    /// Bring the layers; answers `Fetched` or `Failed`.
    Fetch(UpdateId),
    /// Run the preStage hook, then make and sync generation `as_number`; answers `Staged` or `Failed`.
    Stage {
        /// Attempt.
        id: UpdateId,
        /// Its number.
        as_number: Generation,
    },
    /// Mount, fork, confine, wait at the gate; answers `Armed` or `NotArmed`.
    Arm(Run),
    /// Close the gate for good: the armed shim exits.
    Disarm(Run),
    /// Run the preStop hook in the serving run; answers `PreStopDone` or `Failed`.
    PreStop {
        /// Attempt.
        id: UpdateId,
        /// Where.
        run: Run,
    },
    /// Make this slot durable before anything after it, and the mark that goes with it; answers `Recorded` or
    /// `NotRecorded`.
    Record(Box<Slot>, Mark),
    /// Stop a run; answers `Exited` (if it had a main process) and `Gone`, or `NotGone`.
    Stop(Run, Patience),
    /// Send one byte; answers `Execed` or `NotExeced`.
    Open(Run),
    /// Probe a run; answers `Ready`, `Proven`, `Unhealthy`.
    Probe(Run, Purpose),
    /// Stop probing.
    Unprobe,
    /// Run a hook that can only warn, in a run.
    Hook(HookName, Run),
    /// Give up whatever is being done for an attempt; late answers carry its id and are ignored.
    Cancel(UpdateId),
    /// Answer `Waited` after so many milliseconds; replaces a timer that runs.
    Wait(u64),
    /// Forget the timer.
    Unwait,
    /// The attempt ended: history, event, evidence.
    End(Box<Ended>),
    /// Remove what nothing needs, in the background; and this generation, however many are kept.
    Collect(Option<Generation>),
    /// Something a person should know.
    Warn(String),
    /// PID 1 exits with this status.
    Exit(i32),
}

/// Hooks after the gate, which can only warn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HookName {
    /// In the new generation, after exec.
    PostStart,
    /// In the new generation, after it was confirmed.
    PostConfirm,
    /// In the generation that was restored.
    OnRollback,
}
