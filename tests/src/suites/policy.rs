//! What a policy says is what is in force: compared with what ran before, by where paths lead, and said when it is less.
//!
//! In: images that keep their files elsewhere or lie with links, policies, kernels that can do less. Out: refusals,
//! conditions, warnings. Must not: take the supervisor's word where the confined workload can be asked.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::harness::{
    bed::Bed,
    cases::{Case, case},
    image::{Format, Layer, Packing},
    images,
    molt::{Molt, PROGRAM, SOON, SPEC, Setup},
    runtime::Kind,
    wait,
};

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("policy::an_image_cannot_widen_it_by_links", widened_by_links),
    case("policy::an_image_may_move_what_it_alone_owns", moved_honestly),
    case("policy::what_an_image_says_of_its_own_policy_is_nobody_s", own_policy),
    case("policy::a_workload_leads_no_path_of_its_policy_elsewhere", led_by_the_workload),
    case("policy::a_rollback_to_a_wider_one_is_no_widening", rollback_is_not_wider),
    case("policy::a_wider_one_is_refused_after_a_restart_too", wider_after_restart),
    case("policy::without_landlock_it_is_said_everywhere", degraded_is_said),
    case("policy::a_kernel_with_less_is_refused_unless_best_effort", too_old),
    case("policy::shapes_that_people_write_hold", shapes_hold),
    case("policy::strict_runs_busybox_and_a_daemon", strict),
    case("policy::strict_runs_redis_on_debian", strict_redis),
    case("policy::a_spec_that_loosens_what_ran_is_said", loosened_spec),
    case("policy::diff_says_what_update_would_say", diff),
    case("policy::groups_are_those_of_the_pod_without_0_or_what_the_spec_says", groups),
];

const POLICY: &str = "version: 1\nfilesystem_policy:\n  read_only: [/bin, /usr, /app, /etc, /lib]\n  \
                      read_write: [/sandbox/state, /tmp, /srv/data]\n";

fn setup<'a>(bed: &'a Bed, image: &str) -> anyhow::Result<Setup<'a>> {
    Setup::new(bed, Kind::Light, image)
}

fn written(molt: &Molt, name: &str, text: &str) -> anyhow::Result<String> {
    fs::write(molt.config.join(name), text)?;
    Ok(format!("/etc/molt/{name}"))
}

/// Molt under a policy of the spec.
fn under<'a>(bed: &'a Bed, image: &str, policy: &str) -> anyhow::Result<Setup<'a>> {
    let setup = setup(bed, image)?.with("/policyFile", json!("policy.yaml"));
    fs::write(setup.config.join("policy.yaml"), policy)?;
    Ok(setup)
}

/// `small` with one more layer: links `(path, target)` in place of what was there.
fn linked(bed: &Bed, name: &str, links: &[(&str, &str)]) -> anyhow::Result<String> {
    bed.image(&format!("policy/{name}:1"), || {
        let recipe = images::small_as("v2", &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)?;
        let mut layer = Layer::new().dir("srv", 0o755).dir("srv/kept", 0o777).dir("usr/lib", 0o755);
        for (path, target) in links {
            layer = layer.symlink(path, target);
        }
        Ok(recipe.layer(layer.pack(Packing::Gzip)).build())
    })
}

/// The errno of an attempt inside the workload; 0 where it was allowed.
fn errno(molt: &Molt, query: &str) -> anyhow::Result<i64> {
    molt.get(&format!("/try?{query}"))?["errno"].as_i64().context("an errno")
}

fn widened_by_links(bed: &Bed) -> anyhow::Result<()> {
    let molt = under(bed, &bed.small("v1")?, POLICY)?.start()?;
    for (name, path, target) in [
        ("all", "lib", "/"),
        ("above-state", "lib", "/sandbox"),
        ("kernel", "lib", "/proc"),
        ("writable-programs", "srv/data", "/usr"),
    ] {
        let image = linked(bed, &format!("astray-{name}"), &[(path, target)])?;
        let output = molt.expect(6, &["update", &image])?;
        let said = format!("/{path} (that is {target}) can be ");
        ensure!(output.stderr.contains(&said) && output.stderr.contains("--allow-wider"), "{name}: {}", output.stderr);
        molt.serves("v1", 1)?;
    }
    let image = linked(bed, "astray-all", &[("lib", "/")])?;
    ensure!(errno(&molt, "list=/root")? == 13, "/root is no path of the policy");
    let output = molt.expect(0, &["update", &image, "--allow-wider"])?;
    ensure!(output.stdout.contains("confirmed"), "{output:?}");
    ensure!(errno(&molt, "list=/var")? == 0, "what was allowed is in force");
    molt.sound()
}

