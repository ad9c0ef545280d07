//! The spec is read again: on SIGHUP, when a watched file changes, when an annotation does.
//!
//! In: its sections of the page. Out: cases. Must not: know another way in.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::PAGE;
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::docs::{self, Reader, Section};
use crate::harness::molt::{Molt, SOON, SPEC, Setup};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// Their sections of the page.
pub(super) const HANGUP: &str = "SIGHUP";
/// The second.
pub(super) const FILES: &str = "Watched files";
/// The third.
pub(super) const ANNOTATIONS: &str = "Annotations";

/// The tests of these ways in.
pub(super) const CASES: &[Case] = &[
    case("triggers::hangup_files_and_annotations_as_the_page_says", as_the_page_says),
    case("watched::hangup_reads_the_spec_and_only_a_changed_text_is_an_intent", |bed| hangup(bed, Kind::Light)),
    case("watched::hangup_reads_the_spec_in_a_user_namespace", |bed| hangup(bed, Kind::LightUser)),
    case("watched::a_spec_that_is_not_valid_is_told_and_ignored", invalid),
    case("watched::what_holds_from_the_start_only_is_said_by_name", later),
    case("watched::a_configmap_volume_is_followed_when_its_link_is_swapped", configmap),
    case("watched::an_annotation_asks_for_an_image_and_a_policy", annotations),
    case("watched::an_image_that_failed_is_not_tried_again_by_the_same_text", failed_once),
    case("watched::a_file_that_flips_settles_on_the_newest", flips),
    case("watched::a_request_that_ended_long_ago_was_not_interrupted", long_ago),
];

/// Each section, typed in the folder of the spec.
fn as_the_page_says(bed: &Bed) -> anyhow::Result<()> {
    for heading in [HANGUP, FILES, ANNOTATIONS] {
        let section = Section::of(PAGE, heading)?;
        let mut setup = docs::setup(bed)?;
        fs::write(setup.config.join("annotations"), "molt.dev/image=\"registry.example.com/acme/daemon:1.4\"\n")?;
        for yaml in section.blocks("yaml").unwrap_or_default() {
            let head = "apiVersion: molt.dev/v1alpha1\nkind: Sandbox\n";
            let said = molt_core::spec::parse(&format!("{head}{yaml}"))
                .map_err(|violations| anyhow::anyhow!("{heading}: {violations}"))?;
            setup = setup.with("/watch", serde_json::to_value(said.watch)?);
        }
        let molt = setup.start()?;
        let mut reader = Reader::new(bed, &molt)?.env("MOLT_PID", molt.sandbox.pid1()?);
        reader.folder.clone_from(&molt.config);
        reader.follows(&section)?;
        let update = confirmed(&molt, 2).with_context(|| heading.to_owned())?;
        ensure!(update["image"] == "registry.example.com/acme/daemon:1.5", "{heading}: {update:#}");
        molt.serves("v2", 2)?;
        molt.sound()?;
    }
    Ok(())
}

/// The spec of a sandbox, with another image.
pub(super) fn rewrite(molt: &Molt, change: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
    let path = molt.config.join("sandbox.yaml");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    change(&mut spec["spec"]);
    replace(&path, &serde_json::to_string(&spec)?)
}

/// As a careful writer does it.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path).context("renaming")
}

fn condition(status: &Value, name: &str) -> Option<Value> {
    status["conditions"].as_array()?.iter().find(|one| one["type"] == name).cloned()
}

/// Waits until `generation` is confirmed and nothing is under way; the update that led there.
fn confirmed(molt: &Molt, generation: u64) -> anyhow::Result<Value> {
    let status = molt.until("the confirmation", |status| {
        status["phase"] == "Idle" && status["confirmed"]["generation"] == generation
    })?;
    Ok(status["lastUpdate"].clone())
}

/// How many times the spec was read again.
fn reads(molt: &Molt) -> usize {
    molt.sandbox.logs().matches("the spec was read again").count()
}

