//! Steps of confining oneself that every confined process of Molt takes: the shim of a generation and the unpacker.
//!
//! In: descriptors, numbers. Out: fewer rights, or the step that failed. Must not: decide the order; each process has its
//! own straight line, and there the order is the argument.

pub mod capabilities;
pub mod landlock;
pub mod limits;
pub mod parent;
pub mod root;
pub mod step;
