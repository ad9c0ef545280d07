//! `molt exec --unconfined`: what the operator's own process can do in a generation, what the workload cannot do to it, that
//! it goes with its generation, and that the history has it.
//!
//! In: sandboxes with and without a user namespace. Out: cases. Must not: take a wall for one that another wall hides: the
//! workload of user 0 has neither Landlock nor seccomp here.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{Molt, PROGRAM, SOON, Setup};
use crate::harness::process::{self, Background};
use crate::harness::runtime::{Kind, Options, Sandbox};
use crate::harness::wait;

/// The tests of this suite.
pub(super) const CASES: &[Case] = &[
    case("unconfined::reaches_what_the_policy_forbids_and_nothing_of_molt", |bed| reaches(bed, Kind::Light)),
    case("unconfined::the_same_in_a_user_namespace", |bed| reaches(bed, Kind::LightUser)),
    case("unconfined::the_same_under_podman", |bed| reaches(bed, Kind::Podman)),
    case("unconfined::reaches_nothing_of_pid_1_in_a_carried_proc", carried_proc),
    case("unconfined::passes_status_input_environment_and_a_terminal", passes),
    case("unconfined::a_workload_of_user_0_cannot_reach_into_it", |bed| out_of_reach(bed, Kind::Light)),
    case("unconfined::nor_in_a_user_namespace", |bed| out_of_reach(bed, Kind::LightUser)),
    case("unconfined::goes_with_its_generation", |bed| goes(bed, Kind::Light)),
    case("unconfined::goes_with_its_generation_in_a_user_namespace", |bed| goes(bed, Kind::LightUser)),
    case("unconfined::is_ended_before_the_workload_is_and_none_begins", before_the_workload),
    case("unconfined::is_in_the_history", history),
    case("unconfined::is_refused_where_the_history_cannot_be_written", unwritten),
];

const EXEC: [&str; 4] = ["exec", "--unconfined", "--", "sh"];

fn run(molt: &Molt, script: &str) -> anyhow::Result<String> {
    Ok(molt.expect(0, &[&EXEC[..], &["-c", script]].concat())?.stdout)
}

/// One that stays until it is killed, with a child; its client, and its number in the generation.
fn open(molt: &Molt, words: &[&str]) -> anyhow::Result<(Background, u64)> {
    let script = "trap '' TERM INT HUP; echo $$ > /sandbox/state/shell; sleep 100000 & while true; do sleep 1; done";
    let words = [&[PROGRAM, "exec"][..], words, &["--", "sh", "-c", script]].concat();
    let client = Background::spawn(molt.sandbox.exec_command(&words)?.stderr(Stdio::null()))?;
    let pid = wait::until_ok("the shell", SOON, || {
        Ok(molt.state_file("shell").context("not there")?.trim().parse::<u64>()?)
    })?;
    fs::remove_file(molt.state.join("shell"))?;
    Ok((client, pid))
}

