//! The same work done by others: no container at all, crun, podman.
//!
//! In: the responder. Out: replacements as [`Seen`]. Each is at its best: images and roots are in place, host
//! networking, no cgroups, the old container is removed after the measurement where that is possible. Must not: leave a
//! container behind; dropping one ends it.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use molt_tests::harness::bed::Bed;
use molt_tests::harness::podman;
use molt_tests::harness::process::{self, Background};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::json;

use super::daemon::{self, PROGRAM, Seen, Version};

const STEP: Duration = Duration::from_mins(1);

/// `kill`, wait, fork, exec: what cannot be done without.
#[derive(Debug)]
pub(crate) struct Floor {
    program: PathBuf,
    port: u16,
    running: Background,
}

impl Floor {
    /// Starts version A.
    pub(crate) fn start(responder: &Path) -> anyhow::Result<Self> {
        let (program, port) = (responder.to_owned(), daemon::free_port()?);
        let running = Background::spawn(&mut Self::command(&program, port, Version::A))?;
        daemon::await_version(port, Version::A.name())?;
        Ok(Self { program, port, running })
    }

    fn command(program: &Path, port: u16, version: Version) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PORT", port.to_string()).env("VERSION", version.name());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Replaces what runs.
    pub(crate) fn swap(&mut self, to: Version) -> anyhow::Result<Seen> {
        let mut command = Self::command(&self.program, self.port, to);
        let (gap, downtime) = daemon::watched(self.port, to.name(), || {
            kill_process(pid(self.running.0.id())?, Signal::TERM)?;
            self.running.0.wait()?;
            let gone = Instant::now();
            // Returns when exec has happened.
            self.running = Background::spawn(&mut command)?;
            Ok(gone.elapsed())
        })?;
        Ok(Seen { gap, downtime: Some(downtime), unready: None })
    }
}

fn pid(id: u32) -> anyhow::Result<Pid> {
    Pid::from_raw(i32::try_from(id)?).context("0 is no process")
}

/// `crun kill`, `crun delete`, `crun run` on a root that is ready.
#[derive(Debug)]
pub(crate) struct Crun {
    folder: PathBuf,
    port: u16,
    serial: u32,
    current: Version,
}

impl Crun {
    /// Makes two bundles and starts version A.
    pub(crate) fn start(bed: &Bed, responder: &Path) -> anyhow::Result<Self> {
        let (folder, port) = (bed.scratch("crun")?, daemon::free_port()?);
        for version in [Version::A, Version::B] {
            let bundle = folder.join(version.name());
            daemon::root(&bundle.join("rootfs"), version, responder)?;
            fs::write(bundle.join("config.json"), config(port).to_string())?;
        }
        let crun = Self { folder, port, serial: 0, current: Version::A };
        crun.launch()?;
        daemon::await_version(port, Version::A.name())?;
        Ok(crun)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new("crun");
        command.arg("--root").arg(self.folder.join("state")).args(["--cgroup-manager", "disabled"]).arg(verb);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn name(&self) -> String {
        format!("bench-{}", self.serial)
    }

    fn launch(&self) -> anyhow::Result<()> {
        let mut command = self.command("run");
        command.args(["--detach", "--bundle"]).arg(self.folder.join(self.current.name()));
        command.arg("--pid-file").arg(self.folder.join("pid")).arg(self.name());
        // The container keeps what it is given.
        command.stderr(File::create(self.folder.join("log"))?);
        ran(&mut command)
    }

    /// Replaces what runs.
    pub(crate) fn swap(&mut self) -> anyhow::Result<Seen> {
        let to = self.current.other();
        let running = fs::read_to_string(self.folder.join("pid"))?.trim().parse::<u32>()?;
        let running = pidfd_open(pid(running)?, PidfdFlags::empty())?;
        let (gap, ()) = daemon::watched(self.port, to.name(), || {
            ran(self.command("kill").args([&self.name(), "TERM"]))?;
            gone(&running)?;
            ran(self.command("delete").arg(self.name()))?;
            self.serial += 1;
            self.current = to;
            self.launch()
        })?;
        Ok(Seen { gap, downtime: None, unready: None })
    }
}

impl Drop for Crun {
    fn drop(&mut self) {
        // What does not go ends with the world.
        let _ = ran(self.command("delete").arg("--force").arg(self.name()));
    }
}

fn ran(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn gone(process: &OwnedFd) -> anyhow::Result<()> {
    let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit))?;
    anyhow::ensure!(ready == 1, "the container did not end in 10 s");
    Ok(())
}

fn config(port: u16) -> serde_json::Value {
    let mount = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 1000, "gid": 1000},
            "args": [PROGRAM],
            "env": [format!("PORT={port}")],
            "cwd": "/app",
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
    })
}

/// `podman stop`, `podman run --detach` of images that are there.
#[derive(Debug)]
pub(crate) struct Podman {
    engine: Arc<podman::Podman>,
    images: [String; 2],
    port: u16,
    serial: u32,
    current: Version,
}

impl Podman {
    /// Pulls both images and starts version A.
    pub(crate) fn start(bed: &Bed, responder: &Path) -> anyhow::Result<Self> {
        let podman = bed.podman()?;
        let pull = |version: Version| {
            let image = bed.image(&format!("bench:{}", version.name()), || daemon::image(version, responder))?;
            podman.pull(&format!("docker://{image}"))
        };
        let images = [pull(Version::A)?, pull(Version::B)?];
        let new = Self { engine: podman, images, port: daemon::free_port()?, serial: 0, current: Version::A };
        new.launch()?;
        daemon::await_version(new.port, Version::A.name())?;
        Ok(new)
    }

    fn name(&self) -> String {
        format!("bench-{}", self.serial)
    }

    fn launch(&self) -> anyhow::Result<()> {
        let port = format!("--env=PORT={}", self.port);
        let (name, image) = (self.name(), &self.images[self.current as usize]);
        self.engine.run("run", &["--detach", "--pull=never", "--name", &name, &port, image]).map(drop)
    }

    /// Replaces what runs.
    pub(crate) fn swap(&mut self) -> anyhow::Result<Seen> {
        let (to, old) = (self.current.other(), self.name());
        let (gap, ()) = daemon::watched(self.port, to.name(), || {
            self.engine.run("stop", &[&old])?;
            self.serial += 1;
            self.current = to;
            self.launch()
        })?;
        self.engine.run("rm", &[&old])?;
        Ok(Seen { gap, downtime: None, unready: None })
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let name = self.name();
        // What does not go ends with the world.
        let _ = process::output(self.engine.command("rm").args(["--force", "--time=0", &name]), STEP);
    }
}
