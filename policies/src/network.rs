//! The network half of a policy: middleware types, and the rules for endpoints.
//!
//! In: parsed network sections. Out: faults. Must not: resolve a name. Molt keeps and checks these sections; the
//! egress proxy acts on them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    schema::{Endpoint, Matching, Policy, Protocol, Tls, is_default},
    validate::Found,
};

/// Something the egress proxy does with requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Middleware {
    /// For people. Default: the key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub name: String,
    /// Which one.
    #[schemars(length(min = 1))]
    pub middleware: String,
    /// Lower goes first; each number once. Default: 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub order: i32,
    /// Its own settings.
    #[serde(default, skip_serializing_if = "is_default")]
    pub config: serde_json::Map<String, Value>,
    /// What happens to a request when it fails. Default: `fail_closed`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_error: Option<OnError>,
    /// Which hosts it is for.
    pub endpoints: Selector,
}

/// What happens to a request when a middleware fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It is stopped.
    FailClosed,
    /// It passes.
    FailOpen,
}

/// Host patterns; at most 32 together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Selector {
    /// These,
    #[schemars(length(max = MAX_PATTERNS))]
    #[serde(skip_serializing_if = "is_default")]
    pub include: Vec<String>,
    /// but not these.
    #[schemars(length(max = MAX_PATTERNS))]
    #[serde(skip_serializing_if = "is_default")]
    pub exclude: Vec<String>,
}

pub(crate) const MAX_MIDDLEWARES: usize = 10;
const MAX_PATTERNS: usize = 32;

pub(crate) fn check(policy: &Policy, found: &mut Found<'_>) {
    for (key, rule) in &policy.network_policies {
        let at = found.field("network_policies", key);
        for (index, endpoint) in rule.endpoints.iter().enumerate() {
            let at = format!("{at}.endpoints[{index}]");
            host(&at, endpoint, found);
            ports(&at, endpoint, found);
            requests(&at, endpoint, found);
            credentials(&at, endpoint, found);
        }
        for (index, binary) in rule.binaries.iter().enumerate() {
            if binary.path.is_empty() {
                found.add(&format!("{at}.binaries[{index}].path"), "must not be empty");
            }
        }
    }
    middlewares(policy, found);
}

fn host(at: &str, endpoint: &Endpoint, found: &mut Found<'_>) {
    let at = format!("{at}.host");
    let tcp = endpoint.protocol == Some(Protocol::Tcp);
    let host = endpoint.host.as_str();
    if host.is_empty() {
        if tcp {
            found.add(&at, "protocol tcp needs a host name");
        } else if endpoint.allowed_ips.is_empty() {
            found.add(&at, "is needed, unless allowed_ips says which addresses");
        }
        return;
    }
    if tcp && host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() {
        found.add(&at, format!("'{host}' is an address; protocol tcp needs a host name"));
        return;
    }
    let labels: Vec<&str> = host.split('.').collect();
    for (index, label) in labels.iter().enumerate() {
        if label.contains("**") && (*label != "**" || index != 0) {
            found.add(&at, format!("'{host}': '**' can only be the whole first label"));
        } else if index > 0 && label.contains('*') && *label != "*" && *label != "**" {
            found.add(&at, format!("'{host}': a '*' after the first label must be a whole label"));
        }
    }
    if let [first, _] = labels.as_slice()
        && matches!(*first, "*" | "**")
    {
        found.add(&at, format!("'{host}' stands for a whole top-level domain; write as in '*.example.com'"));
    }
    if matches!(host, "*" | "**") && tcp {
        found.add(&at, "protocol tcp needs a host name");
    }
    if tcp && labels.iter().any(|label| label.is_empty() || label.len() > 63) {
        found.add(&at, format!("'{host}' is not a host name"));
    }
}

fn ports(at: &str, endpoint: &Endpoint, found: &mut Found<'_>) {
    let ports = endpoint.all_ports();
    if ports.is_empty() {
        found.add(&format!("{at}.port"), "at least one port is needed");
    }
    if ports.contains(&0) {
        found.add(&format!("{at}.port"), "0 is not a port; 1 to 65535 are");
    }
}

fn requests(at: &str, endpoint: &Endpoint, found: &mut Found<'_>) {
    let looked_into = !matches!(endpoint.protocol, None | Some(Protocol::Unspecified | Protocol::Tcp));
    if endpoint.access.is_some() && !endpoint.rules.is_empty() {
        found.add(&format!("{at}.rules"), "rules and access exclude each other");
    }
    if !endpoint.rules.is_empty() && !looked_into {
        found.add(&format!("{at}.rules"), "needs a protocol that is looked into, as in rest");
    }
    if !endpoint.deny_rules.is_empty() && !looked_into {
        found.add(&format!("{at}.deny_rules"), "needs a protocol that is looked into, as in rest");
    }
    if endpoint.protocol == Some(Protocol::JsonRpc) && endpoint.rules.is_empty() {
        found.add(&format!("{at}.rules"), "protocol json-rpc needs rules");
    }
    for (index, rule) in endpoint.rules.iter().enumerate() {
        matching(&format!("{at}.rules[{index}].allow"), &rule.allow, found);
    }
    for (index, rule) in endpoint.deny_rules.iter().enumerate() {
        matching(&format!("{at}.deny_rules[{index}]"), rule, found);
    }
    for (index, range) in endpoint.allowed_ips.iter().enumerate() {
        let (address, bits) =
            range.split_once('/').map_or((range.as_str(), None), |(address, bits)| (address, Some(bits)));
        let most = match address.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => Some(32u8),
            Ok(std::net::IpAddr::V6(_)) => Some(128),
            Err(_) => None,
        };
        let good = most.is_some_and(|most| bits.is_none_or(|bits| bits.parse::<u8>().is_ok_and(|bits| bits <= most)));
        if !good {
            found.add(&format!("{at}.allowed_ips[{index}]"), "must be an address or a range, as in 10.0.0.0/8");
        }
    }
}

