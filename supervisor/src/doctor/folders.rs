//! Where generations and state are kept, and what unpacks into it.
//!
//! In: `MOLT_STORE`, and the state paths of the spec that `MOLT_SPEC` names, if it can be read. Out: findings. Must not:
//! make a file or a folder.

use std::{fs::File, os::fd::AsFd as _, path::Path};

use molt_core::spec;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, openat, statfs, statvfs};

use crate::{
    preflight::{Finding, Grade},
    rootfs::{carry, table::Table},
    store::takes_no_writes,
};

/// Less than this and an update is refused for want of room: the default of `update.reserve`.
const ROOM: u64 = 256 << 20;

/// Every question of this file.
pub(super) fn all() -> Vec<Finding> {
    let store = std::env::var("MOLT_STORE").unwrap_or_else(|_| crate::boot::STORE.to_owned());
    let mut findings = vec![self::store(&store)];
    let spec = std::env::var_os("MOLT_SPEC").and_then(|path| std::fs::read_to_string(path).ok());
    let spec = spec.and_then(|text| spec::parse(&text).ok()).unwrap_or_default();
    let table = Table::read().unwrap_or_default();
    findings.extend(spec.state.iter().map(|path| state(path, &table)));
    findings.push(unpacking(&store));
    findings
}

/// What a file system is called, and whether an overlay's upper folder can lie on it. statfs(2).
fn kind(path: &str) -> Option<(&'static str, bool)> {
    let magic = u64::try_from(statfs(path).ok()?.f_type).ok()?;
    Some(match magic {
        0x794c_7630 => ("the container's overlay", false),
        0x6969 => ("NFS", false),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => ("a Windows share", false),
        0x0102_1997 => ("9p", false),
        0xef53 => ("ext4", true),
        0x5846_5342 => ("xfs", true),
        0x9123_683e => ("btrfs", true),
        0x0102_1994 => ("tmpfs: in memory, gone with the pod", true),
        _ => ("a file system that Molt does not know", true),
    })
}

/// By what it says, and by what it does: one that found an error in itself says nothing of it.
fn read_only(path: &str) -> bool {
    let says = statvfs(path).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    says || openat(CWD, path, flags, Mode::empty()).is_ok_and(|folder| takes_no_writes(&folder))
}

fn store(path: &str) -> Finding {
    const COSTS: &str = "nothing can be updated, and what runs is not durable";
    let mend = format!(
        "mount a volume there (ext4, xfs, btrfs, tmpfs): an emptyDir or PersistentVolumeClaim in a pod, `-v molt:{path}` \
         with podman"
    );
    let lacking = |grade, found: String| Finding::lacking("store", grade, found, COSTS, Some(&mend));
    let Some((name, holds)) = kind(path) else {
        return lacking(Grade::Degraded, format!("{path} is not there"));
    };
    if !holds {
        return lacking(Grade::Missing, format!("{path} lies on {name}, which cannot hold generations"));
    }
    if read_only(path) {
        return lacking(Grade::Missing, format!("{path} is read-only"));
    }
    let free = statvfs(path).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let found = format!("{path} can hold generations ({name}; {} MiB free)", free >> 20);
    if free < ROOM {
        let costs = "the next update is refused for want of room";
        return Finding::lacking("store", Grade::Degraded, found, costs, Some("molt gc, or a larger volume"));
    }
    Finding::ok("store", found)
}

fn state(path: &str, table: &Table) -> Finding {
    let mend = format!("mount a volume there: a PersistentVolumeClaim in a pod, `-v state:{path}` with podman");
    let real = std::fs::canonicalize(path).map_or_else(|_| path.to_owned(), |real| real.display().to_string());
    let Some((name, _)) = kind(&real) else {
        let costs = "there is nothing that lives through an update";
        return Finding::lacking("state", Grade::Degraded, format!("{path} is not there"), costs, Some(&mend));
    };
    if read_only(&real) {
        let costs = "the workload cannot write its state";
        return Finding::lacking("state", Grade::Missing, format!("{path} is read-only"), costs, Some(&mend));
    }
    if !carry::is_mount_point(table, &real) {
        let costs = "the state lives through updates, but goes with the container";
        let found = format!("{path} is a folder of the container's own");
        return Finding::lacking("state", Grade::Degraded, found, costs, Some(&mend));
    }
    Finding::ok("state", format!("{path} is a volume of its own ({name})"))
}

/// Builds the walls around an unpacker that does nothing.
fn unpacking(store: &str) -> Finding {
    const NONE: &str = "no image can be unpacked";
    let Some(folder) = [store, "/tmp", "/"].into_iter().find_map(|folder| File::open(Path::new(folder)).ok()) else {
        return Finding::lacking("unpacking", Grade::Missing, "there is no folder to try it in", NONE, None);
    };
    let checked = crate::boot::unpacker(|_| None)
        .and_then(|unpacker| unpacker.check(folder.as_fd()).map_err(|error| crate::effects::chain(&error)));
    match checked {
        Ok(missing) if missing.is_empty() => Finding::ok("unpacking", "layers are unpacked behind all walls"),
        Ok(missing) => {
            let mend = "a newer kernel, or a seccomp or AppArmor profile that lets Molt confine itself";
            let costs = "a hostile layer meets fewer walls";
            Finding::lacking("unpacking", Grade::Degraded, missing.join("; "), costs, Some(mend))
        }
        Err(error) => {
            let mend = "CAP_SYS_ADMIN, and no profile that forbids mounts";
            Finding::lacking("unpacking", Grade::Missing, error, NONE, Some(mend))
        }
    }
}
