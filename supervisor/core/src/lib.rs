//! Pure logic of Molt: ids, spec, intent, plan, machine, journal format, health, gc and wire types.
//!
//! In: plain data. Out: plain data. Must not: do I/O, read a clock or the environment, be async, name libc.

pub mod code;
pub mod confined;
pub mod gateway;
pub mod gc;
pub mod generation;
pub mod ids;
pub mod journal;
pub mod launch;
pub mod machine;
pub mod memory;
pub mod order;
pub mod publish;
pub mod spec;
pub mod wire;
