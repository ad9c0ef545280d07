//! What the container and the kernel give: found out before anything is touched, and said in words with the line that
//! mends it. `molt doctor` and `molt init` ask the same questions.
//!
//! In: nothing. Out: facts, findings. Must not: change anything that lasts.

use molt_core::launch::ProcMode;
use rustix::{
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
    thread::{CapabilitySet, capabilities},
};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Grade {
    /// As it should be.
    Ok,
    /// Works, with something lost.
    Degraded,
    /// Does not work.
    Missing,
}

/// One answer.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Finding {
    /// What was asked.
    pub(crate) what: &'static str,
    /// How it is.
    pub(crate) grade: Grade,
    /// In words.
    pub(crate) found: String,
    /// What is lost without.
    pub(crate) costs: Option<String>,
    /// The line that mends it.
    pub(crate) mend: Option<String>,
}

impl Finding {
    /// Nothing to mend.
    pub(crate) fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, grade: Grade::Ok, found: found.into(), costs: None, mend: None }
    }

    /// Something is not as it should be.
    pub(crate) fn lacking(
        what: &'static str,
        grade: Grade,
        found: impl Into<String>,
        costs: impl Into<String>,
        mend: Option<&str>,
    ) -> Self {
        Self { what, grade, found: found.into(), costs: Some(costs.into()), mend: mend.map(str::to_owned) }
    }
}

/// How ids show that are not mapped in a user namespace: `/proc/sys/kernel/overflowuid` and `overflowgid`, if nobody has
/// changed them.
pub(crate) const OVERFLOW: u32 = 65534;

/// Which ids PID 1's user namespace has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IdMap {
    uids: Vec<(u32, u32)>,
    gids: Vec<(u32, u32)>,
}

impl IdMap {
    /// From `/proc/self/uid_map` and `gid_map`; the error names the file. user_namespaces(7).
    pub(crate) fn read() -> Result<Self, String> {
        let map = |file: &str| {
            let text = std::fs::read_to_string(file).map_err(|error| format!("failed to read {file}: {error}"))?;
            let lines = text.lines().filter_map(|line| {
                let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
                Some((*numbers.first()?, *numbers.get(2)?))
            });
            Ok::<_, String>(lines.collect())
        };
        Ok(Self { uids: map("/proc/self/uid_map")?, gids: map("/proc/self/gid_map")? })
    }

    /// Whether both are mapped.
    pub(crate) fn has(&self, uid: u32, gid: u32) -> bool {
        within(&self.uids, uid) && within(&self.gids, gid)
    }

    /// What of an identity is not mapped here, in words.
    pub(crate) fn lacks(&self, uid: u32, gid: u32, groups: &[u32]) -> Option<String> {
        let user = (!within(&self.uids, uid)).then_some(("user", uid, &self.uids));
        let group = [gid].iter().chain(groups).find(|gid| !within(&self.gids, **gid)).copied();
        let (what, id, map) = user.or_else(|| group.map(|gid| ("group", gid, &self.gids)))?;
        let ranges: Vec<String> = map
            .iter()
            .map(|(start, count)| format!("{start}-{}", u64::from(*start) + u64::from(*count).saturating_sub(1)))
            .collect();
        Some(format!(
            "{what} {id} does not exist in this user namespace, which has {}; name another one (workload.user, the \
             policy's run_as_user or run_as_group, workload.supplementalGroups), or map more ids",
            ranges.join(", ")
        ))
    }

    /// Whether this is the initial user namespace, with all ids.
    pub(crate) fn is_initial(&self) -> bool {
        self.uids == [(0, u32::MAX)]
    }

    /// Whether there is PID 1's own user and no other: there is nobody else the workload could be.
    pub(crate) fn is_single(&self) -> bool {
        self.count() <= 1
    }

    /// How many users there are.
    pub(crate) fn count(&self) -> u64 {
        self.uids.iter().map(|(_, count)| u64::from(*count)).sum()
    }
}

