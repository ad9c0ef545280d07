//! Signed orders, as they are handed in and answered.
//!
//! In: a token of a client. Out: how it was taken. Must not: judge it: that is [`crate::order`].

use serde::{Deserialize, Serialize};

use crate::{ids::UpdateId, order::Operation};

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