/// `small` with a policy and a spec of its own, in every place and by every label that somebody might look at.
fn opinionated(bed: &Bed, version: &str) -> anyhow::Result<String> {
    bed.image(&format!("policy/opinionated:{version}"), || {
        let recipe = images::small_as(version, &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)?;
        let wide = "version: 1\nfilesystem_policy:\n  read_only: [/]\n  read_write: [/]\n";
        let spec = json!({"apiVersion": "molt.dev/v1alpha1", "kind": "Sandbox", "metadata": {"name": "own"},
            "spec": {"policy": "unconfined", "workload": {"seccomp": "off", "allowRoot": true}}});
        let mut layer = Layer::new().dir("etc", 0o755);
        for folder in ["etc/molt", "etc/openshell"] {
            layer = layer.dir(folder, 0o755).file(&format!("{folder}/policy.yaml"), 0o644, wide.as_bytes());
        }
        layer = layer.file("etc/molt/sandbox.yaml", 0o644, spec.to_string().as_bytes());
        layer = layer.file("policy.yaml", 0o644, b"unconfined\n").file("app/policy.yaml", 0o644, wide.as_bytes());
        let labels = json!({"molt.dev/policy": "unconfined", "dev.molt.policy": wide, "policy": "unconfined",
            "io.openshell.policy": wide, "org.opencontainers.image.policy": "unconfined"});
        Ok(recipe.layer(layer.pack(Packing::Gzip)).set("Labels", labels).build())
    })
}

fn own_policy(bed: &Bed) -> anyhow::Result<()> {
    // All that is said of how the workload is confined.
    let said = |molt: &Molt| -> anyhow::Result<serde_json::Value> {
        let status = molt.status()?;
        Ok(json!([status["confinement"], status["policy"], status["seccomp"], status["degraded"]]))
    };
    let confined = |molt: &Molt, wanted: &serde_json::Value, when: &str| -> anyhow::Result<()> {
        let found = said(molt)?;
        ensure!(found == *wanted, "{when}: {found:#}\nnot {wanted:#}");
        ensure!(errno(molt, "list=/root")? == 13, "{when}: /root is no path of the policy");
        ensure!(errno(molt, "open=/etc/new&write=1&create=1")? == 13, "{when}: /etc can be written");
        ensure!(errno(molt, "open=/app/policy.yaml")? == 0, "{when}: what the image says is not there");
        ensure!(molt.get("/whoami")?["Seccomp"] == "2", "{when}: {}", molt.get("/whoami")?);
        Ok(())
    };
    let molt = setup(bed, &bed.small("v1")?)?.start()?;
    let wanted = said(&molt)?;
    ensure!(wanted[0]["rules"].as_array().is_some_and(|rules| rules.len() > 3), "{wanted:#}");
    let output = molt.expect(0, &["update", &opinionated(bed, "v2")?])?;
    ensure!(!output.stderr.contains("wider"), "{output:?}");
    molt.serves("v2", 2)?;
    confined(&molt, &wanted, "by update")?;
    molt.sound()?;
    let first = setup(bed, &opinionated(bed, "v3")?)?.start()?;
    confined(&first, &wanted, "as the first image")?;
    first.sound()
}

