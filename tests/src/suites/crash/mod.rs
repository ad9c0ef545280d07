//! Crashes, power cuts and errors at every point there is, and what the next start makes of them.
//!
//! In: a sandbox, and something it is doing. Out: it is struck in the middle, started again, and looked at. Must not:
//! choose the points by time.

pub(super) mod errno;
mod ground;
pub(super) mod kill;
pub(super) mod planted;
pub(super) mod power;
mod promised;
mod run;
mod scene;
mod sweep;
