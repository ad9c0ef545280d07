//! Who the workload is, and every way to become somebody else.
//!
//! In: `/app/suid` and `/app/sgid`, copies of this program with set-id bits that belong to root, `/app/capable`, one that
//! the image gave a file capability. Out: EPERM, and ids that stay. Must not: depend on which id it is.

use std::process::Command;

use crate::{
    aid::{NULL, n, status, sys},
    probe::{Answer, Probe, probe},
    raw::{Arg, call},
};

const PR_GET_KEEPCAPS: i64 = 7;
const PR_SET_KEEPCAPS: i64 = 8;
const PR_CAPBSET_READ: i64 = 23;
const PR_CAPBSET_DROP: i64 = 24;
const PR_GET_SECUREBITS: i64 = 27;
const PR_SET_SECUREBITS: i64 = 28;
const PR_SET_NO_NEW_PRIVS: i64 = 38;
const PR_GET_NO_NEW_PRIVS: i64 = 39;
const PR_CAP_AMBIENT: i64 = 47;
const PR_SET_MM: i64 = 35;
/// _LINUX_CAPABILITY_VERSION_3, and this process.
const HEADER: [u8; 8] = [0x22, 0x05, 0x08, 0x20, 0, 0, 0, 0];

fn prctl(option: i64, argument: i64) -> Answer {
    sys(libc::SYS_prctl, &mut [n(option), n(argument), n(0), n(0), n(0)])
}

fn answer_of(option: i64, argument: i64) -> Answer {
    match call(libc::SYS_prctl, &mut [n(option), n(argument), n(0), n(0), n(0)]) {
        Ok(number) => Answer::word(number.to_string()),
        other => other.into(),
    }
}

fn sets() -> Answer {
    let zero = |name: &&str| status(name).chars().all(|digit| digit == '0');
    let names = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    Answer::first(names.iter().filter(|name| !zero(name)).map(|name| (*name).to_owned()), "none")
}

fn bounding() -> Answer {
    let left = (0..41).find(|number| matches!(call(libc::SYS_prctl, &mut [n(PR_CAPBSET_READ), n(*number)]), Ok(1)));
    Answer::word(left.map_or_else(|| "none".to_owned(), |number| number.to_string()))
}

fn take(data: &[u8; 24]) -> Answer {
    sys(libc::SYS_capset, &mut [Arg::In(&HEADER), Arg::In(data)])
}

/// `user`, or the id that it must not have: what the set-id copies print.
pub(crate) fn identity() -> String {
    let root = |name: &str| status(name).split(',').any(|id| id == "0");
    let capable = status("CapEff").chars().any(|digit| digit != '0');
    match (root("Uid"), root("Gid"), capable) {
        (_, _, true) => "capable".to_owned(),
        (true, _, _) => "root".to_owned(),
        (_, true, _) => "root-group".to_owned(),
        _ => "user".to_owned(),
    }
}

fn through(path: &str) -> Answer {
    match Command::new(path).arg("--id").output() {
        Ok(output) => Answer::word(String::from_utf8_lossy(&output.stdout).trim()),
        Err(error) => Err::<(), _>(error).into(),
    }
}

fn same(name: &str) -> Answer {
    let text = status(name);
    let mut ids = text.split(',');
    let first = ids.next();
    Answer::word(match first {
        Some("0") => "root",
        Some(_) if ids.all(|id| Some(id) == first) => "one-user",
        _ => "mixed",
    })
}

/// -1 means "leave it": a kernel that is asked for it says yes, and nothing has changed.
fn minus_one() -> Answer {
    let before = status("Uid");
    let answer = call(libc::SYS_setresuid, &mut [n(-1), n(-1), n(-1)]);
    match answer {
        Ok(_) if before == status("Uid") => Answer::word("unchanged"),
        Ok(_) => Answer::word("changed"),
        other => other.into(),
    }
}

fn file_system_id() -> Answer {
    let _ = call(libc::SYS_setfsuid, &mut [n(0)]);
    same("Uid")
}

