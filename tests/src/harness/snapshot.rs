//! A folder tree written down entry by entry, to be compared with another or with itself later.
//!
//! In: a folder. Out: [`Entry`] by path, or a line each for people. Must not: follow a link, cross a mount, or open
//! anything but regular files and folders.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::image::digest;

/// Longer files are hashed.
const SHOWN: usize = 60;
/// Longer files are told by size and time of change alone where [`Detail::Quick`] is enough.
const QUICK: u64 = 1 << 20;
/// The time of the entries of [`super::tar::Tar`].
const USUAL: i64 = 1_000_000_000;

/// What to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What an image says of an entry.
    Image,
    /// The same and the time of the last change of anything, large files not read: to see whether it was touched.
    Quick,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `d`, `f`, `l`, `p` (FIFO), `c`, `b`, `s`.
    pub kind: char,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: (u32, u32),
    /// Text of a short file, digest of a long one, target of a link, numbers of a device.
    pub content: String,
    /// Bytes, of files only.
    pub size: u64,
    /// Seconds of the last change of the content.
    pub mtime: i64,
    /// Attributes by name, values as hex.
    pub xattrs: BTreeMap<String, String>,
    /// First path, in order, of the same inode; empty where no other name in the tree leads to it.
    pub linked: String,
    /// Seconds and nanoseconds of the last change of anything; 0 unless it was asked for.
    pub ctime: (i64, i64),
}

/// Every entry below `root`, by path, and the root itself as `.`. Names are escaped.
pub fn tree(root: &Path, detail: Detail) -> anyhow::Result<BTreeMap<String, Entry>> {
    let device = fs::symlink_metadata(root).with_context(|| format!("looking at {}", root.display()))?.dev();
    let mut walk = Walk { root, device, detail, found: BTreeMap::new(), inodes: BTreeMap::new() };
    walk.entry(root)?;
    let mut found = walk.found;
    // Names that do not show, as in the layers of an overlay, are no names.
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    for entry in found.values() {
        *groups.entry(entry.linked.clone()).or_default() += 1;
    }
    found.values_mut().filter(|entry| groups[&entry.linked] == 1).for_each(|entry| entry.linked.clear());
    Ok(found)
}

struct Walk<'a> {
    root: &'a Path,
    device: u64,
    detail: Detail,
    found: BTreeMap<String, Entry>,
    inodes: BTreeMap<(u64, u64), String>,
}

impl Walk<'_> {
    fn entry(&mut self, path: &Path) -> anyhow::Result<()> {
        let context = || format!("looking at {}", path.display());
        let meta = fs::symlink_metadata(path).with_context(context)?;
        let name = path.strip_prefix(self.root)?.as_os_str();
        let name = if name.is_empty() { ".".to_owned() } else { shown(name) };
        let kind = kind(&meta);
        let linked = if meta.nlink() > 1 && kind != 'd' {
            self.inodes.entry((meta.dev(), meta.ino())).or_insert_with(|| name.clone()).clone()
        } else {
            String::new()
        };
        // A mount point inside belongs to somebody else.
        let ours = kind != 'd' || meta.dev() == self.device;
        let entry = Entry {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            content: self.content(path, &meta).with_context(context)?,
            size: if kind == 'f' { meta.len() } else { 0 },
            mtime: if ours { meta.mtime() } else { 0 },
            xattrs: if ours { xattrs(path).with_context(context)? } else { BTreeMap::new() },
            linked,
            ctime: if ours && self.detail == Detail::Quick { (meta.ctime(), meta.ctime_nsec()) } else { (0, 0) },
        };
        self.found.insert(name, entry);
        if kind == 'd' && ours {
            let mut inside: Vec<PathBuf> = fs::read_dir(path)
                .with_context(context)?
                .map(|item| Ok(item?.path()))
                .collect::<anyhow::Result<_>>()?;
            inside.sort();
            for path in inside {
                self.entry(&path)?;
            }
        }
        Ok(())
    }

    fn content(&self, path: &Path, meta: &Metadata) -> anyhow::Result<String> {
        Ok(match kind(meta) {
            'l' => shown(fs::read_link(path)?.as_os_str()),
            'f' if meta.len() > QUICK && self.detail == Detail::Quick => "unread".to_owned(),
            'f' => {
                let bytes = fs::read(path)?;
                match std::str::from_utf8(&bytes) {
                    Ok(text) if text.len() <= SHOWN => text.escape_debug().collect(),
                    _ => digest(&bytes),
                }
            }
            'c' | 'b' => format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())),
            _ => String::new(),
        })
    }
}

fn kind(meta: &Metadata) -> char {
    match meta.mode() & 0o170_000 {
        0o040_000 => 'd',
        0o100_000 => 'f',
        0o120_000 => 'l',
        0o010_000 => 'p',
        0o020_000 => 'c',
        0o060_000 => 'b',
        _ => 's',
    }
}

/// Bytes as text that is fit for one line.
pub fn shown(name: &OsStr) -> String {
    name.as_bytes().utf8_chunks().fold(String::new(), |mut text, chunk| {
        text.extend(chunk.valid().chars().flat_map(char::escape_debug));
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
        text
    })
}

fn xattrs(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut list = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, list.as_mut_slice())?;
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let name = std::ffi::OsString::from_vec(name.to_vec());
        let length = rustix::fs::lgetxattr(path, name.as_os_str(), value.as_mut_slice())?;
        let hex = value[..length].iter().map(|byte| format!("{byte:02x}")).collect();
        found.insert(shown(&name), hex);
    }
    Ok(found)
}

/// The entries below `root` as lines, the root left out: kind, mode, owner, name; then what is not as usual.
pub fn lines(root: &Path) -> anyhow::Result<Vec<String>> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let below = tree(root, Detail::Image)?.into_iter().filter(|(name, _)| name != ".");
    Ok(below
        .map(|(name, entry)| {
            let Entry { kind, mode, owner, content, size, mtime, xattrs, linked, .. } = entry;
            let mut line = format!("{kind} {mode:o} {}:{} {name}", owner.0, owner.1);
            match kind {
                'l' => line += &format!(" -> {content}"),
                'f' if size > SHOWN as u64 => line += &format!(" {size} bytes"),
                _ if content.is_empty() => {}
                _ => line += &format!(" {content}"),
            }
            for (name, value) in xattrs {
                line += &format!(" {name}={value}");
            }
            if !linked.is_empty() && linked != name {
                line += &format!(" = {linked}");
            }
            // Folders that no entry names are of the moment they were made.
            if mtime != USUAL && (now - mtime).abs() > 3600 {
                line += &format!(" @{mtime}");
            }
            line.trim_end().to_owned()
        })
        .collect())
}

/// In which lines two trees differ, at most a dozen.
pub fn difference(before: &BTreeMap<String, Entry>, after: &BTreeMap<String, Entry>) -> Option<String> {
    let mut said = String::new();
    let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut count = 0;
    for name in names {
        let (was, is) = (before.get(name), after.get(name));
        if was != is {
            count += 1;
            if count <= 12 {
                said += &format!("\n  {name}: {was:?}\n    became {is:?}");
            }
        }
    }
    (count > 0).then(|| format!("{count} entries differ:{said}"))
}
