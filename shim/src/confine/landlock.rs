//! The Landlock domain: paths opened as root in the new root after all mounts, entered after the ids changed.
//!
//! In: the lowered policy. Out: a domain, and in the report exactly what it holds. Must not: skip silently; use a right
//! the kernel has and the policy's meaning does not cover.

use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, Scope,
};
use molt_confine::landlock::{HIGHEST_FS, kernel_abi};
use molt_core::launch::{Access, AppliedRule, Failure, Landlock, PathRule, Report, TcpPorts};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::Errno,
};

use crate::{
    planted::{self, Wall, left_out},
    step::{At as _, Step, refuse},
};

/// A ruleset that is ready to be enforced.
#[derive(Debug)]
pub(crate) struct Domain(Option<RulesetCreated>);

/// Opens every path and builds the ruleset.
pub(crate) fn prepare(policy: Option<&Landlock>, report: &mut Report) -> Step<Domain> {
    let kernel = kernel_abi()?;
    report.landlock_abi = kernel;
    let Some(policy) = policy else {
        report.degraded.push("unconfined by policy: no Landlock domain".to_owned());
        return Ok(Domain(None));
    };
    let kernel = kernel.min(policy.abi);
    report.landlock_abi = kernel;
    let floor = policy.min_abi.max(u32::from(policy.hard));
    if kernel < floor {
        let message = format!("the kernel has Landlock ABI {kernel}, the policy needs {floor} or `best_effort`");
        return Err(Failure { policy: true, ..refuse("landlock", message) });
    }
    if kernel == 0 {
        report.degraded.push("this kernel has no Landlock: files are guarded by owner and mode only".to_owned());
        return Ok(Domain(None));
    }
    let kernel = if left_out(Wall::NewRights) { 2 } else { kernel };
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
        // Asked twice: a rule that is left out by mistake takes from the workload what its policy grants.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if (!hard || rule.derived) && open(&rule.path).is_err() => {
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
    let rights = granted(rule.access, directory, all);
    let resolved = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)))
        .map_or_else(|_| rule.path.clone(), |path| path.to_string_lossy().into_owned());
    let created = created
        .add_rule(PathBeneath::new(fd, rights))
        .map_err(|error| refuse("landlock", format!("{}: {error}", rule.path)))?;
    report.rules.push(AppliedRule { path: rule.path.clone(), resolved, rights: rights.bits() });
    Ok(created)
}

/// What a rule grants: of all rights that are handled, those of its access that mean something for the kind of file.
/// A right that only folders have, on anything else, is an error to the kernel.
fn granted(access: Access, directory: bool, handled: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
    let wanted = match access {
        Access::ReadOnly => AccessFs::from_read(HIGHEST_FS) & handled,
        Access::ReadWrite => handled,
    };
    if directory { wanted } else { wanted & AccessFs::from_file(HIGHEST_FS) }
}

/// Symlinks are followed inside the root (this process has pivoted into it), magic links never.
fn open(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    if left_out(Wall::LateRules)
        && let Some(early) = planted::early(path)
    {
        return early;
    }
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

/// Enters the domain, if there is one.
pub(crate) fn enforce(domain: Domain) -> Step<()> {
    let Domain(Some(ruleset)) = domain else { return Ok(()) };
    if left_out(Wall::Landlock) {
        return Ok(());
    }
    if left_out(Wall::NoNewPrivs) {
        return planted::enforce(ruleset);
    }
    let entered = molt_confine::landlock::enforce(ruleset);
    if left_out(Wall::Errors) { Ok(()) } else { entered }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By ABI: read-only folder, read-only file, read-write folder, read-write file; bits as in landlock(7), written down
    /// by hand. Bit 0 execute, 1 write_file, 2 read_file, 3 read_dir, 4-12 remove and make, 13 refer, 14 truncate,
    /// 15 ioctl_dev. Bit 16, resolve_unix of ABI 9, is not handled.
    const GOLDEN: [[u64; 4]; 10] = [
        [0b1101, 0b0101, 0x1fff, 0b0111],
        [0b1101, 0b0101, 0x3fff, 0b0111],
        [0b1101, 0b0101, 0x7fff, 0x4007],
        [0b1101, 0b0101, 0x7fff, 0x4007],
        [0b1101, 0b0101, 0xffff, 0xc007],
        [0b1101, 0b0101, 0xffff, 0xc007],
        [0b1101, 0b0101, 0xffff, 0xc007],
        [0b1101, 0b0101, 0xffff, 0xc007],
        [0b1101, 0b0101, 0xffff, 0xc007],
        [0b1101, 0b0101, 0xffff, 0xc007],
    ];

    #[test]
    fn rights_by_abi_and_kind_of_file() {
        for (abi, expected) in (1..).zip(GOLDEN) {
            let handled = AccessFs::from_all(ABI::from(abi).min(HIGHEST_FS));
            let rights = [
                granted(Access::ReadOnly, true, handled),
                granted(Access::ReadOnly, false, handled),
                granted(Access::ReadWrite, true, handled),
                granted(Access::ReadWrite, false, handled),
            ];
            assert_eq!(rights.map(BitFlags::bits), expected, "ABI {abi}");
        }
    }
}
