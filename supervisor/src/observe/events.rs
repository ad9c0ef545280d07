//! The event log: numbered events, the last 1024 kept, any number of followers.
//!
//! In: events from the dispatcher and the effects; at a start, the ends of updates that the history has. Out: events after a
//! number, now or when they come. Must not: block or grow: a slow follower loses the oldest events and sees the gap in the
//! numbers; give out a number twice (the caller says where to begin).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use molt_core::{
    ids::UpdateId,
    wire::{Event, UpdateView, What},
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
    events: VecDeque<Kept>,
    last: u64,
    meter: Meter,
}

/// An event as JSON text: it is written once, however many follow.
#[derive(Debug, Clone)]
struct Kept {
    seq: u64,
    text: Arc<[u8]>,
}

impl Kept {
    fn new(event: &Event) -> Self {
        Self { seq: event.seq, text: serde_json::to_vec(event).unwrap_or_default().into() }
    }
}

impl EventLog {
    /// A log whose first new event has number `after + 1`, and which tells of `past` to those who have not heard: ends of
    /// updates, with the numbers they had.
    pub(crate) fn new<'a>(after: u64, past: impl IntoIterator<Item = &'a UpdateView>) -> Self {
        let told = past.into_iter().filter_map(|view| {
            let (seq, time) = (view.event.filter(|seq| *seq <= after)?, view.ended.clone().unwrap_or_default());
            let what = What::Outcome { result: Box::new(view.clone()) };
            Some(Kept::new(&Event { seq, time, update: Some(view.id), what }))
        });
        let mut events: VecDeque<Kept> = told.collect();
        events.make_contiguous().sort_by_key(|kept| kept.seq);
        Self {
            inner: Arc::new(Mutex::new(Ring { events, last: after, meter: Meter::new() })),
            last: Arc::new(watch::Sender::new(after)),
            hushed: Arc::default(),
        }
    }

    /// Adds an event and wakes the followers.
    pub(crate) fn publish(&self, update: Option<UpdateId>, what: What) {
        self.number(update, |_| what);
    }

    /// As [`EventLog::publish`], for what wants to know its number.
    pub(crate) fn number(&self, update: Option<UpdateId>, what: impl FnOnce(u64) -> What) {
        let mut ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        let seq = ring.last;
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        let event = Event { seq, time: crate::observe::log::now(), update, what: what(seq) };
        ring.meter.see(&event, Instant::now());
        ring.events.push_back(Kept::new(&event));
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

    /// The kept events with numbers above `after`: number and JSON text.
    pub(crate) fn after(&self, after: u64) -> Vec<(u64, Arc<[u8]>)> {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let from = ring.events.partition_point(|kept| kept.seq <= after);
        ring.events.range(from..).map(|kept| (kept.seq, Arc::clone(&kept.text))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_before_a_start_is_told_with_its_number_and_numbers_go_on_above() {
        let ended = |id: u64, event| UpdateView { event, ..crate::api::fake::record(id, None) };
        let past = [ended(3, Some(40)), ended(4, None), ended(5, Some(70))];
        let log = EventLog::new(1000, &past);
        log.publish(None, What::Note { message: "molt starts".to_owned() });
        let numbers = |after| log.after(after).into_iter().map(|(seq, _)| seq).collect::<Vec<_>>();
        assert_eq!((numbers(0), numbers(40), numbers(70)), (vec![40, 70, 1001], vec![70, 1001], vec![1001]));
        assert!(log.after(1001).is_empty() && log.last() == 1001);
    }
}
