//! `Proving`: startup, readiness, monitor window; afterwards liveness for as long as it runs.
//!
//! In: a run, the spec's probes. Out: `Ready`, `Proven`, `Unhealthy`; a transcript for evidence. Must not: take one early
//! miss for a failure, or one hit for health.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use molt_core::{
    ids::Generation,
    machine::{Event, Purpose, Run},
    spec::{Action, Health, Probe, Span},
};
use tokio::sync::watch;

use super::Answers;
use crate::{
    clock::mono_ns,
    timer::{Instant, Late, sleep_until, timeout_at},
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
    /// When its run was started: probes are from then on.
    began: Instant,
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Transcript {
    /// An empty one, of a run that starts now.
    pub(crate) fn new(generation: Generation) -> Self {
        Self { generation, began: Instant::now(), lines: Arc::default() }
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

/// By when a program must be ready. It may put that off, but not for ever.
struct Limit {
    first: Instant,
    last: Instant,
    base: Span,
}

impl Limit {
    fn new(base: Span) -> Self {
        let (now, length) = (Instant::now(), base.as_duration());
        Self { first: now + length, last: now + length.saturating_mul(MOST_EXTENSION), base }
    }

    /// As things stand.
    fn until(&self, said: &watch::Receiver<Said>) -> Instant {
        said.borrow().extended_until.map_or(self.first, |extended| extended.clamp(self.first, self.last))
    }

    /// What `future` gives, if it does in time.
    async fn keep<F: Future>(&self, said: &watch::Receiver<Said>, future: F) -> Result<F::Output, Late> {
        let mut future = pin!(future);
        loop {
            let until = self.until(said);
            match timeout_at(until, future.as_mut()).await {
                // It asked for more meanwhile.
                Err(Late) if self.until(said) > until => {}
                result => return result,
            }
        }
    }

    /// How long that was.
    fn describe(&self, said: &watch::Receiver<Said>) -> String {
        let more = match self.until(said) {
            until if until == self.first => String::new(),
            until if until == self.last => format!(" and {MOST_EXTENSION} times that, the most it may ask for"),
            _ => " and what it asked for beyond".to_owned(),
        };
        format!("{}{more}", self.base)
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

    /// Startup, then readiness, within the deadline.
    async fn become_ready(&mut self) -> Result<(), String> {
        let limit = Limit::new(self.health.startup_deadline);
        for (name, probe) in [("startup", self.health.startup.clone()), ("readiness", self.health.readiness.clone())] {
            let Some(probe) = probe else { continue };
            let mut why = "it has not been asked yet".to_owned();
            if self.succeed(&limit, &probe, &mut why).await.is_err() {
                let limit = limit.describe(&self.said);
                return Err(format!("not ready within {limit}: the {name} probe ({}) says: {why}", describe(&probe)));
            }
        }
        Ok(())
    }

    /// Asks until the probe succeeds; `why` is what it said last.
    async fn succeed(&mut self, limit: &Limit, probe: &Probe, why: &mut String) -> Result<(), Late> {
        limit.keep(&self.said, sleep_until(self.first(probe))).await?;
        let (mut hits, mut asked) = (0, false);
        loop {
            let began = Instant::now();
            match limit.keep(&self.said, self.ask(probe)).await {
                Ok(Ok(())) => {
                    hits += 1;
                    if hits >= probe.success_threshold {
                        return Ok(());
                    }
                    *why = format!("{hits} of {} successes in a row", probe.success_threshold);
                }
                Ok(Err(message)) => {
                    hits = 0;
                    *why = message;
                }
                Err(Late) => {
                    let late = format!("no answer yet after {} ms", began.elapsed().as_millis());
                    self.transcript.note(probe, &Err(late.clone()));
                    *why = if asked { format!("{why}; then {late}") } else { late };
                    return Err(Late);
                }
            }
            asked = true;
            self.pause(probe, began, limit.until(&self.said)).await;
            if Instant::now() >= limit.until(&self.said) {
                return Err(Late);
            }
        }
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

    /// When `probe` may be asked for the first time.
    fn first(&self, probe: &Probe) -> Instant {
        self.transcript.began + probe.initial_delay.as_duration()
    }

    /// The monitor window: ready and alive for that long.
    async fn monitor(&self) -> Result<(), String> {
        let window = self.health.monitor.as_duration();
        if window.is_zero() {
            return Ok(());
        }
        let until = Instant::now() + window;
        let [readiness, liveness] = self.followed();
        tokio::try_join!(self.stay(readiness, until), self.stay(liveness, until)).map(|_| ())
    }

    /// Readiness and liveness as they are asked after the first success. Readiness that was notified is not asked again:
    /// what takes it back is heard.
    fn followed(&self) -> [Option<Turns<'_>>; 2] {
        let readiness = self.health.readiness.as_ref().filter(|probe| !matches!(probe.action, Action::Notify));
        let liveness = self.health.liveness.as_ref();
        [
            readiness.map(|probe| Turns::new(self, "readiness", probe)),
            liveness.map(|probe| Turns::new(self, "liveness", probe)),
        ]
    }

    /// Asks until the window is over, once at its end at least, and on until the last answer is a good one: a program that
    /// is not well at the end of its window is not healthy, whatever the counts say.
    async fn stay(&self, turns: Option<Turns<'_>>, until: Instant) -> Result<(), String> {
        let Some(mut turns) = turns else {
            sleep_until(until).await;
            return Ok(());
        };
        while turns.misses > 0 || Instant::now() < until {
            if turns.misses == 0 && !turns.is_due_by(until) {
                sleep_until(until).await;
                break;
            }
            if let Err(why) = turns.next().await
                && turns.is_over()
            {
                return Err(format!("{} in its trial: {why}", turns.describe()));
            }
        }
        Ok(())
    }

    /// After confirm: readiness is shown, liveness is acted upon.
    async fn watch(&self) {
        let [readiness, liveness] = self.followed();
        if readiness.is_none() && liveness.is_none() {
            return;
        }
        tokio::select! {
            () = self.show(readiness) => {}
            message = Self::outlive(liveness) => self.tell_unhealthy(message),
        }
    }

    /// Tells when it is not ready any more, and when it is again.
    async fn show(&self, turns: Option<Turns<'_>>) {
        let Some(mut turns) = turns else { return std::future::pending().await };
        let (mut ready, mut hits) = (true, 0);
        loop {
            hits = if turns.next().await.is_ok() { hits + 1 } else { 0 };
            let now = if ready { !turns.is_over() } else { hits >= turns.probe.success_threshold };
            if now != ready {
                ready = now;
                self.tell_ready(ready);
            }
        }
    }

    /// Waits until it has failed.
    async fn outlive(turns: Option<Turns<'_>>) -> String {
        let Some(mut turns) = turns else { return std::future::pending().await };
        loop {
            if let Err(why) = turns.next().await
                && turns.is_over()
            {
                return format!("{}: {why}", turns.describe());
            }
        }
    }
}

/// One probe, asked again and again, a period after it was asked last.
struct Turns<'a> {
    prover: &'a Prover,
    name: &'static str,
    probe: &'a Probe,
    due: Instant,
    /// In a row.
    misses: u32,
    /// As many `WATCHDOG=1` had come when it was looked last.
    watchdogs: u64,
}

impl<'a> Turns<'a> {
    fn new(prover: &'a Prover, name: &'static str, probe: &'a Probe) -> Self {
        let due = (Instant::now() + probe.period.as_duration()).max(prover.first(probe));
        Self { prover, name, probe, due, misses: 0, watchdogs: prover.said.borrow().watchdogs }
    }

    /// Whether it can be asked at the end of a window: a probe that waits for words must have its period.
    fn is_due_by(&mut self, until: Instant) -> bool {
        if !matches!(self.probe.action, Action::Notify) {
            self.due = self.due.min(until.max(self.prover.first(self.probe)));
        }
        self.due <= until
    }

    async fn next(&mut self) -> Result<(), String> {
        sleep_until(self.due).await;
        self.due = Instant::now() + self.probe.period.as_duration();
        let result = if matches!(self.probe.action, Action::Notify) {
            let seen = self.prover.said.borrow().watchdogs;
            let fresh = seen > std::mem::replace(&mut self.watchdogs, seen);
            let result = if fresh { Ok(()) } else { Err(format!("no WATCHDOG=1 within {}", self.probe.period)) };
            self.prover.transcript.note(self.probe, &result);
            result
        } else {
            self.prover.ask(self.probe).await
        };
        self.misses = if result.is_ok() { 0 } else { self.misses.saturating_add(1) };
        result
    }

    fn is_over(&self) -> bool {
        self.misses >= self.probe.failure_threshold
    }

    fn describe(&self) -> String {
        format!("the {} probe ({}) failed {} times", self.name, describe(self.probe), self.misses)
    }
}
