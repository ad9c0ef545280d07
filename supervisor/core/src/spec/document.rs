//! Reads a YAML (or JSON) document into a typed value, with every fault at once and the place of each.
//!
//! In: text and [`Rules`]. Out: the value and its [`Places`], or all [`Violations`]. Must not: trust the size or depth
//! of the text, take a key twice, or let a field pass that the type does not have.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::{self, Deserialize, DeserializeOwned};
use serde_saphyr::Spanned;

use super::{
    shape,
    violation::{Violation, Violations},
};

/// What a reader adds to the JSON Schema of its type.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What the document is, for messages: `sandbox spec`, `policy`.
    pub what: &'static str,
    /// Longest text taken, in bytes.
    pub max_bytes: usize,
    /// Checks by schema name (the key in `$defs`), run on nodes that have the right JSON type.
    pub checks: &'static [(&'static str, Check)],
    /// Fields that exist elsewhere but not here: dotted path and why.
    pub refused: &'static [(&'static str, &'static str)],
    /// Required numbers and what stands in for one that is missing or wrong, so that the rest can be checked.
    pub stand_in: &'static [(&'static str, u64)],
}

/// Says why a node is not a value of its type; the message reads after its path.
pub type Check = fn(&Node) -> Result<(), String>;

/// Line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// Where each path of a document stands in its text; empty for a document that was not text.
#[derive(Debug, Clone, Default)]
pub struct Places(BTreeMap<String, Stand>);

/// Where a node stands.
#[derive(Debug, Clone)]
struct Stand {
    /// Its path in the document; another one than in what was kept of it, where items of a list had faults.
    written: String,
    place: Option<Place>,
}

impl Places {
    /// A fault at `path`, with the place of the nearest node above it that the text has.
    pub fn violation(&self, path: &str, message: impl Into<String>) -> Violation {
        let mut at = path;
        let stand = loop {
            if let Some(stand) = self.0.get(at) {
                break Some(stand);
            }
            match at.rfind(['.', '[']) {
                Some(end) => at = at.get(..end).unwrap_or_default(),
                None => break None,
            }
        };
        let place = stand.and_then(|stand| stand.place);
        let written = stand.filter(|_| !at.is_empty()).map(|stand| stand.written.as_str());
        let rest = path.get(at.len()..).unwrap_or_default();
        Violation {
            path: written.map_or_else(|| path.to_owned(), |written| format!("{written}{rest}")),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            message: message.into(),
        }
    }

    pub(super) fn put(&mut self, kept: &str, written: &str, place: Option<Place>) {
        self.0.insert(kept.to_owned(), Stand { written: written.to_owned(), place });
    }

    /// Forgets a path and those below it.
    pub(super) fn drop_below(&mut self, kept: &str) {
        self.0.retain(|path, _| !is_below(path, kept));
    }

    /// Notes the place of every node at and below `node`.
    pub(super) fn note(&mut self, kept: &str, written: &str, node: &Node) {
        self.put(kept, written, node.place);
        match &node.content {
            Content::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.note(&shape::item(kept, index), &shape::item(written, index), item);
                }
            }
            Content::Map(entries) => {
                for entry in entries {
                    self.note(&shape::field(kept, &entry.key), &shape::field(written, &entry.key), &entry.value);
                }
            }
            _ => {}
        }
    }
}

/// Whether `path` is `above` or a path below it: `user` is no part of `userr`.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// A node of a document with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it starts; none where the document was not text.
    pub place: Option<Place>,
    /// What it is.
    pub content: Content,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Nothing, or `null`: the same as a field that is not given.
    Null,
    /// `true` or `false`, and no other spelling.
    Bool(bool),
    /// A number.
    Number(serde_json::Number),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the text.
    Map(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key starts.
    pub place: Option<Place>,
    /// What it names.
    pub value: Node,
}

impl Node {
    /// The text of a text node.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a key of a mapping, unless it is null.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Content::Map(entries) = &self.content else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value).filter(|node| !node.is_null())
    }

    /// Sets a key of a mapping to a number.
    pub(super) fn set(&mut self, key: &str, number: serde_json::Number) {
        if let Content::Map(entries) = &mut self.content {
            entries.retain(|entry| entry.key != key);
            let value = Self { place: None, content: Content::Number(number) };
            entries.push(Entry { key: key.to_owned(), place: None, value });
        }
    }

    /// Whether nothing is there.
    pub fn is_null(&self) -> bool {
        self.content == Content::Null
    }

    /// The same as JSON, without the fields that are null.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.content {
            Content::Null => serde_json::Value::Null,
            Content::Bool(value) => (*value).into(),
            Content::Number(number) => serde_json::Value::Number(number.clone()),
            Content::Text(text) => text.as_str().into(),
            Content::List(items) => items.iter().map(Self::to_json).collect(),
            Content::Map(entries) => serde_json::Value::Object(
                entries
                    .iter()
                    .filter(|entry| !entry.value.is_null())
                    .map(|entry| (entry.key.clone(), entry.value.to_json()))
                    .collect(),
            ),
        }
    }

    /// A document that was read elsewhere; it has no places.
    pub fn from_json(value: &serde_json::Value) -> Self {
        let content = match value {
            serde_json::Value::Null => Content::Null,
            serde_json::Value::Bool(value) => Content::Bool(*value),
            serde_json::Value::Number(number) => Content::Number(number.clone()),
            serde_json::Value::String(text) => Content::Text(text.clone()),
            serde_json::Value::Array(items) => Content::List(items.iter().map(Self::from_json).collect()),
            serde_json::Value::Object(fields) => Content::Map(
                fields
                    .iter()
                    .map(|(key, value)| Entry { key: key.clone(), place: None, value: Self::from_json(value) })
                    .collect(),
            ),
        };
        Self { place: None, content }
    }
}

