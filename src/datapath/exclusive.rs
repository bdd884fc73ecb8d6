//! An ENI for one pod alone: its link is moved into the pod, and a veth besides leads to the node, for Services and probes.
//!
//! What the pod begins leaves by the ENI, but for what only the node can do: Services, what the operator names, the node itself.
//! What comes in through the node (its ports, its probes, other pods) is answered through it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::policy_route::{asking, deaf, heard, link_local};
use super::shape::bucket;
use super::{End, Setup, default_route, elsewhere, pod_gateway, police, sysctl};
use crate::ip::{Family, host_net};
use crate::ours;
use crate::plan::{
    Addr, Card, Filter, FilterAction, Ifb, Iptables, Link, Neigh, Object, Plan, Redirect, Route, Rule, RuleAction,
    Side, Veth,
};
use crate::rate::{Both, Rate};
use crate::rpc::{Answers, Lease, Marker, Shaper, Whole};

pub fn pod(setup: &Setup, whole: &Whole) -> Plan {
    let lease = setup.lease;
    let mut plan = Plan::default();
    // The veth first: it may have been made ahead of the plan, under the name that the card will have.
    if has_peer(setup, whole) {
        plan.host.push(Object::Veth(veth(setup)));
    }
    plan.host.push(Object::Card(card(lease, whole)));
    police(&mut plan.pod, setup.lease, &setup.lease.sandbox.attachment.ifname, End::Inner);
    shape(&mut plan, setup, whole);
    card_inside(&mut plan.pod, setup);
    if has_peer(setup, whole) {
        outside(&mut plan.host, setup);
        peer_inside(&mut plan.pod, setup, whole);
        answers(&mut plan.pod, lease, whole.answers);
    }
    plan
}

/// A further interface of a pod has no second link: there is one, and it belongs to the first.
fn has_peer(setup: &Setup, whole: &Whole) -> bool {
    !whole.alone && setup.lease.sandbox.attachment.ifname == "eth0"
}

fn veth(setup: &Setup) -> Veth {
    let lease = setup.lease;
    Veth { peer: ours::PEER_LINK.into(), ..super::veth(&lease.pod, &lease.sandbox.attachment, setup.mtu) }
}

fn card(lease: &Lease, whole: &Whole) -> Card {
    let attachment = &lease.sandbox.attachment;
    Card {
        mac: lease.eni.mac,
        home: whole.home.clone(),
        name: attachment.ifname.clone(),
        alias: ours::card_alias(attachment, &lease.pod, &whole.home),
    }
}

/// The node's side of the second link is that of any other pod, but for the mark.
fn outside(host: &mut Vec<Object>, setup: &Setup) {
    let lease = setup.lease;
    let veth = ours::host_veth(&lease.pod, &lease.sandbox.attachment.ifname);
    deaf(host, &veth);
    heard(host, lease, &veth);
    police(host, lease, &veth, End::Outer);
    mark(host, lease, &veth);
    host.push(Object::Link(Link { name: veth.clone(), mtu: Some(setup.mtu) }));
    for addr in lease.ip.iter() {
        super::policy_route::outside(host, addr, &veth, ours::pod_mac(&veth));
    }
}

/// What comes out of the second link takes the node's own way. Where tc cannot mark, netfilter does.
fn mark(host: &mut Vec<Object>, lease: &Lease, veth: &str) {
    match filter(lease.marker, veth) {
        Some(filter) => host.push(filter),
        None => {
            let mark = format!("{:#x}/{:#x}", ours::NODE_MARK, ours::MARK_MASK);
            let rule = words(&["-i", veth, "-j", "MARK", "--set-xmark", &mark]);
            host.extend(lease.ip.iter().map(|addr| mangle(&addr, "PREROUTING", rule.clone())));
        }
    }
}

/// Marks what arrives at this link, where tc can.
fn filter(marker: Marker, link: &str) -> Option<Object> {
    let (value, mask) = (ours::NODE_MARK, ours::MARK_MASK);
    let action = match marker {
        Marker::Bpf => FilterAction::BpfMark(value, mask),
        Marker::Skbedit => FilterAction::SkbeditMark(value, mask),
        Marker::Rule => return None,
    };
    Some(Object::Filter(Filter { link: link.into(), priority: ours::MARK_FILTER_PRIORITY, action }))
}

