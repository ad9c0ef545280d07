//! What becomes of each section of a policy, for `molt policy check`.
//!
//! In: a checked policy and the kernel's Landlock ABI. Out: lines for people. Must not: call enforced what is not.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    lower::MIN_ABI,
    schema::{Compatibility, Enforcement, Policy, Tls},
};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Section of the policy, as in `filesystem_policy`.
    pub section: String,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why, and what is left.
    pub text: String,
}

/// What becomes of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// By the kernel, for every process of the workload.
    Enforced,
    /// Some of it.
    InPart,
    /// Kept and checked, but enforced by the egress proxy, where there is one.
    LeftToProxy,
    /// Not on this kernel.
    NotEnforced,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforced => "enforced",
            Self::InPart => "enforced in part",
            Self::LeftToProxy => "left to the egress proxy",
            Self::NotEnforced => "not enforced",
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.section, self.verdict, self.text)
    }
}

/// Every section in the order of the schema; those that are not written are explained by their default. `kernel_abi`
/// is the kernel's Landlock ABI, 0 where there is none.
pub fn explain(policy: &Policy, kernel_abi: u32) -> Vec<Line> {
    let mut lines = vec![filesystem(policy, kernel_abi), landlock(policy, kernel_abi), process(policy)];
    lines.extend(network(policy, kernel_abi));
    if !policy.network_middlewares.is_empty() {
        lines.push(line(
            "network_middlewares",
            Verdict::LeftToProxy,
            format!("{} kept with the policy; requests are not looked into here", policy.network_middlewares.len()),
        ));
    }
    lines.push(line(
        "(always)",
        Verdict::Enforced,
        "no capability, no_new_privs, and no system call for mounts, namespaces, tracing, kernel modules or io_uring"
            .into(),
    ));
    lines
}

fn line(section: &str, verdict: Verdict, text: String) -> Line {
    Line { section: section.to_owned(), verdict, text }
}

fn filesystem(policy: &Policy, kernel_abi: u32) -> Line {
    let text = match &policy.filesystem_policy {
        Some(files) => format!(
            "{} to read, {} to change{}",
            paths(files.read_only.len()),
            paths(files.read_write.len()),
            if files.include_workdir { " and the working directory" } else { "" }
        ),
        None => "not written: the working directory to change, and nothing else; most programs cannot start".to_owned(),
    };
    let (verdict, lost) = match kernel_abi {
        0 => (Verdict::NotEnforced, "; the kernel has no Landlock"),
        1 | 2 => (Verdict::InPart, "; files to read can be emptied (Landlock ABI 3 is needed)"),
        3 | 4 => (Verdict::Enforced, "; ioctl on device files is free (Landlock ABI 5 is needed)"),
        _ => (Verdict::Enforced, ""),
    };
    line("filesystem_policy", verdict, text + lost)
}

fn paths(count: usize) -> String {
    format!("{count} path{}", if count == 1 { "" } else { "s" })
}

fn landlock(policy: &Policy, kernel_abi: u32) -> Line {
    let compatibility = policy.landlock.as_ref().and_then(|section| section.compatibility);
    let enough = kernel_abi >= MIN_ABI;
    let text = match compatibility {
        Some(Compatibility::BestEffort) => {
            "best_effort: what the kernel has is used, paths the image lacks are skipped"
        }
        Some(Compatibility::HardRequirement) => {
            "hard_requirement: every path must exist in the image, else the update is refused"
        }
        None => "not written: Landlock ABI 3 is needed, paths the image lacks are skipped",
    };
    let (verdict, tail) = match (compatibility, enough) {
        (_, true) => (Verdict::Enforced, String::new()),
        (Some(Compatibility::BestEffort), false) => (Verdict::InPart, format!("; here it has ABI {kernel_abi}")),
        (_, false) => (Verdict::NotEnforced, format!("; here it has ABI {kernel_abi}: nothing would be started")),
    };
    line("landlock", verdict, format!("{text}{tail}"))
}

