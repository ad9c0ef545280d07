//! What the image of a generation says itself, whatever the spec makes of it.
//!
//! In: a record. Out: its image's configuration, from the store, where its bytes are verified. Must not: take a variable or
//! a folder for the image's that somebody else gave.

use molt_core::{generation::Record, ids::Digest};
use molt_oci::{ImageConfig, Limits};

use crate::store::Store;

/// The config that a kept manifest names.
pub(crate) fn config_of(store: &Store, manifest: &Digest) -> Option<Digest> {
    let bytes = store.content.get_blob(manifest, Limits::default().manifest).ok()??;
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    manifest.get("config")?.get("digest")?.as_str()?.parse().ok()
}

/// What chose a generation's working directory and variables beside the spec of now.
#[derive(Debug)]
pub(crate) enum Chosen {
    /// The container's own root: all of it is the operator's.
    ByOperator,
    /// The image said this of itself; what is not as it says was the spec's, when the generation was staged.
    NotBy(Box<ImageConfig>),
    /// Its configuration is not in the store (yet).
    Unknown,
}

impl Chosen {
    /// Of a generation, or of one that is planned.
    pub(crate) fn of(store: Option<&Store>, record: &Record) -> Self {
        let Some(digest) = record.digest else { return Self::ByOperator };
        let config = store.and_then(|store| {
            let config = config_of(store, &digest)?;
            let bytes = store.content.get_blob(&config, Limits::default().config).ok()??;
            ImageConfig::parse("an image's configuration", &bytes).ok()
        });
        config.map_or(Self::Unknown, |(config, _)| Self::NotBy(Box::new(config)))
    }

    /// Whether a variable's value is not the image's own.
    pub(crate) fn variable(&self, name: &str, value: &str) -> bool {
        match self {
            Self::ByOperator => true,
            Self::NotBy(image) => {
                let own = image.env.iter().filter_map(|pair| pair.split_once('='));
                !own.filter(|(own, _)| *own == name).any(|(_, own)| own == value)
            }
            Self::Unknown => false,
        }
    }

    /// Whether the working directory is not the image's own.
    pub(crate) fn folder(&self, cwd: &str) -> bool {
        match self {
            Self::ByOperator => true,
            Self::NotBy(image) => image.working_dir != cwd,
            Self::Unknown => false,
        }
    }
}
