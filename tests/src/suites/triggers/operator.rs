//! The operator socket, by `molt` and by curl.
//!
//! In: its section of the page. Out: cases. Must not: know another way in.

use anyhow::ensure;

use super::PAGE;
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::docs::{self, Reader, Section};

/// Its section.
pub(super) const HEADING: &str = "Operator socket";

/// The tests of this way in.
pub(super) const CASES: &[Case] = &[case("triggers::operator_socket_as_the_page_says", as_the_page_says)];

fn as_the_page_says(bed: &Bed) -> anyhow::Result<()> {
    let molt = docs::setup(bed)?.start()?;
    let said = Reader::new(bed, &molt)?.follows(&Section::of(PAGE, HEADING)?)?;
    ensure!(said[0].stdout.contains("new parser") || said[0].stdout.contains("daemon:1.5"), "{}", said[0].stdout);
    // The last was asked for twice and done once.
    ensure!(molt.version()?.0 == "v2");
    let last = molt.last()?;
    ensure!(last["outcome"] == "confirmed", "{last:#}");
    let taken = format!("\"id\":\"{}\"", last["id"].as_str().unwrap_or_default());
    ensure!(said[4].stdout.matches(&taken).count() >= 2, "{}", said[4].stdout);
    ensure!(said[3].stdout.contains("\"type\":\"outcome\""), "{}", said[3].stdout);
    molt.sound()
}
