//! What makes a generation: the record written once, when it is staged, as `generations/N/generation.json`.
//!
//! In: a resolved image, a policy, settings. Out: a document with a version of its own. Must not: change after staging.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DiffId, Digest, Generation, ImageRef},
    wire::GenerationView,
};

/// Version of `generation.json`. Readers refuse a newer one and ignore fields they do not know.
pub const VERSION: u32 = 1;

/// A staged generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Its number.
    pub generation: Generation,
    /// The reference it was asked for by; `None` for the container's own root.
    pub image: Option<ImageRef>,
    /// Digest of the platform manifest.
    pub digest: Option<Digest>,
    /// Unpacked layers, top first: the names of their folders in the store.
    pub layers: Vec<LayerName>,
    /// Digest of the policy in `policy.yaml` beside this file.
    pub policy_digest: Digest,
    /// Digest of everything else that decides how the program is started.
    pub settings_digest: Digest,
    /// What to start.
    pub program: Program,
    /// RFC 3339.
    pub since: String,
}

/// A layer's folder below `layers/sha256/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerName {
    /// Digest of the layer's tar stream.
    pub diff_id: DiffId,
    /// Folder name: the hex of the diff id, that of the blob's digest, and a third where the layer's form depends on those
    /// below it.
    pub folder: String,
}

/// Image config and spec, merged: what to start.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    /// `argv`, program first, as written (resolved when armed).
    pub argv: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: String,
    /// `USER[:GROUP]`, names or numbers; empty for the default chain.
    pub user: String,
    /// Signal that asks it to stop.
    pub stop_signal: i32,
}

// Values are often secrets: they stay out of logs.
impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.env.keys().collect();
        let Self { argv, cwd, user, .. } = self;
        write!(f, "Program {{ argv: {argv:?}, env: {names:?}, cwd: {cwd:?}, user: {user:?} }}")
    }
}

impl Record {
    /// As shown in status.
    pub fn view(&self) -> GenerationView {
        GenerationView {
            generation: self.generation,
            image: self.image.clone(),
            digest: self.digest,
            policy_digest: self.policy_digest,
            since: self.since.clone(),
        }
    }

    /// Whether two generations would run the same thing in the same way.
    pub fn same_triple(&self, digest: Option<Digest>, policy: Digest, settings: Digest) -> bool {
        self.digest == digest && self.policy_digest == policy && self.settings_digest == settings
    }
}
