//! The name of an unpacked layer in the store.
//!
//! In: a diff id, and the parents where they matter. Out: a file name, and back. Must not: take other text.

use std::{fmt, str::FromStr};

use molt_core::ids::{DiffId, Digest, ParseError};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A layer as unpacked: its diff id and, for the rare layer whose tar leaves parent folders or link targets to the layers
/// below, a digest of those. As text `HEX` or `HEX-CHAIN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId {
    diff_id: DiffId,
    chain: Option<Digest>,
}

impl LayerId {
    /// A layer that is the same on any parents.
    pub fn plain(diff_id: DiffId) -> Self {
        Self { diff_id, chain: None }
    }

    /// A layer on the parents that `chain` stands for.
    pub(crate) fn on(diff_id: DiffId, chain: Digest) -> Self {
        Self { diff_id, chain: Some(chain) }
    }

    /// The digest of its tar.
    pub fn diff_id(&self) -> DiffId {
        self.diff_id
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diff_id.0.hex())?;
        self.chain.map_or(Ok(()), |chain| write!(f, "-{}", chain.hex()))
    }
}

impl FromStr for LayerId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digest = |hex: &str| format!("sha256:{hex}").parse::<Digest>();
        let (diff_id, chain) = match text.split_once('-') {
            Some((diff_id, chain)) => (diff_id, Some(digest(chain)?)),
            None => (text, None),
        };
        Ok(Self { diff_id: DiffId(digest(diff_id)?), chain })
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
        for text in [hex.clone(), format!("{hex}-{hex}")] {
            assert_eq!(text.parse::<LayerId>().unwrap().to_string(), text);
        }
        for text in
            [String::new(), "..".to_owned(), format!("{hex}-"), format!("{hex}/x"), format!("{hex}-{hex}-{hex}")]
        {
            assert!(text.parse::<LayerId>().is_err(), "{text}");
        }
    }
}
