//! `Resolving`: tag to digest, index to this platform, manifest and config verified.
//!
//! In: an image reference. Out: a resolved image. Must not: fetch a layer.

use molt_core::ids::{ImageRef, UpdateId};
use molt_oci::{Platform, Resolved};

use super::{Context, Fault, fetch::Teller};

/// Resolves `image` for this machine; retries are told to whoever follows `id`.
pub(crate) async fn resolve(context: &Context, id: Option<UpdateId>, image: &ImageRef) -> Result<Resolved, Fault> {
    let progress = Teller::new(context, id, 0);
    Ok(context.client.resolve(image, &Platform::host(), &progress).await?)
}
