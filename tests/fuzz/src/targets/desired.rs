//! What a gateway wants.
//!
//! In: the answer of a gateway. Out: a panic where one that was taken makes no sense, or changes once it is written and read
//! again. Must not: need a valid document.

use molt_core::gateway::{Desired, is_id};

use super::is_plain;

pub(super) fn run(data: &[u8]) {
    match Desired::read(data) {
        Ok(read) => {
            assert!(is_id(&read.gateway));
            assert!(read.want.as_ref().is_none_or(|want| want.check().is_ok()));
            let written = serde_json::to_vec(&read).unwrap_or_default();
            assert_eq!(Desired::read(&written), Ok(read));
        }
        Err(unreadable) => {
            is_plain(&unreadable.to_string());
            assert!(unreadable.revision.is_none_or(|(gateway, _)| is_id(&gateway)));
        }
    }
}
