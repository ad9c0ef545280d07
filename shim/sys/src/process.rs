//! Making and becoming processes: spawn, fork, exec, exit, namespaces, closing what must not be inherited.
//!
//! In: descriptors, C strings. Out: pids. Must not: be used from a process with threads, [`spawn`] apart.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

use rustix::{io::Errno, process::Pid, thread::UnshareFlags};

use crate::error::{Error, Named as _, Result, check};

/// Starts `program` (a path such as `/proc/self/fd/7`) with `argv`, an empty environment, no signal blocked and every
/// disposition default. Descriptors in `inherit` become 0, 1, 2 …; everything else must be CLOEXEC.
/// posix_spawn(3): safe in a process with threads, as the child runs no code of ours.
pub fn spawn(program: &CStr, argv: &[&CStr], inherit: &[BorrowedFd<'_>]) -> Result<Pid> {
    let named = |code: libc::c_int| match code {
        0 => Ok(()),
        code => Err(Error::new("posix_spawn", program.to_string_lossy(), Errno::from_raw_os_error(code))),
    };
    let mut argv: Vec<*mut libc::c_char> = argv.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    let environment: [*mut libc::c_char; 1] = [std::ptr::null_mut()];
    let mut actions = std::mem::MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
    let mut attributes = std::mem::MaybeUninit::<libc::posix_spawnattr_t>::uninit();
    // SAFETY: both structures are initialised by their init function before any other use and destroyed once at the
    // end; the pointers handed on (program, argv, environment, sets) outlive the call, and argv and environment end in
    // null. dup2 actions with equal numbers clear CLOEXEC in the child (posix_spawn_file_actions_adddup2(3)).
    unsafe {
        named(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
        named(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
        let result = (|| {
            for (target, fd) in (0..).zip(inherit) {
                named(libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), fd.as_raw_fd(), target))?;
            }
            let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            named(libc::posix_spawnattr_setsigmask(attributes.as_mut_ptr(), set.as_ptr()))?;
            libc::sigfillset(set.as_mut_ptr());
            named(libc::posix_spawnattr_setsigdefault(attributes.as_mut_ptr(), set.as_ptr()))?;
            let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
            let flags = libc::c_short::try_from(flags).unwrap_or(0);
            named(libc::posix_spawnattr_setflags(attributes.as_mut_ptr(), flags))?;
            let mut pid = 0;
            named(libc::posix_spawn(
                &raw mut pid,
                program.as_ptr(),
                actions.as_ptr(),
                attributes.as_ptr(),
                argv.as_ptr(),
                environment.as_ptr(),
            ))?;
            Pid::from_raw(pid).ok_or_else(|| Error::new("posix_spawn", "no pid", Errno::CHILD))
        })();
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
        result
    }
}

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, with the child's pid.
    Parent(Pid),
}

/// fork(2). Only for a process with a single thread: the child then may do anything its parent may.
pub fn fork() -> Result<Fork> {
    // SAFETY: the callers (the shim, test tools) have one thread, so no lock can be held by a thread that is not copied.
    let result = unsafe { libc::fork() };
    match check("fork", String::new, result.into())? {
        0 => Ok(Fork::Child),
        _ => Pid::from_raw(result).map(Fork::Parent).ok_or_else(|| Error::new("fork", "no pid", Errno::CHILD)),
    }
}

/// execve(2) by path. Returns only if it failed.
pub fn exec(program: &CStr, argv: &[CString], environment: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, environment) = (pointers(argv), pointers(environment));
    // SAFETY: program, argv and environment are live C strings; both arrays end in null.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// _exit(2): no destructor, no buffer, no handler of the parent's runs in a forked child.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit ends the process; nothing after it is relied upon.
    unsafe { libc::_exit(status) }
}

/// unshare(2), namespaces only: `FILES` and other flags that break Rust's assumptions are refused.
pub fn unshare_namespaces(flags: UnshareFlags) -> Result<()> {
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWUSER
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWCGROUP;
    if !namespaces.contains(flags) {
        return Err(Error::new("unshare", format!("{flags:?}"), Errno::INVAL));
    }
    // SAFETY: only namespace flags are left, which do not unshare the descriptor table that owned descriptors rely on.
    unsafe { rustix::thread::unshare_unsafe(flags) }.named("unshare", || format!("{flags:?}"))
}

