//! What a pod, an ENI and a node need in the kernel: facts in, a [`Plan`] out.

mod exclusive;
mod policy_route;
mod shape;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::ip::IpPair;
use crate::plan::{Family, Iptables, Object, Plan, Rule, RuleAction, Sysctl, Veth};
use crate::pod::{Attachment, PodName};
use crate::rate::{Both, Limit, Limits, Rate};
use crate::rpc::{EniLease, Lease, Wiring};
use crate::{ours, plan};

/// Everything a pod's plan depends on.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    pub lease: &'a Lease,
    pub mtu: u32,
    /// What a pod with an ENI of its own shall reach through the node rather than through the VPC.
    pub host_stack: &'a [IpNet],
    /// Whether such a pod has a second link at all.
    pub host_peer: bool,
}

impl<'a> Setup<'a> {
    /// As it is where the operator says nothing.
    pub fn new(lease: &'a Lease, mtu: u32) -> Setup<'a> {
        Setup { lease, mtu, host_stack: &[], host_peer: true }
    }
}

/// The first object of an attachment's plan, whatever its lease will be; a lease may want the end in the pod called otherwise.
pub fn veth(pod: &PodName, attachment: &Attachment, mtu: u32) -> Veth {
    policy_route::veth(pod, attachment, mtu)
}

/// The plan of one attachment.
pub fn pod(setup: &Setup) -> Plan {
    match &setup.lease.wiring {
        Wiring::Shared => policy_route::pod(setup),
        Wiring::Whole(whole) => exclusive::pod(setup, whole),
    }
}

/// What holds an attachment to its bandwidth, to be made once it is wired; and what must not be there, to be undone.
pub fn shape(setup: &Setup) -> (Plan, Plan) {
    let buckets = |lease: &Lease| {
        let mut plan = pod(&Setup { lease, ..*setup });
        plan.host.retain(|object| matches!(object, Object::Tbf(_)));
        plan.pod.retain(|object| matches!(object, Object::Tbf(_)));
        plan
    };
    let Both { ingress, egress } = setup.lease.bandwidth.rates();
    // Whatever its rate, it is the bucket in the same place.
    let superfluous = |rate: Option<Rate>| if rate.is_some() { None } else { Some(Rate::MIN) };
    let others = Limits { ingress: superfluous(ingress), egress: superfluous(egress) };
    let bandwidth = Both::<Limit>::default().ask(others);
    (buckets(setup.lease), buckets(&Lease { bandwidth, ..setup.lease.clone() }))
}

/// What of a pod's plan does not go with its link, or must go before it: undone first when the pod is gone.
pub fn routes(lease: &Lease) -> Plan {
    let mut plan = pod(&Setup::new(lease, 0));
    plan.host.retain(|object| matches!(object, Object::Route(_) | Object::Rule(_) | Object::Iptables(_)));
    plan.pod.clear();
    plan
}

/// What an ENI needs that carries pods.
#[derive(Debug, Clone)]
pub struct EniSetup<'a> {
    pub eni: &'a EniLease,
    /// The ENI's link on this node.
    pub link: &'a str,
    pub mtu: u32,
    /// The node's own addresses; the ENI bears them so that it can speak ARP.
    pub node: &'a crate::ip::IpPair,
}

/// The plan of one ENI.
pub fn eni(setup: &EniSetup) -> Plan {
    policy_route::eni(setup)
}

/// What the node needs once, whatever pods and ENIs there are.
pub fn node() -> Plan {
    let sysctl = |path: &str, value: &str| Object::Sysctl(Sysctl { path: path.into(), value: value.into() });
    Plan {
        host: vec![
            sysctl("net/ipv4/ip_forward", "1"),
            sysctl("net/ipv4/conf/all/rp_filter", "0"),
            sysctl("net/ipv4/conf/default/rp_filter", "0"),
            Object::Rule(Rule {
                priority: ours::TO_POD_PRIORITY,
                family: Family::V4,
                from: None,
                mark: None,
                iif: None,
                action: RuleAction::Lookup(ours::PODS_TABLE),
            }),
        ],
        pod: Vec::new(),
    }
}

/// What answers a connection that netfilter led to a pod (a node port, a host port) goes back as it came.
///
/// Such an answer is routed while it still bears the pod's address and mark, and gets the node's address only on its way
/// out: by the ENI, where the VPC would take it for forged. Without the mark it takes the node's own way.
pub fn answers() -> Plan {
    let unmarked = format!("0x0/{:#x}", ours::MARK_MASK);
    let rule = ["-i", "cali+", "-m", "conntrack", "--ctdir", "REPLY", "--ctstate", "DNAT", "-j", "MARK", "--set-xmark"];
    let rule = rule.into_iter().map(String::from).chain([unmarked]).collect();
    let family = Family::V4;
    let rule = Iptables { family, table: "mangle", chain: "PREROUTING", rule };
    Plan { host: vec![Object::Iptables(rule)], pod: Vec::new() }
}

/// What pods with an ENI of their own send through the node to backends elsewhere leaves as the node's, in its families.
pub fn masquerade(node: &IpPair) -> Plan {
    Plan { host: node.iter().map(|addr| exclusive::masquerade(family(&addr))).collect(), pod: Vec::new() }
}

/// What [`crate::rpc::Answers::Conntrack`] takes, to be tried out in a namespace without anybody.
pub fn trial_of_answers(node: &IpPair) -> Plan {
    Plan { host: node.iter().flat_map(|addr| exclusive::tracking(&addr)).collect(), pod: Vec::new() }
}

/// The one neighbour that a pod sees of its node.
fn pod_gateway(addr: &IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => IpAddr::V4(ours::POD_GATEWAY),
        IpAddr::V6(_) => IpAddr::V6(ours::POD_GATEWAY_V6),
    }
}

fn family(addr: &IpAddr) -> Family {
    match addr {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// The route for everything else.
fn default_route(via: IpAddr, link: &str, table: Option<u32>) -> Object {
    let to = match via {
        IpAddr::V4(_) => "0.0.0.0/0".parse().expect("a prefix"),
        IpAddr::V6(_) => "::/0".parse().expect("a prefix"),
    };
    Object::Route(plan::Route { to, via: Some(via), link: link.into(), table, onlink: true })
}
