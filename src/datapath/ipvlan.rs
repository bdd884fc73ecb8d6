//! Shared ENI with IPvlan L2: the pod's interface is a slave of the ENI, and the VPC its neighbour.
//!
//! Slaves of one ENI reach each other inside the driver, those of another as if the VPC had brought their packets. Node and pods reach
//! each other by the node's own slave. What only the node can do with a pod's packets (Services, pods with a veth, answers to what came
//! in through it) is led there as they leave by the ENI.

use std::net::IpAddr;

use ipnet::IpNet;

use super::exclusive::lead_through;
use super::policy_route::{asking, deaf};
use super::shape::bucket;
use super::{End, EniSetup, Setup, elsewhere, pod_gateway, police, sysctl};
use crate::ip::{IpPair, NetPair, host_net};
use crate::near::{Is, Near};
use crate::ours;
use crate::plan::{Addr, Hook, HostSlave, Link, Neigh, Object, Plan, Program, Route, Side, Slave};
use crate::rate::Both;
use crate::rpc::{self, Lease, Shaper, Wiring};

pub fn pod(setup: &Setup, slave: &rpc::Slave) -> Plan {
    let lease = setup.lease;
    let parent = ours::eni_ifindex(lease.eni.table);
    let name = &lease.sandbox.attachment.ifname;
    let mut plan = Plan::default();
    plan.host.push(Object::Slave(Slave {
        name: name.clone(),
        newborn: ours::newborn(&lease.pod, name),
        parent,
        mac: lease.eni.mac,
        mtu: setup.mtu,
        alias: ours::alias(&lease.sandbox.attachment, &lease.pod),
    }));
    // The VPC's routers advertise themselves to every slave; addresses and routes are ours to give.
    deaf(&mut plan.pod, name);
    if lease.ip.v6.is_some() {
        plan.pod.push(sysctl("net/ipv6/conf/lo/disable_ipv6".into(), "0"));
        asking(&mut plan.pod, name);
    }
    police(&mut plan.pod, lease, name, End::Inner);
    shape(&mut plan.pod, setup, slave.shaper);
    plan.pod.push(Object::Link(Link { name: name.clone(), mtu: Some(setup.mtu) }));
    for addr in lease.ip.iter() {
        inside(&mut plan.pod, lease, addr);
        plan.host.push(route_to_pod(addr, &ours::host_slave(parent)));
    }
    plan
}

/// What the pod receives waits on a link of its own: at the slave itself, packets wait as they leave.
fn shape(pod: &mut Vec<Object>, setup: &Setup, how: Shaper) {
    let name = setup.lease.sandbox.attachment.ifname.as_str();
    let Both { ingress, egress } = setup.lease.bandwidth.rates();
    if how == Shaper::Ifb {
        pod.extend(ingress.iter().flat_map(|rate| lead_through(&[name], Side::Ingress, *rate, setup.mtu)));
    }
    pod.extend(egress.map(|rate| bucket(name, rate, setup.mtu)));
}

/// The VPC as the pod sees it, and its node: a neighbour with the MAC that all slaves share, so that the driver hands the packet to
/// the node's.
fn inside(pod: &mut Vec<Object>, lease: &Lease, addr: IpAddr) {
    let link = &lease.sandbox.attachment.ifname;
    pod.push(Object::Addr(Addr { net: beside(lease, addr), link: link.clone() }));
    let node = speaks_as(&lease.node, &addr);
    pod.push(Object::Neigh(Neigh { addr: node, mac: lease.eni.mac, link: link.clone() }));
    let table = ours::further_table(link);
    pod.push(Object::Route(Route { to: host_net(node), via: None, link: link.clone(), table, onlink: false }));
    let gateway = lease.eni.gateway.iter().find(|gateway| gateway.is_ipv4() == addr.is_ipv4());
    elsewhere(pod, lease, addr, gateway);
}

/// In IPv4 all of the vSwitch is beside the pod: the VPC answers ARP for everybody. Whether it answers so in IPv6 nobody says: there
/// the gateway leads everywhere, and so it does by a further interface, since the first is beside the vSwitch already.
fn beside(lease: &Lease, addr: IpAddr) -> IpNet {
    let first = ours::further_table(&lease.sandbox.attachment.ifname).is_none();
    let cidr = lease.eni.cidr.v4.filter(|_| addr.is_ipv4() && first);
    cidr.map_or(host_net(addr), |cidr| IpNet::new_assert(addr, cidr.prefix_len()))
}

/// The address by which pods know their node. Of IPv6 it need not have one of its own.
fn speaks_as(node: &IpPair, to: &IpAddr) -> IpAddr {
    let own = node.iter().find(|own| own.is_ipv4() == to.is_ipv4());
    own.unwrap_or_else(|| pod_gateway(to))
}

