//! What a pod, an ENI and a node need in the kernel: facts in, a [`Plan`] out.

mod exclusive;
mod ipvlan;
mod policy_route;
mod shape;

pub use ipvlan::near;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::ip::{Family, IpPair, Stack, host_net};
use crate::plan::{Hook, Iptables, Object, Plan, Program, Rule, RuleAction, Side, Sysctl, Veth};
use crate::pod::{Attachment, PodName};
use crate::rate::{Both, Limit, Limits, Rate};
use crate::rpc::{EniLease, Lease, Wiring};
use crate::{ours, plan};

/// Everything a pod's plan depends on.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    pub lease: &'a Lease,
    pub mtu: u32,
}

impl<'a> Setup<'a> {
    pub fn new(lease: &'a Lease, mtu: u32) -> Setup<'a> {
        Setup { lease, mtu }
    }
}

/// The first object of an attachment's plan, whatever its lease will be; a lease may want the end in the pod called otherwise.
pub fn veth(pod: &PodName, attachment: &Attachment, mtu: u32) -> Veth {
    policy_route::veth(pod, attachment, mtu)
}

/// The plan of one attachment; nothing for one that runs on as the old Terway has wired it.
pub fn pod(setup: &Setup) -> Plan {
    let mut plan = match &setup.lease.wiring {
        _ if setup.lease.untouched().is_some() => Plan::default(),
        Wiring::Shared => policy_route::pod(setup),
        Wiring::Whole(whole) => exclusive::pod(setup, whole),
        Wiring::Ipvlan(slave) => ipvlan::pod(setup, slave),
    };
    let extra = extra_routes(&plan, &setup.lease.routes);
    plan.pod.extend(extra);
    plan
}

/// The operator's own routes: as the pod's default route, for prefixes that another plugin's default route would take away.
fn extra_routes(plan: &Plan, nets: &[IpNet]) -> Vec<Object> {
    let route = |object: &Object| match object {
        Object::Route(route) if route.to.prefix_len() == 0 && route.table.is_none() => Some(route.clone()),
        _ => None,
    };
    let defaults: Vec<plan::Route> = plan.pod.iter().filter_map(route).collect();
    let of_family = |net: &IpNet, route: &plan::Route| net.addr().is_ipv4() == route.to.addr().is_ipv4();
    let through = |net: &IpNet| defaults.iter().find(|route| of_family(net, route)).cloned();
    nets.iter().filter_map(|net| Some(Object::Route(plan::Route { to: *net, ..through(net)? }))).collect()
}

/// What holds an attachment to its bandwidth, to be made once it is wired; and what must not be there, to be undone.
pub fn shape(setup: &Setup) -> (Plan, Plan) {
    let of = |lease: &Lease| {
        let mut plan = pod(&Setup { lease, ..*setup });
        plan.host.retain(shapes);
        plan.pod.retain(shapes);
        plan
    };
    let Both { ingress, egress } = setup.lease.bandwidth.rates();
    // Whatever its rate, it is in the same place.
    let superfluous = |rate: Option<Rate>| if rate.is_some() { None } else { Some(Rate::MIN) };
    let others = Limits { ingress: superfluous(ingress), egress: superfluous(egress) };
    let bandwidth = Both::<Limit>::default().ask(others);
    (of(setup.lease), of(&Lease { bandwidth, ..setup.lease.clone() }))
}

/// The programs of network policies on the links of an attachment that has a seat, to be made once it is wired; and those that must not be
/// there, to be undone.
pub fn policed(setup: &Setup) -> (Plan, Plan) {
    let of = |lease: &Lease| {
        let mut plan = pod(&Setup { lease, ..*setup });
        plan.host.retain(polices);
        plan.pod.retain(polices);
        plan
    };
    match setup.lease.seat {
        Some(_) => (of(setup.lease), Plan::default()),
        // Whatever its seat was, they are in the same place.
        None => (Plan::default(), of(&Lease { seat: Some(0), ..setup.lease.clone() })),
    }
}

fn polices(object: &Object) -> bool {
    matches!(object, Object::Hook(hook) if hook.priority == ours::POLICY_PRIORITY)
}

/// Which way a link carries what goes to its pod.
#[derive(Clone, Copy)]
enum End {
    /// The node's, of a veth.
    Outer,
    /// The pod's own link.
    Inner,
}

/// Lets pass by this link what the pod's policies allow, before anything can.
fn police(objects: &mut Vec<Object>, lease: &Lease, link: &str, end: End) {
    let Some(seat) = lease.seat else { return };
    let (to_pod, from_pod) = match end {
        End::Outer => (Side::Egress, Side::Ingress),
        End::Inner => (Side::Ingress, Side::Egress),
    };
    for (side, program) in [(to_pod, Program::ToPod), (from_pod, Program::FromPod)] {
        let (link, priority) = (link.into(), ours::POLICY_PRIORITY);
        objects.push(Object::Hook(Hook { link, side, priority, program, class: Some(seat) }));
    }
}

fn shapes(object: &Object) -> bool {
    let Both { ingress, egress } = ours::SHAPE_LINKS;
    match object {
        Object::Tbf(_) | Object::Ifb(_) | Object::Redirect(_) => true,
        Object::Link(link) => [ingress, egress].contains(&link.name.as_str()),
        _ => false,
    }
}

/// What of a pod's plan does not go with its link, or must go before it: undone first when the pod is gone.
pub fn routes(lease: &Lease) -> Plan {
    let mut plan = pod(&Setup::new(lease, 0));
    plan.host.retain(|object| matches!(object, Object::Route(_) | Object::Rule(_) | Object::Iptables(_)));
    plan.pod.clear();
    plan
}

/// What leads a pod whose ENI has another link than before, to be made; and what led it to that one, to be undone.
pub fn moved(before: &Lease, lease: &Lease) -> (Plan, Plan) {
    let but = |lease: &Lease, other: &Lease| {
        let (mut rules, others) = (routes(lease), routes(other));
        rules.host.retain(|object| matches!(object, Object::Rule(_)) && !others.host.contains(object));
        rules
    };
    (but(lease, before), but(before, lease))
}

/// What an ENI needs that carries pods.
#[derive(Debug, Clone)]
pub struct EniSetup<'a> {
    pub eni: &'a EniLease,
    /// The ENI's link on this node.
    pub link: &'a str,
    pub mtu: u32,
    /// The node's own addresses; the ENI bears that of IPv4 so that it can speak ARP.
    pub node: &'a crate::ip::IpPair,
}

