//! The floor: system calls no workload gets, asked for by number. Most get arguments that the kernel itself would answer
//! with another errno, so that a filter that is missing shows.
//!
//! In: nothing. Out: EPERM, ENOSYS or SIGSYS wherever the filter stands. Must not: need a capability to tell the
//! difference.

use libc::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS, SIGCHLD,
};

use crate::{
    aid::{NULL, n, sys},
    probe::{Answer, Probe, probe},
    raw::{Arg, call, int80},
};

const MOUNTS: &str = "changes what paths mean";
const KERNEL: &str = "a way into the kernel for administrators' tools";
const OTHERS: &str = "reads or changes other processes";
const KEYS: &str = "kernel keys reach beyond the sandbox";
const SPACES: &str = "a namespace of its own gives capabilities back";
const RING: &str = "its requests pass by every filter";

/// Six arguments that are wrong whatever they mean.
const WRONG: [i64; 6] = [-1; 6];

fn wrong(number: i64) -> Answer {
    sys(number, &mut WRONG.map(Arg::N))
}

macro_rules! refused {
    ($id:literal, $why:expr, $number:expr) => {
        probe($id, $why, || wrong($number))
    };
}

/// clone(2) as fork uses it, with one flag more. The child, if there is one, ends at once.
fn clone(flags: i64) -> Answer {
    match call(libc::SYS_clone, &mut [n(flags | i64::from(SIGCHLD)), NULL, NULL, NULL, NULL]) {
        Ok(0) => crate::raw::exit(0),
        other => other.into(),
    }
}

fn unshare(flags: i64) -> Answer {
    sys(libc::SYS_unshare, &mut [n(flags)])
}

