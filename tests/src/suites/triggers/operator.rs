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
    // 1.4, 1.5, back, and by curl 1.5 again: each is a start.
    molt.serves("v2", 4)?;
    let by_hand = molt.last()?;
    ensure!(by_hand["note"] == "by hand" && by_hand["outcome"] == "confirmed", "{by_hand:#}");
    ensure!(said[2].stdout.contains("\"type\":\"outcome\""), "{}", said[2].stdout);
    molt.sound()
}
