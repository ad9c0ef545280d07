//! Who asked for what, and what came of it: everything that gets a line in the history goes through here.
//!
//! In: records. Out: lines of the history, in the order in which they came. Must not: write or sync between the first signal
//! to a workload and the exec of the next; let an unconfined command start whose line is not on disk; let somebody who is
//! refused again and again fill the disk, or push what matters out of the history.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use molt_core::{
    ids::{Generation, UpdateId},
    wire::{AuditView, ExecView, HistoryCheck, UpdateView},
};
use serde::Serialize;
use tokio::sync::oneshot;

use super::history::History;
use crate::timer::{self, Instant};

/// Commands kept for `molt history`.
const KEPT: usize = 64;
/// Records that wait for the end of a gap, or for room on the disk.
const WAITING: usize = 1024;
/// Refusals that are written at once; then one in each [`REFILL`], which says how many it stands for.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_mins(1);
/// Kinds of refusals that are counted apart.
const COUNTED: usize = 32;
/// Longest text for people in a line, in characters.
const DETAIL: usize = 512;

/// The way to the history. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Audit(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// None: there is no store, and nothing is written.
    history: Option<History>,
    queue: Mutex<Queue>,
    refusals: Mutex<Refusals>,
    /// Commands, oldest first.
    execs: Mutex<VecDeque<ExecView>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// A thread is at it.
    writing: bool,
    /// Nothing is written for now.
    hushed: bool,
    /// Records that found no place.
    lost: u64,
    /// The last write failed, and was told.
    failing: bool,
}

#[derive(Debug)]
struct Waiting {
    record: Vec<u8>,
    /// Somebody wants to know when it is on disk, or that it is not.
    done: Option<oneshot::Sender<io::Result<()>>>,
}

/// What was refused and has no line yet.
#[derive(Debug, Default)]
struct Refusals {
    bucket: Option<(u32, Instant)>,
    counted: BTreeMap<(String, String), (u64, AuditView)>,
    /// Somebody comes back for them.
    expected: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line about something that was asked for or refused.
pub(crate) fn line(kind: &str, by: &str, what: &str) -> AuditView {
    AuditView {
        kind: kind.to_owned(),
        time: crate::observe::log::now(),
        by: by.chars().take(DETAIL).collect(),
        what: what.chars().take(DETAIL).collect(),
        outcome: "done".to_owned(),
        reason: None,
        update: None,
        detail: None,
        count: None,
    }
}

impl Audit {
    /// With what earlier starts of Molt left.
    pub(crate) fn resume(history: History) -> Self {
        let mut past = history.execs(KEPT);
        for view in past.iter_mut().filter(|view| view.ended.is_none()) {
            view.failure = Some("Molt ended before this was written".to_owned());
        }
        Self(Arc::new(Inner { history: Some(history), execs: Mutex::new(past), ..Inner::default() }))
    }

    /// The newest `count` updates, oldest first.
    pub(crate) fn updates(&self, count: usize) -> Vec<UpdateView> {
        self.0.history.as_ref().map(|history| history.updates(count)).unwrap_or_default()
    }

    /// The newest lines, oldest first. Reads files: not for the thread that serves.
    pub(crate) fn lines(&self, count: usize, kind: Option<&str>, after: u64) -> Vec<serde_json::Value> {
        self.0.history.as_ref().map(|history| history.lines(count, kind, after)).unwrap_or_default()
    }

    /// Goes along the chain. Reads files: not for the thread that serves.
    pub(crate) fn check(&self) -> HistoryCheck {
        self.0.history.as_ref().map_or_else(|| HistoryCheck { ok: true, ..HistoryCheck::default() }, History::check)
    }

    /// Writes a record when there is time for it. Nobody waits.
    pub(crate) fn note(&self, record: &impl Serialize) {
        self.put(record, None);
    }

    /// The same at once, for a start that has nothing else to do yet.
    pub(crate) fn note_now(&self, record: &impl Serialize) {
        self.push(record, None);
        self.drain();
    }

    /// Something that was asked for and done: by whom, what, about which update, and what else is worth knowing.
    pub(crate) fn asked(&self, by: &str, what: &str, update: Option<UpdateId>, detail: Option<String>) {
        self.note(&AuditView { update, detail: cut(detail), ..line("request", by, what) });
    }

    /// The same of a workload, which may ask as often as it likes: a few lines at once, then one a minute that counts.
    pub(crate) fn asked_often(&self, by: &str, what: &str, detail: Option<String>) {
        self.bounded(AuditView { detail: cut(detail), ..line("request", by, what) });
    }

