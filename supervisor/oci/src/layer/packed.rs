//! The packed bytes of a layer, as they pass: hashed and counted, and judged against what the manifest promised.
//!
//! In: a `BufRead` of the blob. Out: the same bytes, then whether they were the right ones. Must not: look inside.

use std::io::{self, BufRead, Read};

use molt_core::ids::{DiffId, Digest};
use sha2::{Digest as _, Sha256};

use super::decode::{Packing, finish_hash};
use crate::error::{Error, Result};

/// After a layer was found bad, this much more of it is read to tell a broken download from a bad layer.
const ABANDON: u64 = 64 << 20;

/// What a layer must turn out to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) diff_id: DiffId,
    pub(crate) packing: Packing,
}

/// Hashes what is consumed from `R`.
#[derive(Debug)]
pub(crate) struct Hashed<R> {
    inner: R,
    hash: Sha256,
    count: u64,
}

impl<R: BufRead> Hashed<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), count: 0 }
    }

    /// Reads to the end; an error where more than `at_most` bytes are left.
    fn drain(&mut self, at_most: u64) -> io::Result<()> {
        let mut left = at_most;
        loop {
            let length = match self.fill_buf() {
                Ok(piece) => piece.len(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if length == 0 {
                return Ok(());
            }
            left = left.checked_sub(length as u64).ok_or(io::ErrorKind::FileTooLarge)?;
            self.consume(length);
        }
    }
}

impl<R: BufRead> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(out)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Hashed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        // Still buffered, so this cannot fail or block.
        if amount > 0
            && let Ok(available) = self.inner.fill_buf()
        {
            self.hash.update(available.get(..amount).unwrap_or(available));
        }
        self.count += amount as u64;
        self.inner.consume(amount);
    }
}

impl Promise {
    /// Judges a layer that was unpacked, or was not, from the `source` that is left: what the bytes were comes before what
    /// was made of them, so that a broken download is not taken for a bad layer.
    pub(crate) fn judge<T>(self, mut source: Hashed<impl BufRead>, unpacked: Result<(DiffId, T)>) -> Result<T> {
        let (plain, made) = match unpacked {
            Ok(done) => done,
            Err(error) if error.may_be_damage() => {
                return Err(match source.drain(ABANDON).map(|()| finish_hash(source.hash)) {
                    Ok(actual) if actual != self.digest => mismatch("blob", self.digest, actual),
                    _ => error.in_layer(self.diff_id),
                });
            }
            Err(error) => return Err(error),
        };
        source
            .drain(u64::MAX)
            .map_err(|source| super::decode::stream_error("read to its end", source).in_layer(self.diff_id))?;
        if source.count != self.size {
            return Err(Error::Mismatch {
                what: format!("the size of blob {}", self.digest),
                expected: format!("{} bytes", self.size),
                actual: format!("{} bytes", source.count),
            });
        }
        let packed = finish_hash(source.hash);
        if packed != self.digest {
            return Err(mismatch("blob", self.digest, packed));
        }
        if plain != self.diff_id {
            return Err(mismatch("unpacked layer (diff_id)", self.diff_id.0, plain.0));
        }
        Ok(made)
    }
}

pub(crate) fn mismatch(what: &str, expected: Digest, actual: Digest) -> Error {
    Error::Mismatch { what: format!("{what} {expected}"), expected: expected.to_string(), actual: actual.to_string() }
}

#[cfg(test)]
mod tests {
    use super::{super::decode::digest_of, *};

    fn promise(blob: &[u8]) -> Promise {
        let digest = digest_of(blob);
        Promise { digest, size: blob.len() as u64, diff_id: DiffId(digest), packing: Packing::Tar }
    }

    #[test]
    fn what_was_not_read_is_hashed_all_the_same() {
        let blob = b"0123456789".repeat(100);
        let promise = promise(&blob);
        let mut source = Hashed::new(blob.as_slice());
        source.read_exact(&mut [0; 7]).unwrap();
        promise.judge(source, Ok((promise.diff_id, ()))).unwrap();
    }

    #[test]
    fn damage_comes_before_what_was_made_of_it() {
        let blob = b"0123456789".repeat(100);
        let promise = promise(&blob);
        let bad = || Err::<(DiffId, ()), _>(Error::layer("nonsense"));
        let error = promise.judge(Hashed::new(blob.as_slice()), bad()).unwrap_err();
        assert!(matches!(error, Error::Layer { layer: Some(_), .. }), "{error}");
        for damaged in [&blob[1..], &b"x"[..]] {
            let error = promise.judge(Hashed::new(damaged), bad()).unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
            let error = promise.judge(Hashed::new(damaged), Ok((promise.diff_id, ()))).unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        }
    }
}
