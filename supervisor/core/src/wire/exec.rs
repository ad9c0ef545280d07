//! Commands that are run in the workload's place: how they are asked for, and what the history keeps of them.
//!
//! In: a client's request. Out: serde types. Must not: hold input or output of a command.

use serde::{Deserialize, Serialize};

use crate::ids::Generation;

/// `POST /v1/exec`: upgrades the connection to a stream of frames, one byte of kind (0 stdin, 1 stdout, 2 stderr,
/// 3 window size as `ROWS COLS`, 4 exit status as decimal text, 5 signal as decimal text), four bytes of length, big
/// endian, at most 64 KiB, and the data. A stdin frame of length 0 closes standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecOptions {
    /// Program and arguments; looked up in the workload's `PATH` by the confined process.
    pub argv: Vec<String>,
    /// Added to the workload's environment, `NAME=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Give it a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Forward standard input.
    #[serde(default)]
    pub stdin: bool,
    /// Rows of the terminal.
    #[serde(default)]
    pub rows: u16,
    /// Columns of the terminal.
    #[serde(default)]
    pub cols: u16,
    /// Run it as root, in the workload's namespaces and root but outside of Landlock and seccomp; the history has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfined: bool,
}

/// `GET /v1/execs`, and a line of the history: a command that was run unconfined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecView {
    /// Always `exec`.
    pub kind: String,
    /// Names it: milliseconds since 1970, or the next number that is free.
    pub exec: u64,
    /// Where it was run.
    pub generation: Generation,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Who asked: uid and process of the client, as the kernel names them.
    pub by: String,
    /// When. The line was on disk before it was started.
    pub started: String,
    /// When it ended; `None` while it runs.
    pub ended: Option<String>,
    /// Exit code, or 128 + signal.
    pub status: Option<i32>,
    /// Why it has no exit status although it does not run.
    pub failure: Option<String>,
}
