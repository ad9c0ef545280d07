//! An image's passwd and group.
//!
//! In: passwd, group and `USER[:GROUP]`, with NUL between. Out: a panic where an id comes out that no process can have, or
//! a group that would give more than the image may. Must not: open a file.

use molt_core::spec::UserRef;

use super::is_plain;

pub(super) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\0');
    let (passwd, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let wanted = parts.next().and_then(|text| text.parse::<UserRef>().ok());
    let given = wanted.as_ref().and_then(|wanted| wanted.group.clone());
    for of in [None, given.as_ref()] {
        match molt::fuzzing::user(passwd, group, wanted.as_ref(), of) {
            Ok(user) => {
                // setresuid(2): -1 means "leave as it is", and what it is, is root.
                assert!(user.uid != u32::MAX && user.gid != u32::MAX, "{user:?}");
                assert!(user.groups.iter().all(|gid| *gid != 0 && *gid != u32::MAX), "{user:?}");
                assert!(user.home.starts_with('/'), "{user:?}");
            }
            Err(why) => is_plain(&why),
        }
    }
}
