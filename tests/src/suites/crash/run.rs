//! One sandbox on a copy of a scene, struck while it makes the change.
//!
//! In: a scene and a strike. Out: what was counted, and how the change ended. Must not: let anything but the number decide
//! where the strike falls.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use super::ground::Place;
use super::promised;
use super::scene::{Change, Scene, image};
use crate::harness::disk::Log;
use crate::harness::molt::{Molt, PROGRAM, SOON, SPEC};
use crate::harness::tracer::handle::{Scope, Tracer};
use crate::harness::tracer::wire::{Blow, Counted, Strike, Which};
use crate::harness::wait;

/// Waits for a byte, then becomes the program: what is done before can be traced from its first call.
const HOLD: &str = "read _ < /etc/molt/go; exec \"$@\"";
/// Nothing was counted for so long: what PID 1 was doing is done.
const QUIET: Duration = Duration::from_millis(250);

/// How a change went.
pub(super) struct Acted {
    pub(super) counted: Counted,
    /// PID 1 ended by itself, with this code.
    pub(super) ended: Option<i32>,
    /// What became of what was asked for; none if it was not accepted.
    pub(super) outcome: Option<String>,
}

/// One sandbox on a copy of the scene.
pub(super) struct Run<'a> {
    scene: &'a Scene<'a>,
    pub(super) molt: Molt,
    tracer: Option<Tracer>,
    /// It waits at [`HOLD`].
    held: bool,
    /// The version that ran when it was started again and looked at.
    pub(super) recovered: Option<String>,
    place: Place,
}

impl<'a> Run<'a> {
    /// Starts it. What is a start itself is held before its first call.
    pub(super) fn begin(scene: &'a Scene<'a>) -> anyhow::Result<Self> {
        let place = scene.kept.copy(scene.bed)?;
        let mut setup = scene.setup()?;
        (setup.state, setup.store) = (place.state(), place.store());
        mknodat(CWD, setup.config.join("go"), FileType::Fifo, Mode::RWXU, 0)?;
        let held = scene.change.is_start();
        if held {
            setup.options.program = held_program();
        }
        let molt = setup.launch()?;
        if !held {
            wait::until_ok("the sandbox to serve", SOON, || promised::serves(&molt))
                .with_context(|| format!("before any strike\n{}", molt.sandbox.logs()))?;
        }
        Ok(Self { scene, molt, tracer: None, held, recovered: None, place })
    }

    /// Starts it again, held.
    pub(super) fn restart_held(&mut self) -> anyhow::Result<()> {
        let program = held_program();
        let words: Vec<&str> = program.iter().map(String::as_str).collect();
        self.molt.sandbox.restart_as(&words)?;
        self.held = true;
        Ok(())
    }

    /// Makes the change, or starts what is held, until a strike ends it or all is done.
    pub(super) fn act(&mut self, which: Which, strike: Option<Strike>) -> anyhow::Result<Acted> {
        let tracer = Tracer::seize(self.scene.bed, self.molt.sandbox.pid1()?, Scope::Everything)?;
        let tracer = self.tracer.insert(tracer);
        if !self.held {
            quiet(tracer)?;
        }
        tracer.count(which, strike)?;
        // A request that is cut off, or refused, was not accepted.
        let molt = &mut self.molt;
        let ask = |path: &str, body: Value| {
            let accepted = molt.operator("POST", path, &body).ok()?;
            Some(format!("/v1/updates/{}", accepted["id"].as_str()?))
        };
        let (mut go, mut asked) = (None, None);
        match self.scene.change {
            _ if self.held => {
                // Opened for both: it neither waits for a reader nor is lost without one.
                let mut fifo = OpenOptions::new().read(true).write(true).open(molt.config.join("go"))?;
                fifo.write_all(b"\n")?;
                go = Some(fifo);
            }
            Change::Update => asked = ask("/v1/updates", json!({"image": image("v2")})),
            Change::Rollback => asked = ask("/v1/rollback", json!({})),
            // Answered when it is done.
            Change::CleanUp => drop(ask("/v1/gc", json!({}))),
            Change::FirstBoot | Change::Recovery => {}
        }
        let errors = matches!(strike, Some(Strike { blow: Blow::Fail(_), .. }));
        let acted = wait::until_ok("the change to be made, or cut off", SOON * 3, || {
            let (_, struck) = tracer.progress()?;
            if struck && !errors {
                return Ok(Acted { counted: tracer.counted()?, ended: None, outcome: None });
            }
            if let Ok(code) = molt.sandbox.wait(Duration::ZERO) {
                return Ok(Acted { counted: tracer.counted()?, ended: Some(code), outcome: None });
            }
            promised::serves(molt)?;
            let outcome = match &asked {
                Some(path) => {
                    let record = molt.operator("GET", path, &Value::Null)?;
                    Some(record["outcome"].as_str().with_context(|| format!("{record:#}"))?.to_owned())
                }
                None => None,
            };
            // Struck, and over: what is still to be removed does not matter.
            if !struck {
                quiet(tracer)?;
            }
            Ok(Acted { counted: tracer.counted()?, ended: None, outcome })
        })?;
        drop(go);
        Ok(acted)
    }

