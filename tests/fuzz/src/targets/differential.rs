//! Molt's tar reader against the `tar` crate: what both take must be the same entries with the same data.
//!
//! In: a tar stream. Out: a panic where the two read it differently. Must not: mind what only one of them takes: Molt is
//! stricter on purpose.
//!
//! Known faults of the `tar` crate 0.4.46, which are not held against Molt: it cuts PAX records at newlines, not at their
//! length, so a stream whose records hold a newline in a value is passed over.

use std::io::Read as _;

use molt_oci::{
    Limits,
    fuzzing::{Member, What, members},
};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use crate::tar_input::expand;

pub(super) fn run(data: &[u8]) {
    let tar = expand(data);
    let Ok(ours) = members(&*tar, &Limits { entries: 1000, ..Limits::default() }) else { return };
    ours.iter().for_each(super::tar::check);
    let Ok(theirs) = others(&tar) else { return };
    if is_same(&ours, &theirs) || has_newline_in_record(&tar) {
        return;
    }
    panic!("read differently\n  molt: {ours:#?}\n  tar: {theirs:#?}");
}

/// An entry as the `tar` crate has it.
#[derive(Debug)]
struct Other {
    path: Vec<u8>,
    kind: EntryType,
    link: Option<Vec<u8>>,
    size: u64,
    hash: [u8; 32],
    mode: u32,
    uid: u64,
    gid: u64,
}

fn others(tar: &[u8]) -> std::io::Result<Vec<Other>> {
    let mut archive = tar::Archive::new(tar);
    let mut list = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let mut data = Vec::new();
        entry.read_to_end(&mut data)?;
        let header = entry.header();
        let kind = header.entry_type();
        // They describe others; Molt takes those that say nothing about names, sizes and owners.
        if kind.is_pax_global_extensions() {
            continue;
        }
        list.push(Other {
            path: entry.path_bytes().into_owned(),
            kind,
            link: entry.link_name_bytes().map(std::borrow::Cow::into_owned),
            size: entry.size(),
            hash: Sha256::digest(&data).into(),
            mode: header.mode()? & 0o7777,
            uid: header.uid()?,
            gid: header.gid()?,
        });
    }
    Ok(list)
}

fn is_same(ours: &[Member], theirs: &[Other]) -> bool {
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(our, their)| is_same_entry(our, their))
}

fn is_same_entry(our: &Member, their: &Other) -> bool {
    let path = normal(&their.path);
    let link = || their.link.clone().unwrap_or_default();
    let folder = their.path.ends_with(b"/") && their.size == 0;
    let (kind, path_agrees) = match (&our.what, their.kind) {
        (What::File(size, hash), EntryType::Regular | EntryType::Continuous) => {
            (*size == their.size && *hash == their.hash, our.path == path)
        }
        (What::Directory, EntryType::Directory) => (true, our.path == path),
        (What::Directory, EntryType::Regular) => (folder, our.path == path),
        (What::Symlink(target), EntryType::Symlink) => (*target == link(), our.path == path),
        (What::Hardlink(target), EntryType::Link) => (*target == normal(&link()), our.path == path),
        (What::Fifo, EntryType::Fifo) => (true, our.path == path),
        (What::Nothing, EntryType::Char | EntryType::Block) => (true, our.path == path),
        (What::Whiteout(name), EntryType::Regular | EntryType::Continuous | EntryType::Link) => {
            let hidden = name.as_deref().unwrap_or(b".wh..opq");
            let leaf = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            (leaf.strip_prefix(b".wh.") == Some(hidden), our.path == path)
        }
        _ => (false, false),
    };
    let owner = (u64::from(our.uid), u64::from(our.gid)) == (their.uid, their.gid);
    kind && path_agrees && owner && our.mode == their.mode
}

/// Components without `.`, with `..` taken back; independent of Molt's own.
fn normal(path: &[u8]) -> Vec<u8> {
    let mut stack: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(stack.pop()),
            part => stack.push(part),
        }
    }
    stack.join(&b'/')
}

/// Whether a PAX header has a record, by its length, with a newline in its value.
fn has_newline_in_record(tar: &[u8]) -> bool {
    let mut archive = tar::Archive::new(tar);
    let Ok(entries) = archive.entries() else { return false };
    for entry in entries.raw(true) {
        let Ok(mut entry) = entry else { return false };
        let mut data = Vec::new();
        if !entry.header().entry_type().is_pax_local_extensions() || entry.read_to_end(&mut data).is_err() {
            continue;
        }
        let mut rest = data.as_slice();
        while let Some(space) = rest.iter().position(|byte| *byte == b' ') {
            let length = std::str::from_utf8(&rest[..space]).ok().and_then(|text| text.parse::<usize>().ok());
            let Some(record) = length.and_then(|length| rest.get(..length)) else { break };
            if record.get(..record.len().saturating_sub(1)).is_some_and(|body| body.contains(&b'\n')) {
                return true;
            }
            rest = &rest[record.len()..];
            if record.is_empty() {
                break;
            }
        }
    }
    false
}
