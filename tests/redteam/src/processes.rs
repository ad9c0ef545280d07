//! Other processes: the init of the generation, those of the container, those that should have ended; namespaces; limits;
//! the notify socket.
//!
//! In: `/proc`. Out: what the kernel says. Must not: end the workload or its init (where an attempt could, that it cannot
//! is the expectation), or slow either down for good.

use std::{
    fs,
    io::{self, Read as _, Seek as _},
    os::fd::AsRawFd as _,
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use rustix::{
    fs::{FlockOperation, OFlags},
    process::{Pid, PidfdFlags, Resource, Rlimit, WaitOptions},
};

use crate::{
    aid::{NULL, STATE, n, open, refused, s, status, sys, write},
    network,
    probe::{Answer, Probe, in_child, probe},
    raw::{self, Arg, Fork, call},
};

const NOTIFY: &str = "/run/molt/notify";
/// What an unfinished wait for a state comes to.
const LONG: Duration = Duration::from_secs(15);

fn kill(pid: i64, signal: i64) -> Result<i64, Errno> {
    call(libc::SYS_kill, &mut [n(pid), n(signal)])
}

/// Every signal to init. Those it does not handle are dropped by the kernel, KILL and STOP among them.
fn storm() -> Answer {
    let refused = (1..=64).map(|signal| kill(1, signal)).find(Result::is_err);
    refused.unwrap_or(Ok(0)).and_then(|_| kill(1, 0)).into()
}

fn by_descriptor(signal: i64) -> Answer {
    let attempt = || {
        let init = rustix::process::pidfd_open(Pid::INIT, PidfdFlags::empty())
            .map_err(|code| Errno::from_raw(code.raw_os_error()))?;
        call(libc::SYS_pidfd_send_signal, &mut [n(init.as_raw_fd().into()), n(signal), NULL, n(0)])?;
        kill(1, 0)
    };
    attempt().into()
}

/// A queued signal with an origin of one's own choice.
fn forged_origin() -> Answer {
    let mut info = [0u8; 128];
    // si_signo, si_code: SI_USER would be kill(2)'s own, which the kernel refuses to have forged to others.
    if let Some(number) = info.get_mut(0) {
        *number = 15;
    }
    sys(libc::SYS_rt_sigqueueinfo, &mut [n(1), n(15), Arg::In(&info)])
}

fn everyone() -> Answer {
    // URG is ignored by whoever does not ask for it.
    kill(-1, libc::SIGURG.into()).into()
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn field_of(pid: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// Processes of another user than one's own: nothing of the container's may be seen.
fn strangers() -> Answer {
    let own = status("Uid");
    let seen = pids();
    if seen.is_empty() {
        return Answer::word("unreadable");
    }
    let strange = seen.iter().filter_map(|pid| field_of(*pid, "Uid")).filter(|uid| uid.replace('\t', ",") != own);
    Answer::first(strange.map(|_| "seen".to_owned()), "none")
}

/// The supervisor by the name of its program.
fn supervisor() -> Answer {
    let names = pids().into_iter().filter_map(|pid| field_of(pid, "Name"));
    Answer::first(names.filter(|name| name == "molt").map(|_| "seen".to_owned()), "none")
}

/// How many pids a generation can see from itself on: one, its own.
fn nested() -> Answer {
    Answer::word(if status("NSpid").contains(',') { "outer" } else { "own" })
}

fn read(path: &str) -> Answer {
    let attempt = || {
        let mut byte = [0; 1];
        fs::File::open(path)?.read(&mut byte)
    };
    attempt().into()
}

fn memory_of_init() -> Answer {
    let attempt = || {
        let mut file = fs::File::open("/proc/1/mem")?;
        file.seek(io::SeekFrom::Start(0x1000))?;
        file.read(&mut [0; 8])
    };
    attempt().into()
}

fn link(path: &str) -> Answer {
    fs::read_link(path).into()
}

fn list(path: &str) -> Answer {
    fs::read_dir(path).into()
}

fn enter(space: &str) -> Answer {
    let attempt = || {
        let fd = open(&format!("/proc/self/ns/{space}"), OFlags::RDONLY)
            .map_err(|code| Errno::from_raw(code.raw_os_error()))?;
        call(libc::SYS_setns, &mut [n(fd.as_raw_fd().into()), n(0)])
    };
    attempt().into()
}

fn open_space(pid: &str, space: &str) -> Answer {
    open(&format!("/proc/{pid}/ns/{space}"), OFlags::RDONLY).into()
}

/// PTRACE_TRACEME, ATTACH and SEIZE on a child of one's own, and on init.
fn trace(request: i64, pid: i64) -> Answer {
    sys(libc::SYS_ptrace, &mut [n(request), n(pid), NULL, NULL])
}

fn trace_child() -> Answer {
    match raw::fork() {
        Ok(Fork::Child) => loop {
            std::thread::park();
        },
        Ok(Fork::Parent(pid)) => {
            let answer = trace(0x4206, pid.into());
            let _ = kill(pid.into(), 9);
            answer
        }
        Err(errno) => Err::<(), _>(errno).into(),
    }
}

fn on_init(number: i64) -> Answer {
    let init = rustix::process::pidfd_open(Pid::INIT, PidfdFlags::empty());
    match init {
        // Runtimes forbid these calls, too, each with its own errno.
        Ok(fd) => refused(call(number, &mut [n(fd.as_raw_fd().into()), n(0), n(0)]).map_err(Into::into)),
        other => other.into(),
    }
}

/// One Landlock layer more; how many go on top of the one that is there: fifteen.
fn stack() -> Answer {
    const NO_RIGHTS_HANDLED_BUT_EXECUTE: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
    let mut layers = 0;
    let end = loop {
        let ruleset =
            call(libc::SYS_landlock_create_ruleset, &mut [Arg::In(&NO_RIGHTS_HANDLED_BUT_EXECUTE), n(8), n(0)]);
        let entered = ruleset.and_then(|fd| call(libc::SYS_landlock_restrict_self, &mut [n(fd), n(0)]));
        match entered {
            Ok(_) if layers < 64 => layers += 1,
            Ok(_) => break "endless".to_owned(),
            Err(errno) => break format!("{errno:?}"),
        }
    };
    Answer::word(format!("{layers}-then-{end}"))
}

/// A filter of one's own on top: allowed, and it cannot take one away.
fn own_filter() -> Answer {
    let filter = nix::libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 };
    let words: Vec<u8> =
        [filter.code.to_ne_bytes().as_slice(), &[filter.jt, filter.jf], &filter.k.to_ne_bytes()].concat();
    let mut program = vec![0u8; 16];
    let address = (words.as_ptr() as usize).to_ne_bytes();
    if let Some(place) = program.get_mut(..2) {
        place.copy_from_slice(&1u16.to_ne_bytes());
    }
    if let Some(place) = program.get_mut(8..16) {
        place.copy_from_slice(&address);
    }
    let loaded = call(libc::SYS_seccomp, &mut [n(1), n(0), Arg::In(&program)]);
    drop(words);
    match loaded {
        // Does the floor still stand?
        Ok(_) => sys(libc::SYS_bpf, &mut [n(-1), n(-1), n(-1)]),
        other => other.into(),
    }
}

/// A program from memory: written to no place that a policy could name.
fn from_memory() -> Answer {
    let attempt = || -> Result<(), Errno> {
        let fd = call(libc::SYS_memfd_create, &mut [s(c"program"), n(0)])?;
        let path = format!("/proc/self/fd/{fd}");
        let program = fs::read("/proc/self/exe").map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        let plain = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        write(&path, "").map_err(plain)?;
        fs::write(&path, program).map_err(plain)?;
        std::process::Command::new(&path).arg("--nothing").status().map_err(plain)?;
        Ok(())
    };
    attempt().into()
}

/// A program by a descriptor that was opened without any right.
fn by_open_descriptor(path: &str) -> Answer {
    let attempt = || {
        let fd = open(path, OFlags::PATH).map_err(|code| Errno::from_raw(code.raw_os_error()))?;
        let (number, empty) = (i64::from(fd.as_raw_fd()), i64::from(libc::AT_EMPTY_PATH));
        // With null for both the kernel gives it one argument that is empty, by which it knows to end at once.
        call(libc::SYS_execveat, &mut [n(number), s(c""), NULL, NULL, n(empty)])
    };
    attempt().into()
}

fn score(value: &str) -> Answer {
    write("/proc/self/oom_score_adj", value).into()
}

/// Above the hard limit.
fn raise(resource: Resource) -> Answer {
    let hard = rustix::process::getrlimit(resource).maximum;
    let Some(hard) = hard else { return Answer::word("unlimited") };
    let more = Some(hard + 1);
    rustix::process::setrlimit(resource, Rlimit { current: more, maximum: more }).into()
}

fn core_size() -> Answer {
    let limit = rustix::process::getrlimit(Resource::Core);
    Answer::word(format!("{:?}/{:?}", limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX)))
}

/// Five hundred orphans at once; none may stay a zombie.
fn orphans() -> Answer {
    for _ in 0..500 {
        match raw::fork() {
            Ok(Fork::Child) => {
                // Its own child is left to init.
                match raw::fork() {
                    Ok(_) => raw::exit(0),
                    Err(_) => raw::exit(1),
                }
            }
            Ok(Fork::Parent(pid)) => {
                let _ = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty());
            }
            Err(errno) => return Err::<(), _>(errno).into(),
        }
    }
    let zombies = || {
        pids().into_iter().filter(|pid| {
            let of = |name| field_of(*pid, name).unwrap_or_default();
            of("PPid") == "1" && of("State").starts_with('Z')
        })
    };
    let start = Instant::now();
    while zombies().next().is_some() {
        if start.elapsed() > LONG {
            return Answer::word("left");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Answer::word("reaped")
}

fn say(bytes: &[u8]) -> Answer {
    let attempt = || {
        let socket = UnixDatagram::unbound()?;
        socket.send_to(bytes, NOTIFY)
    };
    attempt().into()
}

fn flood() -> Answer {
    let attempt = || -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        for _ in 0..10_000 {
            match socket.send_to(b"STATUS=x\n", NOTIFY) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                result => drop(result?),
            }
        }
        Ok(())
    };
    attempt().into()
}

