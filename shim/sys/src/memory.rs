//! Giving memory back after a burst of work. malloc_trim(3).
//!
//! In: nothing. Out: nothing. Must not: be called in the gap.

/// Returns free heap pages to the kernel; PID 1 calls it after a pull.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and has no precondition; its result only says whether
    // anything was released.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Keeps the number of malloc arenas at `count`: each costs up to 64 MiB of address space and keeps what it freed. Call
/// before the first thread is made. mallopt(3).
pub fn limit_arenas(count: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only stores a number in the allocator's parameters; it has no precondition.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, count);
    }
}
