//! Where the cloud's APIs are, as the configuration says it.

use std::fmt;
use std::path::PathBuf;

use crate::json::{Reader, Wrong};

/// Where the cloud's APIs are and how they are spoken to; `None` follows from the region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudAccess {
    pub ecs: Option<Endpoint>,
    pub vpc: Option<Endpoint>,
    pub metadata: Option<Endpoint>,
    pub scheme: Scheme,
    pub signature: Signature,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub scheme: Scheme,
    /// Host, and port if it is not the scheme's own.
    pub authority: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Scheme::Http { "http" } else { "https" })
    }
}

/// How calls are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// HMAC-SHA1 over the query.
    V1,
    /// ACS3-HMAC-SHA256 in a header.
    V3,
}

const SCHEMES: &[(&str, Scheme)] = &[("http", Scheme::Http), ("https", Scheme::Https)];
const SIGNATURES: &[(&str, Signature)] = &[("1.0", Signature::V1), ("3.0", Signature::V3)];

impl CloudAccess {
    pub fn read(keys: &mut Reader) -> Result<CloudAccess, Wrong> {
        let scheme = keys.word("client_scheme", SCHEMES)?.unwrap_or(Scheme::Https);
        Ok(CloudAccess {
            ecs: endpoint(keys, "ecs_endpoint", scheme)?,
            vpc: endpoint(keys, "vpc_endpoint", scheme)?,
            metadata: endpoint(keys, "metadata_endpoint", Scheme::Http)?,
            scheme,
            signature: keys.word("signature_version", SIGNATURES)?.unwrap_or(Signature::V3),
            ca_file: keys.path("ca_file")?,
        })
    }
}

fn endpoint(keys: &mut Reader, key: &'static str, otherwise: Scheme) -> Result<Option<Endpoint>, Wrong> {
    keys.parsed(key, "host, host:port, or either behind http:// or https://", |text| {
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(_) => return None,
            None => (otherwise, text),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        is_authority(authority).then(|| Endpoint { scheme, authority: authority.into() })
    })
}

fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let name = |h: &str| {
        h.len() <= 253 && !h.is_empty() && h.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    let v6 = |h: &str| {
        h.strip_prefix('[').and_then(|h| h.strip_suffix(']')).is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok())
    };
    (name(host) || v6(host)) && port.is_none_or(|p| p.parse::<u16>().is_ok_and(|p| p > 0))
}
