//! The daemon's configuration and the facts of its node, parsed once into values that cannot be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cni;
use crate::duration::duration;
use crate::endpoint::CloudAccess;
use crate::eni::{EniChoice, VSwitchChoice};
use crate::error::{Context, Error};
use crate::gather::Gather;
use crate::ip::{Family, IpPair, NetPair, Stack, overlap};
use crate::json::{self, Object, Reader, Wrong, shortened};
use crate::maps::Sizes;
use crate::ours;
use crate::tags::{all_tags, is_reserved};
use crate::verdict;

/// Everything the operator says. What is `None` or empty is found out from the node.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The families in which every pod has an address.
    pub stack: Stack,
    pub access: Option<AccessKey>,
    /// The encrypted token file.
    pub credential_path: Option<PathBuf>,
    pub region: Option<String>,
    pub service_cidr: NetPair,
    /// vSwitches per zone, in the order of preference.
    pub vswitches: BTreeMap<String, Vec<String>>,
    pub vswitch_choice: VSwitchChoice,
    pub eni_choice: EniChoice,
    pub security_groups: Vec<String>,
    pub resource_group: Option<String>,
    /// Tags for the ENIs we make.
    pub eni_tags: BTreeMap<String, String>,
    /// Only ENIs that bear all of these are ours to use.
    pub eni_tag_filter: BTreeMap<String, String>,
    /// ENIs that bear one of these are never used.
    pub eni_tag_block: Vec<(String, String)>,
    /// Idle addresses to keep ready, and the most to keep.
    pub min_idle: u32,
    pub max_idle: u32,
    /// Bounds on secondary ENIs; no upper bound is the instance's own.
    pub min_enis: u32,
    pub max_enis: Option<u32>,
    /// Where the operator says it; else the node's label does.
    pub mode: Option<Mode>,
    pub share: Share,
    /// How often the pool is compared with the cloud.
    pub sync_period: Duration,
    /// How long an address rests after its pod has gone.
    pub cooldown: Duration,
    /// How long an address is kept for a pod that shall have it again; zero: not at all.
    pub reservation: Duration,
    /// Kinds whose pods shall have their addresses again, lower case.
    pub stateful_kinds: BTreeSet<String>,
    /// How long an ENI must have held no lease before it is given back.
    pub eni_idle: Duration,
    /// How long a pod must have been gone before its address is freed though no DEL came.
    pub orphan: Duration,
    /// Idle addresses that go although there are not too many, when nobody has wanted one for long.
    pub reclaim: Option<Reclaim>,
    /// Addresses to have once after the start, more than the pool would keep.
    pub warm_up: u32,
    /// Calls a minute, by API action.
    pub rate_limit: BTreeMap<String, u32>,
    /// Requests a second to the API server, and how many may come at once.
    pub kube_pace: Option<Pace>,
    /// IPv4 addresses come in prefixes of 16 where the vSwitch has them; at most so many an ENI.
    pub prefixes: Option<u32>,
    /// Routes for every pod, through its gateway.
    pub extra_routes: Vec<IpNet>,
    pub kubeconfig: Option<PathBuf>,
    pub node_name: Option<String>,
    pub publish: Publish,
    pub services: Services,
    pub policies: Policies,
    /// Of ENIs, and of pods' links where the network configuration says nothing of them.
    pub mtu: Option<u32>,
    pub conflist: PathBuf,
    pub cloud: CloudAccess,
}

/// How idle addresses go when nobody has wanted one for long: down to the least, so many at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reclaim {
    pub after: Duration,
    pub interval: Duration,
    pub batch: u32,
    /// The interval is lengthened by up to this part of it, so that nodes do not go in step.
    pub jitter: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    pub per_second: f64,
    pub burst: u32,
}

/// Whether a pod shares its ENI with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// `ENIMultiIP`: many pods to an ENI.
    Shared,
    /// `ENIOnly`: each pod has one to itself.
    Whole,
}

impl Mode {
    /// The words of the old Terway's `-daemon-mode`.
    pub const WORDS: &[(&str, Mode)] = &[("ENIMultiIP", Mode::Shared), ("ENIOnly", Mode::Whole)];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Mode::Whole { "ENIOnly" } else { "ENIMultiIP" })
    }
}

