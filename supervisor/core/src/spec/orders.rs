//! Signed orders: `orders`.
//!
//! In: fields of the spec. Out: the same, with defaults. Must not: read the key files it names.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DEFAULT_NAME, Span, check::path_fault};
use crate::order::Operation;

/// Who may send signed orders, whatever channel they come by. Default: nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Orders {
    /// What an order's `aud` must be. Default: `molt:` and the sandbox's name.
    pub audience: Option<String>,
    /// Longest time from an order's `iat` to its `exp`, at most 24h. Default: 10m.
    pub max_lifetime: Span,
    /// The keys, at most 8.
    #[schemars(length(max = 8))]
    pub keys: Vec<OrderKey>,
}

impl Default for Orders {
    fn default() -> Self {
        Self { audience: None, max_lifetime: Span::from_secs(600), keys: Vec::new() }
    }
}

/// A public key that signs orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OrderKey {
    /// Names it in a token's `kid`: 1 to 32 of `A-Z a-z 0-9 . _ -`.
    pub id: String,
    /// The one algorithm it is for.
    pub algorithm: Algorithm,
    /// The key itself: PEM (`PUBLIC KEY`) or a JWK. Either this or `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Absolute path of a file with the key, read again for each order. Molt's own: never shown to the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What it may order.
    pub operations: Vec<Operation>,
    /// Its updates may bring another policy, and a wider one. Default: false.
    #[serde(default)]
    pub policy: bool,
    /// Its rollbacks may go below the rollback floor, for an emergency. Default: false.
    #[serde(default)]
    pub downgrade: bool,
}

/// A signature algorithm, by its name in a token's `alg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// Ed25519.
    EdDSA,
    /// ECDSA on P-256 with SHA-256.
    ES256,
}

impl Algorithm {
    /// The text, as in a token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EdDSA => "EdDSA",
            Self::ES256 => "ES256",
        }
    }
}

impl Orders {
    /// What an order's `aud` must be in a sandbox of this name.
    pub fn audience_of(&self, name: &str) -> String {
        self.audience.clone().unwrap_or_else(|| format!("molt:{name}"))
    }

    /// What the owner of a sandbox of this name should know: that its audience is that of every sandbox without a name.
    pub fn shared_audience(&self, name: &str) -> Option<String> {
        let shared = !self.keys.is_empty() && self.audience.is_none() && name == DEFAULT_NAME;
        shared.then(|| {
            format!(
                "orders for this sandbox are for '{}', as for every one without a name: one that is signed for another \
                 sandbox with the same key is taken here too; give it metadata.name, --name or orders.audience",
                self.audience_of(name)
            )
        })
    }
}

/// Longest `maxLifetime`.
const LONGEST_MS: u64 = 24 * 3_600_000;

/// The faults of the section: path and message of each.
pub(super) fn faults(orders: &Orders) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut add = |at: String, message: &str| found.push((at, message.to_owned()));
    let longest = orders.max_lifetime.as_millis();
    if !(1000..=LONGEST_MS).contains(&longest) {
        add("spec.orders.maxLifetime".into(), "must be from 1s to 24h");
    }
    if let Some(audience) = &orders.audience
        && (audience.is_empty() || audience.len() > 253 || !audience.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        add("spec.orders.audience".into(), "must be 1 to 253 printable ASCII characters without spaces");
    }
    if orders.keys.len() > crate::order::MAX_KEYS {
        add("spec.orders.keys".into(), "must be at most 8");
    }
    for (index, key) in orders.keys.iter().enumerate() {
        let at = |field: &str| format!("spec.orders.keys[{index}].{field}");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !(1..=32).contains(&key.id.len()) || !key.id.bytes().all(plain) {
            add(at("id"), "must be 1 to 32 letters, digits, '.', '_' or '-'");
        }
        if orders.keys.iter().take(index).any(|other| other.id == key.id) {
            add(at("id"), "is the id of another key, too");
        }
        match (&key.key, &key.file) {
            (Some(_), Some(_)) => add(at("file"), "key and file exclude each other"),
            (None, None) => add(at("key"), "is missing: give the key here, or name its file"),
            (None, Some(file)) => {
                if let Some(fault) = path_fault(file) {
                    add(at("file"), &fault);
                }
            }
            (Some(_), None) => {}
        }
        if key.operations.is_empty() {
            add(at("operations"), "is empty: a key that may order nothing is of no use");
        }
        if key.policy && !key.operations.contains(&Operation::Update) {
            add(at("policy"), "means nothing without update among the operations");
        }
        if key.downgrade && !key.operations.contains(&Operation::Rollback) {
            add(at("downgrade"), "means nothing without rollback among the operations");
        }
    }
    found
}
