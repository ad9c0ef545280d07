//! From bytes to a checked policy, and from a policy to its digest.
//!
//! In: YAML or JSON, at most 4 MiB. Out: [`Policy`], or every fault with its place. Must not: take a policy that has
//! any fault.

use molt_core::{
    ids::Digest,
    spec::{
        Violations,
        document::{self, Node, Rules},
    },
};
use sha2::{Digest as _, Sha256};

use crate::{schema::Policy, validate};

/// Longest policy, in bytes: 4 MiB.
pub const MAX_BYTES: usize = 4 << 20;

const RULES: Rules =
    Rules { what: "policy", max_bytes: MAX_BYTES, checks: &[], refused: &[], stand_in: &[("version", 1)] };

/// Reads a policy.
pub fn parse(bytes: &[u8]) -> Result<Policy, Violations> {
    let text = std::str::from_utf8(bytes).map_err(|_| Violations::whole("a policy is UTF-8 text"))?;
    document::read::<Policy>(text, &RULES)?.and(validate::check)
}

/// Reads a policy that stands inside another document, with the same checks but without places.
pub fn from_value(value: &serde_json::Value) -> Result<Policy, Violations> {
    from_node(&Node::from_json(value))
}

/// The same, with the places of that document.
pub fn from_node(node: &Node) -> Result<Policy, Violations> {
    document::convert::<Policy>(node, &RULES)?.and(validate::check)
}

/// JSON Schema (2020-12) of a policy.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Policy).to_value()
}

impl Policy {
    /// SHA-256 of the policy as JSON with sorted keys, without spaces and without fields that have their default:
    /// comments, layout and the order of keys change nothing.
    pub fn digest(&self) -> Digest {
        let mut text = String::new();
        canonical(&serde_json::to_value(self).unwrap_or_default(), &mut text);
        Digest::from_bytes(Sha256::digest(text.as_bytes()).into())
    }

    /// The same policy with more paths to write to, those that are there already left out.
    #[must_use]
    pub fn with_writable(mut self, paths: &[String]) -> Self {
        let files = self
            .filesystem_policy
            .get_or_insert_with(|| crate::Filesystem { include_workdir: true, ..crate::Filesystem::default() });
        for path in paths {
            if !files.read_write.contains(path) {
                files.read_write.push(path.clone());
            }
        }
        self
    }
}

