//! The history: one JSON line for each thing that was done, asked for or refused; appended, chained, rotated.
//!
//! In: records. Out: `history.jsonl` and the three files before it, of 8 MiB each. Must not: decide anything, it may be lost;
//! go on behind a line that is not whole without saying so.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use molt_core::{
    code::Code,
    generation::Record,
    ids::Generation,
    journal::{Revision, Slot},
    memory::UnderWay,
    wire::{AuditView, ExecView, HistoryCheck, Outcome, UpdateView},
};
use rustix::{
    fs::{AtFlags, Mode, OFlags, fsync, openat, renameat, statat},
    io::Errno,
};
use serde::de::DeserializeOwned;

use super::chain::{self, Head, Link, Walk};

/// Oldest first; the last one is written.
const FILES: [&str; 4] = ["history.jsonl.3", "history.jsonl.2", "history.jsonl.1", FILE];
const FILE: &str = "history.jsonl";
const MOST_BYTES: u64 = 8 << 20;
/// What is read of a file. One that was last written to when it was nearly full is far from it.
const LONGEST: u64 = 64 << 20;

/// The history of a store that is open.
#[derive(Debug)]
pub(crate) struct History {
    store: OwnedFd,
    /// One writes at a time, and nobody reads meanwhile.
    head: Mutex<Head>,
}

