//! Does something about what is wanted, once.
//!
//! In: the newest desired state, the snapshot. Out: commands; a problem, where no update can come of a revision. Must not:
//! decide what `molt_core::gateway::next` does, or ask for more than the spec lets a gateway ask for.

use std::time::Duration;

use molt_core::{
    code::Code,
    gateway::{Desired, Next, Report, Want, next},
    ids::UpdateId,
    journal::Revision,
    wire::{API_VERSION, Accepted, Problem, RollbackRequest, UpdateRequest},
};
use tokio::sync::{oneshot, watch};

use super::{Heard, Shared, pace::Pace};
use crate::{
    command::{Command, Handle},
    timer::{self, Instant},
};

/// Least time between two revisions that are acted on: each is a write to the journal.
const PERIOD: Duration = Duration::from_millis(500);

pub(super) async fn act(
    shared: &Shared,
    handle: &Handle,
    mut heard: watch::Receiver<Option<Heard>>,
    refused: &watch::Sender<Option<Report>>,
) {
    let mut view = handle.view.clone();
    let mut pace = Pace::new(shared.settings.retry.as_duration());
    let mut answered: Option<(String, u64)> = None;
    // The update that failed, and when it is tried again.
    let mut again: Option<(UpdateId, Instant)> = None;
    let mut free = Instant::now();
    loop {
        let mut later = None;
        let newest = heard.borrow_and_update().clone();
        let seen = view.borrow_and_update().clone();
        match newest {
            Some(heard) if answered.as_ref().is_some_and(|(of, number)| heard.revision() == (of.as_str(), *number)) => {
            }
            Some(Heard::Unreadable(gateway, revision, why)) => {
                refuse(shared, refused, &gateway, revision, Problem::new(Code::Invalid, why));
                answered = Some((gateway, revision));
            }
            Some(Heard::Desired(desired)) => {
                let due = match next(&desired, seen.acted.as_ref(), &seen.updates) {
                    Next::Rest | Next::Wait(_) => None,
                    Next::Act => Some(Instant::now()),
                    Next::Again(id) => match again.filter(|(of, _)| *of == id) {
                        Some((_, due)) => Some(due),
                        None => Some(again.insert((id, Instant::now() + pace.failed())).1),
                    },
                };
                later = due.map(|due| due.max(free));
                if later.is_some_and(|due| due <= Instant::now()) {
                    free = Instant::now() + PERIOD;
                    if seen.acted.as_ref().is_none_or(|last| last.number != desired.revision) {
                        pace.well();
                    }
                    match ask(shared, handle, &desired).await {
                        Ok(accepted) => shown(&mut view, accepted.id).await,
                        // Molt is about to end; the next start goes on from here.
                        Err(problem) if problem.code == Code::Busy => return std::future::pending().await,
                        Err(problem) => {
                            refuse(shared, refused, &desired.gateway, desired.revision, problem);
                            answered = Some((desired.gateway, desired.revision));
                        }
                    }
                    continue;
                }
            }
            None => {}
        }
        let later = async {
            match later {
                Some(due) => timer::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let alive = tokio::select! {
            changed = heard.changed() => changed.is_ok(),
            changed = view.changed() => changed.is_ok(),
            () = later => true,
        };
        if !alive {
            return std::future::pending().await;
        }
    }
}

/// Waits until the snapshot has the update.
async fn shown(view: &mut watch::Receiver<std::sync::Arc<crate::command::View>>, id: UpdateId) {
    // Where the dispatcher has ended there is nothing to wait for.
    let has =
        |view: &std::sync::Arc<crate::command::View>| view.acted.as_ref().is_some_and(|revision| revision.update >= id);
    let _ = view.wait_for(has).await;
}

/// Hands a desired state to the dispatcher.
async fn ask(shared: &Shared, handle: &Handle, desired: &Desired) -> Result<Accepted, Problem> {
    let host = format!("{}/{}", shared.dial.host(), desired.gateway.get(..8).unwrap_or_default());
    let (number, update) = (desired.revision, UpdateId(0));
    let revision = Revision { gateway: desired.gateway.clone(), host, number, update, done: false };
    let want = desired.want.clone().unwrap_or_default();
    let (reply, answer) = oneshot::channel();
    let command = Box::new(command(shared, want, revision.by(), reply)?);
    let gone = || Problem::new(Code::Busy, "molt is stopping");
    handle.commands.send(Command::Revision { revision, command }).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

fn command(
    shared: &Shared,
    want: Want,
    by: String,
    reply: oneshot::Sender<Result<Accepted, Problem>>,
) -> Result<Command, Problem> {
    let Want { image, policy, force, allow_wider, rollback, order, reason } = want;
    if allow_wider && !shared.settings.allow_wider {
        let why = "this sandbox takes no wider policy from its gateway; spec.gateway.allowWider lets it";
        return Err(Problem::new(Code::PolicyWider, why));
    }
    match (image, rollback, order) {
        (Some(image), None, None) => {
            let request = UpdateRequest { image, policy, stage_only: false, force, allow_wider, reason };
            Ok(Command::Update { request, by, reply })
        }
        (None, Some(back), None) => {
            let request = RollbackRequest { to: back.to, reason };
            Ok(Command::Rollback { request, by, reply })
        }
        _ => Err(Problem::new(Code::Unsupported, "this version of Molt cannot do what is wanted")),
    }
}

fn refuse(shared: &Shared, refused: &watch::Sender<Option<Report>>, gateway: &str, revision: u64, problem: Problem) {
    tracing::warn!(revision, "what the gateway wants is refused: {}", problem.detail);
    refused.send_replace(Some(Report {
        api_version: API_VERSION.to_owned(),
        store: shared.store.clone(),
        gateway: Some(gateway.to_owned()),
        revision: Some(revision),
        settled: true,
        update: None,
        problem: Some(problem),
    }));
}
