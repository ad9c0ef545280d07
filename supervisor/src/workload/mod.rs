//! The workload from the supervisor's side: generations that are armed or run, their output, probes and execs.

pub(crate) mod exec;
