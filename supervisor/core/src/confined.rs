//! What confined a run: kept as `generations/N/confinement.json`, so that a new generation can be compared with it also
//! where nothing runs at the moment.
//!
//! In: what was asked of the shim, and its report. Out: a document with a version of its own. Must not: hold a secret, or
//! the seccomp programs (their profile names them).

use serde::{Deserialize, Serialize};

use crate::launch::{Confinement, Limits, Report};

/// Version of `confinement.json`. Readers take a newer one as if there were none.
pub const VERSION: u32 = 1;

/// Everything that bounds a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    /// [`VERSION`].
    pub version: u32,
    /// What was asked for, without programs.
    pub confinement: Confinement,
    /// What the confined process read back.
    pub report: Report,
    /// Resource limits.
    pub limits: Limits,
    /// Mounts of the container that the run saw.
    pub mounts: Vec<Shown>,
}

/// A mount of the container, as a generation sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Where.
    pub path: String,
    /// How.
    pub mode: MountMode,
}

/// What a mount allows, whatever Landlock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MountMode {
    /// Reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

impl InForce {
    /// From what was asked and what was reported.
    pub fn new(asked: &Confinement, report: Report, limits: Limits, mounts: Vec<Shown>) -> Self {
        let confinement = Confinement { seccomp: Vec::new(), ..asked.clone() };
        Self { version: VERSION, confinement, report, limits, mounts }
    }
}
