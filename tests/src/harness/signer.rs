//! Who signs orders, by openssl.
//!
//! In: claims. Out: tokens. Must not: sign anything with Molt's own code.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::bed::Bed;
use super::molt::Molt;

/// Somebody with a private key.
#[derive(Debug)]
pub struct Signer {
    id: &'static str,
    /// Where its keys are, as PEM: `private.pem`, `public.pem`.
    pub folder: PathBuf,
}

impl Signer {
    /// A new one.
    pub fn new(bed: &Bed, id: &'static str) -> anyhow::Result<Self> {
        let folder = bed.scratch(id)?;
        let signer = Self { id, folder };
        signer.openssl(&["genpkey", "-algorithm", "ed25519", "-out", "private.pem"])?;
        signer.openssl(&["pkey", "-in", "private.pem", "-pubout", "-out", "public.pem"])?;
        Ok(signer)
    }

    /// Runs openssl there.
    pub fn openssl(&self, words: &[&str]) -> anyhow::Result<()> {
        let output = Command::new("openssl").args(words).current_dir(&self.folder).output().context("openssl")?;
        ensure!(output.status.success(), "openssl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The key as the spec has it, with what it may do.
    pub fn key(&self, more: &Value) -> anyhow::Result<Value> {
        let mut key = json!({"id": self.id, "algorithm": "EdDSA", "operations": ["update"]});
        key["key"] = json!(fs::read_to_string(self.folder.join("public.pem"))?);
        if let (Some(key), Some(more)) = (key.as_object_mut(), more.as_object()) {
            key.extend(more.clone());
        }
        Ok(key)
    }

    /// A token that says `claims` beside what every order says.
    pub fn sign(&self, seq: u64, claims: &Value) -> anyhow::Result<String> {
        let now = u64::try_from(jiff::Timestamp::now().as_second())?;
        let mut all = json!({"ver": 1, "aud": "molt:tested", "seq": seq, "iat": now, "exp": now + 300,
            "jti": format!("test-{seq}")});
        if let (Some(all), Some(claims)) = (all.as_object_mut(), claims.as_object()) {
            all.extend(claims.clone());
        }
        let header = json!({"alg": "EdDSA", "kid": self.id});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&all));
        fs::write(self.folder.join("signed"), &signed)?;
        self.openssl(&["pkeyutl", "-sign", "-inkey", "private.pem", "-rawin", "-in", "signed", "-out", "signature"])?;
        let signature = fs::read(self.folder.join("signature"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The digest a reference leads to.
pub fn digest_of(molt: &Molt, image: &str) -> anyhow::Result<String> {
    let plan = molt.json(&["update", image, "--dry-run", "--force"])?;
    Ok(plan["digest"].as_str().context("a digest")?.to_owned())
}

/// The reference, by digest.
pub fn pinned(molt: &Molt, image: &str) -> anyhow::Result<String> {
    let name = image.rsplit_once(':').context("a tag")?.0;
    Ok(format!("{name}@{}", digest_of(molt, image)?))
}
