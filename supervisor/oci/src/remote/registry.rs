//! Requests to a registry: sign-in, redirects, status codes, one answer at a time.
//!
//! In: a host, a repository, a path below `/v2/`. Out: a response to read from, or bounded bytes. Must not: send a secret to
//! an origin it was not made for, follow more than five redirects, or read a body without bound.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use molt_core::ids::Digest;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Deserialize;

use super::{
    address::{Reach, authority, origin, realm_trusted, url_allowed},
    challenge::{self, Challenge},
    credentials::{Credentials, Found, Secret},
    transport::Transport,
};
use crate::{
    config::{Limits, Registries},
    error::{Error, Result},
};

const HOPS: usize = 5;

/// One place that has the repository: the registry itself, or a mirror of it.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// `https://HOST/v2/`, and a mirror's prefix.
    base: Url,
    /// `host[:port]`.
    pub(crate) host: String,
    /// Whether it gets the credentials.
    pub(crate) own: bool,
}

/// What to get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) repository: &'a str,
    /// `manifests/TAG` or `blobs/DIGEST`.
    pub(crate) path: &'a str,
    pub(crate) accept: Option<&'a str>,
    /// First byte wanted.
    pub(crate) from: u64,
}

/// A document that was read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Option<String>,
}

/// All registries, with the tokens they gave.
#[derive(Debug)]
pub(crate) struct Registry {
    transport: Transport,
    credentials: Credentials,
    insecure: Vec<String>,
    mirrors: BTreeMap<String, Vec<String>>,
    limits: Limits,
    /// By origin and repository: the Authorization header.
    tokens: Mutex<HashMap<(String, String), String>>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Registry {
    pub(crate) fn new(registries: &Registries, limits: Limits) -> Result<Self> {
        Ok(Self {
            transport: Transport::new(registries, &limits)?,
            credentials: Credentials::new(registries.credentials.clone()),
            insecure: registries.insecure.iter().map(|host| host.to_ascii_lowercase()).collect(),
            mirrors: registries.mirrors.clone(),
            limits,
            tokens: Mutex::new(HashMap::new()),
        })
    }

    /// Mirrors in order, then the registry.
    pub(crate) fn endpoints(&self, host: &str) -> Result<Vec<Endpoint>> {
        let mut all = Vec::new();
        for mirror in self.mirrors.get(host).into_iter().flatten() {
            all.push(self.endpoint(mirror, false)?);
        }
        all.push(self.endpoint(if host == "docker.io" { "registry-1.docker.io" } else { host }, true)?);
        Ok(all)
    }

    fn endpoint(&self, place: &str, own: bool) -> Result<Endpoint> {
        let refuse = || Error::Settings {
            what: format!("registry or mirror '{place}'"),
            why: "must be host[:port] and for a mirror perhaps /prefix".to_owned(),
        };
        let place = place.trim_end_matches('/').to_ascii_lowercase();
        let (host, prefix) = place.split_once('/').unwrap_or((&place, ""));
        let scheme = if self.insecure.iter().any(|plain| plain == host) { "http" } else { "https" };
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let base: Url = format!("{scheme}://{host}/v2/{prefix}").parse().map_err(|_| refuse())?;
        if host.is_empty() || !base.username().is_empty() || base.query().is_some() {
            return Err(refuse());
        }
        url_allowed(&base, Reach::Named, &self.insecure).map_err(|why| Error::Answer {
            host: host.to_owned(),
            what: "anything".to_owned(),
            why,
        })?;
        Ok(Endpoint { base, host: host.to_owned(), own })
    }

    /// Whether `url` counts as a host the operator named: the endpoint itself, or whatever a local or plain one says.
    fn reach(&self, endpoint: &Endpoint, url: &Url) -> Reach {
        let local = url_allowed(&endpoint.base, Reach::Told, &self.insecure).is_err();
        let plain = self.insecure.contains(&authority(url)) || endpoint.base.scheme() == "http";
        if local || plain || url.host_str() == endpoint.base.host_str() { Reach::Named } else { Reach::Told }
    }

    /// Sends one request; signs in and follows redirects as needed. The response has status 200 or 206.
    pub(crate) async fn send(&self, endpoint: &Endpoint, ask: Ask<'_>) -> Result<Response> {
        let what = format!("{}/{}", ask.repository, ask.path);
        let wrong = |host: &str, why: String| Error::Answer { host: host.to_owned(), what: what.clone(), why };
        let mut url =
            endpoint.base.join(&what).map_err(|_| wrong(&endpoint.host, "the name does not make a URL".to_owned()))?;
        let mut signed_in = HashSet::new();
        let mut hops = 0;
        loop {
            let reach = self.reach(endpoint, &url);
            let host = authority(&url);
            url_allowed(&url, reach, &self.insecure)
                .map_err(|why| wrong(&endpoint.host, format!("it leads to {why}")))?;
            let at = origin(&url);
            let mut request = self.transport.client(reach).get(url.clone());
            if let Some(accept) = ask.accept {
                request = request.header(ACCEPT, accept);
            }
            if ask.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.from));
            }
            if let Some(token) = self.token(&at, ask.repository) {
                request = request.header(AUTHORIZATION, token);
            }
            let response = self.wait(&host, &what, request).await?;
            let status = response.status();
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    hops += 1;
                    if hops > HOPS {
                        return Err(wrong(&endpoint.host, format!("more than {HOPS} redirects")));
                    }
                    let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                    url = target
                        .and_then(|target| url.join(target).ok())
                        .ok_or_else(|| wrong(&host, "a redirect to nowhere".to_owned()))?;
                }
                StatusCode::UNAUTHORIZED if signed_in.insert(at.clone()) => {
                    self.forget(&at, ask.repository);
                    let header = self.sign_in(endpoint, &url, &what, ask.repository, response.headers()).await?;
                    self.remember(at, ask.repository, header);
                }
                status => return Err(self.refused(endpoint, &host, &what, ask.repository, status, response.headers())),
            }
        }
    }

    /// Gets a document of at most `at_most` bytes.
    pub(crate) async fn get(&self, endpoint: &Endpoint, ask: Ask<'_>, at_most: u64) -> Result<Answer> {
        let what = format!("{}/{}", ask.repository, ask.path);
        let response = self.send(endpoint, ask).await?;
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let media_type = text(CONTENT_TYPE.as_str())
            .map(|kind| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        let digest = text("docker-content-digest");
        let bytes = self.read(response, &endpoint.host, &what, at_most).await?;
        Ok(Answer { bytes, media_type, digest })
    }

    async fn wait(&self, host: &str, what: &str, request: reqwest::RequestBuilder) -> Result<Response> {
        match tokio::time::timeout(self.limits.stall, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unreachable(host, what, error)),
            Err(_) => Err(stalled(host, what, self.limits.stall)),
        }
    }

    async fn read(&self, mut response: Response, host: &str, what: &str, at_most: u64) -> Result<Bytes> {
        let too_big = || Error::manifest(what, format!("larger than {at_most} bytes"));
        if response.content_length().is_some_and(|length| length > at_most) {
            return Err(too_big());
        }
        let mut bytes = Vec::new();
        loop {
            let piece = match tokio::time::timeout(self.limits.stall, response.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => return Ok(bytes.into()),
                Ok(Err(error)) => return Err(broken(host, what, &error)),
                Err(_) => return Err(stalled(host, what, self.limits.stall)),
            };
            if (bytes.len() + piece.len()) as u64 > at_most {
                return Err(too_big());
            }
            bytes.extend_from_slice(&piece);
        }
    }

    /// Answers a 401: the Authorization header for the origin of `url`.
    async fn sign_in(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        what: &str,
        repository: &str,
        headers: &HeaderMap,
    ) -> Result<String> {
        let host = authority(url);
        let denied =
            |hint: String| Error::Unauthorized { host: host.clone(), what: what.to_owned(), status: 401, hint };
        let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenge = challenge::parse(challenges).map_err(denied)?;
        let own = endpoint.own && origin(url) == origin(&endpoint.base);
        let found = if own { self.credentials.find(&endpoint.host, repository)? } else { None };
        match (challenge, found) {
            (Challenge::Basic, Some(Found { secret: Secret::Basic { user, password }, .. })) => {
                Ok(basic(&user, &password))
            }
            (Challenge::Basic, _) if !own => {
                Err(denied("it wants a password, which only the registry itself gets".to_owned()))
            }
            (Challenge::Basic, _) => Err(denied(self.credentials.hint(&endpoint.host, false))),
            (Challenge::Bearer { realm, service }, found) => {
                let realm_host = authority(&realm);
                let reach = self.reach(endpoint, &realm);
                url_allowed(&realm, reach, &self.insecure)
                    .map_err(|why| denied(format!("it sends for a token to {why}")))?;
                // Never an entry of another registry: it would sign in there for this one, with what is not its own.
                if found.as_ref().is_some_and(|found| !realm_trusted(&host, &realm_host) && !found.names(&realm_host)) {
                    return Err(denied(format!(
                        "it wants its credentials sent to {realm_host}, which is not of its domain; if that is right, add \
                         \"authHosts\": [\"{realm_host}\"] to the entry for '{}' in the credentials file",
                        endpoint.host
                    )));
                }
                let secret = found.map(|found| found.secret);
                let token = self.fetch_token(endpoint, realm, service.as_deref(), repository, secret, reach).await?;
                Ok(format!("Bearer {token}"))
            }
        }
    }

    async fn fetch_token(
        &self,
        endpoint: &Endpoint,
        realm: Url,
        service: Option<&str>,
        repository: &str,
        secret: Option<Secret>,
        reach: Reach,
    ) -> Result<String> {
        let host = authority(&realm);
        let what = format!("a token for {repository}");
        let presented = secret.is_some();
        let client = self.transport.client(reach);
        let mut url = challenge::token_url(realm, service, repository);
        let request = match secret {
            None => client.get(url),
            Some(Secret::Basic { user, password }) => client.get(url).header(AUTHORIZATION, basic(&user, &password)),
            Some(Secret::Identity(token)) => {
                url.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "molt")
                    .append_pair("refresh_token", &token);
                let form = url.query().unwrap_or_default().to_owned();
                url.set_query(None);
                client.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
            }
        };
        let response = self.wait(&host, &what, request).await?;
        let wrong = |why: &str| Error::Answer { host: host.clone(), what: what.clone(), why: why.to_owned() };
        match response.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => return Err(wrong("it redirects, which token services must not")),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                let hint = self.credentials.hint(&endpoint.host, presented);
                return Err(Error::Unauthorized { host, what, status: status.as_u16(), hint });
            }
            status => return Err(self.refused(endpoint, &host, &what, repository, status, response.headers())),
        }
        let body = self.read(response, &host, &what, self.limits.token).await?;
        let token: Token = serde_json::from_slice(&body).map_err(|_| wrong("the answer is not a token"))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        token
            .filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()))
            .ok_or_else(|| wrong("the answer has no token in it"))
    }

    fn refused(
        &self,
        endpoint: &Endpoint,
        host: &str,
        what: &str,
        repository: &str,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Error {
        let (host, what) = (host.to_owned(), what.to_owned());
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let presented = endpoint.own
                    && self.credentials.find(&endpoint.host, repository).is_ok_and(|secret| secret.is_some());
                let hint = self.credentials.hint(&endpoint.host, presented);
                Error::Unauthorized { host, what, status: status.as_u16(), hint }
            }
            StatusCode::NOT_FOUND => Error::NotFound { what, place: host },
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Error::Unavailable { host, what, status: status.as_u16(), after: retry_after(headers) }
            }
            status if status.is_server_error() => {
                Error::Unavailable { host, what, status: status.as_u16(), after: retry_after(headers) }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Error::Answer { host, what, why: "it ends before the size its manifest gives (416)".to_owned() }
            }
            status => Error::Answer { host, what, why: format!("it answered {}", status.as_u16()) },
        }
    }

    fn token(&self, origin: &str, repository: &str) -> Option<String> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(&(origin.to_owned(), repository.to_owned())).cloned()
    }

    fn remember(&self, origin: String, repository: &str, header: String) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= 256 {
            tokens.clear();
        }
        tokens.insert((origin, repository.to_owned()), header);
    }

    fn forget(&self, origin: &str, repository: &str) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.remove(&(origin.to_owned(), repository.to_owned()));
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// The path of a blob below its repository.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{digest}")
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Seconds only; a date would need a clock that can be trusted.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn unreachable(host: &str, what: &str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    if !error.is_connect() && !error.is_timeout() {
        return broken(host, what, &error);
    }
    let why = if error.is_timeout() { "no answer in time" } else { innermost(&error).1 };
    Error::Unreachable { host: host.to_owned(), why: why.to_owned(), source: Some(Box::new(error)) }
}

