//! Pods with IPv6, alone or beside IPv4: the same paths, and what is IPv6's own.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};
use serde_json::{Value, json};

use super::connectivity::Town;
use super::{events_about, is_bare, node, shown};
use crate::sim::cluster::{Cluster, Member, soon};
use crate::sim::fabric::{Drops, OUTSIDE, OUTSIDE_V6};
use crate::sim::ns::sh;
use crate::sim::traffic::{LOST, Pinger, Place, reaches, seen_as};
use crate::sim::world::{self, World};

/// A town of two nodes; each has an IPv6 address of its own if `speaking`.
fn town(stack: &str, speaking: bool) -> Town {
    let mut world = World::with_nodes(world::config(), 2, "ecs.sim.large");
    (0..2).filter(|_| speaking).for_each(|n| world.speak_v6(n));
    Town::of(world, stack)
}

fn node_v6(town: &Town, n: usize) -> String {
    town.cluster.node(n).addr6.expect("it speaks IPv6").to_string()
}

/// The member's address of IPv6, its last.
fn v6(member: &Member) -> &str {
    member.ips.last().expect("it was added")
}

fn matrix(town: &Town, of: impl Fn(&Member) -> &str, nodes: &[String; 2], outside: &str) {
    let Town { cluster, a, b, c, d } = town;
    let (one, two) = (cluster.node(0), cluster.node(1));
    reaches(&a.pod, "to a pod of the same ENI", &c.pod, of(c));
    reaches(&a.pod, "to a pod of the other ENI", &b.pod, of(b));
    reaches(&b.pod, "back from the other ENI", &a.pod, of(a));
    reaches(&a.pod, "to a pod of the other node", &d.pod, of(d));
    reaches(&d.pod, "from the other node to the second ENI", &b.pod, of(b));
    reaches(&a.pod, "to itself", &a.pod, of(a));
    for member in [a, b] {
        reaches(&member.pod, "to its own node", &one.node, &nodes[0]);
        reaches(&one.node, "from its own node", &member.pod, of(member));
        reaches(&member.pod, "to the other node", &two.node, &nodes[1]);
        reaches(&two.node, "from the other node", &member.pod, of(member));
    }
    reaches(&a.pod, "to the outside", cluster.world.fabric.outside(), outside);
    reaches(&b.pod, "to the outside from the other ENI", cluster.world.fabric.outside(), outside);
    reaches(cluster.world.fabric.outside(), "from the outside", &b.pod, of(b));
    assert_eq!(town.drops(), Drops::default());
}

#[test]
fn pods_of_two_families_reach_everybody_over_both() {
    let town = town("dual", true);
    assert_eq!(town.a.ips.len(), 2, "{:?}", town.a.ips);
    let nodes = [0, 1].map(|n| town.cluster.node(n).addr.to_string());
    matrix(&town, |m| &m.ip, &nodes, OUTSIDE);
    matrix(&town, v6, &[0, 1].map(|n| node_v6(&town, n)), OUTSIDE_V6);
    for member in [&town.a, &town.d] {
        assert_eq!(town.cluster.call_for(member, "CHECK").code, Some(0));
    }
}

#[test]
fn pods_of_ipv6_alone_reach_everybody() {
    let town = town("ipv6", true);
    assert_eq!(town.a.ips.len(), 1);
    assert!(town.a.pod.sh("ip -4 -o addr show dev eth0").is_empty());
    matrix(&town, v6, &[0, 1].map(|n| node_v6(&town, n)), OUTSIDE_V6);
    assert_eq!(town.cluster.call_for(&town.a, "CHECK").code, Some(0));
}

/// The kubelet's probes come from the link-local address that the pod knows as its gateway.
#[test]
fn a_node_without_an_ipv6_address_and_its_pods_reach_each_other_and_pods_the_world() {
    let town = town("ipv6", false);
    let Town { cluster, a, b, d, .. } = &town;
    let one = &cluster.node(0).node;
    reaches(one, "from the node", &a.pod, v6(a));
    let at_a = a.pod.tcp_echo(&format!("[{}]:8080", v6(a)));
    assert_eq!(seen_as(one, &format!("[{}]:8080", v6(a)), &at_a), "fe80::1");
    // From its own address: the node has no route to its link-local one.
    let ready = || !a.pod.sh("ip -6 -o addr show dev eth0 scope link -tentative").is_empty();
    soon("the pod has a link-local address", ready);
    let ping = ["-c1", "-W2", "-I", v6(a), "fe80::1%eth0"];
    assert!(a.pod.output(std::process::Command::new("ping").args(ping)).status.success());
    reaches(&a.pod, "to a pod of the other ENI", &b.pod, v6(b));
    reaches(&a.pod, "to a pod of the other node", &d.pod, v6(d));
    reaches(&b.pod, "to the outside", cluster.world.fabric.outside(), OUTSIDE_V6);
    assert_eq!(town.drops(), Drops::default());
}

