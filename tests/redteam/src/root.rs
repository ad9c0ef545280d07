//! How the root is made: its mounts, `/proc`, `/dev`, `/sys`, what was left open, the way back to another root.
//!
//! In: `/proc/self/mountinfo` and paths. Out: a word for "as it should be", or the first thing that is not. Must not:
//! depend on which runtime made the container.

use std::{fs, os::unix::fs::FileTypeExt as _, os::unix::fs::MetadataExt as _};

use rustix::fs::OFlags;

use crate::{
    aid::{STATE, absent, n, open, refused, write},
    probe::{Answer, Probe, probe},
    raw::{Arg, call},
};

/// Mount points a generation may have: its own, and what runtimes mount for every container.
const MOUNTS: [&str; 15] = [
    "/",
    "/proc",
    "/sys",
    "/dev",
    "/tmp",
    "/run/molt",
    "/run/molt/notify",
    STATE,
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/run/secrets",
    "/run/secrets/token",
    "/run/.containerenv",
    "/dev/termination-log",
];
const DEVICES: [(&str, u32, u32); 7] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("ptmx", 5, 2),
];
const DEV: [&str; 15] = [
    "null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr", "pts", "shm",
    "mqueue", "core",
];

struct Mount {
    point: String,
    root: String,
    options: String,
    optional: String,
    kind: String,
}

fn mounts() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut words = before.split(' ').skip(3);
            Some(Mount {
                root: words.next()?.to_owned(),
                point: words.next()?.to_owned(),
                options: words.next()?.to_owned(),
                optional: words.collect::<Vec<_>>().join(","),
                kind: after.split(' ').next()?.to_owned(),
            })
        })
        .collect()
}

fn known(point: &str) -> bool {
    MOUNTS.contains(&point) || ["/proc/", "/sys/", "/dev/"].iter().any(|folder| point.starts_with(folder))
}

fn unexpected_mounts() -> Answer {
    let all = mounts();
    if all.is_empty() {
        return Answer::word("unreadable");
    }
    Answer::first(all.into_iter().map(|mount| mount.point).filter(|point| !known(point)), "expected")
}

/// A node of a device is not a place where anything can be executed from.
fn with_option(option: &'static str) -> Answer {
    let lacks = |mount: &Mount| !mount.options.split(',').any(|word| word == option);
    let device = |mount: &Mount| mount.point.starts_with("/dev/") && mount.kind != "tmpfs" && mount.kind != "devpts";
    let in_dev = |mount: &Mount| option == "nodev" && (mount.point == "/dev" || mount.point.starts_with("/dev/"));
    let masked = |mount: &Mount| mount.point.starts_with("/proc/") && mount.root == "/null";
    let all = mounts();
    let lacking = all.iter().filter(|mount| lacks(mount) && !device(mount) && !in_dev(mount) && !masked(mount));
    Answer::first(lacking.map(|mount| mount.point.clone()), "all")
}

fn read_only(point: &str) -> Answer {
    let all = mounts();
    let last = all.iter().rfind(|mount| mount.point == point);
    Answer::word(match last {
        None => "no-mount",
        Some(mount) if mount.options.split(',').any(|word| word == "ro") => "ro",
        Some(_) => "rw",
    })
}

fn shared() -> Answer {
    let all = mounts();
    let shared = all.iter().filter(|mount| mount.optional.contains("shared:"));
    Answer::first(shared.map(|mount| mount.point.clone()), "none")
}

fn is_a_mount(path: &str) -> Answer {
    let look = |path: &str| fs::symlink_metadata(path).map(|data| (data.dev(), data.is_dir()));
    match (look(path), look("/")) {
        (Ok((of, true)), Ok((root, _))) if of != root => Answer::word("mounted"),
        (Ok(_), Ok(_)) => Answer::word("not-mounted"),
        (Err(error), _) | (_, Err(error)) => Answer::from(Err::<(), _>(error)),
    }
}

