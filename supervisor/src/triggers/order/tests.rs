//! Tokens that are good, and all that are not.

use base64::Engine as _;
use molt_core::{
    order::{Claims, Operation, Refusal},
    spec::{Algorithm, OrderKey, Orders},
};
use proptest::prelude::*;
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};

use super::{
    key::Key,
    token::BASE64,
    {MAX_TOKEN, verify},
};

const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
const ED25519_DER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Both kinds of keys, with the private halves that no product code has.
struct Signers {
    ed25519: Ed25519KeyPair,
    p256: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signers {
    fn new() -> Self {
        let random = SystemRandom::new();
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, p256.as_ref(), &random).unwrap();
        Self { ed25519: Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap(), p256, random }
    }

    fn spec(&self) -> Orders {
        let point = self.p256.public_key().as_ref();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..]));
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": "two", "use": "sig"});
        let keys = vec![key("one", Algorithm::EdDSA, &self.pem()), key("two", Algorithm::ES256, &jwk.to_string())];
        Orders { keys, ..Orders::default() }
    }

    fn pem(&self) -> String {
        let der = [&ED25519_DER[..], self.ed25519.public_key().as_ref()].concat();
        let der = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
    }

    fn sign(&self, with: Algorithm, signed: &str) -> Vec<u8> {
        match with {
            Algorithm::EdDSA => self.ed25519.sign(signed.as_bytes()).as_ref().to_vec(),
            Algorithm::ES256 => self.p256.sign(&self.random, signed.as_bytes()).unwrap().as_ref().to_vec(),
        }
    }

    /// A token whose signature is good, whatever it says.
    fn token(&self, with: Algorithm, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(payload));
        let signature = BASE64.encode(self.sign(with, &signed));
        format!("{signed}.{signature}")
    }

    fn good(&self, with: Algorithm) -> String {
        let kid = if with == Algorithm::EdDSA { "one" } else { "two" };
        self.token(with, &json!({"alg": with.as_str(), "kid": kid}).to_string(), &claims().to_string())
    }
}

fn key(id: &str, algorithm: Algorithm, text: &str) -> OrderKey {
    OrderKey {
        id: id.to_owned(),
        algorithm,
        key: Some(text.to_owned()),
        file: None,
        operations: vec![Operation::Confirm],
        policy: false,
        downgrade: false,
    }
}

fn claims() -> Value {
    json!({"ver": 1, "aud": "molt:web", "seq": 7, "iat": 1_800_000_000, "exp": 1_800_000_300, "jti": "a-1", "op": "confirm"})
}

fn with(field: &str, value: Value) -> String {
    let mut claims = claims();
    claims[field] = value;
    claims.to_string()
}

fn without(field: &str) -> String {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(field);
    claims.to_string()
}

fn word(spec: &Orders, token: &[u8]) -> &'static str {
    verify(spec, token, None).map_or_else(|refusal| refusal.word(), |_| "taken")
}

