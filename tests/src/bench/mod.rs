//! What the benchmarks share: arguments, statistics, tables, a look at a process.
//!
//! In: samples. Out: a table for people on standard output, or one JSON document. Must not: know what is measured.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::world::{self, World};

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// How often the main thing is done.
    pub rounds: usize,
    /// One JSON document instead of tables.
    pub json: bool,
    /// Other words of the form `--NAME VALUE`.
    pub others: BTreeMap<String, String>,
}

impl Arguments {
    fn read(program: &str, rounds: usize, known: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut arguments = Self { rounds, json: false, others: BTreeMap::new() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--rounds" => arguments.rounds = value()?.parse().context("--rounds needs a number")?,
                "--json" => arguments.json = true,
                other => {
                    let name = other.strip_prefix("--").filter(|name| known.iter().any(|(known, _)| known == name));
                    let Some(name) = name else {
                        let more: String = known.iter().map(|(name, what)| format!(" [--{name} {what}]")).collect();
                        bail!("usage: {program} [--rounds N] [--json]{more}");
                    };
                    let value = value()?;
                    arguments.others.insert(name.to_owned(), value);
                }
            }
        }
        anyhow::ensure!(arguments.rounds > 0, "--rounds needs a number above 0");
        Ok(arguments)
    }

    /// A number among the others.
    pub fn number(&self, name: &str, default: usize) -> anyhow::Result<usize> {
        let text = self.others.get(name);
        text.map_or(Ok(default), |text| text.parse().with_context(|| format!("--{name} needs a number")))
    }
}

/// Runs a benchmark in a private world, on a bed of its own.
pub fn main(
    name: &str,
    rounds: usize,
    known: &[(&str, &str)],
    run: fn(&Bed, &Arguments) -> anyhow::Result<()>,
) -> ExitCode {
    let work = || -> anyhow::Result<ExitCode> {
        let arguments = Arguments::read(name, rounds, known)?;
        if let World::Outside(code) = world::enter()? {
            return Ok(code);
        }
        let bed = Bed::new()?;
        let result = run(&bed, &arguments);
        let closed = bed.close();
        result.and(closed)?;
        Ok(ExitCode::SUCCESS)
    };
    work().unwrap_or_else(|error| {
        eprintln!("{name}: {error:#}");
        ExitCode::FAILURE
    })
}

/// Samples of one quantity.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// One more.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The value below which `share` of the samples lie, by nearest rank.
    pub fn quantile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts of samples are small"
        )]
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    /// The middle one, or the mean of the middle two.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        match sorted.len() {
            0 => f64::NAN,
            length if length % 2 == 1 => sorted[length / 2],
            length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
        }
    }

    /// How many are above `limit`.
    pub fn above(&self, limit: f64) -> usize {
        self.0.iter().filter(|value| **value > limit).count()
    }

    /// As data.
    pub fn json(&self, unit: &str) -> Value {
        json!({
            "unit": unit, "n": self.count(), "median": round(self.median()), "p99": round(self.quantile(0.99)),
            "min": round(self.quantile(0.0)), "max": round(self.quantile(1.0)),
            "samples": self.0.iter().map(|value| round(*value)).collect::<Vec<_>>(),
        })
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Three digits that mean something.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        "-".to_owned()
    } else if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// Rows of text, aligned, in Markdown.
#[derive(Debug, Default)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[&str]) -> Self {
        Self(vec![columns.iter().map(|&column| column.to_owned()).collect()])
    }

    /// One more row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }

    /// To standard output.
    pub fn print(&self, title: &str) {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |at: usize| self.0.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
        let widths: Vec<_> = (0..columns).map(|at| width(at).unwrap_or(0).max(3)).collect();
        println!("\n{title}\n");
        for (number, row) in self.0.iter().enumerate() {
            let cells: Vec<_> = widths
                .iter()
                .enumerate()
                .map(|(at, width)| {
                    let cell = row.get(at).map_or("", String::as_str);
                    if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                })
                .collect();
            println!("| {} |", cells.join(" | "));
            if number == 0 {
                let rules = widths.iter().enumerate().map(|(at, width)| {
                    if at == 0 { "-".repeat(*width) } else { format!("{}:", "-".repeat(width - 1)) }
                });
                println!("| {} |", rules.collect::<Vec<_>>().join(" | "));
            }
        }
    }
}

/// What the machine is, for whoever reads the figures.
pub fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_start_matches(['\t', ':', ' ']);
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    json!({"kernel": read("/proc/sys/kernel/osrelease"), "cpu": model, "cpus": cpus, "load": read("/proc/loadavg")})
}

/// The same on one line.
pub fn machine_line(machine: &Value) -> String {
    let text = |name: &str| machine[name].as_str().unwrap_or("").to_owned();
    format!("Linux {}, {} x {}, load {}", text("kernel"), machine["cpus"], text("cpu"), text("load"))
}

/// A process as `/proc` shows it.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// Its id in this world.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// `R`, `S`, `Z`, ...
    pub state: char,
    /// User and system time, with that of children that have ended, in ticks of 10 ms.
    pub ticks: u64,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // utime, stime, cutime, cstime. proc_pid_stat(5).
        let ticks = fields.get(11..15)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Some(Self { pid, parent: fields.get(1)?.parse().ok()?, state: fields.first()?.chars().next()?, ticks })
    }

    /// A process and all its descendants; the first is `root` itself.
    pub fn tree(root: u32) -> anyhow::Result<Vec<Self>> {
        let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let all: Vec<Self> = pids.filter_map(Self::read).collect();
        let mut tree: Vec<Self> = all.iter().filter(|one| one.pid == root).cloned().collect();
        let mut next = 0;
        while let Some(parent) = tree.get(next).map(|one| one.pid) {
            tree.extend(all.iter().filter(|one| one.parent == parent).cloned());
            next += 1;
        }
        Ok(tree)
    }
}

/// A line `NAME: N kB` of a file in `/proc/PID`.
pub fn kilobytes(pid: u32, file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Entries of a folder; 0 if it is not there.
pub fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}
