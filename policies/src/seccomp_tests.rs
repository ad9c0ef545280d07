//! The programs, loaded for real: a filter holds for the thread that loads it and what it starts.

use std::{io, os::fd::AsRawFd as _, process::Command, thread};

use super::*;

/// Runs `work` on a thread of its own that has the filters.
fn confined<T: Send + 'static>(profile: SeccompProfile, work: impl FnOnce() -> T + Send + 'static) -> T {
    thread::spawn(move || {
        let here = Machine { arch: TargetArch::x86_64, number: |denied| Some(denied.number) };
        for program in programs_for(profile, here).unwrap() {
            seccompiler::apply_filter(&program).unwrap();
        }
        work()
    })
    .join()
    .unwrap()
}

/// A little interpreter of classic BPF, so that every row is tried, also those that need arguments no safe call takes.
fn answer(arch: u32, number: i64, args: [u64; 6]) -> u32 {
    answer_of(SeccompProfile::Floor, arch, number, args)
}

fn answer_of(profile: SeccompProfile, arch: u32, number: i64, args: [u64; 6]) -> u32 {
    judged(&programs(profile).unwrap(), arch, number, args)
}

/// What a kernel with `programs` loaded says to a call.
fn judged(programs: &[Vec<u64>], arch: u32, number: i64, args: [u64; 6]) -> u32 {
    let mut data = vec![u32::try_from(number & 0xffff_ffff).unwrap(), arch, 0, 0];
    for arg in args {
        data.push(u32::try_from(arg & 0xffff_ffff).unwrap());
        data.push(u32::try_from(arg >> 32).unwrap());
    }
    // The last one loaded is asked first, and of answers of one kind the first counts.
    let answers = programs.iter().rev().map(|program| {
        let (mut at, mut acc) = (0, 0u32);
        loop {
            let op = program[at];
            let (code, jt, jf) = (op >> 48, (op >> 40 & 0xff) as usize, (op >> 32 & 0xff) as usize);
            let k = u32::try_from(op & 0xffff_ffff).unwrap();
            at += 1;
            match code {
                0x20 => acc = data[k as usize / 4],
                0x54 => acc &= k,
                0x05 => at += k as usize,
                0x15 => at += if acc == k { jt } else { jf },
                0x25 => at += if acc > k { jt } else { jf },
                0x35 => at += if acc >= k { jt } else { jf },
                0x06 => break k,
                other => panic!("instruction {other:#x}"),
            }
        }
    });
    // The kernel takes the answer with the highest precedence; as signed numbers that is the least.
    answers.min_by_key(|answer| (answer & 0xffff_0000).cast_signed()).unwrap()
}

#[cfg(target_arch = "x86_64")]
const HERE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const HERE: u32 = 0xc000_00b7;

fn errno(error: c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | bits(error)
}

#[test]
fn every_row_without_conditions_is_refused_with_its_errno() {
    for denied in TABLE.iter().filter(|denied| denied.when.is_empty()) {
        assert_eq!(answer(HERE, denied.number, [0; 6]), errno(denied.errno), "{}", denied.name);
    }
}

/// A row that goes missing is a hole nobody sees.
#[test]
fn the_floor_has_all_its_rows() {
    let names: Vec<&str> = TABLE.iter().map(|denied| denied.name).collect();
    for name in "clone3 mount umount2 pivot_root fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr \
                 mount_setattr setns unshare clone ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp bpf \
                 perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key \
                 kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff acct quotactl \
                 quotactl_fd syslog lookup_dcookie name_to_handle_at open_by_handle_at ioctl sendto sendmsg sendmmsg \
                 setsockopt socket socketpair"
        .split_whitespace()
    {
        assert_eq!(names.iter().filter(|known| **known == name).count(), 1, "{name}");
    }
}

