//! Tars that say two things at once, and packings that hold too much: sizes, times, owners, kinds, attributes, bombs.

use std::io::Write as _;

use super::{Hostile, bytes, case, harmless, layer, tar};
use crate::harness::image::{Packed, Packing, digest};
use crate::harness::tar::Tar;
use tar::EntryType;

pub(super) fn cases() -> Vec<Hostile> {
    [sizes(), ends(), kinds(), owners(), attributes(), packings(), bombs()].into_iter().flatten().collect()
}

fn with_size(field: [u8; 12]) -> Tar {
    let mut header = Tar::header(EntryType::Regular, b"x", b"", 0, 0o644);
    header.as_old_mut().size = field;
    Tar::new().raw(header, b"").file("hidden", "x")
}

fn sizes() -> Vec<Hostile> {
    let inner = Tar::new().file("hidden", "x").cut();
    let size = inner.len().to_string();
    let plain = Tar::header(EntryType::Regular, b"f", b"", 0, 0o644);
    vec![
        tar("a negative size in base 256", &["U27", "U26"], with_size([0xff; 12]), layer("")),
        tar(
            "a size of 2^64 and a bit in base 256",
            &["U27", "U26"],
            with_size([0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]),
            layer("impossible size"),
        ),
        tar(
            "a size with its highest bit set",
            &["U27"],
            with_size([0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 5]),
            layer("size"),
        ),
        tar("a size that is no number", &["U27"], with_size(*b"garbage     "), layer("malformed tar")),
        tar("a size of all the octal digits", &["U27"], with_size(*b"777777777777"), layer("the tar stream ends")),
        tar("a negative PAX size", &["U26", "U27"], Tar::new().pax(&[("size", b"-5")]).file("x", ""), layer("")),
        tar(
            "a PAX size of 2^64",
            &["U26", "U27"],
            Tar::new().pax(&[("size", b"18446744073709551616")]).file("x", ""),
            layer(""),
        ),
        tar(
            "a member hidden by the size of its PAX header",
            &["U26"],
            Tar::new().pax(&[("size", size.as_bytes())]).raw(plain.clone(), &inner),
            harmless(&["f 644 0:0 f 1024 bytes"]),
        ),
        tar(
            "a member hidden by the size of its header",
            &["U26"],
            {
                let mut header = plain.clone();
                header.set_size(inner.len() as u64);
                Tar::new().pax(&[("size", b"0")]).raw(header, &inner)
            },
            harmless(&["f 644 0:0 f", "f 644 0:0 hidden x"]),
        ),
        tar(
            "a folder with content",
            &["U26"],
            Tar::new().raw(Tar::header(EntryType::Directory, b"d", b"", 512, 0o755), &[b'x'; 512]),
            layer("a size where there can be no data"),
        ),
        tar(
            "a link with content",
            &["U26"],
            Tar::new().raw(Tar::header(EntryType::Symlink, b"l", b"t", 512, 0o755), &[b'x'; 512]),
            layer("a size where there can be no data"),
        ),
        tar(
            "a hard link with content",
            &["U26", "U24"],
            Tar::new().file("f", "").raw(Tar::header(EntryType::Link, b"l", b"f", 512, 0o755), &[b'x'; 512]),
            layer("a size where there can be no data"),
        ),
        tar(
            "a global header that renames everything",
            &["U26"],
            Tar::new().global(&[("path", b"etc/passwd")]).file("x", "1"),
            layer("a global tar header"),
        ),
        tar(
            "a global header that resizes everything",
            &["U26"],
            Tar::new().global(&[("size", b"512")]).file("x", "1"),
            layer("a global tar header"),
        ),
        tar(
            "a PAX record longer than its header",
            &["U26"],
            {
                let mut header = tar::Header::new_ustar();
                header.set_entry_type(EntryType::XHeader);
                header.set_size(20);
                Tar::new().raw(header, b"99999 path=x\n       ").file("x", "1")
            },
            layer("malformed tar"),
        ),
        tar(
            "a PAX header of two MiB",
            &["U14", "U26"],
            Tar::new().pax(&[("comment", &vec![b'n'; 2 << 20])]).file("x", ""),
            layer(""),
        ),
    ]
}