fn route_to_pod(addr: IpAddr, link: &str) -> Object {
    Object::Route(Route {
        to: host_net(addr),
        via: None,
        link: link.into(),
        table: Some(ours::PODS_TABLE),
        onlink: false,
    })
}

/// What an ENI with slaves needs besides. Pods with a veth go on beside them: frames for whom no slave is are the node's.
pub fn parent(setup: &EniSetup) -> Vec<Object> {
    let parent = ours::eni_ifindex(setup.eni.table);
    let name = ours::host_slave(parent);
    let hook = |link: &str, side, program| {
        Object::Hook(Hook { link: link.into(), side, priority: ours::HOOK_PRIORITY, program, class: None })
    };
    let mut host = vec![Object::HostSlave(HostSlave { name: name.clone(), parent, mtu: setup.mtu })];
    host.push(sysctl(format!("net/ipv4/conf/{name}/rp_filter"), "0"));
    deaf(&mut host, &name);
    if setup.eni.gateway.v6.is_some() {
        asking(&mut host, &name);
    }
    host.push(hook(&name, Side::Ingress, Program::Arriving));
    host.push(hook(&name, Side::Egress, Program::Entering));
    for gateway in setup.eni.gateway.iter() {
        let net = host_net(speaks_as(setup.node, &gateway));
        host.push(Object::Addr(Addr { net, link: name.clone() }));
    }
    host.push(hook(setup.link, Side::Egress, Program::Leaving));
    host
}

