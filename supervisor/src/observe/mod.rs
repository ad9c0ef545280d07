//! What can be watched: events, the workload's output, the supervisor's own log.

pub(crate) mod events;
pub(crate) mod log;
pub(crate) mod output;
