//! The policy of a generation, made ready for the shim before it starts; and the judgement on what the shim reports.
//!
//! In: a checked policy, the record, what is or was in force. Out: what to enforce; what a person should be told; or a
//! refusal. Must not: look anything up in a root (`arm` does), accept a report weaker than the policy asks, or call wider
//! what goes back to a generation that ran before.

use std::collections::BTreeMap;

use molt_core::{
    code::Code,
    confined::{InForce, MountMode, Shown},
    generation::Record,
    launch::{Confinement, Identity, Limits, Report},
    spec::{EnvVar, Principal},
    wire::Section,
};
use molt_policy::Lowered;

use super::{Context, Fault, image::Chosen, plan::Policy};

/// Lowers the policy for this kernel.
pub(crate) fn lowered(
    context: &Context,
    policy: &Policy,
    record: &Record,
    program: &str,
    env: &BTreeMap<String, String>,
) -> Result<Lowered, Fault> {
    let spec = &context.spec;
    let chosen = Chosen::of(context.store.as_deref(), record);
    let ports = proxy_ports(&spec.workload.env, &chosen, env);
    let workdir = record.program.cwd.as_str();
    let shown: Vec<String> = if spec.workload.working_dir.as_deref() == Some(workdir) || chosen.folder(workdir) {
        Vec::new()
    } else {
        mounts(context).into_iter().map(|mount| mount.path).collect()
    };
    let own = [program, workdir];
    let readable: Vec<&str> = match policy {
        Policy::Default => own.into_iter().filter(|path| path.starts_with('/')).collect(),
        _ => Vec::new(),
    };
    let lowering = molt_policy::Context {
        workdir,
        shown: &shown,
        state: &spec.state,
        program: program.starts_with('/').then_some(program),
        readable: &readable,
        proxy_ports: &ports,
        kernel_abi: context.kernel_abi,
        seccomp: spec.workload.seccomp.profile(),
    };
    let lowered = match policy {
        Policy::Unconfined => molt_policy::unconfined(),
        Policy::Written(policy) => molt_policy::lower(policy, &lowering),
        Policy::Default => molt_policy::lower(&molt_policy::default_policy_for(&spec.state), &lowering),
    };
    if lowered.unmet.is_empty() { Ok(lowered) } else { Err(Fault::new(Code::PolicyUnmet, lowered.unmet.join("; "))) }
}

/// Ports of the egress proxy, from the variables programs take it from, as the operator gave them: in the spec of now, in the
/// one that the generation was staged with, or to the container itself. An image's own open no port.
fn proxy_ports(given: &[EnvVar], chosen: &Chosen, env: &BTreeMap<String, String>) -> Vec<u16> {
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let values = names.into_iter().filter_map(|name| Some((name, env.get(name)?)));
    let said = |name: &str, value: &str| given.iter().any(|var| var.name == name && var.value == *value);
    let ours = values.filter(|(name, value)| said(name, value) || chosen.variable(name, value));
    ours.filter_map(|(_, value)| value.trim_end_matches('/').rsplit(':').next()?.parse().ok()).collect()
}

/// What becomes of each section of the policy here, for `molt status`.
pub(crate) fn sections(context: &Context, policy: &Policy) -> Vec<Section> {
    let lines = match policy {
        Policy::Unconfined => return Vec::new(),
        Policy::Written(policy) => molt_policy::explain(policy, context.kernel_abi),
        Policy::Default => {
            molt_policy::explain(&molt_policy::default_policy_for(&context.spec.state), context.kernel_abi)
        }
    };
    lines
        .into_iter()
        .map(|line| Section { section: line.section, verdict: line.verdict.to_string(), text: line.text })
        .collect()
}

/// The mounts of the container that a generation sees.
pub(crate) fn mounts(context: &Context) -> Vec<Shown> {
    let state = context.parts.state.iter().map(|state| (&state.path, MountMode::ReadWrite));
    let carried = context.parts.carried.iter().map(|carried| (&carried.path, carried.mode()));
    carried.chain(state).map(|(path, mode)| Shown { path: path.clone(), mode }).collect()
}

/// What confined a generation when it was armed last; where that was not kept, what its policy says.
pub(crate) fn recorded(context: &Context, record: &Record) -> Option<InForce> {
    let store = context.store.as_ref()?;
    store.confinement(record.generation).or_else(|| {
        let policy = Policy::read(&store.policy(record.generation).ok()?).ok()?;
        let program = record.program.argv.first().map_or("", String::as_str);
        let lowered = lowered(context, &policy, record, program, &record.program.env).ok()?;
        let mut assumed = molt_policy::assumed(&lowered.confinement);
        assumed.mounts = mounts(context);
        Some(assumed)
    })
}

