//! Who gets credentials and tokens, and who does not.
//!
//! In: registries that ask for a sign-in, redirect, or mirror. Out: the headers each of them saw.

use std::{convert::Infallible, fs, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::IntoResponse as _,
};
use base64::Engine as _;
use molt_core::code::Code;
use molt_oci::Registries;
use serde_json::json;

use crate::{
    common::{Image, MANIFEST, Place, TAR, Tar, Told, digest, packed},
    fake::{Registry, Rule, broken, image, layer_path, plain, pull, status},
};

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
        let service = Registry::start(image(), move |_, _| Some(status(answer))).await;
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

/// Where a registry may not send anyone for a token. `THIEF` is a server that listens, in plain HTTP.
const REALMS: [&str; 36] = [
    "http://169.254.169.254/latest/meta-data",
    "https://169.254.169.254/token",
    "https://2852039166/token",
    "https://0xa9fea9fe/token",
    "https://0251.0376.0251.0376/token",
    "https://169.254.43518/token",
    "https://[::ffff:169.254.169.254]/token",
    "https://[::ffff:a9fe:a9fe]/token",
    "https://[64:ff9b::a9fe:a9fe]/token",
    "https://[fe80::1]/token",
    "https://[fd00:ec2::254]/token",
    "https://100.100.100.200/token",
    "https://0.0.0.0/token",
    "https://0/token",
    "https://[::]/token",
    "https://224.0.0.1/token",
    "https://255.255.255.255/token",
    "https://[ff02::1]/token",
    "http://THIEF/token",
    "http://THIEF.evil.example/token",
    "http://registry.example.com/token",
    "https://user:password@THIEF/token",
    "https://user@registry.example.com/token",
    "ftp://THIEF/token",
    "file:///etc/passwd",
    "file://THIEF/etc/passwd",
    "unix:///run/molt/molt.sock",
    "data:application/json,{}",
    "gopher://THIEF/_GET",
    "/token",
    "//THIEF/token",
    "https://",
    "https://a b/token",
    "https://THIEF:99999/token",
    "https://%00/token",
    "no address at all",
];

