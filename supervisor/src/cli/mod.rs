//! The command line: arguments, the client of the operator socket, and what people and programs get to see.
//!
//! In: arguments and the environment. Out: data on standard output, people's text on standard error, an exit status.
//! Must not: know anything the API does not say. `docs/CLI.md` has the commands and the table of exit statuses.

#![expect(clippy::disallowed_methods, reason = "the client waits for somebody who looks at it, and decides nothing")]

pub(crate) mod args;
mod bars;
mod change;
mod check;
pub(crate) mod client;
mod exec;
mod fault;
mod follow;
mod gateway;
mod look;
mod past;
mod print;
mod show;
mod signals;
mod status;
mod stream;
mod text;

#[cfg(test)]
mod tests;

use std::path::Path;

pub(crate) use args::{Args, InitArgs};
use args::{Bad, Command, Policy, Spec};
use clap::CommandFactory as _;
use molt_core::wire::{Document, Problem};

use self::{client::Client, fault::Fault, print::Printer};

/// Where the operator socket is unless told otherwise.
pub(crate) const SOCKET: &str = "/run/molt/molt.sock";

/// Runs the command and says with what status to exit.
pub(crate) fn run(args: Args) -> u8 {
    let printer = Printer::new(args.output);
    let result = match args.command {
        Command::Init(mut init) => {
            init.socket = args.socket;
            // `MOLT_IMAGE=` in a manifest says that there is none.
            init.image = init.image.filter(|image| !image.is_empty());
            return crate::boot::run(&init);
        }
        Command::Doctor => crate::doctor::run(printer.is_data()).map_err(|error| Fault::Local(format!("{error:#}"))),
        Command::Demo { json, keep } => {
            crate::demo::run(json || printer.is_data(), keep).map_err(|error| Fault::Local(format!("{error:#}")))
        }
        Command::Completions { shell } => completions(shell),
        Command::Man { folder } => man(folder.as_deref()),
        Command::Version => printer.version(),
        Command::Policy { command: Policy::Check { file } } => check::policy(printer, &file),
        Command::Policy { command: Policy::Diff { file, against: Some(old), .. } } => {
            check::policy_diff(printer, &old, &file)
        }
        Command::Policy { command: Policy::Schema } => check::policy_schema(printer),
        Command::Spec { command: Spec::Check { file } } => check::spec(printer, &file),
        Command::Spec { command: Spec::Schema } => check::spec_schema(printer),
        Command::Gateway { command } => gateway::local(printer, command),
        command => match &args.gateway {
            Some(url) => block_on(gateway::run(printer, url, args.gateway_config.as_deref(), command)),
            None => online(printer, args.socket.as_deref(), command),
        },
    };
    result.unwrap_or_else(|fault| {
        printer.fault(&fault);
        fault.status()
    })
}

fn online(printer: Printer, socket: Option<&Path>, command: Command) -> Result<u8, Fault> {
    let client = Client::new(socket.unwrap_or(Path::new(SOCKET)));
    block_on(async {
        let result = ask(printer, &client, command).await;
        match result {
            Err(Fault::Problem(problem)) => Err(Fault::Problem(with_what_runs(&client, problem).await)),
            result => result,
        }
    })
}

fn block_on<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::Local(format!("failed to start: {error}")))?;
    runtime.block_on(work)
}

/// A refusal, with what runs all the same: a person who reads it wants to know that first.
async fn with_what_runs(client: &Client, mut problem: Problem) -> Problem {
    if let Ok(document) = client.get::<Document>("/v1/status").await {
        problem.detail = format!("{}\n{}", problem.detail, status::runs(&document.status));
    }
    problem
}

async fn ask(printer: Printer, client: &Client, command: Command) -> Result<u8, Fault> {
    match command {
        Command::Update(args) => change::update(printer, client, args).await,
        Command::Policy { command: Policy::Diff { file, image, .. } } => {
            change::policy_diff(printer, client, &file, image).await
        }
        Command::Rollback(args) => change::rollback(printer, client, args).await,
        Command::Apply(wait) => change::apply(printer, client, wait).await,
        Command::Confirm(wait) => change::confirm(printer, client, wait).await,
        Command::Reject(wait) => change::reject(printer, client, wait).await,
        Command::ApplyOrder { file, policy, to: None, wait } => {
            change::order(printer, client, &file, policy.as_deref(), wait).await
        }
        Command::Cancel { id, wait } => change::cancel(printer, client, id, wait).await,
        Command::Hold { ttl, reason, owner } => change::hold(printer, client, ttl, reason, owner).await,
        Command::Release { owner } => change::release(client, owner).await,
        Command::Gc => change::collect(printer, client).await,
        Command::Bad { command: Bad::List } => look::bad(printer, client).await,
        Command::Bad { command: Bad::Remove { digest } } => change::forget(client, digest).await,
        Command::Status { watch } => look::status(printer, client, watch).await,
        Command::History { name: Some(_), .. }
        | Command::Events { name: Some(_), .. }
        | Command::Get { .. }
        | Command::ApplyOrder { to: Some(_), .. } => {
            Err(Fault::Usage("sandboxes have names with a gateway: --gateway URL".to_owned()))
        }
        Command::History { verify: true, .. } => past::verify(printer, client).await,
        Command::History { all: false, kind: None, .. } => look::history(printer, client).await,
        Command::History { kind, .. } => past::lines(printer, client, kind).await,
        Command::Show { what, evidence } => look::show(printer, client, what, evidence).await,
        Command::Diff { from, to } => look::diff(printer, client, from, to).await,
        Command::Probe { kind } => look::probe(printer, client, kind).await,
        Command::Events { name: None, follow } => stream::events(printer, client, follow).await,
        Command::Logs { follow, tail } => stream::logs(printer, client, follow, tail).await,
        Command::Exec(args) => exec::exec(client, args).await,
        // `run` has done these.
        Command::Init(_)
        | Command::Policy { .. }
        | Command::Spec { .. }
        | Command::Gateway { .. }
        | Command::Doctor
        | Command::Demo { .. }
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Version => Ok(0),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<u8, Fault> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "molt", &mut text);
    print::out(&text)?;
    Ok(0)
}

/// Pages of the manual: all of them into a folder, or that of `molt` itself on standard output.
fn man(folder: Option<&Path>) -> Result<u8, Fault> {
    let failed = |error: std::io::Error| Fault::Local(format!("failed to write the pages: {error}"));
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder).map_err(failed)?;
        clap_mangen::generate_to(Args::command(), folder).map_err(failed)?;
    } else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Args::command()).render(&mut page).map_err(failed)?;
        print::out(&page)?;
    }
    Ok(0)
}
