//! Tar and PAX to entries.
//!
//! In: a tar stream, read in pieces of odd sizes. Out: a panic where an entry leads out of the root or could not be made,
//! or where the size of the pieces changes the entries. Must not: need a valid stream.

use std::io::Read;

use molt_oci::{
    Limits,
    fuzzing::{Member, What, members},
};

use super::is_plain;
use crate::tar_input::expand;

/// Gives at most `step` bytes a read.
pub(super) struct Pieces<'a> {
    pub(super) rest: &'a [u8],
    pub(super) step: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let step = self.step.min(out.len()).min(self.rest.len());
        let (piece, rest) = self.rest.split_at(step);
        out[..step].copy_from_slice(piece);
        self.rest = rest;
        Ok(step)
    }
}

pub(super) fn run(data: &[u8]) {
    let tar = expand(data);
    let limits = Limits { entries: 1000, ..Limits::default() };
    let whole = members(&*tar, &limits);
    let step = usize::from(data.last().copied().unwrap_or_default()) + 1;
    let pieces = members(Pieces { rest: &tar, step }, &limits);
    match (&whole, &pieces) {
        (Ok(whole), Ok(pieces)) => assert_eq!(whole, pieces, "in pieces of {step}"),
        (Err(whole), Err(pieces)) => assert_eq!(whole.to_string(), pieces.to_string(), "in pieces of {step}"),
        _ => panic!("whole: {whole:?}, in pieces of {step}: {pieces:?}"),
    }
    match whole {
        Ok(list) => list.iter().for_each(check),
        Err(error) => is_plain(&error.to_string()),
    }
}

/// What holds for every entry that is taken.
pub(super) fn check(member: &Member) {
    let limits = Limits::default();
    inside(&member.path, &limits);
    assert!(member.uid != u32::MAX && member.gid != u32::MAX, "an id that means 'leave it': {member:?}");
    assert_eq!(member.mode & !0o7777, 0, "{member:?}");
    match &member.what {
        What::Symlink(target) => {
            assert!(!target.is_empty() && !target.contains(&0) && target.len() < limits.path, "{member:?}");
        }
        What::Hardlink(target) => inside(target, &limits),
        What::Whiteout(Some(name)) => {
            assert!(!name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/'), "{member:?}");
        }
        What::Directory => {}
        _ => assert!(!member.path.is_empty(), "{member:?}"),
    }
    for (name, _) in &member.xattrs {
        assert!(name.starts_with(b"user.") && !name.starts_with(b"user.overlay."), "{member:?}");
        assert!(!name.contains(&0) && name.len() > 5 && name.len() <= 255, "{member:?}");
    }
}

fn inside(path: &[u8], limits: &Limits) {
    assert!(path.len() <= limits.path && !path.contains(&0));
    if path.is_empty() {
        return;
    }
    for part in path.split(|byte| *byte == b'/') {
        assert!(!part.is_empty() && part != b"." && part != b"..", "{path:?}");
        assert!(part.len() <= limits.component);
    }
}
