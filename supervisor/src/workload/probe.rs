//! One attempt of one probe.
//!
//! In: a probe, the run it asks. Out: healthy or why not. Must not: follow a redirect, read more than 4 KiB, outlive its
//! timeout, or run anything outside the workload's confinement.

use std::{collections::BTreeMap, os::fd::AsFd as _, sync::Arc};

use molt_core::spec::{Action, HttpGet, Probe};
use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};

use super::{notify::Said, run::Init};

/// Runs one attempt within the probe's timeout.
pub(crate) async fn attempt(probe: &Probe, init: &Arc<Init>, said: &watch::Receiver<Said>) -> Result<(), String> {
    let timeout = probe.timeout.as_duration();
    let limit = format!("no answer within {} ms", timeout.as_millis());
    let asked = async {
        match &probe.action {
            Action::Exec(exec) => run(init, &exec.command).await,
            Action::HttpGet(get) => http(get).await,
            Action::TcpSocket(tcp) => connect(&tcp.host, tcp.port).await.map(drop),
            Action::Notify if said.borrow().ready => Ok(()),
            Action::Notify => Err("READY=1 has not been sent yet".to_owned()),
        }
    };
    crate::timer::timeout(timeout, asked).await.unwrap_or(Err(limit))
}

/// What the probe asks, for transcripts.
pub(crate) fn describe(probe: &Probe) -> String {
    match &probe.action {
        Action::Exec(exec) => format!("exec {}", exec.command.join(" ")),
        Action::HttpGet(get) => format!("GET http://{}{}", authority(&get.host, get.port), get.path),
        Action::TcpSocket(tcp) => format!("tcp {}", authority(&tcp.host, tcp.port)),
        Action::Notify => "notify".to_owned(),
    }
}

async fn run(init: &Arc<Init>, command: &[String]) -> Result<(), String> {
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| format!("failed to open /dev/null: {errno}"))?;
    let fd = null.as_fd();
    let (id, ended) =
        init.exec(command.to_vec(), BTreeMap::new(), false, [fd, fd, fd]).map_err(|why| why.to_string())?;
    // Dropped by the timeout: the process is killed.
    let guard = KillOnDrop::of(init, id);
    let status = ended.await.map_err(|_| "the generation went away".to_owned())?;
    guard.ended();
    if status == 0 { Ok(()) } else { Err(format!("exit status {status}")) }
}

/// Kills an exec'd process whose waiter gave up.
#[derive(Debug)]
pub(crate) struct KillOnDrop {
    init: Arc<Init>,
    running: Option<u32>,
}

impl KillOnDrop {
    /// Of what `init` runs under `id`.
    pub(crate) fn of(init: &Arc<Init>, id: u32) -> Self {
        Self { init: Arc::clone(init), running: Some(id) }
    }

    /// There is nothing left to kill.
    pub(crate) fn ended(mut self) {
        self.running = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(id) = self.running {
            self.init.signal_exec(id, 9);
        }
    }
}

/// Host and port as a URL and a Host header have them: an IPv6 address in brackets (RFC 9110, 7.2; RFC 3986, 3.2.2).
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    // Addresses and `localhost` only: no resolver, so no NSS.
    let address = if host == "localhost" { "127.0.0.1" } else { host };
    let address: std::net::IpAddr =
        address.trim_matches(['[', ']']).parse().map_err(|_| format!("'{host}' is not an address"))?;
    TcpStream::connect((address, port)).await.map_err(|error| format!("connect {}: {error}", authority(host, port)))
}

fn request(get: &HttpGet) -> String {
    let host = authority(&get.host, get.port);
    format!("GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: molt\r\nConnection: close\r\n\r\n", get.path)
}

async fn http(get: &HttpGet) -> Result<(), String> {
    let mut stream = connect(&get.host, get.port).await?;
    stream.write_all(request(get).as_bytes()).await.map_err(|error| format!("send: {error}"))?;
    let mut head = Vec::new();
    let mut chunk = [0; 512];
    loop {
        match status(&head) {
            Some(Ok(200..=399)) => return Ok(()),
            Some(Ok(code)) => return Err(format!("status {code}")),
            Some(Err(NotHttp)) => return Err("not an HTTP answer".to_owned()),
            None if head.len() >= HEAD => return Err(format!("no status in the first {HEAD} bytes of its answer")),
            None => {}
        }
        match stream.read(&mut chunk).await {
            Ok(0) if head.is_empty() => return Err("closed without an answer".to_owned()),
            Ok(0) => return Err("not an HTTP answer".to_owned()),
            Ok(length) => head.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(error) => return Err(format!("read: {error}")),
        }
    }
}

/// Most that is read of an answer: it is for its status only.
const HEAD: usize = 4096;

/// What began with something else than a status line.
#[derive(Debug, PartialEq, Eq)]
struct NotHttp;

