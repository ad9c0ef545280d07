//! A registry with faults, on the loopback interface.
//!
//! In: an image and a rule that may answer in the registry's place. Out: what the client asked for, and what it made of
//! the answers.

use std::{
    convert::Infallible,
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::Engine as _;
use molt_core::{code::Code, ids::ImageRef};
use molt_oci::{Client, Error, Fetched, Limits, Platform, Registries};

use crate::common::{CONFIG, GZIP, Image, MANIFEST, Place, Tar, Told, digest, gzip, packed};

/// What the registry was asked.
#[derive(Debug, Clone)]
struct Asked {
    path: String,
    query: String,
    authorization: Option<String>,
    range: Option<String>,
}

type Rule = Box<dyn Fn(&Asked, usize) -> Option<Response> + Send + Sync>;

struct Inner {
    image: Image,
    rule: Rule,
    log: Mutex<Vec<Asked>>,
}

struct Registry {
    inner: Arc<Inner>,
    host: String,
}

impl Registry {
    async fn start(image: Image, rule: impl Fn(&Asked, usize) -> Option<Response> + Send + Sync + 'static) -> Self {
        let inner = Arc::new(Inner { image, rule: Box::new(rule), log: Mutex::new(Vec::new()) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { inner, host }
    }

    fn settings(&self) -> Registries {
        Registries { insecure: vec![self.host.clone()], ..Registries::default() }
    }

    fn reference(&self) -> String {
        format!("{}/acme/app:v1", self.host)
    }

    fn log(&self) -> Vec<Asked> {
        self.inner.log.lock().unwrap().clone()
    }

    fn blobs_asked(&self) -> usize {
        self.log().iter().filter(|asked| asked.path.contains("/blobs/")).count()
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
fn broken(blob: &[u8], at: usize) -> Response {
    let piece: Result<Bytes, std::io::Error> = Ok(Bytes::copy_from_slice(&blob[..at]));
    let stream = futures_util::stream::unfold((0, Some(piece)), |(step, piece)| async move {
        match step {
            0 => Some((piece.unwrap(), (1, None))),
            _ => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some((Err(std::io::Error::other("cut")), (2, None)))
            }
        }
    });
    Response::builder().header(header::CONTENT_LENGTH, blob.len()).body(Body::from_stream(stream)).unwrap()
}

fn random(length: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + u8::try_from(state % 90).unwrap())
    };
    (0..length).map(|_| step()).collect()
}

fn image() -> Image {
    Image::new(&[packed(&Tar::new().file("app", &random(300_000)).end()), packed(&Tar::new().file("b", "2").end())])
}

fn layer_path(image: &Image) -> (String, Vec<u8>) {
    let (name, blob) = image.blobs.iter().max_by_key(|(_, blob)| blob.len()).unwrap();
    (format!("/v2/acme/app/blobs/{name}"), blob.clone())
}

fn quick() -> Limits {
    Limits { backoff: Duration::from_millis(10), stall: Duration::from_millis(400), ..Limits::default() }
}

async fn pull(place: &Place, registry: &Registry, settings: &Registries, told: &Told) -> Result<Fetched, Error> {
    let client = Client::new(settings, quick())?;
    let reference: ImageRef = registry.reference().parse().unwrap();
    let resolved = client.resolve(&reference, &Platform::host()).await?;
    client.fetch(&resolved, &place.store, told).await
}

async fn plain(registry: &Registry) -> Result<Fetched, Error> {
    let place = Place::new();
    let result = pull(&place, registry, &registry.settings(), &Told::default()).await;
    place.assert_clean();
    result
}

fn status(code: u16) -> Option<Response> {
    Some(StatusCode::from_u16(code).unwrap().into_response())
}

#[tokio::test]
async fn an_image_is_pulled_and_the_tag_is_asked_once() {
    let registry = Registry::start(image(), |_, _| None).await;
    let fetched = plain(&registry).await.unwrap();
    assert_eq!((fetched.layers.len(), fetched.layers_fetched), (2, 2));
    assert_eq!(registry.log().iter().filter(|asked| asked.path.ends_with("/manifests/v1")).count(), 1);
    assert!(registry.log().iter().all(|asked| asked.authorization.is_none()));
}

#[tokio::test]
async fn hosts_not_named_insecure_are_spoken_to_in_tls_only() {
    let registry = Registry::start(image(), |_, _| None).await;
    let error = pull(&Place::new(), &registry, &Registries::default(), &Told::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::RegistryUnreachable, "{error}");
    assert!(registry.log().is_empty());
}

fn credentials(place: &Place, host: &str) -> Registries {
    let auth = base64::engine::general_purpose::STANDARD.encode("me:secret");
    let path = place.path("config.json");
    fs::write(&path, format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#)).unwrap();
    Registries { credentials: Some(path), ..Registries::default() }
}

#[tokio::test]
async fn a_token_is_fetched_used_and_fetched_again_when_it_expires() {
    let registry = Registry::start(image(), |asked, count| {
        if asked.path == "/token" {
            assert_eq!(asked.authorization.as_deref(), Some("Basic bWU6c2VjcmV0"));
            assert!(asked.query.contains("scope=repository%3Aacme%2Fapp%3Apull"), "{}", asked.query);
            let token = format!("token{count}");
            return Some(format!(r#"{{"access_token":"{token}"}}"#).into_response());
        }
        let blob = asked.path.contains("/blobs/");
        let wanted = if blob { "Bearer token2" } else { "Bearer token1" };
        (asked.authorization.as_deref() != Some(wanted)).then(|| {
            let realm =
                format!("Bearer realm=\"http://{}/token\",service=\"s\",scope=\"repository:evil:push\"", "HOST");
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm)]).into_response()
        })
    })
    .await;
    // The realm must name the port, which is known only now: a second registry that rewrites it.
    let host = registry.host.clone();
    let inner = Arc::clone(&registry.inner);
    let front = Registry::start(image(), move |asked, count| {
        let mut response = (inner.rule)(asked, count)?;
        if let Some(realm) = response.headers().get(header::WWW_AUTHENTICATE) {
            let realm = realm.to_str().unwrap().replace("HOST", &host);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, realm.parse().unwrap());
        }
        Some(response)
    })
    .await;
    let place = Place::new();
    let mut settings = credentials(&place, &front.host);
    settings.insecure = vec![registry.host.clone(), front.host.clone()];
    pull(&place, &front, &settings, &Told::default()).await.unwrap();
    assert_eq!(registry.log().iter().filter(|asked| asked.path == "/token").count(), 2);
}

#[tokio::test]
async fn basic_credentials_go_to_the_registry_only() {
    let registry = Registry::start(image(), |asked, _| {
        (asked.authorization.as_deref() != Some("Basic bWU6c2VjcmV0"))
            .then(|| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"x\"")]).into_response())
    })
    .await;
    let place = Place::new();
    let mut settings = credentials(&place, &registry.host);
    settings.insecure = vec![registry.host.clone()];
    pull(&place, &registry, &settings, &Told::default()).await.unwrap();

    let error = plain(&registry).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthorized);
    assert!(error.to_string().contains("registries.credentials") && error.to_string().contains(&registry.host));
    let mut wrong = credentials(&place, "other.example.com");
    wrong.insecure = vec![registry.host.clone()];
    let error = pull(&place, &registry, &wrong, &Told::default()).await.unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("docker login"), "{error}");
}

