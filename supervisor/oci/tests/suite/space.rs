//! Stores that fill up: what stays free of them, whatever a layer comes to.
//!
//! In: stores on small file systems in memory, layers that pack far better than the estimate thinks. Out: an error with
//! the figures, and the room back.

use std::{
    convert::Infallible,
    process::Command,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use molt_core::{code::Code, ids::ImageRef};
use molt_oci::{Client, Error, Limits, Platform, Registries, Space, Store};

use crate::{
    common::{Image, Packed, Place, Tar, packed, unpacker},
    fake::{Registry, layer_path},
};

const MIB: u64 = 1 << 20;

/// A place whose store is a file system of its own.
struct Small(Place);

impl Small {
    fn new(options: &str) -> Self {
        let mut place = Place::new();
        let path = place.path("store");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).status();
        assert!(mounted.unwrap().success(), "no tmpfs with {options}");
        place.store = Store::open(std::fs::File::open(&path).unwrap()).unwrap();
        Self(place)
    }

    fn space(&self) -> Space {
        self.0.store.space().unwrap()
    }

    /// Fetches an image of these layers, one at a time.
    fn fetch(&self, layers: &[Packed], limits: Limits) -> Result<(), Error> {
        let layout = tempfile::tempdir().unwrap();
        Image::new(layers).layout(layout.path());
        let registries = Registries { parallel: 1, ..Registries::default() };
        let reference = format!("oci:{}", layout.path().display());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.0.pull_with(&reference, &registries, limits)).map(drop)
    }

    /// There is no room for it beside the reserve, in these words, and what it wrote goes.
    fn assert_refused(&self, error: &Error, words: &str, before: Space) {
        assert_eq!(error.code(), Code::NoSpace, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("stay in reserve") && text.contains(words) && text.contains(" inodes are free"),
            "{text}"
        );
        self.0.assert_clean();
        assert!(self.0.store.layers().unwrap().is_empty());
        let back =
            |space: Space| space.bytes_free + MIB > before.bytes_free && space.inodes_free + 8 > before.inodes_free;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !back(self.space()) {
            assert!(Instant::now() < deadline, "{:?} was {before:?}", self.space());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path("store")).status();
    }
}

/// So many MiB of zeros, which pack a thousand to one.
fn zeros(name: &str, mib: usize) -> Tar {
    let content = "\0".repeat(8 << 20);
    (0..mib / 8).fold(Tar::new(), |tar, number| tar.file(&format!("{name}{number}"), &content))
}

fn limits(reserve: u64) -> Limits {
    Limits { reserve, ratio: 10_000, ..Limits::default() }
}

#[test]
fn a_layer_is_stopped_at_the_reserve_and_not_by_a_full_disk() {
    let small = Small::new("size=256m");
    let before = small.space();
    // It does not fit at all: without the reserve the disk would be full.
    let error = small.fetch(&[packed(&zeros("zero", 320).end())], limits(128 * MIB)).unwrap_err();
    small.assert_refused(&error, " of 256 MiB", before);
    // It would fit, and leave less than the reserve.
    let fits = packed(&zeros("zero", 160).end());
    let error = small.fetch(std::slice::from_ref(&fits), limits(128 * MIB)).unwrap_err();
    small.assert_refused(&error, "and 128 MiB and 2048 inodes", before);
    small.fetch(&[fits], limits(0)).expect("there is room for it without a reserve");
}

#[test]
fn inodes_are_kept_in_reserve_too() {
    let small = Small::new("size=256m,nr_inodes=6000");
    let before = small.space();
    let many = (0..5500).fold(Tar::new(), |tar, number| tar.file(&format!("empty{number}"), "")).end();
    let many = packed(&many);
    let error = small.fetch(std::slice::from_ref(&many), limits(64 * MIB)).unwrap_err();
    small.assert_refused(&error, " inodes were left, and 64 MiB and 1024 inodes", before);
    small.fetch(&[many], limits(0)).expect("there is room for it without a reserve");
}

#[test]
fn what_is_copied_from_the_layers_below_counts_too() {
    let small = Small::new("size=256m");
    let before = small.space();
    let below = packed(&zeros("zero", 80).end());
    // Each is small by itself, and copies all that is below.
    let links = |name: &str| {
        packed(&(0..10).fold(Tar::new(), |tar, n| tar.hardlink(&format!("{name}{n}"), &format!("zero{n}"))).end())
    };
    let error = small.fetch(&[below.clone(), links("a"), links("b")], limits(64 * MIB)).unwrap_err();
    small.assert_refused(&error, " of 256 MiB", before);
    small.fetch(&[below, links("a")], limits(64 * MIB)).expect("there is room for one of them");
}

/// What was sent unpacks to far more than the reserve, and then no byte comes any more.
#[tokio::test]
async fn a_registry_that_falls_silent_does_not_hide_a_store_that_fills_up() {
    let small = Small::new("size=256m");
    let before = small.space();
    let image = Image::new(&[packed(&zeros("zero", 320).end())]);
    let (path, blob) = layer_path(&image);
    let registry = Registry::start(image, move |asked, _| {
        (asked.path == path).then(|| {
            let most = Ok::<_, Infallible>(Bytes::copy_from_slice(&blob[..blob.len() * 7 / 10]));
            let stream =
                futures_util::StreamExt::chain(futures_util::stream::iter([most]), futures_util::stream::pending());
            Response::builder().body(Body::from_stream(stream)).unwrap()
        })
    })
    .await;
    let client = Client::new(&registry.settings(), limits(64 * MIB)).unwrap().confined(unpacker());
    let reference: ImageRef = registry.reference().parse().unwrap();
    let resolved = client.resolve(&reference, &Platform::host(), &()).await.unwrap();
    let start = Instant::now();
    let error = client.fetch(&resolved, &small.0.store, &()).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(30), "it waited for the registry");
    small.assert_refused(&error, " of 256 MiB", before);
}
