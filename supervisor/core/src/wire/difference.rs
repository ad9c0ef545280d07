//! What is different between two generations.
//!
//! In: two generations, compared elsewhere. Out: fields and lines. Must not: hold values of variables.

use serde::{Deserialize, Serialize};

use crate::ids::Generation;

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
