//! From packed bytes to the plain tar stream: the bounds on how much may come out, and what it hashes to.
//!
//! In: a `BufRead` of the blob, its media kind, the limits. Out: a `Read` of the tar bytes, then their [`DiffId`]. Must
//! not: buffer a layer, guess a compression that the media type does not name, or judge the packed bytes; who has them
//! first does, with [`super::packed`].

use std::{
    io::{self, BufRead, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use molt_core::ids::{DiffId, Digest};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    config::Limits,
    error::{Error, Result},
};

/// Bytes that tell a packing.
pub(crate) const HEAD: usize = 4;

/// How a layer is packed, from its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Packing {
    /// A plain tar.
    Tar,
    /// gzip, one or more members.
    Gzip,
    /// zstd, one or more frames.
    Zstd,
}

impl Packing {
    /// From a layer's media type; none for those that are not taken.
    pub fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                Some(Self::Tar)
            }
            "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                Some(Self::Gzip)
            }
            "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
                Some(Self::Zstd)
            }
            _ => None,
        }
    }

    /// Whether a blob that begins like this is packed so.
    pub(crate) fn check(self, head: &[u8]) -> Result<()> {
        let found = Self::sniff(head);
        if !head.is_empty() && found != self {
            return Err(Error::layer(format!("the media type says {self:?}, the bytes are {found:?}")));
        }
        Ok(())
    }

    fn sniff(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Tar,
        }
    }
}

/// Counts what is consumed from `R`.
#[derive(Debug)]
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.count.fetch_add(amount as u64, Ordering::Relaxed);
        self.inner.consume(amount);
    }
}

/// The first bytes, which were looked at, and the rest.
type Whole<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

enum Unpacking<R: BufRead> {
    Tar(Counted<Whole<R>>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Counted<Whole<R>>>>),
    Zstd(zstd::stream::read::Decoder<'static, Counted<Whole<R>>>),
}

/// The tar stream of a layer.
pub(crate) struct Plain<R: BufRead> {
    inner: Unpacking<R>,
    hash: Sha256,
    packed: Arc<AtomicU64>,
    count: u64,
    bytes_max: u64,
    ratio: u64,
    ratio_after: u64,
}

impl<R: BufRead> std::fmt::Debug for Plain<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plain").field("count", &self.count).finish_non_exhaustive()
    }
}

impl<R: BufRead> Plain<R> {
    /// Looks at the first bytes: the blob must be packed as its media type says.
    pub(crate) fn new(mut source: R, packing: Packing, limits: &Limits) -> Result<Self> {
        // A first read may bring less than what tells a packing.
        let mut head = Vec::with_capacity(HEAD);
        (&mut source)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(|source| stream_error("read its first bytes", source))?;
        packing.check(&head)?;
        let packed = Arc::new(AtomicU64::new(0));
        let source = io::Cursor::new(head).chain(source);
        let source = Counted { inner: source, count: Arc::clone(&packed) };
        let inner = match packing {
            Packing::Tar => Unpacking::Tar(source),
            Packing::Gzip => Unpacking::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source))),
            Packing::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)
                    .map_err(|source| stream_error("start zstd", source))?;
                decoder
                    .window_log_max(limits.zstd_window_log)
                    .map_err(|source| stream_error("bound the zstd window", source))?;
                Unpacking::Zstd(decoder)
            }
        };
        Ok(Self {
            inner,
            hash: Sha256::new(),
            packed,
            count: 0,
            bytes_max: limits.layer_bytes,
            ratio: limits.ratio,
            ratio_after: limits.ratio_after,
        })
    }

    /// Reads what is left of the tar stream and says what all of it was.
    pub(crate) fn finish(mut self) -> Result<DiffId> {
        let mut rest = vec![0; 64 << 10];
        while self.read(&mut rest).map_err(|source| stream_error("read to its end", source))? > 0 {}
        Ok(DiffId(finish_hash(self.hash)))
    }
}

