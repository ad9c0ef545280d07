//! Every image of the corpus against a running sandbox: refused with a clear word and the old one serving on, or taken
//! and harmless. Nothing stays in the store, and nothing outside it changes.
//!
//! In: `corpus`. Out: cases, and a line that counts. Must not: start more than one sandbox for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::corpus::{self, Hostile, Update, Verdict};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::image::{Format, ImageBuilder, Layer, Packing};
use crate::harness::images;
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::process::Output;
use crate::harness::runtime::Kind;
use crate::harness::snapshot::{self, Detail, Entry};
use crate::harness::wait;

/// The cases.
pub(super) const CASES: &[Case] = &[
    case("hostile::images_of_every_kind_change_nothing_outside", |bed| all(bed, None)),
    case("hostile::roots_of_every_kind_change_nothing_outside_before_linux_6_15", |bed| all(bed, Some("5.15"))),
];

fn all(bed: &Bed, kernel: Option<&str>) -> anyhow::Result<()> {
    let mut cases = corpus::all();
    if kernel.is_some() {
        // What differs there is how the mounts come about.
        cases.retain(|case| case.rows.iter().any(|row| ["S40", "S41", "S42", "S43"].contains(row)));
    }
    let arena = Arena::start(bed, kernel)?;
    let start = Instant::now();
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        if let Err(error) = arena.meet(case, number) {
            wrong.push(format!("{} ({}): {error:#}", case.name, case.rows.join(" ")));
        }
    }
    if let Err(error) = arena.nothing_left() {
        wrong.push(format!("in the end: {error:#}"));
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    eprintln!(
        "hostile images: {} cases over rows {}, sentinel unchanged, {:.1} s",
        cases.len(),
        corpus::rows(&cases),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Files of the state that the daemon itself writes.
const LIVE: [&str; 7] = ["starts", "clicks", "signals", "clean-stop", "lock", "stray", "confessions"];

/// A sandbox, and around it what must not change.
struct Arena {
    molt: Molt,
    base: ImageBuilder,
    /// Where the layouts are put, on the host; in the sandbox it is `/images`.
    images: PathBuf,
    /// Folders of the host with a sentinel in them.
    watched: Vec<PathBuf>,
    before: BTreeMap<String, Entry>,
}

impl Arena {
    fn start(bed: &Bed, kernel: Option<&str>) -> anyhow::Result<Self> {
        let around = bed.scratch("around")?;
        let (images, volume, inner) = (bed.scratch("images")?, bed.volume("volume")?, bed.volume("inner")?);
        let mut setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?
            .with("/health/monitor", json!("100ms"))
            .with("/health/readiness/failureThreshold", json!(1));
        setup.store = around.join("store");
        fs::create_dir(&setup.store)?;
        let options = setup.options.read_only(&images, "/images").volume(&volume, "/vol").volume(&inner, "/data/inner");
        setup.options = options;
        if let Some(kernel) = kernel {
            setup = setup.env("MOLT_PRETEND_KERNEL", kernel);
        }
        for folder in [&around, &setup.state, &volume, &inner] {
            sentinel(&folder.join(".sentinel"))?;
        }
        // In no group of its own: what one image is in, and the next is not, would be a widening in the one after.
        let groups = Layer::new().dir("etc", 0o755).file("etc/group", 0o644, b"root:x:0:\napp:x:1000:\n");
        let base = images::small_as("v9", &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)?;
        let base = base.layer(groups.pack(Packing::Gzip));
        let watched = vec![around.join(".sentinel"), volume, inner];
        let molt = setup.start()?;
        let root = PathBuf::from(format!("/proc/{}/root", molt.sandbox.pid1()?));
        sentinel(&root.join("etc/.sentinel"))?;
        sentinel(&root.join(".sentinel"))?;
        let mut arena = Self { molt, base, images, watched, before: BTreeMap::new() };
        arena.before = arena.outside()?;
        ensure!(arena.before.len() > 100, "the sentinel is too small to see anything");
        Ok(arena)
    }

    /// Everything that no image may change: the supervisor's own root, volumes, what lies beside the store, the names in
    /// the state.
    fn outside(&self) -> anyhow::Result<BTreeMap<String, Entry>> {
        let root = PathBuf::from(format!("/proc/{}/root", self.molt.sandbox.pid1()?));
        let mut all = BTreeMap::new();
        for place in self.watched.iter().chain([&root]) {
            for (name, entry) in snapshot::tree(place, Detail::Quick)? {
                // The operator's socket and those of generations come and go.
                if !(place == &root && (name == "run/molt" || name.starts_with("run/molt/"))) {
                    all.insert(format!("{}/{name}", place.display()), entry);
                }
            }
        }
        for (name, mut entry) in snapshot::tree(&self.molt.state, Detail::Quick)? {
            // As is the folder itself with each name that comes or goes.
            if name == "." {
                (entry.mtime, entry.ctime) = (0, (0, 0));
            }
            if !LIVE.contains(&name.as_str()) {
                all.insert(format!("state/{name}"), entry);
            }
        }
        Ok(all)
    }

    fn meet(&self, case: &Hostile, number: usize) -> anyhow::Result<()> {
        let folder = self.images.join(format!("{number:03}"));
        case.build(self.base.clone()).write_layout(&folder, "v1")?;
        let reference = format!("oci:/images/{number:03}:v1");
        let (before, served) = (self.molt.status()?, self.molt.version()?);
        if case.rows.contains(&"U36") {
            let plan = self.molt.molt(&["update", &reference, "--dry-run"])?;
            readable(&plan.stdout)
                .and_then(|()| readable(&plan.stderr))
                .with_context(|| format!("planned: {plan:?}"))?;
        }
        let output = self.molt.molt(&["update", &reference])?;
        fs::remove_dir_all(&folder)?;
        let after = self.molt.status()?;
        let judged = self.judge(case, &reference, &output, (&before, &after), &served);
        let said = || format!("exit code {}\n{}{}", output.code, output.stdout, output.stderr);
        judged.with_context(said)?;
        readable(&output.stdout).and_then(|()| readable(&output.stderr)).with_context(said)?;
        self.tidy(&after)?;
        match snapshot::difference(&self.before, &self.outside()?) {
            None => Ok(()),
            Some(difference) => bail!("outside: {difference}"),
        }
    }

    fn judge(
        &self,
        case: &Hostile,
        reference: &str,
        output: &Output,
        (before, after): (&Value, &Value),
        served: &(String, u64),
    ) -> anyhow::Result<()> {
        ensure!(after["phase"] == "Idle", "phase {}", after["phase"]);
        let last = &after["lastUpdate"];
        let runs = || -> anyhow::Result<(String, u64)> {
            wait::until_ok("the workload to answer", SOON, || self.molt.version())
        };
        match &case.verdict {
            Verdict::Refused(code, says) | Verdict::Taken(_, Update::Fails(code, says)) => {
                let status = if REFUSALS.contains(code) { 6 } else { 1 };
                ensure!(output.code == status, "not exit code {status}");
                ensure!(last["reason"] == *code, "refused as {}, not as {code}", last["reason"]);
                ensure!(output.stderr.contains(says), "it does not say {says:?}");
                ensure!(output.stderr.contains(" runs "), "it does not say what runs");
                ensure!(after["confirmed"] == before["confirmed"], "{}", after["confirmed"]);
                ensure!(after["bad"] == before["bad"], "it is held against the image");
                ensure!(runs()? == *served, "the workload noticed: {served:?} became {:?}", runs()?);
            }
            Verdict::Taken(_, Update::Serves) => {
                ensure!(output.code == 0, "it was not taken");
                ensure!(after["confirmed"]["image"] == reference, "{}", after["confirmed"]);
                ensure!(runs()?.1 == served.1 + 1, "{served:?} became {:?}", runs()?);
            }
            Verdict::Taken(_, Update::RolledBack(code)) => {
                ensure!(output.code == 3, "it was not rolled back");
                // The exit of a program that could not be executed may be seen before the word of why.
                let seen = last["reason"] == *code || (*code == "exec-failed" && last["reason"] == "exited-in-trial");
                ensure!(seen, "failed as {}, not as {code}", last["reason"]);
                ensure!(after["confirmed"] == before["confirmed"], "{}", after["confirmed"]);
                ensure!(runs()?.0 == served.0, "{served:?} became {:?}", runs()?);
            }
        }
        self.molt.sound()
    }

    /// Nothing is half done in the store, and nothing but documents and layers is there.
    fn tidy(&self, status: &Value) -> anyhow::Result<()> {
        wait::until_ok("the store to be tidy", SOON, || {
            for folder in ["tmp", "trash"] {
                let names = self.molt.stored(folder)?;
                ensure!(names.is_empty(), "{folder} holds {names:?}");
            }
            Ok(())
        })?;
        // `update.keep`, and the clean-up may still be under way.
        wait::until_ok("old generations to go", SOON, || {
            let stored = self.molt.stored("generations")?;
            ensure!(stored.len() <= 3, "generations {stored:?}, {} runs", status["confirmed"]["generation"]);
            Ok(())
        })
    }

    /// After a clean-up the store holds the layers of its generations and no others.
    fn nothing_left(&self) -> anyhow::Result<()> {
        self.molt.expect(0, &["gc"])?;
        wait::until_ok("the store to be clean", SOON, || {
            let mut layers = BTreeSet::new();
            for number in self.molt.stored("generations")? {
                let path = self.molt.store.join("generations").join(number).join("generation.json");
                let record: Value = serde_json::from_slice(&fs::read(path)?)?;
                let names = record["layers"].as_array().context("layers")?;
                layers.extend(names.iter().filter_map(|layer| Some(layer["folder"].as_str()?.to_owned())));
            }
            let stored: BTreeSet<String> = self.molt.stored("layers/sha256")?.into_iter().collect();
            ensure!(stored == layers, "{stored:#?} are stored, {layers:#?} are used");
            Ok(())
        })?;
        let log = self.molt.sandbox.logs();
        readable(&log).context("the log")
    }
}

/// Codes with which an update is refused by rule: exit code 6.
const REFUSALS: [&str; 3] = ["wrong-platform", "policy-wider", "no-space"];

/// An error if a text holds what could move the cursor, hide a line or reorder one.
fn readable(text: &str) -> anyhow::Result<()> {
    let hostile = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    match text.lines().find(|line| line.contains(hostile)) {
        None => Ok(()),
        Some(line) => bail!("control characters in {line:?}"),
    }
}

/// A tree with one of everything, of another time and other owners.
fn sentinel(at: &Path) -> anyhow::Result<()> {
    fs::create_dir(at)?;
    for (name, mode, owner) in [("open", 0o777, 1000), ("closed", 0o700, 0), ("sticky", 0o1777, 65532)] {
        let folder = at.join(name);
        fs::create_dir(&folder)?;
        for (file, mode) in [("text", 0o644), ("secret", 0o600), ("setuid", 0o4755)] {
            let file = folder.join(file);
            fs::write(&file, "kept")?;
            chown(&file, Some(owner), Some(owner))?;
            fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
            rustix::fs::lsetxattr(&file, "user.sentinel", b"kept", rustix::fs::XattrFlags::empty())?;
        }
        fs::hard_link(folder.join("text"), folder.join("hard"))?;
        symlink("/etc/passwd", folder.join("absolute"))?;
        symlink("../nowhere", folder.join("dangling"))?;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )?;
        chown(&folder, Some(owner), Some(owner))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}
