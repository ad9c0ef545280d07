//! The overlay mount of one generation.
//!
//! In: layer folders top first, upper and work folder, all by descriptor. Out: a detached mount, nosuid,nodev; on a full
//! disk or one that takes no writes, of what ran before, a read-only one. Must not: follow redirects or metacopy marks, which a hostile layer could
//! carry.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use molt_core::{code::Code, generation::Record, ids::Generation};
use molt_oci::XattrNamespace;
use rustix::{
    fs::{Mode, OFlags, StatVfsMountFlags, fgetxattr, fstatvfs, mkdirat, openat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};

use super::{Parts, RootError, compat};
use crate::store::{Store, takes_no_writes};

/// Mounts it, and why it could be had read-only alone, if it could. overlayfs makes and removes a few names in its work
/// folder when it is mounted, and cannot where there is no room for them, or nothing is written at all. What `ran` before is
/// then shown as it was left: its own upper folder is the topmost of those that are only read.
pub(super) fn mount(
    store: &Store,
    parts: &Parts,
    record: &Record,
    ran: bool,
) -> Result<(OwnedFd, Option<&'static str>), RootError> {
    let number = record.generation;
    let fail = |step, why: String, code| RootError::new(step, format!("generation {number}"), why, code);
    let folder = store.folder(number).map_err(|error| fail("open", error.to_string(), Code::StoreUnusable))?;
    let mut lowers: Vec<OwnedFd> = Vec::new();
    if number == Generation(0) {
        lowers.push(compat::own_root(parts)?);
    }
    let mut seen = HashSet::new();
    for layer in &record.layers {
        // overlayfs takes a folder once. The same layer further down shows nothing that it does not show on top.
        if !seen.insert(&layer.folder) {
            continue;
        }
        let id = layer.folder.parse().map_err(|error| fail("find", format!("{error}"), Code::StoreUnusable))?;
        let layer = store.content.layer(&id).map_err(|error| fail("open", error.to_string(), Code::StoreUnusable))?;
        let hides = hides_all_below(&layer, store.content.xattrs())
            .map_err(|errno| fail("read", format!("{id}: {errno}"), Code::StoreUnusable))?;
        lowers.push(layer);
        if hides {
            break;
        }
    }
    let open = |name: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&folder, name, flags, Mode::empty())
            .map_err(|errno| fail("open", format!("{name}: {errno}"), Code::StoreUnusable))
    };
    if lowers.is_empty() {
        // An image without layers is an empty root; overlayfs wants one lower all the same.
        match mkdirat(&folder, "empty", Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => lowers.push(open("empty")?),
            Err(errno) => return Err(fail("make", errno.to_string(), Code::StoreUnusable)),
        }
    }
    let (upper, work) = (open("upper")?, open("work")?);
    let xattrs = store.content.xattrs();
    let code = |errno| if full(errno) { Code::NoSpace } else { Code::StoreUnusable };
    let failed = |(step, errno): (_, Errno)| fail(step, errno.to_string(), code(errno));
    match build(&lowers, Some((&upper, &work)), xattrs) {
        Err((_, errno)) if ran && (full(errno) || takes_no_writes(&folder)) => {
            lowers.insert(0, upper);
            build(&lowers, None, xattrs).map(|mount| (mount, Some(why(&folder)))).map_err(failed)
        }
        built => {
            let mount = built.map_err(failed)?;
            // The kernel says only in its log that it could not make the work folder.
            let flags = fstatvfs(&mount).map_err(|errno| failed(("look at the overlay of", errno)))?.f_flag;
            let read_only = flags.contains(StatVfsMountFlags::RDONLY);
            if read_only && !ran {
                let errno = if takes_no_writes(&folder) { Errno::ROFS } else { Errno::NOSPC };
                return Err(failed(("write to the overlay of", errno)));
            }
            Ok((mount, read_only.then(|| why(&folder))))
        }
    }
}

const fn full(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT)
}

fn why(folder: &OwnedFd) -> &'static str {
    if takes_no_writes(folder) { super::READ_ONLY } else { super::FULL }
}

/// Whether the root of a layer is opaque. overlayfs does not look at the mark there.
fn hides_all_below(layer: &OwnedFd, xattrs: XattrNamespace) -> rustix::io::Result<bool> {
    let root = openat(layer, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut value = [0u8; 1];
    match fgetxattr(&root, xattrs.opaque(), &mut value[..]) {
        Ok(length) => Ok(length == 1 && value == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}

type Named<T> = Result<T, (&'static str, Errno)>;

fn build(lowers: &[OwnedFd], own: Option<(&OwnedFd, &OwnedFd)>, xattrs: XattrNamespace) -> Named<OwnedFd> {
    let at = |step: &'static str| move |errno: Errno| (step, errno);
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(at("open an overlay for"))?;
    fsconfig_set_string(&context, "source", "molt").map_err(at("name the overlay of"))?;
    add_lowers(&context, lowers).map_err(at("add the layers of"))?;
    if let Some((upper, work)) = own {
        add(&context, "upperdir", upper.as_fd()).map_err(at("add the upper folder of"))?;
        add(&context, "workdir", work.as_fd()).map_err(at("add the work folder of"))?;
    }
    for (key, value) in [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")] {
        match fsconfig_set_string(&context, key, value) {
            // A kernel built without an option has it off.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(("set the overlay options of", errno)),
        }
    }
    if xattrs == XattrNamespace::User {
        fsconfig_set_flag(&context, "userxattr").map_err(at("set userxattr for"))?;
    }
    fsconfig_create(&context).map_err(at("create the overlay of"))?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(at("mount the overlay of"))
}

/// By descriptor since Linux 6.13, by its path below `/proc` before.
fn add(context: &OwnedFd, key: &str, folder: BorrowedFd<'_>) -> rustix::io::Result<()> {
    if !compat::pretend_older_than(6, 13) {
        match fsconfig_set_fd(context, key, folder) {
            Err(Errno::INVAL | Errno::BADF) => {}
            result => return result,
        }
    }
    fsconfig_set_string(context, key, format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

/// One by one since Linux 6.8; all in one text, which then holds some 200 of them, before.
fn add_lowers(context: &OwnedFd, lowers: &[OwnedFd]) -> rustix::io::Result<()> {
    if !compat::pretend_older_than(6, 8) {
        let mut all = lowers.iter().map(|lower| add(context, "lowerdir+", lower.as_fd()));
        match all.next() {
            Some(Err(Errno::INVAL)) => {}
            first => return first.into_iter().chain(all).collect(),
        }
    }
    let paths: Vec<String> = lowers.iter().map(|lower| format!("/proc/self/fd/{}", lower.as_raw_fd())).collect();
    fsconfig_set_string(context, "lowerdir", paths.join(":"))
}
