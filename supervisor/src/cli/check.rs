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
use molt_policy::{Context, Policy};

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

/// `molt policy diff`: what the new policy allows and the old one does not; 1 where there is any.
pub(crate) fn policy_diff(printer: Printer, old: &Path, new: &Path) -> Result<u8, Fault> {
    let mut both = Vec::new();
    for file in [old, new] {
        match molt_policy::parse(read(file)?.as_bytes()) {
            Ok(policy) => both.push(assumed(&policy)),
            Err(faults) => return report(printer, file, Some(faults)),
        }
    }
    let [before, after] = both.as_slice() else { return Ok(FAILED) };
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
fn assumed(policy: &Policy) -> InForce {
    let context = Context {
        workdir: "/sandbox",
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