impl History {
    /// Opens it: finds the end of the chain, and cuts off what a start before this one did not come to write to its end.
    pub(crate) fn open(store: &OwnedFd) -> std::io::Result<Self> {
        let store = rustix::io::fcntl_dupfd_cloexec(store, 0)?;
        let mut marks = Vec::new();
        let torn = cut(&store).unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to cut off the end of the history, which is not whole");
            None
        });
        if let Some(torn) = torn {
            marks.push(mark(
                "torn line",
                format!("{} bytes without an end were cut off, sha256:{}", torn.len(), chain::hash(&torn)),
            ));
        }
        let (head, loose) = found(&store);
        if loose > 0 && head.seq > 0 {
            let detail = format!(
                "{loose} lines before this one are not of the chain: an older molt wrote them, or somebody else"
            );
            marks.push(mark(chain::UNCHAINED, detail));
        }
        let history = Self { store, head: Mutex::new(head) };
        if !marks.is_empty() {
            // Where the disk is full it is said in the log alone; the next line is whole all the same.
            for mark in &marks {
                tracing::warn!("the history: {}", mark.detail.as_deref().unwrap_or_default());
            }
            let lines: Vec<Vec<u8>> = marks.iter().filter_map(|mark| serde_json::to_vec(mark).ok()).collect();
            if let Err(error) = history.append(lines.iter().map(Vec::as_slice)) {
                tracing::warn!(%error, "failed to write that to the history");
            }
        }
        Ok(history)
    }

    fn lock(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends records, each a JSON object, and syncs them at once; where that fails, nothing of them is left to spoil the
    /// next ones.
    pub(crate) fn append<'a>(&self, records: impl Iterator<Item = &'a [u8]>) -> std::io::Result<()> {
        let mut head = self.lock();
        let mut new = head.clone();
        let mut lines: Vec<u8> = records.flat_map(|record| new.link(record)).collect();
        let is = statat(&self.store, FILE, AtFlags::SYMLINK_NOFOLLOW);
        let is_full = is.as_ref().is_ok_and(|stat| u64::try_from(stat.st_size).unwrap_or(0) > MOST_BYTES);
        if is_full {
            self.rotate()?;
        }
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = std::fs::File::from(openat(&self.store, FILE, flags, Mode::from_raw_mode(0o600))?);
        let before = file.metadata()?.len();
        let mut last = [b'\n'];
        if before > 0 && file.read_at(&mut last, before - 1).is_ok() && last != [b'\n'] {
            // What could not be cut off must not spoil this line, too.
            lines.insert(0, b'\n');
        }
        let written = file.write_all(&lines).and_then(|()| file.sync_data());
        // A file that is new has no name on disk yet.
        let named = written.and_then(|()| if before == 0 { Ok(fsync(&self.store)?) } else { Ok(()) });
        match named {
            Ok(()) => *head = new,
            // A line that cannot be taken back is as good as written: the chain goes on behind it.
            Err(_) if before > 0 && file.set_len(before).is_err() => *head = new,
            Err(_) if before == 0 => drop(file.set_len(0)),
            Err(_) => {}
        }
        named
    }

    fn rotate(&self) -> std::io::Result<()> {
        for pair in FILES.windows(2) {
            let [older, newer] = pair else { continue };
            match renameat(&self.store, *newer, &self.store, *older) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// The newest `count` records of updates, oldest first; lines that are not whole are left out.
    pub(crate) fn updates(&self, count: usize) -> Vec<UpdateView> {
        self.newest(count, read::<UpdateView>)
    }

    /// The newest `count` lines, oldest first, as they are in the files; of one kind only if `kind` says so, and above the
    /// number `after`.
    pub(crate) fn lines(&self, count: usize, kind: Option<&str>, after: u64) -> Vec<serde_json::Value> {
        self.newest(count, |line| {
            let value = read::<serde_json::Value>(line).filter(serde_json::Value::is_object)?;
            let is_kind = kind.is_none_or(|kind| value.get("kind").is_some_and(|is| is == kind));
            let is_after =
                after == 0 || value.get("seq").and_then(serde_json::Value::as_u64).is_some_and(|seq| seq > after);
            (is_kind && is_after).then_some(value)
        })
    }

    fn newest<T>(&self, count: usize, take: impl Fn(&[u8]) -> Option<T>) -> Vec<T> {
        let _alone = self.lock();
        let mut found = VecDeque::new();
        for name in FILES.into_iter().rev() {
            let bytes = load(&self.store, name);
            for one in whole(&bytes).rev().filter_map(&take) {
                if found.len() == count {
                    return found.into();
                }
                found.push_front(one);
            }
        }
        found.into()
    }

    /// The newest `count` commands that were run unconfined, oldest first. Each has a line for its start and one for its
    /// end, of which the last counts.
    pub(crate) fn execs(&self, count: usize) -> VecDeque<ExecView> {
        let mut records: BTreeMap<u64, ExecView> = BTreeMap::new();
        for view in self.newest(2 * count, read::<ExecView>) {
            records.insert(view.exec, view);
        }
        let too_many = records.len().saturating_sub(count);
        records.into_values().skip(too_many).collect()
    }

    /// Goes along the whole chain.
    pub(crate) fn check(&self) -> HistoryCheck {
        let _alone = self.lock();
        let mut walk = Walk::default();
        for name in FILES {
            walk.file(name, &load(&self.store, name));
        }
        walk.end()
    }
}

fn mark(what: &str, detail: String) -> AuditView {
    AuditView {
        kind: "repair".to_owned(),
        time: crate::observe::log::now(),
        by: "boot".to_owned(),
        what: what.to_owned(),
        outcome: "done".to_owned(),
        reason: None,
        update: None,
        detail: Some(detail),
        count: None,
    }
}

/// A line as a `T`. Updates and commands are told apart by their fields.
fn read<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    serde_json::from_slice(line).ok()
}

/// All of a file; none is empty.
fn load(store: &OwnedFd, name: &str) -> Vec<u8> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(file) = openat(store, name, flags, Mode::empty()) else { return Vec::new() };
    let mut bytes = Vec::new();
    let _ = std::fs::File::from(file).take(LONGEST).read_to_end(&mut bytes);
    bytes
}

