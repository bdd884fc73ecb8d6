//! Shared ENI with policy routing: a veth per pod, one table for all local pods, one rule per ENI chosen by a mark.
//!
//! The kernel walks the rules one by one for every packet it forwards, so their number must not grow with the pods.

use std::net::IpAddr;

use super::shape::bucket;
use super::{EniSetup, Setup, default_route, family, pod_gateway};
use crate::ip::{Mac, host_net};
use crate::ours;
use crate::plan::{Addr, Filter, FilterAction, Link, Neigh, Object, Plan, Route, Rule, RuleAction, Sysctl, Veth};
use crate::pod::{Attachment, PodName};
use crate::rate::Both;
use crate::rpc::{Heritage, Lease, Marker};

pub fn pod(setup: &Setup) -> Plan {
    let lease = setup.lease;
    let ifname = &lease.sandbox.attachment.ifname;
    let veth = leased_veth(lease, setup.mtu);
    let mut plan = Plan::default();
    plan.host.push(Object::Veth(veth.clone()));
    mark(&mut plan.host, setup, &veth.name);
    let Both { ingress, egress } = lease.bandwidth.rates();
    plan.host.extend(ingress.map(|rate| bucket(&veth.name, rate, setup.mtu)));
    plan.pod.extend(egress.map(|rate| bucket(ifname, rate, setup.mtu)));
    let up = |name: &String| Object::Link(Link { name: name.clone(), mtu: Some(setup.mtu) });
    plan.host.push(up(&veth.name));
    plan.pod.push(up(ifname));
    for addr in lease.ip.iter() {
        inside(&mut plan.pod, addr, ifname, &veth);
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

/// One that the old Terway has made keeps its MACs: the pod knows them.
fn leased_veth(lease: &Lease, mtu: u32) -> Veth {
    let veth = veth(&lease.pod, &lease.sandbox.attachment, mtu);
    match lease.heritage {
        Some(Heritage::Adopted { host_mac, pod_mac }) => Veth { mac: host_mac, peer_mac: pod_mac, ..veth },
        _ => veth,
    }
}

/// The pod's own view: one address, and one neighbour that answers for everything else.
fn inside(pod: &mut Vec<Object>, addr: IpAddr, ifname: &str, veth: &Veth) {
    let gateway = pod_gateway(&addr);
    pod.push(Object::Addr(Addr { net: host_net(addr), link: ifname.into() }));
    pod.push(Object::Neigh(Neigh { addr: gateway, mac: veth.mac, link: ifname.into() }));
    pod.push(default_route(gateway, ifname, None));
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
        family: family(&addr),
        from: Some(host_net(addr)),
        mark: None,
        iif: None,
        action: RuleAction::Lookup(setup.lease.eni.table),
    })
}

pub fn eni(setup: &EniSetup) -> Plan {
    let table = setup.eni.table;
    let mut host = vec![
        Object::Sysctl(Sysctl { path: format!("net/ipv4/conf/{}/rp_filter", setup.link), value: "0".into() }),
        Object::Link(Link { name: setup.link.into(), mtu: Some(setup.mtu) }),
    ];
    for addr in setup.node.iter() {
        host.push(Object::Addr(Addr { net: host_net(addr), link: setup.link.into() }));
    }
    for gateway in setup.eni.gateway.iter() {
        let rule = Rule {
            priority: ours::FROM_POD_PRIORITY,
            family: family(&gateway),
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
    use crate::datapath;
    use crate::ip::IpPair;
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
                "ip neigh replace 2001:db8::5 lladdr 4a:ef:c7:bc:3a:c8 dev cali0d7763386da nud permanent",
                "ip route replace 2001:db8::5/128 dev cali0d7763386da table 1000 scope link",
                "pod: ip addr replace 2001:db8::5/128 dev eth0",
                "pod: ip neigh replace fe80::1 lladdr 4a:f6:c8:c6:ad:15 dev eth0 nud permanent",
                "pod: ip -6 route replace default via fe80::1 dev eth0 onlink",
            ]
        );
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
        let line = |marker| printed(&Lease { marker, ..example_lease() })[1].clone();
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
                "ip link set eth1 up mtu 1500",
                "ip addr replace 192.168.0.10/32 dev eth1",
                "ip route replace default via 192.168.63.253 dev eth1 table 1003 onlink",
                "ip rule add priority 2048 from all fwmark 0x20/0x7e0 lookup 1003",
                "ip rule add priority 2049 from all iif eth1 blackhole",
            ]
        );
    }

    #[test]
    fn a_node_forwards_and_looks_for_pods_first() {
        assert_eq!(
            datapath::node().to_string().lines().collect::<Vec<_>>(),
            [
                "sysctl -w net.ipv4.ip_forward=1",
                "sysctl -w net.ipv4.conf.all.rp_filter=0",
                "sysctl -w net.ipv4.conf.default.rp_filter=0",
                "ip rule add priority 512 from all lookup 1000",
            ]
        );
    }
}
