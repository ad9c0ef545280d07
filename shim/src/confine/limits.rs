//! Resource limits, OOM score, session keyring: set while still root.
//!
//! In: [`Limits`]. Out: what could not be had, in the report. Must not: raise anything.

use molt_core::launch::{Limits, Report};
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::step::{At as _, Step, not_there};

/// Applies `limits`; none is ever raised above the hard limit that is there.
pub(crate) fn apply(limits: &Limits, oom_score_adj: i32, report: &mut Report) -> Step<()> {
    set(Resource::Core, limits.core, "RLIMIT_CORE")?;
    if let Some(nofile) = limits.nofile {
        set(Resource::Nofile, nofile, "RLIMIT_NOFILE")?;
    }
    if let Some(nproc) = limits.nproc {
        set(Resource::Nproc, nproc, "RLIMIT_NPROC")?;
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", oom_score_adj.to_string()) {
        report.degraded.push(format!("oom_score_adj could not be set to {oom_score_adj}: {error}"));
    }
    match molt_sys::keyring::join_new_session() {
        Ok(()) => {}
        // Container runtimes often forbid keyctl; the keyring then is the container's own, which holds nothing of ours.
        Err(error) if not_there(error.errno) || error.errno == Errno::PERM || error.errno == Errno::ACCESS => {}
        Err(error) => return Err(error).at("keyctl", ""),
    }
    Ok(())
}

fn set(resource: Resource, value: u64, name: &str) -> Step<()> {
    let value = getrlimit(resource).maximum.map_or(value, |hard| value.min(hard));
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) }).at("setrlimit", name)
}
