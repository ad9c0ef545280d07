//! The HTTP API on the operator socket, against a Molt that runs: what is asked twice, at once, over a restart, or badly.

pub(super) mod fuzzed;
pub(super) mod limits;
pub(super) mod manifests;
pub(super) mod metrics;
pub(super) mod probes;
pub(super) mod requests;
pub(super) mod terminal;