fn unexpected_devices() -> Answer {
    let names = match fs::read_dir("/dev") {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())),
        // The policy need not let it be listed.
        Err(_) => return by_name(),
    };
    let mut strange: Vec<String> = names.filter(|name| !DEV.contains(&name.as_str())).collect();
    strange.sort();
    Answer::first(strange, "expected")
}

fn by_name() -> Answer {
    let names =
        ["mem", "kmem", "port", "kmsg", "sda", "vda", "nvme0n1", "loop0", "loop-control", "fuse", "kvm", "console"];
    let there = names.iter().filter(|name| fs::symlink_metadata(format!("/dev/{name}")).is_ok());
    Answer::first(there.map(|name| (*name).to_owned()), "expected")
}

fn devices_are_what_they_say() -> Answer {
    let wrong = DEVICES.iter().filter(|(name, major, minor)| {
        fs::metadata(format!("/dev/{name}")).is_ok_and(|data| {
            let device = data.rdev();
            !data.file_type().is_char_device()
                || (rustix::fs::major(device), rustix::fs::minor(device)) != (*major, *minor)
        })
    });
    Answer::first(wrong.map(|(name, ..)| (*name).to_owned()), "all")
}

/// What this program was started with.
fn descriptors() -> Answer {
    let text: Vec<String> = crate::started_with().iter().map(ToString::to_string).collect();
    Answer::word(text.join(","))
}

fn working_folder() -> Answer {
    let mut buffer = [0; 512];
    match call(libc::SYS_getcwd, &mut [Arg::Out(&mut buffer), n(512)]) {
        Ok(_) if buffer.starts_with(b"/") => Answer::word("reachable"),
        Ok(_) => Answer::word("unreachable"),
        other => other.into(),
    }
}

/// As many `..` as anybody would need.
fn above_root() -> Answer {
    let top = fs::metadata("/../../../../..").map(|data| (data.dev(), data.ino()));
    let root = fs::metadata("/").map(|data| (data.dev(), data.ino()));
    Answer::word(if top.ok() == root.ok() { "root" } else { "another" })
}

fn procfs() -> Answer {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    match rustix::fs::statfs("/proc") {
        Ok(stat) => Answer::word(if stat.f_type == PROC_SUPER_MAGIC { "procfs" } else { "something-else" }),
        other => other.map(drop).into(),
    }
}

fn read_is_empty(path: &str) -> Answer {
    match fs::read(path) {
        Ok(bytes) if bytes.is_empty() => Answer::word("empty"),
        Ok(_) => Answer::word("readable"),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Answer::word("empty"),
            _ => Answer::from(Err::<(), _>(error)),
        },
    }
}

fn knock(path: &str) -> Answer {
    refused(write(path, "0"))
}

/// A pseudo-terminal of one's own, its slave made the controlling terminal.
fn on_own_terminal(request: i64, argument: i64) -> Answer {
    use std::os::fd::AsRawFd as _;
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let pair = rustix::pty::openpt(flags).and_then(|master| {
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let slave = open(&name.to_string_lossy(), OFlags::RDWR)?;
        Ok((master, slave))
    });
    let (master, slave) = match pair {
        Ok(pair) => pair,
        Err(error) => return Answer::from(Err::<(), _>(error)),
    };
    // A leader of a group cannot begin a session; a child of one can.
    let mut byte = *b"x\0\0\0\0\0\0\0";
    let _ = rustix::process::setsid();
    let argument = if argument == 0 { Arg::Out(&mut byte) } else { n(argument) };
    let answer = call(libc::SYS_ioctl, &mut [n(slave.as_raw_fd().into()), n(request), argument]);
    drop(master);
    answer.into()
}

const TIOCSTI: i64 = 0x5412;
const TIOCLINUX: i64 = 0x541c;
const TIOCSCTTY: i64 = 0x540e;

