//! Whether a text is OpenMetrics 1.0, as a strict scraper reads it.
//!
//! In: the text of a scrape. Out: every rule it breaks. Must not: know a metric's name.

use std::collections::{BTreeMap, BTreeSet};

/// A family: its type and what was seen of it.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    seen: BTreeSet<&'static str>,
    over: bool,
    samples: bool,
}

/// One sample: name, labels in order, value.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// Everything wrong with a text; empty where it is right.
pub fn lint(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if !text.ends_with("# EOF\n") || text.matches("# EOF").count() != 1 {
        wrong.push("it does not end with the one line '# EOF'".to_owned());
    }
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut series: BTreeSet<String> = BTreeSet::new();
    let mut samples: Vec<(String, Sample)> = Vec::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        let mut say = |what: &str| wrong.push(format!("{what}: {line}"));
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let (Some(key), Some(name)) = (words.next(), words.next()) else {
                say("neither TYPE, HELP nor UNIT");
                continue;
            };
            let key = match key {
                "TYPE" => "TYPE",
                "HELP" => "HELP",
                "UNIT" => "UNIT",
                _ => {
                    say("neither TYPE, HELP nor UNIT");
                    continue;
                }
            };
            if name != current {
                if let Some(old) = families.get_mut(&current) {
                    old.over = true;
                }
                name.clone_into(&mut current);
            }
            let family = families.entry(name.to_owned()).or_default();
            if family.over || family.samples {
                say("metadata after its family's samples");
            }
            if !family.seen.insert(key) {
                say("said twice");
            }
            let rest = words.next().unwrap_or_default();
            match key {
                "TYPE"
                    if !["counter", "gauge", "histogram", "info", "summary", "stateset", "unknown"].contains(&rest) =>
                {
                    say("no such type");
                }
                "TYPE" => rest.clone_into(&mut family.kind),
                "UNIT" if !name.ends_with(&format!("_{rest}")) => say("the unit is not the end of the name"),
                "HELP" if rest.is_empty() => say("no help"),
                _ => {}
            }
            if !is_name(name) {
                say("not a name");
            }
            continue;
        }
        let Some(sample) = parse(line) else {
            say("cannot be read");
            continue;
        };
        let Some(family) = families.get_mut(&current) else {
            say("a sample without a family");
            continue;
        };
        family.samples = true;
        let suffix = sample.name.strip_prefix(current.as_str());
        let allowed: &[&str] = match family.kind.as_str() {
            "counter" => &["_total", "_created"],
            "histogram" => &["_bucket", "_count", "_sum", "_created"],
            "info" => &["_info"],
            "gauge" => &[""],
            _ => &["", "_count", "_sum"],
        };
        if suffix.is_none_or(|suffix| !allowed.contains(&suffix)) {
            say("not a name of its family");
        }
        if family.kind == "counter" && (sample.value.is_nan() || sample.value < 0.0) {
            say("a counter below zero");
        }
        if sample.labels.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len() != sample.labels.len() {
            say("a label twice");
        }
        let mut sorted = sample.labels.clone();
        sorted.sort();
        if !series.insert(format!("{} {sorted:?}", sample.name)) {
            say("a series twice");
        }
        samples.push((current.clone(), sample));
    }
    for (name, family) in &families {
        for key in ["TYPE", "HELP"] {
            if !family.seen.contains(key) {
                wrong.push(format!("{name} has no {key}"));
            }
        }
        if family.kind == "histogram" {
            let own = samples.iter().filter(|(of, _)| of == name).map(|(_, sample)| sample);
            wrong.extend(buckets(name, own));
        }
    }
    wrong
}

/// Bound and value of each bucket of a histogram, and its count.
type Buckets = (Vec<(f64, f64)>, Option<f64>);

/// Buckets rise, and the last is infinity and the count.
fn buckets<'a>(name: &str, samples: impl Iterator<Item = &'a Sample>) -> Vec<String> {
    let mut all: BTreeMap<String, Buckets> = BTreeMap::new();
    for sample in samples {
        let others: Vec<_> = sample.labels.iter().filter(|(label, _)| label != "le").collect();
        let entry = all.entry(format!("{others:?}")).or_default();
        if sample.name.ends_with("_bucket") {
            let le = sample.labels.iter().find(|(label, _)| label == "le").map(|(_, value)| value.as_str());
            let bound = le.and_then(|le| if le == "+Inf" { Some(f64::INFINITY) } else { le.parse().ok() });
            entry.0.push((bound.unwrap_or(f64::NAN), sample.value));
        } else if sample.name.ends_with("_count") {
            entry.1 = Some(sample.value);
        }
    }
    let mut wrong = Vec::new();
    for (labels, (buckets, count)) in all {
        if !buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1) {
            wrong.push(format!("{name} {labels}: buckets do not rise"));
        }
        if buckets.last().is_none_or(|last| last.0 != f64::INFINITY || Some(last.1) != count) {
            wrong.push(format!("{name} {labels}: the last bucket is not the count"));
        }
    }
    wrong
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn parse(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(chars.next().filter(|(_, c)| ['\\', '"', 'n'].contains(c))?.1),
                    (_, c) => value.push(c),
                }
            };
            if !is_name(label) {
                return None;
            }
            labels.push((label.to_owned(), value));
            rest = after.get(end + 1..)?;
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        rest = rest.get(1..)?;
    }
    let value = rest.strip_prefix(' ')?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "NaN" => f64::NAN,
        value => value.parse().ok()?,
    };
    is_name(name).then(|| Sample { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
                        a_seconds_sum{c=\"x\"} 1.0\na_seconds_count{c=\"x\"} 2\na_seconds_bucket{le=\"1.0\",c=\"x\"} 1\n\
                        a_seconds_bucket{le=\"+Inf\",c=\"x\"} 2\n# HELP b B.\n# TYPE b counter\nb_total 3\n# EOF\n";

    #[test]
    fn what_is_right_is_left_alone_and_each_fault_is_found() {
        assert_eq!(lint(GOOD), Vec::<String>::new());
        for (from, to) in [
            ("# EOF\n", ""),
            ("b_total 3", "b 3"),
            ("b_total 3", "b_total -3"),
            ("b_total 3", "b_total 3\nb_total 4"),
            ("b_total 3", "b_total"),
            ("UNIT a_seconds seconds", "UNIT a_seconds bytes"),
            ("# HELP b B.\n", ""),
            ("# TYPE b counter", "# TYPE b countr"),
            ("le=\"+Inf\",c=\"x\"} 2", "le=\"+Inf\",c=\"x\"} 3"),
            ("le=\"1.0\",c=\"x\"} 1", "le=\"1.0\",c=\"x\"} 5"),
            ("b_total 3", "b_total 3\n# HELP a_seconds Again."),
            ("{c=\"x\"} 1.0", "{c=\"x} 1.0"),
        ] {
            assert!(!lint(&GOOD.replacen(from, to, 1)).is_empty(), "{from} -> {to}");
        }
    }
}
