//! Is the new confinement wider than the old one?
//!
//! In: what is in force before and after, as the confined processes read it back, or as two policies would have it.
//! Out: everything the new one may do that the old one may not. Must not: decide whether that is allowed.
//!
//! Paths are compared by where they lead. A path that both policies name may lead elsewhere in another image (`/lib` to
//! `/usr/lib`): that is the image's business as long as it stays within what the image alone owns (see [`astray`]).

use std::{collections::BTreeSet, fmt};

use molt_core::{
    confined::{InForce, MountMode},
    launch::{Access, AppliedRule, Confinement, Landlock, Limits, Report, SeccompProfile, TcpPorts},
};
use serde::{Deserialize, Serialize};

use crate::lower::within;

/// Something the new side may do and the old one may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wider {
    /// No Landlock domain any more.
    LandlockLost,
    /// Less of what the policy says about paths must be had: before and now.
    Compatibility(Required, Required),
    /// These file rights are not restricted any more, on any path.
    RightsUnhandled(u64),
    /// More rights below a path.
    Path {
        /// As the new policy names it.
        path: String,
        /// Where it leads.
        resolved: String,
        /// The rights that are new.
        rights: u64,
    },
    /// TCP connections or binding are not restricted any more.
    TcpUnhandled(TcpUse),
    /// More TCP ports.
    TcpPorts(TcpUse, Vec<u16>),
    /// These Landlock scopes are lost: 1 is abstract unix sockets, 2 signals.
    ScopesLost(u64),
    /// Programs with a set-user-id bit count again.
    NoNewPrivsLost,
    /// More system calls: the old profile and the new one.
    Seccomp(SeccompProfile, SeccompProfile),
    /// Capabilities it did not have.
    Capabilities(u64),
    /// It is root now.
    Root,
    /// It is in groups it was not in.
    Groups(Vec<u32>),
    /// A resource limit is higher, or gone.
    Limit {
        /// `RLIMIT_...`
        name: String,
        /// Before.
        from: u64,
        /// Now; none where it is the container's own.
        to: Option<u64>,
    },
    /// A mount of the container that it did not see, or could not write to.
    Mount {
        /// Where.
        path: String,
        /// How it is seen now.
        mode: MountMode,
    },
}

/// What a policy wants to be refused for, by its `landlock.compatibility`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Required {
    /// Nothing: `best_effort`.
    BestEffort,
    /// A kernel without Landlock: nothing written.
    Landlock,
    /// A path that the image does not have, too: `hard_requirement`.
    EveryPath,
}

impl Required {
    const fn of(landlock: &Landlock) -> Self {
        match (landlock.hard, landlock.min_abi) {
            (true, _) => Self::EveryPath,
            (false, 0) => Self::BestEffort,
            (false, _) => Self::Landlock,
        }
    }
}

/// What a TCP port is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TcpUse {
    /// bind(2)
    Bind,
    /// connect(2)
    Connect,
}

impl TcpUse {
    /// `LANDLOCK_ACCESS_NET_BIND_TCP`, `LANDLOCK_ACCESS_NET_CONNECT_TCP`.
    const fn bit(self) -> u64 {
        match self {
            Self::Bind => 1,
            Self::Connect => 2,
        }
    }

    fn ports(self, tcp: Option<&TcpPorts>) -> &[u16] {
        let list = tcp.and_then(|tcp| match self {
            Self::Bind => tcp.bind.as_deref(),
            Self::Connect => tcp.connect.as_deref(),
        });
        list.unwrap_or_default()
    }
}

/// Landlock file rights by bit (landlock(7)).
const RIGHTS: [&str; 17] = [
    "execute",
    "write_file",
    "read_file",
    "read_dir",
    "remove_dir",
    "remove_file",
    "make_char",
    "make_dir",
    "make_reg",
    "make_sock",
    "make_fifo",
    "make_block",
    "make_sym",
    "refer",
    "truncate",
    "ioctl_dev",
    "resolve_unix",
];
/// Execute, read file, read directory.
const READ: u64 = 0b1101;
const CHANGE: u64 = !READ;

fn rights_of(access: Access) -> u64 {
    match access {
        Access::ReadOnly => READ,
        Access::ReadWrite => u64::MAX,
    }
}

