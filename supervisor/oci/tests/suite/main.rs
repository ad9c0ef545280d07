//! The crate from outside: hostile layers, layers on layers, layouts, registries with faults.
//!
//! In: nothing but root and a file system that holds overlay attributes. Out: verdicts. Must not: reach beyond the
//! loopback interface.

mod common;
mod hostile;
mod parents;
mod registry;
mod sources;
