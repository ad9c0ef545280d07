//! Commands by way of a gateway: want something of a sandbox, and see what becomes of it; and `molt gateway`.
//!
//! In: arguments. Out: the same documents and exit statuses as on the operator socket. Must not: decide anything; what is
//! wanted goes to the gateway, and the sandbox says how it ends.

use std::path::{Path, PathBuf};

use http::{HeaderValue, Method, header};
use hyper::http;
use molt_core::{
    gateway::{Back, Desired, Report, RevisionView, SandboxRecord, SandboxView, Stage, Want},
    ids::ImageRef,
    wire::{Event, UpdateView, exit_status},
};
use serde::de::DeserializeOwned;
use tokio::time::{Duration, Instant, sleep};

use super::{
    args::{Command, GatewayCommand, RollbackArgs, UpdateArgs, Wait},
    change,
    fault::{FAILED, Fault, INTERRUPTED, TIMED_OUT, problem_status},
    print::{Printer, Tone, say},
    show, status as screen, text,
};
use crate::gateway::{
    Issue, Role, Serve,
    dial::{self, ANSWER, Ask, Dial, Names},
    init, serve, token,
};

/// How long a question about a revision stays open.
const OPEN: u64 = 20;
/// For so long a gateway may be away before the wait is given up.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(500);
/// Lines of output shown of what failed.
const LAST_LINES: usize = 10;

/// `molt gateway …`: what runs here, and calls nobody.
pub(crate) fn local(printer: Printer, command: GatewayCommand) -> Result<u8, Fault> {
    let local = |why: String| Fault::Local(why);
    match command {
        GatewayCommand::Serve(args) => {
            crate::observe::log::install();
            let config = args.config;
            let named = |given: Option<PathBuf>, name: &str, flag: &str| {
                given.or_else(|| config.as_ref().map(|config| config.join(name))).ok_or_else(|| {
                    Fault::Usage(format!("--{flag} is needed, or --config with a folder of molt gateway init"))
                })
            };
            let served = Serve {
                store: named(args.store, "store", "store")?,
                listen: args.listen,
                certificate: named(args.certificate, "server/certificate.pem", "certificate")?,
                key: named(args.key, "server/key.pem", "key")?,
                client_ca: named(args.client_ca, "ca.pem", "client-ca")?,
                operators: args.operators,
            };
            match serve(&served).map_err(local)? {}
        }
        GatewayCommand::Init { folder, host, sandbox, operator } => {
            let hosts = if host.is_empty() { vec!["localhost".to_owned(), "127.0.0.1".to_owned()] } else { host };
            let operators = if operator.is_empty() { vec!["admin".to_owned()] } else { operator };
            let made = init(&folder, &Issue { hosts, sandboxes: sandbox, operators }).map_err(local)?;
            printer.document(&made, |made| {
                let folders: Vec<String> = made.folders.iter().map(|folder| folder.display().to_string()).collect();
                format!("{}\n", folders.join("\n"))
            })?;
            printer.hint(&format!("serve it: molt gateway serve --config {0} --listen 0.0.0.0:8443", folder.display()));
            Ok(0)
        }
        GatewayCommand::Token { store, name, operator } => {
            let role = if operator { Role::Operator } else { Role::Sandbox };
            let token = token(&store, role, &name).map_err(local)?;
            super::print::out(format!("{token}\n").as_bytes())?;
            Ok(0)
        }
    }
}

/// A gateway, as an operator calls it.
struct Client {
    dial: Dial,
    printer: Printer,
}

/// Runs a command that goes to a gateway.
pub(crate) async fn run(printer: Printer, url: &str, config: Option<&Path>, command: Command) -> Result<u8, Fault> {
    let config = config.ok_or_else(|| {
        Fault::Usage(
            "--gateway-config is needed: a folder with certificate.pem, key.pem and ca.pem, or token".to_owned(),
        )
    })?;
    let there = |name: &str| Some(config.join(name)).filter(|path| path.exists());
    let names = Names {
        url: url.to_owned(),
        ca: there("ca.pem"),
        certificate: there("certificate.pem"),
        key: there("key.pem"),
        token: there("token"),
    };
    let client = Client { dial: Dial::new(names).map_err(fault)?, printer };
    match command {
        Command::Update(args) => client.update(args).await,
        Command::Rollback(args) => client.rollback(args).await,
        Command::ApplyOrder { file, policy, to, wait } => client.order(to, &file, policy.as_deref(), wait).await,
        Command::Events { name, follow: false } => client.events(name).await,
        Command::Get { name } => client.get(name).await,
        Command::History { name, all: false, kind: None, verify: false } => client.history(name).await,
        _ => Err(Fault::Usage(
            "by a gateway: update, rollback, apply-order, get, history, events; the rest is for the sandbox's own socket, without \
             --gateway"
                .to_owned(),
        )),
    }
}

