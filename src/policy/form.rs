//! The one form that all kinds of policy come to.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::selector::Selector;
use crate::cluster::Name;
use crate::rules::{Action, Icmp};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    GlobalCalico,
    Calico,
    Kubernetes,
    Cluster,
}

/// Prints as `networkpolicy shop/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName {
    pub name: Name,
    pub kind: Kind,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::GlobalCalico => "globalnetworkpolicy",
            Kind::Calico => "calico networkpolicy",
            Kind::Kubernetes => "networkpolicy",
            Kind::Cluster => "clusternetworkpolicy",
        };
        write!(f, "{kind} {}", self.name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Before those of Kubernetes and Calico.
    Admin,
    Default,
    /// For what no other policy selects.
    Baseline,
}

/// Who comes first: the smaller place, within it the smaller name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub tier: Tier,
    pub order: Order,
    /// Those of Kubernetes are only added up: within an order they come last.
    pub is_kubernetes: bool,
}

/// A number of any kind, by its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u64);

impl Order {
    pub const LAST: Order = Order(u64::MAX);

    pub fn of(number: f64) -> Order {
        let bits = number.to_bits();
        Order(if bits >> 63 == 1 { !bits } else { bits | 1 << 63 })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub name: PolicyName,
    /// The same, for those who ask who decided.
    pub text: Arc<str>,
    pub place: Place,
    pub subject: Who,
    /// None: it says nothing of this direction.
    pub ingress: Option<Box<[Rule]>>,
    pub egress: Option<Box<[Rule]>>,
    /// What is wrong with it, and what of it is not done.
    pub faults: Box<[Box<str>]>,
    /// It decides on no pod.
    pub is_void: bool,
}

impl Policy {
    /// Whether labels of namespaces decide what it says of a pod of ours.
    pub fn asks_spaces(&self) -> bool {
        self.of_ours().any(Who::asks_spaces)
    }

    /// Whether service accounts do.
    pub fn asks_accounts(&self) -> bool {
        self.of_ours().any(Who::asks_accounts)
    }

    /// What the pod itself must be: for the policy, and for its rules.
    fn of_ours(&self) -> impl Iterator<Item = &Who> {
        let rules = self.ingress.iter().chain(&self.egress).flatten();
        [&self.subject].into_iter().chain(rules.flat_map(|rule| rule.own.who.iter().chain(&rule.own.not_who)))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which one of the policy's direction it comes from.
    pub index: u16,
    pub action: Action,
    /// The other side. Many rules have the same one.
    pub peer: Arc<Peer>,
    /// The pod itself.
    pub own: Arc<Peer>,
    pub what: What,
}

/// A condition on an address. The default: everyone.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Somebody has the address whom this selects.
    pub who: Option<Who>,
    /// Nobody has it whom this selects.
    pub not_who: Option<Who>,
    pub nets: Option<Box<[IpNet]>>,
    pub not_nets: Box<[IpNet]>,
}

impl Peer {
    pub fn is_everyone(&self) -> bool {
        *self == Peer::default()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Who {
    pub whom: Whom,
    pub space: Space,
    pub labels: Selector,
    pub account: Option<Account>,
    /// A container's port of this name has this number.
    pub port: Option<NamedPort>,
}

impl Who {
    pub fn pods(space: Space, labels: Selector) -> Who {
        Who { whom: Whom::Pods, space, labels, account: None, port: None }
    }

    /// Whether labels of namespaces decide; Calico asks for them by a prefix too.
    pub fn asks_spaces(&self) -> bool {
        matches!(self.space, Space::Matching(_)) || self.whom == Whom::Calico && self.labels.asks("pcns.")
    }

    /// Whether service accounts decide, or their labels.
    pub fn asks_accounts(&self) -> bool {
        self.account.is_some() || self.whom == Whom::Calico && self.labels.asks("pcsa.")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Whom {
    /// Those with an address of their own.
    Pods,
    /// Those too that have their node's addresses.
    PodsAndHosts,
    /// As Calico sees them: its labels count, and network sets are selected like pods.
    Calico,
    Nodes,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    Any,
    One(Box<str>),
    Matching(Selector),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// One of these; empty: any.
    pub names: Box<[Box<str>]>,
    pub labels: Selector,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    pub name: Box<str>,
    pub protocol: u8,
    pub number: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct What {
    pub protocol: Option<u8>,
    pub not_protocol: Option<u8>,
    pub icmp: Option<Icmp>,
    pub not_icmp: Option<Icmp>,
    /// Of the pod itself.
    pub own: Ports,
    /// Of the other side.
    pub peer: Ports,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    pub any_of: Option<Box<[Port]>>,
    pub none_of: Box<[Port]>,
}

impl Ports {
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let all = self.any_of.iter().flatten().chain(&self.none_of);
        all.filter_map(|port| if let Port::Named(name) = port { Some(&**name) } else { None })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    Range(u16, u16),
    Named(Box<str>),
}

impl Rule {
    /// Everything.
    pub fn of_all(index: u16, action: Action) -> Rule {
        Rule { index, action, peer: Arc::default(), own: Arc::default(), what: What::default() }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let nets = |nets: &[IpNet]| nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" ");
        parts.extend(self.who.as_ref().map(Who::to_string));
        parts.extend(self.nets.as_ref().map(|all| format!("nets {}", nets(all))));
        parts.extend(self.not_who.as_ref().map(|who| format!("not {who}")));
        if !self.not_nets.is_empty() {
            parts.push(format!("except {}", nets(&self.not_nets)));
        }
        f.write_str(&if parts.is_empty() { "everyone".to_owned() } else { parts.join(", ") })
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(NamedPort { name, number, .. }) = &self.port {
            return write!(f, "pods whose port {name} is {number}");
        }
        f.write_str(match self.whom {
            Whom::Nodes => "nodes",
            Whom::Calico => "pods and network sets",
            _ => "pods",
        })?;
        if self.labels != Selector::All {
            write!(f, " with {}", self.labels)?;
        }
        match &self.space {
            Space::Any => {}
            Space::One(name) => write!(f, " of namespace {name}")?,
            Space::Matching(selector) => write!(f, " of namespaces with {selector}")?,
        }
        match &self.account {
            None => Ok(()),
            Some(account) if account.names.is_empty() => write!(f, " of accounts with {}", account.labels),
            Some(account) => write!(f, " of accounts {} with {}", account.names.join(" "), account.labels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_go_by_size() {
        let orders = [f64::NEG_INFINITY, -2.5, -1.0, -0.0, 0.0, 1e-9, 10.0, 10.5, 1000.0, f64::INFINITY];
        assert!(orders.windows(2).all(|pair| Order::of(pair[0]) < Order::of(pair[1])));
        assert!(Order::of(f64::MAX) < Order::LAST);
    }
}
