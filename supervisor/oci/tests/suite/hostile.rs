//! Layers made to break out, to exhaust, or to say two things at once.
//!
//! In: tars built by hand. Out: a refusal with the right code, or a tree that stays inside. A sentinel tree beside the
//! store must not change.

use crate::common::{self, Place, Tar, packed, tree};
use molt_core::code::Code;
use molt_oci::Limits;
use tar::EntryType;

fn refused(tar: Vec<u8>) -> String {
    let error = Place::new().unpack(&[tar]).unwrap_err();
    assert_eq!(error.code(), Code::LayerInvalid, "{error}");
    assert!(!error.transient());
    error.to_string()
}

fn unpacked(tar: Vec<u8>) -> Vec<String> {
    let place = Place::new();
    tree(&place.unpack(&[tar]).unwrap()[0])
}

#[test]
fn names_that_climb_out_are_refused() {
    for name in ["../sentinel", "a/../../sentinel", "/../../sentinel", "..", "a/b/../../../x", "./../x"] {
        assert!(refused(Tar::new().file(name, "x").end()).contains("climbs"), "{name}");
        refused(Tar::new().symlink(name, "x").end());
        refused(Tar::new().dir(name, 0o777).end());
        refused(Tar::new().file("x", "x").hardlink("y", name).end());
    }
}

#[test]
fn absolute_names_are_below_the_root() {
    assert_eq!(
        unpacked(Tar::new().dir("/etc/", 0o755).file("/etc/x", "1").end()),
        ["d 755 0:0 etc", "f 644 0:0 etc/x 1 n1"]
    );
}

#[test]
fn writing_through_links_stays_inside() {
    for target in ["/", "/etc", "../../../../../../../../etc", "../../..", "/proc/self/root", "/outside", "."] {
        let tar = Tar::new()
            .symlink("out", target)
            .file("out/planted", "x")
            .file("out/sentinel", "x")
            .file("out/etc/passwd", "x")
            .dir("out/deep", 0o777)
            .end();
        let place = Place::new();
        let lines = tree(&place.unpack(&[tar]).unwrap()[0]);
        assert!(lines.iter().any(|line| line.contains("planted")), "{target}: {lines:?}");
    }
    assert!(refused(Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "").end()).contains("links"));
    refused(Tar::new().symlink("a", "a").file("a/x", "").end());
}

#[test]
fn a_leaf_replaces_a_link_and_never_follows_it() {
    let place = Place::new();
    let sentinel = place.path("sentinel").display().to_string();
    let target = sentinel.as_str();
    for tar in [
        Tar::new().symlink("x", target).file("x", "new"),
        Tar::new().symlink("x", target).dir("x", 0o777),
        Tar::new().symlink("x", target).of(EntryType::Fifo, "x"),
        Tar::new().symlink("x", target).symlink("x", "y"),
        Tar::new().file("f", "1").symlink("x", target).hardlink("x", "f"),
    ] {
        let lines = tree(&place.unpack(&[tar.end()]).unwrap()[0]);
        assert!(!lines.iter().any(|line| line.contains("sentinel")), "{lines:?}");
    }
}

#[test]
fn hard_links_reach_only_files_of_the_image() {
    for target in ["etc/passwd", "/etc/passwd", "missing"] {
        refused(Tar::new().hardlink("x", target).end());
    }
    refused(Tar::new().dir("d", 0o755).hardlink("x", "d").end());
    refused(Tar::new().hardlink("x", "x").end());
    refused(Tar::new().file("x", "").hardlink("x", "x").end());
    refused(Tar::new().hardlink("x", "/").end());
    refused(Tar::new().symlink("l", "/outside").hardlink("x", "l/etc/passwd").end());
    refused(Tar::new().hardlink("a", "b").hardlink("b", "a").end());
    // A link to a link is the link itself.
    let lines = unpacked(Tar::new().symlink("l", "/sentinel").hardlink("x", "l").end());
    assert_eq!(lines, ["l 777 0:0 l -> /sentinel", "l 777 0:0 x -> /sentinel"]);
}

