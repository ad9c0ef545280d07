//! Streams: events and the workload's output, as they come.
//!
//! In: the event log and the output ring. Out: server-sent events or JSON lines, resumable by number. Must not: buffer for
//! a slow reader: it reads on from the ring and sees the gap in the numbers.

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use molt_core::code::Code;
use serde::Deserialize;
use tokio::{sync::watch, time::timeout};

use super::{
    JSON_LINES,
    answer::Refused,
    listen::{Slot, StreamSlot},
};
use crate::command::Handle;

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How documents are laid out on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `text/event-stream`.
    ServerSent,
    /// `application/jsonl`.
    Lines,
}

impl Form {
    fn media(self) -> &'static str {
        match self {
            Self::ServerSent => "text/event-stream",
            Self::Lines => JSON_LINES,
        }
    }

    /// What a reader skips and a dead connection cannot take.
    fn keep_alive(self) -> &'static [u8] {
        match self {
            Self::ServerSent => b": alive\n\n",
            Self::Lines => b"\n",
        }
    }

    fn write(self, seq: u64, text: &[u8], into: &mut Vec<u8>) {
        if self == Self::ServerSent {
            into.extend_from_slice(format!("id: {seq}\ndata: ").as_bytes());
        }
        // JSON text holds no raw newline.
        into.extend_from_slice(text);
        into.extend_from_slice(if self == Self::ServerSent { b"\n\n" } else { b"\n" });
    }
}

/// Query of both streams; numbers are text here so that a wrong one gets a problem document.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Options {
    follow: Option<String>,
    after: Option<String>,
    tail: Option<String>,
}

impl Options {
    fn number(name: &str, text: Option<&String>) -> Result<Option<u64>, Refused> {
        text.map(|text| text.parse())
            .transpose()
            .map_err(|_| Refused::new(Code::Invalid, format!("{name} must be a whole number")))
    }

    fn follow(&self, default: bool) -> Result<bool, Refused> {
        match self.follow.as_deref() {
            None => Ok(default),
            Some("1" | "true") => Ok(true),
            Some("0" | "false") => Ok(false),
            Some(_) => Err(Refused::new(Code::Invalid, "follow must be 1 or 0")),
        }
    }
}

fn options(query: Result<Query<Options>, axum::extract::rejection::QueryRejection>) -> Result<Options, Refused> {
    query.map(|Query(options)| options).map_err(|error| Refused::new(Code::Invalid, error.body_text()))
}

/// `GET /v1/events`: follows unless `follow=0`; from the oldest kept event unless `after` or `Last-Event-ID` says more.
pub(super) async fn events(
    State(handle): State<Handle>,
    Extension(slot): Extension<Slot>,
    headers: HeaderMap,
    query: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refused> {
    let options = options(query)?;
    let resumed = headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default().to_owned());
    let after = Options::number("Last-Event-ID", resumed.as_ref())?
        .or(Options::number("after", options.after.as_ref())?)
        .unwrap_or_default();
    let wants_lines =
        headers.get_all(header::ACCEPT).iter().any(|value| value.to_str().is_ok_and(|text| text.contains(JSON_LINES)));
    let form = if wants_lines { Form::Lines } else { Form::ServerSent };
    let log = handle.events;
    let cursor = Cursor {
        after: oldest(after, log.last()),
        news: log.watch(),
        follow: options.follow(true)?,
        first: true,
        _slot: slot.stream()?,
    };
    Ok(stream(form, cursor, move |after| {
        let mut text = Vec::new();
        let events = log.after(after);
        for (seq, event) in &events {
            form.write(*seq, event, &mut text);
        }
        (events.last().map(|(seq, _)| *seq), text)
    }))
}

/// `GET /v1/logs`: ends after what is kept unless `follow=1`; the last `tail` lines, or those after number `after`.
pub(super) async fn logs(
    State(handle): State<Handle>,
    Extension(slot): Extension<Slot>,
    query: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refused> {
    let options = options(query)?;
    let ring = handle.output;
    let news = ring.watch();
    let last = *news.borrow();
    let after = Options::number("after", options.after.as_ref())?.map_or(0, |after| oldest(after, last));
    let tail = Options::number("tail", options.tail.as_ref())?.map_or(0, |tail| last.saturating_sub(tail));
    let follow = options.follow(false)?;
    let cursor = Cursor { after: after.max(tail), news, follow, first: true, _slot: slot.stream()? };
    Ok(stream(Form::Lines, cursor, move |after| {
        let mut text = Vec::new();
        let lines = ring.after(after);
        for line in &lines {
            Form::Lines.write(line.seq, &serde_json::to_vec(line).unwrap_or_default(), &mut text);
        }
        (lines.last().map(|line| line.seq), text)
    }))
}

/// A reader that is ahead of the log has seen another life of this sandbox: it gets everything.
fn oldest(after: u64, last: u64) -> u64 {
    if after > last { 0 } else { after }
}

/// How far a reader has come.
#[derive(Debug)]
struct Cursor {
    after: u64,
    news: watch::Receiver<u64>,
    follow: bool,
    first: bool,
    _slot: StreamSlot,
}

/// A response that is written as `batch` finds documents after the cursor.
fn stream(form: Form, cursor: Cursor, batch: impl Fn(u64) -> (Option<u64>, Vec<u8>) + Send + 'static) -> Response {
    let chunks = futures_util::stream::unfold((cursor, batch), move |(mut cursor, batch)| async move {
        loop {
            // Seen before read: what comes in between wakes the next turn.
            cursor.news.borrow_and_update();
            let (last, text) = batch(cursor.after);
            if let Some(last) = last {
                cursor.after = last;
                cursor.first = false;
                return Some((Ok::<_, Infallible>(Bytes::from(text)), (cursor, batch)));
            }
            if !cursor.follow {
                return None;
            }
            if std::mem::take(&mut cursor.first) {
                // The head of the answer goes out with its first bytes: tell the reader that it is connected.
                return Some((Ok(Bytes::from_static(form.keep_alive())), (cursor, batch)));
            }
            match timeout(KEEP_ALIVE, cursor.news.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some((Ok(Bytes::from_static(form.keep_alive())), (cursor, batch))),
            }
        }
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form.media()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
