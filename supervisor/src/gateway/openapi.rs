//! `GET /v1/openapi.json` of a gateway: the protocol as an OpenAPI 3.1 document, from the same types that are served.
//!
//! In: the table of operations below. Out: the document, kept in `docs/gateway-openapi.json` too. Must not: describe by hand
//! what a type says.

use axum::{http::StatusCode, response::Response};
use molt_core::{
    gateway::{Batch, Desired, Received, Report, RevisionView, SandboxRecord, SandboxView, Want},
    wire::{Document, Event},
};
use serde_json::Value;

use crate::api::{
    answer,
    openapi::{Operation, Parameter, describe, many, one},
};

const NAME: Parameter =
    ("path", "name", r#"{"type": "string", "pattern": "^[a-z0-9][a-z0-9.-]{0,199}$"}"#, "Name of a sandbox.");
const REVISION: Parameter = ("path", "revision", r#"{"type": "integer", "minimum": 1}"#, "Number of a revision.");
const WAIT: Parameter =
    ("query", "wait", r#"{"type": "integer", "minimum": 0}"#, "Seconds to wait for something new; at most 600 are.");
const KNOWN: Parameter = ("header", "If-None-Match", r#"{"type": "string"}"#, "The ETag of a document that is known.");
const STORE: Parameter =
    ("query", "store", r#"{"type": "string", "pattern": "^[0-9a-f]{32}$"}"#, "Names the sandbox's store.");

const OPERATIONS: &[Operation] = &[
    Operation::new("get", "/v1/sandboxes", "listSandboxes", "Operator: every sandbox in short.")
        .gives(many::<SandboxView>, "Sandboxes."),
    Operation::new("get", "/v1/sandboxes/{name}", "getSandbox", "Operator: what is wanted of a sandbox, and what is.")
        .with(&[NAME])
        .gives(one::<SandboxRecord>, "The sandbox."),
    Operation::new(
        "get",
        "/v1/sandboxes/{name}/desired",
        "getDesired",
        "Sandbox: what is wanted of it; with `Accept: text/event-stream` each change, as it comes.",
    )
    .with(&[NAME, WAIT, KNOWN])
    .gives(one::<Desired>, "The newest, with an ETag.")
    .also(&[(304, "It is the one that is known.", None)]),
    Operation::new("put", "/v1/sandboxes/{name}/desired", "setDesired", "Operator: want something of a sandbox.")
        .with(&[NAME, ("header", "If-Match", r#"{"type": "string"}"#, "The ETag of the newest that is known.")])
        .needs(one::<Want>)
        .gives(one::<Desired>, "Taken, with its revision."),
    Operation::new("put", "/v1/sandboxes/{name}/status", "putStatus", "Sandbox: what is.")
        .with(&[NAME, STORE])
        .needs(one::<Document>)
        .gives(one::<Received>, "Taken; these reports are here."),
    Operation::new("post", "/v1/sandboxes/{name}/reports", "postReport", "Sandbox: how an update ended.")
        .with(&[NAME])
        .needs(one::<Report>),
    Operation::new("get", "/v1/sandboxes/{name}/reports", "listReports", "Operator: reports, as they came.")
        .with(&[NAME])
        .gives(many::<Report>, "Reports."),
    Operation::new("post", "/v1/sandboxes/{name}/events", "postEvents", "Sandbox: what happened.")
        .with(&[NAME])
        .needs(one::<Batch>),
    Operation::new("get", "/v1/sandboxes/{name}/events", "listEvents", "Operator: the last events, as they came.")
        .with(&[NAME])
        .gives(many::<Event>, "Events."),
    Operation::new(
        "get",
        "/v1/sandboxes/{name}/revisions/{revision}",
        "getRevision",
        "Operator: one thing that was wanted, and what became of it.",
    )
    .with(&[NAME, REVISION, WAIT, KNOWN])
    .gives(one::<RevisionView>, "The revision, with an ETag.")
    .also(&[(304, "It is as known.", None)]),
    Operation::new("get", "/v1/openapi.json", "openapi", "This document.").gives(one::<Value>, "OpenAPI 3.1."),
];

/// The document.
pub(crate) fn document() -> Value {
    let summary = "What a gateway and sandboxes say to each other: HTTP/1.1 over TLS 1.3, dialled by the sandbox.";
    describe(OPERATIONS, "Molt gateway", summary, ("https://localhost:8443", "molt gateway serve"))
}

/// `GET /v1/openapi.json`.
pub(super) async fn openapi() -> Response {
    answer::json(StatusCode::OK, &document())
}
