//! The audit log: one JSON line an ended update, and two a command that is run unconfined; appended.
//!
//! In: records. Out: `history.jsonl`, rotated once at 8 MiB. Must not: decide anything; it may be lost.

use std::{
    collections::{BTreeMap, VecDeque},
    io::Write as _,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use molt_core::{
    code::Code,
    generation::Record,
    ids::Generation,
    journal::Slot,
    memory::UnderWay,
    wire::{ExecView, Outcome, UpdateView},
};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, statat};
use serde::{Serialize, de::DeserializeOwned};

const FILE: &str = "history.jsonl";
const OLD: &str = "history.jsonl.1";
const MOST_BYTES: i64 = 8 << 20;

/// One at a time: two that rotate at once would throw a whole file away.
static WRITING: Mutex<()> = Mutex::new(());

/// Appends one record and syncs it; where that fails, nothing of it is left to spoil the next one.
pub(crate) fn append(store: &OwnedFd, record: &impl Serialize) -> std::io::Result<()> {
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    if statat(store, FILE, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_size > MOST_BYTES) {
        renameat(store, FILE, store, OLD)?;
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(store, FILE, flags, Mode::from_raw_mode(0o600))?);
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    let before = file.metadata()?.len();
    file.write_all(&line).and_then(|()| file.sync_data()).inspect_err(|_| drop(file.set_len(before)))
}

/// The last `count` records of updates, oldest first; lines that are not whole are left out.
pub(crate) fn tail(store: &OwnedFd, count: usize) -> Vec<UpdateView> {
    let mut records: Vec<UpdateView> = read(store, FILE);
    if records.len() < count {
        let mut older = read(store, OLD);
        older.append(&mut records);
        records = older;
    }
    records.drain(..records.len().saturating_sub(count));
    records
}

/// The last `count` commands that were run unconfined, oldest first. Each has a line for its start and one for its end,
/// of which the last counts.
pub(crate) fn execs(store: &OwnedFd, count: usize) -> VecDeque<ExecView> {
    let lines = [OLD, FILE].into_iter().flat_map(|name| read::<ExecView>(store, name));
    let records: BTreeMap<u64, ExecView> = lines.map(|line| (line.exec, line)).collect();
    let too_many = records.len().saturating_sub(count);
    records.into_values().skip(too_many).collect()
}

