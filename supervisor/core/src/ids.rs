//! Newtypes for everything that is named: digests, diff ids, generations, update ids, image references.
//!
//! In: text. Out: values that are valid by construction. Must not: allocate paths from unchecked text; a file name in
//! the store is only ever made from [`Digest::hex`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} '{text}': {why}")]
pub struct ParseError {
    /// What was expected, for example `digest`.
    pub what: &'static str,
    /// The text as given, cut to 200 characters.
    pub text: String,
    /// Why it was refused.
    pub why: &'static str,
}

fn refuse(what: &'static str, text: &str, why: &'static str) -> ParseError {
    ParseError { what, text: text.chars().take(200).collect::<String>().escape_debug().to_string(), why }
}

/// `sha256:` and 64 lower-case hex digits. No other algorithm is taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// From the 32 bytes of a SHA-256.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hex digits: the only text that becomes a file name in the store.
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// The first twelve hex digits, for people.
    pub fn short(&self) -> String {
        self.hex().chars().take(12).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let hex = text
            .strip_prefix("sha256:")
            .ok_or_else(|| refuse("digest", text, "only sha256:<64 lower-case hex digits> is taken"))?;
        if hex.len() != 64 {
            return Err(refuse("digest", text, "must have 64 hex digits"));
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| match c {
                b'0'..=b'9' => Ok(c - b'0'),
                b'a'..=b'f' => Ok(c - b'a' + 10),
                _ => Err(refuse("digest", text, "must be lower-case hex")),
            };
            let [high, low] = pair else { return Err(refuse("digest", text, "must have 64 hex digits")) };
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(bytes))
    }
}

/// The digest of a layer's uncompressed tar stream: names the unpacked layer in the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiffId(pub Digest);

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DiffId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.parse().map(Self)
    }
}

/// A numbered, immutable combination of image digest, policy digest and launch settings. 0 is the container's own root.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Generation {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.parse().map(Self).map_err(|_| refuse("generation", text, "must be a whole number"))
    }
}

/// Names one intent and everything done for it: `u` and a number that only rises in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpdateId(pub u64);

impl fmt::Display for UpdateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "u{}", self.0)
    }
}

impl FromStr for UpdateId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.strip_prefix('u')
            .and_then(|number| number.parse().ok())
            .map(Self)
            .ok_or_else(|| refuse("update id", text, "must be 'u' and a number"))
    }
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageRef {
    /// `HOST[:PORT]/PATH[:TAG][@sha256:HEX]`. The host is always spelled out: there is no default registry.
    Registry {
        /// Host and optional port, lower case.
        host: String,
        /// Repository path below the host.
        repository: String,
        /// Tag; `latest` where neither tag nor digest was given.
        tag: Option<String>,
        /// Digest, which decides when both are given.
        digest: Option<Digest>,
    },
    /// `oci:PATH[:TAG]`: an OCI layout folder, or a tar of one.
    Layout {
        /// Absolute path, in PID 1's own root.
        path: String,
        /// `org.opencontainers.image.ref.name`; the only manifest where not given.
        tag: Option<String>,
    },
}

impl ImageRef {
    /// The same reference without tag, pinned to `digest`.
    #[must_use]
    pub fn pinned(&self, to: Digest) -> Self {
        match self {
            Self::Registry { host, repository, .. } => {
                Self::Registry { host: host.clone(), repository: repository.clone(), tag: None, digest: Some(to) }
            }
            Self::Layout { .. } => self.clone(),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { host, repository, tag, digest } => {
                write!(f, "{host}/{repository}")?;
                if let Some(tag) = tag {
                    write!(f, ":{tag}")?;
                }
                if let Some(digest) = digest {
                    write!(f, "@{digest}")?;
                }
                Ok(())
            }
            Self::Layout { path, tag } => {
                write!(f, "oci:{path}")?;
                if let Some(tag) = tag {
                    write!(f, ":{tag}")?;
                }
                Ok(())
            }
        }
    }
}