#[test]
fn services_lead_to_backends_of_ipv6_too() {
    let town = town("dual", true);
    let Town { cluster, a, c, d, .. } = &town;
    let node = node_v6(&town, 0);
    let mut lines = vec![
        "-N KUBE-SERVICES".to_owned(),
        "-A PREROUTING -j KUBE-SERVICES".into(),
        "-A OUTPUT -j KUBE-SERVICES".into(),
        "-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE".into(),
    ];
    for (service, port, backend) in [("fd00:21::10", 80, a), ("fd00:21::12", 80, d), (node.as_str(), 30080, a)] {
        let to = format!("-d {service} -p tcp --dport {port}");
        if service == node {
            lines.push(format!("-A KUBE-SERVICES {to} -j MARK --or-mark 0x4000"));
        }
        lines.push(format!("-A KUBE-SERVICES {to} -j DNAT --to-destination [{}]:8080", v6(backend)));
    }
    for line in lines {
        cluster.node(0).sh(&format!("ip6tables -w -t nat {line}"));
    }
    let [at_a, at_d] = [a, d].map(|member| member.pod.tcp_echo(&format!("[{}]:8080", v6(member))));
    assert_eq!(seen_as(&c.pod, "[fd00:21::10]:80", &at_a), v6(c), "same ENI");
    assert_eq!(seen_as(&c.pod, "[fd00:21::12]:80", &at_d), v6(c), "other node");
    assert_eq!(seen_as(&cluster.node(0).node, "[fd00:21::12]:80", &at_d), node, "from the node");
    let port = format!("[{node}]:30080");
    assert_eq!(seen_as(&cluster.node(1).node, &port, &at_a), node, "the node's port from the other node");
    assert_eq!(seen_as(cluster.world.fabric.outside(), &port, &at_a), node, "and from the outside");
    assert_eq!(town.drops(), Drops::default());
}

/// Duplicate address detection would take a second and more.
#[test]
fn the_first_packet_after_add_is_answered() {
    for stack in ["dual", "ipv6"] {
        let cluster = node(&json!({"ip_stack": stack, "min_pool_size": 8}));
        soon("addresses are there", || shown(&cluster, "/pool/idle").as_u64() >= Some(8));
        for n in 0..5 {
            let member = cluster.add(0, &format!("p{n}"));
            // The VPC's end of an ENI that was plugged in a moment ago may take its time; one packet is all that is sent.
            let first = member.pod.run(|| Pinger::new(OUTSIDE_V6, None).ping(4 * LOST));
            assert!(first.is_some(), "{stack}: the first packet of pod {n} is lost");
            let addrs = member.pod.sh("ip -6 -o addr show dev eth0 scope global");
            assert!(!addrs.contains("tentative") && addrs.contains("nodad"), "{addrs}");
        }
    }
}

/// The node hears what its pods send to groups only as long as it has a way to these by the link of each.
#[test]
fn a_pod_that_forgot_its_gateway_finds_it_anew() {
    let cluster = node(&json!({"ip_stack": "dual", "min_pool_size": 6}));
    for n in 0..6 {
        let member = cluster.add(0, &format!("p{n}"));
        member.pod.sh("ip -6 neigh del fe80::1 dev eth0 || true; ip -6 -o neigh show to fe80::1 | (! grep PERMANENT)");
        assert!(member.pod.reaches(OUTSIDE_V6), "{}", cluster.node(0).sh("ip -6 route show table local"));
    }
}

