//! The published JSON Schema, judged by a validator that is not ours: it takes what the parser takes, and refuses what
//! the parser refuses, as far as a schema can say it.
//!
//! In: `crate::schema()`, the shipped policies, policies people write, each of them spoilt in every place. Out:
//! agreement. Must not: compare a document with the schema by the parser's own means.

use boon::{Compiler, Draft, SchemaIndex, Schemas};
use serde_json::{Map, Value, json};

const WRITTEN: [&str; 6] = [
    include_str!("../../tests/golden/policies/quickstart.yaml"),
    include_str!("../../tests/golden/policies/agent.yaml"),
    include_str!("../../tests/golden/policies/transparent-tcp.yaml"),
    include_str!("../../tests/golden/policies/protocols.yaml"),
    include_str!("../../tests/golden/policies/middleware.yaml"),
    include_str!("../../tests/golden/policies/files-only.yaml"),
];

/// What a schema can say beyond kinds, words and fields, said wrongly.
const WRONG: [&str; 22] = [
    "[]",
    "{}",
    "version: 2",
    "version: one",
    "version: 1\nlandlock: {compatibility: strict}",
    "version: 1\nfilesystem_policy: {readonly: []}",
    "version: 1\nfilesystem_policy: {read_only: [usr]}",
    "version: 1\nfilesystem_policy: {read_write: [\"\"]}",
    "version: 1\nprocess: {run_as_user: root}",
    "version: 1\nprocess: {run_as_user: \"0\"}",
    "version: 1\nprocess: {run_as_user: \"007\"}",
    "version: 1\nprocess: {run_as_user: 1000}",
    "version: 1\nprocess: {run_as_group: \"99999999999\"}",
    "version: 1\nnetwork_policies: {a: {endpoints: [{host: x.y, port: 0}]}}",
    "version: 1\nnetwork_policies: {a: {endpoints: [{host: x.y, port: 65536}]}}",
    "version: 1\nnetwork_policies: {a: {endpoints: [{host: x.y, ports: [443, 0]}]}}",
    "version: 1\nnetwork_policies: {a: {endpoints: [{host: x.y, port: \"443\"}]}}",
    "version: 1\nnetwork_policies: {a: {endpoints: [{host: x.y, port: 443, protocol: rest, rules: [{deny: {}}]}]}}",
    "version: 1\nnetwork_policies: {a: {binaries: [{path: \"\"}]}}",
    "version: 1\nnetwork_middlewares: {a: {endpoints: {}}}",
    "version: 1\nnetwork_middlewares: {a: {middleware: \"\", endpoints: {}}}",
    "version: 1\nnetwork_middlewares: {a: {middleware: m, endpoints: {}, on_error: maybe}}",
];

struct Published {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Published {
    fn new() -> Self {
        let schema = crate::schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.set_default_draft(Draft::V2020_12);
        compiler.add_resource("molt:policy", schema).unwrap();
        let index = compiler.compile("molt:policy", &mut schemas).expect("a valid schema");
        Self { schemas, index }
    }

