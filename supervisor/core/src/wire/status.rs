//! What `GET /v1/status` says: the sandbox as a Kubernetes-style document of `spec` and `status`.
//!
//! In: the machine's state, the spec, what confines the workload. Out: the document. Must not: hold anything secret.

use serde::{Deserialize, Serialize};

use crate::{
    code::Code,
    ids::{Digest, Generation, ImageRef, UpdateId},
    launch::{Report, SeccompProfile},
    order::Operation,
    wire::UpdateView,
};

/// `GET /v1/status` and `molt status -o json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always `Sandbox`.
    pub kind: String,
    /// Name of the sandbox.
    pub metadata: Metadata,
    /// The spec in force, as the owner wrote it, with defaults filled in.
    pub spec: serde_json::Value,
    /// What is.
    pub status: Status,
}

/// `metadata`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Metadata {
    /// Name of the sandbox.
    pub name: String,
}

/// What is, as opposed to what was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Revision of the spec this status speaks of (Kubernetes' sense of the word).
    pub observed_generation: u64,
    /// Where the update machine is.
    pub phase: PhaseName,
    /// The update under way, if any.
    pub update: Option<UpdateView>,
    /// Closed list of conditions.
    pub conditions: Vec<Condition>,
    /// The generation that boots.
    pub confirmed: Option<GenerationView>,
    /// The generation that runs but is not proven.
    pub trial: Option<GenerationView>,
    /// The generation `molt rollback` returns to.
    pub previous: Option<GenerationView>,
    /// A generation that is staged and waits for `molt apply`.
    pub staged: Option<GenerationView>,
    /// Digests that failed and are refused.
    pub bad: Vec<BadView>,
    /// The last update that ended.
    pub last_update: Option<UpdateView>,
    /// The workload.
    pub workload: WorkloadView,
    /// What confines the running workload, as read back inside it.
    pub confinement: Option<Report>,
    /// What becomes of each section of its policy: enforced here, in part, or left to the egress proxy.
    pub policy: Vec<Section>,
    /// Which system calls it gets.
    pub seccomp: SeccompProfile,
    /// What was asked for and is not in force, in words.
    pub degraded: Vec<String>,
    /// Who holds updates back, if anyone.
    pub hold: Option<HoldView>,
    /// Signed orders: who may send them, how far each key was used, and the rollback floor. `None` where there is none.
    pub orders: Option<OrdersView>,
    /// Version of Molt.
    pub molt_version: String,
}

/// What becomes of a section of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Section {
    /// Its name in the policy.
    pub section: String,
    /// `enforced`, `enforced in part`, `left to the egress proxy` or `not enforced`.
    pub verdict: String,
    /// Why, and what is left.
    pub text: String,
}

/// Names of the machine's phases, as `molt status` shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
pub enum PhaseName {
    /// Nothing under way.
    Idle,
    /// Tag to digest, platform pick.
    Resolving,
    /// Facts gathered, refusals made.
    Planning,
    /// Layers on their way to the store.
    Fetching,
    /// The new root is put together.
    Staging,
    /// The new generation confines itself and goes to the gate.
    Arming,
    /// Staged, waiting for `molt apply` or for a hold to end.
    Held,
    /// The old workload is being stopped.
    Quiescing,
    /// The gate is open.
    Swapping,
    /// The new workload must prove itself.
    Proving,
    /// Being made permanent.
    Confirming,
    /// The previous generation is being brought back.
    RollingBack,
    /// Neither the new nor the previous generation is healthy; the confirmed one is retried.
    Degraded,
}

impl PhaseName {
    /// Every phase, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Idle,
        Self::Resolving,
        Self::Planning,
        Self::Fetching,
        Self::Staging,
        Self::Arming,
        Self::Held,
        Self::Quiescing,
        Self::Swapping,
        Self::Proving,
        Self::Confirming,
        Self::RollingBack,
        Self::Degraded,
    ];
}

impl std::fmt::Display for PhaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// A Kubernetes-style condition; `docs/API.md` has the closed list of types and reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which condition.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// CamelCase, from a closed list.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When `status` last changed.
    pub last_transition_time: String,
    /// Revision of the spec it speaks of.
    #[serde(default)]
    pub observed_generation: u64,
}

/// A generation, as shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GenerationView {
    /// Its number.
    pub generation: Generation,
    /// The reference it was asked for by; `None` for the container's own root.
    pub image: Option<ImageRef>,
    /// Digest of the platform manifest; `None` for the container's own root.
    pub digest: Option<Digest>,
    /// Digest of the policy.
    pub policy_digest: Digest,
    /// When it was made.
    pub since: String,
}

/// Something that failed and is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BadView {
    /// The image's digest.
    pub digest: Digest,
    /// The update that found out; `molt show` has the evidence.
    pub update: UpdateId,
    /// Why.
    pub reason: Code,
    /// When.
    pub since: String,
}

/// The workload, as shown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadView {
    /// Whether its main process runs.
    pub running: bool,
    /// Whether its readiness probe (or, without one, its start) says yes.
    pub ready: bool,
    /// The generation it runs from.
    pub generation: Option<Generation>,
    /// Restarts of the confirmed generation by liveness since boot.
    pub restarts: u64,
    /// Last `STATUS=` it notified.
    pub message: Option<String>,
}

/// A hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldView {
    /// Whose it is: the same owner may renew it, another one is refused.
    pub owner: String,
    /// Who asked.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// When it was asked for last.
    pub since: String,
    /// When it ends by itself.
    pub until: String,
}

/// Signed orders, as shown. Numbers that are lower than before tell of a store that somebody restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrdersView {
    /// What an order's `aud` must be.
    pub audience: String,
    /// Generations below it are not gone back to by hand.
    pub floor: Generation,
    /// The keys of the spec, and those that were used before.
    pub keys: Vec<OrderKeyView>,
}

/// A key for orders, as shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderKeyView {
    /// Its id.
    pub id: String,
    /// What it may order; empty for one that is not in the spec any more.
    pub operations: Vec<Operation>,
    /// `seq` of the newest order taken; the next one's must be higher.
    pub seq: u64,
}
