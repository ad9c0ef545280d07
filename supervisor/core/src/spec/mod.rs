//! The sandbox spec: one document that says everything about a sandbox.
//!
//! In: YAML or JSON text. Out: [`Spec`] with every default filled in, or all faults with their places. Must not: read
//! a file, look a name up, or take a field that this version would ignore.

mod check;
pub mod document;
mod gateway;
mod health;
mod orders;
mod quantity;
mod settings;
pub mod shape;
#[cfg(test)]
mod tests;
mod user;
mod violation;
mod workload;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::document::{Check, Content, Node, Places, Rules};
pub use self::{
    check::path_fault,
    gateway::{Gateway, Hearing},
    health::{Action, Health, HttpGet, Probe, TcpSocket},
    orders::{Algorithm, OrderKey, Orders},
    quantity::{Bytes, Span, TextError},
    settings::{
        Allow, Annotations, Api, Confirm, Listen, Own, OwnUpdate, PolicySource, Registries, Role, Update, Watch,
    },
    user::{Principal, Signal, UserRef},
    violation::{Violation, Violations},
    workload::{EnvVar, ExecAction, Hook, Hooks, Limits, Mount, Seccomp, Workload},
};
use crate::ids::ImageRef;

/// Longest document, in bytes: 1 MiB.
pub const MAX_BYTES: usize = 1 << 20;

/// Name of a sandbox whose document has none.
pub const DEFAULT_NAME: &str = "sandbox";

/// What a sandbox is. `Spec::default()` is what `molt init -- CMD` runs with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    /// `metadata.name` of the document; not part of the `spec` section. Default: `sandbox`.
    #[serde(skip)]
    pub name: String,
    /// The image. Default: none; then generation 0, the container's own root, runs.
    pub image: Option<ImageRef>,
    /// The policy, or `unconfined`. Default: the shipped restrictive one and the state paths.
    pub policy: Option<PolicySource>,
    /// A file with the policy, in place of `policy`; relative to the spec's own folder.
    pub policy_file: Option<String>,
    /// Folders kept across every generation. Default: `/sandbox/state`.
    pub state: Vec<String>,
    /// Exceptions to which of the container's mounts every generation sees.
    pub mounts: Vec<Mount>,
    /// What runs.
    pub workload: Workload,
    /// When it counts as healthy.
    pub health: Health,
    /// Programs run around an update.
    pub hooks: Hooks,
    /// How updates are done.
    pub update: Update,
    /// Where images come from.
    pub registries: Registries,
    /// The operator's socket.
    pub api: Api,
    /// Who may send signed orders.
    pub orders: Orders,
    /// What has the spec read again.
    pub watch: Watch,
    /// Who is asked what is wanted, and told what is. Default: nobody.
    pub gateway: Option<Gateway>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            image: None,
            policy: None,
            policy_file: None,
            state: vec!["/sandbox/state".to_owned()],
            mounts: Vec::new(),
            workload: Workload::default(),
            health: Health::default(),
            hooks: Hooks::default(),
            update: Update::default(),
            registries: Registries::default(),
            api: Api::default(),
            orders: Orders::default(),
            watch: Watch::default(),
            gateway: None,
        }
    }
}

impl Spec {
    /// Files and folders the spec names for the supervisor itself, as written; no generation may see a mount that holds
    /// one. `policyFile` may be relative to the spec's own folder.
    pub fn claimed_paths(&self) -> Vec<&str> {
        let own = [&self.registries.credentials, &self.registries.certificates, &self.policy_file];
        let own = own.into_iter().filter_map(|path| path.as_deref());
        let annotations = self.watch.annotations.iter().map(|annotations| annotations.file.as_str());
        let keys = self.orders.keys.iter().filter_map(|key| key.file.as_deref());
        let listen = self.api.listen.iter();
        let listen = listen.flat_map(|tls| [tls.certificate.as_str(), tls.key.as_str(), tls.client_ca.as_str()]);
        let gateway = self.gateway.iter().flat_map(Gateway::files).map(|(_, path)| path);
        own.chain(annotations).chain(keys).chain(listen).chain(gateway).collect()
    }