#[test]
fn a_hard_link_does_not_change_its_target() {
    let lines = unpacked(Tar::new().file_mode("f", "1", 0o600).owned(7, 7).hardlink("h", "f").end());
    assert_eq!(lines, ["f 600 0:0 f 1 n2", "f 600 0:0 h 1 n2"]);
}

#[test]
fn whiteouts_hide_names_and_nothing_else() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh...", ".wh..wh.x", ".wh..wh.plnk"] {
        refused(Tar::new().file(name, "").end());
    }
    refused(Tar::new().dir(".wh.d", 0o755).end());
    refused(Tar::new().symlink(".wh.s", "/").end());
    refused(Tar::new().file(".wh.d/x", "").end());
    refused(Tar::new().file("../.wh.sentinel", "").end());
    let lines = unpacked(Tar::new().symlink("l", "/").file("l/.wh.gone", "").end());
    assert_eq!(lines, ["w gone 0", "l 777 0:0 l -> /"]);
}

#[test]
fn a_whiteout_and_an_entry_of_the_same_name_go_in_any_order() {
    for tar in [
        Tar::new().file(".wh.d", "").dir("d", 0o750).file("d/x", "1"),
        Tar::new().dir("d", 0o750).file("d/x", "1").file(".wh.d", ""),
        Tar::new().dir("d", 0o750).file(".wh.d", "").file("d/x", "1"),
    ] {
        assert_eq!(unpacked(tar.end()), ["d 750 0:0 d opaque", "f 644 0:0 d/x 1 n1"]);
    }
    for tar in [Tar::new().file(".wh.f", "").file("f", "1"), Tar::new().file("f", "1").file(".wh.f", "")] {
        assert_eq!(unpacked(tar.end()), ["f 644 0:0 f 1 n1"]);
    }
    let lines = unpacked(Tar::new().dir("d", 0o755).file("d/x", "1").file("d/.wh..wh..opq", "").end());
    assert_eq!(lines, ["d 755 0:0 d opaque", "f 644 0:0 d/x 1 n1"]);
}

#[test]
fn whiteouts_in_a_folder_that_is_hidden_add_nothing() {
    for tar in [
        Tar::new().file(".wh.d", "").file("d/e/.wh.x", ""),
        Tar::new().file("d/e/.wh.x", "").file(".wh.d", ""),
        Tar::new().file("d/.wh..wh..opq", "").file(".wh.d", ""),
    ] {
        assert_eq!(unpacked(tar.end()), ["w d 0"]);
    }
}

#[test]
fn device_nodes_are_refused_and_left_out_below_dev() {
    let device = |name: &str, kind: EntryType, major: u32, minor: u32| {
        let mut header = Tar::header(kind, name.as_bytes(), b"", 0, 0o666);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header
    };
    refused(Tar::new().raw(device("sda", EntryType::Block, 8, 0), b"").end());
    refused(Tar::new().raw(device("null", EntryType::Char, 1, 3), b"").end());
    refused(Tar::new().raw(device("dev/../null", EntryType::Char, 1, 3), b"").end());
    refused(Tar::new().raw(device("whiteout", EntryType::Char, 0, 0), b"").end());
    refused(Tar::new().raw(device("dev/whiteout", EntryType::Char, 0, 0), b"").end());
    let tar = Tar::new().dir("dev", 0o755).raw(device("dev/null", EntryType::Char, 1, 3), b"").end();
    assert_eq!(unpacked(tar), ["d 755 0:0 dev"]);
}

#[test]
fn unknown_and_sparse_entries_are_refused() {
    for kind in [b'S', b'V', b'M', b'D', b'Z', b'A'] {
        refused(Tar::new().of(EntryType::new(kind), "x").end());
    }
    let sparse: [(&str, &[u8]); 3] =
        [("GNU.sparse.map", b"0,1"), ("GNU.sparse.name", b"../x"), ("GNU.sparse.major", b"1")];
    for record in sparse {
        refused(Tar::new().pax(&[record]).file("x", "1").end());
    }
}

