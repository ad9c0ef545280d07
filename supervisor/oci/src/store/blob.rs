//! Small blobs: manifests, configs, signatures.
//!
//! In: bytes with their digest. Out: the same bytes, verified again on each read. Must not: hold a blob without bound.

use std::{
    fs::File,
    io::{Read as _, Write as _},
};

use molt_core::ids::Digest;
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use super::Store;
use crate::{
    error::{Error, Result},
    layer::{decode::digest_of, packed::mismatch},
    remove,
};

impl Store {
    /// Keeps `bytes` under their digest; durable when this returns. Already there is fine.
    pub fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let actual = digest_of(bytes);
        if actual != *digest {
            return Err(mismatch("blob", *digest, actual));
        }
        if self.has_blob(digest) {
            return Ok(());
        }
        let failed = |error: std::io::Error| Error::store(format!("keep blob {digest}"), error);
        let name = self.fresh();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.inner.tmp, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed(error.into()))?;
        let mut file = File::from(file);
        let written = file.write_all(bytes).and_then(|()| {
            file.sync_all()?;
            rustix::fs::renameat(&self.inner.tmp, &name, &self.inner.blobs, digest.hex())?;
            Ok(rustix::fs::fsync(&self.inner.blobs)?)
        });
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&self.inner.tmp, &name, AtFlags::empty());
        }
        written.map_err(failed)
    }

    /// Whether a blob is there.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        rustix::fs::accessat(&self.inner.blobs, digest.hex(), rustix::fs::Access::EXISTS, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok()
    }

    /// A blob of at most `at_most` bytes; none where it is not there. A blob that is not what its name says is an error.
    pub fn get_blob(&self, digest: &Digest, at_most: u64) -> Result<Option<Vec<u8>>> {
        let failed = |error: std::io::Error| Error::store(format!("read blob {digest}"), error);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.inner.blobs, digest.hex(), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        let mut bytes = Vec::new();
        file.take(at_most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > at_most {
            return Err(Error::manifest(format!("blob {digest}"), format!("larger than {at_most} bytes")));
        }
        let actual = digest_of(&bytes);
        if actual != *digest {
            return Err(mismatch("blob", *digest, actual));
        }
        Ok(Some(bytes))
    }

    /// All blobs.
    pub fn blobs(&self) -> Result<Vec<Digest>> {
        let names = remove::children(&self.inner.blobs).map_err(|error| Error::store("list blobs", error))?;
        Ok(names.iter().filter_map(|name| format!("sha256:{}", str::from_utf8(name).ok()?).parse().ok()).collect())
    }
}
