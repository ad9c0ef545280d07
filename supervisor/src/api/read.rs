//! Requests that only look: the status document, updates, generations, bad digests, probes.
//!
//! In: the snapshot. Out: documents. Must not: wait for the dispatcher; a busy one must not make the status hang.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use molt_core::{
    code::Code,
    ids::{Digest, Generation, UpdateId},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::answer::{Refused, json};
use crate::command::{Handle, View};

/// Body of `/livez` and `/readyz`.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub(crate) struct Health {
    /// The answer.
    pub(crate) ok: bool,
    /// For people.
    pub(crate) message: String,
}

fn view(handle: &Handle) -> Arc<View> {
    Arc::clone(&handle.view.borrow())
}

/// `GET /v1/status`, with an entity tag over the whole document.
pub(super) async fn status(State(handle): State<Handle>, headers: HeaderMap) -> Response {
    let view = view(&handle);
    let mut response = json(StatusCode::OK, &view.document);
    let Ok(text) = serde_json::to_vec(&view.document) else { return response };
    let hex = Digest::from_bytes(Sha256::digest(&text).into()).hex();
    let Ok(tag) = HeaderValue::try_from(format!("\"{hex}\"")) else { return response };
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let same = |one: &str| one.trim() == "*" || one.trim().trim_start_matches("W/").trim_matches('"') == hex;
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

fn health(ok: bool, message: String) -> Response {
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &Health { ok, message })
}

/// `GET /livez`: the dispatcher takes commands. Says nothing of the workload, so that a bad image never costs the pod.
pub(super) async fn livez(State(handle): State<Handle>) -> Response {
    let alive = !handle.commands.is_closed() && handle.view.has_changed().is_ok();
    health(alive, if alive { "live" } else { "the dispatcher has ended" }.to_owned())
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