/// One bucket a direction for all links of the pod, before any of them is up.
fn shape(plan: &mut Plan, setup: &Setup, whole: &Whole) {
    let lease = setup.lease;
    let card = lease.sandbox.attachment.ifname.as_str();
    let links = if has_peer(setup, whole) { &[card, ours::PEER_LINK][..] } else { &[card][..] };
    let Both { ingress, egress } = lease.bandwidth.rates();
    match whole.shaper {
        Shaper::Ifb => {
            plan.pod.extend(ingress.iter().flat_map(|rate| lead_through(links, Side::Ingress, *rate, setup.mtu)));
            plan.pod.extend(egress.iter().flat_map(|rate| lead_through(links, Side::Egress, *rate, setup.mtu)));
        }
        Shaper::Links => {
            let veth = ours::host_veth(&lease.pod, card);
            plan.host.extend(ingress.filter(|_| has_peer(setup, whole)).map(|rate| bucket(&veth, rate, setup.mtu)));
            plan.pod.extend(egress.iter().flat_map(|rate| links.iter().map(|link| bucket(link, *rate, setup.mtu))));
        }
    }
}

pub(super) fn lead_through(links: &[&str], side: Side, rate: Rate, mtu: u32) -> Vec<Object> {
    let (through, priority) = match side {
        Side::Ingress => (ours::SHAPE_LINKS.ingress, ours::SHAPE_FILTER_PRIORITIES.ingress),
        Side::Egress => (ours::SHAPE_LINKS.egress, ours::SHAPE_FILTER_PRIORITIES.egress),
    };
    let mut objects = vec![
        Object::Ifb(Ifb { name: through.into() }),
        bucket(through, rate, mtu),
        Object::Link(Link { name: through.into(), mtu: Some(mtu) }),
    ];
    let redirect = |link: &&str| Redirect { link: link.to_string(), side, priority, through: through.into() };
    objects.extend(links.iter().map(redirect).map(Object::Redirect));
    objects
}

/// The ENI as the pod's own interface: the VPC is its neighbour.
fn card_inside(pod: &mut Vec<Object>, setup: &Setup) {
    let lease = setup.lease;
    let name = &lease.sandbox.attachment.ifname;
    pod.push(sysctl(format!("net/ipv4/conf/{name}/rp_filter"), "0"));
    // The VPC's routers advertise themselves; addresses and routes are ours to give.
    pod.push(sysctl(format!("net/ipv6/conf/{name}/accept_ra"), "0"));
    if lease.ip.v6.is_some() {
        asking(pod, name);
    }
    pod.push(Object::Link(Link { name: name.clone(), mtu: Some(setup.mtu) }));
    if lease.ip.v6.is_some() {
        pod.push(link_local(lease.eni.mac, name));
    }
    for addr in lease.ip.iter() {
        pod.push(Object::Addr(Addr { net: host_net(addr), link: name.clone() }));
    }
    for addr in lease.ip.iter() {
        let gateway = lease.eni.gateway.iter().find(|gateway| gateway.is_ipv4() == addr.is_ipv4());
        // IPv6 has no use for `onlink` before 4.16.
        pod.extend(gateway.filter(IpAddr::is_ipv6).map(|gateway| {
            let table = ours::further_table(name);
            Object::Route(Route { to: host_net(gateway), via: None, link: name.clone(), table, onlink: false })
        }));
        elsewhere(pod, lease, addr, gateway);
    }
}

/// The second link as the pod sees it: one neighbour, and the routes that lead there.
fn peer_inside(pod: &mut Vec<Object>, setup: &Setup, whole: &Whole) {
    let lease = setup.lease;
    let link = ours::PEER_LINK;
    let mac = ours::host_mac(&ours::host_veth(&lease.pod, &lease.sandbox.attachment.ifname));
    // What comes by this link may come from anywhere.
    pod.push(sysctl("net/ipv4/conf/all/rp_filter".into(), "0"));
    pod.push(sysctl(format!("net/ipv4/conf/{link}/rp_filter"), "0"));
    pod.push(Object::Link(Link { name: link.into(), mtu: Some(setup.mtu) }));
    for addr in lease.ip.iter() {
        let gateway = pod_gateway(&addr);
        pod.push(Object::Addr(Addr { net: host_net(addr), link: link.into() }));
        pod.push(Object::Neigh(Neigh { addr: gateway, mac, link: link.into() }));
        pod.push(route(host_net(gateway), None, link));
    }
    for net in through_node(setup, whole) {
        pod.push(route(net, Some(pod_gateway(&net.addr())), link));
    }
}

