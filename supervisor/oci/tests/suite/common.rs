//! What the suites share: layers built by hand, images in layouts, a store, a way to look at what was unpacked.
//!
//! In: entries. Out: folders below a temporary one. Must not: reach beyond the loopback interface.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::fd::AsFd as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use molt_core::ids::{Digest, ImageRef};
use molt_oci::{
    Client, Error, Fetched, LayerId, LayerState, Limits, Platform, Progress, Registries, Resolved, Store,
    unpacker::Unpacker,
};
pub(crate) use molt_tests::harness::tar::Tar;
use sha2::Digest as _;

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
        for folder in ["tmp", "trash"] {
            while fs::read_dir(self.path("store").join(folder)).unwrap().next().is_some() {
                assert!(Instant::now() < deadline, "{folder}/ is not empty");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// As Molt does it: by confined unpackers.
    pub(crate) async fn pull_with(
        &self,
        reference: &str,
        registries: &Registries,
        limits: Limits,
    ) -> Result<(Resolved, Fetched), Error> {
        pull_by(Client::new(registries, limits)?.confined(unpacker()), reference, &self.store).await
    }

    /// Puts layers into a layout and fetches it; by confined unpackers, and in this process into a store of its own, which
    /// must come to the same.
    pub(crate) fn unpack_with(&self, layers: &[Vec<u8>], limits: Limits) -> Result<Vec<PathBuf>, Error> {
        let packed: Vec<Packed> = layers.iter().map(|tar| packed(tar)).collect();
        let layout = tempfile::tempdir_in(self.dir.path()).unwrap();
        Image::new(&packed).layout(layout.path());
        let reference = format!("oci:{}", layout.path().display());
        let here = tempfile::tempdir_in(self.dir.path()).unwrap();
        let store = Store::open(fs::File::open(here.path()).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let registries = Registries::default();
        let apart = runtime.block_on(self.pull_with(&reference, &registries, limits.clone()));
        let client = Client::new(&registries, limits)?;
        let inside = runtime.block_on(pull_by(client, &reference, &store));
        drop(runtime);
        self.assert_clean();
        let found = |root: &Path, pulled: &Result<(Resolved, Fetched), Error>| {
            let (_, fetched) = pulled.as_ref().map_err(said)?;
            let layer = |id: &LayerId| root.join("layers/sha256").join(id.to_string());
            Ok(fetched.layers.iter().map(|id| (id.to_string(), tree(&layer(id)))).collect::<Vec<_>>())
        };
        let apart_found: Result<_, String> = found(&self.path("store"), &apart);
        assert_eq!(apart_found, found(here.path(), &inside), "apart, and in this process");
        let (_, fetched) = apart?;
        Ok(fetched.layers.iter().map(|id| self.path("store/layers/sha256").join(id.to_string())).collect())
    }

    pub(crate) fn unpack(&self, layers: &[Vec<u8>]) -> Result<Vec<PathBuf>, Error> {
        self.unpack_with(layers, Limits::default())
    }
}

/// A program of `examples/`, which cargo builds with these suites.
pub(crate) fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(Path::parent).unwrap().join("examples").join(name)
}

/// Starts the example `unpacker`, as Molt starts its own file.
pub(crate) fn unpacker() -> Arc<Unpacker> {
    static UNPACKER: OnceLock<Arc<Unpacker>> = OnceLock::new();
    let start = || {
        let program = example("unpacker");
        let program = fs::File::open(&program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Arc::new(Unpacker::new(program.as_fd(), |_| None).unwrap())
    };
    Arc::clone(UNPACKER.get_or_init(start))
}

async fn pull_by(client: Client, reference: &str, store: &Store) -> Result<(Resolved, Fetched), Error> {
    let reference: ImageRef = reference.parse().unwrap();
    let resolved = client.resolve(&reference, &Platform::host(), &()).await?;
    let fetched = client.fetch(&resolved, store, &()).await?;
    assert!(client.degraded().is_empty(), "a wall is missing: {:?}", client.degraded());
    Ok((resolved, fetched))
}

/// An error with everything under it.
fn said(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
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
