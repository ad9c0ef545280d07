//! Loading a seccomp program. seccomp(2).
//!
//! In: instructions, packed as `code << 48 | jt << 40 | jf << 32 | k`. Out: nothing. Must not: compile them.

use rustix::io::Errno;

use crate::error::{Error, Result, check};

/// Loads one program for this thread and its future children. Needs no_new_privs.
pub fn load_filter(program: &[u64]) -> Result<()> {
    let mut instructions: Vec<libc::sock_filter> = program
        .iter()
        .map(|word| {
            let [c1, c0, jt, jf, k @ ..] = word.to_be_bytes();
            libc::sock_filter { code: u16::from_be_bytes([c1, c0]), jt, jf, k: u32::from_be_bytes(k) }
        })
        .collect();
    let len = u16::try_from(instructions.len())
        .map_err(|_| Error::new("seccomp", format!("{} instructions", program.len()), Errno::INVAL))?;
    let filter = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    // SAFETY: `filter` points at `len` initialised instructions that live until the call returns; the kernel checks and
    // copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const filter) };
    check("seccomp", || format!("SET_MODE_FILTER, {len} instructions"), result).map(drop)
}
