//! Public keys, in the forms that people have them in: PEM as `openssl pkey -pubout` writes it, and JWK.
//!
//! In: a key of the spec. Out: something that verifies. Must not: take a private key, another curve, a point that is no
//! key, or a second encoding of one.

use std::io::Read as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use molt_core::{
    order::Refusal,
    spec::{Algorithm, OrderKey},
};
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use serde::Deserialize;

use super::token::{BASE64, SIGNATURE};

/// Longest text of a key.
const MAX_KEY: u64 = 4096;
/// What is before the 32 bytes of an Ed25519 key in its DER form (RFC 8410).
const ED25519_DER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What is before the 64 bytes of both coordinates on P-256 (RFC 5480), the mark of an uncompressed point at its end.
const P256_DER: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

/// A key that can verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    /// The point, compressed.
    Ed25519([u8; 32]),
    /// Both coordinates.
    P256([u8; 64]),
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    #[serde(default)]
    y: Option<String>,
    /// The private part.
    #[serde(default)]
    d: Option<serde::de::IgnoredAny>,
}

impl Key {
    /// The key that the spec names or holds.
    pub(crate) fn of(key: &OrderKey) -> Result<Self, String> {
        let text = match (&key.key, &key.file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => read(file)?,
            (None, None) => return Err("there is neither key nor file".to_owned()),
        };
        Self::parse(&text, key.algorithm)
    }

    /// A key in one of the two forms, for this algorithm.
    pub(crate) fn parse(text: &str, algorithm: Algorithm) -> Result<Self, String> {
        let text = text.trim();
        let key = if text.starts_with('{') { jwk(text)? } else { pem(text)? };
        match (&key, algorithm) {
            (Self::Ed25519(point), Algorithm::EdDSA) if is_weak(point) => {
                Err("it is a point of small order: anybody could sign for it".to_owned())
            }
            (Self::Ed25519(_), Algorithm::EdDSA) | (Self::P256(_), Algorithm::ES256) => Ok(key),
            (Self::Ed25519(_), Algorithm::ES256) => Err("it is an Ed25519 key, and algorithm is ES256".to_owned()),
            (Self::P256(_), Algorithm::EdDSA) => Err("it is a P-256 key, and algorithm is EdDSA".to_owned()),
        }
    }

    /// Whether `signature` is this key's over `message`. ring refuses an Ed25519 signature whose scalar is not reduced, and
    /// a P-256 key that is not on its curve.
    pub(crate) fn verify(&self, message: &[u8], signature: &[u8; SIGNATURE]) -> Result<(), Refusal> {
        let good = match self {
            Self::Ed25519(point) => UnparsedPublicKey::new(&ED25519, point).verify(message, signature),
            Self::P256(point) => {
                let mut whole = vec![4];
                whole.extend_from_slice(point);
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, whole).verify(message, signature)
            }
        };
        good.map_err(|_| Refusal::Signature)
    }
}

/// The file as it is now; a link is followed, as Kubernetes has them for what it mounts.
fn read(path: &str) -> Result<String, String> {
    // A pipe in its place must not hold anybody up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty()).map_err(|errno| format!("failed to open {path}: {errno}"))?;
    let stat = fstat(&file).map_err(|errno| format!("failed to look at {path}: {errno}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(format!("{path} is not a file"));
    }
    let mut text = String::new();
    let read = std::fs::File::from(file).take(MAX_KEY + 1).read_to_string(&mut text);
    match read {
        Ok(_) if text.len() as u64 > MAX_KEY => Err(format!("{path} has more than {MAX_KEY} bytes")),
        Ok(_) => Ok(text),
        Err(error) => Err(format!("failed to read {path}: {error}")),
    }
}

fn pem(text: &str) -> Result<Key, String> {
    let body =
        text.strip_prefix("-----BEGIN PUBLIC KEY-----").and_then(|rest| rest.strip_suffix("-----END PUBLIC KEY-----"));
    let Some(body) = body else {
        let private = text.contains("PRIVATE KEY");
        return Err(if private {
            "it is a private key, which only the signer may have; `openssl pkey -pubout` gives the public one"
                .to_owned()
        } else {
            "it must be one PEM block 'PUBLIC KEY', or a JWK".to_owned()
        });
    };
    let body: String = body.chars().filter(|one| !matches!(one, '\n' | '\r')).collect();
    let der = STANDARD.decode(body).map_err(|_| "its PEM block is not base64".to_owned())?;
    let unknown = || "it must be an Ed25519 key, or one on P-256 with its point uncompressed".to_owned();
    if let Some(point) = der.strip_prefix(&ED25519_DER) {
        return point.try_into().map(Key::Ed25519).map_err(|_| unknown());
    }
    der.strip_prefix(&P256_DER).and_then(|point| point.try_into().ok()).map(Key::P256).ok_or_else(unknown)
}

fn jwk(text: &str) -> Result<Key, String> {
    let jwk: Jwk = serde_json::from_str(text).map_err(|_| "it is not a JWK with kty, crv and x".to_owned())?;
    if jwk.d.is_some() {
        return Err("it is a private key, which only the signer may have: leave out d".to_owned());
    }
    let number = |text: &str| -> Result<[u8; 32], String> {
        let bytes = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| "its coordinates must be 32 bytes of base64url".to_owned())
    };
    match (jwk.kty.as_str(), jwk.crv.as_str(), &jwk.y) {
        ("OKP", "Ed25519", None) => number(&jwk.x).map(Key::Ed25519),
        ("EC", "P-256", Some(y)) => {
            let mut point = [0; 64];
            let both = number(&jwk.x)?.into_iter().chain(number(y)?);
            point.iter_mut().zip(both).for_each(|(place, byte)| *place = byte);
            Ok(Key::P256(point))
        }
        _ => Err("it must be kty OKP with crv Ed25519, or kty EC with crv P-256".to_owned()),
    }
}

/// Whether a compressed point is one of the eight of small order, or not the one spelling of its point: its y, the low 255
/// bits, is not below the field's prime 2^255 - 19.
fn is_weak(point: &[u8; 32]) -> bool {
    const ORDER_8: [[u8; 32]; 2] = [
        [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
            0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
        ],
        [
            0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
            0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
        ],
    ];
    let mut y = *point;
    y[31] &= 0x7f;
    let [low, middle @ .., high] = y;
    let small = middle.iter().all(|byte| *byte == 0) && high == 0 && low <= 1;
    // From p - 1 on: the last point of order 2, and everything beyond the field.
    let large = middle.iter().all(|byte| *byte == 0xff) && high == 0x7f && low >= 0xec;
    small || large || ORDER_8.contains(&y)
}
