//! Disks that are full, fill up on the way, or take no more writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{look, pull_fails, pull_fails_but_for_one, recipe, says, setup};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::disk::{Disk, FileSystem, InMemory};
use crate::harness::image::{Layer, Packing};
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::{process, wait};

/// The tests of this suite.
pub(in crate::suites) const CASES: &[Case] = &[
    case("bad::disk::five_gigabytes_claimed_on_a_full_disk", claims_too_much),
    case("bad::disk::a_file_that_claims_five_gigabytes", claiming_entry),
    case("bad::disk::a_disk_that_fills_up_on_the_way", disk_fills_up),
    case("bad::disk::inodes_that_are_too_few_or_run_out", too_few_inodes),
    case("bad::disk::a_full_disk_does_not_stop_a_rollback", rollback_on_a_full_disk),
    case("bad::disk::without_an_inode_left_it_starts_and_rolls_back", without_inodes),
    case("bad::disk::a_container_that_cannot_be_staged_stops_no_image", zero_cannot_be_staged),
    case("bad::disk::one_that_turns_read_only_on_the_way", turns_read_only),
    case("bad::disk::one_that_is_mounted_read_only", |bed| mounted_read_only(bed, Kind::Light)),
    case("bad::disk::the_same_in_a_user_namespace", |bed| mounted_read_only(bed, Kind::LightUser)),
    case("bad::disk::a_container_s_own_root_on_one_that_is_read_only", own_root_read_only),
];

/// Molt with its store on a disk of its own, of `megabytes`.
fn on_a_disk(bed: &Bed, megabytes: u64) -> anyhow::Result<(Molt, Disk)> {
    let disk = Disk::new(&bed.scratch("disk")?, FileSystem::Ext4, megabytes)?;
    let mut setup = setup(bed)?;
    setup.store.clone_from(&disk.path);
    Ok((setup.start()?, disk))
}

fn claims_too_much(bed: &Bed) -> anyhow::Result<()> {
    let (molt, disk) = on_a_disk(bed, 96)?;
    disk.fill(4 << 20)?;
    let image = bed.lying_image("bad/huge:1", || {
        Ok(recipe(bed, "v4")?.build_bent(|manifest| manifest["layers"][2]["size"] = json!(5_u64 << 30)))
    })?;
    let parts = ["1 layers of 5120 MiB need about 18432 MiB and ", " inodes are free", "free some: molt gc"];
    pull_fails(&molt, 6, &image, &parts)?;
    let dry = molt.expect(6, &["update", &image, "--dry-run"])?;
    says(&dry.stderr, &parts)?;
    let asked = json!({"image": image});
    let answer = molt.ask("POST", "/v1/updates?dryRun=All", &asked)?;
    ensure!(answer.status == 507 && answer.json()?["code"] == "no-space", "{} {}", answer.status, answer.text());
    Ok(())
}

fn claiming_entry(bed: &Bed) -> anyhow::Result<()> {
    let (molt, _disk) = on_a_disk(bed, 96)?;
    let image = bed.lying_image("bad/claiming:1", || {
        let layer = Layer::new().dir("app", 0o755).claiming("app/big", 5 << 30, &[0; 4096]);
        Ok(recipe(bed, "v4")?.layer(layer.pack(Packing::Gzip)).build())
    })?;
    let before = free(&molt)?;
    pull_fails_but_for_one(&molt, 1, &image, &["failed to unpack layer "])?;
    let after = free(&molt)?;
    ensure!(after + (2 << 20) > before, "{before} bytes were free, now {after}");
    Ok(())
}

fn free(molt: &Molt) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(&molt.store)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

fn disk_fills_up(bed: &Bed) -> anyhow::Result<()> {
    let (molt, disk) = on_a_disk(bed, 96)?;
    // Small on its way, and so not refused before: zeros pack well.
    let image = bed.image("bad/zeros:1", || {
        let mut layer = Layer::new().dir("app", 0o755);
        for number in 0..12 {
            layer = layer.file(&format!("app/zeros{number}"), 0o644, &vec![0; 4 << 20]);
        }
        Ok(recipe(bed, "v4")?.layer(layer.pack(Packing::Gzip)).build())
    })?;
    let ballast = disk.fill(16 << 20)?;
    let before = free(&molt)?;
    pull_fails(&molt, 6, &image, &[" inodes are free", "free some: molt gc"])?;
    let after = free(&molt)?;
    ensure!(after + (2 << 20) > before, "{before} bytes were free, now {after}");
    fs::remove_file(ballast)?;
    molt.expect(0, &["update", &image])?;
    molt.serves("v4", 2)
}

