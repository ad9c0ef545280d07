//! Speaking to registries: TLS and DNS, credentials, tokens, redirects, retries, blobs.
//!
//! In: registry settings, hosts and digests. Out: bounded bytes and streams. Must not: trust what a registry says about
//! where to go next without the rules in [`address`] and [`challenge`].

pub(crate) mod address;
pub(crate) mod blob;
pub(crate) mod challenge;
pub(crate) mod credentials;
pub(crate) mod pace;
pub(crate) mod registry;
pub(crate) mod transport;

pub use address::named_allowed;
pub use pace::backoff;
pub use transport::named_client;
