//! A certificate authority for one run, and one server certificate of it for loopback.
//!
//! In: a folder. Out: PEM files there. Must not: be trusted by anything but what is told to.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Paths of PEM files.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The authority's certificate; what a client must trust. Alone in its folder, as skopeo wants it.
    pub authority: PathBuf,
    /// The server's chain.
    pub chain: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
}

/// Makes all three, for `localhost` and `127.0.0.1`.
pub fn make(folder: &Path) -> anyhow::Result<Certificates> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "molt tests authority");
    let authority_key = KeyPair::generate()?;
    let authority = params.self_signed(&authority_key)?;
    let issuer = Issuer::new(params, authority_key);

    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, "localhost");
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let server = params.signed_by(&key, &issuer)?;

    fs::create_dir_all(folder.join("trust"))?;
    let paths = Certificates {
        authority: folder.join("trust/ca.crt"),
        chain: folder.join("server.pem"),
        key: folder.join("server.key"),
    };
    fs::write(&paths.authority, authority.pem())?;
    fs::write(&paths.chain, server.pem())?;
    fs::write(&paths.key, key.serialize_pem())?;
    Ok(paths)
}