/// Everything in which `new` is wider than `old`; empty where it is the same or narrower.
pub fn compare(old: &InForce, new: &InForce) -> Vec<Wider> {
    let mut found = Vec::new();
    compatibility(old, new, &mut found);
    files(old, new, &mut found);
    ports(old, new, &mut found);
    let (before, after) = (&old.report, &new.report);
    let scopes = before.scoped & !after.scoped;
    if scopes != 0 {
        found.push(Wider::ScopesLost(scopes));
    }
    if before.no_new_privs && !after.no_new_privs {
        found.push(Wider::NoNewPrivsLost);
    }
    let profile = |side: &InForce| match side.report.seccomp_mode {
        2 => side.confinement.profile,
        _ => SeccompProfile::None,
    };
    if profile(new) < profile(old) {
        found.push(Wider::Seccomp(profile(old), profile(new)));
    }
    let capabilities = after.capabilities & !before.capabilities;
    if capabilities != 0 {
        found.push(Wider::Capabilities(capabilities));
    }
    if before.uid != 0 && after.uid == 0 {
        found.push(Wider::Root);
    }
    let groups = |report: &Report| -> BTreeSet<u32> { report.groups.iter().copied().chain([report.gid]).collect() };
    let more: Vec<u32> = groups(after).difference(&groups(before)).copied().collect();
    if !more.is_empty() {
        found.push(Wider::Groups(more));
    }
    limits(old, new, &mut found);
    mounts(old, new, &mut found);
    found
}

/// The astray paths of a side on its own: those that lead where nothing in its policy would let them, had each path led
/// to itself. For a start that has nothing to be compared with.
pub fn astray(side: &InForce) -> Vec<Wider> {
    let mut named = side.clone();
    for rule in &mut named.report.rules {
        rule.resolved.clone_from(&rule.path);
    }
    let mut found = Vec::new();
    files(&named, side, &mut found);
    found
}

/// What a person should see although it is neither more nor less.
pub fn changes(old: &InForce, new: &InForce) -> Vec<String> {
    let (before, after) = (old.report.uid, new.report.uid);
    if before == after {
        return Vec::new();
    }
    vec![format!("the workload is user {after} now, it was {before}: files of {before} are another's to it")]
}

/// Where there is no domain at all, that says more.
fn compatibility(old: &InForce, new: &InForce, found: &mut Vec<Wider>) {
    let required = |side: &InForce| side.confinement.landlock.as_ref().map(Required::of);
    if let (Some(before), Some(after)) = (required(old), required(new))
        && after < before
    {
        found.push(Wider::Compatibility(before, after));
    }
}

fn files(old: &InForce, new: &InForce, found: &mut Vec<Wider>) {
    let (before, after) = (old.report.handled_fs, new.report.handled_fs);
    if before != 0 && after == 0 {
        found.push(Wider::LandlockLost);
        return;
    }
    if before & !after != 0 {
        found.push(Wider::RightsUnhandled(before & !after));
    }
    // A path that the image lacks, or that was left out for a link on its way, is granted all the same: the next image,
    // or the workload, may make it.
    let named = new.confinement.landlock.iter().flat_map(|landlock| &landlock.paths).filter(|rule| !rule.derived);
    let applied = |path: &str| new.report.rules.iter().any(|rule| rule.path == path);
    let lacking = named.filter(|rule| !applied(&rule.path)).map(|rule| AppliedRule {
        path: rule.path.clone(),
        resolved: rule.path.clone(),
        rights: rights_of(rule.access),
    });
    let lacking: Vec<AppliedRule> = lacking.collect();
    for rule in new.report.rules.iter().chain(&lacking) {
        // Molt's own socket, mounted anew in each root wherever a link of the image puts `/run`.
        if derived(new, &rule.path) && rule.path.strip_prefix(MOLT) == Some("/notify") {
            continue;
        }
        // A right that the old side did not restrict was there before; one that the new side does not restrict at all
        // has been named above.
        let more = rule.rights & before & after & !granted(old, &rule.resolved);
        if more == 0 {
            continue;
        }
        let mut promised = by_name(old, &rule.path) & more;
        if derived(new, &rule.path) && own_content(new, &rule.resolved) {
            promised |= more & READ;
        }
        if rule.path != rule.resolved && leads_astray(old, new, rule, promised) {
            promised = 0;
        }
        let rights = more & !promised;
        if rights != 0 {
            found.push(Wider::Path { path: rule.path.clone(), resolved: rule.resolved.clone(), rights });
        }
    }
}

fn ports(old: &InForce, new: &InForce, found: &mut Vec<Wider>) {
    let tcp = |side: &InForce| side.confinement.landlock.as_ref().and_then(|landlock| landlock.tcp.clone());
    let (old_ports, new_ports) = (tcp(old), tcp(new));
    for kind in [TcpUse::Bind, TcpUse::Connect] {
        if old.report.handled_net & kind.bit() == 0 {
            continue;
        }
        if new.report.handled_net & kind.bit() == 0 {
            found.push(Wider::TcpUnhandled(kind));
            continue;
        }
        let known = kind.ports(old_ports.as_ref());
        let more: Vec<u16> =
            kind.ports(new_ports.as_ref()).iter().copied().filter(|port| !known.contains(port)).collect();
        if !more.is_empty() {
            found.push(Wider::TcpPorts(kind, more));
        }
    }
}