/// Every prefix once, of the families that the pod has.
fn through_node(setup: &Setup, whole: &Whole) -> Vec<IpNet> {
    let node = setup.lease.node.iter().map(host_net);
    let mut nets: Vec<IpNet> = Vec::new();
    for net in whole.services.iter().chain(whole.host_stack.iter().copied()).chain(node) {
        if has_family(setup.lease, &net.addr()) && !nets.contains(&net) {
            nets.push(net);
        }
    }
    nets
}

/// What came in by the second link is answered by it, though the pod's routes know better ways.
fn answers(pod: &mut Vec<Object>, lease: &Lease, how: Answers) {
    let link = ours::PEER_LINK;
    if how == Answers::Sockets {
        pod.extend(filter(lease.marker, link));
        pod.push(sysctl("net/ipv4/tcp_fwmark_accept".into(), "1"));
    }
    for addr in lease.ip.iter() {
        match how {
            Answers::Conntrack => pod.extend(tracking(&addr)),
            Answers::Sockets => {
                let version = if addr.is_ipv4() { "ipv4" } else { "ipv6" };
                pod.push(sysctl(format!("net/{version}/fwmark_reflect"), "1"));
            }
        }
        pod.push(default_route(pod_gateway(&addr), link, Some(ours::ANSWER_TABLE)));
        pod.push(Object::Rule(Rule {
            priority: ours::ANSWER_PRIORITY,
            family: Family::of(&addr),
            from: None,
            mark: Some((ours::NODE_MARK, ours::MARK_MASK)),
            iif: None,
            action: RuleAction::Lookup(ours::ANSWER_TABLE),
        }));
    }
}

/// A connection that came in by the second link is marked, and so is all that answers it.
pub fn tracking(addr: &IpAddr) -> [Object; 2] {
    let mark = format!("{:#x}/{:#x}", ours::NODE_MARK, ours::MARK_MASK);
    let new = ["-i", ours::PEER_LINK, "-m", "conntrack", "--ctstate", "NEW", "-j", "CONNMARK", "--set-xmark", &mark];
    let known = ["-m", "connmark", "--mark", &mark, "-j", "MARK", "--set-xmark", &mark];
    [mangle(addr, "PREROUTING", words(&new)), mangle(addr, "OUTPUT", words(&known))]
}

/// What leaves the node's own way and came out of a pod's second link is the node's: its answer would reach the pod by its ENI,
/// from somebody it did not ask. For pods of this node it is not needed, their answers come back as they went.
pub fn masquerade(family: Family) -> Object {
    let mark = format!("{:#x}/{:#x}", ours::NODE_MARK, ours::MARK_MASK);
    let rule = words(&["!", "-o", "cali+", "-m", "mark", "--mark", &mark, "-j", "MASQUERADE"]);
    Object::Iptables(Iptables { family, table: "nat", chain: "POSTROUTING", rule })
}

fn mangle(addr: &IpAddr, chain: &'static str, rule: Vec<String>) -> Object {
    Object::Iptables(Iptables { family: Family::of(addr), table: "mangle", chain, rule })
}

fn words(rule: &[&str]) -> Vec<String> {
    rule.iter().map(|word| word.to_string()).collect()
}

fn route(to: IpNet, via: Option<IpAddr>, link: &str) -> Object {
    Object::Route(Route { to, via, link: link.into(), table: None, onlink: via.is_some() })
}

