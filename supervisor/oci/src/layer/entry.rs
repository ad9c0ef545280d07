//! One entry of a layer, checked: a name inside the root, a kind that is taken, an owner, a mode, allowed attributes.
//!
//! In: what the tar parser read. Out: [`Entry`] by value, or a refusal. Must not: touch a file system, or let a name with
//! `..`, NUL or an empty component through.

use tar_core::{EntryType, parse::ParsedEntry};

use super::whiteout::{self, Whiteout};
use crate::{
    config::Limits,
    error::{Error, Result, show},
};

/// 9999-12-31: later times, and those before 1970 that tar can only say as huge numbers, become the epoch.
const TIME_MAX: u64 = 253_402_300_799;
/// Attributes of one entry, names and values.
const XATTR_BYTES: usize = 64 << 10;

/// Names and values.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A folder.
    Directory,
    /// A regular file with this many bytes.
    File(u64),
    /// A symbolic link, target verbatim.
    Symlink(Vec<u8>),
    /// A hard link to a path in the root, normalised.
    Hardlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// Hides the name of the lower layers, or all of its parent's content in them.
    Whiteout(Whiteout),
    /// A device node below `/dev`, which every generation mounts anew: left out.
    Nothing,
}

/// A checked entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Components joined by `/`, without leading or trailing one; empty for the root itself.
    pub(crate) path: Vec<u8>,
    /// What to make.
    pub(crate) kind: Kind,
    /// Permission bits with setuid, setgid and sticky: the root is mounted nosuid, and programs see what was shipped.
    pub(crate) mode: u32,
    /// Owner, never `u32::MAX`.
    pub(crate) uid: u32,
    /// Group, never `u32::MAX`.
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    /// `user.*` without `user.overlay.*`.
    pub(crate) xattrs: Xattrs,
}

/// Bytes of data that follow the header of `entry` in the tar stream.
pub(crate) fn data_bytes(entry: &Entry) -> u64 {
    if let Kind::File(size) = entry.kind { size } else { 0 }
}

/// `text` as components below the root. Absolute names are relative to the root; `..` may not climb out.
pub(crate) fn normalise(text: &[u8], limits: &Limits) -> Result<Vec<u8>> {
    let refuse = |why: String| Error::layer(format!("'{}': {why}", show(text)));
    if text.len() > limits.path {
        return Err(refuse(format!("a name of {} bytes, more than {}", text.len(), limits.path)));
    }
    if text.contains(&0) {
        return Err(refuse("a NUL byte in a name".to_owned()));
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in text.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or_else(|| refuse("the name climbs out of the root".to_owned()))?;
            }
            part if part.len() > limits.component => {
                return Err(refuse(format!("a component of {} bytes, more than {}", part.len(), limits.component)));
            }
            part => parts.push(part),
        }
    }
    if parts.len() > limits.depth {
        return Err(refuse(format!("{} folders deep, more than {}", parts.len(), limits.depth)));
    }
    Ok(parts.join(&b'/'))
}

impl Entry {
    /// Checks what the parser read.
    pub(crate) fn new(raw: &ParsedEntry<'_>, limits: &Limits) -> Result<Self> {
        let refuse = |why: &str| Error::layer(format!("'{}': {why}", show(&raw.path)));
        strict_size(raw).map_err(refuse)?;
        strict_records(raw).map_err(refuse)?;
        let path = normalise(&raw.path, limits)?;
        let link = || raw.link_target.as_deref().ok_or_else(|| refuse("a link without a target"));
        let folder_name = raw.path.ends_with(b"/");
        let mut kind = match raw.entry_type {
            EntryType::Directory => Kind::Directory,
            // Before 1988 a trailing slash was how a tar said "folder".
            EntryType::Regular if folder_name && raw.size == 0 => Kind::Directory,
            EntryType::Regular | EntryType::Continuous if folder_name => {
                return Err(refuse("a file whose name ends in '/'"));
            }
            EntryType::Regular | EntryType::Continuous => Kind::File(raw.size),
            EntryType::Symlink => Kind::Symlink(link_text(link()?, limits).map_err(refuse)?),
            EntryType::Link => Kind::Hardlink(normalise(link()?, limits)?),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => {
                let below_dev = path.strip_prefix(b"dev/").is_some_and(|rest| !rest.is_empty());
                if !below_dev || raw.dev_major.unwrap_or(0) == 0 {
                    return Err(refuse("device nodes are not taken"));
                }
                Kind::Nothing
            }
            other => return Err(refuse(&format!("entries of type {other:?} are not taken"))),
        };
        if raw.size != 0 && !matches!(kind, Kind::File(_)) {
            return Err(refuse("a size where there can be no data"));
        }
        let (parent, name) = split(&path);
        match whiteout::classify(name).map_err(refuse)? {
            Some(_) if matches!(kind, Kind::File(size) if size > 1 << 20) => {
                return Err(refuse("a whiteout with content"));
            }
            // A folder of that name would carry entries that mean something else to every tool.
            Some(_) if !matches!(kind, Kind::File(_) | Kind::Hardlink(_)) => {
                return Err(refuse("a whiteout must be a plain file"));
            }
            Some(found) => kind = Kind::Whiteout(found),
            None => {}
        }
        if parent.split(|byte| *byte == b'/').any(|part| part.starts_with(b".wh.")) {
            return Err(refuse("a whiteout's name as a folder"));
        }
        if path.is_empty() && kind != Kind::Directory {
            return Err(refuse("the root must be a folder"));
        }
        let id = |value: u64| u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        Ok(Self {
            kind,
            mode: raw.mode & 0o7777,
            uid: id(raw.uid).ok_or_else(|| refuse(&format!("user id {} is out of range", raw.uid)))?,
            gid: id(raw.gid).ok_or_else(|| refuse(&format!("group id {} is out of range", raw.gid)))?,
            mtime: i64::try_from(raw.mtime).ok().filter(|_| raw.mtime <= TIME_MAX).unwrap_or(0),
            xattrs: xattrs(raw).map_err(refuse)?,
            path,
        })
    }
}

