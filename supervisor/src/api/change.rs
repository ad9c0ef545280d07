//! Requests that change something: each is one command to the dispatcher and its answer.
//!
//! In: request documents. Out: 202 with the update's id, or the dispatcher's problem. Must not: judge the request beyond
//! its form.

use axum::{
    Extension,
    extract::{Path, Query, RawQuery, State, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use molt_core::{
    code::Code,
    ids::{Digest, UpdateId},
    wire::{Accepted, RollbackRequest, UpdateRequest},
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{
    answer::{Input, Refused, json},
    peer::Peer,
    terms::{Asked, on},
};
use crate::command::{Command, Handle, Reply};

/// Longest reason, in characters.
const REASON: usize = 512;
/// Owner of a hold where none is named.
const OWNER: &str = "operator";
/// Owner of the hold that the workload asks for on its own socket, and may end there: nobody else's is called that.
const WORKLOAD: &str = "workload";
/// Longest name of an owner, in bytes.
const OWNER_BYTES: usize = 64;
/// Longest hold: what is to last longer is another setting, not a hold.
const LONGEST_MS: u64 = 366 * 24 * 3_600_000;
/// How long a hold lasts where nothing was said: long enough for a look, short enough to be forgotten.
const HOLD_MS: u64 = 3_600_000;

/// `PUT /v1/hold`.
#[derive(Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HoldRequest {
    /// Milliseconds until the hold ends by itself; an hour where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ttl_ms: Option<u64>,
    /// Why, in the asker's words; at most 512 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Whose it is, 1 to 64 characters of visible ASCII; `operator` where absent, and never `workload`. The same owner may
    /// ask again, which begins its time anew; while another one's hold lasts the answer is 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
}

type Answer = Result<Response, Refused>;

/// Sends a command and waits for its answer.
pub(super) async fn ask<T>(handle: &Handle, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refused> {
    let gone =
        || Refused::with_status(StatusCode::SERVICE_UNAVAILABLE, Code::Internal, "the dispatcher does not answer");
    let (reply, answer) = oneshot::channel();
    handle.commands.send(command(reply)).await.map_err(|_| gone())?;
    Ok(answer.await.map_err(|_| gone())??)
}

pub(super) fn accepted(accepted: &Accepted) -> Response {
    let mut response = json(StatusCode::ACCEPTED, accepted);
    if let Ok(location) = HeaderValue::try_from(format!("/v1/updates/{}", accepted.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

pub(super) fn reason(text: Option<&String>) -> Result<(), Refused> {
    match text {
        Some(text) if text.chars().count() > REASON => {
            Err(Refused::new(Code::Invalid, format!("the reason is longer than {REASON} characters")))
        }
        _ => Ok(()),
    }
}

/// `POST /v1/updates`, `?dryRun=All` for the plan only.
pub(super) async fn update(
    State(handle): State<Handle>,
    Extension(peer): Extension<Peer>,
    asked: Asked,
    RawQuery(query): RawQuery,
    Input(request): Input<UpdateRequest>,
) -> Answer {
    reason(request.reason.as_ref())?;
    if request.allow_wider && !peer.may_widen() {
        let why = "a wider policy is not yours to ask for (api.listen.allow[].allowWider)";
        return Err(Refused::with_status(StatusCode::FORBIDDEN, Code::Unauthorized, why));
    }
    match query.as_deref() {
        None | Some("") => {
            let (by, terms) = (peer.by(), asked.keyed("update", &request)?);
            ask(&handle, |reply| on(terms, Command::Update { request, by, reply })).await.map(|done| accepted(&done))
        }
        Some("dryRun=All") => {
            let plan = ask(&handle, |reply| Command::DryRun { request, reply }).await?;
            Ok(json(StatusCode::OK, &plan))
        }
        // A misspelt dryRun must never become an update.
        Some(_) => Err(Refused::new(Code::Invalid, "the only query taken here is dryRun=All")),
    }
}

/// `POST /v1/rollback`.
pub(super) async fn rollback(
    State(handle): State<Handle>,
    Extension(peer): Extension<Peer>,
    asked: Asked,
    Input(request): Input<RollbackRequest>,
) -> Answer {
    reason(request.reason.as_ref())?;
    let (by, terms) = (peer.by(), asked.keyed("rollback", &request)?);
    ask(&handle, |reply| on(terms, Command::Rollback { request, by, reply })).await.map(|done| accepted(&done))
}

/// `POST /v1/apply`.
pub(super) async fn apply(State(handle): State<Handle>, Extension(peer): Extension<Peer>, asked: Asked) -> Answer {
    let (by, terms) = (peer.by(), asked.unkeyed()?);
    ask(&handle, |reply| on(terms, Command::Apply { by, reply })).await.map(|done| accepted(&done))
}

/// `POST /v1/confirm`.
pub(super) async fn confirm(State(handle): State<Handle>, Extension(peer): Extension<Peer>, asked: Asked) -> Answer {
    let (by, terms) = (peer.by(), asked.unkeyed()?);
    ask(&handle, |reply| on(terms, Command::Confirm { by, reply })).await.map(|done| accepted(&done))
}

/// `POST /v1/reject`.
pub(super) async fn reject(State(handle): State<Handle>, Extension(peer): Extension<Peer>, asked: Asked) -> Answer {
    let (by, terms) = (peer.by(), asked.unkeyed()?);
    ask(&handle, |reply| on(terms, Command::Reject { by, reply })).await.map(|done| accepted(&done))
}

/// `POST /v1/updates/{id}/cancel`; `current` names the one under way.
pub(super) async fn cancel(
    State(handle): State<Handle>,
    Extension(peer): Extension<Peer>,
    asked: Asked,
    Path(id): Path<String>,
) -> Answer {
    let id = match id.as_str() {
        "current" => None,
        id => Some(id.parse::<UpdateId>().map_err(|error| Refused::new(Code::Invalid, error.to_string()))?),
    };
    let (by, terms) = (peer.by(), asked.unkeyed()?);
    ask(&handle, |reply| on(terms, Command::Cancel { id, by, reply })).await.map(|done| accepted(&done))
}

/// `PUT /v1/hold`.
pub(super) async fn hold(
    State(handle): State<Handle>,
    Extension(peer): Extension<Peer>,
    Input(request): Input<HoldRequest>,
) -> Answer {
    reason(request.reason.as_ref())?;
    let ttl_ms = request.ttl_ms.unwrap_or(HOLD_MS);
    if ttl_ms == 0 || ttl_ms > LONGEST_MS {
        return Err(Refused::new(Code::Invalid, "a hold lasts from 1 ms to 366 days; DELETE /v1/hold ends one"));
    }
    let owner = owner(request.owner)?.unwrap_or_else(|| OWNER.to_owned());
    if owner == WORKLOAD {
        let why = "the owner 'workload' is the workload's own, which could end the hold: name another owner";
        return Err(Refused::new(Code::Invalid, why));
    }
    let (by, reason) = (peer.by(), request.reason);
    let hold = ask(&handle, |reply| Command::Hold { owner, ttl_ms, reason, by, reply }).await?;
    Ok(json(StatusCode::OK, &hold))
}

fn owner(name: Option<String>) -> Result<Option<String>, Refused> {
    match name {
        Some(name)
            if name.is_empty() || name.len() > OWNER_BYTES || !name.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            let why = format!("an owner is 1 to {OWNER_BYTES} characters, visible ASCII without spaces");
            Err(Refused::new(Code::Invalid, why))
        }
        name => Ok(name),
    }
}

/// Query of `DELETE /v1/hold`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseQuery {
    owner: Option<String>,
}

/// `DELETE /v1/hold`: whoever's it is; with `owner` only that one's.
pub(super) async fn release(
    State(handle): State<Handle>,
    Extension(peer): Extension<Peer>,
    query: Result<Query<ReleaseQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query.map_err(|error| Refused::new(Code::Invalid, error.body_text()))?;
    let (by, owner) = (peer.by(), owner(query.owner)?);
    ask(&handle, |reply| Command::Release { owner, by, reply }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `DELETE /v1/bad/{digest}`.
pub(super) async fn forget(
    State(handle): State<Handle>,
    Extension(peer): Extension<Peer>,
    Path(digest): Path<String>,
) -> Answer {
    let digest: Digest = digest.parse().map_err(|error| {
        let error: molt_core::ids::ParseError = error;
        Refused::new(Code::Invalid, error.to_string())
    })?;
    let by = peer.by();
    ask(&handle, |reply| Command::ForgetBad { digest, by, reply }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /v1/gc`.
pub(super) async fn collect(State(handle): State<Handle>, Extension(peer): Extension<Peer>) -> Answer {
    let by = peer.by();
    let collected = ask(&handle, |reply| Command::Collect { by, reply }).await?;
    Ok(json(StatusCode::OK, &collected))
}
