//! The end of an attempt: what was seen of it, what is told of it, and what of the store goes with it.
//!
//! In: how the machine ended an attempt. Out: its record, in the events, the history and the snapshot. Must not: block, or
//! remove what somebody could still go back to.

use std::sync::Arc;

use molt_core::{
    gc,
    ids::{Generation, UpdateId},
    machine::{Ended, Event},
    wire::{AuditView, Evidence, Outcome, UpdateView, What},
};

use super::Dispatcher;
use crate::{
    aside, clock,
    effects::{
        bounded, collect,
        difference::{self, Side},
    },
    planted,
    store::audit,
};

/// Lines and bytes of output kept as evidence.
const EVIDENCE: (usize, usize) = (200, 32 << 10);
/// Updates shown by `molt history`.
const HISTORY: usize = 64;

impl Dispatcher {
    pub(super) fn end(&mut self, ended: Ended) {
        planted::leak();
        let Ended { attempt, outcome, reason, message } = ended;
        let message = bounded(message);
        self.work.remove(&attempt.id);
        let failed = matches!(outcome, Outcome::RolledBack | Outcome::Degraded | Outcome::Aborted);
        let seen = |to| self.evidence(to, attempt.from, attempt.exit_status);
        let evidence = attempt.to.filter(|_| failed).map(seen);
        // Before the gate there is mostly nothing to be seen.
        let evidence =
            evidence.filter(|evidence| Evidence { difference: None, ..evidence.clone() } != Evidence::default());
        let micros = |ns: Option<u64>| ns.map(|ns| ns / 1000);
        let mut view = UpdateView {
            id: attempt.id,
            kind: attempt.kind.as_str().to_owned(),
            image: attempt.image,
            from: attempt.from,
            to: attempt.to,
            outcome: Some(outcome),
            reason,
            message,
            downtime_us: micros(attempt.downtime_ns),
            unready_us: micros(attempt.unready_ns),
            by: attempt.by,
            note: attempt.note,
            started: clock::text(attempt.started_ms),
            ended: Some(crate::observe::log::now()),
            evidence,
            event: None,
        };
        tracing::info!(id = %view.id, outcome = ?outcome, downtime_us = view.downtime_us, "{}: {}", view.kind, view.message);
        // Its number goes with it into the history: a start tells of it again, to those who were not there.
        self.context.events.number(Some(view.id), |event| {
            view.event = Some(event);
            What::Outcome { result: Box::new(view.clone()) }
        });
        self.context.audit.note(&view);
        self.note_policy(&view);
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(view);
        let long_ago = self.history.len().saturating_sub(HISTORY / 2);
        let long_ago: Vec<UpdateId> = self.history.iter().take(long_ago).map(|view| view.id).collect();
        self.forget_ended(&long_ago);
    }

    /// Another policy in force is a line of its own.
    fn note_policy(&self, view: &UpdateView) {
        if view.outcome != Some(Outcome::Confirmed) {
            return;
        }
        let policy = |generation: Option<Generation>| Some(self.state.known.get(&generation?)?.policy_digest);
        if let Some((from, to)) = policy(view.from).zip(policy(view.to)).filter(|(from, to)| from != to) {
            let detail = format!("{from} -> {to}");
            let line = audit::line("policy", &view.by, &view.kind);
            self.context.audit.note(&AuditView { update: Some(view.id), detail: Some(detail), ..line });
        }
    }

    fn evidence(&self, generation: Generation, from: Option<Generation>, exit_status: Option<i32>) -> Evidence {
        let side = |number: Generation| Side::of(&self.context, self.state.known.get(&number));
        let sides = from.filter(|from| *from != generation).and_then(|from| Some((side(from)?, side(generation)?)));
        let difference = sides.and_then(|(from, to)| difference::between(&self.context, &from, &to).ok());
        let of_it = self.transcripts.iter().filter(|(_, transcript)| transcript.generation == generation);
        let probes = of_it.max_by_key(|(instance, _)| **instance).map(|(_, transcript)| transcript.lines());
        Evidence {
            output: self.context.output.tail(generation, EVIDENCE.0, EVIDENCE.1),
            probes: probes.unwrap_or_default(),
            exit_status,
            difference,
        }
    }

    /// Cleans up in the background. What is about to go is forgotten at once, so that nobody goes back to it meanwhile.
    pub(super) fn collect(&mut self, spent: Option<Generation>) -> Option<Event> {
        let keep_instances: Vec<u64> = self.live.keys().copied().collect();
        self.transcripts.retain(|instance, _| keep_instances.contains(instance));
        self.roots.retain(|_, root| root.strong_count() > 0);
        let store = self.context.store.clone()?;
        // Something is being fetched: the next confirmed update cleans up after both.
        let alone = Arc::clone(&self.context.tidy).try_write_owned().ok()?;
        let (known, removed) = self.removable(spent);
        let going = removed.clone();
        aside::start("collect", move || {
            if let Err(fault) = collect::collect(&store, &known, &going) {
                tracing::warn!("failed to clean up the store: {}", fault.message);
            }
            drop(alone);
        });
        Some(Event::Collected { removed })
    }

    /// What is known, and what of it may go.
    pub(super) fn removable(
        &self,
        spent: Option<Generation>,
    ) -> (std::collections::BTreeMap<Generation, molt_core::generation::Record>, Vec<Generation>) {
        let keep = usize::try_from(self.context.spec.update.keep).unwrap_or(usize::MAX);
        let removed = gc::going(&self.state, spent, keep);
        (self.state.known.clone(), removed)
    }
}
