//! What a workload, or its neighbours, can use up: whoever reads the log, processes, descriptors, memory. Molt goes on
//! without, says so, and does what it is asked again when there is enough.
//!
//! In: a sandbox, limits put on its PID 1 from outside. Out: cases. Must not: limit anything but the sandbox.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::cgroup::Group;
use crate::harness::molt::{Molt, PROGRAM, SOCKET, SOON, Setup};
use crate::harness::process::Output;
use crate::harness::runtime::Kind;
use crate::harness::{http, wait};

/// The cases.
pub(super) const CASES: &[Case] = &[
    case("pressure::a_log_that_nobody_reads_stops_nothing", |bed| unread(bed, &pipe()?)),
    case("pressure::a_terminal_that_nobody_reads_stops_nothing", |bed| unread(bed, &terminal()?)),
    case("pressure::a_log_that_takes_nothing_stops_nothing", untaken),
    case("pressure::without_processes_an_update_fails_and_nothing_else", no_processes),
    case("pressure::without_descriptors_it_says_so_and_goes_on", no_descriptors),
    case("pressure::an_endless_line_and_forged_ones_are_told_apart", forged),
    case("pressure::memory_that_runs_out_ends_what_is_run_beside_the_workload", no_memory),
    case("pressure::with_little_memory_a_swap_goes_well_or_the_old_one_serves", little_memory),
    case("pressure::the_workload_goes_before_pid_1_when_memory_runs_out", scores),
];

/// Both ends of what PID 1 writes to: ours first.
type Ends = (OwnedFd, Arc<OwnedFd>);

fn pipe() -> anyhow::Result<Ends> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((read, Arc::new(write)))
}

fn terminal() -> anyhow::Result<Ends> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let theirs = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, Arc::new(theirs)))
}

/// The same file once more, and not blocking; what others have of it stays as it is.
fn again(fd: &impl AsRawFd, write: bool) -> anyhow::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(OpenOptions::new().read(!write).write(write).custom_flags(flags.cast_signed()).open(path)?)
}

fn fill(fd: &OwnedFd) -> anyhow::Result<()> {
    let mut file = again(fd, true)?;
    for size in [4096, 1] {
        while file.write(&vec![b'.'; size]).is_ok() {}
    }
    Ok(())
}

fn metric(molt: &Molt, name: &str) -> anyhow::Result<u64> {
    let socket = PathBuf::from(format!("/proc/{}/root{SOCKET}", molt.sandbox.pid1()?));
    let text = http::operator(&socket, "GET", "/metrics", &[], SOON)?.text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.with_context(|| format!("no {name} in\n{text}"))?.parse().context(name.to_owned())
}

/// The workload floods the container's output, nobody reads it, and Molt itself has much to say.
fn unread(bed: &Bed, (ours, theirs): &Ends) -> anyhow::Result<()> {
    fill(theirs)?;
    let mut setup = Setup::new(bed, Kind::Light, &bed.small("floods")?)?;
    setup.options.streams = Some(Arc::clone(theirs));
    let molt = setup.start()?;
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    molt.expect(0, &["rollback"])?;
    molt.serves("floods", 3)?;
    // What is run is logged.
    let long = "y".repeat(4000);
    wait::until_ok("lines to be lost", SOON, || {
        molt.expect(0, &["exec", "--", "true", &long])?;
        ensure!(metric(&molt, "molt_log_lines_lost_total")? > 0, "none is");
        Ok(())
    })?;
    // Somebody reads again: first what was kept, then how much was not.
    let mut reader = if rustix::termios::isatty(ours) { File::from(ours.try_clone()?) } else { again(ours, false)? };
    rustix::io::ioctl_fionbio(&reader, true)?;
    let (mut text, mut chunk) = (String::new(), vec![0; 64 << 10]);
    wait::until("the log to say what it lost", SOON, || {
        while let Ok(length @ 1..) = reader.read(&mut chunk) {
            // The flood is long, and no part of what is looked for.
            text.push_str(&String::from_utf8_lossy(&chunk[..length]).replace("xxxxxxxx", ""));
        }
        text.contains("some of this log was lost: standard error did not take it lines=")
    })
    .with_context(|| text[..text.len().min(4000)].to_owned())?;
    ensure!(text.contains("molt starts"), "what was said first is not there:\n{text}");
    molt.sound()
}