/// The lines of a file that have an end.
fn whole(bytes: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    bytes.get(..end).unwrap_or_default().split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// Cuts off what follows the last end of a line, and gives it.
fn cut(store: &OwnedFd) -> std::io::Result<Option<Vec<u8>>> {
    let bytes = load(store, FILE);
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let torn = bytes.get(end..).unwrap_or_default();
    if torn.is_empty() || bytes.len() as u64 >= LONGEST {
        return Ok(None);
    }
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = std::fs::File::from(openat(store, FILE, flags, Mode::empty())?);
    file.set_len(end as u64)?;
    file.sync_data()?;
    Ok(Some(torn.to_vec()))
}

/// Where the chain has come to, and how many lines without one came after it.
fn found(store: &OwnedFd) -> (Head, u64) {
    let mut head = Head::default();
    let mut loose = 0;
    for name in FILES.into_iter().rev() {
        let bytes = load(store, name);
        for line in whole(&bytes).rev() {
            if head == Head::default() {
                head.pass(line);
            }
            match Link::of(line).and_then(|link| link.prev.and(link.seq)) {
                Some(seq) => {
                    head.seq = seq;
                    return (head, loose);
                }
                None => loose += 1,
            }
        }
    }
    (head, loose)
}

/// The record of an attempt that ended in the journal, if Molt died before it came to write it down here. `past` is what
/// [`History::updates`] found.
pub(crate) fn lost(past: &[UpdateView], slot: &Slot, known: &BTreeMap<Generation, Record>) -> Option<UpdateView> {
    let verdict = slot.verdict.as_ref()?;
    // Numbers rise, and a start completes the history before it gives out others.
    if past.iter().any(|view| view.id >= verdict.update) {
        return None;
    }
    let confirmed = slot.confirmed.filter(|_| verdict.outcome == Outcome::Confirmed);
    let image = known.get(&slot.confirmed?).and_then(|record| record.image.clone());
    let runs = match (slot.confirmed, &image) {
        (Some(generation), _) if verdict.outcome == Outcome::Degraded => {
            format!("neither version stayed up; generation {generation} is tried again")
        }
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
        by: slot
            .revision
            .as_ref()
            .filter(|revision| revision.update == verdict.update)
            .map_or_else(|| "boot".to_owned(), Revision::by),
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
    use serde::Serialize;

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

    #[test]
    fn a_lost_end_of_both_says_what_is_tried() {
        let verdict = Verdict { update: UpdateId(9), kind: "update".into(), outcome: Outcome::Degraded };
        let slot = Slot { confirmed: Some(Generation(3)), verdict: Some(verdict), ..Slot::first() };
        let record = lost(&[], &slot, &BTreeMap::new()).unwrap();
        assert_eq!((record.outcome, record.to), (Some(Outcome::Degraded), None));
        assert!(record.message.starts_with("neither version stayed up; generation 3 is tried again"));
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

    struct Folder(std::path::PathBuf, OwnedFd);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("molt-history-{name}-{}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            let store = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            Self(path, store)
        }

        fn open(&self) -> History {
            History::open(&self.1).unwrap()
        }

        fn text(&self) -> String {
            std::fs::read_to_string(self.0.join(FILE)).unwrap()
        }

        fn write(&self, text: &str) {
            std::fs::write(self.0.join(FILE), text).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn append(history: &History, record: &impl Serialize) {
        let line = serde_json::to_vec(record).unwrap();
        history.append([line.as_slice()].into_iter()).unwrap();
    }

    #[test]
    fn commands_and_updates_share_the_history_and_each_is_read_as_what_it_is() {
        let folder = Folder::new("shared");
        let history = folder.open();
        let update = crate::api::fake::record(5, None);
        append(&history, &exec(7));
        append(&history, &update);
        append(&history, &exec(8));
        append(&history, &ExecView { status: Some(3), ..exec(7) });
        assert_eq!(history.updates(64), [update]);
        assert_eq!(history.execs(64), [ExecView { status: Some(3), ..exec(7) }, exec(8)]);
        assert_eq!(history.execs(1), [exec(8)]);
        assert_eq!(history.lines(64, Some("exec"), 0).len(), 3);
        assert_eq!(history.lines(64, None, 3).len(), 1);
        let check = history.check();
        assert!(check.ok && check.last == Some(4), "{check:?}");
    }

    #[test]
    fn the_chain_goes_on_through_starts_and_behind_lines_of_before_there_was_one() {
        let folder = Folder::new("starts");
        let old = crate::api::fake::record(5, None);
        folder.write(&format!("{}\n", serde_json::to_string(&old).unwrap()));
        append(&folder.open(), &crate::api::fake::record(6, None));
        append(&folder.open(), &crate::api::fake::record(7, None));
        let history = folder.open();
        let check = history.check();
        assert!(check.ok, "{check:?}");
        assert_eq!((check.lines, check.unchained, check.first, check.last), (3, 1, Some(1), Some(2)));
        let ids: Vec<u64> = history.updates(64).iter().map(|view| view.id.0).collect();
        assert_eq!(ids, [5, 6, 7], "and the old ones are read");
    }

    #[test]
    fn a_torn_line_is_cut_off_and_told_wherever_it_is_torn() {
        let folder = Folder::new("torn");
        append(&folder.open(), &crate::api::fake::record(5, None));
        append(&folder.open(), &crate::api::fake::record(6, None));
        let text = folder.text();
        let second = text.find('\n').unwrap() + 1;
        for end in [1, second - 1, second + 1, second + 30, text.len() - 1] {
            folder.write(&text[..end]);
            let history = folder.open();
            let check = history.check();
            assert!(check.ok, "{end}: {check:?}");
            let told = history.lines(9, Some("repair"), 0);
            assert_eq!(told.len(), 1, "{end}");
            assert_eq!(told[0]["what"], "torn line");
            append(&history, &crate::api::fake::record(7, None));
            assert!(folder.open().check().ok);
        }
    }

    #[test]
    fn lines_that_an_older_molt_put_in_between_are_told() {
        let folder = Folder::new("older");
        append(&folder.open(), &crate::api::fake::record(5, None));
        let old = serde_json::to_string(&crate::api::fake::record(6, None)).unwrap();
        folder.write(&format!("{}{old}\n", folder.text()));
        let history = folder.open();
        let check = history.check();
        assert!(check.ok && check.unchained == 1 && check.last == Some(2), "{check:?}");
        assert_eq!(history.lines(9, Some("repair"), 0).len(), 1);
        assert!(folder.open().check().last == Some(2), "and once only");
    }

    #[test]
    fn the_chain_goes_through_four_files_of_8_mib() {
        let folder = Folder::new("rotate");
        let history = folder.open();
        let mut view = crate::api::fake::record(1, None);
        view.message = "x".repeat(1 << 20);
        for number in 1..=60 {
            view.id = molt_core::ids::UpdateId(number);
            append(&history, &view);
        }
        let check = history.check();
        assert!(check.ok, "{check:?}");
        assert_eq!(check.last, Some(60));
        assert!(check.first.is_some_and(|first| first > 1), "the oldest are gone");
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 4);
        let again = folder.open();
        append(&again, &view);
        assert!(again.check().ok);
        std::fs::remove_file(folder.0.join("history.jsonl.1")).unwrap();
        assert!(!again.check().ok, "a file that is taken away is missed");
        std::fs::remove_file(folder.0.join(FILE)).unwrap();
        assert!(folder.open().check().last.is_some(), "the chain's end may be in an older file");
    }

    #[test]
    fn what_cannot_be_written_leaves_the_chain_as_it_was() {
        let folder = Folder::new("full");
        let history = folder.open();
        append(&history, &crate::api::fake::record(5, None));
        let path = folder.0.join(FILE);
        let aside = folder.0.join("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(history.append([b"{\"kind\":\"x\"}".as_slice()].into_iter()).is_err());
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        append(&history, &crate::api::fake::record(6, None));
        let check = history.check();
        assert!(check.ok && check.last == Some(2), "{check:?}");
    }
}
