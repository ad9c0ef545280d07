//! Resource limits. setrlimit(2).
//!
//! In: a limit and its value. Out: soft and hard limit set to it. Must not: raise anything.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::step::{At as _, Step};

/// Sets soft and hard limit to `value`, or to the hard limit that is there, where that is lower.
pub fn set(resource: Resource, value: u64, name: &str) -> Step<()> {
    let value = getrlimit(resource).maximum.map_or(value, |hard| value.min(hard));
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) }).at("setrlimit", name)
}
