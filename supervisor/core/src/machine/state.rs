//! What the machine remembers.
//!
//! In: nothing. Out: plain values. Must not: hold handles; a [`Run`] is a number that the supervisor maps to one.

use std::collections::BTreeMap;

use crate::{
    generation::Record,
    ids::{Digest, Generation, ImageRef, UpdateId},
    journal::Slot,
    wire::PhaseName,
};

/// A shim that is armed or whose gate was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run {
    /// Never used twice in the life of a PID 1.
    pub instance: u64,
    /// What it runs.
    pub generation: Generation,
}

/// What kind of change an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A new image, policy or both.
    Update,
    /// Back to a generation that was confirmed before.
    Rollback,
    /// Start of PID 1.
    Boot,
    /// The same generation again, because its liveness probe failed.
    Restart,
}

impl Kind {
    /// As in `UpdateView::kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Rollback => "rollback",
            Self::Boot => "boot",
            Self::Restart => "restart",
        }
    }
}

/// A change under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Its id.
    pub id: UpdateId,
    /// Its kind.
    pub kind: Kind,
    /// The image asked for.
    pub image: Option<ImageRef>,
    /// A new policy, as text.
    pub policy: Option<String>,
    /// Stop after staging.
    pub stage_only: bool,
    /// Take a digest that is remembered as bad; or, for a rollback, a generation below the floor.
    pub force: bool,
    /// Take a wider policy.
    pub allow_wider: bool,
    /// Who asked.
    pub by: String,
    /// Why.
    pub note: Option<String>,
    /// The spec's image text, by digest, when the spec is what asked.
    pub spec: Option<(Option<Digest>, Option<Digest>)>,
    /// What ran before.
    pub from: Option<Generation>,
    /// What it leads to, once numbered.
    pub to: Option<Generation>,
    /// When it began, milliseconds since 1970.
    pub started_ms: u64,
    /// CLOCK_MONOTONIC of the first signal to the old workload, nanoseconds.
    pub signalled_ns: Option<u64>,
    /// CLOCK_MONOTONIC of the exit that opened the gap now running.
    pub gap_from_ns: Option<u64>,
    /// Gaps that have closed, in nanoseconds.
    pub downtime_ns: Option<u64>,
    /// From the first signal to readiness.
    pub unready_ns: Option<u64>,
    /// The trial is not healthy, and somebody must say what becomes of it (`autoRollback: false`): why.
    pub undecided: Option<String>,
    /// Why it is being rolled back.
    pub failure: Option<(crate::code::Code, String)>,
    /// Exit status of the failed trial.
    pub exit_status: Option<i32>,
}

/// Where a roll back is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Back {
    /// The failed trial is being stopped.
    Stopping,
    /// The old generation is being armed.
    Arming,
    /// Its gate is open.
    Opening,
    /// It must prove itself.
    Proving,
    /// It is being recorded that it is back.
    Recording,
}

/// Where the machine is. [`PhaseName`] is the short form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing under way.
    Idle,
    /// Tag to digest.
    Resolving,
    /// Facts and refusals.
    Planning,
    /// Layers.
    Fetching,
    /// The new root; with the preStage hook before it.
    Staging,
    /// The new generation goes to its gate.
    Arming,
    /// Staged (and armed, unless `--stage-only`), waiting for `apply` or the end of a hold.
    Held,
    /// The preStop hook runs; nothing was signalled yet.
    PreStop,
    /// The trial is being written to the journal; nothing was signalled yet.
    Recording,
    /// The old workload is being stopped.
    Quiescing,
    /// The gate is open; exec is awaited.
    Swapping,
    /// The trial must prove itself.
    Proving,
    /// Proven; waits for `confirm` from outside.
    AwaitingConfirm,
    /// The confirmation is being written to the journal.
    Confirming,
    /// The old generation is being brought back.
    RollingBack(Back),
    /// Neither is healthy: waiting to try the confirmed one again.
    Degraded,
    /// PID 1 was asked to stop and waits for the workload.
    Stopping,
    /// PID 1 is about to exit.
    Exited,
}

impl Phase {
    /// Every phase, for tables and coverage.
    pub const ALL: [Self; 22] = [
        Self::Idle,
        Self::Resolving,
        Self::Planning,
        Self::Fetching,
        Self::Staging,
        Self::Arming,
        Self::Held,
        Self::PreStop,
        Self::Recording,
        Self::Quiescing,
        Self::Swapping,
        Self::Proving,
        Self::AwaitingConfirm,
        Self::Confirming,
        Self::RollingBack(Back::Stopping),
        Self::RollingBack(Back::Arming),
        Self::RollingBack(Back::Opening),
        Self::RollingBack(Back::Proving),
        Self::RollingBack(Back::Recording),
        Self::Degraded,
        Self::Stopping,
        Self::Exited,
    ];

    /// Before the first signal to the old workload: everything here can be given up without anyone noticing.
    pub fn before_gate(self) -> bool {
        matches!(
            self,
            Self::Resolving
                | Self::Planning
                | Self::Fetching
                | Self::Staging
                | Self::Arming
                | Self::Held
                | Self::PreStop
                | Self::Recording
        )
    }

    /// An attempt that has not come to its gate yet: meanwhile the confirmed generation, if it does not run, is tried.
    pub(crate) fn leaves_the_gate_free(self) -> bool {
        matches!(self, Self::Resolving | Self::Planning | Self::Fetching | Self::Staging | Self::Held)
    }

