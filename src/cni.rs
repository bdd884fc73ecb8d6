//! The CNI specification's words: a request out of environment and stdin, the network configuration, results per version, codes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::{Component, PathBuf};

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use crate::gather::Gather;
use crate::ip::Mac;
use crate::json::{self, Object, Reader, Wrong, shortened};
use crate::pod::{Attachment, PodName, Sandbox};
use crate::rate::{Limits, Rate};

/// The longest stdin that is read. A GC of 1,000 attachments needs about 100 kB.
pub const MAX_STDIN: usize = 1 << 20;

/// The `CNI_*` variables of the environment.
pub type Env = BTreeMap<String, OsString>;

/// The protocol versions we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub const ALL: [Version; 5] = [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
    pub const NEWEST: Version = Version::V1_1_0;

    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Option<Version> {
        Version::ALL.into_iter().find(|v| v.as_str() == text)
    }

    /// All of them, for people.
    pub fn list() -> String {
        Version::ALL.map(Version::as_str).join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

/// The error codes of the specification, and ours from 100 up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// A `cniVersion` that we do not speak, or a verb that it does not have.
    Version = 1,
    /// A `CNI_*` variable is missing or wrong.
    Environment = 4,
    /// stdin could not be read.
    Io = 5,
    /// stdin is not a JSON object.
    Decoding = 6,
    /// A key of the network configuration is wrong.
    Config = 7,
    /// It may pass: the same request later.
    TryAgain = 11,
    /// STATUS: an ADD could not be served now.
    NotReady = 50,
    /// The node itself fails us: its kernel does not do what it should, or there is no room for our records.
    Node = 100,
    /// CHECK: what is there is not what was leased.
    Differs = 101,
    /// CHECK: nothing is leased to the attachment.
    NoLease = 102,
    /// The node's credentials may not do what is needed: a person must act.
    Forbidden = 103,
    /// An account quota is met: a person must act.
    Quota = 104,
    /// The pod is not one that we may serve.
    NotOurs = 105,
    /// The daemon and we do not understand each other: different releases?
    Protocol = 106,
}

/// Why a request failed, as the runtime will print it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub msg: String,
    /// What to do about it; may be empty.
    pub details: String,
}

impl Failure {
    pub fn new(code: Code, msg: impl fmt::Display) -> Failure {
        Failure { code, msg: msg.to_string(), details: String::new() }
    }

    pub fn advise(mut self, details: impl Into<String>) -> Failure {
        self.details = details.into();
        self
    }

    /// The error object of the specification.
    pub fn json(&self, version: Version) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Error<'a> {
            cni_version: Version,
            code: u16,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let Failure { code, msg, details } = self;
        print(&Error { cni_version: version, code: *code as u16, msg, details })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Failure {
        Failure::new(Code::Config, format!("network configuration: {wrong}"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    /// What `CNI_COMMAND` asks for.
    pub fn of(env: &Env) -> Result<Verb, Failure> {
        Ok(match required(env, "CNI_COMMAND")? {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            _ => return Err(bad(env, "CNI_COMMAND", "one of ADD, DEL, CHECK, GC, STATUS, VERSION")),
        })
    }

    /// The first version of the specification that has the verb.
    fn since(self) -> Version {
        match self {
            Verb::Add | Verb::Del | Verb::Version => Version::V0_3_0,
            Verb::Check => Version::V0_4_0,
            Verb::Gc | Verb::Status => Version::V1_1_0,
        }
    }
}

/// What the runtime asks, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub version: Version,
    pub call: Call,
}

/// Each verb with what it needs and no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Add {
        pod: PodName,
        /// Which one of this name, where the runtime says it.
        uid: Option<String>,
        sandbox: Sandbox,
        conf: Box<NetConf>,
    },
    /// Namespace and pod where the runtime still says them; DEL does without.
    Del {
        attachment: Attachment,
        netns: Option<PathBuf>,
        pod: Option<PodName>,
    },
    Check {
        sandbox: Sandbox,
        /// Where the runtime says it.
        pod: Option<PodName>,
        conf: Box<NetConf>,
        prev: Option<PrevResult>,
    },
    Gc {
        network: String,
        valid: BTreeSet<Attachment>,
    },
    Status,
    Version,
}

