//! Which of the container's own mounts every generation sees: resolv.conf, secrets, volumes, `/sys` read-only.
//!
//! In: PID 1's table of mounts, the spec's exceptions, the paths Molt keeps for itself. Out: mounts held by descriptor
//! since boot. Must not: carry one that shows anything of Molt's own, by whatever path it is mounted.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use molt_core::{code::Code, confined::MountMode, spec};
use molt_sys::{
    mount::{Attributes, Propagation, set_attributes},
    mountpoint::Kind,
};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, open, statx},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use super::{
    RootError,
    table::{Mount, Place, Table, within},
};

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

/// What is carried.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    point: String,
    read_only: bool,
    holds_ours: bool,
}

/// Chooses, from the table alone. `own` is what Molt keeps for itself.
fn choose(table: &Table, state: &[String], own: &[Place], exceptions: &[spec::Mount]) -> Vec<Choice> {
    let mounts = table.visible();
    let ours = |mount: &Mount| own.iter().any(|place| mount.shows(place));
    let kernel = |point: &str| ["/proc", "/dev", "/sys"].iter().any(|folder| within(point, folder));
    let sys = exceptions.iter().find(|mount| mount.path == "/sys").is_none_or(|mount| mount.carry);
    let mut chosen = Vec::new();
    for mount in &mounts {
        let point = mount.point.as_str();
        let asked = exceptions.iter().find(|exception| exception.path == point);
        let never = point == "/" || within(point, "/proc") || within(point, "/dev") || (sys && within(point, "/sys"));
        let by_default = !kernel(point) && !state.iter().any(|state| within(point, state));
        if never || !asked.map_or(by_default, |asked| asked.carry) {
            continue;
        }
        if ours(mount) {
            if asked.is_some() {
                tracing::warn!(
                    path = point,
                    "not carried, although the spec asks for it: it shows something of Molt's own"
                );
            }
            continue;
        }
        // What is mounted below it would come along with a mount that can only be had as a whole.
        let holds_ours = mounts.iter().any(|below| below.point != point && within(&below.point, point) && ours(below));
        let read_only = asked.is_some_and(|asked| asked.read_only);
        chosen.push(Choice { point: point.to_owned(), read_only, holds_ours });
    }
    if sys && mounts.iter().any(|mount| mount.point == "/sys") {
        chosen.insert(0, Choice { point: "/sys".to_owned(), read_only: true, holds_ours: false });
    }
    chosen
}

/// Finds and holds the mounts to carry. `own` are the paths of what Molt keeps for itself.
pub(crate) fn find(
    table: &Table,
    state: &[String],
    own: &[PathBuf],
    exceptions: &[spec::Mount],
) -> Result<Vec<Carried>, RootError> {
    let own: Vec<Place> = own.iter().filter_map(|path| table.locate(path)).collect();
    let mut carried = Vec::new();
    for Choice { point: path, read_only, holds_ours } in choose(table, state, &own, exceptions) {
        let fail = |errno: Errno| RootError::new("hold the mount at", &path, errno, Code::Unsupported);
        let source = match open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(source) => source,
            // Covered by another mount, or behind one that may not be entered: PID 1 itself does not see it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => continue,
            Err(errno) => return Err(fail(errno)),
        };
        // What kind it is the kernel knows without asking a server that may not answer.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(&source, "", flags, StatxFlags::TYPE).map_err(fail)?;
        let kind = match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => Kind::Folder,
            _ => Kind::File,
        };
        let recursive = path == "/sys";
        carried.push(Carried { path, kind, source, read_only, recursive, holds_ours });
    }
    Ok(carried)
}

