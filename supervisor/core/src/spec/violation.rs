//! What is wrong with a document: every fault at once, each with its place.
//!
//! In: faults found while a document is read. Out: a list that prints one fault a line. Must not: quote more of the
//! document than the faulty word.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::document::Node;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Violation {
    /// Where in the document, as in `spec.state[1]`; empty for the document as a whole.
    pub path: String,
    /// Line, from 1; absent where the document was not given as text.
    pub line: Option<u32>,
    /// Column, from 1; absent together with `line`.
    pub column: Option<u32>,
    /// What is wrong and what is taken instead; a lower-case fragment.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// All faults of one document, in the order of their places. Never empty when returned as an error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Violations(pub Vec<Violation>);

impl Violations {
    /// A list of one, about the document as a whole.
    pub fn whole(message: impl Into<String>) -> Self {
        Self(vec![Violation { path: String::new(), line: None, column: None, message: message.into() }])
    }

    /// The same, of a document that stands in another one as `node`, at `path`.
    pub(super) fn inside(self, path: &str, node: &Node) -> impl Iterator<Item = Violation> {
        let (path, place) = (path.to_owned(), node.place);
        self.0.into_iter().map(move |fault| {
            let below = if fault.path.is_empty() { String::new() } else { format!(".{}", fault.path) };
            Violation {
                path: format!("{path}{below}"),
                line: fault.line.or(place.map(|place| place.line)),
                column: fault.column.or(place.map(|place| place.column)),
                message: fault.message,
            }
        })
    }

    /// `Ok(value)` where nothing was found, else the list sorted by place.
    pub fn or_ok<T>(mut self, value: T) -> Result<T, Self> {
        if self.0.is_empty() {
            return Ok(value);
        }
        // Faults without a line come last, in the order they were found.
        self.0.sort_by_key(|fault| (fault.line.is_none(), fault.line, fault.column));
        self.0.dedup();
        Err(self)
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}
