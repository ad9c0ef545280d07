//! `WWW-Authenticate` headers, and the URL that a token is asked from.
//!
//! In: header values, a line each. Out: a panic where a challenge changes whom Molt asks or for what. Must not: send
//! anything.

use molt_oci::fuzzing::{challenge, url_allowed};

use super::is_plain;

const REPOSITORY: &str = "acme/daemon";

pub(super) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match challenge(text, REPOSITORY) {
        Ok(Some((realm, url))) if realm.cannot_be_a_base() => assert!(!url_allowed(&realm) && !url_allowed(&url)),
        Ok(Some((realm, url))) => {
            assert_eq!((realm.scheme(), realm.host(), realm.port()), (url.scheme(), url.host(), url.port()));
            assert_eq!((realm.path(), realm.username()), (url.path(), url.username()));
            assert_eq!(url.fragment(), None);
            assert_eq!(url_allowed(&realm), url_allowed(&url));
            let asked = |key: &str| -> Vec<String> {
                url.query_pairs().filter(|(name, _)| name == key).map(|(_, value)| value.into_owned()).collect()
            };
            assert_eq!(asked("scope"), [format!("repository:{REPOSITORY}:pull")]);
            assert!(asked("service").len() <= 1);
            if url_allowed(&url) {
                assert!(url.scheme() == "https" && url.username().is_empty() && url.password().is_none());
            }
        }
        Ok(None) => {}
        Err(why) => is_plain(&why),
    }
}
