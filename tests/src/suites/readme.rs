//! What the README says can be typed, typed: every `sh` block, line by line, from the project's folder.
//!
//! In: `README.md`. Out: cases. Must not: run what is marked `console`, which needs a container or a cluster.

use std::{path::Path, process::Command};

use anyhow::{Context as _, ensure};

use crate::harness::{
    bed::Bed,
    cases::{Case, case},
    docs,
};

/// The cases.
pub(super) const CASES: &[Case] = &[
    case("readme::every_sh_block_runs", every_sh_block_runs).alone(),
    case("readme::the_demo_tells_its_story_as_data", demo_as_data),
    case("readme::the_demo_runs_for_an_ordinary_user", demo_for_a_user),
];

fn every_sh_block_runs(_: &Bed) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the project's folder")?;
    let blocks = docs::blocks(&std::fs::read_to_string(root.join("README.md"))?, "sh");
    ensure!(blocks.len() >= 2, "the README has only {} sh blocks", blocks.len());
    for block in blocks {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &block])
            .current_dir(root)
            .env_remove("CARGO_TARGET_DIR")
            .output()?;
        ensure!(
            output.status.success(),
            "{block}ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn story(output: &std::process::Output) -> anyhow::Result<serde_json::Value> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the demo ended with {}: {text}", output.status);
    let story: serde_json::Value = serde_json::from_slice(&output.stdout).context("the demo's data")?;
    ensure!(story["ok"] == true, "{story}");
    let steps: Vec<(&str, &str)> = story["steps"]
        .as_array()
        .context("steps")?
        .iter()
        .map(|step| (step["step"].as_str().unwrap_or(""), step["outcome"].as_str().unwrap_or("")))
        .collect();
    let expected =
        [("boot", "confirmed"), ("update", "confirmed"), ("bad-update", "rolledBack"), ("rollback", "confirmed")];
    ensure!(steps == expected, "{steps:?}");
    let kept = story["steps"].as_array().is_some_and(|steps| steps.iter().all(|step| step["stateKept"] == true));
    ensure!(kept, "{story}");
    Ok(story)
}

fn demo_as_data(bed: &Bed) -> anyhow::Result<()> {
    let story = story(&Command::new(bed.molt()?).args(["demo", "--json"]).output()?)?;
    ensure!(story["degraded"].as_array().is_some_and(Vec::is_empty), "as root nothing is lost: {story}");
    Ok(())
}

fn demo_for_a_user(bed: &Bed) -> anyhow::Result<()> {
    let folder = bed.scratch("demo")?;
    let molt = folder.join("molt");
    std::fs::copy(bed.molt()?, &molt)?;
    std::os::unix::fs::chown(&folder, Some(1000), Some(1000))?;
    let output = Command::new("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
        .arg(&molt)
        .args(["demo", "--json", "--keep"])
        .arg(folder.join("kept"))
        .output()?;
    let story = story(&output)?;
    ensure!(story["degraded"].as_array().is_some_and(|lost| !lost.is_empty()), "the shared user must show: {story}");
    ensure!(folder.join("kept/state/starts").exists(), "--keep must leave everything");
    Ok(())
}
