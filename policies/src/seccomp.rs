//! The system calls no workload gets, whatever its policy says; and those that are all it gets under the profile `strict`.
//!
//! In: the table below, and `seccomp-strict.txt`. Out: programs for the shim to load, in order. Must not: refuse what an ordinary program needs:
//! fork, threads, `ptrace`-free debugging aids, every file and socket call. What is not in the table is allowed;
//! without a capability most of it fails in the kernel anyway.

use std::collections::BTreeMap;

use libc::{
    AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID,
    CLONE_NEWUSER, CLONE_NEWUTS, EAFNOSUPPORT, ENOSYS, EPERM, MSG_FASTOPEN, NETLINK_ROUTE, SOCK_SEQPACKET, c_int,
};
use molt_core::launch::SeccompProfile;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// A condition on an argument; only its low 32 bits count, as in the kernel's own `int` and `unsigned int` arguments.
#[derive(Debug, Clone, Copy)]
enum Arg {
    Is(u8, u32),
    IsNot(u8, u32),
    HasAny(u8, u32),
    /// The bits of a mask are these.
    Masked(u8, u32, u32),
}

/// When a call is refused: always, or when every condition of one of the lists holds.
type When = &'static [&'static [Arg]];

/// One row: a system call, when it is refused, and why.
#[derive(Debug, Clone, Copy)]
pub struct Denied {
    /// Its name.
    pub name: &'static str,
    /// Its number on the architecture this was built for.
    pub number: i64,
    /// The error it gives.
    pub errno: i32,
    /// Why no workload needs it, or what it would open.
    pub why: &'static str,
    when: When,
}

const fn row(errno: c_int, name: &'static str, number: i64, when: When, why: &'static str) -> Denied {
    Denied { name, number, errno, why, when }
}

const ALWAYS: When = &[];

#[expect(clippy::cast_sign_loss, reason = "flags are bit masks; libc types them as int")]
const fn bits(flags: c_int) -> u32 {
    flags as u32
}

/// Not in libc for every target. `CLONE_NEWTIME` is a flag of unshare and clone3 only: in clone it is a signal number.
const CLONE_NEWTIME: u32 = 0x80;
const NEW_NAMESPACES: u32 =
    bits(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET);
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
/// `SOCK_TYPE_MASK`: what is above are flags.
const SOCK_TYPE: u32 = 0xf;
const IPPROTO_SCTP: u32 = 132;
const IPPROTO_SMC: u32 = 256;
const IPPROTO_MPTCP: u32 = 262;
const SYS_OPEN_TREE_ATTR: i64 = 467;

const MOUNTS: &str = "changes what the workload's paths mean";
const KERNEL: &str = "a way into the kernel that only administrators' tools use";
const OTHERS: &str = "reads or changes other processes";
const KEYS: &str = "kernel keys are shared beyond the sandbox";

