//! The protocol's document is the one that is served, and covers what is served; names and places are given to whom they
//! should be.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use molt_core::{
    code::Code,
    gateway::Report,
    ids::UpdateId,
    wire::{API_VERSION, Outcome, UpdateView},
};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    auth, files,
    init::{Issue, init, token},
    openapi,
    serve::{STRANGERS, Serve, run},
    store::Store,
};

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

/// A folder of its own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("molt-gateway-{}", files::random_id().unwrap()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_name_that_is_taken_is_one_that_a_certificate_proves() {
    let folder = Folder::new();
    let longest = [&*"x".repeat(63), &"y".repeat(63), &"z".repeat(63), "12345678"].join(".");
    let good = ["a", "0", "a-b", "a--b", "1.2", "x.y-z.0", &"x".repeat(63), &longest];
    let sandboxes = good.map(str::to_owned).to_vec();
    init(&folder.0, &Issue { sandboxes: sandboxes.clone(), operators: sandboxes, hosts: Vec::new() }).unwrap();
    for (below, role) in [("sandboxes", auth::Role::Sandbox), ("operators", auth::Role::Operator)] {
        for name in good {
            let made = files::certificates(&folder.0.join(below).join(name).join("certificate.pem")).unwrap();
            assert_eq!(auth::names(&made[0]), [auth::Who::new(role, name)], "{name}");
        }
    }
    let store = Store::open(&folder.0.join("store")).unwrap();
    let (long, whole) = ("x".repeat(64), format!("{longest}9"));
    for name in ["", "-", "x-", "-x", "a.-b", "a-.b", ".", "a.", ".a", "a..b", "A", "a_b", "a/b", &long, &whole] {
        let issue = Issue { sandboxes: vec![name.to_owned()], ..Issue::default() };
        for why in [init(&folder.0, &issue).map(drop), token(&folder.0, auth::Role::Sandbox, name).map(drop)] {
            assert!(why.unwrap_err().ends_with(auth::RULE), "{name}");
        }
        assert_eq!(store.welcome(name).unwrap_err().code, Code::Invalid, "{name}");
    }
}

/// A connection with the certificate in `own`, or none.
async fn connected(to: SocketAddr, ca: &Path, own: Option<&Path>) -> TlsStream<TcpStream> {
    let builder = ClientConfig::builder_with_provider(files::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(files::roots(ca).unwrap());
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let chain = files::certificates(&own.join("certificate.pem")).unwrap();
            builder.with_client_auth_cert(chain, files::key(&own.join("key.pem")).unwrap()).unwrap()
        }
    };
    let stream = TcpStream::connect(to).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap()
}

/// What comes of asking for all sandboxes: the head of the answer, and whether the connection ended with it.
async fn asked(on: &mut TlsStream<TcpStream>, more: &str) -> (String, bool) {
    on.write_all(format!("GET /v1/sandboxes HTTP/1.1\r\nHost: x\r\n{more}\r\n").as_bytes()).await.unwrap();
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match timeout(Duration::from_secs(1), on.read(&mut buffer)).await {
            Ok(Ok(length)) if length > 0 => said.extend_from_slice(&buffer[..length]),
            ended => return (String::from_utf8(said).unwrap(), ended.is_ok()),
        }
    }
}

async fn has_ended(stream: &mut TlsStream<TcpStream>) -> bool {
    !matches!(timeout(Duration::from_millis(1), stream.read(&mut [0; 1])).await, Err(_) | Ok(Ok(1..)))
}

#[tokio::test]
async fn strangers_keep_no_place_from_those_who_have_a_name() {
    let folder = Folder::new();
    let issue =
        Issue { hosts: vec!["127.0.0.1".to_owned()], operators: vec!["admin".to_owned()], sandboxes: Vec::new() };
    init(&folder.0, &issue).unwrap();
    let by_token = token(&folder.0.join("store"), auth::Role::Operator, "other").unwrap();
    let serve = Serve {
        store: folder.0.join("store"),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        certificate: folder.0.join("server/certificate.pem"),
        key: folder.0.join("server/key.pem"),
        client_ca: folder.0.join("ca.pem"),
        operators: Vec::new(),
    };
    let (tell, listens) = tokio::sync::oneshot::channel();
    let serving = tokio::spawn(async move { run(&serve, |address| tell.send(address).unwrap()).await });
    let address = listens.await.unwrap();
    let (ca, own) = (folder.0.join("ca.pem"), folder.0.join("operators/admin"));
    // Those who are in stay, even where they say nothing for a while.
    let mut named = connected(address, &ca, Some(&own)).await;
    let mut known = connected(address, &ca, None).await;
    let bearer = format!("Authorization: Bearer {by_token}\r\n");
    assert_eq!(asked(&mut known, &bearer).await.0.split("\r\n").next(), Some("HTTP/1.1 200 OK"));
    let mut many = Vec::new();
    for _ in 0..STRANGERS + 20 {
        many.push(connected(address, &ca, None).await);
    }
    let since = Instant::now();
    assert!(has_ended(&mut many[0]).await && has_ended(&mut many[19]).await, "there are too many");
    assert!(!has_ended(many.last_mut().unwrap()).await, "the newest is to have his chance");
    let mut newcomer = connected(address, &ca, Some(&own)).await;
    for stream in [&mut newcomer, &mut named] {
        assert!(asked(stream, "").await.0.starts_with("HTTP/1.1 200 OK"));
    }
    // One question, and no more.
    let (said, ended) = asked(many.last_mut().unwrap(), "").await;
    assert!(said.starts_with("HTTP/1.1 401 ") && said.contains("connection: close") && ended, "{said}");
    // Who asks for nothing has a few seconds.
    let last = many.len() - 2;
    while !has_ended(&mut many[last]).await {
        assert!(since.elapsed() < Duration::from_secs(20), "a stranger stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (stream, more) in [(&mut named, ""), (&mut known, &*bearer)] {
        assert!(asked(stream, more).await.0.starts_with("HTTP/1.1 200 OK"));
    }
    serving.abort();
}
