//! The policies that come with Molt.
//!
//! In: the YAML files beside this crate's manifest. Out: their text, and the one used where no policy is given. Must
//! not: hold a policy that is not also a file people can read.

use crate::{
    parse,
    schema::{Filesystem, Policy},
};

/// Name and text of each.
pub const BUILTINS: &[(&str, &str)] = &[
    ("restrictive", include_str!("../restrictive.yaml")),
    ("stateful-daemon", include_str!("../stateful-daemon.yaml")),
    ("node", include_str!("../node.yaml")),
    ("python", include_str!("../python.yaml")),
];

/// Text of the built-in policy with this name.
pub fn builtin(name: &str) -> Option<&'static str> {
    BUILTINS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// `restrictive`, as it is written.
pub fn default_policy() -> Policy {
    // A test parses it. Were it broken all the same, nothing could be read or written: the safe side.
    parse(builtin("restrictive").unwrap_or_default().as_bytes()).unwrap_or_else(|_| Policy {
        version: 1,
        filesystem_policy: Some(Filesystem::default()),
        landlock: None,
        process: None,
        network_policies: std::collections::BTreeMap::new(),
        network_middlewares: std::collections::BTreeMap::new(),
    })
}

/// What runs where no policy is given: `restrictive`, and `state` to write to. The program and the working directory of
/// an image are made readable when it is lowered ([`crate::Context::readable`]).
pub fn default_policy_for(state: &[String]) -> Policy {
    default_policy().with_writable(state)
}

#[cfg(test)]
mod tests {
    use molt_core::launch::SeccompProfile;

    use super::*;
    use crate::{Context, lower};

    #[test]
    fn every_policy_that_is_shipped_is_good() {
        for (name, text) in BUILTINS {
            let policy = parse(text.as_bytes()).unwrap_or_else(|faults| panic!("{name}.yaml: {faults}"));
            let state = ["/sandbox/state".to_owned()];
            let program = Some("/usr/local/bin/program");
            let context = Context {
                workdir: "/app",
                shown: &[],
                state: &state,
                program,
                readable: &[],
                proxy_ports: &[],
                kernel_abi: 7,
                seccomp: SeccompProfile::Floor,
            };
            let lowered = lower(&policy.with_writable(&state), &context);
            assert_eq!((lowered.notes, lowered.unmet), (vec![], vec![]), "{name}");
        }
        assert!(builtin("open").is_none());
    }

    #[test]
    fn the_default_lets_nothing_of_the_image_be_changed() {
        let files = default_policy().filesystem_policy.unwrap();
        assert_eq!(files.read_write, ["/tmp", "/var/tmp", "/run"]);
        assert!(!files.include_workdir);
    }

    #[test]
    fn the_default_fits_images_that_keep_the_program_elsewhere() {
        let policy = default_policy_for(&["/data".to_owned()]);
        assert_eq!(policy.filesystem_policy.as_ref().unwrap().read_write.last().unwrap(), "/data");
        let readable = ["/server", "/", "/usr/bin/x", "/data/bin"];
        let program = Some("/server");
        let context = Context {
            workdir: "/",
            shown: &[],
            state: &[],
            program,
            readable: &readable,
            proxy_ports: &[],
            kernel_abi: 7,
            seccomp: SeccompProfile::Floor,
        };
        let lowered = lower(&policy, &context);
        assert_eq!(lowered.notes, Vec::<String>::new());
        let rules = lowered.confinement.landlock.unwrap().paths;
        let added: Vec<&str> = rules.iter().map(|rule| rule.path.as_str()).filter(|p| readable.contains(p)).collect();
        assert_eq!(added, ["/server"]);
    }
}
