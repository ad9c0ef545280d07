//! Does something about what is wanted, once.
//!
//! In: the newest desired state, the snapshot. Out: commands; a problem, where no update can come of a revision. Must not:
//! decide what `molt_core::gateway::next` does, or ask for more than the spec lets a gateway ask for.

use std::time::Duration;

use molt_core::{
    code::Code,
    gateway::{Desired, Next, Report, Want, next},
    ids::UpdateId,
    journal::{Came, Revision},
    order::Operation,
    wire::{API_VERSION, Accepted, Ordered, Problem, RollbackRequest, UpdateRequest},
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
    answers: &watch::Sender<Option<Report>>,
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
                refuse(shared, answers, &gateway, revision, Problem::new(Code::Invalid, why));
                answered = Some((gateway, revision));
            }
            Some(Heard::Desired(desired)) => {
                let due = match next(&desired, seen.acted.as_ref(), &seen.updates) {
                    Next::Rest if let Some(told) = spent(&desired, seen.acted.as_ref()) => {
                        answer(shared, answers, &desired.gateway, desired.revision, told);
                        answered = Some((desired.gateway, desired.revision));
                        continue;
                    }
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
                        // Molt is about to end; the next start goes on from here.
                        None => return std::future::pending().await,
                        Some(Ok(Asked::Begun(id))) => shown(&mut view, id).await,
                        Some(Ok(Asked::Taken(ordered))) => {
                            let told = Told::Taken(Some(ordered));
                            answer(shared, answers, &desired.gateway, desired.revision, told);
                            answered = Some((desired.gateway, desired.revision));
                        }
                        // An order that comes while a workload is being swapped, or many do.
                        Some(Err(problem))
                            if problem.status == 503 && problem.code == Code::Busy && desired.orders() => {}
                        Some(Err(problem)) => {
                            refuse(shared, answers, &desired.gateway, desired.revision, problem);
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

/// What is known of an order that was taken before Molt was started anew, and began no update.
fn spent(desired: &Desired, last: Option<&Revision>) -> Option<Told> {
    let last = last.filter(|last| last.gateway == desired.gateway && last.number == desired.revision)?;
    if !desired.orders() || !last.done || last.update != UpdateId(0) {
        return None;
    }
    let refused = |code, why: &str| Told::Refused(Problem::new(code, format!("the order was taken; {why}")));
    Some(match last.came {
        Some(Came::Done) => Told::Taken(None),
        Some(Came::Refused(code)) => refused(code, "it could not be done, and is spent: molt history has why"),
        None => refused(Code::Interrupted, "Molt ended while it was done: molt status shows what is"),
    })
}

/// What became of a desired state.
enum Asked {
    /// This update.
    Begun(UpdateId),
    /// An order, and no update of its own.
    Taken(Ordered),
}

/// Hands a desired state to the dispatcher; nothing where that has ended.
async fn ask(shared: &Shared, handle: &Handle, desired: &Desired) -> Option<Result<Asked, Problem>> {
    let host = format!("{}/{}", shared.dial.host(), desired.gateway.get(..8).unwrap_or_default());
    let (number, update) = (desired.revision, UpdateId(0));
    let gateway = desired.gateway.clone();
    let revision = Revision { gateway, host, number, update, done: false, order: None, came: None };
    let by = revision.by();
    let mut want = desired.want.clone().unwrap_or_default();
    if let Some(order) = want.order.take() {
        let (reply, answer) = oneshot::channel();
        let command = Box::new(Command::Order { jws: order.into_bytes(), policy: want.policy, by, reply });
        handle.commands.send(Command::Revision { revision, command }).await.ok()?;
        return Some(answer.await.ok()?.map(|ordered| match (ordered.op, ordered.id) {
            (Operation::Update | Operation::Rollback, Some(id)) => Asked::Begun(id),
            _ => Asked::Taken(ordered),
        }));
    }
    let (reply, answer) = oneshot::channel();
    let command = match command(shared, want, by, reply) {
        Ok(command) => Box::new(command),
        Err(problem) => return Some(Err(problem)),
    };
    handle.commands.send(Command::Revision { revision, command }).await.ok()?;
    Some(answer.await.ok()?.map(|accepted| Asked::Begun(accepted.id)))
}

fn command(
    shared: &Shared,
    want: Want,
    by: String,
    reply: oneshot::Sender<Result<Accepted, Problem>>,
) -> Result<Command, Problem> {
    let Want { image, policy, force, allow_wider, rollback, order: _, reason } = want;
    if allow_wider && !shared.settings.allow_wider {
        let why = "this sandbox takes no wider policy from its gateway; spec.gateway.allowWider lets it";
        return Err(Problem::new(Code::PolicyWider, why));
    }
    match (image, rollback) {
        (Some(image), None) => {
            let request = UpdateRequest { image, policy, stage_only: false, force, allow_wider, reason };
            Ok(Command::Update { request, by, reply })
        }
        (None, Some(back)) => {
            let request = RollbackRequest { to: back.to, reason };
            Ok(Command::Rollback { request, by, reply })
        }
        _ => Err(Problem::new(Code::Unsupported, "this version of Molt cannot do what is wanted")),
    }
}

/// What is told of a revision that no update came of.
enum Told {
    Taken(Option<Ordered>),
    Refused(Problem),
}

fn refuse(shared: &Shared, answers: &watch::Sender<Option<Report>>, gateway: &str, revision: u64, problem: Problem) {
    tracing::warn!(revision, "what the gateway wants is refused: {}", problem.detail);
    answer(shared, answers, gateway, revision, Told::Refused(problem));
}

fn answer(shared: &Shared, answers: &watch::Sender<Option<Report>>, gateway: &str, revision: u64, told: Told) {
    let (ordered, problem) = match told {
        Told::Taken(ordered) => (ordered, None),
        Told::Refused(problem) => (None, Some(problem)),
    };
    answers.send_replace(Some(Report {
        api_version: API_VERSION.to_owned(),
        store: shared.store.clone(),
        gateway: Some(gateway.to_owned()),
        revision: Some(revision),
        settled: true,
        update: None,
        problem,
        ordered,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_an_order_is_told_as_it_was_after_a_restart() {
        let gateway = "0".repeat(32);
        let want = Some(Want { order: Some("a.b.c".to_owned()), ..Want::default() });
        let desired = Desired { api_version: API_VERSION.to_owned(), gateway: gateway.clone(), revision: 7, want };
        let host = "gw".to_owned();
        let taken = Revision { gateway, host, number: 7, update: UpdateId(0), done: true, order: None, came: None };
        let told = |came| match spent(&desired, Some(&Revision { came, ..taken.clone() })) {
            Some(Told::Refused(problem)) => Some(problem.code),
            Some(Told::Taken(None)) => None,
            _ => panic!("{came:?} is told"),
        };
        assert_eq!(told(Some(Came::Done)), None);
        assert_eq!(told(Some(Came::Refused(Code::Held))), Some(Code::Held));
        // Cut off while it was done: nobody knows.
        assert_eq!(told(None), Some(Code::Interrupted));
        // One that began an update is told by that; one that is not done is acted on.
        let other = [
            Revision { update: UpdateId(3), ..taken.clone() },
            Revision { done: false, ..taken.clone() },
            Revision { number: 6, ..taken.clone() },
        ];
        assert!(other.iter().all(|last| spent(&desired, Some(last)).is_none()) && spent(&desired, None).is_none());
    }
}
