//! Taking over the launch document and its descriptors.
//!
//! In: the control socket. Out: an [`Order`]. Must not: accept a document of another version or a wrong number of
//! descriptors.

use std::os::fd::OwnedFd;

use molt_core::launch::{Fds, Launch, ProcMode, VERSION};

use serde::de::DeserializeOwned;

use crate::step::{At as _, Step, refuse};

/// A launch document with what travelled beside it.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) launch: Launch,
    pub(crate) root: OwnedFd,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) gate: OwnedFd,
    pub(crate) exec: OwnedFd,
    pub(crate) notify: Option<OwnedFd>,
    pub(crate) door: Option<OwnedFd>,
    pub(crate) late: Vec<OwnedFd>,
    pub(crate) proc: Option<OwnedFd>,
}

/// Waits for the one datagram that starts everything.
pub(crate) fn receive(control: &OwnedFd) -> Step<Order> {
    let mut bytes = Vec::new();
    let fds = molt_sys::socket::receive(control, &mut bytes).at("receive", "launch")?;
    let mut fds = fds.ok_or_else(|| refuse("receive", "the supervisor is gone"))?.into_iter();
    let mut next = |what: &str| fds.next().ok_or_else(|| refuse("receive", format!("no descriptor for {what}")));
    let spec = next("the launch document")?;
    let (root, stdin, stdout, stderr) = (next("root")?, next("stdin")?, next("stdout")?, next("stderr")?);
    let (gate, exec) = (next("gate")?, next("exec")?);
    let launch: Launch = read(spec)?;
    of_this_version(launch.version)?;
    let notify = launch.notify.then(|| next("notify")).transpose()?;
    let door = launch.door.then(|| next("the workload's socket")).transpose()?;
    let late: Vec<OwnedFd> = launch.late_mounts.iter().map(|mount| next(&mount.target)).collect::<Result<_, _>>()?;
    let proc = (launch.proc == ProcMode::Carried).then(|| next("proc")).transpose()?;
    if fds.next().is_some() {
        return Err(refuse("receive", format!("more than {} descriptors", Fds::LATE + late.len())));
    }
    Ok(Order { launch, root, stdin, stdout, stderr, gate, exec, notify, door, late, proc })
}

/// The document in a sealed memfd.
pub(crate) fn read<T: DeserializeOwned>(document: OwnedFd) -> Step<T> {
    use std::io::Read as _;
    let mut text = Vec::new();
    std::fs::File::from(document)
        .take(16 << 20)
        .read_to_end(&mut text)
        .map_err(|error| refuse("receive", error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| refuse("receive", error.to_string()))
}

/// Whether it was written for this shim.
pub(crate) fn of_this_version(version: u32) -> Step<()> {
    if version == VERSION {
        return Ok(());
    }
    Err(refuse("receive", format!("a document of version {version}, not {VERSION}")))
}
