//! Shared ENI with policy routing: a veth per pod, one table for all local pods, one rule per ENI chosen by a mark.
//!
//! The kernel walks the rules one by one for every packet it forwards, so their number must not grow with the pods.

use std::net::IpAddr;

use ipnet::Ipv6Net;

use super::shape::bucket;
use super::{End, EniSetup, Setup, default_route, elsewhere, pod_gateway, police, sysctl};
use crate::ip::{Family, Mac, host_net};
use crate::ours;
use crate::plan::{Addr, Filter, FilterAction, Link, Neigh, Object, Plan, Route, Rule, RuleAction, Veth};
use crate::pod::{Attachment, PodName};
use crate::rate::Both;
use crate::rpc::{Heritage, Lease, Marker};

pub fn pod(setup: &Setup) -> Plan {
    let lease = setup.lease;
    let ifname = &lease.sandbox.attachment.ifname;
    let veth = leased_veth(lease, setup.mtu);
    let mut plan = Plan::default();
    plan.host.push(Object::Veth(veth.clone()));
    deaf(&mut plan.host, &veth.name);
    heard(&mut plan.host, lease, &veth.name);
    if lease.ip.v6.is_some() {
        speak_v6(&mut plan.pod, ifname);
    }
    police(&mut plan.host, lease, &veth.name, End::Outer);
    mark(&mut plan.host, setup, &veth.name);
    let Both { ingress, egress } = lease.bandwidth.rates();
    plan.host.extend(ingress.map(|rate| bucket(&veth.name, rate, setup.mtu)));
    plan.pod.extend(egress.map(|rate| bucket(ifname, rate, setup.mtu)));
    let up = |name: &String| Object::Link(Link { name: name.clone(), mtu: Some(setup.mtu) });
    plan.host.push(up(&veth.name));
    plan.pod.push(up(ifname));
    for addr in lease.ip.iter() {
        inside(&mut plan.pod, lease, addr, &veth);
        outside(&mut plan.host, addr, &veth.name, veth.peer_mac);
    }
    plan
}

pub fn veth(pod: &PodName, attachment: &Attachment, mtu: u32) -> Veth {
    let name = ours::host_veth(pod, &attachment.ifname);
    Veth {
        mac: ours::host_mac(&name),
        mtu,
        alias: ours::alias(attachment, pod),
        peer: attachment.ifname.clone(),
        peer_mac: ours::pod_mac(&name),
        name,
    }
}

/// No router speaks on this link: whoever advertises himself as one is not believed. Said before the link comes up.
pub(super) fn deaf(objects: &mut Vec<Object>, link: &str) {
    objects.push(sysctl(format!("net/ipv6/conf/{link}/accept_ra"), "0"));
}

/// The node may have switched IPv6 off for links of which it knows no use.
pub(super) fn heard(host: &mut Vec<Object>, lease: &Lease, veth: &str) {
    if lease.ip.v6.is_some() {
        host.push(sysctl(format!("net/ipv6/conf/{veth}/disable_ipv6"), "0"));
    }
}

/// Some runtimes switch IPv6 off where they know of no use for it.
fn speak_v6(pod: &mut Vec<Object>, ifname: &str) {
    deaf(pod, ifname);
    pod.extend(["lo", ifname].map(|link| sysctl(format!("net/ipv6/conf/{link}/disable_ipv6"), "0")));
}

/// One that the old Terway has made keeps its MACs: the pod knows them.
fn leased_veth(lease: &Lease, mtu: u32) -> Veth {
    let veth = veth(&lease.pod, &lease.sandbox.attachment, mtu);
    match lease.heritage {
        Some(Heritage::Adopted { host_mac, pod_mac }) => Veth { mac: host_mac, peer_mac: pod_mac, ..veth },
        _ => veth,
    }
}

