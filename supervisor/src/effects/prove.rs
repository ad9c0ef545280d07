//! `Proving`: startup, readiness, monitor window; afterwards liveness for as long as it runs.
//!
//! In: a run, the spec's probes. Out: `Ready`, `Proven`, `Unhealthy`; a transcript for evidence. Must not: take one early
//! miss for a failure, or one hit for health.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use molt_core::{
    ids::Generation,
    machine::{Event, Purpose, Run},
    spec::{Action, Health, Probe},
};
use tokio::sync::watch;

use super::Answers;
use crate::{
    clock::mono_ns,
    timer::{Instant, sleep, sleep_until},
    workload::{
        notify::Said,
        probe::{attempt, describe},
        run::Init,
    },
};

/// By `EXTEND_TIMEOUT_USEC` a program gets at most so many times its `startupDeadline` in all.
const MOST_EXTENSION: u32 = 10;

/// The last probe results of a run, oldest first.
#[derive(Debug, Clone)]
pub(crate) struct Transcript {
    /// Whose.
    pub(crate) generation: Generation,
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Transcript {
    /// An empty one.
    pub(crate) fn new(generation: Generation) -> Self {
        Self { generation, lines: Arc::default() }
    }

    fn note(&self, probe: &Probe, result: &Result<(), String>) {
        let line = match result {
            Ok(()) => format!("{} {}: ok", crate::observe::log::now(), describe(probe)),
            Err(why) => format!("{} {}: {why}", crate::observe::log::now(), describe(probe)),
        };
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == 50 {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// One run under observation.
#[derive(Debug)]
pub(crate) struct Prover {
    pub(crate) run: Run,
    pub(crate) init: Arc<Init>,
    pub(crate) said: watch::Receiver<Said>,
    pub(crate) health: Health,
    pub(crate) transcript: Transcript,
    pub(crate) answers: Answers,
}

impl Prover {
    /// Probes until told to stop (by being dropped) or until the verdict is final.
    pub(crate) async fn prove(mut self, purpose: Purpose) {
        if purpose == Purpose::Watch {
            return self.watch().await;
        }
        if let Err(message) = self.become_ready().await {
            return self.tell_unhealthy(message);
        }
        self.tell_ready(true);
        if purpose == Purpose::Boot {
            // Proven before: as after its trial, only a failing liveness starts it again.
            self.health.readiness = None;
        }
        match self.monitor().await {
            Ok(()) => drop(self.answers.send(Event::Proven { instance: self.run.instance })),
            Err(message) => self.tell_unhealthy(message),
        }
    }

    fn tell_ready(&self, ready: bool) {
        let _ = self.answers.send(Event::Ready { instance: self.run.instance, ready, at_ns: mono_ns() });
    }

    fn tell_unhealthy(&self, message: String) {
        let _ = self.answers.send(Event::Unhealthy { instance: self.run.instance, message });
    }

    async fn ask(&self, probe: &Probe) -> Result<(), String> {
        let result = attempt(probe, &self.init, &self.said).await;
        self.transcript.note(probe, &result);
        result
    }

    /// Startup, then readiness, within the deadline, which the program may extend, but not for ever.
    async fn become_ready(&mut self) -> Result<(), String> {
        let base = self.health.startup_deadline.as_duration();
        let (deadline, last) = (Instant::now() + base, Instant::now() + base * MOST_EXTENSION);
        for (name, probe) in [("startup", self.health.startup.clone()), ("readiness", self.health.readiness.clone())] {
            let Some(probe) = probe else { continue };
            sleep(probe.initial_delay.as_duration()).await;
            let mut hits = 0;
            loop {
                let began = Instant::now();
                let why = match self.ask(&probe).await {
                    Ok(()) => {
                        hits += 1;
                        if hits >= probe.success_threshold {
                            break;
                        }
                        String::new()
                    }
                    Err(why) => {
                        hits = 0;
                        why
                    }
                };
                let extended = self.said.borrow().extended_until;
                let until = extended.map_or(deadline, |extended| extended.clamp(deadline, last));
                if Instant::now() >= until {
                    let limit = self.health.startup_deadline;
                    let extended = match until {
                        until if until == deadline => String::new(),
                        until if until == last => format!(" and {MOST_EXTENSION} times that, the most it may ask for"),
                        _ => " and what it asked for beyond".to_owned(),
                    };
                    return Err(format!(
                        "not ready within {limit}{extended}: the {name} probe ({}) says: {why}",
                        describe(&probe)
                    ));
                }
                self.pause(&probe, began, until).await;
            }
        }
        Ok(())
    }

    /// Until the next attempt is due; a notification cuts it short. Early attempts come faster than the period: a program
    /// that is up in 5 ms should not be found out after two seconds.
    async fn pause(&mut self, probe: &Probe, began: Instant, until: Instant) {
        let eager = Duration::from_millis(20).max(began.elapsed());
        let period = probe.period.as_duration();
        let next = began + if matches!(probe.action, Action::Exec(_)) { period } else { eager.min(period) };
        tokio::select! {
            () = sleep_until(next.min(until)) => {}
            changed = self.said.changed(), if matches!(probe.action, Action::Notify) => {
                if changed.is_err() {
                    sleep_until(until).await;
                }
            }
        }
    }

    /// The monitor window: ready and alive for that long.
    async fn monitor(&mut self) -> Result<(), String> {
        let window = self.health.monitor.as_duration();
        let until = Instant::now() + window;
        let mut misses = [0u32; 2];
        let probes: Vec<(usize, &'static str, Probe)> =
            [(0, "readiness", self.health.readiness.clone()), (1, "liveness", self.health.liveness.clone())]
                .into_iter()
                .filter_map(|(at, name, probe)| Some((at, name, probe?)))
                .filter(|(_, _, probe)| !matches!(probe.action, Action::Notify))
                .collect();
        let period = probes.iter().map(|(_, _, probe)| probe.period.as_duration()).min();
        while Instant::now() < until {
            let Some(period) = period else {
                sleep_until(until).await;
                break;
            };
            sleep_until((Instant::now() + period).min(until)).await;
            for (at, name, probe) in &probes {
                let result = self.ask(probe).await;
                let Some(count) = misses.get_mut(*at) else { continue };
                match result {
                    Ok(()) => *count = 0,
                    Err(why) => {
                        *count += 1;
                        if *count >= probe.failure_threshold {
                            return Err(format!(
                                "the {name} probe ({}) failed {count} times in its trial: {why}",
                                describe(probe)
                            ));
                        }
                    }
                }
            }
        }
        // A program that was never ready at the end of its window is not healthy, whatever the counts say.
        if misses == [0, 0] || probes.is_empty() { Ok(()) } else { self.last_word(&probes).await }
    }

    async fn last_word(&self, probes: &[(usize, &'static str, Probe)]) -> Result<(), String> {
        for (_, name, probe) in probes {
            let mut last = Ok(());
            for _ in 0..probe.failure_threshold {
                last = self.ask(probe).await;
                if last.is_ok() {
                    break;
                }
                sleep(probe.period.as_duration()).await;
            }
            last.map_err(|why| {
                format!("the {name} probe ({}) failed at the end of its trial: {why}", describe(probe))
            })?;
        }
        Ok(())
    }

    /// After confirm: readiness is shown, liveness is acted upon.
    async fn watch(&mut self) {
        let mut ready = true;
        let (mut not_ready, mut not_alive) = (0u32, 0u32);
        let mut watchdogs = self.said.borrow().watchdogs;
        let probes = [self.health.readiness.clone(), self.health.liveness.clone()];
        let Some(period) = probes.iter().flatten().map(|probe| probe.period.as_duration()).min() else { return };
        loop {
            sleep(period).await;
            if let [Some(probe), _] = &probes
                && !matches!(probe.action, Action::Notify)
            {
                let ok = self.ask(probe).await.is_ok();
                not_ready = if ok { 0 } else { not_ready + 1 };
                let now = if ready { not_ready < probe.failure_threshold } else { ok };
                if now != ready {
                    ready = now;
                    self.tell_ready(ready);
                }
            }
            if let [_, Some(probe)] = &probes {
                let result = if matches!(probe.action, Action::Notify) {
                    let seen = self.said.borrow().watchdogs;
                    let fresh = seen > watchdogs;
                    watchdogs = seen;
                    if fresh { Ok(()) } else { Err("no WATCHDOG=1 within a period".to_owned()) }
                } else {
                    self.ask(probe).await
                };
                match result {
                    Ok(()) => not_alive = 0,
                    Err(why) => {
                        not_alive += 1;
                        if not_alive >= probe.failure_threshold {
                            return self.tell_unhealthy(format!(
                                "the liveness probe ({}) failed {not_alive} times: {why}",
                                describe(probe)
                            ));
                        }
                    }
                }
            }
        }
    }
}
