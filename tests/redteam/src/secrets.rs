//! What a workload must not find: the supervisor's files, other generations, credentials, keys, variables, memory shared by
//! others.
//!
//! In: paths and keys. Out: ENOENT for what is Molt's: it is not there, rather than not allowed. Must not: know what is in
//! them.

use std::{collections::BTreeSet, fs, path::Path};

use rustix::fs::OFlags;

use crate::{
    aid::{NULL, absent, given, n, open, s, sys},
    probe::{Answer, Probe, probe},
    raw::{Arg, call},
};

/// Variables that the image, the spec and Molt set.
const VARIABLES: [&str; 4] = ["PATH", "HOME", "NOTIFY_SOCKET", "TERM"];
/// What the harness sets for its daemon and this program.
const PREFIXES: [&str; 2] = ["TESTD_", "RT_"];
/// Names that only the supervisor's files have.
const NAMES: [&str; 10] = [
    "molt.sock",
    "journal",
    "history.jsonl",
    "generation.json",
    "generations",
    "sandbox.yaml",
    "pull.json",
    "policy.yaml",
    "molt",
    "lock.molt",
];

macro_rules! not_there {
    ($($id:literal $path:literal $why:literal)*) => {
        &[$(probe($id, $why, || absent($path)),)*
            probe("W66.environment", "nothing of the supervisor's own environment", environment),
            probe("W66.argv", "no secret in an argument of any process", arguments),
            probe("W66.input", "stdin is not the supervisor's", || {
                Answer::word(if std::io::IsTerminal::is_terminal(&std::io::stdin()) { "terminal" } else { "none" })
            }),
            probe("W66.session-keyring", "keys of the supervisor's session", || {
                sys(libc::SYS_keyctl, &mut [n(0), n(-3), n(0)])
            }),
            probe("W66.join-keyring", "by name", || sys(libc::SYS_keyctl, &mut [n(1), s(c"molt")])),
            probe("W66.key-users", "who has how many keys", || {
                match fs::read("/proc/key-users") {
                    Ok(bytes) if bytes.is_empty() => Answer::word("empty"),
                    Ok(_) => Answer::word("readable"),
                    other => other.into(),
                }
            }),
            probe("W66.shared-memory-outside", "System V memory of the container", || {
                sys(libc::SYS_shmget, &mut [n(i64::from(crate::bait::KEY)), n(0), n(0)])
            }),
            probe("W66.message-queue-outside", "a System V queue of the container", || {
                sys(libc::SYS_msgget, &mut [n(i64::from(crate::bait::KEY)), n(0)])
            }),
            probe("W66.semaphores-outside", "System V semaphores of the container", || {
                sys(libc::SYS_semget, &mut [n(i64::from(crate::bait::KEY)), n(0), n(0)])
            }),
            probe("W66.posix-queue-outside", "a POSIX queue of the container", || {
                sys(libc::SYS_mq_open, &mut [s(c"molt-bait"), n(0), n(0), NULL])
            }),
            probe("W66.shm-of-others", "POSIX memory of the container", || count("/dev/shm")),
            probe("W66.tmp-of-others", "temporary files of the container", || absent("/tmp/molt-bait")),
            probe("W66.host-name", "accepted: the name of the container is no secret", || fs::read("/proc/sys/kernel/hostname").into()),
            probe("W67.walk", "nothing anywhere has the name of a file of Molt's", walk),
            probe("W67.proc-1-root-store", "the store by way of init", || {
                open("/proc/1/root/var/lib/molt", OFlags::PATH).into()
            }),
            probe("W67.run-molt", "Molt's folder holds the notify socket alone", run_molt),
            probe("W67.overlay-options", "the mount table tells where the store is", overlay),
            probe("W67.spec-variable", "what the harness gives it, it has", || given("RT_OPEN").into()),
        ]
    };
}

fn environment() -> Answer {
    let known = |name: &str| VARIABLES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let names: BTreeSet<String> = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    Answer::first(names.into_iter().filter(|name| !known(name)), "expected")
}

