//! The HTTP clients: TLS with roots that no image can write, DNS that refuses addresses of metadata services.
//!
//! In: settings. Out: two clients, for hosts the operator named and for hosts a registry named. Must not: follow
//! redirects, use a proxy or the file system's certificate store, or accept a certificate that does not verify.

use std::{
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use hickory_resolver::{TokioResolver, config::LookupIpStrategy};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer};

use super::address::{Reach, address_allowed};
use crate::{
    config::{Limits, Registries},
    error::{Error, Result},
};

const CERTIFICATES_MAX: u64 = 8 << 20;

/// The two clients.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    named: reqwest::Client,
    told: reqwest::Client,
}

impl Transport {
    pub(crate) fn new(registries: &Registries, limits: &Limits) -> Result<Self> {
        let tls = tls(registries.certificates.as_deref())?;
        let client = |reach: Reach| client(tls.clone(), reach, limits.connect);
        Ok(Self { named: client(Reach::Named)?, told: client(Reach::Told)? })
    }

    pub(crate) fn client(&self, reach: Reach) -> &reqwest::Client {
        match reach {
            Reach::Named => &self.named,
            Reach::Told => &self.told,
        }
    }
}

/// A client for hosts that the operator named, with a TLS configuration of the caller's.
pub fn named_client(tls: ClientConfig, connect: Duration) -> Result<reqwest::Client> {
    client(tls, Reach::Named, connect)
}

fn client(tls: ClientConfig, reach: Reach, connect: Duration) -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Arc::new(Guard { reach, resolver: OnceLock::new() }))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .retry(reqwest::retry::never())
        .http1_only()
        .user_agent(concat!("molt/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect)
        .build()
        .map_err(|error| Error::Settings { what: "the HTTP client".to_owned(), why: error.to_string() })
}

fn tls(certificates: Option<&Path>) -> Result<ClientConfig> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = certificates {
        add_roots(&mut roots, path)?;
    }
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Settings { what: "TLS".to_owned(), why: error.to_string() })
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
}

/// Adds the certificates of a PEM file, or of the `*.pem` and `*.crt` in a folder.
fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<()> {
    let refuse = |path: &Path, why: String| Error::Settings { what: format!("certificates {}", path.display()), why };
    let mut files: Vec<PathBuf> = Vec::new();
    if path.is_dir() {
        for item in std::fs::read_dir(path).map_err(|error| refuse(path, error.to_string()))? {
            let file = item.map_err(|error| refuse(path, error.to_string()))?.path();
            if file.extension().is_some_and(|extension| extension == "pem" || extension == "crt") {
                files.push(file);
            }
        }
    } else {
        files.push(path.to_owned());
    }
    let mut added = 0;
    for file in files {
        let mut text = Vec::new();
        std::fs::File::open(&file)
            .and_then(|open| open.take(CERTIFICATES_MAX).read_to_end(&mut text))
            .map_err(|error| refuse(&file, error.to_string()))?;
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| refuse(&file, error.to_string()))?;
            roots.add(certificate).map_err(|error| refuse(&file, error.to_string()))?;
            added += 1;
        }
    }
    if added == 0 {
        return Err(refuse(path, "no certificate in it (PEM is expected)".to_owned()));
    }
    Ok(())
}

/// Resolves by the sandbox's own resolv.conf and hosts file, and drops addresses that may not be connected to. The
/// connection is made to what is left, so there is no second look-up to cheat.
struct Guard {
    reach: Reach,
    resolver: OnceLock<TokioResolver>,
}

impl Guard {
    fn resolver(&self) -> Result<&TokioResolver, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(resolver) = self.resolver.get() {
            return Ok(resolver);
        }
        let mut builder = TokioResolver::builder_tokio()?;
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        let built = builder.build()?;
        Ok(self.resolver.get_or_init(|| built))
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.reach;
        let host = name.as_str().trim_end_matches('.').to_owned();
        if host == "localhost" {
            return Box::pin(async move {
                let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                let allowed: Vec<_> = both.into_iter().filter(|ip| address_allowed(*ip, reach)).collect();
                addresses(allowed)
            });
        }
        let resolver = self.resolver().cloned();
        Box::pin(async move {
            let found = resolver?.lookup_ip(host.as_str()).await?;
            addresses(found.iter().filter(|ip| address_allowed(*ip, reach)).collect())
        })
    }
}

fn addresses(found: Vec<IpAddr>) -> Result<Addrs, Box<dyn std::error::Error + Send + Sync>> {
    if found.is_empty() {
        return Err("the name leads only to addresses that no registry has".into());
    }
    Ok(Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name says nothing of where it leads: that is looked at when it is resolved.
    #[tokio::test]
    async fn a_name_that_only_leads_to_loopback_is_refused_where_a_registry_gave_it() {
        let look_up = async |reach| {
            let guard = Guard { reach, resolver: OnceLock::new() };
            guard.resolve("localhost.".parse().unwrap()).await
        };
        let found: Vec<_> = look_up(Reach::Named).await.unwrap().map(|address| address.ip()).collect();
        assert_eq!(found, [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        let Err(why) = look_up(Reach::Told).await else { panic!("it leads somewhere") };
        assert!(why.to_string().contains("addresses that no registry has"), "{why}");
    }
}
