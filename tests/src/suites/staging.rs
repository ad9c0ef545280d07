//! What is made beside the one that runs: mounts found where a workload renames what lies above them, one upper folder for
//! each generation, and a root that cannot be mounted is found before anything is stopped.
//!
//! In: a state that is changed all the time, a store that is damaged on the host. Out: cases. Must not: damage what the
//! generation that runs has mounted.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::image::{Format, Layer, Packing};
use crate::harness::images;
use crate::harness::molt::{Molt, SOON, STATE, Setup};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The cases.
pub(super) const CASES: &[Case] = &[
    case("staging::folders_renamed_on_the_way_lead_nowhere_else", renamed),
    case("staging::a_state_that_is_mounted_over_is_still_the_state", mounted_over),
    case("staging::one_upper_folder_is_one_file_system", uppers),
    case("staging::a_root_that_cannot_be_mounted_stops_nothing", unmountable),
];

/// `small` with a folder `/etc/in`.
fn inner_etc(bed: &Bed, version: &str) -> anyhow::Result<String> {
    bed.image(&format!("staging/in:{version}"), || {
        let recipe = images::small_as(version, &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)?;
        Ok(recipe.layer(Layer::new().dir("etc", 0o755).dir("etc/in", 0o755).pack(Packing::Gzip)).build())
    })
}