#[tokio::test]
async fn a_token_service_elsewhere_gets_no_credentials_and_errors_are_not_swallowed() {
    let thief = Registry::start(image(), |_, _| Some(r#"{"token":"x"}"#.into_response())).await;
    // localhost is another host than 127.0.0.1, and both are plain.
    let realm = format!("Bearer realm=\"http://localhost:{}/token\"", thief.host.rsplit(':').next().unwrap());
    let stolen = realm.clone();
    let registry = Registry::start(image(), move |_, _| {
        Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, stolen.clone())]).into_response())
    })
    .await;
    let place = Place::new();
    let mut settings = credentials(&place, &registry.host);
    settings.insecure = vec![registry.host.clone(), format!("localhost:{}", thief.host.rsplit(':').next().unwrap())];
    let error = pull(&place, &registry, &settings, &Told::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthorized);
    assert!(error.to_string().contains("localhost"), "{error}");
    assert!(thief.log().is_empty());

    for (realm, code) in [
        ("http://169.254.169.254/latest", Code::Unauthorized),
        ("https://user:pw@127.0.0.1/token", Code::Unauthorized),
        ("file:///etc/passwd", Code::Unauthorized),
    ] {
        let registry = Registry::start(image(), move |_, _| {
            let realm = format!("Bearer realm=\"{realm}\"");
            Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm)]).into_response())
        })
        .await;
        assert_eq!(plain(&registry).await.unwrap_err().code(), code, "{realm}");
    }
    for (answer, code) in [
        (401, Code::Unauthorized),
        (403, Code::Unauthorized),
        (302, Code::RegistryUnavailable),
        (500, Code::RegistryUnavailable),
        (200, Code::RegistryUnavailable),
    ] {
        let service = Registry::start(image(), move |_, _| status(answer)).await;
        let realm = format!("Bearer realm=\"http://{}/token\"", service.host);
        let registry = Registry::start(image(), move |_, _| {
            Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response())
        })
        .await;
        let mut settings = registry.settings();
        settings.insecure.push(service.host.clone());
        let error = pull(&Place::new(), &registry, &settings, &Told::default()).await.unwrap_err();
        assert_eq!(error.code(), code, "{answer}: {error}");
        assert!(!service.log().is_empty());
    }
}

