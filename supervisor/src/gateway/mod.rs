//! Both ends of the gateway's protocol that are not PID 1's: the reference gateway, credentials for one, and how one is
//! called. What PID 1 does about it is in `triggers/gateway`; the protocol is in `docs/GATEWAY.md`.
//!
//! In: `molt gateway …`. Out: an exit status. Must not: be run inside of PID 1, but for [`dial`] and [`files`].

#![expect(
    clippy::disallowed_methods,
    reason = "limits of connections of a server: who asks may ask again, and no update depends on them"
)]

mod auth;
pub(crate) mod dial;
pub(crate) mod files;
mod init;
mod openapi;
mod routes;
mod serve;
mod store;
mod strangers;

#[cfg(test)]
mod tests;

pub(crate) use auth::Role;
pub(crate) use init::{Issue, init, token};
pub(crate) use serve::{Serve, serve};
