//! Is the new confinement wider than the old one?
//!
//! In: what is in force before and after, as the confined processes read it back, or as two policies would have it.
//! Out: everything the new one may do that the old one may not. Must not: decide whether that is allowed.

use std::fmt;

use molt_core::launch::{Access, AppliedRule, Confinement, Report, TcpPorts};
use serde::{Deserialize, Serialize};

use crate::lower::within;

/// One side: what was asked for and what is in force.
#[derive(Debug, Clone, Copy)]
pub struct Resolved<'a> {
    /// As lowered.
    pub confinement: &'a Confinement,
    /// As read back in the confined process, or [`assumed`].
    pub report: &'a Report,
}

/// Something the new side may do and the old one may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wider {
    /// No Landlock domain any more.
    LandlockLost,
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
    /// Fewer seccomp programs, or none.
    SeccompLost,
    /// Capabilities it did not have.
    Capabilities(u64),
    /// It is root now.
    Root,
    /// It has the group 0 now.
    RootGroup,
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
pub fn compare(old: &Resolved<'_>, new: &Resolved<'_>) -> Vec<Wider> {
    let (before, after) = (old.report, new.report);
    let mut found = Vec::new();
    if before.handled_fs != 0 && after.handled_fs == 0 {
        found.push(Wider::LandlockLost);
    } else {
        let unhandled = before.handled_fs & !after.handled_fs;
        if unhandled != 0 {
            found.push(Wider::RightsUnhandled(unhandled));
        }
        for rule in &after.rules {
            // A right that the old side did not restrict was there before; one that the new side does not restrict
            // at all has been named above.
            let rights = rule.rights & before.handled_fs & after.handled_fs & !granted(old, &rule.resolved);
            if rights != 0 {
                found.push(Wider::Path { path: rule.path.clone(), resolved: rule.resolved.clone(), rights });
            }
        }
    }
    let ports = |side: &Resolved<'_>| side.confinement.landlock.as_ref().and_then(|landlock| landlock.tcp.clone());
    let (old_ports, new_ports) = (ports(old), ports(new));
    for kind in [TcpUse::Bind, TcpUse::Connect] {
        if before.handled_net & kind.bit() == 0 {
            continue;
        }
        if after.handled_net & kind.bit() == 0 {
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
    let scopes = before.scoped & !after.scoped;
    if scopes != 0 {
        found.push(Wider::ScopesLost(scopes));
    }
    if before.no_new_privs && !after.no_new_privs {
        found.push(Wider::NoNewPrivsLost);
    }
    let filtered = |report: &Report| if report.seccomp_mode == 2 { report.seccomp_filters } else { 0 };
    if filtered(after) < filtered(before) {
        found.push(Wider::SeccompLost);
    }
    let capabilities = after.capabilities & !before.capabilities;
    if capabilities != 0 {
        found.push(Wider::Capabilities(capabilities));
    }
    if before.uid != 0 && after.uid == 0 {
        found.push(Wider::Root);
    }
    let in_root_group = |report: &Report| report.gid == 0 || report.groups.contains(&0);
    if in_root_group(after) && !in_root_group(before) {
        found.push(Wider::RootGroup);
    }
    found
}

/// Rights the old side grants on `path`: the union of every rule on it or above it, as Landlock counts.
fn granted(old: &Resolved<'_>, path: &str) -> u64 {
    let applied = old.report.rules.iter().filter(|rule| within(path, &rule.resolved)).map(|rule| rule.rights);
    // A path the old policy names but the old image did not have was granted all the same.
    let promised = old.confinement.landlock.iter().flat_map(|landlock| &landlock.paths);
    let promised = promised
        .filter(|rule| within(path, &rule.path) && old.report.missing.contains(&rule.path))
        .map(|rule| rights_of(rule.access));
    applied.chain(promised).fold(0, |all, rights| all | rights)
}

/// What a confinement would be on a kernel that has everything, in a root where every path exists and leads to itself:
/// for comparing two policies before either runs. The user is taken as not root.
pub fn assumed(confinement: &Confinement) -> Report {
    let mut report = Report {
        no_new_privs: true,
        seccomp_mode: if confinement.seccomp.is_empty() { 0 } else { 2 },
        seccomp_filters: u32::try_from(confinement.seccomp.len()).unwrap_or(u32::MAX),
        uid: u32::MAX,
        gid: u32::MAX,
        ..Report::default()
    };
    if let Some(landlock) = &confinement.landlock {
        report.handled_fs = (1 << RIGHTS.len()) - 1;
        report.scoped = 3;
        if let Some(tcp) = &landlock.tcp {
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
    report
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
            Self::SeccompLost => f.write_str("fewer system calls are refused"),
            Self::Capabilities(bits) => write!(f, "has capabilities it did not have: {bits:#x}"),
            Self::Root => f.write_str("runs as root"),
            Self::RootGroup => f.write_str("is in the group 0"),
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
