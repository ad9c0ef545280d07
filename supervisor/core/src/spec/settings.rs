//! How updates are done and where images come from: `update`, `registries`, `api`, `policy`.
//!
//! In: fields of the spec. Out: the same, with defaults. Must not: read the files it names.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Bytes, Span, document::Node};

/// How updates are done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Update {
    /// Go back by itself when the new generation fails its probes. Default: true. With false it stays on trial until
    /// `molt confirm` or `molt reject`; one that exits is rolled back all the same, as nothing would be left running.
    pub auto_rollback: bool,
    /// Generations kept on disk, the confirmed and the previous one among them, so that a rollback needs no network.
    /// Default: 3.
    #[schemars(range(min = 1, max = 100))]
    pub keep: u32,
    /// Who confirms. Default: auto.
    pub confirm: Confirm,
    /// With `confirm: external`: without a word until then, the old generation comes back. Default: 10m.
    pub confirm_deadline: Span,
    /// Layers fetched at the same time. Default: 3.
    #[schemars(range(min = 1, max = 16))]
    pub parallel: u32,
    /// Bytes of the store that stay free, whatever is fetched. Default: 256MiB.
    pub reserve: Bytes,
    /// From the start of an update to the last layer unpacked; as long again for the generation to be on disk. Default:
    /// 30m.
    pub pull_deadline: Span,
    /// Take a policy that is wider than the one in force without asking. Default: false.
    pub allow_wider: bool,
}

impl Default for Update {
    fn default() -> Self {
        Self {
            auto_rollback: true,
            keep: 3,
            confirm: Confirm::Auto,
            confirm_deadline: Span::from_secs(600),
            parallel: 3,
            reserve: Bytes::from_mib(256),
            pull_deadline: Span::from_secs(1800),
            allow_wider: false,
        }
    }
}

/// Who confirms a generation that passed its trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Confirm {
    /// The supervisor, once the monitor time is over.
    #[default]
    Auto,
    /// Somebody else, by `molt confirm` or the API, before the confirm deadline.
    External,
}

/// Where images come from. All paths are the supervisor's own, never an image's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Registries {
    /// By registry host: hosts asked before it, in this order. What they serve is checked by digest all the same.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// A `config.json` as `docker login` writes it. Default: none, everything is fetched as a guest.
    pub credentials: Option<String>,
    /// A file or folder of PEM certificates, trusted beside the built-in roots. Default: none.
    pub certificates: Option<String>,
    /// Hosts, with their port, that are spoken to without TLS. Default: none.
    pub insecure: Vec<String>,
}

/// The operator's socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Api {
    /// Absolute path, at most 107 bytes, for root only. Default: `/run/molt/molt.sock`.
    pub socket: String,
}

impl Default for Api {
    fn default() -> Self {
        Self { socket: "/run/molt/molt.sock".to_owned() }
    }
}

/// The policy as the spec holds it.
#[derive(Debug, Clone, PartialEq)]
pub enum PolicySource {
    /// `unconfined`, spelled out: no Landlock, no seccomp; shows as degraded.
    Unconfined,
    /// The policy itself, not yet checked; `molt-policy` does that.
    Inline(serde_json::Map<String, serde_json::Value>),
}

const UNCONFINED: &str = "unconfined";
const POLICY_FORMS: &str = "must be a policy, or the word 'unconfined'; a file is named by policyFile";

/// The check of the schema name `PolicySource`.
pub(super) fn policy_form(node: &Node) -> Result<(), String> {
    match node.to_json() {
        serde_json::Value::Object(_) => Ok(()),
        serde_json::Value::String(word) if word == UNCONFINED => Ok(()),
        _ => Err(POLICY_FORMS.to_owned()),
    }
}

impl Serialize for PolicySource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unconfined => serializer.serialize_str(UNCONFINED),
            Self::Inline(policy) => policy.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PolicySource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Object(policy) => Ok(Self::Inline(policy)),
            serde_json::Value::String(word) if word == UNCONFINED => Ok(Self::Unconfined),
            _ => Err(de::Error::custom(POLICY_FORMS)),
        }
    }
}

impl JsonSchema for PolicySource {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PolicySource".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "An OpenShell policy, or the word `unconfined`.",
            "anyOf": [{"const": UNCONFINED}, {"type": "object"}]
        })
    }
}
