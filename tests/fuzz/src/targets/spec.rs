//! Sandbox specs.
//!
//! In: a YAML or JSON document. Out: a panic where a spec that was taken is refused, or changes, once it is written and
//! read again. Must not: need a valid spec.

use molt_core::spec;

use super::is_plain;

pub(super) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match spec::parse(text) {
        Ok(read) => {
            let document = read.to_document().to_string();
            match spec::parse(&document) {
                Ok(again) => assert_eq!(again, read),
                Err(faults) => panic!("{document}\nis refused: {faults}"),
            }
            assert!(read.check().is_ok());
        }
        Err(faults) => is_plain(&faults.to_string()),
    }
}
