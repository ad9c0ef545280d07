//! What a person sees on a terminal: the status as a live view.
//!
//! In: the bed; `script`, which gives a program a terminal and writes down what it draws. Out: cases.

use std::fs;
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
pub(in crate::suites) const CASES: &[Case] = &[case("operator::status_watched_is_redrawn_in_place", watched)];

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
