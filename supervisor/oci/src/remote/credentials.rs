//! Credentials from a docker `config.json`.
//!
//! In: the file, read anew for each sign-in, so that rotated secrets are seen. Out: what to present to one host. Must not:
//! run a credential helper, or show a secret in any text.

use std::{
    collections::BTreeMap,
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::error::{Error, Result};

const FILE_MAX: u64 = 1 << 20;

/// What to present.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    /// User name and password or token.
    Basic { user: String, password: String },
    /// An `identitytoken`, exchanged for a bearer token.
    Identity(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Secret::Basic(…)",
            Self::Identity(_) => "Secret::Identity(…)",
        })
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    #[serde(rename = "auth")]
    encoded: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    #[serde(rename = "authHosts")]
    auth_hosts: Vec<String>,
}

/// An entry for one registry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) secret: Secret,
    /// Token services (`host[:port]`) that may see it beside those of the registry's own domain. `authHosts` of the
    /// entry, Molt's own: other readers of the file pass over it.
    auth_hosts: Vec<String>,
}

impl Found {
    /// Whether the operator wrote that `realm` may see it.
    pub(crate) fn names(&self, realm: &str) -> bool {
        self.auth_hosts.iter().any(|host| host.eq_ignore_ascii_case(realm))
    }
}

/// The credentials file, by path.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    path: Option<PathBuf>,
}

impl Credentials {
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self { path }
    }

    /// What to do when access is denied.
    pub(crate) fn hint(&self, host: &str, presented: bool) -> String {
        match (&self.path, presented) {
            (Some(path), true) => format!("the credentials for '{host}' in {} were refused", path.display()),
            (Some(path), false) => format!(
                "there is no entry for '{host}' in {}; add one with `docker login {host}`, or check the name of the image",
                path.display()
            ),
            (None, _) => format!(
                "no credentials are set; point registries.credentials to a docker config.json with an entry for \
                 '{host}', or check the name of the image"
            ),
        }
    }

    /// What to present to the registry `host` for `repository`, if the file has it.
    pub(crate) fn find(&self, host: &str, repository: &str) -> Result<Option<Found>> {
        let Some(path) = &self.path else { return Ok(None) };
        let file = read(path)?;
        let refuse = |why: String| Error::Settings { what: format!("credentials file {}", path.display()), why };
        let best = file
            .auths
            .iter()
            .filter_map(|(key, auth)| Some((matches(key, host, repository)?, key, auth)))
            .max_by_key(|(length, ..)| *length);
        if let Some((_, key, auth)) = best
            && let Some(secret) = secret(auth).map_err(|why| refuse(format!("entry '{key}': {why}")))?
        {
            return Ok(Some(Found { secret, auth_hosts: auth.auth_hosts.clone() }));
        }
        let helper = file.cred_helpers.iter().find(|(key, _)| matches(key, host, repository).is_some());
        // `docker login` with a store leaves an empty entry behind: the secret is in the store.
        if let Some(helper) = helper.map(|(_, helper)| helper).or(file.creds_store.as_ref().filter(|_| best.is_some()))
        {
            return Err(refuse(format!(
                "the secret for '{host}' is with the credential helper '{helper}', which Molt does not run; \
                 put it into the file itself"
            )));
        }
        Ok(None)
    }
}

fn read(path: &Path) -> Result<File> {
    let refuse = |why: String| Error::Settings { what: format!("credentials file {}", path.display()), why };
    let file = std::fs::File::open(path).map_err(|error| refuse(error.to_string()))?;
    let mut text = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut text).map_err(|error| refuse(error.to_string()))?;
    if text.len() as u64 > FILE_MAX {
        return Err(refuse(format!("larger than {FILE_MAX} bytes")));
    }
    // serde's message names line and column and, for wrong types, may quote a value: keep only where.
    serde_json::from_slice(&text)
        .map_err(|error| refuse(format!("not a docker config.json (line {}, column {})", error.line(), error.column())))
}

/// How well a key of the file fits: `HOST`, `https://HOST/v1/`, `HOST/NAMESPACE`. Longer is better.
fn matches(key: &str, host: &str, repository: &str) -> Option<usize> {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let bare = bare.trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    let (key_host, space) = bare.split_once('/').map_or((bare, ""), |(host, space)| (host, space));
    let key_host = key_host.to_ascii_lowercase();
    let hub = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    let same = key_host == host || (hub.contains(&host) && hub.contains(&key_host.as_str()));
    let inside =
        space.is_empty() || repository.strip_prefix(space).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    (same && inside).then_some(space.len())
}

fn secret(auth: &Entry) -> Result<Option<Secret>, &'static str> {
    if let Some(token) = auth.identitytoken.as_ref().filter(|token| !token.is_empty()) {
        return Ok(Some(Secret::Identity(token.clone())));
    }
    if let Some(encoded) = auth.encoded.as_ref().filter(|text| !text.is_empty()) {
        let bytes = STANDARD.decode(encoded.trim()).map_err(|_| "'auth' is not base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "'auth' is not text")?;
        let (user, password) = text.split_once(':').ok_or("'auth' is not user:password")?;
        return Ok(Some(Secret::Basic { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() }));
    }
    match (&auth.username, &auth.password) {
        (Some(user), Some(password)) => Ok(Some(Secret::Basic { user: user.clone(), password: password.clone() })),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(json: &str, host: &str, repository: &str) -> Result<Option<Found>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        Credentials::new(Some(path)).find(host, repository)
    }

    fn user(found: Option<Found>) -> String {
        match found.map(|found| found.secret) {
            Some(Secret::Basic { user, password }) => format!("{user}:{password}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn keys_match_in_all_their_forms() {
        let auth = STANDARD.encode("u:p:q");
        for key in [
            "r.example.com:5000",
            "https://r.example.com:5000/v1/",
            "http://R.example.com:5000",
            "r.example.com:5000/acme",
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#);
            assert_eq!(user(find(&json, "r.example.com:5000", "acme/app").unwrap()), "u:p:q", "{key}");
            assert_eq!(find(&json, "r.example.com", "acme/app").unwrap(), None, "{key}");
        }
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"username":"a","password":"b"}}}"#;
        assert_eq!(user(find(json, "registry-1.docker.io", "library/x").unwrap()), "a:b");
    }

    #[test]
    fn helpers_are_named_not_run() {
        let helped = find(r#"{"credHelpers":{"r.example.com":"ecr-login"}}"#, "r.example.com", "x").unwrap_err();
        assert!(helped.to_string().contains("ecr-login"));
        let stored = find(r#"{"credsStore":"pass","auths":{"r.example.com":{}}}"#, "r.example.com", "x").unwrap_err();
        assert!(stored.to_string().contains("pass"));
        assert_eq!(find(r#"{"credsStore":"pass"}"#, "r.example.com", "x").unwrap(), None);
    }

    #[test]
    fn errors_do_not_show_secrets() {
        for json in [r#"{"auths":{"r.example.com":"hunter2"}}"#, r#"{"auths":{"r.example.com":{"auth":"hunter2"}}}"#] {
            assert!(!find(json, "r.example.com", "x").unwrap_err().to_string().contains("hunter2"));
        }
    }
}
