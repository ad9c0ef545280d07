//! `molt-shim`: the namespace init of one generation. Confines itself completely, pre-forks the workload behind a gate,
//! then reaps, forwards signals and spawns what is asked for in the same confinement.
//!
//! In: a control socket on descriptor 0, and on it one launch document with its descriptors. Out: messages on that
//! socket. Must not: use threads, NSS, a configuration file or an environment variable; run anything unconfined; go on
//! after a step failed.

mod check;
mod confine;
mod enter;
mod init;
mod populate;
mod report;
mod spawn;
mod step;
mod takeover;

use molt_core::launch::FromShim;
use molt_sys::process::exit_now;

fn main() {
    let Some(control) = molt_sys::process::inherited(0) else { exit_now(125) };
    // Whatever else PID 1 was started with is none of a generation's business.
    if molt_sys::process::close_from(3).is_err() {
        exit_now(125)
    }
    if std::env::args_os().len() > 1 {
        // `molt-shim --self-test`: it was executed from where it is kept, which is all the test asks.
        exit_now(0);
    }
    match takeover::receive(&control).and_then(|order| enter::launch(&control, order)) {
        Ok(never) => match never {},
        Err(failure) => {
            report::send(&control, &FromShim::Failed(failure), &[]);
            exit_now(125)
        }
    }
}
