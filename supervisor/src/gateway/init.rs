//! Credentials for a gateway, for a person who has none: an authority, and what it vouches for.
//!
//! In: a folder, names. Out: PEM files, tokens. Must not: replace what is there, or write a key that others may read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::{
    auth::{self, OPERATOR, Role, SANDBOX, TOKENS, Token, check_name},
    files,
};
use crate::observe::log;

/// Years an authority is good for, and what it vouches for.
const YEARS: (i32, i32) = (10, 2);

/// For whom.
#[derive(Debug, Clone, Default)]
pub(crate) struct Issue {
    /// Names and addresses by which the gateway is called.
    pub(crate) hosts: Vec<String>,
    /// Sandboxes.
    pub(crate) sandboxes: Vec<String>,
    /// Operators.
    pub(crate) operators: Vec<String>,
}

/// What was made.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Made {
    /// Folders, each with `certificate.pem`, `key.pem`, `ca.pem`.
    pub(crate) folders: Vec<PathBuf>,
}

/// Makes what is not there yet in `folder`: `ca.pem` and `ca-key.pem`, `server/`, `operators/NAME/`, `sandboxes/NAME/`.
pub(crate) fn init(folder: &Path, issue: &Issue) -> Result<Made, String> {
    for name in issue.sandboxes.iter().chain(&issue.operators) {
        check_name(name)?;
    }
    make(folder)?;
    let authority = Authority::open(folder)?;
    let mut wanted = vec![(folder.join("server"), issue.hosts.clone(), ExtendedKeyUsagePurpose::ServerAuth)];
    for (names, below, suffix) in [(&issue.operators, "operators", OPERATOR), (&issue.sandboxes, "sandboxes", SANDBOX)]
    {
        for name in names {
            let at = folder.join(below).join(name);
            wanted.push((at, vec![format!("{name}{suffix}")], ExtendedKeyUsagePurpose::ClientAuth));
        }
    }
    let mut folders = Vec::new();
    for (at, names, usage) in wanted {
        if !at.join("certificate.pem").exists() {
            authority.vouch(&at, names, usage)?;
            folders.push(at);
        }
    }
    Ok(Made { folders })
}

/// Makes a token for `name`, and keeps its hash in the gateway's store.
pub(crate) fn token(store: &Path, role: Role, name: &str) -> Result<String, String> {
    check_name(name)?;
    make(store)?;
    let path = store.join("tokens.json");
    let mut tokens = auth::tokens(&path)?;
    if tokens.len() >= TOKENS {
        return Err(format!("{} has {TOKENS} tokens already; take some out", path.display()));
    }
    let token = files::hex(&files::random::<32>()?);
    tokens.push(Token { role, name: name.to_owned(), sha256: auth::hash(&token) });
    files::write(&path, &serde_json::to_vec_pretty(&tokens).unwrap_or_default())?;
    Ok(token)
}

fn make(folder: &Path) -> Result<(), String> {
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    builder.create(folder).map_err(|error| format!("failed to make {}: {error}", folder.display()))
}

struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The one in the folder, or a new one.
    fn open(folder: &Path) -> Result<Self, String> {
        let (certificate, key) = (folder.join("ca.pem"), folder.join("ca-key.pem"));
        if certificate.exists() {
            let read = |path: &Path| {
                fs::read_to_string(path).map_err(|error| format!("failed to read {}: {error}", path.display()))
            };
            let pair = KeyPair::from_pem(&read(&key)?).map_err(|error| format!("{}: {error}", key.display()))?;
            return Ok(Self { certificate: read(&certificate)?, issuer: Issuer::new(authority(), pair) });
        }
        let pair = KeyPair::generate().map_err(text)?;
        let signed = authority().self_signed(&pair).map_err(text)?;
        files::write(&key, pair.serialize_pem().as_bytes())?;
        files::write(&certificate, signed.pem().as_bytes())?;
        Ok(Self { certificate: signed.pem(), issuer: Issuer::new(authority(), pair) })
    }

    fn vouch(&self, at: &Path, names: Vec<String>, usage: ExtendedKeyUsagePurpose) -> Result<(), String> {
        make(at)?;
        let mut params = CertificateParams::new(names).map_err(text)?;
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        lasts(&mut params, YEARS.1);
        let pair = KeyPair::generate().map_err(text)?;
        let signed = params.signed_by(&pair, &self.issuer).map_err(text)?;
        files::write(&at.join("key.pem"), pair.serialize_pem().as_bytes())?;
        files::write(&at.join("ca.pem"), self.certificate.as_bytes())?;
        // Last: where it is, all is.
        files::write(&at.join("certificate.pem"), signed.pem().as_bytes())
    }
}

/// What the authority's certificate says; the same each time, so that its key alone makes it the same issuer.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Molt gateway authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasts(&mut params, YEARS.0);
    params
}

fn lasts(params: &mut CertificateParams, years: i32) {
    let today = log::now();
    let part = |from: usize, to: usize| today.get(from..to).and_then(|text| text.parse::<i32>().ok());
    let (Some(year), Some(month)) = (part(0, 4), part(5, 7)) else { return };
    let month = u8::try_from(month).unwrap_or(1);
    // The first of a month exists in every year; clocks that are a little behind are behind that.
    let (first, last) = if month == 1 { (year - 1, 12) } else { (year, month - 1) };
    params.not_before = rcgen::date_time_ymd(first, last, 1);
    params.not_after = rcgen::date_time_ymd(year + years, month, 1);
}

#[expect(clippy::needless_pass_by_value, reason = "it goes into map_err")]
fn text(error: rcgen::Error) -> String {
    format!("failed to make a certificate: {error}")
}
