//! PEM files and tokens that somebody else renews: read whole, and read anew when they change.
//!
//! In: paths. Out: certificates, keys, tokens, and stamps to tell a change by. Must not: put what a file holds into an
//! error; follow a change half way (a certificate and a key that do not fit are a change that is not over).

use std::{
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// Longest file of certificates or keys.
const MOST: u64 = 1 << 20;
/// Longest token.
const TOKEN: u64 = 8 << 10;

/// The one provider of cryptography.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// 32 random hex digits.
pub(crate) fn random_id() -> Result<String, String> {
    random::<16>().map(|bytes| hex(&bytes))
}

/// Random bytes of the kernel's.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    provider().secure_random.fill(&mut bytes).map_err(|_| "failed to get random bytes".to_owned())?;
    Ok(bytes)
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Which files stood behind some paths, links followed: a mounted Secret changes by one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<[i128; 5]>>);

impl Stamp {
    /// Of these files, now.
    pub(crate) fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let one = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            let (inode, size) = (i128::from(found.ino()), i128::from(found.size()));
            Some([i128::from(found.dev()), inode, size, found.mtime().into(), found.mtime_nsec().into()])
        };
        Self(paths.into_iter().map(one).collect())
    }
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("failed to read {}: {error}", path.display()))?;
    if bytes.len() as u64 > most {
        return Err(format!("{} is longer than {most} bytes", path.display()));
    }
    Ok(bytes)
}

/// The certificates of a PEM file; at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path, MOST)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(format!("{} holds no PEM certificate", path.display())),
    }
}

/// The private key of a PEM file.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read(path, MOST)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| format!("{} holds no PEM private key", path.display()))
}

/// Those who are trusted to vouch for somebody.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(roots)
}

/// A bearer token: one line of plain characters.
pub(crate) fn token(path: &Path) -> Result<String, String> {
    let bytes = read(path, TOKEN)?;
    let token = String::from_utf8(bytes).unwrap_or_default().trim().to_owned();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{} holds no token (one line of plain characters)", path.display()));
    }
    Ok(token)
}

/// Makes a file that only its owner may read, with what is in it on disk; an older one is replaced at once.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let new = PathBuf::from(format!("{}.new", path.display()));
    let written = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        // The name, too.
        std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    written().map_err(|error| format!("failed to write {}: {error}", path.display()))
}
