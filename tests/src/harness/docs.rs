//! What a page of the docs says can be typed, typed at a live Molt, as it stands there.
//!
//! In: a page below `docs/`, a heading, a running sandbox. Out: the blocks below the heading, by language, and what a shell
//! made of them. The shell runs beside the sandbox, in a mount namespace in which `/run/molt` is the sandbox's own and
//! `molt` is in the `PATH`; so a page can name the paths that a reader has. Must not: change a word of a block.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use super::bed::Bed;
use super::images;
use super::molt::{Molt, Setup};
use super::process::{self, Output};
use super::runtime::Kind;

const BLOCK: Duration = Duration::from_mins(2);
/// The registry of the pages; a mirror answers for it.
pub const REGISTRY: &str = "registry.example.com";
/// The tags of `registry.example.com/acme/daemon`, and the variants of `small` behind them; 1.6 is sick.
const TAGS: [(&str, &str); 3] = [("1.4", "v1"), ("1.5", "v2"), ("1.6", "ill")];

/// What stands below a heading, up to the next one of the same rank.
#[derive(Debug, Clone)]
pub struct Section {
    name: String,
    text: String,
}

impl Section {
    /// The section below `## HEADING` of `docs/PAGE`.
    pub fn of(page: &str, heading: &str) -> anyhow::Result<Self> {
        let name = format!("docs/{page}, {heading}");
        let text = page_text(page)?;
        let text = text.split(&format!("\n## {heading}\n")).nth(1).with_context(|| format!("no section {name}"))?;
        Ok(Self { text: text.split("\n## ").next().unwrap_or(text).to_owned(), name })
    }

    /// Its blocks of a language, in order; there must be one.
    pub fn blocks(&self, language: &str) -> anyhow::Result<Vec<String>> {
        let blocks = blocks(&self.text, language);
        ensure!(!blocks.is_empty(), "{}: no {language} block", self.name);
        Ok(blocks)
    }
}

/// Headings of `docs/PAGE` that have an `sh` block below them.
pub fn headings(page: &str) -> anyhow::Result<Vec<String>> {
    let text = page_text(page)?;
    let sections = text.split("\n## ").skip(1).filter(|section| !blocks(section, "sh").is_empty());
    Ok(sections.filter_map(|section| section.lines().next()).map(str::to_owned).collect())
}

/// The blocks of a language in a text.
pub fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
}

fn page_text(page: &str) -> anyhow::Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the project's folder")?;
    let path = root.join("docs").join(page);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// A sandbox as the pages speak of it: it runs `registry.example.com/acme/daemon:1.4`; 1.5 is there, and 1.6, which is
/// sick.
pub fn setup(bed: &Bed) -> anyhow::Result<Setup<'_>> {
    for (tag, variant) in TAGS {
        bed.image(&format!("acme/daemon:{tag}"), || images::small(variant, &bed.program("molt-testd")?))?;
    }
    let mirror = bed.registry()?.address.to_string();
    let setup = Setup::new(bed, Kind::Light, &format!("{REGISTRY}/acme/daemon:1.4"))?;
    Ok(setup.with("/registries/mirrors", json!({REGISTRY: [mirror]})))
}

/// Somebody who types what a page says, in a folder of their own.
#[derive(Debug)]
pub struct Reader<'a> {
    molt: &'a Molt,
    programs: PathBuf,
    env: Vec<(String, String)>,
    /// Where they are; files that a page speaks of as there are put here.
    pub folder: PathBuf,
}

impl<'a> Reader<'a> {
    /// Before the first word.
    pub fn new(bed: &Bed, molt: &'a Molt) -> anyhow::Result<Self> {
        let programs = bed.scratch("programs")?;
        std::os::unix::fs::symlink(bed.molt()?, programs.join("molt"))?;
        Ok(Self { molt, programs, env: Vec::new(), folder: bed.scratch("reader")? })
    }

    /// Sets a variable for what is typed from now on.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Types one block, which must end well.
    pub fn types(&self, block: &str) -> anyhow::Result<Output> {
        // A mount that only this shell sees; the sandbox's folder is reached through its root.
        let stage = "mount -t tmpfs tmpfs /run && ln -s \"$MOLT_RUN\" /run/molt && exec bash -euo pipefail -c \"$0\"";
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", stage, block]);
        command.env("MOLT_RUN", format!("/proc/{}/root/run/molt", self.molt.sandbox.pid1()?));
        command.env("PATH", format!("{}:{path}", self.programs.display())).current_dir(&self.folder);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        process::output(&mut command, BLOCK)?.ok().with_context(|| format!("typing:\n{block}"))
    }

    /// Types every `sh` block of a section, in order; what each said.
    pub fn follows(&self, section: &Section) -> anyhow::Result<Vec<Output>> {
        let blocks = section.blocks("sh")?;
        blocks.iter().map(|block| self.types(block).with_context(|| section.name.clone())).collect()
    }
}
