//! Commands that only look: status, history, show, bad list, probe.
//!
//! In: arguments. Out: documents and tables. Must not: change anything.

use std::{io::IsTerminal as _, time::Duration};

use hyper::{Method, StatusCode};
use molt_core::{
    code::Code,
    ids::Generation,
    wire::{BadView, Difference, Document, Event, ExecView, GenerationView, Status, UpdateView},
};
use tokio::time::{sleep, timeout};

use super::{
    args::{Probe, Shown},
    client::{Client, refused},
    fault::Fault,
    print::{Printer, Tone, out, say},
    show, status as screen,
};
use crate::api::Health;

/// Events come in bursts; one look is enough for each.
const BURST: Duration = Duration::from_millis(150);
/// Some things change without an event.
const LOOK: Duration = Duration::from_secs(5);
/// Clear, and hide the cursor.
const BEGIN: &[u8] = b"\x1b[2J\x1b[?25l";
/// Show it again.
const END: &[u8] = b"\x1b[?25h";

/// `molt status`.
pub(crate) async fn status(printer: Printer, client: &Client, watch: bool) -> Result<u8, Fault> {
    let mut shown: Document = client.get("/v1/status").await?;
    if !watch {
        printer.document(&shown, screen::status)?;
        return Ok(0);
    }
    let live = !printer.is_data() && std::io::stdout().is_terminal();
    let print = |document: &Document| {
        if live { out(frame(&screen::status(document)).as_bytes()) } else { printer.item(document, screen::status) }
    };
    if live {
        out(BEGIN)?;
    }
    print(&shown)?;
    let ended = loop {
        tokio::select! {
            changed = next(client, &shown) => match changed.and_then(|changed| print(&changed).map(|()| changed)) {
                Ok(changed) => shown = changed,
                Err(fault) => break Err(fault),
            },
            () = super::signals::interrupted() => break Ok(0),
        }
    };
    if live {
        out(END)?;
    }
    ended
}

/// A screenful, drawn over the one before: from the top, each line cleared behind its end, nothing below, never scrolled.
fn frame(text: &str) -> String {
    let rows = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| usize::from(size.ws_row));
    let most = if rows > 1 { rows - 1 } else { usize::MAX };
    let lines = text.lines().take(most).map(|line| format!("{line}\x1b[K\r\n"));
    format!("\x1b[H{}\x1b[J", lines.collect::<String>())
}

/// The next status that differs, through restarts of the supervisor.
async fn next(client: &Client, shown: &Document) -> Result<Document, Fault> {
    // Ahead of the log: from its end on, whatever the number is.
    let mut events = None;
    loop {
        match client.get::<Document>("/v1/status").await {
            Ok(document) if document != *shown => return Ok(document),
            Ok(_) => {}
            Err(Fault::Unreachable { .. } | Fault::Broken(_)) => events = None,
            Err(fault) => return Err(fault),
        }
        if events.is_none() {
            events = client.lines("/v1/events").await.ok();
        }
        match &mut events {
            Some(lines) => match timeout(LOOK, lines.next::<Event>()).await {
                Ok(Ok(Some(_))) => while let Ok(Ok(Some(_))) = timeout(BURST, lines.next::<Event>()).await {},
                Ok(_) => {
                    events = None;
                    sleep(BURST).await;
                }
                Err(_) => {}
            },
            None => sleep(LOOK / 5).await,
        }
    }
}

/// `molt history`.
pub(crate) async fn history(printer: Printer, client: &Client) -> Result<u8, Fault> {
    let updates: Vec<UpdateView> = client.get("/v1/updates").await?;
    let execs: Vec<ExecView> = match client.get("/v1/execs").await {
        // An older supervisor runs nothing unconfined.
        Err(Fault::Problem(problem)) if problem.code == Code::NotFound => Vec::new(),
        execs => execs?,
    };
    printer.document(show::Past::merged(updates, execs).as_slice(), show::history)?;
    Ok(0)
}

/// `molt diff`.
pub(crate) async fn diff(printer: Printer, client: &Client, from: Generation, to: Generation) -> Result<u8, Fault> {
    let difference: Difference = client.get(&format!("/v1/difference?from={from}&to={to}")).await?;
    printer.document(&difference, show::difference)?;
    if !printer.is_data() && difference.fields.is_empty() && difference.policy.is_empty() {
        say(&printer.paint(Tone::Good, &format!("generations {from} and {to} are alike")));
    }
    Ok(0)
}

/// `molt show`.
pub(crate) async fn show(printer: Printer, client: &Client, what: Shown, evidence: bool) -> Result<u8, Fault> {
    match what {
        Shown::Update(id) => {
            let view: UpdateView = client.get(&format!("/v1/updates/{id}")).await?;
            let evidence = if evidence { show::Evidence::Shown } else { show::Evidence::Left };
            printer.document(&view, |view| show::update(view, evidence))?;
        }
        Shown::Generation(number) => {
            let view: GenerationView = client.get(&format!("/v1/generations/{number}")).await?;
            if printer.is_data() {
                printer.document(&view, |_| String::new())?;
                return Ok(0);
            }
            let document: Document = client.get("/v1/status").await?;
            let updates: Vec<UpdateView> = client.get("/v1/updates").await?;
            let by = updates.iter().find(|update| update.to == Some(number)).map(|update| update.id);
            printer.document(&view, |view| show::one_generation(view, role(&document.status, view), by))?;
        }
    }
    Ok(0)
}

fn role(status: &Status, view: &GenerationView) -> Option<&'static str> {
    let roles = [
        ("confirmed", &status.confirmed),
        ("on trial", &status.trial),
        ("previous", &status.previous),
        ("staged", &status.staged),
    ];
    let is = |one: &Option<GenerationView>| one.as_ref().is_some_and(|one| one.generation == view.generation);
    roles.into_iter().find(|(_, one)| is(one)).map(|(role, _)| role)
}

/// `molt bad list`.
pub(crate) async fn bad(printer: Printer, client: &Client) -> Result<u8, Fault> {
    let bad: Vec<BadView> = client.get("/v1/bad").await?;
    printer.document(bad.as_slice(), show::bad)?;
    Ok(0)
}

/// `molt probe`: 0 for yes, 1 for no.
pub(crate) async fn probe(printer: Printer, client: &Client, kind: Probe) -> Result<u8, Fault> {
    let path = match kind {
        // A first image that is still on its way must not get the container killed.
        Probe::Startup | Probe::Live => "/livez",
        Probe::Ready => "/readyz",
    };
    let (status, bytes) = client.answer(Method::GET, path, None::<&()>).await?;
    let health: Health = serde_json::from_slice(&bytes).map_err(|_| refused(status, &bytes))?;
    printer.document(&health, |_| String::new())?;
    if status == StatusCode::OK {
        return Ok(0);
    }
    say(&printer.paint(Tone::Bad, &health.message));
    Ok(1)
}
