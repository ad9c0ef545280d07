//! `molt`: PID 1 of a sandbox, and its client, in one file.
//!
//! In: arguments. Out: an exit status. Must not: unwind: a panic in PID 1 is a crash like any other, and the next start
//! recovers from it.

mod api;
mod boot;
mod cli;
mod clock;
mod command;
mod demo;
mod dispatch;
mod doctor;
mod effects;
mod observe;
mod preflight;
mod rootfs;
mod store;
mod triggers;
mod watch;
mod workload;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    if std::env::args_os().nth(1).is_some_and(|word| word == demo::DAEMON) {
        return demo::daemon();
    }
    cli::run(cli::Args::parse()).into()
}