/// How many ENIs a node may give away whole, of those that its instance type can hold: int(ENIs × ratio) + shift − 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    pub ratio: f64,
    pub shift: i64,
}

impl Share {
    pub fn of(&self, adapters: u32) -> u32 {
        let share = (f64::from(adapters) * self.ratio) as i64 + self.shift - 1;
        share.clamp(0, adapters.saturating_sub(1).into()) as u32
    }
}

/// What the API server is told beyond condition and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Extended resources on the node; without, ours are taken away.
    pub resources: bool,
    /// Addresses as an annotation on pods.
    pub pod_ips: bool,
}

/// Services at the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services {
    /// Whether connections are led there; what the operator does not say follows from the data path.
    pub on: Option<bool>,
    /// The cgroup whose processes that is for; none: all.
    pub cgroup: Option<PathBuf>,
    /// The most addresses of Services, port by port, and the most endpoints.
    pub frontends: u32,
    pub backends: u32,
}

/// Network policies of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policies {
    pub on: bool,
    /// What enforces them; none: what the kernel and the pods' wiring suggest.
    pub renderer: Option<PolicyRenderer>,
    pub sizes: verdict::Sizes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyRenderer {
    Ebpf,
    Iptables,
}

impl fmt::Display for PolicyRenderer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == PolicyRenderer::Ebpf { "ebpf" } else { "iptables" })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKey {
    pub id: String,
    pub secret: Secret,
}

/// Text that must not get into a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for signing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Something in the configuration that does nothing, or not what it says, which a person should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// No key of Terway; a slip of the pen?
    Unknown(String),
    /// A key of Terway that changes nothing here, and why.
    WithoutEffect(String, &'static str),
    /// More idle addresses are to be kept ready than may be kept: the first is done.
    IdleBounds { min: u32, max: u64 },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Unknown(key) => write!(f, "configuration: {key} is not a key that Terway knows; it is ignored"),
            Warning::WithoutEffect(key, why) => write!(f, "configuration: {key} has no effect here: {why}"),
            Warning::IdleBounds { min, max } => {
                write!(f, "configuration: min_pool_size is {min} and max_pool_size is {max}; {min} are kept")
            }
        }
    }
}

/// What the metadata service says of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    pub instance: String,
    pub instance_type: String,
    pub region: String,
    pub zone: String,
    pub vpc: String,
    pub vpc_cidrs: Vec<IpNet>,
    pub vswitch: String,
    pub vswitch_cidr: NetPair,
    pub ips: IpPair,
}

const NO_EIP: &str = "elastic IPs are the business of another controller since v1.6";
const NO_TRUNK: &str = "there are no trunk ENIs";

/// Keys of the old Terway for modes and add-ons that are not here, and for what needs no setting any more.
pub const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("allow_eip_rob", NO_EIP),
    ("backoff_override", "waiting follows from what the cloud answers"),
    ("enable_eip_pool", NO_EIP),
    ("enable_eni_trunking", NO_TRUNK),
    ("enable_erdma", "eRDMA is not supported"),
    ("eni_cap_policy", NO_TRUNK),
    ("ipam_type", "there is no central controller: the node looks after its own addresses"),
    ("ipv6_prefix_count", "IPv6 addresses are taken one by one"),
    ("prefix", "the old Terway does not use it either"),
];

const MOST_SECURITY_GROUPS: usize = 10;
const MOST_IDLE: u64 = 10_000;
const DEFAULT_MAX_IDLE: u32 = 5;
/// Of their addresses, or of their endpoints.
const MOST_SERVICES: u64 = 4_000_000;
/// Of the rows of a table of network policies.
const MOST_RULES: u64 = 4_000_000;

impl Config {
    /// Reads the configuration file, with the environment of the process laid over it.
    pub fn parse(text: &[u8], env: &BTreeMap<String, String>) -> Result<(Config, Vec<Warning>), Error> {
        let object = json::object(text).map_err(Error::malformed).context(|| "configuration")?;
        Config::of(&object, env)
    }

