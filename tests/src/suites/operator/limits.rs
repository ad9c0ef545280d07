//! Clients that are slow, huge, or many: the operator is answered all the same.
//!
//! In: the bed. Out: cases, and figures with `MOLT_TESTS_TIMES` set. Must not: hope that a machine is fast.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::holdings::{resident, wakes};
use crate::harness::http;
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// The tests of this file.
pub(in crate::suites) const CASES: &[Case] = &[
    case("operator::ten_thousand_who_only_connect_lock_nobody_out", idle),
    case("operator::slow_heads_and_huge_ones_are_cut_off", heads),
    case("operator::a_thousand_watchers_are_told_and_cost_little", watchers).alone(),
    case("operator::at_rest_it_wakes_for_its_probes_alone", at_rest).alone(),
];

fn v1(bed: &Bed) -> anyhow::Result<Molt> {
    Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()
}

/// As many files as the machine lets this program open: at least `wanted`.
fn files(wanted: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    ensure!(limit.maximum.is_none_or(|most| most >= wanted), "this machine allows {:?} files only", limit.maximum);
    Ok(())
}

fn told(what: &str) {
    if std::env::var_os("MOLT_TESTS_TIMES").is_some() {
        eprintln!("[figure] {what}");
    }
}

/// Files that PID 1 has open.
fn open(molt: &Molt) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", molt.sandbox.pid1()?))?.count())
}

fn idle(bed: &Bed) -> anyhow::Result<()> {
    files(12_000)?;
    let molt = v1(bed)?;
    let socket = molt.socket()?;
    let mut all = Vec::new();
    let mut slowest = Duration::ZERO;
    for number in 0..10_000 {
        all.push(UnixStream::connect(&socket).with_context(|| format!("connection {number}"))?);
        if number % 500 == 499 {
            let begun = Instant::now();
            ensure!(http::operator(&socket, "GET", "/v1/status", &[], SOON)?.status == 200);
            slowest = slowest.max(begun.elapsed());
        }
    }
    molt.expect(0, &["status"])?;
    let files = open(&molt)?;
    ensure!(files < 300, "PID 1 has {files} files open");
    told(&format!("with 10000 idle connections: slowest of 20 answers {slowest:?}, {files} files open in PID 1"));
    drop(all);
    molt.sound()
}

fn heads(bed: &Bed) -> anyhow::Result<()> {
    let molt = v1(bed)?;
    let socket = molt.socket()?;
    // One byte a while, and never an end.
    let mut slow = UnixStream::connect(&socket)?;
    slow.set_read_timeout(Some(SOON))?;
    let begun = Instant::now();
    let drips = wait::until_ok("the slow one to be cut off", SOON, || {
        std::thread::sleep(Duration::from_millis(100));
        let over = slow.write_all(b"x").is_err();
        ensure!(over, "it is still served");
        Ok(begun.elapsed())
    })?;
    ensure!(drips < Duration::from_secs(15), "{drips:?}");
    for (what, head) in [
        ("a header of 64 KiB", format!("GET /v1/status HTTP/1.1\r\nhost: molt\r\nx: {}\r\n\r\n", "y".repeat(64 << 10))),
        ("a thousand headers", format!("GET /v1/status HTTP/1.1\r\nhost: molt\r\n{}\r\n", "x: y\r\n".repeat(1000))),
        ("a path of 64 KiB", format!("GET /{} HTTP/1.1\r\nhost: molt\r\n\r\n", "y".repeat(64 << 10))),
    ] {
        let status = first_line(&socket, &head)?;
        ensure!(status.is_empty() || status.starts_with("HTTP/1.1 4"), "{what}: {status}");
        ensure!(http::operator(&socket, "GET", "/v1/status", &[], SOON)?.status == 200, "after {what}");
    }
    molt.sound()
}

/// What is answered to bytes that may not all be taken: nothing is an answer, too.
fn first_line(socket: &Path, head: &str) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    let _ = stream.write_all(head.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned())
}

fn watchers(bed: &Bed) -> anyhow::Result<()> {
    const MANY: usize = 1000;
    files(8192)?;
    let molt = v1(bed)?;
    let socket = molt.socket()?;
    let (before, files) = (resident(&molt)?, open(&molt)?);
    let mut all = Vec::new();
    for number in 0..MANY {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: molt\r\n\r\n")?;
        let mut first = [0; 12];
        stream.read_exact(&mut first).with_context(|| format!("watcher {number}"))?;
        ensure!(&first == b"HTTP/1.1 200", "watcher {number}: {}", String::from_utf8_lossy(&first));
        all.push(stream);
    }
    let (after, more) = (resident(&molt)?, open(&molt)?);
    // Timers of probes come and go beside them.
    ensure!(more + 8 >= files + MANY, "{more} files, {files} before");
    let each = after.saturating_sub(before) * 10 / u64::try_from(MANY)?;
    told(&format!(
        "{MANY} watchers of events: {before} KiB before, {after} KiB with them, {}.{} KiB each",
        each / 10,
        each % 10
    ));
    ensure!(each < 640, "{each} tenths of a KiB a watcher");
    molt.expect(0, &["status"])?;
    // Each hears the end of an update, whatever else it hears.
    let record = molt.updated(&bed.small("v2")?)?;
    ensure!(record["outcome"] == "confirmed", "{record:#}");
    let end = format!("id: {}\n", record["event"].as_u64().context("a number")?);
    for (number, stream) in all.iter_mut().enumerate() {
        let mut heard = String::new();
        let mut chunk = [0; 16 << 10];
        while !heard.contains(&end) {
            let read = stream.read(&mut chunk).with_context(|| format!("watcher {number} heard {heard}"))?;
            ensure!(read > 0, "watcher {number} was cut off");
            heard.push_str(&String::from_utf8_lossy(&chunk[..read]));
        }
    }
    drop(all);
    wait::until_ok("the places to come back", SOON, || {
        let now = open(&molt)?;
        ensure!(now < files + 50, "{now} files");
        Ok(())
    })?;
    molt.sound()
}

fn at_rest(bed: &Bed) -> anyhow::Result<()> {
    const LOOK: Duration = Duration::from_secs(10);
    // No probe: nothing has to happen.
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.with("/health", json!({"monitor": "0s"}));
    let molt = setup.start()?;
    // What the start left to be done is over when two looks in a row see little.
    wait::until_ok("rest", SOON, || {
        let before = wakes(&molt)?;
        std::thread::sleep(Duration::from_secs(1));
        let woken = wakes(&molt)? - before;
        ensure!(woken < 20, "{woken} in a second");
        Ok(())
    })?;
    let before = wakes(&molt)?;
    std::thread::sleep(LOOK);
    let a_minute = (wakes(&molt)? - before) * 60 / LOOK.as_secs();
    told(&format!("at rest, without probes: {a_minute} wake-ups a minute"));
    ensure!(a_minute < 120, "{a_minute} wake-ups a minute");
    let (mut asked, begun) = (0, Instant::now());
    let socket = molt.socket()?;
    while begun.elapsed() < Duration::from_secs(2) {
        let answer = http::operator(&socket, "GET", "/v1/status", &[], SOON)?;
        ensure!(answer.status == 200 && answer.json()?["kind"] == "Sandbox");
        asked += 1;
    }
    told(&format!(
        "GET /v1/status, one after the other: {:.0} a second",
        f64::from(asked) / begun.elapsed().as_secs_f64()
    ));
    molt.sound()
}