fn updates(molt: &Molt) -> anyhow::Result<usize> {
    Ok(molt.json(&["history"])?.as_array().context("a list")?.len())
}

/// SIGHUP, and the reading that follows.
fn hang_up(molt: &Molt) -> anyhow::Result<()> {
    let before = reads(molt);
    molt.sandbox.signal(Signal::SIGHUP)?;
    wait::until("the spec to be read", SOON, || reads(molt) > before)
}

/// A request, many changes that nobody asked Molt's API for, and a history that is lost: its end is not made up.
fn long_ago(bed: &Bed) -> anyhow::Result<()> {
    let images = [bed.small("v3")?, bed.small("v1")?];
    let mut molt = Setup::new(bed, Kind::Light, &images[1])?.with("/health/monitor", json!("0s")).start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    for change in 0..34 {
        rewrite(&molt, |spec| spec["image"] = json!(images[change % 2]))?;
        hang_up(&molt)?;
        let id = format!("u{}", change + 3);
        molt.until(&id, |status| status["lastUpdate"]["id"] == id)?;
    }
    ensure!(molt.sandbox.stop(SOON)? == 0);
    fs::remove_file(molt.store.join("history.jsonl"))?;
    molt.sandbox.restart()?;
    molt.settled()?;
    let history = molt.json(&["history"])?;
    let told = history.as_array().context("a list")?.iter().any(|one| one["reason"] == "interrupted");
    ensure!(!told, "{history:#}");
    molt.serves("v1", 37)
}

fn hangup(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let (v1, v2) = (bed.small("v1")?, bed.small("v2")?);
    let mut molt = Setup::new(bed, kind, &v1)?.start()?;
    hang_up(&molt)?;
    ensure!(updates(&molt)? == 1, "an unchanged spec is no intent");
    rewrite(&molt, |spec| spec["image"] = json!(v2))?;
    hang_up(&molt)?;
    let update = confirmed(&molt, 2)?;
    let by = update["by"].as_str().unwrap_or_default();
    ensure!(by.starts_with("SIGHUP"), "{update:#}");
    molt.serves("v2", 2)?;
    ensure!(molt.json(&["status"])?["spec"]["image"] == v2);
    // The workload is not told of it.
    ensure!(molt.state_file("signals").unwrap_or_default().lines().all(|line| line != "SIGHUP"));
    // An unchanged spec undoes no rollback, now or after a restart.
    molt.expect(0, &["rollback"])?;
    let before = updates(&molt)?;
    hang_up(&molt)?;
    rewrite(&molt, |spec| spec["hooks"] = json!({}))?;
    hang_up(&molt)?;
    ensure!(updates(&molt)? == before && molt.version()?.0 == "v1");
    molt.sandbox.stop(SOON)?;
    molt.sandbox.restart()?;
    molt.settled()?;
    ensure!(molt.version()?.0 == "v1");
    molt.sound()
}

fn invalid(bed: &Bed) -> anyhow::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    let (v1, v2) = (bed.small("v1")?, bed.small("v2")?);
    let molt = Setup::new(bed, Kind::Light, &v1)?.with("/watch", json!({"files": true})).start()?;
    let good = fs::read_to_string(molt.config.join("sandbox.yaml"))?;
    let wrong = [
        good.replace("\"startupDeadline\"", "\"startupDeadlin\"").replace(&v1, &v2),
        good.replace(&v1, "not an image"),
        good.replace(&v1, &v2).get(..good.len() / 2).unwrap_or_default().to_owned(),
        "x".repeat(2 << 20),
    ];
    for text in wrong {
        let before = molt.sandbox.logs().matches("the spec is not taken").count();
        replace(&molt.config.join("sandbox.yaml"), &text)?;
        wait::until("the word about it", SOON, || {
            molt.sandbox.logs().matches("the spec is not taken").count() > before
        })?;
        let status = molt.status()?;
        let ignored = condition(&status, "SpecIgnored").context("a condition")?;
        ensure!(ignored["reason"] == "Invalid" && status["phase"] == "Idle", "{ignored:#}");
    }
    // No file at all, then a FIFO: nobody waits for a writer.
    let path = molt.config.join("sandbox.yaml");
    fs::remove_file(&path)?;
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0)?;
    wait::until("the word about it", SOON, || molt.sandbox.logs().contains("is not a regular file"))?;
    ensure!(molt.version()? == ("v1".to_owned(), 1));
    // A good one after all of that.
    replace(&path, &good.replace(&v1, &v2))?;
    let update = confirmed(&molt, 2)?;
    ensure!(update["by"].as_str().is_some_and(|by| by.contains(SPEC)), "{update:#}");
    ensure!(condition(&molt.status()?, "SpecIgnored").is_none());
    molt.serves("v2", 2)?;
    molt.sound()
}

