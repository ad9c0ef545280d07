//! What the supervisor and the shim say to each other: the launch document, the report, and the closed set of messages.
//!
//! In: a plan, lowered. Out: data both sides read. Must not: hold a descriptor or a path of PID 1's root; descriptors
//! travel beside these documents and are named by their position (see [`Fds`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of everything in this file. The shim is embedded in the supervisor, so the two never differ in the field;
/// the check guards a mixed build.
pub const VERSION: u32 = 1;

/// Everything a generation's init needs to enter its root, confine itself and run the workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// [`VERSION`].
    pub version: u32,
    /// The program: an absolute in-root path, or a bare name that the confined init looks up in the `PATH` of `env`.
    pub program: String,
    /// `argv`, the name first.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Absolute in-root working directory.
    pub cwd: String,
    /// UTS host name; kept as it is when empty.
    pub hostname: String,
    /// Who the workload is.
    pub identity: Identity,
    /// What it may do.
    pub confinement: Confinement,
    /// Resource limits.
    pub limits: Limits,
    /// Mounts PID 1 could not attach to the detached root (before Linux 6.15): position after [`Fds::LATE`] -> in-root
    /// target.
    pub late_mounts: Vec<LateMount>,
    /// How `/proc` is provided.
    pub proc: ProcMode,
    /// A notify socket travels along and is bound at `/run/molt/notify`.
    pub notify: bool,
    /// The workload's own socket travels along and is bound at `/run/molt/workload.sock`.
    pub door: bool,
    /// Give the workload a controlling terminal (its standard streams are one).
    pub tty: bool,
    /// Signal that the kernel would send by PDEATHSIG is always KILL; this is the workload's `oom_score_adj`.
    pub oom_score_adj: i32,
}

/// A mount the init attaches itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LateMount {
    /// Absolute in-root path.
    pub target: String,
}

/// How `/proc` is provided in the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ProcMode {
    /// A new procfs of the generation's PID namespace.
    Fresh,
    /// A clone of PID 1's, read-only: where the kernel refuses a new one. Weaker, and reported as degraded.
    Carried,
}

/// User, groups and how they are assumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Identity {
    /// User id inside the generation. 0 only where the spec allows root.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, exactly.
    pub groups: Vec<u32>,
    /// The ids are not mapped in PID 1's user namespace: a nested user namespace maps `uid` to PID 1's own user.
    pub nested: bool,
}

/// The lowered policy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Confinement {
    /// Landlock domain; none only for `policy: unconfined`.
    pub landlock: Option<Landlock>,
    /// Seccomp programs, loaded in order; each instruction is `code << 48 | jt << 40 | jf << 32 | k`.
    pub seccomp: Vec<Vec<u64>>,
    /// What the programs are.
    pub profile: SeccompProfile,
}

/// Which system calls a workload gets, from most to fewest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SeccompProfile {
    /// All: `policy: unconfined`.
    #[default]
    None,
    /// All but those that no workload needs.
    Floor,
    /// Those of the floor that are also in the list of calls programs are known to need.
    Strict,
}

/// A Landlock ruleset before its paths are opened.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Landlock {
    /// `hard_requirement`: every right below must be enforced and every path must exist.
    pub hard: bool,
    /// Lowest kernel ABI that is accepted at all; 0 takes a kernel without Landlock.
    pub min_abi: u32,
    /// ABI of the kernel as the supervisor sees it; rights of a later one are not used.
    pub abi: u32,
    /// Path rules.
    pub paths: Vec<PathRule>,
    /// TCP ports; `None` where the policy says nothing about the network, which then is not handled.
    pub tcp: Option<TcpPorts>,
}

/// One path rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PathRule {
    /// Absolute in-root path; opened in the new root, after all mounts.
    pub path: String,
    /// What is granted below it.
    pub access: Access,
    /// Whether the owner of the policy wrote it (then `hard` applies) or Molt added it (`/dev/null` and friends).
    pub derived: bool,
}

/// What a path rule grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// Execute, read file, read directory.
    ReadOnly,
    /// Every file right the kernel knows.
    ReadWrite,
}

/// TCP ports the workload may bind and connect to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TcpPorts {
    /// Ports it may bind; `None` leaves bind unhandled.
    pub bind: Option<Vec<u16>>,
    /// Ports it may connect to; `None` leaves connect unhandled.
    pub connect: Option<Vec<u16>>,
}

/// Resource limits set before the ids change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// `RLIMIT_NOFILE`, soft and hard; kept where `None`.
    pub nofile: Option<u64>,
    /// `RLIMIT_NPROC`; kept where `None`.
    pub nproc: Option<u64>,
    /// `RLIMIT_CORE`.
    pub core: u64,
}

/// What is in force, as read back in the confined process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Report {
    /// Landlock ABI of the kernel; 0 where there is none.
    pub landlock_abi: u32,
    /// Landlock file rights handled (bit mask of the kernel ABI); 0 where no domain was entered.
    pub handled_fs: u64,
    /// Landlock network rights handled.
    pub handled_net: u64,
    /// Landlock scopes (1 abstract unix sockets, 2 signals).
    pub scoped: u64,
    /// Path rules as they were really added.
    pub rules: Vec<AppliedRule>,
    /// Policy paths that do not exist in this root.
    pub missing: Vec<String>,
    /// `NoNewPrivs` of `/proc/self/status`.
    pub no_new_privs: bool,
    /// `Seccomp` of `/proc/self/status`: 2 is filter.
    pub seccomp_mode: u32,
    /// Seccomp programs loaded.
    pub seccomp_filters: u32,
    /// The union of all five capability sets; 0 when confined.
    pub capabilities: u64,
    /// Real, effective, saved and file-system user id, all equal.
    pub uid: u32,
    /// The same for the group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// What was asked for and is not in force, in words for people; empty when nothing was lost.
    pub degraded: Vec<String>,
}

