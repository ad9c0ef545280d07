//! What probes share: short forms of raw calls, the places of the image, outcomes that do not depend on the runtime.
//!
//! In: numbers and paths. Out: answers. Must not: decide what is expected; the golden files do.

use std::{ffi::CStr, fs, io, os::fd::OwnedFd};

use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::{
    probe::Answer,
    raw::{Arg, call},
};

/// Readable, not writable, in every policy; everything below belongs to the workload's user.
pub(crate) const READABLE: &str = "/app/box";
/// In no policy; everything below belongs to the workload's user.
pub(crate) const UNLISTED: &str = "/data/box";
/// Writable in every policy: the state, a mount.
pub(crate) const STATE: &str = "/sandbox/state";
/// Writable in every policy: a tmpfs of the generation.
pub(crate) const TMP: &str = "/tmp";

/// A number as an argument.
pub(crate) const fn n(number: i64) -> Arg<'static> {
    Arg::N(number)
}

/// A C string as an argument.
pub(crate) const fn s(text: &CStr) -> Arg<'_> {
    Arg::S(text)
}

/// A null pointer.
pub(crate) const NULL: Arg<'static> = Arg::N(0);

/// A raw call, its answer as a word.
pub(crate) fn sys(number: i64, args: &mut [Arg<'_>]) -> Answer {
    call(number, args).into()
}

/// Opens with these flags.
pub(crate) fn open(path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK, Mode::from_raw_mode(0o644))
}

/// For what one runtime has and another has not: that it cannot be done is all that counts.
pub(crate) fn refused<T>(result: io::Result<T>) -> Answer {
    Answer::word(result.map_or("refused", |_| "ok"))
}

/// Writes to a file that is there.
pub(crate) fn write(path: &str, text: &str) -> io::Result<()> {
    use io::Write as _;
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// `ENOENT` if neither a look nor an open finds it.
pub(crate) fn absent(path: &str) -> Answer {
    let look = Answer::from(fs::symlink_metadata(path));
    let opened = Answer::from(open(path, OFlags::RDONLY));
    if look == opened { look } else { Answer::word(format!("{look:?}/{opened:?}")) }
}

/// A field of `/proc/self/status`.
pub(crate) fn status(name: &str) -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map_or_else(|| "unreadable".to_owned(), |value| value.split_whitespace().collect::<Vec<_>>().join(","))
}

/// A variable that the harness passes along.
pub(crate) fn given(name: &str) -> Result<String, Errno> {
    std::env::var(name).map_err(|_| Errno::ENODATA)
}
