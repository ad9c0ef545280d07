//! Good images, entry by entry: what Molt unpacks is what umoci and GNU tar make of the same layers.
//!
//! In: a Debian image, a tree as pnpm lays it out, layers that change each other in every way. Out: cases. Must not:
//! compare with anything that Molt wrote.
//!
//! Molt's view is the overlay of its layers, as a generation would see it. What may differ is named in [`expected`]:
//! attributes outside `user.*` are dropped by Molt; GNU tar gives folders it changes without an entry the time of the
//! change.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tar::EntryType;

use crate::harness::bed::Bed;
use crate::harness::cases::{Case, case};
use crate::harness::image::{Format, ImageBuilder, Packed, Packing};
use crate::harness::images;
use crate::harness::molt::{Molt, Setup};
use crate::harness::process;
use crate::harness::runtime::Kind;
use crate::harness::snapshot::{self, Detail, Entry};
use crate::harness::tar::Tar;
use crate::harness::wait;

/// The cases.
pub(super) const CASES: &[Case] = &[
    case("trees::debian_is_unpacked_as_umoci_and_tar_do", debian),
    case("trees::a_farm_of_links_is_unpacked_as_umoci_and_tar_do", links),
    case("trees::layers_that_change_each_other_come_out_as_with_umoci_and_tar", changes),
];

const LONG: Duration = Duration::from_mins(5);

type Tree = BTreeMap<String, Entry>;

fn debian(bed: &Bed) -> anyhow::Result<()> {
    same(bed, "debian", &images::redis_layout(bed.cache())?, "v1", 1000)
}

fn links(bed: &Bed) -> anyhow::Result<()> {
    built(bed, "links", &[farm().end()], 2000)
}

fn changes(bed: &Bed) -> anyhow::Result<()> {
    built(bed, "changes", &[first().end(), second().end(), third().end()], 50)
}

fn built(bed: &Bed, name: &str, layers: &[Vec<u8>], least: usize) -> anyhow::Result<()> {
    let layout = bed.scratch(name)?;
    let image = ImageBuilder::new(Format::Oci).set("Entrypoint", json!(["/none"]));
    let packed = layers.iter().map(|tar| Packed::new(tar, Packing::Gzip));
    packed.fold(image, ImageBuilder::layer).build().write_layout(&layout, "v1")?;
    same(bed, name, &layout, "v1", least)
}

