//! Users that would be root, and files of users that would be anything else.

use serde_json::json;
use tar::EntryType;

use super::Update::{Fails, Serves};
use super::{Hostile, Update, configured, document, then};
use crate::harness::tar::Tar;

const INVALID: &str = "user-invalid";

pub(super) fn cases() -> Vec<Hostile> {
    [names(), files()].into_iter().flatten().collect()
}

fn user(name: &'static str, user: &str, update: Update) -> Hostile {
    configured(name, &["U34", "S117"], Tar::new().file("x", "1"), "User", json!(user), then(&["f 644 0:0 x 1"], update))
}

fn names() -> Vec<Hostile> {
    let root = Fails(INVALID, "would run as root");
    let none = Fails(INVALID, "is not one");
    vec![
        user("user 4294967295", "4294967295", none),
        user("user 4294967296", "4294967296", none),
        user("user -1", "-1", none),
        user("group -1", "1000:-1", none),
        user("group 4294967295", "1000:4294967295", none),
        user("user 0", "0", root),
        user("user 0 with many digits", "0000000000", root),
        user("user root", "root", root),
        user("user root and group 1000", "root:1000", root),
        user("user root and a group that is no name", "root:x:0", none),
        user("user 0x0", "0x0", Fails(INVALID, "")),
        user("a user with a slash", "../etc", none),
        user("a user with control characters", "app\n\u{202e}\u{1b}[2J", none),
        configured(
            "a user of 5000 letters",
            &["U34", "S117"],
            Tar::new().file("x", "1"),
            "User",
            json!("a".repeat(5000)),
            document("its User has 5000 bytes, more than 256"),
        ),
        user("a user of a colon", ":", none),
        user("group 0", "1000:0", Fails("policy-wider", "group 0")),
        user("a user nobody knows", "1234567:1234567", Fails("policy-wider", "group 1234567")),
    ]
}

fn file(name: &'static str, tar_of: Tar, user: &str, tree: &[&str], update: Update) -> Hostile {
    configured(name, &["S117"], tar_of, "User", json!(user), then(tree, update))
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn files() -> Vec<Hostile> {
    let etc = || Tar::new().dir("etc", 0o755);
    let big = "x".repeat(2 << 20);
    vec![
        file(
            "root under another name",
            etc().file("etc/passwd", "toor:x:0:0::/:/bin/sh\n"),
            "toor",
            &["d 755 0:0 etc", "f 644 0:0 etc/passwd toor:x:0:0::/:/bin/sh\\n"],
            Fails(INVALID, "would run as root"),
        ),
        file(
            "root under a name with a plus",
            etc().file("etc/passwd", "app:x:+0:+0::/:\n"),
            "app",
            &["d 755 0:0 etc", "f 644 0:0 etc/passwd app:x:+0:+0::/:\\n"],
            Fails(INVALID, ""),
        ),
        file(
            "a user of -1 in passwd",
            etc().file("etc/passwd", "app:x:4294967295:4294967295::/:\n"),
            "app",
            &["d 755 0:0 etc", "f 644 0:0 etc/passwd app:x:4294967295:4294967295::/:\\n"],
            Fails(INVALID, ""),
        ),
        file(
            "a group of -1 in passwd",
            etc().file("etc/passwd", "app:x:1000:4294967295::/:\n"),
            "app",
            &["d 755 0:0 etc", "f 644 0:0 etc/passwd app:x:1000:4294967295::/:\\n"],
            Fails(INVALID, ""),
        ),
        file(
            "group 0 by way of passwd",
            etc().file("etc/passwd", "app:x:1000:0::/:\n"),
            "app",
            &["d 755 0:0 etc", "f 644 0:0 etc/passwd app:x:1000:0::/:\\n"],
            Fails("policy-wider", "group 0"),
        ),
        file(
            "group 0 by way of membership",
            etc().file("etc/group", "root:x:0:app\nmax:x:4294967295:app\n"),
            "app",
            &["d 755 0:0 etc", "f 644 0:0 etc/group root:x:0:app\\nmax:x:4294967295:app\\n"],
            Serves,
        ),
        file(
            "passwd is a FIFO",
            etc().of(EntryType::Fifo, "etc/passwd"),
            "app",
            &["d 755 0:0 etc", "p 644 0:0 etc/passwd"],
            Fails(INVALID, "is not a regular file in the image"),
        ),
        file(
            "group is a FIFO",
            etc().of(EntryType::Fifo, "etc/group"),
            "1000",
            &["d 755 0:0 etc", "p 644 0:0 etc/group"],
            Fails(INVALID, "is not a regular file in the image"),
        ),
        file(
            "passwd is a folder",
            etc().dir("etc/passwd", 0o755),
            "app",
            &["d 755 0:0 etc", "d 755 0:0 etc/passwd"],
            Fails(INVALID, "is not a regular file in the image"),
        ),
        file(
            "passwd is a link to the supervisor's",
            etc().symlink("etc/passwd", "../../../../../proc/1/root/etc/passwd"),
            "app",
            &["d 755 0:0 etc", "l 777 0:0 etc/passwd -> ../../../../../proc/1/root/etc/passwd"],
            Fails(INVALID, "no such user"),
        ),
        file(
            "passwd is a link into the state",
            etc().symlink("etc/passwd", "/sandbox/state/passwd"),
            "root",
            &["d 755 0:0 etc", "l 777 0:0 etc/passwd -> /sandbox/state/passwd"],
            Fails(INVALID, "no such user"),
        ),
        file(
            "passwd is a link to itself",
            etc().symlink("etc/passwd", "passwd"),
            "app",
            &["d 755 0:0 etc", "l 777 0:0 etc/passwd -> passwd"],
            Fails(INVALID, ""),
        ),
        file(
            "passwd of two MiB",
            etc().file("etc/passwd", &big),
            "app",
            &["d 755 0:0 etc", "f 644 0:0 etc/passwd 2097152 bytes"],
            Fails(INVALID, "is larger than 1 MiB"),
        ),
        file(
            "passwd with NULs and no lines",
            etc().file("etc/passwd", "app\0:x:1000:1000\0root:x:0:0"),
            "app",
            &["d 755 0:0 etc", "f 644 0:0 etc/passwd app\\0:x:1000:1000\\0root:x:0:0"],
            Fails(INVALID, "no such user"),
        ),
        file(
            "a home that is elsewhere",
            etc().file("etc/passwd", "app:x:1000:1000::../../proc/1/root\u{1b}[2J:/bin/sh\n"),
            "app",
            &["d 755 0:0 etc", "f 644 0:0 etc/passwd app:x:1000:1000::../../proc/1/root\\u{1b}[2J:/bin/sh\\n"],
            Serves,
        ),
    ]
}
