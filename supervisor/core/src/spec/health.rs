//! When a generation counts as started, ready and alive.
//!
//! In: the `health` section. Out: probes that name exactly one check each. Must not: run one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ExecAction, Span, document::Node};

/// Probes and the time a new generation is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Health {
    /// Must succeed before the others are asked. Default: none.
    pub startup: Option<Probe>,
    /// The program serves. Default: none; then it is ready as soon as it runs.
    pub readiness: Option<Probe>,
    /// The program is not stuck. Failing during a trial rolls back; after it, restarts the same generation.
    pub liveness: Option<Probe>,
    /// How long a new generation must stay ready and alive before it is confirmed. `0s`: one success is enough.
    /// Default: 10s.
    pub monitor: Span,
    /// How long a new generation has to become ready for the first time. Default: 60s.
    pub startup_deadline: Span,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            startup: None,
            readiness: None,
            liveness: None,
            monitor: Span::from_secs(10),
            startup_deadline: Span::from_secs(60),
        }
    }
}

/// How long an attempt may take where nobody said.
pub(super) const TIMEOUT: Span = Span::from_secs(2);

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ProbeFields", into = "ProbeFields")]
pub struct Probe {
    /// What is asked.
    pub action: Action,
    /// Wait after the start before the first attempt. Default: 0s.
    pub initial_delay: Span,
    /// From one attempt to the next, at least 100ms. Default: 2s.
    pub period: Span,
    /// An attempt that takes longer has failed. Default: 2s.
    pub timeout: Span,
    /// Successes in a row until it counts as successful; 1 for startup and liveness. Default: 1.
    pub success_threshold: u32,
    /// Failures in a row until it counts as failed. Default: 3.
    pub failure_threshold: u32,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Exit status 0 of a program run inside the generation.
    Exec(ExecAction),
    /// A status from 200 to 399.
    HttpGet(HttpGet),
    /// A connection that is accepted.
    TcpSocket(TcpSocket),
    /// `READY=1` on the notify socket; for liveness, `WATCHDOG=1` at least once a period.
    Notify,
}

/// An HTTP/1.1 GET without TLS, sent by the supervisor from the container's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpGet {
    /// Path and query. Default: `/`.
    #[serde(default = "slash")]
    pub path: String,
    /// Port.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// `localhost` or an address; no name is looked up. Default: `127.0.0.1`.
    #[serde(default = "loopback")]
    pub host: String,
}

/// A TCP connection, opened by the supervisor from the container's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TcpSocket {
    /// Port.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// `localhost` or an address; no name is looked up. Default: `127.0.0.1`.
    #[serde(default = "loopback")]
    pub host: String,
}

fn slash() -> String {
    "/".to_owned()
}

fn loopback() -> String {
    "127.0.0.1".to_owned()
}

/// `notify: {}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Notify {}

/// A probe as it is written: exactly one of `exec`, `httpGet`, `tcpSocket`, `notify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "Probe", extend("oneOf" = [
    {"required": ["exec"]}, {"required": ["httpGet"]}, {"required": ["tcpSocket"]}, {"required": ["notify"]}
]))]
pub(super) struct ProbeFields {
    /// Exit status 0 of a program run inside the generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    exec: Option<ExecAction>,
    /// A status from 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    http_get: Option<HttpGet>,
    /// A connection that is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp_socket: Option<TcpSocket>,
    /// `READY=1` on the notify socket; for liveness, `WATCHDOG=1` at least once a period.
    #[serde(skip_serializing_if = "Option::is_none")]
    notify: Option<Notify>,
    /// Wait after the start before the first attempt.
    initial_delay: Span,
    /// From one attempt to the next, at least 100ms.
    period: Span,
    /// An attempt that takes longer has failed.
    timeout: Span,
    /// Successes in a row until it counts as successful; 1 for startup and liveness.
    #[schemars(range(min = 1, max = 1000))]
    success_threshold: u32,
    /// Failures in a row until it counts as failed.
    #[schemars(range(min = 1, max = 1000))]
    failure_threshold: u32,
}

impl Default for ProbeFields {
    fn default() -> Self {
        Self {
            exec: None,
            http_get: None,
            tcp_socket: None,
            notify: None,
            initial_delay: Span::from_millis(0),
            period: Span::from_secs(2),
            timeout: TIMEOUT,
            success_threshold: 1,
            failure_threshold: 3,
        }
    }
}

const ONE_OF: &str = "takes exactly one of exec, httpGet, tcpSocket, notify";

/// The check of the schema name `Probe`.
pub(super) fn one_action(node: &Node) -> Result<(), String> {
    let count = ["exec", "httpGet", "tcpSocket", "notify"].iter().filter(|key| node.get(key).is_some()).count();
    if count == 1 { Ok(()) } else { Err(format!("{ONE_OF}; found {count}")) }
}

impl TryFrom<ProbeFields> for Probe {
    type Error = &'static str;

    fn try_from(fields: ProbeFields) -> Result<Self, Self::Error> {
        let action = match (fields.exec, fields.http_get, fields.tcp_socket, fields.notify) {
            (Some(exec), None, None, None) => Action::Exec(exec),
            (None, Some(get), None, None) => Action::HttpGet(get),
            (None, None, Some(socket), None) => Action::TcpSocket(socket),
            (None, None, None, Some(Notify {})) => Action::Notify,
            _ => return Err(ONE_OF),
        };
        Ok(Self {
            action,
            initial_delay: fields.initial_delay,
            period: fields.period,
            timeout: fields.timeout,
            success_threshold: fields.success_threshold,
            failure_threshold: fields.failure_threshold,
        })
    }
}

impl From<Probe> for ProbeFields {
    fn from(probe: Probe) -> Self {
        let mut fields = Self {
            initial_delay: probe.initial_delay,
            period: probe.period,
            timeout: probe.timeout,
            success_threshold: probe.success_threshold,
            failure_threshold: probe.failure_threshold,
            ..Self::default()
        };
        match probe.action {
            Action::Exec(exec) => fields.exec = Some(exec),
            Action::HttpGet(get) => fields.http_get = Some(get),
            Action::TcpSocket(socket) => fields.tcp_socket = Some(socket),
            Action::Notify => fields.notify = Some(Notify {}),
        }
        fields
    }
}

impl JsonSchema for Probe {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        ProbeFields::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        ProbeFields::schema_id()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        ProbeFields::json_schema(generator)
    }
}
