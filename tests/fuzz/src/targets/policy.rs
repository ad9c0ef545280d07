//! Policies: parse, validate, lower, compare, explain.
//!
//! In: one YAML document, or two with a line `---8<---` between. Out: a panic where a policy is wider than itself, does not survive
//! being written and read, or where a wider one passes for narrower. Must not: need a valid policy.

use molt_core::launch::{Access, Confinement, SeccompProfile};
use molt_policy::{Context, Policy, assumed, compare, explain, from_value, lower, parse};

use super::is_plain;

pub(super) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut documents = text.splitn(2, "---8<---\n").map(read);
    let (first, second) = (documents.next().flatten(), documents.next().flatten());
    if let (Some(old), Some(new)) = (&first, &second) {
        pair(old, new);
    }
}

fn read(text: &str) -> Option<Policy> {
    let policy = match parse(text.as_bytes()) {
        Ok(policy) => policy,
        Err(faults) => {
            is_plain(&faults.to_string());
            return None;
        }
    };
    let json = serde_json::to_value(&policy).expect("a policy can be written");
    let again = from_value(&json).unwrap_or_else(|faults| panic!("what was taken is refused as JSON: {faults}"));
    assert_eq!(again, policy);
    assert_eq!(again.digest(), policy.digest());
    let yaml = serde_json::to_vec(&json).expect("JSON can be printed");
    assert_eq!(parse(&yaml).unwrap_or_else(|faults| panic!("JSON is YAML: {faults}")).digest(), policy.digest());
    for kernel_abi in [0, 7] {
        let context = context(kernel_abi);
        let confinement = lower(&policy, &context).confinement;
        let side = assumed(&confinement);
        let wider = compare(&side, &side);
        assert!(wider.is_empty(), "wider than itself at ABI {kernel_abi}: {wider:?}");
    }
    for line in explain(&policy, 7) {
        is_plain(&format!("{line:?}"));
    }
    let more = policy.clone().with_writable(&["/sandbox/more".to_owned()]);
    assert!(wider(&more, &policy).is_empty(), "less is wider");
    Some(policy)
}

fn context(kernel_abi: u32) -> Context<'static> {
    Context {
        workdir: "/app",
        shown: &[],
        state: &[],
        program: Some("/app/run"),
        readable: &["/app"],
        proxy_ports: &[3128],
        kernel_abi,
        seccomp: SeccompProfile::Floor,
    }
}

fn wider(old: &Policy, new: &Policy) -> Vec<molt_policy::Wider> {
    let (old, new) = (lower(old, &context(7)).confinement, lower(new, &context(7)).confinement);
    compare(&assumed(&old), &assumed(&new))
}

/// Says the comparison nothing, then nothing more can be done on any path or port that either of them names.
fn pair(old: &Policy, new: &Policy) {
    let found = wider(old, new);
    found.iter().for_each(|one| is_plain(&one.to_string()));
    if !found.is_empty() {
        return;
    }
    let (before, after) = (lower(old, &context(7)).confinement, lower(new, &context(7)).confinement);
    for rule in &assumed(&after).report.rules {
        for path in [rule.path.clone(), format!("{}/below", rule.path.trim_end_matches('/'))] {
            assert!(access(&after, &path) <= access(&before, &path), "{path} is wider, and nothing says so");
        }
    }
    let ports = |side: &Confinement| side.landlock.as_ref().and_then(|landlock| landlock.tcp.clone()?.connect);
    if let Some(known) = ports(&before) {
        let ports = ports(&after).expect("ports are limited no more, and nothing says so");
        assert!(ports.iter().all(|port| known.contains(port)), "more ports, and nothing says so");
    }
}

/// 0 nothing, 1 to read, 2 to change; without Landlock everything.
fn access(side: &Confinement, path: &str) -> u8 {
    let Some(landlock) = &side.landlock else { return 2 };
    let covers = |folder: &str| {
        folder == "/" || path == folder || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    };
    let granted = landlock.paths.iter().filter(|rule| covers(&rule.path)).map(|rule| match rule.access {
        Access::ReadOnly => 1,
        Access::ReadWrite => 2,
    });
    granted.max().unwrap_or(0)
}
