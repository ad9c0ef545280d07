//! What the reference gateway answers: `docs/GATEWAY.md`, `docs/gateway-openapi.json`.
//!
//! In: requests and who sends them. Out: documents, streams, problems. Must not: answer anybody who is not named in a
//! certificate or by a token, or tell a sandbox of another one.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    extract::{FromRequestParts, Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use bytes::Bytes;
use molt_core::{
    code::Code,
    gateway::{BATCH, Batch, Desired, Received, Report, Want, is_id},
    wire::API_VERSION,
};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{timeout, timeout_at},
};

use super::{
    auth::{Asker, Guard, Who},
    openapi,
    store::Store,
    strangers::Stranger,
};
use crate::api::answer::{Input, Refused, json};

/// Longest a question may stay open, whatever was asked for.
const WAIT: u64 = 600;
/// For an answer that needs no waiting.
const REQUEST: Duration = Duration::from_secs(30);
/// Something is said on a stream so often.
const ALIVE: Duration = Duration::from_secs(20);

/// What the handlers hold.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) store: Arc<Store>,
    pub(super) guard: Guard,
}

type Shared = Arc<Gateway>;
type Answer = Result<Response, Refused>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Waiting {
    /// Seconds.
    #[serde(default)]
    wait: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Origin {
    store: String,
}

/// Everything there is.
pub(super) fn router(gateway: Shared) -> Router {
    Router::new()
        .route("/v1/sandboxes", get(list))
        .route("/v1/sandboxes/{name}", get(record))
        .route("/v1/sandboxes/{name}/desired", get(desired).put(want))
        .route("/v1/sandboxes/{name}/status", put(status))
        .route("/v1/sandboxes/{name}/reports", post(report).get(reports))
        .route("/v1/sandboxes/{name}/events", post(happened).get(events))
        .route("/v1/sandboxes/{name}/revisions/{revision}", get(revision))
        .route("/v1/openapi.json", get(openapi::openapi))
        .fallback(async || Refused::new(Code::NotFound, "there is no such path; docs/GATEWAY.md lists them"))
        .method_not_allowed_fallback(async || {
            Refused::with_status(StatusCode::METHOD_NOT_ALLOWED, Code::Invalid, "the path does not take this method")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&gateway), admit))
        .with_state(gateway)
}

/// Nothing is answered before it is known who asks.
async fn admit(
    State(gateway): State<Shared>,
    Extension(who): Extension<Arc<[Who]>>,
    Extension(stranger): Extension<Arc<Stranger>>,
    mut request: Request,
    next: Next,
) -> Response {
    match gateway.guard.asker(&who, request.headers()) {
        Ok(asker) => {
            stranger.let_in();
            request.extensions_mut().insert(asker);
            match timeout(REQUEST + Duration::from_secs(WAIT), next.run(request)).await {
                Ok(response) => response,
                Err(_) => {
                    Refused::with_status(StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded, "no answer in time")
                        .into_response()
                }
            }
        }
        Err(refused) => {
            // A stranger has asked once; the place is for somebody else.
            let close = (header::CONNECTION, HeaderValue::from_static("close"));
            ([close], refused).into_response()
        }
    }
}

/// The query of a request; what is wrong with it is a problem document like any other.
struct Asked<T>(T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(rejected) => Err(Refused::new(Code::Invalid, rejected.body_text())),
        }
    }
}

fn missing(name: &str) -> Refused {
    Refused::new(
        Code::NotFound,
        format!("no sandbox {name} has ever called this gateway; molt get lists those that have"),
    )
}