fn too_few_inodes(bed: &Bed) -> anyhow::Result<()> {
    let disk = InMemory::new(&bed.scratch("disk")?, 256, 2000)?;
    // Without a reserve, which may be seen to be short before the last inode is gone: it is the kernel that says no.
    let mut setup = setup(bed)?.with("/update/reserve", json!("0KiB"));
    setup.store.clone_from(&disk.path);
    let molt = setup.start()?;
    let ballast = disk.path.join("ballast");
    fs::create_dir(&ballast)?;
    let left = rustix::fs::statvfs(&disk.path)?.f_favail;
    let spare = 300;
    for number in spare..left {
        fs::File::create(ballast.join(number.to_string()))?;
    }
    // Small on its way: a thousand empty files pack well, and are found out only when they are made.
    let image = bed.image("bad/entries:1", || {
        let files = |layer: Layer, number| layer.file(&format!("app/empty{number}"), 0o644, b"");
        let layer = (0..1000).fold(Layer::new().dir("app", 0o755), files);
        Ok(recipe(bed, "v4")?.layer(layer.pack(Packing::Gzip)).build())
    })?;
    let free = || anyhow::Ok(rustix::fs::statvfs(&molt.store)?.f_favail);
    let before = free()?;
    pull_fails(&molt, 6, &image, &["no bytes or inodes left (ENOSPC)", "free some: molt gc"])?;
    wait::until_ok("the inodes to come back", SOON, || {
        let after = free()?;
        ensure!(after + 2 > before, "{before} inodes were free, now {after}");
        Ok(())
    })?;
    for number in 20..spare {
        fs::File::create(ballast.join(number.to_string()))?;
    }
    let few = " of 2000 inodes are free";
    pull_fails(&molt, 6, &bed.small("v3")?, &[" layers of 1 MiB need about ", few, "free some: molt gc"])?;
    fs::remove_dir_all(ballast)?;
    molt.expect(0, &["update", &image])?;
    molt.serves("v4", 2)
}

fn rollback_on_a_full_disk(bed: &Bed) -> anyhow::Result<()> {
    let (molt, disk) = on_a_disk(bed, 96)?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    disk.fill(0)?;
    ensure!(fs::write(disk.path.join("more"), vec![1; 1 << 20]).is_err(), "the disk is not full");
    pull_fails(
        &molt,
        6,
        &bed.small("v3")?,
        &[" layers of 1 MiB need about ", " inodes are free", "free some: molt gc"],
    )?;
    molt.expect(0, &["rollback"])?;
    molt.serves("v1", 3)?;
    // The journal is written in place: what was decided is on disk, too.
    let mut molt = molt;
    molt.sandbox.kill()?;
    molt.sandbox.restart()?;
    molt.settled()?;
    molt.serves("v1", 4)
}

/// Takes every inode that is left.
fn fill_with_names(folder: &Path) -> anyhow::Result<()> {
    let full = (0..9000).find(|number| fs::File::create(folder.join(format!("ballast-{number}"))).is_err());
    ensure!(full.is_some(), "inodes without end");
    Ok(())
}

/// Also where a kernel wants the root mounted somewhere: the store has no room for a mount point.
fn without_inodes(bed: &Bed) -> anyhow::Result<()> {
    for kernel in ["6.14", "99.0"] {
        let disk = InMemory::new(&bed.scratch("disk")?, 64, 2000)?;
        let mut setup = setup(bed)?.env("MOLT_PRETEND_KERNEL", kernel);
        setup.store.clone_from(&disk.path);
        let mut spec = setup.spec.clone();
        let mut molt = setup.start()?;
        molt.expect(0, &["update", &bed.small("v2")?])?;
        ensure!(molt.sandbox.stop(SOON)? == 0);
        if kernel == "99.0" {
            // Not even what overlayfs removes first is there to be had again: it mounts read-only and says nothing.
            for generation in [1, 2] {
                fs::remove_dir(disk.path.join(format!("generations/{generation}/work/work")))?;
            }
        }
        fill_with_names(&disk.path)?;
        // What confines it is another thing now, and cannot be written down.
        spec["spec"]["workload"]["limits"] = json!({"nofile": 2048});
        fs::write(molt.config.join("sandbox.yaml"), spec.to_string())?;
        molt.sandbox.restart()?;
        let status = molt.settled()?;
        molt.serves("v2", 3)?;
        says(
            &status["degraded"].to_string(),
            &["the store's disk is full: all but the state and carried mounts is read-only"],
        )?;
        molt.expect(0, &["rollback"])?;
        molt.serves("v1", 4)?;
        // With room again, the next start can write.
        ensure!(molt.sandbox.stop(SOON)? == 0);
        for number in 0..100 {
            fs::remove_file(disk.path.join(format!("ballast-{number}")))?;
        }
        molt.sandbox.restart()?;
        let status = molt.settled()?;
        molt.serves("v1", 5)?;
        ensure!(!status["degraded"].to_string().contains("disk"), "{status:#}");
        molt.expect(0, &["update", &bed.small("v2")?])?;
    }
    Ok(())
}

