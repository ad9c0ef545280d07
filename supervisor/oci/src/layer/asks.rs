//! Asks as bytes: how they get from the process that unpacked a layer to the one that settles it.
//!
//! In: [`Asks`], or a file that a process wrote which nobody trusts. Out: the other. Must not: believe a length, or take a
//! path that is not plain: both sides are confined all the same.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
};

use super::{entry::normalise, tree::Asks};
use crate::{
    config::Limits,
    error::{Error, Result},
};

impl Asks {
    /// Writes them: each list as its length, each path as its length and its bytes; numbers are u32, little-endian.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for set in [&self.parents, &self.hidden, &self.cut] {
            length(out, set.len())?;
            for path in set {
                bytes(out, path)?;
            }
        }
        length(out, self.links.len())?;
        for (link, target) in &self.links {
            bytes(out, link)?;
            bytes(out, target)?;
        }
        Ok(())
    }

    /// Reads what [`Self::write`] wrote.
    pub(crate) fn read(from: &mut impl Read, limits: &Limits) -> Result<Self> {
        // A real path may be as deep as the limit, of components as long as the limit.
        let path = (limits.component + 1) * (limits.depth + 1);
        let limits = Limits { path, depth: limits.depth + 1, ..limits.clone() };
        let mut reader = Reader { from, left: limits.deferred_bytes + (4 << 10), limits };
        let mut sets = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
        for set in &mut sets {
            for _ in 0..reader.length()? {
                set.insert(reader.path()?);
            }
        }
        let [parents, hidden, cut] = sets;
        let mut links = Vec::new();
        for _ in 0..reader.length()? {
            links.push((reader.path()?, reader.path()?));
        }
        Ok(Self { parents, hidden, cut, links })
    }
}

fn length(out: &mut impl Write, length: usize) -> io::Result<()> {
    let length = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    out.write_all(&length.to_le_bytes())
}

fn bytes(out: &mut impl Write, path: &[u8]) -> io::Result<()> {
    length(out, path.len())?;
    out.write_all(path)
}

struct Reader<'a, R> {
    from: &'a mut R,
    limits: Limits,
    /// As in [`super::tree::Tree::keep`], so that what could be kept can be read.
    left: usize,
}

impl<R: Read> Reader<'_, R> {
    fn length(&mut self) -> Result<u32> {
        let mut word = [0; 4];
        self.exact(&mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    fn exact(&mut self, out: &mut [u8]) -> Result<()> {
        self.from.read_exact(out).map_err(|error| Error::layer(format!("what it asks is cut short: {error}")))
    }

    fn path(&mut self) -> Result<Vec<u8>> {
        let length = usize::try_from(self.length()?).unwrap_or(usize::MAX);
        let refuse = || Error::layer("what it asks holds names that no layer has");
        if length > self.limits.path {
            return Err(refuse());
        }
        self.left = self.left.checked_sub(length + 96).ok_or_else(refuse)?;
        let mut path = vec![0; length];
        self.exact(&mut path)?;
        if normalise(&path, &self.limits).ok().as_deref() == Some(path.as_slice()) { Ok(path) } else { Err(refuse()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks() -> Asks {
        let set = |paths: &[&[u8]]| paths.iter().map(|path| path.to_vec()).collect();
        Asks {
            parents: set(&[b"usr", b"usr/bin"]),
            hidden: set(&[b"", b"etc/\xff\n"]),
            cut: set(&[b"var"]),
            links: vec![(b"a".to_vec(), b"b/c".to_vec())],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut text = Vec::new();
        asks().write(&mut text).unwrap();
        let read = Asks::read(&mut text.as_slice(), &Limits::default()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", asks()));
    }

    #[test]
    fn nothing_else_is_read() {
        let mut text = Vec::new();
        asks().write(&mut text).unwrap();
        let limits = Limits::default();
        for length in 0..text.len() {
            assert!(Asks::read(&mut &text[..length], &limits).is_err(), "{length}");
        }
        for path in [&b"../x"[..], b"/x", b"a//b", b"a/./b", b"a\0", b"a/"] {
            let mut text = Vec::new();
            let asks = Asks { parents: [path.to_vec()].into(), ..Asks::default() };
            asks.write(&mut text).unwrap();
            assert!(Asks::read(&mut text.as_slice(), &limits).is_err(), "{path:?}");
        }
        let endless = [0xff; 4096];
        assert!(Asks::read(&mut endless.as_slice(), &limits).is_err());
        let many = Asks { parents: (0..100u32).map(|name| name.to_string().into_bytes()).collect(), ..Asks::default() };
        let mut text = Vec::new();
        many.write(&mut text).unwrap();
        assert!(Asks::read(&mut text.as_slice(), &limits).is_ok());
        let few = Limits { deferred_bytes: 300, ..limits };
        assert!(Asks::read(&mut text.as_slice(), &few).is_err(), "more than may be kept");
    }
}
