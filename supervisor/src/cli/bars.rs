//! What a person sees while an update runs: a bar a layer and a line a phase on a terminal, plain lines elsewhere.
//!
//! In: events. Out: standard error. Must not: print a line per byte, or hold anything that the end of the update needs.

use std::{collections::BTreeMap, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use molt_core::wire::{PhaseName, What};
use tokio::time::Instant;

use super::{
    fault::Fault,
    print::{Printer, Tone, say},
    text,
};

/// The moving part of standard error.
#[derive(Debug)]
pub(crate) struct Screen {
    printer: Printer,
    /// None where nothing may move.
    moving: Option<Moving>,
    /// State last shown, by layer.
    layers: BTreeMap<usize, String>,
    monitor: Option<Duration>,
    away: bool,
}

#[derive(Debug)]
struct Moving {
    all: MultiProgress,
    bars: BTreeMap<usize, ProgressBar>,
    /// The phase under way, at the bottom.
    phase: ProgressBar,
    trial_ends: Option<Instant>,
}

impl Screen {
    /// For a trial that is watched for `monitor`, where that is known.
    pub(crate) fn new(printer: Printer, monitor: Option<Duration>) -> Self {
        let moving = printer.is_rich().then(|| {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            let phase = all.add(ProgressBar::new_spinner());
            Moving { all, bars: BTreeMap::new(), phase, trial_ends: None }
        });
        Self { printer, moving, layers: BTreeMap::new(), monitor, away: false }
    }

    /// Shows an event.
    pub(crate) fn event(&mut self, what: &What) {
        self.away = false;
        match what {
            What::Progress { .. } => self.progress(what),
            What::Phase { phase, message } => self.phase(*phase, message),
            What::Warning { message } => {
                self.line(&format!("{} {}", self.printer.paint(Tone::Bad, "warning:"), text::clean(message)));
            }
            What::Note { message } => self.line(&text::clean(message)),
            What::WorkloadExited { generation, status } => {
                self.line(&format!("the workload of generation {generation} ended with status {status}"));
            }
            What::Ready { generation, ready: true } => self.line(&format!("generation {generation} is ready")),
            What::Ready { .. } | What::Outcome { .. } => {}
        }
    }

    fn progress(&mut self, what: &What) {
        let What::Progress { layer, done, total, state, .. } = what else { return };
        let changed = self.layers.get(layer) != Some(state);
        self.layers.insert(*layer, state.clone());
        let Some(moving) = &mut self.moving else {
            if changed {
                say(&layer_line(what));
            }
            return;
        };
        if state == "fetching" {
            let bar = moving.bars.entry(*layer).or_insert_with(|| {
                let bar = ProgressBar::new(*total).with_prefix(name(what)).with_style(bar_style());
                moving.all.insert_before(&moving.phase, bar)
            });
            bar.set_length(*total);
            bar.set_position(*done);
            return;
        }
        // A layer that is there becomes a line; only what moves stays a bar.
        if let Some(bar) = moving.bars.remove(layer) {
            bar.finish_and_clear();
        }
        if changed {
            self.line(&layer_line(what));
        }
    }

    fn phase(&mut self, phase: PhaseName, message: &str) {
        let line = phase_line(phase, message, self.monitor);
        if let Some(moving) = &mut self.moving {
            let trial = super::follow::is_trial(phase);
            moving.trial_ends = self.monitor.filter(|_| trial).map(|monitor| Instant::now() + monitor);
            moving.phase.set_message(format!("{phase}"));
        }
        self.line(&line);
    }

    fn line(&self, line: &str) {
        match &self.moving {
            // What cannot be drawn is not worth a failure.
            Some(moving) => moving.all.println(line).unwrap_or_default(),
            None => say(line),
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self) {
        let Some(moving) = &mut self.moving else { return };
        if let Some(ends) = moving.trial_ends {
            let left = ends.saturating_duration_since(Instant::now());
            moving.phase.set_message(format!("Proving: {} left", text::seconds(left)));
        }
        moving.phase.tick();
    }

    /// The supervisor does not answer for now; said once.
    pub(crate) fn away(&mut self, fault: &Fault) {
        if !std::mem::replace(&mut self.away, true) {
            let why = fault.to_string();
            self.line(&format!("{}; trying again", why.lines().next().unwrap_or_default()));
        }
    }

    /// Takes the moving part away.
    pub(crate) fn clear(&mut self) {
        if let Some(moving) = self.moving.take() {
            // What is left would be drawn over what is printed next.
            for bar in moving.bars.values().chain([&moving.phase]) {
                bar.finish_and_clear();
            }
        }
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:<26} [{bar:24}] {bytes:>11} / {total_bytes:<11}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

fn name(what: &What) -> String {
    match what {
        What::Progress { layer, layers, digest, .. } => format!("layer {}/{layers} {}", layer + 1, digest.short()),
        _ => String::new(),
    }
}

/// A layer, where nothing moves.
pub(crate) fn layer_line(what: &What) -> String {
    match what {
        What::Progress { total, state, .. } => {
            format!("{}: {}, {}", name(what), text::clean(state), text::bytes(*total))
        }
        _ => String::new(),
    }
}

/// A phase, in a line.
pub(crate) fn phase_line(phase: PhaseName, message: &str, monitor: Option<Duration>) -> String {
    let mut line = phase.to_string();
    if !message.is_empty() {
        line = format!("{line}: {}", text::clean(message));
    }
    if super::follow::is_trial(phase) {
        let time = monitor.map(|monitor| format!(" for {}", text::seconds(monitor))).unwrap_or_default();
        line = format!("{line} (old kept{time}; ^C leaves the update running)");
    }
    line
}