fn untaken(bed: &Bed) -> anyhow::Result<()> {
    let (read, broken) = pipe()?;
    drop(read);
    let full = Arc::new(OwnedFd::from(OpenOptions::new().write(true).open("/dev/full")?));
    for streams in [broken, full] {
        let mut setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
        setup.options.streams = Some(streams);
        let mut molt = setup.start()?;
        molt.expect(0, &["update", &bed.small("v2")?])?;
        molt.serves("v2", 2)?;
        ensure!(metric(&molt, "molt_log_lines_lost_total")? > 0, "no line of the log was lost");
        let ended = molt.sandbox.stop(SOON)?;
        ensure!(ended == 0, "PID 1 ended with {ended}, not with its workload's status");
    }
    Ok(())
}

fn limit(molt: &Molt, resource: Resource, most: u64) -> anyhow::Result<Rlimit> {
    let pid = i32::try_from(molt.sandbox.pid1()?)?;
    let limit = Rlimit { current: Some(most), maximum: getrlimit(resource).maximum };
    Ok(prlimit(Pid::from_raw(pid), resource, limit)?)
}

fn no_processes(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::LightUser, &bed.small("v1")?)?.start()?;
    let (v2, before) = (bed.small("v2")?, molt.get("/")?);
    let was = limit(&molt, Resource::Nproc, 1)?;
    // Whatever threads there are for a while are gone; a new one there is none.
    wait::until("PID 1 to rest", SOON, || threads(&molt).is_ok_and(|count| count <= 2))?;
    for _ in 0..2 {
        let failed = molt.expect(1, &["update", &v2])?;
        for part in ["failed to start a thread for the ", "may have used up its processes", "Resource temporarily"] {
            ensure!(failed.stderr.contains(part), "it does not say {part:?}: {}", failed.stderr);
        }
        ensure!(molt.get("/")? == before, "the workload noticed");
    }
    // What nobody waits for is done all the same: the record of the update, and clean-up.
    molt.expect(0, &["gc"])?;
    wait::until("the history to be written", SOON, || {
        fs::read_to_string(molt.store.join("history.jsonl")).is_ok_and(|text| text.contains("\"id\":\"u3\""))
    })?;
    limit(&molt, Resource::Nproc, was.current.unwrap_or(u64::MAX))?;
    molt.expect(0, &["update", &v2])?;
    molt.serves("v2", 2)?;
    molt.sound()
}

fn threads(molt: &Molt) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/task", molt.sandbox.pid1()?))?.count())
}

/// The limit that leaves `more` descriptors to be had: one counts numbers, not files.
fn leaving(molt: &Molt, more: usize) -> anyhow::Result<u64> {
    let taken = fs::read_dir(format!("/proc/{}/fd", molt.sandbox.pid1()?))?;
    let taken: Vec<u64> = taken.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    (0..).filter(|number| !taken.contains(number)).nth(more).context("there is always one more")
}