/// The pod's own view: one address, and one neighbour that answers for everything else.
fn inside(pod: &mut Vec<Object>, lease: &Lease, addr: IpAddr, veth: &Veth) {
    let (gateway, link) = (pod_gateway(&addr), &veth.peer);
    pod.push(Object::Addr(Addr { net: host_net(addr), link: link.clone() }));
    pod.push(Object::Neigh(Neigh { addr: gateway, mac: veth.mac, link: link.clone() }));
    elsewhere(pod, lease, addr, Some(gateway));
}

/// How the node reaches the pod; the neighbour spares the first packet an ARP round.
pub fn outside(host: &mut Vec<Object>, addr: IpAddr, veth: &str, pod_mac: Mac) {
    host.push(Object::Neigh(Neigh { addr, mac: pod_mac, link: veth.into() }));
    host.push(Object::Route(Route {
        to: host_net(addr),
        via: None,
        link: veth.into(),
        table: Some(ours::PODS_TABLE),
        onlink: false,
    }));
    // What the node sends from here bears this address where the node has no IPv6 address of its own, and the pod knows the
    // way to it.
    if addr.is_ipv6() {
        host.push(Object::Addr(Addr { net: host_net(ours::POD_GATEWAY_V6.into()), link: veth.into() }));
    }
}

/// What makes the pod's packets leave by its ENI.
fn mark(host: &mut Vec<Object>, setup: &Setup, veth: &str) {
    let (value, mask) = (ours::mark(setup.lease.eni.slot), ours::MARK_MASK);
    let action = match setup.lease.marker {
        Marker::Bpf => FilterAction::BpfMark(value, mask),
        Marker::Skbedit => FilterAction::SkbeditMark(value, mask),
        Marker::Rule => return host.extend(setup.lease.ip.iter().map(|addr| from_rule(setup, addr))),
    };
    host.push(Object::Filter(Filter { link: veth.into(), priority: ours::MARK_FILTER_PRIORITY, action }));
}

/// The old Terway's way, for kernels where nothing can set a mark.
fn from_rule(setup: &Setup, addr: IpAddr) -> Object {
    Object::Rule(Rule {
        priority: ours::FROM_POD_PRIORITY,
        family: Family::of(&addr),
        from: Some(host_net(addr)),
        mark: None,
        iif: None,
        action: RuleAction::Lookup(setup.lease.eni.table),
    })
}

/// Makes a link ready to ask for its IPv6 gateway at once: no wait until nobody else is known to have its own address.
pub(super) fn asking(objects: &mut Vec<Object>, link: &str) {
    objects.extend(["disable_ipv6", "accept_dad"].map(|name| sysctl(format!("net/ipv6/conf/{link}/{name}"), "0")));
}

/// The address that the link asks from. It gives itself one, and a flush would take it away for good.
pub(super) fn link_local(mac: Mac, link: &str) -> Object {
    let net = Ipv6Net::new_assert(mac.link_local(), 64);
    Object::Addr(Addr { net: net.into(), link: link.into() })
}