/// Unpacks the image three times and compares.
fn same(bed: &Bed, name: &str, layout: &Path, tag: &str, least: usize) -> anyhow::Result<()> {
    let mut setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    setup.options = setup.options.read_only(layout, "/images");
    let molt = setup.start()?;
    let work = bed.scratch("unpacked")?;
    let ours = by_molt(&molt, tag, &work)?;
    ensure!(ours.len() >= least, "only {} entries", ours.len());
    let mut wrong = Vec::new();
    for (by, theirs) in [("umoci", by_umoci(layout, tag, &work)?), ("tar", by_tar(layout, tag, &work)?)] {
        let (mut ours, mut theirs) = (ours.clone(), theirs);
        for entry in ours.values_mut().chain(theirs.values_mut()) {
            expected(by, entry);
        }
        // The root has no entry in most layers, and is then of the moment it was made.
        for tree in [&mut ours, &mut theirs] {
            if let Some(root) = tree.get_mut(".") {
                root.mtime = 0;
            }
        }
        if let Some(difference) = snapshot::difference(&theirs, &ours) {
            wrong.push(format!("by {by}, then by Molt: {difference}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    eprintln!("{name}: {} entries, the same by Molt, umoci and tar", ours.len());
    Ok(())
}

/// Takes out of an entry what may differ.
fn expected(by: &str, entry: &mut Entry) {
    entry.xattrs.retain(|name, _| name.starts_with("user."));
    if by == "tar" && entry.kind == 'd' {
        entry.mtime = 0;
    }
}

fn by_molt(molt: &Molt, tag: &str, work: &Path) -> anyhow::Result<Tree> {
    molt.expect(0, &["update", "--stage-only", "--no-wait", &format!("oci:/images:{tag}")])?;
    let staged = wait::until_ok("the image to be staged", LONG, || {
        let status = molt.status()?;
        ensure!(status["phase"] == "Held", "{status:#}");
        status["staged"]["generation"].as_u64().context("a staged generation")
    })?;
    let record = fs::read(molt.store.join(format!("generations/{staged}/generation.json")))?;
    let record: Value = serde_json::from_slice(&record)?;
    let folders = record["layers"].as_array().context("layers")?.iter();
    let folders: Vec<String> = folders
        .filter_map(|layer| {
            Some(molt.store.join("layers/sha256").join(layer["folder"].as_str()?).display().to_string())
        })
        .collect();
    // overlayfs wants two where there is no upper folder.
    let empty = work.join("empty");
    fs::create_dir(&empty)?;
    let root = work.join("molt");
    fs::create_dir(&root)?;
    // By links, because a mount's options have room for 4096 bytes only.
    let mut lowers = Vec::new();
    for (number, folder) in folders.iter().enumerate() {
        let short = work.join(format!("l{number}"));
        std::os::unix::fs::symlink(folder, &short)?;
        lowers.push(short.display().to_string());
    }
    lowers.push(empty.display().to_string());
    let data = format!("lowerdir={},redirect_dir=nofollow,metacopy=off", lowers.join(":"));
    let mut mount = Command::new("mount");
    process::run(mount.args(["-t", "overlay", "overlay", "-o", &data]).arg(&root), LONG)?;
    let tree = snapshot::tree(&root, Detail::Image);
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH)?;
    tree
}

fn by_umoci(layout: &Path, tag: &str, work: &Path) -> anyhow::Result<Tree> {
    let bundle = work.join("umoci");
    let mut umoci = Command::new("umoci");
    umoci.arg("unpack").arg("--image").arg(format!("{}:{tag}", layout.display())).arg(&bundle);
    process::run(&mut umoci, LONG)?;
    snapshot::tree(&bundle.join("rootfs"), Detail::Image)
}

/// Layer by layer: first what the whiteouts name and what is of another kind is removed, then GNU tar unpacks the rest.
fn by_tar(layout: &Path, tag: &str, work: &Path) -> anyhow::Result<Tree> {
    let blob = |digest: &Value| -> anyhow::Result<PathBuf> {
        let hex = digest.as_str().and_then(|text| text.strip_prefix("sha256:")).context("a digest")?;
        Ok(layout.join("blobs/sha256").join(hex))
    };
    let read = |path: PathBuf| -> anyhow::Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let index = read(layout.join("index.json"))?;
    let entry = index["manifests"].as_array().into_iter().flatten();
    let entry = entry.clone().find(|it| it["annotations"]["org.opencontainers.image.ref.name"] == tag);
    let manifest = read(blob(&entry.context("the tag")?["digest"])?)?;
    let root = work.join("tar");
    fs::create_dir(&root)?;
    for layer in manifest["layers"].as_array().context("layers")? {
        let file = blob(&layer["digest"])?;
        make_room(&file, &root)?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--gzip", "--numeric-owner", "--same-owner", "--preserve-permissions"]);
        tar.args(["--xattrs", "--xattrs-include=user.*", "--exclude=.wh.*", "--file"]).arg(&file);
        process::run(tar.arg("--directory").arg(&root), LONG)?;
    }
    snapshot::tree(&root, Detail::Image)
}

fn make_room(layer: &Path, root: &Path) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(fs::File::open(layer)?));
    for entry in archive.entries()? {
        let entry = entry?;
        let path = root.join(entry.path()?);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let remove = |path: &Path| match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(_) => Ok(()),
        };
        if name == ".wh..wh..opq" {
            let folder = path.parent().context("a folder")?;
            for inside in fs::read_dir(folder).into_iter().flatten() {
                remove(&inside?.path())?;
            }
        } else if let Some(hidden) = name.strip_prefix(".wh.") {
            remove(&path.with_file_name(hidden))?;
        } else if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) != entry.header().entry_type().is_dir() {
            remove(&path)?;
        }
    }
    Ok(())
}

/// An entry whose name or target may be longer than a header holds.
fn long(tar: Tar, name: &str, target: Option<&str>) -> (Tar, String, String) {
    let mut tar = tar;
    let mut records: Vec<(&str, &[u8])> = Vec::new();
    if name.len() > 100 {
        records.push(("path", name.as_bytes()));
    }
    if let Some(target) = target.filter(|target| target.len() > 100) {
        records.push(("linkpath", target.as_bytes()));
    }
    if !records.is_empty() {
        tar = tar.pax(&records);
    }
    let cut = |text: &str| text.chars().take(100).collect::<String>();
    (tar, cut(name), cut(target.unwrap_or_default()))
}

