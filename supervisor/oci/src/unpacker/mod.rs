//! Layers are unpacked by two processes each: Molt's own file twice more, confined before it reads the first byte. A
//! decoder decompresses and hashes, and can name no file; an unpacker makes files of the tar it is sent. They work at the
//! same time.
//!
//! In: the packed bytes of a layer as they arrive, its folder. Out: the folder filled, and what is left to do. PID 1 hashes
//! what it passes on, so that a broken download is told from a bad layer; what came out of the bytes is the decoder's
//! word. Must not: decode or unpack here; go on with a process that is not confined.
//!
//! An unpacker more, with a capability more, does what is left for the few layers that hide folders of those below or ask
//! something of them.

mod child;
mod pipeline;
mod process;
mod walls;
pub(crate) mod wire;

use std::{
    ffi::{CStr, CString},
    fmt,
    io::BufRead,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::Mutex,
};

use molt_core::ids::DiffId;
use rustix::{
    fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create, openat, seek},
    io::Errno,
    process::Pid,
};

pub(crate) use self::process::Switch;
pub use self::{
    child::run,
    walls::{enclosed, prisoner, sealed},
};
use self::{
    process::{Process, Task},
    wire::{Job, Rest, Said},
};
use crate::{
    config::Limits,
    error::{Error, Result},
    layer::{
        decode::Packing,
        packed::{Hashed, Promise},
        tree::XattrNamespace,
    },
    reserve::Reserve,
    store::Staged,
};

/// The word after the program's name that makes `main` call [`run`].
pub const ENTRY: &CStr = c"--unpack-layer";
/// The descriptor on which such a process finds its socket; below it is `/dev/null`, three times.
const CONTROL: i32 = 3;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// Asks how a child ended that somebody else has reaped.
type Reaped = Box<dyn Fn(Pid) -> Option<Ended> + Send + Sync>;

/// Starts decoders and unpackers.
pub struct Unpacker {
    /// The file that `path` names; held, so that it stays what it is.
    _program: OwnedFd,
    path: CString,
    null: OwnedFd,
    reaped: Reaped,
    missing: Mutex<Vec<String>>,
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What is left to do for a layer, where an unpacker has done its part.
#[derive(Debug)]
pub(crate) struct Left {
    rest: Rest,
    asks: OwnedFd,
}

impl Left {
    /// Whether the layer is the same whatever it lies on.
    pub(crate) fn is_plain(&self) -> bool {
        self.rest != Rest::Parents
    }
}

/// A layer that is unpacked, and where.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) staged: Staged,
    pub(crate) left: Left,
}

impl Unpacker {
    /// Unpackers are started from `program`, a file whose `main` calls [`run`] when its first argument is [`ENTRY`].
    /// `reaped` says how a child ended that was reaped by somebody else than the one who started it; PID 1 reaps all.
    pub fn new(program: BorrowedFd<'_>, reaped: impl Fn(Pid) -> Option<Ended> + Send + Sync + 'static) -> Result<Self> {
        let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::Settings { what: "/dev/null".to_owned(), why: error.to_string() })?;
        // Out of the way of the descriptors that an unpacker is given: the path is looked up after they are in place.
        let program = rustix::io::fcntl_dupfd_cloexec(program, CONTROL + 1)
            .map_err(|error| Error::Settings { what: "Molt's own file".to_owned(), why: error.to_string() })?;
        let path = CString::new(format!("/proc/self/fd/{}", program.as_raw_fd())).unwrap_or_default();
        Ok(Self { _program: program, path, null, reaped: Box::new(reaped), missing: Mutex::default() })
    }

    /// Builds the walls around an unpacker with `folder` as its own and around a decoder, which do nothing, and says which
    /// could not be had.
    pub fn check(&self, folder: BorrowedFd<'_>) -> Result<Vec<String>> {
        let null = self.null.as_fd();
        let mut all = Vec::new();
        for (job, fds) in [(Job::Check, &[folder][..]), (Job::Decode(Packing::Tar), &[null, null][..])] {
            let task = Task {
                layer: DiffId(crate::layer::decode::digest_of(b"")),
                job,
                xattrs: XattrNamespace::User,
                limits: &Limits::default(),
                fds,
                lowers: &[],
            };
            let switch = Switch::default();
            let process = Process::start(self, &switch, None, &task)?;
            let missing = process.confined()?;
            process.verdict()?;
            all.extend(missing.into_iter().filter(|wall| !all.contains(wall)).collect::<Vec<_>>());
        }
        Ok(all)
    }

    /// Walls that unpackers could not build so far, in words; none is told twice.
    pub fn degraded(&self) -> Vec<String> {
        self.missing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn note(&self, missing: Vec<String>) {
        let mut known = self.missing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for wall in missing {
            if !known.contains(&wall) {
                known.push(wall);
            }
        }
    }

    /// Unpacks `source` into `staged`, checks that it was what `promise` says, and marks the folders that hide, unless the
    /// layers below have to be asked first.
    pub(crate) fn unpack(
        &self,
        source: impl BufRead,
        staged: Staged,
        promise: Promise,
        limits: &Limits,
        switch: &Switch,
    ) -> Result<Unpacked> {
        let asks = asks_file(limits)?;
        let mut source = Hashed::new(source);
        let said = pipeline::run(self, &mut source, &staged, promise, limits, switch, &asks);
        let said = said.map(|(plain, rest)| (plain, Left { rest, asks }));
        let left = promise.judge(source, said)?;
        if left.rest == Rest::Marks {
            self.after(&staged, promise.diff_id, &left, Job::Mark, &[], limits, switch)?;
        }
        Ok(Unpacked { staged, left })
    }

    /// Does what an unpacked layer still asks for, on top of `lowers`, nearest first.
    pub(crate) fn settle(
        &self,
        layer: DiffId,
        unpacked: &Unpacked,
        lowers: &[OwnedFd],
        limits: &Limits,
        switch: &Switch,
    ) -> Result<()> {
        let job = Job::Settle { lowers: lowers.len() };
        self.after(&unpacked.staged, layer, &unpacked.left, job, lowers, limits, switch)
    }

    #[expect(clippy::too_many_arguments, reason = "a job, what it works on, and who may end it")]
    fn after(
        &self,
        staged: &Staged,
        layer: DiffId,
        left: &Left,
        job: Job,
        lowers: &[OwnedFd],
        limits: &Limits,
        switch: &Switch,
    ) -> Result<()> {
        seek(&left.asks, SeekFrom::Start(0)).map_err(|error| Error::store("read what a layer asks", error))?;
        let folder = staged.folder()?;
        let fds = &[folder.as_fd(), left.asks.as_fd()];
        let reserve = Reserve::new(staged.store(), limits.reserve);
        let task = Task { layer, job, xattrs: staged.xattrs(), limits, fds, lowers };
        let process = Process::start(self, switch, Some(&reserve), &task)?;
        self.note(process.confined()?);
        match process.verdict()? {
            Said::Settled => Ok(()),
            said => Err(process.nonsense(&said)),
        }
    }
}

/// A file in memory for what a layer asks of those below: an unpacker writes it, another reads it. It never grows.
fn asks_file(limits: &Limits) -> Result<OwnedFd> {
    let failed = |error: Errno| Error::store("keep what a layer asks of those below", error);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create("molt-asks", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => memfd_create("molt-asks", flags),
        result => result,
    }
    .map_err(failed)?;
    ftruncate(&file, limits.deferred_bytes as u64 + (64 << 10)).map_err(failed)?;
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).map_err(failed)?;
    Ok(file)
}
