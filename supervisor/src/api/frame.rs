//! Frames of an exec stream: a byte of kind, four bytes of length (big endian), at most 64 KiB of data.
//!
//! In: bytes from either side of an upgraded connection. Out: frames. Must not: take a longer frame, a kind it does not
//! know, or a stream that ends in the middle of a frame for one that ended.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest data of a frame.
pub(crate) const MAX: usize = 64 << 10;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Standard input, towards the process; empty closes it.
    Stdin,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Window size, `ROWS COLS`, towards the process.
    Window,
    /// Exit status as decimal text; the last frame.
    Exit,
    /// Signal number as decimal text, towards the process.
    Signal,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Window => 3,
            Self::Exit => 4,
            Self::Signal => 5,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::Window, Self::Exit, Self::Signal]
            .into_iter()
            .find(|kind| kind.byte() == byte)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What it carries.
    pub(crate) kind: Kind,
    /// The data.
    pub(crate) data: Bytes,
}

/// The bytes of one frame; data past [`MAX`] is left out, so callers cut it before.
pub(crate) fn encode(kind: Kind, data: &[u8]) -> Bytes {
    let data = data.get(..MAX).unwrap_or(data);
    let mut bytes = BytesMut::with_capacity(5 + data.len());
    bytes.put_u8(kind.byte());
    // At most MAX, which fits.
    bytes.put_u32(u32::try_from(data.len()).unwrap_or_default());
    bytes.put_slice(data);
    bytes.freeze()
}

/// The next frame; `None` where the stream ended between two frames.
pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut kind = [0u8; 1];
    if from.read(&mut kind).await? == 0 {
        return Ok(None);
    }
    let [kind] = kind;
    let kind = Kind::from_byte(kind).ok_or_else(|| refuse("a frame of an unknown kind"))?;
    let length = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    if length > MAX {
        return Err(refuse("a frame longer than 64 KiB"));
    }
    let mut data = BytesMut::zeroed(length);
    from.read_exact(&mut data).await?;
    Ok(Some(Frame { kind, data: data.freeze() }))
}

/// The number in a frame of decimal text.
pub(crate) fn number(data: &[u8]) -> Option<i32> {
    std::str::from_utf8(data).ok()?.trim().parse().ok()
}

/// Rows and columns of a window frame.
pub(crate) fn window(data: &[u8]) -> Option<(u16, u16)> {
    let (rows, cols) = std::str::from_utf8(data).ok()?.split_once(' ')?;
    Some((rows.parse().ok()?, cols.parse().ok()?))
}

fn refuse(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn frames_round_trip_and_the_end_is_seen() {
        let mut bytes = Vec::new();
        for (kind, data) in
            [(Kind::Stdin, &b"hello"[..]), (Kind::Stdin, b""), (Kind::Exit, b"137"), (Kind::Signal, b"15")]
        {
            bytes.extend_from_slice(&encode(kind, data));
        }
        assert_eq!(&bytes[..10], b"\0\0\0\0\x05hello");
        run(async {
            let mut from = &bytes[..];
            let mut seen = Vec::new();
            while let Some(frame) = read(&mut from).await.unwrap() {
                seen.push((frame.kind, frame.data.to_vec()));
            }
            assert_eq!(seen.len(), 4);
            assert_eq!(seen[0], (Kind::Stdin, b"hello".to_vec()));
            assert_eq!(number(&seen[2].1), Some(137));
        });
    }

    #[test]
    fn broken_frames_are_errors() {
        for (bytes, why) in [
            (&b"\x09\0\0\0\0"[..], "unknown kind"),
            (b"\x01\0\x01\0\x01", "too long"),
            (b"\x01\0\0\0\x05abc", "cut in the data"),
            (b"\x01\0\0", "cut in the length"),
        ] {
            assert!(run(async { read(&mut &bytes[..]).await }).is_err(), "{why}");
        }
        assert_eq!(encode(Kind::Stdout, &vec![0; MAX + 1]).len(), 5 + MAX);
    }

    #[test]
    fn window_sizes_are_two_numbers() {
        assert_eq!(window(b"24 80"), Some((24, 80)));
        for text in ["", "24", "24 80 1", "-1 80", "a b"] {
            assert_eq!(window(text.as_bytes()), None, "{text:?}");
        }
    }
}
