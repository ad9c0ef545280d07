//! What can be watched: events, figures made from them, the workload's output, the supervisor's own log.

pub(crate) mod events;
pub(crate) mod log;
pub(crate) mod marked;
pub(crate) mod metrics;
pub(crate) mod now;
pub(crate) mod output;
pub(crate) mod standard;
