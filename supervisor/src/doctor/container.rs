//! What whoever starts the container decides: ids, capabilities, profiles, devices, memory.
//!
//! In: `/proc`, `/dev`, `/sys/fs/cgroup`. Out: findings. Must not: change anything but this process itself.

use std::{fs, path::Path};

use rustix::{
    fs::{CWD, FileType, major, minor},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    process::pivot_root,
    thread::{CapabilitySet, capabilities},
};

use crate::preflight::{Finding, Grade, IdMap};

const CGROUP: &str = "/sys/fs/cgroup";
/// What an update needs for a moment, beside the workload: the process that unpacks a layer may use as much.
const MEMORY: u64 = 128 << 20;

/// Every question of this file.
pub(super) fn all() -> Vec<Finding> {
    let users = match IdMap::read() {
        Ok(map) => vec![mode(&map), ids(&map)],
        Err(why) => vec![Finding::lacking("user ids", Grade::Missing, why, "nothing can be started", None)],
    };
    let rest = [rights(), seccomp(), devices(), cgroup(Path::new(CGROUP)), memory(Path::new(CGROUP))];
    users.into_iter().chain(rest).collect()
}

/// Whose root PID 1 is.
fn mode(map: &IdMap) -> Finding {
    if !map.is_initial() {
        return Finding::ok("mode", format!("a user namespace of {} ids: root here is nobody outside", map.count()));
    }
    // Not less than Molt needs: what it would do is done. What it costs is somebody else's risk.
    Finding::ok(
        "mode",
        "the machine's own users: who takes over Molt has CAP_SYS_ADMIN on the node (better: hostUsers: false in a \
         pod, --uidmap or --userns=auto with podman)",
    )
}

fn ids(map: &IdMap) -> Finding {
    if map.has(65532, 65532) {
        return Finding::ok("user ids", if map.is_initial() { "all" } else { "65532 is mapped" });
    }
    let range = "map 65536 ids: hostUsers: false in a pod, --uidmap or --userns=auto with podman";
    if !map.is_single() {
        let costs = "images whose workload has no user of its own cannot run";
        let found = map.lacks(65532, 65532, &[]).unwrap_or_default();
        let mend = format!("name a user that is mapped, or {range}");
        return Finding::lacking("user ids", Grade::Degraded, found, costs, Some(&mend));
    }
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if most.trim() == "0" {
        let found = "there is one only, and no user namespace can be made";
        let costs = "there is nobody whom the workload could be";
        return Finding::lacking("user ids", Grade::Missing, found, costs, Some(range));
    }
    let costs = "the workload gets a user namespace of its own, and is the supervisor's own user under another number";
    Finding::lacking("user ids", Grade::Degraded, "there is one only", costs, Some(range))
}

/// Capabilities beside CAP_SYS_ADMIN, and what is lost without each.
fn rights() -> Finding {
    const NONE_ARMED: &str = "nothing can be armed";
    const UNPACKED: &str = "images with files of others than root are refused, or lose setgid bits";
    const WANTED: [(CapabilitySet, &str, Grade, &str); 8] = [
        (CapabilitySet::SETUID, "SETUID", Grade::Missing, NONE_ARMED),
        (CapabilitySet::SETGID, "SETGID", Grade::Missing, NONE_ARMED),
        (CapabilitySet::DAC_OVERRIDE, "DAC_OVERRIDE", Grade::Missing, "no overlay can be mounted"),
        (CapabilitySet::SETPCAP, "SETPCAP", Grade::Degraded, "the workload's bounding set stays"),
        (CapabilitySet::CHOWN, "CHOWN", Grade::Degraded, UNPACKED),
        (CapabilitySet::FOWNER, "FOWNER", Grade::Degraded, UNPACKED),
        (CapabilitySet::FSETID, "FSETID", Grade::Degraded, UNPACKED),
        (CapabilitySet::KILL, "KILL", Grade::Degraded, "a generation is asked to end instead of being ended"),
    ];
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let lacking: Vec<_> = WANTED.iter().filter(|(capability, ..)| !effective.contains(*capability)).collect();
    if lacking.is_empty() {
        return Finding::ok("capabilities", "all that are used");
    }
    let worst =
        if lacking.iter().any(|(_, _, grade, _)| *grade == Grade::Missing) { Grade::Missing } else { Grade::Degraded };
    let names: Vec<&str> = lacking.iter().map(|(_, name, ..)| *name).collect();
    let mut costs: Vec<&str> = lacking.iter().map(|(.., costs)| *costs).collect();
    costs.dedup();
    let mend = format!(
        "add them: securityContext.capabilities.add: [{}] in a pod, --cap-add {} with podman",
        names.join(", "),
        names.join(",")
    );
    Finding::lacking("capabilities", worst, format!("without {}", names.join(", ")), costs.join("; "), Some(&mend))
}

