//! What a sandbox holds: descriptors, threads, mounts, processes, namespaces, inodes of its store, memory of PID 1; and how
//! often PID 1 wakes.
//!
//! In: a sandbox that runs, and the file system its store has to itself. Out: numbers by name, and what there is more of
//! than there was. Must not: ask Molt; everything is looked up from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

use super::molt::Molt;

/// Kinds of namespaces, as `/proc/PID/ns` has them.
const NAMESPACES: [&str; 5] = ["user", "mnt", "pid", "ipc", "uts"];

/// What is held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// How many there are of each thing.
    pub counts: BTreeMap<String, u64>,
    /// Memory of PID 1 that is no file's, in KiB. Pages of Molt's own file are its own or shared as others run it or not.
    pub memory: u64,
}

impl Holdings {
    /// Looks it up.
    pub fn of(molt: &Molt) -> anyhow::Result<Self> {
        let pid = molt.sandbox.pid1()?;
        let mut counts = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            // One that was closed meanwhile is not held.
            let Ok(target) = fs::read_link(entry?.path()) else { continue };
            *counts.entry(format!("descriptors of {}", kind(&target))).or_default() += 1;
        }
        counts.insert("threads".to_owned(), fs::read_dir(format!("/proc/{pid}/task"))?.count() as u64);
        let family = molt.family()?;
        let mut spaces: BTreeMap<&str, BTreeSet<_>> = BTreeMap::new();
        for (pid, name) in &family {
            *counts.entry(format!("processes {name}")).or_default() += 1;
            for space in NAMESPACES {
                spaces.entry(space).or_default().extend(fs::read_link(format!("/proc/{pid}/ns/{space}")).ok());
            }
            if let Ok(table) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) {
                *counts.entry(format!("mounts that {name} sees")).or_default() += table.lines().count() as u64;
            }
        }
        counts.extend(spaces.iter().map(|(space, all)| (format!("namespaces {space}"), all.len() as u64)));
        // Those of files that have no name any more, too.
        let store = rustix::fs::statvfs(&molt.store)?;
        // The history is cut into four files at most, by its length alone.
        let rotated = (1..=3).filter(|number| molt.store.join(format!("history.jsonl.{number}")).exists()).count();
        counts.insert("inodes of the store".to_owned(), store.f_files - store.f_ffree - rotated as u64);
        Ok(Self { counts, memory: memory(pid)? })
    }

    /// Nothing is there more often than in `before`; memory apart.
    pub fn within(&self, before: &Self) -> anyhow::Result<()> {
        let was = |name: &String| before.counts.get(name).copied().unwrap_or(0);
        let more = self.counts.iter().filter(|(name, count)| **count > was(name));
        let more: Vec<String> = more.map(|(name, count)| format!("{name}: {} became {count}", was(name))).collect();
        ensure!(more.is_empty(), "more is held than before: {}", more.join(", "));
        Ok(())
    }
}

/// What a descriptor is, without its number.
fn kind(target: &Path) -> String {
    let text = target.to_string_lossy();
    match text.split_once(":[") {
        Some((kind, _)) => kind.to_owned(),
        // Generations are numbered on.
        None => text.chars().filter(|c| !c.is_ascii_digit()).collect(),
    }
}

fn memory(pid: u32) -> anyhow::Result<u64> {
    kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Anonymous:")
}

/// Memory of PID 1 in KiB, pages of its file counted in.
pub fn resident(molt: &Molt) -> anyhow::Result<u64> {
    kilobytes(&format!("/proc/{}/status", molt.sandbox.pid1()?), "VmRSS:")
}

/// Context switches that PID 1's threads asked for: each is an end of a wait.
pub fn wakes(molt: &Molt) -> anyhow::Result<u64> {
    let mut all = 0;
    for task in fs::read_dir(format!("/proc/{}/task", molt.sandbox.pid1()?))? {
        // A thread that ended meanwhile.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).context("switches")?;
        all += line.trim().parse::<u64>()?;
    }
    Ok(all)
}

fn kilobytes(file: &str, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(file)?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{file} has no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