    /// From the first signal to the end of the attempt: nothing is written but what the attempt itself needs.
    pub fn past_signal(self) -> bool {
        matches!(self, Self::Quiescing | Self::Swapping | Self::Confirming | Self::RollingBack(_))
    }

    /// The name in status and events.
    pub fn name(self) -> PhaseName {
        match self {
            Self::Idle | Self::Stopping | Self::Exited => PhaseName::Idle,
            Self::Resolving => PhaseName::Resolving,
            Self::Planning => PhaseName::Planning,
            Self::Fetching => PhaseName::Fetching,
            Self::Staging => PhaseName::Staging,
            Self::Arming => PhaseName::Arming,
            Self::Held => PhaseName::Held,
            Self::PreStop | Self::Recording | Self::Quiescing => PhaseName::Quiescing,
            Self::Swapping => PhaseName::Swapping,
            Self::Proving | Self::AwaitingConfirm => PhaseName::Proving,
            Self::Confirming => PhaseName::Confirming,
            Self::RollingBack(_) => PhaseName::RollingBack,
            Self::Degraded => PhaseName::Degraded,
        }
    }
}

/// What the spec says about how the machine behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Roll back a failed trial by itself.
    pub auto_rollback: bool,
    /// Wait for `molt confirm` this long, in milliseconds, before rolling back; `None` confirms by itself.
    pub confirm_within_ms: Option<u64>,
    /// Exit 0 in a trial means that the program did what it is for.
    pub completes: bool,
    /// A store holds generations: without one only generation 0 runs, of one that is read-only what is confirmed; updates
    /// and rollbacks are refused.
    pub durable: bool,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { auto_rollback: true, confirm_within_ms: None, completes: false, durable: true, boot_id: String::new() }
    }
}

/// Everything the machine remembers.
#[expect(clippy::struct_excessive_bools, reason = "independent facts; each pair of them can be")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// What is durable, or being made so.
    pub slot: Slot,
    /// Where it is.
    pub phase: Phase,
    /// The run whose gate was opened and which has not gone.
    pub serving: Option<Run>,
    /// The run at its gate, or on its way there.
    pub standby: Option<Run>,
    /// Whether the standby reached its gate.
    pub armed: bool,
    /// Whether the serving run was ready when last heard of.
    pub ready: bool,
    /// The change under way.
    pub attempt: Option<Attempt>,
    /// The change that waits for the one under way; at most one.
    pub queued: Option<Attempt>,
    /// Updates wait before the gate.
    pub hold: bool,
    /// The signal PID 1 was asked to stop with.
    pub stopping: Option<i32>,
    /// Exit status PID 1 will have.
    pub exit_status: Option<i32>,
    /// Liveness restarts in a row, for the back-off.
    pub restarts: u32,
    /// How often the generation that boots was sent to its gate in vain.
    pub arm_tries: u32,
    /// A timer runs ([`super::Effect::Wait`]).
    pub waiting: bool,
    /// What runs was started in place of the confirmed generation: which one that was, and why.
    pub fallback: Option<(Generation, String)>,
    /// The last write failed: the slot on disk is not this one, and is written again when something happens.
    pub behind: bool,
    /// Number of the next update. The slot's is never lower once it is written, so that none is given out twice.
    pub next_update: u64,
    /// Neither version was healthy and the one that serves has not proven itself since: its end is not PID 1's.
    pub shaky: bool,
    /// The serving run failed its liveness while something else was under way: it is started again afterwards.
    pub sick: bool,
    /// What a first boot is to fetch, until something is confirmed.
    pub first: Option<Attempt>,
    /// The slot before a confirmation that is being written.
    pub undo: Option<Slot>,
    /// Digests of the spec's image and policy text, as it was last read.
    pub seen: Option<(Option<Digest>, Option<Digest>)>,
    /// Generations in the store.
    pub known: BTreeMap<Generation, Record>,
    /// Settings from the spec.
    pub settings: Settings,
    /// Next instance number.
    pub next_instance: u64,
}

impl State {
    /// Before the first event, which must be `Boot`.
    pub fn new(slot: Slot, known: BTreeMap<Generation, Record>, settings: Settings) -> Self {
        Self {
            next_update: slot.next_update,
            slot,
            phase: Phase::Idle,
            serving: None,
            standby: None,
            armed: false,
            ready: false,
            attempt: None,
            queued: None,
            hold: false,
            stopping: None,
            exit_status: None,
            restarts: 0,
            arm_tries: 0,
            waiting: false,
            fallback: None,
            behind: false,
            shaky: false,
            sick: false,
            first: None,
            undo: None,
            seen: None,
            known,
            settings,
            next_instance: 1,
        }
    }

    /// A new run of `generation`.
    pub(crate) fn new_run(&mut self, generation: Generation) -> Run {
        let run = Run { instance: self.next_instance, generation };
        self.next_instance += 1;
        run
    }

    /// Whether `instance` is the serving run.
    pub(crate) fn serves(&self, instance: u64) -> bool {
        self.serving.is_some_and(|run| run.instance == instance)
    }

    /// Whether `instance` is the standby.
    pub(crate) fn stands_by(&self, instance: u64) -> bool {
        self.standby.is_some_and(|run| run.instance == instance)
    }
}