/// The parent's path and the last component.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}

fn link_text(target: &[u8], limits: &Limits) -> Result<Vec<u8>, &'static str> {
    if target.contains(&0) {
        return Err("a NUL byte in a link target");
    }
    if target.len() >= limits.path {
        return Err("a link target that is too long");
    }
    Ok(target.to_vec())
}

/// Base-256 sizes of more than 63 bits are cut by some readers and refused by others: refuse.
fn strict_size(raw: &ParsedEntry<'_>) -> Result<(), &'static str> {
    match raw.header.as_bytes().get(124..136) {
        Some([first, rest @ ..]) if first & 0x80 != 0 => {
            let high = rest.get(..3).unwrap_or_default();
            if *first != 0x80 || high.iter().any(|byte| *byte != 0) || rest.get(3).is_some_and(|byte| byte & 0x80 != 0)
            {
                return Err("a negative or impossible size");
            }
            Ok(())
        }
        _ if raw.size > i64::MAX as u64 => Err("an impossible size"),
        _ => Ok(()),
    }
}

/// PAX records, read strictly. The parser stops at what is no record, and other readers go on behind it; some take the first
/// of two records for one thing and some the last; some take signs in numbers.
fn strict_records(raw: &ParsedEntry<'_>) -> Result<(), &'static str> {
    let mut rest = raw.pax.unwrap_or_default();
    let mut seen = [(&b"path"[..], false), (b"linkpath", false), (b"size", false), (b"uid", false), (b"gid", false)];
    while !rest.is_empty() {
        let (key, value, behind) = record(rest).ok_or("malformed PAX records")?;
        if key.starts_with(b"GNU.sparse.") {
            return Err("sparse files are not taken; pack the layer without them");
        }
        for (once, was) in &mut seen {
            if key == *once && std::mem::replace(was, true) {
                return Err("two PAX records for its name, link, size or owner");
            }
        }
        if matches!(key, b"size" | b"uid" | b"gid") && !value.iter().all(u8::is_ascii_digit) {
            return Err("a size or owner in PAX that is no number");
        }
        rest = behind;
    }
    Ok(())
}

/// `LENGTH KEY=VALUE\n`, the length that of all of it: key, value and what is behind.
fn record(pax: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = pax.iter().position(|byte| *byte == b' ')?;
    let length = std::str::from_utf8(pax.get(..space)?).ok()?;
    let length: usize = length.bytes().all(|byte| byte.is_ascii_digit()).then(|| length.parse().ok())??;
    let body = pax.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((body.get(..equals)?, body.get(equals + 1..)?, pax.get(length..)?))
}

fn xattrs(raw: &ParsedEntry<'_>) -> Result<Xattrs, &'static str> {
    let kept: Xattrs = raw
        .xattrs
        .iter()
        .filter(|(name, _)| name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect();
    if kept.iter().any(|(name, _)| name.contains(&0) || name.len() > 255 || name.len() == 5) {
        return Err("an attribute name that no file system takes");
    }
    if kept.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > XATTR_BYTES {
        return Err("more than 64 KiB of attributes");
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_below_the_root() {
        let limits = Limits::default();
        for (text, path) in [
            ("./", ""),
            ("/", ""),
            ("/etc/passwd", "etc/passwd"),
            ("a//b/./c/", "a/b/c"),
            ("a/../b", "b"),
            ("a/b/../../c", "c"),
        ] {
            assert_eq!(normalise(text.as_bytes(), &limits).unwrap(), path.as_bytes(), "{text}");
        }
        for text in ["..", "a/../../b", "/../x", "a\0b"] {
            assert!(normalise(text.as_bytes(), &limits).is_err(), "{text:?}");
        }
        assert!(normalise(&[b'a'; 256], &limits).is_err());
        assert!(normalise(&b"a/".repeat(300), &limits).is_err());
        assert!(normalise(&b"abcdefg/".repeat(600), &limits).is_err());
    }
}
