//! What ordinary programs do, and must still be able to: a wall that is too thick is a fault, too.
//!
//! In: nothing. Out: `ok`, everywhere. Must not: hold an attack.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
};

use crate::{
    aid::{NULL, STATE, TMP, n, s, sys},
    probe::{Answer, Probe, in_child, probe},
    raw::{Arg, call},
};

fn thread() -> Answer {
    in_child(|| std::thread::Builder::new().spawn(|| ()).map(|thread| thread.join().is_ok()).into())
}

fn write_and_rename() -> Answer {
    let attempt = || {
        let (fresh, path) = (format!("{STATE}/.control.new"), format!("{STATE}/.control"));
        let mut file = fs::File::create(&fresh)?;
        file.write_all(b"text")?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        fs::File::open(STATE)?.sync_all()?;
        fs::remove_file(path)
    };
    attempt().into()
}

fn pair() -> Answer {
    let attempt = || {
        let (mut a, mut b) = UnixStream::pair()?;
        a.write_all(b"x")?;
        b.read_exact(&mut [0])
    };
    attempt().into()
}

fn shell() -> Answer {
    let attempt = || std::process::Command::new("/bin/sh").args(["-c", "exit 0"]).status();
    attempt().into()
}

fn lock() -> Answer {
    let attempt = || {
        let path = format!("{TMP}/control-lock");
        let file = fs::File::create(&path)?;
        let locked = file.try_lock().is_ok();
        fs::remove_file(path)?;
        Ok::<_, std::io::Error>(locked)
    };
    attempt().into()
}

fn null() -> Answer {
    fs::write("/dev/null", "x").into()
}

fn random() -> Answer {
    let attempt = || fs::File::open("/dev/urandom")?.read_exact(&mut [0; 8]);
    attempt().into()
}

fn shared_memory() -> Answer {
    let path = "/dev/shm/control";
    let answer = fs::write(path, "x");
    let _ = fs::remove_file(path);
    answer.into()
}

fn own_shared_memory() -> Answer {
    let made = call(libc::SYS_shmget, &mut [n(0), n(4096), n(0o1600)]);
    if let Ok(id) = made {
        let _ = call(libc::SYS_shmctl, &mut [n(id), n(0), NULL]);
    }
    made.into()
}

/// Every probe of this file.
pub(crate) const PROBES: &[Probe] = &[
    probe("C.thread", "threads", thread),
    probe("C.shell", "programs", shell),
    probe("C.write-and-rename", "durable files in the state", write_and_rename),
    probe("C.lock", "file locks", lock),
    probe("C.socket-pair", "sockets between its own", pair),
    probe("C.null", "/dev/null", null),
    probe("C.random", "/dev/urandom", random),
    probe("C.shared-memory", "POSIX shared memory", shared_memory),
    probe("C.own-shared-memory", "System V shared memory", own_shared_memory),
    probe("C.terminal", "terminals of its own", || {
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).into()
    }),
    probe("C.getrandom", "random numbers", || sys(libc::SYS_getrandom, &mut [Arg::Out(&mut [0; 8]), n(8), n(0)])),
    probe("C.memory-file", "memory files", || sys(libc::SYS_memfd_create, &mut [s(c"control"), n(1)])),
    probe("C.epoll", "event loops", || sys(libc::SYS_epoll_create1, &mut [n(0)])),
    probe("C.timer", "timers", || sys(libc::SYS_timerfd_create, &mut [n(1), n(0)])),
    probe("C.inotify", "watches", || sys(libc::SYS_inotify_init1, &mut [n(0)])),
    probe("C.netlink-route", "interfaces and addresses are asked for so", || {
        sys(libc::SYS_socket, &mut [n(16), n(3), n(0)])
    }),
    probe("C.unshare-files", "flags that are no namespace", || sys(libc::SYS_unshare, &mut [n(0x400)])),
    probe("C.membarrier", "what runtimes ask for", || sys(libc::SYS_membarrier, &mut [n(0), n(0), n(0)])),
    probe("C.statx", "newer forms of old calls", || {
        sys(libc::SYS_statx, &mut [n(-100), s(c"/bin"), n(0), n(0x7ff), Arg::Out(&mut [0; 256])])
    }),
    probe("C.close_range", "likewise", || sys(libc::SYS_close_range, &mut [n(500), n(600), n(0)])),
    probe("C.lock-memory", "a page that must not be swapped", || {
        let page = [0u8; 64];
        sys(libc::SYS_mlock, &mut [Arg::In(&page), n(64)])
    }),
    probe("C.nice", "less of the processor", || sys(libc::SYS_setpriority, &mut [n(0), n(0), n(5)])),
    probe("C.own-signal", "signals to its own", || sys(libc::SYS_kill, &mut [n(0), n(0)])),
    probe("C.cpu-count", "/proc for runtimes that size themselves", || fs::read("/proc/meminfo").into()),
    probe("C.cpu-online", "/sys likewise", || fs::read("/sys/devices/system/cpu/online").into()),
    probe("C.passwd", "/etc of the image", || fs::read("/etc/passwd").into()),
    probe("C.resolv-conf", "the container's resolver", || fs::read("/etc/resolv.conf").into()),
    probe("C.temporary", "temporary files", || {
        let path = format!("{TMP}/control");
        let answer = fs::write(&path, "x");
        let _ = fs::remove_file(path);
        answer.into()
    }),
];
