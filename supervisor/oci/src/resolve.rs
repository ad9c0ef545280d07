//! From a reference to everything that names the image by digest.
//!
//! In: a reference and a platform. Out: [`Resolved`]: manifest and config, verified, and the layers to fetch. Must not:
//! look at a tag twice, or fetch a layer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use molt_core::ids::{DiffId, Digest, ImageRef};

use crate::{
    config::{Limits, Platform, Registries},
    error::{Error, Result},
    fetch::{Progress, blocking},
    image::ImageConfig,
    layer::decode::{Packing, digest_of},
    layout::Layout,
    manifest::{self, ACCEPT, Descriptor, Manifest, Parsed},
    remote::{
        pace::Pace,
        registry::{Answer, Ask, Endpoint, Registry, blob_path},
    },
    store::LayerId,
    unpacker::Unpacker,
};

/// Resolves and fetches images. Cheap to use from many places; holds connections and tokens.
#[derive(Debug)]
pub struct Client {
    pub(crate) registry: Registry,
    pub(crate) limits: Limits,
    pub(crate) parallel: usize,
    pub(crate) unpacker: Option<Arc<Unpacker>>,
}

/// An image by digest, with its documents at hand.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What was asked for.
    pub reference: ImageRef,
    /// What the reference led to: an index or a manifest. Names the image from here on.
    pub digest: Digest,
    /// The index, where there was one.
    pub index: Option<Bytes>,
    /// The platform's manifest; equals `digest` where there is no index.
    pub manifest_digest: Digest,
    /// The platform's manifest.
    pub manifest: Bytes,
    /// Digest of the config.
    pub config_digest: Digest,
    /// The config.
    pub config: Bytes,
    /// The config, read.
    pub image: ImageConfig,
    /// Bottom first.
    pub layers: Vec<Layer>,
}

/// One layer of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Of the blob, packed.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// How it is packed.
    pub packing: Packing,
    /// Of the tar stream.
    pub diff_id: DiffId,
}

impl Layer {
    /// Its name in a store, where it is the same on any parents.
    pub fn id(&self) -> LayerId {
        LayerId::plain(self.diff_id, self.digest)
    }
}

/// Who is asked, and who is told of retries.
#[derive(Clone, Copy)]
struct Places<'a> {
    endpoints: &'a [Endpoint],
    progress: &'a dyn Progress,
}

/// What is asked for, in whose words.
#[derive(Clone, Copy)]
struct Asked<'a> {
    repository: &'a str,
    /// A tag or a digest.
    name: &'a str,
    pinned: Option<Digest>,
}

/// Documents on the way to [`Resolved`].
struct Documents {
    digest: Digest,
    index: Option<Bytes>,
    manifest_digest: Digest,
    manifest: Bytes,
    parsed: Manifest,
}

impl Client {
    /// Reads certificates; credentials are read when a registry asks for them.
    pub fn new(registries: &Registries, limits: Limits) -> Result<Self> {
        let registry = Registry::new(registries, limits.clone())?;
        Ok(Self { registry, limits, parallel: registries.parallel.clamp(1, 16), unpacker: None })
    }

    /// Layers are unpacked by confined processes, never by this one. What Molt runs; without it [`Self::fetch`] unpacks in
    /// the process that calls it, which is for tools and tests.
    #[must_use]
    pub fn confined(self, unpacker: Arc<Unpacker>) -> Self {
        Self { unpacker: Some(unpacker), ..self }
    }

    /// Walls that unpackers could not build so far, in words.
    pub fn degraded(&self) -> Vec<String> {
        self.unpacker.as_ref().map_or_else(Vec::new, |unpacker| unpacker.degraded())
    }

    /// Finds the image and reads its manifest and config, in [`Limits::resolve`] at most: a registry that sends a byte now
    /// and then never stalls, and never ends either.
    pub async fn resolve(
        &self,
        reference: &ImageRef,
        platform: &Platform,
        progress: &dyn Progress,
    ) -> Result<Resolved> {
        let after = self.limits.resolve;
        let late = |_| Error::Deadline { operation: "resolve", what: reference.to_string(), after };
        tokio::time::timeout(after, self.found(reference, platform, progress)).await.map_err(late)?
    }

