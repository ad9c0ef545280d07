//! What entering a Landlock domain has in common, whatever its rules are.
//!
//! In: a ruleset. Out: this process in its domain. Must not: take a partly enforced ruleset for a domain.

use landlock::{ABI, RulesetCreated, RulesetStatus};
use rustix::io::Errno;

use crate::step::{At as _, Step, refuse};

/// The highest ABI whose file rights Molt gives a meaning to. ABI 9 adds connecting to path sockets, which is handled
/// only with rules for them.
pub const HIGHEST_FS: ABI = ABI::V8;

/// The kernel's ABI; 0 where there is no Landlock, it is not enabled, or a seccomp profile forbids it.
pub fn kernel_abi() -> Step<u32> {
    match molt_sys::landlock::abi() {
        Ok(abi) => Ok(abi),
        Err(error) if matches!(error.errno, Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => Ok(0),
        Err(error) => Err(error).at("landlock", ""),
    }
}

/// Enters the domain. Checks the status, not only the result: a partly enforced ruleset is an error.
pub fn enforce(ruleset: RulesetCreated) -> Step<()> {
    let status = ruleset.restrict_self().map_err(|error| refuse("landlock_restrict_self", error.to_string()))?;
    if status.ruleset != RulesetStatus::FullyEnforced || !status.no_new_privs {
        return Err(refuse("landlock_restrict_self", format!("only {:?}", status.ruleset)));
    }
    Ok(())
}
