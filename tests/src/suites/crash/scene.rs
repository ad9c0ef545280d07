//! Something PID 1 does, from a known state of the store: to be struck at a numbered call.
//!
//! In: a [`Change`], and where the store is to lie. Out: what the change does when nothing strikes; what is so after
//! something did. Must not: begin twice from anything but the same bytes.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::ensure;
use serde_json::{Value, json};

use super::ground::{Ground, Place};
use super::promised::{contents, ids, plant};
use super::run::Run;
use crate::harness::bed::Bed;
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::tracer::wire::{Made, Which};
use crate::harness::{images, wait};

/// What is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// The start on an empty store.
    FirstBoot,
    /// v1 to v2, whose layers are not there yet.
    Update,
    /// v2 back to v1.
    Rollback,
    /// Generations and layers that nothing needs are removed.
    CleanUp,
    /// The start after a kill in the trial of v2.
    Recovery,
}

impl Change {
    pub(super) const ALL: [Self; 5] = [Self::FirstBoot, Self::Update, Self::Rollback, Self::CleanUp, Self::Recovery];

    /// Whether it is a start, and counted from the exec of PID 1.
    pub(super) const fn is_start(self) -> bool {
        matches!(self, Self::FirstBoot | Self::Recovery)
    }

    /// What runs before, and what does after if that is another.
    pub(super) const fn versions(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Update => ("v1", Some("v2")),
            Self::Rollback => ("v2", Some("v1")),
            Self::FirstBoot | Self::CleanUp | Self::Recovery => ("v1", None),
        }
    }
}

const IMAGES: &str = "/opt/images";

/// A change with the state it starts from.
pub(super) struct Scene<'a> {
    pub(super) bed: &'a Bed,
    pub(super) change: Change,
    port: u16,
    layout: PathBuf,
    /// Store and state as the change finds them.
    pub(super) kept: Place,
    /// What the state holds then, live files apart.
    pub(super) state: String,
    /// Ids of the updates before the change.
    pub(super) known: BTreeSet<String>,
    /// Not the product makes the change, but this root's molt with this fault.
    pub(super) plant: Option<(PathBuf, &'static str)>,
}

impl<'a> Scene<'a> {
    /// Brings a sandbox to where the change begins, and keeps its store and state.
    pub(super) fn prepare(bed: &'a Bed, change: Change, ground: Ground) -> anyhow::Result<Self> {
        let layout = bed.scratch("images")?;
        for version in ["v1", "v2", "v3"] {
            images::small(version, &bed.program("molt-testd")?)?.write_layout(&layout, version)?;
        }
        let kept = Place::new(bed, ground)?;
        let (state, known) = (String::new(), BTreeSet::new());
        let mut scene = Self { bed, change, port: port()?, layout, kept, state, known, plant: None };
        plant(&scene.kept.state())?;
        if change != Change::FirstBoot {
            let monitor = if change == Change::Recovery { "60s" } else { "0s" };
            let mut molt = scene.setup()?.with("/health/monitor", json!(monitor)).with("/update/keep", json!(5));
            // The store and state that are kept themselves, not copies.
            (molt.state, molt.store) = (scene.kept.state(), scene.kept.store());
            let mut molt = molt.start()?;
            molt.click()?;
            scene.begin_with(&molt)?;
            let known = molt.operator("GET", "/v1/updates", &Value::Null)?;
            scene.known = ids(&known)?;
            if change == Change::Recovery {
                molt.sandbox.kill()?;
            } else {
                ensure!(molt.sandbox.stop(SOON)? == 0);
            }
        }
        scene.state = contents(&scene.kept.state())?;
        scene.kept.rest()?;
        Ok(scene)
    }

    fn begin_with(&self, molt: &Molt) -> anyhow::Result<()> {
        let versions: &[&str] = match self.change {
            Change::FirstBoot | Change::Update | Change::Recovery => &[],
            Change::Rollback => &["v2"],
            Change::CleanUp => &["v2", "v3", "v1"],
        };
        for version in versions {
            let record = molt.updated(&image(version))?;
            ensure!(record["outcome"] == "confirmed", "{record:#}");
        }
        if self.change == Change::Recovery {
            molt.operator("POST", "/v1/updates", &json!({"image": image("v2")}))?;
            wait::until_ok("the trial", SOON, || {
                let status = molt.told()?;
                ensure!(status["phase"] == "Proving" && status["workload"]["ready"] == true, "{status:#}");
                Ok(())
            })?;
        }
        Ok(())
    }

    pub(super) fn setup(&self) -> anyhow::Result<Setup<'a>> {
        let mut setup = Setup::new(self.bed, Kind::Light, &image("v1"))?;
        setup.port = self.port;
        setup.options = setup.options.read_only(&self.layout, IMAGES);
        if let Some((root, word)) = &self.plant {
            setup.options.root.clone_from(root);
            setup.options = setup.options.env("MOLT_PLANT", word);
        }
        let setup = setup
            .with("/health/monitor", json!("0s"))
            // Told, not asked for: a point waits for no period.
            .with("/health/readiness", json!({"notify": {}}))
            .with(
                "/workload/env",
                json!([
                    {"name": "TESTD_PORT", "value": self.port.to_string()},
                    {"name": "TESTD_BEHAVIOUR", "value": "notify"},
                ]),
            )
            .with("/update/keep", json!(1))
            // One thing at a time: what PID 1 does has an order then.
            .with("/update/parallel", json!(1))
            .with("/mounts", json!([{"path": IMAGES, "carry": false}]));
        Ok(setup)
    }

    /// What it does, in order, when nothing strikes.
    pub(super) fn dry(&self, which: Which) -> anyhow::Result<Vec<Made>> {
        let mut run = Run::begin(self)?;
        let calls = run.act(which, None)?.counted.calls;
        run.end()?;
        ensure!(!calls.is_empty(), "{:?} does nothing: the tracer is blind", self.change);
        Ok(calls)
    }
}

/// The image of a version, as the spec and updates name it.
pub(super) fn image(version: &str) -> String {
    format!("oci:{IMAGES}:{version}")
}

/// A port below those that the kernel gives to clients, for sandboxes one after the other: no other scene of this process
/// has it.
fn port() -> anyhow::Result<u16> {
    /// Two runs of this program at once have one network: each begins somewhere else.
    static FIRST: LazyLock<u32> = LazyLock::new(|| fastrand::u32(0..10_000));
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + u16::try_from((*FIRST + next) % 10_000)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port is free")
}