impl Request {
    /// Every check of what the runtime says is made here, never again.
    pub fn parse(env: &Env, stdin: &[u8]) -> Result<Request, Failure> {
        let verb = Verb::of(env)?;
        if verb == Verb::Version {
            return Ok(Request { version: version_in(stdin), call: Call::Version });
        }
        if stdin.len() > MAX_STDIN {
            return Err(Failure::new(Code::Decoding, format!("stdin is longer than {MAX_STDIN} bytes")));
        }
        let conf = json::object(stdin).map_err(|e| Failure::new(Code::Decoding, format!("stdin: {e}")))?;
        let mut keys = Reader::new(&conf);
        let version = version(&mut keys, verb)?;
        Ok(Request { version, call: call(verb, env, &mut keys)? })
    }
}

/// The version to answer in: the one stdin names where it names one of ours.
pub fn version_in(stdin: &[u8]) -> Version {
    let conf = json::object(stdin.get(..MAX_STDIN).unwrap_or(stdin)).unwrap_or_default();
    conf.get("cniVersion").and_then(Value::as_str).and_then(Version::parse).unwrap_or(Version::NEWEST)
}

fn version(keys: &mut Reader, verb: Verb) -> Result<Version, Failure> {
    let refused = |msg| Err(Failure::new(Code::Version, msg));
    let Some(text) = keys.text("cniVersion")? else {
        return refused(format!("no cniVersion, which means 0.1.0; we speak {}", Version::list()));
    };
    match Version::parse(text) {
        None => refused(format!("cniVersion {:?} is not one we speak: {}", shortened(text), Version::list())),
        Some(v) if v < verb.since() => refused(format!("cniVersion {v} has no {verb:?}; {} has", verb.since())),
        Some(v) => Ok(v),
    }
}

fn call(verb: Verb, env: &Env, keys: &mut Reader) -> Result<Call, Failure> {
    Ok(match verb {
        Verb::Add => {
            let sandbox = sandbox(env)?;
            let pod = pod(env)?;
            Call::Add { pod, uid: uid(env), sandbox, conf: Box::new(NetConf::read(keys)?) }
        }
        Verb::Del => Call::Del { attachment: attachment(env)?, netns: netns(env).ok(), pod: pod(env).ok() },
        Verb::Check => {
            let sandbox = sandbox(env)?;
            let conf = Box::new(NetConf::read(keys)?);
            Call::Check { sandbox, pod: pod(env).ok(), conf, prev: PrevResult::read(keys)? }
        }
        Verb::Gc => Call::Gc { valid: valid_attachments(keys)?, network: network(keys)? },
        Verb::Status => Call::Status,
        Verb::Version => Call::Version,
    })
}

// ---- the environment ----

fn required<'a>(env: &'a Env, name: &str) -> Result<&'a str, Failure> {
    match env.get(name).filter(|v| !v.is_empty()) {
        None => Err(Failure::new(Code::Environment, format!("{name} is not set"))),
        Some(value) => value.to_str().ok_or_else(|| bad(env, name, "UTF-8")),
    }
}

fn bad(env: &Env, name: &str, want: &str) -> Failure {
    let value = env.get(name).map(|v| shortened(&v.to_string_lossy())).unwrap_or_default();
    Failure::new(Code::Environment, format!("{name} is \"{value}\"; it must be {want}"))
}

fn sandbox(env: &Env) -> Result<Sandbox, Failure> {
    Ok(Sandbox { attachment: attachment(env)?, netns: netns(env)? })
}

/// DEL and GC know an attachment by `CNI_CONTAINERID` alone, so ADD does too; `K8S_POD_INFRA_CONTAINER_ID` says the same
/// wherever it is set.
fn attachment(env: &Env) -> Result<Attachment, Failure> {
    let container = required(env, "CNI_CONTAINERID")?;
    if !is_container(container) {
        return Err(bad(env, "CNI_CONTAINERID", CONTAINER));
    }
    let ifname = required(env, "CNI_IFNAME")?;
    if !is_ifname(ifname) {
        return Err(bad(env, "CNI_IFNAME", IFNAME));
    }
    Ok(Attachment { container: container.into(), ifname: ifname.into() })
}

