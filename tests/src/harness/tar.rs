//! Tars written header by header: names, sizes and kinds that the `tar` crate would refuse or correct.
//!
//! In: entries. Out: the bytes. Must not: correct what it is told.

use tar::{EntryType, Header};

/// A tar being written.
#[derive(Debug, Default, Clone)]
pub struct Tar {
    bytes: Vec<u8>,
    owner: (u64, u64),
}

impl Tar {
    /// An empty one; entries belong to 0:0 and are of 2001.
    pub fn new() -> Self {
        Self::default()
    }

    /// A header as GNU tar writes it, its checksum still to be made.
    pub fn header(kind: EntryType, name: &[u8], link: &[u8], size: u64, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        header
    }

    /// Any header, with its checksum made, and any data behind it.
    #[must_use]
    pub fn raw(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data);
        let padding = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(padding, 0);
        self
    }

    fn entry(self, kind: EntryType, name: &str, link: &str, data: &[u8], mode: u32) -> Self {
        let mut header = Self::header(kind, name.as_bytes(), link.as_bytes(), data.len() as u64, mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        self.raw(header, data)
    }

    /// Entries that follow belong to this user and group.
    #[must_use]
    pub fn owned(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// A folder.
    #[must_use]
    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, name, "", b"", mode)
    }

    /// A file of mode 644.
    #[must_use]
    pub fn file(self, name: &str, data: &str) -> Self {
        self.file_mode(name, data, 0o644)
    }

    /// A file.
    #[must_use]
    pub fn file_mode(self, name: &str, data: &str, mode: u32) -> Self {
        self.entry(EntryType::Regular, name, "", data.as_bytes(), mode)
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"", 0o777)
    }

    /// A hard link, whose own mode is one that must not matter.
    #[must_use]
    pub fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"", 0o6777)
    }

    /// An entry of any kind without data.
    #[must_use]
    pub fn of(self, kind: EntryType, name: &str) -> Self {
        self.entry(kind, name, "", b"", 0o644)
    }

    /// A PAX header for the entry that follows.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extension(EntryType::XHeader, records)
    }

    /// A PAX header for all entries that follow.
    #[must_use]
    pub fn global(self, records: &[(&str, &[u8])]) -> Self {
        self.extension(EntryType::XGlobalHeader, records)
    }

    fn extension(self, kind: EntryType, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.as_old_mut().name[..3].copy_from_slice(b"pax");
        self.raw(header, &data)
    }

    /// The finished tar.
    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    /// The tar without its end marker.
    pub fn cut(self) -> Vec<u8> {
        self.bytes
    }

    /// A long name or link target, as GNU tar writes it: kind `L` or `K`.
    #[must_use]
    pub fn long(self, kind: u8, text: &[u8]) -> Self {
        let mut header = Self::header(EntryType::new(kind), b"././@LongLink", b"", text.len() as u64 + 1, 0o644);
        header.set_mtime(0);
        self.raw(header, &[text, b"\0"].concat())
    }

    /// A device node.
    #[must_use]
    pub fn device(self, kind: EntryType, name: &str, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, name.as_bytes(), b"", 0, 0o666);
        header.set_device_major(major).expect("fits");
        header.set_device_minor(minor).expect("fits");
        self.raw(header, b"")
    }

    /// Bytes that are no entry.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }
}
