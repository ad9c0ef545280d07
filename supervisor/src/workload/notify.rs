//! The notify socket of a run: what the program says of itself, in the sd_notify(3) protocol.
//!
//! In: datagrams at a path bound into the generation. Out: READY, RELOADING, STOPPING, WATCHDOG, STATUS, MAINPID,
//! EXTEND_TIMEOUT_USEC, by watch channel. Must not: believe anything about another run: each has a socket of its own.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
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
    /// Last `MAINPID=`: a number in its own PID namespace.
    pub(crate) main: Option<u32>,
}

/// A listening socket and the descriptor that is mounted into the generation.
#[derive(Debug)]
pub(crate) struct Notify {
    socket: UnixDatagram,
    path: PathBuf,
    said: watch::Sender<Said>,
}

/// Longest message; what is longer is cut.
const LONGEST: usize = 4096;
/// More than wait at a time: net.unix.max_dgram_qlen, 10 where nobody changed it.
const QUEUED: usize = 512;

/// Most time one message may ask for.
const LONGEST_EXTENSION: Duration = Duration::from_mins(10);

impl Notify {
    /// Makes the socket below `folder`, writable for everyone who can reach it: only its generation can.
    pub(crate) fn bind(folder: &Path, instance: u64) -> std::io::Result<(Arc<Self>, OwnedFd)> {
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
        Ok((Arc::new(Self { socket, path, said: watch::Sender::default() }), node))
    }

    /// What it says, from now on.
    pub(crate) fn said(&self) -> watch::Receiver<Said> {
        self.said.subscribe()
    }

    /// Takes what was sent by now; no more than a queue holds, as whoever floods it would keep PID 1 here.
    pub(crate) fn hear(&self) {
        self.hear_at_most(QUEUED);
    }

    fn hear_at_most(&self, messages: usize) {
        let mut buffer = [0; LONGEST];
        for _ in 0..messages {
            let Ok(length) = self.socket.try_recv(&mut buffer) else { return };
            self.take(buffer.get(..length).unwrap_or_default());
        }
    }

    fn take(&self, message: &[u8]) {
        self.said.send_modify(|said| take(said, &String::from_utf8_lossy(message), Instant::now()));
    }

    /// Listens until the run is gone (nobody wants to know what was said).
    pub(crate) async fn listen(self: Arc<Self>) {
        let mut buffer = vec![0; LONGEST];
        loop {
            tokio::select! {
                received = self.socket.recv(&mut buffer) => match received {
                    Ok(length) => self.take(buffer.get(..length).unwrap_or_default()),
                    Err(error) => {
                        tracing::warn!(%error, "failed to read the notify socket");
                        return;
                    }
                },
                () = self.said.closed() => return,
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
            Some(("RELOADING", "1")) => said.ready = false,
            Some(("MAINPID", number)) => said.main = number.parse().ok().or(said.main),
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
        take(&mut said, "RELOADING=1\nMAINPID=17\nMAINPID=x\nMAINPID=-1", now);
        assert_eq!((said.ready, said.main), (false, Some(17)));
        take(&mut said, "EXTEND_TIMEOUT_USEC=99999999999999", now);
        assert_eq!(said.extended_until, Some(now + LONGEST_EXTENSION));
        take(&mut said, &format!("STATUS={}", "x".repeat(4000)), now);
        assert_eq!(said.status.unwrap().len(), 256);
    }
    #[tokio::test]
    async fn who_floods_it_keeps_nobody() {
        let folder = std::env::temp_dir().join(format!("molt-notify-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (notify, _node) = Notify::bind(&folder, 1).unwrap();
        let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
        for _ in 0..8 {
            sender.send_to(b"WATCHDOG=1", &notify.path).unwrap();
        }
        notify.socket.readable().await.unwrap();
        notify.hear_at_most(5);
        assert_eq!(notify.said.borrow().watchdogs, 5);
        notify.hear();
        assert_eq!(notify.said.borrow().watchdogs, 8);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
