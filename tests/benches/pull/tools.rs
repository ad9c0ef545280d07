//! The two tools, each with a store on a fresh ext4 of its own.
//!
//! In: an image reference. Out: [`Cost`]. Must not: count the making of an empty store.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use molt_tests::harness::bed::Bed;
use molt_tests::harness::disk::{Disk, FileSystem};
use molt_tests::harness::podman;
use molt_tests::harness::process::{Background, run};
use molt_tests::harness::runtime::{Kind, Options, Sandbox};
use molt_tests::harness::wait;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};

use molt_tests::bench::{Process, kilobytes};

const STEP: Duration = Duration::from_mins(2);
const MEGABYTES: u64 = 4096;
/// Of `/proc/PID/stat`.
const TICK: Duration = Duration::from_millis(10);

/// Of one pull.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// From the start of the command until the image lies unpacked.
    pub(crate) wall: Duration,
    /// The whole command.
    pub(crate) whole: Duration,
    /// User and system time of whoever works.
    pub(crate) cpu: Duration,
    /// Until all of it is on the disk.
    pub(crate) sync: Duration,
    /// Most memory of the process that works.
    pub(crate) peak_kb: u64,
}

/// Brings images.
pub(crate) trait Tool {
    /// Brings one.
    fn pull(&mut self, image: &str) -> anyhow::Result<Cost>;
}

fn disk(bed: &Bed) -> anyhow::Result<Disk> {
    let disk = Disk::new(&bed.scratch("disk")?, FileSystem::Ext4, MEGABYTES)?;
    // So that making it is over when the clock starts.
    sync(disk.path.parent().context("a disk lies in a folder")?)?;
    Ok(disk)
}

fn sync(folder: &Path) -> anyhow::Result<Duration> {
    let start = Instant::now();
    rustix::fs::syncfs(fs::File::open(folder)?)?;
    Ok(start.elapsed())
}

/// `molt update`, of which the part before the new generation is armed counts.
#[derive(Debug)]
pub(crate) struct Molt {
    sandbox: Sandbox,
    disk: Disk,
}

impl Molt {
    /// Molt on the sandbox's own root.
    pub(crate) fn start(bed: &Bed, host: &str) -> anyhow::Result<Self> {
        let disk = disk(bed)?;
        let store = disk.path.join("store");
        fs::create_dir(&store)?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let env = ["PORT", "REDIS_PORT", "TESTD_PORT"].map(|name| json!({"name": name, "value": port}));
        let spec = json!({
            "apiVersion": "molt.dev/v1alpha1",
            "kind": "Sandbox",
            "spec": {
                "policy": "unconfined",
                "workload": {"env": env},
                "health": {"monitor": "0s"},
                "registries": {"insecure": [host]},
            },
        });
        let file = bed.scratch("spec")?.join("sandbox.json");
        fs::write(&file, spec.to_string())?;
        let program = [
            "/usr/local/bin/molt",
            "init",
            "--spec",
            "/etc/molt.json",
            "--store",
            "/store",
            "--",
            "/bin/sleep",
            "3600",
        ];
        // What the sandbox starts with is a command of its own root; images bring theirs.
        let options = Options::new(bed, &program)?
            .volume(&store, "/store")
            .volume(&bed.volume("state")?, "/sandbox/state")
            .read_only(&file, "/etc/molt.json");
        let sandbox = Sandbox::start(bed, Kind::Light, options)?;
        let molt = Self { sandbox, disk };
        let up = wait::until_ok("molt", STEP, || molt.command(&["probe", "ready"]).map(drop));
        up.with_context(|| format!("starting molt:\n{}", molt.sandbox.logs()))?;
        Ok(molt)
    }

    fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        let words: Vec<&str> = ["/usr/local/bin/molt"].into_iter().chain(words.iter().copied()).collect();
        Ok(self.sandbox.exec_within(&words, STEP)?.ok()?.stdout)
    }
}