/// Sorted by hand: whether a JSON map keeps the order of its keys depends on a feature of another crate.
fn canonical(value: &serde_json::Value, into: &mut String) {
    match value {
        serde_json::Value::Object(fields) => {
            let mut keys: Vec<_> = fields.iter().collect();
            keys.sort_by_key(|(key, _)| *key);
            into.push('{');
            for (index, (key, value)) in keys.into_iter().enumerate() {
                if index > 0 {
                    into.push(',');
                }
                into.push_str(&serde_json::Value::from(key.as_str()).to_string());
                into.push(':');
                canonical(value, into);
            }
            into.push('}');
        }
        serde_json::Value::Array(items) => {
            into.push('[');
            for (index, value) in items.iter().enumerate() {
                if index > 0 {
                    into.push(',');
                }
                canonical(value, into);
            }
            into.push(']');
        }
        other => into.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_and_order_do_not_change_the_digest() {
        let one = parse(b"version: 1\nfilesystem_policy: {read_only: [/usr], read_write: [/tmp]}\n").unwrap();
        let two = parse(
            b"# note\nfilesystem_policy:\n  read_write:\n    - \"/tmp\"\n  include_workdir: false\n  read_only: [/usr]\nversion: 1\n",
        )
        .unwrap();
        assert_eq!(one.digest(), two.digest());
        let other = parse(b"version: 1\nfilesystem_policy: {read_only: [/usr], read_write: [/var]}\n").unwrap();
        assert_ne!(one.digest(), other.digest());
    }

    /// The digest is part of what names a generation: it must not change between versions of Molt.
    #[test]
    fn the_digest_of_a_policy_is_forever() {
        let policy = parse(b"version: 1\nfilesystem_policy: {read_only: [/usr], read_write: [/tmp]}\n").unwrap();
        let text = r#"{"filesystem_policy":{"read_only":["/usr"],"read_write":["/tmp"]},"version":1}"#;
        assert_eq!(policy.digest(), Digest::from_bytes(Sha256::digest(text).into()));
    }

    /// A policy and a part of what it is refused with.
    const BAD: &[(&str, &str)] = &[
        ("", "must be a mapping"),
        ("{}", "version: is required"),
        ("version: 2", "1:10: version: is 2"),
        ("version: 1\nfilesystem: {}", "unknown field"),
        ("version: 1\nfilesystem_policy: {readonly: []}", "did you mean 'read_only'?"),
        ("version: 1\nversion: 1", "duplicate"),
        ("version: 1\nlandlock: {compatibility: strict}", "must be one of best_effort, hard_requirement"),
        ("version: 1\nlandlock: {compatibility: \"\"}", "must be one of best_effort, hard_requirement"),
        ("version: 1\nprocess: {run_as_user: root}", "neither sandbox nor a number"),
        ("version: 1\nprocess: {run_as_user: \"0\"}", "neither sandbox nor a number"),
        ("version: 1\nprocess: {run_as_group: \"4294967295\"}", "neither sandbox nor a number"),
        ("version: 1\nprocess: {run_as_user: 1000}", "write \"1000\" in quotes"),
        (
            "version: 1\nfilesystem_policy: {read_only: [usr]}",
            "2:33: filesystem_policy.read_only[0]: must be an absolute",
        ),
        ("version: 1\nfilesystem_policy: {read_only: [/a/../b]}", "must not hold '..'"),
        ("version: 1\nfilesystem_policy: {read_write: [//.]}", "'/' is too much"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: x.y}]}}", "at least one port"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: x.y, port: 0}]}}", "0 is not a port"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: x.y, port: 65536}]}}", "the most is 65535"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: \"*.com\", port: 1}]}}", "whole top-level domain"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{port: 1}]}}", "is needed, unless allowed_ips"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{port: 1, protocol: tcp}]}}", "protocol tcp needs a host"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: 1.2.3.4, port: 1, protocol: tcp}]}}", "is an address"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: a.b*.c, port: 1}]}}", "must be a whole label"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: a.**.c, port: 1}]}}", "whole first label"),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: a.b, port: 1, protocol: smtp}]}}", "must be one of"),
        (
            "version: 1\nnetwork_policies: {a: {endpoints: [{host: a.b, port: 1, credential_signing: sigv4}]}}",
            "signing_service: is needed",
        ),
        (
            "version: 1\nnetwork_policies: {a: {endpoints: [{host: a.b, port: 1, protocol: rest, access: full, rules: [{allow: {}}]}]}}",
            "exclude each other",
        ),
        ("version: 1\nnetwork_policies: {a: {endpoints: [{host: a.b, port: 1, protocol: json-rpc}]}}", "needs rules"),
        (
            "version: 1\nnetwork_policies: {a: {endpoints: [{host: a.b, port: 1, deny_rules: [{}]}]}}",
            "needs a protocol",
        ),
        (
            "version: 1\nnetwork_policies: {a: {endpoints: [{host: a.b, port: 1, allowed_ips: [10.0.0.0/33]}]}}",
            "10.0.0.0/8",
        ),
        (
            "version: 1\nnetwork_policies: {a: {endpoints: [{host: a.b, port: 1, protocol: rest, rules: [{allow: {query: {q: 5}}}]}]}}",
            "must be a pattern",
        ),
        ("version: 1\nnetwork_middlewares: {a: {endpoints: {}}}", "middleware: is required"),
        (
            "version: 1\nnetwork_middlewares: {a: {middleware: m, endpoints: {}}, b: {middleware: m, endpoints: {}}}",
            "the same as that of 'a'",
        ),
        (
            "version: 1\nnetwork_policies: {p: {endpoints: [{host: a.b.c, port: 1, tls: skip}]}}\n\
             network_middlewares: {a: {middleware: m, endpoints: {include: [\"*.b.c\"]}}}",
            "selects 'a.b.c' of 'p'",
        ),
    ];

    #[test]
    fn bad_policies_are_refused_with_the_reason() {
        for (text, expected) in BAD {
            let faults = parse(text.as_bytes()).expect_err(text).to_string();
            assert!(faults.contains(expected), "{text}\n  gives   {faults}\n  and not {expected}");
        }
    }

    #[test]
    fn all_faults_come_at_once() {
        let text =
            b"version: 3\nfilesystem_policy: {read_only: [a, b], read_write: [/]}\nprocess: {run_as_user: root}\n";
        assert_eq!(parse(text).unwrap_err().0.len(), 5);
    }

    /// Faults of form do not hide faults of meaning, and each has its own place, also behind an item that has no form.
    #[test]
    fn faults_of_form_and_of_meaning_come_together() {
        let text = b"\
filesystem_policy:
  read_only: [/usr, 5, etc, {}, /a/../b]
  read_wirte: []
landlock: {compatibility: strict}
process: {run_as_user: root, run_as_group: 7}
network_policies:
  a:
    endpoints:
      - {host: x.y, port: 70000}
      - {host: x.y}
    binaries: [{harness: true}, {path: ''}]
network_middlewares:
  m: {endpoints: {include: [1]}}
";
        let faults = parse(text).unwrap_err().to_string();
        let lines: Vec<&str> = faults.lines().collect();
        let expected = [
            "1:1: version: is required",
            "2:21: filesystem_policy.read_only[1]: must be text: write \"5\" in quotes",
            "2:24: filesystem_policy.read_only[2]: must be an absolute path",
            "2:29: filesystem_policy.read_only[3]: must be text",
            "2:33: filesystem_policy.read_only[4]: must not hold '..'",
            "3:3: filesystem_policy.read_wirte: unknown field; did you mean 'read_write'?",
            "4:27: landlock.compatibility: must be one of best_effort, hard_requirement",
            "5:24: process.run_as_user: 'root' is neither sandbox nor a number from 1 to 4294967294",
            "5:44: process.run_as_group: must be text: write \"7\" in quotes",
            "9:27: network_policies.a.endpoints[0].port: is 70000, the most is 65535",
            "10:9: network_policies.a.endpoints[1].port: at least one port is needed",
            "11:16: network_policies.a.binaries[0].path: is required",
            "11:40: network_policies.a.binaries[1].path: must not be empty",
            "13:6: network_middlewares.m.middleware: is required",
            "13:29: network_middlewares.m.endpoints.include[0]: must be text: write \"1\" in quotes",
        ];
        assert_eq!(lines, expected, "\n{faults}");
    }

    #[test]
    fn policies_inside_a_spec_are_checked_the_same() {
        let value = serde_json::json!({"version": 1, "filesystem_policy": {"read_only": ["usr"]}});
        assert!(from_value(&value).unwrap_err().to_string().contains("must be an absolute path"));
        let value = serde_json::json!({"version": 1, "x": 1});
        assert!(from_value(&value).unwrap_err().to_string().contains("unknown field"));
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        assert!(parse(&[0xff, 0xfe]).is_err());
        assert!(parse(&vec![b'#'; MAX_BYTES + 1]).unwrap_err().to_string().contains("at most 4096 KiB"));
    }
}
