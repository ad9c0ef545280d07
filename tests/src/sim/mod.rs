//! The simulator: the product's update machine, journal, publication and recovery in a world made of dice.
//!
//! In: a seed. Out: the same run each time, and the first promise that it broke. Must not: use a clock, a thread or a file
//! of the machine it runs on.

pub mod coverage;
pub mod disk;
pub mod judge;
pub mod run;
pub mod store;
pub mod world;