fn with_tag(mut response: Response, tag: &str) -> Response {
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// The document once its tag is none that is known, or 304 when `wait` is over.
async fn newer<T: serde::Serialize>(
    headers: &HeaderMap,
    wait: u64,
    mut changes: watch::Receiver<u64>,
    mut look: impl FnMut() -> Option<(T, String)>,
    name: &str,
) -> Answer {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let over = tokio::time::Instant::now() + Duration::from_secs(wait.min(WAIT));
    loop {
        changes.borrow_and_update();
        let (document, tag) = look().ok_or_else(|| missing(name))?;
        if known != tag {
            return Ok(with_tag(json(StatusCode::OK, &document), &tag));
        }
        if !matches!(timeout_at(over, changes.changed()).await, Ok(Ok(()))) {
            return Ok(with_tag(StatusCode::NOT_MODIFIED.into_response(), &tag));
        }
    }
}

/// `GET /v1/sandboxes/{name}/desired`.
async fn desired(
    State(gateway): State<Shared>,
    Extension(asker): Extension<Asker>,
    Path(name): Path<String>,
    Asked(waiting): Asked<Waiting>,
    headers: HeaderMap,
) -> Answer {
    asker.is_sandbox(&name)?;
    gateway.store.welcome(&name)?;
    gateway.store.seen(&name);
    let changes = gateway.store.changes(&name).ok_or_else(|| missing(&name))?;
    if headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/event-stream")) {
        return Ok(stream(gateway, name, changes));
    }
    let look = || gateway.store.desired(&name).map(|desired| (desired.clone(), desired.tag()));
    newer(&headers, waiting.wait, changes, look, &name).await
}

/// The same as server-sent events: the newest at once, and each that takes its place.
fn stream(gateway: Shared, name: String, changes: watch::Receiver<u64>) -> Response {
    let first = (gateway, name, changes, None::<u64>);
    let body = futures_util::stream::unfold(first, async |(gateway, name, mut changes, mut told)| {
        // Much else changes in a record.
        let silent = tokio::time::Instant::now() + ALIVE;
        loop {
            changes.borrow_and_update();
            let desired: Desired = gateway.store.desired(&name)?;
            let bytes = if told == Some(desired.revision) {
                match timeout_at(silent, changes.changed()).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(_)) => return None,
                    Err(_) => Bytes::from_static(b": alive\n\n"),
                }
            } else {
                told = Some(desired.revision);
                // JSON text holds no raw newline.
                let text = serde_json::to_string(&desired).ok()?;
                Bytes::from(format!("id: {}\nevent: desired\ndata: {text}\n\n", desired.revision))
            };
            gateway.store.seen(&name);
            return Some((Ok::<_, Infallible>(bytes), (gateway, name, changes, told)));
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body)).into_response()
}

/// `PUT /v1/sandboxes/{name}/desired`.
async fn want(
    State(gateway): State<Shared>,
    Extension(asker): Extension<Asker>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Input(want): Input<Want>,
) -> Answer {
    let by = gateway.guard.operator(&asker)?;
    let on = match headers.get(header::IF_MATCH).map(|value| value.to_str().unwrap_or_default()) {
        None => None,
        Some(tag) => {
            let number = tag.trim_matches('"').strip_prefix(&format!("{}.", gateway.store.id()));
            // A tag of another gateway is none of this one's.
            Some(number.and_then(|number| number.parse().ok()).unwrap_or(u64::MAX))
        }
    };
    let desired = gateway.store.want(&name, want, by, on).await?;
    tracing::info!(sandbox = name, revision = desired.revision, by, "wanted");
    Ok(with_tag(json(StatusCode::OK, &desired), &desired.tag()))
}

/// `PUT /v1/sandboxes/{name}/status`.
async fn status(
    State(gateway): State<Shared>,
    Extension(asker): Extension<Asker>,
    Path(name): Path<String>,
    Asked(origin): Asked<Origin>,
    Input(document): Input<serde_json::Value>,
) -> Answer {
    asker.is_sandbox(&name)?;
    let of = document.pointer("/metadata/name").and_then(serde_json::Value::as_str);
    if !is_id(&origin.store) || of != Some(&name) || !document.get("status").is_some_and(serde_json::Value::is_object) {
        return Err(Refused::new(Code::Invalid, "store must be 32 hex digits, the document a status of that sandbox"));
    }
    gateway.store.welcome(&name)?;
    let (reports, last) = gateway.store.status(&name, &origin.store, document).await?;
    Ok(json(StatusCode::OK, &Received { gateway: gateway.store.id().to_owned(), reports, events: Some(last) }))
}

