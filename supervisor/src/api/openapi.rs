//! `GET /v1/openapi.json`: the API as an OpenAPI 3.1 document, from the same types that are served.
//!
//! In: the table of operations below. Out: the document, kept in `docs/openapi.json` too. Must not: describe by hand what a
//! type says; a test holds the table to the router.

use std::sync::LazyLock;

use axum::response::Response;
use http::StatusCode;
use hyper::http;
use molt_core::wire::{
    Accepted, BadView, Collected, Difference, Document, Event, ExecOptions, ExecView, GenerationView, HistoryCheck,
    HoldView, OrderRequest, Ordered, PlanView, Problem, RollbackRequest, UpdateRequest, UpdateView,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{answer, change::HoldRequest, read::Health};
use crate::observe::output::Line;

/// Gives the schema of a type, and keeps it among the components.
pub(crate) type Shape = fn(&mut SchemaGenerator) -> Schema;

pub(crate) fn one<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}

pub(crate) fn many<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<Vec<T>>()
}

/// A parameter: where it is, its name, its schema as JSON, what it means.
pub(crate) type Parameter = (&'static str, &'static str, &'static str, &'static str);

const ID: Parameter = ("path", "id", r#"{"type": "string", "pattern": "^u[0-9]{1,19}$"}"#, "Id of an update.");
const NUMBER: Parameter =
    ("path", "number", r#"{"type": "integer", "minimum": 0, "maximum": 4294967295}"#, "Number of a generation.");
const FOLLOW: Parameter =
    ("query", "follow", r#"{"enum": ["0", "1", "true", "false"]}"#, "Whether to go on with what is to come.");
const AFTER: Parameter =
    ("query", "after", r#"{"type": "integer", "minimum": 0, "maximum": 9007199254740991}"#, "Begin after this number.");

const IF_MATCH: Parameter = (
    "header",
    "If-Match",
    r#"{"type": "string", "pattern": "^(\\*|\"[!#-~]*\")$"}"#,
    "The ETag of /v1/status: 412 if another request was taken since, or something else runs.",
);
const KEY: Parameter = (
    "header",
    "Idempotency-Key",
    r#"{"type": "string", "pattern": "^[!-~]{1,64}$"}"#,
    "The same key and the same request give the same update; another request 422.",
);

/// One operation.
pub(crate) struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
    /// Whether it must be there, and its shape.
    body: Option<(bool, Shape)>,
    status: u16,
    says: &'static str,
    media: &'static str,
    answer: Option<Shape>,
    /// Further answers.
    also: &'static [(u16, &'static str, Option<Shape>)],
}

impl Operation {
    pub(crate) const fn new(method: &'static str, path: &'static str, id: &'static str, summary: &'static str) -> Self {
        let (parameters, media) = (&[] as &[Parameter], "application/json");
        let (body, status, says, answer) = (None, 204, "Done.", None);
        Self { method, path, id, summary, parameters, body, status, says, media, answer, also: &[] }
    }

    pub(crate) const fn gives(mut self, answer: Shape, says: &'static str) -> Self {
        (self.status, self.answer, self.says) = (200, Some(answer), says);
        self
    }

    pub(crate) const fn takes(mut self, body: Shape) -> Self {
        self.body = Some((false, body));
        self
    }

    pub(crate) const fn needs(mut self, body: Shape) -> Self {
        self.body = Some((true, body));
        self
    }

    pub(crate) const fn also(mut self, also: &'static [(u16, &'static str, Option<Shape>)]) -> Self {
        self.also = also;
        self
    }

    pub(crate) const fn with(mut self, parameters: &'static [Parameter]) -> Self {
        self.parameters = parameters;
        self
    }

    pub(crate) const fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub(crate) const fn media(mut self, media: &'static str) -> Self {
        self.media = media;
        self
    }

    /// An answer that an update was taken.
    const fn accepted(self) -> Self {
        self.gives(one::<Accepted>, "Taken; the record of the update says how it ends.").status(202)
    }
}

