//! What differs between two policies and [`compare`](crate::compare()) does not judge.
//!
//! In: two policies. Out: the sections, with who enforces them or what changed. Must not: say that one is wider.

use serde::Serialize;

use crate::schema::{Endpoint, Policy, Process};

/// A section that differs and was not compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Uncompared {
    /// As in the policy.
    pub section: &'static str,
    /// Why, or how it differs.
    pub text: String,
}

/// Every section in which two policies differ beyond what is compared. Of the network that is all but ports.
pub fn uncompared(old: &Policy, new: &Policy) -> Vec<Uncompared> {
    let proxy = "enforced by the egress proxy".to_owned();
    let mut found = Vec::new();
    let mut differs = |section, text| found.push(Uncompared { section, text });
    if old.network_policies != new.network_policies {
        differs(
            "network_policies",
            if ports(old) == ports(new) { proxy.clone() } else { format!("but for ports: {proxy}") },
        );
    }
    if old.network_middlewares != new.network_middlewares {
        differs("network_middlewares", proxy);
    }
    let mut said = |section, old: &str, new: &str| {
        if old != new {
            found.push(Uncompared { section, text: format!("it is {} now, it was {}", named(new), named(old)) });
        }
    };
    let none = Process::default();
    let (before, after) = (old.process.as_ref().unwrap_or(&none), new.process.as_ref().unwrap_or(&none));
    said("process.run_as_user", &before.run_as_user, &after.run_as_user);
    said("process.run_as_group", &before.run_as_group, &after.run_as_group);
    found
}

fn ports(policy: &Policy) -> std::collections::BTreeSet<u16> {
    policy.network_policies.values().flat_map(|rule| &rule.endpoints).flat_map(Endpoint::all_ports).collect()
}

fn named(who: &str) -> &str {
    if who.is_empty() { "the image's" } else { who }
}

impl std::fmt::Display for Uncompared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not compared: {} ({})", self.section, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(old: &str, new: &str) -> Vec<String> {
        let of = |text: &str| crate::parse(format!("version: 1\n{text}").as_bytes()).unwrap();
        uncompared(&of(old), &of(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_section_that_is_not_compared_is_named_where_it_differs() {
        let net = |rest: &str| format!("network_policies: {{a: {{endpoints: [{{{rest}}}]}}}}\n");
        let old = net("host: x.y, port: 443");
        assert_eq!(texts(&old, &old), [""; 0]);
        let proxied = ["not compared: network_policies (enforced by the egress proxy)"];
        assert_eq!(texts(&old, &net("host: '*.y.z', port: 443")), proxied);
        assert_eq!(
            texts(&old, &net("host: x.y, port: 443, enforcement: audit, protocol: rest, access: full")),
            proxied
        );
        let more = ["not compared: network_policies (but for ports: enforced by the egress proxy)"];
        assert_eq!(texts(&old, &net("host: x.y, port: 22")), more);
        assert_eq!(texts(&old, ""), more);
        assert_eq!(
            texts("process: {run_as_user: sandbox}\n", "process: {run_as_user: \"7\", run_as_group: \"8\"}\n"),
            [
                "not compared: process.run_as_user (it is 7 now, it was sandbox)",
                "not compared: process.run_as_group (it is 8 now, it was the image's)"
            ]
        );
        assert_eq!(texts("", "process: {run_as_user: \"\"}\n"), [""; 0]);
        assert_eq!(texts("filesystem_policy: {read_only: [/usr]}\n", "filesystem_policy: {read_only: [/]}\n"), [""; 0]);
    }
}
