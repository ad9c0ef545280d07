//! A sandbox with little memory.
//!
//! In: a sandbox that runs, a limit. Out: how many of its processes the kernel killed. Must not: outlive the test; the
//! hierarchy (version 1, as this machine has it) is mounted for the test alone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use super::bed::Bed;
use super::molt::{Molt, SOON};
use super::process;

/// A memory cgroup with everything of a sandbox in it.
#[derive(Debug)]
pub struct Memory {
    hierarchy: PathBuf,
    group: PathBuf,
}

impl Memory {
    /// Puts every process of `molt` in a group that may have `bytes`.
    pub fn limit(bed: &Bed, molt: &Molt, bytes: u64) -> anyhow::Result<Self> {
        let hierarchy = bed.scratch("memory")?;
        let mut mount = Command::new("mount");
        process::run(mount.args(["-t", "cgroup", "-o", "memory", "none"]).arg(&hierarchy), SOON)?;
        let group = hierarchy.join(format!("molt-test-{}", molt.sandbox.pid1()?));
        let memory = Self { hierarchy, group };
        fs::create_dir(&memory.group).with_context(|| format!("making {}", memory.group.display()))?;
        for (pid, _) in molt.family()? {
            fs::write(memory.group.join("cgroup.procs"), pid.to_string())?;
        }
        fs::write(memory.group.join("memory.limit_in_bytes"), bytes.to_string())?;
        Ok(memory)
    }

    /// How many processes were killed in it.
    pub fn kills(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.group.join("memory.oom_control"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).context("a number of kills")?;
        Ok(line.parse()?)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // What is still in it goes back to the root, or the folder stays.
        for pid in fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(self.hierarchy.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.group);
        let _ = process::run(Command::new("umount").arg(&self.hierarchy), SOON);
    }
}
