//! The kernel's table of PID 1's mounts: which of them show a given file or folder, by whatever path.
//!
//! In: `/proc/self/mountinfo` (proc_pid_mountinfo(5)), paths. Out: mounts, and places on file systems. Must not: compare
//! paths alone: the same volume may be mounted twice, and a link may lead anywhere.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    id: u64,
    device: String,
    /// Which folder of the file system it shows.
    root: String,
    /// Where it is.
    pub(crate) point: String,
}

/// A file or folder by file system and path on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    device: String,
    path: String,
}

/// All mounts, in the kernel's order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table(Vec<Mount>);

impl Table {
    /// That of this process.
    pub(crate) fn read() -> std::io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// From the text of a mountinfo file; lines that make no sense are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let mount = |line: &str| {
            let mut words = line.split(' ');
            let id = words.next()?.parse().ok()?;
            let device = words.nth(1)?.to_owned();
            Some(Mount { id, device, root: unescape(words.next()?), point: unescape(words.next()?) })
        };
        Self(text.lines().filter_map(mount).collect())
    }

    /// Those that are not covered by another one at the same point, outer before inner.
    pub(crate) fn visible(&self) -> Vec<&Mount> {
        let mut visible: Vec<&Mount> = Vec::new();
        for mount in &self.0 {
            visible.retain(|earlier| earlier.point != mount.point);
            visible.push(mount);
        }
        visible.sort_by_key(|mount| (mount.point.matches('/').count(), mount.point.clone()));
        visible
    }

    /// Where `path` really is: links followed, and what is not there yet counted to the folder it would be made in.
    pub(crate) fn locate(&self, path: &Path) -> Option<Place> {
        let (real, mount) = real(path);
        let real = real.display().to_string();
        self.place(&real, mount)
    }

    /// Where the absolute `path` without links is, `id` being the mount it was found on.
    pub(super) fn place(&self, path: &str, id: Option<u64>) -> Option<Place> {
        let by_id = self.0.iter().find(|mount| Some(mount.id) == id && within(path, &mount.point));
        let innermost = || {
            let visible = self.visible();
            visible.into_iter().filter(|mount| within(path, &mount.point)).max_by_key(|mount| mount.point.len())
        };
        let mount = by_id.or_else(innermost)?;
        let rest = if mount.point == "/" { path } else { path.strip_prefix(&mount.point)? };
        Some(Place { device: mount.device.clone(), path: join(&mount.root, rest) })
    }
}

impl Mount {
    /// Whether `place` is on it, or it is a part of `place`: either way it shows something of it.
    pub(crate) fn shows(&self, place: &Place) -> bool {
        self.device == place.device && (within(&place.path, &self.root) || within(&self.root, &place.path))
    }
}

impl Place {
    /// Whether it is `folder` or below it.
    pub(crate) fn is_in(&self, folder: &Self) -> bool {
        self.device == folder.device && within(&self.path, &folder.path)
    }
}

/// Whether `path` is `folder` or below it, by their names.
pub(crate) fn within(path: &str, folder: &str) -> bool {
    folder == "/" || path == folder || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn join(folder: &str, rest: &str) -> String {
    match (folder.trim_end_matches('/'), rest.trim_matches('/')) {
        ("", rest) => format!("/{rest}"),
        (folder, "") => folder.to_owned(),
        (folder, rest) => format!("{folder}/{rest}"),
    }
}

/// `path` with every link followed, as far as it is there, and the mount that the last part of it that is there lies on.
fn real(path: &Path) -> (PathBuf, Option<u64>) {
    for there in path.ancestors() {
        if let Ok(real) = std::fs::canonicalize(there) {
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
            let id = statx(CWD, &real, flags, StatxFlags::MNT_ID).ok().map(|stat| stat.stx_mnt_id);
            let missing = path.strip_prefix(there).unwrap_or(Path::new(""));
            return (if missing.as_os_str().is_empty() { real } else { real.join(missing) }, id);
        }
    }
    (path.to_owned(), None)
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

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
22 1 0:21 / / rw - overlay overlay rw
29 22 8:1 /volumes/store /var/lib/molt rw - ext4 /dev/sda1 rw
30 22 8:1 /volumes/state /sandbox/state rw - ext4 /dev/sda1 rw
31 22 8:1 /volumes /mnt/all rw - ext4 /dev/sda1 rw
32 22 8:1 /volumes/store/layers /mnt/layers rw - ext4 /dev/sda1 rw
33 22 8:2 /volumes /mnt/other rw - ext4 /dev/sdb1 rw
34 22 0:33 / /mnt/with\\040space rw - tmpfs tmpfs rw
35 22 0:40 / /covered rw - tmpfs tmpfs rw
36 35 8:1 /volumes/storehouse /covered rw - ext4 /dev/sda1 rw
";

    #[test]
    fn a_volume_that_is_mounted_again_shows_the_same_place() {
        let table = Table::parse(INFO);
        let store = table.place("/var/lib/molt/journal", None).unwrap();
        let shown: Vec<&str> =
            table.visible().into_iter().filter(|mount| mount.shows(&store)).map(|mount| mount.point.as_str()).collect();
        assert_eq!(shown, ["/mnt/all", "/var/lib/molt"]);
        let store = table.place("/var/lib/molt", None).unwrap();
        let shown: Vec<&str> =
            table.visible().into_iter().filter(|mount| mount.shows(&store)).map(|mount| mount.point.as_str()).collect();
        assert_eq!(shown, ["/mnt/all", "/mnt/layers", "/var/lib/molt"]);
        assert!(store.is_in(&table.place("/mnt/all", None).unwrap()));
        assert!(!store.is_in(&table.place("/sandbox/state", None).unwrap()));
        assert!(!store.is_in(&table.place("/mnt/other", None).unwrap()));
    }

    #[test]
    fn names_are_unescaped_and_what_is_covered_is_left_out() {
        let table = Table::parse(INFO);
        let points: Vec<&str> = table.visible().into_iter().map(|mount| mount.point.as_str()).collect();
        assert!(points.contains(&"/mnt/with space"));
        assert_eq!(points.iter().filter(|point| **point == "/covered").count(), 1);
        let place = table.place("/covered/x", None).unwrap();
        assert_eq!((place.device.as_str(), place.path.as_str()), ("8:1", "/volumes/storehouse/x"));
        assert_eq!(table.place("/covered/x", Some(35)).unwrap().device, "0:40");
    }
}