/// Everything that is refused.
pub const TABLE: &[Denied] = &[
    // glibc and musl ask for clone again when clone3 is not there; its flags lie in memory, where no filter sees them.
    row(ENOSYS, "clone3", libc::SYS_clone3, ALWAYS, "its flags cannot be looked at; clone can"),
    row(EPERM, "mount", libc::SYS_mount, ALWAYS, MOUNTS),
    row(EPERM, "umount2", libc::SYS_umount2, ALWAYS, MOUNTS),
    row(EPERM, "pivot_root", libc::SYS_pivot_root, ALWAYS, MOUNTS),
    row(EPERM, "fsopen", libc::SYS_fsopen, ALWAYS, MOUNTS),
    row(EPERM, "fsconfig", libc::SYS_fsconfig, ALWAYS, MOUNTS),
    row(EPERM, "fsmount", libc::SYS_fsmount, ALWAYS, MOUNTS),
    row(EPERM, "fspick", libc::SYS_fspick, ALWAYS, MOUNTS),
    row(EPERM, "move_mount", libc::SYS_move_mount, ALWAYS, MOUNTS),
    row(EPERM, "open_tree", libc::SYS_open_tree, ALWAYS, MOUNTS),
    row(EPERM, "open_tree_attr", SYS_OPEN_TREE_ATTR, ALWAYS, MOUNTS),
    row(EPERM, "mount_setattr", libc::SYS_mount_setattr, ALWAYS, MOUNTS),
    row(EPERM, "setns", libc::SYS_setns, ALWAYS, "enters another namespace"),
    row(
        EPERM,
        "unshare",
        libc::SYS_unshare,
        &[&[Arg::HasAny(0, NEW_NAMESPACES | CLONE_NEWTIME)]],
        "a namespace of its own gives back capabilities, and with them most of the kernel",
    ),
    row(
        EPERM,
        "clone",
        libc::SYS_clone,
        &[&[Arg::HasAny(0, NEW_NAMESPACES)]],
        "a namespace of its own gives back capabilities, and with them most of the kernel",
    ),
    row(EPERM, "ptrace", libc::SYS_ptrace, ALWAYS, OTHERS),
    row(EPERM, "process_vm_readv", libc::SYS_process_vm_readv, ALWAYS, OTHERS),
    row(EPERM, "process_vm_writev", libc::SYS_process_vm_writev, ALWAYS, OTHERS),
    row(EPERM, "pidfd_getfd", libc::SYS_pidfd_getfd, ALWAYS, OTHERS),
    row(EPERM, "kcmp", libc::SYS_kcmp, ALWAYS, OTHERS),
    row(EPERM, "bpf", libc::SYS_bpf, ALWAYS, KERNEL),
    row(EPERM, "perf_event_open", libc::SYS_perf_event_open, ALWAYS, KERNEL),
    row(EPERM, "userfaultfd", libc::SYS_userfaultfd, ALWAYS, "stops the kernel in the middle of a copy"),
    row(EPERM, "io_uring_setup", libc::SYS_io_uring_setup, ALWAYS, "its requests pass by every filter"),
    row(EPERM, "io_uring_enter", libc::SYS_io_uring_enter, ALWAYS, "its requests pass by every filter"),
    row(EPERM, "io_uring_register", libc::SYS_io_uring_register, ALWAYS, "its requests pass by every filter"),
    row(EPERM, "keyctl", libc::SYS_keyctl, ALWAYS, KEYS),
    row(EPERM, "add_key", libc::SYS_add_key, ALWAYS, KEYS),
    row(EPERM, "request_key", libc::SYS_request_key, ALWAYS, KEYS),
    row(EPERM, "kexec_load", libc::SYS_kexec_load, ALWAYS, KERNEL),
    row(EPERM, "kexec_file_load", libc::SYS_kexec_file_load, ALWAYS, KERNEL),
    row(EPERM, "init_module", libc::SYS_init_module, ALWAYS, KERNEL),
    row(EPERM, "finit_module", libc::SYS_finit_module, ALWAYS, KERNEL),
    row(EPERM, "delete_module", libc::SYS_delete_module, ALWAYS, KERNEL),
    row(EPERM, "reboot", libc::SYS_reboot, ALWAYS, KERNEL),
    row(EPERM, "swapon", libc::SYS_swapon, ALWAYS, KERNEL),
    row(EPERM, "swapoff", libc::SYS_swapoff, ALWAYS, KERNEL),
    row(EPERM, "acct", libc::SYS_acct, ALWAYS, KERNEL),
    row(EPERM, "quotactl", libc::SYS_quotactl, ALWAYS, KERNEL),
    row(EPERM, "quotactl_fd", libc::SYS_quotactl_fd, ALWAYS, KERNEL),
    row(EPERM, "syslog", libc::SYS_syslog, ALWAYS, "the host's kernel log"),
    row(EPERM, "lookup_dcookie", libc::SYS_lookup_dcookie, ALWAYS, KERNEL),
    row(EPERM, "name_to_handle_at", libc::SYS_name_to_handle_at, ALWAYS, "handles lead around mounts"),
    row(EPERM, "open_by_handle_at", libc::SYS_open_by_handle_at, ALWAYS, "handles lead around mounts"),
    #[cfg(target_arch = "x86_64")]
    row(EPERM, "iopl", libc::SYS_iopl, ALWAYS, KERNEL),
    #[cfg(target_arch = "x86_64")]
    row(EPERM, "ioperm", libc::SYS_ioperm, ALWAYS, KERNEL),
    row(
        EPERM,
        "ioctl",
        libc::SYS_ioctl,
        &[&[Arg::Is(1, TIOCSTI)], &[Arg::Is(1, TIOCLINUX)]],
        "types into a terminal as if somebody sat there",
    ),
    // Landlock sees connect(2) only; a Fast Open send connects without it.
    row(EPERM, "sendto", libc::SYS_sendto, &[&[Arg::HasAny(3, bits(MSG_FASTOPEN))]], "connects past Landlock"),
    row(EPERM, "sendmsg", libc::SYS_sendmsg, &[&[Arg::HasAny(2, bits(MSG_FASTOPEN))]], "connects past Landlock"),
    row(EPERM, "sendmmsg", libc::SYS_sendmmsg, &[&[Arg::HasAny(3, bits(MSG_FASTOPEN))]], "connects past Landlock"),
    // Landlock looks at the protocol a socket has when it connects. Programs that offload TLS go on without.
    row(
        EPERM,
        "setsockopt",
        libc::SYS_setsockopt,
        &[&[Arg::Is(1, bits(libc::IPPROTO_TCP)), Arg::Is(2, bits(libc::TCP_ULP))]],
        "makes another protocol of a TCP socket: from Linux 5.17 to 6.19 SMC, which connects past Landlock",
    ),
    // The errno a kernel without these gives, so that programs go on without them.
    row(
        EAFNOSUPPORT,
        "socket",
        libc::SYS_socket,
        &[
            &[
                Arg::IsNot(0, bits(AF_UNIX)),
                Arg::IsNot(0, bits(AF_INET)),
                Arg::IsNot(0, bits(AF_INET6)),
                Arg::IsNot(0, bits(AF_NETLINK)),
            ],
            &[Arg::Is(0, bits(AF_NETLINK)), Arg::IsNot(2, bits(NETLINK_ROUTE))],
            &[Arg::Is(2, IPPROTO_MPTCP)],
            &[Arg::Is(2, IPPROTO_SMC)],
            &[Arg::Is(2, IPPROTO_SCTP)],
            // With no protocol named, this kind of socket of IP is one of SCTP.
            &[Arg::Masked(1, SOCK_TYPE, bits(SOCK_SEQPACKET)), Arg::IsNot(0, bits(AF_UNIX))],
        ],
        "packet, vsock, bluetooth, kernel crypto and others are no business of a workload; \
         MPTCP, SMC and SCTP connect past Landlock's rules for TCP",
    ),
    // The kernel makes both sockets before it finds out that they cannot be a pair.
    row(
        EAFNOSUPPORT,
        "socketpair",
        libc::SYS_socketpair,
        &[&[Arg::IsNot(0, bits(AF_UNIX))]],
        "makes sockets of families and protocols that socket does not; pairs are of AF_UNIX",
    ),
];

