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
use crate::triggers::spec::{beside, document, policy_file};

/// `molt spec check`.
pub(crate) fn spec(printer: Printer, file: &Path) -> Result<u8, Fault> {
    let (faults, notes) = examined(file, &read(file)?);
    for note in notes {
        printer.hint(&format!("note: {}", text::clean(&note)));
    }
    report(printer, file, faults)
}

/// The faults of the spec in `file`, which are those that a start has with it, and what is no fault.
fn examined(file: &Path, spec: &str) -> (Option<Violations>, Vec<String>) {
    let mut notes = Vec::new();
    let faults = document(spec, |spec, places| {
        notes.extend(spec.orders.shared_audience(&spec.name));
        let Some(named) = &spec.policy_file else { return Violations::default() };
        let policy = beside(file, named);
        if !policy.try_exists().is_ok_and(|exists| exists) {
            notes.push(format!("spec.policyFile: {} is not here, and was not looked at", policy.display()));
            return Violations::default();
        }
        let faults = policy_file(&policy).err().unwrap_or_default();
        Violations(faults.into_iter().map(|why| places.violation("spec.policyFile", why)).collect())
    });
    (faults.err(), notes)
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

    const HEAD: &str = "apiVersion: molt.dev/v1alpha1\nkind: Sandbox\nspec:\n";

    /// What is said of a spec in `folder`: faults, notes.
    fn said(folder: &Path, spec: &str) -> (Vec<String>, Vec<String>) {
        let (faults, notes) = examined(&folder.join("sandbox.yaml"), &format!("{HEAD}{spec}"));
        (faults.unwrap_or_default().0.iter().map(ToString::to_string).collect(), notes)
    }

    #[test]
    fn what_a_start_refuses_is_not_fine() {
        let folder = Path::new("/nowhere");
        let (faults, _) =
            said(folder, "  policy: {version: 1, filesystem_policy: {include_workdir: 3, read_onlyy: []}}");
        assert_eq!(
            faults,
            [
                "4:61: spec.policy.filesystem_policy.include_workdir: must be true or false",
                "4:64: spec.policy.filesystem_policy.read_onlyy: unknown field; did you mean 'read_only'?",
            ]
        );
        let (faults, _) = said(folder, "  policy: {filesystem_policy: {read_only: [usr]}}");
        assert_eq!(faults.len(), 2, "form and meaning at once: {faults:?}");
        let (faults, _) =
            said(folder, "  orders: {keys: [{id: a, algorithm: EdDSA, key: nonsense, operations: [update]}]}");
        assert_eq!(faults, ["4:50: spec.orders.keys[0].key: it must be one PEM block 'PUBLIC KEY', or a JWK"]);
        let (faults, _) = said(folder, "  gateway: {url: \"https://[::1\", tokenFile: /t}");
        assert!(faults.len() == 1 && faults[0].starts_with("4:18: spec.gateway.url: "), "{faults:?}");
        assert_eq!(said(folder, "  policy: {version: 1}"), (vec![], vec![]));
    }

    #[test]
    fn a_policy_file_is_read_where_it_is() {
        let folder = std::env::temp_dir().join(format!("molt-check-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let policy = folder.join("policy.yaml");
        let spec = "  policyFile: policy.yaml";
        let (faults, notes) = said(&folder, spec);
        let absent = format!("spec.policyFile: {} is not here, and was not looked at", policy.display());
        assert_eq!((faults, notes), (vec![], vec![absent]));
        std::fs::write(&policy, "version: 1\nfilesystem: {}\nlandlock: 5\n").unwrap();
        let name = policy.display();
        let (faults, notes) = said(&folder, spec);
        assert!(notes.is_empty() && faults.len() == 2, "{faults:?}");
        assert!(
            faults[0].starts_with(&format!("4:15: spec.policyFile: {name}:2:1: filesystem: unknown")),
            "{faults:?}"
        );
        std::fs::write(&policy, "\n").unwrap();
        assert!(said(&folder, spec).0[0].starts_with(&format!("4:15: spec.policyFile: {name} is empty")));
        for good in ["version: 1\n", "unconfined"] {
            std::fs::write(&policy, good).unwrap();
            assert_eq!(said(&folder, spec), (vec![], vec![]));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_audience_that_many_have_is_a_note_and_no_fault() {
        let orders = "  orders: {keys: [{id: a, algorithm: EdDSA, file: /etc/molt/key, operations: [update]}]}";
        let (faults, notes) = said(Path::new("/nowhere"), orders);
        assert!(faults.is_empty() && notes.len() == 1 && notes[0].contains("'molt:sandbox'"), "{faults:?} {notes:?}");
        let orders = orders.replace("{keys", "{audience: mine, keys");
        assert_eq!(said(Path::new("/nowhere"), &orders), (vec![], vec![]));
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
