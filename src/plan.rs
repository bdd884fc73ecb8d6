//! Desired kernel state as data. Printed, it reads as ip(8), tc(8) and sysctl(8) would say it: that text is the golden value of tests.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

pub use crate::ip::Family;
use crate::ip::Mac;
use crate::ours;
use crate::rate::Rate;

/// What should exist, in the order in which it can be made; undone in reverse.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In the namespace of the node.
    pub host: Vec<Object>,
    /// In the namespace of the pod.
    pub pod: Vec<Object>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    Veth(Veth),
    Card(Card),
    Slave(Slave),
    HostSlave(HostSlave),
    Link(Link),
    Addr(Addr),
    Route(Route),
    Rule(Rule),
    Neigh(Neigh),
    Filter(Filter),
    Tbf(Tbf),
    Ifb(Ifb),
    Redirect(Redirect),
    Hook(Hook),
    Sysctl(Sysctl),
    Iptables(Iptables),
}

/// A veth pair, its outer end here, its inner end born in the pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    /// `ifalias`: whose it is.
    pub alias: String,
    pub peer: String,
    pub peer_mac: Mac,
}

/// An ENI's link that is lent to the pod: it is moved into the pod's namespace, and back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    pub mac: Mac,
    /// What it is called here.
    pub home: String,
    /// What it is called there.
    pub name: String,
    /// `ifalias`: whose it is.
    pub alias: String,
}

/// An IPvlan slave of an ENI in mode L2, born in the pod's namespace. Its MAC is the ENI's: the kernel gives it no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slave {
    pub name: String,
    /// What it is called until it is there.
    pub newborn: String,
    /// Index of the ENI's link.
    pub parent: u32,
    pub mac: Mac,
    pub mtu: u32,
    /// `ifalias`: whose it is.
    pub alias: String,
}

/// The node's own slave of an ENI, up: by it node and pods reach each other. It asks nobody for MACs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSlave {
    pub name: String,
    pub parent: u32,
    pub mtu: u32,
}

/// A link that exists already, as it should be: up, with this MTU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub mtu: Option<u32>,
}

/// An address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addr {
    pub net: IpNet,
    pub link: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub to: IpNet,
    pub via: Option<IpAddr>,
    pub link: String,
    /// `None` is the main table.
    pub table: Option<u32>,
    /// The gateway needs no route of its own.
    pub onlink: bool,
}

/// A policy routing rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub priority: u32,
    pub family: Family,
    pub from: Option<IpNet>,
    /// Value and mask.
    pub mark: Option<(u32, u32)>,
    /// Arrived on this link.
    pub iif: Option<String>,
    pub action: RuleAction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    Lookup(u32),
    Blackhole,
}

/// A permanent neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neigh {
    pub addr: IpAddr,
    pub mac: Mac,
    pub link: String,
}

/// A filter on what arrives at a link, with the qdisc that carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub link: String,
    pub priority: u16,
    pub action: FilterAction,
}

/// Sets bits of the packet's mark: value and mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterAction {
    /// By an eBPF program of a few instructions.
    BpfMark(u32, u32),
    /// By the action `skbedit`.
    SkbeditMark(u32, u32),
}

/// A token bucket, the root qdisc of a link: what leaves by the link keeps to a rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tbf {
    pub link: String,
    pub rate: Rate,
    /// Bytes that may pass at once after a pause.
    pub burst: u32,
    /// Bytes that may wait; what comes on top is dropped.
    pub limit: u32,
}

/// A link through which packets of other links are led, to wait at its qdisc and go on from where they were taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ifb {
    pub name: String,
}

/// Leads everything that arrives at a link, or leaves by it, through another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    pub link: String,
    pub side: Side,
    pub priority: u16,
    /// An [`Ifb`].
    pub through: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Ingress,
    Egress,
}

/// One of our eBPF programs on one side of a link, with the qdisc that carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub link: String,
    pub side: Side,
    pub priority: u16,
    pub program: Program,
    /// What the program finds as the packet's class: the seat of the pod whose link it is.
    pub class: Option<u16>,
}

/// The programs of `bpf/eni.bpf.c` and `bpf/policy.bpf.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// What slaves send by their ENI and the node must see goes to the node.
    Leaving,
    /// What comes to the node by its own slave is marked, but for what goes on to a pod.
    Arriving,
    /// Who speaks to a slave through the node is remembered: the answer goes through the node too.
    Entering,
    /// What goes to a pod passes as its policies say.
    ToPod,
    /// The same of what comes from it.
    FromPod,
}

impl Program {
    /// What it is called in its object, and in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Program::Leaving => "terway_leaving",
            Program::Arriving => "terway_arriving",
            Program::Entering => "terway_entering",
            Program::ToPod => "terway_to_pod",
            Program::FromPod => "terway_from_pod",
        }
    }
}

/// A kernel parameter, its path below `/proc/sys`. Where the kernel does not have it there is nothing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    pub path: String,
    pub value: String,
}

/// A netfilter rule in the words of iptables(8) or ip6tables(8), which makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iptables {
    pub family: Family,
    pub table: &'static str,
    pub chain: &'static str,
    pub rule: Vec<String>,
}

impl Sysctl {
    /// The link that the parameter is of, if it is of one.
    pub fn link(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("net/ipv6/conf/").or_else(|| self.path.strip_prefix("net/ipv4/conf/"))?;
        rest.split_once('/').map(|(link, _)| link).filter(|link| !["all", "default"].contains(link))
    }
}

