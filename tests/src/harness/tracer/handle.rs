//! `molt-tracer` from the suites' side.
//!
//! In: a sandbox's PID 1. Out: orders carried out. Must not: outlive the sandbox it traces; when it ends, that dies too.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};

use super::wire::{Answer, Counted, Fault, Order, Seen, Strike, Which};
use crate::harness::bed::Bed;
use crate::harness::process::Background;

/// Whether the calls of PID 1 itself are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Only those of the shims that are watched; PID 1 runs at its own speed.
    Shims,
    /// All, to be counted.
    Everything,
}

/// A tracer at work.
#[derive(Debug)]
pub struct Tracer {
    _program: Background,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Tracer {
    /// Seizes the process `first` and all it will make.
    pub fn seize(bed: &Bed, first: u32, scope: Scope) -> anyhow::Result<Self> {
        let mut command = Command::new(bed.program("molt-tracer")?);
        command.arg(first.to_string()).args((scope == Scope::Everything).then_some("--everything"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = Background::spawn(&mut command)?;
        let orders = program.0.stdin.take().context("its input is a pipe")?;
        let answers = BufReader::new(program.0.stdout.take().context("its output is a pipe")?);
        let mut tracer = Self { _program: program, orders, answers };
        match tracer.answer()? {
            Answer::Done => Ok(tracer),
            other => bail!("the tracer says {other:?}"),
        }
    }

    fn answer(&mut self) -> anyhow::Result<Answer> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match serde_json::from_str(&line).with_context(|| format!("the tracer says {line:?}"))? {
            Answer::Failed(why) => bail!("the tracer failed: {why}"),
            answer => Ok(answer),
        }
    }

    fn ask(&mut self, order: &Order) -> anyhow::Result<Answer> {
        let line = serde_json::to_string(order)? + "\n";
        self.orders.write_all(line.as_bytes()).context("giving the tracer an order")?;
        self.answer()
    }

    /// Follows the next shim; `fault` strikes it.
    pub fn watch(&mut self, fault: Option<&Fault>) -> anyhow::Result<()> {
        self.ask(&Order::Watch { fault: fault.cloned() }).map(drop)
    }

    /// What was seen since the last time.
    pub fn report(&mut self) -> anyhow::Result<Vec<Seen>> {
        match self.ask(&Order::Report)? {
            Answer::Seen(seen) => Ok(seen),
            other => bail!("the tracer says {other:?}"),
        }
    }

    /// Numbers calls from now on, and strikes at one of them.
    pub fn count(&mut self, which: Which, strike: Option<Strike>) -> anyhow::Result<()> {
        self.ask(&Order::Count { which, strike }).map(drop)
    }

    /// How many calls were counted so far, and whether one was struck.
    pub fn progress(&mut self) -> anyhow::Result<(usize, bool)> {
        match self.ask(&Order::Progress)? {
            Answer::Progress(calls, struck) => Ok((calls, struck)),
            other => bail!("the tracer says {other:?}"),
        }
    }

    /// What was counted.
    pub fn counted(&mut self) -> anyhow::Result<Counted> {
        match self.ask(&Order::Counted)? {
            Answer::Counted(counted) => Ok(counted),
            other => bail!("the tracer says {other:?}"),
        }
    }
}