#[tokio::test]
async fn redirected_blobs_are_fetched_without_the_authorization() {
    let other = Registry::start(image(), |_, _| None).await;
    let target = other.host.clone();
    let registry = Registry::start(image(), move |asked, _| {
        if asked.authorization.is_none() {
            return Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=x")]).into_response());
        }
        asked.path.contains("/blobs/").then(|| {
            let to = format!("http://{target}{}", asked.path);
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response()
        })
    })
    .await;
    let place = Place::new();
    let mut settings = credentials(&place, &registry.host);
    settings.insecure = vec![registry.host.clone(), other.host.clone()];
    pull(&place, &registry, &settings, &Told::default()).await.unwrap();
    assert!(!other.log().is_empty());
    assert!(other.log().iter().all(|asked| asked.authorization.is_none()), "a secret went to another host");
    assert!(
        registry.log().iter().filter(|asked| asked.path.contains("/blobs/")).all(|asked| asked.authorization.is_some())
    );
    // Plain HTTP to a host that is not named insecure is not followed.
    settings.insecure = vec![registry.host.clone()];
    let error = pull(&Place::new(), &registry, &settings, &Told::default()).await.unwrap_err();
    assert!(error.to_string().contains("plain HTTP"), "{error}");
}

#[tokio::test]
async fn redirects_end() {
    let registry = Registry::start(image(), |asked, _| {
        Some((StatusCode::FOUND, [(header::LOCATION, asked.path.clone())]).into_response())
    })
    .await;
    assert!(plain(&registry).await.unwrap_err().to_string().contains("more than 5 redirects"));
    assert_eq!(registry.log().len(), 6);
}

#[tokio::test]
async fn busy_registries_are_asked_again_when_they_say() {
    let registry = Registry::start(image(), |asked, count| {
        (asked.path.ends_with("/manifests/v1") && count == 1)
            .then(|| (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")]).into_response())
            .or_else(|| (asked.path.contains("/blobs/") && count < 3).then(|| status(503)).flatten())
    })
    .await;
    let start = Instant::now();
    plain(&registry).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));

    let registry = Registry::start(image(), |_, _| status(503)).await;
    let error = plain(&registry).await.unwrap_err();
    assert_eq!((error.code(), error.transient()), (Code::RegistryUnavailable, true));
    assert_eq!(registry.log().len(), 4, "four attempts");

    for (answer, code) in [(404, Code::NotFound), (403, Code::Unauthorized), (400, Code::RegistryUnavailable)] {
        let registry = Registry::start(image(), move |_, _| status(answer)).await;
        let error = plain(&registry).await.unwrap_err();
        assert_eq!((error.code(), error.transient()), (code, false), "{error}");
        assert_eq!(registry.log().len(), 1);
    }
}

#[tokio::test]
async fn a_broken_blob_goes_on_where_it_broke() {
    for ignore_range in [false, true] {
        let source = image();
        let (path, blob) = layer_path(&source);
        let total = blob.len();
        let at = path.clone();
        let registry = Registry::start(source, move |asked, count| {
            if asked.path != at {
                return None;
            }
            match (count, ignore_range) {
                (1, _) => Some(broken(&blob, 100_000)),
                (_, true) => Some(blob.clone().into_response()),
                (2, false) => Some(
                    (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, "bytes 5-9/10")], "wrong").into_response(),
                ),
                (_, false) => None,
            }
        })
        .await;
        let told = Told::default();
        let place = Place::new();
        pull(&place, &registry, &registry.settings(), &told).await.unwrap();
        let ranges: Vec<_> =
            registry.log().iter().filter(|asked| asked.path == path).map(|asked| asked.range.clone()).collect();
        assert_eq!(ranges[0], None);
        assert!(
            ranges[1].as_ref().is_some_and(|range| range.starts_with("bytes=") && range != "bytes=0-"),
            "{ranges:?} of {total}"
        );
        assert!(!told.retries.lock().unwrap().is_empty());
        place.assert_clean();
    }
}