pub fn eni(setup: &EniSetup) -> Plan {
    let table = setup.eni.table;
    let mut host = vec![sysctl(format!("net/ipv4/conf/{}/rp_filter", setup.link), "0")];
    deaf(&mut host, setup.link);
    if setup.eni.gateway.v6.is_some() {
        asking(&mut host, setup.link);
    }
    host.push(Object::Link(Link { name: setup.link.into(), mtu: Some(setup.mtu) }));
    if let Some(addr) = setup.node.v4 {
        host.push(Object::Addr(Addr { net: host_net(addr.into()), link: setup.link.into() }));
    }
    if setup.eni.gateway.v6.is_some() {
        host.push(link_local(setup.eni.mac, setup.link));
    }
    for gateway in setup.eni.gateway.iter() {
        let rule = Rule {
            priority: ours::FROM_POD_PRIORITY,
            family: Family::of(&gateway),
            from: None,
            mark: Some((ours::mark(setup.eni.slot), ours::MARK_MASK)),
            iif: None,
            action: RuleAction::Lookup(table),
        };
        let stray = Rule {
            priority: ours::STRAY_PRIORITY,
            mark: None,
            iif: Some(setup.link.into()),
            action: RuleAction::Blackhole,
            ..rule.clone()
        };
        host.push(default_route(gateway, setup.link, Some(table)));
        host.push(Object::Rule(rule));
        host.push(Object::Rule(stray));
    }
    Plan { host, pod: Vec::new() }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::datapath::{self, NodeSetup};
    use crate::ip::{IpPair, Stack};
    use crate::rate::{Limit, Limits, Rate};
    use crate::rpc::example_lease;

    fn printed(lease: &Lease) -> Vec<String> {
        pod(&Setup::new(lease, 1500)).to_string().lines().map(String::from).collect()
    }

    #[test]
    fn a_pod_is_a_veth_a_route_a_mark_and_one_neighbour_on_either_side() {
        assert_eq!(
            printed(&example_lease()),
            [
                "ip link add cali0d7763386da address 4a:f6:c8:c6:ad:15 mtu 1500 \
                 alias 'terway 0123456789abcdef/eth0 default/web-0' \
                 type veth peer name eth0 netns pod address 4a:ef:c7:bc:3a:c8 mtu 1500",
                "sysctl -w net.ipv6.conf.cali0d7763386da.accept_ra=0",
                "tc filter replace dev cali0d7763386da ingress priority 2049 bpf direct-action mark 0x20/0x7e0",
                "ip link set cali0d7763386da up mtu 1500",
                "ip neigh replace 192.168.32.5 lladdr 4a:ef:c7:bc:3a:c8 dev cali0d7763386da nud permanent",
                "ip route replace 192.168.32.5/32 dev cali0d7763386da table 1000 scope link",
                "pod: ip link set eth0 up mtu 1500",
                "pod: ip addr replace 192.168.32.5/32 dev eth0",
                "pod: ip neigh replace 169.254.1.1 lladdr 4a:f6:c8:c6:ad:15 dev eth0 nud permanent",
                "pod: ip route replace default via 169.254.1.1 dev eth0 onlink",
            ]
        );
    }

    #[test]
    fn an_ipv6_address_doubles_what_depends_on_the_family_and_nothing_else() {
        let mut lease = example_lease();
        let before = printed(&lease);
        lease.ip.v6 = Some("2001:db8::5".parse().unwrap());
        let added: Vec<String> = printed(&lease).into_iter().filter(|line| !before.contains(line)).collect();
        assert_eq!(
            added,
            [
                "sysctl -w net.ipv6.conf.cali0d7763386da.disable_ipv6=0",
                "ip neigh replace 2001:db8::5 lladdr 4a:ef:c7:bc:3a:c8 dev cali0d7763386da nud permanent",
                "ip route replace 2001:db8::5/128 dev cali0d7763386da table 1000 scope link",
                "ip addr replace fe80::1/128 dev cali0d7763386da",
                "pod: sysctl -w net.ipv6.conf.eth0.accept_ra=0",
                "pod: sysctl -w net.ipv6.conf.lo.disable_ipv6=0",
                "pod: sysctl -w net.ipv6.conf.eth0.disable_ipv6=0",
                "pod: ip addr replace 2001:db8::5/128 dev eth0",
                "pod: ip neigh replace fe80::1 lladdr 4a:f6:c8:c6:ad:15 dev eth0 nud permanent",
                "pod: ip -6 route replace default via fe80::1 dev eth0 onlink",
            ]
        );
    }

    #[test]
    fn an_operators_routes_lead_where_the_default_route_of_their_family_does() {
        let mut lease = example_lease();
        let before = printed(&lease);
        lease.routes = vec!["10.1.0.0/16".parse().unwrap(), "fd01::/64".parse().unwrap()];
        let plan = datapath::pod(&Setup::new(&lease, 1500)).to_string();
        let added: Vec<&str> = plan.lines().filter(|line| !before.iter().any(|l| l == line)).collect();
        assert_eq!(added, ["pod: ip route replace 10.1.0.0/16 via 169.254.1.1 dev eth0 onlink"]);
    }

    #[test]
    fn a_pod_taken_over_keeps_its_macs_and_one_left_alone_has_no_plan() {
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        let adopted = Some(Heritage::Adopted { host_mac: mac(1), pod_mac: mac(2) });
        let ours = printed(&example_lease());
        let mac_of_ours = |line: &String| {
            line.replace("4a:f6:c8:c6:ad:15", "02:00:00:00:00:01").replace("4a:ef:c7:bc:3a:c8", "02:00:00:00:00:02")
        };
        let theirs: Vec<String> = ours.iter().map(mac_of_ours).collect();
        assert_eq!(printed(&Lease { heritage: adopted, ..example_lease() }), theirs);
        let untouched = Some(Heritage::Untouched { why: "it is on IPvlan".into() });
        let lease = Lease { heritage: untouched, ..example_lease() };
        assert_eq!(datapath::pod(&Setup::new(&lease, 1500)), Plan::default());
        assert_eq!(datapath::routes(&lease), Plan::default());
    }

    #[test]
    fn the_way_of_marking_changes_one_line() {
        let line = |marker| printed(&Lease { marker, ..example_lease() })[2].clone();
        let filter = "tc filter replace dev cali0d7763386da ingress priority 2049";
        assert_eq!(line(Marker::Bpf), format!("{filter} bpf direct-action mark 0x20/0x7e0"));
        assert_eq!(line(Marker::Skbedit), format!("{filter} u32 match u32 0 0 action skbedit mark 0x20/0x7e0"));
        assert_eq!(line(Marker::Rule), "ip rule add priority 2048 from 192.168.32.5/32 lookup 1003");
    }

    #[test]
    fn a_limit_is_a_bucket_where_the_packets_of_its_direction_leave() {
        let mut lease = example_lease();
        let before = printed(&lease);
        let limits = Limits { ingress: Rate::from_bits(10_000_000), egress: Rate::from_bits(1_000_000) };
        lease.bandwidth = Both::<Limit>::default().ask(limits);
        let added: Vec<String> = printed(&lease).into_iter().filter(|line| !before.contains(line)).collect();
        let buckets = [
            "tc qdisc replace dev cali0d7763386da root handle 7e4: tbf rate 10000000bit burst 12500 limit 43750",
            "pod: tc qdisc replace dev eth0 root handle 7e4: tbf rate 1000000bit burst 2018 limit 14162",
        ];
        assert_eq!(added, buckets);
        // Nothing passes unshaped: the bucket is there before its link is up.
        let lines = printed(&lease);
        let position = |of: &str| lines.iter().position(|line| line.contains(of)).unwrap();
        assert!(position(buckets[0]) < position("ip link set cali0d7763386da up"));
        assert!(position(buckets[1]) < position("pod: ip link set eth0 up"));
        let (make, undo) = datapath::shape(&Setup::new(&lease, 1500));
        assert_eq!((make.to_string().lines().collect::<Vec<_>>(), undo), (buckets.to_vec(), Plan::default()));
        lease.bandwidth.egress = Limit::default();
        let (make, undo) = datapath::shape(&Setup::new(&lease, 1500));
        assert_eq!(make.to_string().lines().collect::<Vec<_>>(), buckets[..1]);
        assert_eq!(
            undo.to_string(),
            "pod: tc qdisc replace dev eth0 root handle 7e4: tbf rate 1000bit burst 1518 limit 13662\n"
        );
    }

    #[test]
    fn an_eni_has_a_table_a_rule_for_its_mark_and_one_against_strays() {
        let lease = example_lease();
        let node = IpPair::v4(Ipv4Addr::new(192, 168, 0, 10));
        let plan = eni(&EniSetup { eni: &lease.eni, link: "eth1", mtu: 1500, node: &node });
        assert_eq!(
            plan.to_string().lines().collect::<Vec<_>>(),
            [
                "sysctl -w net.ipv4.conf.eth1.rp_filter=0",
                "sysctl -w net.ipv6.conf.eth1.accept_ra=0",
                "ip link set eth1 up mtu 1500",
                "ip addr replace 192.168.0.10/32 dev eth1",
                "ip route replace default via 192.168.63.253 dev eth1 table 1003 onlink",
                "ip rule add priority 2048 from all fwmark 0x20/0x7e0 lookup 1003",
                "ip rule add priority 2049 from all iif eth1 blackhole",
            ]
        );
    }

    #[test]
    fn an_eni_with_ipv6_has_a_second_set_and_asks_for_its_gateway_at_once() {
        let mut lease = example_lease();
        let node = IpPair { v6: Some("2001:db8::10".parse().unwrap()), ..IpPair::default() };
        let lines =
            |lease: &Lease| eni(&EniSetup { eni: &lease.eni, link: "eth1", mtu: 1500, node: &node }).to_string();
        let before = lines(&lease);
        lease.eni.gateway.v6 = Some("2001:db8::fffd".parse().unwrap());
        let after = lines(&lease);
        assert_eq!(
            after.lines().filter(|line| !before.lines().any(|old| old == *line)).collect::<Vec<_>>(),
            [
                "sysctl -w net.ipv6.conf.eth1.disable_ipv6=0",
                "sysctl -w net.ipv6.conf.eth1.accept_dad=0",
                "ip addr replace fe80::216:3eff:fe00:1/64 dev eth1",
                "ip -6 route replace default via 2001:db8::fffd dev eth1 table 1003 onlink",
                "ip -6 rule add priority 2048 from all fwmark 0x20/0x7e0 lookup 1003",
                "ip -6 rule add priority 2049 from all iif eth1 blackhole",
            ]
        );
    }

    #[test]
    fn a_node_with_ipv6_pods_forwards_both_and_keeps_its_advertised_route() {
        let asked = NodeSetup { asked: vec!["eth0".into()], ..NodeSetup::default() };
        let plan = datapath::node(&asked).to_string();
        assert_eq!(plan.lines().skip(5).collect::<Vec<_>>(), ["sysctl -w net.ipv4.conf.eth0.rp_filter=2"]);
        let setup = NodeSetup { stack: Stack::Dual, advertised: vec!["eth0".into()], ..NodeSetup::default() };
        let plan = datapath::node(&setup).to_string();
        assert_eq!(
            plan.lines().skip(5).collect::<Vec<_>>(),
            [
                "sysctl -w net.ipv6.conf.eth0.accept_ra=2",
                "sysctl -w net.ipv6.conf.all.forwarding=1",
                "ip -6 rule add priority 512 from all lookup 1000",
                "ip -6 rule add priority 2047 from all fwmark 0x7e0/0x7e0 lookup 254",
            ]
        );
        let answers = datapath::answers(Stack::Dual).to_string();
        let rule = "-t mangle -A PREROUTING -i cali+ -m conntrack --ctdir REPLY --ctstate DNAT -j MARK --set-xmark 0x7e0/0x7e0";
        assert_eq!(answers, format!("iptables {rule}\nip6tables {rule}\n"));
        assert_eq!(
            datapath::answers_of_ipvs(Stack::V4).to_string().lines().collect::<Vec<_>>(),
            [
                "iptables -t mangle -A INPUT ! -i cali+ -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x7e0/0x7e0",
                "iptables -t mangle -A PREROUTING -i cali+ -m conntrack --ctdir REPLY -m connmark --mark 0x7e0/0x7e0 \
                 -j MARK --set-xmark 0x7e0/0x7e0",
            ]
        );
    }

    #[test]
    fn a_node_forwards_and_looks_for_pods_first() {
        assert_eq!(
            datapath::node(&NodeSetup::default()).to_string().lines().collect::<Vec<_>>(),
            [
                "sysctl -w net.ipv4.ip_forward=1",
                "sysctl -w net.ipv4.conf.all.rp_filter=0",
                "sysctl -w net.ipv4.conf.default.rp_filter=0",
                "ip rule add priority 512 from all lookup 1000",
                "ip rule add priority 2047 from all fwmark 0x7e0/0x7e0 lookup 254",
            ]
        );
    }
}