fn within(map: &[(u32, u32)], id: u32) -> bool {
    map.iter().any(|(start, count)| id >= *start && id - start < *count)
}

/// The Landlock ABI, 0 where there is none. `MOLT_PRETEND_LANDLOCK=2` drives what a kernel with less does; more than
/// there is cannot be pretended. Read once: PID 1 forgets its environment.
pub(crate) fn landlock_abi() -> u32 {
    static ABI: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *ABI.get_or_init(|| {
        let pretended = std::env::var("MOLT_PRETEND_LANDLOCK").ok().and_then(|text| text.parse().ok());
        molt_sys::landlock::abi().unwrap_or(0).min(pretended.unwrap_or(u32::MAX))
    })
}

/// Whether a fresh procfs can be mounted in a PID namespace of one's own: the kernel refuses it in a user namespace where
/// the outer one is partly covered. Asked with this one's, which follows the same rule. Any other answer says nothing of
/// that, and is an error.
pub(crate) fn proc_mode() -> Result<ProcMode, Errno> {
    let try_it = || -> rustix::io::Result<()> {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)
    };
    match try_it() {
        Ok(()) => Ok(ProcMode::Fresh),
        Err(Errno::PERM | Errno::ACCESS) => Ok(ProcMode::Carried),
        Err(errno) => Err(errno),
    }
}

/// What must be there for anything to work.
pub(crate) fn required() -> Vec<Finding> {
    const NOTHING: &str = "nothing can be started";
    let missing = |what, found: String, mend| Finding::lacking(what, Grade::Missing, found, NOTHING, Some(mend));
    let pid = std::process::id();
    let first = if pid == 1 {
        Finding::ok("PID 1", "molt is PID 1")
    } else {
        let mend = "make it the container's entrypoint: ENTRYPOINT [\"/molt\", \"init\", \"--\", …], and no `shareProcessNamespace`";
        missing("PID 1", format!("molt is process {pid}"), mend)
    };
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let admin = if effective.contains(CapabilitySet::SYS_ADMIN) {
        Finding::ok("CAP_SYS_ADMIN", "there")
    } else {
        let mend = "add it: `--cap-add SYS_ADMIN`, or in a pod securityContext.capabilities.add: [SYS_ADMIN] (with hostUsers: false it reaches no further than the pod)";
        missing("CAP_SYS_ADMIN", "not there".to_owned(), mend)
    };
    let mounted = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|context| {
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)
    });
    let mounts = match mounted {
        Ok(()) => Finding::ok("mounts", "can be made"),
        Err(errno) => {
            let mend = "a seccomp or AppArmor profile (or a Landlock domain above) forbids it: `--security-opt apparmor=unconfined`, in a pod appArmorProfile: {type: Unconfined}";
            missing("mounts", format!("cannot be made: {errno}"), mend)
        }
    };
    vec![first, admin, mounts]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_out_of_the_map_are_named() {
        let pod = IdMap { uids: vec![(0, 65536)], gids: vec![(0, 1000), (2000, 10)] };
        assert_eq!(pod.lacks(65535, 999, &[2009]), None);
        assert!(
            pod.lacks(65536, 0, &[])
                .unwrap()
                .contains("user 65536 does not exist in this user namespace, which has 0-65535;")
        );
        assert!(
            pod.lacks(0, 1000, &[])
                .unwrap()
                .contains("group 1000 does not exist in this user namespace, which has 0-999, 2000-2009;")
        );
        assert!(pod.lacks(0, 0, &[5, 2010]).unwrap().contains("group 2010"));
        assert!(!pod.is_single() && !pod.is_initial());
        let all = IdMap { uids: vec![(0, u32::MAX)], gids: vec![(0, u32::MAX)] };
        assert!(all.is_initial() && all.lacks(u32::MAX - 1, 0, &[]).is_none());
        assert!(IdMap { uids: vec![(0, 1)], gids: vec![(0, 1)] }.is_single());
    }
}
