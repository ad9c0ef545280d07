//! A session keyring of one's own, so that the workload shares no key with the supervisor. keyctl(2).
//!
//! In: nothing. Out: nothing. Must not: add keys.

use crate::error::{Result, check};

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Joins a new, anonymous session keyring.
pub fn join_new_session() -> Result<()> {
    let name: *const libc::c_char = std::ptr::null();
    // SAFETY: keyctl(KEYCTL_JOIN_SESSION_KEYRING) reads one pointer, which may be null (keyctl(2)); it returns a number.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) };
    check("keyctl", || "JOIN_SESSION_KEYRING".to_owned(), result).map(drop)
}