    async fn found(&self, reference: &ImageRef, platform: &Platform, progress: &dyn Progress) -> Result<Resolved> {
        match reference {
            ImageRef::Registry { host, repository, tag, digest } => {
                let repository = repository_at(host, repository);
                let endpoints = self.registry.endpoints(host)?;
                let asked = match (digest, tag) {
                    (Some(digest), _) => digest.to_string(),
                    (None, Some(tag)) => tag.clone(),
                    (None, None) => "latest".to_owned(),
                };
                let wanted = Asked { repository: &repository, name: &asked, pinned: *digest };
                let found =
                    self.found_at(reference, Places { endpoints: &endpoints, progress }, wanted, platform).await;
                match (found, endpoints.as_slice()) {
                    // A mirror may have led astray with a tag: its word is not the last one.
                    (Err(error), [_, .., own]) if !error.transient() => {
                        progress.retry(&reference.to_string(), Duration::ZERO, &error.to_string());
                        let own = Places { endpoints: std::slice::from_ref(own), progress };
                        match self.found_at(reference, own, wanted, platform).await {
                            // Nobody is there: what the mirror has is all there is to be said.
                            Err(again) if again.transient() => Err(error),
                            found => found,
                        }
                    }
                    (found, _) => found,
                }
            }
            ImageRef::Layout { path, tag } => {
                let (path, tag) = (path.clone(), tag.clone());
                let (limits, reference, platform) = (self.limits.clone(), reference.clone(), platform.clone());
                blocking("the reader of the layout", move || {
                    from_layout(&path, tag.as_deref(), &reference, &platform, &limits)
                })
                .await
            }
        }
    }

    async fn found_at(
        &self,
        reference: &ImageRef,
        from: Places<'_>,
        wanted: Asked<'_>,
        platform: &Platform,
    ) -> Result<Resolved> {
        let documents = self.documents(reference, from, wanted, platform).await?;
        let config = &documents.parsed.config;
        let path = blob_path(&config.digest);
        let ask = Ask { repository: wanted.repository, path: &path, accept: None, from: 0 };
        let (config, ..) = self.verified(from, ask, Some(config.digest), config.size, |_| Ok(())).await?;
        assemble(reference, documents, config.bytes, platform)
    }

    async fn documents(
        &self,
        reference: &ImageRef,
        from: Places<'_>,
        wanted: Asked<'_>,
        platform: &Platform,
    ) -> Result<Documents> {
        let Asked { repository, name, pinned } = wanted;
        let path = format!("manifests/{name}");
        let ask = Ask { repository, path: &path, accept: Some(ACCEPT), from: 0 };
        let what = reference.to_string();
        let parse = |answer: &Answer| manifest::parse(&what, &answer.bytes, answer.media_type.as_deref(), &self.limits);
        let (answer, digest, parsed) = self.verified(from, ask, pinned, self.limits.manifest, parse).await?;
        let entries = match parsed {
            Parsed::Manifest(parsed) => {
                return Ok(Documents { digest, index: None, manifest_digest: digest, manifest: answer.bytes, parsed });
            }
            Parsed::Index(entries) => entries,
        };
        let chosen = manifest::choose(&what, &entries, platform)?;
        let path = format!("manifests/{}", chosen.digest);
        let ask = Ask { repository, path: &path, accept: Some(ACCEPT), from: 0 };
        let at_most = chosen.size.min(self.limits.manifest);
        let parse =
            |inner: &Answer| inner_manifest(&what, &inner.bytes, inner.media_type.as_deref(), chosen, &self.limits);
        let (inner, manifest_digest, parsed) = self.verified(from, ask, Some(chosen.digest), at_most, parse).await?;
        Ok(Documents { digest, index: Some(answer.bytes), manifest_digest, manifest: inner.bytes, parsed })
    }

