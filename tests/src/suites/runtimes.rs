//! The main story where users will have it: in every kind of sandbox, on older kernels' ways, with redis; what the
//! workload may do there, and `molt exec`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{Molt, PROGRAM, SOON, Setup};
use crate::harness::process;
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("story::in_a_light_sandbox", |bed| story(&Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?, bed)),
    case("story::under_crun", |bed| story(&Setup::new(bed, Kind::Crun, &bed.small("v1")?)?.start()?, bed)),
    case("story::under_podman", |bed| story(&Setup::new(bed, Kind::Podman, &bed.small("v1")?)?.start()?, bed)),
    case("story::in_a_user_namespace", |bed| user(bed, Kind::LightUser)),
    case("story::in_a_user_namespace_with_a_masked_proc", |bed| user(bed, Kind::LightUserMasked)),
    case("story::in_a_user_namespace_under_crun", |bed| user(bed, Kind::CrunUser)),
    case("story::in_a_user_namespace_under_podman", |bed| user(bed, Kind::PodmanUser)),
    case("story::under_podman_of_an_ordinary_user", |bed| user(bed, Kind::PodmanRootless)),
    case("story::as_on_linux_6_14", |bed| older(bed, Kind::Light, "6.14")),
    case("story::as_on_linux_5_15", |bed| older(bed, Kind::Light, "5.15")),
    case("story::as_on_linux_5_15_under_podman", |bed| older(bed, Kind::Podman, "5.15")),
    case("story::redis_keeps_its_data_through_updates", redis),
    case("exec::is_confined_as_the_workload_is", exec_confined),
    case("exec::passes_status_environment_and_input", exec_passes),
    case("exec::gives_a_terminal", exec_terminal),
    case("exec::does_not_outlive_a_client_whose_input_nobody_takes", exec_hangs_up),
];

/// Boot v1, update to v2, a sick one that goes back, back by hand, killed and started again.
fn story(molt: &Molt, bed: &Bed) -> anyhow::Result<()> {
    molt.serves("v1", 1)?;
    ensure!(molt.click()? == 1);
    confined(molt)?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    confined(molt)?;
    molt.expect(3, &["update", &bed.small("exits")?])?;
    molt.serves("v2", 3)?;
    molt.expect(3, &["update", &bed.small("ill")?])?;
    ensure!(molt.version()?.0 == "v2");
    molt.expect(0, &["rollback"])?;
    ensure!(molt.version()?.0 == "v1" && molt.click()? == 2, "the counter goes on");
    confined(molt)?;
    molt.sound()
}

/// What the workload sees and may do.
fn confined(molt: &Molt) -> anyhow::Result<()> {
    let status = molt.get("/whoami")?;
    ensure!(status["Uid"] == "1000 1000 1000 1000" && status["Gid"] == "1000 1000 1000 1000", "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(status[set] == "0000000000000000", "{set}: {status}");
    }
    ensure!(status["NoNewPrivs"] == "1" && status["Seccomp"] == "2", "{status}");
    let errno = |query: &str| -> anyhow::Result<i64> {
        molt.get(&format!("/try?{query}"))?["errno"].as_i64().context("an errno")
    };
    // Landlock: what the image brought cannot be changed.
    for path in ["/etc/new", "/app/VERSION", "/usr/new"] {
        let found = errno(&format!("open={path}&write=1&create=1"))?;
        ensure!(found == 13, "writing {path}: errno {found}, not EACCES");
    }
    ensure!(errno("open=/tmp/new&write=1&create=1")? == 0, "scratch space");
    // Molt's own things are not there.
    let own = ["/var/lib/molt", "/var/lib/molt/lock", "/etc/molt", "/etc/molt/sandbox.yaml", "/run/molt/molt.sock"];
    for path in own {
        let found = errno(&format!("open={path}"))?;
        ensure!(found == 2, "{path}: errno {found}, not ENOENT");
    }
    // The container's own files are.
    let resolv = molt.sandbox.exec(&["cat", "/etc/resolv.conf"])?.ok()?.stdout;
    ensure!(molt.get("/read?path=/etc/resolv.conf")? == resolv, "resolv.conf");
    ensure!(molt.get("/read?path=/run/secrets/token")? == "of no worth\n", "secrets are carried");
    ensure!(errno("open=/run/secrets/token&write=1")? != 0, "a read-only volume");
    // A /proc of its own: the supervisor is not to be seen in it, and nothing of the kernel's can be set.
    // Where the kernel refuses one, it is, and that is said; but nothing of it can be read.
    let carried = molt.status()?["degraded"].to_string().contains("/proc");
    let first = molt.get("/read?path=/proc/1/comm")?;
    ensure!((first == "molt\n") == carried, "the workload sees PID 1 of the container: {first}");
    for name in ["environ", "maps", "auxv", "io"] {
        let found = molt.get(&format!("/read?path=/proc/1/{name}"))?["errno"].as_i64();
        ensure!(!carried || found == Some(13), "/proc/1/{name}: {found:?}");
    }
    for path in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/mem", "/proc/kcore"] {
        ensure!(errno(&format!("open={path}&write=1"))? != 0, "{path} can be written");
    }
    let mounts = molt.get("/mounts")?;
    let mounts = mounts.as_str().context("mounts")?;
    ensure!(!mounts.contains(" /var/lib/molt ") && !mounts.contains(" /etc/molt "), "{mounts}");
    for point in ["/sandbox/state", "/etc/resolv.conf", "/run/secrets/token", "/proc", "/dev"] {
        ensure!(mounts.contains(&format!(" {point} ")), "{point} is not a mount:\n{mounts}");
    }
    Ok(())
}

