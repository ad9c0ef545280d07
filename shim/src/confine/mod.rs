//! Taking rights away, one subject a file. `enter` says in which order.

pub(crate) mod ids;
pub(crate) mod landlock;
pub(crate) mod limits;
mod paths;
