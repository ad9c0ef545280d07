//! Every way in, as `docs/TRIGGERS.md` shows it: the text of each section, typed at a live Molt; and what else is true of it.
//!
//! In: the page. Out: cases. A way in is a file here with its cases and its headings. Must not: leave a section with an
//! `sh` block to nobody.

mod gateway;
mod latency;
mod operator;
mod orders;
mod own;
mod tls;
mod watched;

use anyhow::ensure;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::docs;

const PAGE: &str = "TRIGGERS.md";

/// The sections that a file here types.
const TYPED: &[&str] = &[
    operator::HEADING,
    orders::HEADING,
    watched::HANGUP,
    watched::FILES,
    watched::ANNOTATIONS,
    own::HEADING,
    tls::HEADING,
    gateway::HEADING,
];

/// The tests of this suite.
pub(super) fn cases() -> Vec<Case> {
    let own = [case("triggers::every_section_is_typed_by_a_test", all_typed)];
    let ways = [operator::CASES, orders::CASES, watched::CASES, own::CASES, tls::CASES, gateway::CASES, latency::CASES];
    [&own[..], &ways.concat()].concat()
}

fn all_typed(_: &Bed) -> anyhow::Result<()> {
    let headings = docs::headings(PAGE)?;
    for heading in &headings {
        ensure!(TYPED.contains(&heading.as_str()), "nobody types what docs/{PAGE} says below '{heading}'");
    }
    ensure!(headings.len() == TYPED.len(), "{headings:?} have something to type, not {TYPED:?}");
    Ok(())
}