fn led_by_the_workload(bed: &Bed) -> anyhow::Result<()> {
    let policy = POLICY.replace("/srv/data", "/sandbox/state/app");
    let mut molt = under(bed, &bed.small("v1")?, &policy)?.start()?;
    let script = "mkdir /sandbox/state/app && rmdir /sandbox/state/app && ln -s / /sandbox/state/app";
    molt.expect(0, &["exec", "--", "sh", "-c", script])?;
    let held = |molt: &Molt, when: &str| -> anyhow::Result<()> {
        ensure!(errno(molt, "list=/var")? == 13 && errno(molt, "list=/")? == 13, "{when}: the link is followed");
        ensure!(errno(molt, "open=/sandbox/state/more&write=1&create=1")? == 0, "{when}: the state is writable");
        let said =
            "/sandbox/state/app leads over a link at /sandbox/state/app, which the workload may change: left out";
        let degraded = molt.status()?["degraded"].to_string();
        ensure!(degraded.contains(said), "{when}: {degraded}");
        Ok(())
    };
    molt.sandbox.kill()?;
    molt.sandbox.restart()?;
    molt.settled()?;
    held(&molt, "after a restart")?;
    // The same policy is not wider for it, there and back; and it stays said.
    molt.expect(0, &["update", &bed.small("v2")?])?;
    held(&molt, "after an update")?;
    molt.expect(0, &["rollback"])?;
    held(&molt, "after a rollback")?;
    // A folder in its place is below what may be written anyway.
    molt.expect(0, &["exec", "--", "sh", "-c", "rm /sandbox/state/app && mkdir /sandbox/state/app"])?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    ensure!(errno(&molt, "open=/sandbox/state/app/new&write=1&create=1")? == 0);
    let degraded = molt.status()?["degraded"].to_string();
    ensure!(!degraded.contains("leads over a link"), "{degraded}");
    molt.sound()
}

fn moved_honestly(bed: &Bed) -> anyhow::Result<()> {
    let molt = under(bed, &bed.small("v1")?, POLICY)?.start()?;
    let image = linked(bed, "moved", &[("lib", "usr/lib"), ("srv/data", "kept")])?;
    molt.expect(0, &["update", &image])?;
    molt.serves("v2", 2)?;
    ensure!(errno(&molt, "open=/srv/data/new&write=1&create=1")? == 0, "it can be written where it leads");
    let rules = molt.status()?["confinement"]["rules"].take();
    let led = |path: &str| {
        let rules = rules.as_array().into_iter().flatten();
        rules.into_iter().find(|rule| rule["path"] == path).map(|rule| rule["resolved"].clone())
    };
    ensure!(led("/lib") == Some(json!("/usr/lib")) && led("/srv/data") == Some(json!("/srv/kept")), "{rules:#}");
    molt.expect(0, &["rollback"])?;
    molt.serves("v1", 3)?;
    molt.sound()
}

fn rollback_is_not_wider(bed: &Bed) -> anyhow::Result<()> {
    let molt = under(bed, &bed.small("v1")?, POLICY)?.start()?;
    let narrow = written(&molt, "narrow.yaml", &POLICY.replace(", /srv/data", "").replace(", /lib", ""))?;
    molt.expect(0, &["update", &bed.small("v2")?, "--policy", &narrow])?;
    molt.serves("v2", 2)?;
    let wide = written(&molt, "wide.yaml", POLICY)?;
    let refused = molt.expect(6, &["update", &bed.small("v3")?, "--policy", &wide])?;
    ensure!(refused.stderr.contains("wider than the one in force"), "{}", refused.stderr);
    molt.expect(0, &["rollback"])?;
    molt.serves("v1", 3)?;
    let file = fs::read_to_string(molt.store.join("generations/1/policy.yaml"))?;
    ensure!(file == POLICY && molt.status()?["confirmed"]["generation"] == 1, "the old policy is back");
    molt.sound()
}

/// What a new policy is compared with outlives Molt: it is in the store, not in its memory.
fn wider_after_restart(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = under(bed, &bed.small("v1")?, POLICY)?.start()?;
    let narrow = written(&molt, "narrow.yaml", &POLICY.replace(", /srv/data", ""))?;
    molt.expect(0, &["update", &bed.small("v2")?, "--policy", &narrow])?;
    let wide = written(&molt, "wide.yaml", POLICY)?;
    let refused = |molt: &Molt| -> anyhow::Result<()> {
        let image = bed.small("v3")?;
        let output = molt.expect(6, &["update", &image, "--policy", &wide])?;
        ensure!(output.stderr.contains("/srv/data can be changed now"), "{}", output.stderr);
        ensure!(molt.expect(6, &["policy", "diff", &wide])?.stdout.contains("/srv/data can be changed now"));
        ensure!(molt.version()?.0 == "v2", "the one that ran goes on");
        Ok(())
    };
    refused(&molt)?;
    molt.sandbox.kill()?;
    molt.sandbox.restart()?;
    molt.settled()?;
    refused(&molt)?;
    // Nor after one that began wide and came back by itself.
    let bad = molt.expect(3, &["update", &bed.small("exits")?, "--policy", &wide, "--allow-wider"])?;
    ensure!(bad.stderr.contains("rolled back") || bad.stdout.contains("rolled back"), "{bad:?}");
    refused(&molt)?;
    molt.sandbox.kill()?;
    molt.sandbox.restart()?;
    molt.settled()?;
    refused(&molt)?;
    molt.sound()
}

