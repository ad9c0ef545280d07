//! The TLS listener, by curl and by openssl: who is let in, what for, and what becomes of it when certificates are rotated.
//!
//! In: its section of the page. Out: cases. Must not: know another way in.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::PAGE;
use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::certificates::Authority;
use crate::harness::docs::{self, Reader, Section};
use crate::harness::molt::{Molt, SOON, Setup};
use crate::harness::process::{self, Background, Output};
use crate::harness::registry::free_port;
use crate::harness::runtime::Kind;
use crate::harness::wait;

/// Its section.
pub(super) const HEADING: &str = "TLS listener";

/// The tests of this way in.
pub(super) const CASES: &[Case] = &[
    case("triggers::tls_listener_as_the_page_says", as_the_page_says),
    case("tls::only_tls_1_3_and_a_listed_name_of_the_right_authority_are_let_in", let_in),
    case("tls::a_role_asks_for_what_is_its_own", roles),
    case("tls::rotated_certificates_count_at_once_and_live_streams_go_on", rotated),
    case("tls::handshakes_that_never_end_keep_nobody_from_the_operator_socket", slow),
    case("tls::a_workload_reaches_the_port_and_gets_nothing", from_inside),
];

const DEPLOY: &str = "deploy.example.com";
const MONITOR: &str = "spiffe://example.com/monitor";

/// Writes certificate and key of a name into a folder.
fn put(folder: &Path, authority: &Authority, san: &str, file: &str) -> anyhow::Result<()> {
    let (certificate, key) = authority.names(san)?;
    for (kind, text) in [("pem", certificate), ("key", key)] {
        let new = folder.join("new");
        fs::write(&new, text)?;
        fs::rename(&new, folder.join(format!("{file}.{kind}")))?;
    }
    Ok(())
}

pub(super) struct Stage {
    pub(super) molt: Molt,
    port: u16,
    /// Certificates of clients.
    clients: PathBuf,
    authority: Authority,
}

impl Stage {
    fn new(bed: &Bed) -> anyhow::Result<Self> {
        Self::with(bed, |setup| setup)
    }

    pub(super) fn with<'a>(bed: &'a Bed, more: impl FnOnce(Setup<'a>) -> Setup<'a>) -> anyhow::Result<Self> {
        let (port, authority) = (free_port()?, Authority::new()?);
        let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?.workload_env("SECRET", "hunter2");
        let tls = setup.config.join("tls");
        fs::create_dir(&tls)?;
        put(&tls, &authority, "localhost", "server")?;
        fs::write(tls.join("ca.pem"), &authority.pem)?;
        let listen = json!({
            "address": format!("127.0.0.1:{port}"),
            "certificate": "/etc/molt/tls/server.pem",
            "key": "/etc/molt/tls/server.key",
            "clientCa": "/etc/molt/tls/ca.pem",
            "allow": [{"san": DEPLOY, "role": "update"}, {"san": MONITOR, "role": "read"}],
        });
        let clients = bed.scratch("clients")?;
        fs::write(clients.join("ca.pem"), &authority.pem)?;
        put(&clients, &authority, DEPLOY, "deploy")?;
        put(&clients, &authority, MONITOR, "monitor")?;
        put(&clients, &authority, "other.example.com", "other")?;
        put(&clients, &Authority::new()?, DEPLOY, "foreign")?;
        Ok(Self { molt: more(setup.with("/api", json!({"listen": listen}))).start()?, port, clients, authority })
    }

    fn curl(&self, client: Option<&str>, words: &[&str], path: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20", "--cacert", "ca.pem"]).current_dir(&self.clients);
        if let Some(client) = client {
            curl.args(["--cert", &format!("{client}.pem"), "--key", &format!("{client}.key")]);
        }
        curl.args(words).arg(format!("https://localhost:{}{path}", self.port));
        curl
    }

    /// Status and body, or why there is none.
    fn ask(&self, client: Option<&str>, method: &str, path: &str, body: &Value) -> anyhow::Result<(u16, String)> {
        let mut words = vec!["--request", method, "--write-out", "\n%{http_code}"];
        let text = body.to_string();
        if !body.is_null() {
            words.extend(["--header", "Content-Type: application/json", "--data", &text]);
        }
        let output: Output = process::output(&mut self.curl(client, &words, path), SOON * 2)?;
        let (body, code) = output.stdout.rsplit_once('\n').context("a code")?;
        let code: u16 = code.parse()?;
        ensure!(code != 0, "no answer: {}", output.stderr);
        Ok((code, body.to_owned()))
    }

