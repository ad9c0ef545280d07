//! Indexes, and the choice of a platform in them.
//!
//! In: the document. Out: a panic where a limit does not hold or a choice is not among the entries. Must not: need valid
//! JSON.

use molt_oci::{
    Limits, Platform,
    fuzzing::{Document, manifest},
};

pub(super) fn run(document: &[u8]) {
    super::manifest::take(document, Some(super::manifest::OCI_INDEX));
    super::manifest::take(document, None);
    for platform in [("linux", "amd64", None), ("linux", "arm64", Some("v8")), ("linux", "arm", Some("v7"))] {
        let (os, architecture, variant) = platform;
        let wanted = Platform { os: os.into(), architecture: architecture.into(), variant: variant.map(str::to_owned) };
        if let Ok(Document::Index(entries, Some(chosen))) = manifest(document, None, &Limits::default(), &wanted) {
            assert!(entries > 0);
            let text = String::from_utf8_lossy(document);
            // JSON may write any letter as an escape; without one the digest stands in the document.
            assert!(text.contains('\\') || text.contains(&chosen.hex()), "{chosen} is not in the index");
        }
    }
}
