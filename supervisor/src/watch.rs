//! A descriptor the runtime watches.
//!
//! In: an owned descriptor, non-blocking. Out: the same, watched. Must not: be given one that others may close.

use std::os::fd::OwnedFd;

use tokio::io::{Interest, unix::AsyncFd};

/// Watches `fd` for being readable.
pub(crate) fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        deprecated,
        reason = "the constructor that replaces it is unsafe for types that may close their descriptor early; an OwnedFd \
                  never does"
    )]
    AsyncFd::with_interest(fd, Interest::READABLE)
}