/// The container's own root has another command, which cannot be staged: that is no reason not to start an image.
fn zero_cannot_be_staged(bed: &Bed) -> anyhow::Result<()> {
    let disk = InMemory::new(&bed.scratch("disk")?, 64, 2000)?;
    let mut setup = Setup::own_root(bed, Kind::Light, &["/app/molt-testd"])?.with("/workload/user", json!("1000:1000"));
    setup.store.clone_from(&disk.path);
    let mut program = setup.options.program.clone();
    let mut molt = setup.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    ensure!(molt.sandbox.stop(SOON)? == 0);
    fill_with_names(&disk.path)?;
    program.push("another".to_owned());
    molt.sandbox.restart_as(&program.iter().map(String::as_str).collect::<Vec<_>>())?;
    molt.settled()?;
    molt.serves("v2", 3)?;
    says(&molt.sandbox.logs(), &["generation 0 stays as it was staged last"])
}

/// As `errors=remount-ro` of ext4(5) has it: what is read is there, nothing can be written any more.
fn turns_read_only(bed: &Bed) -> anyhow::Result<()> {
    let (mut molt, disk) = on_a_disk(bed, 96)?;
    let (v2, v3) = (bed.small("v2")?, bed.small("v3")?);
    molt.click()?;
    molt.expect(0, &["hold"])?;
    molt.expect(0, &["update", "--no-wait", &v2])?;
    molt.until("the hold", |status| status["phase"] == "Held")?;
    let before = look(&molt)?;
    disk.turn_read_only()?;
    // Whatever it comes to, the trial cannot be recorded, and so nobody is signalled.
    molt.expect(0, &["release"])?;
    let status = molt.until("the update to be over", |status| status["phase"] == "Idle")?;
    ensure!(look(&molt)? == before, "the workload noticed");
    let last = &status["lastUpdate"];
    ensure!(last["outcome"] == "aborted" && last["reason"] == "store-unusable", "{last:#}");
    says(&last["message"].to_string(), &["Read-only file system", "generation 1 runs "])?;
    refused(&molt, &v3, 1, "Read-only file system")?;
    ensure!(not_durable(&molt.status()?)?.contains("the journal could not be written"), "{}", molt.status()?);
    // Whoever starts on it finds what was confirmed, and the state, which is elsewhere.
    molt.sandbox.kill()?;
    molt.sandbox.restart()?;
    runs_on_a_read_only_disk(&molt, "v1", 2, &v3)?;
    ensure!(molt.click()? == 2, "the state can be written");
    // The same behind a mount that is read-only from the start.
    ensure!(molt.sandbox.stop(SOON)? == 0);
    disk.rest()?;
    disk.mend()?;
    disk.wake()?;
    molt.sandbox.restart()?;
    molt.settled()?;
    // That the hold was ended could not be written down either.
    molt.expect(0, &["release"])?;
    molt.expect(0, &["update", &v2])?;
    molt.serves("v2", 4)?;
    ensure!(molt.sandbox.stop(SOON)? == 0);
    disk.remount("ro")?;
    molt.sandbox.restart()?;
    runs_on_a_read_only_disk(&molt, "v2", 5, &v3)?;
    molt.expect(6, &["rollback"])?;
    molt.serves("v2", 5)?;
    ensure!(molt.sandbox.stop(SOON)? == 0);
    disk.remount("rw")?;
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    ensure!(not_durable(&status)?.is_empty() && status["degraded"] == json!([]), "{status:#}");
    molt.serves("v2", 6)?;
    molt.expect(0, &["rollback"])?;
    molt.serves("v1", 7)?;
    molt.expect(0, &["update", &v3])?;
    molt.serves("v3", 8)
}

