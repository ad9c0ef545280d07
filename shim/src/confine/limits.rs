//! Resource limits, OOM score, session keyring: set while still root.
//!
//! In: the launch document. Out: what could not be had, in the report. Must not: raise anything.

use molt_confine::limits::set;
use molt_core::launch::{Launch, Report};
use rustix::{io::Errno, process::Resource};

use crate::step::{At as _, Step, not_there};

/// Says who goes first when memory runs out: while `/proc` is still PID 1's own, which is never read-only where this one's
/// may be.
pub(crate) fn score(launch: &Launch, report: &mut Report) {
    let score = launch.oom_score_adj;
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        report.degraded.push(format!("oom_score_adj could not be set to {score}: {error}"));
    }
}

/// Applies what `launch` says; no limit is ever raised above the hard limit that is there.
pub(crate) fn apply(launch: &Launch, report: &mut Report) -> Step<()> {
    let Launch { limits, confinement, .. } = launch;
    set(Resource::Core, limits.core, "RLIMIT_CORE")?;
    if let Some(nofile) = limits.nofile {
        set(Resource::Nofile, nofile, "RLIMIT_NOFILE")?;
    }
    if let Some(nproc) = limits.nproc {
        set(Resource::Nproc, nproc, "RLIMIT_NPROC")?;
    }
    // It matters only where the workload has no filters, which forbid it all keys.
    if let Some(errno) = keyring()?
        && confinement.seccomp.is_empty()
    {
        report.degraded.push(format!("the session keyring is the container's own: keyctl: {errno}"));
    }
    Ok(())
}

/// A session keyring of its own; the errno where the container's runtime forbids one, as many do. The keyring then is the
/// container's own, which holds nothing of ours.
pub(crate) fn keyring() -> Step<Option<Errno>> {
    match molt_sys::keyring::join_new_session() {
        Ok(()) => Ok(None),
        Err(error) if not_there(error.errno) || matches!(error.errno, Errno::PERM | Errno::ACCESS) => {
            Ok(Some(error.errno))
        }
        Err(error) => Err(error).at("keyctl", ""),
    }
}
