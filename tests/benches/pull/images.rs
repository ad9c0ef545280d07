//! Real images of middle size, and what is new in each version.
//!
//! In: Debian packages, by the bed's cache or the network. Out: [`Set`]. Must not: make layers that compress or unpack
//! like nothing real; they are a Debian root cut along its folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use flate2::{Compression, write::GzEncoder};
use molt_tests::harness::bed::Bed;
use molt_tests::harness::image::{Format, ImageBuilder, Layer, Packed, Packing, digest};
use molt_tests::harness::{http, process};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_mins(15);
const STEP: Duration = Duration::from_secs(30);
const PACKAGES: &str = "--include=python3-numpy,python3-cryptography,git";
const SUITE: &str = "bookworm";
const BASE: [&str; 5] = [
    "--variant=minbase",
    "--mode=root",
    "--skip=output/dev",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--dpkgopt=path-exclude=/usr/share/man/*",
];
/// What lies above the base, a layer each.
const UPPER: [&str; 3] = ["usr/share", "usr/lib/python3", "usr/lib/git-core"];

/// Versions of one image, in the order they are pulled into one store.
#[derive(Debug)]
pub(crate) struct Set {
    /// For people.
    pub(crate) name: &'static str,
    /// The registry.
    pub(crate) host: String,
    /// What is new, and the reference.
    pub(crate) steps: Vec<(&'static str, String)>,
}

const COLD: &str = "cold";
const LAST: &str = "last layer new";
const UNDER: &str = "new base, equal upper layers";

/// Debian with redis: three layers, nearly all of it in the first.
pub(crate) fn redis(bed: &Bed) -> anyhow::Result<Set> {
    let steps = vec![(COLD, bed.redis("v1")?), (LAST, bed.redis("v2")?)];
    set("redis", steps)
}

/// Debian with numpy, cryptography and git: five layers.
pub(crate) fn python(bed: &Bed) -> anyhow::Result<Set> {
    let responder = bed.program("bench-responder")?;
    let layout = python_layout(bed.cache(), &responder)?;
    let registry = bed.registry()?;
    let mut steps = Vec::new();
    for (what, tag) in [(COLD, "v1"), (LAST, "v2"), (UNDER, "v3")] {
        let name = format!("python:{tag}");
        registry.push_layout(&layout, tag, &name)?;
        steps.push((what, registry.reference(&name)));
    }
    set("python", steps)
}

fn set(name: &'static str, steps: Vec<(&'static str, String)>) -> anyhow::Result<Set> {
    let first = steps.first().and_then(|(_, image)| image.split_once('/'));
    let host = first.context("a reference with a host")?.0.to_owned();
    Ok(Set { name, host, steps })
}

fn python_layout(cache: &Path, responder: &Path) -> anyhow::Result<PathBuf> {
    let recipe = format!("2 {BASE:?}{PACKAGES}{SUITE}{UPPER:?}{}", digest(&fs::read(responder)?));
    let done = cache.join(format!("python-{}", &digest(recipe.as_bytes())[7..23]));
    if done.join("index.json").exists() {
        return Ok(done);
    }
    fs::create_dir_all(cache)?;
    let work = tempfile::Builder::new().prefix("python.").tempdir_in(cache)?;
    let root = work.path().join("root");
    let mut make = Command::new("mmdebstrap");
    make.args(BASE).args([PACKAGES, "--format=directory", SUITE]).arg(&root).env("SOURCE_DATE_EPOCH", "1700000000");
    process::timed("mmdebstrap", || process::run(&mut make, LONG)).context("making a Debian root")?;

    let cut = |arguments: &[String]| -> anyhow::Result<Packed> {
        let tar = work.path().join("layer.tar");
        let mut command = Command::new("tar");
        command.arg("-C").arg(&root).args(["--sort=name", "--numeric-owner", "--xattrs", "-cf"]).arg(&tar);
        process::run(command.args(arguments), LONG)?;
        pack(&fs::read(tar)?)
    };
    let mut base: Vec<String> = UPPER.iter().map(|path| format!("--exclude=./{path}/*")).collect();
    base.push(".".to_owned());
    let old = cut(&base)?;
    fs::write(root.join("etc/base"), "the next one\n")?;
    let new = cut(&base)?;
    let upper = UPPER.map(|path| {
        // With the folders above it, as those who build images write them.
        let above = Path::new(path).ancestors().skip(1).filter(|folder| folder.parent().is_some());
        let mut words: Vec<String> = above.map(|folder| folder.display().to_string()).collect();
        words.reverse();
        words.insert(0, "--no-recursion".to_owned());
        words.extend(["--recursion".to_owned(), path.to_owned()]);
        cut(&words)
    });
    let upper = upper.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let program = fs::read(responder)?;
    let layout = work.path().join("layout");
    for (tag, base) in [("v1", &old), ("v2", &old), ("v3", &new)] {
        // The base is new in v3 and nothing else: it has the application of v2.
        let app = version_layer(&program, if tag == "v3" { "v2" } else { tag });
        let mut image = ImageBuilder::new(Format::Oci).layer(base.clone());
        for layer in &upper {
            image = image.layer(layer.clone());
        }
        let image = image.layer(app.pack(Packing::Gzip)).set("Entrypoint", json!(["/app/bench-responder"]));
        image.set("User", json!("1000")).build().write_layout(&layout, tag)?;
    }
    fs::rename(&layout, &done)?;
    Ok(done)
}

fn version_layer(program: &[u8], version: &str) -> Layer {
    let app = Layer::new().dir("app", 0o755).file("app/bench-responder", 0o755, program);
    app.file("app/VERSION", 0o644, version.as_bytes()).dir("sandbox", 0o755).dir("sandbox/state", 0o777)
}

/// As most registries hold it: gzip at its default level.
fn pack(tar: &[u8]) -> anyhow::Result<Packed> {
    use std::io::Write as _;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(tar)?;
    let bytes = gzip.finish()?;
    Ok(Packed { packing: Packing::Gzip, diff_id: digest(tar), digest: digest(&bytes), bytes })
}

fn sizes(image: &str) -> anyhow::Result<Vec<u64>> {
    let (host, name) = image.split_once('/').context("a reference with a host")?;
    let (repository, tag) = name.rsplit_once(':').context("a reference with a tag")?;
    let accept = [("Accept", "application/vnd.oci.image.manifest.v1+json")];
    let path = format!("/v2/{repository}/manifests/{tag}");
    let manifest = http::request(host.parse()?, "GET", &path, &accept, &[], STEP)?.json()?;
    let layers = manifest["layers"].as_array().context("a manifest with layers")?;
    Ok(layers.iter().filter_map(|layer| layer["size"].as_u64()).collect())
}

/// Compressed sizes of the layers of the first version, for people.
pub(crate) fn layers(set: &Set) -> anyhow::Result<String> {
    let sizes = sizes(&set.steps.first().context("a set has images")?.1)?;
    #[expect(clippy::cast_precision_loss, reason = "sizes of layers")]
    let text: Vec<_> = sizes.iter().map(|size| format!("{:.1}", *size as f64 / 1e6)).collect();
    Ok(format!("layers of {} MB, compressed", text.join(" + ")))
}

/// The same as data.
pub(crate) fn describe(sets: &[Set]) -> anyhow::Result<Value> {
    let one = |set: &Set| -> anyhow::Result<Value> {
        let steps = set.steps.iter().map(|(what, image)| Ok(json!({"what": what, "layers": sizes(image)?})));
        Ok(json!({"name": set.name, "steps": steps.collect::<anyhow::Result<Vec<_>>>()?}))
    };
    sets.iter().map(one).collect::<anyhow::Result<Vec<_>>>().map(Value::from)
}
