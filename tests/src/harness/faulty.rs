//! A registry on a bad day: an HTTP proxy in front of a healthy one.
//!
//! In: rules, each a part of a path, a fault, and how often. Out: answers that are late, short,
//! wrong or missing, and a list of every request that came. It writes bytes by hand, because an
//! HTTP library would refuse to announce more than it sends. Must not: alter what no rule names.

use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::http;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This status (with these header lines, each ended by CR LF) instead of an answer.
    Status(u16, &'static str),
    /// The body ends after this many bytes; the length announced stays.
    Truncate(u64),
    /// The byte at this place has its bits turned over.
    Corrupt(u64),
    /// After this many bytes of the body nothing more comes, for as long as the client waits.
    Stall(u64),
    /// After this many bytes of the body one more comes now and then: never so late that nothing seems to come.
    Drip(u64),
    /// Another `Content-Type`.
    ContentType(&'static str),
    /// The answer is delayed.
    Delay(Duration),
    /// The connection is closed without a word.
    Close,
    /// This instead of the answer's body, with status 200; the request is not passed on.
    Body(String),
    /// The request is passed on, and its answer is lost.
    Deaf,
}

/// A fault and where it strikes.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Strikes requests whose `METHOD PATH` contains this.
    pub matches: String,
    /// What goes wrong.
    pub fault: Fault,
    /// How often; `None` for always.
    pub times: Option<u32>,
}

#[derive(Debug, Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<String>>,
    done: AtomicBool,
}

/// A proxy at work; it stops when dropped.
#[derive(Debug)]
pub struct Faulty {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Faulty {
    /// Starts a proxy on a free port in front of `upstream`, with no rule.
    pub fn start(upstream: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if of_thread.done.load(Ordering::Relaxed) {
                    return;
                }
                let of_stream = Arc::clone(&of_thread);
                // A client that hangs up in the middle is what these tests provoke.
                thread::spawn(move || drop(pass(&of_stream, stream, upstream)));
            }
        });
        Ok(Self { address, shared })
    }

    /// `127.0.0.1:PORT/NAME`.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Adds a rule; the first that matches and has not worn off strikes.
    pub fn rule(&self, matches: &str, fault: Fault, times: impl Into<Option<u32>>) {
        lock(&self.shared.rules).push(Rule { matches: matches.to_owned(), fault, times: times.into() });
    }

    /// Forgets all rules and requests.
    pub fn heal(&self) {
        lock(&self.shared.rules).clear();
        lock(&self.shared.requests).clear();
    }

    /// Every request so far, as `METHOD PATH`.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::Relaxed);
        // Wakes the accept; if this fails nobody listens any more.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn strike(shared: &Shared, request: &str) -> Option<Fault> {
    let mut rules = lock(&shared.rules);
    let rule = rules.iter_mut().find(|rule| request.contains(&rule.matches) && rule.times != Some(0))?;
    rule.times = rule.times.map(|times| times - 1);
    Some(rule.fault.clone())
}

/// One request, one answer, one connection each way.
fn pass(shared: &Shared, client: TcpStream, upstream: SocketAddr) -> io::Result<()> {
    let mut from_client = BufReader::new(client.try_clone()?);
    let mut client = client;
    let (first, headers) = read_head(&mut from_client)?;
    let request = first.rsplit_once(' ').map_or(first.as_str(), |(request, _)| request).to_owned();
    lock(&shared.requests).push(request.clone());
    let fault = strike(shared, &request);
    match &fault {
        Some(Fault::Close) => return client.shutdown(Shutdown::Both),
        Some(Fault::Delay(delay)) => thread::sleep(*delay),
        Some(Fault::Status(code, extra)) => {
            let head = format!("HTTP/1.1 {code} Fault\r\nContent-Length: 2\r\nConnection: close\r\n{extra}\r\n{{}}");
            return client.write_all(head.as_bytes());
        }
        Some(Fault::Body(body)) => {
            let head =
                format!("HTTP/1.1 200 Fault\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            return client.write_all(head.as_bytes());
        }
        _ => {}
    }
    let mut server = TcpStream::connect(upstream)?;
    // The client's own Host goes on, so that the locations of uploads point back here.
    let kept = headers.iter().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let lines: String = kept.map(|line| format!("{line}\r\n")).collect();
    server.write_all(format!("{first}\r\n{lines}Connection: close\r\n\r\n").as_bytes())?;
    let mut upload = server.try_clone()?;
    thread::spawn(move || io::copy(&mut from_client, &mut upload));

    let mut from_server = BufReader::new(server);
    let (status, headers) = read_head(&mut from_server)?;
    if fault == Some(Fault::Deaf) {
        return client.shutdown(Shutdown::Both);
    }
    let mut head = format!("{status}\r\n");
    for line in headers {
        match &fault {
            Some(Fault::ContentType(other)) if line.to_ascii_lowercase().starts_with("content-type:") => {
                head.push_str(&format!("Content-Type: {other}\r\n"));
            }
            _ => head.push_str(&format!("{line}\r\n")),
        }
    }
    head.push_str("\r\n");
    client.write_all(head.as_bytes())?;
    match fault {
        Some(Fault::Truncate(at)) => {
            io::copy(&mut from_server.take(at), &mut client)?;
        }
        Some(Fault::Stall(at)) => {
            io::copy(&mut from_server.take(at), &mut client)?;
            // Until the client hangs up.
            client.read_exact(&mut [0])?;
        }
        Some(Fault::Drip(at)) => {
            io::copy(&mut from_server.by_ref().take(at), &mut client)?;
            let mut byte = [0];
            while from_server.read(&mut byte)? == 1 {
                client.write_all(&byte)?;
                thread::sleep(Duration::from_millis(50));
            }
        }
        Some(Fault::Corrupt(at)) => {
            io::copy(&mut from_server.by_ref().take(at), &mut client)?;
            let mut byte = [0];
            from_server.read_exact(&mut byte)?;
            client.write_all(&[!byte[0]])?;
            io::copy(&mut from_server, &mut client)?;
        }
        _ => {
            io::copy(&mut from_server, &mut client)?;
        }
    }
    client.shutdown(Shutdown::Both)
}

/// First line and header lines, as they are.
fn read_head(reader: &mut BufReader<TcpStream>) -> io::Result<(String, Vec<String>)> {
    let first = http::read_line(reader)?;
    let mut lines = Vec::new();
    loop {
        let line = http::read_line(reader)?;
        if line.is_empty() {
            return Ok((first, lines));
        }
        lines.push(line);
    }
}