fn degraded_is_said(bed: &Bed) -> anyhow::Result<()> {
    for (abi, said) in [("0", "this kernel has no Landlock"), ("2", "Landlock ABI 2 does not guard truncate")] {
        let policy = format!("{POLICY}landlock: {{compatibility: best_effort}}\n");
        let molt = under(bed, &bed.small("v1")?, &policy)?.env("MOLT_PRETEND_LANDLOCK", abi).start()?;
        ensure!(molt.sandbox.logs().contains(said), "at start: {}", molt.sandbox.logs());
        let check = |when: &str| -> anyhow::Result<()> {
            let status = molt.status()?;
            let listed = status["degraded"].as_array().context("a list")?;
            ensure!(
                listed.iter().any(|line| line.as_str().is_some_and(|line| line.contains(said))),
                "{when}: {status}"
            );
            let conditions = status["conditions"].as_array().context("conditions")?;
            let confined = conditions.iter().find(|one| one["type"] == "Confined").context("Confined")?;
            ensure!(confined["status"] == "False" && confined["reason"] == "PartlyEnforced", "{when}: {confined}");
            let text = molt.expect(0, &["status"])?.stdout;
            ensure!(text.contains("degraded: ") && text.contains(said), "{when}: {text}");
            Ok(())
        };
        check("at start")?;
        let output = molt.expect(0, &["update", &bed.small("v2")?])?;
        ensure!(output.stderr.contains(said), "update: {}", output.stderr);
        check("after the update")?;
        let output = molt.expect(0, &["rollback"])?;
        ensure!(output.stderr.contains(said), "rollback: {}", output.stderr);
        check("after the rollback")?;
        let events = molt.expect(0, &["events", "-o", "json"])?.stdout;
        let told = events.lines().filter(|line| line.contains("warning") && line.contains(said)).count();
        ensure!(told >= 1, "the events say it {told} times: {events}");
        molt.sound()?;
    }
    Ok(())
}

fn too_old(bed: &Bed) -> anyhow::Result<()> {
    let network = "network_policies: {a: {endpoints: [{host: a.example.com, port: 443}]}}\n\
                   landlock: {compatibility: hard_requirement}\n";
    for (abi, policy, said) in [
        ("2", POLICY.to_owned(), "the kernel has Landlock ABI 2, at least 3 (Linux 6.2) is needed"),
        (
            "0",
            POLICY.to_owned(),
            "the kernel has no Landlock; landlock.compatibility: best_effort would run without it",
        ),
        ("3", format!("{POLICY}{network}"), "Landlock ABI 3 has no rules for TCP, 4 (Linux 6.7) is needed"),
    ] {
        let mut molt = under(bed, &bed.small("v1")?, &policy)?.env("MOLT_PRETEND_LANDLOCK", abi).launch()?;
        ensure!(molt.sandbox.wait(SOON)? == 125, "{}", molt.sandbox.logs());
        let log = molt.sandbox.logs();
        ensure!(log.contains(said), "{log}");
    }
    Ok(())
}

/// The shapes of policies people write; `tests/golden/policies`.
const SHAPES: [&str; 6] = [
    include_str!("../../golden/policies/quickstart.yaml"),
    include_str!("../../golden/policies/agent.yaml"),
    include_str!("../../golden/policies/transparent-tcp.yaml"),
    include_str!("../../golden/policies/protocols.yaml"),
    include_str!("../../golden/policies/middleware.yaml"),
    include_str!("../../golden/policies/files-only.yaml"),
];
/// Folders of the image that any user may write to, as far as its owner and mode go.
const OPEN: [&str; 10] = ["usr", "lib", "app", "etc", "var/log", "opt", "srv", "mnt", "root", "sandbox"];

