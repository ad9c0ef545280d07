//! `molt demo`: the whole story in seconds, with no registry, no root file system and no network. Two tiny images whose
//! daemon is this very binary, PID 1 in fresh namespaces; an update, a bad image, a roll back, each measured.
//!
//! In: nothing. Out: a story, or the same as data. Must not: touch anything outside its own folder, or need root where
//! user namespaces are allowed.

#![expect(clippy::disallowed_methods, reason = "a show of ten seconds, for somebody who looks at it")]

mod daemon;
mod folder;
mod images;
mod sandbox;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::bail;
use hyper::Method;
use molt_core::wire::{Accepted, Document, Outcome, PhaseName, RollbackRequest, UpdateRequest, UpdateView};
use serde::Serialize;

pub(crate) use daemon::{WORD as DAEMON, run as daemon};

use self::folder::Folder;
use crate::cli::client::Client;

const LIMIT: Duration = Duration::from_mins(1);

/// What `--json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Story {
    ok: bool,
    steps: Vec<Step>,
    degraded: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    #[serde(rename = "step")]
    name: &'static str,
    image: String,
    outcome: Option<Outcome>,
    generation: Option<u32>,
    downtime_us: Option<u64>,
    state_kept: bool,
    #[serde(skip)]
    message: String,
}

/// Runs the demo.
pub(crate) fn run(json: bool, keep: Option<PathBuf>) -> anyhow::Result<u8> {
    let kept = keep.is_some();
    let own = match keep {
        Some(folder) => Folder::named(&folder)?,
        None => Folder::fresh(&std::env::temp_dir())?,
    };
    let folder = own.path();
    images::write(folder)?;
    // Before the first thread: the rest of this process may fork.
    let sandbox = sandbox::start(folder)?;
    let story =
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(tell(folder, &sandbox, json));
    drop(sandbox);
    let story = match story {
        Ok(story) => story,
        Err(error) => {
            let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(12).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("{error:#}; the sandbox said last:\n{}", tail.join("\n"));
        }
    };
    if json {
        println(&serde_json::to_string_pretty(&story)?);
    } else {
        epilogue(&story);
        if kept {
            println(&format!("\neverything is left in {}: log, state/, store/, images/", folder.display()));
        }
    }
    Ok(u8::from(!story.ok))
}

fn println(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

async fn tell(folder: &Path, sandbox: &sandbox::Sandbox, json: bool) -> anyhow::Result<Story> {
    let client = Client::new(&folder.join("run/molt.sock"));
    let say = |step: &Step| {
        if !json {
            println(&line(step));
        }
    };
    if !json {
        println("molt demo: a daemon that keeps its keys in /sandbox/state, shipped four times, never torn down\n");
    }
    let degraded = boot(&client, sandbox).await?;
    let mut steps = Vec::new();
    let first = Step {
        name: "boot",
        image: "demo:v1".to_owned(),
        outcome: Some(Outcome::Confirmed),
        generation: Some(1),
        downtime_us: None,
        state_kept: starts(folder) == ["v1"],
        message: String::new(),
    };
    say(&first);
    steps.push(first);
    let plan: [(&'static str, Option<&str>, &[&str]); 3] = [
        ("update", Some("v2"), &["v1", "v2"]),
        ("bad-update", Some("bad"), &["v1", "v2", "bad", "v2"]),
        ("rollback", None, &["v1", "v2", "bad", "v2", "v1"]),
    ];
    for (name, image, expected) in plan {
        let accepted: Accepted = match image {
            Some(tag) => {
                let request = UpdateRequest {
                    image: format!("oci:/images/demo:{tag}").parse()?,
                    policy: None,
                    stage_only: false,
                    force: false,
                    allow_wider: false,
                    reason: None,
                };
                client.call(Method::POST, "/v1/updates", Some(&request)).await
            }
            None => client.call(Method::POST, "/v1/rollback", Some(&RollbackRequest::default())).await,
        }
        .map_err(|fault| anyhow::anyhow!("the {name} was refused: {fault:?}"))?;
        let view = outcome(&client, &accepted).await?;
        let document: Document = status(&client).await?;
        let runs = document.status.workload.generation;
        let step = Step {
            name,
            image: image.map_or_else(|| "demo:v1".to_owned(), |tag| format!("demo:{tag}")),
            outcome: view.outcome,
            generation: runs.map(|generation| generation.0),
            downtime_us: view.downtime_us,
            state_kept: starts(folder) == expected,
            message: view.message,
        };
        say(&step);
        steps.push(step);
    }
    let wanted = [Outcome::Confirmed, Outcome::Confirmed, Outcome::RolledBack, Outcome::Confirmed];
    let generations = [1, 2, 2, 1];
    let ok = steps.len() == wanted.len()
        && steps.iter().zip(wanted).zip(generations).all(|((step, outcome), generation)| {
            step.outcome == Some(outcome) && step.generation == Some(generation) && step.state_kept
        });
    Ok(Story { ok, steps, degraded })
}

/// The daemon appends its version to a file in its state at each start.
fn starts(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("state/starts")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

async fn status(client: &Client) -> anyhow::Result<Document> {
    client.get("/v1/status").await.map_err(|fault| anyhow::anyhow!("no status: {fault:?}"))
}

async fn boot(client: &Client, sandbox: &sandbox::Sandbox) -> anyhow::Result<Vec<String>> {
    let until = Instant::now() + LIMIT;
    loop {
        if let Ok(document) = status(client).await
            && document.status.workload.ready
            && document.status.phase == PhaseName::Idle
        {
            return Ok(document.status.degraded);
        }
        if sandbox.ended() {
            bail!("the sandbox ended before its daemon was up");
        }
        if Instant::now() > until {
            bail!("the sandbox did not come up within {} s", LIMIT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn outcome(client: &Client, accepted: &Accepted) -> anyhow::Result<UpdateView> {
    let until = Instant::now() + LIMIT;
    loop {
        let view: Result<UpdateView, _> = client.get(&format!("/v1/updates/{}", accepted.id)).await;
        if let Ok(view) = view
            && view.outcome.is_some()
        {
            return Ok(view);
        }
        if Instant::now() > until {
            bail!("{} did not end within {} s", accepted.id, LIMIT.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn gap(micros: Option<u64>) -> String {
    match micros {
        None => String::new(),
        Some(micros) => format!("{}.{} ms down", micros / 1000, micros % 1000 / 100),
    }
}

fn line(step: &Step) -> String {
    let what = match step.name {
        "boot" => "boot         v1 runs",
        "update" => "update       v2 runs in its place",
        "bad-update" => "bad update   this one never gets ready: v2 is back, by itself",
        _ => "rollback     v1 again, by hand",
    };
    let kept = if step.state_kept { "state kept" } else { "STATE LOST" };
    let line = format!("  {what:<62}{:>14}   {kept}", gap(step.downtime_us));
    match step.outcome {
        Some(Outcome::Confirmed | Outcome::RolledBack) => line,
        _ => format!("{line}\n      {}", step.message),
    }
}

fn epilogue(story: &Story) {
    for lost in &story.degraded {
        println(&format!("  degraded: {lost}"));
    }
    let last = if story.ok {
        "\nthe same process tree kept the sandbox up all along; only the daemon was restarted, four times"
    } else {
        "\nnot as it should be: see the lines above"
    };
    println(last);
}
