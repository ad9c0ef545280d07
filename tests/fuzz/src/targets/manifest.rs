//! Image manifests.
//!
//! In: a byte that says what the source called it, then the document. Out: a panic where a limit does not hold. Must not:
//! need valid JSON.

use molt_oci::{
    Limits, Platform,
    fuzzing::{Document, manifest},
};

use super::is_plain;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const SAID: [Option<&str>; 5] = [
    None,
    Some("application/vnd.oci.image.manifest.v1+json"),
    Some("application/vnd.docker.distribution.manifest.v2+json"),
    Some(OCI_INDEX),
    Some("text/html"),
];

pub(super) fn run(data: &[u8]) {
    let Some((said, document)) = data.split_first() else { return };
    let said = SAID[usize::from(*said) % SAID.len()];
    take(document, said);
}

pub(super) fn take(document: &[u8], said: Option<&str>) {
    let limits = Limits::default();
    match manifest(document, said, &limits, &Platform::host()) {
        Ok(Document::Manifest(config, layers)) => {
            assert!(config <= limits.config && layers.len() <= limits.layers);
            assert!(layers.iter().all(|size| *size <= limits.layer_bytes));
            assert_ne!(said, Some(OCI_INDEX), "a manifest was taken for an index");
        }
        Ok(Document::Index(entries, _)) => assert!(entries <= limits.index_entries),
        Err(error) => is_plain(&error.to_string()),
    }
}
