//! What suites and `molt-tracer` say to each other: one JSON document a line, one answer an order.
//!
//! In: nothing. Out: types. Must not: do anything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a process is to the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// What is PID 1 before it becomes `molt`: the bed's own scripts.
    Outside,
    /// `molt init`, all its threads, and what it forks until that execs.
    Supervisor,
    /// The shim from its exec to the fork of the init.
    Launcher,
    /// The init of a generation.
    Init,
    /// The child of the init that waits at the gate and execs the workload.
    Gate,
}

impl Role {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Supervisor => "supervisor",
            Self::Launcher => "launcher",
            Self::Init => "init",
            Self::Gate => "gate",
        }
    }
}

/// One error to inject: the call is not made, and returns the error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Whose call.
    pub role: Role,
    /// Which, as [`super::calls::name`] has it.
    pub call: String,
    /// Which occurrence in that role, from 1.
    pub occurrence: u32,
    /// What it returns.
    pub errno: i32,
}

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// Follow the next shim that is started, from its exec to that of its workload, and inject `fault`.
    Watch {
        /// The fault, if any.
        fault: Option<Fault>,
    },
    /// Say what was seen of the watched shims since the last such order.
    Report,
    /// Number calls from now on, those made before forgotten.
    Count {
        /// Which.
        which: Which,
        /// What happens at one of them.
        strike: Option<Strike>,
    },
    /// Say what was counted.
    Counted,
    /// Say how much was counted.
    Progress,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Step {
    /// Whose.
    pub role: Role,
    /// Which.
    pub call: String,
    /// Which occurrence in that role, from 1; 0 where it is not counted.
    pub occurrence: u32,
}

/// What was seen of one shim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its calls, in order of entry.
    pub steps: Vec<Step>,
    /// Whether the fault was injected.
    pub injected: bool,
    /// What confines the workload, looked up after its exec and before its first instruction; none if it never ran.
    pub workload: Option<BTreeMap<String, String>>,
}

/// Which calls are numbered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Which {
    /// Those that change something.
    #[default]
    Changing,
    /// Those, and those that open, look up or read files and make descriptors.
    Failing,
}

/// What happens at a numbered call. In no case is the call made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Blow {
    /// Everything is killed.
    Kill,
    /// Everything that is traced stands still, until the tracer ends and takes it along.
    Halt,
    /// It returns this error, once.
    Fail(i32),
}

/// A blow at a numbered call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Strike {
    /// Its number, from 1.
    pub at: u64,
    /// What happens.
    pub blow: Blow,
}

/// A call that was counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Whose, which, and what kind of thing it is about.
    pub call: String,
    /// The file its first argument is, for calls on descriptors; else nothing.
    pub file: String,
}

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Numbered calls, in order of entry.
    pub calls: Vec<Made>,
    /// The one that was struck.
    pub struck: Option<Made>,
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Done.
    Done,
    /// To [`Order::Report`].
    Seen(Vec<Seen>),
    /// To [`Order::Counted`].
    Counted(Counted),
    /// To [`Order::Progress`]: how many calls, and whether one was struck.
    Progress(usize, bool),
    /// The tracer can do no more.
    Failed(String),
}
