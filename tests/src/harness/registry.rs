//! Debian's `docker-registry` on a free loopback port.
//!
//! In: a folder, and how it is to be guarded. Out: a running registry with file-system storage, and
//! ways to put images into it: `skopeo` for honest ones, plain HTTP for those that skopeo would
//! refuse. Two registries may share one storage folder. Must not: listen beyond loopback.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::certificates::{self, Certificates};
use super::image::{self, Built, Document};
use super::tokens::{self, Tokens};
use super::{http, process, wait};

/// The user a guarded registry knows.
pub const USER: &str = "crab";
/// That user's password.
pub const PASSWORD: &str = "shell:with:colons";

const START: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_secs(30);

/// Who may talk to it, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Plain HTTP, anyone.
    Open,
    /// TLS, anyone.
    Tls,
    /// TLS and basic auth as [`USER`].
    TlsBasic,
    /// Plain HTTP and a bearer token, which a token server gives to [`USER`].
    Bearer,
}

/// A running registry; stopped when dropped.
#[derive(Debug)]
pub struct Registry {
    child: process::Background,
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is guarded.
    pub guard: Guard,
    /// What a client has to trust, if it speaks TLS.
    pub certificates: Option<Certificates>,
    /// The token server, with bearer auth.
    pub tokens: Option<Tokens>,
    folder: PathBuf,
}

/// A port that was free a moment ago, below those that the kernel gives to connections, and given out once.
pub fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const PORTS: std::ops::Range<u32> = 10_000..32_000;
    // Another run on this machine begins elsewhere.
    let begin = std::process::id().wrapping_mul(911);
    for _ in PORTS {
        let step = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORTS.start + step % (PORTS.end - PORTS.start))?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free from {} to {}", PORTS.start, PORTS.end)
}

