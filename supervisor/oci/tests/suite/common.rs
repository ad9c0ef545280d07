//! What the suites share: layers built by hand, images in layouts, a store, a way to look at what was unpacked.
//!
//! In: entries. Out: folders below a temporary one. Must not: reach beyond the loopback interface.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use molt_core::ids::{Digest, ImageRef};
use molt_oci::{Client, Error, Fetched, LayerState, Limits, Platform, Progress, Registries, Resolved, Store};
use sha2::Digest as _;
use tar::{EntryType, Header};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(sha2::Sha256::digest(bytes).into())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar, written with names that the `tar` crate would refuse.
#[derive(Default, Clone)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
    pub(crate) owner: (u64, u64),
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn header(kind: EntryType, name: &[u8], link: &[u8], size: u64, mode: u32) -> Header {
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

    pub(crate) fn raw(mut self, mut header: Header, data: &[u8]) -> Self {
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
    pub(crate) fn owned(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, name, "", b"", mode)
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.file_mode(name, data, 0o644)
    }

    pub(crate) fn file_mode(self, name: &str, data: &str, mode: u32) -> Self {
        self.entry(EntryType::Regular, name, "", data.as_bytes(), mode)
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"", 0o777)
    }

    pub(crate) fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"", 0o6777)
    }

    pub(crate) fn of(self, kind: EntryType, name: &str) -> Self {
        self.entry(kind, name, "", b"", 0o644)
    }

    /// A PAX header for the entry that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
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
        header.set_entry_type(EntryType::XHeader);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.as_old_mut().name[..3].copy_from_slice(b"pax");
        self.raw(header, &data)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    pub(crate) fn cut(self) -> Vec<u8> {
        self.bytes
    }
}

/// One layer of an image to be: blob, media type, diff id.
pub(crate) type Packed = (Vec<u8>, &'static str, String);

pub(crate) fn packed(tar: &[u8]) -> Packed {
    (gzip(tar), GZIP, digest(tar).to_string())
}

/// Blobs of an image by digest, and its manifest.
pub(crate) struct Image {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
}

impl Image {
    pub(crate) fn new(layers: &[Packed]) -> Self {
        Self::with_config(layers, |_| {})
    }

    pub(crate) fn with_config(layers: &[Packed], change: impl Fn(&mut serde_json::Value)) -> Self {
        let mut blobs = BTreeMap::new();
        let host = Platform::host();
        let mut config = serde_json::json!({
            "os": host.os, "architecture": host.architecture,
            "config": {"Cmd": ["/bin/app"], "Env": ["PATH=/bin"], "User": "1000"},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|(_, _, id)| id).collect::<Vec<_>>()},
        });
        change(&mut config);
        let config = config.to_string().into_bytes();
        let mut describe = |bytes: &[u8], kind: &str| {
            let name = digest(bytes).to_string();
            blobs.insert(name.clone(), bytes.to_vec());
            serde_json::json!({"mediaType": kind, "digest": name, "size": bytes.len()})
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": describe(&config, CONFIG),
            "layers": layers.iter().map(|(blob, kind, _)| describe(blob, kind)).collect::<Vec<_>>(),
        });
        Self { blobs, manifest: manifest.to_string().into_bytes() }
    }

    /// Writes it as an OCI layout.
    pub(crate) fn layout(&self, dir: &Path) {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        let put = |bytes: &[u8]| fs::write(dir.join("blobs/sha256").join(digest(bytes).hex()), bytes).unwrap();
        self.blobs.values().for_each(|blob| put(blob));
        put(&self.manifest);
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": MANIFEST, "digest": digest(&self.manifest), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "v1"}}]});
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

/// Writes down what it is told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) retries: Mutex<Vec<(String, Duration)>>,
    pub(crate) done: Mutex<Vec<(usize, LayerState)>>,
}

impl Progress for Told {
    fn layer(&self, index: usize, _: &Digest, done: u64, total: u64, state: LayerState) {
        assert!(done <= total);
        if state != LayerState::Fetching {
            self.done.lock().unwrap().push((index, state));
        }
    }

