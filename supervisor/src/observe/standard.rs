//! The container's own standard output and error, written to without ever waiting for whoever reads them.
//!
//! In: the workload's bytes, lines of Molt's log. Out: how many bytes were taken; a count of lines that never were. Must
//! not: block, fail, or change the open file, which other processes of the container may share.
//!
//! A pipe or a terminal is opened once more by `/proc/self/fd`, so that it is non-blocking for PID 1 alone. Where that is
//! refused (a pipe of another user's, a socket), what polls writable gets no more than a pipe then takes at once. Lines of
//! the log that are not taken are kept, as many as [`KEPT`] holds, and go first when there is room; what is more is lost,
//! which the log says as soon as it can.

use std::{
    collections::VecDeque,
    convert::Infallible,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{CWD, FileType, Mode, OFlags, fstat, openat},
    io::Errno,
    time::Timespec,
};
use tokio::sync::Notify;

use super::output::Stream;

/// Bytes of the log kept for a reader who is late.
const KEPT: usize = 64 << 10;
/// What a pipe that polls writable takes without blocking: PIPE_BUF, pipe(7).
const AT_ONCE: usize = 4096;
/// How often a reader who is late is looked for.
const LOOK: Duration = Duration::from_millis(50);

static STANDARD: LazyLock<Mutex<Standard>> =
    LazyLock::new(|| Mutex::new(Standard::of(rustix::stdio::stdout(), rustix::stdio::stderr())));
/// There is something for [`tend`] to do.
static WAITING: Notify = Notify::const_new();

/// One of the two streams.
#[derive(Debug)]
struct Way {
    given: BorrowedFd<'static>,
    /// The same pipe or terminal, non-blocking.
    own: Option<OwnedFd>,
}

/// Both. One lock for both: they may be one pipe, and whoever polled must be the next to write.
#[derive(Debug)]
struct Standard {
    stdout: Way,
    stderr: Way,
    /// Whether both are one file: a pipe that a runtime made for all output.
    shared: bool,
    /// Whether the workload's last line there has no end yet: ours begins on one of its own.
    unfinished: bool,
    /// Lines of the log that standard error did not take yet.
    log: VecDeque<u8>,
    /// Whether standard error took the last bytes it was given.
    works: bool,
    /// Lines that were lost and that nobody was told of.
    untold: u64,
    lost: u64,
}

impl Way {
    fn of(given: BorrowedFd<'static>) -> Self {
        let kind = fstat(given).map(|stat| FileType::from_raw_mode(stat.st_mode));
        // Not a file: it would be written to from its start.
        let again = kind.is_ok_and(|kind| kind == FileType::Fifo) || rustix::termios::isatty(given);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = || format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&given));
        Self { given, own: again.then(|| openat(CWD, path(), flags, Mode::empty()).ok()).flatten() }
    }

    /// Writes what is taken at once; 0 if that is nothing.
    fn write(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        let written = self.own.as_ref().map_or_else(|| self.polled(bytes), |own| rustix::io::write(own, bytes));
        match written {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            written => written,
        }
    }

    fn polled(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&self.given.as_fd(), PollFlags::OUT)], Some(&now))? {
            0 => Err(Errno::AGAIN),
            _ => rustix::io::write(self.given, bytes.get(..AT_ONCE).unwrap_or(bytes)),
        }
    }
}

impl Standard {
    fn of(stdout: BorrowedFd<'static>, stderr: BorrowedFd<'static>) -> Self {
        let file = |fd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        let (shared, log) = (file(stdout).is_some() && file(stdout) == file(stderr), VecDeque::new());
        let (stdout, stderr) = (Way::of(stdout), Way::of(stderr));
        Self { stdout, stderr, shared, unfinished: false, log, works: true, untold: 0, lost: 0 }
    }

    /// Bytes of the workload's. What is kept of the log goes first, or a flood would never let it through.
    fn offer(&mut self, stream: Stream, bytes: &[u8]) -> rustix::io::Result<usize> {
        self.flush();
        let same = stream == Stream::Stderr || self.shared;
        if same && !self.log.is_empty() {
            return Ok(0);
        }
        let way = if stream == Stream::Stdout { &self.stdout } else { &self.stderr };
        let length = way.write(bytes)?;
        if let (true, Some(last)) = (same, length.checked_sub(1).and_then(|last| bytes.get(last))) {
            self.unfinished = *last != b'\n';
        }
        Ok(length)
    }

    fn log(&mut self, line: &[u8]) {
        self.flush();
        if self.log.len() + line.len() <= KEPT {
            self.log.extend(line);
            self.flush();
        } else {
            self.lose(line.iter());
        }
    }

    fn flush(&mut self) {
        while !self.log.is_empty() {
            let end = if self.unfinished { &b"\n"[..] } else { self.log.as_slices().0 };
            match self.stderr.write(end) {
                Ok(0) => return,
                Ok(_) if self.unfinished => self.unfinished = false,
                Ok(length) => {
                    self.log.drain(..length);
                    self.works = true;
                }
                // A reader that is gone, a full disk: nothing that waiting mends.
                Err(_) => {
                    self.works = false;
                    let log = std::mem::take(&mut self.log);
                    self.lose(log.iter());
                }
            }
        }
    }

    fn lose<'a>(&mut self, bytes: impl Iterator<Item = &'a u8>) {
        let lines = bytes.filter(|byte| **byte == b'\n').count() as u64;
        self.lost += lines;
        self.untold += lines;
    }

    /// Lines that were lost, once, when there is somebody to hear of it.
    fn tell(&mut self) -> u64 {
        if self.works && self.log.is_empty() { std::mem::take(&mut self.untold) } else { 0 }
    }
}

