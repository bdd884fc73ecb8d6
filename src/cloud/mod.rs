//! Alibaba Cloud: one method per API call, one attempt each, and the metadata service.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use serde_json::Value;

use crate::eni::{Eni, EniKind, EniState, Fault, FaultKind, Limits, VSwitch};
use crate::error::{Context, Error};

mod clock;
pub mod credentials;
#[cfg(fuzzing)]
pub mod doors;
mod fault;
mod http;
pub mod metadata;
pub mod reach;
mod reply;
mod sign;

pub use credentials::{ADDON_SECRET, Credentials, Key, Sources};
pub use fault::clock_words;
pub use metadata::{BASE, EniFacts, Metadata};
pub use sign::Signature;

use clock::Clock;
use http::{Answer, Http, Method, Trust};
use reply::{Field, Malformed};
use sign::{Params, Stamp};

/// How long one exchange may take, from the look-up of the name to the last byte.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// ENIs on one page of a list.
const PAGE: u32 = 500;
/// A list with more pages than this is not one we can use.
const MAX_PAGES: usize = 40;

/// Where the cloud is and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub region: String,
    /// Instead of the region's own: a host, a host and port, or a URL with its scheme.
    pub ecs: Option<String>,
    pub vpc: Option<String>,
    /// The region's own endpoints on the internet instead of those inside the VPC.
    pub public: bool,
    /// Plain HTTP where the endpoint names no scheme.
    pub http: bool,
    pub signature: Signature,
    /// A PEM file with the certificates to trust instead of the system's.
    pub ca: Option<PathBuf>,
    pub timeout: Duration,
}

impl Endpoint {
    /// The endpoints inside the VPC, over TLS.
    pub fn new(region: &str) -> Endpoint {
        Endpoint {
            region: region.to_string(),
            ecs: None,
            vpc: None,
            public: false,
            http: false,
            signature: Signature::Acs3,
            ca: None,
            timeout: TIMEOUT,
        }
    }
}

/// An ENI to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateEni {
    pub vswitch: String,
    pub security_groups: Vec<String>,
    pub resource_group: Option<String>,
    pub tags: BTreeMap<String, String>,
    /// IPv4 addresses, the primary one included.
    pub addresses: u32,
    /// IPv6 addresses.
    pub v6: u32,
    pub description: String,
    /// The ClientToken: the same one again makes nothing twice.
    pub token: String,
}

/// Which ENIs to list: those that meet all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub ids: Vec<String>,
    pub instance: Option<String>,
    pub tags: BTreeMap<String, String>,
    pub kind: Option<EniKind>,
    pub state: Option<EniState>,
}

/// What is told to those who count: the action, how long it took, and the error code (empty without an answer).
pub type Observer = Arc<dyn Fn(&'static str, Duration, Option<&str>) + Send + Sync>;

/// The ECS and VPC APIs of one region; cheap to clone, usable from several threads.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    region: String,
    signature: Signature,
    ecs: Service,
    vpc: Service,
    http: Http,
    credentials: Credentials,
    clock: Clock,
    calls: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    observer: Option<Observer>,
}

/// One product of the cloud.
#[derive(Debug)]
struct Service {
    product: &'static str,
    /// The URL without a path.
    base: String,
    /// The host of the URL, with the port if it is not the scheme's.
    host: String,
    version: &'static str,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("ecs", &self.0.ecs.base).field("vpc", &self.0.vpc.base).finish_non_exhaustive()
    }
}

impl Client {
    pub fn new(endpoint: Endpoint, credentials: Credentials) -> Result<Client, Error> {
        Client::build(endpoint, credentials, Arc::default(), None)
    }

    /// Another way to the cloud, or as somebody else; it goes on with the counts of this one.
    pub fn anew(&self, endpoint: Endpoint, credentials: Credentials) -> Result<Client, Error> {
        Client::build(endpoint, credentials, Arc::clone(&self.0.calls), self.0.observer.clone())
    }

    /// The same, and the observer hears of every call when it is over.
    pub fn observed(endpoint: Endpoint, credentials: Credentials, observer: Observer) -> Result<Client, Error> {
        Client::build(endpoint, credentials, Arc::default(), Some(observer))
    }