fn folder(tar: Tar, name: &str) -> Tar {
    let (tar, name, _) = long(tar, name, None);
    tar.dir(&name, 0o755)
}

fn file(tar: Tar, name: &str, text: &str, mode: u32) -> Tar {
    let (tar, name, _) = long(tar, name, None);
    tar.file_mode(&name, text, mode)
}

fn symlink(tar: Tar, name: &str, target: &str) -> Tar {
    let (tar, name, target) = long(tar, name, Some(target));
    tar.symlink(&name, &target)
}

fn hardlink(tar: Tar, name: &str, target: &str) -> Tar {
    let (tar, name, target) = long(tar, name, Some(target));
    tar.hardlink(&name, &target)
}

/// `node_modules` as pnpm lays it out: every package once below `.pnpm`, its dependencies as links beside it, files that
/// are the same as hard links into one store.
fn farm() -> Tar {
    const PACKAGES: usize = 220;
    let key = |number: usize| {
        format!("{}@1.{number}.0_peer-dependency-with-a-long-name@{number}.0.0", flat(&name_of(number)))
    };
    let home = |number: usize| format!("app/node_modules/.pnpm/{}/node_modules", key(number));
    let mut tar = Tar::new().owned(1000, 1000);
    for path in
        ["app", "app/node_modules", "app/node_modules/.bin", "app/node_modules/.pnpm", "app/node_modules/.pnpm/store"]
    {
        tar = folder(tar, path);
    }
    for scope in 0..5 {
        tar = folder(tar, &format!("app/node_modules/@scope-{scope}"));
    }
    for text in 0..12 {
        tar = file(
            tar,
            &format!("app/node_modules/.pnpm/store/{text:02x}"),
            &format!("licence {text}\n").repeat(200),
            0o444,
        );
    }
    for number in 0..PACKAGES {
        let (home, name) = (home(number), name_of(number));
        let place = format!("{home}/{name}");
        tar = folder(tar, home.trim_end_matches("/node_modules"));
        tar = folder(tar, &home);
        if let Some((scope, _)) = name.split_once('/') {
            tar = folder(tar, &format!("{home}/{scope}"));
        }
        tar = folder(tar, &place);
        tar = folder(tar, &format!("{place}/lib"));
        tar = file(tar, &format!("{place}/package.json"), &format!("{{\"name\": \"{name}\"}}"), 0o644);
        tar = file(tar, &format!("{place}/lib/index.js"), &format!("exports.n = {number}\n"), 0o644);
        tar = file(tar, &format!("{place}/cli.js"), "#!/usr/bin/env node\n", 0o755);
        tar = hardlink(tar, &format!("{place}/LICENSE"), &format!("app/node_modules/.pnpm/store/{:02x}", number % 12));
        for step in [1, 3, 10] {
            let other = (number + step) % PACKAGES;
            let target = format!("../../{}/node_modules/{}", key(other), name_of(other));
            tar = symlink(tar, &format!("{home}/{}", flat(&name_of(other))), &target);
        }
        let up = if name.contains('/') { "../" } else { "" };
        tar = symlink(
            tar,
            &format!("app/node_modules/{name}"),
            &format!("{up}.pnpm/{}/node_modules/{name}", key(number)),
        );
        tar = symlink(tar, &format!("app/node_modules/.bin/{}", flat(&name)), &format!("../{name}/cli.js"));
    }
    // An entry behind a link, as a later build step writes it.
    file(tar, "app/node_modules/package-1/built.js", "built\n", 0o644)
}

fn name_of(number: usize) -> String {
    if number.is_multiple_of(7) {
        format!("@scope-{}/package-{number}", number % 5)
    } else {
        format!("package-{number}")
    }
}

fn flat(name: &str) -> String {
    name.replace('/', "+")
}