/// A program could not be compiled; a mistake in the table.
#[derive(Debug, thiserror::Error)]
#[error("compile the seccomp programs")]
pub struct SeccompError(#[from] pub(crate) seccompiler::BackendError);

/// The programs of a profile, in the order they are loaded, packed as [`molt_core::launch::Confinement::seccomp`] says.
/// Calls of another architecture kill the process.
pub fn programs(profile: SeccompProfile) -> Result<Vec<Vec<u64>>, SeccompError> {
    let here = Machine { arch: std::env::consts::ARCH.try_into()?, number: |denied| Some(denied.number) };
    Ok(programs_for(profile, here)?.iter().map(pack).collect())
}

/// What the programs are for, so that those for another machine can be looked at on this one.
#[derive(Clone, Copy)]
struct Machine {
    arch: TargetArch,
    /// The number of a row's call there, where there is one.
    number: fn(&Denied) -> Option<i64>,
}

fn programs_for(profile: SeccompProfile, machine: Machine) -> Result<Vec<BpfProgram>, SeccompError> {
    Ok(match profile {
        SeccompProfile::None => Vec::new(),
        SeccompProfile::Floor => floor(machine)?,
        // Of two answers of the same kind the one loaded last counts: the floor's errno.
        SeccompProfile::Strict => [vec![strict(machine)?], floor(machine)?].concat(),
    })
}

/// The calls of the profile `strict`, by name and number on the architecture this was built for.
pub fn allowed() -> impl Iterator<Item = (&'static str, i64)> {
    allowed_on(if cfg!(target_arch = "x86_64") { TargetArch::x86_64 } else { TargetArch::aarch64 })
}

fn allowed_on(arch: TargetArch) -> impl Iterator<Item = (&'static str, i64)> {
    let column = if arch == TargetArch::x86_64 { 1 } else { 2 };
    let lines = include_str!("../seccomp-strict.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(move |line| {
        let words: Vec<&str> = line.split(' ').collect();
        Some((*words.first()?, words.get(column)?.parse().ok()?))
    })
}

