//! What an update costs: Molt beside podman, crun and the floor, interleaved in one run.
//!
//! In: `--rounds N` (200) updates of Molt and of the floor, `--crun N` (a fifth), `--podman N` (a thirteenth),
//! `--dirty N` (a tenth) with 200 MB written to the old root, `--sandbox light|crun|podman` around Molt. Out: the time
//! from the old program's exit to the new one's exec, the gap a client sees, what is left behind, memory at rest.
//! Must not: share a core with anything else that works, if the figures are to mean something.

mod daemon;
mod molt;
mod peers;

use std::process::ExitCode;
use std::time::Duration;

use molt_tests::harness::bed::Bed;
use molt_tests::harness::runtime::Kind;
use serde_json::{Map, Value, json};

use self::daemon::{Seen, Version};
use self::molt::{Command, Molt};
use self::peers::{Crun, Floor, Podman};
use molt_tests::bench::{self, Arguments, Samples, Table, figure};

const DIRTY: usize = 200;
/// Gaps above this many milliseconds are counted: an attempt to connect that meets the remains of an older connection
/// is repeated by the kernel after two ticks of its clock.
const STALL: f64 = 8.0;
/// After the last update, for what is taken apart in the background.
const SETTLE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let known = [("crun", "N"), ("podman", "N"), ("dirty", "N"), ("sandbox", "light|crun|podman")];
    bench::main("bench-swap", 200, &known, run)
}

/// One way to replace a daemon, one line of a table.
#[derive(Debug, Default)]
struct Series {
    /// Exit of the old to exec of the new, µs.
    downtime: Samples,
    /// Last moment the old one was ready to the first the new one was, as the supervisor saw it, µs.
    unready: Samples,
    /// What a client saw, ms.
    gap: Samples,
}

impl Series {
    fn add(&mut self, seen: &Seen) {
        self.gap.push(seen.gap.as_secs_f64() * 1e3);
        if let Some(downtime) = seen.downtime {
            self.downtime.push(downtime.as_secs_f64() * 1e6);
        }
        if let Some(unready) = seen.unready {
            self.unready.push(unready.as_secs_f64() * 1e6);
        }
    }
}

