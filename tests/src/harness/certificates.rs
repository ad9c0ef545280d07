//! A certificate authority for one run, and one server certificate of it for loopback.
//!
//! In: a folder. Out: PEM files there. Must not: be trusted by anything but what is told to.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

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

/// An authority that names clients and servers.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "molt tests authority of clients");
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// A certificate for a name, a URI where it has a colon, and its key; good for both ends.
    pub fn names(&self, san: &str) -> anyhow::Result<(String, String)> {
        let uri = san.contains(':');
        let mut params = CertificateParams::new(if uri { vec![] } else { vec![san.to_owned()] })?;
        if uri {
            params.subject_alt_names.push(SanType::URI(san.try_into()?));
        }
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}
