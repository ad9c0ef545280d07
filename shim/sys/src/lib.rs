//! Linux calls as functions over typed descriptors: the only `unsafe` code of the workspace.
//!
//! In: borrowed descriptors, plain values. Out: owned descriptors (always CLOEXEC), errors that name the call and its
//! arguments. Must not: decide anything, retry, or log. What rustix offers safely is used from rustix directly and is
//! not wrapped again here.

#![expect(unsafe_code, reason = "this crate is where it lives; every block proves its preconditions")]

mod error;
pub mod keyring;
pub mod landlock;
pub mod memory;
pub mod mount;
pub mod mountpoint;
pub mod process;
pub mod sandbox;
pub mod signal;
pub mod socket;

pub use error::{Error, Result};