/// The runtime's filter: which of the calls that have another way it leaves out. Those that have none are asked for as
/// "mounts", "namespaces" and "Landlock".
fn seccomp() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if status.lines().find_map(|line| line.strip_prefix("Seccomp:")).is_none_or(|mode| mode.trim() != "2") {
        return Finding::ok("seccomp", "no filter of the runtime's");
    }
    // Without the capability the kernel says EPERM itself.
    let may = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    let nowhere = "/proc/self/fd/nowhere";
    let mut costs = Vec::new();
    if may && pivot_root(nowhere, nowhere).is_err_and(|errno| errno == Errno::PERM || errno == Errno::NOSYS) {
        costs.push("without pivot_root the old root stays mounted in a generation, covered and out of reach");
    }
    // A keyring of this process's own, which ends with it.
    if molt_sys::keyring::join_new_session().is_err() {
        costs.push("without keyctl a workload that has no filter shares the container's session keyring");
    }
    if costs.is_empty() {
        return Finding::ok("seccomp", "a filter of the runtime's, which allows all that is used");
    }
    let mend = "a profile that allows them: --security-opt seccomp=FILE, in a pod seccompProfile: {type: Localhost, …}";
    Finding::lacking("seccomp", Grade::Degraded, "a filter of the runtime's", costs.join("; "), Some(mend))
}

/// Nodes that every generation gets a clone of.
fn devices() -> Finding {
    const NODES: [(&str, u32, u32); 5] =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let lacks = |(name, want_major, want_minor): &(&str, u32, u32)| {
        let path = format!("/dev/{name}");
        let right = rustix::fs::stat(&path).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                && (major(stat.st_rdev), minor(stat.st_rdev)) == (*want_major, *want_minor)
        });
        // Without the right to mount, "mounts" says so.
        let cloned = open_tree(CWD, &path, flags).map_or_else(|errno| errno == Errno::PERM, |_| true);
        (!right || !cloned).then_some(path)
    };
    let lacking: Vec<String> = NODES.iter().filter_map(lacks).collect();
    if lacking.is_empty() {
        return Finding::ok("/dev", "the nodes of every generation are there");
    }
    let found = format!("without {}, as the device it should be", lacking.join(", "));
    let mend = "leave /dev as the runtime makes it: no volume over it";
    Finding::lacking("/dev", Grade::Missing, found, "nothing can be armed", Some(mend))
}

/// None is needed: a generation ends with the init of its PID namespace.
fn cgroup(folder: &Path) -> Finding {
    if fs::read_to_string(folder.join("memory.oom.group")).is_ok_and(|group| group.trim() == "1") {
        let costs = "when memory runs out the kernel ends the whole container, and not only who used it";
        let mend = "singleProcessOOMKill: true in the kubelet's configuration; no memory.oom.group elsewhere";
        return Finding::lacking("cgroup", Grade::Degraded, "memory.oom.group is 1", costs, Some(mend));
    }
    let there = folder.join("cgroup.controllers").exists();
    Finding::ok("cgroup", if there { "version 2; none is needed" } else { "not version 2, or none; none is needed" })
}

fn memory(folder: &Path) -> Finding {
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // Version 2, then version 1, which says a number beyond all memory where there is no limit.
    let limit = number(&folder.join("memory.max")).or_else(|| number(&folder.join("memory/memory.limit_in_bytes")));
    let used = number(&folder.join("memory.current")).unwrap_or(0);
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
    });
    let left = [limit.map(|limit| limit.saturating_sub(used)), machine].into_iter().flatten().min();
    let Some(left) = left else { return Finding::ok("memory", "unknown") };
    let found = format!("{} MiB left", left >> 20);
    if left >= MEMORY {
        return Finding::ok("memory", found);
    }
    let costs = "an update may run out of it while it unpacks: it then fails, or the kernel ends the workload";
    let mend = format!("raise the container's limit by {} MiB or more", (MEMORY - left).div_ceil(1 << 20));
    Finding::lacking("memory", Grade::Degraded, found, costs, Some(&mend))
}