fn has_family(lease: &Lease, addr: &IpAddr) -> bool {
    lease.ip.iter().any(|ip| ip.is_ipv4() == addr.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath;
    use crate::ip::IpPair;
    use crate::rate::{Limit, Limits};
    use crate::rpc::{Wiring, example_whole};

    const VETH: &str = "cali0d7763386da";

    fn lines(setup: &Setup) -> Vec<String> {
        datapath::pod(setup).to_string().lines().map(String::from).collect()
    }

    fn with(lease: &Lease, change: impl FnOnce(&mut Whole)) -> Lease {
        let mut lease = lease.clone();
        if let Wiring::Whole(whole) = &mut lease.wiring {
            change(whole);
        }
        lease
    }

    #[test]
    fn a_pod_has_the_eni_and_a_second_link_to_the_node() {
        let lease = example_whole();
        assert_eq!(
            lines(&Setup::new(&lease, 1500)),
            [
                "ip link add cali0d7763386da address 4a:f6:c8:c6:ad:15 mtu 1500 \
                 alias 'terway 0123456789abcdef/eth0 default/web-0' \
                 type veth peer name veth1 netns pod address 4a:ef:c7:bc:3a:c8 mtu 1500",
                "ip link set eth1 alias 'terway-eni eth1 0123456789abcdef/eth0 default/web-0' netns pod name eth0 \
                 # 00:16:3e:00:00:01",
                "sysctl -w net.ipv6.conf.cali0d7763386da.accept_ra=0",
                "tc filter replace dev cali0d7763386da ingress priority 2049 bpf direct-action mark 0x7e0/0x7e0",
                "ip link set cali0d7763386da up mtu 1500",
                "ip neigh replace 192.168.32.5 lladdr 4a:ef:c7:bc:3a:c8 dev cali0d7763386da nud permanent",
                "ip route replace 192.168.32.5/32 dev cali0d7763386da table 1000 scope link",
                "pod: sysctl -w net.ipv4.conf.eth0.rp_filter=0",
                "pod: sysctl -w net.ipv6.conf.eth0.accept_ra=0",
                "pod: ip link set eth0 up mtu 1500",
                "pod: ip addr replace 192.168.32.5/32 dev eth0",
                "pod: ip route replace default via 192.168.63.253 dev eth0 onlink",
                "pod: sysctl -w net.ipv4.conf.all.rp_filter=0",
                "pod: sysctl -w net.ipv4.conf.veth1.rp_filter=0",
                "pod: ip link set veth1 up mtu 1500",
                "pod: ip addr replace 192.168.32.5/32 dev veth1",
                "pod: ip neigh replace 169.254.1.1 lladdr 4a:f6:c8:c6:ad:15 dev veth1 nud permanent",
                "pod: ip route replace 169.254.1.1/32 dev veth1 scope link",
                "pod: ip route replace 172.21.0.0/20 via 169.254.1.1 dev veth1 onlink",
                "pod: ip route replace 192.168.0.10/32 via 169.254.1.1 dev veth1 onlink",
                "pod: iptables -t mangle -A PREROUTING -i veth1 -m conntrack --ctstate NEW \
                 -j CONNMARK --set-xmark 0x7e0/0x7e0",
                "pod: iptables -t mangle -A OUTPUT -m connmark --mark 0x7e0/0x7e0 -j MARK --set-xmark 0x7e0/0x7e0",
                "pod: ip route replace default via 169.254.1.1 dev veth1 table 1000 onlink",
                "pod: ip rule add priority 512 from all fwmark 0x7e0/0x7e0 lookup 1000",
            ]
        );
    }

    #[test]
    fn an_ipv6_address_doubles_what_depends_on_the_family_and_nothing_else() {
        let mut lease = with(&example_whole(), |whole| whole.services.v6 = Some("fd21::/112".parse().unwrap()));
        let before = lines(&Setup::new(&lease, 1500));
        lease.ip.v6 = Some("2001:db8::5".parse().unwrap());
        lease.eni.gateway.v6 = Some("2001:db8::fffd".parse().unwrap());
        lease.node.v6 = Some("2001:db8:1::10".parse().unwrap());
        let added: Vec<String> =
            lines(&Setup::new(&lease, 1500)).into_iter().filter(|line| !before.contains(line)).collect();
        assert_eq!(
            added,
            [
                "sysctl -w net.ipv6.conf.cali0d7763386da.disable_ipv6=0",
                "ip neigh replace 2001:db8::5 lladdr 4a:ef:c7:bc:3a:c8 dev cali0d7763386da nud permanent",
                "ip route replace 2001:db8::5/128 dev cali0d7763386da table 1000 scope link",
                "ip addr replace fe80::1/128 dev cali0d7763386da",
                "pod: sysctl -w net.ipv6.conf.eth0.disable_ipv6=0",
                "pod: sysctl -w net.ipv6.conf.eth0.accept_dad=0",
                "pod: ip addr replace fe80::216:3eff:fe00:1/64 dev eth0",
                "pod: ip addr replace 2001:db8::5/128 dev eth0",
                "pod: ip route replace 2001:db8::fffd/128 dev eth0 scope link",
                "pod: ip -6 route replace default via 2001:db8::fffd dev eth0 onlink",
                "pod: ip addr replace 2001:db8::5/128 dev veth1",
                "pod: ip neigh replace fe80::1 lladdr 4a:f6:c8:c6:ad:15 dev veth1 nud permanent",
                "pod: ip route replace fe80::1/128 dev veth1 scope link",
                "pod: ip route replace fd21::/112 via fe80::1 dev veth1 onlink",
                "pod: ip route replace 2001:db8:1::10/128 via fe80::1 dev veth1 onlink",
                "pod: ip6tables -t mangle -A PREROUTING -i veth1 -m conntrack --ctstate NEW \
                 -j CONNMARK --set-xmark 0x7e0/0x7e0",
                "pod: ip6tables -t mangle -A OUTPUT -m connmark --mark 0x7e0/0x7e0 -j MARK --set-xmark 0x7e0/0x7e0",
                "pod: ip -6 route replace default via fe80::1 dev veth1 table 1000 onlink",
                "pod: ip -6 rule add priority 512 from all fwmark 0x7e0/0x7e0 lookup 1000",
            ]
        );
    }

    #[test]
    fn what_the_operator_names_goes_through_the_node_once_and_in_the_pods_families() {
        let host_stack = ["169.254.20.10/32", "192.168.0.10/32", "fd00::10/128"].map(|n| n.parse().unwrap());
        let lease = with(&example_whole(), |whole| whole.host_stack = host_stack.into());
        let routes: Vec<String> =
            lines(&Setup::new(&lease, 1500)).into_iter().filter(|line| line.ends_with("dev veth1 onlink")).collect();
        assert_eq!(
            routes,
            [
                "pod: ip route replace 172.21.0.0/20 via 169.254.1.1 dev veth1 onlink",
                "pod: ip route replace 169.254.20.10/32 via 169.254.1.1 dev veth1 onlink",
                "pod: ip route replace 192.168.0.10/32 via 169.254.1.1 dev veth1 onlink",
            ]
        );
    }

    #[test]
    fn without_a_second_link_there_is_the_eni_and_nothing_on_the_node() {
        let mut lease = example_whole();
        let alone = with(&lease, |whole| whole.alone = true);
        let alone = Setup::new(&alone, 1500);
        let lines_of =
            |setup: &Setup| lines(setup).into_iter().filter(|l| l.contains("veth1") || l.contains(VETH)).count();
        assert_eq!((lines_of(&alone), lines(&alone).len()), (0, 6));
        lease.sandbox.attachment.ifname = "net1".into();
        assert_eq!(lines_of(&Setup::new(&lease, 1500)), 0);
    }

    #[test]
    fn what_a_kernel_lacks_has_another_way() {
        let rule = Lease { marker: Marker::Rule, ..example_whole() };
        assert_eq!(
            lines(&Setup::new(&rule, 1500))[3],
            "iptables -t mangle -A PREROUTING -i cali0d7763386da -j MARK --set-xmark 0x7e0/0x7e0"
        );
        assert_eq!(
            datapath::routes(&rule).to_string().lines().collect::<Vec<_>>(),
            [
                "iptables -t mangle -A PREROUTING -i cali0d7763386da -j MARK --set-xmark 0x7e0/0x7e0",
                "ip route replace 192.168.32.5/32 dev cali0d7763386da table 1000 scope link",
            ]
        );
        let sockets = with(&example_whole(), |whole| whole.answers = Answers::Sockets);
        assert_eq!(
            lines(&Setup::new(&sockets, 1500))[20..],
            [
                "pod: tc filter replace dev veth1 ingress priority 2049 bpf direct-action mark 0x7e0/0x7e0",
                "pod: sysctl -w net.ipv4.tcp_fwmark_accept=1",
                "pod: sysctl -w net.ipv4.fwmark_reflect=1",
                "pod: ip route replace default via 169.254.1.1 dev veth1 table 1000 onlink",
                "pod: ip rule add priority 512 from all fwmark 0x7e0/0x7e0 lookup 1000",
            ]
        );
    }

    fn limited(lease: &Lease) -> Lease {
        let limits = Limits { ingress: Rate::from_bits(10_000_000), egress: Rate::from_bits(1_000_000) };
        Lease { bandwidth: Both::<Limit>::default().ask(limits), ..lease.clone() }
    }

    #[test]
    fn a_limit_holds_for_both_links_together() {
        let lease = example_whole();
        let before = lines(&Setup::new(&lease, 1500));
        let limited = limited(&lease);
        let setup = Setup::new(&limited, 1500);
        let added: Vec<String> = lines(&setup).into_iter().filter(|line| !before.contains(line)).collect();
        let through = [
            "pod: ip link add shape-in type ifb",
            "pod: tc qdisc replace dev shape-in root handle 7e4: tbf rate 10000000bit burst 12500 limit 43750",
            "pod: ip link set shape-in up mtu 1500",
            "pod: tc filter replace dev eth0 ingress priority 2050 u32 match u32 0 0 action mirred egress redirect dev shape-in",
            "pod: tc filter replace dev veth1 ingress priority 2050 u32 match u32 0 0 action mirred egress redirect dev shape-in",
            "pod: ip link add shape-out type ifb",
            "pod: tc qdisc replace dev shape-out root handle 7e4: tbf rate 1000000bit burst 2018 limit 14162",
            "pod: ip link set shape-out up mtu 1500",
            "pod: tc filter replace dev eth0 egress priority 2051 u32 match u32 0 0 action mirred egress redirect dev shape-out",
            "pod: tc filter replace dev veth1 egress priority 2051 u32 match u32 0 0 action mirred egress redirect dev shape-out",
        ];
        assert_eq!(added, through);
        let (make, undo) = datapath::shape(&setup);
        assert_eq!((make.to_string().lines().collect::<Vec<_>>(), undo), (through.to_vec(), Plan::default()));
        let (make, undo) = datapath::shape(&Setup::new(&lease, 1500));
        assert_eq!((make, undo.pod.len()), (Plan::default(), 10));
    }

    #[test]
    fn where_nothing_leads_two_links_through_one_bucket_each_has_its_own() {
        let lease = with(&example_whole(), |whole| whole.shaper = Shaper::Links);
        let before = lines(&Setup::new(&lease, 1500));
        let limited = limited(&lease);
        let added = |setup: &Setup| lines(setup).into_iter().filter(|line| !before.contains(line)).collect::<Vec<_>>();
        let buckets = [
            "tc qdisc replace dev cali0d7763386da root handle 7e4: tbf rate 10000000bit burst 12500 limit 43750",
            "pod: tc qdisc replace dev eth0 root handle 7e4: tbf rate 1000000bit burst 2018 limit 14162",
            "pod: tc qdisc replace dev veth1 root handle 7e4: tbf rate 1000000bit burst 2018 limit 14162",
        ];
        assert_eq!(added(&Setup::new(&limited, 1500)), buckets);
        assert_eq!(added(&Setup::new(&with(&limited, |whole| whole.alone = true), 1500)), buckets[1..2]);
    }

    #[test]
    fn what_leaves_for_other_nodes_is_the_nodes() {
        let node = IpPair { v6: Some("fd00::1".parse().unwrap()), ..IpPair::v4("192.168.0.10".parse().unwrap()) };
        assert_eq!(
            datapath::masquerade(&node).to_string().lines().collect::<Vec<_>>(),
            [
                "iptables -t nat -A POSTROUTING ! -o cali+ -m mark --mark 0x7e0/0x7e0 -j MASQUERADE",
                "ip6tables -t nat -A POSTROUTING ! -o cali+ -m mark --mark 0x7e0/0x7e0 -j MASQUERADE",
            ]
        );
    }
}
