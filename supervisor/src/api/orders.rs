//! Signed orders, and the history that tells of them.
//!
//! In: a token as `application/jose`, or with its policy in JSON; questions about the history. Out: one command to the
//! dispatcher and its answer; lines. Must not: look into a token, or read files on the thread that serves.

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use molt_core::{
    code::Code,
    wire::{HistoryCheck, OrderRequest},
};

use super::{
    answer::{self, Refused, json},
    change::ask,
    peer::Peer,
};
use crate::{
    aside,
    command::{Command, Handle},
};

/// Lines of the history in one answer, unless fewer are asked for.
const LINES: usize = 1000;

/// `POST /v1/orders`.
pub(super) async fn order(
    State(handle): State<Handle>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Refused> {
    let media = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim().to_owned();
    let bytes = answer::body(request).await?;
    let (jws, policy) = match media.as_str() {
        "application/jose" => (bytes.to_vec(), None),
        "application/json" => {
            let OrderRequest { jws, policy } = answer::parse(&bytes)?;
            (jws.into_bytes(), policy)
        }
        _ => {
            let why = "an order is application/jose, or application/json with its policy";
            return Err(Refused::with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::Invalid, why));
        }
    };
    let by = peer.by();
    let ordered = ask(&handle, |reply| Command::Order { jws, policy, by, reply }).await;
    let ordered = match ordered {
        Err(refused) if refused.0.status == 503 => {
            let mut response = refused.into_response();
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            return Ok(response);
        }
        ordered => ordered?,
    };
    let mut response = json(StatusCode::ACCEPTED, &ordered);
    if let Some(location) = ordered.id.and_then(|id| HeaderValue::try_from(format!("/v1/updates/{id}")).ok()) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// `GET /v1/history`: lines as they are in the files, oldest first; `?kind=`, `?after=` and `?limit=` choose.
pub(super) async fn history(State(handle): State<Handle>, request: Request) -> Result<Response, Refused> {
    let wrong = |why: &str| Refused::new(Code::Invalid, why);
    let (mut kind, mut after, mut limit) = (None, 0, LINES);
    for pair in request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("kind", one)) if !one.is_empty() && one.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
                kind = Some(one.to_owned());
            }
            Some(("after", one)) => {
                let why = "after must be a whole number below 2^53";
                after = number(one).filter(|number| *number < 1 << 53).ok_or_else(|| wrong(why))?;
            }
            Some(("limit", one)) => {
                let many = number(one).ok_or_else(|| wrong("limit must be a whole number"))?;
                limit = usize::try_from(many).unwrap_or(LINES);
            }
            _ => return Err(wrong("only kind, after and limit are taken here, each with a value")),
        }
    }
    let read = move || handle.audit.lines(limit.min(LINES), kind.as_deref(), after);
    let lines = aside::run("history", read).await.unwrap_or_default();
    Ok(json(StatusCode::OK, &lines))
}

/// A whole number; one that is too large is as good as the largest.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// `GET /v1/history/verify`.
pub(super) async fn verify(State(handle): State<Handle>) -> Result<Response, Refused> {
    let check: Option<HistoryCheck> = aside::run("history", move || handle.audit.check()).await;
    let gone = || Refused::new(Code::Internal, "nobody could read the history; try again");
    Ok(json(StatusCode::OK, &check.ok_or_else(gone)?))
}
