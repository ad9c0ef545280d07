//! The protocol's document is the one that is served, and covers what is served.

use std::{path::Path, sync::Arc};

use molt_core::{
    gateway::Report,
    ids::UpdateId,
    wire::{API_VERSION, Outcome, UpdateView},
};

use super::{openapi, store::Store};

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

#[tokio::test]
async fn an_update_that_was_only_staged_has_an_end_yet_to_be_told() {
    let folder = std::env::temp_dir().join(format!("molt-gateway-{}", std::process::id()));
    let store = Arc::new(Store::open(&folder).unwrap());
    store.welcome("tested").unwrap();
    let of = "0".repeat(32);
    let report = |outcome, ended: Option<&str>| {
        let update =
            UpdateView { outcome: Some(outcome), ended: ended.map(str::to_owned), ..crate::api::fake::record(7, None) };
        let (api_version, store) = (API_VERSION.to_owned(), of.clone());
        let (gateway, revision, problem, ordered) = (None, None, None, None);
        Report { api_version, store, gateway, revision, settled: true, update: Some(update), problem, ordered }
    };
    let has = async || store.status("tested", &of, serde_json::json!({})).await.unwrap().0;
    let told = || store.reports("tested").unwrap().into_iter().filter_map(|it| it.update?.outcome).collect::<Vec<_>>();
    for _ in 0..2 {
        store.report("tested", report(Outcome::Staged, None)).await.unwrap();
        assert_eq!((told(), has().await), (vec![Outcome::Staged], vec![]));
    }
    store.report("tested", report(Outcome::RolledBack, Some("then"))).await.unwrap();
    // What comes late, or again, changes nothing.
    store.report("tested", report(Outcome::Staged, None)).await.unwrap();
    store.report("tested", report(Outcome::Confirmed, Some("later"))).await.unwrap();
    assert_eq!((told(), has().await), (vec![Outcome::RolledBack], vec![UpdateId(7)]));
    // A request that is broken off half way is done, or was never begun; memory says what the file says.
    for number in 0..50 {
        let want = molt_core::gateway::Want { reason: Some(number.to_string()), ..back() };
        let asked = store.want("tested", want, "somebody", None);
        let _ = tokio::time::timeout(std::time::Duration::from_micros(number * 20), asked).await;
    }
    let last = store.want("tested", back(), "somebody", None).await.unwrap();
    drop(store);
    let again = Store::open(&folder).unwrap();
    assert_eq!(again.desired("tested").unwrap(), last);
    std::fs::remove_dir_all(&folder).unwrap();
}

fn back() -> molt_core::gateway::Want {
    let rollback = Some(molt_core::gateway::Back { to: None });
    molt_core::gateway::Want { rollback, ..molt_core::gateway::Want::default() }
}
