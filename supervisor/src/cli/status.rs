//! `molt status` for people: one screen, the most telling first.
//!
//! In: the status document. Out: text. Must not: show a condition that is as it should be.

use std::fmt::Write as _;

use molt_core::{
    ids::Generation,
    launch::SeccompProfile,
    wire::{Condition, Document, GenerationView, Status, UpdateView},
};

use super::{show, text};

/// The whole screen.
pub(crate) fn status(document: &Document) -> String {
    let status = &document.status;
    let running = running(status);
    let named = |view: &GenerationView| format!("generation {}  {}", view.generation, show::image(view.image.as_ref()));
    let mut shown = text::pairs([
        ("Name", Some(text::clean(&document.metadata.name))),
        ("Phase", Some(status.phase.to_string())),
        ("Update", status.update.as_ref().map(under_way)),
        ("Workload", Some(workload(status))),
        ("Running", running.map(|view| named(view) + trial_mark(status, view))),
        ("Digest", running.and_then(|view| view.digest).map(|digest| digest.to_string())),
        ("Since", running.map(|view| text::time(&view.since))),
        ("Previous", status.previous.as_ref().map(named)),
        ("Staged", status.staged.as_ref().map(|view| named(view) + "  (molt apply starts it)")),
        ("Bad", bad(status)),
        (
            "Held",
            status.hold.as_ref().map(|hold| {
                let why = hold.reason.as_ref().map(|why| format!(": {}", text::line(why, 120))).unwrap_or_default();
                format!("by {} until {}{why}", text::line(&hold.owner, 64), text::time(&hold.until))
            }),
        ),
        ("Floor", floor(status)),
        ("Seccomp", status.workload.running.then(|| seccomp(status.seccomp).to_owned())),
        ("Restarts", (status.workload.restarts > 0).then(|| status.workload.restarts.to_string())),
        ("Last update", status.last_update.as_ref().map(last)),
        ("Molt", Some(text::clean(&status.molt_version))),
    ]);
    let wrong: Vec<&Condition> = status.conditions.iter().filter(|condition| !is_fine(condition)).collect();
    if !wrong.is_empty() {
        shown.push('\n');
        shown.push_str(&text::table(
            ["CONDITION", "STATUS", "REASON", "MESSAGE"],
            wrong.into_iter().map(|one| {
                [
                    text::clean(&one.r#type),
                    text::clean(&one.status),
                    text::clean(&one.reason),
                    text::line(&one.message, 200),
                ]
            }),
        ));
    }
    if !status.policy.is_empty() {
        shown.push('\n');
        shown.push_str(&text::table(
            ["POLICY", "HERE", "WHY"],
            status
                .policy
                .iter()
                .map(|one| [text::clean(&one.section), text::clean(&one.verdict), text::line(&one.text, 200)]),
        ));
    }
    for line in &status.degraded {
        let _ = writeln!(shown, "degraded: {}", text::line(line, 300));
    }
    shown
}

/// What runs, in a line.
pub(super) fn runs(status: &Status) -> String {
    match running(status).filter(|_| status.workload.running) {
        Some(view) => {
            format!("generation {} runs {}, {}", view.generation, show::image(view.image.as_ref()), workload(status))
        }
        None => format!("the workload does not run (phase {})", status.phase),
    }
}

/// Said where there is one.
fn floor(status: &Status) -> Option<String> {
    let floor = status.orders.as_ref().map(|orders| orders.floor).filter(|floor| *floor > Generation(0))?;
    Some(format!("generation {floor}: nobody goes below it by hand"))
}

fn seccomp(profile: SeccompProfile) -> &'static str {
    match profile {
        SeccompProfile::None => "none",
        SeccompProfile::Floor => "floor",
        SeccompProfile::Strict => "strict",
    }
}

/// The generation the workload runs from; the confirmed one where nothing runs.
fn running(status: &Status) -> Option<&GenerationView> {
    let is = |number: Generation| {
        [&status.trial, &status.confirmed, &status.previous]
            .into_iter()
            .flatten()
            .find(move |one| one.generation == number)
    };
    status.workload.generation.and_then(is).or(status.confirmed.as_ref())
}

fn trial_mark(status: &Status, running: &GenerationView) -> &'static str {
    let is_trial = status.trial.as_ref().is_some_and(|trial| trial.generation == running.generation);
    if is_trial { "  (on trial)" } else { "" }
}

fn workload(status: &Status) -> String {
    let word = match (status.workload.running, status.workload.ready) {
        (true, true) => "ready",
        (true, false) => "running, not ready",
        (false, _) => "not running",
    };
    match &status.workload.message {
        Some(message) if !message.is_empty() => format!("{word}: {}", text::line(message, 120)),
        _ => word.to_owned(),
    }
}

fn under_way(view: &UpdateView) -> String {
    let what = view.image.as_ref().map(|one| format!(" to {}", show::image(Some(one)))).unwrap_or_default();
    format!("{} {}{what}, since {}", view.id, text::clean(&view.kind), text::time(&view.started))
}

fn last(view: &UpdateView) -> String {
    let ended = text::time(view.ended.as_deref().unwrap_or(&view.started));
    format!("{} {}, {ended}", view.id, show::ending(view))
}

fn bad(status: &Status) -> Option<String> {
    let first = status.bad.last()?;
    let more = match status.bad.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    Some(format!("sha256:{}… ({}, {}){more}: molt bad list", first.digest.short(), first.reason, first.update))
}

/// Whether a condition is as it should be. One that moves during every update is no news either.
fn is_fine(condition: &Condition) -> bool {
    match condition.r#type.as_str() {
        "Progressing" | "Trial" | "Staged" | "Held" => true,
        "Degraded" | "DefaultIdentity" | "Drifted" | "Fallback" | "JournalReset" | "RunsAsRoot" => {
            condition.status == "False"
        }
        _ => condition.status == "True",
    }
}