fn no_descriptors(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let images = [("v1", bed.small("v1")?), ("v2", bed.small("v2")?)];
    let mut serving = 0;
    // A probe may have the one that is left, or have let go of its own.
    let answered = |output: &Output| match output.code {
        0 => Ok(true),
        _ if output.stderr.contains("molt has used up the files it may open") => Ok(false),
        _ => Err(anyhow::anyhow!("{output:?}")),
    };
    // From none left to enough for some of what an update needs.
    for more in [0, 1, 2, 3, 5, 8, 12, 16, 24, 32] {
        let was = limit(&molt, Resource::Nofile, leaving(&molt, more)?)?;
        if more == 0 {
            wait::until_ok("somebody to be turned away", SOON, || {
                ensure!(!answered(&molt.molt(&["status"])?)?, "it was answered");
                Ok(())
            })?;
        }
        answered(&molt.molt(&["status"])?)?;
        let begun = answered(&molt.molt(&["update", "--no-wait", "--force", &images[1 - serving].1])?)?;
        if begun {
            wait::until_ok("the update to end", SOON, || {
                let told = molt.told()?;
                ensure!(told["phase"] == "Idle", "{told:#}");
                Ok(())
            })?;
        }
        limit(&molt, Resource::Nofile, was.current.unwrap_or(u64::MAX))?;
        let last = molt.settled()?["lastUpdate"].take();
        if begun && last["outcome"] == "confirmed" {
            serving = 1 - serving;
        } else {
            let clear = !begun || last["message"].as_str().is_some_and(|text| text.contains("os error 24"));
            ensure!(clear, "with {more} descriptors: {last:#}");
        }
        ensure!(molt.version()?.0 == images[serving].0, "with {more} descriptors: {last:#}");
    }
    let (_, starts) = molt.version()?;
    molt.expect(0, &["update", "--force", &images[1 - serving].1])?;
    molt.serves(images[1 - serving].0, starts + 1)?;
    molt.sound()
}

fn no_memory(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let before = molt.get("/")?;
    let memory = Group::memory(bed, &molt, 64 << 20)?;
    // Looks for the end of a line that has none.
    let hog = molt.molt(&["exec", "--", "busybox", "tail", "/dev/zero"])?;
    ensure!(memory.kills()? > 0, "memory did not run out: {hog:?}");
    ensure!(hog.code == 137, "{hog:?}");
    molt.settled()?;
    ensure!(molt.get("/")? == before, "the workload went instead of what used the memory");
    molt.expect(0, &["update", &bed.small("v2")?])?;
    molt.serves("v2", 2)?;
    molt.sound()
}

/// Less and less memory for the sandbox as a whole: an update goes well, or fails and says so; PID 1 stays.
fn little_memory(bed: &Bed) -> anyhow::Result<()> {
    let molt = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.start()?;
    let images = [("v1", bed.small("v1")?), ("v2", bed.small("v2")?)];
    let (mut serving, mut least) = (0, None);
    let first = molt.sandbox.pid1()?;
    for megabytes in [128, 64, 48, 40, 32, 24] {
        let memory = Group::memory(bed, &molt, megabytes << 20)?;
        // Asked from outside: a client in there would need memory, too.
        let record = molt.updated(&images[1 - serving].1)?;
        match record["outcome"].as_str() {
            Some("confirmed") => (serving, least) = (1 - serving, Some(megabytes)),
            Some("aborted" | "rolledBack") => ensure!(memory.kills()? > 0, "{megabytes} MiB: {record:#}"),
            _ => anyhow::bail!("{megabytes} MiB: {record:#}"),
        }
        ensure!(molt.version()?.0 == images[serving].0, "{megabytes} MiB: {record:#}");
        ensure!(molt.sandbox.pid1()? == first, "PID 1 is another one");
    }
    eprintln!("the least memory an update went well with: {least:?} MiB");
    ensure!(least.is_some_and(|least| least <= 64), "an update needs more than 64 MiB: {least:?}");
    molt.expect(0, &["update", "--force", &images[1 - serving].1])?;
    ensure!(molt.version()?.0 == images[1 - serving].0);
    molt.sound()
}

