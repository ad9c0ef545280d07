//! The protocol's document is the one that is served, and covers what is served.

use std::path::Path;

use super::openapi;

#[test]
fn the_gateway_document_is_the_one_in_docs() {
    let made = serde_json::to_string_pretty(&openapi::document()).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/gateway-openapi.json");
    if std::env::var_os("MOLT_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "docs/gateway-openapi.json is stale: MOLT_BLESS=1 cargo test -p molt the_gateway_document");
}
