//! Stable error codes: one closed list that serves the API (`code` of a problem document), events, metrics and exit
//! statuses.
//!
//! In: nothing. Out: [`Code`] and the exit status each maps to. Must not: carry text for people.

use serde::{Deserialize, Serialize};

/// Why something failed or was refused. The text form (`kebab-case`) is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Code {
    /// A document (spec, policy, request) is not valid.
    Invalid,
    /// The image reference cannot be parsed.
    ReferenceInvalid,
    /// The registry's host cannot be found or reached.
    RegistryUnreachable,
    /// The registry answered 5xx or 429 until the attempts ran out.
    RegistryUnavailable,
    /// The registry refused the credentials (401, 403).
    Unauthorized,
    /// No such tag, digest or blob (404).
    NotFound,
    /// Bytes do not match their digest, size or `diff_id`.
    ContentMismatch,
    /// A manifest, index or config is malformed, oversized or of a kind Molt does not take.
    ManifestInvalid,
    /// A layer is malformed or hostile.
    LayerInvalid,
    /// A confined process that decodes or unpacks a layer was killed, hung, or could not be confined.
    UnpackerFailed,
    /// The image is not for this platform.
    WrongPlatform,
    /// Not enough bytes or inodes in the store.
    NoSpace,
    /// The store cannot be used for this.
    StoreUnusable,
    /// The image's signature does not satisfy `verify`.
    SignatureRefused,
    /// The policy is wider than the one in force.
    PolicyWider,
    /// A path the policy needs is not there and the policy says `hard_requirement`.
    PolicyUnmet,
    /// The digest failed before and has not been cleared.
    KnownBad,
    /// Nothing to go back to.
    NothingToRollBackTo,
    /// The generation is below the rollback floor.
    BelowFloor,
    /// A signed order is not valid, not for this sandbox, not its key's to give, or came before.
    OrderRefused,
    /// The program of the image is missing or cannot be executed.
    ProgramUnusable,
    /// The user or group of the image cannot be resolved, or is not allowed.
    UserInvalid,
    /// A state path cannot be mounted in the new root.
    StateUnmountable,
    /// The generation could not be confined as asked.
    ConfinementFailed,
    /// A preStage or preStop hook failed.
    HookFailed,
    /// The old workload could not be stopped.
    QuiesceFailed,
    /// The new workload exited during its trial.
    ExitedInTrial,
    /// The new workload did not become ready in time, or a probe failed.
    Unhealthy,
    /// The program could not be executed after the gate.
    ExecFailed,
    /// Superseded by a newer intent or cancelled.
    Superseded,
    /// An update is held.
    Held,
    /// Another change is under way and cannot be superseded any more.
    Busy,
    /// `If-Match`: something was asked for since, or something else runs.
    Stale,
    /// The `Idempotency-Key` came with another request before.
    KeyReused,
    /// The kernel or the container does not give what is needed.
    Unsupported,
    /// A deadline passed.
    DeadlineExceeded,
    /// Rejected by the operator.
    Rejected,
    /// Molt itself was killed or stopped meanwhile, which says nothing about the image.
    Interrupted,
    /// A bug or an unexpected kernel answer.
    Internal,
}

impl Code {
    /// The stable text, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::ReferenceInvalid => "reference-invalid",
            Self::RegistryUnreachable => "registry-unreachable",
            Self::RegistryUnavailable => "registry-unavailable",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not-found",
            Self::ContentMismatch => "content-mismatch",
            Self::ManifestInvalid => "manifest-invalid",
            Self::LayerInvalid => "layer-invalid",
            Self::UnpackerFailed => "unpacker-failed",
            Self::WrongPlatform => "wrong-platform",
            Self::NoSpace => "no-space",
            Self::StoreUnusable => "store-unusable",
            Self::SignatureRefused => "signature-refused",
            Self::PolicyWider => "policy-wider",
            Self::PolicyUnmet => "policy-unmet",
            Self::KnownBad => "known-bad",
            Self::NothingToRollBackTo => "nothing-to-roll-back-to",
            Self::BelowFloor => "below-floor",
            Self::OrderRefused => "order-refused",
            Self::ProgramUnusable => "program-unusable",
            Self::UserInvalid => "user-invalid",
            Self::StateUnmountable => "state-unmountable",
            Self::ConfinementFailed => "confinement-failed",
            Self::HookFailed => "hook-failed",
            Self::QuiesceFailed => "quiesce-failed",
            Self::ExitedInTrial => "exited-in-trial",
            Self::Unhealthy => "unhealthy",
            Self::ExecFailed => "exec-failed",
            Self::Superseded => "superseded",
            Self::Held => "held",
            Self::Busy => "busy",
            Self::Stale => "stale",
            Self::KeyReused => "key-reused",
            Self::Unsupported => "unsupported",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::Rejected => "rejected",
            Self::Interrupted => "interrupted",
            Self::Internal => "internal",
        }
    }

    /// Whether a failure with this code is remembered against the image's digest: only what the program itself did once
    /// its gate was open. Registry, disk, spec and operator reasons never count against an image.
    pub fn blames_image(self) -> bool {
        matches!(self, Self::ExitedInTrial | Self::Unhealthy | Self::ExecFailed)
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
