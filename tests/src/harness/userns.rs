//! User namespaces like that of a pod with `hostUsers: false`: 65536 ids, or one, mapped by the machine's root.
//!
//! In: a map. Out: a namespace that programs can be started in, folders that belong to its root. Must not: need
//! `newuidmap`, or change anything that is not the bed's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::process::{self, Background};
use super::wait;

const STEP: Duration = Duration::from_secs(30);
/// First id inside, first id outside, how many; as in `/proc/PID/uid_map`.
pub const MAP: &str = "0 100000 65536";
/// The same with its root alone.
pub const SINGLE: &str = "0 100000 1";
/// The namespace's root, as the machine sees it.
pub const ROOT: u32 = 100_000;

/// [`MAP`] as an OCI runtime wants it.
pub fn mappings() -> Value {
    json!([{"containerID": 0, "hostID": ROOT, "size": 65536}])
}

/// Makes everything below `path` that belongs to the machine's root belong to the namespace's root.
pub fn give(path: &Path) -> anyhow::Result<()> {
    give_to(path, ROOT)
}

/// The same for whoever is root of another namespace.
pub fn give_to(path: &Path, root: u32) -> anyhow::Result<()> {
    let owner = format!("{root}:{root}");
    let mut command = Command::new("chown");
    process::run(command.args(["--recursive", "--no-dereference", "--from=0:0", &owner]).arg(path), STEP).map(drop)
}

/// A user namespace, held by a process that does nothing.
#[derive(Debug)]
pub struct UserNamespace(Background);

impl UserNamespace {
    /// Makes one with these ids.
    pub fn new(ids: &str) -> anyhow::Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--user", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let holder = Background::spawn(&mut command)?;
        let own = fs::read_link("/proc/self/ns/user")?;
        let of_holder = format!("/proc/{}", holder.0.id());
        wait::until("a user namespace", STEP, || {
            fs::read_link(format!("{of_holder}/ns/user")).is_ok_and(|link| link != own)
        })?;
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("{of_holder}/{map}"), ids)?;
        }
        Ok(Self(holder))
    }

    /// Which namespace this is: `user:[NUMBER]`.
    pub fn link(&self) -> anyhow::Result<PathBuf> {
        Ok(fs::read_link(format!("/proc/{}/ns/user", self.0.0.id()))?)
    }

    /// Maps every id of this namespace to itself in the one that process `pid` has made below it.
    pub fn map_below(&self, pid: u32) -> anyhow::Result<()> {
        for map in ["gid_map", "uid_map"] {
            let script = format!("echo 0 0 65536 > /proc/{pid}/{map}");
            process::run(self.enter().args(["sh", "-c", &script]), STEP)?;
        }
        Ok(())
    }

    /// A command that runs what is added to it as root in this namespace, with no supplementary group.
    pub fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--user=/proc/{}/ns/user", self.0.0.id())).args(["--setuid=0", "--setgid=0", "--"]);
        command
    }
}