/// What the programs on ENIs know: whom of this node a packet may be for that leaves by an ENI, and what is the node's to deal with.
/// A pod that the old Terway has wired is reached through the VPC, as ever.
pub fn near<'a>(leases: impl Iterator<Item = &'a Lease>, node: &IpPair, services: &NetPair) -> Near {
    let mut near = Near { inward: services.iter().collect(), ..Near::default() };
    for lease in leases.filter(|lease| lease.untouched().is_none()) {
        let is = match &lease.wiring {
            Wiring::Ipvlan(slave) => {
                near.inward.extend(&slave.host_stack);
                Is::Slave { eni: ours::eni_ifindex(lease.eni.table), mac: lease.eni.mac }
            }
            _ => Is::Pod,
        };
        near.addrs.extend(lease.ip.iter().map(|addr| (addr, is)));
    }
    near.addrs.extend(node.iter().map(|addr| (addr, Is::Node)));
    near
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath;
    use crate::rate::{Limit, Limits, Rate};
    use crate::rpc::{example_lease, example_slave, example_whole};

    fn lines(lease: &Lease) -> Vec<String> {
        datapath::pod(&Setup::new(lease, 1500)).to_string().lines().map(String::from).collect()
    }

    #[test]
    fn a_pod_is_a_slave_with_the_vpc_for_a_neighbour_and_a_way_to_its_node() {
        let lease = example_slave();
        assert_eq!(
            lines(&lease),
            [
                "ip link add link if3 name eth0 netns pod mtu 1500 alias 'terway 0123456789abcdef/eth0 default/web-0' \
                 type ipvlan mode l2 bridge # 00:16:3e:00:00:01",
                "ip route replace 192.168.32.5/32 dev ipvl_3 table 1000 scope link",
                "pod: sysctl -w net.ipv6.conf.eth0.accept_ra=0",
                "pod: ip link set eth0 up mtu 1500",
                "pod: ip addr replace 192.168.32.5/19 dev eth0",
                "pod: ip neigh replace 192.168.0.10 lladdr 00:16:3e:00:00:01 dev eth0 nud permanent",
                "pod: ip route replace 192.168.0.10/32 dev eth0 scope link",
                "pod: ip route replace default via 192.168.63.253 dev eth0 onlink",
            ]
        );
        let undone = datapath::routes(&lease).to_string();
        assert_eq!(undone, "ip route replace 192.168.32.5/32 dev ipvl_3 table 1000 scope link\n");
    }

    #[test]
    fn an_ipv6_address_stands_alone_and_knows_its_node_by_any_name() {
        let mut lease = example_slave();
        let before = lines(&lease);
        lease.ip.v6 = Some("2001:db8::5".parse().unwrap());
        lease.eni.gateway.v6 = Some("2001:db8::fffd".parse().unwrap());
        lease.eni.cidr.v6 = Some("2001:db8::/64".parse().unwrap());
        let added = |lease: &Lease| lines(lease).into_iter().filter(|line| !before.contains(line)).collect::<Vec<_>>();
        let by_name = |node: &str| {
            [
                "ip route replace 2001:db8::5/128 dev ipvl_3 table 1000 scope link".to_string(),
                "pod: sysctl -w net.ipv6.conf.lo.disable_ipv6=0".into(),
                "pod: sysctl -w net.ipv6.conf.eth0.disable_ipv6=0".into(),
                "pod: sysctl -w net.ipv6.conf.eth0.accept_dad=0".into(),
                "pod: ip addr replace 2001:db8::5/128 dev eth0".into(),
                format!("pod: ip neigh replace {node} lladdr 00:16:3e:00:00:01 dev eth0 nud permanent"),
                format!("pod: ip route replace {node}/128 dev eth0 scope link"),
                "pod: ip -6 route replace default via 2001:db8::fffd dev eth0 onlink".into(),
            ]
        };
        assert_eq!(added(&lease), by_name("fe80::1"));
        lease.node.v6 = Some("2001:db8:1::10".parse().unwrap());
        assert_eq!(added(&lease), by_name("2001:db8:1::10"));
    }

    #[test]
    fn what_a_slave_receives_waits_on_a_link_of_its_own() {
        let mut lease = example_slave();
        let before = lines(&lease);
        let rate = Rate::from_bits(10_000_000);
        lease.bandwidth = Both::<Limit>::default().ask(Limits { ingress: rate, egress: rate });
        let added: Vec<String> = lines(&lease).into_iter().filter(|line| !before.contains(line)).collect();
        let egress = "pod: tc qdisc replace dev eth0 root handle 7e4: tbf rate 10000000bit burst 12500 limit 43750";
        assert_eq!(
            added,
            [
                "pod: ip link add shape-in type ifb",
                "pod: tc qdisc replace dev shape-in root handle 7e4: tbf rate 10000000bit burst 12500 limit 43750",
                "pod: ip link set shape-in up mtu 1500",
                "pod: tc filter replace dev eth0 ingress priority 2050 u32 match u32 0 0 action mirred egress redirect dev shape-in",
                egress,
            ]
        );
        lease.wiring = Wiring::Ipvlan(rpc::Slave { shaper: Shaper::Links, ..Default::default() });
        let added: Vec<String> = lines(&lease).into_iter().filter(|line| !before.contains(line)).collect();
        assert_eq!(added, [egress]);
    }

    #[test]
    fn an_eni_with_slaves_has_one_of_the_nodes_and_three_programs_besides() {
        let lease = example_lease();
        let setup = EniSetup { eni: &lease.eni, link: "eth1", mtu: 1500, node: &lease.node };
        let (plain, parent) = (datapath::eni(&setup).to_string(), datapath::parent(&setup).to_string());
        let added: Vec<&str> = parent.strip_prefix(&plain).unwrap().lines().collect();
        assert_eq!(
            added,
            [
                "ip link add link if3 name ipvl_3 mtu 1500 up arp off type ipvlan mode l2 bridge",
                "sysctl -w net.ipv4.conf.ipvl_3.rp_filter=0",
                "sysctl -w net.ipv6.conf.ipvl_3.accept_ra=0",
                "tc filter replace dev ipvl_3 ingress priority 2052 bpf direct-action terway_arriving",
                "tc filter replace dev ipvl_3 egress priority 2052 bpf direct-action terway_entering",
                "ip addr replace 192.168.0.10/32 dev ipvl_3",
                "tc filter replace dev eth1 egress priority 2052 bpf direct-action terway_leaving",
            ]
        );
    }

    #[test]
    fn the_programs_know_every_pod_of_the_node_but_those_that_are_left_alone() {
        let other = |mut lease: Lease, last: u8| {
            lease.ip = IpPair::v4([192, 168, 32, last].into());
            lease
        };
        let why = String::from("it is on IPvlan");
        let heritage = Some(rpc::Heritage::Untouched { why });
        let leases = [
            example_slave(),
            other(example_lease(), 6),
            other(example_whole(), 7),
            Lease { heritage, ..other(example_lease(), 8) },
        ];
        let services = NetPair::v4("172.21.0.0/20".parse().unwrap());
        let near = near(leases.iter(), &leases[0].node, &services);
        let of = |text: &str| near.addrs.get(&text.parse::<IpAddr>().unwrap()).copied();
        assert_eq!(of("192.168.32.5"), Some(Is::Slave { eni: 3, mac: leases[0].eni.mac }));
        assert_eq!(["192.168.32.6", "192.168.32.7"].map(of), [Some(Is::Pod), Some(Is::Pod)]);
        assert_eq!((of("192.168.32.8"), of("192.168.0.10")), (None, Some(Is::Node)));
        let inward: Vec<String> = near.inward.iter().map(ToString::to_string).collect();
        assert_eq!(inward, ["169.254.20.10/32", "172.21.0.0/20"]);
    }
}
