//! The demo's daemon: notes its start in its state, says that it is ready, and waits for the signal to stop.
//!
//! In: its version from `/etc/version`, `NOTIFY_SOCKET`. Out: a line in `/sandbox/state/starts`. Must not: be used for
//! anything else.

use std::{io::Write as _, process::ExitCode};

/// First argument that makes this binary the daemon.
pub(crate) const WORD: &str = "demo-daemon";

/// Runs until SIGTERM.
pub(crate) fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "demo daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> std::io::Result<()> {
    let signals = molt_sys::signal::descriptor(&[15]).map_err(std::io::Error::other)?;
    let version = std::fs::read_to_string("/etc/version")?;
    let mut starts = std::fs::OpenOptions::new().create(true).append(true).open("/sandbox/state/starts")?;
    starts.write_all(version.as_bytes())?;
    starts.sync_all()?;
    writeln!(std::io::stdout(), "daemon {} up", version.trim())?;
    if version.trim() == "bad" {
        // As a daemon whose new version cannot reach its peer: it runs, and gives up.
        std::thread::sleep(std::time::Duration::from_millis(300));
        return Err(std::io::Error::other("cannot pair"));
    }
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET") {
        std::os::unix::net::UnixDatagram::unbound()?.send_to(b"READY=1\nSTATUS=paired", path)?;
    }
    loop {
        let mut fds = [rustix::event::PollFd::new(&signals, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) if molt_sys::signal::receive(&signals).is_ok_and(|signal| signal.is_some()) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
