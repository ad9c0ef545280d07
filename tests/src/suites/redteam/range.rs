//! Where the red team shoots: a sandbox whose image holds it, with things lying about that it must not find.
//!
//! In: a policy by name. Out: matrices, as the workload itself or a process beside it sees the world. Must not: give a
//! generation anything that an ordinary one has not.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::image::{Format, Layer, Packing};
use crate::harness::molt::{Molt, Setup};
use crate::harness::process::Background;
use crate::harness::runtime::Kind;
use crate::harness::{http, images};

/// For one matrix; a probe alone may take 20 s before it is called hung.
const LONG: Duration = Duration::from_mins(3);
/// `security.capability`, revision 2, effective: `CAP_SYS_ADMIN` and every other of the lower 32.
const CAPABLE: [u8; 20] = [1, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Folders that the shipped policies name and the small image lacks.
const FOLDERS: [&str; 7] = ["lib", "lib64", "opt", "venv", "srv", "home", "data"];

/// The daemon with the red team in it.
pub(super) fn image(bed: &Bed, version: &str) -> anyhow::Result<String> {
    bed.image(&format!("redteam:{version}"), || {
        let program = fs::read(bed.program("molt-redteam")?)?;
        let mut layer = Layer::new();
        for folder in FOLDERS {
            layer = layer.dir(folder, 0o755);
        }
        layer = layer.file("app/molt-redteam", 0o755, &program).hardlink("app/again", "app/molt-redteam");
        layer = layer.file("app/suid", 0o4755, &program).file("app/sgid", 0o2755, &program);
        layer = layer.pax(&[("SCHILY.xattr.security.capability", &CAPABLE)]).file("app/capable", 0o755, &program);
        let owner = if version == "of-root" { 0 } else { 1000 };
        layer = layer.owner(owner, owner).dir("home/node", 0o755);
        for place in ["app/box", "data/box"] {
            let path = |name: &str| format!("{place}/{name}");
            layer = layer.dir(place, 0o777).dir(&path("folder"), 0o777).file(&path("file"), 0o666, b"text\n");
            layer = layer.symlink(&path("link"), "file").file(&path("program"), 0o755, &program);
        }
        let daemon = bed.program("molt-testd")?;
        let small = images::small_as(version, &daemon, Packing::Gzip, Format::Oci)?;
        Ok(small.layer(layer.pack(Packing::Gzip)).build())
    })
}

/// A sandbox under attack.
#[derive(Debug)]
pub(super) struct Range {
    pub(super) molt: Molt,
    kind: Kind,
    program: PathBuf,
    abstract_name: String,
    /// What the policy with ports permits, and what it does not: nobody need answer for a connection to be made.
    _listeners: [TcpListener; 2],
    bait: Option<Background>,
}

impl Range {
    /// With the product.
    pub(super) fn open(bed: &Bed, kind: Kind, policy: &str) -> anyhow::Result<Self> {
        Self::open_with(bed, kind, policy, Ok)
    }

    /// With a setup that is changed first.
    pub(super) fn open_with<'a>(
        bed: &'a Bed,
        kind: Kind,
        policy: &str,
        change: impl FnOnce(Setup<'a>) -> anyhow::Result<Setup<'a>>,
    ) -> anyhow::Result<Self> {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listeners = [listen()?, listen()?];
        let [open, shut] = [listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()];
        let abstract_name = format!("molt-redteam-{}-{open}", std::process::id());
        // One id alone can own no file of another.
        let version = if kind == Kind::LightUserSingle { "of-root" } else { "v1" };
        let mut setup = Setup::new(bed, kind, &image(bed, version)?)?
            .workload_env("RT_OPEN", &open.to_string())
            .workload_env("RT_SHUT", &shut.to_string())
            .workload_env("RT_ABSTRACT", &abstract_name)
            .with("/registries/credentials", json!("/run/secrets/pull/config.json"));
        let pull = bed.scratch("pull")?;
        fs::write(pull.join("config.json"), "{\"auths\": {}}")?;
        setup.options = setup.options.read_only(&pull, "/run/secrets/pull").env("SECRET_OF_THE_SUPERVISOR", "1");
        fs::write(setup.config.join("pull.json"), "{}")?;
        // Of no policy: the default one.
        if policy != "restrictive" {
            fs::write(setup.config.join("policy.yaml"), text_of(policy, open)?)?;
            setup = setup.with("/policyFile", json!("policy.yaml"));
        }
        let molt = change(setup)?.start()?;
        let program = bed.program("molt-redteam")?;
        let mut range = Self { molt, kind, program, abstract_name, _listeners: listeners, bait: None };
        range.lay_bait()?;
        Ok(range)
    }

    /// Starts a process in PID 1's own namespaces, of the workload's user, that offers what nobody inside may find.
    pub(super) fn lay_bait(&mut self) -> anyhow::Result<()> {
        self.bait = None;
        self.molt.sandbox.exec(&["/bin/busybox", "touch", "/tmp/molt-bait"])?.ok()?;
        let mut command = Command::new("nsenter");
        if self.kind.in_user_namespace() {
            command.arg("--user");
        }
        command.args(["--ipc", "--uts", "--pid", "--target", &self.molt.sandbox.pid1()?.to_string(), "--"]);
        if self.kind != Kind::LightUserSingle {
            command.args(["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "--"]);
        }
        command.arg(&self.program).arg("--bait").env("RT_ABSTRACT", &self.abstract_name);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut bait = Background::spawn(&mut command)?;
        let out = bait.0.stdout.take().context("a pipe")?;
        let mut said = String::new();
        BufReader::new(out).read_line(&mut said)?;
        ensure!(said == "ready\n", "the bait said {said:?}");
        self.bait = Some(bait);
        Ok(())
    }

    /// How many files PID 1 has open.
    pub(super) fn descriptors_of_pid_1(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.molt.sandbox.pid1()?))?.count())
    }

    /// What they are.
    pub(super) fn held_by_pid_1(&self) -> anyhow::Result<Vec<String>> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.molt.sandbox.pid1()?))?;
        // One may be closed meanwhile.
        let mut all: Vec<String> =
            entries.filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.display().to_string())).collect();
        all.sort();
        Ok(all)
    }

    /// The workload runs it itself.
    pub(super) fn by_the_workload(&self) -> anyhow::Result<String> {
        let answer = http::get(self.molt.address, "/redteam", LONG)?.json()?;
        Ok(answer.as_str().context("a matrix")?.to_owned())
    }

    /// `molt exec` runs it beside the workload.
    pub(super) fn by_exec(&self) -> anyhow::Result<String> {
        Ok(self.molt.expect(0, &["exec", "--", "/app/molt-redteam"])?.stdout)
    }
}

fn text_of(policy: &str, port: u16) -> anyhow::Result<String> {
    if policy == "ports" {
        return Ok(format!(
            "version: 1\nfilesystem_policy:\n  include_workdir: false\n  read_only: [/bin, /app, /etc, /proc, /sys]\n  \
             read_write: [/sandbox/state, /tmp]\nnetwork_policies:\n  harness:\n    endpoints:\n      \
             - {{host: localhost, port: {port}}}\n    binaries:\n      - {{path: /app/molt-testd}}\n"
        ));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../policies/{policy}.yaml"));
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}
