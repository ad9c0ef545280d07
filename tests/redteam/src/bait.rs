//! A process of the container, beside PID 1 and outside of every generation, of the same user as the workload: what it
//! offers, no workload may find.
//!
//! In: `RT_ABSTRACT`. Out: System V memory, queue and semaphores under [`KEY`], a POSIX queue, two abstract sockets; `ready`
//! on standard output; then it waits for the end of its input. Must not: run inside of a generation.

use std::{
    io::{Read as _, Write as _},
    os::linux::net::SocketAddrExt as _,
    os::unix::net::{SocketAddr, UnixDatagram, UnixListener},
    process::ExitCode,
};

use crate::{
    aid::{given, n},
    probe::Answer,
    raw::call,
};

/// Of all System V objects.
pub(crate) const KEY: i32 = 0x6d6f_6c74;

const MAKE: i64 = 0o1000 | 0o666;

/// Lays it all out.
pub(crate) fn lay() -> ExitCode {
    let made = [
        call(libc::SYS_shmget, &mut [n(KEY.into()), n(4096), n(MAKE)]),
        call(libc::SYS_msgget, &mut [n(KEY.into()), n(MAKE)]),
        call(libc::SYS_semget, &mut [n(KEY.into()), n(1), n(MAKE)]),
    ];
    if made.iter().any(Result::is_err) || crate::secrets::open_queue() != Answer::word("ok") {
        eprintln!("molt-redteam: the bait could not be laid: {made:?}");
        return ExitCode::FAILURE;
    }
    let Ok(name) = given("RT_ABSTRACT") else { return ExitCode::from(2) };
    let stream = SocketAddr::from_abstract_name(&name).and_then(|address| UnixListener::bind_addr(&address));
    let datagram = SocketAddr::from_abstract_name(format!("{name}-datagrams"))
        .and_then(|address| UnixDatagram::bind_addr(&address));
    let (Ok(_stream), Ok(_datagram)) = (stream, datagram) else { return ExitCode::FAILURE };
    println!("ready");
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}
