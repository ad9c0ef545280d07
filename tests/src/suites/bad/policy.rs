//! Policies that are wrong, too wide, or impossible in the new image; and requests that make no sense.

use std::fs;

use anyhow::ensure;
use serde_json::json;

use super::{fails, says, setup, tidy};
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{Molt, SOON};

/// The tests of this suite.
pub(in crate::suites) const CASES: &[Case] = &[
    case("bad::policy::every_violation_is_said_at_once", every_violation),
    case("bad::policy::in_the_spec_nothing_starts", in_the_spec),
    case("bad::policy::a_path_the_new_image_does_not_have_under_hard_requirement", hard_requirement),
    case("bad::policy::a_wider_one_is_refused_until_it_is_allowed", wider),
    case("bad::policy::requests_that_make_no_sense", senseless),
];

const WRONG: &str = "\
version: 2
filesystem_policy:
  read_only: [etc, /usr/../etc]
  read_write: [/]
process:
  run_as_user: root
";
const WRONGS: [&str; 5] = [
    "1:10: version: is 2, this version of Molt reads 1",
    "3:15: filesystem_policy.read_only[0]: must be an absolute path",
    "3:20: filesystem_policy.read_only[1]: must not hold '..'",
    "4:16: filesystem_policy.read_write[0]: '/' is too much to write to",
    "6:16: process.run_as_user: 'root' is neither sandbox nor a number from 1",
];

fn write(molt: &Molt, name: &str, text: &str) -> anyhow::Result<String> {
    fs::write(molt.config.join(name), text)?;
    Ok(format!("/etc/molt/{name}"))
}

fn every_violation(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.small("v2")?;
    let file = write(&molt, "wrong.yaml", WRONG)?;
    let generations = molt.stored("generations")?;
    fails(&molt, 6, &["update", &image, "--policy", &file], &WRONGS)?;
    ensure!(molt.stored("generations")? == generations && molt.stored("layers/sha256")?.len() == 3);
    tidy(&molt)?;
    let output = molt.expect(6, &["update", &image, "--policy", &file, "--dry-run"])?;
    says(&output.stderr, &WRONGS)?;
    let unknown = write(&molt, "unknown.yaml", "version: 1\nfilesytem_policy: {}\nlandlock: {compatibility: hard}\n")?;
    fails(&molt, 6, &["update", &image, "--policy", &unknown], &["filesytem_policy", "landlock.compatibility"])?;
    Ok(())
}

fn in_the_spec(bed: &Bed) -> anyhow::Result<()> {
    let policy = json!({"version": 2, "filesystem_policy": {"read_only": ["etc"]}});
    let mut molt = setup(bed)?.with("/policy", policy).launch()?;
    ensure!(molt.sandbox.wait(SOON)? == 122, "{}", molt.sandbox.logs());
    let log = molt.sandbox.logs();
    says(&log, &["version: is 2", "filesystem_policy.read_only[0]: must be an absolute path"])?;
    ensure!(fs::read_dir(&molt.store)?.next().is_none(), "the store was touched");
    Ok(())
}

/// A policy like the default, but strict, and with one path more.
fn strict(path: &str) -> String {
    format!(
        "version: 1\nfilesystem_policy:\n  read_only: [/bin, /app, /etc{path}]\n  read_write: [/sandbox/state, /tmp]\n\
         landlock: {{compatibility: hard_requirement}}\n"
    )
}

fn hard_requirement(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.small("v2")?;
    let absent = write(&molt, "absent.yaml", &strict(", /opt/acme/data"))?;
    let parts = ["the policy names /opt/acme/data, which the new root does not have", "hard_requirement"];
    fails(&molt, 1, &["update", &image, "--policy", &absent], &parts)?;
    // The policy is to blame, not the image.
    ensure!(molt.status()?["bad"] == json!([]), "{}", molt.status()?["bad"]);
    let present = write(&molt, "present.yaml", &strict(""))?;
    molt.expect(0, &["update", &image, "--policy", &present])?;
    molt.serves("v2", 2)?;
    molt.sound()
}

fn wider(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    let image = bed.small("v2")?;
    let text =
        "version: 1\nfilesystem_policy:\n  read_only: [/bin, /app]\n  read_write: [/sandbox/state, /etc, /tmp]\n";
    let file = write(&molt, "wider.yaml", text)?;
    let parts = ["the policy is wider than the one in force", "/etc", "molt update --allow-wider"];
    fails(&molt, 6, &["update", &image, "--policy", &file], &parts)?;
    ensure!(molt.status()?["bad"] == json!([]), "{}", molt.status()?["bad"]);
    molt.expect(0, &["update", &image, "--policy", &file, "--allow-wider"])?;
    molt.serves("v2", 2)
}

fn senseless(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed)?.start()?;
    for reference in ["", "UPPER/case:1", "host/name@sha256:12", "daemon:1.5", "oci:"] {
        fails(&molt, 2, &["update", reference], &["molt: "])?;
    }
    fails(
        &molt,
        2,
        &["update", &bed.small("v2")?, "--policy", "/etc/molt/none.yaml"],
        &["failed to read /etc/molt/none.yaml"],
    )?;
    fails(&molt, 2, &["update"], &["molt"])?;
    let output = molt.expect(1, &["--socket", "/run/none.sock", "status"])?;
    says(&output.stderr, &["no supervisor: there is no socket /run/none.sock", "--socket PATH or MOLT_SOCKET"])
}
