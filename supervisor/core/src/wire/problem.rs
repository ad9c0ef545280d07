//! Errors: RFC 9457 problem documents with stable codes.
//!
//! In: a code and a text. Out: the document and its HTTP status. Must not: tell what the asker may not know.

use serde::{Deserialize, Serialize};

use crate::{code::Code, wire::HoldView};

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
