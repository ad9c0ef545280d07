//! Landlock, right by right, in a place that may be read, in one that no policy names, and in two that may be written; and
//! what Landlock does not restrict, which owner and mode must. Every file here belongs to the workload's user, so that
//! Landlock is the only wall.
//!
//! In: the folders of the image (`aid`). Out: EACCES where the policy has no such right. Must not: leave anything changed;
//! what was made is removed again where it could be made.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    os::unix::net::UnixListener,
    path::PathBuf,
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, mknodat, renameat_with};

use crate::{
    aid::{READABLE, STATE, TMP, UNLISTED, n, open},
    probe::{Answer, Probe, probe},
    raw::{Arg, call},
};

fn at(folder: &str, name: &str) -> PathBuf {
    PathBuf::from(folder).join(name)
}

/// Makes what the writable places lack: `file`, `folder`, `link`, as the image has them in the others.
fn furnished(folder: &str) -> String {
    let place = if folder == READABLE || folder == UNLISTED { folder.to_owned() } else { format!("{folder}/box") };
    if !place.starts_with("/app") && !place.starts_with("/data") {
        let _ = fs::DirBuilder::new().recursive(true).mode(0o755).create(format!("{place}/folder"));
        let _ = fs::write(format!("{place}/file"), "text\n");
        let _ = symlink("file", format!("{place}/link"));
    }
    place
}

fn read(folder: &str) -> Answer {
    fs::read(at(&furnished(folder), "file")).into()
}

fn list(folder: &str) -> Answer {
    fs::read_dir(furnished(folder)).into()
}

fn append(folder: &str) -> Answer {
    fs::OpenOptions::new().append(true).open(at(&furnished(folder), "file")).into()
}

fn truncate(folder: &str) -> Answer {
    let file = at(&furnished(folder), "file");
    let path = std::ffi::CString::new(file.to_string_lossy().into_owned()).unwrap_or_default();
    let answer = call(libc::SYS_truncate, &mut [Arg::S(&path), n(5)]);
    answer.into()
}

fn open_truncating(folder: &str) -> Answer {
    let path = at(&furnished(folder), "file");
    open(&path.to_string_lossy(), OFlags::RDONLY | OFlags::TRUNC).into()
}

fn create(folder: &str) -> Answer {
    let path = at(&furnished(folder), "new");
    let answer = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let _ = fs::remove_file(path);
    answer.into()
}

fn unnamed(folder: &str) -> Answer {
    open(&furnished(folder), OFlags::TMPFILE | OFlags::WRONLY).into()
}

fn make_folder(folder: &str) -> Answer {
    let path = at(&furnished(folder), "new-folder");
    let answer = fs::create_dir(&path);
    let _ = fs::remove_dir(path);
    answer.into()
}

/// Removed where it may be, and made again.
fn remove_file(folder: &str) -> Answer {
    let path = at(&furnished(folder), "file");
    let answer = fs::remove_file(&path);
    if answer.is_ok() {
        let _ = fs::write(path, "text\n");
    }
    answer.into()
}

fn remove_folder(folder: &str) -> Answer {
    let path = at(&furnished(folder), "folder");
    let answer = fs::remove_dir(&path);
    if answer.is_ok() {
        let _ = fs::create_dir(path);
    }
    answer.into()
}

fn make_link(folder: &str) -> Answer {
    let path = at(&furnished(folder), "new-link");
    let answer = symlink("/etc/passwd", &path);
    let _ = fs::remove_file(path);
    answer.into()
}

fn make_hard_link(folder: &str) -> Answer {
    let place = furnished(folder);
    let path = at(&place, "hard");
    let answer = fs::hard_link(at(&place, "file"), &path);
    let _ = fs::remove_file(path);
    answer.into()
}

fn node(folder: &str, kind: FileType, device: u64) -> Answer {
    let path = at(&furnished(folder), "node");
    let answer = mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), device);
    let _ = fs::remove_file(path);
    answer.into()
}

/// In the one place of `/dev` that may be written.
fn device_by_name() -> Answer {
    let answer =
        mknodat(CWD, "/dev/shm/sda", FileType::BlockDevice, Mode::from_raw_mode(0o600), rustix::fs::makedev(8, 0));
    let _ = fs::remove_file("/dev/shm/sda");
    answer.into()
}

/// A valid one: revision 2, CAP_CHOWN.
fn capability() -> Answer {
    let path = at(&furnished(STATE), "file");
    let mut value = [0; 20];
    value[..8].copy_from_slice(&[1, 0, 0, 2, 1, 0, 0, 0]);
    let answer = rustix::fs::setxattr(&path, "security.capability", &value, rustix::fs::XattrFlags::empty());
    let _ = rustix::fs::removexattr(path, "security.capability");
    answer.into()
}

fn fifo(folder: &str) -> Answer {
    node(folder, FileType::Fifo, 0)
}

fn character(folder: &str) -> Answer {
    node(folder, FileType::CharacterDevice, rustix::fs::makedev(1, 3))
}

