//! An update while something is used up: room and names in the store, memory, processes, descriptors; by others, or by the
//! workload itself.
//!
//! In: a sandbox, how much of what there is. Out: an error if the update ends in anything but the new version or the old
//! one, or if, with the want gone, the sandbox is not clean within three seconds. With `--long` every amount, else a share,
//! drawn by `MOLT_TESTS_SEED`. Must not: take anything from whoever is not in the sandbox.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::cgroup::Group;
use crate::harness::chance::Chance;
use crate::harness::disk::InMemory;
use crate::harness::image::{Layer, Packing};
use crate::harness::molt::{Molt, PROGRAM, SOON, SPEC, Setup};
use crate::harness::process::{self, Background};
use crate::harness::runtime::Kind;
use crate::harness::tally::{self, Tally};
use crate::harness::{images, wait};

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("scarce::a_share_of_all_wants_leaves_the_old_version_or_the_new_one", share).alone(),
    case("scarce::every_want_leaves_the_old_version_or_the_new_one", every).alone().long(),
];

/// With the want gone, everything is as it should be within this.
const CLEAN: Duration = Duration::from_secs(3);
/// How many points of each kind a usual run tries.
const SHARE: usize = 1;
const IMAGES: &str = "/opt/images";
/// What the second version is larger by: more than the smallest rooms, less than the largest.
const BALLAST: usize = 4 << 20;

/// What there is little of, or what the workload does while it is updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// So many KiB are free in the store.
    Room(u64),
    /// So many names are free in the store.
    Names(u64),
    /// MiB of memory.
    Memory(u64),
    /// Processes and threads.
    Processes(u64),
    /// Descriptors, from the start on.
    Descriptors(u64),
    /// It forks for ever.
    Bomb,
    /// It leaves so many children that end.
    Zombies(u32),
    /// It writes for ever.
    Flood,
    /// It opens what it can.
    Hoard,
}

/// All of them, by kind.
fn all(long: bool) -> Vec<Vec<Want>> {
    vec![
        // 256 KiB to 8 MiB: the update takes a little more than its ballast.
        (1..=32).map(|step| Want::Room(step * 256)).collect(),
        [0, 2, 4, 8, 16, 32, 64, 128].map(Want::Names).into(),
        [16, 24, 32, 48, 64, 96, 128, 256].map(Want::Memory).into(),
        [8, 12, 16, 24, 32, 48, 64].map(Want::Processes).into(),
        [16, 20, 24, 28, 32, 40, 48, 64].map(Want::Descriptors).into(),
        vec![Want::Bomb],
        vec![Want::Zombies(if long { 100_000 } else { 2_000 })],
        vec![Want::Flood],
        vec![Want::Hoard],
    ]
}

fn share(bed: &Bed) -> anyhow::Result<()> {
    let mut chance = Chance::new()?;
    let points: Vec<Want> =
        all(false).into_iter().flat_map(|kind| chance.shuffled(kind).into_iter().take(SHARE)).collect();
    sweep(bed, &format!("wants (MOLT_TESTS_SEED={})", chance.seed()), &points)
}

fn every(bed: &Bed) -> anyhow::Result<()> {
    sweep(bed, "wants (all)", &all(true).concat())
}

fn sweep(bed: &Bed, what: &str, points: &[Want]) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    let (mut made, mut failed) = (0, 0);
    for want in points {
        match tried(bed, *want) {
            Ok(Ended::New) => made += 1,
            Ok(Ended::Old) => failed += 1,
            Err(error) => failures.push(format!("{want:?}: {error:#}")),
        }
    }
    let unrecovered = failures.len();
    let tried = points.len() as u64;
    tally::add(Tally { points: tried, faults: tried, unrecovered: unrecovered as u64, ..Tally::default() });
    println!(
        "{what}: {} points tried of {}, {unrecovered} unrecovered; {made} updates made, {failed} failed with the old version serving",
        points.len(),
        points.len()
    );
    ensure!(failures.is_empty(), "{unrecovered} points:\n{}", failures.join("\n\n"));
    Ok(())
}

/// What runs afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Old,
    New,
}

fn image(version: &str) -> String {
    format!("oci:{IMAGES}:{version}")
}

