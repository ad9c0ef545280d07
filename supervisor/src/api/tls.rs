//! The TLS listener: TLS 1.3, a client certificate of one authority, a name of it that the spec lists.
//!
//! In: connections from anywhere that reaches the address, the workload included. Out: requests of a peer whose role says
//! what it may ask for. Must not: share a limit with the operator socket, wait for a handshake without an end, resume a
//! session (a certificate counts as of now), or end a live stream because a certificate was rotated.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::http::StatusCode;
use molt_core::{
    code::Code,
    spec::{Listen, Role},
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    answer::Refused,
    listen,
    peer::Peer,
    routes,
    san::{self, San},
};
use crate::{
    aside,
    command::Handle,
    triggers::{files::Watches, spec::text},
};

/// Connections that are served at once.
const CONNECTIONS: usize = 16;
/// Of these, how many may be streams.
const STREAMS: usize = 8;
/// Handshakes under way, and connections that are only told why they are refused.
const HANDSHAKES: usize = 32;
/// How long one may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest PEM file.
const PEM: usize = 256 << 10;
/// The pause after a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener that is bound, with certificates that are good.
#[derive(Debug)]
pub(crate) struct Tls {
    listener: std::net::TcpListener,
    files: Files,
    config: Arc<ServerConfig>,
    allow: Vec<(San, Role, bool)>,
}

/// Where certificates lie.
#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

impl Files {
    /// What a handshake needs, or why it cannot be had. No word of a key is in it. Blocks.
    fn load(&self) -> Result<Arc<ServerConfig>, String> {
        let wrong = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let certificates = |path: &Path| {
            let text = text(path, PEM)?;
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
            match all {
                Ok(all) if all.is_empty() => Err(wrong(path, &"holds no certificate")),
                Ok(all) => Ok(all),
                Err(error) => Err(wrong(path, &error)),
            }
        };
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(text(&self.key, PEM)?.as_bytes());
        let key = key.map_err(|_| wrong(&self.key, &"holds no private key in PEM"))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.authority)? {
            roots.add(authority).map_err(|error| wrong(&self.authority, &error))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| wrong(&self.authority, &error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
            .map_err(|error| wrong(&self.certificate, &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

impl Tls {
    /// Binds the address and reads the certificates.
    pub(crate) fn bind(spec: &Listen) -> Result<Self, String> {
        let files = Files {
            certificate: PathBuf::from(&spec.certificate),
            key: PathBuf::from(&spec.key),
            authority: PathBuf::from(&spec.client_ca),
        };
        let config = files.load()?;
        let address: SocketAddr = spec.address.parse().map_err(|error| format!("{}: {error}", spec.address))?;
        let fail = |error: std::io::Error| format!("failed to listen on {address}: {error}");
        let listener = std::net::TcpListener::bind(address).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let allow = spec.allow.iter().map(|one| (San::written(&one.san), one.role, one.allow_wider)).collect();
        Ok(Self { listener, files, config, allow })
    }

    /// Serves until the task is dropped.
    pub(crate) async fn serve(self, handle: Handle) {
        let Self { listener, files, config, allow } = self;
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "failed to watch the TLS listener"),
        };
        let (current, config) = watch::channel(config);
        tokio::spawn(rotate(files, current));
        let (router, allow) = (routes::router(handle), Arc::new(allow));
        let (slots, streams) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(STREAMS)));
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        while let Ok(place) = Arc::clone(&handshakes).acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else {
                crate::timer::sleep(PAUSE).await;
                continue;
            };
            let acceptor = TlsAcceptor::from(Arc::clone(&config.borrow()));
            let (router, allow) = (router.clone(), Arc::clone(&allow));
            let (slots, streams) = (Arc::clone(&slots), Arc::clone(&streams));
            tokio::spawn(async move {
                let Some(stream) = shake(stream, acceptor).await else { return };
                match (admit(&stream, &allow), slots.try_acquire_owned()) {
                    (Ok(peer), Ok(slot)) => {
                        drop(place);
                        listen::connection(stream, router, listen::Slot::new(slot, streams), peer, Arc::default())
                            .await;
                    }
                    (Ok(_), Err(_)) => {
                        let why = format!("{CONNECTIONS} connections are open already; close one and try again");
                        listen::tell(stream, Refused::with_status(StatusCode::SERVICE_UNAVAILABLE, Code::Busy, why))
                            .await;
                    }
                    (Err(stranger), _) => listen::tell(stream, stranger).await,
                }
            });
        }
    }
}

/// Reads the certificates again when a file of them changes; what is not good is told, and the old ones stay.
async fn rotate(files: Files, current: watch::Sender<Arc<ServerConfig>>) {
    let paths = vec![files.certificate.clone(), files.key.clone(), files.authority.clone()];
    let mut watches = match Watches::new(paths) {
        Ok(watches) => watches,
        Err(error) => return tracing::error!(%error, "failed to watch the certificates of the TLS listener"),
    };
    loop {
        watches.burst().await;
        let files = files.clone();
        match aside::run("certificates", move || files.load()).await {
            Some(Ok(config)) => {
                tracing::info!("the certificates of the TLS listener were read again");
                if current.send(config).is_err() {
                    return;
                }
            }
            Some(Err(why)) => tracing::warn!("the certificates of the TLS listener are not taken: {why}"),
            None => {}
        }
    }
}

async fn shake(stream: TcpStream, acceptor: TlsAcceptor) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// Whoever the certificate names, if the spec lists a name of it.
fn admit(stream: &TlsStream<TcpStream>, allow: &[(San, Role, bool)]) -> Result<Peer, Refused> {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let names = certificates.first().map(|first| san::names(first)).unwrap_or_default();
    let found = allow.iter().filter(|(name, ..)| names.contains(name)).max_by_key(|(_, role, wider)| (*role, *wider));
    match found {
        Some((San::Dns(name) | San::Uri(name), role, wider)) => {
            Ok(Peer::Certificate { san: name.clone(), role: *role, wider: *wider })
        }
        None => Err(Refused::with_status(
            StatusCode::FORBIDDEN,
            Code::Unauthorized,
            "no name of this certificate is in api.listen.allow",
        )),
    }
}