    /// The same from an object, such as one that a patch was laid over.
    pub fn of(object: &Object, env: &BTreeMap<String, String>) -> Result<(Config, Vec<Warning>), Error> {
        let mut object = object.clone();
        lay_over(&mut object, env);
        let mut keys = Reader::new(&object);
        let config = Config::read(&mut keys).context(|| "configuration")?;
        let mut warnings = warnings(&mut keys);
        let overruled = config.eni_tags.iter().filter(|(key, value)| overrules(key, value));
        warnings.extend(overruled.map(|(key, _)| Warning::WithoutEffect(format!("eni_tags.{key}"), OUR_TAG)));
        let most = object.get("max_pool_size").and_then(Value::as_u64).filter(|max| *max < config.min_idle.into());
        warnings.extend(most.map(|max| Warning::IdleBounds { min: config.min_idle, max }));
        Ok((config, warnings))
    }

    /// Every key that is asked for; `keys.rs` says what a person should know of each.
    pub fn keys() -> BTreeSet<&'static str> {
        let nothing = Object::new();
        let mut keys = Reader::new(&nothing);
        Config::read(&mut keys).expect("no key must be set");
        keys.asked
    }

    fn read(keys: &mut Reader) -> Result<Config, Error> {
        version(keys)?;
        let (min_idle, max_idle) = idle_bounds(keys)?;
        let (min_enis, max_enis) = eni_bounds(keys)?;
        let (eni_tags, eni_tag_filter, eni_tag_block) = all_tags(keys)?;
        Ok(Config {
            stack: keys.word("ip_stack", STACKS)?.unwrap_or_default(),
            access: access(keys)?,
            credential_path: keys.path("credential_path")?,
            region: id(keys, "region_id")?,
            service_cidr: service_cidr(keys)?,
            vswitches: vswitches(keys)?,
            vswitch_choice: keys.word("vswitch_selection_policy", VSWITCH_CHOICES)?.unwrap_or(VSwitchChoice::Random),
            eni_choice: keys.word("eni_selection_policy", ENI_CHOICES)?.unwrap_or(EniChoice::MostIps),
            security_groups: security_groups(keys)?,
            resource_group: id(keys, "resource_group_id")?,
            eni_tags,
            eni_tag_filter,
            eni_tag_block,
            min_idle,
            max_idle,
            min_enis,
            max_enis,
            mode: keys.word("daemon_mode", Mode::WORDS)?,
            share: Share {
                ratio: keys.decimal("eni_cap_ratio", 0.0..=100.0)?.unwrap_or(1.0),
                shift: keys.whole("eni_cap_shift", -1000..=1000)?.unwrap_or(0),
            },
            sync_period: duration(keys, "ip_pool_sync_period", 120, 10)?,
            cooldown: duration(keys, "ip_cooldown", 130, 0)?,
            reservation: duration(keys, "ip_reservation_time", 300, 0)?,
            stateful_kinds: stateful_kinds(keys)?,
            eni_idle: duration(keys, "eni_idle_release_after", 600, 10)?,
            orphan: duration(keys, "orphan_release_after", 60, 1)?,
            reclaim: reclaim(keys)?,
            warm_up: keys.number("ip_warm_up_size", 0..=MOST_IDLE)?.unwrap_or(0) as u32,
            rate_limit: keys.map("rate_limit", "calls a minute, a whole number from 1 on", per_minute)?,
            kube_pace: kube_pace(keys)?,
            prefixes: prefixes(keys)?,
            extra_routes: keys.list(
                "extra_routes",
                "an object whose dst is a CIDR such as 10.1.0.0/16",
                extra_route,
            )?,
            kubeconfig: keys.path("kubeconfig")?,
            node_name: keys.parsed("node_name", "a DNS name", node_name)?,
            publish: Publish {
                resources: !keys.flag("disable_device_plugin")?.unwrap_or(false),
                pod_ips: keys.flag("enable_patch_pod_ips")?.unwrap_or(false),
            },
            services: services(keys)?,
            policies: policies(keys)?,
            mtu: mtu(keys)?,
            conflist: keys.path("conflist")?.unwrap_or_else(|| ours::CONFLIST.into()),
            cloud: CloudAccess::read(keys)?,
        })
    }

    /// The MTU of ENIs, on a node whose network configuration says this one of pods' links.
    pub fn link_mtu(&self, of_network: Option<u32>) -> u32 {
        let fits = |mtu: &u32| !self.stack.has(Family::V6) || *mtu >= LEAST_MTU_V6;
        self.mtu.or(of_network.filter(fits)).unwrap_or(cni::DEFAULT_MTU)
    }

    /// Where Services have their addresses, where kubeadm has left this.
    pub fn service_nets(&self, kubeadms: Option<NetPair>) -> NetPair {
        if self.service_cidr.is_empty() { kubeadms.unwrap_or_default() } else { self.service_cidr }
    }

    /// What can only be judged on the node.
    pub fn validate(&self, node: &NodeFacts) -> Result<(), Error> {
        node.has_room_for(&self.service_cidr).context(|| "configuration")
    }
}

