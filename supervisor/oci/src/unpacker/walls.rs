//! The walls around an unpacker and a decoder, from a fresh exec to the first hostile byte. The order is the argument:
//! limits; then what takes privileges, while they are there: clones of the folders it works on, namespaces, its folder as
//! its root; then capabilities, no_new_privs, Landlock, seccomp. A decoder has no folder.
//!
//! In: the folder to work in, those to read. Out: the same, reached another way, and what could not be had. Must not: go
//! on without a wall that every kernel Molt runs on has.

use std::os::fd::{AsFd as _, OwnedFd};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, Scope,
};
use molt_confine::{
    capabilities,
    landlock::{HIGHEST_FS, enforce, kernel_abi},
    limits::set,
    parent::arm_death_signal,
    root,
    step::{At as _, Step, refuse},
};
use molt_policy::seccomp::SeccompError;
use molt_sys::{
    mount::{Attributes, Propagation, set_attributes},
    process::unshare_namespaces,
    sandbox::load_filter,
};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    process::{DumpableBehavior, Resource, chdir, chroot, fchdir, set_dumpable_behavior, umask},
    thread::{CapabilitySet, UnshareFlags, set_no_new_privs},
};

use crate::{config::Limits, layer::apply::UMASK};

/// What an unpacker may read and what it may change.
#[derive(Debug)]
pub(super) struct Reach {
    /// The folder of the layer.
    pub(super) folder: OwnedFd,
    /// Folders of the layers below.
    pub(super) lowers: Vec<OwnedFd>,
}

/// Killed before anything else when memory runs out: an update can be tried again.
const OOM_SCORE: &str = "1000";
/// Folders that are open at once: the cache, the walk of a path, and two for each lower layer.
const DESCRIPTORS: u64 = 1024;
/// Heap, stack and the program itself, beside what the job itself takes.
const MEMORY: u64 = 128 << 20;

/// Which part of root's power an unpacker keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    /// Owners, modes, folders that are not its own.
    Unpack,
    /// And `trusted.overlay.*`. Who has it decodes nothing.
    Mark,
}

const UNPACK: CapabilitySet =
    CapabilitySet::CHOWN.union(CapabilitySet::FOWNER).union(CapabilitySet::DAC_OVERRIDE).union(CapabilitySet::FSETID);
const MARK: CapabilitySet = UNPACK.union(CapabilitySet::SYS_ADMIN);

/// Everything that takes rights away.
pub(super) fn build(control: &OwnedFd, reach: Reach, limits: &Limits, power: Power) -> Step<(Reach, Vec<String>)> {
    let mut missing = Vec::new();
    // The names that are kept, at most.
    bound(control, limits, (limits.deferred_bytes as u64).saturating_mul(4), &mut missing)?;
    umask(UMASK);
    let folder = clone(&reach.folder, Attributes::NOSUID.and(Attributes::NODEV).and(Attributes::NOEXEC))?;
    let read_only = Attributes::NOSUID.and(Attributes::NODEV).and(Attributes::NOEXEC).and(Attributes::RDONLY);
    let lowers = reach.lowers.iter().map(|lower| clone(lower, read_only)).collect::<Step<Vec<_>>>()?;
    drop(reach);
    separate(folder, &mut missing)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(CWD, "/", flags, Mode::empty()).at("open", "its folder")?;
    let reach = Reach { folder, lowers };

    let kept = match power {
        Power::Unpack => UNPACK,
        Power::Mark => MARK,
    };
    give_up(control, kept)?;
    domain(&reach, &mut missing)?;
    filter(molt_policy::unpacker::unpacker)?;
    Ok((reach, missing))
}

/// The same for a decoder, which reads one pipe and writes another: its filter has no call that takes a name or makes a
/// descriptor. Before that all capabilities go, and Landlock lets no file be opened.
pub(super) fn seal(control: &OwnedFd, limits: &Limits) -> Step<Vec<String>> {
    let missing = enclose(control, limits)?;
    filter(molt_policy::unpacker::decoder)?;
    Ok(missing)
}

/// All walls of a decoder but its filter.
fn enclose(control: &OwnedFd, limits: &Limits) -> Step<Vec<String>> {
    let mut missing = Vec::new();
    bound(control, limits, 1u64.checked_shl(limits.zstd_window_log).unwrap_or(u64::MAX), &mut missing)?;
    leave_network(&mut missing)?;
    give_up(control, CapabilitySet::empty())?;
    match kernel_abi()? {
        0 => missing.push("Landlock does not guard who decodes; its filter does".to_owned()),
        abi => enforce(ruleset(abi)?)?,
    }
    Ok(missing)
}

fn give_up(control: &OwnedFd, kept: CapabilitySet) -> Step<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("prctl", "not dumpable")?;
    capabilities::drop_bounding_set()?;
    capabilities::keep(kept)?;
    arm_death_signal(control)?;
    set_no_new_privs(true).at("prctl", "no_new_privs")
}

fn filter(programs: impl Fn(u32) -> Result<Vec<Vec<u64>>, SeccompError>) -> Step<()> {
    let programs = programs(std::process::id()).map_err(|error| refuse("seccomp", error.to_string()))?;
    for (number, program) in programs.iter().enumerate() {
        load_filter(program).at("seccomp", format!("filter {number}"))?;
    }
    Ok(())
}

/// Puts the calling process, which must have one thread, behind the walls of an unpacker: for a program that tries them.
/// With the capability of those that mark folders, so that nothing is refused for want of it alone. Gives the folder and
/// the `lowers` back, and the walls that are missing.
pub fn prisoner(
    control: &OwnedFd,
    folder: OwnedFd,
    lowers: Vec<OwnedFd>,
    limits: &Limits,
) -> Result<(OwnedFd, Vec<OwnedFd>, Vec<String>), String> {
    match build(control, Reach { folder, lowers }, limits, Power::Mark) {
        Ok((reach, missing)) => Ok((reach.folder, reach.lowers, missing)),
        Err(failure) => Err(format!("{failure:?}")),
    }
}