/// A file name of ours carries the container id, so it is bounded although the specification does not bound it.
const LONGEST_CONTAINER: usize = 200;
const CONTAINER: &str =
    "a letter or digit, then letters, digits, dots, underscores and hyphens, at most 200 characters";

fn is_container(text: &str) -> bool {
    text.len() <= LONGEST_CONTAINER && is_identifier(text)
}

/// What the specification allows in a container id and in the name of a network.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

const IFNAME: &str = "1 to 15 characters without '/', ':' and blanks, and neither \".\" nor \"..\"";

/// What the kernel (`dev_valid_name`) and the specification allow as the name of an interface.
fn is_ifname(text: &str) -> bool {
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=15).contains(&text.len()) && text != "." && text != ".." && !text.contains(odd)
}

fn netns(env: &Env) -> Result<PathBuf, Failure> {
    const LONGEST: usize = 4095; // PATH_MAX without its NUL
    let text = required(env, "CNI_NETNS")?;
    let path = PathBuf::from(text);
    let climbs = path.components().any(|c| c == Component::ParentDir);
    if !path.is_absolute() || climbs || text.len() > LONGEST || text.contains(char::is_control) {
        return Err(bad(env, "CNI_NETNS", "an absolute path without \"..\" and control characters"));
    }
    Ok(path)
}

/// The pod that `CNI_ARGS` names. Arguments we do not know are for somebody else.
fn pod(env: &Env) -> Result<PodName, Failure> {
    let wrong = |what: String| Failure::new(Code::Environment, format!("CNI_ARGS: {what}"));
    let args = match env.get("CNI_ARGS") {
        Some(_) => required(env, "CNI_ARGS")?,
        None => return Err(Failure::new(Code::Environment, "CNI_ARGS is not set; it names the pod")),
    };
    let mut pod = PodName::new("", "");
    for pair in args.split(';').filter(|p| !p.is_empty()) {
        match pair.split_once('=') {
            Some(("", _)) | None => return Err(wrong(format!("\"{}\" is not KEY=VALUE", shortened(pair)))),
            Some(("K8S_POD_NAMESPACE", v)) => pod.namespace = v.into(),
            Some(("K8S_POD_NAME", v)) => pod.name = v.into(),
            Some(_) => {}
        }
    }
    let checked = [
        ("K8S_POD_NAMESPACE", &pod.namespace, is_label(&pod.namespace), "a DNS label"),
        ("K8S_POD_NAME", &pod.name, is_subdomain(&pod.name), "a DNS name"),
    ];
    for (key, value, good, want) in checked {
        if value.is_empty() {
            return Err(wrong(format!("{key} is missing")));
        }
        if !good {
            return Err(wrong(format!("{key} is \"{}\"; it must be {want}", shortened(value))));
        }
    }
    Ok(pod)
}

/// Which pod of that name it is. Nothing is named by it, so that it may be anything.
fn uid(env: &Env) -> Option<String> {
    let mut told = env.get("CNI_ARGS")?.to_str()?.split(';').filter_map(|pair| pair.strip_prefix("K8S_POD_UID="));
    told.next_back().filter(|uid| !uid.is_empty()).map(String::from)
}

/// A DNS label (RFC 1123) in lower case, as Kubernetes has for namespaces.
fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_labels_character(text)
}

/// Labels joined by dots; Kubernetes bounds the whole, not each label.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_labels_character)
}

fn is_labels_character(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(text.bytes().next())
        && edge(text.bytes().next_back())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

// ---- the network configuration ----

/// How the pod's interface is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtualType {
    Veth,
    IpVlan,
    DatapathV2,
}

/// How a rate is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BandwidthMode {
    /// A token bucket on the interface.
    Tc,
    /// Departure times.
    Edt,
}

/// Where a trunk's tag is taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VlanStrip {
    Filter,
    Vlan,
}

