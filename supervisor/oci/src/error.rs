//! The one error type of the crate: what was tried, on what, and why it did not work.
//!
//! In: facts gathered where something failed. Out: [`Error`] with a stable [`Code`], whether trying again may help, and
//! text that reads after "failed to ". Must not: repeat the text of a source, or carry secrets (URLs lose their query).

use std::{io, path::PathBuf, time::Duration};

use molt_core::{code::Code, ids::DiffId};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be resolved, fetched, unpacked or kept. Display reads after "failed to ".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry settings or a file they name cannot be used.
    #[error("read registry settings: {what}: {why}")]
    Settings {
        /// The setting or file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// No connection to the host.
    #[error("reach {host}: {why} (check the name, DNS, and that the sandbox may connect to it)")]
    Unreachable {
        /// `host[:port]`.
        host: String,
        /// The layer that failed, in a few words.
        why: String,
        /// The client's own error.
        #[source]
        source: Option<Box<reqwest::Error>>,
    },
    /// 429 or 5xx until the attempts ran out.
    #[error("get {what} from {host}: it answered {status}; the registry is busy or broken, try again later")]
    Unavailable {
        /// `host[:port]`.
        host: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// What `Retry-After` asked for.
        after: Option<Duration>,
    },
    /// No byte came for too long, or the body ended early.
    #[error("get {what} from {host}: {why}")]
    Broken {
        /// `host[:port]`.
        host: String,
        /// What was asked for.
        what: String,
        /// What happened, with figures.
        why: String,
    },
    /// An answer that is never right, however often one asks.
    #[error("get {what} from {host}: {why}")]
    Answer {
        /// `host[:port]`.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// 401 or 403.
    #[error("get {what} from {host}: access denied ({status}): {hint}")]
    Unauthorized {
        /// `host[:port]`.
        host: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// What was looked for and what to do.
        hint: String,
    },
    /// 404, or not in the layout.
    #[error("find {what} at {place}: there is no such tag or digest")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Registry or layout.
        place: String,
    },
    /// Bytes are not what their digest, size or `diff_id` says.
    #[error("verify {what}: expected {expected}, got {actual}")]
    Mismatch {
        /// Which bytes.
        what: String,
        /// Digest or size promised.
        expected: String,
        /// Digest or size found.
        actual: String,
    },
    /// A manifest, index, config or layout is malformed, too big or of a kind not taken.
    #[error("read {what}: {why}")]
    Manifest {
        /// Which document.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The image is for something else.
    #[error("find an image for {wanted} in {reference}: it has {found}")]
    Platform {
        /// Platform asked for.
        wanted: String,
        /// The image.
        reference: String,
        /// What there is.
        found: String,
    },
    /// A layer is malformed, hostile or over a limit.
    #[error("unpack layer{}: {why}", layer.map_or_else(String::new, |id| format!(" {id}")))]
    Layer {
        /// The layer, where known.
        layer: Option<DiffId>,
        /// What is wrong, with figures; names are escaped.
        why: String,
        /// The parser's or decoder's own error.
        #[source]
        source: Option<io::Error>,
    },
    /// Not enough bytes or inodes.
    #[error("{operation}: {why}; free some in the store, for example with `molt gc`")]
    NoSpace {
        /// What was being done.
        operation: String,
        /// Figures.
        why: String,
    },
    /// An owner that this user namespace does not map.
    #[error(
        "give {path} to {uid}:{gid}: not mapped in this user namespace; map more ids or rebuild the image with lower ones"
    )]
    UnmappedOwner {
        /// Path inside the layer, escaped.
        path: String,
        /// User id asked for.
        uid: u32,
        /// Group id asked for.
        gid: u32,
    },
    /// The store cannot be used.
    #[error("{operation} in the store")]
    Store {
        /// What was being done.
        operation: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A layout folder or tar cannot be read.
    #[error("{operation} {}", path.display())]
    Layout {
        /// What was being done.
        operation: &'static str,
        /// The layout.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The total deadline passed.
    #[error("{operation} {what}: not done after {} s", after.as_secs())]
    Deadline {
        /// What was being done.
        operation: &'static str,
        /// The image.
        what: String,
        /// The deadline.
        after: Duration,
    },
    /// A confined process that decodes or unpacks a layer did not do its work: it was killed, hung, or could not be
    /// confined.
    #[error("unpack layer {layer}: {why}")]
    Unpacker {
        /// The layer.
        layer: DiffId,
        /// What became of the process.
        why: String,
    },
    /// The kernel gave no thread.
    #[error("start a thread for {what}; the sandbox may have used up its processes")]
    Thread {
        /// What it was to do.
        what: &'static str,
        /// Why there is none.
        source: io::Error,
    },
    /// A worker ended without an answer.
    #[error("run {what}: the worker ended without an answer")]
    Worker {
        /// What it did.
        what: &'static str,
    },
}

impl Error {
    /// The stable code, for API, events and exit status.
    pub fn code(&self) -> Code {
        match self {
            Self::Settings { .. } => Code::Invalid,
            Self::Unreachable { .. } => Code::RegistryUnreachable,
            Self::Unavailable { .. } | Self::Broken { .. } | Self::Answer { .. } => Code::RegistryUnavailable,
            Self::Unauthorized { .. } => Code::Unauthorized,
            Self::NotFound { .. } => Code::NotFound,
            Self::Mismatch { .. } => Code::ContentMismatch,
            Self::Manifest { .. } => Code::ManifestInvalid,
            Self::Platform { .. } => Code::WrongPlatform,
            Self::Layer { .. } => Code::LayerInvalid,
            Self::NoSpace { .. } => Code::NoSpace,
            Self::UnmappedOwner { .. } => Code::Unsupported,
            Self::Layout { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NotFound,
            Self::Store { .. } | Self::Layout { .. } => Code::StoreUnusable,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Unpacker { .. } => Code::UnpackerFailed,
            Self::Thread { .. } | Self::Worker { .. } => Code::Internal,
        }
    }

    /// Whether the same attempt may work a little later.
    pub fn transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unavailable { .. } | Self::Broken { .. })
    }

    /// Whether bytes that were damaged on their way could look like this.
    pub(crate) fn may_be_damage(&self) -> bool {
        matches!(self, Self::Layer { .. })
    }

    /// A layer that is refused, for a reason in words.
    pub(crate) fn layer(why: impl Into<String>) -> Self {
        Self::Layer { layer: None, why: why.into(), source: None }
    }

    /// A document that is refused.
    pub(crate) fn manifest(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Manifest { what: what.into(), why: why.into() }
    }

    /// A kernel answer while working in the store. A full disk gets a code of its own.
    pub(crate) fn store(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (operation, source) = (operation.into(), source.into());
        match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOSPC) => {
                Self::NoSpace { operation, why: "no bytes or inodes left (ENOSPC)".to_owned() }
            }
            Some(rustix::io::Errno::DQUOT) => {
                Self::NoSpace { operation, why: "the quota is used up (EDQUOT)".to_owned() }
            }
            _ => Self::Store { operation, source },
        }
    }

    /// Puts the layer's name on errors that came from deep inside it.
    #[must_use]
    pub(crate) fn in_layer(self, id: DiffId) -> Self {
        match self {
            Self::Layer { layer: None, why, source } => Self::Layer { layer: Some(id), why, source },
            other => other,
        }
    }
}

/// Bytes from outside, fit for a message: lossy, control characters escaped, cut to 200.
pub(crate) fn show(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text.chars().take(200).flat_map(char::escape_debug).collect();
    if text.chars().count() > 200 {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_inject_into_logs() {
        assert_eq!(show(b"a\n\x1b[31m\xff"), "a\\n\\u{1b}[31m\u{fffd}");
        assert!(show(&[b'x'; 5000]).chars().count() == 201);
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        assert_eq!(Error::store("write", rustix::io::Errno::NOSPC).code(), Code::NoSpace);
        assert_eq!(Error::store("write", rustix::io::Errno::IO).code(), Code::StoreUnusable);
    }

    #[test]
    fn only_network_faults_are_worth_another_try() {
        let busy = Error::Unavailable { host: "h".into(), what: "w".into(), status: 503, after: None };
        assert!(busy.transient());
        assert!(!Error::layer("x").transient());
    }
}
