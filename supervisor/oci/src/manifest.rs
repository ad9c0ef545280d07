//! Manifests, indexes and the choice of a platform.
//!
//! In: bytes already checked against their digest, and the media type they came with. Out: typed documents. Must not:
//! take a document that could be read in two ways, follow `urls`, or allocate beyond the bytes given.

use molt_core::ids::Digest;
use serde::Deserialize;

use crate::{
    config::{Limits, Platform},
    error::{Error, Result, show},
    layer::decode::Packing,
};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What Molt asks registries for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A reference to content by digest. Unknown fields, `urls` among them, are not read.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<PlatformField>,
    #[serde(default)]
    pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PlatformField {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl PlatformField {
    fn platform(&self) -> Platform {
        Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant: self.variant.clone() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

/// An index or a manifest.
#[derive(Debug)]
pub(crate) enum Parsed {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// An image manifest.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<(Descriptor, Packing)>,
}

/// Reads a document that came as `media_type` (without parameters; none where the source did not say).
pub(crate) fn parse(what: &str, bytes: &[u8], media_type: Option<&str>, limits: &Limits) -> Result<Parsed> {
    let refuse = |why: String| Error::manifest(what, why);
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| refuse(format!("not a manifest or index: {error}")))?;
    if document.schema_version != 2 {
        return Err(refuse(format!(
            "schema version {} is not taken; push the image again with a current tool",
            document.schema_version
        )));
    }
    let said = match (document.media_type.as_deref(), media_type) {
        (Some(own), Some(outer)) if own != outer => {
            return Err(refuse(format!(
                "it came as '{}' and calls itself '{}'",
                show(outer.as_bytes()),
                show(own.as_bytes())
            )));
        }
        (Some(kind), _) | (None, Some(kind)) => kind,
        (None, None) => return Err(refuse("nothing says what it is: no media type".to_owned())),
    };
    match (said, document.manifests, document.layers, document.config) {
        (OCI_INDEX | DOCKER_LIST, Some(manifests), None, None) => {
            if manifests.len() > limits.index_entries {
                return Err(refuse(format!("{} entries, more than {}", manifests.len(), limits.index_entries)));
            }
            Ok(Parsed::Index(manifests))
        }
        (OCI_MANIFEST | DOCKER_MANIFEST, None, Some(layers), Some(config)) => {
            if !CONFIGS.contains(&config.media_type.as_str()) {
                let kind = document.artifact_type.unwrap_or_else(|| config.media_type.clone());
                return Err(refuse(format!("an artifact of type '{}', not an image", show(kind.as_bytes()))));
            }
            manifest(config, layers, limits).map(Parsed::Manifest).map_err(refuse)
        }
        (OCI_INDEX | DOCKER_LIST | OCI_MANIFEST | DOCKER_MANIFEST, ..) => {
            Err(refuse("it mixes the parts of an index and a manifest, or lacks them".to_owned()))
        }
        (other, ..) => Err(refuse(format!("media type '{}' is not taken", show(other.as_bytes())))),
    }
}

fn manifest(config: Descriptor, layers: Vec<Descriptor>, limits: &Limits) -> Result<Manifest, String> {
    if config.size > limits.config {
        return Err(format!("a config of {} bytes, more than {}", config.size, limits.config));
    }
    if layers.len() > limits.layers {
        return Err(format!("{} layers, more than {}; squash the image", layers.len(), limits.layers));
    }
    let mut packed = Vec::with_capacity(layers.len());
    for layer in layers {
        let kind = show(layer.media_type.as_bytes());
        if kind.contains("nondistributable") || kind.contains("foreign") {
            return Err(format!("layer {} may not be distributed ({kind})", layer.digest));
        }
        let packing = Packing::of(&layer.media_type)
            .ok_or_else(|| format!("layer {} is of type '{kind}', which is not taken", layer.digest))?;
        if layer.size > limits.layer_bytes {
            return Err(format!("layer {} has {} bytes, more than {}", layer.digest, layer.size, limits.layer_bytes));
        }
        packed.push((layer, packing));
    }
    Ok(Manifest { config, layers: packed })
}

/// The manifest for `wanted` among the entries of an index. Attestations and other indexes are passed over.
pub(crate) fn choose<'a>(reference: &str, entries: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor> {
    let images = || {
        entries.iter().filter(|entry| [OCI_MANIFEST, DOCKER_MANIFEST].contains(&entry.media_type.as_str())).filter_map(
            |entry| {
                let platform = entry.platform.as_ref()?.platform();
                (platform.os != "unknown").then_some((entry, platform))
            },
        )
    };
    if let Some((entry, _)) = images().find(|(_, platform)| platform.serves(wanted)) {
        return Ok(entry);
    }
    let mut found: Vec<String> = images().map(|(_, platform)| show(platform.to_string().as_bytes())).collect();
    found.dedup();
    let found = if found.is_empty() { "no platform at all".to_owned() } else { format!("only {}", found.join(", ")) };
    Err(Error::Platform { wanted: wanted.to_string(), reference: reference.to_owned(), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, media_type: Option<&str>) -> Result<Parsed> {
        parse("test", json.as_bytes(), media_type, &Limits::default())
    }

    fn descriptor(kind: &str, size: u64) -> String {
        format!(r#"{{"mediaType":"{kind}","digest":"sha256:{}","size":{size}}}"#, "a".repeat(64))
    }

    #[test]
    fn plain_documents_are_read() {
        let (config, layer) = (descriptor(CONFIGS[0], 2), descriptor("application/vnd.oci.image.layer.v1.tar+gzip", 9));
        let json = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#);
        assert!(matches!(read(&json, Some(OCI_MANIFEST)).unwrap(), Parsed::Manifest(m) if m.layers.len() == 1));
        let json =
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#, descriptor(OCI_MANIFEST, 1));
        assert!(matches!(read(&json, None).unwrap(), Parsed::Index(entries) if entries.len() == 1));
    }

    #[test]
    fn ambiguous_and_foreign_documents_are_refused() {
        let config = descriptor(CONFIGS[0], 2);
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layer = descriptor(gzip, 9);
        let many = vec![layer.clone(); 129].join(",");
        let entries = vec![descriptor(OCI_MANIFEST, 1); 65].join(",");
        for (json, media_type) in [
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#), OCI_MANIFEST),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#), OCI_INDEX),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#), OCI_INDEX),
            (format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{config},"layers":[]}}"#), OCI_MANIFEST),
            (format!(r#"{{"schemaVersion":1,"config":{config},"layers":[]}}"#), OCI_MANIFEST),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"layers":[]}}"#), OCI_MANIFEST),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{many}]}}"#), OCI_MANIFEST),
            (format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#), OCI_INDEX),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#), "text/html"),
            (
                format!(
                    r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#,
                    descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", 1)
                ),
                OCI_MANIFEST,
            ),
            (
                format!(
                    r#"{{"schemaVersion":2,"config":{},"layers":[{layer}]}}"#,
                    descriptor("application/vnd.example.sbom+json", 1)
                ),
                OCI_MANIFEST,
            ),
            (
                format!(r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#, descriptor(CONFIGS[0], 9 << 20)),
                OCI_MANIFEST,
            ),
            (
                format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, descriptor(gzip, 17 << 30)),
                OCI_MANIFEST,
            ),
            (
                format!(
                    r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#,
                    layer.replace("sha256:", "sha512:")
                ),
                OCI_MANIFEST,
            ),
            ("[".repeat(100_000), OCI_MANIFEST),
            (String::new(), OCI_MANIFEST),
        ] {
            assert!(read(&json, Some(media_type)).is_err(), "{json:.300} as {media_type}");
        }
    }
}