/// `small` with a user `sandbox` and folders in which only the policy stops anyone.
fn open_image(bed: &Bed) -> anyhow::Result<String> {
    bed.image("policy/open:1", || {
        let recipe = images::small_as("v1", &bed.program("molt-testd")?, Packing::Gzip, Format::Oci)?;
        let mut layer = Layer::new().dir("var", 0o755);
        for folder in OPEN {
            layer = layer.dir(folder, 0o777).file(&format!("{folder}/here"), 0o666, b"here\n");
        }
        let passwd = "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/app:/bin/sh\nsandbox:x:1000:1000::/sandbox:/bin/sh\n";
        layer = layer.file("etc/passwd", 0o644, passwd.as_bytes());
        layer = layer.file("etc/group", 0o644, b"root:x:0:\napp:x:1000:\nsandbox:x:1000:\n");
        Ok(recipe.layer(layer.pack(Packing::Gzip)).set("WorkingDir", json!("/sandbox")).build())
    })
}

fn shapes_hold(bed: &Bed) -> anyhow::Result<()> {
    const DENIED: i64 = 13;
    for text in SHAPES {
        let name = text.lines().next().unwrap_or_default();
        let policy = molt_policy::parse(text.as_bytes()).map_err(|faults| anyhow::anyhow!("{name}\n{faults}"))?;
        let files = policy.filesystem_policy.clone().unwrap_or_default();
        let molt = under(bed, &open_image(bed)?, text)?.start()?;
        let is = |query: &str, wanted: i64| -> anyhow::Result<()> {
            let found = errno(&molt, query)?;
            ensure!(found == wanted, "{name}\n{query}: errno {found}, not {wanted}");
            Ok(())
        };
        let folder = |path: &str| OPEN.contains(&path.trim_start_matches('/')) || path == "/tmp";
        for path in &files.read_only {
            if folder(path) {
                is(&format!("list={path}"), 0)?;
                is(&format!("open={path}/here"), 0)?;
                is(&format!("open={path}/here&write=1"), DENIED)?;
                is(&format!("open={path}/new&write=1&create=1"), DENIED)?;
            } else {
                is(&format!("open={path}"), 0)?;
                ensure!(errno(&molt, &format!("open={path}/new&write=1&create=1"))? != 0, "{name}: {path}");
            }
        }
        for path in &files.read_write {
            match path.as_str() {
                "/dev/null" => is("open=/dev/null&write=1", 0)?,
                path => is(&format!("open={path}/new&write=1&create=1"), 0)?,
            }
        }
        for path in OPEN.map(|path| format!("/{path}")) {
            let listed = |list: &[String]| list.contains(&path);
            if !listed(&files.read_only) && !listed(&files.read_write) {
                is(&format!("list={path}"), DENIED)?;
                is(&format!("open={path}/here"), DENIED)?;
                is(&format!("open={path}/new&write=1&create=1"), DENIED)?;
            }
        }
        // Nobody listens: refused by the peer where the policy lets it out, denied where it does not.
        let ports: Vec<u16> = policy
            .network_policies
            .values()
            .flat_map(|rule| &rule.endpoints)
            .flat_map(molt_policy::Endpoint::all_ports)
            .collect();
        for port in &ports {
            is(&format!("connect=127.0.0.1:{port}"), 111)?;
        }
        is("connect=127.0.0.1:4444", if ports.is_empty() { 111 } else { DENIED })?;
        is(&format!("connect={}", molt.address), if ports.is_empty() { 0 } else { DENIED })?;
        if policy.process.is_some() {
            let report = molt.status()?["confinement"].take();
            ensure!(report["uid"] == 1000 && report["gid"] == 1000, "{name}: {report}");
        }
        let status = molt.status()?;
        let sections = status["policy"].as_array().context("sections")?;
        let said = |section: &str, verdict: &str| {
            sections.iter().any(|line| line["section"] == section && line["verdict"] == verdict)
        };
        ensure!(said("filesystem_policy", "enforced"), "{name}: {sections:?}");
        ensure!(ports.is_empty() || said("network_policies", "left to the egress proxy"), "{name}: {sections:?}");
        ensure!(ports.is_empty() || said("network_policies", "enforced in part"), "{name}: {sections:?}");
        let proxied = policy.network_middlewares.is_empty() || said("network_middlewares", "left to the egress proxy");
        ensure!(proxied, "{name}: {sections:?}");
        molt.sound()?;
    }
    Ok(())
}

