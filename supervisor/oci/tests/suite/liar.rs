//! Unpackers that lie: what one claims about the blob it was given harms nobody who did not ask for that blob.
//!
//! In: the example `liar`, honest unpackers, one store. Out: whose content an honest image gets.

use std::{fs, os::fd::AsFd as _, path::PathBuf, sync::Arc};

use molt_core::{code::Code, ids::ImageRef};
use molt_oci::{Client, Error, Fetched, Limits, Platform, Registries, unpacker::Unpacker};

use crate::common::{GZIP, Image, Packed, Place, TAR, Tar, example, gzip, packed, tree, unpacker};

fn liar() -> Arc<Unpacker> {
    Arc::new(Unpacker::new(fs::File::open(example("liar")).unwrap().as_fd(), |_| None).unwrap())
}

/// Bytes that take over the process which unpacks them, and make it claim that they are `other`.
fn hostile(other: &Packed) -> Packed {
    (other.2.clone().into_bytes(), TAR, other.2.clone())
}

fn fetch(place: &Place, by: Arc<Unpacker>, layers: &[Packed]) -> Result<Fetched, Error> {
    let layout = tempfile::tempdir_in(place.path("layouts")).unwrap();
    Image::new(layers).layout(layout.path());
    let reference: ImageRef = format!("oci:{}", layout.path().display()).parse().unwrap();
    let client = Client::new(&Registries::default(), Limits::default()).unwrap().confined(by);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let resolved = client.resolve(&reference, &Platform::host(), &()).await?;
        client.fetch(&resolved, &place.store, &()).await
    })
}

fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("layouts")).unwrap();
    place
}

fn folder(place: &Place, fetched: &Fetched, index: usize) -> PathBuf {
    place.path("store/layers/sha256").join(fetched.layers[index].to_string())
}

fn honest() -> Packed {
    packed(&Tar::new().dir("./", 0o755).file("app", "honest").end())
}

const HONEST: [&str; 1] = ["f 644 0:0 app honest n1"];

#[test]
fn what_it_claims_is_not_taken_for_another_blob() {
    let place = place();
    let honest = honest();
    let harmed = fetch(&place, liar(), &[hostile(&honest)]).unwrap();
    assert!(folder(&place, &harmed, 0).join("planted").exists(), "the liar lied to the image it was started for");
    let fetched = fetch(&place, unpacker(), std::slice::from_ref(&honest)).unwrap();
    assert_eq!(fetched.layers_fetched, 1);
    assert_eq!(tree(&folder(&place, &fetched, 0)), HONEST);
    let asks = packed(&Tar::new().file("deep/new", "1").end());
    let fetched = fetch(&place, unpacker(), &[honest, asks]).unwrap();
    assert_eq!((fetched.layers_fetched, tree(&folder(&place, &fetched, 0))), (1, HONEST.map(str::to_owned).to_vec()));
}

#[test]
fn nor_when_its_update_failed() {
    let honest = honest();
    let broken: Packed = (b"no diff id".to_vec(), TAR, packed(&Tar::new().file("x", "1").end()).2);
    let place = loop {
        let place = place();
        let error = fetch(&place, liar(), &[hostile(&honest), broken.clone()]).unwrap_err();
        assert_eq!(error.code(), Code::UnpackerFailed, "{error}");
        // Both are unpacked at once: what was finished when the other failed is kept.
        if !place.store.layers().unwrap().is_empty() {
            break place;
        }
    };
    let fetched = fetch(&place, unpacker(), &[honest]).unwrap();
    assert_eq!(tree(&folder(&place, &fetched, 0)), HONEST);
}

#[test]
fn nor_as_a_parent_of_a_layer_that_asks() {
    let place = place();
    let below = packed(&Tar::new().dir("./", 0o755).dir("etc", 0o700).end());
    let asks = packed(&Tar::new().file("etc/new", "1").end());
    let lied = fetch(&place, liar(), &[hostile(&below)]).unwrap();
    let on_lie = fetch(&place, unpacker(), &[hostile(&below), asks.clone()]).unwrap();
    assert_eq!(lied.layers[0], on_lie.layers[0]);
    let fetched = fetch(&place, unpacker(), &[below, asks]).unwrap();
    assert_eq!(tree(&folder(&place, &fetched, 1)), ["d 700 0:0 etc", "f 644 0:0 etc/new 1 n1"]);
}

#[test]
fn a_blob_in_the_store_is_not_taken_for_another_diff_id() {
    let place = place();
    let honest = honest();
    fetch(&place, unpacker(), std::slice::from_ref(&honest)).unwrap();
    let other = packed(&Tar::new().file("app", "other").end());
    let error = fetch(&place, unpacker(), &[(honest.0, GZIP, other.2)]).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
}

#[test]
fn one_tar_packed_in_two_ways_is_two_layers() {
    let place = place();
    let tar = Tar::new().dir("./", 0o755).file("app", "honest").end();
    let plain = (tar.clone(), TAR, crate::common::digest(&tar).to_string());
    let first = fetch(&place, unpacker(), &[plain]).unwrap();
    let second = fetch(&place, unpacker(), &[(gzip(&tar), GZIP, honest().2)]).unwrap();
    assert_ne!(first.layers, second.layers);
    assert_eq!(tree(&folder(&place, &first, 0)), tree(&folder(&place, &second, 0)));
}
