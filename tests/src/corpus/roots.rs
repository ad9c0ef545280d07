//! Roots in which the places that Molt mounts on are not what they should be: links, files, pipes, loops.
//!
//! The sandbox of the suite carries `/etc/resolv.conf`, `/etc/hosts`, `/run/secrets/token`, two writable volumes at `/vol`
//! and `/data/inner`, and has its state at `/sandbox/state`.

use serde_json::json;
use tar::EntryType;

use super::Update::{Fails, Serves};
use super::{Hostile, Update, Verdict, configured, harmless, tar, then};
use crate::harness::tar::Tar;

pub(super) fn cases() -> Vec<Hostile> {
    [state(), own(), carried(), folders(), rules()].into_iter().flatten().collect()
}

/// `path` is a link.
fn link(name: &'static str, rows: &[super::Row], path: &str, target: &str, update: Update) -> Hostile {
    let tree: Vec<String> = parents(path).chain([format!("l 777 0:0 {path} -> {target}")]).collect();
    let tar_of = folders_of(path).symlink(path, target);
    // By number: /etc may be elsewhere.
    configured(name, rows, tar_of, "User", json!("1000:1000"), Verdict::Taken(tree, update))
}

fn parents(path: &str) -> impl Iterator<Item = String> + use<> {
    let ends: Vec<String> = path.match_indices('/').map(|(at, _)| format!("d 755 0:0 {}", &path[..at])).collect();
    ends.into_iter()
}

fn folders_of(path: &str) -> Tar {
    path.match_indices('/').fold(Tar::new(), |tar, (at, _)| tar.dir(&path[..at], 0o755))
}

/// `path` is a file or a FIFO.
fn other(name: &'static str, rows: &[super::Row], path: &str, kind: EntryType, update: Update) -> Hostile {
    let letter = if kind == EntryType::Fifo { 'p' } else { 'f' };
    let tree: Vec<String> = parents(path).chain([format!("{letter} 644 0:0 {path}")]).collect();
    let tar_of = folders_of(path).of(kind, path);
    configured(name, rows, tar_of, "User", json!("1000:1000"), Verdict::Taken(tree, update))
}

fn state() -> Vec<Hostile> {
    let is_link = Fails("state-unmountable", "is a symbolic link in the image");
    let no_folder = Fails("state-unmountable", "is not a folder in the image");
    vec![
        link("the state is a link to /etc", &["S40"], "sandbox/state", "/etc", is_link),
        link("the state is a link far up", &["S40"], "sandbox/state", "../../../../../etc", is_link),
        link("the state is a link to a volume", &["S40"], "sandbox/state", "/vol", is_link),
        link("the state is a link to nowhere", &["S40"], "sandbox/state", "nowhere", is_link),
        link("the state is a link to itself", &["S40"], "sandbox/state", "state", is_link),
        link("the folder of the state is a link", &["S40"], "sandbox", "/var", is_link),
        link("the folder of the state is a link to a volume", &["S40"], "sandbox", "/vol", is_link),
        other("the state is a file", &["S40"], "sandbox/state", EntryType::Regular, no_folder),
        other("the state is a FIFO", &["S40"], "sandbox/state", EntryType::Fifo, no_folder),
        other("the folder of the state is a file", &["S40"], "sandbox", EntryType::Regular, no_folder),
        tar(
            "the state has things in it, for root alone",
            &["S40", "S45"],
            Tar::new()
                .dir("sandbox", 0o700)
                .dir("sandbox/state", 0)
                .file_mode("sandbox/state/clicks", "99", 0o600)
                .symlink("sandbox/state/starts", "/etc/passwd"),
            then(
                &[
                    "d 700 0:0 sandbox",
                    "d 0 0:0 sandbox/state",
                    "f 600 0:0 sandbox/state/clicks 99",
                    "l 777 0:0 sandbox/state/starts -> /etc/passwd",
                ],
                // `/sandbox` can be entered by root alone: nothing of the state can be reached.
                Update::RolledBack("exited-in-trial"),
            ),
        ),
    ]
}

