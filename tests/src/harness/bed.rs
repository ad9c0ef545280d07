//! The bed: what suites share, each part started when the first test asks for it.
//!
//! In: the folder of this program (the other binaries lie beside it) and a folder for temporary
//! files. Out: registries, images by name, a podman, scratch folders. Must not: keep anything but
//! the image cache, which lies in cargo's target folder.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;

use super::image::Built;
use super::images;
use super::podman::Podman;
use super::process;
use super::registry::{Guard, Registry};
use super::userns;

/// Made at most once, by whoever asks first; a failure is tried again.
#[derive(Debug)]
struct Once<T>(Mutex<Option<Arc<T>>>);

impl<T> Once<T> {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn get(&self, make: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Arc<T>> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*slot {
            return Ok(Arc::clone(made));
        }
        let made = Arc::new(make()?);
        *slot = Some(Arc::clone(&made));
        Ok(made)
    }
}

/// Everything suites share.
#[derive(Debug)]
pub struct Bed {
    run: tempfile::TempDir,
    programs: PathBuf,
    cache: PathBuf,
    serial: AtomicU32,
    pub(super) quiet: RwLock<()>,
    registry: Once<Registry>,
    guarded: Once<Registry>,
    bearer: Once<Registry>,
    podman: Once<Podman>,
    rootless: Once<Podman>,
    outer: Once<PathBuf>,
    pushed: Mutex<HashMap<String, Arc<Once<String>>>>,
    imported: Mutex<HashMap<PathBuf, Arc<Once<String>>>>,
    given: Mutex<HashMap<PathBuf, Arc<Once<String>>>>,
}

impl Bed {
    /// An empty bed, in a fresh folder below `TMPDIR`.
    pub fn new() -> anyhow::Result<Self> {
        let run = tempfile::Builder::new().prefix("molt-tests.").tempdir()?;
        // Sandboxes run other users.
        fs::set_permissions(run.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let program = std::env::current_exe()?;
        let programs = program.parent().context("a program lies in a folder")?.to_owned();
        // Cargo marks its target folder so, and the folder of a target triple in it: the outer one is meant.
        let target = program.ancestors().filter(|folder| folder.join("CACHEDIR.TAG").exists()).last();
        let cache = target.unwrap_or(&programs).join("test-bed");
        Ok(Self {
            run,
            programs,
            cache,
            serial: AtomicU32::new(0),
            quiet: RwLock::new(()),
            registry: Once::new(),
            guarded: Once::new(),
            bearer: Once::new(),
            podman: Once::new(),
            rootless: Once::new(),
            outer: Once::new(),
            pushed: Mutex::default(),
            imported: Mutex::default(),
            given: Mutex::default(),
        })
    }

    /// Stops what runs and removes the folder; with `MOLT_TESTS_KEEP` set the folder stays.
    pub fn close(self) -> anyhow::Result<()> {
        let Self { run, registry, guarded, bearer, .. } = self;
        drop((registry, guarded, bearer));
        if std::env::var_os("MOLT_TESTS_KEEP").is_some() {
            eprintln!("kept: {}", run.keep().display());
            return Ok(());
        }
        // Podman leaves mounts in its folder; the world ends with them, but the folder must go first.
        let inside: Vec<_> = mounts_below(run.path())?;
        for path in inside.iter().rev() {
            rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH)?;
        }
        run.close().context("removing the folder of this run")
    }

    /// A fresh folder; `name` is only for people.
    pub fn scratch(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.run.path().join(format!("{name}-{}", self.next()));
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// A fresh folder any user may write: a state volume.
    pub fn volume(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.scratch(name)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        Ok(path)
    }

    /// A number never given before.
    pub fn next(&self) -> u32 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// A binary of this workspace.
    pub fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.programs.join(name);
        anyhow::ensure!(path.exists(), "{} is not built: run tests/run, or cargo build --release", path.display());
        Ok(path)
    }

    /// The product, or what `MOLT_BIN` names.
    pub fn molt(&self) -> anyhow::Result<PathBuf> {
        std::env::var_os("MOLT_BIN").map_or_else(|| self.program("molt"), |path| Ok(PathBuf::from(path)))
    }

    /// `molt` with the feature `planted`, which leaves a wall out when told to: what `MOLT_PLANTED` names, else where
    /// `tests/run` builds it.
    pub fn planted(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = std::env::var_os("MOLT_PLANTED") {
            return Ok(PathBuf::from(path));
        }
        let folder = self.cache.with_file_name("planted");
        // Below a folder named for the target, as the product itself.
        let triple = self.programs.ancestors().nth(1).and_then(Path::file_name).context("a folder of the target")?;
        let path = folder.join(triple).join("release/molt");
        anyhow::ensure!(
            path.exists(),
            "{} is not built: run tests/run, or cargo build --release -p molt --features planted --target-dir {}",
            path.display(),
            folder.display()
        );
        Ok(path)
    }

