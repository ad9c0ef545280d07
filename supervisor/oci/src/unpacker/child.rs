//! A decoder or an unpacker: a fresh exec of Molt's own file that takes an order, confines itself, and works.
//!
//! In: the control socket on descriptor 3, and on it one order with its descriptors. Out: one word that the walls stand,
//! one verdict, an exit. Must not: use a thread, an environment variable or a file of the system; read a byte of the
//! layer before it is confined.

use std::{
    fs::File,
    io::{BufReader, BufWriter, ErrorKind, Read, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use molt_confine::step::{At as _, Step, refuse};
use molt_sys::process::exit_now;

use super::{
    CONTROL,
    walls::{self, Power, Reach},
    wire::{Fault, Job, Order, Rest, Said, VERSION},
};
use crate::{
    config::Limits,
    error::{Error, Result},
    layer::{
        apply::{self, Options},
        decode::{Packing, Plain, stream_error},
        settle::settle,
        tree::{Asks, XattrNamespace, mark_hidden},
    },
};

const BUFFER: usize = 256 << 10;
const PIPE: i32 = rustix::process::Signal::PIPE.as_raw();

/// An order with what travelled beside it.
struct Taken {
    order: Order,
    /// None for one that decodes.
    reach: Option<Reach>,
    rest: Vec<File>,
}

/// Runs one of the processes of a layer; never returns. For the very start of `main`, before anything else is done.
pub fn run() -> ! {
    let Some(control) = molt_sys::process::inherited(CONTROL).map(Arc::new) else { exit_now(125) };
    if molt_sys::process::close_from(CONTROL + 1).is_err() {
        exit_now(125)
    }
    // Those of Rust's runtime would have the last word on a crash, by a call that the filter does not have.
    // And who decodes is to say that nobody reads it, not to be killed for it.
    if molt_sys::signal::reset().is_err() || molt_sys::signal::block(&[PIPE]).is_err() {
        exit_now(125)
    }
    // What is wrong in this program is a verdict too: unwinding or a signal would say less.
    let voice = Arc::clone(&control);
    std::panic::set_hook(Box::new(move |panic| {
        say(&voice, &Said::Failed(Fault::Internal { why: format!("failed: {panic}") }));
        exit_now(101)
    }));
    let status = match work(&control) {
        Ok(said) => {
            say(&control, &said);
            0
        }
        Err(fault) => {
            say(&control, &Said::Failed(fault));
            1
        }
    };
    exit_now(status)
}

fn work(control: &OwnedFd) -> Result<Said, Fault> {
    let Taken { order, reach, rest } = receive(control).map_err(Fault::Wall)?;
    let Order { job, xattrs, limits, .. } = order;
    let mut rest = rest.into_iter();
    let mut next = || rest.next().ok_or_else(|| Fault::Wall(refuse("receive", "a descriptor is missing")));
    let Some(reach) = reach else {
        let (packed, plain) = (next()?, next()?);
        let missing = walls::seal(control, &limits).map_err(Fault::Wall)?;
        say(control, &Said::Ready { missing });
        return match job {
            Job::Decode(packing) => decode(packed, plain, packing, &limits).map_err(Fault::from),
            _ => Err(Fault::Wall(refuse("receive", "no folder"))),
        };
    };
    let power = match (job, xattrs) {
        (Job::Mark | Job::Settle { .. }, XattrNamespace::Trusted) => Power::Mark,
        _ => Power::Unpack,
    };
    let (reach, missing) = walls::build(control, reach, &limits, power).map_err(Fault::Wall)?;
    say(control, &Said::Ready { missing });
    match job {
        Job::Check | Job::Decode(_) => Ok(Said::Settled),
        Job::Unpack => {
            let mut plain = Ending { pipe: next()?, left: limits.layer_bytes, reached: false };
            match unpack(&mut plain, next()?, reach, &limits) {
                Ok(rest) => Ok(Said::Unpacked { rest }),
                Err(error) if plain.reached => Ok(Said::Short(error.into())),
                Err(error) => Err(error.into()),
            }
        }
        Job::Mark | Job::Settle { .. } => {
            let asks = Asks::read(&mut BufReader::new(next()?), &limits)?;
            mark_hidden(reach.folder.as_fd(), &asks, xattrs)?;
            if job != Job::Mark {
                settle(&reach.folder, asks, &reach.lowers, Options { limits: &limits, xattrs })?;
            }
            Ok(Said::Settled)
        }
    }
}

fn decode(packed: File, mut plain: File, packing: Packing, limits: &Limits) -> Result<Said> {
    let mut stream = Plain::new(BufReader::with_capacity(BUFFER, packed), packing, limits)?;
    let mut piece = vec![0; BUFFER];
    loop {
        let count = fill(&mut stream, &mut piece).map_err(|error| stream_error("read the tar stream", error))?;
        if count == 0 {
            return Ok(Said::Decoded { plain: stream.finish()? });
        }
        match plain.write_all(piece.get(..count).unwrap_or_default()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Said::Unread),
            Err(source) => return Err(Error::Store { operation: "pass on what was decoded".to_owned(), source }),
        }
    }
}

/// Reads until `out` is full or nothing is left: what is written then depends on the bytes, not on when they came.
fn fill(source: &mut impl Read, out: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(free) = out.get_mut(filled..).filter(|free| !free.is_empty()) {
        match source.read(free) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The plain bytes, how many more there may be, and whether all were read. Who decodes them counts, too, and may lie.
struct Ending {
    pipe: File,
    left: u64,
    reached: bool,
}

impl Read for Ending {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = fill(&mut self.pipe, out)?;
        self.reached |= count < out.len();
        self.left =
            self.left.checked_sub(count as u64).ok_or_else(|| std::io::Error::other("more than a layer may have"))?;
        Ok(count)
    }
}

fn unpack(plain: &mut Ending, asks_file: File, reach: Reach, limits: &Limits) -> Result<Rest> {
    let asks = apply::apply(&mut *plain, reach.folder, limits)?;
    // What follows the end of the archive belongs to the layer: it is hashed by who decodes it.
    std::io::copy(plain, &mut std::io::sink()).map_err(|error| stream_error("read to its end", error))?;
    let rest = match (asks.is_empty(), asks.hidden.is_empty()) {
        (false, _) => Rest::Parents,
        (true, false) => Rest::Marks,
        (true, true) => Rest::Nothing,
    };
    if rest != Rest::Nothing {
        let mut out = BufWriter::new(asks_file);
        asks.write(&mut out)
            .and_then(|()| out.flush())
            .map_err(|error| Error::store("keep what the layer asks of those below", error))?;
    }
    Ok(rest)
}

fn receive(control: &OwnedFd) -> Step<Taken> {
    let gone = || refuse("receive", "the supervisor is gone");
    let mut bytes = Vec::new();
    let fds = molt_sys::socket::receive(control, &mut bytes).at("receive", "order")?.ok_or_else(gone)?;
    let order: Order = serde_json::from_slice(&bytes).map_err(|error| refuse("receive", error.to_string()))?;
    if order.version != VERSION {
        return Err(refuse("receive", format!("an order of version {}, not {VERSION}", order.version)));
    }
    let mut fds = fds.into_iter();
    let folder = match order.job {
        Job::Decode(_) => None,
        _ => Some(fds.next().ok_or_else(|| refuse("receive", "no folder"))?),
    };
    let rest = fds.map(File::from).collect();
    let mut lowers = Vec::new();
    if let Job::Settle { lowers: count } = order.job {
        while lowers.len() < count {
            let more = molt_sys::socket::receive(control, &mut bytes).at("receive", "lowers")?.ok_or_else(gone)?;
            if more.is_empty() {
                return Err(refuse("receive", "a message without lower layers"));
            }
            lowers.extend(more);
        }
    }
    Ok(Taken { order, reach: folder.map(|folder| Reach { folder, lowers }), rest })
}

/// Writes one datagram; with `write`, as its filter has no call that could send a descriptor. A supervisor that is gone
/// has killed this process by then.
fn say(control: &OwnedFd, said: &Said) {
    if let Ok(bytes) = serde_json::to_vec(said) {
        let _ = rustix::io::write(control, &bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decoder may have been taken over, and with it the count that it keeps.
    #[test]
    fn no_more_plain_bytes_are_taken_than_a_layer_may_have() {
        for (limit, taken) in [(9, false), (10, true), (11, true)] {
            let (read, write) = rustix::pipe::pipe().unwrap();
            File::from(write).write_all(b"0123456789").unwrap();
            let mut plain = Ending { pipe: File::from(read), left: limit, reached: false };
            let mut bytes = [0; 4];
            let read: std::io::Result<Vec<_>> = (0..3).map(|_| plain.read(&mut bytes)).collect();
            assert_eq!(read.is_ok(), taken, "{limit}: {read:?}");
            assert!(plain.reached);
        }
    }
}
