//! What the outside can ask of the dispatcher, and what it can look at without asking.
//!
//! In: requests from the API, signals, watched files. Out: one channel to the dispatcher, one snapshot to read. Must not:
//! decide anything; the machine does.

use std::sync::Arc;

use molt_core::{
    ids::{Digest, UpdateId},
    wire::{
        Accepted, Collected, Document, GenerationView, PlanView, Problem, RollbackRequest, UpdateRequest, UpdateView,
    },
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    observe::{events::EventLog, output::OutputRing},
    store::audit::Audit,
    workload::exec::ExecSession,
};

/// Who asks, for the audit line.
pub(crate) type By = String;

/// Where the answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Problem>>;

/// A request to the dispatcher.
#[derive(Debug)]
pub(crate) enum Command {
    /// Change the image (and policy).
    Update { request: UpdateRequest, by: By, reply: Reply<Accepted> },
    /// Say what an update would do.
    DryRun { request: UpdateRequest, reply: Reply<PlanView> },
    /// Go back.
    Rollback { request: RollbackRequest, by: By, reply: Reply<Accepted> },
    /// Start what is staged.
    Apply { by: By, reply: Reply<Accepted> },
    /// Confirm the trial now.
    Confirm { by: By, reply: Reply<Accepted> },
    /// Reject the trial now: it is rolled back.
    Reject { by: By, reply: Reply<Accepted> },
    /// Give up an update that has not reached the gate.
    Cancel { id: Option<UpdateId>, by: By, reply: Reply<Accepted> },
    /// Hold updates back before the gate.
    Hold { ttl_ms: u64, reason: Option<String>, by: By, reply: Reply<()> },
    /// End the hold.
    Release { by: By, reply: Reply<()> },
    /// Remove what nothing needs any more.
    Collect { reply: Reply<Collected> },
    /// Forget that a digest failed.
    ForgetBad { digest: Digest, by: By, reply: Reply<()> },
    /// Run something inside the running generation.
    Exec { options: molt_core::wire::ExecOptions, by: By, reply: Reply<ExecSession> },
}

/// What can be read at any time.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// The status document.
    pub(crate) document: Document,
    /// Every generation in the store, oldest first.
    pub(crate) generations: Vec<GenerationView>,
    /// Updates of this store, oldest first; the last 64.
    pub(crate) updates: Vec<UpdateView>,
}

/// What the API holds.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    /// To the dispatcher.
    pub(crate) commands: mpsc::Sender<Command>,
    /// The latest snapshot.
    pub(crate) view: watch::Receiver<Arc<View>>,
    /// Events so far and to come.
    pub(crate) events: EventLog,
    /// Output of the workload so far and to come.
    pub(crate) output: OutputRing,
    /// What was run without the confinement.
    pub(crate) audit: Audit,
}
