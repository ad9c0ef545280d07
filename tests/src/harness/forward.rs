//! A loopback port that leads to a Unix socket, for clients that know no other way.
//!
//! In: the socket. Out: a port, as long as it is held. Must not: look at what it carries.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// The port; closed when dropped.
#[derive(Debug)]
pub struct Forward {
    /// Where it is.
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Forward {
    /// Leads to `socket`.
    pub fn to(socket: &Path) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (over, socket) = (Arc::new(AtomicBool::new(false)), socket.to_owned());
        let seen = Arc::clone(&over);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                let socket = socket.clone();
                // One that breaks off is the client's to notice.
                thread::spawn(move || drop(carry(&stream, &socket)));
            }
        });
        Ok(Self { address, over })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // So that the listener looks.
        drop(TcpStream::connect(self.address));
    }
}

fn carry(client: &TcpStream, socket: &PathBuf) -> io::Result<()> {
    let server = UnixStream::connect(socket)?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let up = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut &server, &mut &*client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    let _ = up.join();
    Ok(())
}
