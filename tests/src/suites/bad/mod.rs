//! Bad input: what is refused, what fails before the gate, what is rolled back, and what is only warned of.
//!
//! In: images and registries that lie, programs that misbehave. Out: for each the exit status of `docs/CLI.md`, a text
//! that says what failed, why, what still runs and what to type next, and a workload that never noticed (or is back).

pub(super) mod disk;
pub(super) mod image;
pub(super) mod policy;
pub(super) mod registry;
pub(super) mod workload;

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::image::{Format, ImageBuilder, Packing, digest};
use crate::harness::images;
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::process::Output;
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// Molt with `small:v1`, as the tests of these suites start.
fn setup(bed: &Bed) -> anyhow::Result<Setup<'_>> {
    Setup::new(bed, Kind::Light, &bed.small("v1")?)
}

/// A recipe of the small image, to be made worse.
pub(super) fn recipe(bed: &Bed, variant: &str) -> anyhow::Result<ImageBuilder> {
    images::small_as(variant, &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)
}

/// Digest of the last layer of a variant: the only one that a sandbox with `small:v1` has to fetch.
fn last_layer(bed: &Bed, variant: &str) -> anyhow::Result<String> {
    let recipe = recipe(bed, variant)?;
    Ok(digest(&recipe.layers.last().context("a layer")?.bytes))
}