/// Everything but [`allowed`] is answered as a kernel answers that does not have it, so that programs try something else.
fn strict(machine: Machine) -> Result<BpfProgram, SeccompError> {
    let allowed = allowed_on(machine.arch);
    let rules: BTreeMap<i64, Vec<SeccompRule>> = allowed.map(|(_, number)| (number, Vec::new())).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Errno(bits(ENOSYS)), SeccompAction::Allow, machine.arch)?;
    Ok(filter.try_into()?)
}

pub(crate) fn pack(program: &BpfProgram) -> Vec<u64> {
    program
        .iter()
        .map(|op| u64::from(op.code) << 48 | u64::from(op.jt) << 40 | u64::from(op.jf) << 32 | u64::from(op.k))
        .collect()
}

fn floor(machine: Machine) -> Result<Vec<BpfProgram>, SeccompError> {
    let mut programs = guard(machine.arch);
    // One program an errno: a filter of the library knows one answer.
    for errno in [ENOSYS, EAFNOSUPPORT, EPERM] {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for denied in TABLE.iter().filter(|denied| denied.errno == errno) {
            if let Some(number) = (machine.number)(denied) {
                rules.insert(number, compile(denied.when)?);
            }
        }
        let answer = SeccompAction::Errno(bits(errno));
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, machine.arch)?;
        programs.push(filter.try_into()?);
    }
    Ok(programs)
}

fn compile(when: When) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let mut rules = Vec::new();
    for all in when {
        // "Any of these bits" is one rule a bit: the library compares masked values only for equality.
        let mut choices: Vec<Vec<SeccompCondition>> = vec![Vec::new()];
        for arg in *all {
            let tests: Vec<(u8, SeccompCmpOp, u32)> = match *arg {
                Arg::Is(index, value) => vec![(index, SeccompCmpOp::Eq, value)],
                Arg::IsNot(index, value) => vec![(index, SeccompCmpOp::Ne, value)],
                Arg::Masked(index, mask, value) => {
                    vec![(index, SeccompCmpOp::MaskedEq(u64::from(mask)), value)]
                }
                Arg::HasAny(index, mask) => (0..32)
                    .map(|shift| 1u32 << shift)
                    .filter(|bit| mask & bit != 0)
                    .map(|bit| (index, SeccompCmpOp::MaskedEq(u64::from(bit)), bit))
                    .collect(),
            };
            let mut next = Vec::new();
            for choice in &choices {
                for (index, test, value) in &tests {
                    let mut choice = choice.clone();
                    let value = u64::from(*value);
                    choice.push(SeccompCondition::new(*index, SeccompCmpArgLen::Dword, test.clone(), value)?);
                    next.push(choice);
                }
            }
            choices = next;
        }
        for choice in choices {
            rules.push(SeccompRule::new(choice)?);
        }
    }
    Ok(rules)
}

/// x32 calls come with the architecture of x86-64 and a bit in their number, so that a filter that compares numbers
/// lets every one of them pass. They get what a kernel without x32 says.
pub(crate) fn guard(arch: TargetArch) -> Vec<BpfProgram> {
    use seccompiler::sock_filter;
    // BPF_LD | BPF_W | BPF_ABS and so on: linux/bpf_common.h.
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const NUMBER: u32 = 0;
    const ARCH: u32 = 4;
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    const X32_BIT: u32 = 0x4000_0000;
    if arch != TargetArch::x86_64 {
        return Vec::new();
    }
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![vec![
        op(LOAD, 0, 0, ARCH),
        op(EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        op(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        op(LOAD, 0, 0, NUMBER),
        op(AT_LEAST, 0, 1, X32_BIT),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | bits(ENOSYS)),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]]
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