    fn takes(&self, document: &Value) -> bool {
        self.schemas.validate(document, self.index).is_ok()
    }
}

fn document(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn good() -> impl Iterator<Item = &'static str> {
    crate::BUILTINS.iter().map(|(_, text)| *text).chain(WRITTEN)
}

#[test]
fn it_takes_what_people_write() {
    let published = Published::new();
    for text in good() {
        let name = text.lines().next().unwrap();
        crate::parse(text.as_bytes()).unwrap_or_else(|faults| panic!("{name}: {faults}"));
        assert!(published.takes(&document(text)), "the schema refuses: {name}");
    }
}

#[test]
fn it_refuses_what_a_schema_can_say_is_wrong() {
    let published = Published::new();
    let paths: Vec<String> = (0..257).map(|number| format!("/{number}")).collect();
    let middleware = |order: i32| json!({"middleware": "m", "order": order, "endpoints": {}});
    let middlewares: Map<String, Value> = (0..11).map(|order| (format!("m{order}"), middleware(order))).collect();
    let patterns: Vec<String> = (0..33).map(|number| format!("h{number}.example.com")).collect();
    let long = json!({"version": 1, "filesystem_policy": {"read_only": [format!("/{}", "x".repeat(4096))]}});
    let many = json!({"version": 1, "filesystem_policy": {"read_only": paths}});
    let crowded = json!({"version": 1, "network_middlewares": middlewares});
    let wide = json!({
        "version": 1,
        "network_middlewares": {"m": {"middleware": "m", "endpoints": {"include": patterns}}},
    });
    for wrong in WRONG.iter().map(|text| document(text)).chain([long, many, crowded, wide]) {
        let shown: String = wrong.to_string().chars().take(200).collect();
        assert!(!published.takes(&wrong), "the schema takes {shown}");
        assert!(crate::from_value(&wrong).is_err(), "the parser takes {shown}");
    }
}

/// Every document made of `whole` by one change: each value replaced, each field left out, a field too many.
fn spoilt(whole: &Value) -> Vec<Value> {
    let others = [
        json!(true),
        json!(5),
        json!(-1),
        json!(5_000_000_000_u64),
        json!(0.5),
        json!("word"),
        json!(["/word"]),
        json!([5]),
        json!({}),
        json!({"word": "word"}),
    ];
    let mut all: Vec<Value> = others.into_iter().filter(|other| other != whole).collect();
    match whole {
        Value::Object(fields) => {
            for (key, value) in fields {
                let with = |value: Option<Value>| {
                    let mut fields = fields.clone();
                    match value {
                        Some(value) => drop(fields.insert(key.clone(), value)),
                        None => drop(fields.remove(key)),
                    }
                    Value::Object(fields)
                };
                all.push(with(None));
                all.extend(spoilt(value).into_iter().map(|value| with(Some(value))));
            }
            let mut fields = fields.clone();
            fields.insert("surplus".to_owned(), json!({}));
            all.push(Value::Object(fields));
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                for item in spoilt(item) {
                    let mut items = items.clone();
                    items[index] = item;
                    all.push(Value::Array(items));
                }
            }
        }
        _ => {}
    }
    all
}

/// How a fault of form reads; the schema must see every one of these.
const FORM: [&str; 6] =
    ["unknown field", "is required", "must be text", "must be a ", "must be true or", "must be one of"];
/// Two that read alike and are about meaning: what a query, a tool or a parameter may be is told by its content.
const MEANING: [&str; 2] = ["must be a pattern", "must be a whole label"];

#[test]
fn it_agrees_with_the_parser_on_every_spoilt_policy() {
    let published = Published::new();
    let (mut taken, mut refused, mut meaning) = (0, 0, 0);
    for text in good() {
        for document in spoilt(&document(text)) {
            match (published.takes(&document), crate::from_value(&document)) {
                (true, Ok(_)) => taken += 1,
                (false, Err(_)) => refused += 1,
                (false, Ok(_)) => panic!("the parser takes, the schema refuses: {document:#}"),
                (true, Err(faults)) => {
                    let of_form = |message: &str| {
                        FORM.iter().any(|form| message.contains(form)) && !MEANING.iter().any(|it| message.contains(it))
                    };
                    let seen = faults.0.iter().find(|fault| of_form(&fault.message));
                    assert!(seen.is_none(), "the schema takes what the parser says of: {seen:?}\n{document:#}");
                    meaning += 1;
                }
            }
        }
    }
    println!("spoilt policies: {taken} taken and {refused} refused by both, {meaning} wrong in what they mean");
    assert!(taken > 100 && refused > 1000, "{taken} taken, {refused} refused, {meaning} wrong in what they mean");
}

/// `read_only:` with nothing behind it is the same as no such line; a schema that says so would say it of every field.
#[test]
fn a_field_left_empty_is_taken_by_the_parser_alone() {
    let empty = document("version: 1\nfilesystem_policy: {read_only: , read_write: [/tmp]}");
    assert!(crate::from_value(&empty).is_ok());
    assert!(!Published::new().takes(&empty));
}
