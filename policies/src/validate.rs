//! Rules of the policy schema that no single field can express.
//!
//! In: a parsed policy. Out: every fault. Must not: look at the file system; whether a path exists is known only in
//! the new root.

use molt_core::spec::{Principal, Violations, document::Places, shape};

use crate::{network, schema::Policy};

pub(crate) const MAX_PATHS: usize = 256;
pub(crate) const MAX_PATH_BYTES: usize = 4096;

pub(crate) struct Found<'a> {
    places: &'a Places,
    pub(crate) list: Violations,
}

impl Found<'_> {
    pub(crate) fn add(&mut self, path: &str, message: impl Into<String>) {
        self.list.0.push(self.places.violation(path, message));
    }

    #[expect(clippy::unused_self, reason = "keeps the one way to name a field at hand where faults are noted")]
    pub(crate) fn field(&self, path: &str, key: &str) -> String {
        shape::field(path, key)
    }
}

pub(crate) fn check(policy: &Policy, places: &Places) -> Violations {
    let mut found = Found { places, list: Violations::default() };
    if policy.version != 1 {
        found.add("version", format!("is {}, this version of Molt reads 1", policy.version));
    }
    paths(policy, &mut found);
    if let Some(process) = &policy.process {
        for (name, text) in [("run_as_user", &process.run_as_user), ("run_as_group", &process.run_as_group)] {
            let good = text.is_empty()
                || text == "sandbox"
                || matches!(text.parse(), Ok(Principal::Id(id)) if id != 0 && !text.starts_with('0'));
            if !good {
                found.add(
                    &format!("process.{name}"),
                    format!("'{}' is neither sandbox nor a number from 1 to 4294967294", text.escape_debug()),
                );
            }
        }
    }
    network::check(policy, &mut found);
    found.list
}

fn paths(policy: &Policy, found: &mut Found<'_>) {
    let Some(files) = &policy.filesystem_policy else { return };
    let count = files.read_only.len() + files.read_write.len();
    if count > MAX_PATHS {
        found.add("filesystem_policy", format!("has {count} paths, the most is {MAX_PATHS}"));
    }
    for (name, list) in [("read_only", &files.read_only), ("read_write", &files.read_write)] {
        for (index, path) in list.iter().enumerate() {
            let at = format!("filesystem_policy.{name}[{index}]");
            if path.len() > MAX_PATH_BYTES {
                found.add(&at, format!("has {} bytes, the most is {MAX_PATH_BYTES}", path.len()));
            } else if !path.starts_with('/') {
                found.add(&at, "must be an absolute path");
            } else if path.chars().any(char::is_control) {
                found.add(&at, "must not hold control characters");
            } else if path.split('/').any(|part| part == "..") {
                found.add(&at, "must not hold '..'");
            } else if name == "read_write" && normal(path) == "/" {
                found.add(&at, "'/' is too much to write to; name the folders");
            }
        }
    }
}

/// The path without `//`, `/.` and a slash at the end; the text is absolute and has no `..`.
pub(crate) fn normal(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}
