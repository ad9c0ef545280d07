//! What Molt says to the outside: the status document, updates, events, requests, problem documents.
//!
//! In: the machine's state. Out: serde types with JSON Schemas; the same types serve the HTTP API, `molt … -o json` and
//! the audit log. Must not: hold anything secret. Times are RFC 3339 text in UTC; durations are whole microseconds
//! (`…Us`) or milliseconds (`…Ms`). Readers must ignore fields they do not know.

use serde::{Deserialize, Serialize};

use crate::{
    code::Code,
    ids::{Digest, Generation, ImageRef, UpdateId},
    launch::{Report, SeccompProfile},
    order::Operation,
};

/// `apiVersion` of every document.
pub const API_VERSION: &str = "molt.dev/v1alpha1";

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

/// `POST /v1/orders` as JSON, for an order whose policy travels beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OrderRequest {
    /// The token: a compact JWS of at most 64 KiB.
    pub jws: String,
    /// The policy's text; its SHA-256 is the token's `policyDigest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

/// Answer to an order that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ordered {
    /// Id of the key.
    pub key: String,
    /// Its `seq`: the ratchet stands here now.
    pub seq: u64,
    /// Its `jti`.
    pub jti: String,
    /// What was asked for.
    pub op: Operation,
    /// The update it began, or was about; none for `hold`, `release` and `floor`.
    pub id: Option<UpdateId>,
    /// Sequence number of the last event before it was taken: follow from here.
    pub after_seq: u64,
}

/// A line of the history that is neither an update nor a command: what was asked for, what was refused, what else a person
/// who looks back wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditView {
    /// `request`, `order`, `refusal`, `policy` or `repair`.
    pub kind: String,
    /// When.
    pub time: String,
    /// Who: uid and process, name in a certificate, id of a key, file, or gateway.
    pub by: String,
    /// What: `hold`, `confirm`, `connect`, `POST /v1/updates`, ...
    pub what: String,
    /// `done` or `refused`.
    pub outcome: String,
    /// Why it was refused, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The update it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateId>,
    /// More, for people; at most 512 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How many of the same this line stands for, where more came than were written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// `GET /v1/history/verify`: whether the lines of the history are all there and as they were written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryCheck {
    /// Nothing is broken.
    pub ok: bool,
    /// Lines that are there.
    pub lines: u64,
    /// Of which so many are without a chain: from before there was one, or an older Molt's.
    pub unchained: u64,
    /// `seq` of the oldest line of the chain.
    pub first: Option<u64>,
    /// `seq` of the newest.
    pub last: Option<u64>,
    /// SHA-256 of the newest line. Who noted it elsewhere sees whether lines after it were taken away.
    pub head: Option<String>,
    /// Where it is broken; at most 16.
    pub breaks: Vec<HistoryBreak>,
}

/// A place where the chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryBreak {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// What is wrong there.
    pub why: String,
}

/// One event of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Rises by one an event.
    pub seq: u64,
    /// When.
    pub time: String,
    /// The update it belongs to.
    pub update: Option<UpdateId>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What an event says; `type` in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum What {
    /// The machine entered a phase.
    Phase {
        /// Which.
        phase: PhaseName,
        /// For people.
        message: String,
    },
    /// Bytes of a layer.
    Progress {
        /// Position in the image.
        layer: usize,
        /// Number of layers.
        layers: usize,
        /// Compressed digest.
        digest: Digest,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
        /// `present`, `fetching` or `done`.
        state: String,
    },
    /// Something a person should know.
    Warning {
        /// For people.
        message: String,
    },
    /// Something that happened, of no concern.
    Note {
        /// For people.
        message: String,
    },
    /// An update ended.
    Outcome {
        /// The whole record.
        result: Box<UpdateView>,
    },
    /// The workload's main process ended.
    WorkloadExited {
        /// Which generation.
        generation: Generation,
        /// Exit code, or 128 + signal.
        status: i32,
    },
    /// Readiness changed.
    Ready {
        /// Which generation.
        generation: Generation,
        /// Ready or not.
        ready: bool,
    },
}

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

