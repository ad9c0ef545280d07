//! How updates are done and where images come from: `update`, `registries`, `api`, `policy`.
//!
//! In: fields of the spec. Out: the same, with defaults. Must not: read the files it names.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Bytes, Span, document::Node};
use crate::ids::ImageRef;

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
    /// A socket for the workload itself. Default: none.
    pub workload: Option<Own>,
    /// A TLS listener for others. Default: none.
    pub listen: Option<Listen>,
}

/// A TLS listener: TLS 1.3, a client certificate of one authority, a name of it that is listed. All paths are the
/// supervisor's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Listen {
    /// Address and port.
    pub address: String,
    /// PEM file with the certificate chain.
    pub certificate: String,
    /// PEM file with the private key.
    pub key: String,
    /// PEM file with the authorities whose client certificates are taken.
    pub client_ca: String,
    /// Who may ask for what.
    pub allow: Vec<Allow>,
}

/// A name of a client certificate, and what it may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Allow {
    /// A DNS name or URI among the certificate's subject alternative names, exactly.
    pub san: String,
    /// What it may ask for.
    pub role: Role,
    /// Its updates may ask for a wider policy. Default: false.
    #[serde(default)]
    pub allow_wider: bool,
}

/// What somebody may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// To look: status, events, generations, metrics.
    Read,
    /// And to change: updates, rollback, apply, confirm, reject, cancel, hold.
    Update,
}

impl Default for Api {
    fn default() -> Self {
        Self { socket: "/run/molt/molt.sock".to_owned(), workload: None, listen: None }
    }
}

/// What the workload may ask for of itself, at `/run/molt/workload.sock`; its own status always.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Own {
    /// How long it may hold updates back, renewals included; as long again must pass before it may do so anew. Default:
    /// 0s, never.
    pub hold: Span,
    /// It may confirm or reject its own trial. Default: false.
    pub trial: bool,
    /// It may ask for an update of itself. Default: none.
    pub update: Option<OwnUpdate>,
}

/// Which updates the workload may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OwnUpdate {
    /// Patterns of which the whole reference must match one; `*` stands for any characters but `/`.
    pub images: Vec<String>,
    /// The reference must have a digest. Default: true.
    #[serde(default = "yes")]
    pub digest: bool,
    /// Least time from one request to the next. Default: 10m.
    #[serde(default = "ten_minutes")]
    pub every: Span,
}

fn yes() -> bool {
    true
}

fn ten_minutes() -> Span {
    Span::from_secs(600)
}

impl OwnUpdate {
    /// Why the workload may not ask for `image`; none where it may.
    pub fn refuses(&self, image: &ImageRef) -> Option<&'static str> {
        let text = image.to_string();
        if !self.images.iter().any(|pattern| matches(pattern, &text)) {
            return Some("the spec does not let the workload ask for this image");
        }
        let pinned = matches!(image, ImageRef::Registry { digest: Some(_), .. });
        (self.digest && !pinned).then_some("the spec wants the image named by digest")
    }
}

/// Whether the whole of `text` matches; `*` is any run of characters without a `/`.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if text.get(from) == Some(byte) => {
                at += 1;
                from += 1;
            }
            _ => match star {
                // The last star takes one character more.
                Some((place, taken)) if text.get(taken) != Some(&b'/') => {
                    star = Some((place, taken + 1));
                    at = place + 1;
                    from = taken + 1;
                }
                _ => return false,
            },
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

/// What makes the supervisor read the spec again while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Watch {
    /// SIGHUP to PID 1 has the spec read again. Default: true. With false it is passed on to the workload, as other
    /// signals are; so it is where there is no spec file.
    pub hangup: bool,
    /// The spec file and the policy file are read again when they change. Default: false.
    pub files: bool,
    /// A file of Kubernetes annotations, read at start and again when it changes. Default: none.
    pub annotations: Option<Annotations>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { hangup: true, files: false, annotations: None }
    }
}

/// A downward API file with `metadata.annotations`: a line each, `key="escaped value"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Annotations {
    /// Absolute path of the file.
    pub file: String,
    /// The annotation that names the image, in place of the spec's. Default: `molt.dev/image`.
    #[serde(default = "Annotations::image")]
    pub image: String,
    /// The annotation that holds the policy as text, in place of the spec's. Default: `molt.dev/policy`.
    #[serde(default = "Annotations::policy")]
    pub policy: String,
}

impl Annotations {
    fn image() -> String {
        "molt.dev/image".to_owned()
    }

    fn policy() -> String {
        "molt.dev/policy".to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_the_whole_reference_and_no_other_repository() {
        let rule = |pattern: &str, digest| OwnUpdate { images: vec![pattern.into()], digest, every: ten_minutes() };
        let hex = "a".repeat(64);
        let may = |pattern: &str, image: &str| rule(pattern, false).refuses(&image.parse().unwrap()).is_none();
        assert!(may("registry.example.com/acme/daemon:*", "registry.example.com/acme/daemon:1.5"));
        assert!(may("registry.example.com/acme/*:1.*", "registry.example.com/acme/other:1.5"));
        assert!(may("registry.example.com/acme/daemon:1.5", "registry.example.com/acme/daemon:1.5"));
        for wrong in [
            "registry.example.com/acme/daemon/evil:1.5",
            "registry.example.com/acme/daemonevil:1.5",
            "registry.example.com/evil/acme/daemon:1.5",
            "evil.example.com/acme/daemon:1.5",
            "oci:/sandbox/state/evil",
        ] {
            assert!(!may("registry.example.com/acme/daemon:*", wrong), "{wrong}");
            assert!(!may("*", wrong), "{wrong}");
        }
        let by_digest = format!("registry.example.com/acme/daemon@sha256:{hex}");
        assert!(rule("registry.example.com/acme/daemon@*", true).refuses(&by_digest.parse().unwrap()).is_none());
        let by_tag = "registry.example.com/acme/daemon:1.5".parse().unwrap();
        assert!(rule("registry.example.com/acme/daemon*", true).refuses(&by_tag).is_some());
    }
}
