//! A small HTTP/1.1 client over the operator socket.
//!
//! In: requests. Out: documents, streams of lines, an upgraded connection. Must not: keep connections; the supervisor
//! takes one request on each.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http1, header, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use molt_core::wire::{ExecOptions, Problem};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::fault::Fault;
use crate::api::{EXEC_PROTOCOL, JSON_LINES};

/// The supervisor gives up after 30 s and says so; this is for one that says nothing.
const ANSWER_TIME: Duration = Duration::from_secs(40);
/// Longest document taken.
const DOCUMENT: usize = 16 << 20;
/// Longest line of a stream: an update's record with its evidence.
const LINE: usize = 4 << 20;

/// Knows where the socket is.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// For the socket at `path`.
    pub(crate) fn new(path: &Path) -> Self {
        Self { socket: path.to_owned() }
    }

    /// A document.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Fault> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// A document, in answer to another one.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Fault> {
        let bytes = self.done(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| Fault::Broken(error.to_string()))
    }

    /// The bytes of an answer that says yes; the answer may be empty.
    pub(crate) async fn done(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Bytes, Fault> {
        let (status, bytes) = self.answer(method, path, body).await?;
        if status.is_success() { Ok(bytes) } else { Err(refused(status, &bytes)) }
    }

    /// Status and bytes, whatever they say.
    pub(crate) async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(StatusCode, Bytes), Fault> {
        let whole = async {
            let response = self.send(request(method, path, body)?).await?;
            let status = response.status();
            Ok((status, read(response).await?))
        };
        tokio::time::timeout(ANSWER_TIME, whole)
            .await
            .unwrap_or_else(|_| Err(Fault::Broken(format!("no answer in {} s", ANSWER_TIME.as_secs()))))
    }

    /// A stream of JSON lines.
    pub(crate) async fn lines(&self, path: &str) -> Result<Lines, Fault> {
        let mut request = request(Method::GET, path, None::<&()>)?;
        request.headers_mut().insert(header::ACCEPT, header::HeaderValue::from_static(JSON_LINES));
        let response = self.send(request).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(status, &read(response).await?));
        }
        Ok(Lines { body: response.into_body(), read: BytesMut::new() })
    }

    /// A connection that carries exec frames.
    pub(crate) async fn exec(&self, options: &ExecOptions) -> Result<TokioIo<Upgraded>, Fault> {
        let mut request = request(Method::POST, "/v1/exec", Some(options))?;
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static(EXEC_PROTOCOL));
        let response = self.send(request).await?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refused(status, &read(response).await?));
        }
        hyper::upgrade::on(response).await.map(TokioIo::new).map_err(|error| broken(&error))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Fault> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| Fault::Unreachable { socket: self.socket.clone(), source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        // Ends with the connection; its errors come back with the response or the body.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(|error| broken(&error))
    }
}

/// Lines of an answer as they come.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    read: BytesMut,
}

impl Lines {
    /// The next line that is not empty, read as a `T`; `None` at the end.
    ///
    /// Cancel safe: what was read stays.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Fault> {
        loop {
            while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(|error| Fault::Broken(error.to_string()));
            }
            if self.read.len() > LINE {
                return Err(Fault::Broken("a line of more than 4 MiB".to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(broken(&error)),
                None => return Ok(None),
            }
        }
    }
}

fn request(method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Request<Full<Bytes>>, Fault> {
    let body = match body {
        Some(body) => serde_json::to_vec(body).map_err(|error| Fault::Local(error.to_string()))?,
        None => Vec::new(),
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "molt")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| Fault::Local(error.to_string()))
}

async fn read(response: Response<Incoming>) -> Result<Bytes, Fault> {
    let body = Limited::new(response.into_body(), DOCUMENT).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| Fault::Broken(error.to_string()))
}

/// The problem in an answer that says no.
pub(super) fn refused(status: StatusCode, bytes: &Bytes) -> Fault {
    match serde_json::from_slice::<Problem>(bytes) {
        Ok(problem) => Fault::Problem(problem),
        Err(_) => Fault::Broken(format!("HTTP status {status}")),
    }
}

fn broken(error: &hyper::Error) -> Fault {
    use std::error::Error as _;
    match error.source() {
        Some(source) => Fault::Broken(format!("{error}: {source}")),
        None => Fault::Broken(error.to_string()),
    }
}
