//! The Landlock domain: paths opened as root in the new root after all mounts, entered after the ids changed.
//!
//! In: the lowered policy. Out: a domain, and in the report exactly what it holds. Must not: skip silently; use a right
//! the kernel has and the policy's meaning does not cover; let the workload say where a path of its policy leads.

use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, Scope,
};
use molt_confine::landlock::{HIGHEST_FS, kernel_abi};
use molt_core::launch::{Access, AppliedRule, Failure, Landlock, PathRule, Report, TcpPorts};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, openat},
    io::Errno,
};

use super::paths::{self, Opened, Way};
use crate::{
    planted::{self, Wall, left_out},
    step::{At as _, Step, refuse},
};

/// A ruleset that is ready to be enforced.
#[derive(Debug)]
pub(crate) struct Domain {
    ruleset: Option<RulesetCreated>,
    /// Folders that no rule holds.
    outside: Vec<&'static str>,
}

impl Domain {
    const NONE: Self = Self { ruleset: None, outside: Vec::new() };

    /// A folder that nothing but this domain keeps from who asks before it is entered. None where there is no such one:
    /// the rules hold all of them, or owner and mode keep the others.
    pub(crate) fn guarded(&self) -> Option<&'static str> {
        if left_out(Wall::Landlock) || left_out(Wall::Errors) {
            return None;
        }
        self.outside.iter().copied().find(|folder| can_list(folder))
    }
}

/// Whether a folder can be opened to be listed.
pub(crate) fn can_list(folder: &str) -> bool {
    openat(CWD, folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).is_ok()
}

/// Molt's own folder, which every root has, and the root: one of them is below no rule of almost every policy.
const FOLDERS: [&str; 2] = ["/run/molt", "/"];

/// File system and inode: a rule holds for these, by whatever path it was opened.
type Inode = (u64, u64);

fn inode(fd: &OwnedFd) -> rustix::io::Result<Inode> {
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Those of [`FOLDERS`] that are below nothing in `held`. One that cannot be looked at is not among them.
fn outside(held: &[Inode]) -> Vec<&'static str> {
    FOLDERS.into_iter().filter(|folder| chain(folder).is_ok_and(|chain| is_outside(&chain, held))).collect()
}

/// A folder and all above it.
fn chain(folder: &str) -> rustix::io::Result<Vec<Inode>> {
    let above = std::path::Path::new(folder).ancestors();
    above.map(|path| inode(&openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)).collect()
}

fn is_outside(chain: &[Inode], held: &[Inode]) -> bool {
    !chain.iter().any(|inode| held.contains(inode))
}

/// Opens every path and builds the ruleset.
pub(crate) fn prepare(policy: Option<&Landlock>, report: &mut Report) -> Step<Domain> {
    let kernel = kernel_abi()?;
    report.landlock_abi = kernel;
    let Some(policy) = policy else {
        report.degraded.push("unconfined by policy: no Landlock domain".to_owned());
        return Ok(Domain::NONE);
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
        return Ok(Domain::NONE);
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
    let opened = opened(policy, report)?;
    let held: Vec<Inode> =
        opened.iter().map(|(rule, opened)| inode(&opened.fd).at("fstat", &rule.path)).collect::<Step<_>>()?;
    for (rule, opened) in opened {
        created = add_path(created, rule, opened, rights, report)?;
    }
    if report.handled_net != 0
        && let Some(tcp) = &policy.tcp
    {
        created = add_ports(created, tcp)?;
    }
    if report.rules.is_empty() {
        return Err(Failure { policy: true, ..refuse("landlock", "no path of the policy exists in this root") });
    }
    Ok(Domain { ruleset: Some(created), outside: outside(&held) })
}

/// The rules that count, each with what its path leads to. What the root does not have is left out, and what the
/// workload itself may lead elsewhere.
fn opened<'a>(policy: &'a Landlock, report: &mut Report) -> Step<Vec<(&'a PathRule, Opened)>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/", flags, Mode::empty()).at("open", "/")?;
    let mut found = Vec::new();
    for rule in &policy.paths {
        match open(&root, &rule.path) {
            Ok(opened) => found.push((rule, opened)),
            // Asked twice: a rule that is left out by mistake takes from the workload what its policy grants.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
                if (!policy.hard || rule.derived) && open(&root, &rule.path).is_err() =>
            {
                if !rule.derived {
                    report.missing.push(rule.path.clone());
                }
            }
            Err(errno) => {
                let errno = errno.raw_os_error();
                return Err(Failure { policy: true, errno, ..refuse("landlock", rule.path.clone()) });
            }
        }
    }
    firm(found, policy.hard, report)
}

