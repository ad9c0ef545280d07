//! The notify socket of a run: what the program says of itself, in the sd_notify(3) protocol.
//!
//! In: datagrams at a path bound into the generation. Out: READY, WATCHDOG, STATUS, EXTEND_TIMEOUT_USEC, by watch
//! channel. Must not: believe anything about another run: each has a socket of its own.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{CWD, Mode, OFlags};
use tokio::{net::UnixDatagram, sync::watch};

use crate::timer::Instant;

/// What a run has said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// `READY=1`.
    pub(crate) ready: bool,
    /// Number of `WATCHDOG=1`.
    pub(crate) watchdogs: u64,
    /// Last `STATUS=`, cut to 256 characters.
    pub(crate) status: Option<String>,
    /// It asked for more time to start: until then.
    pub(crate) extended_until: Option<Instant>,
    /// `STOPPING=1`.
    pub(crate) stopping: bool,
}

/// A listening socket and the descriptor that is mounted into the generation.
#[derive(Debug)]
pub(crate) struct Notify {
    socket: UnixDatagram,
    path: PathBuf,
}

/// Most time one message may ask for.
const LONGEST_EXTENSION: Duration = Duration::from_mins(10);

impl Notify {
    /// Makes the socket below `folder`, writable for everyone who can reach it: only its generation can.
    pub(crate) fn bind(folder: &Path, instance: u64) -> std::io::Result<(Self, OwnedFd)> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.join(format!("notify-{instance}"));
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let socket = UnixDatagram::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        let node = rustix::fs::openat(CWD, &path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        Ok((Self { socket, path }, node))
    }

    /// Listens until the run is gone (the receiver of `said` is dropped).
    pub(crate) async fn listen(self, said: watch::Sender<Said>) {
        let mut buffer = vec![0; 4096];
        loop {
            tokio::select! {
                received = self.socket.recv(&mut buffer) => match received {
                    Ok(length) => {
                        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                        said.send_modify(|said| take(said, &text, Instant::now()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "failed to read the notify socket");
                        return;
                    }
                },
                () = said.closed() => return,
            }
        }
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Takes one datagram.
pub(crate) fn take(said: &mut Said, text: &str, now: Instant) {
    for line in text.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => said.ready = true,
            Some(("WATCHDOG", "1")) => said.watchdogs += 1,
            Some(("STOPPING", "1")) => said.stopping = true,
            Some(("STATUS", status)) => {
                said.status = Some(status.chars().filter(|c| !c.is_control()).take(256).collect());
            }
            Some(("EXTEND_TIMEOUT_USEC", micros)) => {
                let asked = Duration::from_micros(micros.parse().unwrap_or(0)).min(LONGEST_EXTENSION);
                said.extended_until = Some(now + asked);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_is_read_and_bounded() {
        let (mut said, now) = (Said::default(), Instant::now());
        take(&mut said, "STATUS=pairing\u{7}\nREADY=1\nX=\nWATCHDOG=1", now);
        assert_eq!((said.ready, said.watchdogs, said.status.as_deref()), (true, 1, Some("pairing")));
        take(&mut said, "EXTEND_TIMEOUT_USEC=99999999999999", now);
        assert_eq!(said.extended_until, Some(now + LONGEST_EXTENSION));
        take(&mut said, &format!("STATUS={}", "x".repeat(4000)), now);
        assert_eq!(said.status.unwrap().len(), 256);
    }
}
