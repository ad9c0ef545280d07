//! `molt spec check|schema` and `molt policy check|diff|schema`: documents read here, without a supervisor.
//!
//! In: files. Out: every fault with its place, or the schema. Must not: judge a document by other rules than the
//! supervisor's.

use std::path::Path;

use molt_core::{
    confined::InForce,
    launch::SeccompProfile,
    spec::{self, Violations},
};
use molt_policy::{Context, Policy, Uncompared, Wider};
use serde::Serialize;

use super::{
    change::read,
    fault::{FAILED, Fault},
    print::{Printer, Tone, say},
    text,
};

/// `molt spec check`.
pub(crate) fn spec(printer: Printer, file: &Path) -> Result<u8, Fault> {
    report(printer, file, spec::parse(&read(file)?).err())
}

/// `molt spec schema`.
pub(crate) fn spec_schema(printer: Printer) -> Result<u8, Fault> {
    schema(printer, &spec::schema())
}

/// `molt policy check`.
pub(crate) fn policy(printer: Printer, file: &Path) -> Result<u8, Fault> {
    let policy = match molt_policy::parse(read(file)?.as_bytes()) {
        Ok(policy) => policy,
        Err(faults) => return report(printer, file, Some(faults)),
    };
    let lines = molt_policy::explain(&policy, crate::preflight::landlock_abi());
    if printer.is_data() {
        return report(printer, file, None);
    }
    printer.document(&lines, |lines| {
        lines.iter().fold(String::new(), |all, line| all + &text::clean(&line.to_string()) + "\n")
    })?;
    say(&printer.paint(Tone::Good, &format!("{}: fine", file.display())));
    Ok(0)
}

/// `molt policy schema`.
pub(crate) fn policy_schema(printer: Printer) -> Result<u8, Fault> {
    schema(printer, &molt_policy::schema())
}

/// Two policies side by side.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference {
    /// What the new one allows and the old one does not.
    wider: Vec<Wider>,
    /// Where they differ, and nobody here judges which one allows more.
    not_compared: Vec<Uncompared>,
}

impl Difference {
    fn between(old: &Policy, new: &Policy) -> Self {
        let wider = molt_policy::compare(&assumed(old), &assumed(new));
        Self { wider, not_compared: molt_policy::uncompared(old, new) }
    }

    fn lines(&self) -> String {
        let wider = self.wider.iter().map(ToString::to_string);
        let lines = wider.chain(self.not_compared.iter().map(ToString::to_string));
        lines.fold(String::new(), |text, line| text + &text::clean(&line) + "\n")
    }

    /// In one sentence, where nothing is wider.
    fn verdict(&self) -> Option<&'static str> {
        match (self.wider.is_empty(), self.not_compared.is_empty()) {
            (false, _) => None,
            (true, true) => Some("the new policy is not wider than the old one"),
            (true, false) => Some("in paths, TCP ports and landlock the new policy is not wider; the rest differs"),
        }
    }
}

/// `molt policy diff`: what the new policy allows and the old one does not; 1 where there is any.
pub(crate) fn policy_diff(printer: Printer, old: &Path, new: &Path) -> Result<u8, Fault> {
    let mut both = Vec::new();
    for file in [old, new] {
        match molt_policy::parse(read(file)?.as_bytes()) {
            Ok(policy) => both.push(policy),
            Err(faults) => return report(printer, file, Some(faults)),
        }
    }
    let [before, after] = both.as_slice() else { return Ok(FAILED) };
    let difference = Difference::between(before, after);
    printer.document(&difference, Difference::lines)?;
    match difference.verdict() {
        Some(verdict) => {
            say(&printer.paint(Tone::Good, verdict));
            Ok(0)
        }
        None => Ok(FAILED),
    }
}

/// As both would be on a kernel that has everything, in the working directory of the default image layout.
fn assumed(policy: &Policy) -> InForce {
    let context = Context {
        workdir: "/sandbox",
        shown: &[],
        state: &[],
        program: None,
        readable: &[],
        proxy_ports: &[],
        kernel_abi: u32::MAX,
        seccomp: SeccompProfile::Floor,
    };
    molt_policy::assumed(&molt_policy::lower(policy, &context).confinement)
}

/// Faults are the data of a check: one a line, with the place, as compilers print them.
fn report(printer: Printer, file: &Path, faults: Option<Violations>) -> Result<u8, Fault> {
    let faults = faults.unwrap_or_default();
    let name = file.display();
    printer.document(&faults, |faults| {
        let lines: Vec<String> =
            faults.0.iter().map(|fault| format!("{name}:{}", text::clean(&fault.to_string()))).collect();
        lines.join("\n") + if lines.is_empty() { "" } else { "\n" }
    })?;
    if faults.0.is_empty() {
        say(&printer.paint(Tone::Good, &format!("{name}: fine")));
        return Ok(0);
    }
    Ok(FAILED)
}

/// A schema is JSON in every format but YAML.
fn schema(printer: Printer, schema: &serde_json::Value) -> Result<u8, Fault> {
    printer.document(schema, |schema| format!("{schema:#}\n"))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(old: &str, new: &str) -> Difference {
        let of = |text: &str| molt_policy::parse(format!("version: 1\n{text}").as_bytes()).unwrap();
        Difference::between(&of(old), &of(new))
    }

    #[test]
    fn no_more_is_claimed_than_was_compared() {
        let net = |host: &str| format!("network_policies: {{a: {{endpoints: [{{host: '{host}', port: 443}}]}}}}\n");
        let same = difference(&net("x.y"), &net("x.y"));
        assert_eq!(same.lines(), "");
        assert_eq!(same.verdict(), Some("the new policy is not wider than the old one"));
        let hosts = difference(&net("x.y"), &net("**.y.z"));
        assert_eq!(hosts.lines(), "not compared: network_policies (enforced by the egress proxy)\n");
        assert!(hosts.verdict().is_some_and(|verdict| verdict.ends_with("the rest differs")));
        let data = serde_json::to_value(&hosts).unwrap();
        let not_compared = serde_json::json!([
            {"section": "network_policies", "text": "enforced by the egress proxy"}
        ]);
        assert_eq!(data, serde_json::json!({"wider": [], "notCompared": not_compared}));
        let user = difference("", "process: {run_as_user: \"7\"}\n");
        assert_eq!(user.lines(), "not compared: process.run_as_user (it is 7 now, it was the image's)\n");
        let files = difference("filesystem_policy: {read_only: [/usr]}\n", "filesystem_policy: {read_only: [/]}\n");
        assert_eq!((files.verdict(), files.not_compared.len()), (None, 0));
    }
}