/// The same as root of a user namespace, and after a restart.
fn user(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let mut molt = Setup::new(bed, kind, &bed.small("v1")?)?.start()?;
    let degraded = molt.status()?["degraded"].to_string();
    ensure!(degraded.contains("/proc") == (kind == Kind::LightUserMasked), "{degraded}");
    story(&molt, bed)?;
    ensure!(molt.sandbox.kill()? == 137);
    molt.sandbox.restart()?;
    molt.settled()?;
    ensure!(molt.version()?.0 == "v1");
    molt.sound()
}

fn older(bed: &Bed, kind: Kind, kernel: &str) -> anyhow::Result<()> {
    let setup = Setup::new(bed, kind, &bed.small("v1")?)?.env("MOLT_PRETEND_KERNEL", kernel);
    let mut molt = setup.start()?;
    story(&molt, bed)?;
    ensure!(molt.sandbox.kill()? == 137);
    molt.sandbox.restart()?;
    molt.settled()?;
    ensure!(molt.version()?.0 == "v1");
    molt.sound()
}

/// One inline command to redis; the first line of its answer, or the second after a length.
fn ask(molt: &Molt, command: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(molt.address)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().context("an answer")??;
    let line = if first.starts_with('$') && first != "$-1" { lines.next().context("a value")?? } else { first };
    Ok(line.trim_end().to_owned())
}

fn redis(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Podman, &bed.redis("v1")?)?;
    let port = setup.port;
    let setup = setup.workload_env("REDIS_PORT", &port.to_string());
    let readiness = json!({"tcpSocket": {"port": port}, "period": "100ms"});
    let setup = setup.with("/health/readiness", readiness).with("/health/startupDeadline", json!("20s"));
    let molt = setup.with("/workload/stopGracePeriod", json!("10s")).start()?;
    ensure!(ask(&molt, "SET crab soft")? == "+OK");
    ensure!(ask(&molt, "INCR molts")? == ":1");
    molt.expect(0, &["update", &bed.redis("v2")?])?;
    ensure!(ask(&molt, "SELECT 17")? == "+OK", "v2 has 18 databases");
    ensure!(ask(&molt, "GET crab")? == "soft", "the key is gone after the update");
    ensure!(ask(&molt, "INCR molts")? == ":2");
    molt.expect(0, &["rollback"])?;
    ensure!(ask(&molt, "SELECT 17")?.starts_with("-ERR"), "v1 has 17 databases");
    ensure!(
        ask(&molt, "GET crab")? == "soft" && ask(&molt, "GET molts")? == "2",
        "the data is gone after the rollback"
    );
    molt.sound()
}

fn v1(bed: &Bed) -> anyhow::Result<Molt> {
    Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()
}