/// An advertisement of a router that is none, with a prefix to take addresses from, to all nodes of the link.
fn advertise(from: &Member) {
    from.pod.run(|| {
        let raw = rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
        sockopt::set_ipv6_multicast_hops(&raw, 255).unwrap();
        let mut packet = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
        packet.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
        packet.extend("2001:db8:bad::".parse::<Ipv6Addr>().unwrap().octets());
        let ifindex = sh("ip -o link show dev eth0").split(':').next().and_then(|n| n.parse().ok()).expect("an index");
        let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, ifindex);
        UdpSocket::from(raw).send_to(&packet, all_nodes).unwrap();
    });
}

#[test]
fn a_pod_that_plays_the_router_is_not_believed() {
    for stack in ["ipv4", "dual"] {
        let cluster = node(&json!({"ip_stack": stack}));
        let member = cluster.add(0, "rogue");
        let node = cluster.node(0);
        let believed = || node.sh("ip -6 route show table all; ip -6 -o addr").contains("2001:db8:bad:");
        let heard = || node.sh("grep InRouterAdvertisements /proc/net/snmp6");
        let before = (heard(), node.sh("ip -6 route show default; ip -6 route show proto ra"));
        let own = || member.pod.sh("ip -6 -o addr show dev eth0 scope link");
        if stack == "ipv4" {
            assert_eq!(own(), "", "a pod without IPv6 has a link-local address");
            member.pod.sh("ip addr add fe80::bad/64 dev eth0 nodad");
        }
        soon("the pod has a link-local address", || !own().is_empty() && !own().contains("tentative"));
        soon("the advertisement arrives", || {
            advertise(&member);
            std::thread::sleep(Duration::from_millis(50));
            heard() != before.0
        });
        std::thread::sleep(LOST);
        assert!(!believed(), "{stack}");
        assert_eq!(node.sh("ip -6 route show default; ip -6 route show proto ra"), before.1);
    }
}

