//! What the machine's effects really do, one verb a file.
//!
//! In: a [`Context`] and the arguments of one effect. Out: one event. Must not: decide what happens next.

pub(crate) mod arm;
pub(crate) mod collect;
pub(crate) mod confine;
pub(crate) mod difference;
pub(crate) mod fetch;
pub(crate) mod hook;
mod image;
mod keep;
pub(crate) mod plan;
pub(crate) mod prove;
pub(crate) mod quiesce;
pub(crate) mod resolve;
pub(crate) mod stage;
pub(crate) mod swap;

use std::{path::PathBuf, sync::Arc};

use molt_core::{code::Code, machine::Event, spec::Spec};
use tokio::sync::mpsc;

use crate::{
    observe::{events::EventLog, output::OutputRing},
    rootfs::Parts,
    store::{Store, audit::Audit},
    triggers::{signal::Reaped, spec::Source},
    workload::shim::Shim,
};

/// Where effects send their answers.
pub(crate) type Answers = mpsc::UnboundedSender<Event>;

/// What every effect may use. Nothing in it changes after boot.
#[derive(Debug)]
pub(crate) struct Context {
    /// The spec in force.
    pub(crate) spec: Spec,
    /// Policy of the spec, as text: empty for the default, `unconfined`, or YAML.
    pub(crate) policy: String,
    /// Where the spec comes from.
    pub(crate) source: Source,
    /// The store, if there is one.
    pub(crate) store: Option<Arc<Store>>,
    /// Mounts held since boot.
    pub(crate) parts: Arc<Parts>,
    /// The shim.
    pub(crate) shim: Shim,
    /// Registries and layouts.
    pub(crate) client: molt_oci::Client,
    /// Root-only folder for sockets that are bound into generations.
    pub(crate) run: PathBuf,
    /// What a workload's own socket asks.
    pub(crate) handle: crate::command::Handle,
    /// Events.
    pub(crate) events: EventLog,
    /// Output.
    pub(crate) output: OutputRing,
    /// Landlock ABI of the kernel; 0 where there is none.
    pub(crate) kernel_abi: u32,
    /// PID 1's user namespace maps few ids: others need one of their own.
    pub(crate) mapped: crate::preflight::IdMap,
    /// Held for reading from the first layer of an update to its staged generation, for writing by a clean-up: what is
    /// being fetched is in no record yet, and must not be taken for rubbish.
    pub(crate) tidy: Arc<tokio::sync::RwLock<()>>,
    /// What was run without the confinement.
    pub(crate) audit: Audit,
    /// How children of PID 1 ended.
    pub(crate) reaped: Reaped,
    /// How `/proc` is had.
    pub(crate) proc: molt_core::launch::ProcMode,
}

/// Longest message about how something ended, in bytes. It goes into the history, the events and every status, and may name
/// what an image says of itself.
const LONGEST: usize = 16 << 10;
/// The machine says after a fault what runs now; that must not be what is cut off.
const LONGEST_FAULT: usize = LONGEST - (1 << 10);

/// A message of at most 16 KiB; what is cut off shows.
pub(crate) fn bounded(message: String) -> String {
    bounded_to(LONGEST, message)
}

fn bounded_to(most: usize, mut message: String) -> String {
    const MORE: char = '…';
    if message.len() > most {
        message.truncate(message.floor_char_boundary(most - MORE.len_utf8()));
        message.push(MORE);
    }
    message
}

/// Why an effect failed.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    /// Stable code.
    pub(crate) code: Code,
    /// For people.
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: bounded_to(LONGEST_FAULT, message.into()) }
    }

    /// Whether it is a refusal by rule (exit status 6) rather than a failure (1).
    pub(crate) fn refused(&self) -> bool {
        matches!(
            self.code,
            Code::Invalid
                | Code::BelowFloor
                | Code::KnownBad
                | Code::NoSpace
                | Code::NothingToRollBackTo
                | Code::PolicyWider
                | Code::SignatureRefused
                | Code::WrongPlatform
        )
    }
}

/// An error with everything under it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    text
}

impl From<molt_oci::Error> for Fault {
    fn from(error: molt_oci::Error) -> Self {
        Self::new(error.code(), format!("failed to {}", chain(&error)))
    }
}

impl From<crate::rootfs::RootError> for Fault {
    fn from(error: crate::rootfs::RootError) -> Self {
        Self::new(error.code, format!("failed to {error}"))
    }
}

impl From<crate::store::StoreError> for Fault {
    fn from(error: crate::store::StoreError) -> Self {
        Self::new(error.code(), format!("failed to {}", chain(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_long_as_it_may_be_and_no_longer() {
        for unit in ["x", "ä", "€", "🦀"] {
            let fault = Fault::new(Code::Internal, unit.repeat(8 << 20));
            assert!((LONGEST_FAULT - 4..=LONGEST_FAULT).contains(&fault.message.len()), "{}", fault.message.len());
            assert!(fault.message.starts_with(unit) && fault.message.ends_with('…'));
            let end = bounded(format!("{}; generation 1 runs", fault.message));
            assert!(end.ends_with("…; generation 1 runs"), "what runs is said");
            let end = bounded(unit.repeat(LONGEST));
            assert!(end.len() <= LONGEST && (end.len() == LONGEST || end.ends_with('…')));
        }
        assert_eq!(Fault::new(Code::Internal, "short").message, "short");
    }
}
