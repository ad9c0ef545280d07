//! What an unpacker, which a layer may have taken over, hands back: its verdict, and what it wrote down for the next one.
//!
//! In: a byte that picks one of the two, then the bytes. Out: a panic where a message could move a terminal or flood a log,
//! or where what was read is not what is written. Must not: believe a length.

use molt_core::ids::{DiffId, Digest};
use molt_oci::{
    Limits,
    fuzzing::{asks, verdict},
};

use super::is_plain;

pub(super) fn run(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    if which % 2 == 0 {
        if let Some(text) = verdict(bytes, DiffId(Digest::from_bytes([7; 32]))) {
            is_plain(&text);
        }
        return;
    }
    let limits = Limits { deferred_bytes: 1 << 20, ..Limits::default() };
    match asks(bytes, &limits) {
        // Lists of paths come back sorted, so only what was written once can be compared.
        Ok(written) => assert_eq!(asks(&written, &limits).expect("what was written is read"), written),
        Err(error) => is_plain(&error.to_string()),
    }
}
