//! Tells the gateway what is, and how every update ended.
//!
//! In: the snapshot; the list of reports that the gateway has. Out: the status when it changes, and each report that it has
//! not. Must not: tell the value of a variable; forget a report before the gateway has it: the history keeps the last 64
//! over restarts, and nothing is believed to be known but what the gateway lists.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::Method;
use hyper::http;
use molt_core::{
    gateway::{BATCH, Batch, Received, Report, is_id, plain, settled},
    ids::UpdateId,
    journal::Revision,
    wire::{API_VERSION, Document, UpdateView},
};
use serde_json::Value;
use tokio::sync::watch;

use super::{Shared, pace::Pace};
use crate::{
    api,
    command::{Handle, View},
    gateway::dial::{Ask, Fault},
    observe::events::EventLog,
    timer,
};

/// Least time between two status documents.
const PERIOD: Duration = Duration::from_millis(200);

/// What the gateway would not take, and the problem it was told of last.
#[derive(Debug, Default)]
struct Known {
    gateway: String,
    reports: BTreeSet<UpdateId>,
    /// Updates that are staged and go on when somebody says so; their end is told, too.
    staged: BTreeSet<UpdateId>,
    answer: Option<(String, u64)>,
}

pub(super) async fn tell(shared: &Shared, handle: &Handle, mut answers: watch::Receiver<Option<Report>>) {
    let mut view = handle.view.clone();
    let mut pace = Pace::new(shared.settings.retry.as_duration());
    let mut known = Known::default();
    let mut away = false;
    loop {
        let seen = view.borrow_and_update().clone();
        let answer = answers.borrow_and_update().clone();
        if let Err(fault) = say(shared, &handle.events, &seen, answer, &mut known).await {
            // Whether the gateway answers is for the other loop to say; it may be that it only does not listen.
            if !away {
                tracing::warn!("the gateway was not told what is: {fault}; it is told again");
            }
            away = true;
            timer::sleep(pace.failed()).await;
            continue;
        }
        pace.well();
        away = false;
        timer::sleep(PERIOD).await;
        let alive = tokio::select! {
            changed = view.changed() => changed.is_ok(),
            changed = answers.changed() => changed.is_ok(),
            () = shared.back.notified() => true,
        };
        if !alive {
            return std::future::pending().await;
        }
    }
}

async fn say(
    shared: &Shared,
    events: &EventLog,
    view: &View,
    answer: Option<Report>,
    known: &mut Known,
) -> Result<(), Fault> {
    let path = format!("{}/status?store={}", shared.base, shared.store);
    let said = shared.dial.done(Ask::new(Method::PUT, &path).with(&shown(&view.document))?).await?;
    let received: Received =
        serde_json::from_slice(&said.body).map_err(|error| Fault::Broken(plain(&error.to_string())))?;
    if !is_id(&received.gateway) {
        return Err(Fault::Broken("gateway is not 32 hex digits".to_owned()));
    }
    if known.gateway != received.gateway {
        *known = Known { gateway: received.gateway, ..Known::default() };
    }
    let has: BTreeSet<UpdateId> = received.reports.into_iter().collect();
    for update in view.updates.iter().filter(|update| update.outcome.is_some()) {
        let (id, over) = (update.id, update.ended.is_some());
        if has.contains(&id) || known.reports.contains(&id) || (!over && known.staged.contains(&id)) {
            continue;
        }
        if !send(shared, &report(shared, update, view.acted.as_ref())).await? {
            known.reports.insert(id);
        } else if !over {
            known.staged.insert(id);
        }
    }
    if let Some(last) = received.events {
        tell_events(shared, events, last).await?;
    }
    // What it lists is what it has; what it would not take is not offered again before it is another one.
    if let Some(answer) = answer {
        let of = answer.gateway.clone().zip(answer.revision);
        if known.answer != of {
            send(shared, &answer).await?;
            known.answer = of;
        }
    }
    Ok(())
}

/// The status, as it is shown to whoever is not root of the sandbox.
fn shown(document: &Document) -> Document {
    let mut shown = document.clone();
    api::hide(&mut shown.spec);
    shown
}

/// What happened since event `last`, but the progress of layers.
async fn tell_events(shared: &Shared, events: &EventLog, last: u64) -> Result<(), Fault> {
    let told = |(_, text): (u64, Arc<[u8]>)| {
        let mut event: Value =
            serde_json::from_slice(&text).ok().filter(|event: &Value| event["type"] != "progress")?;
        if let Some(evidence) = event.pointer_mut("/result/evidence") {
            evidence.take();
        }
        Some(event)
    };
    let all: Vec<Value> = events.after(last).into_iter().filter_map(told).collect();
    for events in all.chunks(BATCH) {
        let batch = Batch { api_version: API_VERSION.to_owned(), store: shared.store.clone(), events: events.to_vec() };
        let path = format!("{}/events", shared.base);
        shared.dial.done(Ask::new(Method::POST, &path).with(&batch)?).await?;
    }
    Ok(())
}

/// One report; whether it was taken. A refusal that would be the same the next time is not an error.
async fn send(shared: &Shared, report: &Report) -> Result<bool, Fault> {
    let path = format!("{}/reports", shared.base);
    match shared.dial.done(Ask::new(Method::POST, &path).with(report)?).await {
        Err(Fault::No { status: status @ (400 | 413 | 422), problem }) => {
            let why = problem.map(|problem| problem.detail).unwrap_or_default();
            tracing::warn!(status, "the gateway does not take a report: {why}");
            Ok(false)
        }
        answer => answer.map(|_| true),
    }
}

fn report(shared: &Shared, update: &UpdateView, last: Option<&Revision>) -> Report {
    let asked = last.filter(|last| last.update == update.id);
    // An earlier attempt, or an earlier revision, of the same gateway: who asked says which.
    let earlier = || {
        let last = last?;
        let by = update.by.rsplit_once(" via ").map_or(update.by.as_str(), |(_, by)| by);
        let number = by.strip_prefix(&format!("gateway {} revision ", last.host))?.parse().ok()?;
        Some((last.gateway.clone(), number))
    };
    let (gateway, revision) = asked.map(|asked| (asked.gateway.clone(), asked.number)).or_else(earlier).unzip();
    Report {
        api_version: API_VERSION.to_owned(),
        store: shared.store.clone(),
        gateway,
        revision,
        settled: update.outcome.is_some_and(|outcome| settled(outcome, update.reason)),
        update: Some(update.clone()),
        problem: None,
        ordered: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_learns_which_variables_there_are_and_not_what_they_hold() {
        let mut document = api::fake::document();
        document.spec = serde_json::json!({"workload": {"env": [{"name": "TOKEN", "value": "hunter2"}]}});
        let told = serde_json::to_string(&shown(&document)).unwrap();
        assert!(told.contains("TOKEN") && !told.contains("hunter2"), "{told}");
    }
}
