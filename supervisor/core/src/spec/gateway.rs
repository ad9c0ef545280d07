//! Who says from outside what this sandbox is to run: `gateway`.
//!
//! In: fields of the spec. Out: the same, with defaults. Must not: read the files it names, or make a connection.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;

/// A gateway that Molt calls; it never calls Molt. All paths are the supervisor's own, read anew when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Gateway {
    /// `https://HOST[:PORT][/PATH]`.
    pub url: String,
    /// PEM certificates of the authorities that may vouch for the gateway, and no others. Default: the built-in roots.
    #[serde(default)]
    pub ca: Option<String>,
    /// PEM certificate, with its chain, that names this sandbox. Default: none.
    #[serde(default)]
    pub certificate: Option<String>,
    /// Its private key, PEM.
    #[serde(default)]
    pub key: Option<String>,
    /// A bearer token. Default: none.
    #[serde(default)]
    pub token_file: Option<String>,
    /// How changes are heard of. Default: poll.
    #[serde(default)]
    pub listen: Hearing,
    /// How long one question may stay open. Default: 60s.
    #[serde(default = "Gateway::wait")]
    pub wait: Span,
    /// The longest pause before a gateway that does not answer is asked again, and before an update that failed for a
    /// passing reason is. Pauses begin at a sixty-fourth of it and double. Default: 1m.
    #[serde(default = "Gateway::retry")]
    pub retry: Span,
    /// Let the gateway ask for a policy wider than the one in force. Default: false.
    #[serde(default)]
    pub allow_wider: bool,
}

/// How changes are heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Hearing {
    /// Questions that stay open until there is something new.
    #[default]
    Poll,
    /// One answer that goes on (server-sent events).
    Stream,
}

impl Gateway {
    fn wait() -> Span {
        Span::from_secs(60)
    }

    fn retry() -> Span {
        Span::from_secs(60)
    }

    /// The files it names, with the paths of their fields.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let named = [
            ("spec.gateway.ca", &self.ca),
            ("spec.gateway.certificate", &self.certificate),
            ("spec.gateway.key", &self.key),
            ("spec.gateway.tokenFile", &self.token_file),
        ];
        named.into_iter().filter_map(|(at, path)| Some((at, path.as_deref()?)))
    }

    /// Why a gateway cannot be at `url`; none where it can, as far as its text says.
    pub fn url_fault(&self) -> Option<&'static str> {
        url_fault(&self.url)
    }

    /// Faults of single fields and of what belongs together: the path of the field, and why.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if let Some(why) = self.url_fault() {
            faults.push(("spec.gateway.url", why.to_owned()));
        }
        match (&self.certificate, &self.key, &self.token_file) {
            (Some(_), None, _) => faults.push(("spec.gateway.key", "a certificate needs its key".to_owned())),
            (None, Some(_), _) => {
                faults.push(("spec.gateway.certificate", "a key needs its certificate".to_owned()));
            }
            (None, None, None) => {
                faults.push(("spec.gateway", "needs a certificate and its key, or a tokenFile".to_owned()));
            }
            _ => {}
        }
        let within = |span: Span, low, high| (low..=high).contains(&span.as_millis());
        if !within(self.wait, 1000, 600_000) {
            faults.push(("spec.gateway.wait", "must be from 1s to 10m".to_owned()));
        }
        if !within(self.retry, 1000, 3_600_000) {
            faults.push(("spec.gateway.retry", "must be from 1s to 1h".to_owned()));
        }
        faults
    }
}

/// Why `url` is not where a gateway can be; none where it is.
fn url_fault(url: &str) -> Option<&'static str> {
    let Some(rest) = url.strip_prefix("https://") else { return Some("must begin with https://") };
    let authority = rest.split('/').next().unwrap_or_default();
    // The colons of an IPv6 address are in brackets.
    let port = authority.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    let host = port.map_or(authority, |(host, _)| host);
    if url.len() > 1024 || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("must have at most 1024 plain characters");
    }
    if host.is_empty() {
        return Some("must name a host");
    }
    if rest.contains(['@', '?', '#', '\\']) {
        return Some("must be https://HOST[:PORT][/PATH], without a user, a query or a fragment");
    }
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse().is_ok_and(|port: u16| port > 0);
    match port {
        Some((_, port)) if !is_port(port) => Some("must have a port from 1 to 65535, or none"),
        _ => None,
    }
}
