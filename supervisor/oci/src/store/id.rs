//! The name of an unpacked layer in the store.
//!
//! In: the blob a layer was unpacked from, its diff id, and the parents where they matter. Out: a file name, and back. Must
//! not: take other text, or name a layer by what its unpacker alone says.

use std::{fmt, str::FromStr};

use molt_core::ids::{DiffId, Digest, ParseError};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A layer as unpacked: its diff id, the digest of the blob, and, for the rare layer whose tar leaves parent folders or link
/// targets to the layers below, a digest of those. As text `HEX-BLOB` or `HEX-BLOB-CHAIN`.
///
/// That the blob unpacks to the diff id, and to this folder, is the word of a process that has read the blob. Only images
/// that carry the same blob share the folder, so a process that the blob has taken over lies to nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId {
    diff_id: DiffId,
    blob: Digest,
    chain: Option<Digest>,
}

impl LayerId {
    /// A layer that is the same on any parents.
    pub fn plain(diff_id: DiffId, blob: Digest) -> Self {
        Self { diff_id, blob, chain: None }
    }

    /// The same layer on the parents that `chain` stands for.
    pub(crate) fn on(self, chain: Digest) -> Self {
        Self { chain: Some(chain), ..self }
    }

    /// Whether both are one layer, whatever they lie on.
    pub(crate) fn is_form_of(&self, other: &Self) -> bool {
        self.diff_id == other.diff_id && self.blob == other.blob
    }

    /// The digest of its tar.
    pub fn diff_id(&self) -> DiffId {
        self.diff_id
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.diff_id.0.hex(), self.blob.hex())?;
        self.chain.map_or(Ok(()), |chain| write!(f, "-{}", chain.hex()))
    }
}

impl FromStr for LayerId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digest = |hex: &str| format!("sha256:{hex}").parse::<Digest>();
        let (diff_id, rest) = text.split_once('-').unwrap_or((text, ""));
        let (blob, chain) = match rest.split_once('-') {
            Some((blob, chain)) => (blob, Some(digest(chain)?)),
            None => (rest, None),
        };
        Ok(Self { diff_id: DiffId(digest(diff_id)?), blob: digest(blob)?, chain })
    }
}

impl Serialize for LayerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_nothing_else_is_taken() {
        let hex = "ab".repeat(32);
        for text in [format!("{hex}-{hex}"), format!("{hex}-{hex}-{hex}")] {
            assert_eq!(text.parse::<LayerId>().unwrap().to_string(), text);
        }
        for text in [
            String::new(),
            "..".to_owned(),
            hex.clone(),
            format!("{hex}-"),
            format!("{hex}-{hex}/x"),
            [hex.as_str(); 4].join("-"),
        ] {
            assert!(text.parse::<LayerId>().is_err(), "{text}");
        }
    }
}