/// The same with the walls of a decoder.
pub fn sealed(control: &OwnedFd, limits: &Limits) -> Result<Vec<String>, String> {
    seal(control, limits).map_err(|failure| format!("{failure:?}"))
}

/// The same without its filter, so that the others are seen.
pub fn enclosed(control: &OwnedFd, limits: &Limits) -> Result<Vec<String>, String> {
    enclose(control, limits).map_err(|failure| format!("{failure:?}"))
}

/// Goes with PID 1, goes first when memory runs out, and takes no more than it may: of memory `job` bytes beside what
/// every process takes.
fn bound(control: &OwnedFd, limits: &Limits, job: u64, missing: &mut Vec<String>) -> Step<()> {
    arm_death_signal(control)?;
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        missing.push(format!("when memory runs out it is not the first to go (oom_score_adj: {error})"));
    }
    set(Resource::As, job.saturating_add(MEMORY), "RLIMIT_AS")?;
    set(Resource::Fsize, limits.layer_bytes, "RLIMIT_FSIZE")?;
    set(Resource::Cpu, limits.deadline.as_secs().saturating_add(1), "RLIMIT_CPU")?;
    set(Resource::Nofile, DESCRIPTORS, "RLIMIT_NOFILE")?;
    set(Resource::Core, 0, "RLIMIT_CORE")?;
    set(Resource::Memlock, 0, "RLIMIT_MEMLOCK")?;
    set(Resource::Msgqueue, 0, "RLIMIT_MSGQUEUE")
}

/// A detached mount of one folder: its `..` leads nowhere, and what it forbids holds whatever capability one has.
fn clone(folder: &OwnedFd, attributes: Attributes) -> Step<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(folder, "", flags).at("open_tree", "its folder")?;
    set_attributes(&tree, attributes, Propagation::Private).at("mount_setattr", "its folder")?;
    Ok(tree)
}

const NETWORK: UnshareFlags = UnshareFlags::NEWNET;
const IPC_AND_UTS: UnshareFlags = UnshareFlags::NEWIPC.union(UnshareFlags::NEWUTS);

/// Namespaces of its own; false where they cannot be had.
fn unshare(flags: UnshareFlags) -> Step<bool> {
    match unshare_namespaces(flags) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.errno, Errno::PERM | Errno::NOSPC | Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error).at("unshare", format!("{flags:?}")),
    }
}

/// A network without anything in it, and no IPC object or host name of others.
fn leave_network(missing: &mut Vec<String>) -> Step<()> {
    if unshare(NETWORK | IPC_AND_UTS)? {
        return Ok(());
    }
    for (flags, name) in [(NETWORK, "network"), (IPC_AND_UTS, "IPC and UTS")] {
        if !unshare(flags)? {
            missing.push(format!("no {name} namespace of its own; its filter has no call that would use one"));
        }
    }
    Ok(())
}

/// Namespaces of its own, and the folder as the root: Landlock does not see owners and modes being changed, but there is
/// nothing else here that could be named.
fn separate(folder: OwnedFd, missing: &mut Vec<String>) -> Step<()> {
    let mut separate = unshare(UnshareFlags::NEWNS | NETWORK | IPC_AND_UTS)?;
    if !separate {
        leave_network(missing)?;
        separate = unshare(UnshareFlags::NEWNS)?;
    }
    if separate {
        root::attach(&folder)?;
        return root::pivot(folder);
    }
    missing.push("no mount namespace of its own; its root is its folder all the same".to_owned());
    fchdir(&folder).at("fchdir", "its folder")?;
    chroot(".").at("chroot", "its folder")?;
    chdir("/").at("chdir", "/")
}

/// Files below its folder, to be made, written, moved and removed; those of the layers below to be read. Nothing can be
/// executed, no port reached, no process outside signalled.
fn domain(reach: &Reach, missing: &mut Vec<String>) -> Step<()> {
    let kernel = kernel_abi()?;
    if kernel < 2 {
        // ABI 1 forbids every hard link from one folder to another.
        missing.push(format!("Landlock ABI {kernel} does not guard it; its root and its filter do"));
        return Ok(());
    }
    let refused = |error: landlock::RulesetError| refuse("landlock", error.to_string());
    let all = handled(kernel);
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let change = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSym
        | AccessFs::MakeFifo
        | AccessFs::MakeChar
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let mut created = ruleset(kernel)?;
    created = created.add_rule(PathBeneath::new(reach.folder.as_fd(), change & all)).map_err(refused)?;
    for lower in &reach.lowers {
        created = created.add_rule(PathBeneath::new(lower.as_fd(), read)).map_err(refused)?;
    }
    enforce(created)
}

/// Every right of files that a kernel with this ABI knows.
fn handled(kernel: u32) -> BitFlags<AccessFs> {
    AccessFs::from_all(ABI::from(i32::try_from(kernel).unwrap_or(0)).min(HIGHEST_FS))
}

/// Nothing is allowed yet.
fn ruleset(kernel: u32) -> Step<RulesetCreated> {
    let refused = |error: landlock::RulesetError| refuse("landlock", error.to_string());
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(handled(kernel))
        .map_err(refused)?;
    if kernel >= 4 {
        ruleset = ruleset.handle_access(AccessNet::from_all(ABI::V4)).map_err(refused)?;
    }
    if kernel >= 6 {
        ruleset = ruleset.scope(Scope::from_all(ABI::V6)).map_err(refused)?;
    }
    ruleset.create().map_err(refused)
}