fn standard() -> MutexGuard<'static, Standard> {
    STANDARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what of `bytes` the container's own stream takes at once; 0 if that is nothing.
pub(crate) fn offer(stream: Stream, bytes: &[u8]) -> rustix::io::Result<usize> {
    standard().offer(stream, bytes)
}

/// Writes a line of the log, now or later.
pub(crate) fn log(line: &[u8]) {
    let mut standard = standard();
    standard.log(line);
    if !standard.log.is_empty() || (standard.works && standard.untold > 0) {
        WAITING.notify_one();
    }
}

/// Lines of the log that were lost since the start.
pub(crate) fn lost() -> u64 {
    standard().lost
}

/// Hands what was kept to a reader who comes back, and says what was lost.
pub(crate) async fn tend() -> Infallible {
    loop {
        WAITING.notified().await;
        loop {
            crate::timer::sleep(LOOK).await;
            let (untold, all) = {
                let mut standard = standard();
                standard.flush();
                (standard.tell(), standard.log.is_empty())
            };
            if untold > 0 {
                tracing::warn!(lines = untold, "some of this log was lost: standard error did not take it");
            }
            if all {
                break;
            }
        }
    }
}

/// Before PID 1 exits: gives a reader a last chance, no longer than `limit`.
pub(crate) fn last_words(limit: Duration) {
    let start = crate::timer::Instant::now();
    loop {
        // A panic may come from in here, with the lock held.
        let Ok(mut standard) = STANDARD.try_lock() else { return };
        standard.flush();
        if standard.log.is_empty() || start.elapsed() > limit {
            return;
        }
        drop(standard);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// From here on a panic is told in the log, which does not wait, and ends PID 1 at once.
pub(crate) fn take_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if let Ok(mut standard) = STANDARD.try_lock() {
            standard.log(format!("{panic}\n").as_bytes());
        }
        last_words(Duration::from_millis(100));
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::{
        fs::{MemfdFlags, memfd_create},
        pipe::{PipeFlags, pipe_with},
    };

    use super::*;

    fn leaked(fd: OwnedFd) -> BorrowedFd<'static> {
        let kept: &'static OwnedFd = Box::leak(Box::new(fd));
        kept.as_fd()
    }

    /// Ways to the same pipe: opened anew, and polled.
    fn both(write: OwnedFd) -> [Standard; 2] {
        let fd = leaked(write);
        let mut polled = Standard::of(fd, fd);
        (polled.stdout.own, polled.stderr.own) = (None, None);
        [Standard::of(fd, fd), polled]
    }

    #[test]
    fn a_full_pipe_is_not_waited_for_and_what_is_lost_is_counted() {
        for which in 0..2 {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let mut standard = both(write).into_iter().nth(which).unwrap();
            assert!(standard.stderr.own.is_some() == (which == 0));
            let line = [&[b'x'; 999][..], b"\n"].concat();
            while standard.offer(Stream::Stdout, &line).unwrap() > 0 {}
            for _ in 0..100 {
                standard.log(&line);
            }
            // Of the first line a piece may have fitted.
            assert!(standard.lost == 35 && (64_001..=65_000).contains(&standard.log.len()), "{standard:?}");
            assert_eq!((standard.offer(Stream::Stderr, b"more"), standard.tell()), (Ok(0), 0));
            let mut read = std::fs::File::from(read);
            let mut chunk = vec![0; 1 << 20];
            while !standard.log.is_empty() {
                assert!(read.read(&mut chunk).unwrap() > 0);
                // The log first, before anything more of the workload's.
                standard.flush();
            }
            assert_eq!((standard.tell(), standard.tell(), standard.lost), (35, 0, 35));
        }
    }

    /// A line that the workload leaves open cannot become the beginning of one of ours, nor the other way round.
    #[test]
    fn a_line_of_ours_is_one_of_its_own() {
        for shared in [true, false] {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let (_other, elsewhere) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let write = leaked(write);
            let mut standard = Standard::of(if shared { write } else { leaked(elsewhere) }, write);
            let open = if shared { Stream::Stdout } else { Stream::Stderr };
            standard.offer(open, b"whole\n").unwrap();
            standard.log(b"INFO one\n");
            standard.offer(open, b"half").unwrap();
            standard.log(b"INFO two\n");
            standard.offer(open, b"rest\n").unwrap();
            let mut text = [0; 99];
            let length = std::fs::File::from(read).read(&mut text).unwrap();
            assert_eq!(&text[..length], b"whole\nINFO one\nhalf\nINFO two\nrest\n", "{shared}");
        }
    }

    #[test]
    fn errors_lose_lines_and_nothing_else() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(read);
        let full = openat(CWD, "/dev/full", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for fd in [write, full] {
            for mut standard in both(fd) {
                standard.log(b"one\ntwo\n");
                assert_eq!((standard.lost, standard.log.len(), standard.tell()), (2, 0, 0));
                standard.offer(Stream::Stdout, b"bytes").unwrap_err();
            }
        }
    }

    #[test]
    fn a_file_is_written_to_where_it_ends() {
        let mut file = std::fs::File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        std::io::Write::write_all(&mut file, b"before\n").unwrap();
        let fd = leaked(OwnedFd::from(file.try_clone().unwrap()));
        let mut standard = Standard::of(fd, fd);
        standard.log(b"line\n");
        assert_eq!(standard.offer(Stream::Stdout, b"bytes"), Ok(5));
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), standard.lost), ("before\nline\nbytes", 0));
    }
}
