//! How many pods a cluster can hold before it exists: VPC, vSwitches, instance type and number of nodes in, a report out.

mod types;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::Serialize;

use crate::eni::Limits;

pub use types::{known, limits};

/// Of a vSwitch, the first address and the last three are the cloud's (VPC documentation, "Reserved addresses").
const RESERVED: u32 = 4;
/// How long prefixes can be ("VPC and vSwitch", limits).
const VPC_LENGTHS: std::ops::RangeInclusive<u8> = 8..=28;
const VSWITCH_LENGTHS: std::ops::RangeInclusive<u8> = 16..=29;
/// Private addresses that a basic security group holds (ECS documentation, "Security group limits"); an advanced one holds 65,536.
const BASIC_GROUP: u32 = 2000;

/// What no cluster can use, and whose it is.
const TAKEN: &[(&str, &str)] = &[
    ("0.0.0.0/8", "has no hosts"),
    ("100.64.0.0/10", "belongs to the cloud's own services"),
    ("127.0.0.0/8", "is every machine's own"),
    ("169.254.0.0/16", "is link-local"),
    ("224.0.0.0/4", "is multicast"),
];
const DOCKER: &str = "172.17.0.0/16";
const PRIVATE: &[&str] = &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];

/// A vSwitch that is to be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct VSwitch {
    pub cidr: Ipv4Net,
    pub zone: Option<String>,
}

impl FromStr for VSwitch {
    type Err = String;

    /// `192.168.0.0/19`, or with its zone: `192.168.0.0/19@cn-hangzhou-i`.
    fn from_str(text: &str) -> Result<VSwitch, String> {
        let (cidr, zone) = text.split_once('@').map_or((text, None), |(cidr, zone)| (cidr, Some(zone)));
        if zone.is_some_and(str::is_empty) {
            return Err(format!("{text:?} names no zone after the @"));
        }
        Ok(VSwitch { cidr: prefix(cidr)?, zone: zone.map(str::to_owned) })
    }
}

/// A prefix without bits behind its length.
pub fn prefix(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net = text.parse().map_err(|_| format!("{text:?} is not a prefix such as 192.168.0.0/16"))?;
    if net.trunc() != net {
        return Err(format!("{net} has bits behind its length: {} is meant, or another length", net.trunc()));
    }
    Ok(net)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Pods share ENIs.
    Shared,
    /// Each has one.
    Exclusive,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        match text {
            "shared" => Ok(Mode::Shared),
            "exclusive" => Ok(Mode::Exclusive),
            _ => Err(format!("{text:?} is neither shared nor exclusive")),
        }
    }
}

/// What is planned.
#[derive(Debug, Clone)]
pub struct Wish {
    pub vpc: Ipv4Net,
    pub nodes: Vec<VSwitch>,
    pub pods: Vec<VSwitch>,
    pub services: Ipv4Net,
    pub count: u32,
    pub mode: Mode,
    pub limits: Limits,
}

/// What is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// That the instance type has room for.
    pub pods_per_node: u32,
    pub node_addresses: u32,
    pub pod_addresses: u32,
    /// Of the Service CIDR.
    pub service_addresses: u32,
    /// In the whole cluster.
    pub pods: u32,
    pub first_limit: Limit,
    /// What cannot be.
    pub errors: Vec<String>,
    /// What can be, and will hurt.
    pub warnings: Vec<String>,
}

/// What is met first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    InstanceType,
    PodAddresses,
    NodeAddresses,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::InstanceType => "the instance type is the first limit; a larger one, or more nodes, hold more",
            Limit::PodAddresses => "the pods' vSwitches are the first limit; larger ones, or one more, hold more",
            Limit::NodeAddresses => "the nodes' vSwitches are the first limit; larger ones, or one more, hold more",
        })
    }
}

/// Pods of a node: one ENI is the node's own.
pub fn pods_per_node(mode: Mode, limits: &Limits) -> u32 {
    let enis = limits.adapters.saturating_sub(1);
    match mode {
        Mode::Shared => enis * limits.v4_per_adapter,
        Mode::Exclusive => enis,
    }
}

