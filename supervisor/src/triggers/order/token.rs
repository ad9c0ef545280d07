//! The form of a token: three parts of base64url, of which each has one spelling.
//!
//! In: bytes. Out: a header, claims, the signed bytes, the signature. Must not: look at the size last, take a second
//! spelling of anything, or pass over a field that it does not know: `crit`, `jku`, `jwk`, `x5u`, `b64` and their like are
//! refused by not being known.

use base64::{
    Engine as _,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use molt_core::order::{Claims, Refusal};
use serde::{Deserialize, de::DeserializeOwned};

use super::MAX_TOKEN;

/// base64url without padding, whose unused last bits are zero.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(false)
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);
/// Longest header, in characters of base64url.
const MAX_HEADER: usize = 1024;
/// Both algorithms have signatures of 64 bytes.
pub(super) const SIGNATURE: usize = 64;

/// The protected header.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// Compared with the key's, and never used to choose anything.
    pub(super) alg: String,
    /// Which key to look for.
    pub(super) kid: String,
    #[serde(default)]
    typ: Option<String>,
}

/// A token, taken apart.
#[derive(Debug)]
pub(super) struct Token<'a> {
    header: Vec<u8>,
    payload: Vec<u8>,
    /// What the signature is over: header and payload as they came.
    pub(super) signed: &'a [u8],
    /// Both algorithms' signatures have this length.
    pub(super) signature: [u8; SIGNATURE],
}

fn malformed(why: impl Into<String>) -> Refusal {
    Refusal::Malformed(why.into())
}

impl<'a> Token<'a> {
    /// Takes a token apart; bounded before anything is decoded. One newline at its end is a file's, and not the token's.
    pub(super) fn split(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        if bytes.len() > MAX_TOKEN {
            return Err(malformed(format!("it has {} bytes, and at most {MAX_TOKEN} are taken", bytes.len())));
        }
        let mut parts = bytes.split(|byte| *byte == b'.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed("it must be three parts with a dot between them"));
        };
        if header.len() > MAX_HEADER {
            return Err(malformed("its header is too long"));
        }
        let signed = bytes.get(..header.len() + 1 + payload.len()).unwrap_or_default();
        let signature = decode(signature, "signature")?;
        let signature =
            signature.try_into().map_err(|_| malformed(format!("its signature must have {SIGNATURE} bytes")))?;
        Ok(Self { header: decode(header, "header")?, payload: decode(payload, "payload")?, signed, signature })
    }

    /// The header. Nothing in it is to be believed.
    pub(super) fn header(&self) -> Result<Header, Refusal> {
        let header: Header = object(&self.header, "header")?;
        if header.typ.as_ref().is_some_and(|typ| typ != "JWT" && typ != "molt-order+jws") {
            return Err(malformed("its header's typ must be JWT or molt-order+jws, or absent"));
        }
        Ok(header)
    }

    /// The claims: for whoever has verified the signature.
    pub(super) fn claims(&self) -> Result<Claims, Refusal> {
        object(&self.payload, "payload")
    }
}

fn decode(part: &[u8], what: &str) -> Result<Vec<u8>, Refusal> {
    if part.is_empty() {
        return Err(malformed(format!("its {what} is empty")));
    }
    // The library's words name the byte that is wrong; nobody needs it.
    BASE64
        .decode(part)
        .map_err(|_| malformed(format!("its {what} must be base64url without padding, in its one spelling")))
}

/// One JSON object: no list in its place, no key twice, no key that is not known, nothing after it.
fn object<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Refusal> {
    if bytes.first() != Some(&b'{') {
        return Err(malformed(format!("its {what} must be a JSON object")));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        let text = text.split(" at line ").next().unwrap_or_default();
        malformed(format!("its {what} is not what an order has: {}", molt_core::order::cut(text)))
    })
}
