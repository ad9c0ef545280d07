//! Who the workload is: a bounded reader of an image's `/etc/passwd` and `/etc/group`. No NSS, ever.
//!
//! In: the root, by descriptor; names or numbers. Out: ids. Must not: follow a path out of the root, block on a FIFO, or
//! read more than a bound.

use std::{io::Read as _, os::fd::OwnedFd};

use molt_core::{
    code::Code,
    spec::{Principal, UserRef},
};
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::Errno,
};

use super::RootError;

const MOST_BYTES: u64 = 1 << 20;
/// Who runs where nobody is named: nobody's number in distroless images, with no name needed.
pub(crate) const DEFAULT_ID: u32 = 65532;

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Groups the image lists it in.
    pub(crate) groups: Vec<u32>,
    /// From passwd; `/` where it has none.
    pub(crate) home: String,
    /// Nobody was named anywhere.
    pub(crate) by_default: bool,
}

/// Resolves `wanted`, else a user named `sandbox`, else [`DEFAULT_ID`].
pub(crate) fn resolve(root: &OwnedFd, wanted: Option<&UserRef>, group: Option<&Principal>) -> Result<User, RootError> {
    let passwd = read(root, "etc/passwd")?;
    let groups = read(root, "etc/group")?;
    find(&passwd, &groups, wanted, group)
}

fn refuse(about: &str, why: &str) -> RootError {
    RootError::new("resolve user", about, why, Code::UserInvalid)
}

/// The same from the text of both files.
pub(crate) fn find(
    passwd: &str,
    groups: &str,
    wanted: Option<&UserRef>,
    group: Option<&Principal>,
) -> Result<User, RootError> {
    let by_default = wanted.is_none() && entry(passwd, "sandbox").is_none();
    let sandbox = Principal::Name("sandbox".to_owned());
    let principal = match wanted {
        Some(wanted) => wanted.user.clone(),
        None if by_default => Principal::Id(DEFAULT_ID),
        None => sandbox,
    };
    let (found, uid) = match &principal {
        Principal::Name(name) => {
            let fields = entry(passwd, name).ok_or_else(|| {
                refuse(name, "the image's /etc/passwd has no such user; give workload.user or the policy's run_as_user as a number")
            })?;
            (
                Some(fields.clone()),
                number(&fields, 2).ok_or_else(|| refuse(name, "its line in /etc/passwd is malformed"))?,
            )
        }
        Principal::Id(uid) => {
            let line = passwd.lines().map(fields).find(|fields| number(fields, 2) == Some(*uid));
            (line, *uid)
        }
    };
    if uid == u32::MAX {
        return Err(refuse("4294967295", "is not an id"));
    }
    let group = group.or(wanted.and_then(|wanted| wanted.group.as_ref()));
    let gid = match group {
        Some(Principal::Id(gid)) => *gid,
        Some(Principal::Name(name)) => entry(groups, name)
            .and_then(|fields| number(&fields, 2))
            .ok_or_else(|| refuse(name, "the image's /etc/group has no such group"))?,
        // As container engines do: the passwd entry's group, else 0 for a bare number; Molt's own default has its own.
        None if by_default => DEFAULT_ID,
        None => found.as_ref().and_then(|fields| number(fields, 3)).unwrap_or(uid),
    };
    // setresgid(2) takes it for "leave as it is".
    if gid == u32::MAX {
        return Err(refuse("4294967295", "is not a group id"));
    }
    let name = found.as_ref().and_then(|fields| fields.first().cloned());
    let member = |fields: &Vec<String>| {
        let members = fields.get(3).map_or("", String::as_str);
        name.as_ref().is_some_and(|name| members.split(',').any(|member| member == name))
    };
    let mut list: Vec<u32> =
        groups.lines().map(self::fields).filter(member).filter_map(|fields| number(&fields, 2)).collect();
    list.retain(|gid| *gid != 0 && *gid != u32::MAX);
    let home = found.and_then(|fields| fields.get(5).cloned()).filter(|home| home.starts_with('/'));
    Ok(User { uid, gid, groups: list, home: home.unwrap_or_else(|| "/".to_owned()), by_default })
}

fn fields(line: &str) -> Vec<String> {
    line.split(':').map(str::to_owned).collect()
}

fn entry(text: &str, name: &str) -> Option<Vec<String>> {
    text.lines().map(fields).find(|fields| fields.first().is_some_and(|first| first == name))
}

fn number(fields: &[String], at: usize) -> Option<u32> {
    fields.get(at)?.parse().ok()
}

fn read(root: &OwnedFd, path: &str) -> Result<String, RootError> {
    let fail = |errno: Errno| RootError::new("read", format!("/{path} of the image"), errno, Code::UserInvalid);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(fail(errno)),
    };
    if FileType::from_raw_mode(fstat(&file).map_err(fail)?.st_mode) != FileType::RegularFile {
        return Err(refuse(path, "is not a regular file in the image"));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| fail(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(refuse(path, "is larger than 1 MiB in the image"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nsandbox:x:1000:1000::/home/sandbox:/bin/sh\nbad:x:no:0::/:\n";
    const GROUP: &str = "root:x:0:\naudio:x:29:sandbox,other\nwheel:x:0:sandbox\n";

    fn of(text: &str) -> Result<User, RootError> {
        find(PASSWD, GROUP, Some(&text.parse().unwrap()), None)
    }

    #[test]
    fn names_numbers_and_defaults() {
        let sandbox = find(PASSWD, GROUP, None, None).unwrap();
        assert_eq!((sandbox.uid, sandbox.gid, sandbox.groups.as_slice()), (1000, 1000, &[29][..]));
        assert_eq!(sandbox.home, "/home/sandbox");
        assert!(!sandbox.by_default);
        let nobody = find("", "", None, None).unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.by_default), (DEFAULT_ID, DEFAULT_ID, true));
        assert_eq!(of("1000").unwrap().gid, 1000);
        assert_eq!(of("7:audio").unwrap().gid, 29);
        assert_eq!(of("0").unwrap().uid, 0);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        assert!(of("mallory").is_err());
        assert!(of("bad").is_err());
        assert!(of("1000:nogroup").is_err());
    }

    #[test]
    fn a_group_that_means_leave_it_as_it_is_is_refused() {
        let (passwd, group) = ("a:x:1000:4294967295::/:\nb:x:4294967295:1::/:\n", "c:x:4294967295:\n");
        for wanted in ["a", "1000", "b", "1000:c"] {
            let found = find(passwd, group, Some(&wanted.parse().unwrap()), None);
            assert!(found.is_err(), "{wanted}: {found:?}");
        }
        assert!(find(passwd, group, None, Some(&Principal::Name("c".into()))).is_err());
    }
}
