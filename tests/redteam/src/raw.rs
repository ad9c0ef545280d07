//! System calls as an attacker makes them: by number, with arguments no library would take; fork; the old gates into the
//! kernel. The only `unsafe` code of this program.
//!
//! In: numbers and live slices. Out: the kernel's answer. Must not: be called from a process with threads; every caller
//! is a forked child that reports one answer and ends.

#![expect(unsafe_code, reason = "attacks are raw calls; every block says why it cannot hurt this program")]

use std::ffi::CStr;

use nix::errno::Errno;

/// One argument.
#[derive(Debug)]
pub(crate) enum Arg<'a> {
    /// A number, a flag set, a descriptor.
    N(i64),
    /// A C string.
    S(&'a CStr),
    /// Bytes the kernel reads.
    In(&'a [u8]),
    /// Bytes the kernel writes, at most as many as there are.
    Out(&'a mut [u8]),
}

impl Arg<'_> {
    fn word(&mut self) -> libc::c_long {
        match self {
            Self::N(number) => *number,
            Self::S(text) => text.as_ptr() as libc::c_long,
            Self::In(bytes) => bytes.as_ptr() as libc::c_long,
            Self::Out(bytes) => bytes.as_mut_ptr() as libc::c_long,
        }
    }
}

/// syscall(2). Missing arguments are 0.
pub(crate) fn call(number: libc::c_long, args: &mut [Arg<'_>]) -> Result<i64, Errno> {
    let mut words = [0; 6];
    for (word, arg) in words.iter_mut().zip(args) {
        *word = arg.word();
    }
    let [first, second, third, fourth, fifth, sixth] = words;
    // SAFETY: pointers come from slices that are borrowed for the whole call; the callers give the kernel no length
    // beyond theirs. Calls that change the process (clone, unshare, setuid) act on a single-threaded child that ends
    // after it has reported; none is given a flag that shares memory.
    let answer = unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) };
    Errno::result(answer)
}

/// Which side of a fork this is.
#[derive(Debug)]
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one.
    Parent(libc::pid_t),
}

/// fork(2).
pub(crate) fn fork() -> Result<Fork, Errno> {
    // SAFETY: this program has one thread, so the child may do anything its parent may.
    match Errno::result(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// _exit(2).
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: it ends the process and touches nothing of it.
    unsafe { libc::_exit(status) }
}

/// The 32-bit gate of x86: its numbers are those of i386, which a filter for x86-64 does not know.
#[cfg(target_arch = "x86_64")]
pub(crate) fn int80(number: u32) -> Result<i64, Errno> {
    let answer: i64;
    // SAFETY: the numbers used (getpid, mount with null pointers) read and write no memory; the gate clobbers r8 to r11
    // on old kernels, which are named.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "xor ebx, ebx",
            "int 0x80",
            "pop rbx",
            inlateout("rax") i64::from(number) => answer,
            in("rcx") 0, in("rdx") 0, in("rsi") 0, in("rdi") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // A 32-bit answer.
    let answer = i64::from(i32::from_ne_bytes(low(answer)));
    if answer < 0 { Err(Errno::from_raw(i32::try_from(-answer).unwrap_or(0))) } else { Ok(answer) }
}

#[cfg(target_arch = "x86_64")]
fn low(word: i64) -> [u8; 4] {
    let [a, b, c, d, ..] = word.to_le_bytes();
    [a, b, c, d]
}

/// Elsewhere there is no such gate, which is as good as one that kills.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn int80(_: u32) -> Result<i64, Errno> {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::SYS).map_or(Ok(0), |()| Ok(0))
}
