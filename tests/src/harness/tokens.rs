//! A token server, as a registry with bearer auth wants one: basic auth in, a signed JWT out.
//!
//! In: `GET /token?service=…&scope=repository:NAME:pull` with the password of [`registry::USER`].
//! Out: a token signed with ES256 that docker-registry accepts, because it trusts the certificate
//! that travels in it. Must not: give anonymous requests anything.
//!
//! [`registry::USER`]: super::registry::USER

use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use serde_json::{Value, json};

use super::http;
use super::registry::{PASSWORD, USER};

/// What the registry calls itself.
pub const SERVICE: &str = "molt-tests-registry";
/// Who signs.
pub const ISSUER: &str = "molt-tests-tokens";

#[derive(Debug)]
struct Shared {
    key: KeyPair,
    certificate: Vec<u8>,
    lifetime: AtomicU64,
    serial: AtomicU32,
    done: AtomicBool,
    requests: Mutex<Vec<String>>,
}

/// A token server at work; it stops when dropped.
#[derive(Debug)]
pub struct Tokens {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Tokens {
    /// Starts one; `bundle` is where the registry finds the certificate to trust.
    pub fn start(bundle: &Path) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([ISSUER.to_owned()])?.self_signed(&key)?;
        std::fs::write(bundle, certificate.pem())?;
        let shared = Arc::new(Shared {
            key,
            certificate: certificate.der().to_vec(),
            lifetime: AtomicU64::new(300),
            serial: AtomicU32::new(0),
            done: AtomicBool::new(false),
            requests: Mutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if of_thread.done.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(error) = answer(&of_thread, stream) {
                    eprintln!("token server: {error:#}");
                }
            }
        });
        Ok(Self { address, shared })
    }

    /// How long tokens hold from now on, in seconds; the registry itself allows a minute more.
    pub fn lifetime(&self, seconds: u64) {
        self.shared.lifetime.store(seconds, Ordering::Relaxed);
    }

    /// Every request so far, its path and query.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::Relaxed);
        // Wakes the accept; if this fails nobody listens any more.
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(shared: &Shared, mut stream: TcpStream) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let first = http::read_line(&mut reader)?;
    let target = first.split(' ').nth(1).context("a request has a target")?.to_owned();
    let mut known = false;
    loop {
        let line = http::read_line(&mut reader)?;
        if line.is_empty() {
            break;
        }
        let basic = STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let (name, value) = line.split_once(':').unwrap_or_default();
        known |= name.eq_ignore_ascii_case("authorization") && value.trim() == format!("Basic {basic}");
    }
    shared.requests.lock().unwrap_or_else(PoisonError::into_inner).push(target.clone());
    let (status, body) = if known {
        let lifetime = shared.lifetime.load(Ordering::Relaxed);
        ("200 OK", json!({"token": token(shared, &target, lifetime)?, "expires_in": lifetime}))
    } else {
        ("401 Unauthorized", json!({"details": "incorrect username or password"}))
    };
    reply(&mut stream, status, &body)?;
    Ok(())
}

fn reply(stream: &mut TcpStream, status: &str, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n");
    stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes())
}

fn token(shared: &Shared, target: &str, lifetime: u64) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let scopes = target.split(['?', '&']).filter_map(|pair| pair.strip_prefix("scope="));
    let access: Vec<_> = scopes
        .map(|scope| scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ","))
        .filter_map(|scope| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
        })
        .collect();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&shared.certificate)]});
    let serial = shared.serial.fetch_add(1, Ordering::Relaxed);
    let claims = json!({
        "iss": ISSUER, "sub": USER, "aud": SERVICE, "exp": now + lifetime, "nbf": now - 1, "iat": now,
        "jti": serial.to_string(), "access": access,
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = raw_signature(&shared.key.sign(signed.as_bytes())?).context("an ECDSA signature in DER")?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// `SEQUENCE { INTEGER r, INTEGER s }` as JWT has it: r and s, 32 bytes each.
fn raw_signature(der: &[u8]) -> Option<[u8; 64]> {
    let mut raw = [0; 64];
    let mut rest = der.get(2..)?;
    for half in raw.chunks_mut(32) {
        let length = usize::from(*rest.get(1)?);
        let integer = rest.get(2..2 + length)?;
        let digits = integer.strip_prefix(&[0]).unwrap_or(integer);
        half.get_mut(32_usize.checked_sub(digits.len())?..)?.copy_from_slice(digits);
        rest = rest.get(2 + length..)?;
    }
    Some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_padded_integers_fill_their_half() {
        let mut der = vec![0x30, 0, 0x02, 31];
        der.extend([7; 31]);
        der.extend([0x02, 33, 0]);
        der.extend([0x90; 32]);
        let raw = raw_signature(&der).unwrap();
        assert_eq!((raw[0], raw[1], raw[32], raw[63]), (0, 7, 0x90, 0x90));
    }
}