/// The object of plugin type `terway`, every key of it that concerns the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConf {
    pub name: String,
    /// What it says of MTUs; else the daemon does.
    pub mtu: Option<u32>,
    pub auto_mtu: bool,
    pub virtual_type: VirtualType,
    /// What the pod should reach through the node rather than through the VPC.
    pub host_stack: Vec<IpNet>,
    pub disable_host_peer: bool,
    pub vlan_strip: VlanStrip,
    pub bandwidth_mode: BandwidthMode,
    pub network_priority: bool,
    pub symmetric_routing: Option<SymmetricRouting>,
    pub debug: bool,
    pub runtime: RuntimeConfig,
}

/// Answers to what came in by the node's own interface leave by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SymmetricRouting {
    pub interface: String,
    pub mark: u32,
    pub mask: u32,
    pub table: u32,
    pub priority: u32,
    pub comment: String,
    pub backend: FirewallBackend,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirewallBackend {
    Iptables,
    Nftables,
}

/// What the runtime adds for the capabilities that the configuration declares.
///
/// The specification's conventions have `ingressRate` and `hostPort`; containerd says `IngressRate` and `HostPort`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeConfig {
    pub limits: Limits,
    pub ports: Vec<PortMapping>,
    pub dns: Dns,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    pub host: u16,
    pub container: u16,
    pub protocol: Protocol,
    pub host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// 576 is what every IPv4 host must accept (RFC 1122, 3.3.2); 9216 is the largest frame that Ethernet gear is built for.
/// (The VPC itself carries 8500.)
pub const MTU: std::ops::RangeInclusive<u64> = 576..=9216;
pub const DEFAULT_MTU: u32 = 1500;

impl NetConf {
    /// The MTU of a pod's links, where the daemon says this one for whom the network configuration says none.
    pub fn link_mtu(&self, usual: Option<u32>) -> u32 {
        self.mtu.or(usual).unwrap_or(DEFAULT_MTU)
    }

    fn read(keys: &mut Reader) -> Result<NetConf, Failure> {
        let name = network(keys)?;
        keys.object("capabilities")?;
        for ignored in ["type", "veth_prefix", "ip_stack", "cilium_args", "cilium_enable_hubble"] {
            keys.text(ignored)?;
        }
        Ok(NetConf {
            name,
            mtu: keys.number("mtu", MTU)?.map(|mtu| mtu as u32),
            auto_mtu: keys.flag("auto_mtu")?.unwrap_or(false),
            virtual_type: keys.word("eniip_virtual_type", VIRTUAL_TYPES)?.unwrap_or(VirtualType::Veth),
            host_stack: keys.list("host_stack_cidrs", "a CIDR such as 169.254.20.10/32", cidr)?,
            disable_host_peer: keys.flag("disable_host_peer")?.unwrap_or(false),
            vlan_strip: keys.word("vlan_strip_type", VLAN_STRIPS)?.unwrap_or(VlanStrip::Filter),
            bandwidth_mode: keys.word("bandwidth_mode", BANDWIDTH_MODES)?.unwrap_or(BandwidthMode::Tc),
            network_priority: keys.flag("enable_network_priority")?.unwrap_or(false),
            symmetric_routing: SymmetricRouting::read(keys)?,
            debug: keys.flag("debug")?.unwrap_or(false),
            runtime: RuntimeConfig::read(keys)?,
        })
    }
}

/// The name of the network.
fn network(keys: &mut Reader) -> Result<String, Failure> {
    const WANT: &str = "a letter or digit, then letters, digits, dots, underscores and hyphens";
    let name = keys.parsed("name", WANT, |t| is_identifier(t).then(|| t.to_owned()))?;
    name.ok_or_else(|| Failure::new(Code::Config, "network configuration: name is missing"))
}

/// Whether a network configuration, or a list of them, asks for IPvlan slaves. One that cannot be read asks for nothing.
pub fn asks_for_ipvlan(text: &str) -> bool {
    let asks = |plugin: &Value| {
        let word = plugin["eniip_virtual_type"].as_str().unwrap_or_default();
        let of_word = VIRTUAL_TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(word));
        of_word.is_some_and(|(_, kind)| *kind == VirtualType::IpVlan)
    };
    of_terway(text).iter().any(asks)
}