/// A sandbox to be with v1, whose store has a file system of its own.
fn sandbox(bed: &Bed, want: Want) -> anyhow::Result<(Setup<'_>, InMemory)> {
    let layout = bed.scratch("images")?;
    let testd = bed.program("molt-testd")?;
    images::small("v1", &testd)?.write_layout(&layout, "v1")?;
    // What does not get smaller by packing.
    let mut chance = Chance::of(7);
    let bytes: Vec<u8> = (0..BALLAST).map(|_| u8::try_from(chance.below(256)).unwrap_or(0)).collect();
    let ballast = Layer::new().dir("app", 0o755).file("app/ballast", 0o644, &bytes).pack(Packing::Gzip);
    let second = images::small_as("v2", &testd, Packing::Gzip, crate::harness::image::Format::Oci)?;
    second.layer(ballast).build().write_layout(&layout, "v2")?;
    let own = InMemory::new(&bed.scratch("own")?, 64, 20_000)?;
    let mut setup = Setup::new(bed, Kind::Light, &image("v1"))?
        .with("/health/monitor", json!("0s"))
        .with("/health/readiness", json!({"notify": {}}))
        .with("/update/reserve", json!("64KiB"))
        .with("/mounts", json!([{"path": IMAGES, "carry": false}]));
    setup.options = setup.options.read_only(&layout, IMAGES);
    let behaviour = if want == Want::Flood { "notify,flood" } else { "notify" };
    let mut setup = setup.workload_env("TESTD_BEHAVIOUR", behaviour);
    match want {
        // In memory it would be part of what is short.
        Want::Memory(_) => {}
        _ => setup.store.clone_from(&own.path),
    }
    match want {
        Want::Flood => {
            let nowhere = fs::OpenOptions::new().write(true).open("/dev/null")?;
            setup.options.streams = Some(Arc::new(nowhere.into()));
        }
        Want::Bomb => setup = setup.with("/workload/limits", json!({"nproc": 150})),
        Want::Hoard => setup = setup.with("/workload/limits", json!({"nofile": 4096})),
        Want::Descriptors(most) => {
            let start = format!("ulimit -n {most}; exec \"$@\"");
            let words = ["/bin/sh", "-c", start.as_str(), "limited", PROGRAM, "init", "--spec", SPEC];
            setup.options.program = words.map(str::to_owned).into();
        }
        _ => {}
    }
    Ok((setup, own))
}