#[test]
fn attributes_that_steer_the_overlay_or_the_kernel_are_dropped() {
    let tar = Tar::new()
        .pax(&[
            ("SCHILY.xattr.user.kept", b"1"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
            ("SCHILY.xattr.system.posix_acl_access", b"x"),
        ])
        .dir("d", 0o755)
        .end();
    let place = Place::new();
    let root = &place.unpack(&[tar]).unwrap()[0];
    let mut names = vec![0u8; 4096];
    let count = rustix::fs::listxattr(root.join("d"), names.as_mut_slice()).unwrap();
    assert_eq!(&names[..count], b"user.kept\0");
    let big = vec![b'x'; 70_000];
    refused(Tar::new().pax(&[("SCHILY.xattr.user.big", &big)]).file("x", "").end());
}

#[test]
fn owners_out_of_range_are_refused() {
    for (key, value) in
        [("uid", "4294967295"), ("gid", "4294967295"), ("uid", "4294967296"), ("uid", "-1"), ("uid", "x")]
    {
        refused(Tar::new().pax(&[(key, value.as_bytes())]).file("x", "").end());
    }
    let lines = unpacked(Tar::new().pax(&[("uid", b"4294967294")]).file_mode("x", "", 0o4755).end());
    assert_eq!(lines, ["f 4755 4294967294:0 x  n1"]);
}

#[test]
fn sizes_that_tools_read_differently_are_refused() {
    let with_size = |field: [u8; 12]| {
        let mut header = Tar::header(EntryType::Regular, b"x", b"", 0, 0o644);
        header.as_old_mut().size = field;
        Tar::new().raw(header, b"").file("hidden", "x").end()
    };
    refused(with_size([0xff; 12]));
    refused(with_size([0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]));
    refused(with_size([0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 5]));
    refused(with_size(*b"garbage     "));
    refused(Tar::new().raw(Tar::header(EntryType::Directory, b"d", b"", 512, 0o755), &[b'x'; 512]).end());
    refused(Tar::new().raw(Tar::header(EntryType::Symlink, b"l", b"t", 512, 0o755), &[b'x'; 512]).end());
    refused(Tar::new().file("f", "").raw(Tar::header(EntryType::Link, b"l", b"f", 512, 0o755), &[b'x'; 512]).end());
    // PAX decides: what follows is data, not a header.
    let inner = Tar::new().file("hidden", "x").cut();
    let size = inner.len().to_string();
    let mut header = Tar::header(EntryType::Regular, b"f", b"", 0, 0o644);
    header.set_size(0);
    let lines = unpacked(Tar::new().pax(&[("size", size.as_bytes())]).raw(header, &inner).end());
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("f 644 0:0 f"));
    refused(Tar::new().pax(&[("size", b"-5")]).file("x", "").end());
}

