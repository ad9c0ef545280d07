//! The workload from the supervisor's side: generations that are armed or run, their output, probes and execs.

pub(crate) mod door;
pub(crate) mod exec;
pub(crate) mod notify;
pub(crate) mod probe;
pub(crate) mod pump;
pub(crate) mod run;
pub(crate) mod shim;
pub(crate) mod unconfined;