fn limits(old: &InForce, new: &InForce, found: &mut Vec<Wider>) {
    let (before, after) = (&old.limits, &new.limits);
    for (name, from, to) in [
        ("RLIMIT_NOFILE", before.nofile, after.nofile),
        ("RLIMIT_NPROC", before.nproc, after.nproc),
        ("RLIMIT_CORE", Some(before.core), Some(after.core)),
    ] {
        let Some(from) = from else { continue };
        if to.is_none_or(|to| to > from) {
            found.push(Wider::Limit { name: name.to_owned(), from, to });
        }
    }
}

fn mounts(old: &InForce, new: &InForce, found: &mut Vec<Wider>) {
    for mount in &new.mounts {
        let before = old.mounts.iter().find(|other| other.path == mount.path);
        if before.is_some_and(|before| before.mode >= mount.mode) {
            continue;
        }
        // Landlock lets nobody see a mount that no rule holds.
        let rules = &new.report.rules;
        let seen = new.report.handled_fs == 0
            || rules.iter().any(|rule| within(&mount.path, &rule.resolved) || within(&rule.resolved, &mount.path));
        if seen {
            found.push(Wider::Mount { path: mount.path.clone(), mode: mount.mode });
        }
    }
}

/// Rights the old side grants on `path`: the union of every rule on it or above it, as Landlock counts.
fn granted(old: &InForce, path: &str) -> u64 {
    let applied = old.report.rules.iter().filter(|rule| within(path, &rule.resolved)).map(|rule| rule.rights);
    // A path the old policy names but the old image did not have was granted all the same. One that was left out for a
    // link on its way was not: a rule of the same name goes by its name.
    let promised = old.confinement.landlock.iter().flat_map(|landlock| &landlock.paths);
    let promised = promised
        .filter(|rule| within(path, &rule.path) && old.report.missing.contains(&rule.path))
        .map(|rule| rights_of(rule.access));
    applied.chain(promised).fold(0, |all, rights| all | rights)
}

/// Rights the policy of `side` grants on `path` as it is written, wherever that leads.
fn by_name(side: &InForce, path: &str) -> u64 {
    let rules = side.confinement.landlock.iter().flat_map(|landlock| &landlock.paths);
    rules.filter(|rule| within(path, &rule.path)).fold(0, |all, rule| all | rights_of(rule.access))
}

/// Whether the rule for `path` is one that Molt made itself.
fn derived(side: &InForce, path: &str) -> bool {
    let mut rules = side.confinement.landlock.iter().flat_map(|landlock| &landlock.paths);
    rules.any(|rule| rule.path == path && rule.derived)
}

/// What the kernel and Molt give every generation.
const KERNEL: [&str; 3] = ["/proc", "/dev", "/sys"];
const MOLT: &str = "/run/molt";

/// Whether `path` is a part of the root that the image alone brought: not all of it, and nothing that is mounted on it.
fn own_content(side: &InForce, path: &str) -> bool {
    let mounted = side.mounts.iter().map(|mount| mount.path.as_str()).chain(KERNEL).chain([MOLT]);
    let mut mounted = mounted.into_iter();
    path != "/" && !mounted.any(|point| within(path, point) || within(point, path))
}

/// Whether a rule that is not for where its path leads may not be taken as the one the policy meant: it leads to all of
/// the root or to something that is mounted on it; or it lets something be changed that another rule only lets be read.
fn leads_astray(old: &InForce, new: &InForce, rule: &AppliedRule, rights: u64) -> bool {
    let same_kernel = KERNEL.iter().any(|point| within(&rule.path, point) && within(&rule.resolved, point));
    if !own_content(new, &rule.resolved) && !same_kernel {
        return true;
    }
    let changes = rights & CHANGE;
    let overlaps =
        |other: &AppliedRule| within(&other.resolved, &rule.resolved) || within(&rule.resolved, &other.resolved);
    let mut others = old.report.rules.iter().chain(&new.report.rules).filter(|other| other.path != rule.path);
    changes != 0 && others.any(|other| other.rights & CHANGE == 0 && overlaps(other))
}