    /// Folder that survives between runs; parts are named by the hash of their recipe.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// A registry for everyone, over plain HTTP.
    pub fn registry(&self) -> anyhow::Result<Arc<Registry>> {
        let start = || Registry::start(&self.scratch("registry")?, &self.storage(), Guard::Open);
        self.registry.get(|| process::timed("start of a registry", start))
    }

    /// The same images behind TLS and basic auth.
    pub fn guarded(&self) -> anyhow::Result<Arc<Registry>> {
        self.guarded.get(|| Registry::start(&self.scratch("guarded")?, &self.storage(), Guard::TlsBasic))
    }

    /// The same images behind a token server.
    pub fn bearer(&self) -> anyhow::Result<Arc<Registry>> {
        self.bearer.get(|| Registry::start(&self.scratch("bearer")?, &self.storage(), Guard::Bearer))
    }

    fn storage(&self) -> PathBuf {
        self.run.path().join("storage")
    }

    /// Pushes `small:VARIANT` (see [`images::SMALL`]) once; its name in the plain registry.
    pub fn small(&self, variant: &str) -> anyhow::Result<String> {
        self.image(&format!("small:{variant}"), || images::small(variant, &self.program("molt-testd")?))
    }

    /// Pushes an image by skopeo once; its name in the plain registry. `name` is `REPOSITORY:TAG`.
    pub fn image(&self, name: &str, build: impl FnOnce() -> anyhow::Result<Built>) -> anyhow::Result<String> {
        self.pushed(name, |registry| {
            let layout = self.scratch("layout")?;
            let (_, tag) = name.split_once(':').context("a name with a tag")?;
            build()?.write_layout(&layout, tag)?;
            registry.push_layout(&layout, tag, name)
        })
    }

    /// Pushes an image by plain HTTP once, unseen: for those that lie.
    pub fn lying_image(&self, name: &str, build: impl FnOnce() -> anyhow::Result<Built>) -> anyhow::Result<String> {
        self.pushed(name, |registry| registry.push_raw(&build()?, name).map(drop))
    }

    /// Pushes `redis:v1` or `redis:v2`, made out of Debian packages; its name in the plain registry.
    pub fn redis(&self, tag: &str) -> anyhow::Result<String> {
        self.pushed(&format!("redis:{tag}"), |registry| {
            registry.push_layout(&images::redis_layout(&self.cache)?, tag, &format!("redis:{tag}"))
        })
    }

    fn pushed(&self, name: &str, push: impl FnOnce(&Registry) -> anyhow::Result<()>) -> anyhow::Result<String> {
        let once = entry(&self.pushed, name.to_owned());
        let reference = once.get(|| {
            let registry = self.registry()?;
            process::timed(&format!("push of {name}"), || push(&registry))
                .with_context(|| format!("pushing {name}"))?;
            Ok(registry.reference(name))
        })?;
        Ok(reference.to_string())
    }

    /// A podman of our own.
    pub fn podman(&self) -> anyhow::Result<Arc<Podman>> {
        self.podman.get(|| Podman::new(&self.run.path().join("podman")))
    }

    /// One that an ordinary user runs.
    pub fn rootless_podman(&self) -> anyhow::Result<Arc<Podman>> {
        self.rootless.get(|| Podman::rootless(&self.run.path().join("rootless")))
    }

    /// The root of an outer sandbox: busybox, `/app/molt-testd` and, once it is built, `/usr/local/bin/molt`.
    pub fn outer_root(&self) -> anyhow::Result<PathBuf> {
        let root = self.outer.get(|| {
            let root = self.scratch("outer")?;
            images::unpack_outer(&root, &self.program("molt-testd")?, self.molt().ok().as_deref())?;
            Ok(root)
        })?;
        Ok(root.to_path_buf())
    }

    /// A copy of a root folder that belongs to root of a user namespace; made once.
    pub fn given_root(&self, root: &Path) -> anyhow::Result<PathBuf> {
        let once = entry(&self.given, root.to_owned());
        let copy = once.get(|| {
            let copy = self.scratch("given")?;
            process::run(Command::new("cp").arg("--archive").arg(root.join(".")).arg(&copy), Duration::from_mins(1))?;
            userns::give(&copy)?;
            Ok(copy.display().to_string())
        })?;
        Ok(PathBuf::from(copy.as_str()))
    }

    /// The image of a root folder in `podman`; imported once.
    pub fn podman_image(&self, podman: &Podman, root: &Path) -> anyhow::Result<String> {
        let once = entry(&self.imported, podman.folder().join(root.strip_prefix("/").unwrap_or(root)));
        let name = once.get(|| {
            let name = format!("localhost/outer:{}", self.next());
            process::timed("import into podman", || podman.import(root, &name))?;
            Ok(name)
        })?;
        Ok(name.to_string())
    }
}

fn entry<K: Eq + std::hash::Hash>(map: &Mutex<HashMap<K, Arc<Once<String>>>>, key: K) -> Arc<Once<String>> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(map.entry(key).or_insert_with(|| Arc::new(Once::new())))
}

fn mounts_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}
