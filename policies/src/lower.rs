//! From a policy to what the shim enforces.
//!
//! In: a checked policy and what is known about the generation. Out: [`Confinement`], words for people, and what makes
//! the policy impossible here. Must not: open a path; whether one exists is found out by the shim, in the new root.
//!
//! Three cases of `landlock.compatibility`:
//!
//! | written | kernel | paths the image does not have |
//! |---|---|---|
//! | nothing | Landlock ABI 3 or later | skipped, and listed in the report |
//! | `best_effort` | any, even without Landlock | skipped, and listed in the report |
//! | `hard_requirement` | Landlock ABI 3 or later; 4 with `network_policies` | an error before anything is stopped |

use std::collections::{BTreeMap, BTreeSet};

use molt_core::launch::{Access, Confinement, Landlock, PathRule, SeccompProfile, TcpPorts};

use crate::{
    schema::{Compatibility, Endpoint, Policy},
    seccomp,
    validate::normal,
};

/// Lowest Landlock ABI unless `best_effort` is written out. Before 3 (Linux 6.2) a file that may only be read can be
/// emptied.
pub const MIN_ABI: u32 = 3;
/// First ABI with TCP rules (Linux 6.7).
const TCP_ABI: u32 = 4;
const DNS_PORT: u16 = 53;

/// What is known about the generation.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The workload's working directory, absolute.
    pub workdir: &'a str,
    /// Where mounts of the container are shown, if the working directory is the image's choice: an image does not choose
    /// which of them are granted. Empty where the operator named the folder.
    pub shown: &'a [String],
    /// State paths. The policy must name them itself; a note says where it does not.
    pub state: &'a [String],
    /// The program, resolved in the new root, where it is known.
    pub program: Option<&'a str>,
    /// Paths of the image that no policy was written for: readable where the policy does not say so itself.
    pub readable: &'a [&'a str],
    /// Ports of the egress proxy (from the `HTTP_PROXY` and the like that the spec gives the workload): connections to it stay possible.
    pub proxy_ports: &'a [u16],
    /// Landlock ABI of the kernel; 0 where there is none.
    pub kernel_abi: u32,
    /// Which system calls it gets.
    pub seccomp: SeccompProfile,
}

/// A policy, ready for the shim.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lowered {
    /// What the shim enforces.
    pub confinement: Confinement,
    /// What a person should know: what is weaker than written, or will surprise. Shown; never fatal.
    pub notes: Vec<String>,
    /// Why this policy cannot be had on this kernel. Where it is not empty, nothing may be started with it.
    pub unmet: Vec<String>,
}

/// What every program needs, whatever the policy; what a policy names itself goes before it.
const DERIVED: [(&str, Access); 9] = [
    ("/dev/null", Access::ReadWrite),
    ("/dev/zero", Access::ReadWrite),
    ("/dev/full", Access::ReadWrite),
    ("/dev/random", Access::ReadOnly),
    ("/dev/urandom", Access::ReadOnly),
    ("/dev/tty", Access::ReadWrite),
    ("/dev/pts", Access::ReadWrite),
    ("/dev/shm", Access::ReadWrite),
    ("/run/molt/notify", Access::ReadWrite),
];

/// Lowers `policy`.
pub fn lower(policy: &Policy, context: &Context<'_>) -> Lowered {
    let mut lowered = Lowered::default();
    match seccomp::programs(context.seccomp) {
        Ok(programs) => {
            lowered.confinement.seccomp = programs;
            lowered.confinement.profile = context.seccomp;
        }
        Err(error) => lowered.unmet.push(format!("failed to {error}: {}", error.0)),
    }
    let compatibility = policy.landlock.as_ref().and_then(|section| section.compatibility);
    let tcp = tcp(policy, context, compatibility, &mut lowered);
    let paths = paths(policy, context, &mut lowered);
    let min_abi = if compatibility == Some(Compatibility::BestEffort) { 0 } else { MIN_ABI };
    if context.kernel_abi < min_abi {
        lowered.unmet.push(match context.kernel_abi {
            0 => "the kernel has no Landlock; landlock.compatibility: best_effort would run without it".to_owned(),
            abi => format!(
                "the kernel has Landlock ABI {abi}, at least {MIN_ABI} (Linux 6.2) is needed; \
                 landlock.compatibility: best_effort would take it"
            ),
        });
    } else if context.kernel_abi == 0 {
        lowered.notes.push("the kernel has no Landlock: no path of the policy is enforced (best_effort)".to_owned());
    } else if context.kernel_abi < MIN_ABI {
        lowered.notes.push(format!(
            "Landlock ABI {} cannot stop truncate(2): files that may only be read can be emptied (best_effort)",
            context.kernel_abi
        ));
    }
    let hard = compatibility == Some(Compatibility::HardRequirement);
    lowered.confinement.landlock = Some(Landlock { hard, min_abi, abi: context.kernel_abi, paths, tcp });
    lowered
}

/// `policy: unconfined`: no Landlock, no seccomp. The workload still has no capability and cannot get one.
pub fn unconfined() -> Lowered {
    Lowered {
        notes: vec!["policy: unconfined: no path, port or system call is refused".to_owned()],
        ..Lowered::default()
    }
}