fn process(policy: &Policy) -> Line {
    let run_as = policy.run_as();
    let text = match (run_as.user, run_as.group) {
        (Some(user), Some(group)) => format!("runs as {user}:{group}"),
        (Some(user), None) => format!("runs as {user} and its own group"),
        (None, Some(group)) => format!("runs in the group {group}; the spec or the image names the user"),
        (None, None) => "not written: the spec or the image names the user".to_owned(),
    };
    line("process", Verdict::Enforced, text)
}

fn network(policy: &Policy, kernel_abi: u32) -> Vec<Line> {
    let section = "network_policies";
    let endpoints: Vec<_> = policy.network_policies.values().flat_map(|rule| &rule.endpoints).collect();
    if policy.network_policies.is_empty() {
        return vec![line(section, Verdict::NotEnforced, "not written: TCP ports are free".to_owned())];
    }
    let ports = if kernel_abi >= 4 {
        line(
            section,
            Verdict::InPart,
            "TCP connections only to the ports of its endpoints, of the proxy, and 53".to_owned(),
        )
    } else {
        line(section, Verdict::NotEnforced, "ports need Landlock ABI 4 (Linux 6.7)".to_owned())
    };
    let mut lines =
        vec![ports, line(section, Verdict::LeftToProxy, "hosts, programs, methods and credentials".to_owned())];
    lines.push(line(section, Verdict::NotEnforced, "UDP: left to the container's network".to_owned()));
    let audited = endpoints.iter().filter(|end| !end.rules.is_empty() && end.enforcement != Some(Enforcement::Enforce));
    let audited = audited.count();
    if audited > 0 {
        lines.push(line(
            section,
            Verdict::LeftToProxy,
            format!("rules of {audited} endpoint(s) are only written down, not enforced: enforcement is audit"),
        ));
    }
    if endpoints.iter().any(|end| matches!(end.tls, Some(Tls::Terminate | Tls::Passthrough))) {
        lines.push(line(section, Verdict::LeftToProxy, "tls: terminate and passthrough are old words".to_owned()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(policy: &str, abi: u32) -> String {
        let policy = crate::parse(policy.as_bytes()).unwrap();
        explain(&policy, abi).iter().map(|line| line.to_string() + "\n").collect()
    }

    #[test]
    fn a_policy_is_explained_section_by_section() {
        let policy = "version: 1\nfilesystem_policy: {read_only: [/usr], read_write: [/tmp, /run]}\nprocess: {run_as_user: sandbox}\n\
            network_policies: {a: {endpoints: [{host: x.y, port: 443, protocol: rest, rules: [{allow: {method: GET}}]}]}}\n";
        assert_eq!(
            texts(policy, 7),
            "filesystem_policy: enforced: 1 path to read, 2 paths to change\n\
             landlock: enforced: not written: Landlock ABI 3 is needed, paths the image lacks are skipped\n\
             process: enforced: runs as sandbox and its own group\n\
             network_policies: enforced in part: TCP connections only to the ports of its endpoints, of the proxy, and 53\n\
             network_policies: left to the egress proxy: hosts, programs, methods and credentials\n\
             network_policies: not enforced: UDP: left to the container's network\n\
             network_policies: left to the egress proxy: rules of 1 endpoint(s) are only written down, not enforced: \
             enforcement is audit\n\
             (always): enforced: no capability, no_new_privs, and no system call for mounts, namespaces, tracing, \
             kernel modules or io_uring\n"
        );
    }

    #[test]
    fn nothing_is_called_enforced_that_is_not() {
        let old = texts("version: 1\nlandlock: {compatibility: best_effort}\n", 0);
        assert!(old.contains("filesystem_policy: not enforced"));
        assert!(old.contains("landlock: enforced in part"));
        assert!(texts("version: 1", 2).contains("filesystem_policy: enforced in part"));
        assert!(texts("version: 1", 2).contains("nothing would be started"));
    }
}
