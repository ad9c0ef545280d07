//! What PID 1 and a decoder or unpacker say to each other: an order, whether the walls stand, a verdict.
//!
//! In: values of this crate. Out: the same as bounded JSON. Must not: let text of such a process reach a message unescaped,
//! or hold more than one datagram does.

use std::io;

use molt_core::{ids::DiffId, launch::Failure};
use serde::{Deserialize, Serialize};

use crate::{
    config::Limits,
    error::{Error, show},
    layer::{decode::Packing, tree::XattrNamespace},
};

/// Both sides are the same file; this finds out when they are not.
pub(super) const VERSION: u32 = 2;
/// Longest text of such a process that is shown.
const TEXT: usize = 1024;

/// One job, with its descriptors: the folder it works on, then those of the job.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    pub(super) version: u32,
    pub(super) job: Job,
    pub(super) xattrs: XattrNamespace,
    pub(super) limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Job {
    /// Descriptors: the pipe with the packed bytes, the pipe for the plain ones. There is no folder.
    Decode(Packing),
    /// Descriptors: the pipe with the plain bytes, the file for what is asked of the layers below.
    Unpack,
    /// Descriptor: the file with what is asked. Folders that hide are marked, nothing else.
    Mark,
    /// Descriptor: the same file; then so many lower layers, nearest first, in messages of their own.
    Settle { lowers: usize },
    /// Nothing: the walls are built, and that is all.
    Check,
}

impl Job {
    /// Who does it, in a message.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Decode(_) => "decoder",
            Self::Unpack | Self::Mark | Self::Settle { .. } | Self::Check => "unpacker",
        }
    }
}

/// From a confined process. One `Ready`, then one of the others.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Said {
    /// Confined. No byte of the layer was read yet. Walls that are not there, in words.
    Ready { missing: Vec<String> },
    /// All bytes were decoded and passed on; this is what they hash to.
    Decoded { plain: DiffId },
    /// Whoever reads the plain bytes has ended, and knows why.
    Unread,
    /// The layer is unpacked.
    Unpacked { rest: Rest },
    /// It did not work, after the last of the plain bytes: who decodes them knows more.
    Short(Fault),
    /// The layer is as it must be on its parents.
    Settled,
    /// It did not work.
    Failed(Fault),
}

/// What is left to do for a layer that is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rest {
    /// Nothing.
    Nothing,
    /// Folders to be marked opaque.
    Marks,
    /// The layers below have to be asked.
    Parents,
}

/// An error that may cross the boundary.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Fault {
    Layer { why: String },
    NoSpace { operation: String, why: String },
    UnmappedOwner { path: String, uid: u32, gid: u32 },
    Store { operation: String, errno: i32 },
    Wall(Failure),
    Internal { why: String },
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Layer { why, source: None, .. } => Self::Layer { why },
            Error::Layer { why, source: Some(source), .. } => Self::Layer { why: format!("{why}: {source}") },
            Error::NoSpace { operation, why } => Self::NoSpace { operation, why },
            Error::UnmappedOwner { path, uid, gid } => Self::UnmappedOwner { path, uid, gid },
            Error::Store { operation, source } => {
                Self::Store { operation, errno: source.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()) }
            }
            other => Self::Internal { why: format!("failed: {other}") },
        }
    }
}

impl Fault {
    /// The same as an error about `layer`, told by the process of this name.
    pub(super) fn into_error(self, layer: DiffId, name: &str) -> Error {
        match self {
            Self::Layer { why } => Error::Layer { layer: Some(layer), why: clean(&why), source: None },
            Self::NoSpace { operation, why } => Error::NoSpace { operation: clean(&operation), why: clean(&why) },
            Self::UnmappedOwner { path, uid, gid } => Error::UnmappedOwner { path: clean(&path), uid, gid },
            Self::Store { operation, errno } => {
                Error::Store { operation: clean(&operation), source: io::Error::from_raw_os_error(errno) }
            }
            Self::Wall(Failure { step, detail, errno, .. }) => {
                let reason =
                    if errno == 0 { String::new() } else { format!(": {}", io::Error::from_raw_os_error(errno)) };
                let why = format!(
                    "its {name} could not be confined, and so was not started: {} {}{reason}",
                    clean(&step),
                    clean(&detail)
                );
                Error::Unpacker { layer, why }
            }
            Self::Internal { why } => Error::Unpacker { layer, why: format!("its {name} {}", clean(&why)) },
        }
    }
}

/// What is shown of a message of an unpacker.
#[cfg(feature = "fuzzing")]
pub(crate) fn shown(bytes: &[u8], layer: DiffId) -> Option<String> {
    match serde_json::from_slice::<Said>(bytes).ok()? {
        Said::Failed(fault) | Said::Short(fault) => Some(fault.into_error(layer, "unpacker").to_string()),
        Said::Ready { missing } => Some(missing.iter().map(|text| clean(text)).collect()),
        Said::Decoded { .. } | Said::Unread | Said::Unpacked { .. } | Said::Settled => None,
    }
}

/// Text of an unpacker, fit for a message: cut, and without control characters (names in it are escaped already).
pub(super) fn clean(text: &str) -> String {
    let cut: String = text.chars().take(TEXT).collect();
    if cut.chars().any(char::is_control) { show(cut.as_bytes()) } else { cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> DiffId {
        DiffId(crate::layer::decode::digest_of(b"layer"))
    }

    #[test]
    fn errors_cross_with_their_code_and_the_layers_name() {
        for error in [
            Error::layer("nonsense"),
            Error::NoSpace { operation: "write 'x'".into(), why: "full".into() },
            Error::UnmappedOwner { path: "a".into(), uid: 7, gid: 8 },
            Error::store("write 'x'", rustix::io::Errno::IO),
        ] {
            let code = error.code();
            let bytes = serde_json::to_vec(&Said::Failed(error.into())).unwrap();
            let Said::Failed(fault) = serde_json::from_slice(&bytes).unwrap() else { panic!() };
            assert_eq!(fault.into_error(layer(), "unpacker").code(), code);
        }
        let text = Fault::Layer { why: "nonsense".into() }.into_error(layer(), "unpacker").to_string();
        assert!(text.contains(&layer().to_string()) && text.contains("nonsense"), "{text}");
    }

    #[test]
    fn text_of_an_unpacker_cannot_act_on_a_terminal_or_flood_a_log() {
        let text =
            Fault::Layer { why: format!("\x1b[2J{}", "x".repeat(1 << 20)) }.into_error(layer(), "unpacker").to_string();
        assert!(!text.contains('\x1b') && text.len() < 4096, "{}", text.len());
    }
}
