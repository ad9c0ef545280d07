//! The OpenAPI document: made from the code, served, and whole.

use super::*;

#[test]
fn the_document_of_the_api_is_the_code_s() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let made = serde_json::to_string_pretty(&openapi::document()).unwrap() + "\n";
    if std::env::var_os("MOLT_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "docs/openapi.json is stale: MOLT_BLESS=1 cargo test -p molt the_document");
}

/// Every operation is routed, and its refusals and answers are of the kinds that it says.
#[tokio::test]
async fn what_the_document_says_is_served() {
    let served = served();
    let (status, bytes) = served.client.answer(Method::GET, "/v1/openapi.json", NO_BODY).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let mut seen = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let path = path
                .replace("{id}", "u7")
                .replace("{number}", "1")
                .replace("{digest}", &format!("sha256:{}", "0".repeat(64)));
            let query = if path == "/v1/events" { "?follow=0" } else { "" };
            let method: Method = method.to_uppercase().parse().unwrap();
            let (status, _) = served.client.answer(method.clone(), &format!("{path}{query}"), NO_BODY).await.unwrap();
            let responses = operation["responses"].as_object().unwrap();
            let told = responses.contains_key(status.as_str()) || status.is_client_error() || status.is_server_error();
            assert!(told && status != StatusCode::METHOD_NOT_ALLOWED, "{method} {path}: {status}");
            seen += 1;
        }
    }
    assert!(seen >= 23, "{seen} operations");
    // A path that is not in the document is not served.
    let (status, _) = served.client.answer(Method::GET, "/v1/nothing", NO_BODY).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
}

/// References lead somewhere, ids are unique, and path parameters are declared.
#[test]
fn the_document_of_the_api_is_whole() {
    let document = openapi::document();
    let text = document.to_string();
    let mut references = 0;
    for rest in text.split("\"$ref\":\"#").skip(1) {
        let pointer = rest.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer} leads nowhere");
        references += 1;
    }
    assert!(references > 30, "{references}");
    let mut ids = std::collections::BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for operation in operations.as_object().unwrap().values() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{operation}");
            let declared = operation["parameters"].as_array().cloned().unwrap_or_default();
            let declared = declared.iter().filter(|one| one["in"] == "path").count();
            assert_eq!(declared, path.matches('{').count(), "{path}");
        }
    }
}
