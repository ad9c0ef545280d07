//! Calling a gateway: TLS 1.3, credentials from files that may change under it, deadlines and bounds on everything.
//!
//! In: a URL, files, requests. Out: answers, read whole, or streams. Must not: follow a redirect, speak to whom TLS does not
//! prove, send a token anywhere else, or show one.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use hyper::http;
use molt_core::{gateway::plain, wire::Problem};
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use tokio::sync::Mutex;

use super::files::{self, Stamp};
use crate::{aside, timer};

/// For one connection to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// For an answer that needs no waiting.
pub(crate) const ANSWER: Duration = Duration::from_secs(30);
/// Longest document in an answer.
pub(crate) const DOCUMENT: usize = 16 << 20;

/// Where a gateway is, and what proves who is who.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// `https://HOST[:PORT][/PATH]`, as given.
    pub(crate) url: String,
    /// Authorities; the built-in ones where absent.
    pub(crate) ca: Option<PathBuf>,
    /// Certificate.
    pub(crate) certificate: Option<PathBuf>,
    /// Its key.
    pub(crate) key: Option<PathBuf>,
    /// Bearer token.
    pub(crate) token: Option<PathBuf>,
}

impl Names {
    fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.ca, &self.certificate, &self.key, &self.token].into_iter().filter_map(|path| path.as_deref())
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// A file or the URL.
    #[error("{0}")]
    Settings(String),
    /// No connection, or one that broke.
    #[error("failed to reach the gateway: {0}")]
    Unreachable(String),
    /// Nothing came in time.
    #[error("the gateway did not answer in {} s", .0.as_secs())]
    Late(Duration),
    /// It says no.
    #[error("the gateway answered {status}{}", .problem.as_ref().map(|problem| format!(": {}", problem.detail)).unwrap_or_default())]
    No {
        /// HTTP status.
        status: u16,
        /// In its words.
        problem: Option<Box<Problem>>,
    },
    /// What came makes no sense.
    #[error("the gateway's answer could not be read: {0}")]
    Broken(String),
}

/// A request.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    /// Method.
    pub(crate) method: Method,
    /// Path and query, from the gateway's URL on.
    pub(crate) path: &'a str,
    /// Headers beside the usual ones.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// JSON.
    pub(crate) body: Option<Vec<u8>>,
    /// For all of it.
    pub(crate) within: Duration,
    /// Longest answer.
    pub(crate) most: usize,
}

impl<'a> Ask<'a> {
    /// With the usual limits.
    pub(crate) fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, headers: Vec::new(), body: None, within: ANSWER, most: DOCUMENT }
    }

    /// With a document.
    pub(crate) fn with(mut self, body: &impl serde::Serialize) -> Result<Self, Fault> {
        self.body = Some(serde_json::to_vec(body).map_err(|error| Fault::Settings(error.to_string()))?);
        Ok(self)
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// Entity tag.
    pub(crate) tag: Option<HeaderValue>,
    /// The body.
    pub(crate) body: Vec<u8>,
}

struct Held {
    /// Of the files that were looked at last, whether they made sense or not.
    stamp: Stamp,
    client: reqwest::Client,
    token: Option<HeaderValue>,
}

/// Knows a gateway.
pub(crate) struct Dial {
    names: Names,
    held: Mutex<Option<Held>>,
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dial").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Dial {
    /// For a gateway; nothing is read or dialled yet.
    pub(crate) fn new(mut names: Names) -> Result<Self, Fault> {
        let url: reqwest::Url =
            names.url.parse().map_err(|error| Fault::Settings(format!("{} is no URL: {error}", names.url)))?;
        molt_oci::named_allowed(&url).map_err(Fault::Settings)?;
        names.url.truncate(names.url.trim_end_matches('/').len());
        Ok(Self { names, held: Mutex::new(None) })
    }

    /// Host and port, for people.
    pub(crate) fn host(&self) -> String {
        let rest = self.names.url.trim_start_matches("https://");
        rest.split('/').next().unwrap_or_default().chars().take(55).collect()
    }

    /// Whether a file has changed since it was read.
    pub(crate) async fn renewed(&self) -> bool {
        let names = self.names.clone();
        let now = aside::run("gateway files", move || Stamp::of(names.files())).await;
        let held = self.held.lock().await;
        matches!((held.as_ref(), now), (Some(held), Some(now)) if held.stamp != now)
    }