#[test]
fn a_good_token_of_either_kind_is_taken_and_says_who_signed_it() {
    let signers = Signers::new();
    let spec = signers.spec();
    for (algorithm, id) in [(Algorithm::EdDSA, "one"), (Algorithm::ES256, "two")] {
        let token = signers.good(algorithm);
        let signed = verify(&spec, token.as_bytes(), None).unwrap();
        assert_eq!((signed.key.id.as_str(), signed.claims.seq, signed.claims.op), (id, 7, Operation::Confirm));
        assert_eq!(word(&spec, format!("{token}\n").as_bytes()), "taken", "a file ends with a newline");
        for typ in ["JWT", "molt-order+jws"] {
            let header = json!({"alg": algorithm.as_str(), "kid": id, "typ": typ}).to_string();
            assert_eq!(word(&spec, signers.token(algorithm, &header, &claims().to_string()).as_bytes()), "taken");
        }
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_odd_token_is_refused() {
    let signers = Signers::new();
    let spec = signers.spec();
    let good = signers.good(Algorithm::EdDSA);
    let es256 = signers.good(Algorithm::ES256);
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("three parts") };
    let plain = claims().to_string();
    let ed = |header: Value, payload: &str| signers.token(Algorithm::EdDSA, &header.to_string(), payload);
    let ec = |header: Value, payload: &str| signers.token(Algorithm::ES256, &header.to_string(), payload);
    let head = || json!({"alg": "EdDSA", "kid": "one"});
    let extra = |name: &str, value: Value| {
        let mut header = head();
        header[name] = value;
        ed(header, &plain)
    };
    let raw = |header: &str, payload: &str| signers.token(Algorithm::EdDSA, header, payload);
    let said = |payload: &str| ed(head(), payload);
    // The key that everybody has, as a secret: what HS256 is tricked with.
    let hmac = |secret: &[u8]| {
        let signed = format!("{}.{payload}", BASE64.encode(json!({"alg": "HS256", "kid": "one"}).to_string()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        format!("{signed}.{}", BASE64.encode(tag.as_ref()))
    };
    let bytes = BASE64.decode(signature).unwrap();
    let padded = |part: &str| format!("{part}{}", "=".repeat((4 - part.len() % 4) % 4));
    // 64 bytes leave four bits of the last character unused.
    let sloppy = {
        let mut text = signature.to_owned();
        let last = text.pop().unwrap();
        let next = char::from(u8::try_from(last).unwrap() + 1);
        format!("{header}.{payload}.{text}{next}")
    };
    let standard = base64::engine::general_purpose::STANDARD;
    let with_l = {
        // S + L is the same scalar, spelled otherwise.
        const L: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut bytes = bytes.clone();
        let mut carry = 0u16;
        for (byte, add) in bytes[32..].iter_mut().zip(L) {
            carry += u16::from(*byte) + u16::from(add);
            *byte = (carry & 0xff) as u8;
            carry >>= 8;
        }
        format!("{header}.{payload}.{}", BASE64.encode(bytes))
    };
    let der = {
        let pair = signers.p256.public_key().as_ref().len();
        assert_eq!(pair, 65);
        let signed = es256.rsplit_once('.').unwrap().0;
        let raw = BASE64.decode(es256.rsplit_once('.').unwrap().1).unwrap();
        let mut der = vec![0x30, 68, 0x02, 32];
        der.extend_from_slice(&raw[..32]);
        der.extend_from_slice(&[0x02, 32]);
        der.extend_from_slice(&raw[32..]);
        format!("{signed}.{}", BASE64.encode(der))
    };
    let swapped = {
        let mut bytes = bytes.clone();
        bytes.rotate_left(32);
        format!("{header}.{payload}.{}", BASE64.encode(bytes))
    };
    let odd: Vec<(&str, Vec<u8>, &str)> = [
        ("nothing", String::new(), "malformed"),
        ("a dot", ".".into(), "malformed"),
        ("two dots", "..".into(), "malformed"),
        ("one part", header.into(), "malformed"),
        ("two parts", format!("{header}.{payload}"), "malformed"),
        ("no signature", format!("{header}.{payload}."), "malformed"),
        ("no payload", format!("{header}..{signature}"), "malformed"),
        ("no header", format!(".{payload}.{signature}"), "malformed"),
        ("a dot before", format!(".{good}"), "malformed"),
        ("a dot after", format!("{good}."), "malformed"),
        ("a fourth part", format!("{good}.{signature}"), "malformed"),
        ("five parts, as an encrypted one has", format!("{good}.a.b"), "malformed"),
        ("a space before", format!(" {good}"), "malformed"),
        ("a space after", format!("{good} "), "malformed"),
        ("two newlines after", format!("{good}\n\n"), "malformed"),
        ("a carriage return after", format!("{good}\r\n"), "malformed"),
        ("a newline before", format!("\n{good}"), "malformed"),
        ("a newline within", good.replace('.', ".\n"), "malformed"),
        ("a tab within", good.replace('.', "\t."), "malformed"),
        ("a zero byte after", format!("{good}\0"), "malformed"),
        ("as a header field has it", format!("Bearer {good}"), "malformed"),
        ("as JSON text", format!("\"{good}\""), "malformed"),
        ("as JSON", json!({"payload": payload, "protected": header, "signature": signature}).to_string(), "malformed"),
        ("twice", format!("{good}{good}"), "malformed"),
        ("padding on the signature", format!("{header}.{payload}.{}", padded(signature)), "malformed"),
        ("padding on the header", format!("{}.{payload}.{signature}", padded(&format!("{header}A"))), "malformed"),
        ("base64 that is not for URLs", format!("{header}.{payload}.{}", standard.encode(&bytes)), "malformed"),
        ("bits that do not count", sloppy, "malformed"),
        ("a signature of 63 bytes", format!("{header}.{payload}.{}", BASE64.encode(&bytes[..63])), "malformed"),
        (
            "a signature of 65 bytes",
            format!("{header}.{payload}.{}", BASE64.encode([&bytes[..], &[0]].concat())),
            "malformed",
        ),
        ("a signature of zeros", format!("{header}.{payload}.{}", BASE64.encode([0; 64])), "signature"),
        ("a signature of ones", format!("{header}.{payload}.{}", BASE64.encode([0xff; 64])), "signature"),
        ("halves of the signature changed", swapped, "signature"),
        ("a scalar that is not reduced", with_l, "signature"),
        ("a signature in DER", der, "malformed"),
        ("the other's signature", format!("{header}.{payload}.{}", es256.rsplit('.').next().unwrap()), "signature"),
        ("another payload", format!("{header}.{}.{signature}", BASE64.encode(with("seq", json!(8)))), "signature"),
        ("payload and header changed over", format!("{payload}.{header}.{signature}"), "malformed"),
        ("alg none", format!("{}.{payload}.", BASE64.encode(r#"{"alg":"none","kid":"one"}"#)), "malformed"),
        (
            "alg none with a signature",
            format!("{}.{payload}.{signature}", BASE64.encode(r#"{"alg":"none","kid":"one"}"#)),
            "algorithm",
        ),
        ("alg None", ed(json!({"alg": "None", "kid": "one"}), &plain), "algorithm"),
        ("alg empty", ed(json!({"alg": "", "kid": "one"}), &plain), "algorithm"),
        ("alg in small letters", ed(json!({"alg": "eddsa", "kid": "one"}), &plain), "algorithm"),
        ("alg Ed25519", ed(json!({"alg": "Ed25519", "kid": "one"}), &plain), "algorithm"),
        ("HS256 with the key's text", hmac(signers.pem().as_bytes()), "malformed"),
        ("HS256 with the key's bytes", hmac(signers.ed25519.public_key().as_ref()), "malformed"),
        ("HS512", ed(json!({"alg": "HS512", "kid": "one"}), &plain), "algorithm"),
        ("RS256", ed(json!({"alg": "RS256", "kid": "one"}), &plain), "algorithm"),
        ("ES256K", ec(json!({"alg": "ES256K", "kid": "two"}), &plain), "algorithm"),
        ("ES384", ec(json!({"alg": "ES384", "kid": "two"}), &plain), "algorithm"),
        ("the ES256 key with EdDSA in the header", ec(json!({"alg": "EdDSA", "kid": "two"}), &plain), "algorithm"),
        ("the EdDSA key with ES256 in the header", ed(json!({"alg": "ES256", "kid": "one"}), &plain), "algorithm"),
        ("signed by one, in the name of the other", ed(json!({"alg": "ES256", "kid": "two"}), &plain), "signature"),
        ("signed by the other, in the name of the one", ec(json!({"alg": "EdDSA", "kid": "one"}), &plain), "signature"),
        ("no alg", ed(json!({"kid": "one"}), &plain), "malformed"),
        ("alg as a list", ed(json!({"alg": ["EdDSA"], "kid": "one"}), &plain), "malformed"),
        ("alg as null", ed(json!({"alg": null, "kid": "one"}), &plain), "malformed"),
        ("no kid", ed(json!({"alg": "EdDSA"}), &plain), "malformed"),
        ("an unknown kid", ed(json!({"alg": "EdDSA", "kid": "three"}), &plain), "unknown-key"),
        ("kid empty", ed(json!({"alg": "EdDSA", "kid": ""}), &plain), "unknown-key"),
        ("kid a path", ed(json!({"alg": "EdDSA", "kid": "../../one"}), &plain), "unknown-key"),
        ("kid in capitals", ed(json!({"alg": "EdDSA", "kid": "ONE"}), &plain), "unknown-key"),
        ("kid with a zero byte", ed(json!({"alg": "EdDSA", "kid": "one\u{0}"}), &plain), "unknown-key"),
        ("kid a number", ed(json!({"alg": "EdDSA", "kid": 1}), &plain), "malformed"),
        ("crit", extra("crit", json!(["exp"])), "malformed"),
        ("crit empty", extra("crit", json!([])), "malformed"),
        ("b64 false", extra("b64", json!(false)), "malformed"),
        ("b64 true", extra("b64", json!(true)), "malformed"),
        ("jku", extra("jku", json!("https://example.com/keys")), "malformed"),
        ("jwk", extra("jwk", json!({"kty": "OKP", "crv": "Ed25519", "x": "AA"})), "malformed"),
        ("x5u", extra("x5u", json!("https://example.com/chain")), "malformed"),
        ("x5c", extra("x5c", json!([])), "malformed"),
        ("cty JWT: nested", extra("cty", json!("JWT")), "malformed"),
        ("enc", extra("enc", json!("A128GCM")), "malformed"),
        ("zip", extra("zip", json!("DEF")), "malformed"),
        ("a typ of others", extra("typ", json!("at+jwt")), "malformed"),
        ("a token within a token", raw(&head().to_string(), &good), "malformed"),
        ("a header as a list", raw(r#"["EdDSA","one"]"#, &plain), "malformed"),
        ("a header in blanks", raw(" {\"alg\":\"EdDSA\",\"kid\":\"one\"}", &plain), "malformed"),
        ("a header with more after it", raw(r#"{"alg":"EdDSA","kid":"one"}{}"#, &plain), "malformed"),
        ("alg twice", raw(r#"{"alg":"EdDSA","alg":"EdDSA","kid":"one"}"#, &plain), "malformed"),
        ("kid twice, escaped", raw(r#"{"alg":"EdDSA","kid":"one","k\u0069d":"two"}"#, &plain), "malformed"),
        ("a header too long", extra("typ", json!("x".repeat(2000))), "malformed"),
        ("a payload as a list", said("[1,\"molt:web\",7,1800000000,null,1800000300,\"a-1\",\"confirm\"]"), "malformed"),
        ("a payload of text", said("\"confirm\""), "malformed"),
        ("a payload with a mark of its order of bytes", said(&format!("\u{feff}{plain}")), "malformed"),
        ("a payload with more after it", said(&format!("{plain}x")), "malformed"),
        ("a payload cut short", said(&plain[..plain.len() - 1]), "malformed"),
        ("a claim nobody knows", said(&with("sub", json!("me"))), "malformed"),
        ("iss", said(&with("iss", json!("me"))), "malformed"),
        ("a claim twice", said(&plain.replacen('{', "{\"seq\":7,", 1)), "malformed"),
        ("a claim in capitals", said(&plain.replace("\"seq\"", "\"Seq\"")), "malformed"),
        ("no ver", said(&without("ver")), "malformed"),
        ("no aud", said(&without("aud")), "malformed"),
        ("no seq", said(&without("seq")), "malformed"),
        ("no iat", said(&without("iat")), "malformed"),
        ("no exp", said(&without("exp")), "malformed"),
        ("no jti", said(&without("jti")), "malformed"),
        ("no op", said(&without("op")), "malformed"),
        ("an op nobody knows", said(&with("op", json!("exec"))), "malformed"),
        ("an op in capitals", said(&with("op", json!("Confirm"))), "malformed"),
        ("aud as a list", said(&with("aud", json!(["molt:web"]))), "malformed"),
        ("seq as text", said(&with("seq", json!("7"))), "malformed"),
        ("seq below zero", said(&with("seq", json!(-1))), "malformed"),
        ("seq with a point", said(&plain.replace("\"seq\":7", "\"seq\":7.0")), "malformed"),
        ("seq beyond 64 bits", said(&plain.replace("\"seq\":7", "\"seq\":18446744073709551616")), "malformed"),
        ("exp with an exponent", said(&plain.replace("1800000300", "1e30")), "malformed"),
        ("iat as null", said(&with("iat", Value::Null)), "malformed"),
        ("a digest of another kind", said(&with("policyDigest", json!("md5:00"))), "malformed"),
        ("a digest in capitals", said(&with("policyDigest", json!(DIGEST.to_uppercase()))), "malformed"),
        ("an image that is none", said(&with("image", json!("https://user:pass@example.com/x"))), "malformed"),
        ("too long", said(&with("reason", json!("x".repeat(MAX_TOKEN)))), "malformed"),
        ("deep", said(&with("reason", json!("[".repeat(9000)))), "taken"),
        ("deep for real", said(&plain.replacen('{', &format!("{{\"reason\":{},", "[".repeat(9000)), 1)), "malformed"),
    ]
    .into_iter()
    .map(|(name, token, wanted)| (name, token.into_bytes(), wanted))
    .collect();
    assert!(odd.len() > 100);
    for (name, token, wanted) in &odd {
        assert_eq!(word(&spec, token), *wanted, "{name}");
    }
    let mut not_text = good.clone().into_bytes();
    not_text[3] = 0xff;
    assert_eq!(word(&spec, &not_text), "malformed");
    assert_eq!(word(&spec, &vec![b'.'; 1 << 20]), "malformed");
    assert_eq!(word(&Orders::default(), good.as_bytes()), "unknown-key");
}

#[test]
fn the_policy_is_the_one_that_was_signed_wherever_it_came_from() {
    let signers = Signers::new();
    let spec = signers.spec();
    let text = "version: 1\n";
    let digest = crate::effects::plan::sha256(text.as_bytes());
    let image = format!("registry.example.com/a/b@{DIGEST}");
    let order = |policy: Option<&str>, digest: Option<String>| {
        let mut claims = claims();
        (claims["op"], claims["image"]) = (json!("update"), json!(image));
        if let Some(policy) = policy {
            claims["policy"] = json!(policy);
        }
        if let Some(digest) = digest {
            claims["policyDigest"] = json!(digest);
        }
        signers.token(Algorithm::EdDSA, r#"{"alg":"EdDSA","kid":"one"}"#, &claims.to_string())
    };
    let taken = |token: String, beside: Option<&str>| {
        verify(&spec, token.as_bytes(), beside.map(str::to_owned)).map(|signed| signed.claims.policy)
    };
    let digest = || Some(digest.to_string());
    assert_eq!(taken(order(Some(text), digest()), None).unwrap().as_deref(), Some(text));
    assert_eq!(taken(order(None, digest()), Some(text)).unwrap().as_deref(), Some(text));
    assert_eq!(taken(order(None, digest()), None).unwrap(), None, "the dispatcher compares it with what is in force");
    let empty = || Some(crate::effects::plan::sha256(b"").to_string());
    for (token, beside) in [
        (order(None, empty()), Some("")),
        (order(Some(""), empty()), None),
        (order(None, digest()), Some("version: 2\n")),
        (order(None, digest()), Some("")),
        (order(Some("version: 2\n"), digest()), None),
        (order(Some(text), digest()), Some(text)),
        (order(None, None), Some(text)),
        (order(Some(text), None), None),
    ] {
        assert!(matches!(taken(token, beside), Err(Refusal::Policy(_))));
    }
}

#[test]
fn keys_are_taken_in_two_forms_and_private_weak_or_foreign_ones_in_none() {
    let signers = Signers::new();
    let pem = signers.pem();
    assert!(Key::parse(&pem, Algorithm::EdDSA).is_ok());
    assert!(Key::parse(&pem.replace('\n', "\r\n"), Algorithm::EdDSA).is_ok());
    let x = BASE64.encode(signers.ed25519.public_key().as_ref());
    let jwk = |fields: Value| fields.to_string();
    assert_eq!(
        Key::parse(&jwk(json!({"kty": "OKP", "crv": "Ed25519", "x": x})), Algorithm::EdDSA),
        Key::parse(&pem, Algorithm::EdDSA)
    );
    let weak = |low: u8, rest: u8, high: u8| {
        let mut point = [rest; 32];
        (point[0], point[31]) = (low, high);
        jwk(json!({"kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(point)}))
    };
    let block = |der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    };
    let bad = [
        (pem.clone(), Algorithm::ES256, "Ed25519 key, and algorithm is ES256"),
        (pem.replace("PUBLIC", "PRIVATE"), Algorithm::EdDSA, "private key"),
        (format!("{pem}{pem}"), Algorithm::EdDSA, "not base64"),
        (format!("x{pem}"), Algorithm::EdDSA, "one PEM block"),
        (String::new(), Algorithm::EdDSA, "one PEM block"),
        (block(&[]), Algorithm::EdDSA, "must be an Ed25519 key"),
        (block(&[ED25519_DER.as_slice(), &[1; 31]].concat()), Algorithm::EdDSA, "must be an Ed25519 key"),
        (block(&[ED25519_DER.as_slice(), &[1; 33]].concat()), Algorithm::EdDSA, "must be an Ed25519 key"),
        (jwk(json!({"kty": "OKP", "crv": "Ed25519", "x": x, "d": x})), Algorithm::EdDSA, "private key"),
        (jwk(json!({"kty": "OKP", "crv": "X25519", "x": x})), Algorithm::EdDSA, "kty OKP"),
        (jwk(json!({"kty": "EC", "crv": "P-256", "x": x})), Algorithm::ES256, "kty OKP"),
        (jwk(json!({"kty": "oct", "k": x})), Algorithm::EdDSA, "not a JWK"),
        (jwk(json!({"kty": "RSA", "crv": "", "x": x})), Algorithm::EdDSA, "kty OKP"),
        (jwk(json!({"kty": "OKP", "crv": "Ed25519", "x": format!("{x}=")})), Algorithm::EdDSA, "32 bytes"),
        (jwk(json!({"kty": "OKP", "crv": "Ed25519", "x": "AA"})), Algorithm::EdDSA, "32 bytes"),
        (weak(0, 0, 0), Algorithm::EdDSA, "small order"),
        (weak(0, 0, 0x80), Algorithm::EdDSA, "small order"),
        (weak(1, 0, 0), Algorithm::EdDSA, "small order"),
        (weak(0xec, 0xff, 0x7f), Algorithm::EdDSA, "small order"),
        (weak(0xed, 0xff, 0xff), Algorithm::EdDSA, "small order"),
        (weak(0xff, 0xff, 0xff), Algorithm::EdDSA, "small order"),
    ];
    for (text, algorithm, wanted) in bad {
        let why = Key::parse(&text, algorithm).unwrap_err();
        assert!(why.contains(wanted), "{text}: {why}");
    }
}

#[test]
fn a_key_in_a_file_is_read_for_each_order_and_one_that_cannot_be_refuses() {
    let signers = Signers::new();
    let folder = std::env::temp_dir().join(format!("molt-order-key-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("key.pem");
    let mut spec = signers.spec();
    (spec.keys[0].key, spec.keys[0].file) = (None, Some(path.display().to_string()));
    let good = signers.good(Algorithm::EdDSA);
    assert_eq!(word(&spec, good.as_bytes()), "key-unusable");
    std::fs::write(&path, signers.pem()).unwrap();
    assert_eq!(word(&spec, good.as_bytes()), "taken");
    let other = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
    std::fs::write(&path, json!({"kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(other.public_key())}).to_string())
        .unwrap();
    assert_eq!(word(&spec, good.as_bytes()), "signature", "the key was changed");
    std::fs::write(&path, "x".repeat(5000)).unwrap();
    assert_eq!(word(&spec, good.as_bytes()), "key-unusable");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(word(&spec, good.as_bytes()), "key-unusable");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// What every ES256 signature has: a second one, (r, n - s). It is the same order, with the same `seq`, and can be taken
/// once only.
#[test]
fn the_other_signature_that_every_es256_one_has_is_the_same_order() {
    const N: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad,
        0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let signers = Signers::new();
    let good = signers.good(Algorithm::ES256);
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let mut bytes = BASE64.decode(signature).unwrap();
    let mut borrow = 0i16;
    for (byte, n) in bytes[32..].iter_mut().zip(N).rev() {
        let mut left = i16::from(n) - i16::from(*byte) - borrow;
        borrow = i16::from(left < 0);
        left += 256 * borrow;
        *byte = u8::try_from(left).unwrap();
    }
    let other = format!("{signed}.{}", BASE64.encode(bytes));
    assert_ne!(other, good);
    let read = |token: &str| verify(&signers.spec(), token.as_bytes(), None).map(|signed| signed.claims);
    let (one, two): (Claims, Claims) = (read(&good).unwrap(), read(&other).unwrap());
    assert_eq!(one, two);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// No token that differs from one that was signed is taken.
    #[test]
    fn no_mutation_of_a_good_token_is_taken(
        which in any::<bool>(),
        edits in proptest::collection::vec((0u8..5, any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let signers = Signers::new();
        let good = signers.good(if which { Algorithm::EdDSA } else { Algorithm::ES256 }).into_bytes();
        let mut token = good.clone();
        for (kind, at, byte) in edits {
            let at = at.index(token.len().max(1));
            match kind {
                0 => if let Some(one) = token.get_mut(at) { *one = byte },
                1 => if let Some(one) = token.get_mut(at) { *one ^= 1 << (byte % 8) },
                2 => token.insert(at, byte),
                3 => { if at < token.len() { token.remove(at); } }
                _ => token.truncate(at),
            }
        }
        prop_assume!(token != good && token != [&good[..], b"\n"].concat());
        prop_assert_ne!(word(&signers.spec(), &token), "taken");
    }
}