/// The MTU that a network configuration, or a list of them, gives pods' links, where it says one that can be.
pub fn mtu_of(text: &str) -> Option<u32> {
    let mtu = of_terway(text).iter().find_map(|plugin| plugin["mtu"].as_u64());
    mtu.filter(|mtu| MTU.contains(mtu)).map(|mtu| mtu as u32)
}

/// The keys of a network configuration, or of a list of them, that ask for what is not available.
pub fn asks_in_vain(text: &str) -> Vec<&'static str> {
    let all = of_terway(text);
    let says = |key: &str| all.iter().any(|plugin| plugin[key] == true);
    let auto_mtu = says("auto_mtu") && mtu_of(text).is_none();
    let keys = [("auto_mtu", auto_mtu), ("enable_network_priority", says("enable_network_priority"))];
    keys.into_iter().filter(|(_, asks)| *asks).map(|(key, _)| key).collect()
}

fn of_terway(text: &str) -> Vec<Value> {
    let conf: Value = serde_json::from_str(text).unwrap_or_default();
    let mut plugins = conf["plugins"].as_array().cloned().unwrap_or_else(|| vec![conf]);
    plugins.retain(|plugin| plugin["type"] == "terway");
    plugins
}

const VIRTUAL_TYPES: &[(&str, VirtualType)] =
    &[("Veth", VirtualType::Veth), ("IPVlan", VirtualType::IpVlan), ("datapathv2", VirtualType::DatapathV2)];
const VLAN_STRIPS: &[(&str, VlanStrip)] = &[("filter", VlanStrip::Filter), ("vlan", VlanStrip::Vlan)];
const BANDWIDTH_MODES: &[(&str, BandwidthMode)] = &[("tc", BandwidthMode::Tc), ("edt", BandwidthMode::Edt)];
const BACKENDS: &[(&str, FirewallBackend)] =
    &[("iptables", FirewallBackend::Iptables), ("nftables", FirewallBackend::Nftables)];
const PROTOCOLS: &[(&str, Protocol)] = &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];

fn cidr(value: &Value) -> Option<IpNet> {
    Some(value.as_str()?.parse::<IpNet>().ok()?.trunc())
}

fn texts(keys: &mut Reader, key: &'static str) -> Result<Vec<String>, Wrong> {
    keys.list(key, "a text", |v| v.as_str().map(str::to_owned))
}

impl SymmetricRouting {
    /// `symmetric_routing` switches it on, `symmetric_routing_config` says how.
    fn read(keys: &mut Reader) -> Result<Option<SymmetricRouting>, Wrong> {
        let on = keys.flag("symmetric_routing")?.unwrap_or(false);
        let how = keys.object("symmetric_routing_config")?.cloned().unwrap_or_default();
        let mut how = Reader::at("symmetric_routing_config", &how);
        let bits = 0..=u64::from(u32::MAX);
        let routing = SymmetricRouting {
            interface: how
                .parsed("interface", IFNAME, |t| is_ifname(t).then(|| t.to_owned()))?
                .unwrap_or_else(|| "eth0".into()),
            mark: how.number("mark", bits.clone())?.unwrap_or(0x10) as u32,
            mask: how.number("mask", bits.clone())?.unwrap_or(0x10) as u32,
            table: how.number("table_id", bits.clone())?.unwrap_or(100) as u32,
            priority: how.number("rule_priority", bits)?.unwrap_or(600) as u32,
            comment: how.text("comment")?.unwrap_or("terway-symmetric").to_owned(),
            backend: how.word("backend", BACKENDS)?.unwrap_or(FirewallBackend::Iptables),
        };
        Ok(on.then_some(routing))
    }
}

impl RuntimeConfig {
    fn read(keys: &mut Reader) -> Result<RuntimeConfig, Wrong> {
        let Some(object) = keys.object("runtimeConfig")? else { return Ok(RuntimeConfig::default()) };
        let mut keys = Reader::at("runtimeConfig", object);
        let limits = match keys.object("bandwidth")? {
            Some(object) => limits(object)?,
            None => Default::default(),
        };
        Ok(RuntimeConfig { limits, ports: ports(&mut keys)?, dns: dns(&mut keys)? })
    }
}