    fn build(
        endpoint: Endpoint,
        credentials: Credentials,
        calls: Arc<Mutex<BTreeMap<&'static str, u64>>>,
        observer: Option<Observer>,
    ) -> Result<Client, Error> {
        let ecs = service(&endpoint, "ecs", &endpoint.ecs, "2014-05-26")?;
        let vpc = service(&endpoint, "vpc", &endpoint.vpc, "2016-04-28")?;
        let trust = match &endpoint.ca {
            _ if ecs.is_plain() && vpc.is_plain() => Trust::Nobody,
            Some(path) => Trust::File(path),
            None => Trust::System,
        };
        let clock = credentials.clock();
        let http = Http::new(endpoint.timeout, trust, clock.clone())?;
        let (region, signature) = (endpoint.region, endpoint.signature);
        Ok(Client(Arc::new(Inner { region, signature, ecs, vpc, http, credentials, clock, calls, observer })))
    }

    /// Seconds that the cloud's clock is ahead of this machine's, behind where negative; 0 where they agree.
    pub fn skew(&self) -> i64 {
        self.0.clock.skew()
    }

    /// How often each action has been called.
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a secondary ENI; it is not attached.
    pub fn create_eni(&self, eni: &CreateEni) -> Result<Eni, Fault> {
        let mut params = self.params();
        params.insert("VSwitchId".into(), eni.vswitch.clone());
        params.insert("InstanceType".into(), "Secondary".into());
        number(&mut params, "SecurityGroupIds", &eni.security_groups);
        tag(&mut params, &eni.tags);
        if let Some(group) = &eni.resource_group {
            params.insert("ResourceGroupId".into(), group.clone());
        }
        if eni.addresses > 1 {
            params.insert("SecondaryPrivateIpAddressCount".into(), (eni.addresses - 1).to_string());
        }
        if eni.v6 > 0 {
            params.insert("Ipv6AddressCount".into(), eni.v6.to_string());
        }
        params.insert("Description".into(), eni.description.clone());
        params.insert("ClientToken".into(), eni.token.clone());
        self.ecs("CreateNetworkInterface", params, reply::eni)
    }

    /// Every ENI that meets the filter, page by page.
    pub fn describe_enis(&self, filter: &Filter) -> Result<Vec<Eni>, Fault> {
        let action = "DescribeNetworkInterfaces";
        let mut params = self.filtered(filter);
        let (mut all, mut seen) = (Vec::new(), HashSet::new());
        for _ in 0..MAX_PAGES {
            let (page, next) = self.ecs(action, params.clone(), reply::enis)?;
            for eni in page {
                if !seen.insert(eni.id.clone()) {
                    return Err(fault::found(action, FaultKind::Unknown, format!("{} is listed twice", eni.id)));
                }
                all.push(eni);
            }
            if next.is_empty() {
                return Ok(all);
            }
            params.insert("NextToken".into(), next);
        }
        Err(fault::found(action, FaultKind::Unknown, format!("the list does not end within {MAX_PAGES} pages")))
    }

    fn filtered(&self, filter: &Filter) -> Params {
        let mut params = self.params();
        number(&mut params, "NetworkInterfaceId", &filter.ids);
        tag(&mut params, &filter.tags);
        let words = [
            ("InstanceId", filter.instance.as_deref()),
            ("Type", filter.kind.and_then(reply::kind_name)),
            ("Status", filter.state.and_then(reply::state_name)),
        ];
        for (name, word) in words {
            params.extend(word.map(|word| (name.to_string(), word.to_string())));
        }
        params.insert("MaxResults".into(), PAGE.to_string());
        params
    }

    /// Starts to attach; the ENI is `InUse` when it is done.
    pub fn attach_eni(&self, eni: &str, instance: &str) -> Result<(), Fault> {
        self.ecs("AttachNetworkInterface", self.with(&[("NetworkInterfaceId", eni), ("InstanceId", instance)]), nothing)
    }