fn first() -> Tar {
    let deep = (0..12).map(|n| format!("a-folder-with-a-long-name-{n:02}")).collect::<Vec<_>>().join("/");
    let mut tar = Tar::new().dir("./", 0o755).dir("usr", 0o755).dir("usr/bin", 0o755).dir("usr/lib", 0o755);
    tar = tar.symlink("bin", "usr/bin").symlink("lib", "usr/lib").symlink("usr/bin/dangling", "../nowhere");
    for name in ["sh", "old", "tool", "kept"] {
        tar = tar.file_mode(&format!("usr/bin/{name}"), name, 0o755);
    }
    tar = tar.hardlink("usr/bin/bash", "usr/bin/sh").hardlink("usr/lib/sh.copy", "usr/bin/sh");
    tar = tar.dir("flip", 0o755).file("flip/file-to-folder", "f").dir("flip/folder-to-file", 0o750);
    tar = tar
        .file("flip/folder-to-file/inside", "i")
        .symlink("flip/link-to-folder", "elsewhere")
        .dir("flip/elsewhere", 0o755);
    tar = tar.file("flip/elsewhere/stays", "s").dir("flip/folder-to-link", 0o755).file("flip/folder-to-link/gone", "g");
    tar = tar
        .file("flip/file-to-link", "x")
        .symlink("flip/link-to-file", "file-to-link")
        .of(EntryType::Fifo, "flip/pipe");
    tar =
        tar.dir("opaque", 0o755).file("opaque/hidden", "h").dir("opaque/below", 0o755).file("opaque/below/hidden", "h");
    tar = tar.dir("gone", 0o755).file("gone/file", "1").dir("gone/folder", 0o755).file("gone/folder/inside", "2");
    tar = tar.owned(3, 4).dir("owned", 0o2750).file_mode("owned/setuid", "x", 0o4711).owned(4_000_000_000, 70_000);
    tar = tar.file("owned/far", "y").owned(0, 0).dir("tmp", 0o1777).dir("attributes", 0o700);
    tar = tar
        .pax(&[("SCHILY.xattr.user.one", b"1"), ("SCHILY.xattr.user.two", b"\0\xff\n=")])
        .file("attributes/file", "a");
    tar = tar.pax(&[("SCHILY.xattr.user.folder", b"yes")]).dir("attributes/folder", 0o755);
    tar = tar
        .pax(&[("mtime", b"12.5")])
        .file("attributes/early", "e")
        .pax(&[("mtime", b"4102444800")])
        .file("attributes/late", "l");
    tar = tar.file("name with blanks \\ and \"quotes\"", "b").file("a\nnewline", "n").file("täglich", "utf-8");
    tar = tar.raw(Tar::header(EntryType::Regular, b"\xff\xfe", b"", 0, 0o600), b"");
    let mut at = String::new();
    for part in deep.split('/') {
        at = if at.is_empty() { part.to_owned() } else { format!("{at}/{part}") };
        tar = folder(tar, &at);
    }
    tar = file(tar, &format!("{deep}/file"), "deep", 0o640);
    hardlink(tar, &format!("{deep}/link"), &format!("{deep}/file"))
}

fn second() -> Tar {
    let tar = Tar::new().file("bin/new", "behind a link").file("bin/.wh.old", "").file("usr/bin/tool", "another");
    let tar = tar.dir("flip", 0o755).dir("flip/file-to-folder", 0o711).file("flip/file-to-folder/new", "1");
    let tar = tar
        .file("flip/folder-to-file", "now a file")
        .dir("flip/link-to-folder", 0o755)
        .file("flip/link-to-folder/own", "2");
    let tar = tar
        .symlink("flip/folder-to-link", "elsewhere")
        .symlink("flip/file-to-link", "pipe")
        .file("flip/link-to-file", "3");
    let tar = tar.dir("opaque", 0o700).file("opaque/.wh..wh..opq", "").file("opaque/shown", "4");
    let tar =
        tar.file(".wh.gone", "").dir("usr", 0o755).dir("usr/lib", 0o711).hardlink("usr/lib/kept.copy", "usr/bin/kept");
    let tar = tar.owned(9, 9).dir("owned", 0o700).owned(0, 0).file("attributes/new", "5").file("tmp/.wh.none", "");
    tar.pax(&[("SCHILY.xattr.user.one", b"changed")]).file("attributes/file", "a")
}

fn third() -> Tar {
    let tar = Tar::new().dir("gone", 0o711).file("gone/again", "1").file("opaque/later", "2").file("bin/.wh.new", "");
    let tar = tar
        .file("flip/.wh.file-to-folder", "")
        .file("flip/folder-to-link", "a file at last")
        .file(".wh.name with blanks \\ and \"quotes\"", "");
    let tar = tar.file("lib/late", "by way of a link").hardlink("usr/lib/late.copy", "usr/lib/late");
    tar.file("usr/bin/sh", "a new shell").symlink("usr/bin/bash", "sh")
}
