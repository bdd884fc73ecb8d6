//! One HTTP exchange: bounded in time and size, no redirects, no proxy, no retry; errors never quote the URL's query.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::clock::Clock;
use crate::error::{Cause, Context, Error};

/// Of each connection, for what comes and goes; ureq's own are 128 KiB, which stay as long as the connection.
const BUFFER: usize = 32 << 10;
/// The longest answer that is read.
const MAX_ANSWER: u64 = 8 << 20;

/// Where distributions keep the certificates they trust.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

const USER_AGENT: &str = concat!("terwayd/", env!("CARGO_PKG_VERSION"));

/// Which certificates an `https` server is checked against.
pub enum Trust<'a> {
    /// None are needed: only `http` is spoken.
    Nobody,
    /// The first of the system's bundles that is there.
    System,
    /// The PEM file that the operator names.
    File(&'a Path),
}

/// A connection pool with limits.
#[derive(Debug, Clone)]
pub struct Http {
    agent: ureq::Agent,
    /// Set by every answer.
    clock: Clock,
}

/// What a server said.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Put,
}

impl Http {
    pub fn new(timeout: Duration, trust: Trust, clock: Clock) -> Result<Http, Error> {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots(trust)?)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(USER_AGENT)
            .accept("application/json")
            .max_idle_connections(8)
            // Calls are seldom, and what a connection has of buffers stays with it.
            .max_idle_connections_per_host(1)
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            // What does not fit the buffer would look like a connection that broke.
            .max_response_header_size(BUFFER / 2)
            .build();
        Ok(Http { agent: config.new_agent(), clock })
    }

    /// Sends a request with an empty body. `target` is what follows the base URL and may hold secrets.
    pub fn send(
        &self,
        method: Method,
        base: &str,
        target: &str,
        headers: &BTreeMap<&'static str, String>,
    ) -> Result<Answer, Error> {
        self.exchange(method, &format!("{base}{target}"), headers).map_err(failure).context(|| format!("ask {base}"))
    }

    fn exchange(
        &self,
        method: Method,
        url: &str,
        headers: &BTreeMap<&'static str, String>,
    ) -> Result<Answer, ureq::Error> {
        let response = match method {
            Method::Get => headers.iter().fold(self.agent.get(url), |r, (k, v)| r.header(*k, v)).call(),
            Method::Post => headers.iter().fold(self.agent.post(url), |r, (k, v)| r.header(*k, v)).send_empty(),
            Method::Put => headers.iter().fold(self.agent.put(url), |r, (k, v)| r.header(*k, v)).send_empty(),
        }?;
        let status = response.status().as_u16();
        if let Some(date) = response.headers().get("date").and_then(|date| date.to_str().ok()) {
            self.clock.learn(date);
        }
        let body = response.into_body().into_with_config().limit(MAX_ANSWER).read_to_vec()?;
        Ok(Answer { status, body })
    }
}

fn roots(trust: Trust) -> Result<Vec<Certificate<'static>>, Error> {
    match trust {
        Trust::Nobody => Ok(Vec::new()),
        Trust::File(path) => read_roots(path),
        Trust::System => match BUNDLES.iter().map(Path::new).find(|path| path.exists()) {
            Some(path) => read_roots(path),
            None => Err(Error::refused(format!(
                "no CA certificates: none of {} is there; install the ca-certificates package or name a PEM file",
                BUNDLES.join(", ")
            ))),
        },
    }
}

/// A bundle with one bad entry is still good for the others.
fn read_roots(path: &Path) -> Result<Vec<Certificate<'static>>, Error> {
    let pem = std::fs::read(path).context(|| format!("read CA certificates {}", path.display()))?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match certificates.is_empty() {
        true => Err(Error::refused(format!("{} holds no PEM certificate", path.display()))),
        false => Ok(certificates),
    }
}

/// In our own words, because some of ureq's quote the whole URL.
fn failure(e: ureq::Error) -> Error {
    match e {
        ureq::Error::Timeout(_) => Error::new(Cause::Timeout),
        ureq::Error::Io(e) => Error::from(e),
        ureq::Error::HostNotFound => Error::malformed("the host name is not known"),
        ureq::Error::Rustls(e) => Error::malformed(format!("TLS: {e}")),
        ureq::Error::Tls(e) => Error::malformed(format!("TLS: {e}")),
        ureq::Error::BodyExceedsLimit(limit) => Error::malformed(format!("the answer is longer than {limit} bytes")),
        ureq::Error::LargeResponseHeader(..) => Error::malformed("the answer's header is too long"),
        ureq::Error::Protocol(_) => Error::malformed("the answer is not HTTP"),
        ureq::Error::BadUri(_) => Error::refused("the URL is not valid"),
        ureq::Error::Http(_) => Error::refused("the request holds characters that HTTP does not allow"),
        _ => Error::malformed("there was no answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_certificates_is_refused_by_name() {
        let path = std::env::temp_dir().join(format!("terway-bundle-{}", std::process::id()));
        std::fs::write(&path, "-----BEGIN NOTHING-----\n").unwrap();
        let text = Http::new(Duration::from_secs(1), Trust::File(&path), Clock::default()).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text, format!("{} holds no PEM certificate", path.display()));
        let text = Http::new(Duration::from_secs(1), Trust::File(&path), Clock::default()).unwrap_err().to_string();
        assert_eq!(text, format!("read CA certificates {}: no such file or directory", path.display()));
    }

    #[test]
    fn an_error_never_quotes_the_query() {
        let http = Http::new(Duration::from_secs(1), Trust::Nobody, Clock::default()).unwrap();
        for base in ["http://127.0.0.1:1/", "nonsense", "http://", "ftp://127.0.0.1:1/", "http://a b/"] {
            let text =
                http.send(Method::Post, base, "?SecurityToken=hush", &BTreeMap::new()).err().unwrap().to_string();
            assert!(!text.contains("hush"), "{text}");
        }
    }
}