    /// Asks, and reads the answer.
    pub(crate) async fn ask(&self, ask: Ask<'_>) -> Result<Answer, Fault> {
        let (within, most) = (ask.within, ask.most);
        let whole = async {
            let mut response = self.send(ask).await?;
            let status = response.status().as_u16();
            let tag = response.headers().get(header::ETAG).cloned();
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
                if body.len() + chunk.len() > most {
                    return Err(Fault::Broken(format!("it is longer than {most} bytes")));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(Answer { status, tag, body })
        };
        timer::timeout(within, whole).await.unwrap_or(Err(Fault::Late(within)))
    }

    /// The same, for an answer that says yes: 2xx, or 304.
    pub(crate) async fn done(&self, ask: Ask<'_>) -> Result<Answer, Fault> {
        let answer = self.ask(ask).await?;
        if matches!(answer.status, 200..=299 | 304) {
            return Ok(answer);
        }
        Err(no(answer.status, &answer.body))
    }

    /// Asks for an answer that goes on; only its head is waited for here.
    pub(crate) async fn open(&self, ask: Ask<'_>) -> Result<reqwest::Response, Fault> {
        let within = ask.within;
        let response = timer::timeout(within, self.send(ask)).await.unwrap_or(Err(Fault::Late(within)))?;
        let status = response.status().as_u16();
        if status == 200 { Ok(response) } else { Err(no(status, &[])) }
    }

    async fn send(&self, ask: Ask<'_>) -> Result<reqwest::Response, Fault> {
        let (client, token) = self.client().await?;
        let mut request = client.request(ask.method, format!("{}{}", self.names.url, ask.path));
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token);
        }
        if let Some(body) = ask.body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(Bytes::from(body));
        }
        request.send().await.map_err(|error| unreachable(&error))
    }

    /// A client with what the files hold now; while what they hold makes no sense, with what they held before.
    async fn client(&self) -> Result<(reqwest::Client, Option<HeaderValue>), Fault> {
        let mut held = self.held.lock().await;
        let names = self.names.clone();
        let before = held.as_ref().map(|held| held.stamp.clone());
        let read = aside::run("gateway files", move || {
            let stamp = Stamp::of(names.files());
            if before.as_ref() == Some(&stamp) {
                return None;
            }
            Some((make(&names, stamp.clone()), stamp))
        });
        match read.await {
            Some(Some((Ok(new), _))) => *held = Some(new),
            Some(Some((Err(why), stamp))) => match held.as_mut() {
                None => return Err(Fault::Settings(why)),
                Some(held) => {
                    tracing::warn!("the gateway's renewed files are not taken yet: {why}");
                    held.stamp = stamp;
                }
            },
            Some(None) | None => {}
        }
        let held = held.as_ref().ok_or_else(|| Fault::Settings("the gateway's files could not be read".to_owned()))?;
        Ok((held.client.clone(), held.token.clone()))
    }
}

fn make(names: &Names, stamp: Stamp) -> Result<Held, String> {
    let roots = match &names.ca {
        Some(path) => files::roots(path)?,
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
    };
    let builder = ClientConfig::builder_with_provider(files::provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| error.to_string())?
        .with_root_certificates(Arc::new(roots));
    let tls = match (&names.certificate, &names.key) {
        (Some(certificate), Some(key)) => {
            let (chain, secret) = (files::certificates(certificate)?, files::key(key)?);
            let built = builder.with_client_auth_cert(chain, secret);
            built.map_err(|error| format!("{} and {}: {error}", certificate.display(), key.display()))?
        }
        _ => builder.with_no_client_auth(),
    };
    let token = names.token.as_deref().map(files::token).transpose()?;
    let token = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok()).map(|mut value| {
        value.set_sensitive(true);
        value
    });
    let client = molt_oci::named_client(tls, CONNECT).map_err(|error| crate::effects::chain(&error))?;
    Ok(Held { stamp, client, token })
}

fn unreachable(error: &reqwest::Error) -> Fault {
    Fault::Unreachable(crate::effects::chain(error))
}

fn no(status: u16, body: &[u8]) -> Fault {
    let problem = serde_json::from_slice::<Problem>(body).ok();
    Fault::No {
        status,
        problem: problem.map(|problem| Box::new(Problem { detail: plain(&problem.detail), ..problem })),
    }
}
