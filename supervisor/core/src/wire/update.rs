//! Updates: what is asked for, what is planned, how it ended and with what exit status.
//!
//! In: requests of clients, records of the store. Out: serde types. Must not: decide anything about an update.

use serde::{Deserialize, Serialize};

use crate::{
    code::Code,
    ids::{Digest, Generation, ImageRef, UpdateId},
    wire::Difference,
};

/// `POST /v1/updates`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateRequest {
    /// The image.
    pub image: ImageRef,
    /// A new policy, as YAML text; the one in force is kept where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Stop after staging; `molt apply` goes on.
    #[serde(default)]
    pub stage_only: bool,
    /// Take an image that failed before.
    #[serde(default)]
    pub force: bool,
    /// Take a policy wider than the one in force.
    #[serde(default)]
    pub allow_wider: bool,
    /// Why, in the asker's words; at most 512 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST /v1/rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RollbackRequest {
    /// Which generation; the previous one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Generation>,
    /// Why, in the asker's words; at most 512 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Answer to a request that was taken: 202.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    /// The update's id; its record is at `/v1/updates/{id}`.
    pub id: UpdateId,
    /// Sequence number of the last event before it was taken: follow from here.
    pub after_seq: u64,
}

/// The plan of an update (`--dry-run`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanView {
    /// The image, as asked for.
    pub image: ImageRef,
    /// Digest of the platform manifest.
    pub digest: Digest,
    /// Digest of the policy.
    pub policy_digest: Digest,
    /// The same image, policy and settings already run.
    pub noop: bool,
    /// Layers of the image.
    pub layers: usize,
    /// Layers that must be fetched.
    pub layers_to_fetch: usize,
    /// Compressed bytes to fetch.
    pub bytes_to_fetch: u64,
    /// Estimate of bytes it will take in the store.
    pub bytes_on_disk: u64,
    /// Bytes free in the store.
    pub bytes_free: u64,
    /// What the new image would run.
    pub command: Vec<String>,
    /// What it could do that what runs cannot: refused without `--allow-wider`. Where links of the new image lead is known
    /// only once it is armed, unless it ran before.
    pub wider: Vec<String>,
    /// What the difference between its policy and the one in force is, line by line: `+` and `-`.
    #[serde(default)]
    pub policy_difference: Vec<String>,
    /// What an update may cost, from those that were: `None` where none has been.
    #[serde(default)]
    pub expected_downtime: Option<Expected>,
    /// Things worth knowing: shadowed commands, entrypoints that need root, …
    pub warnings: Vec<String>,
}

/// Gaps that were measured, and so what the next one may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    /// How many updates and rollbacks it is taken from: the last ones, at most 64.
    pub of: usize,
    /// The median.
    pub median_us: u64,
    /// The worst.
    pub worst_us: u64,
}

impl Expected {
    /// Of past updates and rollbacks; a start is neither.
    pub fn of<'a>(past: impl Iterator<Item = &'a UpdateView>) -> Option<Self> {
        let changes = past.filter(|view| matches!(view.kind.as_str(), "update" | "rollback"));
        let mut gaps: Vec<u64> = changes.filter_map(|view| view.downtime_us).collect();
        gaps.sort_unstable();
        Some(Self { of: gaps.len(), median_us: *gaps.get(gaps.len() / 2)?, worst_us: *gaps.last()? })
    }
}

/// How an update ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The new generation is the confirmed one.
    Confirmed,
    /// The old one is back, by itself, and healthy.
    RolledBack,
    /// Failed before the gate: the old one never noticed.
    Aborted,
    /// Refused while resolving or planning.
    Refused,
    /// The same generation already runs.
    Noop,
    /// Staged as asked; `molt apply` starts it.
    Staged,
    /// Neither version is healthy.
    Degraded,
}

/// One update or rollback, under way or ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateView {
    /// Its id.
    pub id: UpdateId,
    /// `update`, `rollback`, `boot` or `restart`.
    pub kind: String,
    /// The image asked for, if by image.
    pub image: Option<ImageRef>,
    /// Generation that ran before.
    pub from: Option<Generation>,
    /// Generation it led to, once numbered.
    pub to: Option<Generation>,
    /// `None` while under way; `staged` until `molt apply`, where that is all that was asked for.
    pub outcome: Option<Outcome>,
    /// Why it failed or was refused. While under way, why it does not go on: `unhealthy`, `autoRollback` is off, and
    /// somebody must decide; `held`, it is ready and waits for the end of a hold.
    pub reason: Option<Code>,
    /// For people: what happened, what still runs.
    pub message: String,
    /// From the exit of the old main process to the exec of the new one.
    pub downtime_us: Option<u64>,
    /// From the last moment the old one was ready to the first the new one was.
    pub unready_us: Option<u64>,
    /// Who asked, for the audit.
    pub by: String,
    /// Why, in the asker's words.
    pub note: Option<String>,
    /// When it was asked for.
    pub started: String,
    /// When it ended.
    pub ended: Option<String>,
    /// What was seen, for a failure.
    pub evidence: Option<Evidence>,
    /// Number of the event that told of its end.
    #[serde(default)]
    pub event: Option<u64>,
}

/// What was seen when a generation failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// Last lines of the workload's output, oldest first; bounded.
    pub output: Vec<String>,
    /// Last probe results, oldest first; bounded.
    pub probes: Vec<String>,
    /// Exit status of the workload, if it ended: code, or 128 + signal.
    pub exit_status: Option<i32>,
    /// How it differs from the generation that ran before.
    #[serde(default)]
    pub difference: Option<Difference>,
}

/// Exit status of the client for an update that ended: the table of `docs/CLI.md`.
pub fn exit_status(view: &UpdateView) -> u8 {
    match view.outcome {
        Some(Outcome::Confirmed | Outcome::Noop | Outcome::Staged) => 0,
        Some(Outcome::RolledBack) => 3,
        Some(Outcome::Degraded) => 4,
        // Under way, too: ready, and kept back by somebody's hold; it goes on by itself when that ends.
        Some(Outcome::Refused) | None if view.reason == Some(Code::Held) => 5,
        Some(Outcome::Refused) => 6,
        Some(Outcome::Aborted) => 1,
        // Nothing will happen by itself any more: what runs is not healthy.
        None if undecided(view) => 4,
        None => 7,
    }
}

/// The trial is not healthy and stays as it is until somebody confirms or rejects it.
pub fn undecided(view: &UpdateView) -> bool {
    view.outcome.is_none() && view.reason.is_some_and(|reason| reason != Code::Held)
}

/// What `molt gc` did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// Generations removed.
    pub generations: Vec<Generation>,
    /// Layers removed.
    pub layers: usize,
    /// Blobs removed.
    pub blobs: usize,
    /// Bytes freed, as the file system counts them.
    pub bytes: u64,
}
