//! Which pairs of phase and event were seen, and which cannot be.
//!
//! In: pairs. Out: the pairs missing, and the ones that were called impossible and are not. Must not: call a pair
//! impossible without a reason.

use std::collections::BTreeMap;

use molt_core::{
    machine::{Back, Event, Phase},
    wire::Outcome,
};

/// Events by kind.
pub const KINDS: [&str; 30] = [
    "Boot",
    "Intent",
    "Reread",
    "Cancel",
    "Apply",
    "Hold",
    "Release",
    "Resolved",
    "Planned",
    "Fetched",
    "Staged",
    "Failed",
    "Armed",
    "NotArmed",
    "PreStopDone",
    "Recorded",
    "NotRecorded",
    "Exited",
    "Gone",
    "NotGone",
    "Execed",
    "NotExeced",
    "Ready",
    "Proven",
    "Unhealthy",
    "Confirm",
    "Reject",
    "Waited",
    "Terminate",
    "Collected",
];

fn kind(event: &Event) -> &'static str {
    match event {
        Event::Boot(_) => "Boot",
        Event::Intent { .. } => "Intent",
        Event::Reread { .. } => "Reread",
        Event::Cancel => "Cancel",
        Event::Apply => "Apply",
        Event::Hold => "Hold",
        Event::Release => "Release",
        Event::Resolved { .. } => "Resolved",
        Event::Planned { .. } => "Planned",
        Event::Fetched { .. } => "Fetched",
        Event::Staged { .. } => "Staged",
        Event::Failed { .. } => "Failed",
        Event::Armed { .. } => "Armed",
        Event::NotArmed { .. } => "NotArmed",
        Event::PreStopDone { .. } => "PreStopDone",
        Event::Recorded => "Recorded",
        Event::NotRecorded { .. } => "NotRecorded",
        Event::Exited { .. } => "Exited",
        Event::Gone { .. } => "Gone",
        Event::NotGone { .. } => "NotGone",
        Event::Execed { .. } => "Execed",
        Event::NotExeced { .. } => "NotExeced",
        Event::Ready { .. } => "Ready",
        Event::Proven { .. } => "Proven",
        Event::Unhealthy { .. } => "Unhealthy",
        Event::Confirm => "Confirm",
        Event::Reject => "Reject",
        Event::Waited => "Waited",
        Event::Terminate { .. } => "Terminate",
        Event::Collected { .. } => "Collected",
    }
}

/// Pairs, and how often each was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    seen: BTreeMap<(usize, &'static str), u64>,
    /// How updates ended.
    pub ends: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// `event` came in `phase`.
    pub fn saw(&mut self, phase: Phase, event: &Event) {
        let place = Phase::ALL.iter().position(|one| *one == phase).unwrap_or(usize::MAX);
        *self.seen.entry((place, kind(event))).or_default() += 1;
    }

    /// An attempt ended.
    pub fn ended(&mut self, outcome: Outcome) {
        let name = match outcome {
            Outcome::Confirmed => "confirmed",
            Outcome::RolledBack => "rolledBack",
            Outcome::Aborted => "aborted",
            Outcome::Refused => "refused",
            Outcome::Noop => "noop",
            Outcome::Degraded => "degraded",
            Outcome::Staged => "staged",
        };
        *self.ends.entry(name).or_default() += 1;
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        for (pair, count) in &other.seen {
            *self.seen.entry(*pair).or_default() += count;
        }
        for (name, count) in &other.ends {
            *self.ends.entry(name).or_default() += count;
        }
    }

    /// How many pairs were seen.
    pub fn pairs(&self) -> usize {
        self.seen.len()
    }

    /// Events in all.
    pub fn events(&self) -> u64 {
        self.seen.values().sum()
    }

    /// Pairs neither seen nor impossible, and pairs both: each with the phase's name.
    pub fn wrong(&self) -> (Vec<String>, Vec<String>) {
        let (mut missing, mut possible) = (Vec::new(), Vec::new());
        for (place, phase) in Phase::ALL.into_iter().enumerate() {
            for name in KINDS {
                let count = self.seen.get(&(place, name)).copied().unwrap_or(0);
                match (count, impossible(phase, name)) {
                    (0, None) => missing.push(format!("{phase:?} x {name}")),
                    (1.., Some(why)) => possible.push(format!("{phase:?} x {name} ({count} times; {why})")),
                    _ => {}
                }
            }
        }
        (missing, possible)
    }

    /// The pairs seen least.
    pub fn rarest(&self, count: usize) -> Vec<String> {
        let mut pairs: Vec<_> = self.seen.iter().map(|((place, name), seen)| (*seen, *place, *name)).collect();
        pairs.sort_unstable();
        let text = |(seen, place, name): (u64, usize, &str)| format!("{:?} x {name}: {seen}", Phase::ALL.get(place));
        pairs.into_iter().take(count).map(text).collect()
    }
}

#[expect(clippy::match_same_arms, reason = "the order of the rules is what they say")]
/// Why `event` cannot come in `phase`; `None` where it can.
pub fn impossible(phase: Phase, event: &str) -> Option<&'static str> {
    let written = matches!(phase, Phase::Recording | Phase::Confirming | Phase::RollingBack(Back::Recording));
    let early = matches!(event, "Cancel" | "Apply" | "Confirm" | "Reject");
    let armed = matches!(event, "Armed");
    let may_arm = matches!(
        phase,
        Phase::Resolving
            | Phase::Planning
            | Phase::Fetching
            | Phase::Staging
            | Phase::Held
            | Phase::Arming
            | Phase::Proving
            | Phase::AwaitingConfirm
            | Phase::RollingBack(Back::Stopping | Back::Arming)
            | Phase::Degraded
    );
    match (phase, event) {
        (Phase::Exited, _) => Some("the loop has ended"),
        (Phase::Idle, "Boot") => None,
        (_, "Boot") => Some("it is the first event, in a new machine"),
        (_, "Recorded" | "NotRecorded") if written => None,
        _ if written => Some("the write is answered before anything else is heard"),
        (Phase::Planning, "Planned" | "Failed" | "Recorded" | "NotRecorded") => None,
        (Phase::Planning, _) => Some("the plan is answered before anything else is heard"),
        (_, "Planned") => Some("the plan is answered before anything else is heard"),
        (Phase::Held, "Apply") | (Phase::Proving | Phase::AwaitingConfirm, "Confirm" | "Reject") => None,
        (phase, "Cancel") if phase.before_gate() => None,
        _ if early => Some("the dispatcher says no itself"),
        (
            Phase::Fetching
            | Phase::Staging
            | Phase::Held
            | Phase::PreStop
            | Phase::Quiescing
            | Phase::Swapping
            | Phase::Proving
            | Phase::AwaitingConfirm
            | Phase::RollingBack(_),
            "Collected",
        ) => Some("it answers, in the same turn, the end of an attempt or a request made while there is none"),
        (Phase::PreStop | Phase::Quiescing | Phase::RollingBack(_) | Phase::Stopping, "Waited") => {
            Some("something serves, served until now, or is stopped: no timer runs")
        }
        (Phase::Swapping | Phase::Proving, "Waited") => Some("what was to be tried again by then ended at the gate"),
        (Phase::Quiescing | Phase::RollingBack(Back::Opening | Back::Proving), "Recorded" | "NotRecorded") => {
            Some("nothing is written there")
        }
        _ if armed && !may_arm => Some("the dispatcher hands it on for the run that stands by, and none is on its way"),
        _ => None,
    }
}
