//! Requests that only look: the status document, updates, generations, bad digests, probes.
//!
//! In: the snapshot. Out: documents. Must not: wait for the dispatcher; a busy one must not make the status hang.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use molt_core::{
    code::Code,
    ids::{Digest, Generation, UpdateId},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    answer::{Refused, json},
    change::ask,
    peer::Peer,
    terms,
};
use crate::command::{Command, Handle, View};

/// How long a dispatcher may take that is live.
const PING_TIME: Duration = Duration::from_secs(10);

/// Body of `/livez` and `/readyz`.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub(crate) struct Health {
    /// The answer.
    pub(crate) ok: bool,
    /// For people.
    pub(crate) message: String,
}

/// The snapshot, put right where the gap kept it from being made anew.
pub(super) fn view(handle: &Handle) -> Arc<View> {
    let mut view = Arc::clone(&handle.view.borrow());
    let status = &view.document.status;
    if (status.phase, status.workload.ready) != (handle.now.phase(), handle.now.ready()) {
        handle.now.correct(&mut Arc::make_mut(&mut view).document);
    }
    view
}

/// Takes the values of the workload's environment out of a spec, as it is shown to whoever is not root of the sandbox.
pub(crate) fn hide(spec: &mut serde_json::Value) {
    let env = spec.pointer_mut("/workload/env").and_then(serde_json::Value::as_array_mut);
    for variable in env.into_iter().flatten().filter_map(serde_json::Value::as_object_mut) {
        variable.remove("value");
    }
}

/// `GET /v1/status`, with an entity tag over the whole document.
pub(super) async fn status(
    State(handle): State<Handle>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    let view = view(&handle);
    let mut shown = Cow::Borrowed(&view.document);
    if !peer.sees_secrets() {
        hide(&mut shown.to_mut().spec);
    }
    let mut response = json(StatusCode::OK, &*shown);
    let Ok(text) = serde_json::to_vec(&*shown) else { return response };
    let hex = Digest::from_bytes(Sha256::digest(&text).into()).hex();
    let text = terms::tag(&view.revision, &hex);
    let Ok(tag) = HeaderValue::try_from(&text) else { return response };
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let same = |one: &str| one.trim() == "*" || one.trim().trim_start_matches("W/") == text;
    if known.flat_map(|list| list.split(',')).any(same) {
        response = StatusCode::NOT_MODIFIED.into_response();
    }
    response.headers_mut().insert(header::ETAG, tag);
    response
}

/// `GET /v1/updates`: oldest first.
pub(super) async fn updates(State(handle): State<Handle>) -> Response {
    json(StatusCode::OK, &view(&handle).updates)
}

/// `GET /v1/updates/{id}`.
pub(super) async fn update(State(handle): State<Handle>, Path(id): Path<String>) -> Result<Response, Refused> {
    let id: UpdateId =
        id.parse().map_err(|error: molt_core::ids::ParseError| Refused::new(Code::Invalid, error.to_string()))?;
    let view = view(&handle);
    let status = &view.document.status;
    let found = view.updates.iter().rev().chain(&status.update).chain(&status.last_update).find(|one| one.id == id);
    match found {
        Some(update) => Ok(json(StatusCode::OK, update)),
        None => Err(Refused::new(Code::NotFound, format!("no update {id}; the last 64 are kept: see molt history"))),
    }
}

/// `GET /v1/execs`: oldest first.
pub(super) async fn execs(State(handle): State<Handle>) -> Response {
    json(StatusCode::OK, &handle.audit.all())
}

/// `GET /v1/generations`: oldest first.
pub(super) async fn generations(State(handle): State<Handle>) -> Response {
    json(StatusCode::OK, &view(&handle).generations)
}

/// `GET /v1/generations/{number}`.
pub(super) async fn generation(State(handle): State<Handle>, Path(number): Path<String>) -> Result<Response, Refused> {
    let number: Generation =
        number.parse().map_err(|error: molt_core::ids::ParseError| Refused::new(Code::Invalid, error.to_string()))?;
    match view(&handle).generations.iter().find(|one| one.generation == number) {
        Some(generation) => Ok(json(StatusCode::OK, generation)),
        None => Err(Refused::new(Code::NotFound, format!("no generation {number} in the store: see molt history"))),
    }
}

/// `GET /v1/bad`.
pub(super) async fn bad(State(handle): State<Handle>) -> Response {
    json(StatusCode::OK, &view(&handle).document.status.bad)
}

/// `GET /v1/difference?from=N&to=M`.
pub(super) async fn difference(
    State(handle): State<Handle>,
    query: Result<Query<Pair>, QueryRejection>,
) -> Result<Response, Refused> {
    let invalid = |why: String| Refused::new(Code::Invalid, why);
    let Query(pair) = query.map_err(|error| invalid(error.body_text()))?;
    let number = |text: &str| text.parse::<Generation>().map_err(|error| invalid(error.to_string()));
    let (from, to) = (number(&pair.from)?, number(&pair.to)?);
    Ok(json(StatusCode::OK, &ask(&handle, |reply| Command::Compare { from, to, reply }).await?))
}

/// Query of it; text, so that a wrong number gets a problem document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pair {
    from: String,
    to: String,
}

fn health(ok: bool, message: String) -> Response {
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &Health { ok, message })
}

/// `GET /livez`: the dispatcher answers. Says nothing of the workload, so that a bad image never costs the pod: live all
/// through an update, whatever becomes of it.
pub(super) async fn livez(State(handle): State<Handle>) -> Response {
    match tokio::time::timeout(PING_TIME, ask(&handle, |reply| Command::Ping { reply })).await {
        Ok(Ok(())) => health(true, "live".to_owned()),
        Ok(Err(_)) => health(false, "the dispatcher has ended".to_owned()),
        Err(_) => health(false, format!("the dispatcher has not answered for {} s", PING_TIME.as_secs())),
    }
}

/// `GET /metrics`: OpenMetrics text.
pub(super) async fn metrics(State(handle): State<Handle>) -> Response {
    let text = handle.events.metrics(&view(&handle));
    ([(header::CONTENT_TYPE, crate::observe::metrics::OPEN_METRICS)], text).into_response()
}

/// `GET /readyz`: the workload is ready.
pub(super) async fn readyz(State(handle): State<Handle>) -> Response {
    let view = view(&handle);
    let status = &view.document.status;
    match (status.workload.ready, status.workload.running) {
        (true, _) => health(true, "ready".to_owned()),
        (false, true) => health(false, format!("the workload runs and is not ready (phase {})", status.phase)),
        (false, false) => health(false, format!("the workload does not run (phase {})", status.phase)),
    }
}