fn ends() -> Vec<Hostile> {
    let whole = Tar::new().file("a", "1").file("b", "22").end();
    let mut broken = whole.clone();
    broken[10] ^= 1;
    vec![
        bytes("a tar that ends in a header", &["U26"], whole[..700].to_vec(), layer("ends")),
        bytes("a tar that ends in a file", &["U26"], whole[..1100].to_vec(), layer("ends")),
        bytes("a wrong checksum", &["U26"], broken, layer("malformed tar")),
        bytes("no tar at all", &["U26"], b"not a tar at all".repeat(100), layer("malformed tar")),
        bytes("a PAX header at the end", &["U26"], Tar::new().pax(&[("path", b"x")]).end(), layer("")),
        bytes("no end marker", &["U26"], Tar::new().file("a", "1").cut(), harmless(&["f 644 0:0 a 1"])),
        bytes(
            "members behind the end marker",
            &["U26"],
            Tar::new().file("a", "1").bytes(&[0; 1024]).file("hidden", "x").end(),
            harmless(&["f 644 0:0 a 1"]),
        ),
        bytes("an empty layer", &["U26"], Vec::new(), harmless(&[])),
    ]
}

fn kinds() -> Vec<Hostile> {
    let device = || layer("device nodes are not taken");
    let kind = || layer("are not taken");
    vec![
        tar("a disk", &["U30"], Tar::new().device(EntryType::Block, "sda", 8, 0), device()),
        tar("a device of the kernel's memory", &["U30"], Tar::new().device(EntryType::Char, "app/mem", 1, 1), device()),
        tar("a device named through /dev", &["U30"], Tar::new().device(EntryType::Char, "dev/../mem", 1, 1), device()),
        tar(
            "a whiteout as overlays have it",
            &["U30", "U32"],
            Tar::new().device(EntryType::Char, "app", 0, 0),
            device(),
        ),
        tar(
            "devices below /dev",
            &["U30"],
            Tar::new().dir("dev", 0o755).device(EntryType::Char, "dev/null", 1, 3).device(
                EntryType::Block,
                "dev/sda",
                8,
                0,
            ),
            harmless(&["d 755 0:0 dev"]),
        ),
        tar(
            "FIFOs",
            &["U30"],
            Tar::new().of(EntryType::Fifo, "srv/one").of(EntryType::Fifo, "etc/two"),
            harmless(&["d 755 0:0 etc", "p 644 0:0 etc/two", "d 755 0:0 srv", "p 644 0:0 srv/one"]),
        ),
        tar("an old sparse file", &["U26", "U30"], Tar::new().of(EntryType::new(b'S'), "x"), layer("")),
        tar(
            "a PAX sparse map",
            &["U26"],
            Tar::new().pax(&[("GNU.sparse.map", b"0,1")]).file("x", "1"),
            layer("sparse"),
        ),
        tar(
            "a PAX sparse name above the root",
            &["U26", "U19"],
            Tar::new().pax(&[("GNU.sparse.name", b"../x")]).file("x", "1"),
            layer(""),
        ),
        tar("a volume label", &["U26"], Tar::new().of(EntryType::new(b'V'), "x"), kind()),
        tar("a continued file", &["U26"], Tar::new().of(EntryType::new(b'M'), "x"), kind()),
        tar("a dump folder", &["U26"], Tar::new().of(EntryType::new(b'D'), "x"), kind()),
        tar("a kind nobody knows", &["U26"], Tar::new().of(EntryType::new(b'Z'), "x"), kind()),
    ]
}