/// What every root gets from Molt itself.
fn own() -> Vec<Hostile> {
    let at = ["S41", "S43"];
    vec![
        link("/proc is a link to /etc", &at, "proc", "/etc", Serves),
        link("/proc is a link to the state", &at, "proc", "/sandbox/state", Serves),
        link("/proc is a link to itself", &at, "proc", "proc", Serves),
        other("/proc is a file", &at, "proc", EntryType::Regular, Serves),
        other("/proc is a FIFO", &at, "proc", EntryType::Fifo, Serves),
        link("/dev is a link to /etc", &at, "dev", "etc", Serves),
        link("/dev is a link to the state", &at, "dev", "/sandbox/state", Serves),
        link("/dev is a link far up", &at, "dev", "../../../../../../dev", Serves),
        other("/dev is a file", &at, "dev", EntryType::Regular, Serves),
        link("/sys is a link to a volume", &at, "sys", "/vol", Serves),
        link("/sys is a link to nowhere", &at, "sys", "/no/where", Serves),
        other("/sys is a file", &at, "sys", EntryType::Regular, Serves),
        link("/tmp is a link to /var/tmp", &["S41", "U21"], "tmp", "/var/tmp", Serves),
        link("/tmp is a link to /var, relative", &["S41", "U21"], "tmp", "var", Serves),
        link("/tmp is a link to the state", &at, "tmp", "/sandbox/state", Serves),
        link("/tmp is a link to a volume", &at, "tmp", "vol", Serves),
        link("/tmp is a link far up", &at, "tmp", "../../../../../../tmp", Serves),
        other("/tmp is a file", &at, "tmp", EntryType::Regular, Serves),
        other("/tmp is a FIFO", &at, "tmp", EntryType::Fifo, Serves),
        link("/run is a link to /var/run that is not there", &["S41", "U21"], "run", "/var/run", Serves),
        // Mounted well, but what the policy lets be read only could be changed.
        link("/run is a link to /var/lib", &["S41", "S113"], "run", "var/lib", WIDER),
        link("/run is a link to the state", &at, "run", "/sandbox/state", Serves),
        link("/run is a link to a volume", &at, "run", "/vol", Serves),
        other("/run is a file", &at, "run", EntryType::Regular, Serves),
        link("/run/molt is a link to /etc", &["S41", "S52"], "run/molt", "/etc", Serves),
        link("/run/molt is a link to the state", &["S41", "S52"], "run/molt", "../sandbox/state", Serves),
        other("/run/molt is a file", &["S41", "S52"], "run/molt", EntryType::Regular, Serves),
        tar(
            "/run and /var/run lead to each other",
            &["S41"],
            Tar::new().symlink("run", "/var/run").symlink("var/run", "/run"),
            harmless(&["l 777 0:0 run -> /var/run", "d 755 0:0 var", "l 777 0:0 var/run -> /run"]),
        ),
        tar(
            "/var/run is a link to /run",
            &["S41", "U21"],
            Tar::new().dir("var", 0o755).symlink("var/run", "/run").symlink("var/lock", "/run/lock"),
            harmless(&["d 755 0:0 var", "l 777 0:0 var/lock -> /run/lock", "l 777 0:0 var/run -> /run"]),
        ),
        tar(
            "the notify socket's place is a link",
            &["S41", "S52"],
            Tar::new().dir("run", 0o755).dir("run/molt", 0o777).symlink("run/molt/notify", "/sandbox/state/notify"),
            harmless(&["d 755 0:0 run", "d 777 0:0 run/molt", "l 777 0:0 run/molt/notify -> /sandbox/state/notify"]),
        ),
    ]
}

