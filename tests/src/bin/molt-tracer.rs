//! Traces a sandbox: `molt-tracer PID [--everything]`, orders on its input, answers on its output.
//!
//! In: PID 1 of a sandbox, by its number here. Out: one JSON line when it is seized, then one for each order. Must not:
//! leave a traced process behind; when it ends, the kernel kills them.

use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use molt_tests::harness::tracer::engine::{Engine, Shared};
use molt_tests::harness::tracer::wire::{Answer, Counted, Order};
use nix::unistd::Pid;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&Answer::Failed(format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let first = words.next().and_then(|word| word.parse().ok()).context("usage: molt-tracer PID [--everything]")?;
    let everything = words.next().is_some_and(|word| word == "--everything");
    let shared = Arc::new(Mutex::new(Shared::default()));
    let engine = Engine::seize(Pid::from_raw(first), everything, Arc::clone(&shared))?;
    say(&Answer::Done);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let order = line.map_err(anyhow::Error::from).and_then(|line| Ok(serde_json::from_str(&line)?));
            match order {
                Ok(order) => say(&obey(&order, &mut shared.lock().unwrap_or_else(PoisonError::into_inner))),
                Err(error) => say(&Answer::Failed(format!("{error:#}"))),
            }
        }
        // Nobody wants anything any more.
        std::process::exit(0);
    });
    engine.run()?;
    // All it traced has ended; what was seen may still be asked for.
    loop {
        std::thread::park();
    }
}

fn obey(order: &Order, shared: &mut Shared) -> Answer {
    match order {
        Order::Watch { fault } => {
            shared.watch = Some(fault.clone());
            Answer::Done
        }
        Order::Report => {
            let seen = std::mem::take(&mut shared.seen);
            shared.forgotten += seen.len();
            Answer::Seen(seen)
        }
        Order::Count { which, strike } => {
            shared.counting = Some(*which);
            shared.strike = *strike;
            shared.counted = Counted::default();
            Answer::Done
        }
        Order::Counted => Answer::Counted(shared.counted.clone()),
        Order::Progress => Answer::Progress(shared.counted.calls.len(), shared.counted.struck.is_some()),
    }
}

fn say(answer: &Answer) {
    // Whoever does not read any more does not want to know.
    if let Ok(line) = serde_json::to_string(answer) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}
