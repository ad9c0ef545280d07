//! OCI layouts on disk: a folder, or a tar of one that is indexed once and read in place.
//!
//! In: a path in Molt's own root, given by the operator. Out: documents and blob streams by digest. Must not: unpack the
//! tar, leave the folder by a link, or believe a blob; who reads it checks it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use molt_core::ids::Digest;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use serde::Deserialize;

use crate::{
    config::Limits,
    error::{Error, Result, show},
    layer::{decode::digest_of, entry::Kind, packed::mismatch, tar::TarReader},
    manifest::{self, Descriptor, Parsed},
};

const BLOBS_MAX: usize = 100_000;
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An open layout.
#[derive(Debug)]
pub(crate) struct Layout {
    path: PathBuf,
    kind: Place,
}

#[derive(Debug)]
enum Place {
    Folder(OwnedFd),
    /// Offsets and sizes of the files in the tar, by name.
    Tar(Arc<File>, HashMap<Vec<u8>, (u64, u64)>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

impl Layout {
    /// Opens and checks that it is one.
    pub(crate) fn open(path: &str, limits: &Limits) -> Result<Self> {
        let path = PathBuf::from(path);
        let failed = |source: io::Error| Error::Layout { operation: "open the layout", path: path.clone(), source };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| failed(error.into()))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Place::Folder(fd),
            FileType::RegularFile => {
                let file = File::from(fd);
                let index = index(&file, &path, limits)?;
                Place::Tar(Arc::new(file), index)
            }
            _ => return Err(Error::manifest(path.display().to_string(), "neither a folder nor a tar")),
        };
        let layout = Self { path, kind };
        let marker = layout.document(b"oci-layout", 4096)?;
        let marker: Marker = serde_json::from_slice(&marker)
            .map_err(|error| Error::manifest(layout.name(), format!("its oci-layout file is not valid: {error}")))?;
        if marker.image_layout_version != "1.0.0" {
            let version = show(marker.image_layout_version.as_bytes());
            return Err(Error::manifest(layout.name(), format!("layout version '{version}' is not taken")));
        }
        Ok(layout)
    }

    pub(crate) fn name(&self) -> String {
        format!("oci:{}", self.path.display())
    }

    fn file(&self, name: &[u8]) -> Result<Box<dyn Read + Send>> {
        let failed = |source: io::Error| Error::Layout {
            operation: "read a file of the layout",
            path: self.path.clone(),
            source,
        };
        match &self.kind {
            Place::Folder(folder) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let fd = rustix::fs::openat2(folder, name, flags, Mode::empty(), inside).map_err(|error| {
                    if error == rustix::io::Errno::NOENT {
                        Error::NotFound { what: show(name), place: self.name() }
                    } else {
                        failed(error.into())
                    }
                })?;
                let stat = rustix::fs::fstat(&fd).map_err(|error| failed(error.into()))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(Error::manifest(self.name(), format!("'{}' is not a file", show(name))));
                }
                Ok(Box::new(File::from(fd)))
            }
            Place::Tar(file, index) => {
                let (offset, size) =
                    *index.get(name).ok_or_else(|| Error::NotFound { what: show(name), place: self.name() })?;
                Ok(Box::new(Slice { file: Arc::clone(file), offset, left: size }))
            }
        }
    }

    fn document(&self, name: &[u8], at_most: u64) -> Result<Bytes> {
        let mut bytes = Vec::new();
        self.file(name)?.take(at_most.saturating_add(1)).read_to_end(&mut bytes).map_err(|source| Error::Layout {
            operation: "read a file of the layout",
            path: self.path.clone(),
            source,
        })?;
        if bytes.len() as u64 > at_most {
            return Err(Error::manifest(self.name(), format!("'{}' is larger than {at_most} bytes", show(name))));
        }
        Ok(bytes.into())
    }

    /// A blob as a stream, unchecked.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>> {
        self.file(format!("blobs/sha256/{}", digest.hex()).as_bytes())
    }

    /// A small blob, checked.
    pub(crate) fn checked(&self, digest: &Digest, at_most: u64) -> Result<Bytes> {
        let bytes = self.document(format!("blobs/sha256/{}", digest.hex()).as_bytes(), at_most)?;
        let actual = digest_of(&bytes);
        if actual == *digest { Ok(bytes) } else { Err(mismatch("blob", *digest, actual)) }
    }

    /// The descriptor in `index.json` for a tag, or the only one.
    pub(crate) fn entry(&self, tag: Option<&str>, limits: &Limits) -> Result<Descriptor> {
        let bytes = self.document(b"index.json", limits.manifest)?;
        let entries = match manifest::parse(&self.name(), &bytes, Some(manifest::OCI_INDEX), limits)? {
            Parsed::Index(entries) => entries,
            Parsed::Manifest(_) => return Err(Error::manifest(self.name(), "its index.json is not an index")),
        };
        let name = |entry: &Descriptor| entry.annotations.as_ref().and_then(|all| all.get(REF_NAME)).cloned();
        let fits = |entry: &&Descriptor| {
            tag.is_none_or(|tag| {
                name(entry)
                    .is_some_and(|name| name == tag || name.rsplit_once(':').is_some_and(|(_, last)| last == tag))
            })
        };
        let found: Vec<&Descriptor> = entries.iter().filter(fits).collect();
        match (found.as_slice(), tag) {
            ([one], _) => Ok((*one).clone()),
            ([], Some(tag)) => Err(Error::NotFound { what: format!("tag '{tag}'"), place: self.name() }),
            ([], None) => Err(Error::manifest(self.name(), "it holds no image")),
            (_, Some(tag)) => Err(Error::manifest(self.name(), format!("tag '{tag}' is there more than once"))),
            (_, None) => {
                let tags: Vec<_> = entries.iter().filter_map(name).map(|name| show(name.as_bytes())).collect();
                Err(Error::manifest(self.name(), format!("it holds several images; name one of: {}", tags.join(", "))))
            }
        }
    }
}

/// Where each file is. Reads headers only.
fn index(file: &File, path: &Path, limits: &Limits) -> Result<HashMap<Vec<u8>, (u64, u64)>> {
    let not_a_tar =
        |error: Error| Error::manifest(format!("oci:{}", path.display()), format!("not a plain tar: {error}"));
    let size = file.metadata().map_or(0, |meta| meta.len());
    let mut tar = TarReader::new(file, limits);
    let mut found = HashMap::new();
    while let Some(entry) = tar.next().map_err(not_a_tar)? {
        let Kind::File(length) = entry.kind else { continue };
        let start = tar.position();
        if start.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::manifest(format!("oci:{}", path.display()), "it is cut short"));
        }
        let named =
            entry.path == b"index.json" || entry.path == b"oci-layout" || entry.path.starts_with(b"blobs/sha256/");
        tar.skip(&entry).map_err(not_a_tar)?;
        if named {
            found.insert(entry.path, (start, length));
        }
        if found.len() > BLOBS_MAX {
            return Err(Error::manifest(format!("oci:{}", path.display()), format!("more than {BLOBS_MAX} blobs")));
        }
    }
    Ok(found)
}

/// A part of a file, read without moving its offset.
#[derive(Debug)]
struct Slice {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Slice {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let count = self.file.read_at(out.get_mut(..most).unwrap_or_default(), self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
