//! The manifests of `deploy/kubernetes`, held against Kubernetes' own schemas (kubernetes-validate, which carries them).

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::{process, python};

/// The tests of this file.
pub(in crate::suites) const CASES: &[Case] =
    &[case("operator::the_manifests_are_what_kubernetes_takes", manifests).alone()];

/// The oldest Kubernetes that the README names for them.
const KUBERNETES: &str = "1.33";

fn manifests(bed: &Bed) -> anyhow::Result<()> {
    let program = python::program(bed, "kubernetes-validate", "1.37.0", "kubernetes-validate")?;
    let check = |file: &Path| {
        let mut command = Command::new(&program);
        command.args(["--kubernetes-version", KUBERNETES, "--strict"]).arg(file);
        process::output(&mut command, Duration::from_mins(1))
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the project's folder")?;
    let daemon = root.join("deploy/kubernetes/daemon.yaml");
    check(&daemon)?.ok()?;
    // A field that is not one is found.
    let text = fs::read_to_string(&daemon)?;
    let spoilt = bed.scratch("manifests")?.join("daemon.yaml");
    fs::write(&spoilt, text.replacen("hostUsers: false", "hostUser: false", 1))?;
    ensure!(check(&spoilt)?.code != 0, "a misspelt field was taken");
    Ok(())
}
