//! The policy document, field for field as OpenShell writes it.
//!
//! In: nothing. Out: types whose serde form is the YAML form. Must not: give a meaning to a field; `lower` and
//! `explain` do that. Fields that are not given are not written either, so that a field added later changes no digest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::validate::{MAX_PATH_BYTES, MAX_PATHS};

/// A sandbox policy, version 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Version of the form; 1.
    #[schemars(extend("const" = 1))]
    pub version: u32,
    /// Which files. Default: the working directory, for reading and writing, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem_policy: Option<Filesystem>,
    /// How strict Landlock is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<LandlockSection>,
    /// Who the workload is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Which network endpoints, by a key of the author's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub network_policies: BTreeMap<String, NetworkRule>,
    /// What the egress proxy does with requests, by a key of the author's own; at most 10.
    #[schemars(extend("maxProperties" = crate::network::MAX_MIDDLEWARES))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub network_middlewares: BTreeMap<String, crate::network::Middleware>,
}

/// Absolute paths, each for everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Filesystem {
    /// Add the working directory to `read_write`. Default: false where the section is written, true where it is not.
    #[serde(skip_serializing_if = "is_default")]
    pub include_workdir: bool,
    /// May be read and executed.
    #[schemars(length(max = MAX_PATHS), inner(length(max = MAX_PATH_BYTES), regex(pattern = "^/")))]
    #[serde(skip_serializing_if = "is_default")]
    pub read_only: Vec<String>,
    /// May be changed too.
    #[schemars(length(max = MAX_PATHS), inner(length(max = MAX_PATH_BYTES), regex(pattern = "^/")))]
    #[serde(skip_serializing_if = "is_default")]
    pub read_write: Vec<String>,
}

/// How strict Landlock is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LandlockSection {
    /// Default, when left out: Landlock ABI 3 is required, paths that the image does not have are skipped.
    #[serde(skip_serializing_if = "is_default")]
    pub compatibility: Option<Compatibility>,
}

/// What happens where the kernel or the image does not have what the policy names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compatibility {
    /// What there is, is enforced; even nothing. Shows as degraded below Landlock ABI 3.
    BestEffort,
    /// Landlock ABI 3, and every path and right of the policy, or nothing runs.
    HardRequirement,
}

/// Who the workload is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// `sandbox`, or a number from 1 to 4294967294 in quotes. Default: decided by the spec and the image.
    #[schemars(regex(pattern = "^(sandbox|[1-9][0-9]{0,9})?$"))]
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_user: String,
    /// The same for the group.
    #[schemars(regex(pattern = "^(sandbox|[1-9][0-9]{0,9})?$"))]
    #[serde(skip_serializing_if = "is_default")]
    pub run_as_group: String,
}

/// Programs and the endpoints they may reach.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkRule {
    /// For people. Default: the key.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Where to.
    #[serde(skip_serializing_if = "is_default")]
    pub endpoints: Vec<Endpoint>,
    /// Which programs. Default: none.
    #[serde(skip_serializing_if = "is_default")]
    pub binaries: Vec<Binary>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of a schema that is not ours")]
pub struct Endpoint {
    /// Host name; `*` stands for a whole label, `**` for the first ones.
    #[serde(skip_serializing_if = "is_default")]
    pub host: String,
    /// Path of requests this endpoint is about.
    #[serde(skip_serializing_if = "is_default")]
    pub path: String,
    /// One port. `ports` goes before it.
    #[schemars(extend("exclusiveMinimum" = 0))]
    #[serde(skip_serializing_if = "is_default")]
    pub port: Option<u16>,
    /// Several ports.
    #[schemars(extend("not" = {"contains": {"const": 0}}))]
    #[serde(skip_serializing_if = "is_default")]
    pub ports: Vec<u16>,
    /// What is spoken. Default: not looked into.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: Option<Protocol>,
    /// Whether TLS is opened.
    #[serde(skip_serializing_if = "is_default")]
    pub tls: Option<Tls>,
    /// Whether a request against the rules is stopped. Default: audit.
    #[serde(skip_serializing_if = "is_default")]
    pub enforcement: Option<Enforcement>,
    /// A ready-made set of rules; not together with `rules`.
    #[serde(skip_serializing_if = "is_default")]
    pub access: Option<AccessPreset>,
    /// Requests that pass.
    #[serde(skip_serializing_if = "is_default")]
    pub rules: Vec<Rule>,
    /// Requests that do not, whatever `rules` say.
    #[serde(skip_serializing_if = "is_default")]
    pub deny_rules: Vec<Matching>,
    /// Addresses the host may resolve to, as CIDR.
    #[serde(skip_serializing_if = "is_default")]
    pub allowed_ips: Vec<String>,
    /// Keep `%2F` in paths. Default: false.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_encoded_slash: bool,
    /// Put credentials into WebSocket messages. Default: false.
    #[serde(skip_serializing_if = "is_default")]
    pub websocket_credential_rewrite: bool,
    /// Put credentials into request bodies. Default: false.
    #[serde(skip_serializing_if = "is_default")]
    pub request_body_credential_rewrite: bool,
    /// Take credentials on traffic that cannot be looked into. Default: false.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_uninspected_credentials: bool,
    /// GraphQL queries by hash.
    #[serde(skip_serializing_if = "is_default")]
    pub persisted_queries: Option<PersistedQueries>,
    /// The registered ones, by hash.
    #[serde(skip_serializing_if = "is_default")]
    pub graphql_persisted_queries: BTreeMap<String, GraphqlOperation>,
    /// Longest GraphQL body, bytes. Default: 65536.
    #[serde(skip_serializing_if = "is_default")]
    pub graphql_max_body_bytes: Option<u32>,
    /// Sign requests for a cloud API.
    #[serde(skip_serializing_if = "is_default")]
    pub credential_signing: Option<CredentialSigning>,
    /// Service name of the signature.
    #[serde(skip_serializing_if = "is_default")]
    pub signing_service: String,
    /// Region of the signature.
    #[serde(skip_serializing_if = "is_default")]
    pub signing_region: String,
    /// Which provider's credential.
    #[serde(skip_serializing_if = "is_default")]
    pub credential_binding: Option<CredentialBinding>,
    /// Settings of `protocol: json-rpc`.
    #[serde(skip_serializing_if = "is_default")]
    pub json_rpc: Option<JsonRpc>,
    /// Settings of `protocol: mcp`.
    #[serde(skip_serializing_if = "is_default")]
    pub mcp: Option<Mcp>,
}

