//! Signals as descriptors, clean masks and dispositions for what is exec'd, and signals by number, real-time ones too.
//! signalfd(2), sigprocmask(2), kill(2), pidfd_send_signal(2).
//!
//! In: signal numbers. Out: a descriptor to read. Must not: install handlers.

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::error::{Result, check};

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before anything is added or read.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Blocks `signals` in this thread and those it makes later: a write to a pipe that nobody reads is then an error, where
/// SIGPIPE is among them.
pub fn block(signals: &[i32]) -> Result<()> {
    let set = set_of(signals);
    // SAFETY: `set` is initialised; the old mask is not asked for.
    let blocked = unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    check("sigprocmask", || format!("{signals:?}"), blocked.into()).map(drop)
}

/// Blocks `signals` as [`block`] does and returns a non-blocking descriptor that reads them.
pub fn descriptor(signals: &[i32]) -> Result<OwnedFd> {
    block(signals)?;
    let set = set_of(signals);
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    check("signalfd", || format!("{signals:?}"), fd.into())?;
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends signal `number` to the process `pid`; the kernel says what is no signal.
pub fn send(pid: rustix::process::Pid, number: i32) -> Result<()> {
    // SAFETY: kill(2) takes two numbers.
    let sent = unsafe { libc::kill(pid.as_raw_nonzero().get(), number) };
    check("kill", || format!("signal {number}"), sent.into()).map(drop)
}

/// The same to the process behind a pidfd.
pub fn send_to(pidfd: impl AsFd, number: i32) -> Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed for the call; without a siginfo the kernel makes one.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), number, none, 0) };
    check("pidfd_send_signal", || format!("signal {number}"), sent).map(drop)
}

/// One signal that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// The process that sent it; 0 where it is not of this PID namespace, or the kernel.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

/// Reads one signal from [`descriptor`]'s descriptor; `None` when there is none.
pub fn receive(fd: impl std::os::fd::AsFd) -> Result<Option<Received>> {
    let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut buffer) {
        Ok(length) if length == buffer.len() => {
            // `struct signalfd_siginfo` begins with five words: signo, errno, code, pid, uid.
            let (words, _) = buffer.as_chunks::<4>();
            let [signal, _, _, pid, uid, ..] = words else { return Ok(None) };
            let signal = i32::from_ne_bytes(*signal);
            Ok(Some(Received { signal, pid: u32::from_ne_bytes(*pid), uid: u32::from_ne_bytes(*uid) }))
        }
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(errno) => Err(crate::Error::new("read", "signalfd", errno)),
    }
}

/// Unblocks everything and makes every disposition default: both survive exec, SIG_IGN for SIGPIPE (which Rust's
/// runtime sets) and for 32 and 33 (which posix_spawn(3) of glibc sets) included.
pub fn reset() -> Result<()> {
    // `struct sigaction` of the kernel: handler, flags, restorer, mask. All zero is SIG_DFL.
    let default = [0u64; 4];
    for signal in 1..=64 {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        let old: *mut u64 = std::ptr::null_mut();
        // Not signal(3), which refuses 32 and 33.
        // SAFETY: the kernel reads one `struct sigaction`, which is no larger than the 32 bytes `default` points at, and
        // writes nothing as `old` is null; 8 is the size of its signal set. SIG_DFL installs no handler.
        let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, 8usize) };
        check("sigaction", || format!("signal {signal}"), result)?;
    }
    let none = set_of(&[]);
    // SAFETY: `none` is initialised; the old mask is not asked for.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    check("sigprocmask", || "SET_MASK, none".to_owned(), result.into()).map(drop)
}
