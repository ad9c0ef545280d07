//! The history: lines that are no updates, and whether the chain of all of them is whole.
//!
//! In: what was asked for or refused. Out: lines. Must not: hold anything secret.

use serde::{Deserialize, Serialize};

use crate::ids::UpdateId;

/// A line of the history that is neither an update nor a command: what was asked for, what was refused, what else a person
/// who looks back wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditView {
    /// `request`, `order`, `refusal`, `policy` or `repair`.
    pub kind: String,
    /// When.
    pub time: String,
    /// Who: uid and process, name in a certificate, id of a key, file, or gateway.
    pub by: String,
    /// What: `hold`, `confirm`, `connect`, `POST /v1/updates`, ...
    pub what: String,
    /// `done` or `refused`.
    pub outcome: String,
    /// Why it was refused, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The update it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdateId>,
    /// More, for people; at most 512 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How many of the same this line stands for, where more came than were written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// `GET /v1/history/verify`: whether the lines of the history are all there and as they were written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryCheck {
    /// Nothing is broken.
    pub ok: bool,
    /// Lines that are there.
    pub lines: u64,
    /// Of which so many are without a chain: from before there was one, or an older Molt's.
    pub unchained: u64,
    /// `seq` of the oldest line of the chain.
    pub first: Option<u64>,
    /// `seq` of the newest.
    pub last: Option<u64>,
    /// SHA-256 of the newest line. Who noted it elsewhere sees whether lines after it were taken away.
    pub head: Option<String>,
    /// Where it is broken; at most 16.
    pub breaks: Vec<HistoryBreak>,
}

/// A place where the chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryBreak {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// What is wrong there.
    pub why: String,
}