fn matching(at: &str, rule: &Matching, found: &mut Found<'_>) {
    let wanted = "must be a pattern, or {any: [pattern, …]}";
    for (key, value) in &rule.query {
        if !is_pattern(value) {
            let at = found.field(&format!("{at}.query"), key);
            found.add(&at, wanted);
        }
    }
    if rule.tool.as_ref().is_some_and(|tool| !is_pattern(tool)) {
        found.add(&format!("{at}.tool"), wanted);
    }
    for (key, value) in &rule.params {
        if !is_patterns(value) {
            let at = found.field(&format!("{at}.params"), key);
            found.add(&at, wanted);
        }
    }
}

fn is_pattern(value: &Value) -> bool {
    match value {
        Value::String(_) => true,
        Value::Object(fields) => {
            fields.len() == 1
                && fields.get("any").and_then(Value::as_array).is_some_and(|any| any.iter().all(Value::is_string))
        }
        _ => false,
    }
}

fn is_patterns(value: &Value) -> bool {
    is_pattern(value) || value.as_object().is_some_and(|fields| fields.values().all(is_patterns))
}

fn credentials(at: &str, endpoint: &Endpoint, found: &mut Found<'_>) {
    if endpoint.credential_signing.is_some() {
        if endpoint.signing_service.is_empty() {
            found.add(&format!("{at}.signing_service"), "is needed with credential_signing");
        }
        if endpoint.request_body_credential_rewrite {
            found.add(
                &format!("{at}.request_body_credential_rewrite"),
                "excludes credential_signing: the signature is over the body",
            );
        }
    }
}

fn middlewares(policy: &Policy, found: &mut Found<'_>) {
    let all = &policy.network_middlewares;
    if all.len() > MAX_MIDDLEWARES {
        found.add("network_middlewares", format!("has {}, the most is {MAX_MIDDLEWARES}", all.len()));
    }
    for (index, (key, middleware)) in all.iter().enumerate() {
        let at = found.field("network_middlewares", key);
        if middleware.middleware.is_empty() {
            found.add(&format!("{at}.middleware"), "must not be empty");
        }
        if let Some((other, _)) = all.iter().take(index).find(|(_, other)| other.order == middleware.order) {
            found.add(&format!("{at}.order"), format!("is {}, the same as that of '{other}'", middleware.order));
        }
        let selector = &middleware.endpoints;
        let patterns = selector.include.len() + selector.exclude.len();
        if patterns > MAX_PATTERNS {
            found.add(&format!("{at}.endpoints"), format!("has {patterns} patterns, the most is {MAX_PATTERNS}"));
        }
        let endpoints =
            policy.network_policies.iter().flat_map(|(rule, of)| of.endpoints.iter().map(move |e| (rule, e)));
        for (rule, endpoint) in endpoints {
            let selected = selector.include.iter().any(|pattern| covers(pattern, &endpoint.host))
                && !selector.exclude.iter().any(|pattern| covers(pattern, &endpoint.host));
            if selected && matches!(endpoint.tls, Some(Tls::Skip | Tls::Passthrough)) {
                found.add(
                    &format!("{at}.endpoints"),
                    format!("selects '{}' of '{rule}', whose TLS is never opened (tls: skip)", endpoint.host),
                );
            }
        }
    }
}

/// Whether a host pattern covers a host: `**` any number of labels, `*` one.
fn covers(pattern: &str, host: &str) -> bool {
    fn labels(pattern: &[&str], host: &[&str]) -> bool {
        match (pattern.split_first(), host.split_first()) {
            (None, None) => true,
            (Some((&"**", rest)), _) => {
                (1..=host.len()).any(|from| host.get(from..).is_some_and(|host| labels(rest, host)))
            }
            (Some((word, rest)), Some((label, host))) => {
                (*word == "*" || word.eq_ignore_ascii_case(label)) && labels(rest, host)
            }
            _ => false,
        }
    }
    let (pattern, host): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    labels(&pattern, &host)
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_star_is_one_label_and_two_are_one_or_more() {
        for (pattern, host, expected) in [
            ("api.example.com", "API.example.com", true),
            ("*.example.com", "api.example.com", true),
            ("*.example.com", "a.b.example.com", false),
            ("**.example.com", "a.b.example.com", true),
            ("**.example.com", "example.com", false),
            ("**", "a.b", true),
            ("*", "a.b", false),
        ] {
            assert_eq!(covers(pattern, host), expected, "{pattern} {host}");
        }
    }
}
