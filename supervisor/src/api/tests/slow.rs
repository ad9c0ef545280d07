//! Peers that are slow, or take nothing of what they asked for: what they hold comes back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use molt_core::{
    ids::Generation,
    spec::{Allow, Listen, Role},
    wire::{PhaseName, What},
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::api::{fake, listen, peer::Peer, routes, tls::Tls};
use crate::{
    command::Handle,
    observe::output::{End, Stream},
};

const OPERATOR: Peer = Peer::Operator { uid: 0, pid: None };

/// Asks for `path` over a connection that holds 64 bytes, and reads nothing; whether its places are back in time.
async fn comes_back(handle: Handle, path: &str) -> bool {
    let (ours, mut theirs) = tokio::io::duplex(64);
    let (one, streams) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(1)));
    let slot = listen::Slot::new(Arc::clone(&one).try_acquire_owned().unwrap(), Arc::clone(&streams));
    let ask = async {
        theirs.write_all(format!("GET {path} HTTP/1.1\r\nhost: molt\r\n\r\n").as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    };
    let serve = listen::connection(ours, routes::router(handle), slot, OPERATOR, Arc::default());
    tokio::select! {
        ended = timeout(listen::STUCK_TIME * 2, serve) => {
            ended.is_ok() && (one.available_permits(), streams.available_permits()) == (1, 1)
        }
        () = ask => false,
    }
}

/// It takes the half minute that a peer may take nothing.
#[tokio::test]
async fn a_peer_that_never_reads_its_answer_loses_its_place() {
    let handle = fake::start();
    for _ in 0..50 {
        handle.events.publish(None, What::Phase { phase: PhaseName::Idle, message: "x".repeat(100) });
        handle.output.push(Generation(1), Stream::Stdout, &[b'x'; 100], End::Line);
    }
    let ask = |path: &'static str| comes_back(handle.clone(), path);
    let (document, events, logs) = tokio::join!(ask("/v1/status"), ask("/v1/events"), ask("/v1/logs?follow=1"));
    assert!(document && events && logs, "status {document}, events {events}, logs {logs}");
}

#[tokio::test]
async fn only_a_stream_lasts_longer_than_a_connection_may() {
    let limit = Duration::from_millis(50);
    let serving = || sleep(limit * 4);
    assert_eq!(listen::in_time(serving(), limit, || false).await, None);
    assert_eq!(listen::in_time(serving(), limit, || true).await, Some(()));
    assert_eq!(listen::in_time(async { 7 }, limit, || false).await, Some(7));
}

/// An authority, and what it signs: certificate and key, in PEM.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    fn vouch(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// A listener that lets nobody in whom the authority does not know under another name, and a client of it.
fn listening() -> (std::net::SocketAddr, Tls, rustls::ClientConfig) {
    static FOLDERS: AtomicUsize = AtomicUsize::new(0);
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("molt-slow-{}-{number}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name).to_str().unwrap().to_owned()
    };
    let authority = Authority::new();
    let (certificate, key) = authority.vouch("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    // One that is free now; nobody else binds it in this process.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listen = Listen {
        address: address.to_string(),
        certificate: file("tls.pem", &certificate),
        key: file("tls.key", &key),
        client_ca: file("ca.pem", &authority.1),
        allow: vec![Allow { san: "listed.example".to_owned(), role: Role::Read, allow_wider: false }],
    };
    let tls = Tls::bind(&listen).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.1.as_bytes()).unwrap()).unwrap();
    let (certificate, key) = authority.vouch("stranger.example", ExtendedKeyUsagePurpose::ClientAuth);
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    (address, tls, client)
}

/// Strangers who say nothing, far more of them than are heard at once.
#[tokio::test]
async fn strangers_with_a_certificate_are_turned_away_a_few_at_a_time() {
    const MANY: usize = 120;
    let (address, tls, client) = listening();
    tokio::spawn(tls.serve(fake::start()));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let strangers: Vec<_> = (0..MANY)
        .map(|_| {
            let (connector, open, most) = (connector.clone(), Arc::clone(&open), Arc::clone(&most));
            tokio::spawn(async move {
                let tcp = TcpStream::connect(address).await.unwrap();
                let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
                most.fetch_max(open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 64]).await;
                open.fetch_sub(1, Ordering::Relaxed);
            })
        })
        .collect();
    for stranger in strangers {
        timeout(Duration::from_mins(1), stranger).await.expect("each is heard, and turned away").unwrap();
    }
    let most = most.load(Ordering::Relaxed);
    // Some are told a moment later that they were turned away.
    assert!((1..=MANY / 2).contains(&most), "{most} at once");
}
