//! The snapshot that everyone else reads.
//!
//! In: the machine's state. Out: a [`View`], replaced when it changes. Must not: be made in the gap.

use std::{collections::HashMap, sync::Arc};

use molt_core::{
    code::Code,
    ids::{Generation, ImageRef},
    launch::SeccompProfile,
    machine::{Attempt, Back, Phase, State},
    wire::{
        API_VERSION, BadView, Condition, Document, GenerationView, HoldView, Metadata, Outcome, PhaseName, Status,
        UpdateView, WorkloadView,
    },
};

use super::Dispatcher;
use crate::{clock, command::View};

/// What is said while the slot in memory is another one than that on disk.
const BEHIND: &str =
    "the journal could not be written; it is tried again with whatever happens next, and no trial begins before it is";

/// Facts of this start that conditions speak of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// Why generations or state would not survive the container; empty when they do.
    pub(crate) not_durable: Vec<String>,
    /// The journal was damaged, and what was done about it.
    pub(crate) journal_reset: Option<String>,
    /// The spec on disk, or a part of it, is not what is in force: a reason, and a message.
    pub(crate) spec_ignored: Option<(&'static str, String)>,
}

/// What conditions looked like last.
#[derive(Debug)]
pub(super) struct Board {
    facts: Facts,
    since: HashMap<&'static str, (String, String)>,
    revision: u64,
    last: Option<Key>,
    /// The spec, as it was read last.
    shown: Option<serde_json::Value>,
    /// The image that it names.
    named: Option<ImageRef>,
}

/// What a snapshot is made from, cheap to compare.
#[derive(Debug, PartialEq, Clone)]
struct Key {
    state: State,
    said: Option<String>,
    updates: usize,
    hold: Option<HoldView>,
    read: u64,
    spec_ignored: Option<(&'static str, String)>,
    gateway: Option<Result<(), String>>,
}

impl Board {
    pub(super) fn new(facts: Facts, named: Option<ImageRef>) -> Self {
        Self { facts, since: HashMap::new(), revision: 1, last: None, shown: None, named }
    }

