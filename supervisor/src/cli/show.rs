//! Text of single records: an update and its end, a generation, a plan, what was collected.
//!
//! In: wire types. Out: text. Must not: ask anyone anything.

use std::fmt::Write as _;

use molt_core::{
    code::Code,
    ids::{Digest, Generation, ImageRef, UpdateId},
    wire::{
        BadView, Collected, Difference, ExecView, Expected, GenerationView, Outcome, PlanView, UpdateView, undecided,
    },
};

use serde::{Serialize, Serializer};

use super::text;

/// An outcome in a word or two.
pub(crate) fn outcome(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        None => "under way",
        Some(Outcome::Confirmed) => "confirmed",
        Some(Outcome::RolledBack) => "rolled back",
        Some(Outcome::Aborted) => "failed",
        Some(Outcome::Refused) => "refused",
        Some(Outcome::Noop) => "nothing to do",
        Some(Outcome::Staged) => "staged",
        Some(Outcome::Degraded) => "degraded",
    }
}

fn generation(number: Option<Generation>) -> String {
    number.map_or_else(|| "a generation".to_owned(), |number| format!("generation {number}"))
}

/// An image, or the container's own root.
pub(crate) fn image(image: Option<&ImageRef>) -> String {
    image.map_or_else(|| "the container's own root".to_owned(), |image| text::clean(&image.to_string()))
}

fn downtime(view: &UpdateView) -> String {
    view.downtime_us.map(|us| format!(" (downtime {})", text::micros(us))).unwrap_or_default()
}

fn why(view: &UpdateView) -> String {
    view.reason.map(|code| format!(": {}", code.as_str().replace('-', " "))).unwrap_or_default()
}

/// The version that runs on, for an update that did not get as far as touching it.
fn untouched(view: &UpdateView) -> String {
    view.from.map(|from| format!("; generation {from} runs on, untouched")).unwrap_or_default()
}

/// How an update ended, in a line.
pub(crate) fn ending(view: &UpdateView) -> String {
    let to = generation(view.to);
    // A rollback has no image of its own to name.
    let runs = view.image.as_ref().map(|one| format!(" {}", image(Some(one)))).unwrap_or_default();
    let name = outcome(view.outcome);
    match view.outcome {
        None if undecided(view) => format!("undecided{}; {to} runs{runs}{}", why(view), downtime(view)),
        None if view.reason == Some(Code::Held) => {
            format!("held; {to} is ready{runs}, and starts by itself when the hold ends{}", untouched(view))
        }
        None => format!("{} is {name}", view.id),
        Some(Outcome::Confirmed) => format!("{name}: {to} runs{runs}{}", downtime(view)),
        Some(Outcome::Noop) => format!("{name}: {to} runs{runs} already"),
        Some(Outcome::Staged) => format!("{name}: {to} holds{runs}; molt apply starts it"),
        Some(Outcome::RolledBack) => {
            format!("{name}{}; {} is back and healthy{}", why(view), generation(view.from), downtime(view))
        }
        // Nothing failed: somebody wanted something else, or Molt ended.
        Some(Outcome::Aborted) if matches!(view.reason, Some(Code::Superseded | Code::Interrupted)) => {
            format!("given up{}{}", why(view), untouched(view))
        }
        Some(Outcome::Aborted | Outcome::Refused) => format!("{name}{}{}", why(view), untouched(view)),
        Some(Outcome::Degraded) => {
            format!("{name}{}; neither version is healthy, {} is tried again", why(view), generation(view.from))
        }
    }
}

/// What to type next after an update that did not end well; `bad` is the digest that is refused from now on.
pub(crate) fn next(view: &UpdateView, bad: Option<Digest>) -> Vec<String> {
    if undecided(view) {
        let back = generation(view.from);
        return vec!["keep it: molt confirm".to_owned(), format!("go back to {back}: molt reject")];
    }
    let mut hints = Vec::new();
    if view.evidence.is_some() {
        hints.push(format!("what was seen: molt show {} --evidence", view.id));
    }
    if matches!(view.outcome, Some(Outcome::RolledBack | Outcome::Degraded)) {
        hints.push("the workload's output: molt logs".to_owned());
    }
    match (bad, &view.image) {
        (Some(digest), Some(one)) => {
            hints.push(format!("try it all the same: molt update {} --force", image(Some(one))));
            hints.push(format!("forget that it failed: molt bad remove {digest}"));
        }
        (Some(digest), None) => hints.push(format!("forget that it failed: molt bad remove {digest}")),
        (None, _) => {
            let advice = view.reason.filter(|code| *code != Code::Busy).and_then(super::fault::advice);
            hints.extend(advice.map(str::to_owned));
        }
    }
    hints
}

