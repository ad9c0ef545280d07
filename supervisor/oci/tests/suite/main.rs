//! The crate from outside: hostile layers, layers on layers, layouts, registries with faults.
//!
//! In: nothing but root and a file system that holds overlay attributes. Out: verdicts. Must not: reach beyond the
//! loopback interface.

#[cfg(test)]
mod common;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod liar;
#[cfg(test)]
mod parents;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod sources;
#[cfg(test)]
mod space;
#[cfg(test)]
mod unpacker;
