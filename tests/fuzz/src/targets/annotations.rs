//! Annotations of a downward API file, and the names in a client certificate.
//!
//! In: the text, or DER. Out: a panic where a part of a file was taken for the whole, or a message could move a terminal. Must
//! not: wait.

pub(super) fn run(data: &[u8]) {
    // No name is made of nothing.
    assert!(molt::fuzzing::names(data) <= data.len());
    let Ok(text) = std::str::from_utf8(data) else { return };
    match molt::fuzzing::annotations(text) {
        Ok(all) => assert_eq!(all.len(), text.split('\n').filter(|line| !line.is_empty()).count()),
        Err(why) => super::is_plain(&why),
    }
}