/// The daemons of a sandbox, from outside: process number and when it started, in ticks.
fn daemons(molt: &Molt) -> anyhow::Result<Vec<(u32, u64)>> {
    let wanted = format!("TESTD_PORT={}", molt.address.port());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end while it is looked at.
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let Some((head, rest)) = stat.rsplit_once(") ") else { continue };
        let ours = read("environ").split(|byte| *byte == 0).any(|pair| pair == wanted.as_bytes());
        if head.ends_with("(molt-testd") && ours {
            found.push((pid, rest.split(' ').nth(19).context("a start time")?.parse()?));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// What must be the same after something failed before the gate.
#[derive(Debug, PartialEq)]
struct Before {
    daemons: Vec<(u32, u64)>,
    answer: Value,
    confirmed: Value,
    previous: Value,
}

fn look(molt: &Molt) -> anyhow::Result<Before> {
    let status = molt.status()?;
    Ok(Before {
        daemons: daemons(molt)?,
        answer: molt.get("/")?,
        confirmed: status["confirmed"].clone(),
        previous: status["previous"].clone(),
    })
}

/// An error unless `text` holds every one of `parts`.
fn says(text: &str, parts: &[&str]) -> anyhow::Result<()> {
    for part in parts {
        ensure!(text.contains(part), "it does not say {part:?}:\n{text}");
    }
    Ok(())
}

/// `molt WORDS` fails with `code` and says `parts`; the running workload never notices.
fn fails(molt: &Molt, code: i32, words: &[&str], parts: &[&str]) -> anyhow::Result<Output> {
    let before = look(molt)?;
    ensure!(before.daemons.len() == 1, "{before:?}");
    let output = molt.expect(code, words)?;
    let after = look(molt)?;
    ensure!(after == before, "the workload noticed: {before:?} became {after:?}");
    let context = || format!("molt {}\n--- stdout\n{}", words.join(" "), output.stdout);
    says(&output.stderr, parts).with_context(context)?;
    ensure!(!output.stderr.contains("panicked"), "{}", output.stderr);
    if code != 2 {
        let runs = format!("generation {} runs ", before.confirmed["generation"]);
        says(&output.stderr, &[&runs]).with_context(context)?;
        says(&output.stdout, &["; generation ", " runs on, untouched"]).with_context(context)?;
    }
    ensure!(molt.status()?["phase"] == "Idle");
    molt.sound()?;
    Ok(output)
}

/// An update fails with `code` before anything of it is in the store, and leaves nothing there.
pub(super) fn pull_fails(molt: &Molt, code: i32, image: &str, parts: &[&str]) -> anyhow::Result<Output> {
    let listed = || anyhow::Ok((molt.stored("layers/sha256")?, molt.stored("generations")?));
    let before = listed()?;
    let bad = molt.status()?["bad"].clone();
    let output = fails(molt, code, &["update", image], parts)?;
    let after = listed()?;
    ensure!(before == after, "in the store were {before:?}, now {after:?}");
    ensure!(molt.status()?["bad"] == bad, "the digest is taken for a bad one: {}", molt.status()?["bad"]);
    tidy(molt)?;
    Ok(output)
}

/// The same as [`pull_fails`], where a sound layer below the bad one may stay, whole.
fn pull_fails_but_for_one(molt: &Molt, code: i32, image: &str, parts: &[&str]) -> anyhow::Result<()> {
    let before = (molt.stored("layers/sha256")?, molt.stored("generations")?);
    fails(molt, code, &["update", image], parts)?;
    let after = (molt.stored("layers/sha256")?, molt.stored("generations")?);
    ensure!(after.1 == before.1 && after.0.len() <= before.0.len() + 1, "{before:?} became {after:?}");
    ensure!(molt.status()?["bad"] == json!([]), "{}", molt.status()?["bad"]);
    tidy(molt)
}

/// Nothing is half done in the store, and no packed layer is kept there.
pub(super) fn tidy(molt: &Molt) -> anyhow::Result<()> {
    wait::until_ok("the store to be tidy", SOON, || {
        for folder in ["tmp", "trash"] {
            let names = molt.stored(folder)?;
            ensure!(names.is_empty(), "{folder} holds {names:?}");
        }
        Ok(())
    })?;
    for name in molt.stored("blobs/sha256")? {
        let path = molt.store.join("blobs/sha256").join(&name);
        let text = fs::read(&path)?;
        ensure!(serde_json::from_slice::<Value>(&text).is_ok(), "blob {name} is no document");
        let meta = fs::metadata(&path)?;
        ensure!(meta.uid() == 0 && meta.mode() & 0o777 == 0o600, "blob {name} is not root's alone");
    }
    Ok(())
}

/// An update is tried, fails after the gate with the texts `parts`, and the version before it is back.
fn rolled_back(molt: &Molt, image: &str, parts: &[&str]) -> anyhow::Result<Output> {
    let before = look(molt)?;
    let generation = before.confirmed["generation"].clone();
    let output = molt.expect(3, &["update", image])?;
    let after = look(molt)?;
    let context = || format!("update {image}\n--- stdout\n{}", output.stdout);
    says(&output.stdout, &["rolled back: ", &format!("; generation {generation} is back and healthy (downtime ")])?;
    says(&output.stderr, parts).with_context(context)?;
    let image_now = before.confirmed["image"].as_str().context("an image")?;
    let last = molt.last()?;
    let id = last["id"].as_str().context("an id")?;
    let next = [
        format!("generation {generation} runs {image_now}"),
        format!("what was seen: molt show {id} --evidence"),
        "the workload's output: molt logs".to_owned(),
        format!("try it all the same: molt update {image} --force"),
        "forget that it failed: molt bad remove sha256:".to_owned(),
    ];
    says(&output.stderr, &next.each_ref().map(String::as_str)).with_context(context)?;
    ensure!(after.confirmed == before.confirmed && after.previous == before.previous, "{before:?} became {after:?}");
    ensure!(after.answer["version"] == before.answer["version"], "{}", after.answer);
    ensure!(after.daemons.len() == 1 && after.daemons != before.daemons, "{before:?} became {after:?}");
    let (was, is) = (before.answer["starts"].as_u64(), after.answer["starts"].as_u64());
    ensure!(was < is, "{was:?} starts, then {is:?}");
    ensure!(last["outcome"] == "rolledBack" && last["downtimeUs"].as_u64().is_some(), "{last:#}");
    let status = molt.status()?;
    ensure!(status["phase"] == "Idle" && status["bad"].as_array().is_some_and(|bad| !bad.is_empty()), "{status:#}");
    tidy(molt)?;
    molt.sound()?;
    Ok(output)
}
