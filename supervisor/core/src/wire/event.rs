//! Events of `GET /v1/events`.
//!
//! In: what happens. Out: numbered events. Must not: hold anything secret.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Digest, Generation, UpdateId},
    wire::{PhaseName, UpdateView},
};

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
