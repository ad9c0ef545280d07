//! What Molt says to the outside: the status document, updates, events, requests, problem documents.
//!
//! In: the machine's state. Out: serde types with JSON Schemas; the same types serve the HTTP API, `molt … -o json` and
//! the audit log. Must not: hold anything secret. Times are RFC 3339 text in UTC; durations are whole microseconds
//! (`…Us`) or milliseconds (`…Ms`). Readers must ignore fields they do not know.

mod difference;
mod event;
mod exec;
mod history;
mod order;
mod problem;
mod status;
mod update;

pub use difference::{Change, Difference, SectionChange};
pub use event::{Event, What};
pub use exec::{ExecOptions, ExecView};
pub use history::{AuditView, HistoryBreak, HistoryCheck};
pub use order::{OrderRequest, Ordered};
pub use problem::Problem;
pub use status::{
    BadView, Condition, Document, GenerationView, HoldView, Metadata, OrderKeyView, OrdersView, PhaseName, Section,
    Status, WorkloadView,
};
pub use update::{
    Accepted, Collected, Evidence, Expected, Outcome, PlanView, RollbackRequest, UpdateRequest, UpdateView,
    exit_status, undecided,
};

/// `apiVersion` of every document.
pub const API_VERSION: &str = "molt.dev/v1alpha1";
