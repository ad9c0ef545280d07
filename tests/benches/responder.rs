//! The smallest daemon that an update can be seen by: it answers every request with its version.
//!
//! In: `PORT`, the version from `/app/VERSION` or `VERSION`. Out: HTTP on 127.0.0.1; `GET /dirty/MB` writes that much
//! to `/scratch/dirty` first. SIGTERM ends it at once (with a handler, so that it also does as PID 1). One thread, no
//! state, no sync: what is measured around it is not its own. Must not: do anything before it listens that costs time.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

fn main() -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let version = env::var("VERSION").or_else(|_| fs::read_to_string("/app/VERSION")).unwrap_or_default();
    let port = env::var("PORT").ok().and_then(|text| text.parse().ok()).unwrap_or(8080);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        std::process::exit(0);
    });
    let body = format!("{{\"version\":\"{}\"}}", version.trim());
    loop {
        // A client that goes away is its own affair.
        let _ = listener.accept().and_then(|(stream, _)| answer(stream, &body));
    }
}

fn answer(mut stream: TcpStream, body: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut request = [0; 2048];
    let mut length = 0;
    while !request[..length].windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut request[length..])? {
            0 => return Ok(()),
            more => length += more,
        }
    }
    let target = request.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let status = match target.strip_prefix(b"/dirty/").map(|size| dirty(&String::from_utf8_lossy(size))) {
        Some(Err(_)) => "500 Internal Server Error",
        _ => "200 OK",
    };
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(text.as_bytes())?;
    // The client closes first. Otherwise thousands of connections wait out their last minute on this port; an attempt
    // that happens on one of them while nobody listens is not refused but tried again 8 to 12 ms later, and `bind` has to
    // look through all of them.
    stream.read(&mut request).map(drop)
}

fn dirty(megabytes: &str) -> io::Result<()> {
    let megabytes: usize = megabytes.parse().map_err(io::Error::other)?;
    let mut file = File::create("/scratch/dirty")?;
    let block = vec![b'd'; 1 << 20];
    (0..megabytes).try_for_each(|_| file.write_all(&block))
}
