//! Bugs in the product itself, left in by a word of its environment: the suites must miss what they break.
//!
//! In: `molt` built with the feature `planted`. Out: an error if a suite is green all the same, or red with nothing planted.
//! Must not: pass because that build is not there.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::ground::Ground;
use super::scene::{Change, Scene};
use super::{errno, kill, power};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::disk::FileSystem;
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::{images, wait};

/// The tests of this suite.
pub(in super::super) const CASES: &[Case] = &[
    case("planted::a_slot_that_is_not_synced_is_missed_after_a_power_cut", |bed| {
        finds(bed, "no-slot-sync", "what was confirmed is lost", lasts)
    }),
    case("planted::a_slot_that_is_not_synced_is_seen_in_the_order_of_calls", |bed| {
        finds(bed, "no-slot-sync", "the record of the trial is not there", order)
    }),
    case("planted::a_generation_that_is_not_synced_is_seen_in_the_order_of_calls", |bed| {
        finds(bed, "no-folder-sync", "the sync of the generation's folder is not there", order)
    }),
    case("planted::a_trial_recorded_after_the_first_signal_is_noticed_by_the_old_version", |bed| {
        finds(bed, "late-trial", "testd: SIGTERM", trial)
    }),
    case("planted::a_kill_by_process_group_leaves_somebody_alive", |bed| {
        finds(bed, "kill-group", "lives on", nobody_lives_on)
    }),
    case("planted::a_confirmation_before_proof_keeps_a_sick_version", |bed| {
        finds(bed, "early-confirm", "the outcome of a sick version", sick_goes_back)
    }),
];

/// A root with the build for it, and the word.
type Plant = (PathBuf, &'static str);

/// `check` is green with nothing planted, and red, for that reason, with `word`.
fn finds(
    bed: &Bed,
    word: &'static str,
    reason: &str,
    check: impl Fn(&Bed, &Plant) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let root = bed.scratch("planted")?;
    images::unpack_outer(&root, &bed.program("molt-testd")?, Some(&bed.planted()?))?;
    check(bed, &(root.clone(), "nothing")).context("with nothing planted")?;
    let found = check(bed, &(root, word)).err().with_context(|| format!("{word} is not found"))?;
    let text = format!("{found:#}");
    ensure!(text.contains(reason), "{word} is found for another reason: {text}");
    Ok(())
}

fn scene<'a>(bed: &'a Bed, plant: &Plant, ground: Ground) -> anyhow::Result<Scene<'a>> {
    let mut scene = Scene::prepare(bed, Change::Update, ground)?;
    scene.plant = Some(plant.clone());
    Ok(scene)
}

/// More than once: what is taken apart beside it may have synced everything in time.
fn lasts(bed: &Bed, plant: &Plant) -> anyhow::Result<()> {
    let scene = scene(bed, plant, Ground::Disk(FileSystem::Ext4))?;
    (0..5).try_for_each(|_| power::lasts(&scene))
}

fn trial(bed: &Bed, plant: &Plant) -> anyhow::Result<()> {
    errno::trial(&scene(bed, plant, Ground::Memory)?)
}

fn order(bed: &Bed, plant: &Plant) -> anyhow::Result<()> {
    kill::order(&scene(bed, plant, Ground::Memory)?)
}

fn sandbox(bed: &Bed, (root, word): &Plant, version: &str) -> anyhow::Result<Molt> {
    let mut setup = Setup::new(bed, Kind::Light, &bed.small(version)?)?;
    setup.options.root.clone_from(root);
    setup.env("MOLT_PLANT", word).start()
}

fn nobody_lives_on(bed: &Bed, plant: &Plant) -> anyhow::Result<()> {
    let molt = sandbox(bed, plant, "double-forks")?;
    let beat = || molt.state_file("stray");
    wait::until("the stray to be alive", SOON, || beat().is_some_and(|text| !text.is_empty()))?;
    let record = molt.updated(&bed.small("v2")?)?;
    ensure!(record["outcome"] == "confirmed", "{record:#}");
    // What is alive writes fifty times a second; what is not never does.
    let seen = beat();
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        ensure!(beat() == seen, "a process of the old version lives on beside the new one");
    }
    Ok(())
}

fn sick_goes_back(bed: &Bed, plant: &Plant) -> anyhow::Result<()> {
    let molt = sandbox(bed, plant, "v1")?;
    let accepted = molt.operator("POST", "/v1/updates", &json!({"image": bed.small("ill")?}))?;
    let path = format!("/v1/updates/{}", accepted["id"].as_str().context("an id")?);
    let record = wait::until_ok("the update to end", SOON, || {
        let record = molt.operator("GET", &path, &Value::Null)?;
        ensure!(!record["outcome"].is_null(), "{record:#}");
        Ok(record)
    })?;
    ensure!(record["outcome"] == "rolledBack", "the outcome of a sick version is {}", record["outcome"]);
    molt.serves("v1", 3)
}
