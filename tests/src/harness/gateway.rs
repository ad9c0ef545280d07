//! A gateway on loopback: `molt gateway serve` with credentials of `molt gateway init`, and a way between it and a sandbox
//! on which things go wrong.
//!
//! In: names of sandboxes. Out: a running gateway that can be killed and started again, its operator's commands, the section
//! of a spec that leads to it. Must not: listen beyond loopback, or speak plain text but between two ends of one [`Between`].

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::bed::Bed;
use super::faulty::Faulty;
use super::molt::{SOON, Setup};
use super::process::{self, Background, Output};
use super::registry::free_port;
use super::wait;

/// Where a sandbox finds its credentials.
const INSIDE: &str = "/etc/molt/gateway";

/// A gateway; it ends when dropped.
#[derive(Debug)]
pub struct Gateway {
    molt: PathBuf,
    /// Folder of `molt gateway init`.
    pub config: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    child: Option<Background>,
}

impl Gateway {
    /// Starts one for these sandboxes.
    pub fn start(bed: &Bed, sandboxes: &[&str]) -> anyhow::Result<Self> {
        let (molt, config) = (bed.molt()?, bed.scratch("gateway")?);
        let mut init = Command::new(&molt);
        init.args(["gateway", "init"]).arg(&config);
        for name in sandboxes {
            init.args(["--sandbox", name]);
        }
        process::run(&mut init, SOON)?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut gateway = Self { molt, config, address, child: None };
        gateway.restart()?;
        Ok(gateway)
    }

    /// Starts it (again), and waits until it listens.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.child = None;
        let log = fs::File::options().create(true).append(true).open(self.config.join("log"))?;
        let mut serve = Command::new(&self.molt);
        serve.args(["gateway", "serve", "--listen", &self.address.to_string(), "--config"]).arg(&self.config);
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(Background::spawn(&mut serve)?);
        wait::until_ok("the gateway to listen", SOON, || {
            std::net::TcpStream::connect(self.address)?;
            Ok(())
        })
    }

    /// Kills it, as `kill -9` does.
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Credentials of a sandbox.
    pub fn of(&self, sandbox: &str) -> PathBuf {
        self.config.join("sandboxes").join(sandbox)
    }

    /// `molt --gateway URL WORDS`, as the operator.
    pub fn molt(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command(words);
        process::output(&mut command, Duration::from_mins(2)).with_context(|| words.join(" "))
    }

    /// The same, not started yet.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.molt);
        command.args(["--gateway", &self.url(), "--gateway-config"]).arg(self.config.join("operators/admin"));
        command.args(words);
        command
    }

    /// The same, which must end with `code`.
    pub fn expect(&self, code: i32, words: &[&str]) -> anyhow::Result<Output> {
        self.molt(words)?.expect_code(code).with_context(|| format!("molt --gateway … {}", words.join(" ")))
    }

    /// The same with `-o json`.
    pub fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let all: Vec<&str> = words.iter().chain(&["-o", "json"]).copied().collect();
        self.expect(0, &all)?.json()
    }

    /// Wants something of a sandbox and does not wait; the revision.
    pub fn want(&self, words: &[&str]) -> anyhow::Result<u64> {
        let all: Vec<&str> = words.iter().chain(&["--no-wait"]).copied().collect();
        self.json(&all)?["revision"].as_u64().context("a revision")
    }

    /// One request by curl, with the credentials in a folder; status and body.
    pub fn curl(&self, credentials: &Path, words: &[&str], path: &str) -> anyhow::Result<(u16, String)> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"]);
        curl.arg("--cacert").arg(self.config.join("ca.pem"));
        if credentials.join("certificate.pem").exists() {
            curl.arg("--cert").arg(credentials.join("certificate.pem")).arg("--key").arg(credentials.join("key.pem"));
        }
        let said = process::run(curl.args(words).arg(format!("{}{path}", self.url())), SOON)?.stdout;
        let (body, status) = said.rsplit_once('\n').context("a status")?;
        Ok((status.parse()?, body.to_owned()))
    }
}

/// A sandbox that calls a gateway as `tested`, at `address`, every time anew soon.
pub fn calls<'a>(setup: Setup<'a>, credentials: &Path, address: SocketAddr, listen: &str) -> anyhow::Result<Setup<'a>> {
    lend(credentials, &setup.config.join("gateway"))?;
    Ok(setup.with(
        "/gateway",
        json!({
            "url": format!("https://{address}"),
            "ca": format!("{INSIDE}/ca.pem"),
            "certificate": format!("{INSIDE}/certificate.pem"),
            "key": format!("{INSIDE}/key.pem"),
            "listen": listen,
            "wait": "2s",
            "retry": "1s",
        }),
    ))
}

/// Copies credentials to where a sandbox sees them.
pub fn lend(credentials: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for name in ["ca.pem", "certificate.pem", "key.pem"] {
        fs::copy(credentials.join(name), to.join(name))?;
    }
    Ok(())
}

/// Between a sandbox and its gateway: TLS ends, a [`Faulty`] does what it is told to, TLS begins again.
#[derive(Debug)]
pub struct Between {
    /// Where the sandbox calls.
    pub address: SocketAddr,
    /// What goes wrong.
    pub faulty: Faulty,
    _ends: [Background; 2],
}

impl Between {
    /// In front of a gateway, with its own certificate, and the credentials of `sandbox`.
    pub fn start(gateway: &Gateway, sandbox: &str) -> anyhow::Result<Self> {
        let (server, client) = (gateway.config.join("server"), gateway.of(sandbox));
        let (inner, address) = (free_port()?, SocketAddr::from(([127, 0, 0, 1], free_port()?)));
        let far = socat(
            &format!("TCP-LISTEN:{inner},bind=127.0.0.1,reuseaddr,fork"),
            &format!(
                "OPENSSL:{},cert={},key={},cafile={},commonname=localhost",
                gateway.address,
                client.join("certificate.pem").display(),
                client.join("key.pem").display(),
                gateway.config.join("ca.pem").display(),
            ),
        )?;
        let upstream = SocketAddr::from(([127, 0, 0, 1], inner));
        wait::until_ok("socat to listen", SOON, || {
            std::net::TcpStream::connect(upstream)?;
            Ok(())
        })?;
        let faulty = Faulty::start(upstream)?;
        let near = socat(&tls_listen(address, &server, ""), &format!("TCP:{}", faulty.address))?;
        wait::until_ok("socat to listen", SOON, || {
            std::net::TcpStream::connect(address)?;
            Ok(())
        })?;
        Ok(Self { address, faulty, _ends: [far, near] })
    }
}

/// What socat takes for a TLS server with these credentials.
pub fn tls_listen(address: SocketAddr, server: &Path, more: &str) -> String {
    let (port, certificate, key) = (address.port(), server.join("certificate.pem"), server.join("key.pem"));
    let (certificate, key) = (certificate.display(), key.display());
    format!("OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,cert={certificate},key={key},verify=0{more}")
}

/// `socat FROM TO`, until it is dropped.
pub fn socat(from: &str, to: &str) -> anyhow::Result<Background> {
    let mut socat = Command::new("socat");
    socat.args([from, to]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Background::spawn(&mut socat).context("starting socat (Debian package socat)")
}
