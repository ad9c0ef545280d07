//! Many updates in a row: what one of them leaves behind shows after some hundreds.
//!
//! In: two small images, one after the other, proven by their first good answer; a store on a file system of its own.
//! Out: an error if anything is held at the end that was not held after the first few: descriptors, threads, mounts,
//! processes, namespaces, inodes, or a megabyte of memory. Must not: ask Molt what it holds.

use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::disk::InMemory;
use crate::harness::holdings::Holdings;
use crate::harness::image::{Format, Layer, Packing};
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::{images, wait};

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("soak::five_hundred_updates_leave_nothing_behind", |bed| soak(bed, Kind::Light, WARM, 500)),
    case("soak::nor_do_some_as_root_of_a_user_namespace_with_one_id", |bed| soak(bed, Kind::LightUserSingle, FEW, 60)),
    case("soak::nor_do_twenty_thousand", |bed| soak(bed, Kind::Light, WARM, 20_000)).long(),
    case("soak::what_an_update_leaves_behind_once_is_found", planted),
];

/// Updates before the first look: after these, every generation that is kept is there, and the events are all that are kept.
const WARM: usize = 100;
/// Lines of output before the first look: more than are kept, in lines and in bytes.
const LINES: usize = 20_000;
/// The same where there is less time, or only things are counted.
const FEW: usize = 20;
/// Looks in all.
const LOOKS: usize = 10;
/// How much more memory there may be at the end, in KiB.
const DRIFT: u64 = 1024;
const IMAGES: &str = "/opt/images";

/// What a build for it leaves behind, once; and the thing there must be more of.
const PLANTED: [(&str, &str); 6] = [
    ("leak-descriptor", "descriptors of /dev/null"),
    ("leak-mount", "descriptors of /: "),
    ("leak-process", "processes busybox: "),
    ("leak-thread", "threads"),
    ("leak-file", "inodes of the store"),
    ("leak-memory", "KiB of memory"),
];

/// A sandbox with v1, whose store has a file system of its own.
fn sandbox(bed: &Bed, kind: Kind) -> anyhow::Result<(Setup<'_>, InMemory)> {
    let layout = bed.scratch("images")?;
    for version in ["v1", "v2"] {
        let testd = bed.program("molt-testd")?;
        // A namespace with one id cannot hold another's files.
        let variant = if kind == Kind::LightUserSingle { "of-root" } else { version };
        let small = images::small_as(variant, &testd, Packing::Gzip, Format::Oci)?;
        let name = Layer::new().dir("app", 0o755).file("app/VERSION", 0o644, format!("{version}\n").as_bytes());
        small.layer(name.pack(Packing::Gzip)).build().write_layout(&layout, version)?;
    }
    let own = InMemory::new(&bed.scratch("own")?, 256, 100_000)?;
    let mut setup = Setup::new(bed, kind, &image("v1"))?
        .with("/health/monitor", json!("0s"))
        .with("/health/readiness", json!({"notify": {}}))
        .workload_env("TESTD_BEHAVIOUR", "notify")
        .with("/mounts", json!([{"path": IMAGES, "carry": false}]));
    setup.options = setup.options.read_only(&layout, IMAGES);
    setup.store.clone_from(&own.path);
    Ok((setup, own))
}

fn image(version: &str) -> String {
    format!("oci:{IMAGES}:{version}")
}

/// So many updates, v2 and v1 in turn.
fn updates(molt: &Molt, kind: Kind, count: usize) -> anyhow::Result<()> {
    for number in 0..count {
        let version = if number % 2 == 0 { "v2" } else { "v1" };
        if kind.in_user_namespace() {
            // From outside nobody is its root.
            molt.expect(0, &["update", "--force", &image(version)])?;
            continue;
        }
        let record = molt.updated(&image(version))?;
        ensure!(record["outcome"] == "confirmed", "update {number}: {record:#}");
    }
    Ok(())
}

/// No more than `before`, once what is removed aside is removed.
fn look(molt: &Molt, before: &Holdings) -> anyhow::Result<Holdings> {
    wait::until_ok("everything to be let go", SOON, || {
        let now = Holdings::of(molt)?;
        now.within(before)?;
        Ok(now)
    })
}

/// What is held by a sandbox at rest: nothing changes any more.
fn settled(molt: &Molt) -> anyhow::Result<Holdings> {
    let mut last = Holdings::of(molt)?;
    let mut same = Instant::now();
    wait::until_ok("the sandbox to rest", SOON, || {
        let now = Holdings::of(molt)?;
        if now.counts != last.counts {
            (last, same) = (now, Instant::now());
        }
        ensure!(same.elapsed() > std::time::Duration::from_millis(500), "it does not rest: {last:?}");
        Ok(last.clone())
    })
}

fn soak(bed: &Bed, kind: Kind, warm: usize, count: usize) -> anyhow::Result<()> {
    let (setup, _own) = sandbox(bed, kind)?;
    let molt = setup.start()?;
    updates(&molt, kind, warm)?;
    // All of the output that is kept.
    molt.get(&format!("/says?lines={LINES}"))?;
    let (began, first) = (Instant::now(), settled(&molt)?);
    let mut memory = vec![first.memory];
    let mut left = count;
    while left > 0 {
        let some = left.min((count / LOOKS).next_multiple_of(2));
        updates(&molt, kind, some)?;
        left -= some;
        memory.push(look(&molt, &first)?.memory);
    }
    let (each, descriptors) =
        (began.elapsed().as_secs_f64() * 1000.0 / f64::from(u32::try_from(count)?), first.counts.clone());
    println!("soak ({kind:?}): {count} updates, {each:.0} ms each; KiB of memory {memory:?}; held {descriptors:?}");
    drifts(&memory)?;
    molt.serves("v1", (warm + count + 1) as u64)?;
    molt.sound()
}

fn drifts(memory: &[u64]) -> anyhow::Result<()> {
    let (first, last) = (memory.first().context("a first look")?, memory.last().context("a last look")?);
    ensure!(last.saturating_sub(*first) < DRIFT, "KiB of memory: {first} became {last}; {memory:?}");
    Ok(())
}

/// A measure that cannot tell is none.
fn planted(bed: &Bed) -> anyhow::Result<()> {
    let root = bed.scratch("planted")?;
    images::unpack_outer(&root, &bed.program("molt-testd")?, Some(&bed.planted()?))?;
    for (word, thing) in PLANTED {
        let (mut setup, _own) = sandbox(bed, Kind::Light)?;
        setup.options.root.clone_from(&root);
        let molt = setup.env("MOLT_PLANT", word).start()?;
        updates(&molt, Kind::Light, FEW)?;
        let before = settled(&molt)?;
        // In the update after those.
        updates(&molt, Kind::Light, 2)?;
        let after = settled(&molt)?;
        let found = after.within(&before).and_then(|()| drifts(&[before.memory, after.memory]));
        let found = found.err().with_context(|| format!("{word} is not found"))?.to_string();
        ensure!(found.contains(thing), "{word} is found as {found}");
    }
    Ok(())
}