#[test]
fn rows_with_conditions_are_refused_only_when_they_hold() {
    let allow = libc::SECCOMP_RET_ALLOW;
    let thread = 0x003d_0f00; // What pthread_create asks for.
    let high = 0xdead_0000_0000_0000;
    for (number, args, expected) in [
        (libc::SYS_clone, [0x11, 0, 0, 0, 0, 0], allow),
        (libc::SYS_clone, [thread, 0, 0, 0, 0, 0], allow),
        (libc::SYS_clone, [0x4000 | 0x100 | 0x11, 0, 0, 0, 0, 0], allow),
        (libc::SYS_clone, [0x1000_0011, 0, 0, 0, 0, 0], errno(EPERM)),
        (libc::SYS_clone, [high | 0x0002_0011, 0, 0, 0, 0, 0], errno(EPERM)),
        (libc::SYS_unshare, [0x400, 0, 0, 0, 0, 0], allow),
        (libc::SYS_unshare, [0x80, 0, 0, 0, 0, 0], errno(EPERM)),
        (libc::SYS_unshare, [0x4000_0000, 0, 0, 0, 0, 0], errno(EPERM)),
        (libc::SYS_ioctl, [0, 0x5401, 0, 0, 0, 0], allow),
        (libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0], errno(EPERM)),
        // The kernel looks at 32 bits of the request: so must the filter.
        (libc::SYS_ioctl, [0, high | 0x5412, 0, 0, 0, 0], errno(EPERM)),
        (libc::SYS_ioctl, [0, 0x541c, 0, 0, 0, 0], errno(EPERM)),
        (libc::SYS_socket, [1, 1, 0, 0, 0, 0], allow),
        (libc::SYS_socket, [2, 1, 6, 0, 0, 0], allow),
        (libc::SYS_socket, [10, 2, 17, 0, 0, 0], allow),
        (libc::SYS_socket, [16, 3, 0, 0, 0, 0], allow),
        (libc::SYS_socket, [16, 3, 9, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [17, 3, 0, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [40, 1, 0, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [31, 1, 0, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [2, 1, 262, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [10, 1, 256, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [2, 1, 132, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [1, 5, 0, 0, 0, 0], allow),
        (libc::SYS_socket, [1, 0x80805, 0, 0, 0, 0], allow),
        (libc::SYS_socket, [2, 5, 0, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [10, 5, 0, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [2, 0x80805, 0, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [high | 2, high | 5, 0, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socket, [2, 0x80801, 0, 0, 0, 0], allow),
        (libc::SYS_socketpair, [1, 1, 0, 0, 0, 0], allow),
        (libc::SYS_socketpair, [1, 0x80805, 0, 0, 0, 0], allow),
        (libc::SYS_socketpair, [2, 1, 0, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socketpair, [10, 1, 262, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socketpair, [30, 5, 0, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_socketpair, [high | 2, 1, 0, 0, 0, 0], errno(EAFNOSUPPORT)),
        (libc::SYS_sendto, [3, 0, 0, 0x4000, 0, 0], allow),
        (libc::SYS_sendto, [3, 0, 0, 0x2000_4000, 0, 0], errno(EPERM)),
        (libc::SYS_sendmsg, [3, 0, 0x2000_0000, 0, 0, 0], errno(EPERM)),
        (libc::SYS_sendmsg, [3, 0, 0x4000, 0x2000_0000, 0, 0], allow),
        (libc::SYS_sendmmsg, [3, 0, 1, 0x2000_0000, 0, 0], errno(EPERM)),
        (libc::SYS_setsockopt, [3, 6, 1, 0, 4, 0], allow),
        (libc::SYS_setsockopt, [3, 1, 31, 0, 4, 0], allow),
        (libc::SYS_setsockopt, [3, 6, 31, 0, 3, 0], errno(EPERM)),
        (libc::SYS_setsockopt, [3, high | 6, high | 31, 0, 3, 0], errno(EPERM)),
        (libc::SYS_execve, [0; 6], allow),
        (libc::SYS_openat, [0; 6], allow),
        (libc::SYS_seccomp, [0; 6], allow),
        (libc::SYS_prctl, [0; 6], allow),
    ] {
        assert_eq!(answer(HERE, number, args), expected, "call {number} with {args:x?}");
    }
}

#[test]
fn calls_of_another_architecture_are_not_answered_by_number() {
    let i386 = 0x4000_0003;
    assert_eq!(answer(i386, 1, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn x32_calls_are_refused() {
    for number in [libc::SYS_mount, libc::SYS_read, libc::SYS_ptrace] {
        assert_eq!(answer(HERE, number | 0x4000_0000, [0; 6]), errno(ENOSYS));
    }
}

#[test]
fn the_kernel_refuses_what_the_table_says() {
    confined(SeccompProfile::Floor, refused);
    confined(SeccompProfile::Strict, refused);
}

fn refused() {
    use nix::{
        errno::Errno,
        mount::{MsFlags, mount, umount},
        sched::{CloneFlags, unshare},
        sys::{
            ptrace,
            socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket, socketpair},
        },
    };
    {
        let none: Option<&str> = None;
        assert_eq!(mount(Some("x"), "/tmp", Some("tmpfs"), MsFlags::empty(), none), Err(Errno::EPERM));
        assert_eq!(umount("/nowhere"), Err(Errno::EPERM), "not ENOENT: refused before the path is looked at");
        assert_eq!(ptrace::traceme(), Err(Errno::EPERM));
        for flag in [CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_NEWNET, CloneFlags::CLONE_NEWNS] {
            assert_eq!(unshare(flag), Err(Errno::EPERM));
        }
        assert_eq!(unshare(CloneFlags::CLONE_FS), Ok(()));
        let open = |family, kind, protocol| socket(family, kind, SockFlag::empty(), protocol).map(drop);
        let any: Option<SockProtocol> = None;
        assert_eq!(open(AddressFamily::Packet, SockType::Raw, any), Err(Errno::EAFNOSUPPORT));
        assert_eq!(open(AddressFamily::Vsock, SockType::Stream, any), Err(Errno::EAFNOSUPPORT));
        let audit = Some(SockProtocol::NetlinkAudit);
        assert_eq!(open(AddressFamily::Netlink, SockType::Raw, audit), Err(Errno::EAFNOSUPPORT));
        assert_eq!(open(AddressFamily::Netlink, SockType::Raw, Some(SockProtocol::NetlinkRoute)), Ok(()));
        assert_eq!(open(AddressFamily::Inet, SockType::Stream, any), Ok(()));
        assert_eq!(open(AddressFamily::Unix, SockType::Stream, any), Ok(()));
        let packets = SockType::SeqPacket;
        assert_eq!(open(AddressFamily::Inet, packets, any), Err(Errno::EAFNOSUPPORT));
        assert_eq!(open(AddressFamily::Unix, packets, any), Ok(()));
        let pair = |family| socketpair(family, packets, any, SockFlag::SOCK_CLOEXEC).map(drop);
        assert_eq!(pair(AddressFamily::Inet), Err(Errno::EAFNOSUPPORT));
        assert_eq!(pair(AddressFamily::Unix), Ok(()));
        let tcp = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), any).unwrap();
        let fast = MsgFlags::from_bits_retain(MSG_FASTOPEN);
        assert_eq!(send(tcp.as_raw_fd(), b"x", fast), Err(Errno::EPERM));
    }
}

#[test]
fn ordinary_programs_run() {
    confined(SeccompProfile::Floor, ordinary);
    confined(SeccompProfile::Strict, ordinary);
}

fn ordinary() {
    {
        let threads: Vec<_> = (0..4).map(|n| thread::spawn(move || n * 2)).collect();
        assert_eq!(threads.into_iter().map(|t| t.join().unwrap()).sum::<i32>(), 12);
        let output = Command::new("/bin/sh").args(["-c", "echo $(echo a | cat) $((1+1)); exit 3"]).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), b"a 2\n".as_slice()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let mut server = listener.accept().unwrap().0;
        io::Write::write_all(&mut client, b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        io::Read::read_to_string(&mut server, &mut text).unwrap();
        assert_eq!(text, "hello");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "b").unwrap();
        std::fs::rename(folder.path().join("a"), folder.path().join("c")).unwrap();
    }
}

#[test]
fn strict_is_the_floor_and_a_list() {
    let strict = |number, args| answer_of(SeccompProfile::Strict, HERE, number, args);
    let listed: Vec<(&str, i64)> = allowed().collect();
    assert!(listed.len() > 250, "{}", listed.len());
    let known = |number: i64| listed.iter().any(|(_, other)| *other == number);
    for denied in TABLE.iter().filter(|denied| denied.when.is_empty()) {
        assert!(!known(denied.number), "{} is refused by the floor and allowed by the list", denied.name);
        assert_eq!(strict(denied.number, [0; 6]), errno(denied.errno), "{}", denied.name);
    }
    for (name, number) in &listed {
        let conditions = TABLE.iter().any(|denied| denied.number == *number);
        if !conditions {
            assert_eq!(strict(*number, [u64::MAX; 6]), libc::SECCOMP_RET_ALLOW, "{name}");
        }
    }
    for number in 0..600 {
        if !known(number) && !TABLE.iter().any(|denied| denied.number == number) {
            assert_eq!(strict(number, [0; 6]), errno(ENOSYS), "call {number}");
        }
    }
    assert_eq!(strict(libc::SYS_clone, [0x1000_0011, 0, 0, 0, 0, 0]), errno(EPERM), "conditions of the floor hold");
    assert_eq!(answer_of(SeccompProfile::Strict, 0x4000_0003, 1, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
}

/// The numbers are written down for both architectures; those of this one can be checked.
#[test]
fn the_list_has_the_right_numbers() {
    for (name, number) in [
        ("read", libc::SYS_read),
        ("openat", libc::SYS_openat),
        ("execve", libc::SYS_execve),
        ("futex", libc::SYS_futex),
        ("epoll_pwait", libc::SYS_epoll_pwait),
        ("mmap", libc::SYS_mmap),
        ("newfstatat", libc::SYS_newfstatat),
        ("fstat", libc::SYS_fstat),
        ("lseek", libc::SYS_lseek),
        ("fcntl", libc::SYS_fcntl),
        ("statfs", libc::SYS_statfs),
        ("sendfile", libc::SYS_sendfile),
        ("ftruncate", libc::SYS_ftruncate),
        ("getrandom", libc::SYS_getrandom),
        ("rseq", libc::SYS_rseq),
        ("statx", libc::SYS_statx),
        ("openat2", libc::SYS_openat2),
        ("seccomp", libc::SYS_seccomp),
        ("landlock_restrict_self", libc::SYS_landlock_restrict_self),
    ] {
        assert!(allowed().any(|row| row == (name, number)), "{name} is not {number}");
    }
}

/// The rows of the floor: name, number on x86-64, number on arm64. From asm/unistd_64.h and asm-generic/unistd.h.
const NUMBERS: &str = "clone3 435 435, mount 165 40, umount2 166 39, pivot_root 155 41, fsopen 430 430, fsconfig 431 431, \
    fsmount 432 432, fspick 433 433, move_mount 429 429, open_tree 428 428, open_tree_attr 467 467, \
    mount_setattr 442 442, setns 308 268, unshare 272 97, clone 56 220, ptrace 101 117, process_vm_readv 310 270, \
    process_vm_writev 311 271, pidfd_getfd 438 438, kcmp 312 272, bpf 321 280, perf_event_open 298 241, \
    userfaultfd 323 282, io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, keyctl 250 219, \
    add_key 248 217, request_key 249 218, kexec_load 246 104, kexec_file_load 320 294, init_module 175 105, \
    finit_module 313 273, delete_module 176 106, reboot 169 142, swapon 167 224, swapoff 168 225, acct 163 89, \
    quotactl 179 60, quotactl_fd 443 443, syslog 103 116, lookup_dcookie 212 18, name_to_handle_at 303 264, \
    open_by_handle_at 304 265, iopl 172 -, ioperm 173 -, ioctl 16 29, sendto 44 206, sendmsg 46 211, sendmmsg 307 269, \
    setsockopt 54 208, socket 41 198, socketpair 53 199";

fn numbers(name: &str) -> [Option<i64>; 2] {
    let mut rows = NUMBERS.split(',').map(|row| row.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row[0] == name).unwrap_or_else(|| panic!("{name} has no numbers here"));
    [row[1].parse().ok(), row[2].parse().ok()]
}

#[test]
fn the_floor_has_the_right_numbers() {
    let column = usize::from(cfg!(target_arch = "aarch64"));
    for denied in TABLE {
        assert_eq!(numbers(denied.name)[column], Some(denied.number), "{}", denied.name);
    }
}

/// No machine of the other kind is needed to see what its programs say: they are made here, and read by the interpreter.
/// Call by call, by name, both say the same.
#[test]
fn arm64_gets_the_same_answers_by_name() {
    const X86_64: u32 = 0xc000_003e;
    const AARCH64: u32 = 0xc000_00b7;
    fn on(profile: SeccompProfile, arch: TargetArch, number: fn(&Denied) -> Option<i64>) -> Vec<Vec<u64>> {
        programs_for(profile, Machine { arch, number }).unwrap().iter().map(pack).collect()
    }
    // What matters to one row or another: flags of namespaces and Fast Open in each place, terminals, families, protocols.
    let values = [0, 1, 2, 6, 9, 10, 16, 17, 31, 40, 132, 256, 262, 0x80, 0x400, 0x5401, 0x5412, 0x541c];
    let values = values.into_iter().chain([0x1000_0011, 0x2000_0000, 0x2000_4000, 0x4000_0000, u64::MAX]);
    let mut tried = vec![[0u64; 6]];
    for value in values {
        tried.extend((0..6).map(|place| std::array::from_fn(|at| if at == place { value } else { 0 })));
        tried.push([2, value, value, value, 0, 0]);
        tried.push([value, 0x80805, 0, 0, 0, 0]);
        tried.push([16, 6, value, value, 0, 0]);
        tried.push([3, 6, 31, value, 4, 0]);
    }
    for profile in [SeccompProfile::Floor, SeccompProfile::Strict] {
        let ours = on(profile, TargetArch::x86_64, |denied| numbers(denied.name)[0]);
        let theirs = on(profile, TargetArch::aarch64, |denied| numbers(denied.name)[1]);
        let listed = |arch| allowed_on(arch).collect::<BTreeMap<&str, i64>>();
        let (left, right) = (listed(TargetArch::x86_64), listed(TargetArch::aarch64));
        let both = left.iter().filter_map(|(name, number)| Some((*name, *number, *right.get(name)?)));
        let floor = TABLE.iter().filter_map(|denied| {
            let [here, there] = numbers(denied.name);
            Some((denied.name, here?, there?))
        });
        let calls: Vec<_> = both.chain(floor).collect();
        assert!(calls.len() > 250, "{}", calls.len());
        let mut refused = 0;
        for (name, here, there) in calls {
            for args in &tried {
                let answer = judged(&theirs, AARCH64, there, *args);
                assert_eq!(answer, judged(&ours, X86_64, here, *args), "{name} {args:x?}");
                refused += usize::from(answer != libc::SECCOMP_RET_ALLOW);
            }
            assert_eq!(
                judged(&theirs, X86_64, here, [0; 6]),
                libc::SECCOMP_RET_KILL_PROCESS,
                "{name}, of the other kind"
            );
            assert_eq!(
                judged(&theirs, 0x4000_0028, there, [0; 6]),
                libc::SECCOMP_RET_KILL_PROCESS,
                "{name}, of 32 bits"
            );
        }
        assert!(refused > 1000, "{refused}");
        // Numbers that nothing is known of.
        let known: Vec<i64> =
            right.values().copied().chain(TABLE.iter().filter_map(|row| numbers(row.name)[1])).collect();
        for number in (0..600).filter(|number| !known.contains(number)) {
            let expected = if profile == SeccompProfile::Strict { errno(ENOSYS) } else { libc::SECCOMP_RET_ALLOW };
            assert_eq!(judged(&theirs, AARCH64, number, [0; 6]), expected, "call {number}");
        }
    }
}