impl NodeFacts {
    /// A Service address that the VPC has too would be reached by neither.
    pub fn has_room_for(&self, services: &NetPair) -> Result<(), Error> {
        for service in services.iter() {
            if let Some((net, whose)) = self.overlapping(&service) {
                let text = format!("service_cidr {service} overlaps {net} of {whose}; choose a Service CIDR outside");
                return Err(Error::refused(text));
            }
        }
        Ok(())
    }

    /// Those of the prefixes that the VPC does not have too, and of the others what it is that they overlap.
    pub fn room_among(&self, services: &NetPair) -> (NetPair, Vec<String>) {
        let (mut free, mut overlaps) = (*services, Vec::new());
        for service in services.iter() {
            let Some((net, whose)) = self.overlapping(&service) else { continue };
            overlaps.push(format!("{service} overlaps {net} of {whose}"));
            match service {
                IpNet::V4(_) => free.v4 = None,
                IpNet::V6(_) => free.v6 = None,
            }
        }
        (free, overlaps)
    }

    /// What the VPC has of the same addresses, and which part of it.
    fn overlapping(&self, service: &IpNet) -> Option<(IpNet, String)> {
        let vpc = self.vpc_cidrs.iter().map(|net| (*net, "VPC", &self.vpc));
        let vswitch = self.vswitch_cidr.iter().map(|net| (net, "vSwitch", &self.vswitch));
        let (net, kind, id) = vpc.chain(vswitch).find(|(net, _, _)| overlap(service, net))?;
        Some((net, format!("{kind} {id}")))
    }
}

impl From<Wrong> for Error {
    fn from(wrong: Wrong) -> Error {
        Error::malformed(wrong)
    }
}

/// Environment variables that the old Terway has, and the keys they stand for.
pub const ENVIRONMENT: &[(&str, &str)] = &[
    ("DISABLE_POLICY", "disable_network_policy"),
    ("NODE_NAME", "node_name"),
    ("ECS_ENDPOINT", "ecs_endpoint"),
    ("VPC_ENDPOINT", "vpc_endpoint"),
    ("ALICLOUD_CLIENT_SCHEME", "client_scheme"),
];

fn lay_over(object: &mut Object, env: &BTreeMap<String, String>) {
    for (variable, key) in ENVIRONMENT {
        if let Some(value) = env.get(*variable).filter(|v| !v.is_empty()) {
            object.insert((*key).into(), Value::String(value.clone()));
        }
    }
}

const OUR_TAG: &str = "terwayd sets this tag itself, to know its ENIs by; choose another key";

fn overrules(key: &str, value: &str) -> bool {
    is_reserved(key) && (key, value) != ours::ENI_TAG
}

fn warnings(keys: &mut Reader) -> Vec<Warning> {
    let set: Vec<_> = WITHOUT_EFFECT.iter().filter(|(key, _)| keys.value(key).is_some_and(says_something)).collect();
    let unknown = keys.unknown().into_iter().map(Warning::Unknown);
    unknown.chain(set.into_iter().map(|(key, why)| Warning::WithoutEffect((*key).into(), why))).collect()
}

