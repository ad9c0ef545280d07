//! `molt-shim`: the namespace init of one generation. Confines itself completely, pre-forks the workload behind a gate,
//! then reaps, forwards signals and spawns what is asked for in the same confinement. With `--enter` it is what PID 1 sends
//! into a generation that runs, for `molt exec --unconfined`, and nothing else.
//!
//! In: a control socket on descriptor 0, and on it one document with its descriptors. Out: messages on that socket. Must
//! not: use threads, NSS, a configuration file or an environment variable; run anything unconfined unasked; go on after a
//! step failed.

mod check;
mod confine;
mod enter;
mod init;
mod keeper;
mod planted;
mod populate;
mod report;
mod spawn;
mod takeover;
mod unconfined;

use std::ffi::OsString;

use molt_confine::step;
use molt_core::launch::FromShim;
use molt_sys::process::exit_now;

/// What it was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errand {
    /// To become a generation's init.
    Generation,
    /// To go into a generation that runs: `--enter`.
    Enter,
    /// To be executed from where it is kept, which is all the test asks: `--self-test`.
    SelfTest,
}

impl Errand {
    /// By the arguments, which must be exactly these.
    fn of(arguments: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut arguments = arguments.into_iter().skip(1);
        let errand = match arguments.next() {
            None => Self::Generation,
            Some(word) if word == "--enter" => Self::Enter,
            Some(word) if word == "--self-test" => Self::SelfTest,
            Some(_) => return None,
        };
        arguments.next().is_none().then_some(errand)
    }
}

fn main() {
    let Some(control) = molt_sys::process::inherited(0) else { exit_now(125) };
    // Whatever else PID 1 was started with is none of a generation's business.
    if molt_sys::process::close_from(3).is_err() {
        exit_now(125)
    }
    let result = match Errand::of(std::env::args_os()) {
        Some(Errand::SelfTest) => exit_now(0),
        Some(Errand::Generation) => takeover::receive(&control).and_then(|order| enter::launch(&control, order)),
        Some(Errand::Enter) => unconfined::enter(&control),
        None => Err(step::refuse("arguments", "none that PID 1 gives")),
    };
    match result {
        Ok(never) => match never {},
        Err(failure) => {
            report::tell(&control, &FromShim::Failed(failure));
            exit_now(125)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_arguments_are_an_errand() {
        let of = |words: &[&str]| Errand::of(words.iter().map(OsString::from));
        assert_eq!(of(&["molt-shim"]), Some(Errand::Generation));
        assert_eq!(of(&["molt-shim", "--enter"]), Some(Errand::Enter));
        assert_eq!(of(&["molt-shim", "--self-test"]), Some(Errand::SelfTest));
        let wrong: [&[&str]; 8] = [
            &["molt-shim", ""],
            &["molt-shim", "--"],
            &["molt-shim", "enter"],
            &["molt-shim", "--enter "],
            &["molt-shim", "--enter=1"],
            &["molt-shim", "--Enter"],
            &["molt-shim", "--enter", "--enter"],
            &["molt-shim", "--self-test", "more"],
        ];
        for words in wrong {
            assert_eq!(of(words), None, "{words:?}");
        }
    }
}
