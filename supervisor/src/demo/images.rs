//! The demo's images: an OCI layout with three tags that share their first layer, this binary.
//!
//! In: the running executable. Out: `images/demo` below the demo's folder. Must not: need any tool.

use std::path::Path;

use anyhow::Context as _;
use serde_json::json;

const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

struct Blob {
    digest: String,
    size: usize,
}

/// Writes the layout.
pub(super) fn write(folder: &Path) -> anyhow::Result<()> {
    let layout = folder.join("images/demo");
    std::fs::create_dir_all(layout.join("blobs/sha256"))?;
    let binary = std::fs::read("/proc/self/exe").context("failed to read this program")?;
    let program = put(&layout, &tar(&[("molt", 0o755, &binary)])?)?;
    let mut manifests = Vec::new();
    for tag in ["v1", "v2", "bad"] {
        let version = put(&layout, &tar(&[("etc/version", 0o644, format!("{tag}\n").as_bytes())])?)?;
        let config = json!({
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": {"Entrypoint": ["/molt", super::DAEMON]},
            "rootfs": {"type": "layers", "diff_ids": [program.digest, version.digest]},
        });
        let config = put(&layout, config.to_string().as_bytes())?;
        let layer = |blob: &Blob| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blob.digest, "size": blob.size});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.digest,
                "size": config.size,
            },
            "layers": [layer(&program), layer(&version)],
        });
        let manifest = put(&layout, manifest.to_string().as_bytes())?;
        manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest.digest,
            "size": manifest.size,
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }));
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    std::fs::write(layout.join("index.json"), index.to_string())?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    std::fs::write(folder.join("images/sandbox.yaml"), SPEC)?;
    Ok(())
}

const SPEC: &str = "\
apiVersion: molt.dev/v1alpha1
kind: Sandbox
metadata: {name: demo}
spec:
  image: oci:/images/demo:v1
  state: [/sandbox/state]
  health:
    readiness: {notify: {}, period: 100ms}
    monitor: 500ms
    startupDeadline: 5s
  update: {reserve: 1MiB}
";

fn put(layout: &Path, bytes: &[u8]) -> anyhow::Result<Blob> {
    let hex = crate::effects::plan::sha256(bytes).hex();
    std::fs::write(layout.join("blobs/sha256").join(&hex), bytes)?;
    Ok(Blob { digest: format!("sha256:{hex}"), size: bytes.len() })
}

fn tar(files: &[(&str, u32, &[u8])]) -> anyhow::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, bytes) in files {
        if let Some((parent, _)) = path.rsplit_once('/') {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            builder.append_data(&mut header, format!("{parent}/"), std::io::empty())?;
        }
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, *bytes)?;
    }
    Ok(builder.into_inner()?)
}
