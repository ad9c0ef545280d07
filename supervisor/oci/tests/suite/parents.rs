//! Layers on layers: what a layer leaves to those below is answered as if it had been applied onto them.
//!
//! In: two or three tars. Out: the folders they become. Layers that ask nothing keep one form for every base.

use std::fs;

use molt_core::code::Code;

use crate::common::{Place, Tar, tree};

fn base() -> Vec<u8> {
    Tar::new()
        .dir("./", 0o755)
        .dir("usr", 0o755)
        .owned(3, 4)
        .dir("usr/bin", 0o2750)
        .owned(0, 0)
        .file("usr/bin/sh", "sh")
        .symlink("bin", "usr/bin")
        .symlink("sbin", "/bin")
        .symlink("dangling", "opt/later")
        .dir("data", 0o1777)
        .file("data/f", "lower")
        .end()
}

fn top(upper: Vec<u8>) -> Vec<String> {
    let place = Place::new();
    tree(&place.unpack(&[base(), upper]).unwrap()[1])
}

#[test]
fn a_missing_parent_keeps_the_owner_and_mode_it_has_below() {
    assert_eq!(
        top(Tar::new().file("usr/bin/new", "1").end()),
        ["d 755 0:0 usr", "d 2750 3:4 usr/bin", "f 644 0:0 usr/bin/new 1 n1"]
    );
    assert_eq!(top(Tar::new().file("nowhere/x", "").end()), ["d 755 0:0 nowhere", "f 644 0:0 nowhere/x  n1"]);
}

#[test]
fn content_below_a_linked_parent_lands_where_the_link_leads() {
    for name in ["bin", "sbin"] {
        assert_eq!(
            top(Tar::new().file(&format!("{name}/new"), "1").file(&format!("{name}/.wh.sh"), "").end()),
            ["d 755 0:0 usr", "d 2750 3:4 usr/bin", "f 644 0:0 usr/bin/new 1 n1", "w usr/bin/sh 0"],
            "{name}"
        );
    }
    assert_eq!(
        top(Tar::new().file("dangling/a/x", "1").end()),
        ["d 755 0:0 opt", "d 755 0:0 opt/later", "d 755 0:0 opt/later/a", "f 644 0:0 opt/later/a/x 1 n1"]
    );
    assert_eq!(
        top(Tar::new().file("bin/.wh..wh..opq", "").file("bin/only", "1").end()),
        ["d 755 0:0 usr", "d 2750 3:4 usr/bin opaque", "f 644 0:0 usr/bin/only 1 n1"]
    );
}

#[test]
fn whiteouts_without_a_folder_below_leave_nothing() {
    assert_eq!(
        top(Tar::new().file("no/such/.wh.x", "").file("usr/bin/sh/.wh.x", "").end()),
        ["d 755 0:0 usr", "d 2750 3:4 usr/bin"]
    );
    assert_eq!(top(Tar::new().file("none/.wh..wh..opq", "").end()), Vec::<String>::new());
}

#[test]
fn both_ways_to_a_folder_are_one() {
    assert_eq!(
        top(Tar::new().file("bin/a", "1").dir("usr", 0o700).dir("usr/bin", 0o701).file("usr/bin/b", "2").end()),
        ["d 700 0:0 usr", "d 701 0:0 usr/bin", "f 644 0:0 usr/bin/a 1 n1", "f 644 0:0 usr/bin/b 2 n1"]
    );
    let clash = Tar::new().file("bin/a", "1").file("usr/bin/a", "2").end();
    let error = Place::new().unpack(&[base(), clash]).unwrap_err();
    assert_eq!(error.code(), Code::LayerInvalid, "{error}");
}