fn later(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    rewrite(&molt, |spec| {
        spec["update"]["keep"] = json!(7);
        spec["workload"]["env"][0]["value"] = json!("hunter2");
    })?;
    hang_up(&molt)?;
    let ignored = condition(&molt.status()?, "SpecIgnored").context("a condition")?;
    let message = ignored["message"].as_str().unwrap_or_default();
    ensure!(ignored["reason"] == "RestartNeeded", "{ignored:#}");
    ensure!(message.contains("update.keep") && message.contains("workload.env"), "{message}");
    let events = molt.expect(0, &["events", "-o", "json"])?.stdout;
    ensure!(events.contains("update.keep") && !events.contains("hunter2"), "{events}");
    ensure!(!molt.sandbox.logs().contains("hunter2"), "a value is in the log");
    ensure!(molt.version()? == ("v1".to_owned(), 1));
    rewrite(&molt, |spec| spec["update"]["keep"] = json!(3))?;
    molt.sound()
}

/// Swaps the link of a volume, as the kubelet does it.
pub(super) fn swap(volume: &Path, version: u32, file: &str, text: &str) -> anyhow::Result<()> {
    let data = format!("..2026_01_02_03_04_05.{version}");
    fs::create_dir_all(volume.join(&data))?;
    fs::write(volume.join(&data).join(file), text)?;
    let new = volume.join("..data_tmp");
    symlink(&data, &new)?;
    fs::rename(&new, volume.join("..data"))?;
    let link = volume.join(file);
    if fs::symlink_metadata(&link).is_err() {
        symlink(format!("..data/{file}"), &link)?;
    } else {
        fs::remove_dir_all(volume.join(format!("..2026_01_02_03_04_05.{}", version - 1)))?;
    }
    Ok(())
}

fn configmap(bed: &Bed) -> anyhow::Result<()> {
    let mut setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/watch", json!({"files": true}));
    let volume = setup.config.join("volume");
    let spec = |setup: &Setup<'_>, image: &str| {
        let mut spec = setup.spec.clone();
        spec["spec"]["image"] = json!(image);
        spec.to_string()
    };
    swap(&volume, 1, "sandbox.yaml", &spec(&setup, &bed.small("v1")?))?;
    for word in &mut setup.options.program {
        if word == SPEC {
            "/etc/molt/volume/sandbox.yaml".clone_into(word);
        }
    }
    let (v2, v3) = (spec(&setup, &bed.small("v2")?), spec(&setup, &bed.small("v3")?));
    let molt = setup.start()?;
    swap(&volume, 2, "sandbox.yaml", &v2)?;
    confirmed(&molt, 2)?;
    molt.serves("v2", 2)?;
    swap(&volume, 3, "sandbox.yaml", &v3)?;
    confirmed(&molt, 3)?;
    molt.serves("v3", 3)?;
    molt.sound()
}

/// Text of a downward API file.
pub(super) fn notes(image: &str, policy: Option<&str>) -> String {
    let policy = policy.map(|text| format!("molt.dev/policy={}\n", json!(text))).unwrap_or_default();
    format!("app.kubernetes.io/part-of=\"x\"\nmolt.dev/image={}\n{policy}", json!(image))
}