    pub(super) fn expect(
        &self,
        code: u16,
        client: &str,
        method: &str,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<String> {
        let (found, text) = self.ask(Some(client), method, path, body)?;
        ensure!(found == code, "{client}: {method} {path}: {found}, not {code}: {text}");
        Ok(text)
    }
}

fn as_the_page_says(bed: &Bed) -> anyhow::Result<()> {
    let section = Section::of(PAGE, HEADING)?;
    let head = "apiVersion: molt.dev/v1alpha1\nkind: Sandbox\n";
    let said = molt_core::spec::parse(&format!("{head}{}", section.blocks("yaml")?.concat()));
    let said = said.map_err(|faults| anyhow::anyhow!("{faults}"))?;
    let setup = docs::setup(bed)?.with("/api/listen", serde_json::to_value(said.api.listen)?);
    let authority = Authority::new()?;
    let tls = setup.config.join("tls");
    fs::create_dir(&tls)?;
    put(&tls, &authority, "localhost", "server")?;
    fs::write(tls.join("ca.pem"), &authority.pem)?;
    let molt = setup.start()?;
    let reader = Reader::new(bed, &molt)?;
    fs::write(reader.folder.join("ca.pem"), &authority.pem)?;
    put(&reader.folder, &authority, DEPLOY, "deploy")?;
    reader.follows(&section)?;
    molt.until("the update", |status| status["phase"] == "Idle" && status["confirmed"]["generation"] == 2)?;
    ensure!(molt.last()?["by"] == format!("certificate {DEPLOY}"), "{:#}", molt.last()?);
    molt.serves("v2", 2)?;
    molt.sound()
}

fn let_in(bed: &Bed) -> anyhow::Result<()> {
    let stage = Stage::new(bed)?;
    let body = Value::Null;
    for client in ["deploy", "monitor"] {
        stage.expect(200, client, "GET", "/v1/status", &body)?;
    }
    let text = stage.expect(403, "other", "GET", "/v1/status", &body)?;
    ensure!(text.contains("api.listen.allow") && !text.contains("hunter2"), "{text}");
    for client in [None, Some("foreign")] {
        ensure!(stage.ask(client, "GET", "/v1/status", &body).is_err(), "{client:?} was answered");
    }
    // Plain HTTP, and TLS 1.2 with everything else right.
    let mut plain = Command::new("curl");
    plain.args(["--silent", "--max-time", "10", &format!("http://localhost:{}/v1/status", stage.port)]);
    ensure!(process::output(&mut plain, SOON)?.stdout.is_empty());
    let speak = |version: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", version, "-connect", &format!("localhost:{}", stage.port), "-CAfile", "ca.pem"]);
        openssl.args(["-cert", "deploy.pem", "-key", "deploy.key", "-verify_return_error"]).stdin(Stdio::null());
        process::output(openssl.current_dir(&stage.clients), SOON)
    };
    let old = speak("-tls1_2")?;
    ensure!(old.stdout.contains("Cipher is (NONE)") || old.stderr.contains("alert"), "{} {}", old.stdout, old.stderr);
    let new = speak("-tls1_3")?;
    ensure!(new.stdout.contains("TLSv1.3"), "{} {}", new.stdout, new.stderr);
    // No key and no certificate is in a mount of the generation.
    ensure!(stage.molt.get("/read?path=/etc/molt/tls/server.key")? == json!({"errno": 2}));
    stage.molt.sound()
}

fn roles(bed: &Bed) -> anyhow::Result<()> {
    let stage = Stage::new(bed)?;
    let image = bed.small("v2")?;
    let (ask, none) = (json!({"image": image}), Value::Null);
    let status = stage.expect(200, "monitor", "GET", "/v1/status", &none)?;
    ensure!(!status.contains("hunter2") && status.contains("SECRET"), "{status}");
    for (method, path) in [
        ("POST", "/v1/rollback"),
        ("POST", "/v1/confirm"),
        ("POST", "/v1/reject"),
        ("POST", "/v1/apply"),
        ("POST", "/v1/updates/current/cancel"),
        ("PUT", "/v1/hold"),
        ("DELETE", "/v1/hold"),
    ] {
        stage.expect(403, "monitor", method, path, &none)?;
    }
    stage.expect(403, "monitor", "POST", "/v1/updates", &ask)?;
    for client in ["monitor", "deploy"] {
        for (method, path) in [
            ("POST", "/v1/exec"),
            ("GET", "/v1/execs"),
            ("GET", "/v1/logs"),
            ("POST", "/v1/gc"),
            ("DELETE", "/v1/bad/sha256:00"),
        ] {
            stage.expect(403, client, method, path, &none)?;
        }
    }
    stage.expect(403, "deploy", "POST", "/v1/updates", &json!({"image": image, "allowWider": true}))?;
    ensure!(stage.molt.json(&["history"])?.as_array().is_some_and(|all| all.len() == 1));
    stage.expect(202, "deploy", "POST", "/v1/updates", &ask)?;
    let molt = &stage.molt;
    molt.until("the update", |status| status["phase"] == "Idle" && status["confirmed"]["generation"] == 2)?;
    ensure!(molt.last()?["by"] == format!("certificate {DEPLOY}"));
    molt.sound()
}

