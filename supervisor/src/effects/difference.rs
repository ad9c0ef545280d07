//! What is different between two generations: image, program, settings, and the policy section by section.
//!
//! In: two records with the text of their policies. Out: a [`Difference`]. Must not: show the value of a variable, which may
//! be a secret; judge which one is wider (`confine` does).

use std::collections::BTreeMap;

use molt_core::{
    generation::Record,
    wire::{Change, Difference, SectionChange},
};

use super::{Context, Fault, bounded, plan::Policy};

/// Most lines of a section, and most variables, that are told.
const LINES: usize = 200;

/// A generation and its policy's text.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    /// The record.
    pub(crate) record: Record,
    /// As in `policy.yaml`.
    pub(crate) policy: String,
}

impl Side {
    /// A generation of this sandbox, if its record is given and its policy can be read.
    pub(crate) fn of(context: &Context, record: Option<&Record>) -> Option<Self> {
        let record = record?.clone();
        let policy = match &context.store {
            Some(store) => store.policy(record.generation).ok()?,
            None => context.policy.clone(),
        };
        Some(Self { record, policy })
    }
}

/// From one to the other.
pub(crate) fn between(context: &Context, from: &Side, to: &Side) -> Result<Difference, Fault> {
    Ok(Difference {
        from: from.record.generation,
        to: to.record.generation,
        fields: fields(&from.record, &to.record),
        policy: policy(context, &from.policy, &to.policy)?,
    })
}

fn fields(from: &Record, to: &Record) -> Vec<Change> {
    let told = |record: &Record| {
        let program = &record.program;
        let mut all: BTreeMap<String, String> = BTreeMap::from([
            ("program.argv".to_owned(), program.argv.join(" ")),
            ("program.cwd".to_owned(), program.cwd.clone()),
            ("program.stopSignal".to_owned(), program.stop_signal.to_string()),
            ("program.user".to_owned(), program.user.clone()),
            ("policyDigest".to_owned(), record.policy_digest.to_string()),
            ("settingsDigest".to_owned(), record.settings_digest.to_string()),
        ]);
        all.extend(record.image.iter().map(|image| ("image".to_owned(), image.to_string())));
        all.extend(record.digest.iter().map(|digest| ("digest".to_owned(), digest.to_string())));
        all
    };
    let mut changes = changes(&told(from), &told(to));
    // That a variable differs is told, and not its value.
    let hidden = |changed: bool| changed.then(|| "(not shown)".to_owned());
    let names = from.program.env.keys().chain(to.program.env.keys()).collect::<std::collections::BTreeSet<_>>();
    let differs = |name: &&&String| from.program.env.get(**name) != to.program.env.get(**name);
    changes.extend(names.iter().filter(differs).take(LINES).map(|name| Change {
        field: format!("program.env.{}", molt_core::order::cut(name)),
        from: hidden(from.program.env.contains_key(*name)),
        to: hidden(to.program.env.contains_key(*name)),
    }));
    changes
}

fn changes(from: &BTreeMap<String, String>, to: &BTreeMap<String, String>) -> Vec<Change> {
    let names: std::collections::BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let pairs = names.into_iter().map(|name| (name, from.get(name), to.get(name)));
    let changed = pairs.filter(|(_, from, to)| from != to);
    let told = |text: Option<&String>| text.cloned().map(bounded);
    changed.map(|(name, from, to)| Change { field: name.clone(), from: told(from), to: told(to) }).collect()
}

/// What differs between two policies, section by section.
pub(crate) fn policy(context: &Context, from: &str, to: &str) -> Result<Vec<SectionChange>, Fault> {
    let (from, to) = (sections(context, from)?, sections(context, to)?);
    let names: std::collections::BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let none = Vec::new();
    let told = names.into_iter().filter_map(|name| {
        let (old, new) = (from.get(name).unwrap_or(&none), to.get(name).unwrap_or(&none));
        let lines = lines(old, new);
        (!lines.is_empty()).then(|| SectionChange { section: name.clone(), lines })
    });
    Ok(told.collect())
}

/// The same as lines of text, for a plan.
pub(crate) fn policy_lines(context: &Context, from: &str, to: &str) -> Result<Vec<String>, Fault> {
    let told = |change: SectionChange| {
        let section = change.section;
        change.lines.into_iter().map(move |line| {
            let (sign, text) = line.split_at(1);
            format!("{sign} {section}:{text}")
        })
    };
    Ok(policy(context, from, to)?.into_iter().flat_map(told).collect())
}

/// Each top-level section as lines of YAML; a policy that is none has the one section `policy`.
fn sections(context: &Context, text: &str) -> Result<BTreeMap<String, Vec<String>>, Fault> {
    let policy = match Policy::read(text)? {
        Policy::Unconfined => return Ok(BTreeMap::from([("policy".to_owned(), vec!["unconfined".to_owned()])])),
        Policy::Written(policy) => policy,
        Policy::Default => Box::new(molt_policy::default_policy_for(&context.spec.state)),
    };
    let value = serde_json::to_value(&*policy).unwrap_or_default();
    let filled = value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    Ok(filled.map(|(name, value)| (name.clone(), yaml(value))).collect())
}

fn yaml(value: &serde_json::Value) -> Vec<String> {
    serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string()).lines().map(str::to_owned).collect()
}

/// Lines that went and came, each once for each time it did, in their order.
fn lines(from: &[String], to: &[String]) -> Vec<String> {
    let only = |these: &[String], others: &[String], sign: char| {
        let mut left: Vec<&String> = others.iter().collect();
        let mut only = Vec::new();
        for line in these {
            match left.iter().position(|other| *other == line) {
                Some(at) => {
                    left.remove(at);
                }
                None => only.push(format!("{sign}{line}")),
            }
        }
        only
    };
    let mut all = only(from, to, '-');
    all.extend(only(to, from, '+'));
    let more = all.len().saturating_sub(LINES);
    all.truncate(LINES);
    if more > 0 {
        all.push(format!("…{more} more lines"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(lines: &[&str]) -> Vec<String> {
        lines.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lines_that_went_and_came_are_told_as_often_as_they_did() {
        let (from, to) = (text(&["a", "b", "b", "c"]), text(&["a", "b", "d"]));
        assert_eq!(lines(&from, &to), ["-b", "-c", "+d"]);
        assert!(lines(&from, &from).is_empty());
        let many: Vec<String> = (0..LINES + 5).map(|number| number.to_string()).collect();
        assert_eq!(lines(&[], &many).last().unwrap(), "…5 more lines");
    }

    #[test]
    fn a_variable_that_differs_is_named_and_its_value_is_not_shown() {
        let record = |value: &str| {
            let view = crate::api::fake::generation(1, "1");
            let env = BTreeMap::from([("TOKEN".to_owned(), value.to_owned()), ("SAME".to_owned(), "x".to_owned())]);
            Record {
                version: 1,
                generation: view.generation,
                image: view.image,
                digest: view.digest,
                layers: Vec::new(),
                policy_digest: view.policy_digest,
                settings_digest: view.policy_digest,
                program: molt_core::generation::Program { env, ..Default::default() },
                since: String::new(),
            }
        };
        let told = fields(&record("secret-one"), &record("secret-two"));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].field == "program.env.TOKEN" && !format!("{told:?}").contains("secret"), "{told:?}");
    }
}