/// Refuses a report that is weaker than what was asked for.
pub(crate) fn as_asked(
    asked: &Confinement,
    report: &Report,
    identity: &Identity,
    kernel_abi: u32,
) -> Result<(), Fault> {
    let mut weak = Vec::new();
    // `best_effort` is about what the kernel has, not about what a shim could get of it.
    if report.landlock_abi < kernel_abi {
        weak.push(format!("it found Landlock ABI {} where there is {kernel_abi}", report.landlock_abi));
    }
    if let Some(landlock) = &asked.landlock
        && report.handled_fs == 0
        && landlock.min_abi > 0
    {
        weak.push("no Landlock domain".to_owned());
    }
    if !asked.seccomp.is_empty()
        && (report.seccomp_mode != 2 || (report.seccomp_filters as usize) < asked.seccomp.len())
    {
        weak.push("no seccomp filter".to_owned());
    }
    if !report.no_new_privs {
        weak.push("no_new_privs is off".to_owned());
    }
    if report.capabilities != 0 {
        weak.push(format!("capabilities {:#x} are left", report.capabilities));
    }
    if (report.uid, report.gid) != (identity.uid, identity.gid) {
        weak.push(format!("it runs as {}:{}", report.uid, report.gid));
    }
    if weak.is_empty() {
        return Ok(());
    }
    let message = format!("the new generation is not confined: {}", weak.join(", "));
    Err(Fault::new(Code::ConfinementFailed, message))
}

/// Refuses what is wider than `before`; says what else is different.
pub(crate) fn not_wider(before: &InForce, now: &InForce) -> Result<Vec<String>, Fault> {
    let wider = molt_policy::compare(before, now);
    if wider.is_empty() {
        return Ok(molt_policy::changes(before, now));
    }
    let list: Vec<String> = wider.iter().map(|wider| format!("  {wider}")).collect();
    let message = format!("the policy is wider than the one in force (--allow-wider takes it):\n{}", list.join("\n"));
    Err(Fault::new(Code::PolicyWider, message))
}

/// Paths that lead where the policy does not say, in words; for a start with nothing to be compared with.
pub(crate) fn astray(now: &InForce) -> Vec<String> {
    let words = |wider| format!("the image leads a path of the policy astray: {wider}");
    molt_policy::astray(now).into_iter().map(words).collect()
}

/// Everything that bounds a run.
pub(crate) fn in_force(context: &Context, asked: &Confinement, report: Report, limits: &Limits) -> InForce {
    InForce::new(asked, report, limits.clone(), mounts(context))
}

/// What an update would be refused for, as far as it can be known before the new root is there: paths lead where they led
/// when the image ran last (`ran`), else to themselves; the user is the old one unless the policy names another.
pub(crate) fn foreseen(
    context: &Context,
    before: &InForce,
    record: &Record,
    policy: &str,
    ran: Option<&InForce>,
) -> Result<Vec<String>, Fault> {
    let policy = Policy::read(policy)?;
    let program = record.program.argv.first().map_or("", String::as_str);
    let lowered = lowered(context, &policy, record, program, &record.program.env)?;
    let mut now = molt_policy::assumed(&lowered.confinement);
    let report = &mut now.report;
    (report.uid, report.gid) = (before.report.uid, before.report.gid);
    report.groups.clone_from(&before.report.groups);
    let run_as = match &policy {
        Policy::Written(policy) => policy.run_as(),
        Policy::Default | Policy::Unconfined => molt_policy::RunAs::default(),
    };
    if let Some(Principal::Id(gid)) = run_as.group {
        report.gid = gid;
    }
    for rule in &mut report.rules {
        let led = ran.and_then(|ran| ran.report.rules.iter().find(|other| other.path == rule.path));
        if let Some(led) = led {
            rule.resolved.clone_from(&led.resolved);
        }
    }
    now.mounts = mounts(context);
    let workload = &context.spec.workload.limits;
    now.limits = Limits { nofile: workload.nofile, nproc: workload.nproc, core: 0 };
    Ok(molt_policy::compare(before, &now).iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proxy_that_the_operator_named_opens_its_port() {
        let var = |name: &str, value: &str| EnvVar { name: name.to_owned(), value: value.to_owned() };
        let env: BTreeMap<String, String> = [
            ("HTTP_PROXY", "http://egress:3128/"),
            ("https_proxy", "http://egress:3129"),
            ("ALL_PROXY", "socks5://10.0.0.1:22"),
            ("PORT", "http://x:8080"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let of_image = |env: &[&str]| {
            let env = env.iter().map(|&pair| pair.to_owned()).collect();
            Chosen::NotBy(Box::new(molt_oci::ImageConfig { env, ..molt_oci::ImageConfig::default() }))
        };
        let own = of_image(&[
            "HTTP_PROXY=http://egress:3128/",
            "https_proxy=http://egress:3129",
            "ALL_PROXY=socks5://10.0.0.1:22",
        ]);
        assert_eq!(proxy_ports(&[], &own, &env), [0u16; 0], "the image's own");
        assert_eq!(proxy_ports(&[], &Chosen::Unknown, &env), [0u16; 0], "nobody knows whose");
        // The spec was another one when the generation was staged: what it has is not the image's own.
        let older = of_image(&["HTTP_PROXY=http://other:1/", "ALL_PROXY=socks5://10.0.0.1:22"]);
        assert_eq!(proxy_ports(&[], &older, &env), [3128, 3129]);
        assert_eq!(proxy_ports(&[], &Chosen::ByOperator, &env), [3128, 22, 3129], "the container's own");
        let given = [
            var("HTTP_PROXY", "http://egress:3128/"),
            var("https_proxy", "http://egress:3129"),
            var("ALL_PROXY", "socks5://10.0.0.1:1080"),
            var("PORT", "http://x:8080"),
            var("http_proxy", "egress"),
        ];
        assert_eq!(proxy_ports(&given, &own, &env), [3128, 3129]);
    }
}
