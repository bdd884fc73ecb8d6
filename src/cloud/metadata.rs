//! The instance metadata service: what the machine is told about itself, in plain text.

use std::fmt;
use std::iter;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};

use crate::both::both;
use crate::cloud::clock::Clock;
use crate::cloud::http::{Answer, Http, Method, Trust};
use crate::config::NodeFacts;
use crate::error::{Cause, Context, Error};
use crate::gather::Gather;
use crate::ip::{IpPair, Mac, NetPair};

/// Where every instance finds the service.
pub const BASE: &str = "http://100.100.100.200";

const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a session token is asked to live; half of that is how long we use it.
const TOKEN_TTL: Duration = Duration::from_secs(21600);
/// How long we do without a token after the service gave none.
const TOKEN_RETRY: Duration = Duration::from_secs(60);

/// Hears of every question when it is over: the URL, how long it took, and whether there was no answer.
pub type Observer = Arc<dyn Fn(&str, Duration, bool) + Send + Sync>;

/// The service; cheap to clone, usable from several threads.
#[derive(Clone)]
pub struct Metadata(Arc<Service>);

struct Service {
    base: String,
    http: Http,
    clock: Clock,
    session: Mutex<Option<Session>>,
    observer: Option<Observer>,
}

/// The token to send, if there is one, and until when that holds.
#[derive(Clone)]
struct Session {
    token: Option<String>,
    until: Instant,
}

/// An attached ENI as the machine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniFacts {
    pub id: String,
    pub mac: Mac,
    pub primary: Ipv4Addr,
    pub v4: Vec<Ipv4Addr>,
    pub v6: Vec<Ipv6Addr>,
    /// Prefixes of 16 addresses; none where the service tells of none.
    pub prefixes: Option<Vec<Ipv4Net>>,
    pub gateway: Ipv4Addr,
    pub vswitch: String,
    pub cidr: Ipv4Net,
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Metadata").field(&self.0.base).finish()
    }
}

impl Metadata {
    /// The service at this URL, which is [`BASE`] on a real machine.
    pub fn new(base: &str) -> Result<Metadata, Error> {
        Metadata::with_timeout(base, TIMEOUT)
    }

    /// The same, where an answer that takes longer is none.
    pub fn with_timeout(base: &str, timeout: Duration) -> Result<Metadata, Error> {
        Metadata::build(base, timeout, None)
    }

    /// The service, and whoever counts what it is asked.
    pub fn observed(base: &str, observer: Observer) -> Result<Metadata, Error> {
        Metadata::build(base, TIMEOUT, Some(observer))
    }

    fn build(base: &str, timeout: Duration, observer: Option<Observer>) -> Result<Metadata, Error> {
        let clock = Clock::default();
        let http = Http::new(timeout, Trust::Nobody, clock.clone())?;
        let base = base.trim_end_matches('/').to_string();
        Ok(Metadata(Arc::new(Service { base, http, clock, session: Mutex::new(None), observer })))
    }

    /// The cloud's time, as the service tells it.
    pub(super) fn clock(&self) -> Clock {
        self.0.clock.clone()
    }

    /// What the machine is; its prefixes and address are those of the primary ENI.
    pub fn node(&self) -> Result<NodeFacts, Error> {
        // One token for all; then some questions at a time, for a start waits for the answers.
        self.token();
        let machine = || Ok::<_, Error>((self.instance_id()?, self.instance_type()?, self.region()?));
        let place = || Ok::<_, Error>((self.zone()?, self.vpc()?));
        let nets = || Ok::<_, Error>((self.vpc_cidrs()?, self.vswitch()?));
        let own = || -> Result<_, Error> {
            let mac = self.mac()?;
            Ok((NetPair::v4(self.vswitch_cidr(mac)?), IpPair::v4(self.primary(mac)?)))
        };
        let (machine, (place, (nets, own))) = both(machine, || both(place, || both(nets, own)));
        let ((vswitch_cidr, ips), (instance, instance_type, region)) = (own?, machine?);
        let ((zone, vpc), (vpc_cidrs, vswitch)) = (place?, nets?);
        Ok(NodeFacts { instance, instance_type, region, zone, vpc, vpc_cidrs, vswitch, vswitch_cidr, ips })
    }

