//! What the shim says: messages on the control socket, and what is really in force, read back from the kernel.
//!
//! In: `/proc/self/status` of the confined process (opened before: its policy need not grant `/proc`), denied probes.
//! Out: a [`Report`]. Must not: report what was asked for; only what is.

use std::{
    fs::File,
    io::Read as _,
    os::fd::{BorrowedFd, OwnedFd},
};

use molt_core::launch::{FromShim, Report};
use rustix::{
    io::Errno,
    mount::{FsOpenFlags, fsopen},
};

use crate::{
    confine::landlock::can_list,
    step::{Step, refuse},
};

/// Sends one message.
pub(crate) fn send(control: &OwnedFd, message: &FromShim, fds: &[BorrowedFd<'_>]) -> molt_sys::Result<()> {
    let bytes = serde_json::to_vec(message).unwrap_or_default();
    molt_sys::socket::send(control, &bytes, fds)
}

/// The same where nothing can be done about a failure: a supervisor that is gone is noticed when reading, and one that
/// misses a message hears by pidfd how it ended.
pub(crate) fn tell(control: &OwnedFd, message: &FromShim) {
    let _ = send(control, message, &[]);
}

/// Fills in what `/proc/self/status` says, and checks by trying that the walls stand. `guarded` is a folder that could be
/// listed until the Landlock domain was entered.
pub(crate) fn read_back(
    status: &mut File,
    report: &mut Report,
    filters: usize,
    guarded: Option<&'static str>,
) -> Step<()> {
    let mut text = String::new();
    status.read_to_string(&mut text).map_err(|error| refuse("status", error.to_string()))?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let number = |name: &str| field(name).and_then(|value| value.parse::<u32>().ok());
    let mask = |name: &str| field(name).and_then(|value| u64::from_str_radix(value, 16).ok()).unwrap_or(u64::MAX);
    let ids = |name: &str| -> Option<u32> {
        let ids: Vec<u32> = field(name)?.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        let first = *ids.first()?;
        (ids.len() == 4 && ids.iter().all(|id| *id == first)).then_some(first)
    };
    report.uid = ids("Uid:").ok_or_else(|| refuse("status", "the four user ids differ"))?;
    report.gid = ids("Gid:").ok_or_else(|| refuse("status", "the four group ids differ"))?;
    report.groups = field("Groups:").unwrap_or("").split_whitespace().filter_map(|id| id.parse().ok()).collect();
    report.no_new_privs = number("NoNewPrivs:") == Some(1);
    report.seccomp_mode = number("Seccomp:").unwrap_or(0);
    report.seccomp_filters = number("Seccomp_filters:").unwrap_or_else(|| u32::try_from(filters).unwrap_or(0));
    report.capabilities = mask("CapInh:") | mask("CapPrm:") | mask("CapEff:") | mask("CapAmb:");
    if mask("CapBnd:") != 0 {
        report.degraded.push("the capability bounding set could not be emptied (no CAP_SETPCAP)".to_owned());
    }
    if report.seccomp_mode == 2 && fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).err() != Some(Errno::PERM) {
        return Err(refuse("self-check", "a new file system could be opened in the confined process"));
    }
    if let Some(folder) = guarded.filter(|folder| can_list(folder)) {
        return Err(refuse(
            "self-check",
            format!("{folder}, which no rule holds, could be listed in the confined process"),
        ));
    }
    Ok(())
}
