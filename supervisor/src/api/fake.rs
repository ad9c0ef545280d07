//! A dispatcher that only pretends, for the tests of the server and the client: the tag of the image says what happens.
//!
//! In: commands. Out: answers, events, views. Must not: be compiled into the product.

use std::{
    os::fd::OwnedFd,
    process::{self, Stdio},
    sync::Arc,
    time::Duration,
};

use molt_core::{
    code::Code,
    ids::{Digest, Generation, ImageRef, UpdateId},
    order::Operation,
    wire::{
        API_VERSION, Accepted, BadView, Collected, Condition, Difference, Document, Evidence, Expected, GenerationView,
        HoldView, Metadata, Ordered, Outcome, PhaseName, PlanView, Problem, Status, UpdateRequest, UpdateView, What,
        WorkloadView,
    },
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    command::{Command, Handle, View},
    observe::{events::EventLog, now::Now, output::OutputRing},
    store::audit::Audit,
    workload::exec::ExecSession,
};

pub(crate) const TIME: &str = "2026-01-02T03:04:05.678Z";

/// A digest of one byte, repeated.
pub(crate) fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

/// Generation `number` of `localhost/app`.
pub(crate) fn generation(number: u32, tag: &str) -> GenerationView {
    GenerationView {
        generation: Generation(number),
        image: format!("localhost/app:{tag}").parse().ok(),
        digest: Some(digest(u8::try_from(number).unwrap())),
        policy_digest: digest(0xaa),
        since: TIME.to_owned(),
    }
}

/// A record of an update of generation 1, under way.
pub(crate) fn record(id: u64, image: Option<ImageRef>) -> UpdateView {
    UpdateView {
        id: UpdateId(id),
        kind: if image.is_some() { "update" } else { "rollback" }.to_owned(),
        image,
        from: Some(Generation(1)),
        to: Some(Generation(2)),
        outcome: None,
        reason: None,
        message: String::new(),
        downtime_us: None,
        unready_us: None,
        by: "uid 0 via operator socket".to_owned(),
        note: None,
        started: TIME.to_owned(),
        ended: None,
        evidence: None,
        event: None,
    }
}

/// The status of a sandbox on generation 1.
pub(crate) fn document() -> Document {
    Document {
        api_version: API_VERSION.to_owned(),
        kind: "Sandbox".to_owned(),
        metadata: Metadata { name: "whatsapp-daemon".to_owned() },
        spec: serde_json::json!({"health": {"monitor": "10s"}}),
        status: Status {
            observed_generation: 1,
            phase: PhaseName::Idle,
            update: None,
            conditions: vec![Condition {
                r#type: "Ready".to_owned(),
                status: "True".to_owned(),
                reason: "Started".to_owned(),
                message: String::new(),
                last_transition_time: TIME.to_owned(),
                observed_generation: 1,
            }],
            confirmed: Some(generation(1, "1.4")),
            trial: None,
            previous: None,
            staged: None,
            bad: Vec::new(),
            last_update: None,
            workload: WorkloadView {
                running: true,
                ready: true,
                generation: Some(Generation(1)),
                ..Default::default()
            },
            confinement: None,
            policy: Vec::new(),
            seccomp: molt_core::launch::SeccompProfile::Floor,
            degraded: Vec::new(),
            hold: None,
            orders: None,
            molt_version: "0.1.0".to_owned(),
        },
    }
}

struct Fake {
    view: watch::Sender<Arc<View>>,
    events: EventLog,
    next: u64,
}

/// Starts the dispatcher; it ends with the last handle.
pub(crate) fn start() -> Handle {
    let (commands, mut queue) = mpsc::channel(16);
    let first = View {
        document: document(),
        generations: vec![generation(1, "1.4")],
        updates: Vec::new(),
        revision: "u6.g1".to_owned(),
        acted: None,
    };
    let (sender, view) = watch::channel(Arc::new(first));
    let events = EventLog::new(100, []);
    let mut fake = Fake { view: sender, events: events.clone(), next: 7 };
    tokio::spawn(async move {
        while let Some(command) = queue.recv().await {
            fake.take(command);
        }
    });
    let now = Now::new();
    now.set(PhaseName::Idle, true);
    Handle { commands, view, now, events, output: OutputRing::new(), audit: Audit::default() }
}

