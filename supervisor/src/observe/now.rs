//! What is true this very moment, for those who must not wait for the next snapshot: none is made in the gap.
//!
//! In: phase and readiness, after each event. Out: the same, at any time. Must not: hold a lock: the gap must not wait for a
//! reader.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use molt_core::wire::{Document, PhaseName};

/// Shared by the dispatcher, which writes, and everyone, who reads.
#[derive(Debug, Clone)]
pub(crate) struct Now {
    phase: Arc<AtomicU8>,
    ready: Arc<AtomicBool>,
}

impl Now {
    /// Nothing runs yet.
    pub(crate) fn new() -> Self {
        Self { phase: Arc::new(AtomicU8::new(PhaseName::Idle as u8)), ready: Arc::default() }
    }

    /// Says what is.
    pub(crate) fn set(&self, phase: PhaseName, ready: bool) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether the workload is ready: not from the first signal to it until another one is.
    pub(crate) fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Where the machine is.
    pub(crate) fn phase(&self) -> PhaseName {
        let number = usize::from(self.phase.load(Ordering::Relaxed));
        PhaseName::ALL.get(number).copied().unwrap_or(PhaseName::Idle)
    }

    /// A snapshot, put right where it is behind.
    pub(crate) fn correct(&self, document: &mut Document) {
        let (phase, ready) = (self.phase(), self.ready());
        document.status.phase = phase;
        document.status.workload.ready = ready;
        for condition in &mut document.status.conditions {
            if condition.r#type == "Ready" && (condition.status == "True") != ready {
                let (status, reason) = if ready { ("True", "Ready") } else { ("False", "NotReady") };
                (condition.status, condition.reason) = (status.to_owned(), reason.to_owned());
                condition.last_transition_time = super::log::now();
            }
        }
    }
}
