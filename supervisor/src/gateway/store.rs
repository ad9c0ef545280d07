//! What a reference gateway keeps: one JSON document a sandbox, in a folder with one owner.
//!
//! In: changes. Out: records, and a number that rises with each change of one. Must not: tell anybody of a change that is
//! not on disk; give a revision's number out twice; start on documents it cannot read, because it would.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use molt_core::{
    code::Code,
    gateway::{Desired, Report, RevisionView, SandboxRecord, SandboxView, Stage, Want, is_id},
    ids::UpdateId,
    wire::{API_VERSION, Document, Problem, UpdateView},
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{auth::check_name, files};
use crate::{aside, observe::log};

/// Version of every document here.
const VERSION: u32 = 1;
/// Most sandboxes.
const SANDBOXES: usize = 256;
/// Revisions kept of each.
const REVISIONS: usize = 64;
/// Reports kept of each: more than a sandbox ever offers.
const REPORTS: usize = 96;
/// Of these, the last so many with their evidence.
const EVIDENCE: usize = 16;
/// Events kept of each.
const EVENTS: usize = 256;

/// One thing that was wanted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    revision: u64,
    want: Want,
    by: String,
    since: String,
}

/// `sandboxes/NAME.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    version: u32,
    name: String,
    /// The newest; it rises even where older ones are forgotten.
    revision: u64,
    /// Oldest first.
    revisions: Vec<Wanted>,
    /// Which store of the sandbox's the status is of.
    store: Option<String>,
    /// As it came: of a newer Molt there may be more in it than is understood here.
    status: Option<serde_json::Value>,
    seen: Option<String>,
    /// As they came.
    reports: Vec<Report>,
    /// Of the store above, by rising numbers.
    #[serde(default)]
    events: Vec<serde_json::Value>,
}

/// `gateway.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Own {
    version: u32,
    id: String,
}

