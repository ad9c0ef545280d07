//! The Landlock domain: paths opened as root in the new root after all mounts, entered after the ids changed.
//!
//! In: the lowered policy. Out: a domain, and in the report exactly what it holds. Must not: skip silently; use a right
//! the kernel has and the policy's meaning does not cover.

use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use molt_core::launch::{Access, AppliedRule, Failure, Landlock, PathRule, Report, TcpPorts};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::Errno,
};

use crate::step::{At as _, Step, refuse};

/// A ruleset that is ready to be enforced.
#[derive(Debug)]
pub(crate) struct Domain(Option<RulesetCreated>);

/// The highest ABI whose file rights Molt gives a meaning to. ABI 9 adds connecting to path sockets, which is handled
/// only with rules for them.
const HIGHEST_FS: ABI = ABI::V8;

/// Opens every path and builds the ruleset.
pub(crate) fn prepare(policy: Option<&Landlock>, report: &mut Report) -> Step<Domain> {
    let kernel = match molt_sys::landlock::abi() {
        Ok(abi) => abi,
        Err(error) if matches!(error.errno, Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => 0,
        Err(error) => return Err(error).at("landlock", ""),
    };
    report.landlock_abi = kernel;
    let Some(policy) = policy else {
        report.degraded.push("unconfined by policy: no Landlock domain".to_owned());
        return Ok(Domain(None));
    };
    if kernel < policy.min_abi.max(u32::from(policy.hard)) {
        let floor = policy.min_abi.max(1);
        let message = format!("the kernel has Landlock ABI {kernel}, the policy needs {floor} or `best_effort`");
        return Err(Failure { policy: true, ..refuse("landlock", message) });
    }
    if kernel == 0 {
        report.degraded.push("this kernel has no Landlock: files are guarded by owner and mode only".to_owned());
        return Ok(Domain(None));
    }
    let abi = ABI::from(i32::try_from(kernel).unwrap_or(0));
    let rights = AccessFs::from_all(abi.min(HIGHEST_FS));
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let mut ruleset = ruleset.handle_access(rights).map_err(|error| refuse("landlock", error.to_string()))?;
    report.handled_fs = rights.bits();
    if kernel >= 6 {
        let scopes = Scope::from_all(ABI::V6);
        ruleset = ruleset.scope(scopes).map_err(|error| refuse("landlock", error.to_string()))?;
        report.scoped = scopes.bits();
    } else {
        report.degraded.push(format!("Landlock ABI {kernel} cannot scope signals and abstract sockets"));
    }
    if kernel < 5 {
        report.degraded.push(format!("Landlock ABI {kernel} does not guard device ioctls"));
    }
    if kernel < 3 {
        report.degraded.push(format!("Landlock ABI {kernel} does not guard truncate"));
    }
    let net = policy.tcp.as_ref().map_or(BitFlags::EMPTY, net_rights);
    if !net.is_empty() && kernel >= 4 {
        ruleset = ruleset.handle_access(net).map_err(|error| refuse("landlock", error.to_string()))?;
        report.handled_net = net.bits();
    } else if !net.is_empty() {
        report.degraded.push(format!("Landlock ABI {kernel} does not guard TCP ports"));
    }
    let mut created = ruleset.create().map_err(|error| refuse("landlock", error.to_string()))?;
    for rule in &policy.paths {
        created = add_path(created, rule, rights, policy.hard, report)?;
    }
    if report.handled_net != 0
        && let Some(tcp) = &policy.tcp
    {
        created = add_ports(created, tcp)?;
    }
    if report.rules.is_empty() {
        return Err(Failure { policy: true, ..refuse("landlock", "no path of the policy exists in this root") });
    }
    Ok(Domain(Some(created)))
}

fn add_path(
    created: RulesetCreated,
    rule: &PathRule,
    all: BitFlags<AccessFs>,
    hard: bool,
    report: &mut Report,
) -> Step<RulesetCreated> {
    let fd = match open(&rule.path) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !hard || rule.derived => {
            if !rule.derived {
                report.missing.push(rule.path.clone());
            }
            return Ok(created);
        }
        Err(errno) => {
            let errno = errno.raw_os_error();
            return Err(Failure { policy: true, errno, ..refuse("landlock", rule.path.clone()) });
        }
    };
    let directory = FileType::from_raw_mode(fstat(&fd).at("fstat", &rule.path)?.st_mode) == FileType::Directory;
    let wanted = match rule.access {
        Access::ReadOnly => AccessFs::from_read(HIGHEST_FS) & all,
        Access::ReadWrite => all,
    };
    let rights = if directory { wanted } else { wanted & AccessFs::from_file(HIGHEST_FS) };
    let resolved = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)))
        .map_or_else(|_| rule.path.clone(), |path| path.to_string_lossy().into_owned());
    let created = created
        .add_rule(PathBeneath::new(fd, rights))
        .map_err(|error| refuse("landlock", format!("{}: {error}", rule.path)))?;
    report.rules.push(AppliedRule { path: rule.path.clone(), resolved, rights: rights.bits() });
    Ok(created)
}

/// Symlinks are followed inside the root (this process has pivoted into it), magic links never.
fn open(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

fn net_rights(tcp: &TcpPorts) -> BitFlags<AccessNet> {
    let mut rights = BitFlags::EMPTY;
    if tcp.bind.is_some() {
        rights |= AccessNet::BindTcp;
    }
    if tcp.connect.is_some() {
        rights |= AccessNet::ConnectTcp;
    }
    rights
}

fn add_ports(mut created: RulesetCreated, tcp: &TcpPorts) -> Step<RulesetCreated> {
    let bind = tcp.bind.iter().flatten().map(|port| (*port, AccessNet::BindTcp));
    let connect = tcp.connect.iter().flatten().map(|port| (*port, AccessNet::ConnectTcp));
    for (port, right) in bind.chain(connect) {
        created = created
            .add_rule(NetPort::new(port, right))
            .map_err(|error| refuse("landlock", format!("port {port}: {error}")))?;
    }
    Ok(created)
}

/// Enters the domain. Checks the status, not only the result: a partly enforced ruleset is an error.
pub(crate) fn enforce(domain: Domain, report: &mut Report) -> Step<()> {
    let Domain(Some(ruleset)) = domain else { return Ok(()) };
    let status = ruleset.restrict_self().map_err(|error| refuse("landlock_restrict_self", error.to_string()))?;
    if status.ruleset != RulesetStatus::FullyEnforced || !status.no_new_privs {
        report.handled_fs = 0;
        return Err(refuse("landlock_restrict_self", format!("only {:?}", status.ruleset)));
    }
    Ok(())
}
