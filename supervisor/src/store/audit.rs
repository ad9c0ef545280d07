//! Who ran what without the confinement.
//!
//! In: commands before they start, and their end. Out: lines of the history, and the last of them for whoever looks. Must
//! not: let one start whose line is not on disk.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use molt_core::{ids::Generation, wire::ExecView};

use super::{Store, history};

/// Commands kept for `molt history`.
const KEPT: usize = 64;

/// The last of them, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Audit(Arc<Mutex<VecDeque<ExecView>>>);

/// A command whose start is written down.
#[derive(Debug)]
pub(crate) struct Entry {
    audit: Audit,
    store: Arc<Store>,
    view: ExecView,
}

impl Audit {
    /// With what earlier starts of Molt left.
    pub(crate) fn resume(store: &Store) -> Self {
        let mut past = history::execs(&store.dir, KEPT);
        for view in past.iter_mut().filter(|view| view.ended.is_none()) {
            view.failure = Some("Molt ended before this was written".to_owned());
        }
        Self(Arc::new(Mutex::new(past)))
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<ExecView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Writes down that `by` is about to run `argv`.
    pub(crate) async fn begin(
        &self,
        store: Arc<Store>,
        generation: Generation,
        argv: Vec<String>,
        by: String,
    ) -> io::Result<Entry> {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner).back().map_or(0, |view| view.exec);
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
        let entry = Entry { audit: self.clone(), store, view };
        match entry.write().await {
            Ok(()) => Ok(entry),
            Err(error) => {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|kept| kept.exec != entry.view.exec);
                Err(error)
            }
        }
    }

    /// Puts one in the place of its earlier self, or at the end.
    fn keep(&self, view: ExecView) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let (store, view) = (Arc::clone(&self.store), self.view.clone());
        let done = crate::aside::run("history", move || history::append(&store.dir, &view)).await;
        done.unwrap_or_else(|| Err(io::Error::other("the writer of the history ended without a result")))
    }
}