fn owners() -> Vec<Hostile> {
    let range = || layer("out of range");
    let mut odd = Tar::header(EntryType::Regular, b"base256", b"", 0, 0o644);
    odd.as_old_mut().mtime = [0xff; 12];
    vec![
        tar("owner minus one in PAX", &["U34"], Tar::new().pax(&[("uid", b"4294967295")]).file("x", ""), range()),
        tar("group minus one in PAX", &["U34"], Tar::new().pax(&[("gid", b"4294967295")]).file("x", ""), range()),
        tar("owner 2^32", &["U34"], Tar::new().pax(&[("uid", b"4294967296")]).file("x", ""), range()),
        tar("owner minus one, spelled out", &["U34"], Tar::new().pax(&[("uid", b"-1")]).file("x", ""), layer("")),
        tar("an owner that is no number", &["U34"], Tar::new().pax(&[("uid", b"root")]).file("x", ""), layer("")),
        tar(
            "the highest owner there is",
            &["U34"],
            Tar::new().pax(&[("uid", b"4294967294"), ("gid", b"4294967294")]).file("x", "1"),
            harmless(&["f 644 4294967294:4294967294 x 1"]),
        ),
        tar(
            "times after all time",
            &["U27"],
            Tar::new()
                .raw(odd, b"")
                .pax(&[("mtime", b"99999999999999999")])
                .file("far", "")
                .pax(&[("mtime", b"12.75")])
                .dir("twelve", 0o755),
            harmless(&["f 644 0:0 base256 @0", "f 644 0:0 far @0", "d 755 0:0 twelve @12"]),
        ),
        tar("a time before all time", &["U27"], Tar::new().pax(&[("mtime", b"-5")]).file("past", ""), layer("mtime")),
        tar(
            "a shell that would make one root",
            &["U31"],
            Tar::new().file_mode("bin/rootshell", "#!/bin/sh\nid -u\n", 0o6755),
            harmless(&["d 755 0:0 bin", "f 6755 0:0 bin/rootshell #!/bin/sh\\nid -u\\n"]),
        ),
    ]
}

fn attributes() -> Vec<Hostile> {
    let big = vec![b'x'; 70_000];
    vec![
        tar(
            "attributes that steer an overlay",
            &["U32"],
            Tar::new()
                .pax(&[
                    ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                    ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                    ("SCHILY.xattr.trusted.overlay.metacopy", b""),
                    ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
                    ("SCHILY.xattr.user.overlay.opaque", b"y"),
                    ("SCHILY.xattr.user.overlay.whiteout", b"y"),
                ])
                .dir("srv", 0o755)
                .pax(&[
                    ("SCHILY.xattr.trusted.overlay.whiteout", b""),
                    ("SCHILY.xattr.trusted.overlay.metacopy", b""),
                    ("SCHILY.xattr.user.overlay.metacopy", b""),
                ])
                .file("srv/file", "1"),
            harmless(&["d 755 0:0 srv", "f 644 0:0 srv/file 1"]),
        ),
        tar(
            "capabilities of a file",
            &["U31", "U33"],
            Tar::new()
                .pax(&[(
                    "SCHILY.xattr.security.capability",
                    b"\x01\0\0\x02\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff\0\0\0\0",
                )])
                .file_mode("bin/capable", "#!/bin/sh\n", 0o755),
            harmless(&["d 755 0:0 bin", "f 755 0:0 bin/capable #!/bin/sh\\n"]),
        ),
        tar(
            "labels, signatures and access lists",
            &["U33"],
            Tar::new()
                .pax(&[
                    ("SCHILY.xattr.security.selinux", b"system_u:object_r:shadow_t:s0"),
                    ("SCHILY.xattr.security.ima", b"\x03\x02"),
                    ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0"),
                    ("SCHILY.xattr.user.kept", b"1"),
                    ("RHT.security.selinux", b"x"),
                    ("LIBARCHIVE.xattr.user.other", b"MQ"),
                ])
                .file("x", "1"),
            harmless(&["f 644 0:0 x 1 user.kept=31"]),
        ),
        tar(
            "70 kB of attributes",
            &["U33"],
            Tar::new().pax(&[("SCHILY.xattr.user.big", &big)]).file("x", ""),
            layer(""),
        ),
        tar(
            "an attribute without a name",
            &["U33"],
            Tar::new().pax(&[("SCHILY.xattr.user.", b"1")]).file("x", ""),
            layer(""),
        ),
    ]
}

fn raw(
    name: &'static str,
    row: super::Row,
    tar: &[u8],
    bytes: Vec<u8>,
    packing: Packing,
    verdict: super::Verdict,
) -> Hostile {
    let packed = Packed { packing, diff_id: digest(tar), digest: digest(&bytes), bytes };
    case(name, &[row], verdict, move |base| base.layer(packed.clone()).build())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    Packed::new(bytes, Packing::Gzip).bytes
}

