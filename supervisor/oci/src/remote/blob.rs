//! One blob from a registry, as a stream that survives broken connections.
//!
//! In: a descriptor and where it may be had. Out: its bytes in order on a channel, never more than promised. Must not: hold
//! the blob, or judge it: the receiver hashes what it gets, from the first byte to the last.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use molt_core::ids::Digest;
use reqwest::{Response, StatusCode, header::CONTENT_RANGE};
use tokio::sync::mpsc::Sender;

use super::{
    pace::Pace,
    registry::{Ask, Endpoint, Registry, blob_path, broken, stalled},
};
use crate::{
    error::{Error, Result},
    fetch::Progress,
};

/// Which blob.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) repository: &'a str,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// Sends the bytes of a blob to `to`. Ends early, without an error, when nobody receives any more. The endpoints are
/// tried in order; one that fails is left for good, the last one is retried. A new connection goes on where the old one
/// broke; where it broke after the last byte there is nothing to go on with. `mirrored` is set when bytes are a
/// mirror's.
pub(crate) async fn pump(
    registry: &Registry,
    endpoints: &[Endpoint],
    wanted: Wanted<'_>,
    to: &Sender<Bytes>,
    mirrored: &AtomicBool,
    progress: &dyn Progress,
    mut report: impl FnMut(u64),
) -> Result<()> {
    let path = blob_path(&wanted.digest);
    let mut pace = Pace::new(registry.limits(), &path, Some(progress));
    let mut endpoints = endpoints.iter().peekable();
    let mut done = 0;
    while let Some(endpoint) = endpoints.peek() {
        let before = done;
        let error = match attempt(registry, endpoint, wanted, &path, &mut done, to, mirrored, &mut report).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if done > before {
            // All bytes are there, and what broke was the end of the body.
            if done == wanted.size && error.transient() {
                return Ok(());
            }
            pace.moved();
        }
        if endpoint.own {
            pace.pause(error).await?;
        } else {
            progress.retry(&path, std::time::Duration::ZERO, &error.to_string());
            endpoints.next();
        }
    }
    Err(Error::NotFound { what: path, place: "any mirror".to_owned() })
}

#[expect(clippy::too_many_arguments, reason = "one attempt of the above")]
async fn attempt(
    registry: &Registry,
    endpoint: &Endpoint,
    wanted: Wanted<'_>,
    path: &str,
    done: &mut u64,
    to: &Sender<Bytes>,
    mirrored: &AtomicBool,
    report: &mut impl FnMut(u64),
) -> Result<()> {
    let host = endpoint.host.as_str();
    let stall = registry.limits().stall;
    let ask = Ask { repository: wanted.repository, path, accept: None, from: *done };
    let mut response = registry.send(endpoint, ask).await?;
    let mut skip = prefix(&response, host, path, *done, wanted.size)?;
    let longer = || Error::Mismatch {
        what: format!("the size of blob {}", wanted.digest),
        expected: format!("{} bytes", wanted.size),
        actual: "more".to_owned(),
    };
    if response.content_length().is_some_and(|length| length > wanted.size.saturating_sub(*done) + skip) {
        return Err(longer());
    }
    loop {
        let mut piece = match tokio::time::timeout(stall, response.chunk()).await {
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) if *done == wanted.size => return Ok(()),
            Ok(Ok(None)) => {
                let why = format!("it ended after {done} of {} bytes", wanted.size);
                return Err(Error::Broken { host: host.to_owned(), what: path.to_owned(), why });
            }
            Ok(Err(error)) => return Err(broken(host, path, &error)),
            Err(_) => return Err(stalled(host, path, stall)),
        };
        let skipped = piece.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
        let _ = piece.split_to(skipped);
        skip -= skipped as u64;
        if piece.is_empty() {
            continue;
        }
        if *done + piece.len() as u64 > wanted.size {
            return Err(longer());
        }
        *done += piece.len() as u64;
        mirrored.fetch_or(!endpoint.own, Ordering::Relaxed);
        if to.send(piece).await.is_err() {
            return Ok(());
        }
        report(*done);
    }
}

/// How many bytes of the body come before the first one wanted: none of a right 206, all of them of a 200.
fn prefix(response: &Response, host: &str, path: &str, from: u64, size: u64) -> Result<u64> {
    if response.status() == StatusCode::OK || from == 0 && response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(from);
    }
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let first = range.strip_prefix("bytes ").and_then(|rest| rest.split_once('-'));
    let right = first.is_some_and(|(first, rest)| {
        let total = rest.split_once('/').map_or("", |(_, total)| total);
        first.parse() == Ok(from) && (total == "*" || total.parse() == Ok(size))
    });
    if right {
        return Ok(0);
    }
    let why = format!("asked for the bytes from {from}, it sent '{}'", crate::error::show(range.as_bytes()));
    Err(Error::Broken { host: host.to_owned(), what: path.to_owned(), why })
}