#[tokio::test]
async fn a_blob_that_never_ends_well_fails_and_leaves_nothing() {
    let source = image();
    let (path, blob) = layer_path(&source);
    for kind in ["cut", "stall", "longer", "other"] {
        let (at, blob) = (path.clone(), blob.clone());
        let registry = Registry::start(image(), move |asked, _| {
            (asked.path == at).then(|| match kind {
                "cut" => broken(&blob, 0),
                "stall" => {
                    let never = futures_util::stream::pending::<Result<Bytes, Infallible>>();
                    Response::builder().body(Body::from_stream(never)).unwrap()
                }
                "longer" => [blob.clone(), vec![0; 10]].concat().into_response(),
                _ => gzip(&Tar::new().file("app", &random(299_999)).end()).into_response(),
            })
        })
        .await;
        let error = plain(&registry).await.unwrap_err();
        let (code, transient) = match kind {
            "cut" | "stall" => (Code::RegistryUnavailable, true),
            "longer" => (Code::ContentMismatch, false),
            // Shorter than promised: as if cut, until the attempts run out.
            _ => (error.code(), error.transient()),
        };
        assert_eq!((error.code(), error.transient()), (code, transient), "{kind}: {error}");
    }
}

#[tokio::test]
async fn wrong_bytes_are_told_from_bad_layers() {
    let source = image();
    let (path, mut blob) = layer_path(&source);
    let middle = blob.len() / 2;
    blob[middle] ^= 0x55;
    let registry =
        Registry::start(source, move |asked, _| (asked.path == path).then(|| blob.clone().into_response())).await;
    assert_eq!(plain(&registry).await.unwrap_err().code(), Code::ContentMismatch);
    let tar = Tar::new().file("../x", "").end();
    let registry = Registry::start(Image::new(&[packed(&tar)]), |_, _| None).await;
    assert_eq!(plain(&registry).await.unwrap_err().code(), Code::LayerInvalid);
    let lying = (gzip(&tar), GZIP, digest(b"another").to_string());
    let registry = Registry::start(Image::new(&[lying]), |_, _| None).await;
    assert_ne!(plain(&registry).await.unwrap_err().code(), Code::Internal);
}