fn is_tag(text: &str) -> bool {
    // distribution-spec: [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}
    let mut bytes = text.bytes();
    text.len() <= 128
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn is_repository(text: &str) -> bool {
    // distribution-spec: path components of [a-z0-9]+ joined by single separators.
    !text.is_empty()
        && text.len() <= 255
        && text.split('/').all(|component| {
            let edge = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            edge(component.bytes().next())
                && edge(component.bytes().last())
                && component
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
        })
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port))
                if address.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || port.starts_with(':')) =>
            {
                ("v6", port.strip_prefix(':'))
            }
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let port_ok = port.is_none_or(|port| digits(port) && port.parse::<u16>().is_ok_and(|number| number != 0));
    // To a URL a last label that is a number makes an address of the whole, however it is written: 0x7f.1 is 127.0.0.1.
    let last = name.rsplit('.').next().unwrap_or_default();
    let address_ok = !(digits(last) || last.starts_with("0x")) || name.parse::<std::net::Ipv4Addr>().is_ok();
    let name_ok = name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        });
    let spelled_out = text.contains(['.', ':']) || name == "localhost";
    port_ok && name_ok && address_ok && spelled_out
}

impl FromStr for ImageRef {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        const WHAT: &str = "image reference";
        if text.len() > 1024 {
            return Err(refuse(WHAT, text, "longer than 1024 bytes"));
        }
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(refuse(WHAT, text, "must not hold control characters"));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, tag) = match rest.rsplit_once(':') {
                Some((path, tag)) if is_tag(tag) => (path, Some(tag.to_owned())),
                Some((_, tag)) if !tag.contains('/') => return Err(refuse(WHAT, text, "the tag is not valid")),
                _ => (rest, None),
            };
            if !path.starts_with('/') {
                return Err(refuse(WHAT, text, "oci: takes an absolute path, as in oci:/images/app:1.2"));
            }
            return Ok(Self::Layout { path: path.to_owned(), tag });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (host, rest) = rest
            .split_once('/')
            .ok_or_else(|| refuse(WHAT, text, "name the registry too, as in registry.example.com/name:tag"))?;
        let host = host.to_ascii_lowercase();
        if !is_host(&host) {
            return Err(refuse(WHAT, text, "name the registry too, as in registry.example.com/name:tag"));
        }
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err(refuse(WHAT, text, "the repository must be lower-case path components"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse(WHAT, text, "the tag is not valid"));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self::Registry { host, repository: repository.to_owned(), tag, digest })
    }
}

macro_rules! text_serde {
    ($($name:ident: $pattern:literal),+ $(,)?) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "pattern": $pattern})
            }
        }
    )+};
}
text_serde!(Digest: "^sha256:[0-9a-f]{64}$", DiffId: "^sha256:[0-9a-f]{64}$", UpdateId: "^u[0-9]{1,19}$", ImageRef: "^.{1,1024}$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_round_trip() {
        for text in [
            "registry.example.com/acme/daemon:1.5",
            "localhost:5000/small:v1",
            "127.0.0.1:5000/a/b-c_d.e:v1",
            "[::1]:5000/a:v1",
            "oci:/images/app:1.2",
            "oci:/images/app.tar",
        ] {
            assert_eq!(text.parse::<ImageRef>().unwrap().to_string(), text);
        }
        let latest: ImageRef = "localhost/x".parse().unwrap();
        assert_eq!(latest.to_string(), "localhost/x:latest");
        let pinned = format!("localhost/x@sha256:{}", "a".repeat(64));
        assert_eq!(pinned.parse::<ImageRef>().unwrap().to_string(), pinned);
    }

    #[test]
    fn bad_references_are_refused() {
        for text in [
            "",
            "[::1]x/a:v1",
            "[::1].example.com/a:v1",
            "localhost:+5000/a:v1",
            "0x7f.1/a:v1",
            "2130706433:5000/a:v1",
            "1.2.3/a:v1",
            "registry.1/a:v1",
            "busybox",
            "busybox:latest",
            "acme/daemon:1",
            "https://localhost/x",
            "localhost/X:1",
            "localhost/x:-",
            "localhost/../x:1",
            "localhost/x@sha256:abc",
            "localhost/x@md5:d41d8cd98f00b204e9800998ecf8427e",
            "localhost:0/x",
            "localhost:99999/x",
            "oci:relative",
            "oci:/x:b@d",
            "a\nb/c",
        ] {
            assert!(text.parse::<ImageRef>().is_err(), "{text:?} must be refused");
        }
    }

    #[test]
    fn digests_are_strict() {
        let good = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        for text in ["sha256:", "sha256:../../x", "SHA256:00", "md5:00", &good.to_uppercase(), &good[..70]] {
            assert!(text.parse::<Digest>().is_err(), "{text:?} must be refused");
        }
    }
}
