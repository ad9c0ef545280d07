//! The update machine: a pure, total function from a state and an event to a state and effects.
//!
//! In: [`Event`]s. Out: [`Effect`]s, in order. Must not: read a clock, do I/O, or leave any pair of state and event
//! without an answer. The dispatcher of the supervisor runs the effects; whatever they find comes back as events.
//!
//! Runs (a started or armed shim) are named by an instance number that is never used twice, and attempts by their update
//! id, so an event that comes late is told from one that matters.

mod before;
mod boot;
mod effect;
mod event;
mod leave;
mod proving;
mod rest;
mod state;
mod step;
mod swap;
pub mod table;
mod wanted;

pub use effect::{Effect, Ended, HookName, Mark, Patience, Purpose};
pub use event::{Event, Found, Moment, Target, Wanted};
pub use state::{Attempt, Back, Kind, Phase, Run, Settings, State};
pub use step::step;

#[cfg(test)]
mod stories;
#[cfg(test)]
mod tests;