/// In bits a second, zero meaning no limit. The bursts are ours to choose, they follow from rate and MTU.
fn limits(object: &Object) -> Result<Limits, Wrong> {
    let mut keys = Reader::at("runtimeConfig.bandwidth", object).in_any_case();
    let mut bits = |key| Ok(keys.number(key, 0..=u64::MAX)?.unwrap_or(0));
    let limits =
        Limits { ingress: Rate::from_bits(bits("ingressRate")?), egress: Rate::from_bits(bits("egressRate")?) };
    bits("ingressBurst")?;
    bits("egressBurst")?;
    Ok(limits)
}

fn ports(keys: &mut Reader) -> Result<Vec<PortMapping>, Wrong> {
    keys.list("portMappings", "an object", Value::as_object)?.into_iter().map(port).collect()
}

fn port(object: &Object) -> Result<PortMapping, Wrong> {
    let mut keys = Reader::at("runtimeConfig.portMappings[]", object).in_any_case();
    Ok(PortMapping {
        host: keys.number("hostPort", 0..=65535)?.unwrap_or(0) as u16,
        container: keys.number("containerPort", 0..=65535)?.unwrap_or(0) as u16,
        protocol: keys.word("protocol", PROTOCOLS)?.unwrap_or(Protocol::Tcp),
        host_ip: keys.parsed("hostIP", "an IP address", |t| t.parse().ok())?,
    })
}

fn dns(keys: &mut Reader) -> Result<Dns, Wrong> {
    let Some(object) = keys.object("dns")? else { return Ok(Dns::default()) };
    let mut keys = Reader::at("runtimeConfig.dns", object).in_any_case();
    let servers = texts(&mut keys, "servers")?;
    Ok(Dns { servers, searches: texts(&mut keys, "searches")?, options: texts(&mut keys, "options")? })
}

/// What an earlier ADD answered, as CHECK is told it: only the addresses matter to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrevResult {
    pub addresses: BTreeSet<IpAddr>,
}

impl PrevResult {
    fn read(keys: &mut Reader) -> Result<Option<PrevResult>, Wrong> {
        let Some(object) = keys.object("prevResult")? else { return Ok(None) };
        let mut keys = Reader::at("prevResult", object);
        let addresses = keys.list("ips", "an object whose address is a CIDR", |ip| {
            Some(ip.get("address")?.as_str()?.parse::<IpNet>().ok()?.addr())
        })?;
        Ok(Some(PrevResult { addresses: addresses.into_iter().gather() }))
    }
}

/// What GC must leave alone. The list is required: without it, everything would be garbage.
fn valid_attachments(keys: &mut Reader) -> Result<BTreeSet<Attachment>, Failure> {
    const KEY: &str = "cni.dev/valid-attachments";
    let want = "an object with containerID and ifname";
    if keys.value(KEY).is_none() {
        return Err(Failure::new(Code::Config, format!("network configuration: {KEY} is missing")));
    }
    let list = keys.list(KEY, want, |item| {
        let container = item.get("containerID")?.as_str().filter(|t| is_container(t))?;
        let ifname = item.get("ifname")?.as_str().filter(|t| is_ifname(t))?;
        Some(Attachment { container: container.into(), ifname: ifname.into() })
    })?;
    Ok(list.into_iter().gather())
}

// ---- answers ----

/// What ADD answers: the pod's interface, the node's end of it, and one address per family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub sandbox: Sandbox,
    pub mac: Mac,
    pub mtu: u32,
    /// The node's end, where there is one.
    pub host_link: Option<(String, Mac)>,
    pub ips: Vec<ReplyIp>,
}

/// An address with the length of the vSwitch's prefix, and the vSwitch's gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyIp {
    pub address: IpNet,
    pub gateway: Option<IpAddr>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResultJson<'a> {
    cni_version: Version,
    interfaces: Vec<InterfaceJson<'a>>,
    ips: Vec<IpJson>,
}