/// A document, read as far as its faults of form allow.
#[derive(Debug)]
pub struct Read<T> {
    /// What has the right form; none where nothing can be made of it.
    pub value: Option<T>,
    /// Where its fields stand.
    pub places: Places,
    /// Every fault of form: unknown fields, wrong types, bad words, what is missing.
    pub found: Violations,
}

impl<T> Read<T> {
    /// The value, if neither the form nor `check`, which looks at the meaning of all that has the right form, finds a
    /// fault; else all faults of both kinds at once.
    pub fn and(self, check: impl FnOnce(&T, &Places) -> Violations) -> Result<T, Violations> {
        let Self { value, places, mut found } = self;
        if let Some(value) = &value {
            // What was left out for its form may be just what is missed now.
            let missed = |fault: &Violation| {
                !fault.path.is_empty() && found.0.iter().any(|form| is_below(&form.path, &fault.path))
            };
            let meaning: Vec<Violation> = check(value, &places).0.into_iter().filter(|fault| !missed(fault)).collect();
            found.0.extend(meaning);
        }
        match value {
            Some(value) => found.or_ok(value),
            None => Err(found.or_ok(()).err().unwrap_or_else(|| Violations::whole("nothing can be made of it"))),
        }
    }
}

/// Reads text as a `T`. Faults of syntax come alone.
pub fn read<T: DeserializeOwned + JsonSchema>(text: &str, rules: &Rules) -> Result<Read<T>, Violations> {
    convert(&parse(text, rules)?, rules)
}

/// Reads a node as a `T`, with the same checks as [`read`].
pub fn convert<T: DeserializeOwned + JsonSchema>(node: &Node, rules: &Rules) -> Result<Read<T>, Violations> {
    let schema = schemars::schema_for!(T).to_value();
    let shape::Examined { kept, places, found } = shape::examine(node, &schema, rules);
    let value = match kept.map(|kept| serde_json::from_value(kept.to_json())) {
        Some(Ok(value)) => Some(value),
        None => None,
        // What the schema cannot say; it counts only where the schema found nothing.
        Some(Err(_)) if !found.0.is_empty() => None,
        Some(Err(error)) => return Err(Violations::whole(error.to_string())),
    };
    Ok(Read { value, places, found })
}

/// Reads text as far as it is YAML. Faults of syntax come alone.
pub(super) fn parse(text: &str, rules: &Rules) -> Result<Node, Violations> {
    if text.len() > rules.max_bytes {
        return Err(Violations::whole(format!(
            "a {} has at most {} KiB, this one has {}",
            rules.what,
            rules.max_bytes / 1024,
            text.len().div_ceil(1024)
        )));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            max_nodes: 100_000,
            max_events: 250_000,
            max_documents: 1,
            max_aliases: 256,
            max_anchors: 256,
            max_merge_keys: 64,
            max_total_scalar_bytes: rules.max_bytes,
        },
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let node: Spanned<Node> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = error.location().and_then(|at| place(at.line(), at.column()));
        let message = syntax(&error.to_string());
        Violations(vec![Violation {
            path: String::new(),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            message,
        }])
    })?;
    Ok(placed(node))
}

/// The parser's words for a fault of syntax, without its wording of the place (which is printed in front) and without
/// the names of its own settings.
fn syntax(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    let message = message.split(" at line ").next().unwrap_or(message);
    let message = message.split(", set DuplicateKeyPolicy").next().unwrap_or(message);
    if message.contains("Documents {") || message.contains("multiple documents") {
        "more than one document; only one is taken".to_owned()
    } else if message.starts_with("budget breached") || message.contains("recursion limit") {
        "nested too deep, or with too many nodes, anchors or aliases".to_owned()
    } else {
        message.replace(" rejected by the configured policy", " is not taken")
    }
}

fn place(line: u64, column: u64) -> Option<Place> {
    match (u32::try_from(line), u32::try_from(column)) {
        (Ok(line @ 1..), Ok(column @ 1..)) => Some(Place { line, column }),
        _ => None,
    }
}

fn placed(spanned: Spanned<Node>) -> Node {
    Node { place: place(spanned.referenced.line(), spanned.referenced.column()), content: spanned.value.content }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Builder).map(|content| Self { place: None, content })
    }
}

struct Builder;

impl<'de> de::Visitor<'de> for Builder {
    type Value = Content;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a mapping, a list, text, a number, true, false or null")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Content, E> {
        serde_json::Number::from_f64(value).map(Content::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Text(value.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Spanned<Node>>()? {
            items.push(placed(item));
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = access.next_entry::<Spanned<String>, Spanned<Node>>()? {
            let at = place(key.referenced.line(), key.referenced.column());
            entries.push(Entry { key: key.value, place: at, value: placed(value) });
        }
        Ok(Content::Map(entries))
    }
}
