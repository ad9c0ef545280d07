//! What bringing an image costs: Molt beside `podman pull`, interleaved, each time on a fresh ext4.
//!
//! In: `--rounds N` (5). Out: wall and CPU time, what a sync afterwards still costs, and the peak of memory, for an
//! image that is not there, for one whose last layer alone is new, and for one with a new base under equal upper layers.
//! Molt's figure runs from the start of `molt update` until the new generation's root is laid out; the whole command,
//! which also arms and starts it, stands beside it. Must not: let one tool find what the other has left.

mod images;
mod tools;

use std::process::ExitCode;

use molt_tests::harness::bed::Bed;
use serde_json::{Map, Value, json};

use self::tools::{Cost, Molt, Podman};
use molt_tests::bench::{self, Arguments, Samples, Table, figure};

fn main() -> ExitCode {
    bench::main("bench-pull", 5, &[], run)
}

/// One tool, one image, one line of the table.
#[derive(Debug, Default)]
struct Series {
    wall: Samples,
    whole: Samples,
    cpu: Samples,
    sync: Samples,
    memory: Samples,
}

impl Series {
    fn add(&mut self, cost: Cost) {
        self.wall.push(cost.wall.as_secs_f64() * 1e3);
        self.whole.push(cost.whole.as_secs_f64() * 1e3);
        self.cpu.push(cost.cpu.as_secs_f64() * 1e3);
        self.sync.push(cost.sync.as_secs_f64() * 1e3);
        #[expect(clippy::cast_precision_loss, reason = "kilobytes of one process")]
        self.memory.push(cost.peak_kb as f64 / 1024.0);
    }
}

/// A line of the table: which image, which tool.
type Line = (String, &'static str);

fn run(bed: &Bed, arguments: &Arguments) -> anyhow::Result<()> {
    let machine = bench::machine();
    let sets = [images::redis(bed)?, images::python(bed)?];
    let mut all: Vec<(Line, Series)> = Vec::new();
    for round in 0..arguments.rounds {
        for set in &sets {
            let mut tools: [(&str, Box<dyn tools::Tool>); 2] =
                [("molt", Box::new(Molt::start(bed, &set.host)?)), ("podman", Box::new(Podman::start(bed)?))];
            // Whoever is second finds the registry's files in memory.
            if !round.is_multiple_of(2) {
                tools.reverse();
            }
            for (name, tool) in &mut tools {
                for (what, image) in &set.steps {
                    let cost = tool.pull(image)?;
                    let line = (format!("{}, {what}", set.name), *name);
                    let at = all.iter().position(|(of, _)| *of == line).unwrap_or(all.len());
                    if at == all.len() {
                        all.push((line, Series::default()));
                    }
                    all[at].1.add(cost);
                }
            }
        }
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    if arguments.json {
        let series: Map<String, Value> = all
            .iter()
            .map(|((what, tool), series)| {
                let value = json!({
                    "wall": series.wall.json("ms"), "whole": series.whole.json("ms"), "cpu": series.cpu.json("ms"), "sync": series.sync.json("ms"),
                    "peakRss": series.memory.json("MB"),
                });
                (format!("{what}: {tool}"), value)
            })
            .collect();
        println!("{}", json!({"machine": machine, "images": images::describe(&sets)?, "series": series}));
        return Ok(());
    }
    println!("{}", bench::machine_line(&machine));
    for set in &sets {
        println!("{}: {}", set.name, images::layers(set)?);
    }
    let columns = [
        "",
        "tool",
        "n",
        "wall ms",
        "min",
        "max",
        "whole command ms",
        "CPU ms",
        "sync after ms",
        "peak RSS MB",
        "podman / molt",
    ];
    let mut table = Table::new(&columns);
    for ((what, tool), series) in &all {
        let other = all.iter().find(|((of, tool), _)| of == what && *tool == "podman");
        let ratio = other.map_or(f64::NAN, |(_, other)| other.wall.median() / series.wall.median());
        let ratio = if *tool == "molt" { figure(ratio) } else { String::new() };
        let wall = [series.wall.median(), series.wall.quantile(0.0), series.wall.quantile(1.0)];
        let rest = [series.whole.median(), series.cpu.median(), series.sync.median(), series.memory.median()];
        let head = [what.clone(), (*tool).to_owned(), series.wall.count().to_string()];
        table.row(head.into_iter().chain(wall.map(figure)).chain(rest.map(figure)).chain([ratio]));
    }
    table.print("an image into an empty or half-filled store; medians");
    Ok(())
}