#[tokio::test]
async fn no_realm_of_a_list_gets_a_request_or_a_secret() {
    let thief = Registry::start(image(), |_, _| Some(r#"{"token":"x"}"#.into_response())).await;
    for realm in REALMS {
        let header_text = format!("Bearer realm=\"{}\",service=\"s\"", realm.replace("THIEF", &thief.host));
        let registry = Registry::start(image(), move |_, _| {
            Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, header_text.clone())]).into_response())
        })
        .await;
        let place = Place::new();
        let mut settings = credentials(&place, &registry.host);
        settings.insecure = vec![registry.host.clone()];
        let error = pull(&place, &registry, &settings, &Told::default()).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthorized, "{realm}: {error}");
        assert!(!error.to_string().contains("secret") && !error.to_string().contains("password@"), "{realm}: {error}");
        assert_eq!(registry.log().len(), 1, "{realm}: asked again");
        assert!(registry.log().iter().all(|asked| asked.authorization.is_none()), "{realm}");
        place.assert_clean();
    }
    assert!(thief.log().is_empty(), "{:?}", thief.log());
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
async fn mirrors_come_first_get_no_secret_and_are_not_believed() {
    let registry = Registry::start(image(), |asked, _| {
        asked
            .authorization
            .is_none()
            .then(|| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=x")]).into_response())
    })
    .await;
    let path = layer_path(&image()).0;
    for kind in ["good", "down", "denying", "lying", "breaking", "a page", "astray"] {
        let at = path.clone();
        let mirror = Registry::start(image(), move |asked, _| match kind {
            "down" => Some(status(503)),
            "denying" => {
                Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=x")]).into_response())
            }
            "lying" if asked.path == at => {
                let mut blob = layer_path(&image()).1;
                blob[200_000] ^= 1;
                Some(blob.into_response())
            }
            "breaking" if asked.path == at => Some(broken(&layer_path(&image()).1, 50_000)),
            // It says "welcome" to whatever is asked.
            "a page" => Some(([(header::CONTENT_TYPE, "text/html")], "<html>welcome</html>").into_response()),
            // A manifest as good as any, of what nobody has.
            "astray" if asked.path.contains("/manifests/") => {
                let other = Image::new(&[packed(&Tar::new().file("other", "1").end())]);
                Some(([(header::CONTENT_TYPE, MANIFEST)], other.manifest).into_response())
            }
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

/// More is to come than is worth reading after the first bad byte, so that the digest is not judged.
#[tokio::test]
async fn a_mirror_that_sends_a_bad_layer_first_does_not_keep_the_registry_from_being_asked() {
    let tar = Tar::new().file("big", &"0123456789abcdef".repeat((70 << 20) / 16)).end();
    let image = || Image::new(&[(tar.clone(), TAR, digest(&tar).to_string())]);
    let (path, mut bad) = layer_path(&image());
    bad[..512].fill(b'x');
    let at = path.clone();
    let mirror =
        Registry::start(image(), move |asked, _| (asked.path == at).then(|| bad.clone().into_response())).await;
    let registry = Registry::start(image(), |_, _| None).await;
    let mut settings = registry.settings();
    settings.insecure.push(mirror.host.clone());
    settings.mirrors.insert(registry.host.clone(), vec![mirror.host.clone()]);
    let place = Place::new();
    pull(&place, &registry, &settings, &Told::default()).await.unwrap();
    assert!(mirror.log().iter().any(|asked| asked.path == path));
    assert_eq!(registry.log().iter().filter(|asked| asked.path == path).count(), 1);
    place.assert_clean();
    // What the registry itself has is its last word.
    let bad = Registry::start(image(), move |asked, _| (asked.path == path).then(|| status(404))).await;
    settings.insecure.push(bad.host.clone());
    settings.mirrors.insert(bad.host.clone(), vec![mirror.host.clone()]);
    let error = pull(&Place::new(), &bad, &settings, &Told::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

/// Two registries with entries of their own. One of them sends for a token to the other.
#[tokio::test]
async fn no_registry_gets_a_token_by_the_credentials_of_another() {
    let other = Registry::start(image(), |_, _| Some(r#"{"token":"x"}"#.into_response())).await;
    // Another host than 127.0.0.1.
    let other_host = format!("localhost:{}", other.host.rsplit(':').next().unwrap());
    let realm = format!("Bearer realm=\"http://{other_host}/token\",service=\"s\"");
    let registry = Registry::start(image(), move |asked, _| {
        (asked.authorization.as_deref() != Some("Bearer x"))
            .then(|| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response())
    })
    .await;
    let auth = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let (own, others) = (auth("me:secret"), auth("me:other"));
    let place = Place::new();
    let path = place.path("config.json");
    // The registry's entry, and with what it gets a token there.
    let cases = [
        (json!({"auth": own}), None),
        (json!({"auth": own, "authHosts": []}), None),
        (json!({"auth": own, "authHosts": ["localhost", "elsewhere.example.com"]}), None),
        (json!({"auth": own, "authHosts": [other_host.to_ascii_uppercase()]}), Some("Basic bWU6c2VjcmV0")),
    ];
    for (entry, presented) in cases {
        let config = json!({"auths": {registry.host.clone(): entry, other_host.clone(): {"auth": others}}});
        fs::write(&path, config.to_string()).unwrap();
        let insecure = vec![registry.host.clone(), other_host.clone()];
        let settings = Registries { credentials: Some(path.clone()), insecure, ..Registries::default() };
        let before = other.log().len();
        let result = pull(&Place::new(), &registry, &settings, &Told::default()).await;
        let seen: Vec<_> = other.log().drain(before..).map(|asked| asked.authorization).collect();
        if let Some(header) = presented {
            result.unwrap();
            assert_eq!(seen, [Some(header.to_owned())], "{config}");
        } else {
            let error = result.unwrap_err();
            assert_eq!(error.code(), Code::Unauthorized, "{config}: {error}");
            assert!(error.to_string().contains("authHosts"), "{config}: {error}");
            assert!(seen.is_empty(), "{config}: {seen:?}");
        }
    }
    // Without an entry of its own it comes without credentials, whatever there is for the other one.
    fs::write(&path, json!({"auths": {other_host.clone(): {"auth": others}}}).to_string()).unwrap();
    let insecure = vec![registry.host.clone(), other_host];
    let settings = Registries { credentials: Some(path), insecure, ..Registries::default() };
    let before = other.log().len();
    pull(&Place::new(), &registry, &settings, &Told::default()).await.unwrap();
    assert!(other.log().drain(before..).all(|asked| asked.authorization.is_none()));
}

#[tokio::test]
async fn only_certificates_that_verify_are_taken() {
    let named = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let place = Place::new();
    let folder = place.path("certificates");
    fs::create_dir(&folder).unwrap();
    for (name, trusted, works) in
        [("localhost", true, true), ("localhost", false, false), ("other.example", true, false)]
    {
        let certificate = named(name);
        let trust = if trusted { certificate.cert.pem() } else { named(name).cert.pem() };
        fs::write(folder.join("ca.crt"), trust).unwrap();
        let registry = Registry::start_tls(image(), certificate).await;
        for path in [folder.clone(), folder.join("ca.crt")] {
            let settings = Registries { certificates: Some(path), ..Registries::default() };
            let result = pull(&Place::new(), &registry, &settings, &Told::default()).await;
            assert_eq!(result.is_ok(), works, "{name}: {result:?}");
            if let Err(error) = result {
                assert_eq!(error.code(), Code::RegistryUnreachable);
                assert!(error.to_string().contains("certificate"), "{error}");
            }
        }
        // What the file system's own store or an unset option would say does not matter: not trusted.
        assert!(pull(&Place::new(), &registry, &Registries::default(), &Told::default()).await.is_err());
    }
    let empty = place.path("empty");
    fs::create_dir(&empty).unwrap();
    let settings = Registries { certificates: Some(empty), ..Registries::default() };
    let error = molt_oci::Client::new(&settings, molt_oci::Limits::default()).unwrap_err();
    assert_eq!(error.code(), Code::Invalid);
}

/// A registry that wants a token of this service, `x`.
async fn with_tokens_of(service: &Registry) -> Registry {
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", service.host);
    Registry::start(image(), move |asked, _| {
        (asked.authorization.as_deref() != Some("Bearer x"))
            .then(|| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response())
    })
    .await
}

#[tokio::test]
async fn a_token_service_that_sends_elsewhere_is_not_followed() {
    let thief = Registry::start(image(), |_, _| Some(r#"{"token":"x"}"#.into_response())).await;
    for code in [200, 301, 302, 303, 307, 308] {
        let to = format!("http://{}/token", thief.host);
        let service = Registry::start(image(), move |_, _| {
            let code = StatusCode::from_u16(code).unwrap();
            Some((code, [(header::LOCATION, to.clone())], r#"{"token":"x"}"#).into_response())
        })
        .await;
        let registry = with_tokens_of(&service).await;
        let place = Place::new();
        let mut settings = credentials(&place, &registry.host);
        settings.insecure = vec![registry.host.clone(), service.host.clone(), thief.host.clone()];
        let result = pull(&Place::new(), &registry, &settings, &Told::default()).await;
        assert!(service.log().iter().all(|asked| asked.authorization.as_deref() == Some("Basic bWU6c2VjcmV0")));
        assert!(!service.log().is_empty() && thief.log().is_empty(), "{code}: {:?}", thief.log());
        if code == 200 {
            result.unwrap();
            continue;
        }
        let error = result.unwrap_err();
        assert_eq!(error.code(), Code::RegistryUnavailable, "{code}: {error}");
        assert!(error.to_string().contains("it redirects"), "{code}: {error}");
    }
}

/// 64 KiB are enough for a token; what is more is not waited for.
#[tokio::test]
async fn the_answer_of_a_token_service_is_bounded() {
    const MOST: usize = 64 << 10;
    const TOKEN: &str = r#"{"token":"x"}"#;
    let token = |length: usize| TOKEN.to_owned() + &" ".repeat(length - TOKEN.len());
    let endless = || futures_util::stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![b' '; 4096])));
    let streamed = move |length| Body::from_stream(futures_util::stream::iter([Ok::<_, Infallible>(token(length))]));
    let cases: [(&str, Rule, bool); 5] = [
        ("as much as there may be", Box::new(move |_, _| Some(token(MOST).into_response())), true),
        ("the same without a length", Box::new(move |_, _| Some(streamed(MOST).into_response())), true),
        ("one more", Box::new(move |_, _| Some(token(MOST + 1).into_response())), false),
        ("one more without a length", Box::new(move |_, _| Some(streamed(MOST + 1).into_response())), false),
        ("without an end", Box::new(move |_, _| Some(Body::from_stream(endless()).into_response())), false),
    ];
    for (name, rule, taken) in cases {
        let service = Registry::start(image(), rule).await;
        let registry = with_tokens_of(&service).await;
        let mut settings = registry.settings();
        settings.insecure.push(service.host.clone());
        let (place, told) = (Place::new(), Told::default());
        let pulled = tokio::time::timeout(Duration::from_secs(20), pull(&place, &registry, &settings, &told)).await;
        let result = pulled.unwrap_or_else(|_| panic!("{name}: it is waited for"));
        assert_eq!(result.is_ok(), taken, "{name}: {result:?}");
        if let Err(error) = result {
            assert!(error.to_string().contains("larger than 65536 bytes"), "{name}: {error}");
            assert_eq!(service.log().len(), 1, "{name}: asked again");
            place.assert_clean();
        }
    }
}

/// A layer may name other places to get it: they are nobody's choice but the image's.
#[tokio::test]
async fn the_places_that_a_layer_names_are_never_asked() {
    let thief = Registry::start(image(), |_, _| None).await;
    let mut named = image();
    let mut manifest: serde_json::Value = serde_json::from_slice(&named.manifest).unwrap();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        let path = format!("/v2/acme/app/blobs/{}", layer["digest"].as_str().unwrap());
        layer["urls"] = json!([format!("http://{}{path}", thief.host), format!("http://{}/blob", thief.host)]);
    }
    named.manifest = manifest.to_string().into_bytes();
    let (path, _) = layer_path(&named);
    for missing in [false, true] {
        let (path, again) = (path.clone(), Image { blobs: named.blobs.clone(), manifest: named.manifest.clone() });
        let registry = Registry::start(again, move |asked, _| {
            if asked.authorization.as_deref() != Some("Basic bWU6c2VjcmV0") {
                return Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=x")]).into_response());
            }
            (missing && asked.path == path).then(|| status(404))
        })
        .await;
        let place = Place::new();
        let mut settings = credentials(&place, &registry.host);
        settings.insecure = vec![registry.host.clone(), thief.host.clone()];
        let result = pull(&Place::new(), &registry, &settings, &Told::default()).await;
        assert!(thief.log().is_empty(), "missing {missing}: {:?}", thief.log());
        match result {
            Ok(_) => assert!(!missing, "it came from somewhere"),
            Err(error) => assert!(missing && error.code() == Code::NotFound, "missing {missing}: {error}"),
        }
    }
}