/// The status of an answer that begins with `head`, past those that only announce another one (1xx); none where it has
/// not been sent yet.
fn status(head: &[u8]) -> Option<Result<u16, NotHttp>> {
    let mut rest = head;
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest.get(..end).unwrap_or_default().trim_ascii_end();
        let code = match line.strip_prefix(b"HTTP/1.").unwrap_or_default() {
            [b'0' | b'1', b' ', code @ ..] => code.split(|byte| *byte == b' ').next(),
            _ => None,
        };
        let code = code.filter(|code| code.len() == 3 && code.iter().all(u8::is_ascii_digit));
        match code.and_then(|code| std::str::from_utf8(code).ok()?.parse().ok()) {
            None => return Some(Err(NotHttp)),
            Some(100..=199) => {
                let after = rest.windows(4).position(|window| window == b"\r\n\r\n")?;
                rest = rest.get(after + 4..).unwrap_or_default();
            }
            Some(code) => return Some(Ok(code)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use tokio::net::TcpListener;

    use super::*;

    /// A server whose answer is `first`, then `again` for ever, a piece in so many milliseconds; its port.
    async fn server(first: &'static [u8], again: &'static [u8], pause: u64) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut request = [0; 512];
                    let _ = stream.read(&mut request).await;
                    let mut sent = stream.write_all(first).await;
                    while sent.is_ok() && !again.is_empty() {
                        crate::timer::sleep(Duration::from_millis(pause)).await;
                        sent = stream.write_all(again).await;
                    }
                });
            }
        });
        (port, asked)
    }

    async fn ask(port: u16) -> Result<(), String> {
        let get = HttpGet { path: "/".to_owned(), port, host: "127.0.0.1".to_owned() };
        crate::timer::timeout(Duration::from_secs(2), http(&get)).await.unwrap_or_else(|_| Err("late".to_owned()))
    }

    #[tokio::test]
    async fn hostile_answers_are_a_miss_or_a_status_and_nothing_more() {
        type Case = (&'static [u8], &'static [u8], u64, Result<(), &'static str>);
        const ENDLESS: &[u8] = &[b'x'; 16 << 10];
        let early =
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 x\r\n\r\n";
        let limit = "no status in the first 4096 bytes of its answer";
        let cases: [Case; 16] = [
            (b"HTTP/1.1 200 OK\r\n\r\n", b"", 0, Ok(())),
            (b"HTTP/1.0 399\n", b"", 0, Ok(())),
            // The body and the rest of the head are not waited for.
            (b"HTTP/1.1 200 OK\r\n", ENDLESS, 0, Ok(())),
            (b"HTTP/1.1 200 OK\r\nX: ", b"y", 100, Ok(())),
            (early, b"", 0, Ok(())),
            (b"HTTP/1.1 503 ill\r\n", ENDLESS, 0, Err("status 503")),
            (b"HTTP/1.1 404 none\r\n\r\n", b"", 0, Err("status 404")),
            (b"HTTP/1.1 2", ENDLESS, 0, Err(limit)),
            (b"", ENDLESS, 0, Err(limit)),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0, Err(limit)),
            (b"HTTP/1.1 102 x\r\nA: ", ENDLESS, 0, Err(limit)),
            (b"", b"x", 50, Err("late")),
            (b"SSH-2.0-OpenSSH_9.2\r\n", b"", 0, Err("not an HTTP answer")),
            (b"\x00\xff\x1b[2J\n", b"", 0, Err("not an HTTP answer")),
            (b"HTTP/1.1 +20 x\r\n", b"", 0, Err("not an HTTP answer")),
            (b"", b"", 0, Err("closed without an answer")),
        ];
        for (first, again, pause, expected) in cases {
            let (port, _) = server(first, again, pause).await;
            let start = crate::timer::Instant::now();
            let shown = String::from_utf8_lossy(first).into_owned();
            assert_eq!(ask(port).await, expected.map_err(str::to_owned), "{shown:?}");
            assert!(start.elapsed() < Duration::from_secs(5), "{shown:?}");
        }
    }

    #[test]
    fn an_ipv6_address_is_named_in_brackets() {
        for host in ["::1", "[::1]"] {
            let get = HttpGet { path: "/ready".to_owned(), port: 8080, host: host.to_owned() };
            assert!(request(&get).contains("\r\nHost: [::1]:8080\r\n"), "{}", request(&get));
        }
        assert_eq!(authority("127.0.0.1", 80), "127.0.0.1:80");
        assert_eq!(authority("localhost", 80), "localhost:80");
    }

    #[tokio::test]
    async fn redirects_are_not_followed() {
        let (elsewhere, asked) = server(b"HTTP/1.1 200 OK\r\n\r\n", b"", 0).await;
        let answer = format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{elsewhere}/\r\n\r\n");
        let (port, _) = server(answer.leak().as_bytes(), b"", 0).await;
        assert_eq!(ask(port).await, Ok(()));
        assert_eq!(asked.load(Ordering::Relaxed), 0);
    }
}