impl Endpoint {
    /// All its ports.
    pub fn all_ports(&self) -> Vec<u16> {
        if self.ports.is_empty() { self.port.into_iter().collect() } else { self.ports.clone() }
    }
}

/// What an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// The empty text: not looked into.
    #[serde(rename = "")]
    Unspecified,
    /// Any stream.
    Tcp,
    /// HTTP.
    Rest,
    /// WebSocket.
    Websocket,
    /// GraphQL over HTTP.
    Graphql,
    /// SQL.
    Sql,
    /// JSON-RPC over HTTP.
    JsonRpc,
    /// Model Context Protocol.
    Mcp,
}

/// Whether TLS is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// Never opened.
    Skip,
    /// The default; an old word for it.
    Terminate,
    /// An old word for `skip`.
    Passthrough,
}

/// Whether a request against the rules is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// Stopped.
    Enforce,
    /// Only written down.
    Audit,
}

/// A ready-made set of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessPreset {
    /// Requests that change nothing.
    ReadOnly,
    /// All but the administrative.
    ReadWrite,
    /// All.
    Full,
}

/// GraphQL queries by hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PersistedQueries {
    /// Not taken.
    Deny,
    /// Taken where registered.
    AllowRegistered,
}

/// How a request is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CredentialSigning {
    /// Signature version 4, the body where it is known.
    #[serde(rename = "sigv4")]
    Sigv4,
    /// With the body.
    #[serde(rename = "sigv4:body")]
    Sigv4Body,
    /// Without the body.
    #[serde(rename = "sigv4:no_body")]
    Sigv4NoBody,
}

/// A request that passes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What it looks like.
    pub allow: Matching,
}

/// What a request looks like; every field that is given must match.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Matching {
    /// HTTP or JSON-RPC method.
    #[serde(skip_serializing_if = "is_default")]
    pub method: String,
    /// Path, a glob.
    #[serde(skip_serializing_if = "is_default")]
    pub path: String,
    /// SQL command.
    #[serde(skip_serializing_if = "is_default")]
    pub command: String,
    /// By name of a query parameter: a glob, or `{any: [glob…]}`.
    #[serde(skip_serializing_if = "is_default")]
    pub query: BTreeMap<String, Value>,
    /// GraphQL operation type.
    #[serde(skip_serializing_if = "is_default")]
    pub operation_type: String,
    /// GraphQL operation name.
    #[serde(skip_serializing_if = "is_default")]
    pub operation_name: String,
    /// GraphQL root fields.
    #[serde(skip_serializing_if = "is_default")]
    pub fields: Vec<String>,
    /// MCP tool: a glob, or `{any: [glob…]}`.
    #[serde(skip_serializing_if = "is_default")]
    pub tool: Option<Value>,
    /// By name of a parameter: a glob, `{any: [glob…]}`, or a mapping of the same.
    #[serde(skip_serializing_if = "is_default")]
    pub params: BTreeMap<String, Value>,
}

/// A registered GraphQL query.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GraphqlOperation {
    /// `query`, `mutation` or `subscription`.
    #[serde(skip_serializing_if = "is_default")]
    pub operation_type: String,
    /// Its name.
    #[serde(skip_serializing_if = "is_default")]
    pub operation_name: String,
    /// Its root fields.
    #[serde(skip_serializing_if = "is_default")]
    pub fields: Vec<String>,
}

/// Which provider's credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialBinding {
    /// Its name.
    pub provider: String,
}

/// Settings of `protocol: json-rpc`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonRpc {
    /// Longest body, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub max_body_bytes: Option<u32>,
}

/// Settings of `protocol: mcp`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Mcp {
    /// Longest body, bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub max_body_bytes: Option<u32>,
    /// Take only tool names of the specification's form.
    #[serde(skip_serializing_if = "is_default")]
    pub strict_tool_names: Option<bool>,
    /// Versions of the protocol that are taken, as dates. Default: every known one.
    #[serde(skip_serializing_if = "is_default")]
    pub versions: Vec<String>,
    /// Take every method of the specification.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_all_known_mcp_methods: Option<bool>,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Binary {
    /// Its path, a glob.
    #[schemars(length(min = 1))]
    pub path: String,
    /// Without meaning; kept so that old documents are read.
    #[serde(default, skip_serializing)]
    pub harness: bool,
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
