//! `molt gateway serve`: TLS 1.3 and nothing else, in front of the routes.
//!
//! In: addresses, files, connections. Out: requests with the names that TLS proved. Must not: speak to anybody in plain
//! text, hold more than its share of connections, or go on with a certificate that was renewed.

use std::{net::SocketAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{ServerConfig, server::WebPkiClientVerifier, version::TLS13};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    auth::{self, Guard, Who},
    files::{self, Stamp},
    routes::{self, Gateway},
    store::Store,
    strangers::{Stranger, Strangers},
};

/// Connections served at once: some for each of a handful of sandboxes, and for those who ask.
const CONNECTIONS: usize = 512;
/// Of these, for those who have not been let in.
pub(super) const STRANGERS: usize = CONNECTIONS / 2;
/// For TLS to be agreed on.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How often the files are looked at where nobody calls.
const LOOK: Duration = Duration::from_secs(2);
/// For an answer under way where the files were renewed.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// For the head of a request, and between two of them, once somebody was let in.
const HEAD: Duration = Duration::from_mins(1);

/// What to serve.
#[derive(Debug, Clone)]
pub(crate) struct Serve {
    /// Folder of the store.
    pub(crate) store: PathBuf,
    /// Address.
    pub(crate) listen: SocketAddr,
    /// The gateway's certificate, with its chain.
    pub(crate) certificate: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
    /// Authorities that vouch for sandboxes and operators.
    pub(crate) client_ca: PathBuf,
    /// Operators that are let in; all where empty.
    pub(crate) operators: Vec<String>,
}

/// Serves until it is killed; says where on standard output once it listens.
pub(crate) fn serve(serve: &Serve) -> Result<std::convert::Infallible, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("failed to start: {error}"))?;
    runtime.block_on(run(serve, |address| {
        use std::io::Write as _;
        // Whether anybody reads it does not matter.
        let _ = writeln!(std::io::stdout(), "https://{address}");
    }))
}

/// The same; `listens` is told where, once.
pub(super) async fn run(serve: &Serve, listens: impl FnOnce(SocketAddr)) -> Result<std::convert::Infallible, String> {
    let store = Store::open(&serve.store)?;
    let guard = Guard { tokens: serve.store.join("tokens.json"), operators: serve.operators.clone() };
    auth::tokens(&guard.tokens)?;
    let mut tls = Tls::read(serve)?;
    let listener = TcpListener::bind(serve.listen)
        .await
        .map_err(|error| format!("failed to listen on {}: {error}", serve.listen))?;
    listens(listener.local_addr().map_err(|error| error.to_string())?);
    let router = routes::router(Arc::new(Gateway { store: Arc::new(store), guard }));
    let (slots, strangers) = (Arc::new(Semaphore::new(CONNECTIONS)), Strangers::new(STRANGERS));
    let (renewals, renewed) = watch::channel(());
    loop {
        // Files are looked at also while every place is taken: it may be that its holder is not to have it any more.
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let mut next = pin!(next);
        let accepted = loop {
            let accepted = timeout(LOOK, &mut next).await;
            if tls.renew(serve) {
                renewals.send_replace(());
            }
            if let Ok(accepted) = accepted {
                break accepted;
            }
        };
        let (Ok(slot), accepted) = accepted else { return Err("no more connections".to_owned()) };
        let (stream, from) = match accepted {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                // Out of descriptors: they come back when connections end.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (acceptor, router, mut renewed) = (tls.acceptor.clone(), router.clone(), renewed.clone());
        renewed.mark_unchanged();
        let stranger = Arc::new(strangers.comes(from));
        tokio::spawn(async move {
            connection(acceptor, stream, router, renewed, stranger).await;
            drop(slot);
        });
    }
}

struct Tls {
    stamp: Stamp,
    acceptor: TlsAcceptor,
}

impl Tls {
    fn stamp(serve: &Serve) -> Stamp {
        Stamp::of([&*serve.certificate, &*serve.key, &*serve.client_ca, &*serve.store.join("tokens.json")])
    }

    fn read(serve: &Serve) -> Result<Self, String> {
        let stamp = Self::stamp(serve);
        let roots = Arc::new(files::roots(&serve.client_ca)?);
        // A token does, too; who has neither gets no further than being told so.
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, files::provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| format!("{}: {error}", serve.client_ca.display()))?;
        let (chain, key) = (files::certificates(&serve.certificate)?, files::key(&serve.key)?);
        let mut config = ServerConfig::builder_with_provider(files::provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| format!("{}: {error}", serve.certificate.display()))?;
        // Who comes again proves himself again: to the authorities of then, not to those of now.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { stamp, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Takes renewed files, and says whether anything changed. Half of a renewal is not taken; who is let in by it is asked
    /// anew all the same, by what is in force.
    fn renew(&mut self, serve: &Serve) -> bool {
        let stamp = Self::stamp(serve);
        if stamp == self.stamp {
            return false;
        }
        match Self::read(serve) {
            Ok(new) => *self = new,
            Err(why) => {
                tracing::warn!("the renewed certificate is not taken yet: {why}");
                self.stamp = stamp;
            }
        }
        true
    }
}

/// Serves a connection until it ends, until there are other authorities or tokens than those it was let in by, or until who
/// was not let in has to go.
async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    router: Router,
    mut renewed: watch::Receiver<()>,
    stranger: Arc<Stranger>,
) {
    let _ = stream.set_nodelay(true);
    let agreed = tokio::select! {
        agreed = timeout(HANDSHAKE, acceptor.accept(stream)) => agreed,
        () = stranger.has_to_go() => return,
    };
    let Ok(Ok(tls)) = agreed else { return };
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let who: Arc<[Who]> = certificate.map(auth::names).unwrap_or_default().into();
    if !who.is_empty() {
        stranger.let_in();
    }
    let router = router.layer(axum::Extension(who)).layer(axum::Extension(Arc::clone(&stranger)));
    let mut http = http1::Builder::new();
    http.max_buf_size(16 << 10).max_headers(32).timer(TokioTimer::new()).header_read_timeout(HEAD);
    let mut served = pin!(http.serve_connection(TokioIo::new(tls), TowerToHyperService::new(router)));
    tokio::select! {
        ended = &mut served => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
        }
        () = stranger.overstays() => {}
        _ = renewed.changed() => {
            // Who asks at this moment gets an answer; whoever waits asks again.
            served.as_mut().graceful_shutdown();
            let _ = timeout(LAST_ANSWER, served).await;
        }
    }
}