#[test]
fn an_entry_of_its_own_or_a_whiteout_hides_the_link() {
    assert_eq!(top(Tar::new().dir("bin", 0o711).file("bin/x", "1").end()), ["d 711 0:0 bin", "f 644 0:0 bin/x 1 n1"]);
    assert_eq!(
        top(Tar::new().file(".wh.bin", "").file("bin/x", "1").end()),
        ["d 755 0:0 bin opaque", "f 644 0:0 bin/x 1 n1"]
    );
    assert_eq!(
        top(Tar::new().file(".wh.usr", "").file("usr/bin/x", "1").end()),
        ["d 755 0:0 usr opaque", "d 755 0:0 usr/bin", "f 644 0:0 usr/bin/x 1 n1"]
    );
}

#[test]
fn a_way_that_is_replaced_after_it_was_used_is_refused() {
    let tar = Tar::new().file("bin/new", "1").symlink("bin", "elsewhere").end();
    assert_eq!(Place::new().unpack(&[base(), tar]).unwrap_err().code(), Code::LayerInvalid);
}

#[test]
fn links_out_of_a_lower_layer_stay_in_the_root() {
    let lower =
        Tar::new().symlink("out", "../../../../../../..").symlink("abs", "/outside").symlink("loop", "loop").end();
    let place = Place::new();
    let roots = place.unpack(&[lower.clone(), Tar::new().file("out/x", "1").file("abs/y", "2").end()]).unwrap();
    assert_eq!(tree(&roots[1]), ["d 755 0:0 outside", "f 644 0:0 outside/y 2 n1", "f 644 0:0 x 1 n1"]);
    let error = place.unpack(&[lower, Tar::new().file("loop/x", "1").end()]).unwrap_err();
    assert_eq!(error.code(), Code::LayerInvalid, "{error}");
}

#[test]
fn a_hard_link_to_a_lower_file_copies_it_up() {
    assert_eq!(
        top(Tar::new().dir("data", 0o755).hardlink("data/g", "data/f").hardlink("data/h", "data/g").end()),
        ["d 755 0:0 data", "f 644 0:0 data/f lower n3", "f 644 0:0 data/g lower n3", "f 644 0:0 data/h lower n3"]
    );
    assert_eq!(
        top(Tar::new().hardlink("bin/bash", "sbin/sh").end()),
        ["d 755 0:0 usr", "d 2750 3:4 usr/bin", "f 644 0:0 usr/bin/bash sh n2", "f 644 0:0 usr/bin/sh sh n2"]
    );
    let hidden = Tar::new().file("data/.wh.f", "").hardlink("data/g", "data/f").end();
    assert_eq!(Place::new().unpack(&[base(), hidden]).unwrap_err().code(), Code::LayerInvalid);
    let replaced = Tar::new().dir("data", 0o755).hardlink("data/g", "data/f").file("data/g", "own").end();
    assert_eq!(top(replaced), ["d 755 0:0 data", "f 644 0:0 data/g own n1"]);
}

#[test]
fn a_folder_keeps_the_time_of_its_entry_when_something_is_linked_or_moved_into_it() {
    let place = Place::new();
    let upper = Tar::new().dir("data", 0o755).hardlink("data/g", "data/f").dir("usr", 0o755).dir("usr/bin", 0o700);
    let upper = upper.file("bin/moved", "1").end();
    let root = &place.unpack(&[base(), upper]).unwrap()[1];
    for folder in ["data", "usr", "usr/bin"] {
        let time = std::os::unix::fs::MetadataExt::mtime(&fs::metadata(root.join(folder)).unwrap());
        assert_eq!(time, 1_000_000_000, "{folder}");
    }
}

#[test]
fn a_layer_that_asks_nothing_serves_every_base_and_others_do_not() {
    let place = Place::new();
    let other = Tar::new().dir("./", 0o755).dir("usr", 0o755).dir("usr/bin", 0o700).end();
    let whole = Tar::new().dir("usr", 0o755).dir("usr/bin", 0o755).file("usr/bin/x", "1").end();
    let asks = Tar::new().file("usr/bin/y", "1").end();
    let first = place.unpack(&[base(), whole.clone(), asks.clone()]).unwrap();
    let again = place.unpack(&[base(), whole.clone(), asks.clone()]).unwrap();
    let second = place.unpack(&[other, whole, asks]).unwrap();
    assert_eq!(first, again);
    assert_eq!(first[1], second[1], "the whole layer is shared");
    assert_ne!(first[2], second[2], "the other one has a form for each base");
    assert_eq!(place.store.layers().unwrap().len(), 5);
}