#[derive(Serialize)]
struct InterfaceJson<'a> {
    name: &'a str,
    mac: Mac,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<&'a str>,
}

#[derive(Serialize)]
struct IpJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    interface: u32,
    address: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

impl Reply {
    /// The result object as this version of the specification wants it.
    pub fn json(&self, version: Version) -> String {
        let mtu = (version >= Version::V1_1_0).then_some(self.mtu);
        let inside = InterfaceJson {
            name: &self.sandbox.attachment.ifname,
            mac: self.mac,
            mtu,
            // A path out of CNI_NETNS, which was UTF-8.
            sandbox: self.sandbox.netns.to_str(),
        };
        let outside = self.host_link.as_ref();
        let outside = outside.map(|(name, mac)| InterfaceJson { name, mac: *mac, mtu, sandbox: None });
        let ips = self.ips.iter().map(|ip| ip.json(version)).collect();
        print(&ResultJson { cni_version: version, interfaces: [inside].into_iter().chain(outside).collect(), ips })
    }
}

impl ReplyIp {
    fn json(&self, version: Version) -> IpJson {
        let family = if self.address.addr().is_ipv4() { "4" } else { "6" };
        IpJson {
            version: (version < Version::V1_0_0).then_some(family),
            interface: 0,
            address: self.address,
            gateway: self.gateway,
        }
    }
}

/// What VERSION answers.
pub fn version_json(version: Version) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        cni_version: Version,
        supported_versions: [Version; 5],
    }
    print(&Versions { cni_version: version, supported_versions: Version::ALL })
}

fn print<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("only texts, numbers and lists")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_ipvlan_is_seen_in_a_configuration_and_in_a_list() {
        for (text, want) in [
            (r#"{"type": "terway", "eniip_virtual_type": "IPVlan"}"#, true),
            (r#"{"plugins": [{"type": "terway", "eniip_virtual_type": "ipvlan"}, {"type": "portmap"}]}"#, true),
            (r#"{"plugins": [{"type": "terway", "eniip_virtual_type": "Veth"}]}"#, false),
            (r#"{"plugins": [{"type": "bridge", "eniip_virtual_type": "IPVlan"}, {"type": "terway"}]}"#, false),
            (r#"{"type": "terway", "eniip_virtual_type": 7}"#, false),
            ("not JSON", false),
        ] {
            assert_eq!(asks_for_ipvlan(text), want, "{text}");
        }
    }

    /// As containerd 1.6 says it, which prints Go's own names.
    #[test]
    fn what_a_runtime_adds_is_read_in_upper_and_lower_case() {
        let text = r#"{"runtimeConfig": {
            "bandwidth": {"IngressRate": 10000000, "IngressBurst": 4294967295, "EgressRate": 1000000, "EgressBurst": 4294967295},
            "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
            "dns": {"Servers": ["172.21.0.10"], "Searches": [], "Options": ["ndots:5"]}
        }}"#;
        for text in [text, &specified(text)] {
            let conf = json::object(text.as_bytes()).unwrap();
            let runtime = RuntimeConfig::read(&mut Reader::new(&conf)).unwrap();
            let (ingress, egress) = (Rate::from_bits(10_000_000), Rate::from_bits(1_000_000));
            assert_eq!(runtime.limits, Limits { ingress, egress });
            let port = PortMapping { host: 8080, container: 80, protocol: Protocol::Tcp, host_ip: None };
            assert_eq!(runtime.ports, [port]);
            assert_eq!(
                (runtime.dns.servers, runtime.dns.options),
                (vec!["172.21.0.10".into()], vec!["ndots:5".into()])
            );
        }
    }

    /// The same in the spelling of CNI's conventions.
    fn specified(text: &str) -> String {
        let names = ["Ingress", "Egress", "Host", "Container", "Protocol", "Servers", "Searches", "Options"];
        names.iter().fold(text.to_owned(), |text, name| {
            text.replace(&format!("\"{name}"), &format!("\"{}", name.to_lowercase()))
        })
    }
}
