//! Which of the container's own mounts every generation sees: resolv.conf, secrets, volumes, `/sys` read-only.
//!
//! In: `/proc/self/mountinfo` of PID 1, the spec's exceptions, the paths Molt keeps for itself. Out: mounts held by
//! descriptor since boot. Must not: carry one that holds anything of Molt's own.

use std::os::fd::OwnedFd;

use molt_core::{code::Code, spec};
use molt_sys::mount::{Attributes, Propagation, set_attributes};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, open},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use super::RootError;

/// What a mount point is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A folder.
    Folder,
    /// Anything else.
    File,
}

/// One mount to carry.
#[derive(Debug)]
pub(crate) struct Carried {
    /// Where it is, in PID 1's root and in every generation.
    pub(crate) path: String,
    /// What it is.
    pub(crate) kind: Kind,
    source: OwnedFd,
    read_only: bool,
    recursive: bool,
    /// Something of Molt's own is mounted below it.
    holds_ours: bool,
}

/// Mount points of `text` (the form of `/proc/self/mountinfo`, proc_pid_mountinfo(5)), outer before inner, those that are
/// covered left out.
fn mount_points(text: &str) -> Vec<String> {
    let mut points: Vec<String> = Vec::new();
    for line in text.lines() {
        let Some(point) = line.split(' ').nth(4).map(unescape) else { continue };
        if !points.contains(&point) {
            points.push(point);
        }
    }
    points.sort_by_key(|point| (point.matches('/').count(), point.clone()));
    points
}

fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let digits: Vec<u8> = bytes.by_ref().take(3).collect();
        out.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit.wrapping_sub(b'0'))));
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether `path` is `folder` or below it.
pub(crate) fn within(path: &str, folder: &str) -> bool {
    folder == "/" || path == folder || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// The innermost of `points` that holds `path`.
fn holder<'a>(points: &'a [String], path: &str) -> Option<&'a String> {
    points.iter().filter(|point| within(path, point)).max_by_key(|point| point.len())
}

/// Chooses, from mount points alone.
fn choose(points: &[String], state: &[String], own: &[String], exceptions: &[spec::Mount]) -> Vec<(String, bool)> {
    let ours: Vec<&String> = own.iter().filter_map(|path| holder(points, path)).collect();
    let kernel = |point: &str| ["/proc", "/dev", "/sys"].iter().any(|folder| within(point, folder));
    let mut chosen: Vec<(String, bool)> = points
        .iter()
        .filter(|point| {
            let asked = exceptions.iter().find(|mount| mount.path == **point).map(|mount| mount.carry);
            let never =
                point.as_str() == "/" || ours.contains(point) || within(point, "/proc") || within(point, "/dev");
            let by_default = !kernel(point) && !state.iter().any(|state| within(point, state));
            !never && asked.unwrap_or(by_default)
        })
        .map(|point| {
            let read_only = exceptions.iter().any(|mount| mount.path == *point && mount.read_only);
            (point.clone(), read_only)
        })
        .collect();
    let sys = exceptions.iter().find(|mount| mount.path == "/sys").is_none_or(|mount| mount.carry);
    if sys && points.iter().any(|point| point == "/sys") {
        chosen.retain(|(point, _)| !within(point, "/sys"));
        chosen.insert(0, ("/sys".to_owned(), true));
    }
    chosen
}

/// Finds and holds the mounts to carry.
pub(crate) fn find(state: &[String], own: &[String], exceptions: &[spec::Mount]) -> Result<Vec<Carried>, RootError> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| RootError::new("read", "/proc/self/mountinfo", error, Code::Unsupported))?;
    let mut carried = Vec::new();
    for (path, read_only) in choose(&mount_points(&text), state, own, exceptions) {
        let fail = |errno: Errno| RootError::new("hold the mount at", &path, errno, Code::Unsupported);
        let source = match open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(source) => source,
            // Covered by another mount, or behind one that may not be entered: PID 1 itself does not see it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => continue,
            Err(errno) => return Err(fail(errno)),
        };
        let kind = match FileType::from_raw_mode(fstat(&source).map_err(fail)?.st_mode) {
            FileType::Directory => Kind::Folder,
            _ => Kind::File,
        };
        let recursive = path == "/sys";
        let holds_ours = own.iter().any(|ours| within(ours, &path));
        carried.push(Carried { path, kind, source, read_only, recursive, holds_ours });
    }
    Ok(carried)
}

