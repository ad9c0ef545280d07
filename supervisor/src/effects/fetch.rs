//! `Fetching`: the layers that are not in the store yet.
//!
//! In: a resolved image. Out: layer names, top first; progress events. Must not: leave anything behind on failure.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use molt_core::{
    code::Code,
    generation::LayerName,
    ids::{Digest, UpdateId},
    wire::What,
};
use molt_oci::{LayerState, Progress, Resolved};

use super::{Context, Fault};
use crate::timer::Instant;

/// Fetches what is missing, and keeps manifest and config.
pub(crate) async fn fetch(context: &Context, id: UpdateId, resolved: &Resolved) -> Result<Vec<LayerName>, Fault> {
    let Some(store) = context.store.as_ref() else {
        return Err(Fault::new(Code::StoreUnusable, "there is no usable store; see condition Durable"));
    };
    let progress = Teller::new(context, Some(id), resolved.layers.len());
    let deadline = context.spec.update.pull_deadline.as_duration();
    // The client ends by itself, so that what it has finished by then is kept.
    let late = crate::timer::sleep(deadline);
    let fetched = Box::pin(context.client.fetch_until(resolved, &store.content, &progress, late)).await;
    let fetched = fetched.map_err(|error| match error {
        molt_oci::Error::Deadline { .. } => {
            let message = format!("the layers were not there after {} s (update.pullDeadline)", deadline.as_secs());
            Fault::new(Code::DeadlineExceeded, message)
        }
        error => error.into(),
    })?;
    // What came from the network goes back to the kernel.
    molt_sys::memory::trim();
    for wall in context.client.degraded() {
        context.events.publish(Some(id), What::Warning { message: format!("unpacking: {wall}") });
    }
    let name = |layer: &molt_oci::LayerId| LayerName { diff_id: layer.diff_id(), folder: layer.to_string() };
    Ok(fetched.layers.iter().rev().map(name).collect())
}

/// Tells about each layer: every change of state, and bytes at most ten times a second.
#[derive(Debug)]
pub(super) struct Teller {
    events: crate::observe::events::EventLog,
    id: Option<UpdateId>,
    layers: usize,
    told: Mutex<Vec<Told>>,
}

/// What was last said of a layer, and when.
type Told = Option<(LayerState, Instant)>;

const EVERY: Duration = Duration::from_millis(100);

impl Teller {
    /// For an image of so many layers.
    pub(super) fn new(context: &Context, id: Option<UpdateId>, layers: usize) -> Self {
        Self { events: context.events.clone(), id, layers, told: Mutex::new(vec![None; layers]) }
    }
}

impl Progress for Teller {
    fn layer(&self, index: usize, digest: &Digest, done: u64, total: u64, state: LayerState) {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = told.get_mut(index) else { return };
        if last.is_some_and(|(before, at)| before == state && now.saturating_duration_since(at) < EVERY && done < total)
        {
            return;
        }
        *last = Some((state, now));
        drop(told);
        let state = match state {
            LayerState::Present => "present",
            LayerState::Fetching => "fetching",
            LayerState::Done => "done",
        };
        let what =
            What::Progress { layer: index, layers: self.layers, digest: *digest, done, total, state: state.to_owned() };
        self.events.publish(self.id, what);
    }

    fn retry(&self, _: &str, after: Duration, error: &str) {
        let then = match after {
            Duration::ZERO => "the next source is asked".to_owned(),
            after => format!("trying again in {:.1} s", after.as_secs_f64()),
        };
        let message = format!("failed to {error}; {then}");
        self.events.publish(self.id, What::Warning { message });
    }
}
