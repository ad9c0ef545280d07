//! Walls that a test build can leave out, so that it is seen which tests miss them. In the product every question here is
//! answered with a constant no, and the compiler removes what hangs on it.
//!
//! In: the word in `argv[0]`, which the supervisor of such a build takes from its own switch. Out: whether a wall is left
//! out; and a report that says it is there, because PID 1 would refuse an honest one. Must not: be read without the
//! feature `planted`.

use std::os::fd::OwnedFd;

use landlock::RulesetCreated;
use molt_core::launch::{Launch, Report};

use crate::step::Step;

/// What can be left out, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wall {
    /// The Landlock domain is built and not entered.
    Landlock,
    /// Landlock as of ABI 2: no truncate, no device ioctl, no TCP, no scope.
    NewRights,
    /// No filter is loaded.
    Seccomp,
    /// The generation's processes are in PID 1's PID namespace.
    PidNamespace,
    /// The same, and its init kills the process group of the workload, and nobody else, when that ends.
    KillGroup,
    /// The rule for the state is opened below the mount that covers it.
    LateRules,
    /// Still user 0, if without a capability.
    Ids,
    /// Neither no_new_privs nor nosuid on the root.
    NoNewPrivs,
    /// A descriptor of the root stays open across exec.
    Close,
    /// Whether the domain was entered and the user changed is not asked.
    Errors,
}

#[cfg(not(feature = "planted"))]
mod build {
    use super::{Launch, OwnedFd, Report, RulesetCreated, Step, Wall};

    pub(crate) const fn left_out(_: Wall) -> bool {
        false
    }

    #[expect(clippy::unnecessary_wraps, reason = "as in the other build")]
    pub(crate) const fn spoil() -> Step<()> {
        Ok(())
    }

    pub(crate) const fn early(_: &str) -> Option<rustix::io::Result<OwnedFd>> {
        None
    }

    pub(crate) fn enforce(ruleset: RulesetCreated) -> Step<()> {
        molt_confine::landlock::enforce(ruleset)
    }

    pub(crate) const fn lie(_: &Launch, _: &mut Report) {}
}

#[cfg(feature = "planted")]
mod build {
    use std::os::fd::IntoRawFd as _;

    use landlock::RulesetCreatedAttr as _;
    use rustix::{
        fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2},
        mount::{MountFlags, OpenTreeFlags, mount_remount, open_tree},
    };

    use super::{Launch, OwnedFd, Report, RulesetCreated, Step, Wall};
    use crate::step::{At as _, refuse};

    const STATE: &str = "/sandbox/state";

    const fn word(wall: Wall) -> &'static str {
        match wall {
            Wall::Landlock => "no-landlock",
            Wall::NewRights => "landlock-v2",
            Wall::Seccomp => "no-seccomp",
            Wall::PidNamespace => "shared-pid",
            Wall::KillGroup => "kill-group",
            Wall::LateRules => "early-rule",
            Wall::Ids => "no-ids",
            Wall::NoNewPrivs => "no-nnp",
            Wall::Close => "no-close",
            Wall::Errors => "no-errors",
        }
    }

    /// Whether this run is to do without `wall`.
    pub(crate) fn left_out(wall: Wall) -> bool {
        std::env::args_os().next().is_some_and(|name| name == word(wall))
    }

    /// As root, in the new root, before anything is taken away.
    pub(crate) fn spoil() -> Step<()> {
        if left_out(Wall::NoNewPrivs) {
            mount_remount("/", MountFlags::BIND | MountFlags::NODEV, "").at("planted", "remount")?;
        }
        if left_out(Wall::Close) {
            let root = open("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).at("planted", "open /")?;
            let _ = root.into_raw_fd();
        }
        Ok(())
    }

    /// The folder that the state covers: what a rule names whose path was opened before the mount.
    pub(crate) fn early(path: &str) -> Option<rustix::io::Result<OwnedFd>> {
        if path != STATE {
            return None;
        }
        let bare = open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Some(bare.and_then(|bare| openat2(bare, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)))
    }

    /// Enters a domain as root can, without no_new_privs.
    pub(crate) fn enforce(ruleset: RulesetCreated) -> Step<()> {
        let entered = ruleset.no_new_privs(false).restrict_self();
        entered.map(drop).map_err(|error| refuse("planted", error.to_string()))
    }

    /// Says that all is as it was asked for.
    pub(crate) fn lie(launch: &Launch, report: &mut Report) {
        if launch.confinement.landlock.is_some() {
            report.handled_fs |= 0xffff;
            report.scoped = 3;
        }
        report.no_new_privs = true;
        report.seccomp_mode = 2;
        report.seccomp_filters = u32::try_from(launch.confinement.seccomp.len()).unwrap_or(u32::MAX);
        report.capabilities = 0;
        report.uid = launch.identity.uid;
        report.gid = launch.identity.gid;
        report.groups.clone_from(&launch.identity.groups);
        report.degraded.clear();
    }
}

pub(crate) use build::{early, enforce, left_out, lie, spoil};
