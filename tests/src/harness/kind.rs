//! What an outer sandbox is made of: which runtime, as whom, on which root, with which volumes.
//!
//! In: what a test wishes. Out: data for [`super::runtime`]. Must not: start anything.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bed::Bed;

/// What starts the sandbox, and as whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// New namespaces and `pivot_root`: all capabilities, no seccomp, nothing masked. The fastest.
    Light,
    /// A bundle run by crun: podman's capabilities and `CAP_SYS_ADMIN`, masked `/proc`, no seccomp.
    Crun,
    /// `podman run --cap-add SYS_ADMIN` with its default seccomp profile and masks.
    Podman,
    /// As `Light`, in a user namespace; volumes belong to its root.
    LightUser,
    /// The same, but the user namespace is made last, after `/proc` was masked: the masks are locked then, and the kernel
    /// refuses a fresh `/proc`. A runtime makes the user namespace first and can take its masks off again.
    LightUserMasked,
    /// As `LightUser`, with one id only, as `unshare --map-root-user` gives it to anybody: the workload's user is PID 1's
    /// own under another number.
    LightUserSingle,
    /// As `Crun`, in a user namespace; volumes are idmapped, as a kubelet does it for `hostUsers: false`.
    CrunUser,
    /// As `Podman`, with `--uidmap`.
    PodmanUser,
    /// `podman run --cap-add SYS_ADMIN` by an ordinary user, to whom 65536 more ids were given.
    PodmanRootless,
}

/// The part of a [`Kind`] that decides how it is started and asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runtime {
    Light,
    Crun,
    Podman,
}

impl Kind {
    /// Every kind whose root is the machine's.
    pub const ALL: [Self; 3] = [Self::Light, Self::Crun, Self::Podman];
    /// Every kind in a user namespace with as many ids as images want.
    pub const USER: [Self; 4] = [Self::LightUser, Self::LightUserMasked, Self::CrunUser, Self::PodmanUser];

    /// Whether PID 1 is root of a user namespace only.
    pub fn in_user_namespace(self) -> bool {
        matches!(self, Self::LightUserSingle | Self::PodmanRootless) || Self::USER.contains(&self)
    }

    /// Who its root is on the machine.
    pub(super) fn root(self) -> u32 {
        match self {
            Self::PodmanRootless => super::rootless::USER,
            kind if kind.in_user_namespace() => super::userns::ROOT,
            _ => 0,
        }
    }

    pub(super) fn runtime(self) -> Runtime {
        match self {
            Self::Light | Self::LightUser | Self::LightUserMasked | Self::LightUserSingle => Runtime::Light,
            Self::Crun | Self::CrunUser => Runtime::Crun,
            Self::Podman | Self::PodmanUser | Self::PodmanRootless => Runtime::Podman,
        }
    }
}

/// A folder or file of the host, bound into the sandbox.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Where it is on the host.
    pub host: PathBuf,
    /// Where it appears.
    pub at: String,
    /// `rw` or `ro`.
    pub mode: &'static str,
}

/// What to run, and on what.
#[derive(Debug, Clone)]
pub struct Options {
    /// Root folder; the lower layer of an overlay, so that it stays as it is.
    pub root: PathBuf,
    /// PID 1 and its arguments.
    pub program: Vec<String>,
    /// Its whole environment, beside `PATH`.
    pub env: Vec<(String, String)>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// More lines of its `/etc/hosts`; podman has its own.
    pub hosts: String,
    /// More arguments for `podman run`, before the image.
    pub podman: Vec<String>,
    /// PID 1's standard output and error, instead of a log that is kept; not for podman.
    pub streams: Option<Arc<OwnedFd>>,
}

impl Options {
    /// Runs `program` on the bed's own root folder.
    pub fn new(bed: &Bed, program: &[&str]) -> anyhow::Result<Self> {
        let program = program.iter().map(|&word| word.to_owned()).collect();
        Ok(Self {
            root: bed.outer_root()?,
            program,
            env: Vec::new(),
            volumes: Vec::new(),
            hosts: String::new(),
            podman: Vec::new(),
            streams: None,
        })
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.env.push((key.to_owned(), value.to_string()));
        self
    }

    /// Binds a folder or file, writable.
    #[must_use]
    pub fn volume(mut self, host: &Path, at: &str) -> Self {
        self.volumes.push(Volume { host: host.to_owned(), at: at.to_owned(), mode: "rw" });
        self
    }

    /// Binds a folder or file, read-only.
    #[must_use]
    pub fn read_only(mut self, host: &Path, at: &str) -> Self {
        self.volumes.push(Volume { host: host.to_owned(), at: at.to_owned(), mode: "ro" });
        self
    }
}