pub(super) fn annotated<'a>(bed: &'a Bed, image: &str) -> anyhow::Result<Setup<'a>> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    swap(&setup.config.join("podinfo"), 1, "annotations", &notes(image, None))?;
    Ok(setup.with("/watch", json!({"annotations": {"file": "/etc/molt/podinfo/annotations"}})))
}

fn annotations(bed: &Bed) -> anyhow::Result<()> {
    // At the first start the annotation goes before the spec.
    let mut molt = annotated(bed, &bed.small("v2")?)?.start()?;
    molt.serves("v2", 1)?;
    let volume = molt.config.join("podinfo");
    let policy = "version: 1\nfilesystem_policy:\n  include_workdir: false\n  read_only: [/app, /bin, /usr, /lib, /etc, /proc]\n  read_write: [/sandbox/state, /tmp, /dev/null]\n";
    swap(&volume, 2, "annotations", &notes(&bed.small("v3")?, Some(policy)))?;
    let update = confirmed(&molt, 2)?;
    ensure!(update["by"].as_str().is_some_and(|by| by.contains("podinfo/annotations")), "{update:#}");
    molt.serves("v3", 2)?;
    ensure!(molt.store.join("generations/2/policy.yaml").exists());
    ensure!(fs::read_to_string(molt.store.join("generations/2/policy.yaml"))? == policy);
    // A bad one is told and ignored; the same one again is nothing new, across a restart too.
    swap(&volume, 3, "annotations", "molt.dev/image=\"")?;
    molt.until("the condition", |status| condition(status, "SpecIgnored").is_some())?;
    swap(&volume, 4, "annotations", &notes(&bed.small("v3")?, Some(policy)))?;
    molt.until("the condition to go", |status| condition(status, "SpecIgnored").is_none())?;
    molt.serves("v3", 2)?;
    swap(&volume, 5, "annotations", "half")?;
    molt.sandbox.stop(SOON)?;
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    molt.serves("v3", 3)?;
    ensure!(condition(&status, "SpecIgnored").is_some(), "{status:#}");
    molt.sound()
}

fn failed_once(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = annotated(bed, &bed.small("v1")?)?.start()?;
    let volume = molt.config.join("podinfo");
    swap(&volume, 2, "annotations", &notes(&bed.small("ill")?, None))?;
    molt.until("the way back", |status| {
        status["lastUpdate"]["outcome"] == "rolledBack"
            && status["phase"] == "Idle"
            && status["workload"]["ready"] == true
    })?;
    let before = updates(&molt)?;
    swap(&volume, 3, "annotations", &notes(&bed.small("ill")?, None))?;
    hang_up(&molt)?;
    ensure!(updates(&molt)? == before, "it was tried again");
    molt.sandbox.stop(SOON)?;
    molt.sandbox.restart()?;
    molt.settled()?;
    ensure!(molt.version()?.0 == "v1");
    let last = molt.last()?;
    ensure!(last["outcome"] == "rolledBack", "it was tried again after a restart: {last:#}");
    molt.sound()
}

fn flips(bed: &Bed) -> anyhow::Result<()> {
    let images = [bed.small("v1")?, bed.small("v2")?, bed.small("v3")?];
    let molt = annotated(bed, &images[0])?.start()?;
    let volume = molt.config.join("podinfo");
    let mut version = 1;
    for turn in 0..40 {
        version += 1;
        swap(&volume, version, "annotations", &notes(&images[turn % 3], None))?;
        // Some of them come one at a time, some in a burst.
        if turn % 7 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(150));
        }
    }
    swap(&volume, version + 1, "annotations", &notes(&images[1], None))?;
    let settled = || -> anyhow::Result<()> {
        let status = molt.told()?;
        ensure!(status["phase"] == "Idle" && status["workload"]["ready"] == true, "{status:#}");
        ensure!(molt.version()?.0 == "v2");
        Ok(())
    };
    wait::until_ok("the newest to run", SOON * 3, settled)?;
    // And it stays.
    hang_up(&molt)?;
    wait::until_ok("the newest to run", SOON, settled)?;
    molt.sound()
}
