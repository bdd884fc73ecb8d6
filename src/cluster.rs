//! What Services consist of: the fields we read of Service, EndpointSlice and Node, in few bytes, however many there are.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

/// `namespace/name` of an object, or its name alone where the kind has no namespace.
pub type Name = Arc<str>;

/// IPv4 as `::ffff:a.b.c.d`.
pub fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Not one that means another machine to everyone (loopback, link-local), many (multicast) or none.
pub fn is_unicast(addr: Ipv6Addr) -> bool {
    match addr.to_canonical() {
        IpAddr::V4(ip) => {
            !(ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0)
        }
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified()),
    }
}

/// Stands for a name of which nothing is asked but whether it is the same as another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(u64);

impl Tag {
    /// FNV-1a; the empty name has the default tag, which is no other name's.
    pub fn of(name: &str) -> Tag {
        if name.is_empty() {
            return Tag::default();
        }
        let sum =
            name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, b| (sum ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Tag(sum.max(1))
    }

    pub fn is_some(self) -> bool {
        self != Tag::default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceType {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: Name,
    pub version: Box<str>,
    pub uid: Box<str>,
    /// In seconds since 1970; one that cannot be read is younger than all others.
    pub created: u64,
    pub r#type: ServiceType,
    /// Empty for a headless one.
    pub cluster_ips: Box<[Ipv6Addr]>,
    pub ports: Box<[ServicePort]>,
    pub external_ips: Box<[Ipv6Addr]>,
    /// Addresses of its load balancer that stand for it as they are (`ipMode: VIP`).
    pub ingress: Box<[Ipv6Addr]>,
    /// Who may come by the load balancer; empty: everyone.
    pub source_ranges: Box<[IpNet]>,
    /// How many seconds a client stays with its endpoint; 0: not at all.
    pub affinity: u32,
    pub internal_local: bool,
    pub external_local: bool,
    pub faults: Box<[Box<str>]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Box<str>,
    pub port: u16,
    /// 0: none.
    pub node_port: u16,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: Name,
    pub version: Box<str>,
    /// The Service that it belongs to.
    pub service: Option<Name>,
    pub ports: Box<[SlicePort]>,
    pub endpoints: Box<[Endpoint]>,
    pub faults: Box<[Box<str>]>,
}

/// The same of servers before 1.21.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct EndpointSliceBeta(pub EndpointSlice);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Box<str>,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: Ipv6Addr,
    pub node: Tag,
    /// Those whose traffic it is meant for; most have none.
    pub hints: Option<Box<Hints>>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    pub zones: Vec<Tag>,
    pub nodes: Vec<Tag>,
}

impl Hints {
    /// For everyone.
    pub const NONE: &Hints = &Hints { zones: Vec::new(), nodes: Vec::new() };
}

/// What Services need of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: Name,
    pub version: Box<str>,
    pub addresses: Box<[Ipv6Addr]>,
    /// Not told by a row of a table.
    pub zone: Option<Tag>,
}

/// Another proxy looks after what bears this label, whatever its value.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The label selector that a proxy of nodes watches Services by.
pub fn services_selector() -> String {
    format!("!{OTHER_PROXY},!{HEADLESS}")
}

/// The one for EndpointSlices. Headless ones count: their addresses are pods' too.
pub fn slices_selector() -> String {
    format!("!{OTHER_PROXY}")
}