    /// The VPC's prefixes; none where the service does not tell.
    fn vpc_cidrs(&self) -> Result<Vec<IpNet>, Error> {
        let path = "vpc-cidr-block";
        match self.read(path) {
            Ok(text) => text.lines().map(|line| parse(path, line.trim(), "a prefix")).collect(),
            Err(e) if e.is_absent() => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    pub fn instance_id(&self) -> Result<String, Error> {
        self.word("instance-id")
    }

    pub fn instance_type(&self) -> Result<String, Error> {
        self.word("instance/instance-type")
    }

    pub fn region(&self) -> Result<String, Error> {
        self.word("region-id")
    }

    pub fn zone(&self) -> Result<String, Error> {
        self.word("zone-id")
    }

    pub fn vpc(&self) -> Result<String, Error> {
        self.word("vpc-id")
    }

    /// Of the primary ENI.
    pub fn vswitch(&self) -> Result<String, Error> {
        self.word("vswitch-id")
    }

    /// Of the primary ENI.
    pub fn mac(&self) -> Result<Mac, Error> {
        self.parse("mac", "a MAC address")
    }

    /// Of every ENI that is attached.
    pub fn macs(&self) -> Result<Vec<Mac>, Error> {
        let path = "network/interfaces/macs/";
        let text = self.read(path)?;
        let lines = text.lines().map(trimmed).filter(|line| !line.is_empty());
        lines.map(|line| parse(path, line, "a MAC address")).collect()
    }

    /// The ENI with this MAC; absent until the attachment has come through.
    pub fn eni(&self, mac: Mac) -> Result<EniFacts, Error> {
        Ok(EniFacts {
            id: self.eni_id(mac)?,
            mac,
            primary: self.primary(mac)?,
            v4: self.private_v4s(mac)?,
            v6: self.private_v6s(mac)?,
            prefixes: self.prefixes(mac)?,
            gateway: self.gateway(mac)?,
            vswitch: self.eni_vswitch(mac)?,
            cidr: self.vswitch_cidr(mac)?,
        })
    }

    pub fn eni_id(&self, mac: Mac) -> Result<String, Error> {
        self.word(&of(mac, "network-interface-id"))
    }

    /// The address the ENI was born with.
    pub fn primary(&self, mac: Mac) -> Result<Ipv4Addr, Error> {
        self.parse(&of(mac, "primary-ip-address"), "an IPv4 address")
    }

    /// Every private IPv4 address of the ENI.
    pub fn private_v4s(&self, mac: Mac) -> Result<Vec<Ipv4Addr>, Error> {
        let path = of(mac, "private-ipv4s");
        addresses(&path, &self.read(&path)?)
    }

    /// Every IPv6 address of the ENI; none where the service knows no such thing.
    pub fn private_v6s(&self, mac: Mac) -> Result<Vec<Ipv6Addr>, Error> {
        let path = of(mac, "ipv6s");
        match self.read(&path) {
            Err(e) if e.is_absent() => Ok(Vec::new()),
            text => addresses(&path, &text?),
        }
    }

    fn prefixes(&self, mac: Mac) -> Result<Option<Vec<Ipv4Net>>, Error> {
        let path = of(mac, "ipv4-prefixes");
        match self.read(&path) {
            Err(e) if e.is_absent() => Ok(None),
            text => addresses(&path, &text?).map(Some),
        }
    }

    pub fn gateway(&self, mac: Mac) -> Result<Ipv4Addr, Error> {
        self.parse(&of(mac, "gateway"), "an IPv4 address")
    }

    pub fn eni_vswitch(&self, mac: Mac) -> Result<String, Error> {
        self.word(&of(mac, "vswitch-id"))
    }

    pub fn vswitch_cidr(&self, mac: Mac) -> Result<Ipv4Net, Error> {
        self.parse(&of(mac, "vswitch-cidr-block"), "an IPv4 prefix")
    }

    /// The name of the instance's RAM role; absent where it has none.
    pub(super) fn role(&self) -> Result<String, Error> {
        let path = "ram/security-credentials/";
        let text = self.read(path)?;
        word(path, text.lines().next().unwrap_or_default())
    }

    /// The role's credentials as they come. Not for anybody's eyes.
    pub(super) fn role_credentials(&self, role: &str) -> Result<String, Error> {
        self.read(&format!("ram/security-credentials/{role}"))
    }

    fn word(&self, path: &str) -> Result<String, Error> {
        word(path, &self.read(path)?)
    }

    fn parse<T: FromStr>(&self, path: &str, a: &str) -> Result<T, Error> {
        parse(path, &self.read(path)?, a)
    }

    /// The trimmed text at the path; `Cause::Absent` where the service knows none.
    fn read(&self, path: &str) -> Result<String, Error> {
        let started = Instant::now();
        let read = self.try_read(path);
        if let Some(observer) = &self.0.observer {
            let failed = read.as_ref().is_err_and(|e| !e.is_absent());
            observer(&format!("{}/latest/meta-data/{}", self.0.base, nameless(path)), started.elapsed(), failed);
        }
        read.context(|| format!("read metadata {path}"))
    }

    fn try_read(&self, path: &str) -> Result<String, Error> {
        let token = self.token();
        let mut answer = self.ask(path, token.as_deref())?;
        if answer.status == 401 {
            self.forget(token);
            answer = self.ask(path, self.token().as_deref())?;
        }
        match answer.status {
            200 => {
                let text = String::from_utf8(answer.body).map_err(|_| Error::malformed("the answer is not text"))?;
                Ok(trimmed(&text).to_string())
            }
            404 => Err(Error::new(Cause::Absent)),
            status => Err(Error::new(Cause::Http { status, body: String::new() })),
        }
    }

    fn ask(&self, path: &str, token: Option<&str>) -> Result<Answer, Error> {
        let token = token.map(|token| ("x-aliyun-ecs-metadata-token", token.to_string()));
        let headers = token.into_iter().gather();
        self.0.http.send(Method::Get, &self.0.base, &format!("/latest/meta-data/{path}"), &headers)
    }

    /// The session's token; a service that gives none is asked without.
    fn token(&self) -> Option<String> {
        let mut session = self.0.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.as_ref().is_none_or(|s| s.until <= Instant::now()) {
            let token = self.new_token();
            let lasts = if token.is_some() { TOKEN_TTL / 2 } else { TOKEN_RETRY };
            *session = Some(Session { token, until: Instant::now() + lasts });
        }
        session.as_ref().and_then(|s| s.token.clone())
    }

    fn new_token(&self) -> Option<String> {
        let ttl = TOKEN_TTL.as_secs().to_string();
        let headers = iter::once(("x-aliyun-ecs-metadata-token-ttl-seconds", ttl)).gather();
        let answer = self.0.http.send(Method::Put, &self.0.base, "/latest/api/token", &headers).ok()?;
        let token = String::from_utf8(answer.body).ok().filter(|_| answer.status == 200)?;
        let token = token.trim();
        (!token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic())).then(|| token.to_string())
    }

    /// The service did not like this token; another thread may have a better one already.
    fn forget(&self, token: Option<String>) {
        let mut session = self.0.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.as_ref().is_some_and(|s| s.token == token) {
            *session = None;
        }
    }
}

fn of(mac: Mac, what: &str) -> String {
    format!("network/interfaces/macs/{mac}/{what}")
}

/// The path without the name of a single ENI or role in it: one thing to be counted for all of them.
fn nameless(path: &str) -> String {
    let parts = path.split('/').scan("", |before, part| Some((std::mem::replace(before, part), part)));
    let parts = parts.map(|(before, part)| match before {
        "macs" if !part.is_empty() => "{mac}",
        "security-credentials" if !part.is_empty() => "{role}",
        _ => part,
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Without blanks around it, and without the slash that marks a folder.
fn trimmed(text: &str) -> &str {
    text.trim().trim_end_matches('/')
}

/// An id, a name, a type: what could stand in a path.
pub(super) fn word(path: &str, text: &str) -> Result<String, Error> {
    let text = trimmed(text);
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.is_empty() || text.len() > 128 || !text.bytes().all(fits) {
        return Err(Error::malformed(format!("metadata {path} is not a name: {text:.60?}")));
    }
    Ok(text.to_string())
}

pub(super) fn parse<T: FromStr>(path: &str, text: &str, a: &str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::malformed(format!("metadata {path} is not {a}: {text:.60?}")))
}

/// A list in brackets, its elements in quotes or not.
pub(super) fn addresses<T: FromStr>(path: &str, text: &str) -> Result<Vec<T>, Error> {
    let wrong = || Error::malformed(format!("metadata {path} is not a list of addresses: {text:.60?}"));
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or_else(wrong)?;
    let items = inner.split(',').map(|item| item.trim().trim_matches('"')).filter(|item| !item.is_empty());
    items.map(|item| item.parse().map_err(|_| wrong())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_of_a_path_names_no_eni_and_no_role() {
        for (path, counted) in [
            ("instance-id", "instance-id"),
            ("network/interfaces/macs/", "network/interfaces/macs/"),
            ("network/interfaces/macs/00:16:3e:00:00:01/gateway", "network/interfaces/macs/{mac}/gateway"),
            ("ram/security-credentials/", "ram/security-credentials/"),
            ("ram/security-credentials/terway", "ram/security-credentials/{role}"),
        ] {
            assert_eq!(nameless(path), counted);
        }
    }

    #[test]
    fn blanks_and_a_folders_slash_are_trimmed() {
        assert_eq!(trimmed(" 00:16:3e:00:00:01/\n"), "00:16:3e:00:00:01");
        assert_eq!(word("zone-id", "cn-hangzhou-h\n").unwrap(), "cn-hangzhou-h");
    }

    #[test]
    fn a_page_is_not_a_name() {
        for bad in ["", " ", "<html>", "two words", "a/../b", "a\nb", "ü"] {
            assert!(word("instance-id", bad).is_err(), "{bad:?}");
        }
        let text = word("instance-id", "<html>").unwrap_err().to_string();
        assert_eq!(text, "metadata instance-id is not a name: \"<html>\"");
    }

    #[test]
    fn lists_come_with_and_without_quotes() {
        let v4: Vec<Ipv4Addr> = addresses("p", r#"["10.0.0.2", "10.0.0.3"]"#).unwrap();
        assert_eq!(v4, [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)]);
        let v6: Vec<Ipv6Addr> = addresses("p", "[fd00::1,fd00::2]").unwrap();
        assert_eq!(v6, ["fd00::1".parse::<Ipv6Addr>().unwrap(), "fd00::2".parse().unwrap()]);
        assert!(addresses::<Ipv4Addr>("p", "[]").unwrap().is_empty());
        for bad in ["", "10.0.0.1", "[10.0.0.1", "[x]", "[10.0.0.1 10.0.0.2]"] {
            assert!(addresses::<Ipv4Addr>("p", bad).is_err(), "{bad:?}");
        }
    }
}
