//! One wall left out at a time, in a build made for that: the red team must miss it, at the probes that are named here.
//!
//! In: `molt` built with the feature `planted`, which lets PID 1 believe that all is well. Out: an error if the matrix
//! looks as it always does. Must not: pass because that build is not there.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, bail, ensure};

use super::golden;
use super::range::Range;
use crate::harness::bed::Bed;
use crate::harness::images;
use crate::harness::molt::Setup;
use crate::harness::runtime::Kind;

/// What is left out, under which policy, and probes that must tell.
const WALLS: &[(&str, &str, &[&str])] = &[
    ("no-landlock", "ports", &["L.unlisted-read", "L.readable-append", "W58.tcp-shut", "W56.abstract-outside"]),
    (
        "landlock-v2",
        "ports",
        &["L.readable-truncate", "L.ioctl-of-a-readable-device", "W58.tcp-shut", "W56.abstract-outside"],
    ),
    ("no-seccomp", "ports", &["F.unshare-user", "F.clone3", "F.i386-getpid", "W58.mptcp", "W58.fast-open-sendto-shut"]),
    ("shared-pid", "restrictive", &["W59.supervisor", "W59.strangers", "W59.kill-init", "W66.argv"]),
    ("early-rule", "stateful-daemon", &["L.state-create", "L.state-append", "C.write-and-rename"]),
    ("no-ids", "restrictive", &["W68.ids", "W68.group-ids", "W68.setuid"]),
    ("no-nnp", "restrictive", &["W68.no_new_privs", "W68.set-user-id-program", "S43.nosuid"]),
    ("no-close", "restrictive", &["S49.descriptors"]),
];

/// A sandbox with the planted build.
fn range(bed: &Bed, policy: &str, plant: Option<&str>) -> anyhow::Result<Range> {
    let root = bed.scratch("planted")?;
    images::unpack_outer(&root, &bed.program("molt-testd")?, Some(&bed.planted()?))?;
    Range::open_with(bed, Kind::Light, policy, |mut setup: Setup<'_>| {
        setup.options.root = root;
        if plant == Some("early-rule") {
            // The daemon itself must live on without the wall's other side.
            setup = setup.workload_env("TESTD_STATE", "/tmp");
        }
        Ok(match plant {
            Some(plant) => setup.env("MOLT_PLANT", plant),
            None => setup,
        })
    })
}

/// The matrix is not the golden one, and at each of the named probes.
pub(super) fn missing(bed: &Bed, plant: &str) -> anyhow::Result<()> {
    let (_, policy, probes) = WALLS.iter().find(|(name, ..)| *name == plant).context("a wall of the list")?;
    let range = range(bed, policy, Some(plant))?;
    for (how, matrix) in [("as the workload", range.by_the_workload()?), ("by exec", range.by_exec()?)] {
        let differences = golden::of(policy).differences(&matrix)?;
        let red: BTreeSet<&str> = differences.iter().map(|(probe, ..)| probe.as_str()).collect();
        let blind: Vec<&&str> = probes.iter().filter(|probe| !red.contains(**probe)).collect();
        if std::env::var_os("MOLT_TESTS_TIMES").is_some() {
            eprintln!("redteam {plant}, {how}: {} probes red: {red:?}", red.len());
        }
        ensure!(blind.is_empty(), "{plant}, {how}: {blind:?} do not tell; red are {red:?}");
    }
    Ok(())
}

/// What the walls' tests find is the wall, not the build.
pub(super) fn nothing_planted(bed: &Bed) -> anyhow::Result<()> {
    let range = range(bed, "restrictive", None)?;
    golden::of("restrictive").same("with nothing planted", &range.by_the_workload()?)
}

/// Neither the switch nor its words are in the product, and both are in the other.
pub(super) fn product_has_no_switch(bed: &Bed) -> anyhow::Result<()> {
    let (product, planted) = (fs::read(bed.molt()?)?, fs::read(bed.planted()?)?);
    let has = |bytes: &[u8], word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
    for word in WALLS.iter().map(|(name, ..)| *name).chain(["MOLT_PLANT"]) {
        // The shortest words are an instruction's operand by now, not a string.
        ensure!(!has(&product, word), "the product holds {word}");
        if !has(&planted, word) && word == "MOLT_PLANT" {
            bail!("the planted build does not hold {word}");
        }
    }
    Ok(())
}
