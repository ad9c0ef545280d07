//! On what terms a request is to be taken: `If-Match` and `Idempotency-Key`.
//!
//! In: headers; the request, in canonical form. Out: [`Terms`] for the dispatcher, which alone can compare without a race.
//! Must not: compare anything.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use molt_core::code::Code;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::answer::Refused;
use crate::command::{Command, Terms};

/// Longest key, in bytes.
const KEY: usize = 64;

/// What the headers say.
#[derive(Debug, Default)]
pub(super) struct Asked {
    revisions: Option<Vec<String>>,
    key: Option<String>,
}

/// The entity tag of a status document: its revision, which is what `If-Match` compares, and a digest of all of it.
pub(super) fn tag(revision: &str, digest: &str) -> String {
    format!("\"{revision}:{digest}\"")
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        Ok(Self { revisions: revisions(&parts.headers)?, key: key(&parts.headers)? })
    }
}

fn revisions(headers: &HeaderMap) -> Result<Option<Vec<String>>, Refused> {
    let mut revisions = Vec::new();
    for value in headers.get_all(header::IF_MATCH) {
        let wrong = || Refused::new(Code::Invalid, "If-Match takes the ETag of /v1/status, or *");
        for tag in value.to_str().map_err(|_| wrong())?.split(',').map(str::trim) {
            if tag == "*" {
                return Ok(None);
            }
            let inner = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).ok_or_else(wrong)?;
            revisions.push(inner.split(':').next().unwrap_or(inner).to_owned());
        }
    }
    Ok((!revisions.is_empty()).then_some(revisions))
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Refused> {
    let mut all = headers.get_all("idempotency-key").iter();
    let Some(value) = all.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    let good = !key.is_empty() && key.len() <= KEY && key.bytes().all(|byte| byte.is_ascii_graphic());
    if !good || all.next().is_some() {
        let why = format!("Idempotency-Key takes one key of 1 to {KEY} characters, visible ASCII without spaces");
        return Err(Refused::new(Code::Invalid, why));
    }
    Ok(Some(key.to_owned()))
}

impl Asked {
    /// The terms of a request that takes no key.
    pub(super) fn unkeyed(self) -> Result<Terms, Refused> {
        match self.key {
            None => Ok(Terms { revisions: self.revisions, key: None }),
            Some(_) => {
                Err(Refused::new(Code::Invalid, "Idempotency-Key is taken by POST /v1/updates and /v1/rollback alone"))
            }
        }
    }

    /// The terms of a request. `what` and `request` are what a key is bound to: the same request has the same bytes,
    /// whatever its layout was.
    pub(super) fn keyed(self, what: &str, request: &impl Serialize) -> Result<Terms, Refused> {
        let key = match self.key {
            None => None,
            Some(key) => {
                let canonical =
                    serde_json::to_vec(request).map_err(|error| Refused::new(Code::Internal, error.to_string()))?;
                let request = Sha256::new().chain_update(what).chain_update([b'\n']).chain_update(canonical).finalize();
                Some((Sha256::digest(key.as_bytes()).into(), request.into()))
            }
        };
        Ok(Terms { revisions: self.revisions, key })
    }
}

/// A command, on terms if there are any.
pub(super) fn on(terms: Terms, command: Command) -> Command {
    if terms == Terms::default() { command } else { Command::On { terms, command: Box::new(command) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_tag_is_compared_by_its_revision() {
        let tag = tag("u7.g3", "abc");
        let of = |value: &str| revisions(&headers(&[("if-match", value)])).map_err(|refused| refused.0.code);
        assert_eq!(of(&tag), Ok(Some(vec!["u7.g3".to_owned()])));
        assert_eq!(of("\"u1.g1:x\", \"u2.g1:y\""), Ok(Some(vec!["u1.g1".to_owned(), "u2.g1".to_owned()])));
        assert_eq!(of("*"), Ok(None));
        for wrong in ["u7.g3", "W/\"u7.g3:abc\"", "\""] {
            assert_eq!(of(wrong), Err(Code::Invalid), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_short_visible_and_alone() {
        let of = |pairs: &[(&'static str, &str)]| key(&headers(pairs)).map_err(|refused| refused.0.code);
        let name = "idempotency-key";
        assert_eq!(of(&[(name, "k-1")]), Ok(Some("k-1".to_owned())));
        assert_eq!(of(&[]), Ok(None));
        let long = "k".repeat(KEY + 1);
        for wrong in [&[(name, "")][..], &[(name, "a b")], &[(name, &long)]] {
            assert_eq!(of(wrong), Err(Code::Invalid), "{wrong:?}");
        }
        let mut twice = headers(&[(name, "a")]);
        twice.append(name, "b".parse().unwrap());
        assert!(key(&twice).is_err());
    }
}
