//! Who asks: by client certificate, or by bearer token.
//!
//! In: the certificate that TLS proved, the `Authorization` of a request. Out: who that is. Must not: take a common name,
//! a wildcard or an address for a name; keep a token but by its hash.

use std::path::{Path, PathBuf};

use axum::http::{HeaderMap, StatusCode, header};
use molt_core::code::Code;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::files;
use crate::api::answer::Refused;

/// DNS names of sandboxes in certificates: `NAME` and this.
pub(super) const SANDBOX: &str = ".sandbox.molt.internal";
/// DNS names of operators in certificates.
pub(super) const OPERATOR: &str = ".operator.molt.internal";
/// Longest name.
const NAME: usize = 200;
/// Most tokens.
pub(super) const TOKENS: usize = 1024;

/// What a name must be.
pub(super) const RULE: &str = "parts of 1 to 63 lower-case letters, digits and -, with . between them and no - at the \
                               begin or end of one, at most 200 in all";

/// Whether `name` can be the name of a sandbox or operator, and of a file. One that is no DNS name would be in a certificate,
/// and be taken for none by who verifies it.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |part: &str| {
        matches!(part.len(), 1..=63) && part.bytes().all(plain) && !part.starts_with('-') && !part.ends_with('-')
    };
    name.len() <= NAME && name.split('.').all(label)
}

/// An error that says what a name must be, if this is none.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if is_name(name) { Ok(()) } else { Err(format!("{} is no name: {RULE}", molt_core::order::cut(name))) }
}

/// What somebody is to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Role {
    /// Asks what it shall do, and tells what it did.
    Sandbox,
    /// Says what sandboxes shall do.
    Operator,
}

/// Somebody, proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who {
    role: Role,
    name: String,
}

#[cfg(test)]
impl Who {
    pub(super) fn new(role: Role, name: &str) -> Self {
        Self { role, name: name.to_owned() }
    }
}

/// The names in a certificate that TLS has verified.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<Who> {
    let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    let who = |name: &str| {
        let (role, name) = name
            .strip_suffix(SANDBOX)
            .map(|name| (Role::Sandbox, name))
            .or_else(|| name.strip_suffix(OPERATOR).map(|name| (Role::Operator, name)))?;
        is_name(name).then(|| Who { role, name: name.to_owned() })
    };
    parsed.valid_dns_names().filter_map(who).collect()
}

/// A token, as it is kept: `tokens.json` is a list of these.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Token {
    /// For whom.
    pub(super) role: Role,
    /// Who that is.
    pub(super) name: String,
    /// SHA-256 of it: 64 hex digits. A token has 256 random bits, so nothing more is needed.
    pub(super) sha256: String,
}

/// SHA-256 of a token, in hex.
pub(super) fn hash(token: &str) -> String {
    files::hex(&Sha256::digest(token.as_bytes()))
}

/// The tokens of a store; none where there is no such file.
pub(super) fn tokens(path: &Path) -> Result<Vec<Token>, String> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("failed to read {}: {error}", path.display())),
    };
    let tokens: Vec<Token> = serde_json::from_slice(&text)
        .map_err(|error| format!("{} is no list of tokens (line {})", path.display(), error.line()))?;
    if tokens.len() > TOKENS {
        return Err(format!("{} has more than {TOKENS} tokens", path.display()));
    }
    Ok(tokens)
}

/// Who may ask for what.
#[derive(Debug)]
pub(super) struct Guard {
    /// `tokens.json`.
    pub(super) tokens: PathBuf,
    /// Operators that are let in; everyone with an operator's certificate where empty.
    pub(super) operators: Vec<String>,
}

/// Everybody that a request comes from: a certificate may have several names.
#[derive(Debug, Clone, Default)]
pub(super) struct Asker(Vec<Who>);

impl Guard {
    /// Who asks, by the certificate of the connection and the token of the request.
    pub(super) fn asker(&self, by_certificate: &[Who], headers: &HeaderMap) -> Result<Asker, Refused> {
        let mut who = by_certificate.to_vec();
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
            let hashed = token.map(hash).ok_or_else(stranger)?;
            // Read for each request: a token that was taken back is of no use from then on.
            let tokens = tokens(&self.tokens).map_err(|why| {
                tracing::error!("{why}");
                Refused::new(Code::Internal, "the gateway's tokens cannot be read")
            })?;
            let found = tokens.into_iter().find(|token| token.sha256 == hashed).ok_or_else(stranger)?;
            who.push(Who { role: found.role, name: found.name });
        }
        if who.is_empty() { Err(stranger()) } else { Ok(Asker(who)) }
    }

    /// The operator that asks.
    pub(super) fn operator<'a>(&self, asker: &'a Asker) -> Result<&'a str, Refused> {
        let mut operators = asker.0.iter().filter(|who| who.role == Role::Operator).map(|who| who.name.as_str());
        operators
            .find(|name| self.operators.is_empty() || self.operators.iter().any(|one| one == name))
            .ok_or_else(|| forbidden("only an operator may ask for that"))
    }
}

impl Asker {
    /// Refuses everybody but the sandbox `name` itself.
    pub(super) fn is_sandbox(&self, name: &str) -> Result<(), Refused> {
        let is = self.0.iter().any(|who| who.role == Role::Sandbox && who.name == name);
        if is { Ok(()) } else { Err(forbidden("only the sandbox of that name may ask for that")) }
    }
}

fn stranger() -> Refused {
    let why = "no client certificate with a name of this gateway's, and no token that it knows";
    Refused::with_status(StatusCode::UNAUTHORIZED, Code::Unauthorized, why)
}

fn forbidden(why: &str) -> Refused {
    Refused::with_status(StatusCode::FORBIDDEN, Code::Unauthorized, why)
}