/// What the history tells of.
#[derive(Debug)]
pub(crate) enum Past {
    /// An update, or what is like one.
    Update(Box<UpdateView>),
    /// A command that was run unconfined.
    Exec(ExecView),
}

impl Past {
    /// All of it, oldest first.
    pub(crate) fn merged(updates: Vec<UpdateView>, execs: Vec<ExecView>) -> Vec<Self> {
        let mut all: Vec<Self> = updates.into_iter().map(|view| Self::Update(Box::new(view))).collect();
        all.extend(execs.into_iter().map(Self::Exec));
        // Whole milliseconds, UTC: the order of the text is that of time.
        all.sort_by(|one, other| one.started().cmp(other.started()));
        all
    }

    fn started(&self) -> &str {
        match self {
            Self::Update(view) => &view.started,
            Self::Exec(view) => &view.started,
        }
    }
}

/// As the view itself; `kind` tells which.
impl Serialize for Past {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Update(view) => view.serialize(serializer),
            Self::Exec(view) => view.serialize(serializer),
        }
    }
}

/// `molt history`, newest first.
pub(crate) fn history(past: &[Past]) -> String {
    let rows = past.iter().rev().map(|one| match one {
        Past::Update(view) => change(view),
        Past::Exec(view) => command(view),
    });
    text::table(["ID", "KIND", "FROM -> TO", "IMAGE", "OUTCOME", "DOWNTIME", "WHEN", "BY"], rows)
}

fn change(view: &UpdateView) -> [String; 8] {
    let number = |number: Option<Generation>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    [
        view.id.to_string(),
        text::clean(&view.kind),
        format!("{} -> {}", number(view.from), number(view.to)),
        view.image.as_ref().map_or_else(|| "-".to_owned(), |one| image(Some(one))),
        format!("{}{}", outcome(view.outcome), why(view)),
        view.downtime_us.map_or_else(|| "-".to_owned(), text::micros),
        text::time(&view.started),
        text::line(&view.by, 40),
    ]
}

fn command(view: &ExecView) -> [String; 8] {
    let ended = match (view.status, &view.failure) {
        (Some(status), _) => format!("exit status {status}"),
        (None, Some(why)) => text::line(why, 60),
        (None, None) => "under way".to_owned(),
    };
    [
        "-".to_owned(),
        "exec --unconfined".to_owned(),
        format!("in {}", view.generation),
        text::line(&view.argv.join(" "), 60),
        ended,
        "-".to_owned(),
        text::time(&view.started),
        text::line(&view.by, 40),
    ]
}

/// `molt show uN`.
pub(crate) fn update(view: &UpdateView, with_evidence: Evidence) -> String {
    let number = |number: Option<Generation>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let mut shown = text::pairs([
        ("Update", Some(view.id.to_string())),
        ("Kind", Some(text::clean(&view.kind))),
        ("Image", view.image.as_ref().map(|one| image(Some(one)))),
        ("From", Some(number(view.from))),
        ("To", Some(number(view.to))),
        ("Outcome", Some(format!("{}{}", outcome(view.outcome), why(view)))),
        ("Downtime", view.downtime_us.map(text::micros)),
        ("Not ready for", view.unready_us.map(text::micros)),
        ("By", Some(text::line(&view.by, 200))),
        ("Why", view.note.as_ref().map(|note| text::line(note, 512))),
        ("Started", Some(text::time(&view.started))),
        ("Ended", view.ended.as_deref().map(text::time)),
    ]);
    if !view.message.is_empty() {
        let _ = writeln!(shown, "\n{}", text::block(&view.message));
    }
    let Some(evidence) = view.evidence.as_ref() else { return shown };
    if with_evidence == Evidence::Left {
        let _ = writeln!(shown, "\nthere is evidence: molt show {} --evidence", view.id);
        return shown;
    }
    if let Some(status) = evidence.exit_status {
        let _ = writeln!(shown, "\nExit status {status}");
    }
    if let Some(difference) = &evidence.difference {
        let _ = write!(shown, "\nDifference\n{}", self::difference(difference));
    }
    for (title, lines) in [("Probes", &evidence.probes), ("Output", &evidence.output)] {
        if !lines.is_empty() {
            let _ = writeln!(shown, "\n{title}");
        }
        for line in lines {
            let _ = writeln!(shown, "  {}", text::clean_line(line));
        }
    }
    shown
}