/// Not a way to say that the thing is off.
fn says_something(value: &Value) -> bool {
    !matches!(value, Value::Bool(false)) && !value.as_str().is_some_and(|text| text.is_empty() || text == "false")
}

fn version(keys: &mut Reader) -> Result<(), Wrong> {
    keys.parsed("version", "\"1\"", |t| (t == "1").then_some(())).map(|_| ())
}

const STACKS: &[(&str, Stack)] = &[("ipv4", Stack::V4), ("dual", Stack::Dual), ("ipv6", Stack::V6)];

/// The lower bound goes first, as with the old Terway: a node's ConfigMap may say it over a file that has the upper one alone.
fn idle_bounds(keys: &mut Reader) -> Result<(u32, u32), Wrong> {
    let min = keys.number("min_pool_size", 0..=MOST_IDLE)?.unwrap_or(0) as u32;
    let max = keys.number("max_pool_size", 0..=MOST_IDLE)?.map_or(DEFAULT_MAX_IDLE, |n| n as u32);
    Ok((min, max.max(min)))
}

/// IPv6 is switched off by the kernel on a link with less.
const LEAST_MTU_V6: u32 = 1280;

fn mtu(keys: &mut Reader) -> Result<Option<u32>, Error> {
    let mtu = keys.number("mtu", cni::MTU)?.map(|mtu| mtu as u32);
    let stack = keys.word("ip_stack", STACKS)?.unwrap_or_default();
    match mtu.filter(|mtu| stack.has(Family::V6) && *mtu < LEAST_MTU_V6) {
        Some(mtu) => Err(Error::malformed(format!(
            "mtu is {mtu} and ip_stack is {stack}; IPv6 needs links of {LEAST_MTU_V6} at least: raise mtu, or choose ip_stack ipv4"
        ))),
        None => Ok(mtu),
    }
}

/// Zero leaves the upper bound to the instance.
fn eni_bounds(keys: &mut Reader) -> Result<(u32, Option<u32>), Error> {
    let most = 0..=u64::from(ours::MAX_SLOT);
    let min = keys.number("min_eni", most.clone())?.unwrap_or(0) as u32;
    let max = keys.number("max_eni", most)?.map(|n| n as u32).filter(|n| *n > 0);
    match max {
        Some(max) if min > max => Err(Error::malformed(format!(
            "min_eni is {min} and max_eni is {max}; min_eni must not be more than max_eni"
        ))),
        max => Ok((min, max)),
    }
}

fn access(keys: &mut Reader) -> Result<Option<AccessKey>, Error> {
    let hidden = |wrong: Wrong| Wrong { value: "(hidden)".into(), ..wrong };
    let id = keys.text("access_key").map_err(hidden)?.filter(|t| !t.is_empty());
    let secret = keys.text("access_secret").map_err(hidden)?.filter(|t| !t.is_empty());
    match (id, secret) {
        (None, None) => Ok(None),
        (Some(id), Some(secret)) => Ok(Some(AccessKey { id: id.into(), secret: Secret::new(secret) })),
        (Some(_), None) => Err(Error::malformed("access_key is set and access_secret is not; set both or none")),
        (None, Some(_)) => Err(Error::malformed("access_secret is set and access_key is not; set both or none")),
    }
}

fn reclaim(keys: &mut Reader) -> Result<Option<Reclaim>, Wrong> {
    let rest = Reclaim {
        after: Duration::ZERO,
        interval: duration(keys, "idle_ip_reclaim_interval", 600, 1)?,
        batch: keys.number("idle_ip_reclaim_batch_size", 1..=MOST_IDLE)?.unwrap_or(5) as u32,
        jitter: keys.parsed("idle_ip_reclaim_jitter_factor", "a text with a number from 0 to 1", part)?.unwrap_or(0.1),
    };
    let set = keys.text("idle_ip_reclaim_after")?.is_some_and(|text| !text.is_empty());
    let after = duration(keys, "idle_ip_reclaim_after", 0, 1)?;
    Ok(set.then_some(Reclaim { after, ..rest }))
}