#[test]
fn headers_that_readers_take_differently_are_refused() {
    let twice: [[(&str, &[u8]); 2]; 3] =
        [[("path", b"one"), ("path", b"two")], [("size", b"1"), ("size", b"2")], [("uid", b"1"), ("uid", b"0")]];
    for records in twice {
        refused(Tar::new().pax(&records).file("x", "1").end());
    }
    refused(Tar::new().pax(&[("size", b"+1")]).file("x", "1").end());
    // Behind what is no record another reader finds one more.
    for records in [&b"x\n12 path=two\n"[..], b"12 path=two\nx", b"+12 path=two\n", b"12 path=two\n\0\0"] {
        let header = Tar::header(EntryType::XHeader, b"pax", b"", records.len() as u64, 0o644);
        refused(Tar::new().raw(header, records).file("x", "1").end());
    }
    // A long name of GNU's and one of PAX.
    let long = Tar::header(EntryType::GNULongName, b"././@LongLink", b"", 4, 0o644);
    refused(Tar::new().pax(&[("path", b"two")]).raw(long.clone(), b"one\0").file("x", "1").end());
    refused(Tar::new().raw(long.clone(), b"one\0").pax(&[("path", b"two")]).file("x", "1").end());
    // What comes before a global header is dropped by one reader, kept for the next entry by another.
    let global: [(&str, &[u8]); 1] = [("comment", b"x")];
    refused(Tar::new().pax(&[("path", b"one")]).global(&global).file("x", "1").end());
    refused(Tar::new().raw(long.clone(), b"one\0").global(&global).file("x", "1").end());
    refused(Tar::new().global(&global).pax(&[("path", b"one")]).global(&global).file("x", "1").end());
    assert_eq!(unpacked(Tar::new().global(&global).global(&global).file("x", "1").end()), ["f 644 0:0 x 1 n1"]);
    assert_eq!(unpacked(Tar::new().global(&global).pax(&[("path", b"y")]).file("x", "1").end()), ["f 644 0:0 y 1 n1"]);
    let lines = unpacked(Tar::new().raw(long, b"one\0").file("x", "1").end());
    assert!(lines.len() == 1 && lines[0].ends_with(" n1") && lines[0].contains(" one "), "{lines:?}");
}

#[test]
fn strange_times_are_clamped() {
    let mut header = Tar::header(EntryType::Regular, b"x", b"", 0, 0o644);
    header.as_old_mut().mtime = [0xff; 12];
    let tar = Tar::new()
        .raw(header, b"")
        .pax(&[("mtime", b"99999999999999999")])
        .file("y", "")
        .pax(&[("mtime", b"12.75")])
        .dir("d", 0o755)
        .file("d/inner", "")
        .end();
    let place = Place::new();
    let root = &place.unpack(&[tar]).unwrap()[0];
    let time = |name: &str| std::os::unix::fs::MetadataExt::mtime(&std::fs::metadata(root.join(name)).unwrap());
    assert_eq!((time("x"), time("y"), time("d")), (0, 0, 12));
}

#[test]
fn limits_hold() {
    let limited = |limits: Limits, tar: Vec<u8>| {
        let error = Place::new().unpack_with(&[tar], limits).unwrap_err();
        assert_eq!(error.code(), Code::LayerInvalid, "{error}");
        error.to_string()
    };
    let many = (0..50).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), "")).end();
    assert!(limited(Limits { entries: 49, ..Limits::default() }, many).contains("49 entries"));
    let deep = Tar::new().file("d/".repeat(20).trim_end_matches('/'), "").end();
    assert!(limited(Limits { depth: 19, ..Limits::default() }, deep).contains("19"));
    let names = (0..200).fold(Tar::new(), |tar, n| tar.dir(&format!("{n}{}", "x".repeat(80)), 0o755)).end();
    assert!(limited(Limits { deferred_bytes: 20_000, ..Limits::default() }, names).contains("memory"));
    let zeros = Tar::new().file("zero", &"\0".repeat(4 << 20)).end();
    let bomb = Limits { ratio: 20, ratio_after: 1 << 20, ..Limits::default() };
    assert!(limited(bomb, zeros.clone()).contains("20:1"));
    assert!(limited(Limits { layer_bytes: 1 << 20, ..Limits::default() }, zeros).contains("1048576"));
    let long = vec![b'n'; 300];
    refused(Tar::new().pax(&[("path", &long)]).file("x", "").end());
    let longer = b"n/".repeat(2100);
    refused(Tar::new().pax(&[("path", &longer)]).file("x", "").end());
    let huge = vec![b'n'; 2 << 20];
    refused(Tar::new().pax(&[("comment", &huge)]).file("x", "").end());
}

