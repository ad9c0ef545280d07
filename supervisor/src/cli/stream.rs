//! `molt events` and `molt logs`.
//!
//! In: streams of the API. Out: a line for each item, as it comes. Must not: print an item twice over a break.

use std::{io::IsTerminal as _, time::Duration};

use molt_core::wire::{Event, What};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep};

use super::{bars, client::Client, fault::Fault, print::Printer, show, text};
use crate::observe::output::Line;

/// For so long a supervisor may be away while it is followed.
const PATIENCE: Duration = Duration::from_mins(1);
const AGAIN: Duration = Duration::from_millis(500);

/// `molt events`.
pub(crate) async fn events(printer: Printer, client: &Client, follow: bool) -> Result<u8, Fault> {
    let path = |after: Option<u64>| format!("/v1/events?follow={}&after={}", u8::from(follow), after.unwrap_or(0));
    items(client, follow, path, |event: &Event| event.seq, |event| printer.item(event, event_line)).await
}

/// `molt logs`.
pub(crate) async fn logs(printer: Printer, client: &Client, follow: bool, tail: Option<u64>) -> Result<u8, Fault> {
    // What the workload writes must not drive the terminal; a file or a pipe gets it as it is.
    let terminal = std::io::stdout().is_terminal();
    let path = |after: Option<u64>| {
        let from = match (after, tail) {
            (Some(after), _) => format!("&after={after}"),
            (None, Some(tail)) => format!("&tail={tail}"),
            (None, None) => String::new(),
        };
        format!("/v1/logs?follow={}{from}", u8::from(follow))
    };
    let print = |line: &Line| {
        printer.item(line, |line| {
            let text = if terminal { text::clean_line(&line.text) } else { line.text.clone() };
            if line.more { text + "…" } else { text }
        })
    };
    items(client, follow, path, |line: &Line| line.seq, print).await
}

/// Prints items until the stream ends, and over breaks where it is followed.
async fn items<T: DeserializeOwned + Serialize>(
    client: &Client,
    follow: bool,
    path: impl Fn(Option<u64>) -> String,
    seq: impl Fn(&T) -> u64,
    print: impl Fn(&T) -> Result<(), Fault>,
) -> Result<u8, Fault> {
    let mut after = None;
    let mut since = Instant::now();
    let read = async {
        loop {
            let fault = match client.lines(&path(after)).await {
                Ok(mut lines) => loop {
                    match lines.next::<T>().await {
                        Ok(Some(item)) => {
                            since = Instant::now();
                            after = Some(seq(&item));
                            print(&item)?;
                        }
                        Ok(None) if !follow => return Ok(0),
                        Ok(None) => {
                            since = Instant::now();
                            break Fault::Broken("the stream ended".to_owned());
                        }
                        Err(fault) => break fault,
                    }
                },
                Err(fault) => fault,
            };
            // Nothing was read yet: the first answer decides.
            let again = follow && after.is_some() && since.elapsed() < PATIENCE;
            match fault {
                Fault::Unreachable { .. } | Fault::Broken(_) if again => sleep(AGAIN).await,
                fault => return Err(fault),
            }
        }
    };
    tokio::select! {
        ended = read => ended,
        // Following ends by ^C as it should.
        () = super::signals::interrupted() => Ok(if follow { 0 } else { super::fault::INTERRUPTED }),
    }
}

/// An event, in a line.
pub(crate) fn event_line(event: &Event) -> String {
    let update = event.update.map(|id| format!(" {id}")).unwrap_or_default();
    let what = match &event.what {
        What::Phase { phase, message } => bars::phase_line(*phase, message, None),
        progress @ What::Progress { .. } => bars::layer_line(progress),
        What::Warning { message } => format!("warning: {}", text::clean(message)),
        What::Note { message } => text::clean(message),
        What::Outcome { result } => show::ending(result),
        What::WorkloadExited { generation, status } => {
            format!("the workload of generation {generation} ended with status {status}")
        }
        What::Ready { generation, ready: true } => format!("generation {generation} is ready"),
        What::Ready { generation, .. } => format!("generation {generation} is not ready"),
    };
    format!("{} {}{update} {what}", event.seq, text::time(&event.time))
}