/// What a confinement would be in a root where every path exists and leads to itself, on the kernel it was lowered for:
/// for comparing policies before they run. The user is taken as not root.
pub fn assumed(confinement: &Confinement) -> InForce {
    let mut report = Report {
        no_new_privs: true,
        seccomp_mode: if confinement.seccomp.is_empty() { 0 } else { 2 },
        seccomp_filters: u32::try_from(confinement.seccomp.len()).unwrap_or(u32::MAX),
        uid: u32::MAX,
        gid: u32::MAX,
        ..Report::default()
    };
    if let Some(landlock) = confinement.landlock.as_ref().filter(|landlock| landlock.abi > 0) {
        report.landlock_abi = landlock.abi;
        report.handled_fs = handled(landlock.abi);
        report.scoped = if landlock.abi >= 6 { 3 } else { 0 };
        if let Some(tcp) = landlock.tcp.as_ref().filter(|_| landlock.abi >= 4) {
            report.handled_net = [(TcpUse::Bind, &tcp.bind), (TcpUse::Connect, &tcp.connect)]
                .into_iter()
                .filter(|(_, ports)| ports.is_some())
                .fold(0, |bits, (kind, _)| bits | kind.bit());
        }
        report.rules = landlock
            .paths
            .iter()
            .map(|rule| AppliedRule {
                path: rule.path.clone(),
                resolved: rule.path.clone(),
                rights: rights_of(rule.access) & report.handled_fs,
            })
            .collect();
    }
    InForce::new(confinement, report, Limits::default(), Vec::new())
}

/// File rights that Molt has the kernel restrict, by ABI: those a policy can grant. Connecting to path sockets (ABI 9) is
/// not among them.
fn handled(abi: u32) -> u64 {
    let count = match abi {
        0 => 0,
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    (1 << count) - 1
}

fn names(rights: u64) -> String {
    let known = RIGHTS.iter().enumerate().filter(|(bit, _)| rights >> bit & 1 == 1).map(|(_, name)| *name);
    let mut list: Vec<&str> = known.collect();
    if rights >> RIGHTS.len() != 0 {
        list.push("others");
    }
    list.join(", ")
}

impl fmt::Display for Wider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LandlockLost => f.write_str("no path is restricted any more (Landlock is off)"),
            Self::Compatibility(_, Required::BestEffort) => f.write_str(
                "paths are enforced only where the kernel can (landlock.compatibility: best_effort), they were required",
            ),
            Self::Compatibility(..) => f.write_str(
                "paths that the image does not have are skipped, they were required (landlock.compatibility: \
                 hard_requirement)",
            ),
            Self::RightsUnhandled(rights) => write!(f, "not restricted any more on any path: {}", names(*rights)),
            Self::Path { path, resolved, rights } => {
                let verb = if rights & CHANGE != 0 { "changed" } else { "read" };
                write!(f, "{path}")?;
                if path != resolved {
                    write!(f, " (that is {resolved})")?;
                }
                write!(f, " can be {verb} now: {}", names(*rights))
            }
            Self::TcpUnhandled(kind) => write!(f, "{kind} any TCP port"),
            Self::TcpPorts(kind, ports) => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                write!(f, "{kind} more TCP ports: {}", ports.join(", "))
            }
            Self::ScopesLost(scopes) => {
                let what = ["abstract unix sockets", "signals"];
                let lost: Vec<&str> = what
                    .into_iter()
                    .enumerate()
                    .filter(|(bit, _)| scopes >> bit & 1 == 1)
                    .map(|(_, name)| name)
                    .collect();
                write!(f, "can reach outside the sandbox by {}", lost.join(" and "))
            }
            Self::NoNewPrivsLost => f.write_str("can gain privileges by exec (no_new_privs is off)"),
            Self::Seccomp(from, to) => {
                let name = |profile: &SeccompProfile| match profile {
                    SeccompProfile::None => "none",
                    SeccompProfile::Floor => "floor",
                    SeccompProfile::Strict => "strict",
                };
                write!(f, "fewer system calls are refused (seccomp {}, it was {})", name(to), name(from))
            }
            Self::Capabilities(bits) => write!(f, "has capabilities it did not have: {bits:#x}"),
            Self::Root => f.write_str("runs as root"),
            Self::Groups(groups) => {
                let list: Vec<String> = groups.iter().map(u32::to_string).collect();
                let noun = if list.len() == 1 { "group" } else { "groups" };
                write!(f, "is in the {noun} {} now", list.join(", "))
            }
            Self::Limit { name, from, to: Some(to) } => write!(f, "{name} is {to} now, it was {from}"),
            Self::Limit { name, from, to: None } => write!(f, "{name} is the container's own now, it was {from}"),
            Self::Mount { path, mode: MountMode::ReadOnly } => write!(f, "sees the mount {path} now"),
            Self::Mount { path, mode: MountMode::ReadWrite } => write!(f, "sees the mount {path} now, writable"),
        }
    }
}

impl fmt::Display for TcpUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bind => "can listen on",
            Self::Connect => "can connect to",
        })
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