/// The plan of one ENI.
pub fn eni(setup: &EniSetup) -> Plan {
    policy_route::eni(setup)
}

/// The plan of one ENI that has, or will have, IPvlan slaves.
pub fn parent(setup: &EniSetup) -> Plan {
    let mut plan = eni(setup);
    plan.host.extend(ipvlan::parent(setup));
    plan
}

/// What the node's own plan depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSetup {
    pub stack: Stack,
    /// Links of the node that learn from router advertisements.
    pub advertised: Vec<String>,
    /// Links of the node by which clients come, where pods are led to their ENIs by their addresses: the kernel, which asks by which way
    /// it would answer, takes what is for such a pod for forged.
    pub asked: Vec<String>,
}

/// What the node needs once, whatever pods and ENIs there are. IPv4 is always there: every ENI has an IPv4 address, and pods
/// of before may have one too.
pub fn node(setup: &NodeSetup) -> Plan {
    let mut host = vec![
        sysctl("net/ipv4/ip_forward".into(), "1"),
        sysctl("net/ipv4/conf/all/rp_filter".into(), "0"),
        sysctl("net/ipv4/conf/default/rp_filter".into(), "0"),
        to_pods(Family::V4),
        nodes_way(Family::V4),
    ];
    host.extend(setup.asked.iter().map(|link| sysctl(format!("net/ipv4/conf/{link}/rp_filter"), "2")));
    if setup.stack.has(Family::V6) {
        // A kernel that forwards listens to advertisements no more, and forgets what it has learnt, unless told so before.
        host.extend(setup.advertised.iter().map(|link| sysctl(format!("net/ipv6/conf/{link}/accept_ra"), "2")));
        host.push(sysctl("net/ipv6/conf/all/forwarding".into(), "1"));
        host.extend([to_pods(Family::V6), nodes_way(Family::V6)]);
    }
    Plan { host, pod: Vec::new() }
}

fn to_pods(family: Family) -> Object {
    let action = RuleAction::Lookup(ours::PODS_TABLE);
    Object::Rule(Rule { priority: ours::TO_POD_PRIORITY, family, from: None, mark: None, iif: None, action })
}

/// What bears the node's mark goes by the main table, also where the address that it is from leads to an ENI.
fn nodes_way(family: Family) -> Object {
    let (priority, mark) = (ours::NODE_WAY_PRIORITY, Some((ours::NODE_MARK, ours::MARK_MASK)));
    let action = RuleAction::Lookup(ours::MAIN_TABLE);
    Object::Rule(Rule { priority, family, from: None, mark, iif: None, action })
}

