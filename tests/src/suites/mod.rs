//! All suites. A new one is a file here with `pub const CASES: &[Case]`, and a line in [`all`].

mod bad;
mod bed;
mod lifecycle;
mod readme;
mod registry;

use crate::harness::cases::Case;

/// Every test there is.
pub fn all() -> Vec<Case> {
    [bed::CASES, bad::image::CASES, bad::policy::CASES, bad::registry::CASES, bad::workload::CASES, lifecycle::CASES, registry::CASES, readme::CASES].concat()
}
