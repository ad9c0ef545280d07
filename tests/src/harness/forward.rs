//! A loopback port that leads somewhere else, for clients that know no other way, and to count what they say.
//!
//! In: a Unix socket, or an address. Out: a port, as long as it is held; bytes. Must not: look at what it carries.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::net::Shutdown as Half;

/// The port; closed when dropped.
#[derive(Debug)]
pub struct Forward {
    /// Where it is.
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
}

impl Forward {
    /// Leads to `socket`.
    pub fn to(socket: &Path) -> io::Result<Self> {
        let socket = socket.to_owned();
        Self::start(move || UnixStream::connect(&socket).map(OwnedFd::from))
    }

    /// Leads to `address`.
    pub fn to_tcp(address: SocketAddr) -> io::Result<Self> {
        Self::start(move || TcpStream::connect(address).map(OwnedFd::from))
    }

    fn start(connect: impl Fn() -> io::Result<OwnedFd> + Send + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (over, carried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (seen, count) = (Arc::clone(&over), Arc::clone(&carried));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                // One that breaks off is the client's to notice.
                if let Ok(server) = connect() {
                    let count = Arc::clone(&count);
                    thread::spawn(move || drop(carry(&stream, &server, &count)));
                }
            }
        });
        Ok(Self { address, over, carried })
    }

    /// Bytes so far, both ways.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // So that the listener looks.
        drop(TcpStream::connect(self.address));
    }
}

fn carry(client: &TcpStream, server: &OwnedFd, count: &Arc<AtomicU64>) -> io::Result<()> {
    let (from, to, other) = (client.try_clone()?, server.try_clone()?, Arc::clone(count));
    let up = thread::spawn(move || {
        let _ = copy(from, std::fs::File::from(to.try_clone()?), &other);
        Ok::<_, io::Error>(rustix::net::shutdown(&to, Half::Write)?)
    });
    let _ = copy(std::fs::File::from(server.try_clone()?), client, count);
    let _ = client.shutdown(Shutdown::Both);
    let _ = rustix::net::shutdown(server, Half::Both);
    let _ = up.join();
    Ok(())
}

fn copy(mut from: impl Read, mut to: impl Write, count: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            length => {
                count.fetch_add(length as u64, Ordering::Relaxed);
                to.write_all(&buffer[..length])?;
            }
        }
    }
}
