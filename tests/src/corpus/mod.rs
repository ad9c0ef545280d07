//! Hostile images, as one table: a case is one entry.
//!
//! In: a base to build on, which is nothing where a layer is looked at alone, and a small working image where it is to
//! run. Out: [`Hostile`]: the image, the attack it is (a row of the list in `docs/THREAT-MODEL.md` terms: registry R,
//! unpacking U, staging S), and what must come of it. Two runners go through it: the one of `molt-oci`, which fetches and
//! looks at the layer that results, and the suite `hostile`, which updates a running sandbox. Must not: hold a case whose
//! outcome is left open.

mod archives;
mod documents;
mod links;
mod programs;
mod roots;
mod users;

use std::collections::BTreeSet;

use crate::harness::image::{Built, Format, ImageBuilder, Packed, Packing};
use crate::harness::tar::Tar;

/// Which attack: a letter and a number.
pub type Row = &'static str;

/// What must become of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is refused with this code, before anything of it is kept, in words that hold this text.
    Refused(&'static str, &'static str),
    /// Its last layer becomes this tree, line by line as [`crate::harness::snapshot::lines`] has it, and then this.
    Taken(Vec<String>, Update),
}

/// What must become of an update to an image that can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// It runs, harmlessly.
    Serves,
    /// It fails before the gate with this code, in words that hold this text; the old one never notices.
    Fails(&'static str, &'static str),
    /// It fails behind the gate with this code; the old one is back.
    RolledBack(&'static str),
}

type Make = Box<dyn Fn(ImageBuilder) -> Built + Send + Sync>;

/// One hostile image.
pub struct Hostile {
    /// What it does, in words.
    pub name: &'static str,
    /// The attacks it is an instance of.
    pub rows: Vec<Row>,
    /// What must become of it.
    pub verdict: Verdict,
    make: Make,
}

impl std::fmt::Debug for Hostile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hostile").field("name", &self.name).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Hostile {
    /// The image, on top of `base`.
    pub fn build(&self, base: ImageBuilder) -> Built {
        (self.make)(base)
    }

    /// The image by itself: for looking at its layer alone.
    pub fn alone(&self) -> Built {
        let base = ImageBuilder::new(Format::Oci);
        self.build(base.set("Cmd", serde_json::json!(["/bin/app"])).set("User", serde_json::json!("1000")))
    }
}

/// Every case there is.
pub fn all() -> Vec<Hostile> {
    [links::cases(), archives::cases(), documents::cases(), roots::cases(), programs::cases(), users::cases()]
        .into_iter()
        .flatten()
        .collect()
}

/// The rows that `cases` are about, in order.
pub fn rows(cases: &[Hostile]) -> String {
    let rows: BTreeSet<(char, u32)> = cases
        .iter()
        .flat_map(|case| &case.rows)
        .filter_map(|row| Some((row.chars().next()?, row.get(1..)?.parse().ok()?)))
        .collect();
    let text: Vec<String> = rows.iter().map(|(letter, number)| format!("{letter}{number}")).collect();
    text.join(" ")
}

/// Refused because of the layer.
fn layer(says: &'static str) -> Verdict {
    Verdict::Refused("layer-invalid", says)
}

/// Refused because of a document.
fn document(says: &'static str) -> Verdict {
    Verdict::Refused("manifest-invalid", says)
}

/// Taken and harmless.
fn harmless(tree: &[&str]) -> Verdict {
    then(tree, Update::Serves)
}

/// Taken, and then this.
fn then(tree: &[&str], update: Update) -> Verdict {
    Verdict::Taken(tree.iter().map(|line| (*line).to_owned()).collect(), update)
}

/// A case made in any way.
fn case(
    name: &'static str,
    rows: &[Row],
    verdict: Verdict,
    make: impl Fn(ImageBuilder) -> Built + Send + Sync + 'static,
) -> Hostile {
    Hostile { name, rows: rows.to_vec(), verdict, make: Box::new(make) }
}

/// A case of one more layer, gzipped.
fn tar(name: &'static str, rows: &[Row], tar: Tar, verdict: Verdict) -> Hostile {
    bytes(name, rows, tar.end(), verdict)
}

/// The same from the bytes of a tar.
fn bytes(name: &'static str, rows: &[Row], tar: Vec<u8>, verdict: Verdict) -> Hostile {
    case(name, rows, verdict, move |base| base.layer(Packed::new(&tar, Packing::Gzip)).build())
}

/// A case of one more layer and a changed config.
fn configured(
    name: &'static str,
    rows: &[Row],
    tar: Tar,
    key: &'static str,
    value: serde_json::Value,
    verdict: Verdict,
) -> Hostile {
    let tar = tar.end();
    case(name, rows, verdict, move |base| base.layer(Packed::new(&tar, Packing::Gzip)).set(key, value.clone()).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_every_case_has_a_row() {
        let all = all();
        let mut names = BTreeSet::new();
        let twice: Vec<_> = all.iter().map(|case| case.name).filter(|name| !names.insert(*name)).collect();
        assert!(twice.is_empty(), "these names are there twice: {twice:?}");
        assert!(all.iter().all(|case| !case.rows.is_empty()));
        assert!(all.len() >= 90, "{}", all.len());
    }
}
