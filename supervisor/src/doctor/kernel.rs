//! What the kernel decides, and who may ask it: version, namespaces, Landlock, overlayfs, a fresh `/proc`.
//!
//! In: attempts that leave nothing behind. Out: findings. Must not: change anything; a namespace ends with its thread.

use molt_core::launch::ProcMode;
use rustix::{
    mount::{FsOpenFlags, fsconfig_set_flag, fsopen},
    thread::UnshareFlags,
};

use crate::preflight::{self, Finding, Grade, IdMap};

/// Every question of this file.
pub(super) fn all() -> Vec<Finding> {
    vec![version(), namespaces(), landlock(), overlay(), proc()]
}

fn version() -> Finding {
    of_release(&rustix::system::uname().release().to_string_lossy())
}

fn of_release(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map(|word| word.parse::<u32>().unwrap_or(0));
    let found = format!("Linux {release}");
    match (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) {
        (..=4, _) | (5, ..15) => {
            let mend = "a node with a newer kernel";
            Finding::lacking("kernel", Grade::Missing, found, "Molt needs Linux 5.15", Some(mend))
        }
        (5, _) | (6, ..15) => {
            Finding::ok("kernel", format!("{found}: roots are mounted below the store's anchors/ on the way"))
        }
        _ => Finding::ok("kernel", found),
    }
}

/// Those of a generation, in a thread that has them until it ends.
fn namespaces() -> Finding {
    let all = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    let made = std::thread::spawn(move || molt_sys::process::unshare_namespaces(all)).join();
    match made {
        Ok(Ok(())) => Finding::ok("namespaces", "mount, PID, IPC and UTS namespaces can be made"),
        Ok(Err(error)) => {
            let mend = "CAP_SYS_ADMIN; a seccomp profile that allows unshare; numbers above 0 in /proc/sys/user";
            let found = format!("cannot be made: {}", error.errno);
            Finding::lacking("namespaces", Grade::Missing, found, "nothing can be armed", Some(mend))
        }
        Err(_) => Finding::lacking("namespaces", Grade::Missing, "not asked", "nothing is known of them", None),
    }
}

fn landlock() -> Finding {
    let lacking =
        |grade, found: String, costs: &str, mend: &str| Finding::lacking("Landlock", grade, found, costs, Some(mend));
    let knowing = "; or, knowing what is lost, landlock.compatibility: best_effort in the policy";
    match preflight::landlock_abi() {
        0 => lacking(
            Grade::Missing,
            "not in this kernel, not enabled, or forbidden".to_owned(),
            "only owner and mode would guard files: no policy runs",
            &format!("boot with lsm=landlock,…; a seccomp profile that allows it{knowing}"),
        ),
        abi @ 1..=2 => lacking(
            Grade::Missing,
            format!("ABI {abi}"),
            "files that may only be read could be emptied: no policy runs",
            &format!("Linux 6.2{knowing}"),
        ),
        abi @ 3 => lacking(
            Grade::Degraded,
            format!("ABI {abi}"),
            "TCP ports are not limited, device ioctls not guarded, signals and abstract sockets not scoped",
            "Linux 6.12",
        ),
        abi @ 4 => lacking(
            Grade::Degraded,
            format!("ABI {abi}"),
            "device ioctls are not guarded, signals and abstract sockets not scoped",
            "Linux 6.12",
        ),
        abi @ 5 => {
            lacking(Grade::Degraded, format!("ABI {abi}"), "signals and abstract sockets are not scoped", "Linux 6.12")
        }
        abi => Finding::ok("Landlock", format!("ABI {abi}")),
    }
}

fn overlay() -> Finding {
    let costs = "no image can be mounted";
    let context = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(errno) => {
            let mend = "load the module on the node: modprobe overlay";
            return Finding::lacking("overlayfs", Grade::Missing, format!("{errno}"), costs, Some(mend));
        }
    };
    if IdMap::read().is_ok_and(|map| map.is_initial()) {
        return Finding::ok("overlayfs", "with trusted.overlay.* attributes");
    }
    match fsconfig_set_flag(&context, "userxattr") {
        Ok(()) => Finding::ok("overlayfs", "with user.overlay.* attributes (userxattr)"),
        Err(errno) => {
            let found = format!("without userxattr, which a user namespace needs: {errno}");
            Finding::lacking("overlayfs", Grade::Missing, found, costs, Some("Linux 5.11"))
        }
    }
}

fn proc() -> Finding {
    match preflight::proc_mode() {
        Ok(ProcMode::Fresh) => Finding::ok("/proc", "a fresh one can be mounted"),
        Err(errno) => Finding::lacking(
            "/proc",
            Grade::Missing,
            format!("a fresh one cannot be mounted: {errno}"),
            "nothing can be started",
            None,
        ),
        Ok(ProcMode::Carried) => Finding::lacking(
            "/proc",
            Grade::Degraded,
            "the kernel refuses a fresh one",
            "the workload sees the supervisor's, read-only: names and arguments of every process in the container",
            Some("procMount: Unmasked with hostUsers: false in a pod, --security-opt unmask=ALL with podman"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_apart() {
        for (release, grade, anchors) in [
            ("4.19.0", Grade::Missing, false),
            ("5.14.21-default", Grade::Missing, false),
            ("5.15.0-91-generic", Grade::Ok, true),
            ("6.14-rc1", Grade::Ok, true),
            ("6.15", Grade::Ok, false),
            ("6.18.44", Grade::Ok, false),
            ("7.0.1", Grade::Ok, false),
        ] {
            let finding = of_release(release);
            assert_eq!((finding.grade, finding.found.contains("anchors/")), (grade, anchors), "{release}");
        }
    }
}