/// What is held until the update has ended.
enum Held {
    Nothing,
    Group(#[expect(dead_code, reason = "held, not used")] Group),
    Program(#[expect(dead_code, reason = "held, not used")] Background),
}

fn tried(bed: &Bed, want: Want) -> anyhow::Result<Ended> {
    let (setup, own) = sandbox(bed, want)?;
    let mut molt = setup.launch()?;
    if let Want::Descriptors(_) = want
        && let Some(ended) = refused(&mut molt)?
    {
        return Ok(ended);
    }
    serves(&molt, SOON).with_context(|| molt.sandbox.logs())?;
    molt.click()?;
    let clicks = molt.clicks()?;
    let held = begin(bed, &molt, &own, want)?;
    let outcome = update(&mut molt)?;
    drop(held);
    end(&mut molt, &own, want)?;
    let began = Instant::now();
    let version = serves(&molt, SOON).with_context(|| molt.sandbox.logs())?;
    clean(&molt)?;
    let took = began.elapsed();
    ensure!(took < CLEAN, "it took {took:?} to be clean");
    ensure!(molt.clicks()? == clicks, "a click is lost");
    let ended = match (version.as_str(), outcome.as_deref()) {
        ("v2", Some("confirmed") | None) => Ended::New,
        ("v1", Some("confirmed")) => bail!("confirmed, and v1 runs"),
        ("v1", _) => Ended::Old,
        (version, outcome) => bail!("{version} runs after {outcome:?}"),
    };
    if let Want::Room(_) | Want::Names(_) | Want::Processes(_) | Want::Descriptors(_) = want {
        let told = molt.told()?;
        ensure!(told["bad"].as_array().is_some_and(Vec::is_empty), "held against the image: {told:#}");
    }
    // And nothing is stuck.
    let next = if ended == Ended::New { "v1" } else { "v2" };
    let record = molt.updated(&image(next))?;
    ensure!(record["outcome"] == "confirmed" && molt.version()?.0 == next, "{record:#}");
    molt.sound()?;
    Ok(ended)
}

/// With too few descriptors to start, PID 1 says so, and ends; or tries again to get what it is to run.
fn refused(molt: &mut Molt) -> anyhow::Result<Option<Ended>> {
    wait::until_ok("a start, or its end", SOON, || {
        if let Ok(code) = molt.sandbox.wait(Duration::ZERO) {
            ensure!((120..=126).contains(&code), "the start ended with {code}: {}", molt.sandbox.logs());
            return Ok(Some(Ended::Old));
        }
        let logs = molt.sandbox.logs();
        if logs.contains("failed to get the first image") && logs.contains("Too many open files") {
            return Ok(Some(Ended::Old));
        }
        serves(molt, Duration::ZERO).map(|_| None)
    })
}

/// Something serves and nothing is under way; its version.
fn serves(molt: &Molt, limit: Duration) -> anyhow::Result<String> {
    wait::until_ok("something to serve", limit, || {
        let status = molt.told()?;
        ensure!(status["phase"] == "Idle" && status["workload"]["ready"] == true, "{status:#}");
        Ok(molt.version()?.0)
    })
}

fn remount(own: &InMemory, option: &str) -> anyhow::Result<()> {
    let option = format!("remount,{option}");
    process::run(Command::new("mount").args(["-o", &option]).arg(&own.path), SOON).map(drop)
}

/// The want begins.
fn begin(bed: &Bed, molt: &Molt, own: &InMemory, want: Want) -> anyhow::Result<Held> {
    let used = rustix::fs::statvfs(&own.path)?;
    let inside = |script: String| -> anyhow::Result<Held> {
        let mut command = molt.sandbox.exec_command(&[PROGRAM, "exec", "--", "sh", "-c", &script])?;
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let program = Background::spawn(&mut command)?;
        wait::until("it to begin", SOON, || molt.state.join("begun").exists())?;
        Ok(Held::Program(program))
    };
    match want {
        Want::Room(free) => {
            let taken = (used.f_blocks - used.f_bfree) * used.f_frsize / 1024;
            remount(own, &format!("size={}k", taken + free))?;
        }
        Want::Names(free) => remount(own, &format!("nr_inodes={}", used.f_files - used.f_ffree + free))?,
        Want::Memory(most) => return Ok(Held::Group(Group::memory(bed, molt, most << 20)?)),
        Want::Processes(most) => return Ok(Held::Group(Group::processes(bed, molt, most)?)),
        Want::Descriptors(_) | Want::Flood => {}
        Want::Bomb => {
            // A shell that cannot fork ends, and what it has forked is the workload's from then on, until its generation goes.
            // Where that stays, the bomb must end by itself.
            let begun = "/sandbox/state/begun";
            return inside(format!("bomb() {{ [ -e {begun} ] || exit; bomb & bomb & wait; }}; : > {begun}; bomb"));
        }
        Want::Zombies(count) => {
            let each = "(:) & n=$((n + 1))";
            return inside(format!(
                "n=0; while [ $n -lt {count} ]; do {each}; : > /sandbox/state/begun; done; exec sleep 1000"
            ));
        }
        Want::Hoard => {
            let open = "n=3; while [ $n -lt 4090 ]; do eval \"exec $n</dev/null\" || break; n=$((n + 1)); done";
            return inside(format!("{open}; : > /sandbox/state/begun; exec sleep 1000"));
        }
    }
    Ok(Held::Nothing)
}

/// The want is over.
fn end(molt: &mut Molt, own: &InMemory, want: Want) -> anyhow::Result<()> {
    remount(own, "size=64m,nr_inodes=20000")?;
    if want == Want::Bomb {
        fs::remove_file(molt.state.join("begun"))?;
    }
    if let Want::Descriptors(_) = want {
        let pid = Pid::from_raw(i32::try_from(molt.sandbox.pid1()?)?);
        let all = Rlimit { current: Some(1024), maximum: Some(1024) };
        prlimit(pid, Resource::Nofile, all).context("giving descriptors")?;
    }
    // Whoever started it starts it again.
    if molt.sandbox.wait(Duration::ZERO).is_ok() {
        molt.sandbox.restart()?;
    }
    Ok(())
}

/// Asks for v2; how that ended, or nothing where it was not accepted, or PID 1 ended meanwhile.
fn update(molt: &mut Molt) -> anyhow::Result<Option<String>> {
    let Ok(accepted) = molt.operator("POST", "/v1/updates", &json!({"image": image("v2")})) else { return Ok(None) };
    let path = format!("/v1/updates/{}", accepted["id"].as_str().context("an id")?);
    wait::until_ok("the update to end", SOON * 3, || {
        if molt.sandbox.wait(Duration::ZERO).is_ok() {
            molt.sandbox.restart()?;
            return Ok(None);
        }
        let record = molt.operator("GET", &path, &Value::Null)?;
        Ok(Some(record["outcome"].as_str().with_context(|| format!("{record:#}"))?.to_owned()))
    })
}

/// PID 1, an init and a workload, and nothing in the store that is not needed.
fn clean(molt: &Molt) -> anyhow::Result<()> {
    wait::until_ok("it to be clean", SOON, || {
        let family = molt.family()?;
        ensure!(family.len() == 3, "{} processes: {:?}", family.len(), family.iter().take(9).collect::<Vec<_>>());
        molt.operator("POST", "/v1/gc", &json!({}))?;
        for folder in ["tmp", "trash"] {
            let left = molt.stored(folder)?;
            ensure!(left.is_empty(), "{folder} holds {left:?}");
        }
        Ok(())
    })
}