/// Every probe of this file.
pub(crate) const PROBES: &[Probe] = &[
    probe("S40.state-is-mounted", "the state is a mount at its own path, not a link of the image", || {
        is_a_mount(STATE)
    }),
    probe("S43.proc", "what is at /proc is procfs", procfs),
    probe("S43.dev", "a /dev of the generation's own", || is_a_mount("/dev")),
    probe("S43.devices", "no node but the few of every generation", unexpected_devices),
    probe("S43.device-numbers", "a name is the device it claims to be", devices_are_what_they_say),
    probe("S43.nosuid", "set-id bits mean nothing anywhere", || with_option("nosuid")),
    probe("S43.nodev", "nodes mean nothing outside of /dev", || with_option("nodev")),
    probe("S43.proc-sys", "sysctls are read-only", || read_only("/proc/sys")),
    probe("S43.proc-bus", "likewise", || read_only("/proc/bus")),
    probe("S43.proc-irq", "likewise", || read_only("/proc/irq")),
    probe("S43.proc-fs", "likewise", || read_only("/proc/fs")),
    probe("S43.sys", "devices and firmware are read-only", || read_only("/sys")),
    probe("S44.rename-state", "the mount cannot be moved away", || fs::rename(STATE, "/sandbox/other").into()),
    probe("S44.remove-state", "nor removed", || fs::remove_dir(STATE).into()),
    probe("S45.link-in-state", "accepted: links in the state are the workload's; PID 1 follows none", || {
        let path = format!("{STATE}/to-root");
        let _ = std::os::unix::fs::symlink("/proc/1/root", &path);
        let answer = fs::read_dir(format!("{path}/etc"));
        let _ = fs::remove_file(path);
        answer.into()
    }),
    probe("S48.mounts", "no mount but those of every generation", unexpected_mounts),
    probe("S48.shared", "no mount tells the outside what is mounted here", shared),
    probe("S49.descriptors", "nothing is open but the three streams", descriptors),
    probe("S49.above-root", "the way up ends at the root", above_root),
    probe("S50.working-folder", "the working folder lies in the root", working_folder),
    probe("S51.write-own-program", "ETXTBSY or a policy, but never a write", || refused(write("/proc/self/exe", "x"))),
    probe("S51.replace-own-program", "puts another file in its place", || {
        fs::rename(format!("{STATE}/none"), "/app/molt-redteam").into()
    }),
    probe("S51.write-init-program", "the shim's file", || write("/proc/1/exe", "x").into()),
    probe("S51.read-init-program", "the shim's file, which leads to its inode", || fs::read("/proc/1/exe").into()),
    probe("S52.make-in-run-molt", "Molt's own folder in the generation", || fs::write("/run/molt/x", "").into()),
    probe("S52.replace-notify", "its socket", || fs::remove_file("/run/molt/notify").into()),
    probe("S52.rename-run-molt", "the folder itself", || fs::rename("/run/molt", "/run/other").into()),
    probe("W70.tiocsti", "types into a terminal", || on_own_terminal(TIOCSTI, 0)),
    probe("W70.tiocsti-high-bits", "the kernel takes 32 bits of the number; so must the filter", || {
        on_own_terminal((1 << 32) | TIOCSTI, 0)
    }),
    probe("W70.tioclinux", "pastes into a console", || on_own_terminal(TIOCLINUX, 0)),
    probe("W70.tioclinux-high-bits", "likewise", || on_own_terminal((0x7fff_ffff << 32) | TIOCLINUX, 0)),
    probe("W70.tiocsctty-steal", "takes another session's terminal", || on_own_terminal(TIOCSCTTY, 1)),
    probe("W70.controlling-terminal", "there is none", || open("/dev/tty", OFlags::RDWR).into()),
    probe("W70.tiocsti-controlling", "types into the terminal it was given, if any", || {
        use std::os::fd::AsRawFd as _;
        match open("/dev/tty", OFlags::RDWR) {
            Ok(terminal) => {
                let number = n(terminal.as_raw_fd().into());
                call(libc::SYS_ioctl, &mut [number, n(TIOCSTI), Arg::In(b"x")]).into()
            }
            other => other.into(),
        }
    }),
    probe("W70.terminals-of-others", "the generation has its own /dev/pts", || {
        let names = fs::read_dir("/dev/pts").into_iter().flatten().filter_map(Result::ok);
        let terminals = names.filter(|entry| entry.file_name() != "ptmx");
        Answer::first(terminals.map(|_| "seen".to_owned()), "none")
    }),
    probe("W70.console", "not there", || absent("/dev/console")),
    probe("W70.tty1", "not there", || absent("/dev/tty1")),
    probe("W71.kcore", "the kernel's memory", || read_is_empty("/proc/kcore")),
    probe("W71.keys", "everybody's keys", || read_is_empty("/proc/keys")),
    probe("W71.timer-list", "the host's timers and addresses", || read_is_empty("/proc/timer_list")),
    probe("W71.sched-debug", "the host's processes", || read_is_empty("/proc/sched_debug")),
    probe("W71.kmsg", "the host's kernel log", || refused(open("/proc/kmsg", OFlags::RDONLY).map_err(Into::into))),
    probe("W71.kallsyms-addresses", "where the kernel lies", || {
        let text = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        let known = text.lines().any(|line| !line.starts_with("0000000000000000"));
        Answer::word(if known { "addresses" } else { "none" })
    }),
    probe("W71.sysrq-trigger", "reboots the host", || knock("/proc/sysrq-trigger")),
    probe("W71.core_pattern", "a program the host's kernel runs as root", || knock("/proc/sys/kernel/core_pattern")),
    probe("W71.modprobe", "likewise", || knock("/proc/sys/kernel/modprobe")),
    probe("W71.hotplug", "likewise", || knock("/proc/sys/kernel/hotplug")),
    probe("W71.binfmt_misc", "an interpreter for everybody's programs", || knock("/proc/sys/fs/binfmt_misc/register")),
    probe("W71.ns_last_pid", "chooses pids", || knock("/proc/sys/kernel/ns_last_pid")),
    probe("W71.hostname", "the generation's name", || knock("/proc/sys/kernel/hostname")),
    probe("W71.ip_forward", "the container's network", || knock("/proc/sys/net/ipv4/ip_forward")),
    probe("W71.unprivileged_port_start", "likewise", || knock("/proc/sys/net/ipv4/ip_unprivileged_port_start")),
    probe("W71.drop_caches", "the host's memory", || knock("/proc/sys/vm/drop_caches")),
    probe("W71.sysctl-open", "by open alone", || {
        refused(open("/proc/sys/kernel/core_pattern", OFlags::WRONLY).map_err(Into::into))
    }),
    probe("W71.mem", "the machine's memory", || absent("/dev/mem")),
    probe("W71.disk", "the machine's disk", || absent("/dev/vda")),
    probe("W71.kvm", "the machine's processor", || absent("/dev/kvm")),
    probe("W71.dev-kmsg", "the host's kernel log", || absent("/dev/kmsg")),
    probe("W71.make-in-dev", "a node of one's own", || fs::write("/dev/new", "").into()),
    probe("W72.release_agent", "a program the host's kernel runs as root", || knock("/sys/fs/cgroup/release_agent")),
    probe("W72.release_agent-v1", "likewise", || knock("/sys/fs/cgroup/memory/release_agent")),
    probe("W72.cgroup-procs", "leaves its group", || knock("/sys/fs/cgroup/cgroup.procs")),
    probe("W72.make-cgroup", "a group of its own", || refused(fs::create_dir("/sys/fs/cgroup/own"))),
    probe("W72.uevent_helper", "a program the host's kernel runs as root", || knock("/sys/kernel/uevent_helper")),
    probe("W72.power", "the host's power", || knock("/sys/power/state")),
    probe("W72.debugfs", "the kernel's insides", || refused(fs::read_dir("/sys/kernel/debug/tracing"))),
    probe("W72.tracefs", "the kernel's insides", || refused(fs::read_dir("/sys/kernel/tracing/events"))),
    probe("W72.securityfs", "the kernel's policies", || knock("/sys/kernel/security/lockdown")),
    probe("W72.efivars", "the machine's firmware", || refused(fs::write("/sys/firmware/efi/efivars/x", ""))),
];