impl Object {
    /// The link that the object is on, or is.
    pub fn link(&self) -> Option<&str> {
        match self {
            Object::Veth(v) => Some(&v.name),
            Object::Card(c) => Some(&c.home),
            // It is in the pod: no link of the node.
            Object::Slave(_) => None,
            Object::HostSlave(s) => Some(&s.name),
            Object::Link(l) => Some(&l.name),
            Object::Addr(a) => Some(&a.link),
            Object::Route(r) => Some(&r.link),
            Object::Neigh(n) => Some(&n.link),
            Object::Filter(f) => Some(&f.link),
            Object::Tbf(t) => Some(&t.link),
            Object::Ifb(i) => Some(&i.name),
            Object::Redirect(r) => Some(&r.link),
            Object::Hook(h) => Some(&h.link),
            Object::Sysctl(s) => s.link(),
            Object::Rule(_) | Object::Iptables(_) => None,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for object in &self.host {
            writeln!(f, "{object}")?;
        }
        for object in &self.pod {
            writeln!(f, "pod: {object}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Veth(v) => v.fmt(f),
            Object::Card(c) => c.fmt(f),
            Object::Slave(s) => s.fmt(f),
            Object::HostSlave(s) => s.fmt(f),
            Object::Link(l) => l.fmt(f),
            Object::Addr(a) => write!(f, "ip addr replace {} dev {}", a.net, a.link),
            Object::Route(r) => r.fmt(f),
            Object::Rule(r) => r.fmt(f),
            Object::Neigh(n) => write!(f, "ip neigh replace {} lladdr {} dev {} nud permanent", n.addr, n.mac, n.link),
            Object::Filter(l) => l.fmt(f),
            Object::Tbf(t) => t.fmt(f),
            Object::Ifb(i) => write!(f, "ip link add {} type ifb", i.name),
            Object::Redirect(r) => r.fmt(f),
            Object::Hook(h) => h.fmt(f),
            Object::Sysctl(s) => write!(f, "sysctl -w {}={}", s.path.replace('/', "."), s.value),
            Object::Iptables(i) => i.fmt(f),
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Card { mac, home, name, alias } = self;
        write!(f, "ip link set {home} alias '{alias}' netns pod name {name} # {mac}")
    }
}

impl fmt::Display for Slave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slave { name, parent, mac, mtu, alias, .. } = self;
        write!(
            f,
            "ip link add link if{parent} name {name} netns pod mtu {mtu} alias '{alias}' type ipvlan mode l2 bridge # {mac}"
        )
    }
}

impl fmt::Display for HostSlave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostSlave { name, parent, mtu } = self;
        write!(f, "ip link add link if{parent} name {name} mtu {mtu} up arp off type ipvlan mode l2 bridge")
    }
}

impl fmt::Display for Iptables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -t {} -A {} {}", self.program(), self.table, self.chain, self.rule.join(" "))
    }
}

impl Iptables {
    /// What makes it.
    pub fn program(&self) -> &'static str {
        Iptables::program_of(self.family)
    }

    pub fn program_of(family: Family) -> &'static str {
        if family == Family::V6 { "ip6tables" } else { "iptables" }
    }
}

impl fmt::Display for Veth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Veth { name, mac, mtu, alias, peer, peer_mac } = self;
        write!(
            f,
            "ip link add {name} address {mac} mtu {mtu} alias '{alias}' type veth peer name {peer} netns pod address {peer_mac} mtu {mtu}"
        )
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ip link set {} up", self.name)?;
        self.mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to.prefix_len() {
            0 if self.to.addr().is_ipv6() => write!(f, "ip -6 route replace default")?,
            0 => write!(f, "ip route replace default")?,
            _ => write!(f, "ip route replace {}", self.to)?,
        }
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        write!(f, " dev {}", self.link)?;
        if let Some(table) = self.table {
            write!(f, " table {table}")?;
        }
        if self.via.is_none() {
            write!(f, " scope link")?;
        }
        if self.onlink { write!(f, " onlink") } else { Ok(()) }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = if self.family == Family::V6 { "ip -6" } else { "ip" };
        write!(f, "{ip} rule add priority {}", self.priority)?;
        match self.from {
            Some(net) => write!(f, " from {net}")?,
            None => write!(f, " from all")?,
        }
        if let Some((value, mask)) = self.mark {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        match self.action {
            RuleAction::Lookup(table) => write!(f, " lookup {table}"),
            RuleAction::Blackhole => write!(f, " blackhole"),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tc filter replace dev {} ingress priority {} ", self.link, self.priority)?;
        match self.action {
            FilterAction::BpfMark(value, mask) => write!(f, "bpf direct-action mark {value:#x}/{mask:#x}"),
            FilterAction::SkbeditMark(value, mask) => {
                write!(f, "u32 match u32 0 0 action skbedit mark {value:#x}/{mask:#x}")
            }
        }
    }
}

impl fmt::Display for Tbf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, Tbf { link, rate, burst, limit }) = (ours::TBF_HANDLE >> 16, self);
        write!(f, "tc qdisc replace dev {link} root handle {major:x}: tbf rate {rate} burst {burst} limit {limit}")
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Ingress => "ingress",
            Side::Egress => "egress",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hook { link, side, priority, program, class } = self;
        write!(f, "tc filter replace dev {link} {side} priority {priority} bpf direct-action {}", program.name())?;
        class.map_or(Ok(()), |class| write!(f, " classid 0:{class:x}"))
    }
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Redirect { link, side, priority, through } = self;
        write!(f, "tc filter replace dev {link} {side} priority {priority} u32 match u32 0 0 ")?;
        write!(f, "action mirred egress redirect dev {through}")
    }
}