pub(crate) fn broken(host: &str, what: &str, error: &reqwest::Error) -> Error {
    let why = format!("the connection broke: {}", innermost(error).0);
    Error::Broken { host: host.to_owned(), what: what.to_owned(), why }
}

pub(crate) fn stalled(host: &str, what: &str, after: Duration) -> Error {
    let why = format!("no byte came for {} s", after.as_secs());
    Error::Broken { host: host.to_owned(), what: what.to_owned(), why }
}

const NO_TLS: &str = "TLS failed; if it speaks plain HTTP only, list it in registries.insecure";

/// The deepest cause, and which layer it is about.
fn innermost(error: &reqwest::Error) -> (String, &'static str) {
    let mut cause: &dyn std::error::Error = error;
    let mut layer = "no connection";
    while let Some(next) = cause.source() {
        if next.is::<rustls::Error>() {
            layer = NO_TLS;
        }
        cause = next;
    }
    let text = cause.to_string();
    // An `io::Error` of the TLS layer: the other side hung up on its greeting.
    if text == "tls handshake eof" {
        layer = NO_TLS;
    }
    if text.contains("certificate") {
        layer = "its certificate is not trusted; add its CA to registries.certificates";
    }
    (crate::error::show(text.as_bytes()), layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_elsewhere_tells_of_is_not_what_the_operator_named() {
        let insecure = ["plain.example.com", "lab.example.com:5000"].map(str::to_owned).into();
        let registry = Registry::new(&Registries { insecure, ..Registries::default() }, Limits::default()).unwrap();
        for (host, url, reach) in [
            ("registry.example.com", "https://registry.example.com/v2/", Reach::Named),
            ("registry.example.com:5000", "https://registry.example.com/token", Reach::Named),
            ("registry.example.com", "https://auth.example.com/token", Reach::Told),
            ("registry.example.com", "https://localhost/token", Reach::Told),
            ("registry.example.com", "https://inside.example.com/token", Reach::Told),
            // The operator named it, by its port.
            ("registry.example.com", "http://lab.example.com:5000/token", Reach::Named),
            ("registry.example.com", "http://lab.example.com:5001/token", Reach::Told),
            // Who is asked in plain HTTP, or here, is believed in this.
            ("plain.example.com", "https://auth.example.com/token", Reach::Named),
            ("127.0.0.1:5000", "https://auth.example.com/token", Reach::Named),
            ("localhost:5000", "https://127.0.0.1/token", Reach::Named),
        ] {
            let endpoint = registry.endpoint(host, true).unwrap();
            assert_eq!(registry.reach(&endpoint, &url.parse().unwrap()), reach, "{host}: {url}");
        }
    }
}
