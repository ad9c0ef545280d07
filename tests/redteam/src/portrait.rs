//! What a process of a generation is made of, field by field: to be compared with that of another one.
//!
//! In: a role by name, and a program to become afterwards. Out: `portrait-ROLE-VERSION` in the state, a line a field. Must
//! not: show what every process has of its own: its pid, its memory, what its streams lead to.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs, io,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    process::{Command, ExitCode},
};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::{
    aid::{STATE, n},
    all, probe, raw, started_with,
};

/// Lines of `/proc/self/status` that are of one process, not of its confinement.
const OWN: &[&str] = &[
    "Name",
    "State",
    "Tgid",
    "Ngid",
    "Pid",
    "PPid",
    "TracerPid",
    "NStgid",
    "NSpid",
    "NSpgid",
    "NSsid",
    "FDSize",
    "Threads",
    "SigQ",
    "Kthread",
    "CoreDumping",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
];
/// Files that say one thing each.
const FILES: &[&str] = &[
    "oom_score_adj",
    "coredump_filter",
    "cgroup",
    "loginuid",
    "sessionid",
    "timens_offsets",
    "uid_map",
    "gid_map",
    "setgroups",
    "attr/current",
    "mountinfo",
];
/// Options of prctl(2) that ask for one number.
const ASKED: &[(&str, i64)] = &[
    ("dumpable", 3),
    ("keep-capabilities", 7),
    ("secure-bits", 27),
    ("timer-slack", 30),
    ("no_new_privs", 39),
    ("no-huge-pages", 42),
    ("write-xor-execute", 66),
];
/// Attempts that a Landlock domain, seccomp, or mounts decide; the domain itself cannot be read.
const TRIED: &[&str] = &[
    "L.unlisted-read",
    "L.readable-append",
    "L.readable-truncate",
    "W58.tcp-open",
    "W58.tcp-shut",
    "W58.mptcp",
    "W66.session-keyring",
    "W66.join-keyring",
    "W71.keys",
    "W70.controlling-terminal",
    "F.unshare-user",
    "F.clone3",
    "F.keyctl",
    "F.add_key",
];

/// Writes it down, and becomes `program`, if there is one.
pub(crate) fn paint(mut words: impl Iterator<Item = String>) -> ExitCode {
    let Some(role) = words.next() else { return ExitCode::from(2) };
    let program: Vec<String> = words.collect();
    if let Err(error) = keep(&role) {
        eprintln!("{STATE}: {error}");
        return ExitCode::FAILURE;
    }
    match program.split_first() {
        None => ExitCode::SUCCESS,
        Some((name, rest)) => {
            eprintln!("{name}: {}", Command::new(name).args(rest).exec());
            ExitCode::FAILURE
        }
    }
}

fn keep(role: &str) -> io::Result<()> {
    let fields: Vec<String> = fields()?.into_iter().map(|(name, value)| format!("{name} {value:?}\n")).collect();
    let version = fs::read_to_string("/app/VERSION")?;
    let path = format!("{STATE}/portrait-{role}-{}", version.trim());
    // A probe may be asked again meanwhile.
    let fresh = format!("{path}.{}", std::process::id());
    fs::write(&fresh, fields.concat())?;
    fs::rename(fresh, path)
}

fn fields() -> io::Result<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    let mut put = |name: String, value: &dyn Display| drop(fields.insert(name, value.to_string()));
    for entry in fs::read_dir("/proc/self/ns")? {
        let entry = entry?;
        let link = fs::read_link(entry.path())?;
        put(format!("ns.{}", entry.file_name().display()), &link.display());
    }
    for line in fs::read_to_string("/proc/self/status")?.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let memory = ["Vm", "Rss", "Huge"].iter().any(|start| name.starts_with(start));
        if !memory && !OWN.contains(&name) {
            put(format!("status.{name}"), &value.trim());
        }
    }
    for line in fs::read_to_string("/proc/self/limits")?.lines().skip(1) {
        let (name, value) = line.split_at_checked(26).unwrap_or((line, ""));
        put(format!("limit.{}", name.trim()), &value.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    for name in FILES {
        let text = fs::read_to_string(format!("/proc/self/{name}"));
        put(format!("file.{name}"), &text.unwrap_or_else(|error| error.to_string()));
    }
    for (name, option) in ASKED {
        put(format!("prctl.{name}"), &answer(libc::SYS_prctl, &[*option, 0, 0, 0, 0]));
    }
    let mut signal = [0; 4];
    let asked = raw::call(libc::SYS_prctl, &mut [n(2), raw::Arg::Out(&mut signal)]);
    put("prctl.death-signal".to_owned(), &format!("{asked:?} {}", i32::from_ne_bytes(signal)));
    put("personality".to_owned(), &answer(libc::SYS_personality, &[0xffff_ffff]));
    put("nice".to_owned(), &answer(libc::SYS_getpriority, &[0, 0]));
    put("scheduler".to_owned(), &answer(libc::SYS_sched_getscheduler, &[0]));
    put("io-priority".to_owned(), &answer(libc::SYS_ioprio_get, &[1, 0]));
    for path in ["/", ".", "/proc", STATE] {
        let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
        let whose = fs::metadata(path)?;
        put(format!("mount.{path}"), &format!("{} {}:{}", stat.stx_mnt_id, whose.dev(), whose.ino()));
    }
    put("cwd".to_owned(), &std::env::current_dir()?.display());
    put("descriptors".to_owned(), &format!("{:?}", started_with()));
    let own = i64::from(std::process::id());
    let leads = |number| raw::call(number, &mut [n(0)]).is_ok_and(|id| id == own);
    put("leads-its-session".to_owned(), &leads(libc::SYS_getsid));
    put("leads-its-group".to_owned(), &leads(libc::SYS_getpgid));
    // The init, or a keeper that was forked from it. By the number that this `/proc` knows it by.
    let parent = fs::read_to_string("/proc/self/status")?;
    let parent = parent.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or_default().trim();
    put("parent".to_owned(), &fs::read_to_string(format!("/proc/{parent}/comm"))?.trim());
    for (name, value) in std::env::vars() {
        put(format!("env.{name}"), &value);
    }
    for name in TRIED {
        let found = all().find(|probe| probe.id == *name).map(|probe| probe::run(probe.run));
        put(format!("tried.{name}"), &found.ok_or_else(|| io::Error::other(format!("no probe {name}")))?);
    }
    Ok(fields)
}

fn answer(number: i64, arguments: &[i64]) -> String {
    let mut arguments: Vec<raw::Arg<'_>> = arguments.iter().map(|argument| n(*argument)).collect();
    raw::call(number, &mut arguments).map_or_else(|errno| format!("{errno:?}"), |value| value.to_string())
}