/// What is different between two generations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The one that is compared.
    pub from: Generation,
    /// With this one.
    pub to: Generation,
    /// What differs, field by field: `image`, `digest`, `program.argv`, `program.env.NAME`, `settings` …
    pub fields: Vec<Change>,
    /// Lines of the policy, section by section.
    pub policy: Vec<SectionChange>,
}

/// A field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Which.
    pub field: String,
    /// What it was; `None` where it was not there.
    pub from: Option<String>,
    /// What it is.
    pub to: Option<String>,
}

/// A section of the policy that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SectionChange {
    /// Its name in the policy.
    pub section: String,
    /// Lines that went (`-`) and came (`+`), as YAML.
    pub lines: Vec<String>,
}

/// `POST /v1/exec`: upgrades the connection to a stream of frames, one byte of kind (0 stdin, 1 stdout, 2 stderr,
/// 3 window size as `ROWS COLS`, 4 exit status as decimal text, 5 signal as decimal text), four bytes of length, big
/// endian, at most 64 KiB, and the data. A stdin frame of length 0 closes standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecOptions {
    /// Program and arguments; looked up in the workload's `PATH` by the confined process.
    pub argv: Vec<String>,
    /// Added to the workload's environment, `NAME=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Give it a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Forward standard input.
    #[serde(default)]
    pub stdin: bool,
    /// Rows of the terminal.
    #[serde(default)]
    pub rows: u16,
    /// Columns of the terminal.
    #[serde(default)]
    pub cols: u16,
    /// Run it as root, in the workload's namespaces and root but outside of Landlock and seccomp; the history has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfined: bool,
}

/// `GET /v1/execs`, and a line of the history: a command that was run unconfined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecView {
    /// Always `exec`.
    pub kind: String,
    /// Names it: milliseconds since 1970, or the next number that is free.
    pub exec: u64,
    /// Where it was run.
    pub generation: Generation,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Who asked: uid and process of the client, as the kernel names them.
    pub by: String,
    /// When. The line was on disk before it was started.
    pub started: String,
    /// When it ended; `None` while it runs.
    pub ended: Option<String>,
    /// Exit code, or 128 + signal.
    pub status: Option<i32>,
    /// Why it has no exit status although it does not run.
    pub failure: Option<String>,
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

/// RFC 9457 problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `about:blank`, or a URI reference naming the kind.
    pub r#type: String,
    /// Short and fixed per code.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened, what still runs, what to do.
    pub detail: String,
    /// Stable code.
    pub code: Code,
    /// Who holds updates back, where that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Box<HoldView>>,
    /// Milliseconds until the hold ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

impl Problem {
    /// A problem with `code`; the HTTP status follows from it.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let status = match code {
            Code::Invalid | Code::ReferenceInvalid => 400,
            Code::NotFound => 404,
            Code::OrderRefused => 403,
            Code::Busy | Code::Held | Code::Superseded | Code::NothingToRollBackTo | Code::BelowFloor => 409,
            Code::Stale => 412,
            Code::NoSpace => 507,
            Code::PolicyWider
            | Code::KnownBad
            | Code::SignatureRefused
            | Code::WrongPlatform
            | Code::PolicyUnmet
            | Code::KeyReused
            | Code::ProgramUnusable
            | Code::UserInvalid
            | Code::StateUnmountable
            | Code::ConfinementFailed => 422,
            Code::StoreUnusable | Code::Unsupported => 503,
            Code::RegistryUnreachable
            | Code::RegistryUnavailable
            | Code::Unauthorized
            | Code::ContentMismatch
            | Code::ManifestInvalid
            | Code::LayerInvalid => 502,
            _ => 500,
        };
        Self {
            r#type: "about:blank".to_owned(),
            title: code.as_str().replace('-', " "),
            status,
            detail: detail.into(),
            code,
            hold: None,
            ttl_ms: None,
        }
    }
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
