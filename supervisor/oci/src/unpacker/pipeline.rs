//! A layer on its way through two processes: the decoder, which can name no file, and the unpacker, which makes files and
//! decodes nothing. They work at the same time.
//!
//! In: the packed bytes as they arrive, the layer's folder. Out: what the decoder says the plain bytes hash to, what the
//! unpacker says is left to do. Must not: take what one of them says as a consequence for the cause that the other tells.

use std::{
    io::{self, BufRead},
    os::fd::{AsFd as _, OwnedFd},
};

use molt_core::ids::DiffId;
use rustix::{
    io::Errno,
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
};

use super::{
    Unpacker,
    process::{Process, Switch, Task, Woken, watch},
    wire::{Job, Rest, Said},
};
use crate::{
    config::Limits,
    error::{Error, Result},
    layer::packed::Promise,
    reserve::Reserve,
    store::Staged,
};

/// What each of the pipes holds, if the system's limits allow.
const PIPE: usize = 1 << 20;

/// Where the unpacker stands in a pair; the decoder is the first, and so is heard first.
const UNPACKER: usize = 1;

/// Passes `source` through both and waits for what they say.
pub(super) fn run(
    starter: &Unpacker,
    source: &mut impl BufRead,
    staged: &Staged,
    promise: Promise,
    limits: &Limits,
    switch: &Switch,
    asks: &OwnedFd,
) -> Result<(DiffId, Rest)> {
    let Promise { packing, diff_id: layer, .. } = promise;
    let internal = |errno: Errno| Error::Unpacker { layer, why: format!("no pipe for its processes: {errno}") };
    let (packed, ours) = pipe().map_err(internal)?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(internal)?;
    let (plain, theirs) = pipe().map_err(internal)?;
    let folder = staged.folder()?;
    let reserve = Reserve::new(staged.store(), limits.reserve);
    let task = Task { layer, job: Job::Unpack, xattrs: staged.xattrs(), limits, fds: &[], lowers: &[] };
    let fds = &[folder.as_fd(), plain.as_fd(), asks.as_fd()];
    // The first: when it ends, whatever ended the other, whoever waits for the network is woken.
    let unpacker = Process::start(starter, switch, Some(&reserve), &Task { fds, ..task })?;
    let fds = &[packed.as_fd(), theirs.as_fd()];
    let decoder = Process::start(starter, switch, Some(&reserve), &Task { job: Job::Decode(packing), fds, ..task })?;
    drop((packed, theirs, plain, folder));
    for process in [&decoder, &unpacker] {
        starter.note(process.confined()?);
    }
    let both = [&decoder, &unpacker];
    let first = pour(source, &ours, both, limits)?;
    // Where the unpacker has said that it is done, or short of bytes, the decoder's are at their end, too.
    drop(ours);
    let first = first.map_or_else(|| watch(&both, None, limits.unpack_stall), Ok)?;
    let early = if first == Woken::Said(UNPACKER) { Some(unpacker.verdict()?) } else { None };
    let sum = match decoder.verdict()? {
        Said::Decoded { plain } => Some(plain),
        Said::Unread => None,
        said => return Err(decoder.nonsense(&said)),
    };
    let outcome = early.map_or_else(|| unpacker.verdict(), Ok)?;
    match (sum, outcome) {
        (Some(sum), Said::Unpacked { rest }) => Ok((sum, rest)),
        (_, Said::Short(fault)) => Err(unpacker.failed(fault)),
        (None, Said::Unpacked { .. }) => {
            let why = "its unpacker says that all is unpacked, its decoder that not all was read".to_owned();
            Err(Error::Unpacker { layer, why })
        }
        (_, said) => Err(unpacker.nonsense(&said)),
    }
}

/// Reading end, writing end. A smaller one than wanted is slower and nothing else.
fn pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let _ = fcntl_setpipe_size(&write, PIPE);
    Ok((read, write))
}

/// Passes the bytes of `source` on until it ends, one of them says something, which is what is given then, or
/// nobody wants more. The pipe is closed by who made it.
fn pour(source: &mut impl BufRead, pipe: &OwnedFd, both: [&Process<'_>; 2], limits: &Limits) -> Result<Option<Woken>> {
    let [decoder, unpacker] = both;
    let room = || watch(&both, Some(pipe), limits.unpack_stall);
    loop {
        unpacker.look()?;
        let piece = match source.fill_buf() {
            Ok(piece) => piece,
            // While nothing came it is time to look, or one of them ended and its end was seen before what it said was
            // read.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                if let said @ Woken::Said(_) = room()? {
                    return Ok(Some(said));
                }
                continue;
            }
            Err(error) => return Err(crate::layer::decode::stream_error("read it", error)),
        };
        if piece.is_empty() {
            return Ok(None);
        }
        match rustix::io::write(pipe, piece) {
            Ok(count) => source.consume(count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if let said @ Woken::Said(_) = room()? {
                    return Ok(Some(said));
                }
            }
            Err(Errno::PIPE) => return Ok(None),
            Err(errno) => return Err(decoder.lost(errno)),
        }
    }
}
