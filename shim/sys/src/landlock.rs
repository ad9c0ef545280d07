//! The one question the `landlock` crate does not answer: which ABI this kernel has. landlock_create_ruleset(2).
//!
//! In: nothing. Out: a number. Must not: build rulesets; the shim does, with the crate.

use crate::error::{Result, check};

const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;

/// The kernel's Landlock ABI, from 1. ENOSYS: not built in. EOPNOTSUPP: not enabled. EPERM: a seccomp profile forbids it.
pub fn abi() -> Result<u32> {
    let attributes: *const libc::c_void = std::ptr::null();
    // SAFETY: with the VERSION flag the kernel requires a null attribute and size 0, reads nothing and returns a number.
    let result = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, attributes, 0usize, LANDLOCK_CREATE_RULESET_VERSION)
    };
    check("landlock_create_ruleset", || "VERSION".to_owned(), result).map(|abi| u32::try_from(abi).unwrap_or(0))
}