fn block(folder: &str) -> Answer {
    node(folder, FileType::BlockDevice, rustix::fs::makedev(8, 0))
}

fn socket(folder: &str) -> Answer {
    let path = at(&furnished(folder), "socket");
    let answer = UnixListener::bind(&path);
    let _ = fs::remove_file(path);
    answer.into()
}

fn rename(folder: &str) -> Answer {
    let place = furnished(folder);
    let answer = fs::rename(at(&place, "file"), at(&place, "renamed"));
    let _ = fs::rename(at(&place, "renamed"), at(&place, "file"));
    answer.into()
}

fn across(from: &str, to: &str) -> Answer {
    let (from, to) = (at(&furnished(from), "file"), at(&furnished(to), "moved"));
    let answer = fs::rename(&from, &to);
    let _ = fs::rename(to, from);
    answer.into()
}

fn link_across(from: &str, to: &str) -> Answer {
    let (from, to) = (at(&furnished(from), "file"), at(&furnished(to), "linked"));
    let answer = fs::hard_link(from, &to);
    let _ = fs::remove_file(to);
    answer.into()
}

fn execute(folder: &str) -> Answer {
    let path = at(&furnished(folder), "program");
    if folder == STATE || folder == TMP {
        let _ = fs::copy("/proc/self/exe", &path);
    }
    let answer = std::process::Command::new(&path).arg("--nothing").status();
    if folder == STATE || folder == TMP {
        let _ = fs::remove_file(path);
    }
    answer.into()
}

fn times(folder: &str) -> Answer {
    let path = at(&furnished(folder), "file");
    rustix::fs::utimensat(CWD, &path, &now(), AtFlags::empty()).into()
}

fn now() -> rustix::fs::Timestamps {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    rustix::fs::Timestamps { last_access: now, last_modification: now }
}

fn mode(folder: &str, bits: u32) -> Answer {
    let path = at(&furnished(folder), "file");
    let answer = fs::set_permissions(&path, fs::Permissions::from_mode(bits));
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o666));
    answer.into()
}

fn give_away(folder: &str) -> Answer {
    std::os::unix::fs::chown(at(&furnished(folder), "file"), Some(0), None).into()
}

fn attribute(folder: &str, name: &str) -> Answer {
    let path = at(&furnished(folder), "file");
    let answer = rustix::fs::setxattr(&path, name, b"value", rustix::fs::XattrFlags::empty());
    let _ = rustix::fs::removexattr(path, name);
    answer.into()
}

fn look(folder: &str) -> Answer {
    fs::metadata(at(&furnished(folder), "file")).into()
}

fn enter(folder: &str) -> Answer {
    rustix::process::chdir(furnished(folder).as_str()).into()
}

fn path_only(folder: &str) -> Answer {
    open(&at(&furnished(folder), "file").to_string_lossy(), OFlags::PATH).into()
}

fn read_link(folder: &str) -> Answer {
    fs::read_link(at(&furnished(folder), "link")).into()
}

fn watch(folder: &str) -> Answer {
    watched(&furnished(folder)).into()
}

fn watched(path: &str) -> rustix::io::Result<i32> {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    add_watch(init(CreateFlags::CLOEXEC)?, path, WatchFlags::MODIFY)
}

/// A link in a place that may be written leads to one that may not be read.
fn by_link() -> Answer {
    let place = furnished(STATE);
    let path = at(&place, "out");
    let _ = symlink(format!("{UNLISTED}/file"), &path);
    let answer = fs::read(&path);
    let _ = fs::remove_file(path);
    answer.into()
}

/// A descriptor with O_PATH, opened again for reading by its number.
fn reopened() -> Answer {
    match open(&format!("{UNLISTED}/file"), OFlags::PATH) {
        Ok(fd) => {
            let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
            fs::read(format!("/proc/self/fd/{number}")).into()
        }
        other => other.into(),
    }
}

/// `..` from a folder that may be entered but not read.
fn upwards() -> Answer {
    match rustix::process::chdir(UNLISTED) {
        Ok(()) => fs::read("file").into(),
        other => other.into(),
    }
}

fn exchange() -> Answer {
    let (a, b) = (at(READABLE, "file"), at(UNLISTED, "file"));
    let answer = renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE);
    if answer.is_ok() {
        let _ = renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE);
    }
    answer.into()
}

/// An ioctl of a device the policy lets read: needs the right to use device ioctls.
fn device_ioctl() -> Answer {
    const RNDGETENTCNT: i64 = 0x8004_5200;
    use std::os::fd::AsRawFd as _;
    match open("/dev/urandom", OFlags::RDONLY) {
        Ok(fd) => call(libc::SYS_ioctl, &mut [n(fd.as_raw_fd().into()), n(RNDGETENTCNT), Arg::Out(&mut [0; 4])]).into(),
        other => other.into(),
    }
}

