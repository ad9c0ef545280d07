//! `molt`: PID 1 of a sandbox, and its client, in one file. A library only so that `tests/fuzz` can link it.
//!
//! In: arguments. Out: an exit status. Must not: unwind: a panic in PID 1 is a crash like any other, and the next start
//! recovers from it.

mod api;
mod aside;
mod boot;
mod cli;
mod clock;
mod command;
mod demo;
mod dispatch;
mod doctor;
mod effects;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod observe;
mod planted;
mod preflight;
mod rootfs;
mod store;
mod timer;
mod triggers;
mod watch;
mod workload;

use std::process::ExitCode;

use clap::Parser as _;
use molt_oci::unpacker;

/// The program.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word.as_encoded_bytes() == unpacker::ENTRY.to_bytes()) {
        unpacker::run();
    }
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    planted::remember();
    if std::env::args_os().nth(1).is_some_and(|word| word == demo::DAEMON) {
        return demo::daemon();
    }
    cli::run(cli::Args::parse()).into()
}
