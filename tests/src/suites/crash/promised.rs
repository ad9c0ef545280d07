//! What is promised, whatever was cut off, failed or lost: one check for every sweep.
//!
//! In: a sandbox that serves, and the scene it came from. Out: an error that says what is not as promised. Must not: take
//! the sandbox's word where the disk or the workload can be asked.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::scene::{Change, Scene, image};
use crate::harness::image::digest;
use crate::harness::molt::{Molt, SOON, names};
use crate::harness::wait;

/// Files of the state that the daemon itself writes at each start and stop.
const LIVE: [&str; 4] = ["starts", "clean-stop", "signals", "lock"];

/// Something serves, with nothing under way; the status.
pub(super) fn serves(molt: &Molt) -> anyhow::Result<Value> {
    let status = molt.told()?;
    ensure!(status["phase"] == "Idle" && status["workload"]["ready"] == true, "{status:#}");
    Ok(status)
}

/// The old one runs or the new one, that is what is shown, and the state is as it was; the version that runs.
pub(super) fn kept(scene: &Scene, molt: &Molt, status: &Value) -> anyhow::Result<String> {
    let state = contents(&molt.state)?;
    let first = scene.change == Change::FirstBoot;
    ensure!(first || state == scene.state, "the state was\n{}\nis\n{state}", scene.state);
    ensure!(first || molt.clicks()? == 1, "a click is lost");
    let version = molt.version()?.0;
    let (old, new) = scene.change.versions();
    ensure!(version == old || Some(version.as_str()) == new, "{version} runs");
    ensure!(status["confirmed"]["image"] == image(&version).as_str(), "{version} runs, but {status:#}");
    ensure!(status["trial"].is_null() && status["staged"].is_null(), "{status:#}");
    for condition in status["conditions"].as_array().context("conditions")? {
        let bad = ["JournalReset", "Fallback"].iter().any(|kind| condition["type"] == *kind);
        ensure!(!bad || condition["status"] == "False", "{condition:#}");
    }
    told_truly(scene, molt, new == Some(version.as_str()))?;
    Ok(version)
}

/// All of it, of a sandbox that was started again: what runs, the state, what is told, the store, and that the next
/// update works. The version that ran at first.
pub(super) fn all(scene: &Scene, molt: &Molt) -> anyhow::Result<String> {
    let status = wait::until_ok("something to serve", SOON, || serves(molt))?;
    let version = kept(scene, molt, &status)?;
    // A clean-up leaves what is needed and nothing else.
    wait::until_ok("a clean-up", SOON, || molt.operator("POST", "/v1/gc", &json!({})))?;
    tidy(molt)?;
    // And nothing is stuck.
    let record = molt.updated(&image("v3"))?;
    ensure!(record["outcome"] == "confirmed" && molt.version()?.0 == "v3", "{record:#}");
    molt.sound()?;
    Ok(version)
}

/// What is said of the change is what became of it.
fn told_truly(scene: &Scene, molt: &Molt, runs_new: bool) -> anyhow::Result<()> {
    let records = molt.operator("GET", "/v1/updates", &Value::Null)?;
    let ours: Vec<&Value> = list(&records)?
        .iter()
        .filter(|record| record["kind"] == "update" || record["kind"] == "rollback")
        .filter(|record| !record["id"].as_str().is_some_and(|id| scene.known.contains(id)))
        .collect();
    for record in &ours {
        ensure!(record["outcome"].is_string(), "still under way: {record:#}");
        let confirmed = record["outcome"] == "confirmed";
        ensure!(confirmed == runs_new, "the new one runs: {runs_new}, but {record:#}");
    }
    ensure!(!runs_new || !ours.is_empty(), "nothing says how the new one came to run: {records:#}");
    Ok(())
}

/// Files of a user, for the state: odd names, modes, links, times.
pub(super) fn plant(state: &Path) -> anyhow::Result<()> {
    let kept = state.join("kept/in here");
    fs::create_dir_all(&kept)?;
    fs::write(kept.join("keys\nof the session"), [0u8, 255, 10, 13].repeat(5000))?;
    fs::write(kept.join("empty"), "")?;
    std::os::unix::fs::symlink("../../etc/passwd", kept.join("link"))?;
    fs::hard_link(kept.join("empty"), kept.join("empty too"))?;
    for (path, mode) in [(state.to_owned(), 0o777), (kept.clone(), 0o2750), (kept.join("empty"), 0o640)] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

/// Everything of a state folder, one line a file: path, mode, owner, time, digest. Live files and the time of the folder
/// they are in apart.
pub(super) fn contents(folder: &Path) -> anyhow::Result<String> {
    fn walk(folder: &Path, top: bool, lines: &mut Vec<String>) -> anyhow::Result<()> {
        for name in names(folder)? {
            if top && (LIVE.contains(&name.as_str()) || name.starts_with('.')) {
                continue;
            }
            let path = folder.join(&name);
            let about = fs::symlink_metadata(&path)?;
            let what = if about.is_symlink() {
                fs::read_link(&path)?.display().to_string()
            } else if about.is_dir() {
                walk(&path, false, lines)?;
                "a folder".to_owned()
            } else {
                digest(&fs::read(&path)?)
            };
            let (mode, uid, gid, links) = (about.mode(), about.uid(), about.gid(), about.nlink());
            let (path, time) = (path.to_string_lossy(), (about.mtime(), about.mtime_nsec()));
            let path = path.escape_default();
            lines.push(format!("{path} {mode:o} {uid}:{gid} {links} {time:?} {what}"));
        }
        Ok(())
    }
    let mut lines = Vec::new();
    walk(folder, true, &mut lines)?;
    // Of the copy, too: its own place does not matter.
    Ok(lines.join("\n").replace(&folder.display().to_string(), ""))
}

/// The store holds what the generations that are shown need, and nothing else.
fn tidy(molt: &Molt) -> anyhow::Result<()> {
    let shown = molt.operator("GET", "/v1/generations", &Value::Null)?;
    let numbers: BTreeSet<String> = list(&shown)?.iter().map(|one| one["generation"].to_string()).collect();
    let stored: BTreeSet<String> = molt.stored("generations")?.into_iter().collect();
    ensure!(numbers == stored, "generations {stored:?} are stored, {numbers:?} are shown");
    let mut needed = BTreeSet::new();
    for number in &stored {
        let record = fs::read(molt.store.join(format!("generations/{number}/generation.json")))?;
        let record: Value = serde_json::from_slice(&record)?;
        let layers = record["layers"].as_array().context("layers")?;
        needed.extend(layers.iter().filter_map(|layer| Some(layer["folder"].as_str()?.to_owned())));
    }
    let layers: BTreeSet<String> = molt.stored("layers/sha256")?.into_iter().collect();
    ensure!(layers == needed, "layers {layers:?} are stored, {needed:?} are needed");
    for folder in ["tmp", "trash"] {
        let left = molt.stored(folder)?;
        ensure!(left.is_empty(), "{folder} holds {left:?}");
    }
    let blobs = molt.stored("blobs/sha256")?.len();
    ensure!(blobs <= 2 * stored.len(), "{blobs} blobs for {} generations", stored.len());
    Ok(())
}

fn list(value: &Value) -> anyhow::Result<&Vec<Value>> {
    let inner = ["items", "updates", "generations"].iter().find_map(|key| value[*key].as_array());
    value.as_array().or(inner).with_context(|| format!("no list: {value:#}"))
}

pub(super) fn ids(records: &Value) -> anyhow::Result<BTreeSet<String>> {
    Ok(list(records)?.iter().filter_map(|record| Some(record["id"].as_str()?.to_owned())).collect())
}