fn fault(fault: dial::Fault) -> Fault {
    match fault {
        dial::Fault::No { problem: Some(problem), .. } => Fault::Problem(*problem),
        dial::Fault::Settings(why) => Fault::Usage(why),
        other => Fault::Local(other.to_string()),
    }
}

fn named(name: Option<String>) -> Result<String, Fault> {
    name.ok_or_else(|| Fault::Usage("which sandbox? molt --gateway URL get lists them".to_owned()))
}

impl Client {
    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Fault> {
        let answer = self.dial.done(Ask::new(Method::GET, path)).await.map_err(fault)?;
        parse(&answer.body)
    }

    async fn get(&self, name: Option<String>) -> Result<u8, Fault> {
        let Some(name) = name else {
            let all: Vec<SandboxView> = self.read("/v1/sandboxes").await?;
            self.printer.document(all.as_slice(), table)?;
            return Ok(0);
        };
        let record: SandboxRecord = self.read(&format!("/v1/sandboxes/{name}")).await?;
        self.printer.document(&record, |record| {
            let wanted = table(std::slice::from_ref(&record.sandbox));
            match &record.status {
                Some(document) => format!("{wanted}\n{}", screen::status(document)),
                None => wanted,
            }
        })?;
        Ok(0)
    }

    async fn history(&self, name: Option<String>) -> Result<u8, Fault> {
        let name = named(name)?;
        let reports: Vec<Report> = self.read(&format!("/v1/sandboxes/{name}/reports")).await?;
        let updates: Vec<UpdateView> = reports.into_iter().filter_map(|report| report.update).collect();
        self.printer.document(show::Past::merged(updates, Vec::new()).as_slice(), show::history)?;
        Ok(0)
    }

    async fn events(&self, name: Option<String>) -> Result<u8, Fault> {
        let name = named(name)?;
        let events: Vec<serde_json::Value> = self.read(&format!("/v1/sandboxes/{name}/events")).await?;
        self.printer.document(events.as_slice(), |events| {
            // A newer Molt may tell of more than this one knows.
            let known = events.iter().filter_map(|event| serde_json::from_value(event.clone()).ok());
            known.map(|event: Event| super::stream::event_line(&event) + "\n").collect()
        })?;
        Ok(0)
    }

    async fn update(&self, args: UpdateArgs) -> Result<u8, Fault> {
        if args.dry_run || args.stage_only {
            return Err(Fault::Usage("--dry-run and --stage-only are for the sandbox's own socket".to_owned()));
        }
        let (name, image) = args.target()?;
        let name = named(name)?;
        let image: ImageRef =
            image.parse().map_err(|error: molt_core::ids::ParseError| Fault::Usage(error.to_string()))?;
        let policy = args.policy.as_deref().map(change::read).transpose()?;
        let want = Want {
            image: Some(image),
            policy,
            force: args.force,
            allow_wider: args.allow_wider,
            reason: args.reason,
            ..Want::default()
        };
        self.put(&name, &want, args.wait).await
    }

    async fn rollback(&self, args: RollbackArgs) -> Result<u8, Fault> {
        let name = named(args.name)?;
        let want = Want { rollback: Some(Back { to: args.to }), reason: args.reason, ..Want::default() };
        self.put(&name, &want, args.wait).await
    }

    async fn order(&self, to: Option<String>, file: &Path, policy: Option<&Path>, wait: Wait) -> Result<u8, Fault> {
        let name = to.ok_or_else(|| Fault::Usage("for which sandbox? --to NAME".to_owned()))?;
        let order = Some(change::read(file)?.trim().to_owned());
        let policy = policy.map(change::read).transpose()?;
        self.put(&name, &Want { order, policy, ..Want::default() }, wait).await
    }