/// Also the marks of overlayfs are read as they were written, of which there are two kinds.
fn mounted_read_only(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let image = bed.image("bad/pages:1", || {
        let old = Layer::new().dir("app", 0o755).dir("app/pages", 0o755).file("app/pages/old", 0o644, b"");
        let new = Layer::new().dir("app/pages", 0o755).opaque("app/pages").file("app/pages/new", 0o644, b"");
        Ok(recipe(bed, "v1")?.layer(old.pack(Packing::Gzip)).layer(new.pack(Packing::Gzip)).build())
    })?;
    let mut molt = Setup::new(bed, kind, &image)?.start()?;
    let pages = |molt: &Molt| anyhow::Ok(molt.expect(0, &["exec", "--", "ls", "/app/pages"])?.stdout);
    ensure!(pages(&molt)? == "new\n");
    ensure!(molt.sandbox.stop(SOON)? == 0);
    let cover = Covered::new(&molt.store)?;
    molt.sandbox.restart()?;
    runs_on_a_read_only_disk(&molt, "v1", 2, &bed.small("v2")?)?;
    ensure!(pages(&molt)? == "new\n");
    ensure!(molt.sandbox.stop(SOON)? == 0);
    drop(cover);
    molt.sandbox.restart()?;
    let status = molt.settled()?;
    ensure!(not_durable(&status)?.is_empty(), "{status:#}");
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 4)
}

/// Another command cannot be staged there: it runs as it was staged last.
fn own_root_read_only(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::own_root(bed, Kind::Light, &["/app/molt-testd"])?.with("/workload/user", json!("1000:1000"));
    let mut program = setup.options.program.clone();
    let mut molt = setup.start()?;
    let (before, _) = molt.version()?;
    ensure!(molt.sandbox.stop(SOON)? == 0);
    let cover = Covered::new(&molt.store)?;
    program.push("another".to_owned());
    molt.sandbox.restart_as(&program.iter().map(String::as_str).collect::<Vec<_>>())?;
    runs_on_a_read_only_disk(&molt, &before, 2, &bed.small("v2")?)?;
    says(&molt.sandbox.logs(), &["generation 0 stays as it was staged last"])?;
    ensure!(molt.sandbox.stop(SOON)? == 0);
    drop(cover);
    Ok(())
}

/// A folder that is mounted over itself, read-only.
struct Covered(PathBuf);

impl Covered {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let mount = |words: &[&str]| process::run(Command::new("mount").args(words).arg(folder), SOON);
        mount(&["--bind", &folder.display().to_string()])?;
        let covered = Self(folder.to_owned());
        mount(&["-o", "remount,bind,ro"])?;
        Ok(covered)
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        let _ = process::run(Command::new("umount").arg(&self.0), SOON);
    }
}

/// An update that ends with `code` and says why nothing comes of it; the workload never notices.
fn refused(molt: &Molt, image: &str, code: i32, said: &str) -> anyhow::Result<()> {
    let before = look(molt)?;
    let output = molt.expect(code, &["update", image])?;
    says(&output.stderr, &[said, "see what is missing: molt doctor"])?;
    says(&output.stdout, &[": store unusable; generation ", " runs on, untouched"])?;
    ensure!(look(molt)? == before, "the workload noticed");
    Ok(())
}

fn runs_on_a_read_only_disk(molt: &Molt, version: &str, start: u64, other: &str) -> anyhow::Result<()> {
    let status = molt.settled()?;
    molt.serves(version, start)?;
    says(&not_durable(&status)?, &["it is read-only; what is confirmed runs, and nothing can be changed"])?;
    says(&status["degraded"].to_string(), &["the store's file system is read-only: all but the state"])?;
    refused(molt, other, 6, "there is no usable store, so nothing can be updated or rolled back")
}

/// Message of the condition `Durable`; nothing where it is true.
fn not_durable(status: &Value) -> anyhow::Result<String> {
    let conditions = status["conditions"].as_array().context("conditions")?;
    let one = conditions.iter().find(|one| one["type"] == "Durable").context("Durable")?;
    let message = one["message"].as_str().context("a message")?.to_owned();
    ensure!((one["status"] == "True") == message.is_empty(), "{one}");
    Ok(message)
}