fn groups() -> Answer {
    let zero = status("Groups").split(',').any(|group| group == "0");
    Answer::word(if zero { "root-group" } else { "without-root" })
}

/// Every probe of this file.
pub(crate) const PROBES: &[Probe] = &[
    probe("W68.ids", "real, effective, saved and file-system id are one, and not 0", || same("Uid")),
    probe("W68.group-ids", "likewise", || same("Gid")),
    probe("W68.sets", "all five capability sets are empty", sets),
    probe("W68.bounding", "asked for one by one", bounding),
    probe("W68.capset-all", "every capability", || take(&[0xff; 24])),
    probe("W68.capset-inheritable", "inheritable ones alone", || {
        let mut data = [0; 24];
        if let Some(set) = data.get_mut(8..12) {
            set.fill(0xff);
        }
        take(&data)
    }),
    probe("W68.ambient", "capabilities that survive an exec", || {
        sys(libc::SYS_prctl, &mut [n(PR_CAP_AMBIENT), n(2), n(21), n(0), n(0)])
    }),
    probe("W68.drop-bounding", "needs one itself", || prctl(PR_CAPBSET_DROP, 0)),
    probe("W68.keep", "capabilities that survive a change of ids", || prctl(PR_SET_KEEPCAPS, 1)),
    probe("W68.kept", "it is off", || answer_of(PR_GET_KEEPCAPS, 0)),
    probe("W68.secure-bits", "the meaning of root", || prctl(PR_SET_SECUREBITS, 0)),
    probe("W68.secure-bits-are", "root means nothing, and that is locked", || answer_of(PR_GET_SECUREBITS, 0)),
    probe("W68.no_new_privs", "on", || answer_of(PR_GET_NO_NEW_PRIVS, 0)),
    probe("W68.no_new_privs-off", "cannot be taken back", || prctl(PR_SET_NO_NEW_PRIVS, 0)),
    probe("W68.setuid", "root", || sys(libc::SYS_setuid, &mut [n(0)])),
    probe("W68.setreuid", "root by halves", || sys(libc::SYS_setreuid, &mut [n(-1), n(0)])),
    probe("W68.setresuid", "root as the saved id", || sys(libc::SYS_setresuid, &mut [n(-1), n(-1), n(0)])),
    probe("W68.setresuid-minus-one", "the id that is none", minus_one),
    probe("W68.setfsuid", "root for files alone", file_system_id),
    probe("W68.setgid", "root's group", || sys(libc::SYS_setgid, &mut [n(0)])),
    probe("W68.setresgid", "likewise", || sys(libc::SYS_setresgid, &mut [n(-1), n(-1), n(0)])),
    probe("W68.set-user-id-program", "a copy of this program that belongs to root, mode 4755", || through("/app/suid")),
    probe("W68.set-group-id-program", "likewise, mode 2755", || through("/app/sgid")),
    probe("W68.capable-program", "a file capability in the image", || through("/app/capable")),
    probe("W68.capability-of-file", "it was dropped when the layer was unpacked", || {
        let path = c"/app/capable";
        sys(libc::SYS_getxattr, &mut [Arg::S(path), Arg::S(c"security.capability"), Arg::Out(&mut [0; 64]), n(64)])
    }),
    probe("W68.dumpable", "accepted: its own processes are its own", || prctl(4, 1)),
    probe("W68.exe-link", "pretends to be another program: CAP_SYS_RESOURCE", || {
        sys(libc::SYS_prctl, &mut [n(PR_SET_MM), n(13), n(0), n(0), n(0)])
    }),
    probe("W69.groups", "no group of root's", groups),
    probe("W69.setgroups", "any group", || sys(libc::SYS_setgroups, &mut [n(1), Arg::In(&[0; 4])])),
    probe("W69.setgroups-none", "none: a group can be what forbids", || sys(libc::SYS_setgroups, &mut [n(0), NULL])),
];
