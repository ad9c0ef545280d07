//! The HTTP API on the operator socket: HTTP/1.1 and JSON, for root in this user namespace only.
//!
//! In: requests from the client and from probes. Out: commands to the dispatcher, the snapshot, events and output. Must
//! not: decide anything, touch the store or the workload, or hold more than its limits say. `docs/API.md` has the routes.

#![expect(
    clippy::disallowed_methods,
    reason = "limits of a connection: who asks may ask again, and no update depends on them"
)]

pub(crate) mod answer;
mod change;
mod exec;
pub(crate) mod frame;
mod listen;
pub(crate) mod openapi;
mod orders;
mod own;
mod peer;
mod read;
mod routes;
pub(crate) mod san;
mod stream;
mod stuck;
mod terms;
mod tls;

#[cfg(test)]
pub(crate) mod fake;
// The same for fuzz targets; apart, so that lints know what is a test.
#[cfg(all(not(test), feature = "fuzzing"))]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use change::HoldRequest;
#[cfg(feature = "fuzzing")]
pub(crate) use listen::serve_one;
pub(crate) use listen::{bind, serve};
pub(crate) use own::serve as serve_own;
pub(crate) use peer::Door;
pub(crate) use read::{Health, hide};
pub(crate) use tls::Tls;

/// Media type of a stream of JSON documents, one a line.
pub(crate) const JSON_LINES: &str = "application/jsonl";

/// Name of the protocol `POST /v1/exec` upgrades to.
pub(crate) const EXEC_PROTOCOL: &str = "molt-exec";
