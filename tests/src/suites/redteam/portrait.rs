//! What runs beside a workload is confined as the workload is: compared field by field, as each of them finds it.
//!
//! In: a kind of sandbox, and an image whose every process first writes down what it is made of. Out: an error that names
//! the fields. Must not: leave a field out because it differs, but for what the variables of hooks and a process's own
//! numbers are.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::range::{self, Range};
use crate::harness::bed::Bed;
use crate::harness::molt::{PROGRAM, SOON, Setup};
use crate::harness::process::Background;
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// Fields that must be there: a portrait without them could not differ.
const FIELDS: [&str; 20] = [
    "ns.mnt",
    "ns.pid",
    "ns.cgroup",
    "ns.user",
    "status.Uid",
    "status.Groups",
    "status.CapBnd",
    "status.NoNewPrivs",
    "status.Seccomp",
    "status.Seccomp_filters",
    "status.Umask",
    "status.SigIgn",
    "limit.Max open files",
    "file.oom_score_adj",
    "file.cgroup",
    "file.mountinfo",
    "mount./",
    "descriptors",
    "tried.L.unlisted-read",
    "tried.W58.tcp-shut",
];
/// What a hook alone is told.
const OF_HOOKS: [&str; 4] = ["env.MOLT_ATTEMPT", "env.MOLT_FROM", "env.MOLT_PHASE", "env.MOLT_TO"];

fn paints(role: &str) -> Value {
    json!({"command": ["/app/molt-redteam", "--portrait", role]})
}

fn setup(setup: Setup<'_>) -> Setup<'_> {
    let hook = |role: &str| json!({"exec": paints(role)});
    let hooks = ["preStage", "preStop", "postStart", "postConfirm"];
    let hooks: Value = hooks.iter().map(|name| ((*name).to_owned(), hook(name))).collect();
    let probe = |role: &str| json!({"exec": paints(role), "period": "200ms", "timeout": "10s", "failureThreshold": 1});
    setup
        .with("/workload/command", json!(["/app/molt-redteam", "--portrait", "workload", "/app/molt-testd"]))
        .with("/hooks", hooks)
        .with("/health/startup", probe("startup"))
        .with("/health/liveness", probe("liveness"))
        .with("/health/startupDeadline", json!("20s"))
}

/// Reads one, as soon as it is there.
fn portrait(range: &Range, role: &str, version: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let name = format!("portrait-{role}-{version}");
    let text = wait::until_ok(&name, SOON, || range.molt.state_file(&name).context("not there"))?;
    let line = |line: &str| {
        let (name, value) = line.split_once(" \"").context("a field")?;
        Ok((name.to_owned(), value.to_owned()))
    };
    text.lines().map(line).collect::<anyhow::Result<_>>().with_context(|| name.clone())
}

fn same(range: &Range, version: &str, roles: &[&str]) -> anyhow::Result<()> {
    let workload = portrait(range, "workload", version)?;
    for field in FIELDS {
        ensure!(workload.contains_key(field), "no {field} in {workload:#?}");
    }
    let mut differences = Vec::new();
    for role in roles {
        let mut found = portrait(range, role, version)?;
        if ["pre", "post"].iter().any(|start| role.starts_with(start)) {
            for name in OF_HOOKS {
                ensure!(found.remove(name).is_some(), "{role} is not told {name}");
            }
        }
        for name in workload.keys().chain(found.keys().filter(|name| !workload.contains_key(*name))) {
            let (theirs, its) = (workload.get(name), found.get(name));
            if theirs != its {
                differences.push(format!("{role} of {version}: {name}\n  workload: {theirs:?}\n  {role}: {its:?}"));
            }
        }
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// Each may signal the other: neither's Landlock domain lies in the other's, so there is one.
fn one_domain(range: &Range) -> anyhow::Result<()> {
    let molt = &range.molt;
    let workload = molt.get("/")?["pid"].to_string();
    let script = format!("kill -0 {workload} && echo $$ > /sandbox/state/beside && exec sleep 1000");
    let mut command = molt.sandbox.exec_command(&[PROGRAM, "exec", "--", "sh", "-c", &script])?;
    // It ends with the sandbox, which it would complain of.
    let _beside = Background::spawn(command.stderr(Stdio::null()))?;
    let pid = wait::until_ok("the process beside", SOON, || {
        let text = molt.state_file("beside").context("it has not signalled the workload")?;
        Ok(text.trim().parse::<u32>()?)
    })?;
    let answer = molt.get(&format!("/try?signal={pid}"))?;
    ensure!(answer["errno"] == 0, "the workload may not signal {pid}: {answer}");
    Ok(())
}

/// Workload, startup and liveness probe, every hook and `molt exec`, before and after an update.
pub(super) fn one(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let range = Range::open_with(bed, kind, "ports", |plain| Ok(setup(plain)))?;
    let exec = ["exec", "--", "/app/molt-redteam", "--portrait", "exec"];
    range.molt.expect(0, &exec)?;
    same(&range, "v1", &["startup", "liveness", "exec"])?;
    range.molt.expect(0, &["update", &range::image(bed, "v2")?])?;
    range.molt.expect(0, &exec)?;
    same(&range, "v1", &["preStage", "preStop"])?;
    same(&range, "v2", &["startup", "liveness", "exec", "postStart", "postConfirm"])?;
    one_domain(&range)?;
    range.molt.sound()
}

/// PID 1 holds nothing of a generation that has ended, however much ran beside its workload.
pub(super) fn let_go(bed: &Bed) -> anyhow::Result<()> {
    let range = Range::open_with(bed, Kind::Light, "ports", |plain| Ok(setup(plain)))?;
    let images = [range::image(bed, "v2")?, range::image(bed, "v1")?];
    // Two are kept whatever runs: the one that is confirmed, and the one before it.
    range.molt.expect(0, &["update", &images[0]])?;
    range.molt.settled()?;
    // A probe that is being asked holds some: the least of many looks is what stays.
    let looks: anyhow::Result<Vec<usize>> = (0..20).map(|_| range.descriptors_of_pid_1()).collect();
    let before = looks?.into_iter().min().context("a look")?;
    for round in 0..4 {
        range.molt.expect(0, &["update", &images[(round + 1) % 2]])?;
    }
    wait::until_ok("PID 1 to hold no more than before", SOON, || {
        let now = range.descriptors_of_pid_1()?;
        let open = fs::read_dir(format!("/proc/{}/fd", range.molt.sandbox.pid1()?))?;
        let what: Vec<_> = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect();
        ensure!(now <= before, "{now} descriptors, {before} before: {what:?}");
        Ok(())
    })?;
    range.molt.sound()
}