    /// Whatever still runs is killed.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        // What a tracer holds dies with it.
        self.tracer = None;
        let code = self.molt.sandbox.wait(SOON)?;
        ensure!(code == 137, "PID 1 ended with {code}");
        Ok(())
    }

    /// The power goes, and comes again.
    pub(super) fn cut(&mut self, log: Log) -> anyhow::Result<()> {
        self.place.cut(log)?;
        self.end()?;
        self.place.again()
    }

    /// Of what runs now, after an error: an end, the old one or the new one, and that is what is told.
    pub(super) fn stands(&self, acted: &Acted) -> anyhow::Result<Ending> {
        if let Some(code) = acted.ended {
            // A start may be refused, and is tried again by whoever started it; what ran goes on running.
            ensure!(self.scene.change.is_start(), "PID 1 ended with {code}");
            ensure!((120..=126).contains(&code), "the start ended with {code}");
            return Ok(Ending::Refused);
        }
        let status = promised::serves(&self.molt)?;
        let version = promised::kept(self.scene, &self.molt, &status)?;
        self.molt.sound()?;
        let change = self.scene.change;
        match (acted.outcome.as_deref(), change.versions().1) {
            (Some("confirmed"), new) if new == Some(version.as_str()) => Ok(Ending::Committed),
            (Some("confirmed"), _) => bail!("confirmed, but {version} runs"),
            (Some("rolledBack"), _) => Ok(Ending::RolledBack),
            (Some("aborted" | "refused"), _) => Ok(Ending::Failed),
            // A rollback is not rolled back: where its end cannot be started, what is confirmed is started again.
            (Some("degraded"), _) if change == Change::Rollback && version == change.versions().0 => Ok(Ending::Again),
            (Some(other), _) => bail!("the outcome of one error is {other}"),
            (None, Some(_)) => Ok(Ending::NotAccepted),
            (None, None) => Ok(Ending::Committed),
        }
    }

    /// Starts it again, without a strike, and looks at everything.
    pub(super) fn verify(&mut self) -> anyhow::Result<()> {
        self.molt.sandbox.restart_as(&[PROGRAM, "init", "--spec", SPEC])?;
        self.recovered = Some(promised::all(self.scene, &self.molt)?);
        Ok(())
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        let log = self.molt.sandbox.logs();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

/// How a change ended in which an error was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// It was made.
    Committed,
    /// The old one is back.
    RolledBack,
    /// A rollback failed past its gate, and what was confirmed was started again.
    Again,
    /// It failed, and the old one served on.
    Failed,
    /// It was not even accepted.
    NotAccepted,
    /// PID 1 said what is wrong, and ended.
    Refused,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.tracer = None;
        // The place goes next, and cannot while it is in use.
        if self.molt.sandbox.wait(Duration::ZERO).is_err() {
            let _ = self.molt.sandbox.kill();
        }
    }
}

fn held_program() -> Vec<String> {
    ["/bin/sh", "-c", HOLD, "hold", PROGRAM, "init", "--spec", SPEC].map(str::to_owned).into()
}

/// Waits until nothing is counted any more.
fn quiet(tracer: &mut Tracer) -> anyhow::Result<()> {
    let mut last = tracer.progress()?;
    let mut since = Instant::now();
    while since.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(20));
        let now = tracer.progress()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}
