//! What runs and how: `workload`, `mounts`, `hooks`.
//!
//! In: fields of the spec. Out: the same, with defaults. Must not: know the image; what is not given here comes from
//! the image's own configuration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Signal, Span, UserRef};
use crate::launch::SeccompProfile;

/// The program. What is given here holds for every generation; what is not comes from each image's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Workload {
    /// Replaces the image's entrypoint; then the image's own arguments are not used either. Default: the image's.
    pub command: Vec<String>,
    /// Replaces the image's arguments (`Cmd`). Default: the image's.
    pub args: Vec<String>,
    /// Added to the image's environment, in this order; a name that is there already is replaced.
    pub env: Vec<EnvVar>,
    /// Absolute path in the image. Default: the image's, else `/`.
    pub working_dir: Option<String>,
    /// `name`, `uid`, `uid:gid` or `name:group`. The policy's `run_as_user` goes before it. Default: the image's.
    pub user: Option<UserRef>,
    /// Supplementary groups. Default: those of the supervisor itself without 0, so that a pod's `fsGroup` works.
    pub supplemental_groups: Option<Vec<u32>>,
    /// Take uid 0. It still has no capability, and the status shows it. Default: false.
    pub allow_root: bool,
    /// Sent to the main process to stop it. Default: the image's, else SIGTERM.
    pub stop_signal: Option<Signal>,
    /// How long the main process has to end after the signal, before it is killed. Default: 10s.
    pub stop_grace_period: Span,
    /// Give it a terminal of its own as its three standard streams; nothing is typed into it. Default: false.
    pub tty: bool,
    /// The program is meant to end: exit 0 during a trial is a success. Default: false.
    pub completes: bool,
    /// `oom_score_adj`, -1000 to 1000; high, so that the kernel takes the workload before the supervisor. Default: 500.
    #[schemars(range(min = -1000, max = 1000))]
    pub oom_score_adj: i32,
    /// Resource limits.
    pub limits: Limits,
    /// Which system calls it gets. Default: `floor`.
    pub seccomp: Seccomp,
}

/// Which system calls a workload gets, where its policy is not `unconfined`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Seccomp {
    /// All but those that no workload needs.
    #[default]
    Floor,
    /// Only those in a list of what programs are known to need, and of these none that the floor refuses.
    Strict,
}

impl Seccomp {
    /// The profile with this name.
    pub const fn profile(self) -> SeccompProfile {
        match self {
            Self::Floor => SeccompProfile::Floor,
            Self::Strict => SeccompProfile::Strict,
        }
    }
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            user: None,
            supplemental_groups: None,
            allow_root: false,
            stop_signal: None,
            stop_grace_period: Span::from_secs(10),
            tty: false,
            completes: false,
            oom_score_adj: 500,
            limits: Limits::default(),
            seccomp: Seccomp::default(),
        }
    }
}

/// One variable of the environment.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EnvVar {
    /// Name: not empty, without `=`.
    pub name: String,
    /// Value. Default: empty.
    #[serde(default)]
    pub value: String,
}

// Values are often secrets: they stay out of logs.
impl std::fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=<{} bytes>", self.name, self.value.len())
    }
}

/// Resource limits, soft and hard alike; kept as the container has them where not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// Open files (`RLIMIT_NOFILE`); at least 128: a program is started with descriptors above 64.
    #[schemars(range(min = 128))]
    pub nofile: Option<u64>,
    /// Processes and threads of the user (`RLIMIT_NPROC`).
    #[schemars(range(min = 1))]
    pub nproc: Option<u64>,
}

/// What happens to one of the container's own mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mount {
    /// The mount point, as the container has it.
    pub path: String,
    /// Show it in every generation. Default: true.
    #[serde(default = "yes")]
    pub carry: bool,
    /// Show it read-only. Default: false.
    #[serde(default)]
    pub read_only: bool,
}

fn yes() -> bool {
    true
}

/// Programs run around an update, each inside a generation and confined like its workload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Hooks {
    /// In the running generation, before the new one is staged; a failure aborts the update.
    pub pre_stage: Option<Hook>,
    /// In the running generation, before it is stopped; a failure aborts the update.
    pub pre_stop: Option<Hook>,
    /// In the new generation, once it runs; a failure is a warning.
    pub post_start: Option<Hook>,
    /// In the new generation, once it is confirmed; a failure is a warning.
    pub post_confirm: Option<Hook>,
    /// In the restored generation, after a rollback; a failure is a warning.
    pub on_rollback: Option<Hook>,
}

impl Hooks {
    /// All of them with their names in the spec.
    pub fn each(&self) -> [(&'static str, Option<&Hook>); 5] {
        [
            ("preStage", self.pre_stage.as_ref()),
            ("preStop", self.pre_stop.as_ref()),
            ("postStart", self.post_start.as_ref()),
            ("postConfirm", self.post_confirm.as_ref()),
            ("onRollback", self.on_rollback.as_ref()),
        ]
    }
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hook {
    /// What is run.
    pub exec: ExecAction,
    /// After it the hook is killed and has failed. Default: 60s.
    #[serde(default = "a_minute")]
    pub timeout: Span,
}

fn a_minute() -> Span {
    Span::from_secs(60)
}

/// A program and its arguments, run without a shell; looked up in the workload's `PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ExecAction {
    /// `argv`, the program first.
    pub command: Vec<String>,
}