/// What the container has and every root is shown.
fn carried() -> Vec<Hostile> {
    let at = ["S42"];
    vec![
        link("resolv.conf is a link to the state", &at, "etc/resolv.conf", "/sandbox/state/resolv.conf", Serves),
        link("resolv.conf is a link to a volume", &at, "etc/resolv.conf", "/vol/resolv.conf", Serves),
        link("resolv.conf is a link far up", &at, "etc/resolv.conf", "../../../../etc/passwd", Serves),
        link("resolv.conf is a link to /run", &["S42", "U21"], "etc/resolv.conf", "../run/systemd/resolve/x", Serves),
        other("resolv.conf is a FIFO", &at, "etc/resolv.conf", EntryType::Fifo, Serves),
        tar("resolv.conf is an empty folder", &at, Tar::new().dir("etc/resolv.conf", 0o755), {
            harmless(&["d 755 0:0 etc", "d 755 0:0 etc/resolv.conf"])
        }),
        tar(
            "resolv.conf is a folder with something in it",
            &at,
            Tar::new().dir("etc/resolv.conf", 0o755).file("etc/resolv.conf/x", "1"),
            then(
                &["d 755 0:0 etc", "d 755 0:0 etc/resolv.conf", "f 644 0:0 etc/resolv.conf/x 1"],
                Fails("unsupported", "it is a folder in the image"),
            ),
        ),
        link("hosts is a link to passwd", &at, "etc/hosts", "passwd", Serves),
        other("hosts is a FIFO", &at, "etc/hosts", EntryType::Fifo, Serves),
        link("/etc is a link to the state", &["S42", "S41"], "etc", "/sandbox/state", Serves),
        link("/etc is a link to a volume", &["S42", "S41"], "etc", "/vol", Serves),
        link("/etc is a link to nowhere", &["S42", "S41"], "etc", "usr/etc", Serves),
        other("/etc is a file", &["S42", "S41"], "etc", EntryType::Regular, Serves),
        link("the parent of a volume is a link into another", &["S41"], "data", "/vol", Serves),
        link("the parent of a volume is a link into the state", &["S41"], "data", "/sandbox/state", Serves),
        link("the parent of a volume is a link to itself", &["S41"], "data", "data", Serves),
        other("the parent of a volume is a FIFO", &["S41"], "data", EntryType::Fifo, Serves),
        link("a volume's place is a link to /etc", &["S41"], "data/inner", "/etc", Serves),
        link("a volume's place is a link into another", &["S41"], "data/inner", "/vol", Serves),
        other("a volume's place is a file", &["S41"], "vol", EntryType::Regular, Serves),
        link("the folder of a secret is a link to a volume", &["S41"], "run/secrets", "/vol", Serves),
        link("a secret's place is a link to the state", &["S41"], "run/secrets/token", "/sandbox/state/token", Serves),
    ]
}

/// Where the program is to work.
fn folders() -> Vec<Hostile> {
    let folder = |name: &'static str, path: &'static str, update: Update| {
        configured(
            name,
            &["S50"],
            Tar::new().file("x", "1"),
            "WorkingDir",
            json!(path),
            then(&["f 644 0:0 x 1"], update),
        )
    };
    let magic = Fails("program-unusable", "cannot be entered");
    vec![
        folder("works in a descriptor", "/proc/self/fd/7", magic),
        folder("works in any descriptor", "/proc/self/fd/3/../../..", magic),
        folder("works in the root of PID 1", "/proc/1/root", magic),
        folder("works in the root of itself", "/proc/self/root", magic),
        folder("works where it works", "/proc/self/cwd", magic),
        folder("works far up", "/app/../../../../../..", Serves),
        folder("works in a folder without a slash", "app", Serves),
        folder("works in the state", "/sandbox/state", Serves),
        folder("works in a folder with control characters", "/app\u{1b}[2J\n", magic),
        folder("works in a file", "/etc/passwd", magic),
        configured(
            "works behind a link into /proc",
            &["S50"],
            Tar::new().symlink("work", "/proc/self/fd/4"),
            "WorkingDir",
            json!("/work"),
            then(&["l 777 0:0 work -> /proc/self/fd/4"], magic),
        ),
        configured(
            "volumes where Molt is at home",
            &["S52"],
            Tar::new().file("x", "1"),
            "Volumes",
            json!({"/run/molt": {}, "/": {}, "/proc": {}, "/var/lib/molt": {}, "../../etc": {}, "/sandbox/state/..": {}}),
            harmless(&["f 644 0:0 x 1"]),
        ),
    ]
}

const WIDER: Update = Fails("policy-wider", "wider");

/// Paths of the policy that lead elsewhere. One to write that leads to where the link itself lies is left out, and said:
/// the workload could lead it anywhere.
fn rules() -> Vec<Hostile> {
    vec![
        link("/srv is a link to the state", &["S113"], "srv", "/sandbox/state", Serves),
        link("/opt is a link to a loop", &["S113"], "opt", "opt", Serves),
        link("/home is a link far up", &["S113"], "home", "../../../../../../home", Serves),
        link("a path to read is a link to the root", &["S113"], "opt", "/", WIDER),
        link("a path to read is a link to a volume", &["S113"], "opt", "/vol", WIDER),
        link("a path to write is a link to the root", &["S113"], "var/tmp", "/", Serves),
        link("a path to write is a link to a volume", &["S113"], "var/tmp", "../vol", WIDER),
        link("a path to write is a link into another", &["S113"], "var/tmp", "/run/secrets", Serves),
        link("/run is a link to the root", &["S113", "S41"], "run", "/", Serves),
    ]
}
