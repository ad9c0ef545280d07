//! Compares a document with the JSON Schema of its type, so that unknown fields, missing fields, wrong types and bad
//! words are all reported at once, each with its place.
//!
//! In: a node and a schema as schemars writes it. Out: nothing, or all violations. Must not: be a general validator;
//! it knows the keywords the types of this project produce.

use serde_json::Value;

use super::{
    document::{Content, Entry, Node, Place, Places, Rules},
    violation::{Violation, Violations},
};

/// `path.key`, the key quoted where it is not a plain word.
pub fn field(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    let key = if plain { key.to_owned() } else { format!("'{}'", key.escape_debug()) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// `path[index]`.
pub fn item(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// What of a node has the form of its schema, where that is anything; where it stands; and every way in which the rest is
/// not what `schema` describes.
pub(super) struct Examined {
    /// The node without what has a fault.
    pub(super) kept: Option<Node>,
    /// Places in `kept`, with the paths they have in the document.
    pub(super) places: Places,
    /// Every fault.
    pub(super) found: Violations,
}

/// Examines `node`.
pub(super) fn examine(node: &Node, schema: &Value, rules: &Rules) -> Examined {
    let mut walk = Walk { root: schema, rules, found: Violations::default(), places: Places::default() };
    let kept = walk.node(node, schema, &At::default());
    Examined { kept, places: walk.places, found: walk.found }
}

/// Where a node stands: in the document, and in what is kept of it (items of lists move up).
#[derive(Debug, Clone, Default)]
struct At {
    written: String,
    kept: String,
}

impl At {
    fn field(&self, key: &str) -> Self {
        Self { written: field(&self.written, key), kept: field(&self.kept, key) }
    }

    fn item(&self, written: usize, kept: usize) -> Self {
        Self { written: item(&self.written, written), kept: item(&self.kept, kept) }
    }
}

struct Walk<'a> {
    root: &'a Value,
    rules: &'a Rules,
    found: Violations,
    places: Places,
}

impl Walk<'_> {
    fn fault(&mut self, path: &str, place: Option<Place>, message: impl Into<String>) {
        self.found.0.push(Violation {
            path: path.to_owned(),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            message: message.into(),
        });
    }

    /// The node, or what of it is as it should be; none where nothing can be made of it.
    fn node(&mut self, node: &Node, schema: &Value, at: &At) -> Option<Node> {
        let kept = self.kept(node, schema, at);
        match &kept {
            Some(_) => self.places.put(&at.kept, &at.written, node.place),
            None => self.places.drop_below(&at.kept),
        }
        kept
    }

    fn kept(&mut self, node: &Node, schema: &Value, at: &At) -> Option<Node> {
        let path = at.written.as_str();
        if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix("#/$defs/")) {
            let Some(target) = self.root.get("$defs").and_then(|defs| defs.get(name)) else {
                return Some(self.whole(node, at));
            };
            let before = self.found.0.len();
            let kept = self.kept(node, target, at);
            let check = self.rules.checks.iter().find(|(of, _)| *of == name).map(|(_, check)| check);
            if let (Some(check), true) = (check, self.found.0.len() == before)
                && let Err(message) = check(node)
            {
                self.fault(path, node.place, message);
                return None;
            }
            return kept;
        }
        if let Some(words) = words(schema) {
            if node.text().is_some_and(|text| words.contains(&text)) {
                return Some(node.clone());
            }
            self.fault(path, node.place, one_of(&words));
            return None;
        }
        if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
            return self.any(node, branches, at);
        }
        let kinds = kinds(schema);
        if kinds.is_empty() {
            return Some(self.whole(node, at)); // Anything is taken here.
        }
        if !kinds.iter().any(|kind| is(node, kind)) {
            self.fault(path, node.place, expected(node, &kinds));
            return None;
        }
        match &node.content {
            Content::Map(entries) => self.map(node, entries, schema, at),
            Content::List(items) => {
                let Some(of) = schema.get("items") else { return Some(self.whole(node, at)) };
                let mut kept = Vec::new();
                for (index, entry) in items.iter().enumerate() {
                    kept.extend(self.node(entry, of, &at.item(index, kept.len())));
                }
                Some(Node { place: node.place, content: Content::List(kept) })
            }
            Content::Number(number) => {
                if let Some(message) = range(number, schema) {
                    self.fault(path, node.place, message);
                    return None;
                }
                Some(node.clone())
            }
            _ => Some(node.clone()),
        }
    }

    fn any(&mut self, node: &Node, branches: &[Value], at: &At) -> Option<Node> {
        // Where more than one branch remains, text or a structure is taken; the checks by name say the rest.
        let mut branches = branches.iter().filter(|branch| !kinds(branch).contains(&"null"));
        match (branches.next(), branches.next()) {
            (Some(only), None) => self.kept(node, only, at),
            _ => Some(self.whole(node, at)),
        }
    }

    /// A node whose inside is nobody's business here.
    fn whole(&mut self, node: &Node, at: &At) -> Node {
        self.places.note(&at.kept, &at.written, node);
        node.clone()
    }

    fn map(&mut self, node: &Node, entries: &[Entry], schema: &Value, at: &At) -> Option<Node> {
        let known = schema.get("properties").and_then(Value::as_object);
        let other = schema.get("additionalProperties");
        let mut kept = Vec::new();
        for entry in entries {
            let at = at.field(&entry.key);
            let path = at.written.as_str();
            let schema = known.and_then(|known| known.get(&entry.key));
            let value = if let Some((_, why)) = self.rules.refused.iter().find(|(refused, _)| *refused == path) {
                self.fault(path, entry.place, *why);
                None
            } else if let Some(schema) = schema {
                if entry.value.is_null() { Some(entry.value.clone()) } else { self.node(&entry.value, schema, &at) }
            } else if other == Some(&Value::Bool(false)) {
                let names = known.map(|known| known.keys().map(String::as_str).collect::<Vec<_>>()).unwrap_or_default();
                self.fault(path, entry.place, unknown(&entry.key, &names));
                None
            } else if let Some(other) = other {
                self.node(&entry.value, other, &at)
            } else {
                Some(self.whole(&entry.value, &at))
            };
            kept.extend(value.map(|value| Entry { key: entry.key.clone(), place: entry.place, value }));
        }
        let mut whole = Node { place: node.place, content: Content::Map(kept) };
        let mut usable = true;
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if node.get(name).is_none() {
                self.fault(&field(&at.written, name), node.place, "is required");
            }
            if whole.get(name).is_some() {
                continue;
            }
            // What is wrong with the rest can be said all the same.
            match self.rules.stand_in.iter().find(|(path, _)| *path == field(&at.written, name)) {
                Some((_, number)) => whole.set(name, (*number).into()),
                None => usable = false,
            }
        }
        usable.then_some(whole)
    }
}

