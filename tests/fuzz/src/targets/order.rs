//! Signed orders, before and behind the signature.
//!
//! In: a token; its payload as if somebody had signed it. Out: a panic where one is taken that no key of the tests signed, or
//! where a judgement does not hold. Must not: read a key file.

pub(super) fn run(data: &[u8]) {
    assert!(!molt::fuzzing::order(data), "a token was taken that nobody has signed");
    if let Some((before, after)) = molt::fuzzing::claims(data) {
        assert!(after.floor >= before.floor && after.clock >= before.clock, "{before:?} {after:?}");
        assert!(after.last("one") > before.last("one"), "{before:?} {after:?}");
    }
}
