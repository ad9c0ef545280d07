//! What can go wrong for the client, what a person is told, and the exit status that says the same to a script.
//!
//! In: problems of the API and errors of the connection. Out: text and a status. Must not: repeat what the supervisor's
//! own text says.

use std::{io, path::PathBuf};

use molt_core::{code::Code, ids::UpdateId, wire::Problem};

/// The version that ran before still runs.
pub(crate) const FAILED: u8 = 1;
/// The command line or the request is wrong.
pub(crate) const USAGE: u8 = 2;
/// Held.
pub(crate) const HELD: u8 = 5;
/// Refused while resolving or planning.
pub(crate) const REFUSED: u8 = 6;
/// The wait timed out.
pub(crate) const TIMED_OUT: u8 = 7;
/// 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command did not do what it should.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Nobody answers on the socket.
    Unreachable {
        /// Which one.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The supervisor refused.
    Problem(Problem),
    /// The connection broke or carried something unexpected.
    Broken(String),
    /// Something on this side: a file, a terminal.
    Local(String),
    /// The arguments do not fit.
    Usage(String),
    /// Standard output is closed; whoever closed it wants no more.
    Closed,
    /// ^C while waiting.
    Interrupted(UpdateId),
    /// The wait was limited.
    TimedOut(UpdateId),
}

impl Fault {
    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Unreachable { .. } | Self::Broken(_) | Self::Local(_) => FAILED,
            Self::Problem(problem) => problem_status(problem),
            Self::Usage(_) => USAGE,
            // 128 + SIGPIPE, as programs that do not look end.
            Self::Closed => 141,
            Self::Interrupted(_) => INTERRUPTED,
            Self::TimedOut(_) => TIMED_OUT,
        }
    }
}

/// The exit status for a request that was refused at once.
pub(crate) fn problem_status(problem: &Problem) -> u8 {
    match problem.code {
        Code::Held => HELD,
        Code::PolicyWider
        | Code::KnownBad
        | Code::SignatureRefused
        | Code::WrongPlatform
        | Code::NoSpace
        | Code::StoreUnusable
        | Code::NothingToRollBackTo
        | Code::BelowFloor
        | Code::OrderRefused => REFUSED,
        _ if problem.status == 400 => USAGE,
        _ => FAILED,
    }
}

/// What to type next, whatever the code.
fn next(code: Code) -> &'static str {
    match code {
        Code::Invalid | Code::ReferenceInvalid => "nothing was done; see what the command takes: molt COMMAND --help",
        Code::NotFound => "see what there is: molt history",
        Code::DeadlineExceeded | Code::Internal => "it may have been done all the same: molt status",
        code => advice(code).unwrap_or("see what runs: molt status"),
    }
}

/// What to type next, where a code has an answer to that.
pub(crate) fn advice(code: Code) -> Option<&'static str> {
    match code {
        Code::Held => Some("see who holds it: molt status; end the hold: molt release"),
        Code::KnownBad => {
            Some("see why: molt bad list; take it all the same: molt update --force; forget it: molt bad remove DIGEST")
        }
        Code::PolicyWider => Some("if that is meant: molt update --allow-wider"),
        Code::NoSpace => Some("free some: molt gc"),
        Code::NothingToRollBackTo => Some("see what there is: molt history"),
        Code::Stale => Some("look again, then ask again: molt status"),
        Code::BelowFloor => Some("see the floor: molt status -o json"),
        Code::OrderRefused => Some("see what keys may order: molt status -o json; how to sign: docs/TRIGGERS.md"),
        Code::Busy => Some("see what is under way: molt status; give it up: molt cancel"),
        Code::StoreUnusable | Code::Unsupported => Some("see what is missing: molt doctor"),
        _ => None,
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable { socket, source } => {
                let socket = socket.display();
                match source.kind() {
                    io::ErrorKind::NotFound => write!(f, "no supervisor: there is no socket {socket}")?,
                    io::ErrorKind::ConnectionRefused => write!(f, "no supervisor answers on {socket}")?,
                    io::ErrorKind::PermissionDenied => write!(f, "only root of the sandbox may use {socket}")?,
                    _ => write!(f, "failed to reach the supervisor on {socket}: {source}")?,
                }
                f.write_str(
                    "\nis molt init PID 1 here? another socket: --socket PATH or MOLT_SOCKET; \
                     from outside: kubectl exec POD -- molt status",
                )
            }
            Self::Problem(problem) => {
                f.write_str(&super::text::block(&problem.detail))?;
                write!(f, "\n{}", next(problem.code))
            }
            Self::Broken(why) => {
                writeln!(f, "the supervisor's answer could not be read: {why}")?;
                f.write_str("what was asked for may have been done; what runs, runs on: molt status")
            }
            Self::Local(why) => write!(f, "{why}\nwhat runs, runs on: molt status"),
            Self::Usage(why) => write!(f, "{why}\nnothing was done; what a command takes: molt COMMAND --help"),
            Self::Closed => f.write_str("standard output is closed"),
            Self::Interrupted(id) => {
                write!(f, "{id} goes on without you; follow it: molt status --watch; give it up: molt cancel {id}")
            }
            Self::TimedOut(id) => {
                write!(f, "the wait timed out, {id} goes on; follow it: molt status --watch; its end: molt show {id}")
            }
        }
    }
}