    /// Gets a document from the first endpoint that has it right: it is what its digest says, and `parse` can read it.
    async fn verified<T>(
        &self,
        from: Places<'_>,
        ask: Ask<'_>,
        digest: Option<Digest>,
        at_most: u64,
        parse: impl Fn(&Answer) -> Result<T>,
    ) -> Result<(Answer, Digest, T)> {
        let mut pace = Pace::new(&self.limits, ask.path, Some(from.progress));
        let mut endpoints = from.endpoints.iter().peekable();
        while let Some(endpoint) = endpoints.peek() {
            let result = self.registry.get(endpoint, ask, at_most).await.and_then(|answer| {
                let actual = digest_of(&answer.bytes);
                let said = answer.digest.as_deref().and_then(|text| text.parse().ok());
                match digest.or(said) {
                    Some(expected) if expected != actual => Err(Error::Mismatch {
                        what: ask.path.to_owned(),
                        expected: expected.to_string(),
                        actual: actual.to_string(),
                    }),
                    _ => parse(&answer).map(|parsed| (answer, actual, parsed)),
                }
            });
            match result {
                Ok(found) => return Ok(found),
                Err(error) if endpoint.own => pace.pause(error).await?,
                Err(error) => {
                    tracing::info!(mirror = endpoint.host, %error, "the mirror is passed over");
                    endpoints.next();
                }
            }
        }
        Err(Error::NotFound { what: ask.path.to_owned(), place: "any mirror".to_owned() })
    }
}

/// `docker.io/NAME` is short for `docker.io/library/NAME`, there only.
pub(crate) fn repository_at(host: &str, repository: &str) -> String {
    if host == "docker.io" && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    }
}

fn inner_manifest(
    what: &str,
    bytes: &[u8],
    media_type: Option<&str>,
    chosen: &Descriptor,
    limits: &Limits,
) -> Result<Manifest> {
    if media_type.is_some_and(|kind| kind != chosen.media_type) {
        return Err(Error::manifest(what, "the index and the manifest's media type differ"));
    }
    match manifest::parse(what, bytes, Some(&chosen.media_type), limits)? {
        Parsed::Manifest(parsed) => Ok(parsed),
        Parsed::Index(_) => Err(Error::manifest(what, "an index inside an index")),
    }
}

fn from_layout(
    path: &str,
    tag: Option<&str>,
    reference: &ImageRef,
    platform: &Platform,
    limits: &Limits,
) -> Result<Resolved> {
    let layout = Layout::open(path, limits)?;
    let what = reference.to_string();
    let entry = layout.entry(tag, limits)?;
    let bytes = layout.checked(&entry.digest, entry.size.min(limits.manifest))?;
    let documents = match manifest::parse(&what, &bytes, Some(&entry.media_type), limits)? {
        Parsed::Manifest(parsed) => {
            Documents { digest: entry.digest, index: None, manifest_digest: entry.digest, manifest: bytes, parsed }
        }
        Parsed::Index(entries) => {
            let chosen = manifest::choose(&what, &entries, platform)?;
            let inner = layout.checked(&chosen.digest, chosen.size.min(limits.manifest))?;
            let parsed = inner_manifest(&what, &inner, None, chosen, limits)?;
            Documents {
                digest: entry.digest,
                index: Some(bytes),
                manifest_digest: chosen.digest,
                manifest: inner,
                parsed,
            }
        }
    };
    let config = layout.checked(&documents.parsed.config.digest, documents.parsed.config.size)?;
    assemble(reference, documents, config, platform)
}

fn assemble(reference: &ImageRef, documents: Documents, config: Bytes, platform: &Platform) -> Result<Resolved> {
    let what = reference.to_string();
    let (image, diff_ids) = ImageConfig::parse(&what, &config)?;
    if !image.platform().serves(platform) {
        return Err(Error::Platform {
            wanted: platform.to_string(),
            reference: what,
            found: format!("only {}", crate::error::show(image.platform().to_string().as_bytes())),
        });
    }
    let (manifest, config_digest) = (documents.manifest, documents.parsed.config.digest);
    if diff_ids.len() != documents.parsed.layers.len() {
        return Err(Error::manifest(
            what,
            format!("{} layers, but its config has {} diff ids", documents.parsed.layers.len(), diff_ids.len()),
        ));
    }
    let layers = documents
        .parsed
        .layers
        .iter()
        .zip(diff_ids)
        .map(|((layer, packing), diff_id)| Layer { digest: layer.digest, size: layer.size, packing: *packing, diff_id })
        .collect();
    Ok(Resolved {
        reference: reference.clone(),
        digest: documents.digest,
        index: documents.index,
        manifest_digest: documents.manifest_digest,
        manifest,
        config_digest,
        config,
        image,
        layers,
    })
}