fn arguments() -> Answer {
    let pids = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let said = pids.filter_map(|path| fs::read_to_string(path.join("cmdline")).ok());
    let bad =
        said.filter(|text| NAMES.iter().any(|name| text.contains(&format!("/{name}\0"))) || text.contains("init\0--"));
    Answer::first(bad.map(|_| "seen".to_owned()), "none")
}

/// Files in a folder, by number.
fn count(folder: &str) -> Answer {
    match fs::read_dir(folder) {
        Ok(entries) => Answer::word(entries.count().to_string()),
        Err(error) => Err::<(), _>(error).into(),
    }
}

fn run_molt() -> Answer {
    let Ok(entries) = fs::read_dir("/run/molt") else {
        // The policy need not let it be listed; then by name.
        let others = NAMES.iter().filter(|name| fs::symlink_metadata(format!("/run/molt/{name}")).is_ok());
        return Answer::first(others.map(|name| (*name).to_owned()), "notify");
    };
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.sort();
    Answer::word(names.join(","))
}

/// Depth first, by what may be listed; where a folder may not, the names are tried in it one by one.
fn walk() -> Answer {
    let mut folders = vec![Path::new("/").to_owned()];
    for name in [
        "app", "bin", "data", "etc", "home", "opt", "root", "run", "sandbox", "srv", "tmp", "usr", "var", "var/lib",
        "var/run",
    ] {
        folders.push(Path::new("/").join(name));
    }
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        if !seen.insert(folder.clone()) || ["/proc", "/sys", "/dev"].iter().any(|kernel| folder.starts_with(kernel)) {
            continue;
        }
        for name in NAMES {
            let path = folder.join(name);
            if path != Path::new("/run/molt") && fs::symlink_metadata(&path).is_ok() {
                found.insert(path.display().to_string());
            }
        }
        let inner = fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok);
        folders
            .extend(inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
    }
    Answer::first(found, "none")
}

/// Layer folders in the options of the root's mount are names in a place that is not there.
fn overlay() -> Answer {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lowers = text.lines().filter_map(|line| line.split_once("lowerdir")).map(|(_, rest)| rest);
    let paths = lowers
        .flat_map(|rest| rest.split([',', ':', '=', '+']).filter(|word| word.starts_with('/')).map(str::to_owned));
    let there = paths.filter(|path| fs::symlink_metadata(path.trim_end()).is_ok());
    Answer::first(there.map(|_| "reachable".to_owned()), "unreachable")
}

/// Every probe of this file.
pub(crate) const PROBES: &[Probe] = not_there! {
    "W67.store" "/var/lib/molt" "the store"
    "W67.journal" "/var/lib/molt/journal" "what boots"
    "W67.history" "/var/lib/molt/history.jsonl" "who asked for what"
    "W67.lock" "/var/lib/molt/lock" "who owns the store"
    "W67.blobs" "/var/lib/molt/blobs/sha256" "manifests"
    "W67.layers" "/var/lib/molt/layers/sha256" "other images"
    "W67.other-generation" "/var/lib/molt/generations/1/upper" "what another generation wrote"
    "W67.record" "/var/lib/molt/generations/1/generation.json" "what another generation was made of"
    "W67.run-of-molt" "/run/molt/anchor" "mounts of PID 1"
    "W67.socket" "/run/molt/molt.sock" "the operator socket"
    "W67.spec" "/etc/molt/sandbox.yaml" "the spec"
    "W67.policy" "/etc/molt/policy.yaml" "the policy"
    "W67.config" "/etc/molt" "the folder of the spec"
    "W67.credentials" "/etc/molt/pull.json" "the registry's credentials"
    "W67.credentials-of-a-mount" "/run/secrets/pull/config.json" "likewise on a mount of their own"
    "W67.program" "/usr/local/bin/molt" "the supervisor's program"
    "W67.old-root" "/.outside" "the root the container came from"
    "W67.put-old" "/.old" "likewise"
    "W67.dockerenv" "/.dockerenv" "likewise"
};

/// For `bait`: the same list is what it offers.
pub(crate) fn open_queue() -> Answer {
    let mode = 0o666;
    let flags = i64::from(libc::O_CREAT | libc::O_RDWR);
    call(libc::SYS_mq_open, &mut [Arg::S(c"molt-bait"), n(flags), n(mode), NULL]).into()
}