fn run(bed: &Bed, arguments: &Arguments) -> anyhow::Result<()> {
    let rounds = arguments.rounds;
    let (crun_rounds, podman_rounds) =
        (arguments.number("crun", rounds.div_ceil(5))?, arguments.number("podman", rounds.div_ceil(13))?);
    let dirty_rounds = arguments.number("dirty", rounds.div_ceil(10))?;
    let kind = match arguments.others.get("sandbox").map(String::as_str) {
        None | Some("light") => Kind::Light,
        Some("crun") => Kind::Crun,
        Some("podman") => Kind::Podman,
        Some(other) => anyhow::bail!("no sandbox {other}"),
    };
    let machine = bench::machine();
    let responder = bed.program("bench-responder")?;

    let mut molt = Molt::start(bed, kind, &responder)?;
    std::thread::sleep(SETTLE);
    let rest = molt.memory()?;
    let mut floor = Floor::start(&responder)?;
    let mut crun = (crun_rounds > 0).then(|| Crun::start(bed, &responder)).transpose()?;
    let mut podman = (podman_rounds > 0).then(|| Podman::start(bed, &responder)).transpose()?;

    let mut all: Vec<(&str, Series)> = Vec::new();
    let mut add = |name: &'static str, seen: Seen| {
        let at = all.iter().position(|(of, _)| *of == name).unwrap_or(all.len());
        if at == all.len() {
            all.push((name, Series::default()));
        }
        all[at].1.add(&seen);
    };
    // The first ones fill caches and pools.
    for version in [Version::B, Version::A, Version::B, Version::A] {
        molt.swap(Command::Update(version))?;
        floor.swap(version)?;
    }
    std::thread::sleep(SETTLE);
    let before = molt.census()?;
    for round in 0..rounds {
        let version = Version::of(round);
        add("floor (update)", floor.swap(version)?);
        add("molt update", molt.swap(Command::Update(version))?);
        if let Some(crun) = crun.as_mut().filter(|_| due(round, rounds, crun_rounds)) {
            add("crun kill, delete, run", crun.swap()?);
        }
        if let Some(podman) = podman.as_mut().filter(|_| due(round, rounds, podman_rounds)) {
            add("podman stop, run", podman.swap()?);
        }
    }
    std::thread::sleep(SETTLE);
    let updated = molt.census()?;
    for round in 0..rounds {
        add("floor (rollback)", floor.swap(Version::of(round))?);
        add("molt rollback", molt.swap(Command::Rollback)?);
    }
    std::thread::sleep(SETTLE);
    let after = molt.census()?;
    for round in 0..dirty_rounds {
        molt.dirty(DIRTY)?;
        add("molt update, 200 MB dirty", molt.swap(Command::Update(molt.other()))?);
        molt.dirty(DIRTY)?;
        add("molt rollback, 200 MB dirty", molt.swap(Command::Rollback)?);
        add("floor (dirty)", floor.swap(Version::of(round))?);
    }
    let censuses = [("before", before), ("after the updates", updated), ("after the rollbacks", after)];
    if arguments.json {
        let series: Map<String, Value> = all
            .iter()
            .map(|(name, series)| {
                let value = json!({
                    "exitToExec": series.downtime.json("us"), "unready": series.unready.json("us"),
                    "clientGap": series.gap.json("ms"),
                });
                ((*name).to_owned(), value)
            })
            .collect();
        let censuses: Map<String, Value> =
            censuses.iter().map(|(name, census)| ((*name).to_owned(), census.json())).collect();
        println!("{}", json!({"machine": machine, "series": series, "atRest": rest.json(), "census": censuses}));
        return Ok(());
    }
    println!("{}; {kind:?} sandbox", bench::machine_line(&machine));
    print(&all, "exit of the old program to exec of the new one, µs (`downtimeUs`)", |series| &series.downtime);
    print(&all, "last answer of the old program to the first of the new, as a client sees it, ms", |series| {
        &series.gap
    });
    print(&all, "last moment ready to first moment ready, as the supervisor sees it, µs (`unreadyUs`)", |series| {
        &series.unready
    });
    rest.table().print("memory at rest, kB");
    let mut table = Table::new(&molt::Census::COLUMNS);
    for (name, census) in &censuses {
        table.row(census.row(name));
    }
    table.print("PID 1 and what hangs on it");
    Ok(())
}

/// Spreads `wanted` of `rounds` evenly.
fn due(round: usize, rounds: usize, wanted: usize) -> bool {
    (round + 1) * wanted / rounds > round * wanted / rounds
}

fn print(all: &[(&str, Series)], title: &str, of: impl Fn(&Series) -> &Samples) {
    let floor = |name: &str| {
        let kind = if name.contains("dirty") {
            "floor (dirty)"
        } else if name.contains("rollback") {
            "floor (rollback)"
        } else {
            "floor (update)"
        };
        all.iter().find(|(name, _)| *name == kind).map_or(f64::NAN, |(_, series)| of(series).median())
    };
    let mut table = Table::new(&["", "n", "median", "p99", "min", "max", "median / floor", "stalled"]);
    for (name, series) in all {
        let samples = of(series);
        if samples.count() == 0 {
            continue;
        }
        let quantiles = [samples.median(), samples.quantile(0.99), samples.quantile(0.0), samples.quantile(1.0)];
        let figures = quantiles.into_iter().chain([samples.median() / floor(name)]).map(figure);
        // Only a client can be stalled; podman is always above.
        let stalled = if title.contains("client") { samples.above(STALL).to_string() } else { String::new() };
        table.row([(*name).to_owned(), samples.count().to_string()].into_iter().chain(figures).chain([stalled]));
    }
    table.print(title);
}
