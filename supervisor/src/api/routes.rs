//! The table of routes, and what holds for all of them: time limits, no browsers, problem documents for every refusal.
//!
//! In: the handle. Out: a router. Must not: hold handlers; each lives with its kind.

use std::time::Duration;

use axum::{
    Extension, Router,
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{delete, get, post, put},
};
use molt_core::{code::Code, spec::Role};

use super::{
    answer::Refused,
    change, exec, openapi, orders,
    peer::{Need, Peer},
    read, stream,
};
use crate::{command::Handle, store::audit::Audit};

const REQUEST_TIME: Duration = Duration::from_secs(30);

/// Everything the operator socket answers.
pub(super) fn router(handle: Handle) -> Router {
    let short = Router::new()
        .route("/livez", get(read::livez))
        .route("/readyz", get(read::readyz))
        .route("/metrics", get(read::metrics))
        .route("/v1/openapi.json", get(openapi::openapi))
        .route("/v1/status", get(read::status))
        .route("/v1/updates", get(read::updates).post(change::update))
        .route("/v1/updates/{id}", get(read::update))
        .route("/v1/updates/{id}/cancel", post(change::cancel))
        .route("/v1/execs", get(read::execs))
        .route("/v1/rollback", post(change::rollback))
        .route("/v1/apply", post(change::apply))
        .route("/v1/confirm", post(change::confirm))
        .route("/v1/reject", post(change::reject))
        .route("/v1/hold", put(change::hold).delete(change::release))
        .route("/v1/generations", get(read::generations))
        .route("/v1/generations/{number}", get(read::generation))
        .route("/v1/difference", get(read::difference))
        .route("/v1/bad", get(read::bad))
        .route("/v1/bad/{digest}", delete(change::forget))
        .route("/v1/gc", post(change::collect))
        .route("/v1/orders", post(orders::order))
        .route("/v1/history", get(orders::history))
        .route("/v1/history/verify", get(orders::verify))
        .route_layer(middleware::from_fn(in_time));
    let long = Router::new()
        .route("/v1/events", get(stream::events))
        .route("/v1/logs", get(stream::logs))
        .route("/v1/exec", post(exec::start));
    finish(short.merge(long).route_layer(middleware::from_fn(enforce)), handle)
}

/// What each route wants of whoever asks: the one table. What is not in it is the operator's.
fn need(method: &Method, path: &str) -> Need {
    match (method.as_str(), path) {
        (
            "GET" | "HEAD",
            "/livez" | "/readyz" | "/metrics" | "/v1/openapi.json" | "/v1/status" | "/v1/bad" | "/v1/difference"
            | "/v1/updates" | "/v1/updates/{id}" | "/v1/generations" | "/v1/generations/{number}",
        )
        | ("GET", "/v1/events")
        // What an order may is said by the key that signed it, whoever brings it.
        | ("POST", "/v1/orders") => Need::Role(Role::Read),
        (
            "POST",
            "/v1/updates" | "/v1/updates/{id}/cancel" | "/v1/rollback" | "/v1/apply" | "/v1/confirm" | "/v1/reject",
        )
        | ("PUT" | "DELETE", "/v1/hold") => Need::Role(Role::Update),
        _ => Need::Operator,
    }
}

/// Refuses what is not the peer's to ask for.
async fn enforce(Extension(peer): Extension<Peer>, path: MatchedPath, request: Request, next: Next) -> Response {
    if peer.may(need(request.method(), path.as_str())) {
        return next.run(request).await;
    }
    let why = format!("{} {} is not for {}", request.method(), path.as_str(), peer.by());
    Refused::with_status(StatusCode::FORBIDDEN, Code::Unauthorized, why).into_response()
}

/// What holds for every router: an answer for every path and method, and no browsers.
pub(super) fn finish(router: Router<Handle>, handle: Handle) -> Router {
    router
        .fallback(async || Refused::new(Code::NotFound, "there is no such path; docs/API.md lists them"))
        .method_not_allowed_fallback(async || {
            Refused::with_status(StatusCode::METHOD_NOT_ALLOWED, Code::Invalid, "the path does not take this method")
        })
        .layer(middleware::from_fn(no_browsers))
        .layer(middleware::from_fn_with_state(handle.audit.clone(), audited))
        .with_state(handle)
}

/// An answer within [`REQUEST_TIME`].
pub(super) async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refused::with_status(
            StatusCode::GATEWAY_TIMEOUT,
            Code::DeadlineExceeded,
            format!("no answer in {} s; what was asked for may still happen: see molt status", REQUEST_TIME.as_secs()),
        )
        .into_response(),
    }
}

/// A method that has a name of its own; any word could be one.
fn method(method: &Method) -> &str {
    match method {
        &(Method::GET | Method::HEAD | Method::PUT | Method::POST | Method::PATCH | Method::DELETE) => method.as_str(),
        _ => "another method",
    }
}

/// Requests that would have changed something and were refused before the dispatcher heard of them are in the history; it
/// sees to the others itself.
async fn audited(State(audit): State<Audit>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().cloned();
    let path = request.extensions().get::<MatchedPath>().map_or("another path", MatchedPath::as_str);
    let what = (!request.method().is_safe()).then(|| format!("{} {path}", method(request.method())));
    let response = next.run(request).await;
    if let (Some(what), Some(peer), Some(code)) = (what, peer, response.extensions().get::<Code>())
        && !matches!(code, Code::Busy | Code::OrderRefused)
    {
        audit.refused(&peer.by(), &what, code.as_str(), None);
    }
    response
}

/// A page that got hold of a proxy to this socket sends `Origin`; no client of ours does.
async fn no_browsers(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        return Refused::with_status(StatusCode::FORBIDDEN, Code::Unauthorized, "requests of web pages are not taken")
            .into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::openapi;

    /// Every operation is in the row of the role that it wants, and in no other one.
    #[test]
    fn the_page_says_who_may_ask_for_what() {
        let page = include_str!("../../../docs/API.md");
        let rows = [
            ("| `read` |", Need::Role(Role::Read)),
            ("| `update` |", Need::Role(Role::Update)),
            ("| the operator's alone |", Need::Operator),
        ];
        let rows = rows.map(|(begin, need)| (page.lines().find(|line| line.starts_with(begin)).unwrap(), need));
        let document = openapi::document();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys() {
                let method: Method = method.to_uppercase().parse().unwrap();
                let told = format!("`{method} {path}`");
                let found: Vec<Need> =
                    rows.iter().filter(|(row, _)| row.contains(&told)).map(|(_, need)| *need).collect();
                assert_eq!(found, [need(&method, path)], "{told}");
            }
        }
        let many: usize = rows.iter().map(|(row, _)| row.matches(" /").count()).sum();
        let all: usize =
            document["paths"].as_object().unwrap().values().map(|one| one.as_object().unwrap().len()).sum();
        assert_eq!(many, all, "the page has what is not served");
    }
}