fn part(text: &str) -> Option<f64> {
    text.parse().ok().filter(|part| (0.0..=1.0).contains(part))
}

fn per_minute(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
}

/// client-go's own bounds where only one of the two is said.
fn kube_pace(keys: &mut Reader) -> Result<Option<Pace>, Wrong> {
    let want = "a number of requests a second above 0";
    let qps = match keys.value("kube_client_qps") {
        Some(value) => {
            let number = value.as_f64().filter(|n| *n > 0.0 && n.is_finite());
            Some(number.ok_or_else(|| keys.wrong("kube_client_qps", value, want))?)
        }
        None => None,
    };
    let burst = keys.number("kube_client_burst", 1..=100_000)?.map(|n| n as u32);
    let set = qps.is_some() || burst.is_some();
    Ok(set.then_some(Pace { per_second: qps.unwrap_or(5.0), burst: burst.unwrap_or(10) }))
}

fn extra_route(value: &Value) -> Option<IpNet> {
    let net: IpNet = value.get("dst")?.as_str()?.parse().ok()?;
    (net.prefix_len() > 0 && net.trunc() == net).then_some(net)
}

/// No number, or zero, leaves it to what the ENI can hold.
fn prefixes(keys: &mut Reader) -> Result<Option<u32>, Error> {
    let most = keys.number("ipv4_prefix_count", 0..=1000)?.unwrap_or(0) as u32;
    if !keys.flag("enable_ip_prefix")?.unwrap_or(false) {
        return Ok(None);
    }
    match keys.word("ip_stack", STACKS)?.unwrap_or_default() {
        Stack::V4 => Ok(Some(if most == 0 { u32::MAX } else { most })),
        stack => Err(Error::malformed(format!(
            "enable_ip_prefix is true and ip_stack is {stack}; prefixes need ip_stack ipv4"
        ))),
    }
}

// ---- networks ----

fn service_cidr(keys: &mut Reader) -> Result<NetPair, Error> {
    let Some(text) = keys.text("service_cidr")?.filter(|t| !t.trim().is_empty()) else { return Ok(NetPair::default()) };
    let mut pair = NetPair::default();
    for part in text.split(',').map(str::trim) {
        let taken = match cluster_net(part).context(|| format!("service_cidr: {}", shortened(part)))? {
            IpNet::V4(net) => pair.v4.replace(net).is_some(),
            IpNet::V6(net) => pair.v6.replace(net).is_some(),
        };
        if taken {
            return Err(Error::malformed("service_cidr has two CIDRs of one family; it must be \"v4\" or \"v4,v6\""));
        }
    }
    Ok(pair)
}

/// A prefix that a cluster can have for itself.
fn cluster_net(text: &str) -> Result<IpNet, Error> {
    let net: IpNet = text.parse().map_err(|_| Error::malformed("not a CIDR such as 172.21.0.0/20"))?;
    if net.prefix_len() == 0 {
        return Err(Error::malformed("a CIDR of length 0 holds every address"));
    }
    if net.trunc() != net {
        return Err(Error::malformed(format!("bits are set behind the prefix; {} would be right", net.trunc())));
    }
    match RESERVED.iter().find(|(reserved, _)| overlap(&net, &reserved.parse().expect("a prefix"))) {
        Some((reserved, what)) => Err(Error::malformed(format!("it overlaps {reserved}, which is {what}"))),
        None => Ok(net),
    }
}