fn write_to(path: &str) -> Answer {
    let answer: io::Result<fs::File> = fs::OpenOptions::new().append(true).open(path);
    answer.into()
}

macro_rules! everywhere {
    ($($name:literal $function:ident $why:literal)*) => {
        &[$(
            probe(concat!("L.readable-", $name), $why, || $function(READABLE)),
            probe(concat!("L.unlisted-", $name), $why, || $function(UNLISTED)),
            probe(concat!("L.state-", $name), $why, || $function(STATE)),
            probe(concat!("L.tmp-", $name), $why, || $function(TMP)),
        )*
            probe("L.device-nodes-by-name", "made in none: a node is a device however it is called", device_by_name),
            probe("L.unlisted-by-link", "a link of the workload's own must lead nowhere new", by_link),
            probe("L.unlisted-by-descriptor", "a descriptor without rights must not gain them by its number", reopened),
            probe("L.unlisted-from-within", "entering a folder must not be a way to read it", upwards),
            probe("L.move-readable-to-state", "carries the program out of its read-only place", || across(READABLE, STATE)),
            probe("L.move-state-to-readable", "puts a file beside the program", || across(STATE, READABLE)),
            probe("L.move-readable-to-unlisted", "within one mount: where only the right to refer decides", || across(READABLE, UNLISTED)),
            probe("L.move-unlisted-to-readable", "likewise, the other way: would make a secret readable", || across(UNLISTED, READABLE)),
            probe("L.link-unlisted-to-readable", "a second name in a readable place", || link_across(UNLISTED, READABLE)),
            probe("L.link-readable-to-unlisted", "likewise", || link_across(READABLE, UNLISTED)),
            probe("L.exchange-readable-and-unlisted", "both at once", exchange),
            probe("L.move-tmp-to-state", "two mounts", || across(TMP, STATE)),
            probe("L.ioctl-of-a-readable-device", "device ioctls are a right of their own", device_ioctl),
            probe("L.mode-set-id-in-state", "accepted: set-id bits mean nothing on a nosuid mount", || mode(STATE, 0o4755)),
            probe("L.attribute-capability", "file capabilities need a capability", capability),
            probe("L.attribute-trusted", "attributes of the overlay need a capability", || attribute(STATE, "trusted.overlay.opaque")),
            probe("L.write-passwd", "the image's users", || write_to("/etc/passwd")),
            probe("L.write-program", "the program that runs: owner, mode, Landlock, ETXTBSY", || write_to("/app/molt-testd")),
            probe("L.write-binary", "what every program is", || write_to("/bin/busybox")),
            probe("L.write-resolv-conf", "the container's own, carried", || write_to("/etc/resolv.conf")),
            probe("L.make-in-root", "a new name in /", || make_in("/")),
            probe("L.make-in-etc", "a new name in /etc: ld.so.preload, for one", || make_in("/etc")),
            probe("L.make-in-app", "a new program beside the one that runs", || make_in("/app")),
        ]
    };
}

fn make_in(folder: &str) -> Answer {
    let path = at(folder, "new");
    let answer = fs::write(&path, "");
    let _ = fs::remove_file(path);
    answer.into()
}

fn user_attribute(folder: &str) -> Answer {
    attribute(folder, "user.test")
}

fn own_mode(folder: &str) -> Answer {
    mode(folder, 0o600)
}

/// Every probe of this file.
pub(crate) const PROBES: &[Probe] = everywhere! {
    "read" read "read_file"
    "list" list "read_dir"
    "execute" execute "execute"
    "append" append "write_file"
    "truncate" truncate "truncate: before ABI 3 a file that may only be read can be emptied"
    "open-truncating" open_truncating "truncate, by open"
    "create" create "make_reg"
    "unnamed" unnamed "make_reg, without a name"
    "make-folder" make_folder "make_dir"
    "remove-file" remove_file "remove_file"
    "remove-folder" remove_folder "remove_dir"
    "make-link" make_link "make_sym"
    "make-hard-link" make_hard_link "make_reg, by a second name"
    "make-fifo" fifo "make_fifo"
    "make-socket" socket "make_sock"
    "make-character-device" character "make_char, and CAP_MKNOD"
    "make-block-device" block "make_block, and CAP_MKNOD: the host's disk"
    "rename" rename "remove_file and make_reg"
    "look" look "accepted: Landlock does not restrict stat; what must not be seen must not be there"
    "enter" enter "accepted: Landlock does not restrict chdir"
    "path-only" path_only "accepted: Landlock does not restrict O_PATH, which reads nothing"
    "read-link" read_link "accepted: Landlock does not restrict readlink"
    "watch" watch "accepted: Landlock does not restrict inotify"
    "mode" own_mode "accepted: Landlock does not restrict chmod by the owner; the workload owns nothing outside of its places"
    "give-away" give_away "CAP_CHOWN"
    "times" times "accepted: Landlock does not restrict utimensat by the owner"
    "attribute" user_attribute "accepted: Landlock does not restrict setxattr by the owner"
};
