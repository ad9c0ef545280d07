//! Who is at the other end of a connection, as the kernel saw it when it connected.
//!
//! In: a connection. Out: whether it may ask, else why not. Must not: take anybody's word, or take the overflow uid for
//! somebody.
//!
//! The folder (0700) and the node (0600) keep others out by path, and the socket is in no generation's mounts. This is the
//! second wall. Where a generation's ids are those of PID 1 itself, because a nested user namespace maps them
//! (`Identity::nested`), its processes have uid 0 here too; their user namespace tells them apart. Credentials are a
//! snapshot: a connection that root opened and handed on still counts as root's.

use std::path::PathBuf;

use axum::http::StatusCode;
use molt_core::{code::Code, ids::Generation, spec::Role};
use tokio::net::UnixStream;

use super::answer::Refused;

/// The user who may ask: root in PID 1's own user namespace. A peer without a mapping shows as the overflow uid (65534),
/// which anybody can be and which is therefore never this one.
pub(super) const OPERATOR: u32 = 0;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Root of the sandbox, on the operator socket.
    Operator {
        /// As the kernel saw it when it connected.
        uid: u32,
        /// `None` for a process outside of this PID namespace.
        pid: Option<i32>,
    },
    /// Whoever holds the key of a client certificate, on the TLS listener.
    Certificate {
        /// The name that the spec lists.
        san: String,
        /// What it may ask for.
        role: Role,
        /// Its updates may ask for a wider policy.
        wider: bool,
    },
    /// A process of a run, on the socket of that run.
    Workload {
        /// Which run.
        instance: u64,
        /// What it runs.
        generation: Generation,
        /// As PID 1 sees it.
        pid: i32,
    },
}

/// What a route wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// At least this role.
    Role(Role),
    /// The operator.
    Operator,
}

impl Peer {
    /// The operator, when nobody has asked the kernel.
    #[cfg(feature = "fuzzing")]
    pub(super) const UNSEEN: Self = Self::Operator { uid: OPERATOR, pid: None };

    /// Whether it may ask for what wants `need`.
    pub(super) fn may(&self, need: Need) -> bool {
        match (self, need) {
            (Self::Operator { .. }, _) => true,
            (Self::Certificate { role, .. }, Need::Role(wanted)) => *role >= wanted,
            // It has a router of its own.
            (Self::Certificate { .. }, Need::Operator) | (Self::Workload { .. }, _) => false,
        }
    }

    /// Whether it may see the whole spec, the workload's environment included.
    pub(super) fn sees_secrets(&self) -> bool {
        matches!(self, Self::Operator { .. })
    }

    /// Whether its updates may ask for a wider policy.
    pub(super) fn may_widen(&self) -> bool {
        match self {
            Self::Operator { .. } => true,
            Self::Certificate { wider, .. } => *wider,
            Self::Workload { .. } => false,
        }
    }

    /// In words, for the audit.
    pub(super) fn by(&self) -> String {
        match self {
            Self::Operator { uid, pid: Some(pid) } => format!("uid {uid}, pid {pid} via operator socket"),
            Self::Certificate { san, .. } => format!("certificate {san}"),
            Self::Workload { generation, pid, .. } => format!("workload of generation {generation}, pid {pid}"),
            Self::Operator { uid, pid: None } => format!("uid {uid} via operator socket"),
        }
    }
}

/// The peer, if it is `operator` in this user namespace.
pub(super) fn admit(stream: &UnixStream, operator: u32) -> Result<Peer, Refused> {
    let peer = stream.peer_cred().map_err(|_| refuse("the peer's uid is not known".to_owned()))?;
    if peer.uid() != operator {
        return Err(refuse(format!("uid {} may not use this socket; only root of the sandbox may", peer.uid())));
    }
    // 0: from a PID namespace outside this one, which is no generation's.
    let Some(pid @ 1..) = peer.pid() else { return Ok(Peer::Operator { uid: peer.uid(), pid: None }) };
    if is_foreign(pid) {
        return Err(refuse(
            "the peer is in another user namespace; only root of the sandbox may use this socket".into(),
        ));
    }
    Ok(Peer::Operator { uid: peer.uid(), pid: Some(pid) })
}

/// Whether a process of this PID namespace is in another user namespace, or in one that cannot be seen.
pub(super) fn is_foreign(pid: i32) -> bool {
    let own = std::process::id().to_string();
    if std::fs::read_link("/proc/self").ok() != Some(PathBuf::from(&own)) {
        // This /proc speaks of another PID namespace: its numbers mean nothing here.
        return false;
    }
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user"));
    match (namespace(&own), namespace(&pid.to_string())) {
        (Ok(own), Ok(peer)) => own != peer,
        (Ok(_), Err(_)) => true,
        (Err(_), _) => false,
    }
}

/// Who is behind the socket of a run: a process of its PID namespace, as the run's user.
pub(super) fn admit_own(stream: &UnixStream, door: &Door) -> Result<Peer, Refused> {
    let peer = stream.peer_cred().map_err(|_| refuse("the peer's uid is not known".to_owned()))?;
    if door.uid.is_some_and(|uid| uid != peer.uid()) {
        return Err(refuse("only the workload's own user may use this socket".to_owned()));
    }
    let Some(pid @ 1..) = peer.pid() else { return Err(refuse("the peer is no process of this run".to_owned())) };
    let own = std::fs::read_link("/proc/self").ok() == Some(PathBuf::from(std::process::id().to_string()));
    // Where this /proc speaks of another PID namespace its numbers mean nothing: then that the socket can be reached in this
    // run's root alone is what is left.
    if own {
        let found = std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok();
        if found.map(|found| std::os::unix::fs::MetadataExt::ino(&found)) != Some(door.pid_namespace) {
            return Err(refuse("the peer is no process of this run".to_owned()));
        }
    }
    Ok(Peer::Workload { instance: door.instance, generation: door.generation, pid })
}

/// The run that a socket is of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Door {
    /// Which.
    pub(crate) instance: u64,
    /// What it runs.
    pub(crate) generation: Generation,
    /// Its user as PID 1 sees it; `None` where a user namespace of its own maps that to another one.
    pub(crate) uid: Option<u32>,
    /// Inode of its PID namespace.
    pub(crate) pid_namespace: u64,
}

fn refuse(detail: String) -> Refused {
    Refused::with_status(StatusCode::FORBIDDEN, Code::Unauthorized, detail)
}
