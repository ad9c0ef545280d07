//! What can happen.
//!
//! In: facts from the dispatcher. Out: nothing. Must not: carry handles.

use crate::{
    code::Code,
    generation::Record,
    ids::{Digest, Generation, ImageRef, UpdateId},
};

/// The two clocks, read by the dispatcher when an event is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub mono_ns: u64,
    /// Wall clock, milliseconds since 1970: for records only.
    pub unix_ms: u64,
}

/// Where an intent wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A new image.
    Image {
        /// Which.
        image: ImageRef,
        /// New policy text.
        policy: Option<String>,
        /// Stop after staging.
        stage_only: bool,
        /// Take a known-bad digest.
        force: bool,
        /// Take a wider policy.
        allow_wider: bool,
        /// Digests of the spec's image and policy text, when the spec asks.
        spec: Option<(Option<Digest>, Option<Digest>)>,
    },
    /// Back to a generation; the previous one where `None`.
    Back(Option<Generation>),
    /// The same, below the rollback floor if need be: a signed order whose key is marked for it.
    BackBelow(Option<Generation>),
}

/// What the spec asks for, as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Its image; `None` where the container's own root is meant.
    pub image: Option<ImageRef>,
    /// Its policy, as text; empty for the default one.
    pub policy: String,
    /// Digests of the two texts: what the journal remembers of them.
    pub texts: (Option<Digest>, Option<Digest>),
}

/// What PID 1 found when it started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The spec. `None` where a part of it could not be read: it asks for nothing then.
    pub spec: Option<Wanted>,
    /// CLOCK_BOOTTIME, milliseconds: how long the kernel has been up, sleep included.
    pub up_ms: u64,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// PID 1 started.
    Boot(Found),
    /// Someone wants a change.
    Intent {
        /// Which.
        target: Target,
        /// Who, for the audit.
        by: String,
        /// Why.
        note: Option<String>,
    },
    /// The spec was read again, and is valid as a whole.
    Reread {
        /// What it asks for.
        wanted: Wanted,
        /// Who had it read, for the audit.
        by: String,
    },
    /// Give up the attempt, if the gate has not been reached.
    Cancel,
    /// Go on with what is staged.
    Apply,
    /// Confirm the trial now.
    Confirm,
    /// Reject the trial now.
    Reject,
    /// Updates wait before the gate.
    Hold,
    /// They no longer do.
    Release,
    /// The tag led to a digest.
    Resolved {
        /// Attempt.
        id: UpdateId,
    },
    /// The plan was made and nothing refuses it.
    Planned {
        /// Attempt.
        id: UpdateId,
        /// The same image, policy and settings run already.
        noop: bool,
    },
    /// All layers are in the store.
    Fetched {
        /// Attempt.
        id: UpdateId,
    },
    /// The generation is on disk, synced.
    Staged {
        /// Attempt.
        id: UpdateId,
        /// Its record.
        record: Box<Record>,
    },
    /// A step before the gate failed.
    Failed {
        /// Attempt.
        id: UpdateId,
        /// Why.
        code: Code,
        /// For people.
        message: String,
        /// Refused by a rule rather than failed.
        refused: bool,
    },
    /// A shim waits at its gate and what it reports is good enough.
    Armed {
        /// Which.
        instance: u64,
    },
    /// A shim did not get to its gate.
    NotArmed {
        /// Which.
        instance: u64,
        /// Why.
        code: Code,
        /// For people.
        message: String,
    },
    /// The preStop hook ended well, or there is none.
    PreStopDone {
        /// Attempt.
        id: UpdateId,
    },
    /// The slot handed out last is durable.
    Recorded,
    /// The slot handed out last could not be made durable.
    NotRecorded {
        /// For people.
        message: String,
    },
    /// The workload's main process ended.
    Exited {
        /// Which.
        instance: u64,
        /// Exit code, or 128 + signal.
        status: i32,
        /// CLOCK_MONOTONIC as the shim's wait saw it.
        at_ns: u64,
    },
    /// Every process of the run is gone (its pidfd is readable).
    Gone {
        /// Which.
        instance: u64,
        /// CLOCK_MONOTONIC of the exit, or of the kill.
        at_ns: u64,
    },
    /// The run was killed and is still there after the deadline.
    NotGone {
        /// Which.
        instance: u64,
    },
    /// The new program runs.
    Execed {
        /// Which.
        instance: u64,
        /// CLOCK_MONOTONIC of the end of its exec pipe.
        at_ns: u64,
    },
    /// The program could not be executed after the gate.
    NotExeced {
        /// Which.
        instance: u64,
        /// Why: `ExecFailed` is the image's fault, anything else is not.
        code: Code,
        /// For people.
        message: String,
    },
    /// Readiness changed.
    Ready {
        /// Which.
        instance: u64,
        /// Ready or not.
        ready: bool,
        /// CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// The run passed its probes and its monitor window.
    Proven {
        /// Which.
        instance: u64,
    },
    /// The run failed its probes: in a trial, or its liveness later.
    Unhealthy {
        /// Which.
        instance: u64,
        /// For people.
        message: String,
    },
    /// The timer of [`super::Effect::Wait`] ran out.
    Waited,
    /// A signal for PID 1 that asks it to stop.
    Terminate {
        /// Its number.
        signal: i32,
    },
    /// Generations were removed from the store.
    Collected {
        /// Which.
        removed: Vec<Generation>,
    },
}