    /// Something that was refused; `reason` is a word from a closed list. What is said beyond that must hold nothing that the
    /// one who is refused could fill at will.
    pub(crate) fn refused(&self, by: &str, what: &str, reason: &str, detail: Option<String>) {
        self.bounded(AuditView {
            outcome: "refused".to_owned(),
            reason: Some(reason.to_owned()),
            detail: cut(detail),
            ..line("refusal", by, what)
        });
    }

    /// A line of which there may be any number: what there is no line for is counted.
    fn bounded(&self, refusal: AuditView) {
        if self.0.history.is_none() {
            return;
        }
        let mut refusals = lock(&self.0.refusals);
        let now = Instant::now();
        if refusals.take(now) {
            let earlier = refusals.counted.remove(&key(&refusal)).map_or(0, |(count, _)| count);
            drop(refusals);
            let count = (earlier > 0).then_some(earlier + 1);
            self.note(&AuditView { count, ..refusal });
        } else {
            refusals.count(refusal);
            self.expect(&mut refusals);
        }
    }

    /// Comes back for what was counted only.
    fn expect(&self, refusals: &mut Refusals) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if std::mem::replace(&mut refusals.expected, true) {
            return;
        }
        let audit = self.clone();
        drop(runtime.spawn(async move {
            timer::sleep(REFILL).await;
            let mut refusals = lock(&audit.0.refusals);
            refusals.expected = false;
            if let Some((count, refusal)) = refusals.next(Instant::now()) {
                audit.note(&AuditView { count: Some(count), ..refusal });
            }
            if !refusals.counted.is_empty() {
                audit.expect(&mut refusals);
            }
        }));
    }

    /// Nothing is written or synced until [`Audit::speak`].
    pub(crate) fn hush(&self) {
        lock(&self.0.queue).hushed = true;
    }

    /// Ends that.
    pub(crate) fn speak(&self) {
        let mut queue = lock(&self.0.queue);
        if std::mem::take(&mut queue.hushed) {
            self.wake(&mut queue);
        }
    }

    /// PID 1 is about to exit: what was only counted gets its lines, and all are handed to a thread.
    pub(crate) fn finish(&self) {
        let counted = std::mem::take(&mut lock(&self.0.refusals).counted);
        for (count, refusal) in counted.into_values() {
            self.note(&AuditView { count: Some(count), ..refusal });
        }
        let mut queue = lock(&self.0.queue);
        queue.hushed = false;
        self.wake(&mut queue);
    }

    fn put(&self, record: &impl Serialize, done: Option<oneshot::Sender<io::Result<()>>>) {
        self.push(record, done);
        self.wake(&mut lock(&self.0.queue));
    }

    fn push(&self, record: &impl Serialize, done: Option<oneshot::Sender<io::Result<()>>>) {
        if self.0.history.is_none() {
            return;
        }
        let Ok(record) = serde_json::to_vec(record) else { return };
        let mut queue = lock(&self.0.queue);
        if queue.waiting.len() >= WAITING {
            queue.lost += 1;
            return;
        }
        queue.waiting.push_back(Waiting { record, done });
    }

    /// Starts a thread for what waits, if there is none.
    fn wake(&self, queue: &mut Queue) {
        if queue.hushed || queue.writing || queue.waiting.is_empty() {
            return;
        }
        queue.writing = true;
        let audit = self.clone();
        crate::aside::start("history", move || audit.drain());
    }

    /// Writes what waits, all at once, until nothing does.
    fn drain(&self) {
        let Some(history) = &self.0.history else { return };
        loop {
            let mut queue = lock(&self.0.queue);
            if queue.hushed || queue.waiting.is_empty() {
                queue.writing = false;
                return;
            }
            let batch = std::mem::take(&mut queue.waiting);
            let lost = (queue.lost > 0).then(|| {
                let detail = format!("{} records found no place to wait in, and are lost", queue.lost);
                let told = AuditView { detail: Some(detail), ..line("repair", "molt", "lost records") };
                serde_json::to_vec(&told).unwrap_or_default()
            });
            drop(queue);
            let records = batch.iter().map(|waiting| waiting.record.as_slice());
            let written = history.append(records.chain(lost.as_deref()));
            let mut queue = lock(&self.0.queue);
            match written {
                Ok(()) => {
                    (queue.lost, queue.failing) = (0, false);
                    drop(queue);
                    for done in batch.into_iter().filter_map(|waiting| waiting.done) {
                        // Nobody waits for it any more.
                        let _ = done.send(Ok(()));
                    }
                }
                Err(error) => {
                    queue.writing = false;
                    if !std::mem::replace(&mut queue.failing, true) {
                        tracing::warn!(%error, "failed to write the history; it is tried again with the next line");
                    }
                    // Whoever waits is told, and that record is not written later: he has acted on it by then.
                    for waiting in batch.into_iter().rev() {
                        match waiting.done {
                            Some(done) => drop(done.send(Err(io::Error::new(error.kind(), error.to_string())))),
                            None => queue.waiting.push_front(waiting),
                        }
                    }
                    return;
                }
            }
        }
    }

