//! All suites. A new one is a file here with `pub const CASES: &[Case]`, and a line in [`all`].

mod bad;
mod bed;
mod boot_errors;
mod generation_zero;
mod hooks;
mod keep;
mod lifecycle;
mod probes;
mod readme;
mod registry;
mod restart;
mod runtimes;

use crate::harness::cases::Case;

/// Every test there is.
pub fn all() -> Vec<Case> {
    [
        bed::CASES,
        bad::image::CASES,
        bad::policy::CASES,
        bad::registry::CASES,
        bad::workload::CASES,
        lifecycle::CASES,
        registry::CASES,
        readme::CASES,
        boot_errors::CASES,
        generation_zero::CASES,
        hooks::CASES,
        keep::CASES,
        probes::CASES,
        restart::CASES,
        runtimes::CASES,
    ]
    .concat()
}
