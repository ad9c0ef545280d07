//! A sandbox with little memory, or few processes.
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

/// A cgroup with everything of a sandbox in it.
#[derive(Debug)]
pub struct Group {
    hierarchy: PathBuf,
    group: PathBuf,
}

impl Group {
    /// Puts every process of `molt` in a group that may have so many bytes of memory.
    pub fn memory(bed: &Bed, molt: &Molt, bytes: u64) -> anyhow::Result<Self> {
        Self::new(bed, molt, "memory")?.limited("memory.limit_in_bytes", bytes)
    }

    /// Puts every process of `molt` in a group that may have so many processes and threads.
    pub fn processes(bed: &Bed, molt: &Molt, most: u64) -> anyhow::Result<Self> {
        Self::new(bed, molt, "pids")?.limited("pids.max", most)
    }

    fn new(bed: &Bed, molt: &Molt, controller: &str) -> anyhow::Result<Self> {
        let hierarchy = bed.scratch(controller)?;
        let mut mount = Command::new("mount");
        process::run(mount.args(["-t", "cgroup", "-o", controller, "none"]).arg(&hierarchy), SOON)?;
        let group = hierarchy.join(format!("molt-test-{}", bed.next()));
        let made = Self { hierarchy, group };
        fs::create_dir(&made.group).with_context(|| format!("making {}", made.group.display()))?;
        for (pid, _) in molt.family()? {
            // One that has just ended is in no group.
            if let Err(error) = fs::write(made.group.join("cgroup.procs"), pid.to_string())
                && pid == molt.sandbox.pid1()?
            {
                return Err(error).context("moving PID 1");
            }
        }
        Ok(made)
    }

    fn limited(self, file: &str, most: u64) -> anyhow::Result<Self> {
        fs::write(self.group.join(file), most.to_string()).with_context(|| format!("{file}: {most}"))?;
        Ok(self)
    }

    /// How many processes were killed in it for want of memory.
    pub fn kills(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.group.join("memory.oom_control"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).context("a number of kills")?;
        Ok(line.parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What is still in it goes back to the root, or the folder stays. More may be forked meanwhile.
        for _ in 0..20 {
            for pid in fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = fs::write(self.hierarchy.join("cgroup.procs"), pid);
            }
            if fs::remove_dir(&self.group).is_ok() {
                break;
            }
        }
        let _ = process::run(Command::new("umount").arg(&self.hierarchy), SOON);
    }
}