impl Carried {
    /// A detached clone, nosuid,nodev, that still follows changes below it.
    pub(crate) fn clone_mount(&self) -> Result<OwnedFd, RootError> {
        let fail = |errno: Errno| RootError::new("clone the mount at", &self.path, errno, Code::Unsupported);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let clone = |flags| open_tree(&self.source, "", flags);
        let mount = if self.recursive {
            clone(flags | OpenTreeFlags::AT_RECURSIVE)
        } else {
            // Mounts a user namespace got from outside are locked together and only come as a whole: not where Molt's
            // own would come along.
            clone(flags).or_else(|errno| match errno {
                Errno::INVAL if !self.holds_ours => clone(flags | OpenTreeFlags::AT_RECURSIVE),
                errno => Err(errno),
            })
        };
        let mount = mount.map_err(fail)?;
        let mut attributes = Attributes::NOSUID.and(Attributes::NODEV);
        if self.read_only {
            attributes = attributes.and(Attributes::RDONLY);
        }
        set_attributes(&mount, attributes, Propagation::Slave).map_err(|error| fail(error.errno))?;
        Ok(mount)
    }
}

/// Whether `path` is a mount point of PID 1's namespace.
pub(crate) fn is_mount_point(path: &str) -> bool {
    std::fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|text| mount_points(&text).iter().any(|point| point == path))
}

/// An `O_PATH` descriptor of PID 1's own view of `path`.
pub(crate) fn hold(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
22 1 0:21 / / rw - overlay overlay rw
23 22 0:22 / /proc rw - proc proc rw
24 23 0:23 /null /proc/kcore rw - tmpfs tmpfs rw
25 22 0:24 / /sys ro - sysfs sysfs ro
26 25 0:25 / /sys/fs/cgroup ro - cgroup2 cgroup ro
27 22 0:26 / /dev rw - tmpfs tmpfs rw
28 22 8:1 /resolv.conf /etc/resolv.conf rw - ext4 /dev/sda1 rw
29 22 8:1 /store /var/lib/molt rw - ext4 /dev/sda1 rw
30 22 8:1 /state /sandbox/state rw - ext4 /dev/sda1 rw
31 22 0:30 / /run/secrets/pull rw - tmpfs tmpfs rw
32 22 0:31 / /var/run/secrets/kubernetes.io/serviceaccount ro - tmpfs tmpfs ro
33 22 0:32 / /run rw - tmpfs tmpfs rw
34 22 0:33 / /mnt/with\\040space rw - tmpfs tmpfs rw
";

    fn text(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    #[test]
    fn what_molt_keeps_for_itself_is_never_carried() {
        let own = text(&["/var/lib/molt", "/run/secrets/pull/config.json", "/etc/molt/sandbox.yaml"]);
        let chosen = choose(&mount_points(INFO), &text(&["/sandbox/state"]), &own, &[]);
        let paths: Vec<&str> = chosen.iter().map(|(path, _)| path.as_str()).collect();
        let expected =
            ["/sys", "/run", "/etc/resolv.conf", "/mnt/with space", "/var/run/secrets/kubernetes.io/serviceaccount"];
        assert_eq!(paths, expected);
        assert_eq!(chosen.first(), Some(&("/sys".to_owned(), true)));
    }

    #[test]
    fn the_spec_s_exceptions_hold_except_for_molt_s_own() {
        let own = text(&["/var/lib/molt"]);
        let mount = |path: &str, carry, read_only| spec::Mount { path: path.to_owned(), carry, read_only };
        let exceptions =
            [mount("/run", false, false), mount("/etc/resolv.conf", true, true), mount("/var/lib/molt", true, false)];
        let chosen = choose(&mount_points(INFO), &text(&["/sandbox/state"]), &own, &exceptions);
        assert!(chosen.contains(&("/etc/resolv.conf".to_owned(), true)));
        assert!(!chosen.iter().any(|(path, _)| path == "/run" || path == "/var/lib/molt"));
    }
}