/// `POST /v1/sandboxes/{name}/events`.
async fn happened(
    State(gateway): State<Shared>,
    Extension(asker): Extension<Asker>,
    Path(name): Path<String>,
    Input(batch): Input<Batch>,
) -> Answer {
    asker.is_sandbox(&name)?;
    if !is_id(&batch.store) || batch.api_version != API_VERSION || batch.events.len() > BATCH {
        let why = format!("apiVersion must be {API_VERSION}, store 32 hex digits; at most {BATCH} events");
        return Err(Refused::new(Code::Invalid, why));
    }
    gateway.store.welcome(&name)?;
    gateway.store.happened(&name, &batch.store, batch.events).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /v1/sandboxes/{name}/events`.
async fn events(State(gateway): State<Shared>, Extension(asker): Extension<Asker>, Path(name): Path<String>) -> Answer {
    gateway.guard.operator(&asker)?;
    let events = gateway.store.events(&name).ok_or_else(|| missing(&name))?;
    Ok(json(StatusCode::OK, &events))
}

/// `POST /v1/sandboxes/{name}/reports`.
async fn report(
    State(gateway): State<Shared>,
    Extension(asker): Extension<Asker>,
    Path(name): Path<String>,
    Input(report): Input<Report>,
) -> Answer {
    asker.is_sandbox(&name)?;
    if !is_id(&report.store) || report.api_version != API_VERSION {
        return Err(Refused::new(Code::Invalid, format!("apiVersion must be {API_VERSION}, store 32 hex digits")));
    }
    if report.update.is_none() && report.revision.is_none() {
        return Err(Refused::new(Code::Invalid, "a report has an update or a revision"));
    }
    gateway.store.welcome(&name)?;
    gateway.store.report(&name, report).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /v1/sandboxes`.
async fn list(State(gateway): State<Shared>, Extension(asker): Extension<Asker>) -> Answer {
    gateway.guard.operator(&asker)?;
    Ok(json(StatusCode::OK, &gateway.store.list()))
}

/// `GET /v1/sandboxes/{name}`.
async fn record(State(gateway): State<Shared>, Extension(asker): Extension<Asker>, Path(name): Path<String>) -> Answer {
    gateway.guard.operator(&asker)?;
    let record = gateway.store.record(&name).ok_or_else(|| missing(&name))?;
    Ok(json(StatusCode::OK, &record))
}

/// `GET /v1/sandboxes/{name}/reports`.
async fn reports(
    State(gateway): State<Shared>,
    Extension(asker): Extension<Asker>,
    Path(name): Path<String>,
) -> Answer {
    gateway.guard.operator(&asker)?;
    let reports = gateway.store.reports(&name).ok_or_else(|| missing(&name))?;
    Ok(json(StatusCode::OK, &reports))
}

/// `GET /v1/sandboxes/{name}/revisions/{revision}`.
async fn revision(
    State(gateway): State<Shared>,
    Extension(asker): Extension<Asker>,
    Path((name, revision)): Path<(String, String)>,
    Asked(waiting): Asked<Waiting>,
    headers: HeaderMap,
) -> Answer {
    gateway.guard.operator(&asker)?;
    let revision = revision.parse().map_err(|_| Refused::new(Code::Invalid, "a revision is a number"))?;
    let changes = gateway.store.changes(&name).ok_or_else(|| missing(&name))?;
    let look = || {
        let view = gateway.store.revision(&name, revision)?;
        // When it was seen last is no change.
        let of = molt_core::gateway::RevisionView { seen: None, ..view.clone() };
        let tag = super::auth::hash(&serde_json::to_string(&of).unwrap_or_default());
        Some((view, format!("\"{tag}\"")))
    };
    newer(&headers, waiting.wait, changes, look, &name).await
}