impl Tool for Molt {
    fn pull(&mut self, image: &str) -> anyhow::Result<Cost> {
        let init = self.sandbox.pid1()?;
        // Resets the peak. proc_pid_clear_refs(5).
        fs::write(format!("/proc/{init}/clear_refs"), "5")?;
        let ticks = || -> anyhow::Result<u64> { Ok(Process::tree(init)?.first().context("PID 1 is gone")?.ticks) };
        let before = ticks()?;
        let (start, clock) = (Instant::now(), SystemTime::now());
        let said = self.command(&["update", "-o", "json", image]);
        let whole = start.elapsed();
        let sync = sync(&self.disk.path)?;
        let cpu = TICK * u32::try_from(ticks()? - before)?;
        let peak_kb = kilobytes(init, "status", "VmHWM");
        let said: Value = serde_json::from_str(&said.with_context(|| self.sandbox.logs())?)?;
        anyhow::ensure!(said["outcome"] == "confirmed", "{said}");
        let wall = self.staged(&said["id"], clock)?;
        Ok(Cost { wall, whole, cpu, sync, peak_kb })
    }
}

impl Molt {
    /// How long after `start` the root of an update's generation was ready.
    fn staged(&self, id: &Value, start: SystemTime) -> anyhow::Result<Duration> {
        let events = self.command(&["events", "-o", "json"])?;
        let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut armed = events.filter(|event| event["update"] == *id && event["phase"] == "Arming");
        let event = armed.next_back().with_context(|| format!("{id} has no event of its arming"))?;
        let time = event["time"].as_str().context("an event has a time")?;
        // `2026-01-31T23:59:59.999Z`, as a time of day.
        let part = |from: usize, to: usize| time.get(from..to).and_then(|digits| digits.parse::<u64>().ok());
        let parts = part(11, 13).zip(part(14, 16)).zip(part(17, 19)).zip(part(20, 23));
        let (((hours, minutes), seconds), millis) = parts.with_context(|| format!("{time} is no time"))?;
        let armed = Duration::from_millis(((hours * 60 + minutes) * 60 + seconds) * 1000 + millis);
        let day = 86_400;
        let start = start.duration_since(SystemTime::UNIX_EPOCH)?;
        let start = Duration::new(start.as_secs() % day, start.subsec_nanos());
        Ok(armed.checked_sub(start).unwrap_or((armed + Duration::from_secs(day)).saturating_sub(start)))
    }
}

/// `podman pull`.
#[derive(Debug)]
pub(crate) struct Podman {
    engine: podman::Podman,
    policy: std::path::PathBuf,
    disk: Disk,
}

impl Podman {
    /// Podman with an empty store.
    pub(crate) fn start(bed: &Bed) -> anyhow::Result<Self> {
        let disk = disk(bed)?;
        let folder = disk.path.join("podman");
        let podman = podman::Podman::new(&folder)?;
        // Makes its databases.
        run(podman.command("images").arg("--quiet"), STEP)?;
        Ok(Self { engine: podman, policy: folder.join("policy.json"), disk })
    }
}

impl Tool for Podman {
    fn pull(&mut self, image: &str) -> anyhow::Result<Cost> {
        let used = || -> anyhow::Result<Duration> {
            let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
            let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
            Ok(Duration::from_micros(u64::try_from(micros)?))
        };
        let mut command = self.engine.command("pull");
        command.args(["--quiet", "--tls-verify=false", "--signature-policy"]).arg(&self.policy);
        command.arg(format!("docker://{image}")).stdin(Stdio::null()).stdout(Stdio::null());
        let before = used()?;
        let start = Instant::now();
        let mut child = Background::spawn(&mut command)?;
        let mut peak_kb = 0;
        let status = loop {
            peak_kb = peak_kb.max(kilobytes(child.0.id(), "status", "VmHWM"));
            if let Some(status) = child.0.try_wait()? {
                break status;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let wall = start.elapsed();
        anyhow::ensure!(status.success(), "podman pull {image} ended with {status}");
        let cpu = used()?.saturating_sub(before);
        Ok(Cost { wall, whole: wall, cpu, sync: sync(&self.disk.path)?, peak_kb })
    }
}
