//! The workload's own socket: a few requests, for a process of the run that the socket is of.
//!
//! In: connections, few at a time and none too fast. Out: wishes to the dispatcher, and a status that shows nothing of other
//! generations. Must not: share a limit with the operator socket, or know a way to policy, exec, logs or the history. A signed
//! order says itself what it may.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::State,
    http::StatusCode,
    middleware,
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use molt_core::{
    code::Code,
    ids::{ImageRef, UpdateId},
    wire::{API_VERSION, Accepted, GenerationView, Outcome, PhaseName},
};
use serde::{Deserialize, Serialize};
use tokio::{net::UnixListener, sync::Semaphore};

use super::{
    answer::{Input, Refused, json},
    change::{HoldRequest, accepted, ask, reason},
    listen, orders,
    peer::{self, Door, Peer},
    read, routes,
};
use crate::command::{Command, Handle, Wish};

/// Connections of a run that are served at once; more wait in the kernel.
const CONNECTIONS: usize = 4;
/// From one connection that is taken to the next.
const PACE: Duration = Duration::from_millis(5);

/// `GET /v1/status`: what a workload may know of itself.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnStatus {
    /// Always `molt.dev/v1alpha1`.
    api_version: &'static str,
    /// Always `Workload`.
    kind: &'static str,
    /// Name of the sandbox.
    name: String,
    /// What runs; none where this run does not serve.
    generation: Option<GenerationView>,
    /// Where the update machine is.
    phase: PhaseName,
    /// It is not proven yet.
    trial: bool,
    /// Its probes say that it is ready.
    ready: bool,
    /// Updates are held.
    held: bool,
    /// How the last update ended.
    last_update: Option<Ended>,
}

/// An update, as far as it is the workload's business.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ended {
    /// Which.
    id: UpdateId,
    /// How it ended.
    outcome: Option<Outcome>,
    /// Why, where it failed or was refused.
    reason: Option<Code>,
}

/// `POST /v1/updates`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OwnRequest {
    /// The image.
    image: ImageRef,
    /// Why, in the workload's words; at most 512 characters.
    #[serde(default)]
    reason: Option<String>,
}

type Answer = Result<Response, Refused>;

fn router(handle: Handle) -> Router {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/hold", put(hold).delete(release))
        .route("/v1/confirm", post(confirm))
        .route("/v1/reject", post(reject))
        .route("/v1/updates", post(update))
        .route("/v1/orders", post(orders::order));
    routes::finish(router.route_layer(middleware::from_fn(routes::in_time)), handle)
}

async fn wish(handle: &Handle, peer: &Peer, wish: Wish) -> Answer {
    let Peer::Workload { instance, .. } = *peer else {
        return Err(Refused::with_status(StatusCode::FORBIDDEN, Code::Unauthorized, "this is no workload"));
    };
    let by = peer.by();
    let done: Option<Accepted> = ask(handle, |reply| Command::Own { instance, wish, by, reply }).await?;
    Ok(done.map_or_else(|| StatusCode::NO_CONTENT.into_response(), |done| accepted(&done)))
}

async fn status(State(handle): State<Handle>, Extension(peer): Extension<Peer>) -> Response {
    let view = read::view(&handle);
    let (document, status) = (&view.document, &view.document.status);
    let own = match peer {
        Peer::Workload { generation, .. } => Some(generation),
        Peer::Operator { .. } | Peer::Certificate { .. } => None,
    };
    let serves = status.workload.generation.filter(|serving| Some(*serving) == own);
    let generation = view.generations.iter().find(|one| Some(one.generation) == serves).cloned();
    let last = status.last_update.as_ref();
    let document = OwnStatus {
        api_version: API_VERSION,
        kind: "Workload",
        name: document.metadata.name.clone(),
        trial: status.trial.as_ref().is_some_and(|trial| Some(trial.generation) == own),
        ready: generation.is_some() && status.workload.ready,
        generation,
        phase: status.phase,
        held: status.hold.is_some(),
        last_update: last.map(|update| Ended { id: update.id, outcome: update.outcome, reason: update.reason }),
    };
    json(StatusCode::OK, &document)
}

async fn hold(
    State(handle): State<Handle>,
    Extension(peer): Extension<Peer>,
    Input(request): Input<HoldRequest>,
) -> Answer {
    reason(request.reason.as_ref())?;
    let ttl_ms = request.ttl_ms.filter(|ttl| *ttl > 0);
    let ttl_ms = ttl_ms.ok_or_else(|| Refused::new(Code::Invalid, "say how long: ttlMs"))?;
    wish(&handle, &peer, Wish::Hold { ttl_ms, reason: request.reason }).await
}

async fn release(State(handle): State<Handle>, Extension(peer): Extension<Peer>) -> Answer {
    wish(&handle, &peer, Wish::Release).await
}

async fn confirm(State(handle): State<Handle>, Extension(peer): Extension<Peer>) -> Answer {
    wish(&handle, &peer, Wish::Confirm).await
}

async fn reject(State(handle): State<Handle>, Extension(peer): Extension<Peer>) -> Answer {
    wish(&handle, &peer, Wish::Reject).await
}

async fn update(
    State(handle): State<Handle>,
    Extension(peer): Extension<Peer>,
    Input(request): Input<OwnRequest>,
) -> Answer {
    reason(request.reason.as_ref())?;
    wish(&handle, &peer, Wish::Update { image: request.image, reason: request.reason }).await
}

/// Serves until the task is dropped.
pub(crate) async fn serve(handle: Handle, listener: UnixListener, door: Door) {
    let router = router(handle);
    let (slots, streams) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(0)));
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => match peer::admit_own(&stream, &door) {
                Ok(peer) => {
                    let slot = listen::Slot::new(slot, Arc::clone(&streams));
                    tokio::spawn(listen::connection(stream, router.clone(), slot, peer, Arc::default()));
                }
                Err(stranger) => drop(tokio::spawn(listen::refuse(stream, stranger, slot))),
            },
            Err(error) => tracing::debug!(%error, "the workload's socket takes no connection for now"),
        }
        crate::timer::sleep(PACE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake;

    /// No snapshot is made from the first signal to the exit.
    #[tokio::test]
    async fn a_workload_that_is_told_to_stop_sees_that_it_is_not_ready() {
        let handle = fake::start();
        let peer = Peer::Workload { instance: 1, generation: molt_core::ids::Generation(1), pid: 1 };
        let seen = async || {
            let body = status(State(handle.clone()), Extension(peer.clone())).await.into_body();
            let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let seen: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            (seen["phase"].as_str().unwrap().to_owned(), seen["ready"] == true)
        };
        assert_eq!(seen().await, ("Idle".to_owned(), true));
        handle.now.set(PhaseName::Quiescing, false);
        assert_eq!(seen().await, ("Quiescing".to_owned(), false));
    }
}
