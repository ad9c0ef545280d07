//! Everything short that is parsed from text: image references, digests, users, signals, durations, sizes, ids.
//!
//! In: a line. Out: a panic where what was read does not print as something that reads the same, or where a registry host
//! is not the host of the URL that is made of it. Must not: resolve anything.

use std::{fmt::Display, str::FromStr};

use molt_core::{
    ids::{DiffId, Digest, Generation, ImageRef, UpdateId},
    spec::{Bytes, Principal, Signal, Span, UserRef},
};
use molt_oci::{LayerId, fuzzing::authority};

use super::is_plain;

pub(super) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(reference) = again::<ImageRef>(text) {
        let digest = Digest::from_bytes([0xab; 32]);
        again::<ImageRef>(&reference.pinned(digest).to_string());
        if let ImageRef::Registry { host, repository, tag, .. } = &reference {
            assert!(
                !repository.contains(['%', '?', '#', '\\', ' ']) && !repository.split('/').any(|part| part == "..")
            );
            assert!(tag.as_ref().is_none_or(|tag| !tag.contains(['/', '?', '#', ':'])));
            leads_to_itself(host);
        }
    }
    again::<Digest>(text);
    again::<DiffId>(text);
    again::<UpdateId>(text);
    again::<Generation>(text);
    again::<LayerId>(text);
    again::<Principal>(text);
    again::<UserRef>(text);
    again::<Signal>(text);
    again::<Span>(text);
    again::<Bytes>(text);
}

/// The URL that is made of a registry's host goes to that host. A URL writes an IPv6 address and a port in one way only,
/// and leaves 443 out; labels in Punycode it refuses where they decode to nothing.
fn leads_to_itself(host: &str) {
    let Some(to) = authority(host) else {
        assert!(host.contains("xn--"), "host '{host}' makes no URL");
        return;
    };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse::<u16>().ok()),
        _ => (host, None),
    };
    let (to_name, to_port) = match to.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse::<u16>().ok()),
        _ => (to.as_str(), None),
    };
    assert!(name == to_name || name.starts_with('[') && to_name.starts_with('['), "host '{host}' leads to '{to}'");
    assert_eq!(port.filter(|port| *port != 443), to_port, "host '{host}' leads to '{to}'");
}

fn again<T: FromStr<Err: Display> + Display + PartialEq + std::fmt::Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            match printed.parse::<T>() {
                Ok(same) => assert_eq!(same, value, "'{text}' prints as '{printed}'"),
                Err(error) => panic!("'{text}' prints as '{printed}', which is refused: {error}"),
            }
            Some(value)
        }
        Err(error) => {
            is_plain(&error.to_string());
            None
        }
    }
}