/// The kernel takes the process with the highest score: everything of a generation before PID 1.
fn scores(bed: &Bed) -> anyhow::Result<()> {
    for kind in [Kind::Light, Kind::LightUser] {
        let molt = Setup::new(bed, kind, &bed.small("v1")?)?.start()?;
        let first = molt.sandbox.pid1()?;
        let score = |pid: u32| -> anyhow::Result<i32> {
            Ok(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().parse()?)
        };
        let own = score(first)?;
        ensure!(own < 500, "{kind:?}: PID 1 has {own}");
        let beside = |molt: &Molt| -> anyhow::Result<usize> {
            let family: Vec<_> = molt.family()?.into_iter().filter(|(pid, _)| *pid != first).collect();
            for (pid, name) in &family {
                let score = score(*pid)?;
                // One that unpacks goes even earlier.
                ensure!(score == 500 || score == 1000, "{kind:?}: {name} has {score}, PID 1 {own}");
            }
            Ok(family.len())
        };
        let mut command = molt.sandbox.exec_command(&[PROGRAM, "exec", "--", "sleep", "1111"])?;
        let _running = crate::harness::process::Background::spawn(&mut command)?;
        // The init, the workload, the keeper and the sleep.
        wait::until_ok("the sleep", SOON, || {
            ensure!(molt.family()?.iter().any(|(_, name)| name == "sleep"), "not there");
            Ok(())
        })?;
        ensure!(beside(&molt)? >= 4, "{:?}", molt.family()?);
        // It may ask to go earlier, never later.
        let lower = molt.molt(&["exec", "--", "sh", "-c", "echo 499 > /proc/self/oom_score_adj"])?;
        ensure!(lower.code != 0, "{kind:?}: {lower:?}");
        molt.expect(0, &["update", &bed.small("v2")?])?;
        beside(&molt)?;
        molt.sound()?;
    }
    Ok(())
}

/// A line without an end, lines that look like Molt's, and codes that rub out what was there.
fn forged(bed: &Bed) -> anyhow::Result<()> {
    let forged = "2026-01-01T00:00:00.000000Z  INFO forged generation 9 is confirmed";
    let script = format!(
        "printf '%s\\n' '{forged}'; printf '\\033[2K\\r{forged}\\n' >&2; \
         busybox head -c 100000 /dev/zero | busybox tr '\\0' x; printf '\\n{{\"level\":\"INFO\",\"forged\":1}}\\nno end'; sleep 1111"
    );
    for output in ["lines", "raw"] {
        let setup = Setup::own_root(bed, Kind::Light, &["/bin/busybox", "sh", "-c", &script])?;
        let readiness = json!({"exec": {"command": ["true"]}, "period": "100ms"});
        let molt = setup.env("MOLT_OUTPUT", output).with("/health/readiness", readiness).start()?;
        let lines = wait::until_ok("the lines", SOON, || {
            let text = molt.expect(0, &["logs", "-o", "json"])?.stdout;
            let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
            ensure!(lines.iter().any(|line| line["text"].as_str().is_some_and(|text| text.contains("\"forged\""))));
            Ok(lines)
        })?;
        // `molt logs` has the workload's lines only, and says who wrote them and which were cut.
        let long: Vec<_> =
            lines.iter().filter(|line| line["text"].as_str().is_some_and(|text| text.starts_with("xxx"))).collect();
        let cut = long.iter().filter(|line| line["more"] == true).count();
        ensure!(long.len() == 7 && cut == 6, "{} pieces, {cut} cut", long.len());
        ensure!(long.iter().all(|line| line["text"].as_str().is_some_and(|text| text.len() <= 16 << 10)));
        ensure!(lines.iter().all(|line| line["generation"] == 0), "{lines:?}");
        let told = molt.expect(0, &["events", "-o", "json"])?.stdout + &molt.expect(0, &["history"])?.stdout;
        ensure!(!told.contains("forged"), "what it printed is told as Molt's own: {told}");
        let log = molt.sandbox.logs();
        if output == "raw" {
            // As it was written, byte by byte.
            ensure!(
                log.matches('x').count() >= 100_000 && log.contains(&format!("\x1b[2K\r{forged}\n")),
                "{log:.3000}"
            );
            continue;
        }
        let theirs = |line: &str| line.starts_with("[0 out] ") || line.starts_with("[0 err] ");
        ensure!(log.lines().filter(|line| theirs(line)).count() >= 10, "{log:.3000}");
        for line in log.lines().filter(|line| !theirs(line)) {
            ensure!(!line.contains("forged") && !line.contains("xxxx"), "it looks like Molt's: {line:?}");
            ensure!(line.starts_with("20"), "whose is it? {line:?}");
        }
        ensure!(!log.contains('\x1b') && !log.contains('\r'), "control characters came through: {log:.3000}");
        molt.sound()?;
    }
    Ok(())
}
