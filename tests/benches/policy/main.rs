//! What a policy costs: reading, lowering and applying it, and arming a generation under it, a small one beside the largest
//! one.
//!
//! In: `--rounds N` (20) updates under each policy, in turns. Out: microseconds of reading, lowering and applying 50 paths
//! (the calls of the shim's `confine/landlock.rs` and its filters, in a thread of its own each time); from
//! entering the phase Arming to leaving it, by the supervisor's own events (milliseconds). Must not: count what the
//! update does before or after.

use std::{fs, process::ExitCode, time::Instant};

use anyhow::{Context as _, ensure};
use molt_policy::Context;
use molt_tests::{
    bench::{self, Arguments, Samples, Table, figure},
    harness::{
        bed::Bed,
        molt::{Molt, Setup},
        runtime::Kind,
    },
};
use serde_json::{Value, json};

const FEW: usize = 9;
const MANY: usize = 256;

fn main() -> ExitCode {
    bench::main("bench-policy", 20, &[], run)
}

/// A policy with `count` paths; all but seven are folders of their own below `/etc/many`.
fn policy(count: usize) -> String {
    let many: String = (0..count - 7).map(|number| format!(", /etc/many/{number}")).collect();
    format!(
        "version: 1\nfilesystem_policy:\n  read_only: [/bin, /usr, /app, /etc, /proc{many}]\n  \
         read_write: [/sandbox/state, /tmp]\n"
    )
}

fn lowered() -> anyhow::Result<(Samples, Samples)> {
    let (mut read, mut lower) = (Samples::default(), Samples::default());
    let text = policy(50);
    for _ in 0..500 {
        let started = Instant::now();
        let policy = molt_policy::parse(text.as_bytes()).map_err(|faults| anyhow::anyhow!("{faults}"))?;
        read.push(started.elapsed().as_secs_f64() * 1e6);
        let context = Context {
            workdir: "/app",
            shown: &[],
            state: &[],
            program: None,
            readable: &[],
            proxy_ports: &[],
            kernel_abi: 8,
            seccomp: molt_core::launch::SeccompProfile::Floor,
        };
        let started = Instant::now();
        let lowered = molt_policy::lower(&policy, &context);
        lower.push(started.elapsed().as_secs_f64() * 1e6);
        let paths = lowered.confinement.landlock.context("Landlock")?.paths;
        ensure!(paths.iter().filter(|rule| !rule.derived).count() == 50);
    }
    Ok((read, lower))
}

/// Opens, looks at and adds each of 50 folders, enters the domain and loads the filters, as a generation's init does.
fn applied() -> anyhow::Result<Samples> {
    use landlock::{
        ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, Ruleset, RulesetAttr as _,
        RulesetCreatedAttr as _, Scope,
    };
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let folders = tempfile::tempdir()?;
    let paths: Vec<_> = (0..50).map(|number| folders.path().join(number.to_string())).collect();
    paths.iter().try_for_each(fs::create_dir)?;
    let programs = molt_policy::seccomp::programs(molt_core::launch::SeccompProfile::Floor)?;
    let programs: Vec<seccompiler::BpfProgram> =
        programs.iter().map(|program| program.iter().map(|op| unpacked(*op)).collect()).collect();
    let apply = || -> anyhow::Result<f64> {
        let started = Instant::now();
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let mut ruleset =
            ruleset.handle_access(AccessFs::from_all(ABI::V5))?.scope(Scope::from_all(ABI::V6))?.create()?;
        for path in &paths {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let fd = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
            rustix::fs::fstat(&fd)?;
            fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)))?;
            ruleset = ruleset.add_rule(PathBeneath::new(fd, AccessFs::from_read(ABI::V5)))?;
        }
        ruleset.restrict_self()?;
        for program in &programs {
            seccompiler::apply_filter(program)?;
        }
        Ok(started.elapsed().as_secs_f64() * 1e6)
    };
    let mut samples = Samples::default();
    for _ in 0..200 {
        let took = std::thread::scope(|scope| scope.spawn(apply).join());
        samples.push(took.map_err(|_| anyhow::anyhow!("a thread ended"))??);
    }
    Ok(samples)
}

