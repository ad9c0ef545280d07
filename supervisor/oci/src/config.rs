//! Settings and limits: which registries, how to speak to them, and what no image may exceed.
//!
//! In: the spec's `registries` section and compiled-in defaults. Out: [`Registries`], [`Limits`], [`Platform`]. Must
//! not: read files; [`crate::Client::new`] does, once.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `registries` section of the sandbox spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Registries {
    /// `host[:port]` that are spoken to in plain HTTP. All others: HTTPS, always verified.
    pub insecure: Vec<String>,
    /// A docker `config.json` with `auths`, as `docker login` or a Kubernetes pull secret makes it.
    pub credentials: Option<PathBuf>,
    /// Extra CA certificates: a PEM file or a folder of `*.pem` and `*.crt`, read once from Molt's own root.
    pub certificates: Option<PathBuf>,
    /// For a registry host, mirrors to ask first, in order: `host[:port][/prefix]`. They never get credentials.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Layers fetched at the same time.
    pub parallel: usize,
}

impl Default for Registries {
    fn default() -> Self {
        Self { insecure: Vec::new(), credentials: None, certificates: None, mirrors: BTreeMap::new(), parallel: 3 }
    }
}

/// Bounds on everything that comes from outside. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// A manifest or index.
    pub manifest: u64,
    /// An image config.
    pub config: u64,
    /// A token answer.
    pub token: u64,
    /// Platforms in an index.
    pub index_entries: usize,
    /// Layers of an image: mounting more lowers fails on some kernels.
    pub layers: usize,
    /// One layer, unpacked.
    pub layer_bytes: u64,
    /// Entries of one layer.
    pub entries: u64,
    /// Folders above an entry.
    pub depth: usize,
    /// A path.
    pub path: usize,
    /// A path component.
    pub component: usize,
    /// Unpacked to packed, once `ratio_after` bytes have come out.
    pub ratio: u64,
    /// See `ratio`.
    pub ratio_after: u64,
    /// log2 of the largest zstd window.
    pub zstd_window_log: u32,
    /// Memory for names of folders whose times or parents are settled at the end of a layer.
    pub deferred_bytes: usize,
    /// Bytes that stay free in the store after a fetch.
    pub reserve: u64,
    /// Attempts for one request, the first included.
    pub attempts: u32,
    /// First pause between attempts; doubles, with jitter.
    pub backoff: Duration,
    /// Longest pause, and the most that `Retry-After` is believed.
    pub backoff_max: Duration,
    /// For a connection, TLS included.
    pub connect: Duration,
    /// Without a byte.
    pub stall: Duration,
    /// Without a sign of life from the processes of a layer: no byte is taken and no processor time used.
    pub unpack_stall: Duration,
    /// For manifest, config and tokens together, whatever trickles in meanwhile.
    pub resolve: Duration,
    /// For a whole fetch.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest: 4 << 20,
            config: 8 << 20,
            token: 64 << 10,
            index_entries: 64,
            layers: 128,
            layer_bytes: 16 << 30,
            entries: 1_000_000,
            depth: 256,
            path: 4096,
            component: 255,
            ratio: 200,
            ratio_after: 64 << 20,
            zstd_window_log: 27,
            deferred_bytes: 64 << 20,
            reserve: 64 << 20,
            attempts: 4,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_mins(1),
            connect: Duration::from_secs(10),
            stall: Duration::from_mins(1),
            unpack_stall: Duration::from_mins(1),
            resolve: Duration::from_mins(5),
            deadline: Duration::from_mins(30),
        }
    }
}

/// Operating system, architecture and variant, in Go's words (`linux`, `amd64`, `v8`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`…
    pub architecture: String,
    /// `v7`, `v8`…; none takes what the architecture's plain form is.
    pub variant: Option<String>,
}

impl Platform {
    /// The machine this runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// The variant with what goes without saying left out: arm64 is v8, amd64 is v1.
    fn plain_variant(&self) -> Option<&str> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            (_, None | Some("")) | ("arm64", Some("v8")) | ("amd64", Some("v1")) => None,
            (_, Some(variant)) => Some(variant),
        }
    }

    /// Whether an image for `self` is exactly what `wanted` asks for.
    pub fn serves(&self, wanted: &Self) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && self.plain_variant() == wanted.plain_variant()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().filter(|text| !text.is_empty()).map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
    }

    #[test]
    fn platforms_match_exactly() {
        for (have, want, fits) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/amd64/v3", "linux/amd64", false),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("windows/amd64", "linux/amd64", false),
        ] {
            assert_eq!(platform(have).serves(&platform(want)), fits, "{have} for {want}");
        }
    }
}