impl Registry {
    /// Starts one and waits until it answers. `folder` takes its files, `storage` its blobs.
    pub fn start(folder: &Path, storage: &Path, guard: Guard) -> anyhow::Result<Self> {
        // The port can be taken between the look and the start: then once more.
        let mut last = None;
        for _ in 0..3 {
            match Self::start_once(folder, storage, guard) {
                Ok(registry) => return Ok(registry),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt")?)
    }

    fn start_once(folder: &Path, storage: &Path, guard: Guard) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        fs::create_dir_all(storage)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let certificates = match guard {
            Guard::Open | Guard::Bearer => None,
            Guard::Tls | Guard::TlsBasic => Some(certificates::make(&folder.join("tls"))?),
        };
        // YAML is a superset of JSON.
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": storage}, "delete": {"enabled": true}},
            "http": {"addr": address.to_string(), "secret": "of no worth"},
        });
        if let Some(certificates) = &certificates {
            config["http"]["tls"] = json!({"certificate": certificates.chain, "key": certificates.key});
        }
        let mut tokens = None;
        if guard == Guard::Bearer {
            let bundle = folder.join("tokens.pem");
            let server = Tokens::start(&bundle)?;
            let realm = format!("http://{}/token", server.address);
            config["auth"] = json!({"token": {
                "realm": realm, "service": tokens::SERVICE, "issuer": tokens::ISSUER, "rootcertbundle": bundle,
            }});
            tokens = Some(server);
        }
        if guard == Guard::TlsBasic {
            let file = folder.join("htpasswd");
            fs::write(&file, format!("{USER}:{}\n", bcrypt(PASSWORD)?))?;
            config["auth"] = json!({"htpasswd": {"realm": "molt", "path": file}});
        }
        let config_file = folder.join("config.yml");
        fs::write(&config_file, config.to_string())?;
        let log = File::create(folder.join("log"))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config_file).env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        let child = process::Background::spawn(command.stdout(log.try_clone()?).stderr(log))?;
        let mut registry = Self { child, address, guard, certificates, tokens, folder: folder.to_owned() };
        wait::until_ok("the registry to answer", START, || registry.ask())?;
        Ok(registry)
    }

    fn ask(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.0.try_wait()? {
            bail!("docker-registry ended with {status}: {}", self.log());
        }
        if self.certificates.is_none() {
            let status = http::get(self.address, "/v2/", STEP)?.status;
            let expected = if self.guard == Guard::Open { 200 } else { 401 };
            anyhow::ensure!(status == expected, "status {status}");
        } else {
            TcpStream::connect(self.address)?;
        }
        Ok(())
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// `127.0.0.1:PORT/NAME`, where NAME may carry a tag or a digest.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// A docker `config.json` that lets its reader in (or, with another password, does not).
    pub fn docker_config(&self, file: &Path, password: &str) -> anyhow::Result<()> {
        let auth = STANDARD.encode(format!("{USER}:{password}"));
        let mut config = json!({"auths": {}});
        config["auths"][self.address.to_string()] = json!({"auth": auth});
        Ok(fs::write(file, config.to_string())?)
    }

    /// `skopeo` with what it needs to talk to this registry as `side` (`src`, `dest`, or nothing for `inspect`).
    pub fn skopeo(&self, verb: &str, side: &str) -> Command {
        let flag = |name: &str| if side.is_empty() { format!("--{name}") } else { format!("--{side}-{name}") };
        let mut command = Command::new("skopeo");
        command.arg(verb);
        match &self.certificates {
            None => {
                command.arg(format!("{}=false", flag("tls-verify")));
            }
            Some(certificates) => {
                let folder = certificates.authority.parent().expect("made inside a folder");
                command.arg(flag("cert-dir")).arg(folder);
            }
        }
        if matches!(self.guard, Guard::TlsBasic | Guard::Bearer) {
            command.arg(flag("creds")).arg(format!("{USER}:{PASSWORD}"));
        }
        command
    }

    /// Copies an image out of an OCI layout folder, by skopeo.
    pub fn push_layout(&self, layout: &Path, tag: &str, name: &str) -> anyhow::Result<()> {
        let mut command = self.skopeo("copy", "dest");
        // `--all`, so that an index arrives whole.
        command.args(["--all", "--quiet", "--insecure-policy"]);
        command.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{}", self.reference(name)));
        process::run(&mut command, STEP)?;
        Ok(())
    }

    /// Puts an image there by HTTP, without a look at what is in it. Returns the digest it has there.
    pub fn push_raw(&self, image: &Built, name: &str) -> anyhow::Result<String> {
        let (repository, tag) = name.split_once(':').context("a name with a tag")?;
        for blob in &image.blobs {
            self.put_blob(repository, blob)?;
        }
        for document in &image.inner {
            self.put_manifest(repository, &document.digest(), document)?;
        }
        self.put_manifest(repository, tag, &image.document)?;
        Ok(image.digest())
    }

    fn put_blob(&self, repository: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let digest = image::digest(bytes);
        if http::request(self.address, "HEAD", &format!("/v2/{repository}/blobs/{digest}"), &[], &[], STEP)?.status
            == 200
        {
            return Ok(());
        }
        let start = format!("/v2/{repository}/blobs/uploads/");
        let answer = http::request(self.address, "POST", &start, &[], &[], STEP)?;
        let location = answer.header("location").context("an upload has a location")?;
        let path = location.find("/v2/").map(|at| &location[at..]).context("a location in /v2/")?;
        let path = format!("{path}{}digest={digest}", if path.contains('?') { '&' } else { '?' });
        let headers = [("Content-Type", "application/octet-stream")];
        let answer = http::request(self.address, "PUT", &path, &headers, bytes, STEP)?;
        anyhow::ensure!(answer.status == 201, "putting blob {digest}: {} {}", answer.status, answer.text());
        Ok(())
    }

    fn put_manifest(&self, repository: &str, reference: &str, document: &Document) -> anyhow::Result<()> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let headers = [("Content-Type", document.media_type)];
        let answer = http::request(self.address, "PUT", &path, &headers, &document.bytes, STEP)?;
        anyhow::ensure!(answer.status == 201, "putting manifest {reference}: {} {}", answer.status, answer.text());
        Ok(())
    }
}

/// A bcrypt hash by libcrypt, through perl, which every Debian has.
fn bcrypt(password: &str) -> anyhow::Result<String> {
    let script = r#"print crypt($ARGV[0], "\$2b\$05\$ThisSaltIsForTestsOnly")"#;
    let hash = process::run(Command::new("perl").args(["-e", script, "--", password]), STEP)?.stdout;
    anyhow::ensure!(hash.starts_with("$2b$"), "this libcrypt has no bcrypt: {hash:?}");
    Ok(hash)
}