    /// Starts to detach; the ENI is `Available` when it is done.
    pub fn detach_eni(&self, eni: &str, instance: &str) -> Result<(), Fault> {
        self.ecs("DetachNetworkInterface", self.with(&[("NetworkInterfaceId", eni), ("InstanceId", instance)]), nothing)
    }

    pub fn delete_eni(&self, eni: &str) -> Result<(), Fault> {
        self.ecs("DeleteNetworkInterface", self.with(&[("NetworkInterfaceId", eni)]), nothing)
    }

    /// Gives the ENI so many more addresses; returns those, as many as the cloud says it gave.
    pub fn assign_v4(&self, eni: &str, count: u32, token: &str) -> Result<Vec<Ipv4Addr>, Fault> {
        let count = count.to_string();
        let params = self.with(&[
            ("NetworkInterfaceId", eni),
            ("SecondaryPrivateIpAddressCount", &count),
            ("ClientToken", token),
        ]);
        self.ecs("AssignPrivateIpAddresses", params, |root| reply::assigned_v4(root, eni))
    }

    /// Gives the ENI so many more prefixes of 16 addresses.
    pub fn assign_prefixes(&self, eni: &str, count: u32, token: &str) -> Result<Vec<Ipv4Net>, Fault> {
        let count = count.to_string();
        let params = self.with(&[("NetworkInterfaceId", eni), ("Ipv4PrefixCount", &count), ("ClientToken", token)]);
        self.ecs("AssignPrivateIpAddresses", params, |root| reply::assigned_prefixes(root, eni))
    }

    pub fn unassign_prefixes(&self, eni: &str, prefixes: &[Ipv4Net]) -> Result<(), Fault> {
        let mut params = self.with(&[("NetworkInterfaceId", eni)]);
        number(&mut params, "Ipv4Prefix", prefixes);
        self.ecs("UnassignPrivateIpAddresses", params, nothing)
    }

    pub fn unassign_v4(&self, eni: &str, addresses: &[Ipv4Addr]) -> Result<(), Fault> {
        let mut params = self.with(&[("NetworkInterfaceId", eni)]);
        number(&mut params, "PrivateIpAddress", addresses);
        self.ecs("UnassignPrivateIpAddresses", params, nothing)
    }

    /// The ENI is in these security groups from now on, and in no others.
    pub fn set_security_groups(&self, eni: &str, groups: &[String]) -> Result<(), Fault> {
        let mut params = self.with(&[("NetworkInterfaceId", eni)]);
        number(&mut params, "SecurityGroupId", groups);
        self.ecs("ModifyNetworkInterfaceAttribute", params, nothing)
    }

    /// The ENI bears these tags beside its others.
    pub fn tag_eni(&self, eni: &str, tags: &BTreeMap<String, String>) -> Result<(), Fault> {
        let mut params = self.with(&[("ResourceType", "eni"), ("ResourceId.1", eni)]);
        tag(&mut params, tags);
        self.ecs("TagResources", params, nothing)
    }

    /// The ENI bears these tags no longer.
    pub fn untag_eni(&self, eni: &str, keys: &[String]) -> Result<(), Fault> {
        let mut params = self.with(&[("ResourceType", "eni"), ("ResourceId.1", eni)]);
        number(&mut params, "TagKey", keys);
        self.ecs("UntagResources", params, nothing)
    }

    /// The same for IPv6.
    pub fn assign_v6(&self, eni: &str, count: u32, token: &str) -> Result<Vec<Ipv6Addr>, Fault> {
        let count = count.to_string();
        let params = self.with(&[("NetworkInterfaceId", eni), ("Ipv6AddressCount", &count), ("ClientToken", token)]);
        self.ecs("AssignIpv6Addresses", params, |root| reply::assigned_v6(root, eni))
    }

    pub fn unassign_v6(&self, eni: &str, addresses: &[Ipv6Addr]) -> Result<(), Fault> {
        let mut params = self.with(&[("NetworkInterfaceId", eni)]);
        number(&mut params, "Ipv6Address", addresses);
        self.ecs("UnassignIpv6Addresses", params, nothing)
    }

