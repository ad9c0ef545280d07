//! What the documents say about tests is true: a promise names the test that holds it, and that test exists.
//!
//! In: `docs/*.md` and the sources. Out: cases. Must not: judge whether a test is a good one.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

use crate::harness::{
    bed::Bed,
    cases::{Case, case},
};

/// The cases.
pub(super) const CASES: &[Case] = &[
    case("docs::every_test_they_name_exists", named_tests_exist),
    case("docs::every_promise_of_the_threat_model_names_its_test", promises_name_tests),
];

fn project() -> anyhow::Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the project's folder")
}

/// Names of tests in a text: `suite::behaviour_in_words`, between backticks.
fn named(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|word| {
        let parts: Vec<&str> = word.split("::").collect();
        let plain = |part: &&str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        parts.len() >= 2 && parts.iter().all(plain) && parts.last().is_some_and(|last| last.contains('_'))
    })
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Every test there is, by its last name: the cases of the suites, and functions under `#[test]`.
fn tests() -> anyhow::Result<BTreeSet<String>> {
    let last = |name: &str| name.rsplit("::").next().unwrap_or(name).to_owned();
    let mut all: BTreeSet<String> = super::all().iter().map(|case| last(case.name)).collect();
    let mut files = Vec::new();
    sources(project()?, &mut files)?;
    for file in files {
        let text = fs::read_to_string(&file)?;
        let mut lines = text.lines().map(str::trim_start);
        while let Some(line) = lines.next() {
            if line != "#[test]" && !line.starts_with("#[tokio::test") {
                continue;
            }
            let function = lines.find_map(|line| line.trim_start_matches("async ").strip_prefix("fn "));
            all.extend(function.and_then(|rest| rest.split('(').next()).map(str::to_owned));
        }
    }
    Ok(all)
}

fn documents() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(project()?.join("docs"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            let text = fs::read_to_string(&path)?;
            all.push((path, text));
        }
    }
    Ok(all)
}

fn named_tests_exist(_: &Bed) -> anyhow::Result<()> {
    let tests = tests()?;
    ensure!(tests.len() > 100, "only {} tests were found", tests.len());
    let mut missing = Vec::new();
    for (path, text) in documents()? {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for name in named(&text) {
            if !tests.contains(name.rsplit("::").next().unwrap_or(name)) {
                missing.push(format!("{file}: {name}"));
            }
        }
    }
    ensure!(missing.is_empty(), "these tests do not exist:\n{}", missing.join("\n"));
    Ok(())
}

/// The table below `## Boundaries`: each row's last cell names a test.
fn promises_name_tests(_: &Bed) -> anyhow::Result<()> {
    let text = fs::read_to_string(project()?.join("docs/THREAT-MODEL.md"))?;
    let table = text.split("\n## Boundaries\n").nth(1).context("a section 'Boundaries'")?;
    let table = table.split("\n## ").next().unwrap_or(table);
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    ensure!(rows.len() >= 20, "only {} promises", rows.len());
    for row in rows {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        ensure!(named(last).next().is_some(), "a promise without a test: {row}");
    }
    Ok(())
}
