//! OCI images: resolve a reference, fetch and verify what it names, unpack its layers, keep them in a content store.
//!
//! In: an image reference, registry settings, a store folder by descriptor. Out: verified bytes, parsed configs and
//! unpacked layers ready to be overlay lowers. Must not: run anything of an image, resolve a path inside an image
//! except scoped to its root, or trust a certificate store that an image could have written.

mod config;
mod error;
mod fetch;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod layer;
mod layout;
mod made;
mod manifest;
mod need;
mod pieces;
mod remote;
mod remove;
mod reserve;
mod resolve;
mod store;
pub mod thread;
pub mod unpacker;

pub use config::{Limits, Platform, Registries};
pub use error::{Error, Result};
pub use fetch::{Fetched, LayerState, Progress};
pub use image::ImageConfig;
pub use layer::{decode::Packing, tree::XattrNamespace};
pub use need::{Need, need};
pub use remote::{backoff, named_allowed, named_client};
pub use resolve::{Client, Layer, Resolved};
pub use store::{LayerId, Space, Store};
