//! Molt as PID 1 of a sandbox, its store on an ext4 of its own.
//!
//! In: a bed, a kind of sandbox. Out: replacements as [`Seen`], [`Memory`], [`Census`]. Must not: talk to Molt in any
//! way but by its own client.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use molt_tests::harness::bed::Bed;
use molt_tests::harness::disk::{Disk, FileSystem};
use molt_tests::harness::runtime::{Kind, Options, Sandbox};
use serde_json::{Value, json};

use super::daemon::{self, Seen, Version};
use molt_tests::bench::{Process, Table, entries, kilobytes};

const STEP: Duration = Duration::from_mins(1);

/// What the client is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Command {
    Update(Version),
    Rollback,
}

/// A sandbox.
#[derive(Debug)]
pub(crate) struct Molt {
    sandbox: Sandbox,
    disk: Disk,
    port: u16,
    images: [String; 2],
    current: Version,
}

impl Molt {
    /// Starts one on version A and waits until that answers.
    pub(crate) fn start(bed: &Bed, kind: Kind, responder: &Path) -> anyhow::Result<Self> {
        let image =
            |version: Version| bed.image(&format!("bench:{}", version.name()), || daemon::image(version, responder));
        let images = [image(Version::A)?, image(Version::B)?];
        let (host, _) = images[0].split_once('/').context("a reference with a host")?;
        let port = daemon::free_port()?;
        let disk = Disk::new(&bed.scratch("disk")?, FileSystem::Ext4, 8192)?;
        let spec = json!({
            "apiVersion": "molt.dev/v1alpha1",
            "kind": "Sandbox",
            "metadata": {"name": "bench"},
            "spec": {
                "image": images[0],
                "policy": {"version": 1, "filesystem_policy": {
                    "read_only": ["/bin", "/app", "/etc", "/proc"],
                    "read_write": ["/sandbox/state", "/scratch", "/tmp"],
                }},
                "workload": {"env": [{"name": "PORT", "value": port.to_string()}]},
                "health": {"readiness": {"tcpSocket": {"port": port}}, "monitor": "0s"},
                "registries": {"insecure": [host]},
            },
        });
        let file = bed.scratch("spec")?.join("sandbox.json");
        fs::write(&file, spec.to_string())?;
        let program = ["/usr/local/bin/molt", "init", "--spec", "/etc/molt.json", "--store", "/store"];
        let store = disk.path.join("store");
        fs::create_dir(&store)?;
        let options = Options::new(bed, &program)?
            .volume(&store, "/store")
            .volume(&bed.volume("state")?, "/sandbox/state")
            .read_only(&file, "/etc/molt.json");
        let sandbox = Sandbox::start(bed, kind, options)?;
        let started = daemon::await_version(port, "a");
        started.with_context(|| format!("starting molt:\n{}", sandbox.logs()))?;
        Ok(Self { sandbox, disk, port, images, current: Version::A })
    }

    /// The version that does not run.
    pub(crate) fn other(&self) -> Version {
        self.current.other()
    }

    /// Has the workload write to its root.
    pub(crate) fn dirty(&self, megabytes: usize) -> anyhow::Result<()> {
        daemon::dirty(self.port, megabytes)
    }

    /// Replaces what runs by the other version.
    pub(crate) fn swap(&mut self, command: Command) -> anyhow::Result<Seen> {
        let (to, words) = match command {
            Command::Update(version) => (version, vec!["update", self.images[version as usize].as_str()]),
            Command::Rollback => (self.other(), vec!["rollback"]),
        };
        let (gap, said) = daemon::watched(self.port, to.name(), || {
            let words: Vec<&str> = ["/usr/local/bin/molt"].into_iter().chain(words).chain(["-o", "json"]).collect();
            self.sandbox.exec_within(&words, STEP)?.ok()?.json()
        })
        .with_context(|| format!("{command:?}; PID 1 said:\n{}", tail(&self.sandbox.logs())))?;
        anyhow::ensure!(said["outcome"] == "confirmed", "{said}");
        self.current = to;
        let micros = |name: &str| said[name].as_u64().map(Duration::from_micros);
        let downtime = micros("downtimeUs").with_context(|| format!("no downtimeUs in {said}"))?;
        Ok(Seen { gap, downtime: Some(downtime), unready: micros("unreadyUs") })
    }