    /// The faults of a spec that was put together or changed in memory; without places.
    pub fn check(&self) -> Result<(), Violations> {
        check::all(self, &Places::default()).or_ok(())
    }

    /// The whole document, as `molt spec show` prints it and [`parse`] reads it.
    pub fn to_document(&self) -> serde_json::Value {
        let spec = serde_json::to_value(self).unwrap_or_default();
        serde_json::json!({
            "apiVersion": "molt.dev/v1alpha1",
            "kind": "Sandbox",
            "metadata": {"name": self.name},
            "spec": spec,
        })
    }
}

/// The document around a [`Spec`].
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "Sandbox")]
struct Document {
    /// Version of the document's form.
    api_version: ApiVersion,
    /// What the document describes.
    kind: Kind,
    /// What it is called.
    #[serde(default)]
    metadata: Metadata,
    /// What it is.
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
enum ApiVersion {
    #[serde(rename = "molt.dev/v1alpha1")]
    V1Alpha1,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
enum Kind {
    Sandbox,
}

/// What a sandbox is called.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Metadata {
    /// Lower-case letters, digits, `-` and `.`, at most 253. Default: `sandbox`.
    name: String,
}

impl Default for Metadata {
    fn default() -> Self {
        Self { name: DEFAULT_NAME.to_owned() }
    }
}

/// The check of a schema name whose text form is `T`.
fn is_text<T: std::str::FromStr<Err: std::fmt::Display>>(node: &Node) -> Result<(), String> {
    node.text().unwrap_or_default().parse::<T>().map(drop).map_err(|error| error.to_string())
}

const CHECKS: &[(&str, Check)] = &[
    ("Bytes", is_text::<Bytes>),
    ("ImageRef", is_text::<ImageRef>),
    ("PolicySource", settings::policy_form),
    ("Probe", health::one_action),
    ("Signal", is_text::<Signal>),
    ("Span", is_text::<Span>),
    ("UserRef", is_text::<UserRef>),
];

const RULES: Rules = Rules {
    what: "sandbox spec",
    max_bytes: MAX_BYTES,
    checks: CHECKS,
    // What would be ignored must be refused: a person who writes `verify` believes that images are verified.
    refused: &[
        ("spec.verify", "not supported by this version: signatures are not checked"),
        ("spec.sockets", "not supported by this version"),
    ],
    stand_in: &[],
};

/// Reads a sandbox document, at most 1 MiB of YAML or JSON.
pub fn parse(text: &str) -> Result<Spec, Violations> {
    parse_with(text, |_| Violations::default(), |_, _| Violations::default())
}

/// The same, and asks about what this crate cannot judge: `policy` about a policy that stands in the document (its faults
/// have paths in the policy), `more` about anything else. All faults come at once.
pub fn parse_with(
    text: &str,
    policy: impl FnOnce(&Node) -> Violations,
    more: impl FnOnce(&Spec, &Places) -> Violations,
) -> Result<Spec, Violations> {
    let named = |document: &Document| Spec { name: document.metadata.name.clone(), ..document.spec.clone() };
    let whole = document::parse(text, &RULES)?;
    let mut document = document::convert::<Document>(&whole, &RULES)?;
    let inline = whole.get("spec").and_then(|spec| spec.get("policy"));
    // Anything else is the word `unconfined`, or no policy at all, which has been said.
    if let Some(node) = inline.filter(|node| matches!(node.content, Content::Map(_))) {
        document.found.0.extend(policy(node).inside("spec.policy", node));
    }
    let meaning = |document: &Document, places: &Places| {
        let spec = named(document);
        let mut found = check::all(&spec, places);
        found.0.extend(more(&spec, places).0);
        found
    };
    document.and(meaning).map(|document| named(&document))
}

/// JSON Schema (2020-12) of the document.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Document).to_value()
}
