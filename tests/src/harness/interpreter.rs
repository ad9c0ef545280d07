//! Images of what many daemons are written in: the machine's own Debian `python3` and `nodejs`, with the libraries they
//! load and nothing else, and a small server.
//!
//! In: a program of the machine, folders it needs, a script. Out: an image. Must not: take a file that the program does not
//! need; what it lacks under a policy would not be noticed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use super::image::{Built, Format, ImageBuilder, Layer, Packing};
use super::process;

/// Left out of a standard library: tests, tools to build with, what was compiled for another user.
const LEFT_OUT: [&str; 8] =
    ["test", "tests", "__pycache__", "ensurepip", "idlelib", "lib2to3", "tkinter", "dist-packages"];

/// An interpreter with its libraries: `/usr`, and `/bin`, `/lib` and `/lib64` as links into it.
pub fn layer(program: &Path, name: &str, folders: &[PathBuf]) -> anyhow::Result<Layer> {
    let mut files = BTreeSet::new();
    for folder in folders {
        collect(folder, &mut files)?;
    }
    let loaded: Vec<PathBuf> = files.iter().filter(|path| is_library(path)).cloned().collect();
    for path in [program.to_owned()].iter().chain(&loaded) {
        files.extend(libraries(path)?);
    }
    let mut layer = Layer::new();
    for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        layer = layer.symlink(link, target);
    }
    let mut made = BTreeSet::new();
    let inside = |path: &Path| -> anyhow::Result<String> {
        let path = path.to_str().context("a name in UTF-8")?.trim_start_matches('/');
        Ok(if path.starts_with("usr/") { path.to_owned() } else { format!("usr/{path}") })
    };
    let mut all = vec![(program.to_owned(), format!("usr/bin/{name}"))];
    for path in files {
        let at = inside(&path)?;
        all.push((path, at));
    }
    for (path, at) in all {
        let parents: Vec<&Path> = Path::new(&at).ancestors().skip(1).collect();
        for parent in parents.into_iter().rev().filter_map(Path::to_str).filter(|parent| !parent.is_empty()) {
            if made.insert(parent.to_owned()) {
                layer = layer.dir(parent, 0o755);
            }
        }
        layer = layer.file(&at, 0o755, &fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    for (folder, mode) in [("dev", 0o755), ("proc", 0o755), ("sys", 0o755), ("etc", 0o755), ("tmp", 0o1777)] {
        layer = layer.dir(folder, mode);
    }
    Ok(layer.file("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/app:/bin/sh\n"))
}

/// The image: `program` with one version of a script.
pub fn image(interpreter: Layer, program: &str, script: &str, version: &str) -> Built {
    let app = Layer::new().dir("app", 0o755).file("app/server", 0o644, script.as_bytes());
    let app = app.file("app/VERSION", 0o644, version.as_bytes()).dir("sandbox", 0o755);
    let image = ImageBuilder::new(Format::Oci)
        .layer(interpreter.pack(Packing::Zstd))
        .layer(app.dir("sandbox/state", 0o777).pack(Packing::Gzip));
    image.set("Entrypoint", json!([program, "/app/server"])).set("User", json!("1000:1000")).build()
}

fn is_library(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.contains(".so"))
}

fn collect(folder: &Path, files: &mut BTreeSet<PathBuf>) -> anyhow::Result<()> {
    for item in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let item = item?;
        let (path, name) = (item.path(), item.file_name());
        let name = name.to_str().unwrap_or_default();
        if LEFT_OUT.contains(&name) || name.starts_with("config-") {
            continue;
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() && !item.file_type()?.is_symlink() => collect(&path, files)?,
            Ok(metadata) if metadata.is_file() => drop(files.insert(path)),
            // A link to what is not installed.
            _ => {}
        }
    }
    Ok(())
}

/// What the loader takes for `program`, by `ldd`.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let said = process::run(Command::new("ldd").arg(program), Duration::from_secs(20))?.stdout;
    ensure!(!said.contains("not found"), "{}: {said}", program.display());
    let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}
