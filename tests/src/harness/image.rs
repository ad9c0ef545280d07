//! Images written byte by byte: honest ones, and ones that lie.
//!
//! In: entries of layers, a config, closures that bend the documents. Out: [`Built`], blobs and a
//! manifest, which go to an OCI layout folder or, by HTTP, into a registry. Must not: correct what
//! it is told; a wrong digest or an entry named `../x` is the point.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// Time of every entry, so that the same recipe has the same digest.
const MTIME: u64 = 1_700_000_000;

/// How a layer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// As it is.
    Plain,
}

/// Which family of media types the documents use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OCI image specification 1.0.
    Oci,
    /// Docker image manifest version 2, schema 2.
    Docker,
}

impl Format {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, packing: Packing) -> &'static str {
        match (self, packing) {
            (Self::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Docker, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Docker, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
            (Self::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
        }
    }
}

/// `sha256:` and 64 hex digits.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}

/// A layer being written.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
    owner: (u64, u64),
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer").field("bytes", &self.tar.get_ref().len()).finish_non_exhaustive()
    }
}

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    /// An empty one; entries belong to 0:0.
    pub fn new() -> Self {
        Self { tar: tar::Builder::new(Vec::new()), owner: (0, 0) }
    }

    /// Owner of the entries that follow.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// A folder.
    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(&format!("{path}/"), EntryType::Directory, mode, None, &[])
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, bytes: &[u8]) -> Self {
        self.entry(path, EntryType::Regular, mode, None, bytes)
    }

    /// A symbolic link; its target is taken as it is.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, 0o777, Some(target), &[])
    }

    /// A hard link; its target is taken as it is.
    #[must_use]
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, 0o644, Some(target), &[])
    }

    /// A whiteout of `path`.
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let marker = if folder.is_empty() { format!(".wh.{name}") } else { format!("{folder}/.wh.{name}") };
        self.file(&marker, 0o644, &[])
    }

    /// Makes the folder `path` opaque.
    #[must_use]
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), 0o644, &[])
    }

    /// A character device.
    #[must_use]
    pub fn device(mut self, path: &str, major: u32, minor: u32) -> Self {
        let mut header = self.header(path, EntryType::Char, 0o666, None, 0);
        header.set_device_major(major).expect("fits");
        header.set_device_minor(minor).expect("fits");
        header.set_cksum();
        self.tar.append(&header, &[][..]).expect("a Vec takes everything");
        self
    }

    /// PAX records (extended attributes: `SCHILY.xattr.NAME`) for the entry that follows.
    #[must_use]
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.tar.append_pax_extensions(records.iter().copied()).expect("a Vec takes everything");
        self
    }

    /// An entry whose header claims `claimed` bytes, whatever follows it.
    #[must_use]
    pub fn claiming(mut self, path: &str, claimed: u64, bytes: &[u8]) -> Self {
        let header = self.header(path, EntryType::Regular, 0o644, None, claimed);
        self.tar.append(&header, bytes).expect("a Vec takes everything");
        self
    }

    /// Any entry, its names written into the header as they are (100 bytes at most).
    #[must_use]
    pub fn entry(mut self, path: &str, kind: EntryType, mode: u32, target: Option<&str>, bytes: &[u8]) -> Self {
        let header = self.header(path, kind, mode, target, bytes.len() as u64);
        self.tar.append(&header, bytes).expect("a Vec takes everything");
        self
    }

    fn header(&self, path: &str, kind: EntryType, mode: u32, target: Option<&str>, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(MTIME);
        header.set_size(size);
        // Not `set_path`: that one refuses the names that attackers use.
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        if let Some(target) = target {
            old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_cksum();
        header
    }

    /// The finished layer, packed.
    pub fn pack(self, packing: Packing) -> Packed {
        let tar = self.tar.into_inner().expect("a Vec takes everything");
        Packed::new(&tar, packing)
    }
}

/// A layer ready to travel.
#[derive(Debug, Clone)]
pub struct Packed {
    /// How it is packed.
    pub packing: Packing,
    /// Digest of the bare tar.
    pub diff_id: String,
    /// Digest of `bytes`.
    pub digest: String,
    /// What travels.
    pub bytes: Vec<u8>,
}

impl Packed {
    /// Packs a tar file that exists already.
    pub fn new(tar: &[u8], packing: Packing) -> Self {
        let bytes = match packing {
            Packing::Plain => tar.to_vec(),
            Packing::Zstd => zstd::encode_all(tar, 3).expect("a slice can always be read"),
            Packing::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(tar).and_then(|()| gzip.finish()).expect("a Vec takes everything")
            }
        };
        Self { packing, diff_id: digest(tar), digest: digest(&bytes), bytes }
    }
}

/// A recipe for one image.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    /// Lowest first.
    pub layers: Vec<Packed>,
    /// The image config; `rootfs` is filled in by [`ImageBuilder::build`] if it is absent.
    pub config: Value,
    /// Media types.
    pub format: Format,
}