    /// What an instance of this type can hold.
    pub fn instance_limits(&self, instance_type: &str) -> Result<Limits, Fault> {
        let action = "DescribeInstanceTypes";
        let params = self.with(&[("InstanceTypes.1", instance_type)]);
        let found = self.ecs(action, params, |root| reply::limits(root, instance_type))?;
        found.ok_or_else(|| {
            fault::found(action, FaultKind::Invalid, format!("the cloud knows no instance type {instance_type}"))
        })
    }

    /// The security groups of an instance, which its ENIs have unless the configuration names others.
    pub fn security_groups(&self, instance: &str) -> Result<Vec<String>, Fault> {
        self.ecs("DescribeInstanceAttribute", self.with(&[("InstanceId", instance)]), reply::security_groups)
    }

    /// [`FaultKind::Gone`] where there is no such vSwitch.
    pub fn vswitch(&self, id: &str) -> Result<VSwitch, Fault> {
        let action = "DescribeVSwitches";
        let found = self.call(&self.0.vpc, action, self.with(&[("VSwitchId", id)]), |root| reply::vswitch(root, id))?;
        found.ok_or_else(|| fault::found(action, FaultKind::Gone, format!("there is no vSwitch {id}")))
    }

    fn params(&self) -> Params {
        Params::from([("RegionId".to_string(), self.0.region.clone())])
    }