#[test]
fn every_link_of_ours_is_deaf_to_advertisements_and_the_nodes_own_is_not() {
    let mut world = World::with_nodes(world::config(), 1, "ecs.sim.large");
    world.speak_v6(0);
    let mut cluster = Cluster::over(world);
    cluster.configure(0, &json!({"ip_stack": "dual"}));
    cluster.start_ready(0);
    let member = cluster.add(0, "a");
    let accepts = |link: &str| cluster.node(0).sh(&format!("cat /proc/sys/net/ipv6/conf/{link}/accept_ra"));
    let veth = cluster.node(0).sh("ls /sys/class/net | grep cali");
    assert_eq!((accepts(veth.trim()).trim(), accepts("eth1").trim(), accepts("eth0").trim()), ("0", "0", "2"));
    assert_eq!(member.pod.sh("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "0");
}

/// A router speaks every few minutes, and the node may just have booted.
#[test]
fn a_node_whose_first_advertisement_is_still_to_come_goes_on_listening() {
    let mut world = World::with_nodes(world::config(), 1, "ecs.sim.large");
    world.speak_v6(0);
    let mut cluster = Cluster::over(world);
    cluster.node(0).sh("ip -6 route del default; ip link add docker0 type bridge");
    cluster.configure(0, &json!({"ip_stack": "dual"}));
    cluster.start_ready(0);
    let values = cluster.node(0).sh("cd /proc/sys/net/ipv6/conf; cat all/forwarding eth0/accept_ra docker0/accept_ra");
    assert_eq!(values.lines().collect::<Vec<_>>(), ["1", "2", "1"]);
}

#[test]
fn a_del_leaves_nothing_of_either_family() {
    let mut cluster = node(&json!({"ip_stack": "dual"}));
    let members = [0, 1].map(|n| cluster.add(0, &format!("p{n}")));
    let routes = |cluster: &Cluster| cluster.node(0).sh("ip -6 route show table 1000 | wc -l");
    assert_eq!(routes(&cluster).trim(), "2");
    let [one, other] = members;
    cluster.del(one);
    assert_eq!(routes(&cluster).trim(), "1");
    cluster.kill(0);
    cluster.del(other);
    assert_eq!(routes(&cluster).trim(), "0");
    cluster.start_ready(0);
    soon("both pairs rest", || cluster.ledger(0, "resting").len() == 2 && is_bare(&cluster));
}

#[test]
fn a_lost_ledger_is_rebuilt_with_both_addresses() {
    let mut cluster = node(&json!({"ip_stack": "dual"}));
    let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    let leases = |cluster: &Cluster| {
        let mut leases = shown(cluster, "/leases").as_array().expect("a list").clone();
        for lease in &mut leases {
            lease["sandbox"]["netns"] = Value::Null;
            lease["seat"] = Value::Null;
            lease["network"] = Value::Null;
        }
        leases
    };
    let before = leases(&cluster);
    cluster.stop(0);
    cluster.node(0).sh("rm -r /run/terway");
    cluster.start_ready(0);
    assert_eq!(leases(&cluster), before);
    assert!(a.pod.ping(v6(&b)).is_some() && a.pod.ping(&b.ip).is_some());
    assert_eq!(cluster.call_for(&a, "CHECK").code, Some(0));
}

#[test]
fn check_names_what_is_missing_of_ipv6_and_the_daemon_mends_what_is_the_nodes() {
    let cluster = node(&json!({"ip_stack": "dual", "orphan_release_after": "1s"}));
    let member = cluster.add(0, "a");
    let node = cluster.node(0);
    let rules = node.sh("ip -6 rule");
    node.sh("ip -6 rule del priority 512; ip -6 rule del priority 2048; ip -6 rule del priority 2049");
    node.sh("sysctl -qw net.ipv6.conf.all.forwarding=0; ip -6 addr flush dev eth1; ip -6 route flush table $(($(cat /sys/class/net/eth1/ifindex)+1000))");
    soon("the rules are there again", || node.sh("ip -6 rule") == rules);
    soon("the pod reaches the outside again", || member.pod.ping(OUTSIDE_V6).is_some());
    // The daemon may be faster, with one of its comparisons.
    soon("CHECK names the address", || {
        member.pod.sh(&format!("ip addr del {}/128 dev eth0", v6(&member)));
        let answer = cluster.call_for(&member, "CHECK");
        answer.code != Some(0) && answer.json()["msg"].as_str().is_some_and(|said| said.contains(v6(&member)))
    });
}

#[test]
fn a_vswitch_without_ipv6_is_named_to_the_node_and_to_the_pod() {
    let mut config = world::config();
    config.vswitches.iter_mut().filter(|v| v.id == world::PODS).for_each(|v| v.cidr6 = None);
    let mut cluster = Cluster::new(config, 1, "ecs.sim.large");
    cluster.configure(0, &json!({"ip_stack": "dual"}));
    cluster.start(0);
    let member = cluster.schedule(0, "a");
    soon("the ADD is refused with the reason", || {
        let answer = cluster.call_for(&member, "ADD");
        assert_ne!(answer.code, Some(0));
        answer.json()["msg"]
            .as_str()
            .is_some_and(|msg| msg.contains("it has no IPv6 CIDR block; switch IPv6 on for it"))
    });
    soon("the node is told", || {
        let told = events_about(&cluster, "node-1");
        told.iter().any(|(reason, words)| reason == "ResourceInvalid" && words.contains("vSwitch vsw-pod is not used"))
    });
}

#[test]
fn an_instance_type_without_ipv6_ends_the_daemon_with_its_name() {
    let mut config = world::config();
    config.instance_types.iter_mut().for_each(|t| t.eni_ipv6_address_quantity = 0);
    let mut cluster = Cluster::new(config, 1, "ecs.sim.large");
    cluster.configure(0, &json!({"ip_stack": "ipv6"}));
    cluster.start(0);
    assert_ne!(cluster.ended(0), Some(0));
    let log = cluster.node(0).sh("cat /var/log/terwayd.log");
    assert!(log.contains("instance type ecs.sim.large can hold no IPv6 address: choose another"), "{log}");
}

#[test]
fn a_node_goes_over_to_two_families_while_its_pods_of_one_stay() {
    let mut cluster = node(&json!({}));
    let old = cluster.add(0, "old");
    cluster.configure(0, &json!({"ip_stack": "dual"}));
    cluster.stop(0);
    cluster.start_ready(0);
    let new = cluster.add(0, "new");
    assert_eq!((old.ips.len(), new.ips.len()), (1, 2));
    assert!(old.pod.ping(&new.ip).is_some() && old.pod.ping(OUTSIDE).is_some());
    assert!(new.pod.ping(OUTSIDE_V6).is_some());
    assert_eq!(cluster.call_for(&old, "CHECK").code, Some(0));
}
