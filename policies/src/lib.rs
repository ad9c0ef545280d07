//! Sandbox policy: schema, parse, validate, lower, compare, explain.
//!
//! In: policy documents and reports. Out: what the shim enforces, and what is wider than before. Must not: make a
//! system call, or open a path.

mod builtin;
mod compare;
mod explain;
mod identity;
mod lower;
mod network;
mod parse;
mod schema;
pub mod seccomp;
mod uncompared;
pub mod unpacker;
mod validate;

pub use builtin::{BUILTINS, builtin, default_policy, default_policy_for};
pub use compare::{Required, TcpUse, Wider, assumed, astray, changes, compare};
pub use explain::{Line, Verdict, explain};
pub use identity::RunAs;
pub use lower::{Context, Lowered, MIN_ABI, lower, unconfined};
pub use network::{Middleware, OnError, Selector};
pub use parse::{MAX_BYTES, from_node, from_value, parse, schema};
pub use schema::{
    AccessPreset, Binary, Compatibility, CredentialBinding, CredentialSigning, Endpoint, Enforcement, Filesystem,
    GraphqlOperation, JsonRpc, LandlockSection, Matching, Mcp, NetworkRule, PersistedQueries, Policy, Process,
    Protocol, Rule, Tls,
};
pub use uncompared::{Uncompared, uncompared};