/// The client says that it was killed, and nothing of it is left.
fn gone(molt: &Molt, mut client: Background) -> anyhow::Result<()> {
    let code = process::code(process::wait(&mut client.0, SOON)?);
    ensure!(code == 137, "the client ended with {code}");
    let left: Vec<_> = molt.family()?.into_iter().filter(|(_, name)| name == "sleep" || name == "sh").collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

fn reaches(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let mut setup = Setup::new(bed, kind, &bed.small("v1")?)?;
    let pull = bed.scratch("pull")?;
    fs::write(pull.join("config.json"), "{\"auths\": {}}")?;
    setup.options = setup.options.read_only(&pull, "/run/secrets/pull");
    let setup = setup.with("/registries/credentials", json!("/run/secrets/pull/config.json"));
    let molt = setup.with("/workload/oomScoreAdj", json!(123)).start()?;
    let workload = molt.get("/")?["pid"].to_string();

    let confined = molt.molt(&["exec", "--", "sh", "-c", "echo mark > /app/mark"])?;
    ensure!(confined.code != 0, "the policy lets the workload write there: {confined:?}");
    let script = format!(
        "id -u; tr '\\0' ' ' < /proc/{workload}/cmdline; echo; cat /sandbox/state/starts; pwd; echo $HOME
        echo mark > /app/mark; cat /app/mark; kill -0 {workload} && echo may signal; cat /proc/self/oom_score_adj
        ls -C /proc/$$/fd; cut -d ' ' -f 6 /proc/$$/stat"
    );
    let said = run(&molt, &script)?;
    let lines: Vec<&str> = said.lines().collect();
    let [uid, command, starts, folder, home, mark, may, score, fds, session] = lines[..] else {
        anyhow::bail!("{said}");
    };
    ensure!(uid == "0" && command.contains("molt-testd") && starts == "1", "{said}");
    ensure!(folder == "/" && home == "/root" && mark == "mark" && may == "may signal" && score == "123", "{said}");
    ensure!(fds.split_whitespace().eq(["0", "1", "2"]) && session != "0", "{said}");

    let status = run(&molt, "cat /proc/self/status")?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).context("a field");
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, NET_BIND_SERVICE, and no way to another.
    let none = "0000000000000000";
    let some = "00000000000004fb";
    let sets = [("CapInh:", none), ("CapAmb:", none), ("CapPrm:", some), ("CapEff:", some), ("CapBnd:", some)];
    // Without CAP_SETPCAP (podman's default has it) the bounding set would be the container's.
    for (name, value) in sets {
        ensure!(field(name)? == value, "{name} {}", field(name)?);
    }
    let seccomp = if kind == Kind::Podman { "2" } else { "0" };
    ensure!(field("NoNewPrivs:")? == "1" && field("Seccomp:")? == seccomp, "{status}");

    let paths = "/var/lib/molt /run/molt/molt.sock /etc/molt /run/secrets/pull";
    let found = run(&molt, &format!("for path in {paths}; do test -e $path && echo $path; done; true"))?;
    ensure!(found.is_empty(), "shown: {found}");
    for forbidden in ["mount -t tmpfs none /mnt", "chroot / true", "mknod /sandbox/state/null c 1 3", "hostname other"]
    {
        let output = molt.molt(&[&EXEC[..], &["-c", &format!("busybox {forbidden}")]].concat())?;
        ensure!(output.code != 0, "{forbidden} is allowed: {output:?}");
    }
    molt.serves("v1", 1)?;
    molt.sound()
}

/// Where the kernel refuses a fresh `/proc` it sees PID 1's, and is root as PID 1 is.
fn carried_proc(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::LightUserMasked, &bed.small("v1")?)?.start()?;
    // Each is tried by root; the last line is a look that must succeed.
    let script = "for path in root/var/lib/molt/journal cwd/. environ mem fd/0 maps auxv; do
          head -c 1 /proc/1/$path > /dev/null 2>&1 && echo read $path; ls /proc/1/$path/. > /dev/null 2>&1 && echo listed $path
        done; tr '\\0' ' ' < /proc/1/cmdline";
    let said = run(&molt, script)?;
    ensure!(said.starts_with(PROGRAM) && said.contains("init"), "{said}");
    molt.sound()
}

fn passes(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let code = |words: &[&str]| Ok::<_, anyhow::Error>(molt.molt(&[&EXEC[..3], words].concat())?.code);
    ensure!(code(&["sh", "-c", "exit 7"])? == 7 && code(&["sh", "-c", "kill -TERM $$"])? == 143);
    ensure!(code(&["absent"])? == 127 && code(&["/app/VERSION"])? == 126);
    let words = ["exec", "--unconfined", "-e", "A=b c", "--", "sh", "-c", "echo $A; echo $TESTD_PORT; echo e >&2"];
    let output = molt.expect(0, &words)?;
    ensure!(output.stdout == format!("b c\n{}\n", molt.address.port()) && output.stderr == "e\n", "{output:?}");
    let script = format!("printf 'one\\ntwo\\n' | {PROGRAM} exec -i --unconfined -- wc -l");
    ensure!(molt.sandbox.exec(&["sh", "-c", &script])?.ok()?.stdout.trim() == "2");

    let inner = "if test -t 0 && test -t 1; then echo a terminal; fi; exit 5";
    let command = molt.sandbox.exec_command(&[PROGRAM, "exec", "-it", "--unconfined", "--", "sh", "-c", inner])?;
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))).collect();
    let mut script = Command::new("script");
    let output = process::output(script.args(["-qec", &words.join(" "), "/dev/null"]), SOON)?;
    ensure!(output.stdout.contains("a terminal") && output.code == 5, "{output:?}");
    molt.sound()
}