struct Entry {
    kept: Arc<Kept>,
    changes: watch::Sender<u64>,
    /// One change at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The folder.
pub(super) struct Store {
    folder: PathBuf,
    id: String,
    all: Mutex<BTreeMap<String, Entry>>,
    _lock: OwnedFd,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a folder, made if it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self, String> {
        let sandboxes = folder.join("sandboxes");
        let fault = |what: &str, error: std::io::Error| format!("failed to {what} {}: {error}", folder.display());
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
        builder.create(&sandboxes).map_err(|error| fault("make", error))?;
        let mut options = fs::OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).open(folder.join("lock"));
        let lock = OwnedFd::from(lock.map_err(|error| fault("open the lock of", error))?);
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| format!("another gateway has {}", folder.display()))?;
        let own = folder.join("gateway.json");
        let id = match fs::read(&own) {
            Ok(text) => {
                let own: Own = serde_json::from_slice(&text)
                    .map_err(|error| format!("{} cannot be read: {error}", own.display()))?;
                if own.version != VERSION || !is_id(&own.id) {
                    return Err(format!("{} is of another version of Molt", folder.display()));
                }
                own.id
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let id = files::random_id()?;
                let text = serde_json::to_vec(&Own { version: VERSION, id: id.clone() }).unwrap_or_default();
                files::write(&own, &text)?;
                id
            }
            Err(error) => return Err(fault("read gateway.json in", error)),
        };
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&sandboxes).map_err(|error| fault("list", error))? {
            let path = entry.map_err(|error| fault("list", error))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read(&path).map_err(|error| fault("read", error))?;
            let kept: Kept =
                serde_json::from_slice(&text).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
            if kept.version != VERSION || path.file_stem().is_none_or(|stem| stem != kept.name.as_str()) {
                return Err(format!("{} is not what it should be", path.display()));
            }
            all.insert(kept.name.clone(), Entry::new(kept));
        }
        Ok(Self { folder: folder.to_owned(), id, all: Mutex::new(all), _lock: lock })
    }

    /// Names this store.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    fn entry<T>(&self, name: &str, with: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).get_mut(name).map(with)
    }

    /// Makes room for a sandbox that proved its name.
    pub(super) fn welcome(&self, name: &str) -> Result<(), Problem> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(name) {
            check_name(name).map_err(|why| Problem::new(Code::Invalid, why))?;
            if all.len() >= SANDBOXES {
                return Err(Problem::new(Code::NoSpace, format!("this gateway serves {SANDBOXES} sandboxes at most")));
            }
            all.insert(name.to_owned(), Entry::new(Kept::new(name)));
        }
        Ok(())
    }

    /// Notes that a sandbox was heard of.
    pub(super) fn seen(&self, name: &str) {
        self.entry(name, |entry| Arc::make_mut(&mut entry.kept).seen = Some(log::now()));
    }

    /// Changes a record: on disk first.
    async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        change: impl FnOnce(&mut Kept) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let (store, name) = (Arc::clone(self), name.to_owned());
        // Whoever asked may hang up at any moment: what has begun to be written is written, and then remembered.
        let changed = tokio::spawn(async move { store.changed(&name, change).await });
        changed.await.unwrap_or_else(|_| Err(Problem::new(Code::Internal, "the writer ended without a result")))
    }

    async fn changed<T>(&self, name: &str, change: impl FnOnce(&mut Kept) -> Result<T, Problem>) -> Result<T, Problem> {
        let missing = || Problem::new(Code::NotFound, format!("no sandbox {name} has ever called this gateway"));
        let turn = self.entry(name, |entry| Arc::clone(&entry.turn)).ok_or_else(missing)?;
        let _turn = turn.lock().await;
        let mut kept = self.entry(name, |entry| Kept::clone(&entry.kept)).ok_or_else(missing)?;
        let result = change(&mut kept)?;
        let path = self.folder.join("sandboxes").join(format!("{name}.json"));
        let (text, path) = (serde_json::to_vec(&kept).unwrap_or_default(), path);
        let written = aside::run("gateway store", move || files::write(&path, &text)).await;
        match written {
            Some(Ok(())) => {}
            Some(Err(why)) => return Err(Problem::new(Code::StoreUnusable, why)),
            None => return Err(Problem::new(Code::Internal, "the writer ended without a result")),
        }
        self.entry(name, |entry| {
            kept.seen = entry.kept.seen.clone().max(kept.seen.take());
            entry.kept = Arc::new(kept);
            entry.changes.send_modify(|number| *number += 1);
        });
        Ok(result)
    }

    /// A receiver that changes with a record.
    pub(super) fn changes(&self, name: &str) -> Option<watch::Receiver<u64>> {
        self.entry(name, |entry| entry.changes.subscribe())
    }

    /// What is wanted of a sandbox now.
    pub(super) fn desired(&self, name: &str) -> Option<Desired> {
        self.entry(name, |entry| entry.kept.desired(&self.id))
    }

    /// Sets what is wanted; `on`, where given, is the revision that must be the newest.
    pub(super) async fn want(
        self: &Arc<Self>,
        name: &str,
        want: Want,
        by: &str,
        on: Option<u64>,
    ) -> Result<Desired, Problem> {
        want.check().map_err(|why| Problem::new(Code::Invalid, why))?;
        let (by, id) = (by.to_owned(), self.id.clone());
        self.change(name, move |kept| {
            if on.is_some_and(|on| on != kept.revision) {
                let why = format!("revision {} is wanted by now; nothing was changed", kept.revision);
                let mut problem = Problem::new(Code::Superseded, why);
                problem.status = 412;
                return Err(problem);
            }
            kept.revision += 1;
            // Only the newest policy is of use to anybody.
            for old in &mut kept.revisions {
                old.want.policy = None;
            }
            kept.revisions.push(Wanted { revision: kept.revision, want, by, since: log::now() });
            let excess = kept.revisions.len().saturating_sub(REVISIONS);
            kept.revisions.drain(..excess);
            Ok(kept.desired(&id))
        })
        .await
    }

    /// Takes a status document; the updates of that store whose reports are here.
    pub(super) async fn status(
        self: &Arc<Self>,
        name: &str,
        store: &str,
        status: serde_json::Value,
    ) -> Result<(Vec<UpdateId>, u64), Problem> {
        let store = store.to_owned();
        self.change(name, move |kept| {
            kept.of_store(&store);
            kept.status = Some(status);
            kept.seen = Some(log::now());
            let of_it = kept.reports.iter().filter(|report| report.store == store);
            // One that is only staged has an end yet to be told.
            let over = |update: &&UpdateView| update.ended.is_some();
            let updates = of_it.filter_map(|report| report.update.as_ref());
            let reports = updates.filter(over).map(|update| update.id).collect();
            Ok((reports, kept.last_event()))
        })
        .await
    }

    /// Takes events, each once.
    pub(super) async fn happened(
        self: &Arc<Self>,
        name: &str,
        store: &str,
        events: Vec<serde_json::Value>,
    ) -> Result<(), Problem> {
        let store = store.to_owned();
        self.change(name, move |kept| {
            kept.of_store(&store);
            for event in events {
                if number(&event) > kept.last_event() {
                    kept.events.push(event);
                }
            }
            let excess = kept.events.len().saturating_sub(EVENTS);
            kept.events.drain(..excess);
            Ok(())
        })
        .await
    }

    /// Its events, as they came.
    pub(super) fn events(&self, name: &str) -> Option<Vec<serde_json::Value>> {
        self.entry(name, |entry| entry.kept.events.clone())
    }

    /// Takes a report, once.
    pub(super) async fn report(self: &Arc<Self>, name: &str, report: Report) -> Result<(), Problem> {
        self.change(name, move |kept| {
            let key = |report: &Report| match &report.update {
                Some(update) => (report.store.clone(), None, Some(update.id)),
                None => (report.store.clone(), report.gateway.clone().zip(report.revision), None),
            };
            let over = |report: &Report| report.update.as_ref().is_none_or(|update| update.ended.is_some());
            if kept.reports.iter().any(|one| key(one) == key(&report) && (over(one) || !over(&report))) {
                return Ok(());
            }
            kept.reports.retain(|one| key(one) != key(&report));
            kept.reports.push(report);
            let excess = kept.reports.len().saturating_sub(REPORTS);
            kept.reports.drain(..excess);
            let old = kept.reports.len().saturating_sub(EVIDENCE);
            for update in kept.reports.iter_mut().take(old).filter_map(|report| report.update.as_mut()) {
                update.evidence = None;
            }
            Ok(())
        })
        .await
    }

    /// All sandboxes in short.
    pub(super) fn list(&self) -> Vec<SandboxView> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().map(|entry| entry.kept.short(&self.id)).collect()
    }

    /// One sandbox.
    pub(super) fn record(&self, name: &str) -> Option<SandboxRecord> {
        self.entry(name, |entry| {
            let (sandbox, desired) = (entry.kept.short(&self.id), entry.kept.desired(&self.id));
            SandboxRecord { sandbox, desired, status: entry.kept.document() }
        })
    }

    /// Its reports, as they came.
    pub(super) fn reports(&self, name: &str) -> Option<Vec<Report>> {
        self.entry(name, |entry| entry.kept.reports.clone())
    }

    /// One thing that was wanted of it.
    pub(super) fn revision(&self, name: &str, revision: u64) -> Option<RevisionView> {
        self.entry(name, |entry| entry.kept.view(&self.id, revision)).flatten()
    }
}

