//! The subject alternative names of a certificate that was verified.
//!
//! In: DER of X.509 (RFC 5280) that a verifier has taken. Out: its DNS names and URIs, exactly as written. Must not: trust a
//! length, or take a name of another kind.

/// A name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum San {
    /// `dNSName`, in lower case.
    Dns(String),
    /// `uniformResourceIdentifier`.
    Uri(String),
}

impl San {
    /// As a spec writes it: what has a colon is a URI.
    pub(crate) fn written(text: &str) -> Self {
        if text.contains(':') { Self::Uri(text.to_owned()) } else { Self::Dns(text.to_ascii_lowercase()) }
    }
}

const SEQUENCE: u8 = 0x30;
const EXPLICIT_3: u8 = 0xa3;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
/// 2.5.29.17.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];

/// One value: its tag, what is in it, what follows it.
fn value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, mut rest) = rest.split_first()?;
    let length = match first {
        0..=0x7f => usize::from(*first),
        0x81..=0x83 => {
            let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = after;
            bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
        }
        _ => return None,
    };
    let (inside, after) = rest.split_at_checked(length)?;
    Some((*tag, inside, after))
}

/// The values in a sequence.
fn values(mut der: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (tag, inside, after) = value(der)?;
        all.push((tag, inside));
        der = after;
    }
    Some(all)
}

fn inside(der: &[u8], tag: u8) -> Option<&[u8]> {
    value(der).filter(|(found, ..)| *found == tag).map(|(_, inside, _)| inside)
}

/// Its names; none where it has none or cannot be read.
pub(crate) fn names(certificate: &[u8]) -> Vec<San> {
    read(certificate).unwrap_or_default()
}

fn read(certificate: &[u8]) -> Option<Vec<San>> {
    let to_be_signed = inside(inside(certificate, SEQUENCE)?, SEQUENCE)?;
    let fields = values(to_be_signed)?;
    let (_, wrapped) = fields.iter().find(|(tag, _)| *tag == EXPLICIT_3)?;
    for (_, extension) in values(inside(wrapped, SEQUENCE)?)? {
        let parts = values(extension)?;
        if parts.first() != Some(&(OID, &SUBJECT_ALT_NAME[..])) {
            continue;
        }
        let (_, octets) = parts.last().filter(|(tag, _)| *tag == OCTETS)?;
        let names = values(inside(octets, SEQUENCE)?)?;
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii()).map(str::to_owned);
        return names
            .into_iter()
            .filter_map(|(tag, bytes)| match tag {
                DNS => text(bytes).map(|name| Some(San::Dns(name.to_ascii_lowercase()))),
                URI => text(bytes).map(|name| Some(San::Uri(name))),
                _ => None,
            })
            .collect();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_lies_is_no_name() {
        let name = |tag: u8, text: &[u8]| [&[tag, u8::try_from(text.len()).unwrap()], text].concat();
        let names_of = |all: &[Vec<u8>]| {
            let octets = name(OCTETS, &name(SEQUENCE, &all.concat()));
            let extension = name(SEQUENCE, &[name(OID, &SUBJECT_ALT_NAME), octets].concat());
            name(SEQUENCE, &name(SEQUENCE, &name(EXPLICIT_3, &name(SEQUENCE, &extension))))
        };
        let good = names_of(&[name(DNS, b"Gateway.example"), name(URI, b"spiffe://a/b"), name(0x81, b"x@y")]);
        let found = vec![San::Dns("gateway.example".into()), San::Uri("spiffe://a/b".into())];
        assert_eq!(names(&good), found);
        for end in 0..good.len() {
            assert!(names(&good[..end]).is_empty());
        }
        for at in 0..good.len() {
            for byte in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                // Whatever is read, it is read without a panic.
                let _ = names(&bad);
            }
        }
        assert_eq!(San::written("Gateway.example"), found[0]);
        assert_eq!(San::written("spiffe://a/b"), found[1]);
    }
}
