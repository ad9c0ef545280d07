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
mod look;
mod print;
mod show;
mod status;
mod stream;
mod text;

#[cfg(test)]
mod tests;

use std::path::Path;

pub(crate) use args::{Args, InitArgs};
use args::{Bad, Command, Policy, Spec};
use clap::CommandFactory as _;

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
        Command::Version => printer.version(),
        Command::Policy { command: Policy::Check { file } } => check::policy(printer, &file),
        Command::Policy { command: Policy::Diff { file, against: Some(old), .. } } => {
            check::policy_diff(printer, &old, &file)
        }
        Command::Policy { command: Policy::Schema } => check::policy_schema(printer),
        Command::Spec { command: Spec::Check { file } } => check::spec(printer, &file),
        Command::Spec { command: Spec::Schema } => check::spec_schema(printer),
        command => online(printer, args.socket.as_deref(), command),
    };
    result.unwrap_or_else(|fault| {
        printer.fault(&fault);
        fault.status()
    })
}

fn online(printer: Printer, socket: Option<&Path>, command: Command) -> Result<u8, Fault> {
    let client = Client::new(socket.unwrap_or(Path::new(SOCKET)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::Local(format!("failed to start: {error}")))?;
    runtime.block_on(ask(printer, &client, command))
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
        Command::Cancel { id, wait } => change::cancel(printer, client, id, wait).await,
        Command::Hold { ttl, reason } => change::hold(client, ttl, reason).await,
        Command::Release => change::release(client).await,
        Command::Gc => change::collect(printer, client).await,
        Command::Bad { command: Bad::List } => look::bad(printer, client).await,
        Command::Bad { command: Bad::Remove { digest } } => change::forget(client, digest).await,
        Command::Status { watch } => look::status(printer, client, watch).await,
        Command::History => look::history(printer, client).await,
        Command::Show { what, evidence } => look::show(printer, client, what, evidence).await,
        Command::Probe { kind } => look::probe(printer, client, kind).await,
        Command::Events { follow } => stream::events(printer, client, follow).await,
        Command::Logs { follow, tail } => stream::logs(printer, client, follow, tail).await,
        Command::Exec(args) => exec::exec(client, args).await,
        // `run` has done these.
        Command::Init(_)
        | Command::Policy { .. }
        | Command::Spec { .. }
        | Command::Doctor
        | Command::Demo { .. }
        | Command::Completions { .. }
        | Command::Version => Ok(0),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<u8, Fault> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "molt", &mut text);
    print::out(&text)?;
    Ok(0)
}