    async fn put(&self, name: &str, want: &Want, limits: Wait) -> Result<u8, Fault> {
        let path = format!("/v1/sandboxes/{name}/desired");
        let ask = Ask::new(Method::PUT, &path).with(want).map_err(fault)?;
        let answer = self.dial.done(ask).await.map_err(fault)?;
        let desired: Desired = parse(&answer.body)?;
        let revision = desired.revision;
        if limits.no_wait {
            self.printer.document(&desired, |_| format!("{revision}\n"))?;
            return Ok(0);
        }
        let limit = async {
            match limits.limit() {
                Some(limit) => sleep(limit.as_duration()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            view = self.follow(name, revision) => self.ended(name, &view?),
            () = limit => {
                say(&format!("the wait timed out; revision {revision} is still wanted: molt --gateway … get {name}"));
                Ok(TIMED_OUT)
            }
            () = super::signals::interrupted() => {
                say(&format!("revision {revision} is still wanted: molt --gateway … get {name}"));
                Ok(INTERRUPTED)
            }
        }
    }

    /// Until nothing more happens for a revision.
    async fn follow(&self, name: &str, revision: u64) -> Result<RevisionView, Fault> {
        let path = format!("/v1/sandboxes/{name}/revisions/{revision}?wait={OPEN}");
        let (mut tag, mut said, mut since) = (None::<HeaderValue>, String::new(), Instant::now());
        loop {
            let mut ask = Ask::new(Method::GET, &path);
            ask.within = Duration::from_secs(OPEN) + ANSWER;
            ask.headers.extend(tag.clone().map(|tag| (header::IF_NONE_MATCH, tag)));
            let answer = match self.dial.done(ask).await {
                Ok(answer) => answer,
                Err(lost @ (dial::Fault::Unreachable(_) | dial::Fault::Late(_))) if since.elapsed() < PATIENCE => {
                    self.tell(&mut said, &format!("{lost}; it is asked again"));
                    sleep(PAUSE).await;
                    continue;
                }
                Err(lost) => return Err(fault(lost)),
            };
            since = Instant::now();
            if answer.status == 304 {
                continue;
            }
            tag = answer.tag;
            let view: RevisionView = parse(&answer.body)?;
            let line = match view.stage {
                Stage::Waiting => {
                    let seen = view.seen.as_deref().map_or_else(|| "never".to_owned(), text::time);
                    format!("revision {revision} waits for {name} (last heard of: {seen})")
                }
                Stage::UnderWay => text::line(&view.message, 200),
                Stage::Retrying => {
                    let why = view.report.as_ref().and_then(|report| report.update.as_ref());
                    format!(
                        "{}; it is tried again",
                        why.map(|update| text::line(&update.message, 200)).unwrap_or_default()
                    )
                }
                Stage::Done | Stage::Superseded => return Ok(view),
            };
            self.tell(&mut said, &line);
        }
    }

    fn tell(&self, said: &mut String, line: &str) {
        if said != line && !line.is_empty() {
            self.printer.hint(line);
            line.clone_into(said);
        }
    }

    fn ended(&self, name: &str, view: &RevisionView) -> Result<u8, Fault> {
        let report = view.report.as_ref().filter(|report| report.settled);
        if let Some(update) = report.and_then(|report| report.update.as_ref()) {
            let status = exit_status(update);
            let tone = if status == 0 { Tone::Good } else { Tone::Bad };
            if self.printer.is_data() {
                say(&self.printer.paint(tone, &show::ending(update)));
            }
            self.printer.document(update, |update| show::ending(update) + "\n")?;
            if status != 0 {
                self.why(name, update);
            }
            return Ok(status);
        }
        if let Some(problem) = report.and_then(|report| report.problem.clone()) {
            let status = problem_status(&problem);
            self.printer.fault(&Fault::Problem(problem));
            return Ok(status);
        }
        if let Some(report) = report {
            let order = report.ordered.as_ref();
            let said = order.map_or_else(|| "the order".to_owned(), change::ordered);
            say(&self.printer.paint(Tone::Good, &format!("{said} is taken by {name}")));
            self.printer.document(report, |_| String::new())?;
            return Ok(0);
        }
        say(&format!("something else is wanted of {name} by now, and revision {} came to nothing", view.revision));
        Ok(FAILED)
    }

    fn why(&self, name: &str, update: &UpdateView) {
        if !update.message.is_empty() {
            say(&text::block(&update.message));
        }
        let Some(evidence) = &update.evidence else { return };
        let output = evidence.output.iter().skip(evidence.output.len().saturating_sub(LAST_LINES));
        for line in evidence.probes.last().into_iter().chain(output) {
            say(&format!("  {}", text::line(line, 200)));
        }
        self.printer.hint(&format!("all that was seen: molt --gateway … history {name} -o json"));
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes)
        .map_err(|error| Fault::Local(format!("the gateway's answer could not be read: {error}")))
}

fn table(all: &[SandboxView]) -> String {
    let word = |stage: Option<Stage>| match stage {
        None => "-",
        Some(Stage::Waiting) => "waiting",
        Some(Stage::UnderWay) => "under way",
        Some(Stage::Retrying) => "tried again",
        Some(Stage::Done) => "done",
        Some(Stage::Superseded) => "superseded",
    };
    let rows = all.iter().map(|one| {
        [
            text::clean(&one.name),
            one.revision.to_string(),
            word(one.stage).to_owned(),
            one.phase.map_or_else(|| "-".to_owned(), |phase| phase.to_string()),
            if one.ready { "yes" } else { "no" }.to_owned(),
            show::image(one.image.as_ref()),
            one.seen.as_deref().map_or_else(|| "never".to_owned(), text::time),
        ]
    });
    text::table(["NAME", "REVISION", "WANTED", "PHASE", "READY", "IMAGE", "SEEN"], rows)
}
