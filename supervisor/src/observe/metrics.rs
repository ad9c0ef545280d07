//! Figures in OpenMetrics text (`GET /metrics`): counters and histograms made from events, gauges from the snapshot.
//!
//! In: each event as it is published, the snapshot at the time of the scrape. Out: the text. Must not: count what no event
//! says, carry a label whose values are not bounded, or hold anything secret.
//!
//! | name | type | labels | unit |
//! |---|---|---|---|
//! | `molt_update_total` | counter | `kind`, `result`, `reason` | |
//! | `molt_downtime_seconds` | histogram | `cause` | from the old program's exit to the new one's exec |
//! | `molt_unready_seconds` | histogram | `cause` | from the last moment of readiness to the first |
//! | `molt_phase_seconds` | histogram | `phase` | time spent in a phase that ended |
//! | `molt_fetch_bytes_total` | counter | `source`: `registry`, `store` | packed bytes of layers |
//! | `molt_workload_exits_total` | counter | | |
//! | `molt_log_lines_lost_total` | counter | | lines of Molt's log that standard error did not take |
//! | `molt_generation_info` | info | `generation`, `digest`, `policy` | of what serves |
//! | `molt_workload_ready`, `molt_workload_restarts`, `molt_hold_active`, `molt_degraded`, `molt_bad_digests`, `molt_generations` | gauge | | |
//!
//! Counters begin with this start of Molt: a scraper sees a reset, as OpenMetrics has it.

use molt_core::wire::{Event, Outcome, PhaseName, UpdateView, What};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::{command::View, timer::Instant};

/// Media type of the text.
pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    kind: String,
    result: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    cause: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Source {
    source: &'static str,
}

/// How an update ended, in the words of the status document.
const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Confirmed => "confirmed",
        Outcome::RolledBack => "rolledBack",
        Outcome::Aborted => "aborted",
        Outcome::Refused => "refused",
        Outcome::Noop => "noop",
        Outcome::Staged => "staged",
        Outcome::Degraded => "degraded",
    }
}

/// A hundred microseconds to a little under a minute, doubling.
fn gaps() -> Histogram {
    Histogram::new(exponential_buckets(0.000_1, 2.0, 19))
}

/// A millisecond to over an hour.
fn spans() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 12))
}

/// What is counted.
#[derive(Debug)]
pub(crate) struct Meter {
    updates: Family<Ended, Counter>,
    downtime: Family<Cause, Histogram, fn() -> Histogram>,
    unready: Family<Cause, Histogram, fn() -> Histogram>,
    phases: Family<Phase, Histogram, fn() -> Histogram>,
    fetched: Family<Source, Counter>,
    exits: Counter,
    since: Option<(PhaseName, Instant)>,
}

impl Meter {
    /// Nothing counted yet.
    pub(crate) fn new() -> Self {
        Self {
            updates: Family::default(),
            downtime: Family::new_with_constructor(gaps),
            unready: Family::new_with_constructor(gaps),
            phases: Family::new_with_constructor(spans),
            fetched: Family::default(),
            exits: Counter::default(),
            since: None,
        }
    }

    /// Counts an event that happened at `now`.
    pub(crate) fn see(&mut self, event: &Event, now: Instant) {
        match &event.what {
            What::Phase { phase, .. } => {
                if let Some((before, since)) = self.since.replace((*phase, now)) {
                    let spent = now.saturating_duration_since(since).as_secs_f64();
                    self.phases.get_or_create(&Phase { phase: before.to_string() }).observe(spent);
                }
            }
            What::Progress { total, state, .. } => {
                let source = match state.as_str() {
                    "done" => "registry",
                    "present" => "store",
                    _ => return,
                };
                self.fetched.get_or_create(&Source { source }).inc_by(*total);
            }
            What::Outcome { result } => self.end(result),
            What::WorkloadExited { .. } => drop(self.exits.inc()),
            What::Warning { .. } | What::Note { .. } | What::Ready { .. } => {}
        }
    }

    fn end(&self, view: &UpdateView) {
        let Some(outcome) = view.outcome else { return };
        let reason = view.reason.map_or("", molt_core::code::Code::as_str);
        self.updates.get_or_create(&Ended { kind: view.kind.clone(), result: word(outcome), reason }).inc();
        // What came back by itself was down for the way there and back; its cause is the update that failed.
        let cause = Cause { cause: view.kind.clone() };
        for (family, micros) in [(&self.downtime, view.downtime_us), (&self.unready, view.unready_us)] {
            if let Some(micros) = micros {
                family.get_or_create(&cause).observe(std::time::Duration::from_micros(micros).as_secs_f64());
            }
        }
    }

    /// The text of a scrape.
    pub(crate) fn text(&self, view: &View) -> String {
        let mut registry = Registry::with_prefix("molt");
        registry.register("update", "Updates, rollbacks and starts that ended", self.updates.clone());
        let seconds = || Unit::Seconds;
        let help = "From the exit of the old program to the exec of the new one";
        registry.register_with_unit("downtime", help, seconds(), self.downtime.clone());
        let help = "From the last moment the old program was ready to the first the new one was";
        registry.register_with_unit("unready", help, seconds(), self.unready.clone());
        registry.register_with_unit("phase", "Time spent in each phase", seconds(), self.phases.clone());
        let help = "Packed bytes of layers, fetched or found in the store";
        registry.register_with_unit("fetch", help, Unit::Bytes, self.fetched.clone());
        registry.register("workload_exits", "Exits of the workload's main process", self.exits.clone());
        let lost = Counter::<u64>::default();
        lost.inc_by(super::standard::lost());
        registry.register("log_lines_lost", "Lines of Molt's log that standard error did not take", lost);
        gauges(&mut registry, view);
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

fn gauges(registry: &mut Registry, view: &View) {
    let status = &view.document.status;
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    gauge("workload_ready", "1 while the workload is ready", status.workload.ready.into());
    gauge("workload_restarts", "Starts of the same generation since Molt started", status.workload.restarts);
    gauge("hold_active", "1 while updates are held back", status.hold.is_some().into());
    gauge("degraded", "1 while neither version is healthy", (status.phase == PhaseName::Degraded).into());
    gauge("bad_digests", "Images that failed and are refused", status.bad.len() as u64);
    gauge("generations", "Generations in the store", view.generations.len() as u64);
    let serving = view.generations.iter().find(|one| Some(one.generation) == status.workload.generation);
    if let Some(serving) = serving {
        let info = Info::new(vec![
            ("generation", serving.generation.to_string()),
            ("digest", serving.digest.map_or_else(String::new, |digest| digest.to_string())),
            ("policy", serving.policy_digest.to_string()),
        ]);
        registry.register("generation", "The generation that serves", info);
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
