//! Elastic network interfaces as the cloud describes them, what an instance type can hold, and what a cloud error lets us do next.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::ip::{Family, Mac, NetPair};

/// An ENI as DescribeNetworkInterfaces tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    pub id: String,
    pub mac: Mac,
    pub kind: EniKind,
    pub state: EniState,
    /// The instance it is attached to, or being attached to.
    pub instance: Option<String>,
    pub vswitch: String,
    pub zone: String,
    /// The address the ENI was born with; it lives and dies with the ENI.
    pub primary: Ipv4Addr,
    /// Every private IPv4 address, the primary one first.
    pub v4: Vec<Ipv4Addr>,
    pub v6: Vec<Ipv6Addr>,
    /// IPv4 prefixes: each takes one place and is 16 addresses.
    #[serde(default)]
    pub prefixes: Vec<Ipv4Net>,
    pub security_groups: Vec<String>,
    pub tags: BTreeMap<String, String>,
    pub description: String,
}

impl Eni {
    /// Its addresses of both families, those of its prefixes too.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let prefixes = self.prefixes.iter().flat_map(of_prefix);
        let v6 = self.v6.iter().copied().map(IpAddr::V6);
        self.v4.iter().copied().map(IpAddr::V4).chain(prefixes).chain(v6)
    }
}

/// The length of a prefix that an ENI can have, and how many addresses that is.
pub const PREFIX: u8 = 28;
pub const PER_PREFIX: u32 = 16;

/// All addresses of a prefix: no one of them is for the network itself.
pub fn of_prefix(prefix: &Ipv4Net) -> impl Iterator<Item = IpAddr> + use<> {
    let (first, last) = (u32::from(prefix.network()), u32::from(prefix.broadcast()));
    (first..=last).map(|ip| IpAddr::V4(ip.into()))
}

/// What an ENI is for; `Other` is a kind we do not know and leave alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EniKind {
    Primary,
    Secondary,
    Trunk,
    Member,
    Other,
}

/// States of <https://help.aliyun.com> DescribeNetworkInterfaces; `Other` is one we do not know and leave alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EniState {
    Available,
    Attaching,
    InUse,
    Detaching,
    Deleting,
    Other,
}

/// A vSwitch: a subnet of the VPC in one zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VSwitch {
    pub id: String,
    pub zone: String,
    pub cidr: NetPair,
    /// Addresses that nobody has yet.
    pub free: u32,
}

/// Which vSwitch the next ENI is made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VSwitchChoice {
    /// Any that is not known to be empty.
    Random,
    /// The first of the list that is not empty.
    Ordered,
    /// The one with the most free addresses.
    Most,
}

/// Which ENI the next address is taken from, and asked for on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EniChoice {
    /// Fill the fullest first.
    MostIps,
    /// Spread.
    LeastIps,
}

/// What an instance type can hold (DescribeInstanceTypes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// ENIs, the primary one included (`EniQuantity`).
    pub adapters: u32,
    /// IPv4 addresses per ENI, its primary one included (`EniPrivateIpAddressQuantity`).
    pub v4_per_adapter: u32,
    /// IPv6 addresses per ENI (`EniIpv6AddressQuantity`).
    pub v6_per_adapter: u32,
}

impl Limits {
    /// Addresses of this family that an ENI can hold.
    pub fn per_adapter(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.v4_per_adapter,
            Family::V6 => self.v6_per_adapter,
        }
    }
}

/// A cloud error: what it lets us do next, and the cloud's own words for those who read logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub kind: FaultKind,
    /// The API call, such as `AssignPrivateIpAddresses`.
    pub action: String,
    /// The cloud's error code, such as `InvalidVSwitchId.IpNotEnough`; empty when there was no answer.
    pub code: String,
    pub message: String,
    /// The cloud's RequestId, which its support asks for.
    pub request_id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FaultKind {
    /// No answer, or a failure on the cloud's side: it may have been done. Say it again with the same ClientToken.
    Unknown,
    /// Too many calls: the same call later, fewer of them.
    Throttled,
    /// The ENI is in the middle of something else: the same call soon.
    Busy,
    /// The vSwitch has no address left: another vSwitch.
    VSwitchEmpty,
    /// The ENI holds as many addresses as it can: another ENI; what we believe of this one is out of date.
    EniFull,
    /// An account or instance quota is met: nothing but time or a person helps.
    Quota,
    /// The thing is gone; whoever wanted it gone has succeeded.
    Gone,
    /// The ClientToken was used with other parameters, or its first use failed for good: take a new one.
    Token,
    /// The credentials may not do this: a person must act.
    Forbidden,
    /// The request is wrong; saying it again does not help.
    Invalid,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.action)?;
        if !self.code.is_empty() {
            write!(f, "{}: ", self.code)?;
        }
        f.write_str(&self.message)?;
        if !self.request_id.is_empty() {
            write!(f, " (request {})", self.request_id)?;
        }
        Ok(())
    }
}