    /// Memory of PID 1, the shim and the workload.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let tree = Process::tree(self.sandbox.pid1()?)?;
        let sizes = |one: &Process| Sizes {
            rss: kilobytes(one.pid, "smaps_rollup", "Rss"),
            pss: kilobytes(one.pid, "smaps_rollup", "Pss"),
            private: kilobytes(one.pid, "smaps_rollup", "Private_Dirty")
                + kilobytes(one.pid, "smaps_rollup", "Private_Clean"),
            anonymous: kilobytes(one.pid, "smaps_rollup", "Anonymous"),
        };
        let [init, shim, workload] = tree.as_slice() else {
            anyhow::bail!("PID 1, shim and workload are three processes, not {tree:?}")
        };
        Ok(Memory { init: sizes(init), shim: sizes(shim), workload: sizes(workload) })
    }

    /// Everything that could leak.
    pub(crate) fn census(&self) -> anyhow::Result<Census> {
        let init = self.sandbox.pid1()?;
        let tree = Process::tree(init)?;
        let proc = PathBuf::from(format!("/proc/{init}"));
        Ok(Census {
            processes: tree.len(),
            zombies: tree.iter().filter(|one| one.state == 'Z').count(),
            threads: entries(&proc.join("task")),
            descriptors: entries(&proc.join("fd")),
            mounts: fs::read_to_string(proc.join("mountinfo"))?.lines().count(),
            generations: entries(&self.disk.path.join("store/generations")),
            trash: entries(&self.disk.path.join("store/trash")),
            memory: self.memory()?.init,
        })
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Of one process, in kB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    rss: u64,
    pss: u64,
    private: u64,
    anonymous: u64,
}

impl Sizes {
    fn json(self) -> Value {
        json!({"rss": self.rss, "pss": self.pss, "private": self.private, "anonymous": self.anonymous})
    }
}

/// Of the processes of a sandbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    init: Sizes,
    shim: Sizes,
    workload: Sizes,
}

impl Memory {
    /// As data.
    pub(crate) fn json(self) -> Value {
        json!({"init": self.init.json(), "shim": self.shim.json(), "workload": self.workload.json()})
    }

    /// As a table.
    pub(crate) fn table(self) -> Table {
        let mut table = Table::new(&["", "RSS", "PSS", "private", "anonymous"]);
        for (name, one) in [("molt init", self.init), ("shim", self.shim), ("(workload)", self.workload)] {
            table.row([
                name.to_owned(),
                one.rss.to_string(),
                one.pss.to_string(),
                one.private.to_string(),
                one.anonymous.to_string(),
            ]);
        }
        let sum = |of: fn(Sizes) -> u64| (of(self.init) + of(self.shim)).to_string();
        let sums = [sum(|of| of.rss), sum(|of| of.pss), sum(|of| of.private), sum(|of| of.anonymous)];
        table.row(["molt init + shim".to_owned()].into_iter().chain(sums));
        table
    }
}

/// What exists at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Census {
    processes: usize,
    zombies: usize,
    threads: usize,
    descriptors: usize,
    mounts: usize,
    generations: usize,
    trash: usize,
    memory: Sizes,
}

impl Census {
    pub(crate) const COLUMNS: [&'static str; 11] = [
        "",
        "processes",
        "zombies",
        "threads",
        "descriptors",
        "mounts",
        "generations kept",
        "trash",
        "RSS kB",
        "PSS kB",
        "anonymous kB",
    ];

    /// A line of the table.
    pub(crate) fn row(self, name: &str) -> impl IntoIterator<Item = String> + use<> {
        let counts =
            [self.processes, self.zombies, self.threads, self.descriptors, self.mounts, self.generations, self.trash];
        let sizes = [self.memory.rss, self.memory.pss, self.memory.anonymous];
        let name = [name.to_owned()].into_iter();
        name.chain(counts.map(|count| count.to_string())).chain(sizes.map(|size| size.to_string()))
    }

    /// As data.
    pub(crate) fn json(self) -> Value {
        json!({
            "processes": self.processes, "zombies": self.zombies, "threads": self.threads,
            "descriptors": self.descriptors, "mounts": self.mounts, "generations": self.generations,
            "trash": self.trash, "init": self.memory.json(),
        })
    }
}