#[test]
fn names_with_any_byte_are_kept_and_escaped_in_messages() {
    let place = Place::new();
    let roots = place.unpack(&[Tar::new().file("a\nb\x1b[31m", "1").end()]).unwrap();
    assert!(roots[0].join("a\nb\x1b[31m").exists());
    let mut header = Tar::header(EntryType::Regular, b"\xff\xfe", b"", 0, 0o644);
    header.set_mtime(0);
    place.unpack(&[Tar::new().raw(header, b"").end()]).unwrap();
    let message = refused(Tar::new().file("a\nb/../../../x\x1b", "").end());
    assert!(!message.contains('\n') && !message.contains('\x1b'), "{message}");
    refused(Tar::new().pax(&[("path", b"a\0b")]).file("x", "").end());
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let lines = unpacked(
        Tar::new()
            .dir("d", 0o755)
            .file("d/old", "1")
            .file("d", "file")
            .file("f", "1")
            .dir("f", 0o700)
            .file("f/new", "2")
            .dir("twice", 0o700)
            .file("twice/x", "3")
            .dir("twice", 0o711)
            .end(),
    );
    assert_eq!(
        lines,
        [
            "f 644 0:0 d file n1",
            "d 700 0:0 f opaque",
            "f 644 0:0 f/new 2 n1",
            "d 711 0:0 twice",
            "f 644 0:0 twice/x 3 n1"
        ]
    );
    refused(Tar::new().file("f", "1").file("f/below", "2").end());
}

#[test]
fn a_replaced_link_is_not_remembered_as_a_way() {
    let lines = unpacked(
        Tar::new()
            .dir("a", 0o755)
            .symlink("way", "a")
            .file("way/one", "1")
            .dir("way", 0o755)
            .file("way/two", "2")
            .end(),
    );
    assert_eq!(lines, ["d 755 0:0 a", "f 644 0:0 a/one 1 n1", "d 755 0:0 way opaque", "f 644 0:0 way/two 2 n1"]);
}

#[test]
fn broken_archives_are_refused() {
    let whole = Tar::new().file("a", "1").file("b", "22").end();
    refused(whole[..700].to_vec());
    refused(whole[..1100].to_vec());
    let mut bad = whole.clone();
    bad[10] ^= 1;
    refused(bad);
    refused(b"not a tar at all".repeat(100));
    refused(Tar::new().pax(&[("path", b"x")]).end());
    // Without an end marker, and with data after it: both are common.
    assert_eq!(unpacked(Tar::new().file("a", "1").cut()).len(), 1);
    assert_eq!(unpacked([whole, vec![0; 10_240]].concat()).len(), 2);
}

#[test]
fn a_root_entry_sets_the_root_and_nothing_else() {
    let place = Place::new();
    let root = &place.unpack(&[Tar::new().dir("./", 0o711).file("./x", "1").end()]).unwrap()[0];
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(root).unwrap()) & 0o7777, 0o711);
    refused(Tar::new().symlink("./", "/etc").end());
    refused(Tar::new().file("./", "x").end());
}

#[test]
fn lies_about_the_content_are_found() {
    let place = Place::new();
    let good = Tar::new().file("a", "1").end();
    for change in ["diff_id", "blob", "longer"] {
        let (mut blob, kind, mut id) = packed(&good);
        if change == "diff_id" {
            id = common::digest(b"other").to_string();
        }
        let image = common::Image::new(&[(blob.clone(), kind, id)]);
        let layout = place.path(change);
        image.layout(&layout);
        let file = layout.join("blobs/sha256").join(common::digest(&blob).hex());
        match change {
            "blob" => {
                blob[20] ^= 0xff;
                std::fs::write(file, &blob).unwrap();
            }
            "longer" => {
                blob.extend(common::gzip(b""));
                std::fs::write(file, &blob).unwrap();
            }
            _ => {}
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reference = format!("oci:{}:v1", layout.display());
        let error = runtime
            .block_on(place.pull_with(&reference, &molt_oci::Registries::default(), Limits::default()))
            .unwrap_err();
        assert_eq!(error.code(), Code::ContentMismatch, "{change}: {error}");
        place.assert_clean();
        assert!(place.store.layers().unwrap().is_empty());
    }
}