impl ImageBuilder {
    /// No layers, this machine's platform, an empty `config.config`.
    pub fn new(format: Format) -> Self {
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "2023-11-14T22:13:20Z",
            "config": {},
        });
        Self { layers: Vec::new(), config, format }
    }

    /// One more layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Packed) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets `config.KEY` (`Entrypoint`, `Cmd`, `Env`, `User`, `WorkingDir`, `StopSignal`, ...).
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.config["config"][key] = value;
        self
    }

    /// Bends the whole config document: a lying `rootfs.diff_ids`, another architecture.
    #[must_use]
    pub fn bend_config(mut self, bend: impl FnOnce(&mut Value)) -> Self {
        self.config["rootfs"] = self.rootfs();
        bend(&mut self.config);
        self
    }

    fn rootfs(&self) -> Value {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        json!({"type": "layers", "diff_ids": diff_ids})
    }

    /// The documents.
    pub fn build(self) -> Built {
        self.build_bent(|_| {})
    }

    /// The documents, the manifest bent first: a claimed size, a missing layer, a wrong digest.
    pub fn build_bent(mut self, bend: impl FnOnce(&mut Value)) -> Built {
        if self.config.get("rootfs").is_none() {
            self.config["rootfs"] = self.rootfs();
        }
        let format = self.format;
        let config = self.config.to_string().into_bytes();
        let layers: Vec<_> =
            self.layers.iter().map(|one| descriptor(format.layer(one.packing), &one.digest, one.bytes.len())).collect();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": format.manifest(),
            "config": descriptor(format.config(), &digest(&config), config.len()),
            "layers": layers,
        });
        bend(&mut manifest);
        let platform = json!({"architecture": self.config["architecture"], "os": self.config["os"]});
        let mut blobs = vec![config];
        blobs.extend(self.layers.into_iter().map(|layer| layer.bytes));
        let document = Document { media_type: format.manifest(), bytes: manifest.to_string().into_bytes() };
        Built { blobs, inner: Vec::new(), document, misnamed: Vec::new(), platform }
    }
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

/// This machine, in the words of OCI.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A manifest or an index.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its media type.
    pub media_type: &'static str,
    /// Exactly what is hashed.
    pub bytes: Vec<u8>,
}

impl Document {
    /// Digest of the bytes.
    pub fn digest(&self) -> String {
        digest(&self.bytes)
    }
}

/// An image, ready to be stored somewhere.
#[derive(Debug, Clone)]
pub struct Built {
    /// Configs and layers.
    pub blobs: Vec<Vec<u8>>,
    /// Manifests an index points to.
    pub inner: Vec<Document>,
    /// What a tag points to.
    pub document: Document,
    /// Blobs that a layout is to hold under digests that are not theirs.
    pub misnamed: Vec<(String, Vec<u8>)>,
    platform: Value,
}

impl Built {
    /// Digest of what a tag points to.
    pub fn digest(&self) -> String {
        self.document.digest()
    }

    /// An index of several images, each under the platform its config names.
    pub fn index(format: Format, images: Vec<Self>) -> Self {
        let manifests: Vec<_> = images
            .iter()
            .map(|image| {
                let document = &image.document;
                let mut entry = descriptor(document.media_type, &document.digest(), document.bytes.len());
                entry["platform"] = image.platform.clone();
                entry
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": format.index(), "manifests": manifests});
        let document = Document { media_type: format.index(), bytes: index.to_string().into_bytes() };
        let (mut blobs, mut inner, mut misnamed) = (Vec::new(), Vec::new(), Vec::new());
        for image in images {
            blobs.extend(image.blobs);
            misnamed.extend(image.misnamed);
            inner.extend(image.inner);
            inner.push(image.document);
        }
        Self { blobs, inner, document, misnamed, platform: Value::Null }
    }

    /// Writes, or adds to, an OCI layout folder under the name `tag`.
    pub fn write_layout(&self, folder: &Path, tag: &str) -> anyhow::Result<()> {
        let store = folder.join("blobs/sha256");
        fs::create_dir_all(&store)?;
        let documents = self.inner.iter().chain([&self.document]).map(|document| &document.bytes);
        for bytes in self.blobs.iter().chain(documents) {
            let name = digest(bytes);
            fs::write(store.join(name.trim_start_matches("sha256:")), bytes)?;
        }
        for (name, bytes) in &self.misnamed {
            fs::write(store.join(name.trim_start_matches("sha256:")), bytes)?;
        }
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index = folder.join("index.json");
        let mut entries: Vec<Value> = match fs::read(&index) {
            Ok(bytes) => serde_json::from_slice::<Value>(&bytes)?["manifests"].as_array().cloned().unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let name = "org.opencontainers.image.ref.name";
        entries.retain(|entry| entry["annotations"][name] != tag);
        let mut entry = descriptor(self.document.media_type, &self.digest(), self.document.bytes.len());
        entry["annotations"] = json!({name: tag});
        entries.push(entry);
        let document = json!({"schemaVersion": 2, "manifests": entries});
        fs::write(&index, document.to_string()).with_context(|| format!("writing {}", index.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_recipe_has_the_same_digest() {
        let recipe = || {
            let layer = Layer::new().dir("app", 0o755).file("app/x", 0o644, b"1").pack(Packing::Gzip);
            ImageBuilder::new(Format::Oci).layer(layer).set("User", json!("app")).build()
        };
        assert_eq!(recipe().digest(), recipe().digest());
    }

    #[test]
    fn names_go_into_the_tar_as_they_are() {
        let layer = Layer::new().file("../../etc/x", 0o644, b"y").file("/abs", 0o644, b"").pack(Packing::Plain);
        let mut archive = tar::Archive::new(layer.bytes.as_slice());
        let names: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect();
        assert_eq!(names, [b"../../etc/x".to_vec(), b"/abs".to_vec()]);
    }

    #[test]
    fn a_layout_keeps_the_tags_it_had() {
        let folder = tempfile::tempdir().unwrap();
        for tag in ["v1", "v2", "v1"] {
            ImageBuilder::new(Format::Oci).build().write_layout(folder.path(), tag).unwrap();
        }
        let index: Value = serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    }
}
