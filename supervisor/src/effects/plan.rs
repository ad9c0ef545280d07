//! `Planning`: what would run, under which policy, and everything that is refused before a byte of a layer moves.
//!
//! In: a resolved image, the request, what runs now. Out: a draft of the generation, or a refusal. Must not: change
//! anything.

use std::collections::BTreeMap;

use molt_core::{
    code::Code,
    generation::{LayerName, Program, Record, VERSION},
    ids::{Digest, Generation, ImageRef},
    journal::Slot,
    order::cut,
    spec::{self, Spec, Violations},
    wire::PlanView,
};
use molt_oci::{ImageConfig, Resolved};
use sha2::{Digest as _, Sha256};

use super::{Context, Fault};

/// A policy, checked.
#[derive(Debug, Clone)]
pub(crate) enum Policy {
    /// The shipped one and the state paths.
    Default,
    /// None: spelled out.
    Unconfined,
    /// As written.
    Written(Box<molt_policy::Policy>),
}

impl Policy {
    /// Refuses a text that somebody gave and that has nothing in it: a file that was cut short must not mean the default.
    pub(crate) fn given(text: Option<&str>) -> Result<(), Fault> {
        match text {
            Some(text) if text.trim().is_empty() => {
                let why = "the policy is empty: write it out, or leave it out to keep the one in force";
                Err(Fault::new(Code::Invalid, why))
            }
            _ => Ok(()),
        }
    }

    /// Checks a text: empty is the default, for who gave none. All violations come at once.
    pub(crate) fn parse(text: &str) -> Result<Self, Violations> {
        match text.trim() {
            "" => Ok(Self::Default),
            "unconfined" => Ok(Self::Unconfined),
            _ => molt_policy::parse(text.as_bytes()).map(|policy| Self::Written(Box::new(policy))),
        }
    }

    /// The same, in words for whoever asked.
    pub(crate) fn read(text: &str) -> Result<Self, Fault> {
        Self::parse(text)
            .map_err(|violations| Fault::new(Code::Invalid, format!("the policy is not valid:\n{violations}")))
    }

    /// Names it.
    pub(crate) fn digest(&self, spec: &Spec) -> Digest {
        match self {
            Self::Default => molt_policy::default_policy_for(&spec.state).digest(),
            Self::Unconfined => sha256(b"unconfined"),
            Self::Written(policy) => policy.digest(),
        }
    }
}

/// SHA-256 of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// What an attempt has found out so far.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    /// The generation, without its number and layers.
    pub(crate) record: Record,
    /// Its policy, as text.
    pub(crate) policy: String,
    /// Things worth knowing.
    pub(crate) warnings: Vec<String>,
}

/// Image config and spec, merged: the spec wins, for every generation.
pub(crate) fn program(spec: &Spec, image: &ImageConfig) -> Program {
    let workload = &spec.workload;
    let (mut argv, rest) = if workload.command.is_empty() {
        let rest = if workload.args.is_empty() { &image.cmd } else { &workload.args };
        (image.entrypoint.clone(), rest)
    } else {
        (workload.command.clone(), &workload.args)
    };
    argv.extend(rest.iter().cloned());
    let mut env: BTreeMap<String, String> = image
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    env.extend(workload.env.iter().map(|var| (var.name.clone(), var.value.clone())));
    let cwd = workload.working_dir.clone().unwrap_or_else(|| image.working_dir.clone());
    let signal = workload.stop_signal.or_else(|| image.stop_signal.as_deref().and_then(|text| text.parse().ok()));
    Program {
        argv,
        env,
        cwd: if cwd.is_empty() { "/".to_owned() } else { cwd },
        user: workload.user.as_ref().map_or_else(|| image.user.clone(), ToString::to_string),
        stop_signal: signal.unwrap_or(spec::Signal::TERM).number(),
    }
}

/// Digest of everything but image and policy that decides how the program is started.
pub(crate) fn settings_digest(spec: &Spec, program: &Program) -> Digest {
    let workload = &spec.workload;
    let settings = serde_json::json!({
        "program": program,
        "state": spec.state,
        "mounts": spec.mounts,
        "groups": workload.supplemental_groups,
        "allowRoot": workload.allow_root,
        "tty": workload.tty,
        "oomScoreAdj": workload.oom_score_adj,
        "limits": workload.limits,
        "seccomp": workload.seccomp,
    });
    sha256(settings.to_string().as_bytes())
}

/// Makes the draft of a generation from an image.
pub(crate) fn draft(context: &Context, image: &ImageRef, resolved: &Resolved, policy: &str) -> Result<Draft, Fault> {
    let spec = &context.spec;
    let checked = Policy::read(policy)?;
    let program = program(spec, &resolved.image);
    if program.argv.is_empty() {
        let message = "the image has neither Entrypoint nor Cmd, and the spec gives no workload.command";
        return Err(Fault::new(Code::ProgramUnusable, message));
    }
    let record = Record {
        version: VERSION,
        generation: Generation(0),
        image: Some(image.clone()),
        digest: Some(resolved.manifest_digest),
        layers: Vec::<LayerName>::new(),
        policy_digest: checked.digest(spec),
        settings_digest: settings_digest(spec, &program),
        program,
        since: crate::observe::log::now(),
    };
    let mut warnings = warnings(spec, &resolved.image, &record.program);
    if let Policy::Written(policy) = &checked {
        let files = policy.filesystem_policy.as_ref();
        for state in &spec.state {
            let named =
                files.is_none_or(|files| files.read_write.iter().any(|path| crate::rootfs::table::within(state, path)));
            if !named {
                warnings.push(format!(
                    "the policy does not let the workload write to its state, {state}: add it to read_write"
                ));
            }
        }
    }
    Ok(Draft { record, policy: policy.to_owned(), warnings })
}