/// A path rule as added to the ruleset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AppliedRule {
    /// As the policy names it.
    pub path: String,
    /// Where it led, in the new root.
    pub resolved: String,
    /// Landlock rights, masked for the kind of file.
    pub rights: u64,
}

/// From the supervisor to a generation's init, one SEQPACKET datagram each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToShim {
    /// Send this signal to the workload's main process.
    Signal(i32),
    /// The same, to stop it: when it has ended nobody is asked whether another process takes its place.
    Stop(i32),
    /// Another process of the generation is the main process from now on; its number in the generation's PID namespace.
    Main(u32),
    /// The answer to [`FromShim::Left`] where nobody takes its place.
    End,
    /// Fork a process in the same confinement; its standard streams are the three descriptors sent along.
    Exec(ExecRequest),
    /// Signal an exec'd process.
    SignalExec {
        /// The request's id.
        id: u32,
        /// Signal number.
        signal: i32,
    },
    /// Kill everything and exit.
    Kill,
}

/// A process that joins a running generation's namespaces and root, and not its confinement: `molt exec --unconfined`. With
/// it travel, in this order: this document in a sealed memfd, [`NAMESPACES`], standard input, output and error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unconfined {
    /// [`VERSION`].
    pub version: u32,
    /// `argv`; the program is looked up in the `PATH` of `env`, inside the root, by the process itself.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Make the first stream the controlling terminal.
    pub tty: bool,
    /// As the workload's.
    pub oom_score_adj: i32,
}

/// Namespaces of a generation, as files of `/proc/PID/ns`, in the order in which their descriptors travel.
pub const NAMESPACES: [&str; 4] = ["mnt", "pid", "ipc", "uts"];

/// A process to run inside a running generation: a probe, a hook, or `molt exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Chosen by the supervisor.
    pub id: u32,
    /// `argv`; the program is looked up in the workload's `PATH`, inside the root, by the confined process.
    pub argv: Vec<String>,
    /// Added to the workload's environment.
    pub env: BTreeMap<String, String>,
    /// Make the first descriptor the controlling terminal.
    pub tty: bool,
}

/// From a generation's init to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromShim {
    /// The launcher forked the init: its pidfd comes along. The launcher exits now.
    Forked,
    /// Confined, the child waits at the gate. Descriptors of the generation's [`NAMESPACES`] come along.
    Armed(Box<Report>),
    /// A process of [`Unconfined`] was forked: its pidfd comes along. It starts when it gets a datagram; whoever forked
    /// it exits now.
    Entered {
        /// Its number in PID 1's PID namespace.
        pid: i32,
    },
    /// A step failed; nothing was run. The init exits.
    Failed(Failure),
    /// The main process ended, and was not told to: [`ToShim::Main`] or [`ToShim::End`] is waited for.
    Left,
    /// The workload's main process ended.
    Exited {
        /// Exit code, or 128 + signal.
        status: i32,
        /// CLOCK_MONOTONIC when wait returned, nanoseconds.
        at: u64,
    },
    /// A process of [`ToShim::Exec`] ended, or could not be started (126, 127).
    ExecExited {
        /// The request's id.
        id: u32,
        /// Exit code, or 128 + signal.
        status: i32,
    },
}

/// A step of the shim that failed, named so that a log line says where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Name of the step, for example `pivot_root`.
    pub step: String,
    /// What it was about: a path, a number.
    pub detail: String,
    /// Error number; 0 where the kernel was not asked.
    pub errno: i32,
    /// Whether the policy (not the kernel) makes it fatal: a path `hard_requirement` needs is missing.
    pub policy: bool,
}

/// Order of the descriptors that travel with a launch document, by SCM_RIGHTS.
#[derive(Debug, Clone, Copy)]
pub struct Fds;

impl Fds {
    /// Sealed memfd holding the JSON of [`Launch`].
    pub const SPEC: usize = 0;
    /// The detached root mount.
    pub const ROOT: usize = 1;
    /// Standard input of the workload.
    pub const STDIN: usize = 2;
    /// Standard output.
    pub const STDOUT: usize = 3;
    /// Standard error.
    pub const STDERR: usize = 4;
    /// Read end of the gate: one byte opens it, end of file aborts.
    pub const GATE: usize = 5;
    /// Write end of the exec pipe: CLOEXEC; end of file says exec happened, four bytes of errno that it failed.
    pub const EXEC: usize = 6;
    /// From here: the notify socket where [`Launch::notify`], the workload's where [`Launch::door`], the late mounts, and last, where [`ProcMode::Carried`],
    /// the clone of `/proc`.
    pub const LATE: usize = 7;
    /// Most descriptors one message carries (kernel: SCM_MAX_FD is 253).
    pub const MAX: usize = 128;
}