    fn with(&self, more: &[(&str, &str)]) -> Params {
        let mut params = self.params();
        params.extend(more.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        params
    }

    fn ecs<T>(
        &self,
        action: &'static str,
        params: Params,
        read: impl FnOnce(&Field) -> Result<T, Malformed>,
    ) -> Result<T, Fault> {
        self.call(&self.0.ecs, action, params, read)
    }

    /// One attempt, counted.
    fn call<T>(
        &self,
        service: &Service,
        action: &'static str,
        params: Params,
        read: impl FnOnce(&Field) -> Result<T, Malformed>,
    ) -> Result<T, Fault> {
        let started = Instant::now();
        let result = self.attempt(service, action, params, read);
        *self.0.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(action).or_default() += 1;
        if let Some(observer) = &self.0.observer {
            observer(action, started.elapsed(), result.as_ref().err().map(|fault| fault.code.as_str()));
        }
        result
    }

    fn attempt<T>(
        &self,
        service: &Service,
        action: &'static str,
        params: Params,
        read: impl FnOnce(&Field) -> Result<T, Malformed>,
    ) -> Result<T, Fault> {
        let skew = self.0.clock.skew();
        let key = self.0.credentials.key().map_err(|e| fault::keyless(action, &e))?;
        let answer = self.send(service, action, &params, &key).map_err(|e| fault::unanswered(action, &e));
        let result = answer.and_then(|answer| judge(action, &answer, read));
        result.map_err(|mut fault| {
            if fault::distrusts_key(&fault.code) {
                self.0.credentials.doubt(&key);
            }
            for text in [&mut fault.code, &mut fault.message, &mut fault.request_id] {
                *text = key.scrub(text);
            }
            fault::tidy(&mut fault);
            if let Some(why) = self.0.credentials.complaint().filter(|_| fault::distrusts_key(&fault.code)) {
                fault.message += &format!("; there are no newer credentials: {why}");
            }
            match self.0.clock.skew() {
                now if fault::distrusts_clock(&fault.code) => fault::blame_clock(&mut fault, skew, now),
                _ => fault::name_right(&mut fault, service.product, &self.0.region, &params),
            }
            fault
        })
    }

    fn send(&self, service: &Service, action: &str, params: &Params, key: &Key) -> Result<Answer, Error> {
        let call = sign::Call { host: &service.host, action, version: service.version };
        let sign = match self.0.signature {
            Signature::Acs3 => sign::acs3,
            Signature::HmacSha1 => sign::hmac_sha1,
        };
        let signed = sign(&call, params, key, Stamp::new(self.0.clock.now())?);
        self.0.http.send(Method::Post, &service.base, &format!("/?{}", signed.query), &signed.headers)
    }
}

/// What the answer means. A success that cannot be read may still have been one.
fn judge<T>(action: &str, answer: &Answer, read: impl FnOnce(&Field) -> Result<T, Malformed>) -> Result<T, Fault> {
    if answer.status != 200 {
        return Err(fault::refused(action, answer.status, &answer.body));
    }
    let value: Value = serde_json::from_slice(&answer.body)
        .map_err(|e| fault::malformed(action, &Value::Null, format!("the answer is not JSON: {e}")))?;
    if !value.is_object() {
        return Err(fault::malformed(action, &Value::Null, "the answer is not a JSON object".into()));
    }
    read(&Field::root(&value)).map_err(|what| fault::malformed(action, &value, what))
}

/// Success is all there is to know.
fn nothing(_: &Field) -> Result<(), Malformed> {
    Ok(())
}

/// A repeated parameter: `Name.1`, `Name.2`.
fn number<T: ToString>(params: &mut Params, name: &str, values: &[T]) {
    params.extend(values.iter().enumerate().map(|(i, value)| (format!("{name}.{}", i + 1), value.to_string())));
}

fn tag(params: &mut Params, tags: &BTreeMap<String, String>) {
    for (i, (key, value)) in tags.iter().enumerate() {
        params.insert(format!("Tag.{}.Key", i + 1), key.clone());
        params.insert(format!("Tag.{}.Value", i + 1), value.clone());
    }
}

impl Service {
    fn is_plain(&self) -> bool {
        self.base.starts_with("http://")
    }
}

fn service(
    endpoint: &Endpoint,
    product: &'static str,
    named: &Option<String>,
    version: &'static str,
) -> Result<Service, Error> {
    let own = || match endpoint.public {
        true => format!("{product}.{}.aliyuncs.com", endpoint.region),
        false => format!("{product}-vpc.{}.aliyuncs.com", endpoint.region),
    };
    let named = named.clone().unwrap_or_else(own);
    let (base, host) = address(&named, endpoint.http).context(|| format!("use {product} endpoint {named:?}"))?;
    Ok(Service { product, base, host, version })
}

/// The URL without a path, and the host as the Host header names it.
fn address(named: &str, http: bool) -> Result<(String, String), Error> {
    let (scheme, host) = match named.split_once("://") {
        Some((scheme @ ("http" | "https"), host)) => (scheme, host),
        Some(_) => return Err(Error::refused("only http and https are spoken")),
        None => (if http { "http" } else { "https" }, named),
    };
    let host = host.trim_end_matches('/');
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b);
    if host.is_empty() || !host.bytes().all(fits) {
        return Err(Error::refused("this is not a host with or without a port"));
    }
    let usual = if scheme == "http" { ":80" } else { ":443" };
    let host = host.strip_suffix(usual).unwrap_or(host);
    Ok((format!("{scheme}://{host}"), host.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(endpoint: Endpoint) -> (String, String) {
        let ecs = service(&endpoint, "ecs", &endpoint.ecs, "v").unwrap();
        (ecs.base, ecs.host)
    }

    #[test]
    fn endpoints_are_inside_the_vpc_unless_said_otherwise() {
        let inside = Endpoint::new("cn-hangzhou");
        let host = "ecs-vpc.cn-hangzhou.aliyuncs.com";
        assert_eq!(base(inside.clone()), (format!("https://{host}"), host.into()));
        let host = "ecs.cn-hangzhou.aliyuncs.com";
        assert_eq!(base(Endpoint { public: true, http: true, ..inside }), (format!("http://{host}"), host.into()));
    }

    #[test]
    fn a_named_endpoint_keeps_its_scheme_and_port() {
        for (named, http, want, host) in [
            ("127.0.0.1:8080", true, "http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://127.0.0.1:8080/", false, "http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("ecs.example.com", false, "https://ecs.example.com", "ecs.example.com"),
            ("https://ecs.example.com:443", true, "https://ecs.example.com", "ecs.example.com"),
            ("[::1]:80", true, "http://[::1]", "[::1]"),
        ] {
            assert_eq!(address(named, http).unwrap(), (want.into(), host.into()), "{named}");
        }
        for bad in ["", "ftp://x", "http://", "a b", "host/path", "user@host"] {
            assert!(address(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_client_is_shared_between_threads() {
        fn shared<T: Send + Sync + Clone>() {}
        shared::<Client>();
        shared::<Metadata>();
    }
}
