//! What a kubelet would see of an update and of a rollback: always live, and not ready from the first signal on.
//!
//! In: the bed. Out: cases. Must not: take a sample for true whose moment is not known.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::http;
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;

/// The tests of this file.
pub(in crate::suites) const CASES: &[Case] =
    &[case("operator::live_all_through_an_update_and_ready_only_with_a_workload_that_serves", through_changes)];

/// One look: the phase before and after the two probes, and what they said.
#[derive(Debug)]
struct Look {
    phases: (String, String),
    live: u16,
    ready: u16,
}

fn look(socket: &std::path::Path) -> anyhow::Result<Look> {
    let get = |path: &str| http::operator(socket, "GET", path, &[], SOON);
    let phase = || -> anyhow::Result<String> {
        let status: Value = get("/v1/status")?.json()?;
        Ok(status["status"]["phase"].as_str().context("a phase")?.to_owned())
    };
    let before = phase()?;
    let (live, ready) = (get("/livez")?.status, get("/readyz")?.status);
    Ok(Look { phases: (before, phase()?), live, ready })
}

/// Looks again and again while `molt WORDS` runs; every look of it.
fn during(molt: &Molt, words: &[&str]) -> anyhow::Result<Vec<Look>> {
    let socket = molt.socket()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = Vec::new();
            while !over.load(Ordering::Relaxed) {
                looks.push(look(&socket)?);
                std::thread::sleep(Duration::from_millis(2));
            }
            anyhow::Ok(looks)
        });
        let said = molt.expect(0, words);
        over.store(true, Ordering::Relaxed);
        let looks = watcher.join().expect("looking does not panic");
        said.and(looks)
    })
}

fn through_changes(bed: &Bed) -> anyhow::Result<()> {
    // It takes 700 ms to stop, so that the gap can be looked into.
    let molt = Setup::new(bed, Kind::Light, &bed.small("slow-stop")?)?.start()?;
    for words in [&["update", &bed.small("v2")?][..], &["rollback"], &["rollback", "--to", "2"]] {
        let looks = during(&molt, words)?;
        ensure!(looks.iter().all(|look| look.live == 200), "{words:?}: {looks:?}");
        let of = |phases: &[&str]| -> Vec<&Look> {
            let both = |look: &&Look| look.phases.0 == look.phases.1 && phases.contains(&look.phases.0.as_str());
            looks.iter().filter(both).collect()
        };
        let gap = of(&["Quiescing", "Swapping"]);
        ensure!(gap.iter().all(|look| look.ready == 503), "{words:?}: {gap:?}");
        let before = of(&["Resolving", "Planning", "Fetching", "Staging", "Arming"]);
        ensure!(before.iter().all(|look| look.ready == 200), "{words:?}: {before:?}");
        if words != ["rollback"] {
            ensure!(!gap.is_empty(), "{words:?}: nobody looked in 700 ms: {looks:?}");
        }
        for (probe, code) in [("startup", 0), ("live", 0), ("ready", 0)] {
            molt.expect(code, &["probe", probe])?;
        }
    }
    molt.sound()
}
