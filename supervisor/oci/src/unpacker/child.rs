//! The unpacker: a fresh exec of Molt's own file that takes an order, confines itself, and works.
//!
//! In: the control socket on descriptor 3, and on it one order with its descriptors. Out: one word that the walls stand,
//! one verdict, an exit. Must not: use a thread, an environment variable or a file of the system; read a byte of the
//! layer before it is confined.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write as _},
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
    error::{Error, Result},
    layer::{
        apply::Options,
        decode::Packing,
        extract,
        settle::settle,
        tree::{Asks, XattrNamespace, mark_hidden},
    },
};

const BUFFER: usize = 256 << 10;

/// An order with what travelled beside it.
struct Taken {
    order: Order,
    reach: Reach,
    rest: Vec<OwnedFd>,
}

/// Runs the unpacker; never returns. For the very start of `main`, before anything else is done.
pub fn run() -> ! {
    let Some(control) = molt_sys::process::inherited(CONTROL).map(Arc::new) else { exit_now(125) };
    if molt_sys::process::close_from(CONTROL + 1).is_err() {
        exit_now(125)
    }
    // Those of Rust's runtime would have the last word on a crash, by a call that the filter does not have.
    if molt_sys::signal::reset().is_err() {
        exit_now(125)
    }
    // What is wrong in this program is a verdict too: unwinding or a signal would say less.
    let voice = Arc::clone(&control);
    std::panic::set_hook(Box::new(move |panic| {
        say(&voice, &Said::Failed(Fault::Internal { why: format!("its unpacker failed: {panic}") }));
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
    let power = match (job, xattrs) {
        (Job::Mark | Job::Settle { .. }, XattrNamespace::Trusted) => Power::Mark,
        _ => Power::Unpack,
    };
    let (reach, missing) = walls::build(control, reach, &limits, power).map_err(Fault::Wall)?;
    say(control, &Said::Ready { missing });
    let mut rest = rest.into_iter();
    let mut next = || rest.next().ok_or_else(|| Fault::Wall(refuse("receive", "a descriptor is missing")));
    match job {
        Job::Check => Ok(Said::Settled),
        Job::Unpack(packing) => {
            let (packed, asks) = (next()?, next()?);
            let limits = &limits;
            unpack(packed, asks, reach, packing, limits).map_err(Fault::from)
        }
        Job::Mark | Job::Settle { .. } => {
            let asks = Asks::read(&mut BufReader::new(File::from(next()?)), &limits)?;
            mark_hidden(reach.folder.as_fd(), &asks, xattrs)?;
            if job != Job::Mark {
                settle(&reach.folder, asks, &reach.lowers, Options { limits: &limits, xattrs })?;
            }
            Ok(Said::Settled)
        }
    }
}

fn unpack(
    packed: OwnedFd,
    asks_file: OwnedFd,
    reach: Reach,
    packing: Packing,
    limits: &crate::config::Limits,
) -> Result<Said> {
    let source = BufReader::with_capacity(BUFFER, File::from(packed));
    let (plain, asks) = extract(source, reach.folder, packing, limits)?;
    let rest = match (asks.is_empty(), asks.hidden.is_empty()) {
        (false, _) => Rest::Parents,
        (true, false) => Rest::Marks,
        (true, true) => Rest::Nothing,
    };
    if rest != Rest::Nothing {
        let mut out = BufWriter::new(File::from(asks_file));
        asks.write(&mut out)
            .and_then(|()| out.flush())
            .map_err(|error| Error::store("keep what the layer asks of those below", error))?;
    }
    Ok(Said::Unpacked { plain, rest })
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
    let folder = fds.next().ok_or_else(|| refuse("receive", "no folder"))?;
    let rest = fds.collect();
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
    Ok(Taken { order, reach: Reach { folder, lowers }, rest })
}

/// Writes one datagram; with `write`, as its filter has no call that could send a descriptor. A supervisor that is gone
/// has killed this process by then.
fn say(control: &OwnedFd, said: &Said) {
    if let Ok(bytes) = serde_json::to_vec(said) {
        let _ = rustix::io::write(control, &bytes);
    }
}
