//! `molt spec check|schema` and `molt policy check|schema`: documents read here, without a supervisor.
//!
//! In: files. Out: every fault with its place, or the schema. Must not: judge a document by other rules than the
//! supervisor's.

use std::path::Path;

use molt_core::spec::{self, Violations};

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