/// close_range(2): closes every descriptor from `first` on. Linux 5.9. For the last step before exec: no owned
/// descriptor from `first` on may be used or dropped afterwards, so the callers end in exec or `_exit`.
pub fn close_from(first: RawFd) -> Result<()> {
    // SAFETY: the call takes numbers only. The callers run straight into exec or _exit, so that no `OwnedFd` is used or
    // dropped after its descriptor was closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    check("close_range", || format!("{first}.."), result).map(drop)
}

/// Closes `first..=last` except `keep`. Under the same condition as [`close_from`].
pub fn close_except(first: RawFd, last: RawFd, keep: [RawFd; 3]) -> Result<()> {
    for number in (first..=last).filter(|number| !keep.contains(number)) {
        // SAFETY: as in `close_from`: no owned descriptor in the range is used or dropped afterwards. EBADF for numbers
        // that are not open is what closing a range means.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Takes ownership of a descriptor number this process was started with.
///
/// Returns `None` if there is no such descriptor.
pub fn inherited(number: RawFd) -> Option<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: fcntl(F_GETFD) only asks whether the number is open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the number is open, was inherited at exec, and the caller takes each number once at its start, before
    // anything else could own it.
    let fd = unsafe { std::os::fd::OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

/// Processor time that a process has used. clock_getcpuclockid(3).
pub fn cpu_time(pid: Pid) -> Result<std::time::Duration> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both calls write one plain value each, to places that live through the call.
    let result = unsafe {
        match libc::clock_getcpuclockid(pid.as_raw_nonzero().get(), &raw mut clock) {
            0 => libc::clock_gettime(clock, &raw mut time),
            code => return Err(Error::new("clock_getcpuclockid", pid.to_string(), Errno::from_raw_os_error(code))),
        }
    };
    check("clock_gettime", || pid.to_string(), result.into())?;
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Ok(std::time::Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds))
}

/// Checks, as the kernel would at exec, whether this process may execute `program`: type, permission bits, Landlock and
/// mount options. execveat(2) with `AT_EXECVE_CHECK`, Linux 6.14; EINVAL before.
pub fn may_exec(program: &CStr) -> Result<()> {
    const AT_EXECVE_CHECK: libc::c_int = 0x1_0000;
    let none: [*const libc::c_char; 1] = [std::ptr::null()];
    let argv = [program.as_ptr(), std::ptr::null()];
    // SAFETY: program is a live C string; both arrays end in null; with the CHECK flag the call does not replace the
    // process.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            libc::AT_FDCWD,
            program.as_ptr(),
            argv.as_ptr(),
            none.as_ptr(),
            AT_EXECVE_CHECK,
        )
    };
    check("execveat", || program.to_string_lossy().into_owned(), result).map(drop)
}

/// Empties this process's environment and overwrites what `/proc/PID/environ` shows of it (proc_pid_environ(5)): the
/// strings that the kernel put on the stack at exec. EBUSY where there is more than one thread.
pub fn forget_environment() -> Result<()> {
    let failed = |errno| Error::new("clearenv", "with threads", errno);
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?
        .count();
    if threads != 1 {
        return Err(failed(Errno::BUSY));
    }
    // SAFETY: `environ` is null or points at a null-terminated array of pointers to null-terminated strings, the kernel's
    // on the stack or the C library's own on the heap, all of them writable. Each string is overwritten up to its end and
    // stays a string, an empty one, for whoever kept a pointer into it. This is the only thread, as was just seen, so
    // that nobody reads them meanwhile, and nobody has the array while clearenv(3) forgets it.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            let string = *at;
            for offset in 0..libc::strlen(string) {
                string.add(offset).write_volatile(0);
            }
            at = at.add(1);
        }
        libc::clearenv();
    }
    Ok(())
}

unsafe extern "C" {
    static mut environ: *mut *mut libc::c_char;
}
