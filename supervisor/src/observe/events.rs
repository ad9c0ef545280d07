//! The event log: numbered events, the last 1024 kept, any number of followers.
//!
//! In: events from the dispatcher and the effects. Out: events after a sequence number, now or when they come. Must not:
//! block or grow: a slow follower loses the oldest events and sees the gap in the numbers.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use molt_core::{
    ids::UpdateId,
    wire::{Event, What},
};
use tokio::sync::watch;

use super::metrics::Meter;
use crate::{command::View, timer::Instant};

const KEPT: usize = 1024;

/// Shared by everyone; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct EventLog {
    inner: Arc<Mutex<Ring>>,
    last: Arc<watch::Sender<u64>>,
    hushed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Event>,
    last: u64,
    meter: Meter,
}

impl EventLog {
    /// An empty log whose first event has number `after + 1`.
    pub(crate) fn new(after: u64) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Ring { events: VecDeque::new(), last: after, meter: Meter::new() })),
            last: Arc::new(watch::Sender::new(after)),
            hushed: Arc::default(),
        }
    }

    /// Adds an event and wakes the followers.
    pub(crate) fn publish(&self, update: Option<UpdateId>, what: What) {
        let mut ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        let seq = ring.last;
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        let event = Event { seq, time: crate::observe::log::now(), update, what };
        ring.meter.see(&event, Instant::now());
        ring.events.push_back(event);
        drop(ring);
        if !self.hushed.load(Ordering::Relaxed) {
            self.last.send_replace(seq);
        }
    }

    /// Keeps events without waking anyone: in the gap, whoever listens would take the processor from the new workload.
    pub(crate) fn hush(&self) {
        self.hushed.store(true, Ordering::Relaxed);
    }

    /// Ends that, and wakes the followers for what they missed.
    pub(crate) fn speak(&self) {
        if self.hushed.swap(false, Ordering::Relaxed) {
            let last = self.inner.lock().unwrap_or_else(PoisonError::into_inner).last;
            self.last.send_replace(last);
        }
    }

    /// Number of the newest event.
    pub(crate) fn last(&self) -> u64 {
        *self.last.borrow()
    }

    /// The kept events with numbers above `after`.
    pub(crate) fn after(&self, after: u64) -> Vec<Event> {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        ring.events.iter().filter(|event| event.seq > after).cloned().collect()
    }

    /// What they add up to, with gauges from `view`, in OpenMetrics text.
    pub(crate) fn metrics(&self, view: &View) -> String {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).meter.text(view)
    }

    /// A receiver that changes with each event.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}