impl<R: BufRead> Read for Plain<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.inner {
            Unpacking::Tar(reader) => reader.read(out)?,
            Unpacking::Gzip(reader) => reader.read(out)?,
            Unpacking::Zstd(reader) => reader.read(out)?,
        };
        self.hash.update(out.get(..count).unwrap_or_default());
        self.count = self.count.saturating_add(count as u64);
        if self.count > self.bytes_max {
            return Err(io::Error::other(Bomb(format!("unpacks to more than {} bytes", self.bytes_max))));
        }
        let packed = self.packed.load(Ordering::Relaxed).max(1);
        if self.count > self.ratio_after && self.count / packed > self.ratio {
            return Err(io::Error::other(Bomb(format!(
                "unpacks {} bytes from {packed}, more than {}:1",
                self.count, self.ratio
            ))));
        }
        Ok(count)
    }
}

/// A limit was passed while decoding; travels through `io::Error`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Bomb(String);

/// An error while reading the stream, as one about the layer.
pub(crate) fn stream_error(what: &str, source: io::Error) -> Error {
    if let Some(bomb) = source.get_ref().and_then(|inner| inner.downcast_ref::<Bomb>()) {
        return Error::layer(bomb.0.clone());
    }
    Error::Layer { layer: None, why: format!("cannot {what}"), source: Some(source) }
}

/// Closes a hash.
pub(crate) fn finish_hash(hash: Sha256) -> Digest {
    Digest::from_bytes(hash.finalize().into())
}

/// The digest of bytes at hand.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn sum(blob: &[u8], packing: Packing, limits: &Limits) -> Result<DiffId> {
        Plain::new(blob, packing, limits)?.finish()
    }

    #[test]
    fn the_sum_covers_all_members() {
        let plain = b"hello world".repeat(1000);
        let two = [gzip(&plain), gzip(&plain)].concat();
        assert_eq!(sum(&two, Packing::Gzip, &Limits::default()).unwrap().0, digest_of(&plain.repeat(2)));
        let z = zstd::encode_all(plain.as_slice(), 3).unwrap();
        assert_eq!(sum(&z, Packing::Zstd, &Limits::default()).unwrap().0, digest_of(&plain));
        assert_eq!(sum(&plain, Packing::Tar, &Limits::default()).unwrap().0, digest_of(&plain));
    }

    #[test]
    fn packing_must_be_what_the_media_type_says() {
        let blob = gzip(b"x");
        for packing in [Packing::Tar, Packing::Zstd] {
            assert!(sum(&blob, packing, &Limits::default()).is_err());
        }
    }

    #[test]
    fn a_first_read_of_one_byte_changes_nothing() {
        let plain = b"hello world".repeat(100);
        let zstd = zstd::encode_all(plain.as_slice(), 3).unwrap();
        for (blob, packing) in [(gzip(&plain), Packing::Gzip), (zstd, Packing::Zstd), (plain.clone(), Packing::Tar)] {
            for limit in 1..4 {
                let source = || (&blob[..limit]).chain(&blob[limit..]);
                let sum = Plain::new(source(), packing, &Limits::default()).unwrap().finish().unwrap();
                assert_eq!(sum.0, digest_of(&plain), "{packing:?}");
                if packing != Packing::Tar {
                    assert!(Plain::new(source(), Packing::Tar, &Limits::default()).is_err());
                }
            }
        }
        assert_eq!(sum(b"", Packing::Tar, &Limits::default()).unwrap().0, digest_of(b""));
    }

    #[test]
    fn bombs_stop_at_the_ratio_and_at_the_size() {
        let zeros = gzip(&vec![0; 8 << 20]);
        let ratio = Limits { ratio: 200, ratio_after: 1 << 20, ..Limits::default() };
        assert!(sum(&zeros, Packing::Gzip, &ratio).unwrap_err().to_string().contains("200:1"));
        let size = Limits { layer_bytes: 1 << 20, ..Limits::default() };
        assert!(sum(&zeros, Packing::Gzip, &size).unwrap_err().to_string().contains("1048576"));
    }

    #[test]
    fn wide_zstd_windows_are_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(&vec![7; 40 << 20]).unwrap();
        let blob = encoder.finish().unwrap();
        let narrow = Limits { zstd_window_log: 20, ..Limits::default() };
        assert!(sum(&blob, Packing::Zstd, &narrow).is_err());
        assert!(sum(&blob, Packing::Zstd, &Limits { ratio: 1 << 40, ..Limits::default() }).is_ok());
    }

    #[test]
    fn truncated_streams_fail() {
        let blob = gzip(&b"abc".repeat(10_000));
        assert!(sum(&blob[..blob.len() - 9], Packing::Gzip, &Limits::default()).is_err());
    }
}
