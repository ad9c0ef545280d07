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
        Action::HttpGet(get) => format!("GET http://{}:{}{}", get.host, get.port, get.path),
        Action::TcpSocket(tcp) => format!("tcp {}:{}", tcp.host, tcp.port),
        Action::Notify => "notify".to_owned(),
    }
}

async fn run(init: &Arc<Init>, command: &[String]) -> Result<(), String> {
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| format!("failed to open /dev/null: {errno}"))?;
    let fd = null.as_fd();
    let (id, ended) = init.exec(command.to_vec(), BTreeMap::new(), false, [fd, fd, fd]);
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

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    // Addresses and `localhost` only: no resolver, so no NSS.
    let address = if host == "localhost" { "127.0.0.1" } else { host };
    let address: std::net::IpAddr =
        address.trim_matches(['[', ']']).parse().map_err(|_| format!("'{host}' is not an address"))?;
    TcpStream::connect((address, port)).await.map_err(|error| format!("connect {host}:{port}: {error}"))
}

async fn http(get: &HttpGet) -> Result<(), String> {
    let mut stream = connect(&get.host, get.port).await?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}:{}\r\nUser-Agent: molt\r\nConnection: close\r\n\r\n",
        get.path, get.host, get.port
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("send: {error}"))?;
    let mut head = Vec::new();
    let mut chunk = [0; 512];
    while head.len() < 4096 && !head.contains(&b'\n') {
        match stream.read(&mut chunk).await {
            Ok(0) => break,
            Ok(length) => head.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(error) => return Err(format!("read: {error}")),
        }
    }
    let line = String::from_utf8_lossy(&head);
    let line = line.lines().next().unwrap_or_default();
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse::<u16>().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("status {code}")),
        None => Err("not an HTTP answer".to_owned()),
    }
}