/// Refuses an image that failed before with the same policy.
pub(crate) fn refuse_bad(slot: &Slot, record: &Record, force: bool) -> Result<(), Fault> {
    let Some(digest) = record.digest else { return Ok(()) };
    match slot.bad(digest, record.policy_digest) {
        Some(bad) if !force => Err(Fault::new(
            Code::KnownBad,
            format!(
                "{digest} failed before ({}, update {}); `molt show {} --evidence` says how, `molt bad remove {digest}` \
                 forgets it, --force tries it again",
                bad.reason, bad.update, bad.update
            ),
        )),
        _ => Ok(()),
    }
}

/// An image that ran below the rollback floor, and nowhere else, is not let in again by its name.
pub(crate) fn refuse_below(slot: &Slot, known: &BTreeMap<Generation, Record>, record: &Record) -> Result<(), Fault> {
    let floor = slot.floor();
    let Some(old) = molt_core::order::only_below(known, floor, record.digest) else { return Ok(()) };
    let message = format!(
        "this image ran as generation {old}, which is below the rollback floor {floor}; only an order of a key marked \
         downgrade goes there"
    );
    Err(Fault::new(Code::BelowFloor, message))
}

fn warnings(spec: &Spec, image: &ImageConfig, program: &Program) -> Vec<String> {
    let mut warnings = Vec::new();
    let own: Vec<&String> = image.entrypoint.iter().chain(&image.cmd).collect();
    let shadowed = !own.is_empty() && !own.iter().copied().eq(&program.argv);
    if shadowed && !(spec.workload.command.is_empty() && spec.workload.args.is_empty()) {
        let own: Vec<&str> = own.iter().map(|word| word.as_str()).collect();
        warnings.push(format!("the spec's command is run, not the image's own: {}", cut(&own.join(" "))));
    }
    let base = |text: &str| text.rsplit('/').next().unwrap_or(text).to_owned();
    let names: Vec<String> = program.argv.iter().map(|word| base(word)).collect();
    let first = names.first().map_or("", String::as_str);
    let whole = program.argv.first().map_or("", String::as_str);
    let shown = cut(whole);
    if whole == "/init" || first == "s6-svscan" || first.starts_with("s6-overlay") {
        warnings
            .push(format!("{shown} looks like s6-overlay, which wants to be PID 1 and root; run its program directly"));
    }
    if first == "systemd" || whole == "/sbin/init" || whole == "/usr/sbin/init" {
        warnings.push(format!(
            "{shown} looks like systemd, which wants to be PID 1, root, and cgroups; run one service directly"
        ));
    }
    if names.iter().any(|name| matches!(name.as_str(), "gosu" | "su-exec" | "setpriv" | "runuser" | "sudo")) {
        warnings.push(
            "the command changes its user with gosu or the like, which needs capabilities no workload has here; set workload.user instead".to_owned(),
        );
    }
    if spec.workload.allow_root {
        warnings.push(
            "allowRoot: user 0 may run, without a capability; entrypoints that chown or switch user (gosu) will fail"
                .to_owned(),
        );
    }
    warnings
}

/// The plan, as shown.
pub(crate) fn view(context: &Context, resolved: &Resolved, draft: &Draft, noop: bool) -> Result<PlanView, Fault> {
    let Some(store) = context.store.as_ref() else {
        return Err(Fault::new(Code::StoreUnusable, "there is no usable store; see condition Durable"));
    };
    // What runs already needs nothing.
    let need =
        if noop { molt_oci::need(resolved, &store.content) } else { context.client.room(resolved, &store.content)? };
    let space = store.content.space()?;
    let image = draft.record.image.clone().unwrap_or_else(|| resolved.reference.clone());
    Ok(PlanView {
        image,
        digest: resolved.manifest_digest,
        policy_digest: draft.record.policy_digest,
        noop,
        layers: resolved.layers.len(),
        layers_to_fetch: need.layers_to_fetch,
        bytes_to_fetch: need.bytes_to_fetch,
        bytes_on_disk: need.bytes_on_disk_estimate,
        bytes_free: space.bytes_free,
        command: draft.record.program.argv.clone(),
        wider: Vec::new(),
        policy_difference: Vec::new(),
        expected_downtime: None,
        warnings: draft.warnings.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_with_nothing_in_it_is_not_the_default_one() {
        for empty in ["", " ", "\n\t\n"] {
            let fault = Policy::given(Some(empty)).unwrap_err();
            assert_eq!(fault.code, Code::Invalid);
            assert!(fault.message.starts_with("the policy is empty"), "{}", fault.message);
        }
        assert!(Policy::given(None).is_ok() && Policy::given(Some("version: 1")).is_ok());
        // What is in the store under no policy is the default.
        assert!(matches!(Policy::read(""), Ok(Policy::Default)));
    }
}