/// Every probe of this file.
pub(crate) const PROBES: &[Probe] = &[
    // With null pointers the kernel says EFAULT before it asks for a capability.
    probe("F.mount", MOUNTS, || sys(libc::SYS_mount, &mut [NULL, NULL, NULL, NULL, NULL])),
    refused!("F.umount2", MOUNTS, libc::SYS_umount2),
    refused!("F.pivot_root", MOUNTS, libc::SYS_pivot_root),
    refused!("F.fsopen", MOUNTS, libc::SYS_fsopen),
    refused!("F.fsconfig", MOUNTS, libc::SYS_fsconfig),
    refused!("F.fsmount", MOUNTS, libc::SYS_fsmount),
    refused!("F.fspick", MOUNTS, libc::SYS_fspick),
    refused!("F.move_mount", MOUNTS, libc::SYS_move_mount),
    refused!("F.open_tree", MOUNTS, libc::SYS_open_tree),
    refused!("F.open_tree_attr", MOUNTS, 467),
    refused!("F.mount_setattr", MOUNTS, libc::SYS_mount_setattr),
    refused!("F.setns", "enters another namespace", libc::SYS_setns),
    probe("F.unshare-mount", SPACES, || unshare(CLONE_NEWNS.into())),
    probe("F.unshare-user", SPACES, || unshare(CLONE_NEWUSER.into())),
    probe("F.unshare-pid", SPACES, || unshare(CLONE_NEWPID.into())),
    probe("F.unshare-net", SPACES, || unshare(CLONE_NEWNET.into())),
    probe("F.unshare-ipc", SPACES, || unshare(CLONE_NEWIPC.into())),
    probe("F.unshare-uts", SPACES, || unshare(CLONE_NEWUTS.into())),
    probe("F.unshare-cgroup", SPACES, || unshare(CLONE_NEWCGROUP.into())),
    probe("F.unshare-time", SPACES, || unshare(0x80)),
    probe("F.unshare-user-and-high-bits", "the kernel looks at 32 bits of it, and so must the filter", || {
        unshare(i64::from(CLONE_NEWUSER) | 1 << 40)
    }),
    probe("F.clone-mount", SPACES, || clone(CLONE_NEWNS.into())),
    probe("F.clone-user", SPACES, || clone(CLONE_NEWUSER.into())),
    probe("F.clone-pid", SPACES, || clone(CLONE_NEWPID.into())),
    probe("F.clone-net", SPACES, || clone(CLONE_NEWNET.into())),
    probe("F.clone-ipc", SPACES, || clone(CLONE_NEWIPC.into())),
    probe("F.clone-uts", SPACES, || clone(CLONE_NEWUTS.into())),
    probe("F.clone-cgroup", SPACES, || clone(CLONE_NEWCGROUP.into())),
    probe("F.clone-user-and-high-bits", "the kernel drops the high bits, and so must the filter", || {
        clone(i64::from(CLONE_NEWUSER) | 1 << 40)
    }),
    refused!(
        "F.clone3",
        "its flags lie in memory, where no filter sees them: ENOSYS, then libraries use clone",
        libc::SYS_clone3
    ),
    refused!("F.ptrace", OTHERS, libc::SYS_ptrace),
    refused!("F.process_vm_readv", OTHERS, libc::SYS_process_vm_readv),
    refused!("F.process_vm_writev", OTHERS, libc::SYS_process_vm_writev),
    refused!("F.pidfd_getfd", OTHERS, libc::SYS_pidfd_getfd),
    refused!("F.kcmp", OTHERS, libc::SYS_kcmp),
    refused!("F.bpf", KERNEL, libc::SYS_bpf),
    refused!("F.perf_event_open", KERNEL, libc::SYS_perf_event_open),
    refused!("F.userfaultfd", "stops the kernel in the middle of a copy", libc::SYS_userfaultfd),
    refused!("W65.io_uring_setup", RING, libc::SYS_io_uring_setup),
    refused!("W65.io_uring_enter", RING, libc::SYS_io_uring_enter),
    refused!("W65.io_uring_register", RING, libc::SYS_io_uring_register),
    refused!("F.keyctl", KEYS, libc::SYS_keyctl),
    refused!("F.add_key", KEYS, libc::SYS_add_key),
    refused!("F.request_key", KEYS, libc::SYS_request_key),
    refused!("F.kexec_load", KERNEL, libc::SYS_kexec_load),
    refused!("F.kexec_file_load", KERNEL, libc::SYS_kexec_file_load),
    refused!("F.init_module", KERNEL, libc::SYS_init_module),
    refused!("F.finit_module", KERNEL, libc::SYS_finit_module),
    refused!("F.delete_module", KERNEL, libc::SYS_delete_module),
    refused!("F.reboot", KERNEL, libc::SYS_reboot),
    refused!("F.swapon", KERNEL, libc::SYS_swapon),
    refused!("F.swapoff", KERNEL, libc::SYS_swapoff),
    refused!("F.acct", KERNEL, libc::SYS_acct),
    refused!("F.quotactl", KERNEL, libc::SYS_quotactl),
    refused!("F.quotactl_fd", KERNEL, libc::SYS_quotactl_fd),
    refused!("F.syslog", "the host's kernel log", libc::SYS_syslog),
    refused!("F.lookup_dcookie", KERNEL, libc::SYS_lookup_dcookie),
    refused!("F.name_to_handle_at", "handles lead around mounts", libc::SYS_name_to_handle_at),
    refused!("F.open_by_handle_at", "handles lead around mounts", libc::SYS_open_by_handle_at),
    #[cfg(target_arch = "x86_64")]
    refused!("F.iopl", KERNEL, libc::SYS_iopl),
    #[cfg(target_arch = "x86_64")]
    refused!("F.ioperm", KERNEL, libc::SYS_ioperm),
    probe("F.i386-getpid", "numbers of another architecture mean other calls", || int80(20).into()),
    probe("F.i386-mount", "mount by its i386 number", || int80(21).into()),
    #[cfg(target_arch = "x86_64")]
    probe("F.x32-getpid", "a bit in the number makes it another call for a filter; as on a kernel without x32", || {
        sys(0x4000_0000 | libc::SYS_getpid, &mut [])
    }),
    #[cfg(target_arch = "x86_64")]
    probe("F.x32-mount", "mount by its x32 number", || sys(0x4000_0000 | libc::SYS_mount, &mut [])),
    probe("F.number-past-the-last", "what no kernel has", || sys(9999, &mut [])),
    probe("F.number-with-high-bits", "the kernel takes 32 bits of a number; so does the filter", || {
        sys((1 << 32) | libc::SYS_mount, &mut [])
    }),
    probe("F.chroot", "needs a capability", || sys(libc::SYS_chroot, &mut [crate::aid::s(c"/tmp")])),
    probe("F.settimeofday", "the host's clock", || sys(libc::SYS_settimeofday, &mut [Arg::In(&[0; 16]), NULL])),
    probe("F.clock_settime", "the host's clock", || sys(libc::SYS_clock_settime, &mut [n(0), Arg::In(&[0; 16])])),
    probe("F.adjtimex", "the host's clock: ADJ_OFFSET", || {
        let mut timex = [0; 256];
        timex[0] = 1;
        sys(libc::SYS_adjtimex, &mut [Arg::Out(&mut timex)])
    }),
    probe("F.sethostname", "the generation's name is the supervisor's to give", || {
        sys(libc::SYS_sethostname, &mut [crate::aid::s(c"owned"), n(5)])
    }),
    probe("F.setdomainname", "likewise", || sys(libc::SYS_setdomainname, &mut [crate::aid::s(c"owned"), n(5)])),
    probe("F.vhangup", "hangs up a terminal for all", || sys(libc::SYS_vhangup, &mut [])),
    probe("F.fanotify_init", "watches whole mounts", || sys(libc::SYS_fanotify_init, &mut [n(0), n(0)])),
];
