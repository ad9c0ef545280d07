//! `WWW-Authenticate` headers.
//!
//! In: header text from a registry. Out: how to sign in. Must not: take a scope from the registry: Molt asks for pull on
//! the one repository it wants, so a challenge cannot widen or inject anything.

use reqwest::Url;

const HEADER_MAX: usize = 4096;
const SERVICE_MAX: usize = 256;

/// How a registry wants one to sign in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// With user name and password on each request.
    Basic,
    /// With a token from `realm`.
    Bearer { realm: Url, service: Option<String> },
}

/// The first challenge that is understood, Bearer before Basic; what is wrong where there is none.
pub(crate) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Result<Challenge, String> {
    let mut basic = false;
    let mut problem = "it asks for a sign-in, but says not how (no WWW-Authenticate)".to_owned();
    for header in headers {
        if header.len() > HEADER_MAX {
            problem = format!("a WWW-Authenticate header of {} bytes", header.len());
            continue;
        }
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            basic = true;
        } else if scheme.eq_ignore_ascii_case("bearer") {
            match bearer(rest) {
                Ok(challenge) => return Ok(challenge),
                Err(why) => why.clone_into(&mut problem),
            }
        } else {
            "it asks for a kind of sign-in that Molt does not know".clone_into(&mut problem);
        }
    }
    if basic { Ok(Challenge::Basic) } else { Err(problem) }
}

fn bearer(text: &str) -> Result<Challenge, &'static str> {
    let (mut realm, mut service) = (None, None);
    for (name, value) in parameters(text) {
        let slot = match name.to_ascii_lowercase().as_str() {
            "realm" => &mut realm,
            "service" => &mut service,
            _ => continue,
        };
        if slot.replace(value).is_some() {
            return Err("a challenge that names its realm or service twice");
        }
    }
    let realm: Url = realm.ok_or("a challenge without a realm")?.parse().map_err(|_| "a realm that is no URL")?;
    if service.as_ref().is_some_and(|text| text.len() > SERVICE_MAX) {
        return Err("a service name that is too long");
    }
    Ok(Challenge::Bearer { realm, service })
}

/// `name="value"` or `name=value`, separated by commas.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([',', ' ']);
    while let Some((name, after)) = rest.split_once('=') {
        let mut value = String::new();
        let mut chars = after.chars();
        if after.starts_with('"') {
            chars.next();
            while let Some(c) = chars.next() {
                match c {
                    '"' => break,
                    '\\' => value.extend(chars.next()),
                    c => value.push(c),
                }
            }
        } else {
            after.split(',').next().unwrap_or_default().trim().clone_into(&mut value);
            chars = after.get(after.find(',').unwrap_or(after.len())..).unwrap_or_default().chars();
        }
        found.push((name.trim().to_owned(), value));
        rest = chars.as_str().trim_start_matches([',', ' ']);
    }
    found
}

/// The URL that gives a token for pulling `repository`, every part percent-encoded.
pub(crate) fn token_url(mut realm: Url, service: Option<&str>, repository: &str) -> Url {
    let kept: Vec<(String, String)> = realm
        .query_pairs()
        .filter(|(name, _)| name != "scope" && name != "service")
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    realm.set_fragment(None);
    realm.set_query(None);
    {
        let mut query = realm.query_pairs_mut();
        query.extend_pairs(kept);
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &format!("repository:{repository}:pull"));
    }
    realm
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(header: &str) -> Result<Challenge, String> {
        parse(std::iter::once(header))
    }

    #[test]
    fn bearer_and_basic_are_read() {
        let got =
            one(r#"Bearer realm="https://auth.example.com/token",service="a,b",scope="repository:x:push""#).unwrap();
        let realm: Url = "https://auth.example.com/token".parse().unwrap();
        assert_eq!(got, Challenge::Bearer { realm, service: Some("a,b".into()) });
        assert_eq!(one("Basic realm=\"x\""), Ok(Challenge::Basic));
        assert!(matches!(
            parse(["Basic realm=x", "bearer realm=https://a.example/t"].into_iter()),
            Ok(Challenge::Bearer { .. })
        ));
    }

    #[test]
    fn nonsense_is_refused() {
        for header in [
            "",
            "Negotiate",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm=\"/relative\"",
            "Bearer realm=\"https://a\",realm=\"https://b\"",
            &format!("Bearer realm=\"https://a\",service=\"{}\"", "x".repeat(300)),
            &format!("Bearer realm=\"https://{}\"", "x".repeat(5000)),
        ] {
            assert!(one(header).is_err(), "{header:.60}");
        }
    }

    #[test]
    fn a_challenge_cannot_inject_query_parameters() {
        let realm: Url = "https://a.example/t?account=x&scope=repository:other:pull".parse().unwrap();
        let url = token_url(realm, Some("s&scope=repository:evil:push#"), "acme/app");
        let pairs: Vec<_> = url.query_pairs().collect();
        assert_eq!(pairs.iter().filter(|(name, _)| name == "scope").count(), 1);
        assert!(pairs.iter().any(|(name, value)| name == "scope" && value == "repository:acme/app:pull"));
        assert!(pairs.iter().any(|(name, _)| name == "account"));
        assert_eq!(url.fragment(), None);
    }
}