fn exec_confined(bed: &Bed) -> anyhow::Result<()> {
    for kind in [Kind::Light, Kind::Podman] {
        let molt = Setup::new(bed, kind, &bed.small("v1")?)?.start()?;
        let run = |words: &[&str]| -> anyhow::Result<process::Output> { molt.molt(&[&["exec", "--"], words].concat()) };
        let id = run(&["id"])?.ok()?.stdout;
        ensure!(id.contains("uid=1000(app) gid=1000(app)") && id.contains("1001(extra)"), "{id}");
        let status = run(&["cat", "/proc/self/status"])?.ok()?.stdout;
        let whoami = molt.get("/whoami")?;
        for (key, value) in whoami.as_object().context("an object")? {
            let line = status.lines().find_map(|line| line.strip_prefix(&format!("{key}:"))).context("a line")?;
            let line = line.trim().replace('\t', " ");
            ensure!(*value == Value::String(line.clone()), "{key}: {line:?} in exec, {value} in the workload");
        }
        let denied = run(&["sh", "-c", "echo x > /etc/new"])?;
        ensure!(denied.code != 0 && denied.stderr.contains("Permission denied"), "{denied:?}");
        ensure!(run(&["cat", "/var/lib/molt/lock"])?.stderr.contains("No such file"), "the store is to be seen");
        let tree = run(&["ps"])?.ok()?.stdout;
        ensure!(tree.contains("molt-testd"), "it is in the same PID namespace: {tree}");
    }
    Ok(())
}

fn exec_passes(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    ensure!(molt.molt(&["exec", "--", "sh", "-c", "exit 7"])?.code == 7);
    ensure!(molt.molt(&["exec", "--", "sh", "-c", "kill -TERM $$"])?.code == 143);
    let absent = molt.molt(&["exec", "--", "absent"])?;
    ensure!(absent.code == 127, "{absent:?}");
    let output = molt.expect(0, &["exec", "-e", "A=b c", "--", "sh", "-c", "echo $A; echo $TESTD_PORT; echo e >&2"])?;
    ensure!(output.stdout == format!("b c\n{}\n", molt.address.port()) && output.stderr == "e\n", "{output:?}");
    let script = format!("printf 'one\\ntwo\\n' | {PROGRAM} exec -i -- wc -l");
    ensure!(molt.sandbox.exec(&["sh", "-c", &script])?.ok()?.stdout.trim() == "2");
    let script = format!(
        "{PROGRAM} exec -- sh -c 'busybox seq 1 200000' | busybox md5sum; busybox seq 1 200000 | busybox md5sum"
    );
    let sums = molt.sandbox.exec(&["sh", "-c", &script])?.ok()?.stdout;
    let sums: Vec<&str> = sums.lines().collect();
    ensure!(sums.len() == 2 && sums[0] == sums[1], "a long output arrives whole: {sums:?}");
    molt.serves("v1", 1)?;
    molt.sound()
}

fn exec_hangs_up(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    let before = molt.family()?.len();
    // More input than everything on the way holds, and nobody who reads it.
    let inner = "echo ran > /sandbox/state/ran; exec sleep 1000";
    let script = format!("busybox timeout -s KILL 2 {PROGRAM} exec -i -- sh -c '{inner}' </dev/zero");
    let killed = molt.sandbox.exec(&["sh", "-c", &script])?;
    ensure!(killed.code != 0 && molt.state_file("ran").is_some(), "{killed:?}");
    wait::until_ok("the program to go with its client", SOON, || {
        let family = molt.family()?;
        ensure!(family.len() == before, "{family:?}");
        Ok(())
    })?;
    molt.sound()
}

fn exec_terminal(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    let inner = "if test -t 0 && test -t 1; then echo a terminal; fi; exit 5";
    let command = molt.sandbox.exec_command(&[PROGRAM, "exec", "-it", "--", "sh", "-c", inner])?;
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))).collect();
    let mut script = Command::new("script");
    let output = process::output(script.args(["-qec", &words.join(" "), "/dev/null"]), SOON)?;
    ensure!(output.stdout.contains("a terminal") && output.code == 5, "{output:?}");
    molt.sound()
}