/// The number of an event.
fn number(event: &serde_json::Value) -> u64 {
    event.get("seq").and_then(serde_json::Value::as_u64).unwrap_or(0)
}

impl Entry {
    fn new(kept: Kept) -> Self {
        Self { kept: Arc::new(kept), changes: watch::Sender::new(0), turn: Arc::default() }
    }
}

impl Kept {
    fn new(name: &str) -> Self {
        Self {
            version: VERSION,
            name: name.to_owned(),
            revision: 0,
            revisions: Vec::new(),
            store: None,
            status: None,
            seen: None,
            reports: Vec::new(),
            events: Vec::new(),
        }
    }

    /// What it says is of this store from now on; another one's events have other numbers.
    fn of_store(&mut self, store: &str) {
        if self.store.as_deref() != Some(store) {
            self.store = Some(store.to_owned());
            self.events.clear();
        }
    }

    fn last_event(&self) -> u64 {
        self.events.last().map_or(0, number)
    }

    /// The status, where it is understood.
    fn document(&self) -> Option<Document> {
        serde_json::from_value(self.status.clone()?).ok()
    }

    fn desired(&self, gateway: &str) -> Desired {
        let want = self.revisions.last().map(|wanted| wanted.want.clone());
        Desired { api_version: API_VERSION.to_owned(), gateway: gateway.to_owned(), revision: self.revision, want }
    }

    fn short(&self, gateway: &str) -> SandboxView {
        let document = self.document();
        let status = document.as_ref().map(|document| &document.status);
        let runs = status.and_then(|status| status.trial.as_ref().or(status.confirmed.as_ref()));
        SandboxView {
            name: self.name.clone(),
            revision: self.revision,
            stage: self.view(gateway, self.revision).map(|view| view.stage),
            image: runs.and_then(|generation| generation.image.clone()),
            ready: status.is_some_and(|status| status.workload.ready),
            phase: status.map(|status| status.phase),
            seen: self.seen.clone(),
        }
    }

    fn view(&self, gateway: &str, revision: u64) -> Option<RevisionView> {
        let wanted = self.revisions.iter().find(|wanted| wanted.revision == revision)?;
        let of_it = |report: &&Report| report.gateway.as_deref() == Some(gateway) && report.revision == Some(revision);
        let settled = self.reports.iter().find(|report| of_it(report) && report.settled);
        let report = settled.or_else(|| self.reports.iter().rev().find(of_it));
        let document = self.document();
        let status = document.as_ref().map(|document| &document.status);
        // For people alone; the end is told by a report.
        let mark = format!("/{} revision {revision}", gateway.get(..8).unwrap_or_default());
        let under_way = status.and_then(|status| status.update.as_ref()).filter(|update| update.by.ends_with(&mark));
        let stage = match (settled, under_way, report) {
            (Some(_), ..) => Stage::Done,
            (None, Some(_), _) => Stage::UnderWay,
            (None, None, _) if revision < self.revision => Stage::Superseded,
            (None, None, Some(_)) => Stage::Retrying,
            (None, None, None) => Stage::Waiting,
        };
        Some(RevisionView {
            revision,
            want: wanted.want.clone(),
            by: wanted.by.clone(),
            since: wanted.since.clone(),
            stage,
            phase: under_way.and(status).map(|status| status.phase),
            message: under_way.map(|update| update.message.clone()).unwrap_or_default(),
            report: report.cloned(),
            seen: self.seen.clone(),
        })
    }
}