fn packings() -> Vec<Hostile> {
    // Each of its own, so that none is there already when another is looked at.
    let plain = |text: &str| Tar::new().file("a", text).end();
    let zstd = |tar: &[u8]| Packed::new(tar, Packing::Zstd).bytes;
    let skippable = |length: u32| [&[0x50, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), &[7; 16]].concat();
    // RFC 8878: magic, a frame header with a window of 2 GiB, one last raw block of one byte.
    let wide = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x09, 0x00, 0x00, b'x'];
    let (first, second) = (Tar::new().file("a", "1").cut(), Tar::new().file("b", "2").end());
    let members = [gzip(&first), gzip(&second)].concat();
    let both = harmless(&["f 644 0:0 a 1", "f 644 0:0 b 2"]);
    let mut all = vec![raw("two gzip members", "U28", &[first, second].concat(), members, Packing::Gzip, both)];
    let mut add = |name, row, text: &str, pack: &dyn Fn(&[u8]) -> Vec<u8>, packing, verdict| {
        let tar = plain(text);
        let bytes = pack(&tar);
        all.push(raw(name, row, &tar, bytes, packing, verdict));
    };
    let garbage = |tar: &[u8]| [gzip(tar), b"garbage".to_vec()].concat();
    add("garbage behind a gzip member", "U28", "2", &garbage, Packing::Gzip, layer(""));
    let short = |tar: &[u8]| gzip(tar).split_last_chunk::<6>().map_or(Vec::new(), |(head, _)| head.to_vec());
    add("a gzip member cut short", "U28", "3", &short, Packing::Gzip, layer(""));
    let wrong_sum = |tar: &[u8]| {
        let mut bytes = gzip(tar);
        let at = bytes.len() - 6;
        bytes[at] ^= 1;
        bytes
    };
    add("a gzip member with a wrong sum", "U28", "4", &wrong_sum, Packing::Gzip, layer(""));
    let skipped = |tar: &[u8]| [zstd(tar), skippable(16)].concat();
    add("a zstd frame, then one to skip", "U28", "5", &skipped, Packing::Zstd, harmless(&["f 644 0:0 a 5"]));
    let skipped = |tar: &[u8]| [skippable(16), zstd(tar)].concat();
    add("a frame to skip, then a zstd frame", "U28", "6", &skipped, Packing::Zstd, layer("the bytes are"));
    let skipped = |tar: &[u8]| [zstd(tar), skippable(u32::MAX)].concat();
    add("a frame to skip of four GiB", "U28", "7", &skipped, Packing::Zstd, layer(""));
    add("zstd under the name of gzip", "R8", "8", &zstd, Packing::Gzip, layer("the media type says"));
    add("gzip under the name of tar", "R8", "9", &gzip, Packing::Plain, layer("the media type says"));
    all.push(raw("a zstd window of two GiB", "U28", b"x", wide, Packing::Zstd, layer("")));
    let twice = gzip(&plain("10"));
    let again = gzip(&twice);
    let inside = layer("the tar stream ends inside a header");
    all.push(raw("two layers of gzip", "R8", &twice, again, Packing::Gzip, inside));
    all
}

/// Packed as small as can be.
fn tight(tar: &[u8], packing: Packing) -> Packed {
    let mut packed = Packed::new(tar, packing);
    if packing == Packing::Gzip {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.bytes = gzip.write_all(tar).and_then(|()| gzip.finish()).expect("a Vec takes everything");
        packed.digest = digest(&packed.bytes);
    }
    packed
}

fn bombs() -> Vec<Hostile> {
    /// More than the 64 MiB after which the ratio counts.
    const MIBS: u64 = 100;
    let zeros = || {
        let mut header = Tar::header(EntryType::Regular, b"zero", b"", MIBS << 20, 0o644);
        header.set_cksum();
        let mut tar = header.as_bytes().to_vec();
        tar.resize(tar.len() + (usize::try_from(MIBS).expect("fits") << 20), 0);
        tar
    };
    let bomb = |name, packing: Packing| {
        case(name, &["U28"], layer("more than 200:1"), move |base| base.layer(tight(&zeros(), packing)).build())
    };
    vec![bomb("100 MiB of nothing in gzip", Packing::Gzip), bomb("100 MiB of nothing in zstd", Packing::Zstd)]
}
