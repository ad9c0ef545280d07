//! The audit log: one JSON line an ended update, appended.
//!
//! In: records. Out: `history.jsonl`, rotated once at 8 MiB. Must not: decide anything; it may be lost.

use std::{io::Write as _, os::fd::OwnedFd};

use molt_core::wire::UpdateView;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, statat};

const FILE: &str = "history.jsonl";
const OLD: &str = "history.jsonl.1";
const MOST_BYTES: i64 = 8 << 20;

/// Appends one record and syncs it.
pub(crate) fn append(store: &OwnedFd, record: &UpdateView) -> std::io::Result<()> {
    if statat(store, FILE, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_size > MOST_BYTES) {
        renameat(store, FILE, store, OLD)?;
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(store, FILE, flags, Mode::from_raw_mode(0o600))?);
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_data()
}

/// The last `count` records, oldest first; lines that are not whole are left out.
pub(crate) fn tail(store: &OwnedFd, count: usize) -> Vec<UpdateView> {
    let read = |name: &str| -> Vec<UpdateView> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(file) = openat(store, name, flags, Mode::empty()) else { return Vec::new() };
        let text = std::io::read_to_string(std::fs::File::from(file)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let mut records = read(FILE);
    if records.len() < count {
        let mut older = read(OLD);
        older.append(&mut records);
        records = older;
    }
    records.drain(..records.len().saturating_sub(count));
    records
}
