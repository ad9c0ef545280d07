//! All suites. A new one is a file here with `pub const CASES: &[Case]`, and a line in [`all`].

mod audit;
mod bad;
mod bed;
mod boot_errors;
mod crash;
mod deadlines;
mod docs;
mod doctor;
mod fail_closed;
mod gateway;
mod generation_zero;
mod hooks;
mod hostile;
mod isolation;
mod keep;
mod languages;
mod lifecycle;
mod operator;
mod policy;
mod pressure;
mod probes;
mod readme;
mod redteam;
mod registry;
mod restart;
mod runtimes;
mod scarce;
mod simulator;
mod soak;
mod staging;
mod trees;
mod triggers;
mod unconfined;
mod unpack;

use crate::harness::cases::Case;

/// Every test there is.
pub fn all() -> Vec<Case> {
    [
        audit::CASES,
        bed::CASES,
        bad::disk::CASES,
        bad::image::CASES,
        bad::policy::CASES,
        bad::registry::CASES,
        bad::workload::CASES,
        lifecycle::exclusive::CASES,
        lifecycle::rollback::CASES,
        lifecycle::update::CASES,
        registry::CASES,
        readme::CASES,
        redteam::CASES,
        boot_errors::CASES,
        crash::errno::CASES,
        crash::kill::CASES,
        crash::planted::CASES,
        crash::power::CASES,
        deadlines::CASES,
        docs::CASES,
        doctor::CASES,
        fail_closed::CASES,
        gateway::admission::CASES,
        gateway::faults::CASES,
        gateway::orders::CASES,
        gateway::renewal::CASES,
        gateway::story::CASES,
        generation_zero::CASES,
        hooks::CASES,
        hostile::CASES,
        isolation::CASES,
        keep::CASES,
        languages::CASES,
        operator::requests::CASES,
        operator::probes::CASES,
        operator::limits::CASES,
        operator::metrics::CASES,
        operator::fuzzed::CASES,
        operator::manifests::CASES,
        operator::terminal::CASES,
        policy::CASES,
        pressure::CASES,
        probes::CASES,
        restart::CASES,
        runtimes::CASES,
        scarce::CASES,
        simulator::CASES,
        soak::CASES,
        staging::CASES,
        trees::CASES,
        unconfined::CASES,
        unpack::CASES,
        &triggers::cases(),
    ]
    .concat()
}
