//! The test bed of Molt: real registries, real images and real container runtimes, started and
//! stopped by the tests themselves.
//!
//! In: the binaries of this workspace and Debian packages (`tests/run` installs them).
//! Out: suites, run by `molt-e2e`. Must not: reach past loopback (but for building Debian images),
//! leave a process, a mount or a file behind, or skip a test because a privilege is missing.

pub mod bench;
pub mod corpus;
pub mod harness;
pub mod sim;
pub mod suites;
