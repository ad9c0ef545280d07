//! Registries that are slow, broken, wrong or lying.
//!
//! In: a registry with a fault. Out: an image all the same, or an error with the right code and nothing left behind.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use molt_core::{code::Code, ids::ImageRef};
use molt_oci::{Client, Limits, Platform, Registries};

use crate::{
    common::{CONFIG, GZIP, Image, MANIFEST, Place, Tar, Told, digest, gzip, packed, unpacker},
    fake::{Registry, Rule, broken, image, layer_path, plain, pull, quick, random, status},
};

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
            .or_else(|| (asked.path.contains("/blobs/") && count < 3).then(|| status(503)))
    })
    .await;
    let start = Instant::now();
    plain(&registry).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));

    let registry = Registry::start(image(), |_, _| Some(status(503))).await;
    let error = plain(&registry).await.unwrap_err();
    assert_eq!((error.code(), error.transient()), (Code::RegistryUnavailable, true));
    assert_eq!(registry.log().len(), 4, "four attempts");

    for (answer, code) in [(404, Code::NotFound), (403, Code::Unauthorized), (400, Code::RegistryUnavailable)] {
        let registry = Registry::start(image(), move |_, _| Some(status(answer))).await;
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
    let (whole, endless_path) = (config.clone(), config_path.clone());
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
            "config without an end",
            Box::new(move |asked, _| {
                (asked.path == endless_path).then(|| {
                    let first = futures_util::stream::iter([Ok::<_, Infallible>(Bytes::from(whole.clone()))]);
                    let more =
                        futures_util::stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![b' '; 65536])));
                    Body::from_stream(futures_util::StreamExt::chain(first, more)).into_response()
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
    assert_eq!(client.resolve(&at(right), &Platform::host(), &()).await.unwrap().digest, right);
    let error = client.resolve(&at(digest(b"x")), &Platform::host(), &()).await.unwrap_err();
    assert_eq!(error.code(), Code::ContentMismatch);
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
    let client = Client::new(&registry.settings(), Limits::default()).unwrap().confined(unpacker());
    let reference: ImageRef = registry.reference().parse().unwrap();
    let resolved = client.resolve(&reference, &Platform::host(), &()).await.unwrap();
    let told = Told::default();
    let fetch = client.fetch(&resolved, &place.store, &told);
    assert!(tokio::time::timeout(Duration::from_millis(300), fetch).await.is_err());
    place.assert_clean();
}

#[tokio::test]
async fn what_was_finished_before_a_failure_is_kept() {
    let source = Image::new(&[
        packed(&Tar::new().file("first", "1").end()),
        packed(&Tar::new().file("second", &random(1000)).end()),
    ]);
    let (path, _) = layer_path(&source);
    let registry = Registry::start(source, move |asked, _| (asked.path == path).then(|| status(404))).await;
    let place = Place::new();
    let settings = Registries { parallel: 1, ..registry.settings() };
    let error = pull(&place, &registry, &settings, &Told::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(place.store.layers().unwrap().len(), 1);
    place.assert_clean();
}

/// What was finished in time need not be fetched again: a slow line gets there in a few updates.
#[tokio::test]
async fn what_was_finished_before_the_deadline_is_kept() {
    let source = Image::new(&[
        packed(&Tar::new().file("first", "1").end()),
        packed(&Tar::new().file("second", &random(1000)).end()),
    ]);
    let (path, blob) = layer_path(&source);
    let registry = Registry::start(source, move |asked, count| {
        (asked.path == path && count == 1).then(|| {
            let first = Ok::<_, Infallible>(Bytes::copy_from_slice(&blob[..100]));
            let stream =
                futures_util::StreamExt::chain(futures_util::stream::iter([first]), futures_util::stream::pending());
            Response::builder().body(Body::from_stream(stream)).unwrap()
        })
    })
    .await;
    let place = Place::new();
    let settings = Registries { parallel: 1, ..registry.settings() };
    let client = Client::new(&settings, Limits::default()).unwrap().confined(unpacker());
    let reference: ImageRef = registry.reference().parse().unwrap();
    let resolved = client.resolve(&reference, &Platform::host(), &()).await.unwrap();
    let told = Told::default();
    let late = async {
        while told.done.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let error = client.fetch_until(&resolved, &place.store, &told, late).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert_eq!(place.store.layers().unwrap().len(), 1);
    place.assert_clean();
    let fetched = client.fetch(&resolved, &place.store, &()).await.unwrap();
    assert_eq!((fetched.layers.len(), fetched.layers_fetched), (2, 1));
}

#[tokio::test]
async fn the_fetch_has_a_deadline_of_its_own() {
    let source = image();
    let (path, _) = layer_path(&source);
    let registry = Registry::start(source, move |asked, _| {
        (asked.path == path).then(|| {
            let never = futures_util::stream::pending::<Result<Bytes, Infallible>>();
            Response::builder().body(Body::from_stream(never)).unwrap()
        })
    })
    .await;
    let place = Place::new();
    let limits = Limits { deadline: Duration::from_millis(300), ..Limits::default() };
    let client = Client::new(&registry.settings(), limits).unwrap().confined(unpacker());
    let reference: ImageRef = registry.reference().parse().unwrap();
    let resolved = client.resolve(&reference, &Platform::host(), &()).await.unwrap();
    let error = client.fetch(&resolved, &place.store, &()).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    place.assert_clean();
}

/// All bytes are there, and then the connection breaks in the place of the body's end: there is nothing to ask for.
#[tokio::test]
async fn a_body_without_its_end_is_whole_when_all_bytes_came() {
    let source = image();
    let (path, blob) = layer_path(&source);
    let at = path.clone();
    let registry = Registry::start(source, move |asked, count| {
        (asked.path == at).then(|| {
            if count > 1 {
                return status(416);
            }
            let pieces = [Ok(Bytes::copy_from_slice(&blob)), Err(std::io::Error::other("cut"))];
            let stream = futures_util::stream::unfold(pieces.into_iter(), |mut pieces| async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                pieces.next().map(|piece| (piece, pieces))
            });
            Response::builder().body(Body::from_stream(stream)).unwrap()
        })
    })
    .await;
    plain(&registry).await.unwrap();
    assert_eq!(registry.log().iter().filter(|asked| asked.path == path).count(), 1);
}

/// A byte now and then is no stall; it is no answer either. Whatever trickles: manifest, config, token.
#[tokio::test]
async fn a_registry_that_trickles_is_given_up() {
    fn trickle() -> Response {
        let bytes = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), ()))
        });
        ([(header::CONTENT_TYPE, MANIFEST)], Body::from_stream(bytes)).into_response()
    }
    let service = Registry::start(image(), |_, _| Some(trickle())).await;
    for what in ["manifest", "config", "token"] {
        let challenge = format!("Bearer realm=\"http://{}/token\"", service.host);
        let registry = Registry::start(image(), move |asked, _| match what {
            "manifest" => asked.path.contains("/manifests/").then(trickle),
            "config" => asked.path.contains("/blobs/").then(trickle),
            _ => Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge.clone())]).into_response()),
        })
        .await;
        let limits = Limits { resolve: Duration::from_millis(700), stall: Duration::from_mins(1), ..quick() };
        let insecure = vec![registry.host.clone(), service.host.clone()];
        let client = Client::new(&Registries { insecure, ..Registries::default() }, limits).unwrap();
        let reference: ImageRef = registry.reference().parse().unwrap();
        let start = Instant::now();
        let error = client.resolve(&reference, &Platform::host(), &()).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{what}: {error}");
        assert!(error.to_string().starts_with("resolve "), "{error}");
        assert!(start.elapsed() >= Duration::from_millis(700), "{what}: {:?}", start.elapsed());
    }
    assert!(service.log().iter().any(|asked| asked.path == "/token"), "no token was asked for");
}