fn unpacked(op: u64) -> seccompiler::sock_filter {
    let part = |shift: u32, bits: u32| (op >> shift) & ((1u64 << bits) - 1);
    seccompiler::sock_filter {
        code: u16::try_from(part(48, 16)).unwrap_or(0),
        jt: u8::try_from(part(40, 8)).unwrap_or(0),
        jf: u8::try_from(part(32, 8)).unwrap_or(0),
        k: u32::try_from(part(0, 32)).unwrap_or(0),
    }
}

/// Milliseconds of the last update's phase Arming.
fn armed(molt: &Molt, id: &str) -> anyhow::Result<f64> {
    let text = molt.expect(0, &["events", "-o", "json"])?.stdout;
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut times = Vec::new();
    for event in events.filter(|event| event["update"] == id && event["type"] == "phase") {
        let time: jiff::Timestamp = event["time"].as_str().context("a time")?.parse()?;
        times.push((event["phase"].as_str().unwrap_or_default().to_owned(), time));
    }
    let at = times.iter().position(|(phase, _)| phase == "Arming").context("the phase Arming")?;
    let (_, from) = times.get(at).context("the start")?;
    let (_, to) = times.get(at + 1).context("the end")?;
    Ok(to.duration_since(*from).as_secs_f64() * 1e3)
}

fn run(bed: &Bed, arguments: &Arguments) -> anyhow::Result<()> {
    let ((read, lower), apply) = (lowered()?, applied()?);
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health/monitor", json!("400ms"));
    for (name, count) in [("few.yaml", FEW), ("many.yaml", MANY)] {
        fs::write(setup.config.join(name), policy(count))?;
    }
    let molt = setup.start()?;

    let (mut few, mut many) = (Samples::default(), Samples::default());
    for round in 0..arguments.rounds {
        for (samples, name, paths) in [(&mut few, "few.yaml", FEW), (&mut many, "many.yaml", MANY)] {
            let image = many_image(bed, round % 2)?;
            let file = format!("/etc/molt/{name}");
            molt.expect(0, &["update", &image, "--policy", &file, "--allow-wider"])?;
            let rules = molt.status()?["confinement"]["rules"].as_array().map_or(0, Vec::len);
            ensure!(rules >= paths, "{rules} rules are in force, not {paths}");
            let id = molt.last()?["id"].as_str().context("an id")?.to_owned();
            samples.push(armed(&molt, &id)?);
        }
    }
    let machine = bench::machine();
    let ratio = many.median() / few.median();
    if arguments.json {
        let armed = json!({"few": few.json("ms"), "many": many.json("ms"), "ratio": ratio});
        println!(
            "{:#}",
            json!({"machine": machine, "read": read.json("us"), "lower": lower.json("us"), "apply": apply.json("us"), "armed": armed})
        );
        return Ok(());
    }
    println!("{}", bench::machine_line(&machine));
    let mut table = Table::new(&["", "median", "p99"]);
    for (name, samples) in [
        ("read and check 50 paths, µs", &read),
        ("lower 50 paths and the seccomp floor, µs", &lower),
        ("apply 50 paths and the seccomp floor, µs", &apply),
        ("armed under 9 paths, ms", &few),
        ("armed under 256 paths, ms", &many),
    ] {
        table.row([name.to_owned(), figure(samples.median()), figure(samples.quantile(0.99))]);
    }
    table.print("A policy");
    println!("\nratio 256 to 9 paths: {ratio:.2}");
    Ok(())
}

/// `small` with the 249 folders of the large policy.
fn many_image(bed: &Bed, number: usize) -> anyhow::Result<String> {
    use molt_tests::harness::{
        image::{Format, Layer, Packing},
        images,
    };
    bed.image(&format!("bench/many{number}:1"), || {
        let version = if number == 0 { "v1" } else { "v2" };
        let recipe = images::small_as(version, &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)?;
        let mut layer = Layer::new().dir("etc/many", 0o755);
        for folder in 0..MANY {
            layer = layer.dir(&format!("etc/many/{folder}"), 0o755);
        }
        Ok(recipe.layer(layer.pack(Packing::Gzip)).build())
    })
}