/// A volume inside the state, whose parent the workload's side renames, and replaces by a link out of the state, all the
/// time. It ends up where its parent is, or the update fails; never behind the link.
fn renamed(bed: &Bed) -> anyhow::Result<()> {
    let volume = bed.volume("inner")?;
    fs::write(volume.join("sentinel"), "inner\n")?;
    let mut setup = Setup::new(bed, Kind::Light, "")?.with("/health/monitor", json!("0s"));
    let (there, away) = (setup.state.join("a"), setup.state.join("b"));
    fs::create_dir_all(there.join("in"))?;
    setup.options = setup.options.volume(&volume, "/sandbox/state/a/in");
    let mut setup = setup.with("/mounts", json!([{"path": "/sandbox/state/a/in", "carry": true}]));
    // Where the link leads there is such a folder, too.
    setup.spec["spec"]["image"] = json!(inner_etc(bed, "v1")?);
    let molt = setup.start()?;
    let first = molt.get("/read?path=/sandbox/state/a/in/sentinel")?;
    ensure!(first == "inner\n", "the volume is not there at first: {first}\n{}", molt.get("/mounts")?);
    // The sandbox's own mount is on the folder, whatever it is called.
    let over = AtomicBool::new(false);
    let (mut good, mut swaps) = (0, 0);
    thread::scope(|scope| -> anyhow::Result<()> {
        let busy = scope.spawn(|| {
            let mut swaps = 0u64;
            while !over.load(Ordering::Relaxed) {
                let _ = fs::rename(&there, &away);
                let _ = symlink("/etc", &there);
                thread::sleep(Duration::from_micros(swaps * 37 % 900));
                let _ = fs::remove_file(&there);
                let _ = fs::rename(&away, &there);
                thread::sleep(Duration::from_micros(swaps * 53 % 900));
                swaps += 1;
            }
            swaps
        });
        let told = (0..20).try_for_each(|round| {
            let image = inner_etc(bed, if round % 2 == 0 { "v2" } else { "v1" })?;
            let output = molt.molt(&["update", "--force", &image])?;
            ensure!([0, 1, 6].contains(&output.code), "{output:?}");
            good += u32::from(output.code == 0);
            let mounts = molt.get("/mounts")?;
            let mounts = mounts.as_str().context("mounts")?;
            for line in mounts.lines().filter(|line| line.contains("/inner")) {
                let at = line.split(' ').nth(4).context("a mount point")?;
                ensure!(["/sandbox/state/a/in", "/sandbox/state/b/in"].contains(&at), "mounted at {at}:\n{mounts}");
            }
            ensure!(molt.get("/try?open=/etc/in/sentinel")?["errno"] == 2, "the volume is behind the link");
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        swaps = busy.join().unwrap_or_default();
        told
    })?;
    ensure!(good > 0 && swaps > 100, "{good} updates went well, {swaps} swaps");
    ensure!(fs::read_to_string(volume.join("sentinel"))? == "inner\n");
    molt.sound()
}

/// What was there at the start is the state, whatever its path leads to by now.
fn mounted_over(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    molt.click()?;
    let device = |molt: &Molt| -> anyhow::Result<String> {
        let mounts = molt.get("/mounts")?;
        let mounts = mounts.as_str().context("mounts")?;
        let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some(STATE)).context("the state")?;
        Ok(line.split(' ').skip(2).take(2).collect::<Vec<_>>().join(" "))
    };
    let before = device(&molt)?;
    let inside = |words: &[&str]| molt.sandbox.exec(words)?.ok();
    inside(&["/bin/mount", "-t", "tmpfs", "decoy", "/sandbox"])?;
    inside(&["/bin/mkdir", STATE])?;
    inside(&["/bin/chmod", "1777", STATE])?;
    ensure!(inside(&["/bin/ls", "-A", STATE])?.stdout.is_empty(), "nothing was mounted over it");
    for (words, version, starts) in
        [(vec!["update".to_owned(), bed.small("v2")?], "v2", 2), (vec!["rollback".to_owned()], "v1", 3)]
    {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        molt.expect(0, &words)?;
        molt.serves(version, starts)?;
        ensure!(molt.click()? == starts && molt.state_file("clicks").is_some(), "{version} has another state");
        let now = device(&molt)?;
        ensure!(now == before, "{version} has {now} for its state, not {before}");
        let planted = inside(&["/bin/ls", "-A", STATE])?.stdout;
        ensure!(planted.is_empty(), "{version} wrote to what lies over it: {planted}");
    }
    molt.sound()
}

/// The overlays that processes of the sandbox have for a root: source device by upper folder.
fn overlays(molt: &Molt) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (pid, _) in molt.family()? {
        // It may be gone by now.
        let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for line in text.lines().filter(|line| line.contains(" - overlay molt ")) {
            let words: Vec<&str> = line.split(' ').collect();
            let device = (*words.get(2).context("a device")?).to_owned();
            let options = words.last().context("options")?;
            let upper = options.split(',').find_map(|option| option.strip_prefix("upperdir=")).context("an upper")?;
            let devices = found.entry(upper.to_owned()).or_default();
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
    }
    Ok(found)
}

/// Two overlays on one upper folder are undefined behaviour, and nothing in the kernel refuses it with `index=off`.
fn uppers(bed: &Bed) -> anyhow::Result<()> {
    let script = "if test -e /sandbox/state/dead; then rm /sandbox/state/dead; exit 1; fi";
    let liveness = json!({"exec": {"command": ["sh", "-c", script]}, "period": "100ms", "failureThreshold": 1});
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health/liveness", liveness).start()?;
    let over = AtomicBool::new(false);
    let seen = thread::scope(|scope| -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let looking = scope.spawn(|| -> anyhow::Result<BTreeMap<String, Vec<String>>> {
            let mut most: BTreeMap<String, Vec<String>> = BTreeMap::new();
            while !over.load(Ordering::Relaxed) {
                for (upper, devices) in overlays(&molt)? {
                    let known = most.entry(upper).or_default();
                    if devices.len() > known.len() {
                        *known = devices;
                    }
                }
            }
            Ok(most)
        });
        let told = (|| {
            molt.expect(0, &["update", &bed.small("v2")?])?;
            molt.expect(0, &["rollback"])?;
            molt.expect(3, &["update", &bed.small("exits")?])?;
            // The same generation once more, while its root is still held.
            fs::write(molt.state.join("dead"), "")?;
            wait::until_ok("another start", SOON, || {
                let status = molt.settled()?;
                ensure!(status["workload"]["restarts"] == 1, "{status:#}");
                Ok(())
            })
        })();
        over.store(true, Ordering::Relaxed);
        told.and(looking.join().unwrap_or_else(|_| anyhow::bail!("who looked is gone")))
    })?;
    ensure!(seen.len() >= 3, "three generations were mounted: {seen:?}");
    for (upper, devices) in &seen {
        ensure!(devices.len() == 1, "{upper} is in {} file systems at once: {seen:?}", devices.len());
    }
    molt.sound()
}

fn unmountable(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let before = molt.get("/")?;
    for part in ["work", "upper"] {
        let held = molt.molt(&["update", "--stage-only", "--force", &bed.small("v2")?])?;
        let status = molt.status()?;
        ensure!(status["phase"] == "Held", "{held:?}\n{status:#}");
        let number = status["staged"]["generation"].as_u64().context("a staged generation")?;
        let folder = molt.store.join(format!("generations/{number}")).join(part);
        fs::rename(&folder, folder.with_extension("away"))?;
        fs::write(&folder, "not a folder")?;
        let failed = molt.expect(1, &["apply"])?;
        ensure!(failed.stderr.contains(part) && failed.stderr.contains("Not a directory"), "{failed:?}");
        ensure!(molt.get("/")? == before, "the one that ran noticed");
    }
    molt.expect(0, &["update", "--force", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    molt.sound()
}
