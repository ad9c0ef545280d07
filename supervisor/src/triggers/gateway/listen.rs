//! Hears what is wanted: one question that stays open, or one answer that goes on.
//!
//! In: answers of the gateway. Out: the newest desired state. Must not: ask more than once a second where nothing is new,
//! go back to an older revision, or hold more than one.

use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderValue, Method, header};
use hyper::http;
use molt_core::{
    gateway::{DESIRED_BYTES, Desired},
    spec::Hearing,
};
use tokio::sync::watch;

use super::{Heard, Line, Shared, pace::Pace};
use crate::{
    command::Handle,
    gateway::dial::{ANSWER, Ask, Fault},
    timer::{self, Instant},
};

/// Least time between two questions of which the first brought nothing.
const PERIOD: Duration = Duration::from_secs(1);
/// Longest silence of an answer that goes on; the gateway says something every 20 s.
const SILENCE: Duration = Duration::from_secs(50);

pub(super) async fn listen(shared: &Shared, handle: &Handle, newest: &watch::Sender<Option<Heard>>) {
    let mut pace = Pace::new(shared.settings.retry.as_duration());
    let (mut line, mut tag) = (Line { handle, reached: None }, None);
    loop {
        let began = Instant::now();
        let heard = match shared.settings.listen {
            Hearing::Poll => poll(shared, &mut tag, newest).await,
            Hearing::Stream => stream(shared, newest, &mut line, &mut pace).await,
        };
        match heard {
            Ok(new) => {
                well(shared, &mut line, &mut pace).await;
                if !new {
                    timer::sleep_until(began + PERIOD).await;
                }
            }
            Err(fault) => {
                line.lost(&fault).await;
                // It may be another one that answers next time.
                tag = None;
                timer::sleep(pace.failed()).await;
            }
        }
    }
}

/// The gateway answered.
async fn well(shared: &Shared, line: &mut Line<'_>, pace: &mut Pace) {
    pace.well();
    if line.found().await {
        shared.back.notify_one();
    }
}

/// One question; whether it brought something new.
async fn poll(
    shared: &Shared,
    tag: &mut Option<HeaderValue>,
    newest: &watch::Sender<Option<Heard>>,
) -> Result<bool, Fault> {
    let wait = shared.settings.wait.as_duration();
    let path = format!("{}/desired?wait={}", shared.base, if tag.is_some() { wait.as_secs() } else { 0 });
    let mut ask = Ask::new(Method::GET, &path);
    (ask.within, ask.most) = (wait + ANSWER, DESIRED_BYTES);
    ask.headers.extend(tag.clone().map(|tag| (header::IF_NONE_MATCH, tag)));
    let answer = shared.dial.done(ask).await?;
    if answer.status == 304 {
        return Ok(false);
    }
    let new = take(&answer.body, newest)?;
    *tag = answer.tag.filter(|tag| tag.len() <= 256);
    Ok(new)
}

/// Takes a desired state, unless there is a newer one; whether it is new.
fn take(body: &[u8], newest: &watch::Sender<Option<Heard>>) -> Result<bool, Fault> {
    let heard = match Desired::read(body) {
        Ok(desired) => Heard::Desired(desired),
        Err(unreadable) => match unreadable.revision {
            Some((gateway, revision)) => Heard::Unreadable(gateway, revision, unreadable.why),
            None => return Err(Fault::Broken(unreadable.why)),
        },
    };
    Ok(newest.send_if_modified(|last| {
        let (gateway, revision) = heard.revision();
        let newer = last.as_ref().is_none_or(|last| last.revision().0 != gateway || last.revision().1 < revision);
        if newer {
            *last = Some(heard);
        }
        newer
    }))
}

/// One answer that goes on until it breaks, or until a file has changed.
async fn stream(
    shared: &Shared,
    newest: &watch::Sender<Option<Heard>>,
    line: &mut Line<'_>,
    pace: &mut Pace,
) -> Result<bool, Fault> {
    let path = format!("{}/desired", shared.base);
    let mut ask = Ask::new(Method::GET, &path);
    ask.headers.push((header::ACCEPT, HeaderValue::from_static("text/event-stream")));
    let mut response = shared.dial.open(ask).await?;
    let media = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !media.starts_with("text/event-stream") {
        return Err(Fault::Broken(format!("it does not stream (spec.gateway.listen: poll): {media:.100}")));
    }
    let mut read = BytesMut::new();
    loop {
        let chunk = timer::timeout(SILENCE, response.chunk()).await.map_err(|_| Fault::Late(SILENCE))?;
        let chunk = chunk.map_err(|error| Fault::Unreachable(crate::effects::chain(&error)))?;
        let Some(chunk) = chunk else { return Err(Fault::Broken("the stream ended".to_owned())) };
        read.extend_from_slice(&chunk);
        while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let text = read.split_to(end + 1);
            // Each document is one line; numbers, names and comments are not needed.
            if let Some(data) = text.strip_prefix(b"data:") {
                take(data.trim_ascii(), newest)?;
                well(shared, line, pace).await;
            }
        }
        if read.len() > DESIRED_BYTES {
            return Err(Fault::Broken(format!("a line is longer than {DESIRED_BYTES} bytes")));
        }
        if shared.dial.renewed().await {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(gateway: char, revision: u64) -> Vec<u8> {
        let gateway = gateway.to_string().repeat(32);
        format!(
            r#"{{"apiVersion": "molt.dev/v1alpha1", "gateway": "{gateway}", "revision": {revision}, "want": null}}"#
        )
        .into_bytes()
    }

    #[test]
    fn only_what_is_newer_is_taken() {
        let (newest, heard) = watch::channel(None);
        let at = || heard.borrow().as_ref().map(|heard: &Heard| heard.revision().1);
        assert!(take(&document('a', 5), &newest).unwrap());
        assert!(!take(&document('a', 5), &newest).unwrap(), "twice");
        assert!(!take(&document('a', 4), &newest).unwrap(), "late");
        assert_eq!(at(), Some(5));
        assert!(take(b"<html>busy</html>", &newest).is_err());
        assert_eq!(at(), Some(5));
        assert!(take(&document('b', 1), &newest).unwrap(), "another gateway counts anew");
        assert_eq!(at(), Some(1));
    }
}