/// The words of an enumeration, in whichever form schemars writes it.
fn words(schema: &Value) -> Option<Vec<&str>> {
    if let Some(word) = schema.get("const").and_then(Value::as_str) {
        return Some(vec![word]);
    }
    if let Some(list) = schema.get("enum").and_then(Value::as_array) {
        return Some(list.iter().filter_map(Value::as_str).collect());
    }
    let branches = schema.get("oneOf").and_then(Value::as_array)?;
    let lists: Option<Vec<_>> = branches.iter().map(words).collect();
    lists.map(|lists| lists.into_iter().flatten().collect())
}

fn one_of(words: &[&str]) -> String {
    match words {
        [only] => format!("must be '{only}'"),
        _ => format!("must be one of {}", words.join(", ")),
    }
}

fn kinds(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn is(node: &Node, kind: &str) -> bool {
    match (&node.content, kind) {
        (Content::Null, "null")
        | (Content::Bool(_), "boolean")
        | (Content::Text(_), "string")
        | (Content::List(_), "array")
        | (Content::Map(_), "object")
        | (Content::Number(_), "number") => true,
        (Content::Number(number), "integer") => number.is_i64() || number.is_u64(),
        _ => false,
    }
}

fn expected(node: &Node, kinds: &[&str]) -> String {
    let names = kinds.iter().filter(|kind| **kind != "null").map(|kind| match *kind {
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "text",
        "array" => "a list",
        _ => "a mapping",
    });
    let names = names.collect::<Vec<_>>().join(" or ");
    match &node.content {
        Content::Number(number) if kinds.contains(&"string") => {
            format!("must be {names}: write \"{number}\" in quotes")
        }
        Content::Bool(value) if kinds.contains(&"string") => format!("must be {names}: write \"{value}\" in quotes"),
        _ => format!("must be {names}"),
    }
}

fn range(number: &serde_json::Number, schema: &Value) -> Option<String> {
    let value = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))?;
    let (low, high) = match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => (0, i128::from(u8::MAX)),
        Some("uint16") => (0, i128::from(u16::MAX)),
        Some("uint32") => (0, i128::from(u32::MAX)),
        Some("uint64") => (0, i128::from(u64::MAX)),
        Some("int32") => (i128::from(i32::MIN), i128::from(i32::MAX)),
        _ => (i128::from(i64::MIN), i128::from(u64::MAX)),
    };
    let limit = |key: &str| schema.get(key).and_then(Value::as_i64).map(i128::from);
    let (low, high) = (limit("minimum").unwrap_or(low), limit("maximum").unwrap_or(high));
    if value < low {
        Some(format!("is {value}, the least is {low}"))
    } else if value > high {
        Some(format!("is {value}, the most is {high}"))
    } else {
        None
    }
}

fn unknown(key: &str, names: &[&str]) -> String {
    let near = names.iter().map(|name| (distance(key, name), *name)).min().filter(|(far, _)| *far <= 2);
    match near {
        Some((_, name)) => format!("unknown field; did you mean '{name}'?"),
        None => format!("unknown field; known here: {}", names.join(", ")),
    }
}

/// Edit distance, where letter case counts nothing.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.to_ascii_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.to_ascii_lowercase().chars().take(64).enumerate() {
        let mut next = vec![index + 1];
        let mut last = index + 1;
        for ((to, above_left), above) in right.iter().zip(&row).zip(row.iter().skip(1)) {
            last = (above_left + usize::from(from != *to)).min(above + 1).min(last + 1);
            next.push(last);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
