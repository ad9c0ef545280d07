//! Golden matrices, compared line by line.
//!
//! In: `tests/golden/redteam/NAME.txt` and what a run printed. Out: nothing, or an error that lists every probe that
//! answered otherwise. Must not: call a stricter answer better.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

/// The matrix of one policy.
#[derive(Debug)]
pub(super) struct Golden {
    path: PathBuf,
}

/// By the policy's name.
pub(super) fn of(policy: &str) -> Golden {
    Golden { path: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/redteam/{policy}.txt")) }
}

/// Probe, expected, found.
pub(super) type Difference = (String, String, String);

impl Golden {
    /// With `MOLT_BLESS` set, `matrix` is what all others have to be.
    pub(super) fn bless(&self, matrix: &str) -> anyhow::Result<()> {
        if std::env::var_os("MOLT_BLESS").is_some() {
            fs::write(&self.path, matrix)?;
        }
        Ok(())
    }

    /// An error unless `matrix` is this one.
    pub(super) fn same(&self, when: &str, matrix: &str) -> anyhow::Result<()> {
        self.but_for(&[], when, matrix)
    }

    /// An error unless `matrix` is this one with these answers in it, each of which differs from it.
    pub(super) fn but_for(&self, known: &[(&str, &str)], when: &str, matrix: &str) -> anyhow::Result<()> {
        let mut differences = self.differences(matrix)?;
        for (probe, word) in known {
            let at = differences.iter().position(|(name, _, found)| name == probe && found == word);
            differences.remove(at.with_context(|| format!("{when}, {probe} was to answer {word}"))?);
        }
        if differences.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = differences
            .iter()
            .map(|(probe, expected, found)| format!("  {probe}: {found}, expected {expected}"))
            .collect();
        bail!("{when}, {} probes of {} answer otherwise:\n{}", lines.len(), self.path.display(), lines.join("\n"))
    }

    /// What differs.
    pub(super) fn differences(&self, matrix: &str) -> anyhow::Result<Vec<Difference>> {
        let expected = parse(&self.text()?)?;
        let found = parse(matrix)?;
        let absent = || "nothing".to_owned();
        let names: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
        Ok(names
            .into_iter()
            .filter(|name| expected.get(*name) != found.get(*name))
            .map(|name| {
                let of = |all: &BTreeMap<String, String>| all.get(name).cloned().unwrap_or_else(absent);
                (name.clone(), of(&expected), of(&found))
            })
            .collect())
    }

    /// How many probes it has.
    pub(super) fn probes(&self) -> usize {
        self.text().map_or(0, |text| text.lines().count())
    }

    fn text(&self) -> anyhow::Result<String> {
        fs::read_to_string(&self.path)
            .with_context(|| format!("reading {}: MOLT_BLESS=1 writes it", self.path.display()))
    }
}

fn parse(matrix: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for line in matrix.lines() {
        let (name, word) = line.split_once(' ').with_context(|| format!("a line of two words, not {line:?}"))?;
        ensure!(all.insert(name.to_owned(), word.to_owned()).is_none(), "{name} is there twice");
    }
    ensure!(all.len() >= 150, "only {} probes have answered:\n{matrix}", all.len());
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_found_stricter_ones_and_missing_ones_too() {
        let folder = tempfile::tempdir().unwrap();
        let golden = Golden { path: folder.path().join("x.txt") };
        let line =
            |number: usize| format!("W{number}.probe {}\n", if number.is_multiple_of(2) { "ok" } else { "EPERM" });
        let matrix: String = (0..200).map(line).collect();
        fs::write(&golden.path, &matrix).unwrap();
        golden.same("again", &matrix).unwrap();
        let stricter = matrix.replace("W4.probe ok", "W4.probe EPERM");
        assert_eq!(golden.differences(&stricter).unwrap(), [("W4.probe".into(), "ok".into(), "EPERM".into())]);
        let shorter = matrix.replace("W7.probe EPERM\n", "");
        assert!(golden.same("again", &shorter).unwrap_err().to_string().contains("W7.probe: nothing, expected EPERM"));
        assert!(golden.differences("W1.probe ok\n").is_err());
    }
}