fn sysctl(path: String, value: &str) -> Object {
    Object::Sysctl(Sysctl { path, value: value.into() })
}

/// What answers a connection that netfilter led to a pod (a node port, a host port) goes back as it came.
///
/// Such an answer is routed while it still bears the pod's address and mark, and gets the node's address only on its way
/// out: by the ENI, where the VPC would take it for forged. With the node's mark it takes the node's own way.
pub fn answers(stack: Stack) -> Plan {
    mangle(stack, &[("PREROUTING", "-i cali+ -m conntrack --ctdir REPLY --ctstate DNAT -j MARK --set-xmark {}")])
}

/// The same where IPVS has led it to the pod, which the state of a connection does not say (`ip_vs_update_conntrack` sets no IPS_DST_NAT).
/// What IPVS leads has been delivered to the node itself first, and the connection remembers that.
pub fn answers_of_ipvs(stack: Stack) -> Plan {
    let rules = [
        ("INPUT", "! -i cali+ -m conntrack --ctstate NEW -j CONNMARK --set-xmark {}"),
        ("PREROUTING", "-i cali+ -m conntrack --ctdir REPLY -m connmark --mark {} -j MARK --set-xmark {}"),
    ];
    mangle(stack, &rules)
}

/// Rules by chain, with the node's mark at each `{}`.
fn mangle(stack: Stack, rules: &[(&'static str, &str)]) -> Plan {
    let mark = format!("{:#x}/{:#x}", ours::NODE_MARK, ours::MARK_MASK);
    let of = |family: &Family| {
        let (family, table) = (*family, "mangle");
        let rule = |rule: &str| rule.replace("{}", &mark).split(' ').map(String::from).collect();
        let all = rules.iter().map(move |(chain, text)| (*chain, rule(text)));
        all.map(move |(chain, rule)| Object::Iptables(Iptables { family, table, chain, rule })).collect::<Vec<_>>()
    };
    Plan { host: stack.families().iter().flat_map(of).collect(), pod: Vec::new() }
}

/// Lets what pods send and are sent through a FORWARD that drops what nobody lets through.
pub fn passage(family: Family) -> Plan {
    let (table, chain) = ("filter", "FORWARD");
    let of = |side: &str| {
        let link = format!("{}+", ours::VETH);
        let rule = [side, &link, "-m", "comment", "--comment", ours::PASS_COMMENT, "-j", "ACCEPT"];
        Object::Iptables(Iptables { family, table, chain, rule: rule.map(String::from).into() })
    };
    Plan { host: ["-i", "-o"].map(of).into(), pod: Vec::new() }
}

/// What pods with an ENI of their own send through the node to backends elsewhere leaves as the node's, in its families.
pub fn masquerade(node: &IpPair) -> Plan {
    Plan { host: node.iter().map(|addr| exclusive::masquerade(Family::of(&addr))).collect(), pod: Vec::new() }
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

/// The way for everything else, for a pod's first interface. A further one leaves that alone: it is for what bears its own address.
fn elsewhere(pod: &mut Vec<Object>, lease: &Lease, addr: IpAddr, gateway: Option<IpAddr>) {
    let link = &lease.sandbox.attachment.ifname;
    let table = ours::further_table(link);
    pod.extend(gateway.map(|gateway| default_route(gateway, link, table)));
    pod.extend(table.map(|table| {
        let (priority, action) = (ours::FURTHER_PRIORITY, RuleAction::Lookup(table));
        let (family, from) = (Family::of(&addr), Some(host_net(addr)));
        Object::Rule(Rule { priority, family, from, mark: None, iif: None, action })
    }));
}

/// The route for everything else.
fn default_route(via: IpAddr, link: &str, table: Option<u32>) -> Object {
    let to = match via {
        IpAddr::V4(_) => "0.0.0.0/0".parse().expect("a prefix"),
        IpAddr::V6(_) => "::/0".parse().expect("a prefix"),
    };
    Object::Route(plan::Route { to, via: Some(via), link: link.into(), table, onlink: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::{Marker, example_lease, example_slave, example_whole};

    fn added(lease: &Lease) -> Vec<String> {
        let lines = |lease: &Lease| pod(&Setup::new(lease, 1500)).to_string();
        let (before, after) = (lines(lease), lines(&Lease { seat: Some(31), ..lease.clone() }));
        after.lines().filter(|line| !before.lines().any(|old| old == *line)).map(String::from).collect()
    }

    #[test]
    fn a_pod_that_its_address_leads_to_its_eni_follows_it_to_another_link() {
        let rule = |table: u32| format!("ip rule add priority 2048 from 192.168.32.5/32 lookup {table}\n");
        for (marker, wanted) in
            [(Marker::Bpf, Default::default()), (Marker::Rule, (rule(1007), rule(example_lease().eni.table)))]
        {
            let before = Lease { marker, ..example_lease() };
            let mut lease = before.clone();
            lease.eni.table = 1007;
            let (make, undo) = moved(&before, &lease);
            assert_eq!((make.to_string(), undo.to_string()), wanted, "{marker:?}");
        }
    }

    fn hooks(inside: bool, link: &str) -> [String; 2] {
        let pairs =
            if inside { [("ingress", "to"), ("egress", "from")] } else { [("egress", "to"), ("ingress", "from")] };
        let of = |(side, way)| {
            let line = format!(
                "tc filter replace dev {link} {side} priority 2048 bpf direct-action terway_{way}_pod classid 0:1f"
            );
            if inside { format!("pod: {line}") } else { line }
        };
        pairs.map(of)
    }

    #[test]
    fn every_link_of_a_pod_with_a_seat_asks_its_policies() {
        let veth = "cali0d7763386da";
        assert_eq!(added(&example_lease()), hooks(false, veth));
        assert_eq!(added(&example_slave()), hooks(true, "eth0"));
        assert_eq!(added(&example_whole()), [hooks(false, veth), hooks(true, "eth0")].concat());
    }

    #[test]
    fn a_further_interface_is_for_its_own_address_and_leaves_the_pods_routes_alone() {
        let (one, two) = (ours::further_table("net1").unwrap(), ours::further_table("net2").unwrap());
        assert!(one != two && one.min(two) > ours::ANSWER_TABLE);
        for (mut lease, gateways) in [
            (example_lease(), ["169.254.1.1 dev net1", "fe80::1 dev net1"]),
            (example_slave(), ["192.168.63.253 dev net1", "2001:db8::fffd dev net1"]),
            (example_whole(), ["192.168.63.253 dev net1", "2001:db8::fffd dev net1"]),
        ] {
            lease.sandbox.attachment.ifname = "net1".into();
            lease.ip.v6 = Some("2001:db8::5".parse().unwrap());
            lease.eni.gateway.v6 = Some("2001:db8::fffd".parse().unwrap());
            lease.routes = vec!["10.0.0.0/8".parse().unwrap()];
            let plan = pod(&Setup::new(&lease, 1500)).to_string();
            let routes = || plan.lines().filter(|line| line.starts_with("pod: ip ") && line.contains(" route "));
            assert!(routes().all(|line| line.contains(&format!(" table {one}"))), "{plan}");
            for (family, from, gateway) in
                [("", "192.168.32.5/32", gateways[0]), (" -6", "2001:db8::5/128", gateways[1])]
            {
                let default = format!("pod: ip{family} route replace default via {gateway} table {one} onlink");
                let rule = format!("pod: ip{family} rule add priority 2048 from {from} lookup {one}");
                assert!([default, rule].iter().all(|want| plan.lines().any(|line| line == want)), "{plan}");
            }
            assert!(!plan.contains("10.0.0.0/8") && !plan.contains("/19"), "{plan}");
        }
    }

    #[test]
    fn nothing_passes_before_they_are_there_and_nothing_is_led_elsewhere() {
        for mut lease in [example_lease(), example_slave(), example_whole()] {
            lease.seat = Some(1);
            let (make, undo) = policed(&Setup::new(&lease, 1500));
            assert_eq!(undo, Plan::default());
            let plan = pod(&Setup::new(&lease, 1500));
            for (objects, hooks) in [(&plan.host, &make.host), (&plan.pod, &make.pod)] {
                for hook in hooks {
                    let at = objects.iter().position(|object| object == hook).unwrap();
                    let up = objects.iter().position(|o| matches!(o, Object::Link(l) if Some(&*l.name) == hook.link()));
                    assert!(at < up.unwrap(), "{hook}");
                }
            }
            lease.seat = None;
            let (nothing, undo) = policed(&Setup::new(&lease, 1500));
            assert_eq!((nothing, undo.host.len(), undo.pod.len()), (Plan::default(), make.host.len(), make.pod.len()));
        }
        let others = [ours::MARK_FILTER_PRIORITY, ours::SHAPE_FILTER_PRIORITIES.ingress, ours::HOOK_PRIORITY];
        assert!(others.iter().all(|other| ours::POLICY_PRIORITY < *other));
    }
}
