//! Becoming the workload's user, for good: groups, bounding set, ids, capabilities; then proof.
//!
//! In: an [`Identity`]. Out: a process without a capability. Must not: return with one left.

use molt_confine::capabilities;
use molt_core::launch::{Identity, Report};
use rustix::{
    fs::{Gid, Uid},
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{CapabilitySet, UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid, set_thread_uid},
};

use crate::{
    planted::{Wall, left_out},
    step::{At as _, Step, refuse},
};

/// Assumes the identity. The four -1 ids that mean "leave it" to the kernel are refused before.
pub(crate) fn assume(identity: &Identity, report: &mut Report) -> Step<()> {
    if [identity.uid, identity.gid].into_iter().chain(identity.groups.iter().copied()).any(|id| id == u32::MAX) {
        return Err(refuse("setresuid", "4294967295 is not an id"));
    }
    if identity.nested {
        nest(identity, report)?;
    }
    capabilities::drop_bounding_set()?;
    if !identity.nested && !left_out(Wall::Ids) {
        let groups: Vec<Gid> = identity.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        set_thread_groups(&groups).at("setgroups", format!("{:?}", identity.groups))?;
        let gid = Gid::from_raw(identity.gid);
        set_thread_res_gid(gid, gid, gid).at("setresgid", identity.gid.to_string())?;
        let uid = Uid::from_raw(identity.uid);
        let changed = set_thread_res_uid(uid, uid, uid).at("setresuid", identity.uid.to_string());
        if !left_out(Wall::Errors) {
            changed?;
        }
    }
    capabilities::keep(CapabilitySet::empty())?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("prctl", "not dumpable")?;
    let asked = !left_out(Wall::Ids) && !left_out(Wall::Errors);
    if identity.uid != 0 && asked && set_thread_uid(Uid::ROOT).is_ok() {
        return Err(refuse("setresuid", "root could be had back"));
    }
    Ok(())
}

/// A user namespace of its own in which `uid` stands for the one user there is.
fn nest(identity: &Identity, report: &mut Report) -> Step<()> {
    molt_sys::process::unshare_namespaces(UnshareFlags::NEWUSER).at("unshare", "user")?;
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(|error| refuse("idmap", format!("{file}: {error}")))
    };
    write("uid_map", format!("{} 0 1\n", identity.uid))?;
    write("setgroups", "deny\n".to_owned())?;
    write("gid_map", format!("{} 0 1\n", identity.gid))?;
    report.degraded.push(format!(
        "user {} is the supervisor's own user under another number: no second one is mapped here",
        identity.uid
    ));
    Ok(())
}
