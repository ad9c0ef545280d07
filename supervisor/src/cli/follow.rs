//! Follows one update to its end over the event stream, through breaks of the connection and restarts of the supervisor.
//!
//! In: the id and where its events begin. Out: its record. Must not: miss the end because a stream was slow or broke:
//! where events are silent, the record itself is asked for.

use std::time::Duration;

use molt_core::{
    code::Code,
    ids::UpdateId,
    spec::Span,
    wire::{Accepted, Document, Event, PhaseName, UpdateView, What},
};
use tokio::time::{Instant, sleep, timeout};

use super::{bars::Screen, client::Client, fault::Fault, print::Printer};

/// How often a moving part moves.
const TICK: Duration = Duration::from_millis(250);
/// After so long without an event, the record is asked for.
const SILENCE: Duration = Duration::from_secs(5);
/// For so long a supervisor may be away before the wait is given up.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until the update has ended, at most `limit`.
pub(crate) async fn to_the_end(
    printer: Printer,
    client: &Client,
    accepted: &Accepted,
    limit: Option<Span>,
) -> Result<UpdateView, Fault> {
    let id = accepted.id;
    let mut screen = Screen::new(printer, monitor(client).await);
    let limited = async {
        match limit {
            Some(limit) => sleep(limit.as_duration()).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        biased;
        ended = watch(client, id, accepted.after_seq, &mut screen) => ended,
        () = limited => Err(Fault::TimedOut(id)),
        Ok(()) = tokio::signal::ctrl_c() => Err(Fault::Interrupted(id)),
    };
    screen.clear();
    ended
}

/// How long a trial is watched, for the countdown.
async fn monitor(client: &Client) -> Option<Duration> {
    let document: Document = client.get("/v1/status").await.ok()?;
    let text = document.spec.pointer("/health/monitor")?.as_str()?.to_owned();
    text.parse::<Span>().ok().map(Span::as_duration)
}

async fn watch(client: &Client, id: UpdateId, mut after: u64, screen: &mut Screen) -> Result<UpdateView, Fault> {
    let mut since = Instant::now();
    loop {
        let fault = match stream(client, id, &mut after, &mut since, screen).await {
            Ok(view) => return Ok(view),
            Err(fault @ (Fault::Unreachable { .. } | Fault::Broken(_))) if since.elapsed() < PATIENCE => fault,
            // Too many streams for now.
            Err(Fault::Problem(problem)) if problem.code == Code::Busy && since.elapsed() < PATIENCE => {
                Fault::Problem(problem)
            }
            Err(fault) => return Err(fault),
        };
        screen.away(&fault);
        sleep(TICK * 2).await;
    }
}

/// Reads one stream until the update has ended; every break of the stream is a fault.
async fn stream(
    client: &Client,
    id: UpdateId,
    after: &mut u64,
    since: &mut Instant,
    screen: &mut Screen,
) -> Result<UpdateView, Fault> {
    let mut lines = client.lines(&format!("/v1/events?after={after}")).await?;
    // What happened while nobody listened may be gone from the log.
    if let Some(view) = record(client, id, since).await? {
        return Ok(view);
    }
    let mut heard = Instant::now();
    loop {
        match timeout(TICK, lines.next::<Event>()).await {
            Ok(event) => {
                let event = event?.ok_or_else(|| Fault::Broken("the stream of events ended".to_owned()))?;
                (*since, heard) = (Instant::now(), Instant::now());
                *after = event.seq;
                if event.update != Some(id) {
                    continue;
                }
                match event.what {
                    What::Outcome { result } => return Ok(*result),
                    what => screen.event(&what),
                }
            }
            Err(_) if heard.elapsed() >= SILENCE => {
                heard = Instant::now();
                if let Some(view) = record(client, id, since).await? {
                    return Ok(view);
                }
            }
            Err(_) => screen.tick(),
        }
    }
}

/// The record, if the update has ended.
async fn record(client: &Client, id: UpdateId, since: &mut Instant) -> Result<Option<UpdateView>, Fault> {
    match client.get::<UpdateView>(&format!("/v1/updates/{id}")).await {
        Ok(view) => {
            *since = Instant::now();
            Ok(view.outcome.is_some().then_some(view))
        }
        // Taken a moment ago, and not in the snapshot yet.
        Err(Fault::Problem(problem)) if problem.code == Code::NotFound && since.elapsed() < PATIENCE => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Whether a phase is one in which the old version is kept for a way back.
pub(crate) fn is_trial(phase: PhaseName) -> bool {
    phase == PhaseName::Proving
}