impl Fake {
    fn take(&mut self, command: Command) {
        match command {
            Command::Update { request, reply, .. } => drop(reply.send(self.update(&request))),
            Command::DryRun { request, reply } => drop(reply.send(Ok(plan(request)))),
            Command::Rollback { reply, .. } => {
                let accepted = self.begin(None);
                self.finish(accepted.id, None, "good");
                drop(reply.send(Ok(accepted)));
            }
            Command::Apply { reply, .. } | Command::Confirm { reply, .. } | Command::Reject { reply, .. } => {
                drop(reply.send(Err(Problem::new(Code::Busy, "nothing waits for that"))));
            }
            Command::Cancel { id, reply, .. } => {
                let id = id.unwrap_or(UpdateId(self.next - 1));
                let after_seq = self.events.last();
                self.finish(id, None, "cancelled");
                drop(reply.send(Ok(Accepted { id, after_seq })));
            }
            Command::Hold { owner, reason, by, reply, .. } => {
                let hold = HoldView { owner, by, reason, since: TIME.to_owned(), until: TIME.to_owned() };
                self.change(|view| view.document.status.hold = Some(hold.clone()));
                drop(reply.send(Ok(hold)));
            }
            Command::Compare { from, to, reply } => {
                drop(reply.send(Ok(Difference { from, to, fields: Vec::new(), policy: Vec::new() })));
            }
            Command::Ping { reply } => drop(reply.send(Ok(()))),
            Command::On { terms, command }
                if terms.revisions.as_ref().is_some_and(|all| !all.contains(&"u6.g1".to_owned())) =>
            {
                command.refuse(Problem::new(Code::Stale, "it is at u6.g1"));
            }
            // There is no gateway here.
            Command::On { command, .. } | Command::Revision { command, .. } => self.take(*command),
            Command::Release { reply, .. } => {
                self.change(|view| view.document.status.hold = None);
                drop(reply.send(Ok(())));
            }
            Command::Collect { reply, .. } => {
                drop(reply.send(Ok(Collected { layers: 2, bytes: 4096, ..Default::default() })));
            }
            Command::ForgetBad { digest, reply, .. } => {
                self.change(|view| view.document.status.bad.retain(|bad| bad.digest != digest));
                drop(reply.send(Ok(())));
            }
            Command::Order { jws, reply, .. } => drop(reply.send(self.ordered(&jws))),
            Command::Reread { .. } | Command::Reached { .. } => {}
            Command::Own { reply, .. } => drop(reply.send(Ok(None))),
            Command::Exec { options, reply, .. } => drop(reply.send(exec(&options))),
        }
    }

    fn ordered(&mut self, jws: &[u8]) -> Result<Ordered, Problem> {
        if jws != b"a.b.c" {
            return Err(Problem::new(Code::OrderRefused, "the order is refused: the signature does not fit"));
        }
        let Accepted { id, after_seq } = self.begin(None);
        self.finish(id, None, "good");
        let (key, jti) = ("release".to_owned(), "a-1".to_owned());
        Ok(Ordered { key, seq: 7, jti, op: Operation::Confirm, id: Some(id), after_seq })
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(|view| change(Arc::make_mut(view)));
    }

    fn begin(&mut self, image: Option<ImageRef>) -> Accepted {
        let accepted = Accepted { id: UpdateId(self.next), after_seq: self.events.last() };
        self.change(|view| view.updates.push(record(self.next, image)));
        self.next += 1;
        accepted
    }

    fn update(&mut self, request: &UpdateRequest) -> Result<Accepted, Problem> {
        let tag = request.image.to_string().rsplit(':').next().unwrap_or_default().to_owned();
        if request.policy.as_deref().is_some_and(|policy| policy.starts_with("bad")) {
            return Err(Problem::new(Code::Invalid, "policy: 1:1: it is bad"));
        }
        match tag.as_str() {
            "held" => return Err(Problem::new(Code::Held, "updates are held by somebody")),
            "known-bad" => return Err(Problem::new(Code::KnownBad, "the digest failed before, as u3")),
            _ => {}
        }
        let accepted = self.begin(Some(request.image.clone()));
        self.finish(accepted.id, Some(request.image.clone()), &tag);
        Ok(accepted)
    }

