//! Names of system calls, and which of them change something.
//!
//! In: numbers and arguments. Out: names; whether a call is one after which a kill may find something half done. Must
//! not: touch a process.

use nix::libc;

/// A call as it is at its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

macro_rules! table {
    ($($name:ident: $number:ident),* $(,)?) => {
        fn bare(number: i64) -> Option<&'static str> {
            match number {
                $(libc::$number => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

table! {
    read: SYS_read, write: SYS_write, writev: SYS_writev, pwrite64: SYS_pwrite64, pwritev: SYS_pwritev,
    pread64: SYS_pread64, open: SYS_open, openat: SYS_openat, openat2: SYS_openat2, creat: SYS_creat, close: SYS_close,
    close_range: SYS_close_range, stat: SYS_stat, fstat: SYS_fstat, lstat: SYS_lstat, newfstatat: SYS_newfstatat,
    statx: SYS_statx, statfs: SYS_statfs, fstatfs: SYS_fstatfs, access: SYS_access, faccessat: SYS_faccessat,
    faccessat2: SYS_faccessat2, poll: SYS_poll, ppoll: SYS_ppoll, lseek: SYS_lseek, getdents64: SYS_getdents64,
    ioctl: SYS_ioctl, fcntl: SYS_fcntl, dup: SYS_dup, dup2: SYS_dup2, dup3: SYS_dup3, pipe2: SYS_pipe2,
    readlink: SYS_readlink, readlinkat: SYS_readlinkat, umask: SYS_umask, getrlimit: SYS_getrlimit,
    setrlimit: SYS_setrlimit, prlimit64: SYS_prlimit64, rename: SYS_rename, renameat: SYS_renameat,
    renameat2: SYS_renameat2, link: SYS_link, linkat: SYS_linkat, symlink: SYS_symlink, symlinkat: SYS_symlinkat,
    unlink: SYS_unlink, unlinkat: SYS_unlinkat, mkdir: SYS_mkdir, mkdirat: SYS_mkdirat, rmdir: SYS_rmdir,
    mknod: SYS_mknod, mknodat: SYS_mknodat, fsync: SYS_fsync, fdatasync: SYS_fdatasync, syncfs: SYS_syncfs,
    sync_file_range: SYS_sync_file_range, truncate: SYS_truncate, ftruncate: SYS_ftruncate, fallocate: SYS_fallocate,
    copy_file_range: SYS_copy_file_range, sendfile: SYS_sendfile, splice: SYS_splice, chmod: SYS_chmod,
    fchmod: SYS_fchmod, fchmodat: SYS_fchmodat, fchmodat2: SYS_fchmodat2, chown: SYS_chown, fchown: SYS_fchown,
    lchown: SYS_lchown, fchownat: SYS_fchownat, utimensat: SYS_utimensat, setxattr: SYS_setxattr,
    lsetxattr: SYS_lsetxattr, fsetxattr: SYS_fsetxattr, removexattr: SYS_removexattr, lremovexattr: SYS_lremovexattr,
    fremovexattr: SYS_fremovexattr, flock: SYS_flock, chdir: SYS_chdir, fchdir: SYS_fchdir, chroot: SYS_chroot,
    mount: SYS_mount, umount2: SYS_umount2, pivot_root: SYS_pivot_root, move_mount: SYS_move_mount,
    open_tree: SYS_open_tree, fsopen: SYS_fsopen, fsconfig: SYS_fsconfig, fsmount: SYS_fsmount, fspick: SYS_fspick,
    mount_setattr: SYS_mount_setattr, unshare: SYS_unshare, setns: SYS_setns, clone: SYS_clone, clone3: SYS_clone3,
    fork: SYS_fork, vfork: SYS_vfork, execve: SYS_execve, execveat: SYS_execveat, exit: SYS_exit,
    exit_group: SYS_exit_group, wait4: SYS_wait4, waitid: SYS_waitid, kill: SYS_kill, tkill: SYS_tkill,
    tgkill: SYS_tgkill, pidfd_open: SYS_pidfd_open, pidfd_send_signal: SYS_pidfd_send_signal, setsid: SYS_setsid,
    setpgid: SYS_setpgid, sendmsg: SYS_sendmsg, sendto: SYS_sendto, recvmsg: SYS_recvmsg, recvfrom: SYS_recvfrom,
    socket: SYS_socket, socketpair: SYS_socketpair, bind: SYS_bind, listen: SYS_listen, connect: SYS_connect,
    sethostname: SYS_sethostname, capget: SYS_capget, capset: SYS_capset, setuid: SYS_setuid, setgid: SYS_setgid,
    setgroups: SYS_setgroups, setresuid: SYS_setresuid, setresgid: SYS_setresgid, seccomp: SYS_seccomp,
    landlock_create_ruleset: SYS_landlock_create_ruleset, landlock_add_rule: SYS_landlock_add_rule,
    landlock_restrict_self: SYS_landlock_restrict_self, rt_sigaction: SYS_rt_sigaction,
    rt_sigprocmask: SYS_rt_sigprocmask, signalfd4: SYS_signalfd4, memfd_create: SYS_memfd_create,
}

/// What prctl(2) was asked for.
const PRCTL: [(u64, &str); 10] = [
    (1, "PDEATHSIG"),
    (3, "GET_DUMPABLE"),
    (4, "DUMPABLE"),
    (15, "NAME"),
    (23, "CAPBSET_READ"),
    (24, "CAPBSET_DROP"),
    (27, "GET_SECUREBITS"),
    (28, "SECUREBITS"),
    (38, "NO_NEW_PRIVS"),
    (47, "CAP_AMBIENT"),
];

impl Call {
    /// Its name; of calls that are many in one, with what was asked for: `prctl(NO_NEW_PRIVS)`.
    pub fn name(&self) -> String {
        let [first, second, third, ..] = self.arguments;
        match self.number {
            libc::SYS_prctl => match PRCTL.iter().find(|(option, _)| *option == first) {
                Some((_, name)) => format!("prctl({name})"),
                None => format!("prctl({first})"),
            },
            libc::SYS_keyctl => format!("keyctl({first})"),
            libc::SYS_fcntl => format!("fcntl({second})"),
            libc::SYS_landlock_create_ruleset if third != 0 => format!("landlock_create_ruleset(flag {third})"),
            libc::SYS_execveat if self.arguments[4] & 0x1_0000 != 0 => "execveat(CHECK)".to_owned(),
            number => bare(number).map_or_else(|| format!("call {number}"), str::to_owned),
        }
    }

    /// Whether it has a meaning for a shim's work. The others are about its own memory and its own end, and fail in
    /// ways no kernel does.
    pub fn is_work(&self) -> bool {
        let own = [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_close];
        let prctl = self.number == libc::SYS_prctl || self.number == libc::SYS_keyctl;
        prctl || (bare(self.number).is_some() && !own.contains(&self.number))
    }

    /// What it would change, in so far as its number and arguments tell.
    pub fn change(&self) -> Change {
        use Change::{Always, Never, Regular};
        let [first, second, third, ..] = self.arguments;
        let making = |flags: u64| flags & flag(libc::O_CREAT | libc::O_TRUNC) != 0 || flags & TMPFILE == TMPFILE;
        let when = |yes: bool| if yes { Always } else { Never };
        match self.number {
            libc::SYS_write
            | libc::SYS_writev
            | libc::SYS_pwrite64
            | libc::SYS_pwritev
            | libc::SYS_sendfile
            | libc::SYS_ftruncate
            | libc::SYS_fallocate => Regular(first),
            libc::SYS_copy_file_range | libc::SYS_splice => Regular(third),
            libc::SYS_open => when(making(second)),
            libc::SYS_openat => when(making(third)),
            libc::SYS_openat2 => Change::How(third),
            libc::SYS_open_tree => when(third & 1 != 0),
            // A thread more or less is nobody's state.
            libc::SYS_clone => when(first & flag(libc::CLONE_THREAD) == 0),
            libc::SYS_clone3 => Change::CloneArguments(first),
            // Asks, or is about the calling thread's name only.
            libc::SYS_prctl => when(!matches!(first, 3 | 15 | 23 | 27)),
            number => when(ALWAYS.contains(&number)),
        }
    }
}

/// Calls that change nothing, and whose failure a program has to do something about. Left out is what only waits, what
/// is about the process's own memory and time, what probes do again and again, and messages between processes: that nothing
/// can be read yet is no error there, and a kernel that says so of what is there does not exist.
const FAILING: [i64; 26] = [
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open_tree,
    libc::SYS_statx,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_pipe2,
    libc::SYS_socketpair,
    libc::SYS_memfd_create,
    libc::SYS_pidfd_open,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_prlimit64,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
];

/// `O_TMPFILE` is more than one bit.
const TMPFILE: u64 = 0o20_200_000;

const fn flag(flags: i32) -> u64 {
    flags.cast_unsigned() as u64
}

impl Call {
    /// Whether an error of it is somebody's concern: it changes something, or opens, looks up or reads a file, or makes a
    /// descriptor.
    pub fn may_fail(&self) -> Change {
        match self.number {
            libc::SYS_read | libc::SYS_pread64 | libc::SYS_getdents64 => Change::File(self.arguments[0]),
            number if FAILING.contains(&number) => Change::Always,
            _ => self.change(),
        }
    }

    /// Whether it waits until something is on disk.
    pub fn is_sync(&self) -> bool {
        [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs].contains(&self.number)
    }
}

/// Flags that openat2(2) and clone3(2) have behind a pointer, judged as those of openat(2) and clone(2).
pub fn makes(change: Change, flags: u64) -> bool {
    match change {
        Change::How(_) => flags & flag(libc::O_CREAT | libc::O_TRUNC) != 0 || flags & TMPFILE == TMPFILE,
        Change::CloneArguments(_) => flags & flag(libc::CLONE_THREAD) == 0,
        _ => false,
    }
}

/// Whether a call changes something that outlives the process, or processes themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It does.
    Always,
    /// It does not.
    Never,
    /// If this descriptor is a file or a pipe, and not the log.
    Regular(u64),
    /// It does not; whether its failure matters is a question of whether this descriptor is a file.
    File(u64),
    /// By the flags of openat2(2), at this address.
    How(u64),
    /// By the flags of clone3(2), at this address.
    CloneArguments(u64),
}

const ALWAYS: [i64; 65] = [
    libc::SYS_creat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
    libc::SYS_truncate,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_flock,
    libc::SYS_bind,
    libc::SYS_chroot,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_setsid,
    libc::SYS_sethostname,
    libc::SYS_capset,
    libc::SYS_setgroups,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_seccomp,
    libc::SYS_landlock_restrict_self,
    libc::SYS_setrlimit,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: i64, arguments: [u64; 3]) -> Call {
        let [a, b, c] = arguments;
        Call { number, arguments: [a, b, c, 0, 0, 0] }
    }

    #[test]
    fn calls_that_are_many_in_one_are_named_by_what_they_are_asked_for() {
        assert_eq!(call(libc::SYS_prctl, [38, 1, 0]).name(), "prctl(NO_NEW_PRIVS)");
        assert_eq!(call(libc::SYS_unshare, [0, 0, 0]).name(), "unshare");
        assert_eq!(call(-7, [0, 0, 0]).name(), "call -7");
    }

    #[test]
    fn a_file_is_changed_by_making_it_and_not_by_reading_it() {
        let made = flag(libc::O_CREAT | libc::O_WRONLY);
        assert_eq!(call(libc::SYS_openat, [0, 0, made]).change(), Change::Always);
        assert_eq!(call(libc::SYS_openat, [0, 0, flag(libc::O_RDONLY)]).change(), Change::Never);
        assert_eq!(call(libc::SYS_openat, [0, 0, flag(libc::O_DIRECTORY)]).change(), Change::Never);
        assert_eq!(call(libc::SYS_openat, [0, 0, flag(libc::O_TMPFILE | libc::O_RDWR)]).change(), Change::Always);
        assert_eq!(call(libc::SYS_write, [5, 0, 0]).change(), Change::Regular(5));
        assert_eq!(call(libc::SYS_read, [5, 0, 0]).change(), Change::Never);
        assert!(!makes(Change::CloneArguments(1), flag(libc::CLONE_THREAD)));
    }
}