#[tokio::test]
async fn documents_are_bounded_and_checked() {
    let big = "x".repeat(5 << 20);
    let source = image();
    let config = source.blobs.values().find(|blob| blob.starts_with(b"{")).unwrap().clone();
    let config_path = format!("/v2/acme/app/blobs/{}", digest(&config));
    let cases: Vec<(&str, Rule, Code)> = vec![
        (
            "large manifest",
            Box::new(move |asked, _| {
                asked
                    .path
                    .contains("/manifests/")
                    .then(|| ([(header::CONTENT_TYPE, MANIFEST)], big.clone()).into_response())
            }),
            Code::ManifestInvalid,
        ),
        (
            "endless manifest",
            Box::new(|asked, _| {
                asked.path.contains("/manifests/").then(|| {
                    let stream =
                        futures_util::stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![b' '; 65536])));
                    Body::from_stream(stream).into_response()
                })
            }),
            Code::ManifestInvalid,
        ),
        (
            "wrong content type",
            Box::new(|asked, _| {
                asked.path.contains("/manifests/").then(|| {
                    ([(header::CONTENT_TYPE, "application/vnd.oci.image.index.v1+json")], image().manifest)
                        .into_response()
                })
            }),
            Code::ManifestInvalid,
        ),
        (
            "wrong digest header",
            Box::new(|asked, _| {
                asked.path.contains("/manifests/").then(|| {
                    let name = digest(b"another").to_string();
                    (
                        [
                            (header::CONTENT_TYPE, MANIFEST.to_owned()),
                            (header::HeaderName::from_static("docker-content-digest"), name),
                        ],
                        image().manifest,
                    )
                        .into_response()
                })
            }),
            Code::ContentMismatch,
        ),
        (
            "changed config",
            Box::new(move |asked, _| {
                (asked.path == config_path).then(|| {
                    let mut other = config.clone();
                    other[5] ^= 1;
                    other.into_response()
                })
            }),
            Code::ContentMismatch,
        ),
        (
            "an artifact",
            Box::new(|asked, _| {
                asked.path.contains("/manifests/").then(|| {
                    let text =
                        String::from_utf8(image().manifest).unwrap().replace(CONFIG, "application/vnd.example+json");
                    ([(header::CONTENT_TYPE, MANIFEST)], text).into_response()
                })
            }),
            Code::ManifestInvalid,
        ),
    ];
    for (name, rule, code) in cases {
        let registry = Registry::start(image(), rule).await;
        let error = plain(&registry).await.unwrap_err();
        assert_eq!(error.code(), code, "{name}: {error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }
}

#[tokio::test]
async fn a_pinned_digest_decides() {
    let source = image();
    let right = digest(&source.manifest);
    let registry = Registry::start(source, |_, _| None).await;
    let client = Client::new(&registry.settings(), quick()).unwrap();
    let at = |pin| -> ImageRef { format!("{}/acme/app:v1@{pin}", registry.host).parse().unwrap() };
    assert_eq!(client.resolve(&at(right), &Platform::host()).await.unwrap().digest, right);
    let error = client.resolve(&at(digest(b"x")), &Platform::host()).await.unwrap_err();
    assert_eq!(error.code(), Code::ContentMismatch);
}

#[tokio::test]
async fn mirrors_come_first_get_no_secret_and_are_not_believed() {
    let registry = Registry::start(image(), |asked, _| {
        asked
            .authorization
            .is_none()
            .then(|| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=x")]).into_response())
    })
    .await;
    let path = layer_path(&image()).0;
    for kind in ["good", "down", "denying", "lying", "breaking"] {
        let at = path.clone();
        let mirror = Registry::start(image(), move |asked, _| match kind {
            "down" => status(503),
            "denying" => {
                Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=x")]).into_response())
            }
            "lying" if asked.path == at => {
                let mut blob = layer_path(&image()).1;
                blob[200_000] ^= 1;
                Some(blob.into_response())
            }
            "breaking" if asked.path == at => Some(broken(&layer_path(&image()).1, 50_000)),
            _ => None,
        })
        .await;
        let place = Place::new();
        let mut settings = credentials(&place, &registry.host);
        settings.insecure = vec![registry.host.clone(), mirror.host.clone()];
        settings.mirrors.insert(registry.host.clone(), vec![mirror.host.clone()]);
        let before = registry.blobs_asked();
        pull(&place, &registry, &settings, &Told::default()).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert!(!mirror.log().is_empty());
        assert!(mirror.log().iter().all(|asked| asked.authorization.is_none()), "{kind}");
        assert_eq!(registry.blobs_asked() > before, kind != "good", "{kind}");
        place.assert_clean();
    }
}

#[tokio::test]
async fn a_fetch_that_is_dropped_cleans_up() {
    let source = image();
    let (path, blob) = layer_path(&source);
    let registry = Registry::start(source, move |asked, _| {
        (asked.path == path).then(|| {
            let first = Ok::<_, Infallible>(Bytes::copy_from_slice(&blob[..100_000]));
            let stream =
                futures_util::StreamExt::chain(futures_util::stream::iter([first]), futures_util::stream::pending());
            Response::builder().body(Body::from_stream(stream)).unwrap()
        })
    })
    .await;
    let place = Place::new();
    let client = Client::new(&registry.settings(), Limits::default()).unwrap();
    let reference: ImageRef = registry.reference().parse().unwrap();
    let resolved = client.resolve(&reference, &Platform::host()).await.unwrap();
    let told = Told::default();
    let fetch = client.fetch(&resolved, &place.store, &told);
    assert!(tokio::time::timeout(Duration::from_millis(300), fetch).await.is_err());
    place.assert_clean();
}

#[tokio::test]
async fn what_was_finished_before_a_failure_is_kept() {
    let source = image();
    let (path, _) = layer_path(&source);
    let registry = Registry::start(source, move |asked, _| {
        (asked.path == path).then(|| {
            std::thread::sleep(Duration::from_millis(100));
            StatusCode::NOT_FOUND.into_response()
        })
    })
    .await;
    let place = Place::new();
    let error = pull(&place, &registry, &registry.settings(), &Told::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(place.store.layers().unwrap().len(), 1);
    place.assert_clean();
}
