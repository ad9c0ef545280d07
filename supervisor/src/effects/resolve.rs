//! `Resolving`: tag to digest, index to this platform, manifest and config verified.
//!
//! In: an image reference. Out: a resolved image. Must not: fetch a layer.

use molt_core::ids::ImageRef;
use molt_oci::{Platform, Resolved};

use super::{Context, Fault};

/// Resolves `image` for this machine.
pub(crate) async fn resolve(context: &Context, image: &ImageRef) -> Result<Resolved, Fault> {
    Ok(context.client.resolve(image, &Platform::host()).await?)
}