impl Carried {
    /// What it allows, whatever Landlock says.
    pub(crate) fn mode(&self) -> MountMode {
        if self.read_only { MountMode::ReadOnly } else { MountMode::ReadWrite }
    }

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
        let mount = mount.map_err(|errno| match errno {
            Errno::INVAL if self.holds_ours => {
                let why = format!(
                    "it comes only together with what is mounted below it, and some of that is Molt's own; \
                     spec.mounts: [{{path: {}, carry: false}}]",
                    self.path
                );
                RootError::new("clone the mount at", &self.path, why, Code::Unsupported)
            }
            errno => fail(errno),
        })?;
        let mut attributes = Attributes::NOSUID.and(Attributes::NODEV);
        if self.read_only {
            attributes = attributes.and(Attributes::RDONLY);
        }
        set_attributes(&mount, attributes, Propagation::Slave).map_err(|error| fail(error.errno))?;
        Ok(mount)
    }
}

/// Whether `path` is a mount point of PID 1's namespace.
pub(crate) fn is_mount_point(table: &Table, path: &str) -> bool {
    table.visible().iter().any(|mount| mount.point == path)
}

/// The first of `own` that would be shown with the state at one of `state`: there itself, or mounted below it.
pub(crate) fn shown_with_state<'a>(table: &Table, state: &'a [String], own: &Path) -> Option<&'a String> {
    let place = table.locate(own)?;
    state.iter().find(|state| {
        let real = std::fs::canonicalize(state).unwrap_or_else(|_| PathBuf::from(state.as_str())).display().to_string();
        let itself = table.locate(Path::new(state)).is_some_and(|folder| place.is_in(&folder));
        itself
            || table
                .visible()
                .iter()
                .any(|mount| within(&mount.point, &real) && mount.point != real && mount.shows(&place))
    })
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

    fn places(table: &Table, paths: &[&str]) -> Vec<Place> {
        paths.iter().filter_map(|path| table.place(path, None)).collect()
    }

    #[test]
    fn what_molt_keeps_for_itself_is_never_carried() {
        let table = Table::parse(INFO);
        let own = places(&table, &["/var/lib/molt", "/run/secrets/pull/config.json", "/etc/molt/sandbox.yaml"]);
        let chosen = choose(&table, &text(&["/sandbox/state"]), &own, &[]);
        let paths: Vec<&str> = chosen.iter().map(|choice| choice.point.as_str()).collect();
        let expected =
            ["/sys", "/run", "/etc/resolv.conf", "/mnt/with space", "/var/run/secrets/kubernetes.io/serviceaccount"];
        assert_eq!(paths, expected);
        assert!(chosen.iter().all(|choice| choice.read_only == (choice.point == "/sys")));
        assert!(chosen.iter().all(|choice| choice.holds_ours == (choice.point == "/run")));
    }

    #[test]
    fn a_second_mount_of_what_is_molt_s_is_not_carried() {
        let again =
            "35 22 8:1 / /mnt/disk rw - ext4 /dev/sda1 rw\n36 22 8:1 /store/blobs /mnt/blobs rw - ext4 /dev/sda1 rw\n";
        let table = Table::parse(&format!("{INFO}{again}"));
        let own = places(&table, &["/var/lib/molt"]);
        let asked = [spec::Mount { path: "/mnt/disk".to_owned(), carry: true, read_only: true }];
        let chosen = choose(&table, &text(&["/sandbox/state"]), &own, &asked);
        assert!(
            !chosen.iter().any(|choice| ["/mnt/disk", "/mnt/blobs"].contains(&choice.point.as_str())),
            "{chosen:?}"
        );
        assert!(chosen.iter().any(|choice| choice.point == "/etc/resolv.conf"), "another folder of the same disk");
    }

    #[test]
    fn the_spec_s_exceptions_hold_except_for_molt_s_own() {
        let table = Table::parse(INFO);
        let own = places(&table, &["/var/lib/molt"]);
        let mount = |path: &str, carry, read_only| spec::Mount { path: path.to_owned(), carry, read_only };
        let exceptions =
            [mount("/run", false, false), mount("/etc/resolv.conf", true, true), mount("/var/lib/molt", true, false)];
        let chosen = choose(&table, &text(&["/sandbox/state"]), &own, &exceptions);
        assert!(chosen.iter().any(|choice| choice.point == "/etc/resolv.conf" && choice.read_only));
        assert!(!chosen.iter().any(|choice| choice.point == "/run" || choice.point == "/var/lib/molt"));
    }
}