/// Everything the operator socket answers.
const OPERATIONS: &[Operation] = &[
    Operation::new("get", "/v1/status", "getStatus", "What runs, and how it is.")
        .with(&[("header", "If-None-Match", r#"{"type": "string"}"#, "The ETag of a document that is known.")])
        .gives(one::<Document>, "The status document, with an ETag.")
        .also(&[(304, "The document is the one that is known.", None)]),
    Operation::new("get", "/v1/updates", "listUpdates", "The last 64 updates, oldest first.")
        .gives(many::<UpdateView>, "Updates."),
    Operation::new("post", "/v1/updates", "createUpdate", "Put the workload on a new image.")
        .with(&[
            ("query", "dryRun", r#"{"const": "All"}"#, "Only say what would be done: 200 and the plan."),
            IF_MATCH,
            KEY,
        ])
        .needs(one::<UpdateRequest>)
        .accepted()
        .also(&[(200, "The plan, for a dry run.", Some(one::<PlanView>))]),
    Operation::new("get", "/v1/updates/{id}", "getUpdate", "An update, under way or ended.")
        .with(&[ID])
        .gives(one::<UpdateView>, "The update."),
    Operation::new("post", "/v1/updates/{id}/cancel", "cancelUpdate", "Give up an update before its gate.")
        .with(&[
            ("path", "id", r#"{"type": "string", "pattern": "^(u[0-9]{1,19}|current)$"}"#, "Id, or `current`."),
            IF_MATCH,
        ])
        .accepted(),
    Operation::new("get", "/v1/execs", "listExecs", "The last 64 commands that were run unconfined, oldest first.")
        .gives(many::<ExecView>, "Commands."),
    Operation::new("post", "/v1/rollback", "rollback", "Go back to the previous generation, or to another one.")
        .with(&[IF_MATCH, KEY])
        .takes(one::<RollbackRequest>)
        .accepted(),
    Operation::new("post", "/v1/apply", "apply", "Start the generation that is staged.").with(&[IF_MATCH]).accepted(),
    Operation::new("post", "/v1/confirm", "confirm", "Make the trial permanent now.").with(&[IF_MATCH]).accepted(),
    Operation::new("post", "/v1/reject", "reject", "Give the trial up now: the old version comes back.")
        .with(&[IF_MATCH])
        .accepted(),
    Operation::new("put", "/v1/hold", "hold", "Hold updates back before they touch the workload.")
        .takes(one::<HoldRequest>)
        .gives(one::<HoldView>, "The hold."),
    Operation::new("delete", "/v1/hold", "release", "End the hold.").with(&[(
        "query",
        "owner",
        r#"{"type": "string", "pattern": "^[!-~]{1,64}$"}"#,
        "Only if it is this one's; 409 if it is another's.",
    )]),
    Operation::new("get", "/v1/generations", "listGenerations", "Generations in the store, oldest first.")
        .gives(many::<GenerationView>, "Generations."),
    Operation::new("get", "/v1/generations/{number}", "getGeneration", "A generation.")
        .with(&[NUMBER])
        .gives(one::<GenerationView>, "The generation."),
    Operation::new("get", "/v1/difference", "difference", "What is different between two generations.")
        .with(&[
            ("query", "from", r#"{"type": "integer", "minimum": 0, "maximum": 4294967295}"#, "Required: the one."),
            ("query", "to", r#"{"type": "integer", "minimum": 0, "maximum": 4294967295}"#, "Required: the other."),
        ])
        .gives(one::<Difference>, "The difference."),
    Operation::new("get", "/v1/bad", "listBad", "Digests that failed and are refused.")
        .gives(many::<BadView>, "Digests."),
    Operation::new("delete", "/v1/bad/{digest}", "forgetBad", "Forget that a digest failed.").with(&[(
        "path",
        "digest",
        r#"{"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}"#,
        "The image's digest.",
    )]),
    Operation::new("post", "/v1/gc", "collect", "Remove what no kept generation needs.")
        .gives(one::<Collected>, "What was removed."),
    Operation::new("post", "/v1/orders", "order", "Do what a signed order says.")
        .needs(one::<OrderRequest>)
        .gives(one::<Ordered>, "Taken; where it began an update, its record says how that ends.")
        .status(202),
    Operation::new("get", "/v1/history", "getHistory", "The newest lines of the history, oldest first.")
        .with(&[
            ("query", "kind", r#"{"type": "string", "pattern": "^[A-Za-z]+$"}"#, "Only lines of this kind."),
            AFTER,
            (
                "query",
                "limit",
                r#"{"type": "integer", "minimum": 0}"#,
                "At most so many; 1000 where absent, and at most.",
            ),
        ])
        .gives(many::<Value>, "Lines: updates, commands, or what `AuditView` describes; each with `seq` and `prev`."),
    Operation::new("get", "/v1/history/verify", "verifyHistory", "Whether the history is whole.")
        .gives(one::<HistoryCheck>, "What was found."),
    Operation::new("get", "/v1/events", "followEvents", "Events, as they come.")
        .with(&[
            FOLLOW,
            AFTER,
            ("header", "Last-Event-ID", r#"{"type": "string", "pattern": "^[0-9]+$"}"#, "As `after`."),
        ])
        .gives(one::<Event>, "Events; with `Accept: application/jsonl` one a line.")
        .media("text/event-stream"),
    Operation::new("get", "/v1/logs", "followLogs", "Lines of the workload's output.")
        .with(&[
            FOLLOW,
            AFTER,
            (
                "query",
                "tail",
                r#"{"type": "integer", "minimum": 0, "maximum": 9007199254740991}"#,
                "Only the last lines.",
            ),
        ])
        .gives(one::<Line>, "One line of output a line.")
        .media("application/jsonl"),
    Operation::new(
        "post",
        "/v1/exec",
        "exec",
        "Run something inside the workload's confinement, or beside it as root.",
    )
    .needs(one::<ExecOptions>)
    .gives(one::<()>, "The connection carries frames from here on (docs/API.md).")
    .status(101),
    Operation::new("get", "/livez", "live", "Whether the supervisor takes commands.")
        .gives(one::<Health>, "It does.")
        .also(&[(503, "It does not.", Some(one::<Health>))]),
    Operation::new("get", "/readyz", "ready", "Whether the workload is ready.")
        .gives(one::<Health>, "It is.")
        .also(&[(503, "It is not.", Some(one::<Health>))]),
    Operation::new("get", "/metrics", "metrics", "Figures, as OpenMetrics text.")
        .gives(one::<String>, "The text.")
        .media("application/openmetrics-text"),
    Operation::new("get", "/v1/openapi.json", "openapi", "This document.").gives(one::<Value>, "OpenAPI 3.1."),
];

fn content(media: &str, schema: Schema) -> Value {
    json!({media: {"schema": schema.to_value()}})
}

fn answers(of: &Operation, schemas: &mut SchemaGenerator) -> Map<String, Value> {
    let mut answers = Map::new();
    let mut add = |status: String, says: &str, content: Option<Value>| {
        let mut answer = Map::from_iter([("description".to_owned(), says.into())]);
        answer.extend(content.map(|content| ("content".to_owned(), content)));
        answers.insert(status, answer.into());
    };
    let main = of.answer.filter(|_| of.status != 101).map(|shape| content(of.media, shape(schemas)));
    add(of.status.to_string(), of.says, main);
    for (status, says, shape) in of.also {
        add(status.to_string(), says, shape.map(|shape| content("application/json", shape(schemas))));
    }
    let problem = content("application/problem+json", one::<Problem>(schemas));
    add("default".to_owned(), "A problem (RFC 9457).", Some(problem));
    answers
}

fn operation(of: &Operation, schemas: &mut SchemaGenerator) -> Value {
    let parameter = |(place, name, schema, text): &Parameter| {
        let schema: Value = serde_json::from_str(schema).unwrap_or_default();
        json!({"in": place, "name": name, "required": *place == "path" || text.starts_with("Required"), "schema": schema, "description": text})
    };
    let parameters: Vec<Value> = of.parameters.iter().map(parameter).collect();
    let mut entries = Map::from_iter([
        ("operationId".to_owned(), of.id.into()),
        ("summary".to_owned(), of.summary.into()),
        ("responses".to_owned(), answers(of, schemas).into()),
    ]);
    if !parameters.is_empty() {
        entries.insert("parameters".to_owned(), parameters.into());
    }
    if let Some((required, shape)) = of.body {
        let mut taken = content("application/json", shape(schemas));
        if let Some(forms) = taken.as_object_mut().filter(|_| of.id == "order") {
            let text = json!({"type": "string", "description": "The token: a compact JWS of at most 64 KiB.", "maxLength": 65536});
            forms.insert("application/jose".to_owned(), json!({"schema": text}));
        }
        let body = json!({"required": required, "content": taken});
        entries.insert("requestBody".to_owned(), body);
    }
    entries.into()
}

/// The document.
pub(crate) fn document() -> Value {
    let summary = "The operator's API of one sandbox: HTTP/1.1 over a Unix socket, for root only.";
    describe(OPERATIONS, "Molt", summary, ("http://localhost", "/run/molt/molt.sock"))
}

/// A document of these operations.
pub(crate) fn describe(operations: &[Operation], title: &str, summary: &str, server: (&str, &str)) -> Value {
    let mut schemas = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator();
    let mut paths = Map::new();
    for of in operations {
        let described = operation(of, &mut schemas);
        if let Some(methods) = paths.entry(of.path).or_insert_with(|| json!({})).as_object_mut() {
            methods.insert(of.method.to_owned(), described);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": "1",
            "summary": summary,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server.0, "description": server.1}],
        "paths": paths,
        "components": {"schemas": schemas.take_definitions(true)},
    })
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// `GET /v1/openapi.json`.
pub(super) async fn openapi() -> Response {
    answer::json(StatusCode::OK, &*DOCUMENT)
}