/// Those whose way the workload cannot change.
fn firm<'a>(found: Vec<(&'a PathRule, Opened)>, hard: bool, report: &mut Report) -> Step<Vec<(&'a PathRule, Opened)>> {
    let ways: Vec<(Access, &Way)> = found.iter().map(|(rule, opened)| (rule.access, &opened.way)).collect();
    let loose = paths::loose(&ways);
    let mut firm = Vec::new();
    for ((rule, opened), link) in found.into_iter().zip(loose) {
        let Some(link) = link else {
            firm.push((rule, opened));
            continue;
        };
        let why = format!("{} leads over a link at {link}, which the workload may change", rule.path);
        if hard && !rule.derived {
            let message = format!("{why}: name where it leads in the policy");
            return Err(Failure { policy: true, ..refuse("landlock", message) });
        }
        report.degraded.push(format!("{why}: left out; name where it leads in the policy"));
    }
    Ok(firm)
}

fn add_path(
    created: RulesetCreated,
    rule: &PathRule,
    Opened { fd, way }: Opened,
    all: BitFlags<AccessFs>,
    report: &mut Report,
) -> Step<RulesetCreated> {
    let directory = FileType::from_raw_mode(fstat(&fd).at("fstat", &rule.path)?.st_mode) == FileType::Directory;
    let rights = granted(rule.access, directory, all);
    let created = created
        .add_rule(PathBeneath::new(fd, rights))
        .map_err(|error| refuse("landlock", format!("{}: {error}", rule.path)))?;
    report.rules.push(AppliedRule { path: rule.path.clone(), resolved: way.resolved, rights: rights.bits() });
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

fn open(root: &OwnedFd, path: &str) -> rustix::io::Result<Opened> {
    if left_out(Wall::LateRules)
        && let Some(early) = planted::early(path)
    {
        return early.map(|fd| Opened { fd, way: Way::straight(path) });
    }
    paths::open(root, path)
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
    let Some(ruleset) = domain.ruleset else { return Ok(()) };
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

    fn app(derived: bool) -> PathRule {
        PathRule { path: "/sandbox/app".to_owned(), access: Access::ReadWrite, derived }
    }

    /// What is left of a rule for `/sandbox/app` beside one for `/sandbox`, where a link leads it to `/`.
    fn led_away(rule: &PathRule, hard: bool, report: &mut Report) -> Step<Vec<String>> {
        let tree = PathRule { path: "/sandbox".to_owned(), ..app(false) };
        let fd = || openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let link = paths::Link { place: "/sandbox/app".to_owned(), leaves_volume: false };
        let away = Way { resolved: "/".to_owned(), links: vec![link] };
        let found =
            vec![(&tree, Opened { fd: fd(), way: Way::straight("/sandbox") }), (rule, Opened { fd: fd(), way: away })];
        let firm = firm(found, hard, report)?;
        Ok(firm.into_iter().map(|(rule, _)| rule.path.clone()).collect())
    }

    #[test]
    fn a_rule_the_workload_could_lead_away_is_left_out_and_said() {
        for (derived, hard) in [(false, false), (true, false), (true, true)] {
            let mut report = Report::default();
            assert_eq!(led_away(&app(derived), hard, &mut report).unwrap(), ["/sandbox"]);
            let said = "/sandbox/app leads over a link at /sandbox/app, which the workload may change: left out; name \
                        where it leads in the policy";
            assert_eq!(report.degraded, [said]);
            assert!(report.missing.is_empty());
        }
        let refused = led_away(&app(false), true, &mut Report::default()).unwrap_err();
        assert!(refused.policy && refused.errno == 0, "{refused:?}");
    }

    #[test]
    fn a_folder_is_outside_when_no_rule_holds_it_or_one_above_it() {
        let chain = [(1, 30), (1, 20), (1, 2)];
        assert!(is_outside(&chain, &[]));
        assert!(is_outside(&chain, &[(1, 31), (2, 30), (2, 2)]), "beside and below, and another file system");
        for held in chain {
            assert!(!is_outside(&chain, &[(7, 7), held]), "{held:?}");
        }
        let root = chain_of("/");
        assert_eq!(outside(&root), Vec::<&str>::new(), "a rule for the root holds all");
        assert!(outside(&[]).contains(&"/"));
    }

    fn chain_of(folder: &str) -> Vec<Inode> {
        chain(folder).unwrap()
    }

    /// For real: what can be listed before the domain is entered cannot be afterwards; without entering it, it still can.
    #[test]
    fn only_the_domain_keeps_the_guarded_folder() {
        let rule = PathRule { path: "/usr".to_owned(), access: Access::ReadOnly, derived: false };
        let policy = Landlock { abi: u32::MAX, paths: vec![rule], ..Landlock::default() };
        let entered = |enter: fn(Domain) -> Step<()>| {
            let policy = policy.clone();
            let work = move || {
                let domain = prepare(Some(&policy), &mut Report::default()).unwrap();
                let folder = domain.guarded().unwrap();
                rustix::thread::set_no_new_privs(true).unwrap();
                enter(domain).unwrap();
                can_list(folder)
            };
            std::thread::spawn(work).join().unwrap()
        };
        assert!(!entered(enforce));
        assert!(entered(|_| Ok(())));
    }

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