    /// All commands.
    pub(crate) fn all(&self) -> Vec<ExecView> {
        lock(&self.0.execs).iter().cloned().collect()
    }

    /// Writes down that `by` is about to run `argv`.
    pub(crate) async fn begin(&self, generation: Generation, argv: Vec<String>, by: String) -> io::Result<Entry> {
        let newest = lock(&self.0.execs).back().map_or(0, |view| view.exec);
        let view = ExecView {
            kind: "exec".to_owned(),
            exec: crate::clock::unix_ms().max(newest + 1),
            generation,
            argv,
            by,
            started: crate::observe::log::now(),
            ended: None,
            status: None,
            failure: None,
        };
        self.keep(view.clone());
        let entry = Entry { audit: self.clone(), view };
        match entry.write().await {
            Ok(()) => Ok(entry),
            Err(error) => {
                lock(&self.0.execs).retain(|kept| kept.exec != entry.view.exec);
                Err(error)
            }
        }
    }

    /// Puts one in the place of its earlier self, or at the end.
    fn keep(&self, view: ExecView) {
        let mut all = lock(&self.0.execs);
        if let Some(kept) = all.iter_mut().find(|kept| kept.exec == view.exec) {
            *kept = view;
            return;
        }
        if all.len() == KEPT {
            all.pop_front();
        }
        all.push_back(view);
    }
}

fn cut(detail: Option<String>) -> Option<String> {
    detail.map(|detail| detail.chars().take(DETAIL).collect())
}

fn key(refusal: &AuditView) -> (String, String) {
    (refusal.what.clone(), refusal.reason.clone().unwrap_or_default())
}

impl Refusals {
    /// Whether there may be a line now.
    fn take(&mut self, now: Instant) -> bool {
        let (mut left, mut since) = self.bucket.unwrap_or((BURST, now));
        let passed = now.saturating_duration_since(since).as_secs() / REFILL.as_secs();
        if passed > 0 {
            left = left.saturating_add(u32::try_from(passed).unwrap_or(u32::MAX)).min(BURST);
            since = now;
        }
        let may = left > 0;
        self.bucket = Some((left.saturating_sub(1), since));
        may
    }

    fn count(&mut self, refusal: AuditView) {
        let mut key = key(&refusal);
        if self.counted.len() >= COUNTED && !self.counted.contains_key(&key) {
            key = ("others".to_owned(), String::new());
        }
        let what = key.0.clone();
        let entry = self.counted.entry(key).or_insert_with(|| (0, AuditView { what, ..refusal }));
        entry.0 += 1;
    }

    /// The kind that was counted most, if there may be a line.
    fn next(&mut self, now: Instant) -> Option<(u64, AuditView)> {
        let most = self.counted.iter().max_by_key(|(_, (count, _))| *count).map(|(key, _)| key.clone())?;
        if !self.take(now) {
            return None;
        }
        self.counted.remove(&most)
    }
}

/// A command whose start is written down.
#[derive(Debug)]
pub(crate) struct Entry {
    audit: Audit,
    view: ExecView,
}

impl Entry {
    /// Writes down how it ended: its exit status, or why it has none.
    pub(crate) async fn end(mut self, how: Result<i32, String>) {
        self.view.ended = Some(crate::observe::log::now());
        (self.view.status, self.view.failure) = match how {
            Ok(status) => (Some(status), None),
            Err(why) => (None, Some(why)),
        };
        self.audit.keep(self.view.clone());
        if let Err(error) = self.write().await {
            tracing::warn!(%error, exec = self.view.exec, "failed to write the end of an unconfined command to the history");
        }
    }

    async fn write(&self) -> io::Result<()> {
        if self.audit.0.history.is_none() {
            return Err(io::Error::other("there is no store"));
        }
        let (sender, receiver) = oneshot::channel();
        self.audit.put(&self.view, Some(sender));
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the history takes no more lines for now")))
    }
}
