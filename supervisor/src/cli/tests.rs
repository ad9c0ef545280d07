//! The commands against a served socket, and the text people see.

use clap::{CommandFactory as _, Parser as _};
use molt_core::{
    code::Code,
    ids::{Generation, UpdateId},
    wire::{Accepted, Event, ExecView, Outcome, PhaseName, Problem, UpdateView, What},
};

use super::{
    args::{Args, Command, Format},
    bars, change, check, fault, follow, look,
    print::Printer,
    show, status, stream, text,
};
use crate::api::{
    fake::{self, TIME},
    tests::{Served, served},
};

fn parse(line: &str) -> Result<Args, clap::Error> {
    Args::try_parse_from(line.split_whitespace())
}

async fn run(served: &Served, line: &str) -> u8 {
    let args = parse(line).unwrap();
    let printer = Printer::new(args.output);
    let asked = super::ask(printer, &served.client, args.command);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(15), asked).await.expect("the command must end");
    ended.unwrap_or_else(|fault| fault.status())
}

#[test]
fn the_command_line_is_consistent_and_strict() {
    Args::command().debug_assert();
    for line in [
        "molt init",
        "molt init --spec s.yaml --image localhost/a --store /s --state /a --state /b --socket /x -- cmd -a --b",
        "molt update localhost/a --wait=5m --policy p.yaml --reason x --force --allow-wider -o json",
        "molt update localhost/a --wait",
        "molt update --wait localhost/a",
        "molt rollback --to 3 --no-wait",
        "molt cancel u7",
        "molt show u7 --evidence",
        "molt exec -it -- sh -c ls",
        "molt exec ls -la",
        "molt probe ready",
        "molt logs -f --tail 10",
        "molt bad list",
        "molt diff 1 2",
        "molt hold --owner ci --ttl 5m",
        "molt release --owner ci",
        "molt man",
        "molt policy diff new.yaml",
        "molt policy diff new.yaml registry.example.com/a:1",
        "molt policy diff new.yaml --against old.yaml",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    for line in [
        "molt",
        "molt update",
        "molt update localhost/a --wait=5",
        "molt update localhost/a --wait --no-wait",
        "molt update localhost/a --dry-run --stage-only",
        "molt init cmd",
        "molt show x",
        "molt exec -it",
        "molt bad remove sha256:1",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
    let Command::Init(init) = parse("molt init --state /a --state /b -- cmd -a --b").unwrap().command else { panic!() };
    assert_eq!(
        (init.state, init.command),
        (vec!["/a".into(), "/b".into()], vec!["cmd".into(), "-a".into(), "--b".into()])
    );
}

#[tokio::test]
async fn every_end_of_an_update_has_its_exit_status() {
    let served = served();
    for (tag, status) in
        [("good", 0), ("bad", 3), ("wider", 6), ("gone", 1), ("held", 5), ("known-bad", 6), ("silent", 0)]
    {
        assert_eq!(run(&served, &format!("molt update localhost/app:{tag}")).await, status, "{tag}");
    }
    assert_eq!(run(&served, "molt update busybox").await, 2);
    assert_eq!(run(&served, "molt update localhost/app:slow --wait=50ms").await, 7);
    assert_eq!(run(&served, "molt cancel").await, 0);
    assert_eq!(run(&served, "molt update localhost/app:slow --no-wait").await, 0);
    assert_eq!(run(&served, "molt update localhost/app:good --dry-run -o yaml").await, 0);
    assert_eq!(run(&served, "molt rollback").await, 0);
    assert_eq!(run(&served, "molt confirm").await, 1);
    for line in [
        "molt status",
        "molt history",
        "molt show 1",
        "molt diff 1 2",
        "molt show u8 --evidence",
        "molt bad list",
        "molt gc",
        "molt hold --ttl 5m",
        "molt release",
        "molt probe live",
        "molt probe ready",
        "molt events",
        "molt logs",
    ] {
        assert_eq!(run(&served, line).await, 0, "{line}");
    }
    assert_eq!(run(&served, "molt show u99").await, 1);
}

#[tokio::test]
async fn a_policy_that_is_not_valid_is_refused_and_not_a_matter_of_usage() {
    let served = served();
    let path = served.socket.with_extension("yaml");
    for (text, status) in [("bad", 6), ("good", 0)] {
        std::fs::write(&path, text).unwrap();
        let line = format!("molt update localhost/app:good --policy {}", path.display());
        assert_eq!(run(&served, &line).await, status, "{text}");
    }
    assert_eq!(run(&served, "molt update localhost/app:good --policy /nowhere").await, 2);
}

#[tokio::test]
async fn a_supervisor_that_is_not_there_is_named() {
    let client = super::Client::new(std::path::Path::new("/nowhere/molt.sock"));
    let fault = look::history(Printer::new(Format::Table), &client).await.unwrap_err();
    assert_eq!(fault.status(), 1);
    let text = fault.to_string();
    assert!(text.contains("/nowhere/molt.sock") && text.contains("kubectl exec"), "{text}");
}

#[tokio::test]
async fn a_wait_goes_on_over_a_restart_of_the_server() {
    let served = served();
    let accepted = Accepted { id: UpdateId(7), after_seq: 100 };
    // A life of its own, on the same socket, later.
    let later = crate::api::tests::later(&served);
    let printer = Printer::new(Format::Json);
    let wait = follow::to_the_end(printer, &served.client, &accepted, None, follow::Until::Decision);
    let (view, ()) = tokio::join!(wait, later);
    assert_eq!(view.unwrap().outcome, Some(Outcome::Confirmed));
}

#[test]
fn problems_have_exit_statuses() {
    for (code, status) in [
        (Code::Held, 5),
        (Code::Invalid, 2),
        (Code::ReferenceInvalid, 2),
        (Code::PolicyWider, 6),
        (Code::KnownBad, 6),
        (Code::NoSpace, 6),
        (Code::StoreUnusable, 6),
        (Code::NothingToRollBackTo, 6),
        (Code::Unauthorized, 1),
        (Code::NotFound, 1),
        (Code::Busy, 1),
        (Code::Internal, 1),
    ] {
        assert_eq!(fault::problem_status(&Problem::new(code, "")), status, "{code}");
    }
}

#[test]
fn ends_are_told_in_a_line() {
    let mut view = fake::record(7, "localhost/app:1.5".parse().ok());
    view.downtime_us = Some(840);
    for (outcome, reason, text) in [
        (None, None, "u7 is under way"),
        (Some(Outcome::Confirmed), None, "confirmed: generation 2 runs localhost/app:1.5 (downtime 0.8 ms)"),
        (Some(Outcome::Noop), None, "nothing to do: generation 2 runs localhost/app:1.5 already"),
        (Some(Outcome::Staged), None, "staged: generation 2 holds localhost/app:1.5; molt apply starts it"),
        (
            Some(Outcome::RolledBack),
            Some(Code::ExitedInTrial),
            "rolled back: exited in trial; generation 1 is back and healthy (downtime 0.8 ms)",
        ),
        (Some(Outcome::Aborted), Some(Code::NotFound), "failed: not found; generation 1 runs on, untouched"),
        (Some(Outcome::Aborted), Some(Code::Superseded), "given up: superseded; generation 1 runs on, untouched"),
        (Some(Outcome::Refused), Some(Code::PolicyWider), "refused: policy wider; generation 1 runs on, untouched"),
        (
            Some(Outcome::Degraded),
            Some(Code::Unhealthy),
            "degraded: unhealthy; neither version is healthy, generation 1 is tried again",
        ),
    ] {
        (view.outcome, view.reason) = (outcome, reason);
        assert_eq!(show::ending(&view), text);
    }
    view.outcome = Some(Outcome::RolledBack);
    view.evidence = Some(molt_core::wire::Evidence::default());
    let digest = fake::digest(2);
    assert_eq!(
        show::next(&view, Some(digest)),
        [
            "what was seen: molt show u7 --evidence".to_owned(),
            "the workload's output: molt logs".to_owned(),
            "try it all the same: molt update localhost/app:1.5 --force".to_owned(),
            format!("forget that it failed: molt bad remove {digest}"),
        ]
    );
}

#[test]
fn status_says_what_runs_and_what_is_wrong() {
    let mut document = fake::document();
    let digest = fake::digest(1);
    assert_eq!(
        status::status(&document),
        format!(
            "Name      whatsapp-daemon\nPhase     Idle\nWorkload  ready\nRunning   generation 1  localhost/app:1.4\n\
             Digest    {digest}\nSince     2026-01-02 03:04:05Z\nSeccomp   floor\nMolt      0.1.0\n"
        )
    );
    let mut last = fake::record(7, "localhost/app:1.5".parse().ok());
    (last.outcome, last.reason) = (Some(Outcome::Refused), Some(Code::NoSpace));
    document.status.last_update = Some(last);
    document.status.conditions[0].status = "False".to_owned();
    document.status.conditions[0].message = "say\u{1b}[2J".to_owned();
    document.status.degraded.push("no seccomp".to_owned());
    let shown = status::status(&document);
    assert!(shown.contains("u7 refused: no space; generation 1 runs on, untouched, 2026-01-02"), "{shown}");
    assert!(
        shown.contains("CONDITION  STATUS  REASON   MESSAGE\nReady      False   Started  say\\u{1b}[2J\n"),
        "{shown}"
    );
    assert!(shown.ends_with("degraded: no seccomp\n"), "{shown}");
}

#[test]
fn history_is_a_table() {
    let mut view = fake::record(7, "localhost/app:1.5".parse().ok());
    (view.outcome, view.downtime_us) = (Some(Outcome::Confirmed), Some(12_345));
    assert_eq!(
        show::history(&show::Past::merged(vec![view.clone()], Vec::new())),
        "ID  KIND    FROM -> TO  IMAGE              OUTCOME    DOWNTIME  WHEN                  BY\n\
         u7  update  1 -> 2      localhost/app:1.5  confirmed  12 ms     2026-01-02 03:04:05Z  uid 0 via operator socket\n"
    );
    let later = fake::record(8, None);
    let exec = |exec, second, status| ExecView {
        kind: "exec".to_owned(),
        exec,
        generation: Generation(2),
        argv: vec!["sh".to_owned(), "-c\u{1b}[2J".to_owned()],
        by: "uid 0, pid 9 via operator socket".to_owned(),
        started: format!("2026-01-02T03:04:{second:02}.000Z"),
        ended: None,
        status,
        failure: None,
    };
    let later = UpdateView { started: "2026-01-02T03:05:00.000Z".to_owned(), ..later };
    let past = show::Past::merged(vec![view, later], vec![exec(1, 4, Some(3)), exec(2, 6, None)]);
    let shown = show::history(&past);
    let starts: Vec<&str> = shown.lines().filter_map(|line| line.split_once(' ').map(|(word, _)| word)).collect();
    assert_eq!(starts, ["ID", "u8", "-", "u7", "-"], "{shown}");
    for part in ["exec --unconfined  in 2", "exit status 3", "under way", "sh -c\\u{1b}[2J"] {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
    let data = serde_json::to_value(&past).unwrap();
    assert_eq!((&data[0]["kind"], &data[0]["status"], &data[1]["id"]), (&"exec".into(), &3.into(), &"u7".into()));
}

#[test]
fn events_and_phases_are_lines() {
    let line = |what| stream::event_line(&Event { seq: 5, time: TIME.to_owned(), update: Some(UpdateId(7)), what });
    let phase = What::Phase { phase: PhaseName::Staging, message: "3 layers".to_owned() };
    assert_eq!(line(phase), "5 2026-01-02 03:04:05Z u7 Staging: 3 layers");
    // One event is one line, whatever is in it.
    let forged = || "failed\n6 2026-01-02 03:04:06Z u7 confirmed\u{2028}".to_owned();
    let phase = |message| What::Phase { phase: PhaseName::Staging, message };
    for what in [phase(forged()), What::Warning { message: forged() }, What::Note { message: forged() }] {
        let shown = line(what);
        assert!(
            shown.lines().count() == 1 && shown.ends_with("failed\\n6 2026-01-02 03:04:06Z u7 confirmed\\u{2028}"),
            "{shown}"
        );
    }
    let mut view = fake::record(7, None);
    view.message = forged();
    let shown = show::update(&view, show::Evidence::Left);
    assert!(shown.contains("\nfailed\n  6 2026-01-02"), "{shown}");
    let progress = What::Progress {
        layer: 0,
        layers: 2,
        digest: fake::digest(1),
        done: 5,
        total: 3 << 20,
        state: "fetching".into(),
    };
    assert_eq!(line(progress), "5 2026-01-02 03:04:05Z u7 layer 1/2 010101010101: fetching, 3.0 MiB");
    assert_eq!(
        bars::phase_line(PhaseName::Proving, "", Some(std::time::Duration::from_secs(10))),
        "Proving (old kept for 10 s; ^C leaves the update running)"
    );
}

#[test]
fn numbers_read_well() {
    for (us, text) in [(0, "0.0 ms"), (840, "0.8 ms"), (9_990, "9.9 ms"), (340_000, "340 ms"), (2_150_000, "2.1 s")] {
        assert_eq!(text::micros(us), text);
    }
    for (count, text) in [(812, "812 B"), (1024, "1.0 KiB"), (3_670_016, "3.5 MiB"), (u64::MAX, "16777215.9 TiB")] {
        assert_eq!(text::bytes(count), text);
    }
}

#[test]
fn text_of_others_cannot_drive_the_terminal() {
    assert_eq!(text::clean("a\u{1b}]0;x\u{7}b\nc\td\r"), "a\\u{1b}]0;x\\u{7}b\\nc\td\\r");
    assert_eq!(text::block("a\u{1b}[2J\nb\n"), "a\\u{1b}[2J\n  b");
    assert_eq!(
        text::clean_line("\u{1b}[1;31mred\u{1b}[0m \u{1b}[2Jgone\u{9b}x"),
        "\u{1b}[1;31mred\u{1b}[0m \\u{1b}[2Jgone\\u{9b}x"
    );
    assert_eq!(text::clean_line("cut \u{1b}[3"), "cut \\u{1b}[3");
    assert_eq!(text::line("one\ntwo", 2), "on…");
}

#[test]
fn documents_are_checked_and_compared() {
    let folder = std::env::temp_dir().join(format!("molt-check-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    let printer = Printer::new(Format::Table);
    let policy = |writable: &str| {
        format!(
            "version: 1\nfilesystem_policy: {{include_workdir: false, read_only: [/usr], read_write: [{writable}]}}\n"
        )
    };
    let (narrow, wide) = (file("narrow.yaml", &policy("/tmp")), file("wide.yaml", &policy("/tmp, /etc")));
    let wrong = file("wrong.yaml", "version: 1\nfilesystem: {}\n");
    assert_eq!(check::policy(printer, &narrow).unwrap(), 0);
    assert_eq!(check::policy(printer, &wrong).unwrap(), 1);
    assert_eq!(check::policy_diff(printer, &narrow, &narrow).unwrap(), 0);
    assert_eq!(check::policy_diff(printer, &wide, &narrow).unwrap(), 0);
    assert_eq!(check::policy_diff(printer, &narrow, &wide).unwrap(), 1);
    assert_eq!(check::policy_diff(printer, &narrow, &wrong).unwrap(), 1);
    let spec = file("sandbox.yaml", "apiVersion: molt.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: a}\nspec: {}\n");
    assert_eq!(check::spec(printer, &spec).unwrap(), 0);
    assert_eq!(check::spec(printer, &narrow).unwrap(), 1);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn files_are_read_whole_or_not_at_all() {
    let path = std::env::temp_dir().join(format!("molt-cli-{}", std::process::id()));
    std::fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
    assert_eq!(change::read(&path).unwrap_err().status(), 2);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(change::read(&path).unwrap_err().status(), 2);
}

/// Whatever goes wrong, a person is told what to do about it.
#[test]
fn every_error_says_what_to_type_next() {
    let io = |kind| fault::Fault::Unreachable { socket: "/run/x".into(), source: std::io::Error::from(kind) };
    let mut all = vec![
        io(std::io::ErrorKind::NotFound),
        io(std::io::ErrorKind::ConnectionRefused),
        io(std::io::ErrorKind::PermissionDenied),
        io(std::io::ErrorKind::Other),
        fault::Fault::Broken("x".to_owned()),
        fault::Fault::Local("x".to_owned()),
        fault::Fault::Usage("x".to_owned()),
        fault::Fault::Interrupted(UpdateId(7)),
        fault::Fault::TimedOut(UpdateId(7)),
    ];
    let codes = [
        Code::Invalid,
        Code::ReferenceInvalid,
        Code::NotFound,
        Code::Busy,
        Code::Held,
        Code::Stale,
        Code::KeyReused,
        Code::NothingToRollBackTo,
        Code::NoSpace,
        Code::StoreUnusable,
        Code::PolicyWider,
        Code::KnownBad,
        Code::WrongPlatform,
        Code::DeadlineExceeded,
        Code::RegistryUnreachable,
        Code::Internal,
    ];
    all.extend(codes.map(|code| fault::Fault::Problem(Problem::new(code, "x"))));
    for fault in all {
        let text = fault.to_string();
        assert!(text.contains("molt ") || text.contains("--help"), "{fault:?}: {text}");
    }
}

#[test]
fn every_command_has_a_page_and_every_shell_its_completions() {
    let folder = std::env::temp_dir().join(format!("molt-man-{}", std::process::id()));
    assert_eq!(super::man(Some(&folder)).unwrap(), 0);
    let mut missing = Vec::new();
    for command in Args::command().get_subcommands() {
        let page = std::fs::read_to_string(folder.join(format!("molt-{}.1", command.get_name()))).unwrap_or_default();
        if !page.contains(".TH molt-") {
            missing.push(command.get_name().to_owned());
        }
    }
    assert!(missing.is_empty() && folder.join("molt.1").exists(), "{missing:?}");
    std::fs::remove_dir_all(&folder).unwrap();
    for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Args::command(), "molt", &mut text);
        let text = String::from_utf8(text).unwrap();
        for word in ["rollback", "allow-wider", "unconfined", "diff"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
}