fn strict(bed: &Bed) -> anyhow::Result<()> {
    let molt = setup(bed, &bed.small("v1")?)?.with("/workload/seccomp", json!("strict")).start()?;
    ensure!(molt.status()?["seccomp"] == "strict" && molt.expect(0, &["status"])?.stdout.contains("strict"));
    let script = "ls /bin && echo a | cat && mkdir /tmp/d && touch /tmp/d/f && mv /tmp/d/f /tmp/d/g && rm -r /tmp/d && \
                  ps && id && sleep 0.1 && (kill -TERM $$ & wait)";
    let output = molt.molt(&["exec", "--", "sh", "-c", script])?;
    ensure!(output.code == 143 && output.stderr.is_empty(), "busybox: {output:?}");
    ensure!(molt.click()? == 1, "threads, sockets and files of the daemon");
    // Not in the list; the floor alone would leave it to the kernel, which says EPERM without the capability.
    let chroot = molt.molt(&["exec", "--", "busybox", "chroot", "/", "true"])?;
    ensure!(chroot.stderr.contains("Function not implemented"), "{chroot:?}");
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.expect(0, &["rollback"])?;
    molt.serves("v1", 3)?;
    molt.sound()
}

fn strict_redis(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Podman, &bed.redis("v1")?)?.with("/workload/seccomp", json!("strict"));
    let port = setup.port;
    let setup = setup.workload_env("REDIS_PORT", &port.to_string());
    let readiness = json!({"tcpSocket": {"port": port}, "period": "100ms"});
    let setup = setup.with("/health/readiness", readiness).with("/health/startupDeadline", json!("20s"));
    let molt = setup.with("/workload/stopGracePeriod", json!("10s")).start()?;
    let script =
        format!("redis-cli -p {port} SET crab soft && redis-cli -p {port} SAVE && redis-cli -p {port} GET crab");
    let output = molt.expect(0, &["exec", "--", "sh", "-c", &script])?;
    ensure!(output.stdout == "OK\nOK\nsoft\n", "{output:?}");
    molt.sound()
}

fn loosened_spec(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = setup(bed, &bed.small("v1")?)?.with("/workload/seccomp", json!("strict")).start()?;
    let spec = molt.config.join("sandbox.yaml");
    fs::write(&spec, fs::read_to_string(&spec)?.replace("\"strict\"", "\"floor\""))?;
    molt.sandbox.kill()?;
    molt.sandbox.restart()?;
    molt.settled()?;
    let said = "fewer system calls are refused (seccomp floor, it was strict)";
    ensure!(molt.sandbox.logs().contains(said), "{}", molt.sandbox.logs());
    molt.sound()
}

