//! Walks a tar stream entry by entry with one bounded buffer.
//!
//! In: a `Read` of tar bytes. Out: checked [`Entry`] values, then the bytes of each. Must not: hold more than the buffer
//! (256 KiB, at most 3 MiB while a long header is read), or interpret an entry.

use std::io::{Read, Seek};

use tar_core::{
    EntryType, Header,
    parse::{Limits as ParserLimits, ParseEvent, Parser},
};

use super::{
    decode::stream_error,
    entry::{Entry, data_bytes},
};
use crate::{
    config::Limits,
    error::{Error, Result},
};

const BUFFER: usize = 256 << 10;
const BUFFER_MAX: usize = 3 << 20;
const BLOCK: u64 = 512;

/// A tar stream being read.
pub(crate) struct TarReader<'a, R> {
    source: R,
    parser: Parser,
    limits: &'a Limits,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes consumed so far: where in the stream the next byte is.
    position: u64,
    entries: u64,
}

impl<'a, R: Read> TarReader<'a, R> {
    pub(crate) fn new(source: R, limits: &'a Limits) -> Self {
        let parser = Parser::new(ParserLimits {
            max_metadata_size: 1 << 20,
            max_path_len: Some(u32::try_from(limits.path).unwrap_or(u32::MAX)),
            max_pending_entries: 16,
            max_sparse_entries: 8,
        });
        Self { source, parser, limits, buffer: vec![0; BUFFER], start: 0, end: 0, position: 0, entries: 0 }
    }

    /// Where the next unread byte is in the stream.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    fn filled(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
        self.position += count as u64;
    }

    /// Reads until at least `least` bytes are there; false at the end of the stream.
    fn fill(&mut self, least: usize) -> Result<bool> {
        if least > BUFFER_MAX {
            return Err(Error::layer(format!("a tar header of {least} bytes, more than {BUFFER_MAX}")));
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < least {
            // By doubling: a header that asks for a block more each time is parsed from its start each time.
            self.buffer.resize(least.next_power_of_two().min(BUFFER_MAX), 0);
        }
        while self.end < least {
            let free = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.source.read(free) {
                Ok(0) => return Ok(false),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(stream_error("read the tar stream", error)),
            }
        }
        Ok(true)
    }

    /// The next entry; its data, if any, must be taken by [`Self::data`] before the next call.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            let filled = self.buffer.get(self.start..self.end).unwrap_or_default();
            let event = self.parser.parse(filled).map_err(|error| Error::layer(format!("malformed tar: {error}")))?;
            match event {
                ParseEvent::NeedData { min_bytes } => {
                    if !self.fill(min_bytes.max(self.end - self.start + 1))? {
                        // The end marker may be missing or cut, nothing else.
                        if self.filled().iter().any(|byte| *byte != 0) {
                            return Err(Error::layer("the tar stream ends inside a header"));
                        }
                        return Ok(None);
                    }
                }
                ParseEvent::Entry { consumed, entry } => {
                    self.entries += 1;
                    if self.entries > self.limits.entries {
                        return Err(Error::layer(format!("more than {} entries", self.limits.entries)));
                    }
                    if mixes_extensions(filled.get(..consumed).unwrap_or_default()) {
                        return Err(Error::layer(
                            "an entry with names in GNU's and in PAX's way: readers differ in them",
                        ));
                    }
                    let entry = Entry::new(&entry, self.limits)?;
                    self.consume(consumed);
                    return Ok(Some(entry));
                }
                ParseEvent::SparseEntry { .. } => {
                    return Err(Error::layer("sparse files are not taken; pack the layer without them"));
                }
                ParseEvent::GlobalExtensions { consumed, pax_data } => {
                    if !is_global(filled.get(..consumed).unwrap_or_default()) {
                        return Err(Error::layer(
                            "a global tar header between an entry and what extends it: readers differ in them",
                        ));
                    }
                    global(pax_data)?;
                    self.entries += 1;
                    self.consume(consumed);
                }
                ParseEvent::End { .. } => return Ok(None),
            }
        }
    }

    /// Hands the data of `entry` to `sink`, piece by piece, and skips the padding.
    pub(crate) fn data(&mut self, entry: &Entry, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut left = data_bytes(entry);
        let padding = left.next_multiple_of(BLOCK) - left;
        while left > 0 {
            if self.start == self.end && !self.fill(1)? {
                return Err(Error::layer(format!("the tar stream ends {left} bytes before the end of a file")));
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let piece = self.buffer.get(self.start..self.end.min(self.start.saturating_add(most))).unwrap_or_default();
            let count = piece.len();
            sink(piece)?;
            self.consume(count);
            left -= count as u64;
        }
        let padding = usize::try_from(padding).unwrap_or(0);
        if self.end - self.start < padding && !self.fill(padding)? {
            return Err(Error::layer("the tar stream ends inside the padding of a file"));
        }
        self.consume(padding);
        Ok(())
    }
}

impl<R: Read + Seek> TarReader<'_, R> {
    /// Passes over the data of `entry` without reading it.
    pub(crate) fn skip(&mut self, entry: &Entry) -> Result<()> {
        let length = data_bytes(entry).next_multiple_of(BLOCK);
        let buffered = usize::try_from(length).unwrap_or(usize::MAX).min(self.end - self.start);
        self.consume(buffered);
        let rest = i64::try_from(length - buffered as u64).map_err(|_| Error::layer("an impossible size"))?;
        if rest > 0 {
            self.source.seek_relative(rest).map_err(|error| stream_error("seek in the tar", error))?;
            self.position += rest.unsigned_abs();
        }
        Ok(())
    }
}

/// Whether the headers in front of an entry, which `chain` ends with, are of both kinds.
fn mixes_extensions(mut chain: &[u8]) -> bool {
    let (mut gnu, mut pax) = (false, false);
    while let Some((block, rest)) = chain.split_first_chunk() {
        let header = Header::from_bytes(block);
        match header.entry_type() {
            EntryType::GnuLongName | EntryType::GnuLongLink => gnu = true,
            EntryType::XHeader => pax = true,
            _ => {}
        }
        // The parser has been here: sizes are good and the data is there.
        let data = header.entry_size().ok().and_then(|size| size.checked_next_multiple_of(BLOCK)).unwrap_or(u64::MAX);
        chain = usize::try_from(data).ok().and_then(|data| rest.get(data..)).unwrap_or_default();
    }
    gnu && pax
}

/// Whether the first header of `chain`, which ends with a global one, is that one: the parser drops others before it.
fn is_global(chain: &[u8]) -> bool {
    let mut blocks = chain.as_chunks().0.iter().filter(|block| block.iter().any(|byte| *byte != 0));
    blocks.next().is_some_and(|block| Header::from_bytes(block).entry_type() == EntryType::XGlobalHeader)
}

/// Global records would change every later entry in some readers and none in others.
fn global(pax: &[u8]) -> Result<()> {
    for key in [&b" path="[..], b" linkpath=", b" size=", b" uid=", b" gid=", b" GNU.sparse."] {
        if pax.windows(key.len()).any(|window| window == key) {
            return Err(Error::layer("a global tar header that sets names, sizes or owners"));
        }
    }
    Ok(())
}
