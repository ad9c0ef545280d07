//! `molt spec check|schema` and `molt policy check|diff|schema`: documents read here, without a supervisor.
//!
//! In: files. Out: every fault with its place, or the schema. Must not: judge a document by other rules than the
//! supervisor's.

use std::path::Path;

use molt_core::{
    launch::{Confinement, Report},
    spec::{self, Violations},
};
use molt_policy::{Context, Policy, Resolved};

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
    report(printer, file, molt_policy::parse(read(file)?.as_bytes()).err())
}

/// `molt policy schema`.
pub(crate) fn policy_schema(printer: Printer) -> Result<u8, Fault> {
    schema(printer, &molt_policy::schema())
}

/// `molt policy diff`: what the new policy allows and the old one does not; 1 where there is any.
pub(crate) fn policy_diff(printer: Printer, old: &Path, new: &Path) -> Result<u8, Fault> {
    let mut both = Vec::new();
    for file in [old, new] {
        match molt_policy::parse(read(file)?.as_bytes()) {
            Ok(policy) => both.push(lowered(&policy)),
            Err(faults) => return report(printer, file, Some(faults)),
        }
    }
    let sides: Vec<Resolved<'_>> = both.iter().map(|(confinement, report)| Resolved { confinement, report }).collect();
    let [before, after] = sides.as_slice() else { return Ok(FAILED) };
    let wider = molt_policy::compare(before, after);
    printer.document(wider.as_slice(), |wider| {
        wider.iter().fold(String::new(), |text, one| text + &text::clean(&one.to_string()) + "\n")
    })?;
    if wider.is_empty() {
        say(&printer.paint(Tone::Good, "the new policy is not wider than the old one"));
        return Ok(0);
    }
    Ok(FAILED)
}

/// As both would be on a kernel that has everything, in the working directory of the default image layout.
fn lowered(policy: &Policy) -> (Confinement, Report) {
    let context = Context { workdir: "/sandbox", state: &[], program: None, proxy_ports: &[], kernel_abi: u32::MAX };
    let confinement = molt_policy::lower(policy, &context).confinement;
    let report = molt_policy::assumed(&confinement);
    (confinement, report)
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