fn diff(bed: &Bed) -> anyhow::Result<()> {
    let molt = under(bed, &bed.small("v1")?, POLICY)?.start()?;
    let same = written(&molt, "same.yaml", POLICY)?;
    let wide = written(&molt, "wide.yaml", &POLICY.replace("/srv/data", "/srv/data, /usr/local"))?;
    let wrong = written(&molt, "wrong.yaml", "version: 2\n")?;
    let output = molt.expect(0, &["policy", "diff", &same])?;
    ensure!(output.stdout.is_empty() && output.stderr.contains("not wider"), "{output:?}");
    let said = "/usr/local can be changed now: ";
    for words in [vec!["policy", "diff", &wide], vec!["policy", "diff", &wide, &bed.small("v2")?]] {
        let output = molt.expect(6, &words)?;
        ensure!(output.stdout.starts_with(said), "{output:?}");
    }
    ensure!(molt.expect(6, &["policy", "diff", &wrong])?.stderr.contains("version: is 2"));
    // Where links lead is known of an image that ran.
    let image = linked(bed, "moved", &[("lib", "usr/lib"), ("srv/data", "kept")])?;
    molt.expect(0, &["update", &image])?;
    let lib = written(&molt, "lib.yaml", &POLICY.replace("/lib]", "]").replace(", ]", "]"))?;
    molt.expect(0, &["policy", "diff", &lib])?;
    let refused = molt.expect(6, &["update", &image, "--policy", &wide])?;
    ensure!(refused.stderr.contains(said), "update says the same: {}", refused.stderr);
    let check = molt.expect(0, &["policy", "check", &same])?;
    ensure!(check.stdout.starts_with("filesystem_policy: enforced: "), "{check:?}");
    let offline = ["--socket", "/run/none.sock", "policy", "diff", &wide, "--against", &same];
    ensure!(molt.expect(1, &offline)?.stdout.contains(said));
    let hosts = |host: &str| format!("{POLICY}network_policies: {{a: {{endpoints: [{{host: {host}, port: 443}}]}}}}\n");
    let (old, new) = (written(&molt, "one.yaml", &hosts("a.b.c"))?, written(&molt, "other.yaml", &hosts("d.e.f"))?);
    let output = molt.expect(0, &["policy", "diff", &new, "--against", &old])?;
    let said = "not compared: network_policies (enforced by the egress proxy)";
    ensure!(output.stdout.contains(said) && output.stderr.contains("the rest differs"), "{output:?}");
    molt.sound()
}

/// PID 1 is in groups 0, 44 and 4242, as `fsGroup` and the like of a pod make it. busybox's `su` gives them.
fn groups(bed: &Bed) -> anyhow::Result<()> {
    let script = |who: &str| format!("grep Groups: /proc/self/status > /sandbox/state/groups-{who}");
    for (told, wanted) in [(None, vec![44, 1001, 4242]), (Some(json!([7])), vec![7])] {
        let around = bed.scratch("around")?;
        fs::write(around.join("group"), "root:x:0:root\nvideo:x:44:root\nmany:x:4242:root\n")?;
        let probe = json!({"exec": {"command": ["sh", "-c", script("probe")]}, "period": "100ms"});
        let hook = json!({"preStop": {"exec": {"command": ["sh", "-c", script("hook")]}}});
        let mut setup = setup(bed, &bed.small("v1")?)?
            .with("/health/liveness", probe)
            .with("/hooks", hook)
            .with("/mounts", json!([{"path": "/etc/group", "carry": false}]));
        if let Some(told) = &told {
            setup = setup.with("/workload/supplementalGroups", told.clone());
        }
        setup.options = setup.options.read_only(&around.join("group"), "/etc/group");
        let start = format!("exec {PROGRAM} init --spec {SPEC}");
        let words = ["/bin/busybox", "su", "-s", "/bin/sh", "root", "-c", &start];
        setup.options.program = words.map(str::to_owned).into();
        let molt = setup.start()?;
        let listed = |text: &str| -> anyhow::Result<Vec<u32>> {
            let line = text.lines().find_map(|line| line.strip_prefix("Groups:")).context("Groups")?;
            Ok(line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
        };
        let own = listed(&fs::read_to_string(format!("/proc/{}/status", molt.sandbox.pid1()?))?)?;
        ensure!(own == [0, 44, 4242], "PID 1 itself is in {own:?}");
        molt.expect(0, &["update", &bed.small("v2")?])?;
        let answer = molt.get("/read?path=/proc/self/status")?;
        let exec = molt.expect(0, &["exec", "--", "cat", "/proc/self/status"])?.stdout;
        let file = |who: &str| {
            wait::until_some(who, SOON, || molt.state_file(&format!("groups-{who}")).filter(|text| !text.is_empty()))
        };
        for (who, text) in [
            ("the workload", answer.as_str().context("text")?.to_owned()),
            ("molt exec", exec),
            ("a hook", file("hook")?),
            ("a probe", file("probe")?),
        ] {
            let found = listed(&text)?;
            ensure!(found == wanted, "{who}, with {told:?}: {found:?}, not {wanted:?}");
        }
        let report = molt.status()?["confinement"]["groups"].take();
        ensure!(report == json!(wanted), "the status says {report}");
        molt.sound()?;
    }
    Ok(())
}