    /// What of the spec on disk is not in force, and why.
    pub(super) fn ignore(&mut self, why: Option<(&'static str, String)>) {
        self.facts.spec_ignored = why;
    }

    /// What the spec asks for now: its image and policy. The rest of the document is what is in force.
    pub(super) fn show(&mut self, spec: &serde_json::Value, named: Option<ImageRef>) {
        self.shown = Some(spec.clone());
        self.named = named;
    }

    fn condition(&mut self, name: &'static str, yes: bool, reason: &str, message: String) -> Condition {
        let status = if yes { "True" } else { "False" };
        let entry = self.since.entry(name).or_insert_with(|| (String::new(), String::new()));
        if entry.0 != status {
            *entry = (status.to_owned(), crate::observe::log::now());
        }
        Condition {
            r#type: name.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: entry.1.clone(),
            observed_generation: self.revision,
        }
    }
}

/// The snapshot before the first event.
pub(crate) fn empty_view(name: &str, spec: serde_json::Value) -> Arc<View> {
    let status = Status {
        observed_generation: 1,
        phase: PhaseName::Idle,
        update: None,
        conditions: Vec::new(),
        confirmed: None,
        trial: None,
        previous: None,
        staged: None,
        bad: Vec::new(),
        last_update: None,
        workload: WorkloadView::default(),
        confinement: None,
        policy: Vec::new(),
        seccomp: SeccompProfile::None,
        degraded: Vec::new(),
        hold: None,
        orders: None,
        molt_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let document = Document {
        api_version: API_VERSION.to_owned(),
        kind: "Sandbox".to_owned(),
        metadata: Metadata { name: name.to_owned() },
        spec,
        status,
    };
    Arc::new(View { document, generations: Vec::new(), updates: Vec::new(), revision: String::new(), acted: None })
}

impl Dispatcher {
    /// Between the signal and the exec.
    pub(super) fn in_gap(&self) -> bool {
        matches!(
            self.state.phase,
            Phase::Quiescing | Phase::Swapping | Phase::RollingBack(Back::Stopping | Back::Opening)
        )
    }

    /// Publishes a new snapshot if anything in it changed, except between the signal and the exec.
    pub(super) fn publish(&mut self) {
        if self.in_gap() {
            return;
        }
        let key = Key {
            state: self.state.clone(),
            said: self.serving().and_then(|live| live.said.borrow().status.clone()),
            updates: self.history.len() + self.history.back().map_or(0, |view| usize::try_from(view.id.0).unwrap_or(0)),
            hold: self.hold_view(),
            read: self.remembered.facts.revision,
            spec_ignored: self.board.facts.spec_ignored.clone(),
            gateway: self.gateway.clone(),
        };
        if self.board.last.as_ref() == Some(&key) {
            return;
        }
        self.board.last = Some(key);
        let view = self.snapshot();
        self.view.send_replace(Arc::new(view));
    }

    pub(super) fn serving(&self) -> Option<&crate::workload::run::Live> {
        self.state.serving.and_then(|run| self.live.get(&run.instance))
    }

    fn snapshot(&mut self) -> View {
        let old = self.view.borrow().clone();
        let shown = |generation: Option<Generation>| -> Option<GenerationView> {
            generation.and_then(|generation| self.state.known.get(&generation)).map(molt_core::generation::Record::view)
        };
        let slot = &self.state.slot;
        let trial = slot.trial.as_ref().map(|trial| trial.generation);
        let staged = self.state.attempt.as_ref().filter(|_| self.state.phase == Phase::Held).and_then(|a| a.to);
        let bad = slot.bad.iter().map(|bad| BadView {
            digest: bad.digest,
            update: bad.update,
            reason: bad.reason,
            since: clock::text(bad.since_ms),
        });
        let bad: Vec<BadView> = bad.collect();
        let (confirmed, trial, previous, staged) =
            (shown(slot.confirmed), shown(trial), shown(slot.previous), shown(staged));
        let update = self.state.attempt.as_ref().map(|attempt| self.under_way(attempt));
        let live = self.serving();
        let confinement = live.map(|live| live.in_force.report.clone());
        let policy = live.map(|live| live.sections.clone()).unwrap_or_default();
        let seccomp = live.map(|live| live.in_force.confinement.profile).unwrap_or_default();
        let workload = WorkloadView {
            running: live.is_some(),
            ready: self.state.ready,
            generation: self.state.serving.map(|run| run.generation),
            restarts: self.state.restarts.into(),
            message: live.and_then(|live| live.said.borrow().status.clone()),
        };
        let default_identity = live.is_some_and(|live| live.default_identity);
        let as_root = live.is_some_and(|live| live.in_force.report.uid == 0);
        let read_only = live.and_then(|live| live.kept.read_only);
        let mut degraded = confinement.as_ref().map(|report| report.degraded.clone()).unwrap_or_default();
        let conditions = self.conditions(&degraded, default_identity, as_root);
        degraded.extend(self.context.client.degraded().iter().map(|wall| format!("unpacking: {wall}")));
        degraded.extend(read_only.map(str::to_owned));
        let hold = self.hold_view();
        let mut updates: Vec<UpdateView> = self.history.iter().cloned().collect();
        updates.extend(update.clone());
        updates.extend(self.state.queued.as_ref().map(|attempt| self.under_way(attempt)));
        let status = Status {
            observed_generation: self.remembered.facts.revision,
            phase: self.state.phase.name(),
            update,
            conditions,
            confirmed,
            trial,
            previous,
            staged,
            bad,
            last_update: self.history.iter().rev().find(|view| view.kind != "boot").cloned(),
            workload,
            confinement,
            policy,
            seccomp,
            degraded,
            hold,
            orders: self.orders_view(),
            molt_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut document = Document { status, ..old.document.clone() };
        if let Some(shown) = self.board.shown.take() {
            for name in ["image", "policy", "policyFile"] {
                let new = shown.get(name).cloned().unwrap_or_default();
                if let Some(fields) = document.spec.as_object_mut() {
                    fields.insert(name.to_owned(), new);
                }
            }
        }
        View {
            document,
            generations: self.state.known.values().map(molt_core::generation::Record::view).collect(),
            updates,
            revision: self.revision(),
            acted: self.state.slot.revision.clone(),
        }
    }

    fn under_way(&self, attempt: &Attempt) -> UpdateView {
        let waits = self.state.phase == Phase::Held && self.current() == Some(attempt.id);
        UpdateView {
            id: attempt.id,
            kind: attempt.kind.as_str().to_owned(),
            image: attempt.image.clone(),
            from: attempt.from,
            to: attempt.to,
            outcome: (waits && attempt.stage_only).then_some(Outcome::Staged),
            reason: attempt
                .undecided
                .as_ref()
                .map(|_| Code::Unhealthy)
                .or((waits && !attempt.stage_only && self.state.hold).then_some(Code::Held)),
            message: attempt.undecided.clone().unwrap_or_else(|| self.phase_message()),
            downtime_us: attempt.downtime_ns.map(|ns| ns / 1000),
            unready_us: attempt.unready_ns.map(|ns| ns / 1000),
            by: attempt.by.clone(),
            note: attempt.note.clone(),
            started: clock::text(attempt.started_ms),
            ended: None,
            evidence: None,
            event: None,
        }
    }

    /// What runs, where it is not the image that the spec names, as it was read last: an update or a rollback that the spec
    /// has not caught up with, or a spec that nothing came of.
    fn drifted(&self) -> Option<String> {
        let named = self.board.named.as_ref()?;
        let runs = self.state.slot.confirmed.and_then(|confirmed| self.state.known.get(&confirmed))?.image.as_ref()?;
        (runs != named).then(|| format!("the spec names {named}, {runs} is confirmed"))
    }

    fn conditions(&mut self, degraded: &[String], default_identity: bool, as_root: bool) -> Vec<Condition> {
        let state = &self.state;
        let (ready, idle, phase) = (state.ready, state.phase.name() == PhaseName::Idle, state.phase);
        let facts = self.board.facts.clone();
        let mut not_durable = facts.not_durable;
        not_durable.extend(state.behind.then(|| BEHIND.to_owned()));
        let revision = self.remembered.facts.revision;
        let held = self.hold_view();
        let drifted = self.drifted();
        let gateway = self.gateway.clone();
        let board = &mut self.board;
        board.revision = revision;
        let mut all = vec![
            board.condition("Ready", ready, if ready { "Ready" } else { "NotReady" }, String::new()),
            board.condition("Progressing", !idle, if idle { "Idle" } else { "Update" }, phase.name().to_string()),
            board.condition(
                "Durable",
                not_durable.is_empty(),
                if not_durable.is_empty() { "Durable" } else { "NotDurable" },
                not_durable.join("; "),
            ),
            board.condition(
                "Degraded",
                phase == Phase::Degraded,
                if phase == Phase::Degraded { "BothFailed" } else { "Healthy" },
                String::new(),
            ),
            board.condition(
                "Confined",
                degraded.is_empty(),
                if degraded.is_empty() { "FullyEnforced" } else { "PartlyEnforced" },
                degraded.join("; "),
            ),
        ];
        let trial = state.slot.trial.as_ref().map(|trial| format!("generation {} must prove itself", trial.generation));
        let staged = state.attempt.as_ref().filter(|_| phase == Phase::Held).and_then(|attempt| attempt.to);
        let staged = staged.map(|to| format!("generation {to} is ready to be started"));
        let until = held.map(|hold| format!("{} until {}", hold.owner, hold.until));
        for (name, said, yes, no) in [
            ("Trial", trial, "Unproven", "Proven"),
            ("Staged", staged, "Waits", "NothingStaged"),
            ("Held", until, "Held", "NotHeld"),
            ("Drifted", drifted, "OtherImage", "AsTheSpec"),
        ] {
            all.push(board.condition(
                name,
                said.is_some(),
                if said.is_some() { yes } else { no },
                said.unwrap_or_default(),
            ));
        }
        if default_identity {
            let message =
                "no user is named by policy, spec or image, and the image has no user `sandbox`: it runs as 65532";
            all.push(board.condition("DefaultIdentity", true, "NobodyNamed", message.to_owned()));
        }
        if as_root {
            let message = "the workload is user 0 (workload.allowRoot), without a capability";
            all.push(board.condition("RunsAsRoot", true, "AllowRoot", message.to_owned()));
        }
        if let Some((confirmed, why)) = &state.fallback {
            let runs = state.serving.map_or("nothing".to_owned(), |run| format!("generation {}", run.generation));
            let message = format!(
                "{why}; {runs} runs in its place. `molt rollback --to {confirmed}` tries it again, `molt update` another"
            );
            all.push(board.condition("Fallback", true, "ConfirmedCannotRun", message));
        }
        if let Some((reason, message)) = facts.spec_ignored {
            all.push(board.condition("SpecIgnored", true, reason, message));
        }
        if let Some(reached) = gateway {
            let (reason, message) = reached.map_or_else(|why| ("Away", why), |()| ("Reached", String::new()));
            all.push(board.condition("Gateway", reason == "Reached", reason, message));
        }
        if let Some(message) = facts.journal_reset {
            all.push(board.condition("JournalReset", true, "JournalUnreadable", message));
        }
        all
    }

    /// What is being done, in words.
    pub(super) fn phase_message(&self) -> String {
        let attempt = self.state.attempt.as_ref();
        let image = attempt.and_then(|attempt| attempt.image.as_ref()).map(ToString::to_string).unwrap_or_default();
        let to = attempt.and_then(|attempt| attempt.to).map(|to| format!("generation {to}")).unwrap_or_default();
        match self.state.phase.name() {
            PhaseName::Idle => String::new(),
            PhaseName::Resolving => format!("resolving {image}"),
            PhaseName::Planning => format!("planning {image}"),
            PhaseName::Fetching => format!("fetching {image}"),
            PhaseName::Staging => format!("staging {image}"),
            PhaseName::Arming => format!("arming {to}"),
            PhaseName::Held if self.state.hold => format!("{to} is staged; updates are held"),
            PhaseName::Held => format!("{to} is staged; `molt apply` starts it"),
            PhaseName::Quiescing => "stopping the old workload".to_owned(),
            PhaseName::Swapping => format!("starting {to}"),
            PhaseName::Proving => format!("{to} must prove itself; the old one is kept"),
            PhaseName::Confirming => format!("confirming {to}"),
            PhaseName::RollingBack => {
                let why = attempt.and_then(|attempt| attempt.failure.as_ref()).map_or("", |(_, why)| why.as_str());
                format!("rolling back: {why}")
            }
            PhaseName::Degraded => "neither version is healthy; the confirmed one is tried again".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    /// The table in `docs/API.md` is the closed list: every type that is made here stands there with its reasons.
    #[test]
    fn every_condition_stands_in_the_table_of_the_docs() {
        let docs = include_str!("../../../docs/API.md");
        let table = docs.split("## Conditions").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
        let code = include_str!("view.rs").split("mod tests {").next().unwrap();
        let named: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        assert!(named.len() >= 13, "{named:?}");
        let word = |text: &'static str| -> Vec<&'static str> {
            let quoted = text.split('"').skip(1).step_by(2);
            quoted
                .filter(|word| word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphanumeric))
                .collect()
        };
        let conditions = code.split("fn conditions(").nth(1).unwrap().split("\n    }\n").next().unwrap();
        let said: std::collections::BTreeSet<&str> = word(conditions).into_iter().collect();
        for one in said {
            assert!(table.contains(&format!("`{one}`")), "{one} is not in the table of docs/API.md");
        }
        for name in named {
            assert!(conditions.contains(&format!("\"{name}\"")), "{name} is in docs/API.md and never made");
        }
    }
}