    fn retry(&self, what: &str, after: Duration, _: &str) {
        self.retries.lock().unwrap().push((what.to_owned(), after));
    }
}

/// A temporary place with a store in it, and beside it a tree that nothing may touch.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
    sentinel: Vec<String>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        fs::create_dir_all(dir.path().join("outside/etc")).unwrap();
        fs::write(dir.path().join("outside/etc/passwd"), "root").unwrap();
        fs::write(dir.path().join("sentinel"), "kept").unwrap();
        let store = Store::open(fs::File::open(dir.path().join("store")).unwrap()).unwrap();
        let mut place = Self { dir, store, sentinel: Vec::new() };
        place.sentinel = place.outside();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Everything beside the store, with owner, mode, time and content.
    fn outside(&self) -> Vec<String> {
        let mut lines = tree(&self.path("outside"));
        let meta = fs::symlink_metadata(self.path("sentinel")).unwrap();
        lines.push(format!(
            "{:o} {} {}",
            meta.mode(),
            meta.mtime(),
            fs::read_to_string(self.path("sentinel")).unwrap()
        ));
        lines
    }

    /// Nothing outside changed and nothing half-made is left.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.outside(), self.sentinel, "something outside the store changed");
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read_dir(self.path("store/tmp")).unwrap().next().is_some() {
            assert!(Instant::now() < deadline, "tmp/ is not empty");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) async fn pull_with(
        &self,
        reference: &str,
        registries: &Registries,
        limits: Limits,
    ) -> Result<(Resolved, Fetched), Error> {
        let client = Client::new(registries, limits)?;
        let reference: ImageRef = reference.parse().unwrap();
        let resolved = client.resolve(&reference, &Platform::host(), &()).await?;
        let fetched = client.fetch(&resolved, &self.store, &()).await?;
        Ok((resolved, fetched))
    }

    /// Puts layers into a layout and fetches it.
    pub(crate) fn unpack_with(&self, layers: &[Vec<u8>], limits: Limits) -> Result<Vec<PathBuf>, Error> {
        let packed: Vec<Packed> = layers.iter().map(|tar| packed(tar)).collect();
        let layout = tempfile::tempdir_in(self.dir.path()).unwrap();
        Image::new(&packed).layout(layout.path());
        let reference = format!("oci:{}", layout.path().display());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let pulled = runtime.block_on(self.pull_with(&reference, &Registries::default(), limits));
        drop(runtime);
        self.assert_clean();
        let (_, fetched) = pulled?;
        Ok(fetched.layers.iter().map(|id| self.path("store/layers/sha256").join(id.to_string())).collect())
    }

    pub(crate) fn unpack(&self, layers: &[Vec<u8>]) -> Result<Vec<PathBuf>, Error> {
        self.unpack_with(layers, Limits::default())
    }
}

/// One line for everything below `root`: kind, mode, owner, name, and content, target or mark.
pub(crate) fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, at: &Path, lines: &mut Vec<String>) {
        let mut names: Vec<_> = fs::read_dir(at).unwrap().map(|item| item.unwrap().path()).collect();
        names.sort();
        for path in names {
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let head = format!("{:o} {}:{} {name}", meta.mode() & 0o7777, meta.uid(), meta.gid());
            if meta.is_dir() {
                let mut value = [0u8; 4];
                let opaque = rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value[..]).is_ok();
                lines.push(format!("d {head}{}", if opaque { " opaque" } else { "" }));
                walk(root, &path, lines);
            } else if meta.is_symlink() {
                lines.push(format!("l {head} -> {}", fs::read_link(&path).unwrap().display()));
            } else if meta.file_type().is_char_device() {
                lines.push(format!("w {name} {}", meta.rdev()));
            } else if meta.is_file() {
                lines.push(format!("f {head} {} n{}", fs::read_to_string(&path).unwrap_or_default(), meta.nlink()));
            } else {
                lines.push(format!("? {head}"));
            }
        }
    }
    let mut lines = Vec::new();
    walk(root, root, &mut lines);
    lines
}