/// A process of its own session that ignores what it can, holds a lock in the state, and waits to be forgotten. The next
/// generation looks whether it was.
fn survivor() -> Answer {
    let path = format!("{STATE}/.survivor");
    let Ok(file) = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path) else {
        return Answer::word("no-state");
    };
    let seen = fs::read_to_string(&path).unwrap_or_default();
    let space = link_text("/proc/self/ns/pid");
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        // One of this very generation is as it should be.
        return Answer::word(if seen == space { "none" } else { "survivor" });
    }
    let _ = fs::write(&path, space);
    if let Ok(Fork::Child) = raw::fork() {
        let _ = rustix::process::setsid();
        if let Ok(Fork::Child) = raw::fork() {
            let _ = call(libc::SYS_rt_sigprocmask, &mut [n(0), Arg::In(&u64::MAX.to_ne_bytes()), NULL, n(8)]);
            // The lock goes with the last descriptor of this open file; the streams are none of its business.
            for number in 0..3 {
                let _ = call(libc::SYS_close, &mut [n(number)]);
            }
            loop {
                std::thread::park();
            }
        }
        raw::exit(0);
    }
    Answer::word("none")
}

fn link_text(path: &str) -> String {
    fs::read_link(path).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

fn realtime() -> Answer {
    sys(libc::SYS_sched_setscheduler, &mut [n(0), n(1), Arg::In(&1i32.to_ne_bytes())])
}

fn robust_list() -> Answer {
    sys(libc::SYS_get_robust_list, &mut [n(1), Arg::Out(&mut [0; 8]), Arg::Out(&mut [0; 8])])
}

/// Every probe of this file.
pub(crate) const PROBES: &[Probe] = &[
    probe("W59.init-is-there", "the init is the workload's own user: it may be asked for", || kill(1, 0).into()),
    probe("W59.kill-init", "KILL from within its own namespace does not reach an init", || {
        kill(1, 9).and_then(|_| kill(1, 0)).into()
    }),
    probe("W59.storm", "every signal there is; init lives", storm),
    probe("W59.kill-init-by-descriptor", "likewise by pidfd", || by_descriptor(9)),
    probe("W59.stop-init-by-descriptor", "likewise STOP", || by_descriptor(19)),
    probe("W59.kill-init-thread", "likewise by thread", || {
        call(libc::SYS_tgkill, &mut [n(1), n(1), n(9)]).and_then(|_| kill(1, 0)).into()
    }),
    probe("W59.forged-origin", "a signal that says it comes from kill(2)", forged_origin),
    probe("W59.everyone", "all processes that may be signalled: one's own generation's", everyone),
    probe("W59.strangers", "no process of another user is seen", strangers),
    probe("W59.supervisor", "the supervisor is not seen", supervisor),
    probe("W59.own-namespace", "pids are those of the generation", nested),
    probe("W60.attach-init", "traces the shim", || trace(16, 1)),
    probe("W60.seize-init", "likewise", || trace(0x4206, 1)),
    probe("W60.seize-child", "its own, even", trace_child),
    probe("W60.traceme", "its parent", || trace(0, 0)),
    probe("W60.memory-of-init", "the shim is not dumpable", memory_of_init),
    probe("W60.environment-of-init", "likewise", || read("/proc/1/environ")),
    probe("W60.maps-of-init", "likewise", || read("/proc/1/maps")),
    probe("W60.descriptors-of-init", "likewise: its control socket", || list("/proc/1/fd")),
    probe("W60.descriptor-of-init", "likewise: opened by number", || read("/proc/1/fd/0")),
    probe("W60.stack-of-init", "likewise", || read("/proc/1/stack")),
    probe("W60.syscall-of-init", "likewise", || read("/proc/1/syscall")),
    probe("W60.io-of-init", "likewise", || read("/proc/1/io")),
    probe("W60.auxv-of-init", "likewise", || read("/proc/1/auxv")),
    probe("W60.pagemap-of-init", "likewise", || read("/proc/1/pagemap")),
    probe("W60.program-of-init", "likewise", || link("/proc/1/exe")),
    probe("W60.command-line-of-init", "holds nothing but the shim's name", || read("/proc/1/cmdline")),
    probe("W60.tasks-of-init", "its threads are no secret", || list("/proc/1/task")),
    probe("W60.score-of-init", "makes the kernel kill it first", || write("/proc/1/oom_score_adj", "1000").into()),
    probe("W60.name-of-init", "renames it", || write("/proc/1/comm", "x").into()),
    probe("W60.advise-init", "acts on its memory", || on_init(libc::SYS_process_madvise)),
    probe("W60.robust-list-of-init", "reads its addresses", robust_list),
    probe("W60.file-of-init-by-pidfd", "takes its descriptors", || on_init(libc::SYS_pidfd_getfd)),
    probe("W61.root-of-init", "another root, if it had one", || list("/proc/1/root/etc")),
    probe("W61.working-folder-of-init", "likewise", || list("/proc/1/cwd")),
    probe("W61.root-of-init-link", "where it is", || link("/proc/1/root")),
    probe("W61.root-of-own-task", "its own root is the generation's", || list("/proc/thread-self/root/data")),
    probe("W61.map_files-of-init", "its files", || list("/proc/1/map_files")),
    probe("W62.enter-own-mount-namespace", "setns, even to where it is", || enter("mnt")),
    probe("W62.enter-own-pid-namespace", "likewise", || enter("pid")),
    probe("W62.enter-own-user-namespace", "likewise", || enter("user")),
    probe("W62.enter-own-network", "likewise", || enter("net")),
    probe("W62.open-mount-namespace-of-init", "a descriptor to enter it by", || open_space("1", "mnt")),
    probe("W62.open-user-namespace-of-init", "likewise", || open_space("1", "user")),
    probe("W62.uid_map", "ids of one's own", || write("/proc/self/uid_map", "0 1000 1").into()),
    probe("W62.setgroups", "groups of one's own", || write("/proc/self/setgroups", "deny").into()),
    probe("W62.namespace-then-mount", "the way of every sandbox escape: a user namespace, then a mount in it", || {
        let spaces = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
        let attempt = || {
            call(libc::SYS_unshare, &mut [n(spaces.into())])?;
            call(libc::SYS_mount, &mut [s(c"none"), s(c"/tmp"), s(c"tmpfs"), n(0), NULL])
        };
        attempt().into()
    }),
    probe("W63.stack", "Molt uses one Landlock layer of sixteen, so that the workload can nest sandboxes", stack),
    probe("W63.own-filter", "a filter of one's own adds to the floor", own_filter),
    probe(
        "W64.program-from-memory",
        "accepted: Landlock's right to execute is one of files; memory is the workload's",
        from_memory,
    ),
    probe("W64.unlisted-program-by-descriptor", "O_PATH is free, executing is not", || {
        by_open_descriptor("/data/box/program")
    }),
    probe("W76.score-lower", "makes the kernel kill others first", || score("-1000")),
    probe("W76.score-raise", "accepted or not, it only hurts itself", || score("1000")),
    probe("W76.own-core-limit", "no core is ever written", core_size),
    probe("W76.raise-core", "a core file can be written anywhere by a pattern", || raise(Resource::Core)),
    probe("W76.nice-lower", "others' processor", || sys(libc::SYS_setpriority, &mut [n(0), n(0), n(-5)])),
    probe("W76.realtime", "all of the processor", realtime),
    probe("W76.io-realtime", "all of the disk", || sys(libc::SYS_ioprio_set, &mut [n(1), n(0), n(1 << 13)])),
    probe("W77.fork", "its own processes", || in_child(|| Answer::word("ok"))),
    probe("W78.raise-descriptors", "the hard limit holds", || raise(Resource::Nofile)),
    probe("W79.orphans", "init reaps what nobody waits for", orphans),
    probe("W80.notify-garbage", "PID 1 takes no harm from what it cannot read", || say(b"\xff\xfe\0=\n\n==\x1b[2J")),
    probe("W80.notify-huge", "a datagram larger than any", || say(&vec![b'x'; 4 << 20])),
    probe("W80.notify-long", "one line of 60 KB", || say(&[b'A'; 60_000])),
    probe("W80.notify-empty", "nothing at all", || say(b"")),
    probe("W80.notify-flood", "as many as it takes", flood),
    probe("W80.notify-descriptor", "descriptors for PID 1 to leak", || network::descriptor_to(NOTIFY)),
    probe("W80.notify-forged", "as root, it says", || network::forged_to(NOTIFY)),
    probe(
        "Q81.survivor",
        "what left its session, ignored its signals and held on is gone with its generation",
        survivor,
    ),
    probe("Q83.fuse", "a file system that never answers would hold up the end of a generation", || {
        crate::aid::absent("/dev/fuse")
    }),
    probe("Q88.init-has-no-parent", "init belongs to nobody here", || {
        Answer::word(field_of(1, "PPid").unwrap_or_else(|| "unreadable".to_owned()))
    }),
];