    /// Tells the story of an update, in the background.
    fn finish(&self, id: UpdateId, image: Option<ImageRef>, story: &str) {
        let (events, view, story) = (self.events.clone(), self.view.clone(), story.to_owned());
        tokio::spawn(async move {
            let pause = || tokio::time::sleep(Duration::from_millis(if story == "show" { 700 } else { 2 }));
            let phase =
                |phase, message: &str| events.publish(Some(id), What::Phase { phase, message: message.to_owned() });
            phase(PhaseName::Resolving, "");
            if story == "slow" {
                return;
            }
            let mut end = record(id.0, image);
            end.ended = Some(TIME.to_owned());
            end.evidence = (story == "bad").then(|| Evidence {
                output: vec!["could not open /sandbox/state/db".to_owned()],
                probes: vec!["readiness: connection refused".to_owned()],
                exit_status: Some(1),
                difference: None,
            });
            (end.outcome, end.reason) = match story.as_str() {
                "bad" => (Some(Outcome::RolledBack), Some(Code::ExitedInTrial)),
                "wider" => (Some(Outcome::Refused), Some(Code::PolicyWider)),
                "gone" => (Some(Outcome::Aborted), Some(Code::NotFound)),
                "cancelled" => (Some(Outcome::Aborted), Some(Code::Superseded)),
                _ => (Some(Outcome::Confirmed), None),
            };
            if matches!(story.as_str(), "bad" | "good" | "show" | "silent") {
                for (layer, total) in [(0, 3 << 20), (1, 900)] {
                    for done in [0, total / 2, total] {
                        pause().await;
                        let state = if done == total { "done" } else { "fetching" }.to_owned();
                        let digest = digest(u8::try_from(layer).unwrap());
                        events.publish(Some(id), What::Progress { layer, layers: 2, digest, done, total, state });
                    }
                }
                for name in [PhaseName::Staging, PhaseName::Arming, PhaseName::Swapping, PhaseName::Proving] {
                    phase(name, "");
                    pause().await;
                }
                end.downtime_us = Some(840);
            }
            view.send_modify(|view| {
                let view = Arc::make_mut(view);
                view.updates.retain(|one| one.id != id);
                view.updates.push(end.clone());
                if end.evidence.is_some() {
                    let (reason, since) = (Code::ExitedInTrial, TIME.to_owned());
                    view.document.status.bad.push(BadView { digest: digest(2), update: id, reason, since });
                }
                view.document.status.last_update = Some(end.clone());
            });
            // One whose last event got lost.
            if story != "silent" {
                events.publish(Some(id), What::Outcome { result: Box::new(end) });
            }
        });
    }
}

fn plan(request: UpdateRequest) -> PlanView {
    PlanView {
        image: request.image,
        digest: digest(2),
        policy_digest: digest(0xaa),
        noop: false,
        layers: 2,
        layers_to_fetch: 1,
        bytes_to_fetch: 900,
        bytes_on_disk: 4096,
        bytes_free: 1 << 30,
        wider: Vec::new(),
        command: vec!["/app".to_owned(), "--serve".to_owned()],
        policy_difference: vec!["+ filesystem_policy:read_only".to_owned()],
        expected_downtime: Some(Expected { of: 3, median_us: 800, worst_us: 1200 }),
        warnings: vec!["the spec's command shadows the image's".to_owned()],
    }
}

/// Runs the program here, on pipes; with `tty` on a terminal of its own.
fn exec(options: &molt_core::wire::ExecOptions) -> Result<ExecSession, Problem> {
    let failed = |error: std::io::Error| Problem::new(Code::Internal, error.to_string());
    let [program, arguments @ ..] = options.argv.as_slice() else { unreachable!("the API refuses this") };
    let mut command = process::Command::new(if options.tty { "setsid" } else { program });
    if options.tty {
        command.args(["-c", "-w", program]);
    }
    command.args(arguments);
    let master = if options.tty { Some(terminal(&mut command).map_err(failed)?) } else { None };
    if master.is_none() {
        let stdin = if options.stdin { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let mut child = command.spawn().map_err(failed)?;
    drop(command);
    let (stdin, stdout, stderr) = match master {
        Some(master) => (master.try_clone().ok(), master, None),
        None => (
            child.stdin.take().map(OwnedFd::from),
            child.stdout.take().map(OwnedFd::from).unwrap(),
            child.stderr.take().map(OwnedFd::from),
        ),
    };
    let (tell, exited) = oneshot::channel();
    let (signals, mut queue) = mpsc::channel(4);
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    std::thread::spawn(move || {
        use std::os::unix::process::ExitStatusExt as _;
        let status = child.wait().unwrap();
        let _ = tell.send(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()));
    });
    tokio::spawn(async move {
        while let Some(signal) = queue.recv().await {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::try_from(signal).ok());
        }
    });
    Ok(ExecSession { stdin, stdout, stderr, tty: options.tty, exited, signals })
}

fn terminal(command: &mut process::Command) -> std::io::Result<OwnedFd> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let slave = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())?;
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    Ok(master)
}
