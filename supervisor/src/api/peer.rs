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
use molt_core::code::Code;
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
}

impl Peer {
    /// The operator, when nobody has asked the kernel.
    #[cfg(feature = "fuzzing")]
    pub(super) const UNSEEN: Self = Self::Operator { uid: OPERATOR, pid: None };

    /// In words, for the audit.
    pub(super) fn by(&self) -> String {
        match self {
            Self::Operator { uid, pid: Some(pid) } => format!("uid {uid}, pid {pid} via operator socket"),
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

fn refuse(detail: String) -> Refused {
    Refused::with_status(StatusCode::FORBIDDEN, Code::Unauthorized, detail)
}
