//! The image config: what the program is, for which platform, from which layers.
//!
//! In: the bytes of a config, already checked against their digest. Out: [`ImageConfig`] and the diff ids. Must not: pass
//! on text with NUL bytes, which no exec takes, or resolve users or paths.

use std::collections::BTreeMap;

use molt_core::ids::DiffId;
use serde::{Deserialize, Serialize};

use crate::{
    config::Platform,
    error::{Error, Result},
};

/// Longest `User`, `os`, `architecture` and `variant`, in bytes: they are told to people, and longer ones are none.
const WORD: usize = 256;

/// What an image says about how to run it. Missing and null fields are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageConfig {
    /// Operating system.
    pub os: String,
    /// Architecture, in Go's words.
    pub architecture: String,
    /// Variant of the architecture.
    pub variant: Option<String>,
    /// `user[:group]`, by name or number; empty where not said.
    pub user: String,
    /// `NAME=value`; others are left out.
    pub env: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Where to start; empty is `/`.
    pub working_dir: String,
    /// Signal that asks the program to stop, by name or number.
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Paths the image expects to be volumes.
    pub volumes: Vec<String>,
    /// `port/protocol`.
    pub exposed_ports: Vec<String>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<Run>,
    rootfs: Rootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<DiffId>>,
}

impl ImageConfig {
    /// The platform it was built for.
    pub fn platform(&self) -> Platform {
        Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant: self.variant.clone() }
    }

    /// Reads a config of an OCI or docker image. The diff ids are those of its layers, bottom first.
    pub fn parse(what: &str, bytes: &[u8]) -> Result<(Self, Vec<DiffId>)> {
        let refuse = |why: String| Error::manifest(format!("the config of {what}"), why);
        let document: Document = serde_json::from_slice(bytes).map_err(|error| {
            // It quotes what it found.
            let error: String = error.to_string().chars().take(WORD).collect();
            refuse(format!("not an image config: {error}"))
        })?;
        if document.rootfs.kind != "layers" {
            return Err(refuse("its rootfs is not made of layers".to_owned()));
        }
        let run = document.config.unwrap_or_default();
        let mut env = run.env.unwrap_or_default();
        env.retain(|pair| pair.find('=').is_some_and(|at| at > 0));
        let keys =
            |map: Option<BTreeMap<String, serde_json::Value>>| map.unwrap_or_default().into_keys().collect::<Vec<_>>();
        let config = Self {
            os: document.os.unwrap_or_default(),
            architecture: document.architecture.unwrap_or_default(),
            variant: document.variant.filter(|text| !text.is_empty()),
            user: run.user.unwrap_or_default(),
            env,
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|text| !text.is_empty()),
            labels: run.labels.unwrap_or_default(),
            volumes: keys(run.volumes),
            exposed_ports: keys(run.exposed_ports),
        };
        if config.os.is_empty() || config.architecture.is_empty() {
            return Err(refuse("it does not say for which os and architecture it is".to_owned()));
        }
        let texts = config.env.iter().chain(&config.entrypoint).chain(&config.cmd).chain(&config.volumes);
        if texts.chain([&config.user, &config.working_dir]).any(|text| text.contains('\0')) {
            return Err(refuse("a NUL byte in its command, environment, user or paths".to_owned()));
        }
        let variant = config.variant.as_ref().map(|variant| ("variant", variant));
        let words = [("User", &config.user), ("os", &config.os), ("architecture", &config.architecture)];
        if let Some((name, word)) = words.into_iter().chain(variant).find(|(_, word)| word.len() > WORD) {
            let (length, begins) = (word.len(), crate::error::show(word.as_bytes()));
            return Err(refuse(format!("its {name} has {length} bytes, more than {WORD}, and begins with '{begins}'")));
        }
        Ok((config, document.rootfs.diff_ids.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_missing_fields_are_empty() {
        let json = r#"{"os":"linux","architecture":"amd64","config":{"Cmd":["/bin/sh"],"Entrypoint":null,"Env":["A=1","B","=x"],
            "Volumes":{"/data":{}},"Labels":null},"rootfs":{"type":"layers","diff_ids":null},"history":[{"x":1}]}"#;
        let (config, diff_ids) = ImageConfig::parse("x", json.as_bytes()).unwrap();
        assert_eq!(
            (config.cmd, config.env, config.volumes),
            (vec!["/bin/sh".into()], vec!["A=1".into()], vec!["/data".into()])
        );
        assert!(diff_ids.is_empty() && config.entrypoint.is_empty());
    }

    #[test]
    fn hostile_configs_are_refused() {
        for json in [
            r#"{"os":"linux","rootfs":{"type":"layers"}}"#,
            r#"{"os":"linux","architecture":"amd64","rootfs":{"type":"other"}}"#,
            r#"{"os":"linux","architecture":"amd64"}"#,
            r#"{"os":"linux","architecture":"amd64","config":{"Cmd":["a\u0000b"]},"rootfs":{"type":"layers"}}"#,
            r#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:../x"]}}"#,
            r#"{"os":"linux","os":"windows","architecture":"amd64","rootfs":{"type":"layers"}}"#,
        ] {
            assert!(ImageConfig::parse("x", json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn words_that_are_told_to_people_are_no_books() {
        let parse = |name: &str, length: usize| {
            let mut document =
                serde_json::json!({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": {"type": "layers"}});
            let word = serde_json::json!("\u{1}".repeat(length));
            match name {
                "User" => document["config"][name] = word,
                _ => document[name] = word,
            }
            ImageConfig::parse("x", document.to_string().as_bytes())
        };
        let book = serde_json::json!("x".repeat(1 << 20)).to_string();
        let said = ImageConfig::parse("x", book.as_bytes()).unwrap_err().to_string();
        assert!(said.contains(": not an image config: ") && said.len() < 400, "{}", said.len());
        for name in ["User", "os", "architecture", "variant"] {
            assert!(parse(name, 256).is_ok());
            let error = parse(name, 1 << 20).unwrap_err();
            assert_eq!(error.code(), molt_core::code::Code::ManifestInvalid);
            let said = error.to_string();
            let wanted =
                format!("read the config of x: its {name} has 1048576 bytes, more than 256, and begins with '");
            assert!(said.starts_with(&wanted) && said.len() < 2048, "{said}");
        }
    }
}
