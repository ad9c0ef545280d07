//! What the container and the kernel give: found out before anything is touched, and said in words with the line that
//! mends it. `molt doctor` and `molt init` ask the same questions.
//!
//! In: nothing. Out: facts, findings. Must not: change anything that lasts.

use molt_core::launch::ProcMode;
use rustix::{
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
    /// The line that mends it.
    pub(crate) mend: Option<String>,
}

impl Finding {
    fn new(what: &'static str, grade: Grade, found: impl Into<String>, mend: Option<&str>) -> Self {
        Self { what, grade, found: found.into(), mend: mend.map(str::to_owned) }
    }
}

/// Which ids PID 1's user namespace has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IdMap {
    uids: Vec<(u32, u32)>,
    gids: Vec<(u32, u32)>,
}

impl IdMap {
    /// From `/proc/self/uid_map` and `gid_map`. user_namespaces(7).
    pub(crate) fn read() -> Self {
        let map = |file: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            text.lines()
                .filter_map(|line| {
                    let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
                    Some((*numbers.first()?, *numbers.get(2)?))
                })
                .collect()
        };
        Self { uids: map("/proc/self/uid_map"), gids: map("/proc/self/gid_map") }
    }

    /// Whether both are mapped.
    pub(crate) fn has(&self, uid: u32, gid: u32) -> bool {
        let within = |map: &[(u32, u32)], id: u32| map.iter().any(|(start, count)| id >= *start && id - start < *count);
        within(&self.uids, uid) && within(&self.gids, gid)
    }

    /// Whether this is a user namespace of few ids or shifted ones.
    pub(crate) fn is_initial(&self) -> bool {
        self.uids == [(0, u32::MAX)]
    }
}

/// The Landlock ABI, 0 where there is none.
pub(crate) fn landlock_abi() -> u32 {
    molt_sys::landlock::abi().unwrap_or(0)
}

/// Whether a fresh procfs can be mounted in a PID namespace of one's own: the kernel refuses it in a user namespace where
/// the outer one is partly covered. Asked with this one's, which follows the same rule.
pub(crate) fn proc_mode() -> ProcMode {
    let try_it = || -> rustix::io::Result<()> {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)
    };
    if try_it().is_ok() { ProcMode::Fresh } else { ProcMode::Carried }
}

/// What must be there for anything to work.
pub(crate) fn required() -> Vec<Finding> {
    let mut findings = Vec::new();
    let pid = std::process::id();
    findings.push(if pid == 1 {
        Finding::new("PID 1", Grade::Ok, "molt is PID 1", None)
    } else {
        let mend = "make it the container's entrypoint: ENTRYPOINT [\"/molt\", \"init\", \"--\", …], and no `shareProcessNamespace`";
        Finding::new("PID 1", Grade::Missing, format!("molt is process {pid}"), Some(mend))
    });
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    findings.push(if effective.contains(CapabilitySet::SYS_ADMIN) {
        Finding::new("CAP_SYS_ADMIN", Grade::Ok, "there", None)
    } else {
        let mend = "add it: `--cap-add SYS_ADMIN`, or in a pod securityContext.capabilities.add: [SYS_ADMIN] (with hostUsers: false it reaches no further than the pod)";
        Finding::new("CAP_SYS_ADMIN", Grade::Missing, "not there", Some(mend))
    });
    findings.push(match fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|context| {
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)
    }) {
        Ok(()) => Finding::new("mounts", Grade::Ok, "can be made", None),
        Err(errno) => {
            let mend = "a seccomp or AppArmor profile (or a Landlock domain above) forbids it: `--security-opt apparmor=unconfined`, in a pod appArmorProfile: {type: Unconfined}";
            Finding::new("mounts", Grade::Missing, format!("cannot be made: {errno}"), Some(mend))
        }
    });
    findings
}

/// What may be missing at a price.
pub(crate) fn optional() -> Vec<Finding> {
    let mut findings = Vec::new();
    let abi = landlock_abi();
    findings.push(match abi {
        0 => Finding::new(
            "Landlock",
            Grade::Missing,
            "not in this kernel, not enabled, or forbidden",
            Some(
                "boot with lsm=landlock,…; or, knowing what is lost, landlock.compatibility: best_effort in the policy",
            ),
        ),
        1..=2 => Finding::new(
            "Landlock",
            Grade::Degraded,
            format!("ABI {abi}: truncate is not guarded"),
            Some("Linux 6.2; or, knowing what is lost, landlock.compatibility: best_effort in the policy"),
        ),
        3..=5 => {
            Finding::new("Landlock", Grade::Degraded, format!("ABI {abi}: signals are not scoped"), Some("Linux 6.12"))
        }
        _ => Finding::new("Landlock", Grade::Ok, format!("ABI {abi}"), None),
    });
    let map = IdMap::read();
    findings.push(if map.has(65532, 65532) {
        Finding::new(
            "user ids",
            Grade::Ok,
            if map.is_initial() { "all" } else { "a user namespace with 65532 in it" },
            None,
        )
    } else {
        Finding::new(
            "user ids",
            Grade::Degraded,
            "65532 is not mapped: the workload gets a user namespace of its own and shares the supervisor's user",
            Some("map a range: hostUsers: false in a pod, --uidmap with podman"),
        )
    });
    findings.push(match proc_mode() {
        ProcMode::Fresh => Finding::new("/proc", Grade::Ok, "a fresh one can be mounted", None),
        ProcMode::Carried => Finding::new(
            "/proc",
            Grade::Degraded,
            "the kernel refuses a fresh one: the workload sees the supervisor's, read-only",
            Some("procMount: Unmasked with hostUsers: false in a pod, --security-opt unmask=ALL with podman"),
        ),
    });
    findings
}
