//! Where a request may go.
//!
//! In: a URL, from a reference, a redirect or a token challenge. Out: yes, or why not. Must not: resolve names; addresses
//! that names lead to are checked by the resolver in [`super::transport`], on the same rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

/// `host[:port]` as in an image reference: the port only where it is not the scheme's own.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
    url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
}

/// Scheme, host and port: what decides whether a secret may be sent again.
pub(crate) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// How far an address is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The operator named the host.
    Named,
    /// A registry named it.
    Told,
}

/// Whether a connection to `address` may be made. Link-local addresses (where clouds keep their metadata) and those that
/// are no address of a host never; loopback only where the operator named it.
pub(crate) fn address_allowed(address: IpAddr, reach: Reach) -> bool {
    let v4 = match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().or_else(|| embedded(v6)),
    };
    let loopback = address.is_loopback() || v4.is_some_and(|v4| v4.is_loopback());
    let never = match (v4, address) {
        (Some(v4), _) => {
            v4.is_link_local()
                || v4.is_unspecified()
                || v4.octets().first() == Some(&0)
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4 == Ipv4Addr::new(100, 100, 100, 200)
        }
        (None, IpAddr::V6(v6)) => {
            v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
        }
        (None, IpAddr::V4(_)) => false,
    };
    !never && (!loopback || reach == Reach::Named)
}

/// The IPv4 address inside a NAT64 one.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.octets() {
        [0x00, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
        _ => None,
    }
}

/// Whether a request to `url` may be made at all; the reason where not.
pub(crate) fn url_allowed(url: &Url, reach: Reach, insecure: &[String]) -> Result<(), String> {
    let plain = insecure.contains(&authority(url));
    match url.scheme() {
        "https" => {}
        "http" if plain => {}
        "http" => return Err(format!("plain HTTP to {} is not allowed (see registries.insecure)", authority(url))),
        _ => return Err("a URL that is neither https nor http".to_owned()),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL with a user name in it".to_owned());
    }
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let local_name = host == "localhost" || host.ends_with(".localhost");
    let bad = match host.parse::<IpAddr>() {
        Ok(address) => !address_allowed(address, reach),
        Err(_) => host.is_empty() || (local_name && reach == Reach::Told),
    };
    if bad { Err(format!("an address that no registry has ({})", authority(url))) } else { Ok(()) }
}

/// Whether a host that the operator named may be asked by TLS; the reason where not.
pub fn named_allowed(url: &Url) -> Result<(), String> {
    url_allowed(url, Reach::Named, &[])
}

/// Whether the credentials of `registry` may be sent to `realm` (both `host[:port]`): the same host, the registry's parent
/// domain, or a host directly in it, as `auth.docker.io` is for `registry-1.docker.io`. The parent must have two labels.
/// An address has no parent. Others must be named by the registry's entry in the credentials file.
pub(crate) fn realm_trusted(registry: &str, realm: &str) -> bool {
    let name = |authority: &str| -> String {
        if authority.starts_with('[') {
            return authority.split_inclusive(']').next().unwrap_or_default().to_owned();
        }
        authority.split(':').next().unwrap_or_default().to_owned()
    };
    let (registry, realm) = (name(registry), name(realm));
    if registry == realm {
        return true;
    }
    if registry.parse::<IpAddr>().is_ok() || registry.starts_with('[') {
        return false;
    }
    let Some((_, parent)) = registry.split_once('.') else { return false };
    if !parent.contains('.') {
        return false;
    }
    realm == parent
        || realm.strip_suffix(parent).and_then(|rest| rest.strip_suffix('.')).is_some_and(|label| !label.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_before_a_connection_is_made() {
        let insecure = ["127.0.0.1:5000".to_owned(), "localhost".to_owned()];
        for (url, reach, allowed) in [
            ("https://registry.example.com/v2/", Reach::Told, true),
            ("https://10.0.0.5:5000/", Reach::Told, true),
            ("http://registry.example.com/", Reach::Named, false),
            ("http://127.0.0.1:5000/", Reach::Named, true),
            ("http://127.0.0.1:5001/", Reach::Named, false),
            ("https://127.0.0.1/", Reach::Told, false),
            ("https://[::1]/", Reach::Told, false),
            ("https://[::ffff:127.0.0.1]/", Reach::Told, false),
            ("https://localhost/", Reach::Told, false),
            ("https://a.localhost/", Reach::Told, false),
            ("https://localhost/", Reach::Named, true),
            ("https://169.254.169.254/", Reach::Named, false),
            ("https://[::ffff:169.254.169.254]/", Reach::Named, false),
            ("https://[64:ff9b::a9fe:a9fe]/", Reach::Named, false),
            ("https://[fe80::1]/", Reach::Named, false),
            ("https://[fd00:ec2::254]/", Reach::Named, false),
            ("https://100.100.100.200/", Reach::Named, false),
            ("https://0.0.0.0/", Reach::Named, false),
            ("https://0x7f000001/", Reach::Told, false),
            ("https://2852039166/", Reach::Named, false),
            ("https://user@registry.example.com/", Reach::Told, false),
            ("https://user:pw@registry.example.com/", Reach::Told, false),
            ("ftp://registry.example.com/", Reach::Told, false),
            ("file:///etc/passwd", Reach::Told, false),
        ] {
            let parsed = url.parse().unwrap();
            assert_eq!(url_allowed(&parsed, reach, &insecure).is_ok(), allowed, "{url}");
        }
    }

    #[test]
    fn credentials_stay_in_the_family() {
        for (registry, realm, trusted) in [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("ghcr.io", "ghcr.io", true),
            ("ghcr.io:443", "ghcr.io", true),
            ("127.0.0.1:5000", "127.0.0.1:5001", true),
            ("127.0.0.1:5000", "127.0.0.2:5001", false),
            ("ghcr.io", "evil.io", false),
            ("ghcr.io", "auth.ghcr.io", false),
            ("registry-1.docker.io", "evil.com", false),
            ("registry-1.docker.io", "auth.docker.io.evil.com", false),
            ("registry-1.docker.io", "xdocker.io", false),
            ("registry-1.docker.io", "a.b.docker.io", false),
            ("10.0.0.1", "1.0.0.1", false),
            ("[::1]:5000", "[::2]:5000", false),
        ] {
            assert_eq!(realm_trusted(registry, realm), trusted, "{registry} to {realm}");
        }
    }
}
