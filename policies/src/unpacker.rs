//! The system calls that the unpacker and the decoder of a layer make, and no others.
//!
//! In: the table below. Out: programs for it to load, in order. Must not: hold a call that opens a socket, makes or
//! touches a process, changes a mount, or takes a descriptor it did not ask for.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::seccomp::{SeccompError, guard, pack};

/// What it may call whatever the arguments are: memory it has, its descriptors, and files by descriptor.
pub const ALLOWED: &[(&str, i64)] = &[
    ("brk", libc::SYS_brk),
    ("munmap", libc::SYS_munmap),
    ("mremap", libc::SYS_mremap),
    ("madvise", libc::SYS_madvise),
    ("read", libc::SYS_read),
    ("write", libc::SYS_write),
    ("lseek", libc::SYS_lseek),
    ("close", libc::SYS_close),
    ("fstat", libc::SYS_fstat),
    ("newfstatat", libc::SYS_newfstatat),
    ("statx", libc::SYS_statx),
    ("openat", libc::SYS_openat),
    ("openat2", libc::SYS_openat2),
    ("getdents64", libc::SYS_getdents64),
    ("mkdirat", libc::SYS_mkdirat),
    ("symlinkat", libc::SYS_symlinkat),
    ("readlinkat", libc::SYS_readlinkat),
    ("linkat", libc::SYS_linkat),
    ("unlinkat", libc::SYS_unlinkat),
    ("renameat2", libc::SYS_renameat2),
    ("fchown", libc::SYS_fchown),
    ("fchownat", libc::SYS_fchownat),
    ("fchmod", libc::SYS_fchmod),
    ("fchmodat", libc::SYS_fchmodat),
    ("utimensat", libc::SYS_utimensat),
    ("fsetxattr", libc::SYS_fsetxattr),
    ("fgetxattr", libc::SYS_fgetxattr),
    ("flistxattr", libc::SYS_flistxattr),
    ("getrandom", libc::SYS_getrandom),
    ("clock_gettime", libc::SYS_clock_gettime),
    ("futex", libc::SYS_futex),
    // After it was stopped and continued, and for its own end.
    ("restart_syscall", libc::SYS_restart_syscall),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask),
    ("rt_sigreturn", libc::SYS_rt_sigreturn),
    ("getpid", libc::SYS_getpid),
    ("gettid", libc::SYS_gettid),
    ("geteuid", libc::SYS_geteuid),
    ("getegid", libc::SYS_getegid),
    ("exit", libc::SYS_exit),
    ("exit_group", libc::SYS_exit_group),
];

/// `PROT_EXEC`.
const EXECUTABLE: u64 = 4;
const SIGABRT: u64 = 6;

/// What a process that only decodes may call: of the table above, what needs no name and gives no descriptor.
pub const DECODES: &[&str] = &[
    "brk",
    "munmap",
    "mremap",
    "madvise",
    "read",
    "write",
    "close",
    "getrandom",
    "futex",
    "restart_syscall",
    "rt_sigprocmask",
    "rt_sigreturn",
    "getpid",
    "gettid",
    "exit",
    "exit_group",
];

/// The programs for an unpacker whose id is `pid`, packed as [`molt_core::launch::Confinement::seccomp`] says. Any other
/// call, and any call of another architecture, kills the process.
pub fn unpacker(pid: u32) -> Result<Vec<Vec<u64>>, SeccompError> {
    let mut rules = base(pid, |_| true)?;
    // Whiteouts and pipes; a whiteout is the device 0:0.
    rules.insert(libc::SYS_mknodat, vec![SeccompRule::new(vec![is(3, 0)?])?]);
    // Copies and flags of its own descriptors; not F_SETOWN, which would send signals.
    let commands = [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL];
    let fcntl = commands.iter().map(|command| SeccompRule::new(vec![is(1, u64::from(command.cast_unsigned()))?]));
    rules.insert(libc::SYS_fcntl, fcntl.collect::<Result<_, _>>()?);
    programs(rules)
}

/// The same for one that decodes.
pub fn decoder(pid: u32) -> Result<Vec<Vec<u64>>, SeccompError> {
    programs(base(pid, |name| DECODES.contains(&name))?)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn is(index: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn base(pid: u32, takes: impl Fn(&str) -> bool) -> Result<Rules, SeccompError> {
    let mut rules: Rules =
        ALLOWED.iter().filter(|(name, _)| takes(name)).map(|(_, number)| (*number, Vec::new())).collect();
    // Memory, never of a kind that can be executed: what it runs is what it was started with.
    let data = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(EXECUTABLE), 0)?;
    rules.insert(libc::SYS_mmap, vec![SeccompRule::new(vec![data])?]);
    // abort(3), so that what went wrong inside is not taken for a forbidden call.
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![is(0, pid.into())?, is(2, SIGABRT)?])?]);
    Ok(rules)
}

fn programs(rules: Rules) -> Result<Vec<Vec<u64>>, SeccompError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(guard(arch).iter().chain([&program]).map(pack).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that comes in by mistake is a hole nobody sees.
    #[test]
    fn nothing_that_reaches_out_is_in_the_table() {
        let names: Vec<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
        for name in
            "socket socketpair connect bind sendto sendmsg recvmsg clone clone3 fork vfork execve execveat ptrace \
                     kill tkill pidfd_open pidfd_getfd process_vm_readv process_vm_writev mount umount2 open_tree \
                     move_mount fsopen pivot_root chroot chdir fchdir setns unshare bpf io_uring_setup io_uring_enter \
                     perf_event_open userfaultfd keyctl add_key prctl seccomp landlock_restrict_self ioctl mprotect \
                     memfd_create setuid setresuid capset open_by_handle_at name_to_handle_at setxattr lsetxattr \
                     splice tee vmsplice sendfile copy_file_range dup2 dup3 pidfd_send_signal"
                .split_whitespace()
        {
            assert!(!names.contains(&name), "{name}");
        }
    }

    /// It has its pipes and its memory: nothing else can be named.
    #[test]
    fn who_decodes_has_no_call_that_takes_a_name_or_makes_a_descriptor() {
        for name in DECODES {
            assert!(ALLOWED.iter().any(|(known, _)| known == name), "{name} is in no table");
        }
        let named =
            ["open", "stat", "mk", "link", "chown", "chmod", "attr", "rename", "utime", "fcntl", "dup", "dents"];
        let found: Vec<_> = DECODES.iter().filter(|call| named.iter().any(|part| call.contains(part))).collect();
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn the_programs_compile_and_fit() {
        for programs in [unpacker(2).unwrap(), decoder(2).unwrap()] {
            assert!(programs.iter().all(|program| program.len() < 4096));
        }
    }
}
