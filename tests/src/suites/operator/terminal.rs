//! What a person sees on a terminal: the status as a live view; and a command that a person gives up.
//!
//! In: the bed; `script`, which gives a program a terminal and writes down what it draws. Out: cases.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::molt::{SOON, Setup};
use crate::harness::process::{self, Background};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The tests of this file.
pub(in crate::suites) const CASES: &[Case] = &[
    case("operator::status_watched_is_redrawn_in_place", watched),
    case("operator::an_exec_whose_program_reads_nothing_is_ended_by_a_signal", given_up),
];

const CLEAR: &str = "\u{1b}[2J";
const HOME: &str = "\u{1b}[H";

fn watched(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let drawn = bed.scratch("terminal")?.join("drawn");
    let watch = format!("exec {} --socket {} status --watch", bed.molt()?.display(), molt.socket()?.display());
    let mut command = Command::new("script");
    command.args(["--quiet", "--flush", "--command", &watch]).arg(&drawn);
    command.env("TERM", "xterm").env("SHELL", "/bin/sh").stdin(Stdio::null()).stdout(Stdio::null());
    let mut script = Background::spawn(&mut command)?;
    let text = || fs::read_to_string(&drawn).unwrap_or_default();
    let last = || text().rsplit(HOME).next().unwrap_or_default().to_owned();
    wait::until("the first frame", SOON, || last().contains("small:v1"))?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    let shown = |frame: &str| frame.lines().any(|line| line.starts_with("Running") && line.contains("small:v2"));
    wait::until_ok("the frame of the new version", SOON, || {
        ensure!(shown(&last()) && last().contains("Idle"), "{:?}", last());
        Ok(())
    })?;
    let all = text();
    ensure!(all.matches(CLEAR).count() == 1 && all.matches(HOME).count() >= 3, "{all:?}");
    ensure!(
        last()
            .lines()
            .filter(|line| line.contains(": ") || line.starts_with("Name"))
            .all(|line| line.contains("\u{1b}[K") || line.contains("\u{1b}[J")),
        "{:?}",
        last()
    );
    let pid = script.0.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let child: i32 = children.split_whitespace().next().context("a child of script")?.parse()?;
    kill(Pid::from_raw(child), Signal::SIGINT)?;
    process::wait(&mut script.0, SOON)?;
    ensure!(text().contains("\u{1b}[?25h"), "the cursor is shown again");
    molt.sound()
}

fn given_up(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)] {
        // It would not end by what is passed on.
        let script = "trap '' TERM INT; echo here >&2; sleep 100000";
        let mut command = Command::new(bed.molt()?);
        command.arg("--socket").arg(molt.socket()?).args(["exec", "-i", "--", "sh", "-c", script]);
        let said = bed.scratch("given-up")?.join("said");
        command.stdin(File::open("/dev/zero")?).stdout(Stdio::null()).stderr(File::create(&said)?);
        let mut client = Background::spawn(&mut command)?;
        wait::until("the program", SOON, || fs::read_to_string(&said).is_ok_and(|said| said.contains("here")))?;
        // One that is read before everything is full is passed on, and changes nothing. Two of SIGINT hang up by themselves.
        let pid = Pid::from_raw(i32::try_from(client.0.id())?);
        wait::until(signal.as_str(), SOON, || {
            client.0.try_wait().is_ok_and(|ended| ended.is_some()) || {
                let _ = kill(pid, signal);
                false
            }
        })?;
        let ended = process::code(process::wait(&mut client.0, SOON)?);
        ensure!(ended == code, "{signal}: {ended}");
    }
    let left = || Ok::<_, anyhow::Error>(molt.family()?.into_iter().any(|(_, name)| name == "sleep"));
    wait::until_ok("all of it is hung up on", SOON, || {
        ensure!(!left()?, "{:?}", molt.family()?);
        Ok(())
    })?;
    molt.sound()
}
