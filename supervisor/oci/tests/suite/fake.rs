//! A registry with faults, on the loopback interface.
//!
//! In: an image and a rule that may answer in the registry's place. Out: what the client asked for, and helpers to pull
//! from it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use molt_core::ids::ImageRef;
use molt_oci::{Client, Error, Fetched, Limits, Platform, Registries};

use crate::common::{Image, MANIFEST, Place, Tar, Told, packed, unpacker};

/// What the registry was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
}

pub(crate) type Rule = Box<dyn Fn(&Asked, usize) -> Option<Response> + Send + Sync>;

pub(crate) struct Inner {
    image: Image,
    pub(crate) rule: Rule,
    log: Mutex<Vec<Asked>>,
}

pub(crate) struct Registry {
    pub(crate) inner: Arc<Inner>,
    pub(crate) host: String,
}

impl Registry {
    pub(crate) async fn start(
        image: Image,
        rule: impl Fn(&Asked, usize) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let inner = Arc::new(Inner { image, rule: Box::new(rule), log: Mutex::new(Vec::new()) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { inner, host }
    }

    /// The same over TLS, with this certificate.
    pub(crate) async fn start_tls(image: Image, certificate: rcgen::CertifiedKey<rcgen::KeyPair>) -> Self {
        let inner = Arc::new(Inner { image, rule: Box::new(|_, _| None), log: Mutex::new(Vec::new()) });
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(certificate.signing_key.serialize_der().into());
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("localhost:{}", socket.local_addr().unwrap().port());
        let listener = Tls { socket, acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(config)) };
        let app = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { inner, host }
    }

    pub(crate) fn settings(&self) -> Registries {
        Registries { insecure: vec![self.host.clone()], ..Registries::default() }
    }

    pub(crate) fn reference(&self) -> String {
        format!("{}/acme/app:v1", self.host)
    }

    pub(crate) fn log(&self) -> Vec<Asked> {
        self.inner.log.lock().unwrap().clone()
    }

    pub(crate) fn blobs_asked(&self) -> usize {
        self.log().iter().filter(|asked| asked.path.contains("/blobs/")).count()
    }
}

struct Tls {
    socket: tokio::net::TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.socket.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.socket.local_addr()
    }
}

async fn answer(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let asked = Asked {
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        authorization: text(header::AUTHORIZATION),
        range: text(header::RANGE),
    };
    assert!(matches!(*request.method(), Method::GET | Method::POST));
    let count = {
        let mut log = inner.log.lock().unwrap();
        log.push(asked.clone());
        log.iter().filter(|before| before.path == asked.path).count()
    };
    (inner.rule)(&asked, count).unwrap_or_else(|| serve(&inner.image, &asked))
}

fn serve(image: &Image, asked: &Asked) -> Response {
    if asked.path.contains("/manifests/") {
        return ([(header::CONTENT_TYPE, MANIFEST)], image.manifest.clone()).into_response();
    }
    let name = asked.path.rsplit('/').next().unwrap_or_default();
    let Some(blob) = image.blobs.get(name) else { return StatusCode::NOT_FOUND.into_response() };
    match asked.range.as_ref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok())
    {
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
            (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, range)], blob[from..].to_vec()).into_response()
        }
        None => blob.clone().into_response(),
    }
}

/// The whole length is promised, then the connection breaks.
pub(crate) fn broken(blob: &[u8], at: usize) -> Response {
    let piece: Result<Bytes, std::io::Error> = Ok(Bytes::copy_from_slice(&blob[..at]));
    let stream = futures_util::stream::unfold((0, Some(piece)), |(step, piece)| async move {
        if let Some(piece) = piece {
            return Some((piece, (1, None)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        (step == 1).then(|| (Err(std::io::Error::other("cut")), (2, None)))
    });
    Response::builder().header(header::CONTENT_LENGTH, blob.len()).body(Body::from_stream(stream)).unwrap()
}

pub(crate) fn random(length: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + u8::try_from(state % 90).unwrap())
    };
    (0..length).map(|_| step()).collect()
}

pub(crate) fn image() -> Image {
    Image::new(&[packed(&Tar::new().file("app", &random(300_000)).end()), packed(&Tar::new().file("b", "2").end())])
}

pub(crate) fn layer_path(image: &Image) -> (String, Vec<u8>) {
    let (name, blob) = image.blobs.iter().max_by_key(|(_, blob)| blob.len()).unwrap();
    (format!("/v2/acme/app/blobs/{name}"), blob.clone())
}

pub(crate) fn quick() -> Limits {
    Limits { backoff: Duration::from_millis(10), stall: Duration::from_millis(400), ..Limits::default() }
}

pub(crate) async fn pull(
    place: &Place,
    registry: &Registry,
    settings: &Registries,
    told: &Told,
) -> Result<Fetched, Error> {
    let client = Client::new(settings, quick())?.confined(unpacker());
    let reference: ImageRef = registry.reference().parse().unwrap();
    let resolved = client.resolve(&reference, &Platform::host(), &()).await?;
    client.fetch(&resolved, &place.store, told).await
}

pub(crate) async fn plain(registry: &Registry) -> Result<Fetched, Error> {
    let place = Place::new();
    let result = pull(&place, registry, &registry.settings(), &Told::default()).await;
    place.assert_clean();
    result
}

pub(crate) fn status(code: u16) -> Response {
    StatusCode::from_u16(code).unwrap().into_response()
}
