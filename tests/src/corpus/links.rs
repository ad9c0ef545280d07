//! Names and links that want to be somewhere else: climbing names, links to write through, hard links, whiteouts.

use super::Update::{Fails, Serves};
use super::{Hostile, case, harmless, layer, tar, then};
use crate::harness::image::{Packed, Packing};
use crate::harness::tar::Tar;
use tar::EntryType;

/// A file every base has that is worth having.
const OUTSIDE: &str = "/etc/shadow";

pub(super) fn cases() -> Vec<Hostile> {
    [names(), through(), hard(), whiteouts(), twice()].into_iter().flatten().collect()
}

fn names() -> Vec<Hostile> {
    let climbs = || layer("climbs out of the root");
    vec![
        tar("a file above the root", &["U19"], Tar::new().file("../sentinel", "x"), climbs()),
        tar("a file above the root by a detour", &["U19"], Tar::new().file("a/../../sentinel", "x"), climbs()),
        tar("an absolute name above the root", &["U19"], Tar::new().file("/../../sentinel", "x"), climbs()),
        tar("the folder above the root", &["U19", "U22"], Tar::new().dir("..", 0o777), climbs()),
        tar("a link above the root", &["U19"], Tar::new().symlink("../../x", "/etc"), climbs()),
        tar("a FIFO above the root", &["U19"], Tar::new().of(EntryType::Fifo, "../fifo"), climbs()),
        tar("a long name above the root", &["U19"], Tar::new().long(b'L', b"a/../../x").file("a", ""), climbs()),
        tar("a PAX name above the root", &["U19"], Tar::new().pax(&[("path", b"../x")]).file("a", ""), climbs()),
        tar(
            "a ustar prefix above the root",
            &["U19"],
            {
                let mut header = Tar::header(EntryType::Regular, b"x", b"", 0, 0o644);
                header.as_mut_bytes()[257..265].copy_from_slice(b"ustar\x0000");
                header.as_mut_bytes()[345..350].copy_from_slice(b"../..");
                Tar::new().raw(header, b"")
            },
            climbs(),
        ),
        tar(
            "absolute names are below the root",
            &["U19"],
            Tar::new().dir("/etc/", 0o755).file("//etc/./planted", "1"),
            harmless(&["d 755 0:0 etc", "f 644 0:0 etc/planted 1"]),
        ),
        tar(
            "the root as a link",
            &["U19", "U37"],
            Tar::new().symlink("./", "/etc"),
            layer("the root must be a folder"),
        ),
        tar("the root as a file", &["U19", "U37"], Tar::new().file(".", "x"), layer("the root must be a folder")),
        tar(
            "names with control characters",
            &["U36"],
            Tar::new().file("a\nb\x1b[31m\x07", "1").symlink("\x1b]0;title\x07", "\r\n"),
            harmless(&["l 777 0:0 \\u{1b}]0;title\\u{7} -> \\r\\n", "f 644 0:0 a\\nb\\u{1b}[31m\\u{7} 1"]),
        ),
        tar(
            "control characters in a name that is refused",
            &["U36"],
            Tar::new().file("\x1b[2J\n\u{202e}/../../x", "x"),
            climbs(),
        ),
        tar(
            "a name that is no text",
            &["U36"],
            Tar::new().raw(Tar::header(EntryType::Regular, b"\xff\xfe\xc0\x80", b"", 0, 0o644), b""),
            harmless(&["f 644 0:0 \\xff\\xfe\\xc0\\x80"]),
        ),
        tar(
            "a NUL in a PAX name",
            &["U36", "U26"],
            Tar::new().pax(&[("path", b"a\0b")]).file("x", ""),
            layer("NUL byte"),
        ),
        tar(
            "a component of 256 bytes",
            &["U29"],
            Tar::new().pax(&[("path", &[b'n'; 256])]).file("x", ""),
            layer("256 bytes"),
        ),
        tar(
            "a name of 4200 bytes",
            &["U29"],
            Tar::new().pax(&[("path", &b"n/".repeat(2100))]).file("x", ""),
            layer(""),
        ),
        tar(
            "257 folders deep",
            &["U29"],
            Tar::new().pax(&[("path", &[b"d/".repeat(256), b"x".to_vec()].concat())]).file("x", ""),
            layer("257 folders deep"),
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn through() -> Vec<Hostile> {
    let planted = |name: &'static str, target: &'static str, tree: &[&'static str]| {
        let tar_of = Tar::new().symlink("out", target).file("out/planted", "x").file("out/sentinel", "x");
        tar(name, &["U20"], tar_of, harmless(tree))
    };
    let far = ["l 777 0:0 out -> ../../../../../../../..", "f 644 0:0 planted x", "f 644 0:0 sentinel x"];
    let chain = (0..45).fold(Tar::new(), |tar, n| tar.symlink(&format!("l{n}"), &format!("l{}", n + 1)));
    vec![
        planted(
            "through a link to the root",
            "/",
            &["l 777 0:0 out -> /", "f 644 0:0 planted x", "f 644 0:0 sentinel x"],
        ),
        planted("through a link far up", "../../../../../../../..", &far),
        planted(
            "through a link to a folder of the root",
            "/srv/deep",
            &[
                "l 777 0:0 out -> /srv/deep",
                "d 755 0:0 srv",
                "d 755 0:0 srv/deep",
                "f 644 0:0 srv/deep/planted x",
                "f 644 0:0 srv/deep/sentinel x",
            ],
        ),
        planted(
            "through a link into /proc",
            "/proc/self/root/srv",
            &[
                "l 777 0:0 out -> /proc/self/root/srv",
                "d 755 0:0 proc",
                "d 755 0:0 proc/self",
                "d 755 0:0 proc/self/root",
                "d 755 0:0 proc/self/root/srv",
                "f 644 0:0 proc/self/root/srv/planted x",
                "f 644 0:0 proc/self/root/srv/sentinel x",
            ],
        ),
        planted(
            "through a link to where the state will be",
            "/sandbox/state",
            &[
                "l 777 0:0 out -> /sandbox/state",
                "d 755 0:0 sandbox",
                "d 755 0:0 sandbox/state",
                "f 644 0:0 sandbox/state/planted x",
                "f 644 0:0 sandbox/state/sentinel x",
            ],
        ),
        case(
            "through a link of a lower layer",
            &["U20", "U39"],
            harmless(&["d 755 0:0 srv", "f 644 0:0 srv/planted x", "f 644 0:0 up x"]),
            |base| {
                let lower = Tar::new().symlink("out", "/srv").symlink("far", "../../../..").end();
                let upper = Tar::new().file("out/planted", "x").file("far/up", "x").end();
                base.layer(Packed::new(&lower, Packing::Gzip)).layer(Packed::new(&upper, Packing::Gzip)).build()
            },
        ),
        case("through a loop of a lower layer", &["U20", "U39"], layer("links"), |base| {
            let lower = Tar::new().symlink("loop", "loop").end();
            let upper = Tar::new().file("loop/x", "1").end();
            base.layer(Packed::new(&lower, Packing::Gzip)).layer(Packed::new(&upper, Packing::Gzip)).build()
        }),
        case("one name by two ways", &["U39", "U37"], layer("also by way of"), |base| {
            let lower = Tar::new().dir("real", 0o755).symlink("way", "real").end();
            let upper = Tar::new().file("way/a", "1").file("real/a", "2").end();
            base.layer(Packed::new(&lower, Packing::Gzip)).layer(Packed::new(&upper, Packing::Gzip)).build()
        }),
        case("a way that is replaced after it was used", &["U39"], layer("replaced after"), |base| {
            let lower = Tar::new().dir("real", 0o755).symlink("way", "real").end();
            let upper = Tar::new().file("way/a", "1").symlink("way", "/etc").end();
            base.layer(Packed::new(&lower, Packing::Gzip)).layer(Packed::new(&upper, Packing::Gzip)).build()
        }),
        tar(
            "through two links that lead to each other",
            &["U20"],
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", ""),
            layer("links"),
        ),
        tar("through 45 links in a row", &["U20"], chain.file("l0/x", ""), layer("links")),
        tar(
            "a link with a target of 4096 bytes",
            &["U20", "U29"],
            Tar::new().pax(&[("linkpath", &b"a/".repeat(2048))]).symlink("l", "x"),
            layer("too long"),
        ),
        tar(
            "a NUL in a link's target",
            &["U20", "U26"],
            Tar::new().pax(&[("linkpath", b"/etc\0/x")]).symlink("l", "x"),
            layer("NUL byte"),
        ),
        tar(
            "a file in the place of a link to a file outside",
            &["U20", "U21"],
            Tar::new().symlink("x", OUTSIDE).file("x", "new"),
            harmless(&["f 644 0:0 x new"]),
        ),
        tar(
            "a folder for all over a link to /etc",
            &["U22"],
            Tar::new().symlink("srv", "/etc").owned(1000, 1000).dir("srv", 0o777),
            harmless(&["d 777 1000:1000 srv trusted.overlay.opaque=79"]),
        ),
        tar(
            "a folder for all over a link far up",
            &["U22"],
            Tar::new().symlink("srv", "../../../../..").owned(1000, 1000).dir("srv/", 0o7777),
            harmless(&["d 7777 1000:1000 srv trusted.overlay.opaque=79"]),
        ),
        tar(
            "a FIFO over a link to a file outside",
            &["U20", "U30"],
            Tar::new().symlink("x", OUTSIDE).of(EntryType::Fifo, "x"),
            harmless(&["p 644 0:0 x"]),
        ),
        tar(
            "a farm of links as package managers make it",
            &["U21"],
            Tar::new()
                .dir("srv", 0o755)
                .dir("srv/.pnpm", 0o755)
                .dir("srv/.pnpm/a@1", 0o755)
                .file("srv/.pnpm/a@1/index.js", "a")
                .symlink("srv/a", ".pnpm/a@1")
                .hardlink("srv/.pnpm/a@1/copy.js", "srv/a/index.js")
                .file("srv/a/late.js", "b"),
            harmless(&[
                "d 755 0:0 srv",
                "d 755 0:0 srv/.pnpm",
                "d 755 0:0 srv/.pnpm/a@1",
                "f 644 0:0 srv/.pnpm/a@1/copy.js a",
                "f 644 0:0 srv/.pnpm/a@1/index.js a = srv/.pnpm/a@1/copy.js",
                "f 644 0:0 srv/.pnpm/a@1/late.js b",
                "l 777 0:0 srv/a -> .pnpm/a@1",
            ]),
        ),
    ]
}

fn hard() -> Vec<Hostile> {
    let no_file = || layer("the target is no file of this layer or the ones below");
    vec![
        tar("a hard link to a file outside", &["U23"], Tar::new().hardlink("x", OUTSIDE), no_file()),
        tar(
            "a hard link above the root",
            &["U23", "U19"],
            Tar::new().hardlink("x", "../../etc/shadow"),
            layer("climbs"),
        ),
        tar("a hard link to a folder", &["U23"], Tar::new().dir("d", 0o755).hardlink("x", "d"), layer("not a file")),
        tar("a hard link to the root", &["U23"], Tar::new().hardlink("x", "/"), layer("the target is the root")),
        tar("a hard link to itself", &["U23"], Tar::new().file("x", "").hardlink("x", "x"), layer("a link to itself")),
        tar("hard links to each other", &["U23"], Tar::new().hardlink("a", "b").hardlink("b", "a"), no_file()),
        tar(
            "a hard link through a link to outside",
            &["U23", "U20"],
            Tar::new().symlink("l", "/outside").hardlink("x", "l/etc/passwd"),
            no_file(),
        ),
        tar(
            "a hard link to a link, and a file over it",
            &["U23"],
            Tar::new().symlink("l", OUTSIDE).hardlink("x", "l").file("x", "new"),
            harmless(&["l 777 0:0 l -> /etc/shadow", "f 644 0:0 x new"]),
        ),
        tar(
            "a hard link with a mode and owner of its own",
            &["U24"],
            Tar::new().file_mode("f", "1", 0o600).owned(7, 7).hardlink("h", "f"),
            harmless(&["f 600 0:0 f 1", "f 600 0:0 h 1 = f"]),
        ),
        tar(
            "a hard link to a whiteout's name",
            &["U23", "U25"],
            Tar::new().file(".wh.x", "").hardlink("y", ".wh.x"),
            no_file(),
        ),
        tar(
            "a hard link to what the layer hides",
            &["U23", "U25"],
            Tar::new().file("etc/.wh.passwd", "").hardlink("y", "etc/passwd"),
            layer("the target is not a file"),
        ),
    ]
}

fn whiteouts() -> Vec<Hostile> {
    let nothing = || layer("hides nothing");
    vec![
        tar("a whiteout of nothing", &["U25"], Tar::new().file(".wh.", ""), nothing()),
        tar("a whiteout of its folder", &["U25"], Tar::new().file("a/.wh..", ""), nothing()),
        tar("a whiteout of the folder above", &["U25"], Tar::new().file("a/.wh...", ""), nothing()),
        tar("a whiteout above the root", &["U25", "U19"], Tar::new().file("../../.wh.etc", ""), layer("climbs")),
        tar("a whiteout of a reserved name", &["U25"], Tar::new().file(".wh..wh.plnk", ""), layer("reserved")),
        tar("a whiteout that is a folder", &["U25"], Tar::new().dir(".wh.d", 0o755), layer("a plain file")),
        tar("a whiteout that is a link", &["U25"], Tar::new().symlink(".wh.s", "/"), layer("a plain file")),
        tar("a whiteout as a folder of others", &["U25"], Tar::new().file(".wh.d/x", ""), layer("as a folder")),
        tar(
            "a whiteout through a link",
            &["U25", "U20"],
            Tar::new().symlink("l", "/srv").file("l/.wh.gone", ""),
            then(&["l 777 0:0 l -> /srv"], Serves),
        ),
        tar(
            "an opaque mark through a link to the state",
            &["U25", "U20"],
            Tar::new().symlink("l", "/sandbox/state").file("l/.wh..wh..opq", ""),
            harmless(&["l 777 0:0 l -> /sandbox/state"]),
        ),
        tar(
            "an opaque root",
            &["U25"],
            Tar::new().file(".wh..wh..opq", "").file("left", "1"),
            then(&["f 644 0:0 left 1"], Fails("user-invalid", "no such user")),
        ),
        tar(
            "a whiteout of the program's folder",
            &["U25"],
            Tar::new().file(".wh.app", ""),
            then(&["c 0 0:0 app 0:0"], Fails("program-unusable", "cannot be entered")),
        ),
        tar(
            "whiteouts of every mount point",
            &["U25", "S41"],
            Tar::new()
                .file(".wh.proc", "")
                .file(".wh.dev", "")
                .file(".wh.tmp", "")
                .file(".wh.run", "")
                .file(".wh.sys", ""),
            harmless(&["c 0 0:0 dev 0:0", "c 0 0:0 proc 0:0", "c 0 0:0 run 0:0", "c 0 0:0 sys 0:0", "c 0 0:0 tmp 0:0"]),
        ),
        tar(
            "a whiteout after the entry of its name",
            &["U25"],
            Tar::new().dir("d", 0o750).file("d/x", "1").file(".wh.d", ""),
            harmless(&["d 750 0:0 d trusted.overlay.opaque=79", "f 644 0:0 d/x 1"]),
        ),
    ]
}

fn twice() -> Vec<Hostile> {
    vec![
        tar(
            "a name that is a folder, a file, a link and a FIFO in turn",
            &["U37"],
            Tar::new()
                .dir("x", 0o755)
                .file("x/inner", "1")
                .file("x", "file")
                .symlink("x", "/etc")
                .of(EntryType::Fifo, "x")
                .dir("x", 0o700)
                .file("x/last", "2"),
            harmless(&["d 700 0:0 x trusted.overlay.opaque=79", "f 644 0:0 x/last 2"]),
        ),
        tar("a file below a file", &["U37"], Tar::new().file("f", "1").file("f/below", "2"), layer("not a folder")),
        tar(
            "names that differ in case",
            &["U37"],
            Tar::new().file("Name", "1").file("name", "2").symlink("NAME", "/"),
            harmless(&["l 777 0:0 NAME -> /", "f 644 0:0 Name 1", "f 644 0:0 name 2"]),
        ),
        tar(
            "a link that is replaced is no way any more",
            &["U37", "U20"],
            Tar::new().dir("a", 0o755).symlink("way", "a").file("way/one", "1").dir("way", 0o755).file("way/two", "2"),
            harmless(&[
                "d 755 0:0 a",
                "f 644 0:0 a/one 1",
                "d 755 0:0 way trusted.overlay.opaque=79",
                "f 644 0:0 way/two 2",
            ]),
        ),
    ]
}