/// What the workload is told when it reaches for a process, by what it tried.
fn reach(molt: &Molt, pid: u64) -> anyhow::Result<Vec<(&'static str, i64)>> {
    let tries = [
        ("trace", format!("trace={pid}")),
        ("mem", format!("open=/proc/{pid}/mem&write=1")),
        ("environ", format!("open=/proc/{pid}/environ")),
        ("fd", format!("open=/proc/{pid}/fd/0")),
        ("maps", format!("open=/proc/{pid}/maps")),
        ("root", format!("list=/proc/{pid}/root/")),
        ("cwd", format!("list=/proc/{pid}/cwd/")),
    ];
    let attempt = |(name, query): (&'static str, String)| {
        let errno = molt.get(&format!("/try?{query}"))?["errno"].as_i64().context("an errno")?;
        Ok((name, errno))
    };
    tries.into_iter().map(attempt).collect()
}

fn out_of_reach(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let root = |policy: Value| {
        let setup = Setup::new(bed, kind, &bed.small("v1")?)?.with("/policy", policy);
        setup.with("/workload/allowRoot", json!(true)).with("/workload/user", json!("0:0")).start()
    };
    let molt = root(json!("unconfined"))?;
    // What is confined as the workload is, it may reach: that the others are refused is not for another reason.
    let (beside, pid) = open(&molt, &[])?;
    let found = reach(&molt, pid)?;
    ensure!(found.iter().all(|(_, errno)| *errno == 0), "{kind:?}: beside the workload: {found:?}");
    drop(beside);
    let (_shell, pid) = open(&molt, &["--unconfined"])?;
    let found = reach(&molt, pid)?;
    ensure!(found.iter().all(|(_, errno)| [1, 13].contains(errno)), "{kind:?}: {found:?}");
    molt.sound()
}

fn goes(bed: &Bed, kind: Kind) -> anyhow::Result<()> {
    let molt = Setup::new(bed, kind, &bed.small("v1")?)?.start()?;
    let (shell, _) = open(&molt, &["--unconfined"])?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    gone(&molt, shell)?;
    molt.serves("v2", 2)?;
    let (shell, _) = open(&molt, &["--unconfined"])?;
    molt.expect(0, &["rollback"])?;
    gone(&molt, shell)?;
    molt.serves("v1", 3)?;
    // And with one that comes to its end by itself.
    let (shell, _) = open(&molt, &["--unconfined"])?;
    molt.expect(3, &["update", &bed.small("exits")?])?;
    gone(&molt, shell)?;
    molt.serves("v1", 4)?;
    molt.sound()
}

fn before_the_workload(bed: &Bed) -> anyhow::Result<()> {
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/workload/stopGracePeriod", json!("20s"));
    let molt = setup.workload_env("TESTD_BEHAVIOUR", "slow-stop=4000").start()?;
    let (mut shell, _) = open(&molt, &["--unconfined"])?;
    let image = bed.small("v2")?;
    let mut update = molt.sandbox.exec_command(&[PROGRAM, "update", &image])?;
    let mut update = Background::spawn(update.stdout(Stdio::null()).stderr(Stdio::null()))?;

    wait::until_ok("the signal to the workload", SOON, || molt.state_file("signals").context("none"))?;
    let refused = molt.molt(&[&EXEC[..], &["-c", "echo > /sandbox/state/late"]].concat())?;
    ensure!(refused.code == 1 && refused.stderr.contains("is being changed right now"), "{refused:?}");
    let code = process::code(process::wait(&mut shell.0, SOON)?);
    ensure!(code == 137, "the client ended with {code}");
    ensure!(molt.state_file("clean-stop").is_none(), "the shell outlived the workload");
    ensure!(process::wait(&mut update.0, SOON)?.success());
    ensure!(molt.state_file("late").is_none(), "it was run");
    molt.serves("v2", 2)?;
    molt.sound()
}

