//! Frames of an exec stream.
//!
//! In: the bytes a client sends. Out: a panic where a frame that was read is written otherwise. Must not: run anything.

pub(super) fn run(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let again = runtime.block_on(molt::fuzzing::frames(data));
    assert_eq!(data.get(..again.len()), Some(&again[..]));
}