/// `molt diff`.
pub(crate) fn difference(difference: &Difference) -> String {
    let mut shown = String::new();
    for change in &difference.fields {
        let side = |sign: char, value: &Option<String>| {
            value.as_ref().map(|value| format!("{sign} {}: {}\n", text::clean(&change.field), text::line(value, 300)))
        };
        shown.extend([side('-', &change.from), side('+', &change.to)].into_iter().flatten());
    }
    for section in &difference.policy {
        let _ = writeln!(shown, "policy {}", text::clean(&section.section));
        for line in &section.lines {
            let _ = writeln!(shown, "  {}", text::clean_line(line));
        }
    }
    shown
}

/// Whether the evidence is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// All of it.
    Shown,
    /// Only that there is some.
    Left,
}

/// `molt show N`.
pub(crate) fn one_generation(view: &GenerationView, role: Option<&'static str>, by: Option<UpdateId>) -> String {
    text::pairs([
        ("Generation", Some(view.generation.to_string())),
        ("Role", role.map(str::to_owned)),
        ("Image", Some(image(view.image.as_ref()))),
        ("Digest", view.digest.map(|digest| digest.to_string())),
        ("Policy", Some(view.policy_digest.to_string())),
        ("Since", Some(text::time(&view.since))),
        ("Update", by.map(|id| id.to_string())),
    ])
}

/// `molt bad list`.
pub(crate) fn bad(bad: &[BadView]) -> String {
    let rows = bad
        .iter()
        .map(|bad| [bad.digest.to_string(), bad.reason.to_string(), bad.update.to_string(), text::time(&bad.since)]);
    text::table(["DIGEST", "REASON", "UPDATE", "SINCE"], rows)
}

/// `molt update --dry-run`.
pub(crate) fn plan(plan: &PlanView) -> String {
    let what = if plan.noop { "nothing: this image, policy and settings run already" } else { "update" };
    let mut shown = text::pairs([
        ("Would do", Some(what.to_owned())),
        ("Image", Some(image(Some(&plan.image)))),
        ("Digest", Some(plan.digest.to_string())),
        ("Policy", Some(plan.policy_digest.to_string())),
        ("Layers", Some(format!("{}, {} to fetch", plan.layers, plan.layers_to_fetch))),
        ("To fetch", Some(text::bytes(plan.bytes_to_fetch))),
        ("On disk", Some(format!("{} of {} free", text::bytes(plan.bytes_on_disk), text::bytes(plan.bytes_free)))),
        ("Runs", Some(text::line(&plan.command.join(" "), 200))),
        ("Downtime", plan.expected_downtime.as_ref().map(expected)),
    ]);
    for line in &plan.policy_difference {
        let _ = writeln!(shown, "policy: {}", text::clean_line(line));
    }
    for line in &plan.wider {
        let _ = writeln!(shown, "wider: {}", text::line(line, 300));
    }
    for warning in &plan.warnings {
        let _ = writeln!(shown, "warning: {}", text::clean(warning));
    }
    shown
}

fn expected(gap: &Expected) -> String {
    let (median, worst) = (text::micros(gap.median_us), text::micros(gap.worst_us));
    format!("about {median}, at worst {worst}, as in the last {}", gap.of)
}

/// `molt gc`.
pub(crate) fn collected(collected: &Collected) -> String {
    let generations: Vec<String> = collected.generations.iter().map(ToString::to_string).collect();
    text::pairs([
        ("Generations", Some(if generations.is_empty() { "none".to_owned() } else { generations.join(", ") })),
        ("Layers", Some(collected.layers.to_string())),
        ("Blobs", Some(collected.blobs.to_string())),
        ("Freed", Some(text::bytes(collected.bytes))),
    ])
}