#[test]
fn the_same_layer_twice_is_kept_once() {
    let place = Place::new();
    let roots = place.unpack(&[base(), base()]).unwrap();
    assert_eq!(roots[0], roots[1]);
    let asks = Tar::new().file("usr/bin/y", "1").end();
    assert_eq!(place.unpack(&[asks.clone(), base(), asks]).unwrap().len(), 3);
}

#[test]
fn trash_is_emptied_and_links_in_it_are_not_followed() {
    let place = Place::new();
    place.unpack(&[base()]).unwrap();
    let layers = place.store.layers().unwrap();
    let layer = layers.first().unwrap();
    let root = place.path("store/layers/sha256").join(layer.to_string());
    std::os::unix::fs::symlink(place.path("outside"), root.join("planted")).unwrap();
    place.store.trash_layer(layer).unwrap();
    place.store.trash_layer(layer).unwrap();
    for blob in place.store.blobs().unwrap() {
        place.store.trash_blob(&blob).unwrap();
    }
    assert!(!place.store.has_layer(layer) && place.store.blobs().unwrap().is_empty());
    place.store.empty_trash().unwrap();
    assert_eq!(fs::read_dir(place.path("store/trash")).unwrap().count(), 0);
    place.assert_clean();
}

#[test]
fn what_an_earlier_run_left_is_cleared_when_the_store_is_opened() {
    let place = Place::new();
    fs::create_dir_all(place.path("store/tmp/left/deep")).unwrap();
    fs::write(place.path("store/tmp/blob"), "x").unwrap();
    let store = molt_oci::Store::open(fs::File::open(place.path("store")).unwrap()).unwrap();
    assert_eq!(fs::read_dir(place.path("store/tmp")).unwrap().count(), 0);
    store.empty_trash().unwrap();
    assert_eq!(fs::read_dir(place.path("store/trash")).unwrap().count(), 0);
}

#[test]
fn blobs_are_checked_when_written_and_when_read() {
    let place = Place::new();
    let name = crate::common::digest(b"hello");
    assert_eq!(place.store.put_blob(&name, b"other").unwrap_err().code(), Code::ContentMismatch);
    place.store.put_blob(&name, b"hello").unwrap();
    assert_eq!(place.store.get_blob(&name, 5).unwrap().unwrap(), b"hello");
    assert_eq!(place.store.get_blob(&name, 4).unwrap_err().code(), Code::ManifestInvalid);
    assert_eq!(place.store.get_blob(&crate::common::digest(b"none"), 5).unwrap(), None);
    fs::write(place.path("store/blobs/sha256").join(name.hex()), "hellO").unwrap();
    assert_eq!(place.store.get_blob(&name, 5).unwrap_err().code(), Code::ContentMismatch);
}

#[test]
fn a_link_in_a_lower_layer_leads_no_deeper_than_an_entry_may_be() {
    let deep = |depth: usize, name: &str| vec![name; depth].join("/");
    let onto = |target: String| {
        // By PAX: a plain header has room for 100 bytes.
        let below = Tar::new().pax(&[("linkpath", target.as_bytes())]).symlink("l", "x").end();
        Place::new().unpack(&[below, Tar::new().file("l/f", "1").end()]).map(drop)
    };
    onto(deep(256, "a")).expect("as deep as an entry may be");
    for target in [deep(257, "a"), deep(2000, "a"), "n".repeat(256)] {
        let error = onto(target).unwrap_err();
        assert_eq!(error.code(), Code::LayerInvalid, "{error}");
        assert!(error.to_string().contains("too long or too deep once its links are followed"), "{error}");
    }
}