/// Lines of the file that are of this kind, oldest first.
fn written(molt: &Molt) -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(molt.store.join("history.jsonl"))?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    Ok(lines.into_iter().filter(|line| line["kind"] == "exec").collect())
}

fn history(bed: &Bed) -> anyhow::Result<()> {
    let mut molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    ensure!(molt.molt(&[&EXEC[..], &["-c", "exit 3"]].concat())?.code == 3);
    molt.expect(0, &["update", &bed.small("v2")?])?;
    let (shell, _) = open(&molt, &["--unconfined"])?;
    // On disk while it runs, without an end.
    let lines = written(&molt)?;
    let [begun, ended, runs] = &lines[..] else { anyhow::bail!("{lines:?}") };
    ensure!(begun["exec"] == ended["exec"] && begun["ended"].is_null() && begun["status"].is_null(), "{begun}");
    ensure!(ended["status"] == 3 && ended["argv"] == json!(["sh", "-c", "exit 3"]), "{ended}");
    let by = ended["by"].as_str().context("by")?;
    ensure!(by.starts_with("uid 0, pid ") && by.ends_with(" via operator socket"), "{by}");
    ensure!(ended["generation"] == 1 && runs["generation"] == 2 && runs["ended"].is_null(), "{runs}");
    ensure!(ended["started"].as_str() <= ended["ended"].as_str(), "{ended}");

    let kinds = |molt: &Molt| -> anyhow::Result<Vec<String>> {
        let shown = molt.json(&["history"])?;
        Ok(shown
            .as_array()
            .context("a list")?
            .iter()
            .map(|one| one["kind"].as_str().unwrap_or("").to_owned())
            .collect())
    };
    ensure!(kinds(&molt)? == ["boot", "exec", "update", "exec"], "{:?}", kinds(&molt)?);
    let table = molt.expect(0, &["history"])?.stdout;
    let rows: Vec<&str> = table.lines().filter(|line| line.contains("exec --unconfined")).collect();
    ensure!(rows.len() == 2 && rows[0].contains("under way") && rows[1].contains("exit status 3"), "{table}");
    ensure!(molt.sandbox.logs().contains("exec outside of the confinement"), "{}", molt.sandbox.logs());

    drop(shell);
    ensure!(molt.sandbox.kill()? == 137);
    molt.sandbox.restart()?;
    molt.settled()?;
    let table = molt.expect(0, &["history"])?.stdout;
    ensure!(table.contains("exit status 3") && table.contains("Molt ended before this was written"), "{table}");
    ensure!(kinds(&molt)?[..4] == ["boot", "exec", "update", "exec"], "{:?}", kinds(&molt)?);
    molt.sound()
}

fn unwritten(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let file = molt.store.join("history.jsonl");
    fs::rename(&file, molt.store.join("kept"))?;
    fs::create_dir(&file)?;
    let script = [&EXEC[..], &["-c", "echo > /sandbox/state/was-run"]].concat();
    let refused = molt.molt(&script)?;
    ensure!(refused.code == 6 && refused.stderr.contains("failed to write to the history"), "{refused:?}");
    ensure!(molt.state_file("was-run").is_none(), "it was run all the same");
    ensure!(molt.family()?.iter().all(|(_, name)| name != "sh"), "{:?}", molt.family()?);
    molt.expect(0, &["exec", "--", "true"])?;
    fs::remove_dir(&file)?;
    fs::rename(molt.store.join("kept"), &file)?;
    molt.expect(0, &script)?;
    ensure!(molt.state_file("was-run").is_some(), "it is run again");
    molt.sound()?;

    // No store at all: its place is on the container's own overlay.
    let options = Options::new(bed, &[PROGRAM, "init", "--", "/app/molt-testd"])?;
    let options = options.volume(&bed.volume("state")?, "/sandbox/state");
    let sandbox = Sandbox::start(bed, Kind::Light, options)?;
    let words = [PROGRAM, "exec", "--unconfined", "--", "sh", "-c", "true"];
    let refused = wait::until_ok("an answer", SOON, || sandbox.exec(&words)?.expect_code(6))?;
    ensure!(refused.stderr.contains("no usable store"), "{refused:?}");
    Ok(())
}