fn rotated(bed: &Bed) -> anyhow::Result<()> {
    let stage = Stage::new(bed)?;
    let heard = stage.clients.join("heard");
    let mut curl = stage.curl(Some("deploy"), &["--no-buffer", "--max-time", "120"], "/v1/events");
    let stream = Background::spawn(curl.stdout(fs::File::create(&heard)?))?;
    let hears = |word: &str| fs::read_to_string(&heard).is_ok_and(|text| text.contains(word));
    wait::until("the stream", SOON, || hears("data:"))?;
    // One that is not good is told, and the old one stays.
    let tls = stage.molt.config.join("tls");
    fs::write(tls.join("server.key"), "-----BEGIN NOTHING-----\n")?;
    wait::until("the word about it", SOON, || stage.molt.sandbox.logs().contains("are not taken"))?;
    stage.expect(200, "deploy", "GET", "/v1/status", &Value::Null)?;
    // Another authority: whom the old one named is nobody from now on.
    let next = Authority::new()?;
    put(&tls, &next, "localhost", "server")?;
    fs::write(tls.join("new"), &next.pem)?;
    fs::rename(tls.join("new"), tls.join("ca.pem"))?;
    fs::write(stage.clients.join("ca.pem"), format!("{}{}", stage.authority.pem, next.pem))?;
    put(&stage.clients, &next, DEPLOY, "next")?;
    wait::until_ok("the new certificates to count", SOON, || {
        stage.expect(200, "next", "GET", "/v1/status", &Value::Null)?;
        ensure!(stage.ask(Some("deploy"), "GET", "/v1/status", &Value::Null).is_err());
        Ok(())
    })?;
    // The stream of before goes on.
    stage.molt.expect(0, &["update", &bed.small("v2")?])?;
    wait::until("the end of the update on the old stream", SOON, || {
        hears("\"type\":\"outcome\",\"result\":{\"id\":\"u2\"")
    })?;
    drop(stream);
    stage.molt.sound()
}

fn slow(bed: &Bed) -> anyhow::Result<()> {
    let stage = Stage::new(bed)?;
    let idle: Vec<TcpStream> =
        (0..200).map(|_| Ok(TcpStream::connect(("127.0.0.1", stage.port))?)).collect::<anyhow::Result<_>>()?;
    let began = std::time::Instant::now();
    for _ in 0..10 {
        stage.molt.told()?;
    }
    ensure!(began.elapsed() < Duration::from_secs(5), "10 answers took {:?}", began.elapsed());
    drop(idle);
    wait::until_ok("places to come back", SOON, || stage.expect(200, "deploy", "GET", "/v1/status", &Value::Null))?;
    stage.molt.expect(0, &["update", &bed.small("v2")?])?;
    stage.molt.sound()
}

fn from_inside(bed: &Bed) -> anyhow::Result<()> {
    let stage = Stage::new(bed)?;
    let connect = format!("/try?connect=127.0.0.1:{}", stage.port);
    // The network is the container's: the port can be reached, and nobody there listens without a certificate.
    ensure!(stage.molt.get(&connect)? == json!({"errno": 0}));
    // A policy that names endpoints leaves no other port.
    let policy = "version: 1\nfilesystem_policy: {include_workdir: false, read_only: [/app, /bin, /usr, /lib, /etc, /proc], \
                  read_write: [/sandbox/state, /tmp]}\nlandlock: {compatibility: best_effort}\n\
                  network_policies: {only: {endpoints: [{host: example.com, port: 443}]}}\n";
    fs::write(stage.molt.config.join("net.yaml"), policy)?;
    stage.molt.expect(0, &["update", &bed.small("v2")?, "--policy", "/etc/molt/net.yaml", "--allow-wider"])?;
    ensure!(stage.molt.get(&connect)? == json!({"errno": 13}), "{}", stage.molt.get(&connect)?);
    stage.molt.sound()
}
