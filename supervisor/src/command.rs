//! What the outside can ask of the dispatcher, and what it can look at without asking.
//!
//! In: requests from the API, signals, watched files. Out: one channel to the dispatcher, one snapshot to read. Must not:
//! decide anything; the machine does.

use std::sync::Arc;

use molt_core::{
    code::Code,
    ids::{Digest, Generation, ImageRef, UpdateId},
    journal::Revision,
    wire::{
        Accepted, Collected, Difference, Document, GenerationView, HoldView, Ordered, PlanView, Problem,
        RollbackRequest, UpdateRequest, UpdateView,
    },
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    observe::{events::EventLog, now::Now, output::OutputRing},
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
    Hold { owner: String, ttl_ms: u64, reason: Option<String>, by: By, reply: Reply<HoldView> },
    /// End the hold; only that of `owner`, if one is named.
    Release { owner: Option<String>, by: By, reply: Reply<()> },
    /// Say what is different between two generations.
    Compare { from: Generation, to: Generation, reply: Reply<Difference> },
    /// Say that the dispatcher is there.
    Ping { reply: Reply<()> },
    /// The same command, taken only on these terms.
    On { terms: Terms, command: Box<Command> },
    /// Remove what nothing needs any more.
    Collect { by: By, reply: Reply<Collected> },
    /// Forget that a digest failed.
    ForgetBad { digest: Digest, by: By, reply: Reply<()> },
    /// A signed order, and the policy that came beside it: what it says is done, whoever brought it.
    Order { jws: Vec<u8>, policy: Option<String>, by: By, reply: Reply<Ordered> },
    /// Read the spec again.
    Reread { by: By },
    /// The workload of a run asks for something for itself.
    Own { instance: u64, wish: Wish, by: By, reply: Reply<Option<Accepted>> },
    /// What a gateway wants: one of the above, and the revision that is acted on with it. Its number and that of its
    /// update are durable in one.
    Revision { revision: Revision, command: Box<Command> },
    /// Whether the gateway answers, and why not.
    Reached { gateway: Result<(), String> },
    /// Run something inside the running generation.
    Exec { options: molt_core::wire::ExecOptions, by: By, reply: Reply<ExecSession> },
}

/// What a workload can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// No update for so long.
    Hold { ttl_ms: u64, reason: Option<String> },
    /// Its own hold is over.
    Release,
    /// It is well.
    Confirm,
    /// It is not.
    Reject,
    /// It wants to be this image.
    Update { image: ImageRef, reason: Option<String> },
}

/// On what terms a request is to be taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// `If-Match`: the revisions of which one must be the sandbox's.
    pub(crate) revisions: Option<Vec<String>>,
    /// `Idempotency-Key`: SHA-256 of the key, and of the request it came with.
    pub(crate) key: Option<([u8; 32], [u8; 32])>,
}

impl Command {
    /// Answers with no.
    pub(crate) fn refuse(self, problem: Problem) {
        // A reply nobody waits for any more is not an error.
        match self {
            Self::Update { reply, .. }
            | Self::Rollback { reply, .. }
            | Self::Apply { reply, .. }
            | Self::Confirm { reply, .. }
            | Self::Reject { reply, .. }
            | Self::Cancel { reply, .. } => drop(reply.send(Err(problem))),
            Self::DryRun { reply, .. } => drop(reply.send(Err(problem))),
            Self::Hold { reply, .. } => drop(reply.send(Err(problem))),
            Self::Release { reply, .. } | Self::ForgetBad { reply, .. } | Self::Ping { reply } => {
                drop(reply.send(Err(problem)));
            }
            Self::Collect { reply, .. } => drop(reply.send(Err(problem))),
            Self::Order { reply, .. } => drop(reply.send(Err(problem))),
            Self::Compare { reply, .. } => drop(reply.send(Err(problem))),
            Self::Exec { reply, .. } => drop(reply.send(Err(problem))),
            Self::Own { reply, .. } => drop(reply.send(Err(problem))),
            Self::Reread { .. } | Self::Reached { .. } => {}
            Self::On { command, .. } | Self::Revision { command, .. } => command.refuse(problem),
        }
    }

    /// Answers a request for a change with what an earlier one became.
    pub(crate) fn repeat(self, accepted: Accepted) {
        match self {
            Self::Update { reply, .. } | Self::Rollback { reply, .. } => drop(reply.send(Ok(accepted))),
            Self::On { command, .. } | Self::Revision { command, .. } => command.repeat(accepted),
            other => other.refuse(Problem::new(Code::Invalid, "this kind of request takes no Idempotency-Key")),
        }
    }
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
    /// What `If-Match` is compared with: the last request that was taken, and what serves.
    pub(crate) revision: String,
    /// The revision of a gateway that was acted on last.
    pub(crate) acted: Option<Revision>,
}

/// What the API holds.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    /// To the dispatcher.
    pub(crate) commands: mpsc::Sender<Command>,
    /// The latest snapshot.
    pub(crate) view: watch::Receiver<Arc<View>>,
    /// What is newer than the snapshot.
    pub(crate) now: Now,
    /// Events so far and to come.
    pub(crate) events: EventLog,
    /// Output of the workload so far and to come.
    pub(crate) output: OutputRing,
    /// What was run without the confinement.
    pub(crate) audit: Audit,
}
