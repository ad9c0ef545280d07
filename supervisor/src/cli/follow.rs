//! Follows one update to its end over the event stream, through breaks of the connection and restarts of the supervisor.
//!
//! In: the id and where its events begin. Out: its record. Must not: miss the end because a stream was slow or broke:
//! where events are silent, the record itself is asked for.

use std::time::Duration;

use molt_core::{
    code::Code,
    ids::UpdateId,
    spec::Span,
    wire::{Accepted, Document, Event, Outcome, PhaseName, UpdateView, What, undecided},
};
use tokio::time::{Instant, sleep, timeout};

use super::{bars::Screen, client::Client, fault::Fault, print::Printer};

/// How often a moving part moves.
const TICK: Duration = Duration::from_millis(250);
/// After so long without an event, the record is asked for.
const SILENCE: Duration = Duration::from_secs(5);
/// For so long a supervisor may be away before the wait is given up.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// The end.
    Ended,
    /// The end, or that nothing goes on without a decision.
    Decision,
    /// The same, or that it is staged and held: the end of what was asked for with `--stage-only`.
    Staged,
}

/// An update that is followed.
#[derive(Debug, Clone, Copy)]
struct Followed {
    id: UpdateId,
    until: Until,
}

/// Waits until the update has ended, at most `limit`.
pub(crate) async fn to_the_end(
    printer: Printer,
    client: &Client,
    accepted: &Accepted,
    limit: Option<Span>,
    until: Until,
) -> Result<UpdateView, Fault> {
    let id = accepted.id;
    let followed = Followed { id, until };
    let mut screen = Screen::new(printer, monitor(client).await);
    let limited = async {
        match limit {
            Some(limit) => sleep(limit.as_duration()).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        biased;
        ended = watch(client, followed, accepted.after_seq, &mut screen) => ended,
        () = limited => Err(Fault::TimedOut(id)),
        () = super::signals::interrupted() => Err(Fault::Interrupted(id)),
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

async fn watch(client: &Client, followed: Followed, mut after: u64, screen: &mut Screen) -> Result<UpdateView, Fault> {
    let mut since = Instant::now();
    loop {
        let fault = match stream(client, followed, &mut after, &mut since, screen).await {
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
    followed: Followed,
    after: &mut u64,
    since: &mut Instant,
    screen: &mut Screen,
) -> Result<UpdateView, Fault> {
    let mut lines = client.lines(&format!("/v1/events?after={after}")).await?;
    // What happened while nobody listened may be gone from the log.
    if let Some(view) = record(client, followed, since).await? {
        return Ok(view);
    }
    let mut heard = Instant::now();
    loop {
        match timeout(TICK, lines.next::<Event>()).await {
            Ok(event) => {
                let event = event?.ok_or_else(|| Fault::Broken("the stream of events ended".to_owned()))?;
                (*since, heard) = (Instant::now(), Instant::now());
                *after = event.seq;
                if event.update != Some(followed.id) {
                    continue;
                }
                match event.what {
                    What::Outcome { result } => return Ok(*result),
                    what => {
                        // It may be that nothing goes on by itself.
                        if matches!(what, What::Warning { .. } | What::Phase { phase: PhaseName::Held, .. }) {
                            heard = before(heard, SILENCE.saturating_sub(TICK));
                        }
                        screen.event(&what);
                        if matches!(what, What::Phase { phase: PhaseName::Held, .. })
                            && let Some(view) = record(client, followed, since).await?
                        {
                            return Ok(view);
                        }
                    }
                }
            }
            Err(_) if heard.elapsed() >= SILENCE => {
                heard = Instant::now();
                if let Some(view) = record(client, followed, since).await? {
                    return Ok(view);
                }
            }
            Err(_) => screen.tick(),
        }
    }
}

/// So long before, or then, where the clock does not reach back.
fn before(then: Instant, by: Duration) -> Instant {
    then.checked_sub(by).unwrap_or(then)
}

/// The record, if the update has ended.
async fn record(client: &Client, followed: Followed, since: &mut Instant) -> Result<Option<UpdateView>, Fault> {
    let Followed { id, until } = followed;
    match client.get::<UpdateView>(&format!("/v1/updates/{id}")).await {
        Ok(view) => {
            *since = Instant::now();
            if view.outcome.is_none() && until == Until::Staged && held(client, &view).await? {
                return Ok(Some(UpdateView { outcome: Some(Outcome::Staged), ..view }));
            }
            // Held: ready, and it goes on by itself when the hold ends.
            let waits = undecided(&view) || view.reason == Some(Code::Held);
            let over = view.outcome.is_some() || (until != Until::Ended && waits);
            Ok(over.then_some(view))
        }
        // Taken a moment ago, and not in the snapshot yet.
        Err(Fault::Problem(problem)) if problem.code == Code::NotFound && since.elapsed() < PATIENCE => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Whether the update is staged and goes no further by itself.
async fn held(client: &Client, view: &UpdateView) -> Result<bool, Fault> {
    let status = client.get::<Document>("/v1/status").await?.status;
    let staged = status.staged.is_some_and(|staged| Some(staged.generation) == view.to);
    Ok(staged && status.phase == PhaseName::Held)
}

/// Whether a phase is one in which the old version is kept for a way back.
pub(crate) fn is_trial(phase: PhaseName) -> bool {
    phase == PhaseName::Proving
}