fn paths(policy: &Policy, context: &Context<'_>, lowered: &mut Lowered) -> Vec<PathRule> {
    let notes = &mut lowered.notes;
    // A path listed for both reading and writing may be written: the later insert wins.
    let mut rules: BTreeMap<String, Access> = BTreeMap::new();
    let mut workdir = true;
    if let Some(files) = &policy.filesystem_policy {
        workdir = files.include_workdir;
        rules.extend(files.read_only.iter().map(|path| (normal(path), Access::ReadOnly)));
        rules.extend(files.read_write.iter().map(|path| (normal(path), Access::ReadWrite)));
    }
    let own = own_folder(context, &rules);
    if workdir {
        match own.as_deref() {
            Ok("/") => notes.push(
                "include_workdir: the working directory is '/', which is not made writable; name a workingDir"
                    .to_owned(),
            ),
            Ok(path) => drop(rules.insert(path.to_owned(), Access::ReadWrite)),
            Err(why) => notes.push(format!("include_workdir: {why}")),
        }
    } else if context.readable.contains(&context.workdir)
        && let Err(why) = &own
        && (climbs(context.workdir) || !covered(&rules, &normal(context.workdir), Access::ReadOnly))
    {
        notes.push(why.clone());
    }
    for path in context.state {
        if !covered(&rules, path, Access::ReadWrite) {
            notes.push(format!("state path {path} is not in read_write: the workload cannot write its state"));
        }
    }
    let readable = context.readable.iter().filter(|path| !climbs(path) && (**path != context.workdir || own.is_ok()));
    let readable =
        readable.map(|path| normal(path)).filter(|path| path != "/" && !covered(&rules, path, Access::ReadOnly));
    let readable: BTreeSet<String> = readable.collect();
    if let Some(program) = context.program
        && !covered(&rules, program, Access::ReadOnly)
        && !readable.iter().any(|path| within(program, path))
    {
        notes.push(format!("program {program} is not below any path of the policy: it cannot be executed"));
    }
    let mut list: Vec<PathRule> = DERIVED
        .into_iter()
        .filter(|(path, _)| !rules.contains_key(*path))
        .map(|(path, access)| (path.to_owned(), access))
        .chain(readable.into_iter().map(|path| (path, Access::ReadOnly)))
        .map(|(path, access)| PathRule { path, access, derived: true })
        .collect();
    list.extend(rules.into_iter().map(|(path, access)| PathRule { path, access, derived: false }));
    list.sort();
    list
}

/// The kernel's own folders in every generation; no image chooses them either.
const KERNEL: [&str; 3] = ["/proc", "/dev", "/sys"];

/// The working directory, if there may be a rule for it; else why not. A folder that `rules` let be written to already
/// may have one.
fn own_folder(context: &Context<'_>, rules: &BTreeMap<String, Access>) -> Result<String, String> {
    if climbs(context.workdir) {
        return Err(format!("the working directory {} holds '..': there is no rule for it", context.workdir));
    }
    let path = normal(context.workdir);
    if context.shown.is_empty() || path == "/" {
        return Ok(path);
    }
    let mut mounts = context.shown.iter().map(String::as_str).chain(KERNEL);
    let touched = |mount: &&str| within(&path, mount) || within(mount, &path);
    match mounts.find(|mount| touched(mount) && !covered(rules, mount, Access::ReadWrite)) {
        Some(mount) if !covered(rules, &path, Access::ReadWrite) => Err(format!(
            "the working directory {path} is the image's choice, and shows the mount {mount}: there is no rule for it; \
             name it in the policy or as workload.workingDir"
        )),
        _ => Ok(path),
    }
}

/// Whether a path leads upwards on its way, so that its text does not say where it lies.
fn climbs(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

/// Whether a rule for `path` or a folder above it grants at least `access`.
fn covered(rules: &BTreeMap<String, Access>, path: &str, access: Access) -> bool {
    rules.iter().any(|(rule, granted)| *granted >= access && within(path, rule))
}

/// Whether `path` is `folder` or below it; both normalised.
pub(crate) fn within(path: &str, folder: &str) -> bool {
    folder == "/" || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Ports the workload may connect to. Binding stays free: a port that nobody was told of is no way out, and a policy
/// has no field for it.
fn tcp(
    policy: &Policy,
    context: &Context<'_>,
    compatibility: Option<Compatibility>,
    lowered: &mut Lowered,
) -> Option<TcpPorts> {
    if policy.network_policies.is_empty() {
        return None;
    }
    if context.kernel_abi < TCP_ABI {
        let text = format!(
            "Landlock ABI {} has no rules for TCP, {TCP_ABI} (Linux 6.7) is needed: ports are not enforced here",
            context.kernel_abi
        );
        match compatibility {
            Some(Compatibility::HardRequirement) => lowered.unmet.push(text),
            _ => lowered.notes.push(text),
        }
    }
    let mut ports: BTreeSet<u16> =
        policy.network_policies.values().flat_map(|rule| &rule.endpoints).flat_map(Endpoint::all_ports).collect();
    ports.insert(DNS_PORT);
    ports.extend(context.proxy_ports);
    let text = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    lowered.notes.push(format!(
        "TCP connections are limited to ports {text}, on any host, the loopback included; \
         hosts, methods, programs and UDP are left to the egress proxy and the container's network"
    ));
    Some(TcpPorts { bind: None, connect: Some(ports.into_iter().collect()) })
}

#[cfg(test)]
#[path = "lower_tests.rs"]
mod tests;