pub fn plan(wish: &Wish) -> Report {
    let (node_addresses, pod_addresses) = (addresses(&wish.nodes), addresses(&wish.pods));
    let pods_per_node = pods_per_node(wish.mode, &wish.limits);
    let nodes = wish.count.min(node_addresses);
    let by_type = nodes.saturating_mul(pods_per_node);
    // Where nodes and pods share a vSwitch, nodes come first.
    let shared = wish.pods.iter().any(|vswitch| wish.nodes.iter().any(|node| node.cidr == vswitch.cidr));
    let for_pods = if shared { pod_addresses.saturating_sub(nodes) } else { pod_addresses };
    let first_limit = match () {
        () if nodes < wish.count => Limit::NodeAddresses,
        () if for_pods < by_type => Limit::PodAddresses,
        () => Limit::InstanceType,
    };
    let mut report = Report {
        pods_per_node,
        node_addresses,
        pod_addresses,
        service_addresses: size(wish.services).saturating_sub(2),
        pods: by_type.min(for_pods),
        first_limit,
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    report.look(wish);
    report
}

/// That pods and nodes can have; vSwitches that are named twice count once.
fn addresses(vswitches: &[VSwitch]) -> u32 {
    let each: BTreeSet<Ipv4Net> = vswitches.iter().map(|vswitch| vswitch.cidr).collect();
    each.into_iter().map(|cidr| size(cidr).saturating_sub(RESERVED)).fold(0, u32::saturating_add)
}

fn size(net: Ipv4Net) -> u32 {
    1u32.checked_shl(u32::from(32 - net.prefix_len())).unwrap_or(u32::MAX)
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn net(text: &str) -> Ipv4Net {
    text.parse().expect("a constant is a prefix")
}

impl Report {
    fn look(&mut self, wish: &Wish) {
        self.look_at_prefixes(wish);
        self.look_at_vswitches(wish);
        self.look_at_zones(wish);
        self.look_at_sizes(wish);
    }

    fn look_at_prefixes(&mut self, wish: &Wish) {
        let Wish { vpc, services, .. } = wish;
        if !VPC_LENGTHS.contains(&vpc.prefix_len()) {
            self.errors.push(format!("the VPC {vpc} cannot be: its length is from /8 to /28"));
        }
        for (what, net) in [("VPC", *vpc), ("Service CIDR", *services)] {
            for (taken, why) in TAKEN.iter().filter(|(taken, _)| overlap(net, self::net(taken))) {
                self.errors.push(format!("the {what} {net} overlaps {taken}, which {why}: choose another"));
            }
            if overlap(net, self::net(DOCKER)) {
                let why = "Docker's default bridge: machines with Docker lose the way there";
                self.warnings.push(format!("the {what} {net} overlaps {DOCKER}, {why}"));
            }
        }
        if !PRIVATE.iter().any(|private| self::net(private).contains(vpc)) {
            self.warnings
                .push(format!("the VPC {vpc} is no private network (RFC 1918): its pods do not reach whoever has it"));
        }
        if overlap(*vpc, *services) {
            let hint = "Services would hide addresses of the VPC; choose one outside of it, such as 172.21.0.0/20";
            self.errors.push(format!("the Service CIDR {services} overlaps the VPC {vpc}: {hint}"));
        }
        if !(12..=24).contains(&services.prefix_len()) {
            self.warnings
                .push(format!("the Service CIDR {services} is unusual: /16 to /24 hold 65,534 to 254 Services"));
        }
    }

    fn look_at_vswitches(&mut self, wish: &Wish) {
        let all: Vec<(&str, &VSwitch)> =
            wish.nodes.iter().map(|v| ("nodes", v)).chain(wish.pods.iter().map(|v| ("pods", v))).collect();
        for (at, (whose, VSwitch { cidr, zone })) in all.iter().enumerate() {
            if !VSWITCH_LENGTHS.contains(&cidr.prefix_len()) {
                self.errors.push(format!("the {whose}' vSwitch {cidr} cannot be: its length is from /16 to /29"));
            }
            if !wish.vpc.contains(cidr) {
                self.errors.push(format!("the {whose}' vSwitch {cidr} is not in the VPC {}", wish.vpc));
            }
            for (_, other) in &all[at + 1..] {
                match () {
                    () if other.cidr == *cidr && other.zone == *zone => self.warnings.push(format!(
                        "vSwitch {cidr} is for nodes and pods: when pods have taken all addresses, no node can be added"
                    )),
                    () if other.cidr == *cidr => {
                        self.errors.push(format!("vSwitch {cidr} cannot be in two zones"));
                    }
                    () if overlap(*cidr, other.cidr) => {
                        self.errors.push(format!("the vSwitches {cidr} and {} overlap: make them apart", other.cidr));
                    }
                    () => {}
                }
            }
        }
    }

    /// ENIs are in the zone of their instance.
    fn look_at_zones(&mut self, wish: &Wish) {
        let zones = |some: &[VSwitch]| some.iter().filter_map(|v| v.zone.clone()).collect::<BTreeSet<String>>();
        let (nodes, pods) = (zones(&wish.nodes), zones(&wish.pods));
        let unnamed = wish.nodes.iter().chain(&wish.pods).filter(|v| v.zone.is_none()).count();
        if unnamed > 0 && nodes.len() + pods.len() > 0 {
            self.errors.push("some vSwitches have a zone and some have none: name all, as CIDR@ZONE".into());
            return;
        }
        for zone in nodes.difference(&pods) {
            let why = "ENIs are in the zone of their instance: add a --pod-vswitch CIDR@ZONE there";
            self.errors.push(format!("nodes in zone {zone} have no vSwitch for pods: {why}"));
        }
        for zone in pods.difference(&nodes) {
            self.warnings.push(format!("no node is in zone {zone}: its vSwitch for pods is of no use"));
        }
    }

    fn look_at_sizes(&mut self, wish: &Wish) {
        if wish.count > self.node_addresses {
            let (count, there) = (wish.count, self.node_addresses);
            self.errors.push(format!("{count} nodes have {there} addresses: enlarge the nodes' vSwitches, or add one"));
        }
        if self.pods_per_node == 0 {
            let why = "its only ENI is the node's own";
            self.errors.push(format!("the instance type holds no pods: {why}; choose a larger one"));
        }
        if self.first_limit == Limit::PodAddresses {
            let (pods, want) = (self.pods, wish.count.saturating_mul(self.pods_per_node));
            self.warnings.push(format!(
                "the pods' vSwitches have addresses for {pods} of the {want} pods that the nodes can hold"
            ));
        }
        if self.pods > BASIC_GROUP {
            let pods = self.pods;
            self.warnings.push(format!(
                "{pods} pods in one basic security group are too many (it holds {BASIC_GROUP} addresses): use an advanced one"
            ));
        }
    }
}