/// Lines that are a `T`.
fn read<T: DeserializeOwned>(store: &OwnedFd, name: &str) -> Vec<T> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(file) = openat(store, name, flags, Mode::empty()) else { return Vec::new() };
    let text = std::io::read_to_string(std::fs::File::from(file)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The record of an attempt that ended in the journal, if Molt died before it came to write it down here. `past` is what
/// [`tail`] found.
pub(crate) fn lost(past: &[UpdateView], slot: &Slot, known: &BTreeMap<Generation, Record>) -> Option<UpdateView> {
    let verdict = slot.verdict.as_ref()?;
    // Numbers rise, and a start completes the history before it gives out others.
    if past.iter().any(|view| view.id >= verdict.update) {
        return None;
    }
    let confirmed = slot.confirmed.filter(|_| verdict.outcome == Outcome::Confirmed);
    let image = known.get(&slot.confirmed?).and_then(|record| record.image.clone());
    let runs = match (slot.confirmed, &image) {
        (Some(generation), Some(image)) => format!("generation {generation} runs {image}"),
        (Some(generation), None) => format!("generation {generation} runs the container's own root"),
        (None, _) => "nothing is confirmed".to_owned(),
    };
    let now = crate::observe::log::now();
    Some(UpdateView {
        id: verdict.update,
        kind: verdict.kind.clone(),
        image: image.filter(|_| confirmed.is_some()),
        from: if confirmed.is_some() { slot.previous } else { slot.confirmed },
        to: confirmed,
        outcome: Some(verdict.outcome),
        reason: None,
        message: format!("{runs}; molt was killed before it wrote this down, and does so now"),
        downtime_us: None,
        unready_us: None,
        by: "boot".to_owned(),
        note: None,
        started: now.clone(),
        ended: Some(now),
        evidence: None,
        event: None,
    })
}

/// The record of a request that was taken and had not come to its gate when Molt ended.
pub(crate) fn interrupted(request: &UnderWay, slot: &Slot) -> UpdateView {
    let runs = slot.confirmed.map_or("nothing is confirmed".to_owned(), |one| format!("generation {one} is confirmed"));
    UpdateView {
        id: request.update,
        kind: request.kind.clone(),
        image: request.image.as_ref().and_then(|image| image.parse().ok()),
        from: slot.confirmed,
        to: None,
        outcome: Some(Outcome::Aborted),
        reason: Some(Code::Interrupted),
        message: format!("molt ended while this was under way; {runs}: ask again if it is still wanted"),
        downtime_us: None,
        unready_us: None,
        by: request.by.clone(),
        note: request.note.clone(),
        started: crate::clock::text(request.since_ms),
        ended: Some(crate::observe::log::now()),
        evidence: None,
        event: None,
    }
}

#[cfg(test)]
mod tests {
    use molt_core::{ids::UpdateId, journal::Verdict};

    use super::*;

    #[test]
    fn a_record_that_was_lost_is_made_from_the_slot_and_only_once() {
        let verdict = Verdict { update: UpdateId(7), kind: "update".into(), outcome: Outcome::Confirmed };
        let slot = Slot {
            confirmed: Some(Generation(3)),
            previous: Some(Generation(2)),
            verdict: Some(verdict),
            ..Slot::first()
        };
        let record = lost(&[], &slot, &BTreeMap::new()).unwrap();
        assert_eq!((record.id, record.from, record.to), (UpdateId(7), Some(Generation(2)), Some(Generation(3))));
        assert_eq!(record.outcome, Some(Outcome::Confirmed));
        assert_eq!(lost(std::slice::from_ref(&record), &slot, &BTreeMap::new()), None);
        let later = UpdateView { id: UpdateId(8), ..record };
        assert_eq!(lost(&[later], &slot, &BTreeMap::new()), None);
        assert_eq!(lost(&[], &Slot { verdict: None, ..slot }, &BTreeMap::new()), None);
    }

    #[test]
    fn a_lost_way_back_names_what_runs() {
        let verdict = Verdict { update: UpdateId(9), kind: "update".into(), outcome: Outcome::RolledBack };
        let slot = Slot { confirmed: Some(Generation(3)), verdict: Some(verdict), ..Slot::first() };
        let record = lost(&[], &slot, &BTreeMap::new()).unwrap();
        assert_eq!((record.from, record.to), (Some(Generation(3)), None));
    }

    fn exec(exec: u64) -> ExecView {
        ExecView {
            kind: "exec".to_owned(),
            exec,
            generation: Generation(1),
            argv: vec!["sh".to_owned()],
            by: "uid 0".to_owned(),
            started: "2026-01-02T03:04:05.678Z".to_owned(),
            ended: None,
            status: None,
            failure: None,
        }
    }

    #[test]
    fn commands_and_updates_share_the_history_and_each_is_read_as_what_it_is() {
        let folder = std::env::temp_dir().join(format!("molt-history-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let store = rustix::fs::open(&folder, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let update = crate::api::fake::record(5, None);
        append(&store, &exec(7)).unwrap();
        append(&store, &update).unwrap();
        append(&store, &exec(8)).unwrap();
        append(&store, &ExecView { status: Some(3), ..exec(7) }).unwrap();
        assert_eq!(tail(&store, 64), [update]);
        assert_eq!(execs(&store, 64), [ExecView { status: Some(3), ..exec(7) }, exec(8)]);
        assert_eq!(execs(&store, 1), [exec(8)]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