const RESERVED: &[(&str, &str)] = &[
    ("0.0.0.0/8", "\"this network\""),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("100.100.100.200/32", "the metadata service"),
    ("::/127", "loopback"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

// ---- names and identifiers ----

const VSWITCH_CHOICES: &[(&str, VSwitchChoice)] = &[
    ("random", VSwitchChoice::Random),
    // The old Terway orders by free addresses, not as listed.
    ("ordered", VSwitchChoice::Most),
    ("most", VSwitchChoice::Most),
    ("listed", VSwitchChoice::Ordered),
];
const ENI_CHOICES: &[(&str, EniChoice)] = &[("most_ips", EniChoice::MostIps), ("least_ips", EniChoice::LeastIps)];

const ID: &str = "an identifier of letters, digits, hyphens and underscores";

fn is_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn id(keys: &mut Reader, key: &'static str) -> Result<Option<String>, Wrong> {
    keys.parsed(key, ID, |t| is_id(t).then(|| t.to_owned()))
}

fn ids(keys: &mut Reader, key: &'static str) -> Result<Vec<String>, Wrong> {
    keys.list(key, ID, |v| v.as_str().filter(|t| is_id(t)).map(str::to_owned))
}

fn node_name(text: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edges = text.starts_with(['-', '.']) || text.ends_with(['-', '.']);
    (text.len() <= 253 && !edges && text.chars().all(good)).then(|| text.to_owned())
}

fn vswitches(keys: &mut Reader) -> Result<BTreeMap<String, Vec<String>>, Wrong> {
    let ids =
        |value: &Value| value.as_array()?.iter().map(|v| v.as_str().filter(|t| is_id(t)).map(str::to_owned)).collect();
    keys.map("vswitches", "a list of vSwitch ids", ids)
}

/// Those of StatefulSets always; operators that make pods themselves have kinds of their own.
fn stateful_kinds(keys: &mut Reader) -> Result<BTreeSet<String>, Error> {
    let kind = |value: &Value| value.as_str().filter(|kind| !kind.is_empty()).map(str::to_lowercase);
    let mut kinds: BTreeSet<String> = keys.list("custom_stateful_workload_kinds", "a kind", kind)?.into_iter().gather();
    kinds.insert("statefulset".into());
    Ok(kinds)
}

fn security_groups(keys: &mut Reader) -> Result<Vec<String>, Error> {
    let mut all: Vec<String> = id(keys, "security_group")?.into_iter().collect();
    for group in ids(keys, "security_groups")? {
        if !all.contains(&group) {
            all.push(group);
        }
    }
    if all.len() > MOST_SECURITY_GROUPS {
        let text = format!(
            "security_group and security_groups name {} groups; an ENI has at most {MOST_SECURITY_GROUPS}",
            all.len()
        );
        return Err(Error::malformed(text));
    }
    Ok(all)
}

fn services(keys: &mut Reader) -> Result<Services, Wrong> {
    let sizes = Sizes::default();
    let size = |keys: &mut Reader, key, usual| Ok(keys.number(key, 16..=MOST_SERVICES)?.map_or(usual, |n| n as u32));
    Ok(Services {
        on: keys.flag("ebpf_services")?,
        cgroup: keys.path("cgroup_root")?,
        frontends: size(keys, "service_frontends", sizes.frontends)?,
        backends: size(keys, "service_backends", sizes.backends)?,
    })
}

const RENDERERS: &[(&str, Option<PolicyRenderer>)] =
    &[("auto", None), ("ebpf", Some(PolicyRenderer::Ebpf)), ("iptables", Some(PolicyRenderer::Iptables))];

fn policies(keys: &mut Reader) -> Result<Policies, Wrong> {
    let off = keys.value("disable_network_policy").is_some_and(is_off);
    let usual = verdict::Sizes::default();
    let size = |keys: &mut Reader, key, usual| Ok(keys.number(key, 16..=MOST_RULES)?.map_or(usual, |n| n as u32));
    let sizes = verdict::Sizes {
        classes: size(keys, verdict::ADDRESSES_KEY, usual.classes)?,
        pairs: size(keys, verdict::PAIRS_KEY, usual.pairs)?,
        programs: size(keys, verdict::PORTS_KEY, usual.programs)?,
        tracks: size(keys, verdict::FLOWS_KEY, usual.tracks)?,
        ..usual
    };
    Ok(Policies { on: !off, renderer: keys.word("policy_renderer", RENDERERS)?.flatten(), sizes })
}

/// The old Terway's reading: all but nothing, "false" and "0" is a yes.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Bool(yes) => *yes,
        Value::String(text) => !matches!(text.trim(), "" | "false" | "0"),
        Value::Number(number) => number.as_f64() != Some(0.0),
        _ => false,
    }
}
