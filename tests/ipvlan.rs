//! Pods that are IPvlan slaves of a shared ENI: the plans on the wire, in a VPC that drops what is forged. Needs a kernel with ipvlan.

use std::net::{IpAddr, UdpSocket};
use std::ops::Deref;
use std::sync::Mutex;
use std::time::Instant;

use terway::datapath::{self, EniSetup, Setup};
use terway::kernel::bpf::hooks::Directory;
use terway::kernel::{self, Kernel, unwire};
use terway::ours;
use terway::plan::{Hook, Object, Plan, Program, Side};
use terway::pod::{Attachment, PodName};
use terway::rate::{Both, Limit, Limits, Rate};
use terway::rpc::{EniLease, Lease, Shaper, Slave, Wiring};
use terway::verdict::Why;

use crate::bpf::policy::{OPEN, guard, guarded};
use crate::sim::fabric::{OUTSIDE, OUTSIDE_V6};
use crate::sim::flood::{error, flood};
use crate::sim::node::Node;
use crate::sim::skip;
use crate::sim::traffic::{Place, reaches, seen_as};
use crate::sim::vpc::{Guest, MTU, NODE, NODE_V6, REMOTE, REMOTE_V6, Vpc, addr, at, node_ips, services};

/// A DNS server on each node, as node-local DNS is.
const LOCAL_DNS: &str = "169.254.20.10";
const LOCAL_DNS_V6: &str = "fd53::10";

struct World {
    vpc: Vpc,
    /// Everybody who was given an address on the node.
    leases: Mutex<Vec<Lease>>,
    parents: Mutex<Vec<u32>>,
}

fn world() -> Option<World> {
    let node = Node::new("node");
    if let Err(e) = node.run(kernel::ipvlan) {
        println!("{e}");
        skip::because("needs ipvlan");
        return None;
    }
    Some(World { vpc: Vpc::new(node), leases: Mutex::default(), parents: Mutex::default() })
}

impl Deref for World {
    type Target = Vpc;

    fn deref(&self) -> &Vpc {
        &self.vpc
    }
}

impl World {
    /// Hot-plugs an ENI with these addresses (by their last part), and makes it ready for slaves.
    fn eni(&self, slot: u8, last: &[u8]) -> EniLease {
        let eni = self.plug(slot, last);
        self.kernel(|kernel| kernel.apply(&self.eni_plan(&eni)).unwrap());
        self.parents.lock().unwrap().push(ours::eni_ifindex(eni.table));
        self.direct();
        eni
    }

    fn eni_plan(&self, eni: &EniLease) -> Plan {
        datapath::parent(&EniSetup { eni, link: &self.link(eni), mtu: MTU, node: &node_ips() })
    }

    fn direct(&self) {
        let mut near = datapath::near(self.leases.lock().unwrap().iter(), &node_ips(), &services());
        self.kernel(|kernel| {
            for parent in &*self.parents.lock().unwrap() {
                let slave = kernel.link(&ours::host_slave(*parent)).unwrap().unwrap();
                near.twins.insert(*parent, slave.ifindex);
            }
        });
        self.node.run(|| Directory::open().and_then(|mut directory| directory.write(&near))).unwrap();
    }

    fn slave(&self, name: &str, eni: &EniLease, last: u8) -> Guest<'_> {
        let host_stack = [LOCAL_DNS, LOCAL_DNS_V6].map(|ip| IpAddr::into(addr(ip))).to_vec();
        let guest = self.pod(name, eni, last, Wiring::Ipvlan(Slave { host_stack, shaper: Shaper::Ifb }));
        guest.apply();
        guest
    }

    fn veth(&self, name: &str, eni: &EniLease, last: u8) -> Guest<'_> {
        let guest = self.pod(name, eni, last, Wiring::Shared);
        guest.apply();
        guest
    }

    fn pod(&self, name: &str, eni: &EniLease, last: u8, wiring: Wiring) -> Guest<'_> {
        let guest = self.vpc.pod(name, eni, last, wiring);
        self.leases.lock().unwrap().push(guest.lease.clone());
        self.direct();
        guest
    }
}

/// Packets that the ENI's link has sent to the VPC.
fn sent(world: &World, eni: &EniLease) -> u64 {
    let link = world.link(eni);
    let text = world.node.sh(&format!("cat /sys/class/net/{link}/statistics/tx_packets"));
    text.trim().parse().unwrap()
}

#[test]
fn a_slave_reaches_everybody_and_is_reached_with_its_own_address() {
    let Some(world) = world() else { return };
    let (one, two) = (world.eni(1, &[5, 6, 7]), world.eni(2, &[8, 9]));
    let (a, b, c) = (world.slave("a", &one, 5), world.slave("b", &one, 6), world.slave("c", &two, 8));
    // Pods with a veth live on beside them.
    let (v, w) = (world.veth("v", &one, 7), world.veth("w", &two, 9));
    for (n, [node, remote, outside]) in [[NODE, REMOTE, OUTSIDE], [NODE_V6, REMOTE_V6, OUTSIDE_V6]].iter().enumerate() {
        reaches(&a.pod, "to the outside", world.fabric.outside(), outside);
        reaches(world.fabric.outside(), "from the outside", &a.pod, a.ips()[n]);
        reaches(&a.pod, "to another node", &world.remote, remote);
        reaches(&world.remote, "from another node", &a.pod, a.ips()[n]);
        reaches(&a.pod, "to its node", &world.node, node);
        reaches(&world.node, "from its node", &a.pod, a.ips()[n]);
        reaches(&a.pod, "to itself", &a.pod, a.ips()[n]);
        for (from, to, what) in [
            (&a, &b, "same ENI"),
            (&a, &c, "other ENI"),
            (&c, &a, "other ENI, back"),
            (&a, &v, "veth, same ENI"),
            (&v, &a, "from a veth, same ENI"),
            (&a, &w, "veth, other ENI"),
            (&w, &a, "from a veth, other ENI"),
        ] {
            reaches(&from.pod, what, &to.pod, to.ips()[n]);
            let server = to.pod.tcp_echo(&at(to.ips()[n], 8080));
            let (own, to) = (from.ips()[n].to_string(), at(to.ips()[n], 8080));
            assert_eq!(seen_as(&from.pod, &to, &server), own, "{what}");
        }
        let server = a.pod.tcp_echo(&at(a.ips()[n], 8081));
        assert_eq!(seen_as(&world.node, &at(a.ips()[n], 8081), &server), *node);
    }
    world.is_calm();
}

/// The node has the same address on the ENI and on its slave of it: whose are answers to what it asks?
#[test]
fn a_veth_beside_slaves_finds_its_gateway_again_and_again() {
    let Some(world) = world() else { return };
    let one = world.eni(1, &[5, 7]);
    let (a, v) = (world.slave("a", &one, 5), world.veth("v", &one, 7));
    let link = world.link(&one);
    for outside in [OUTSIDE, OUTSIDE_V6] {
        for _ in 0..3 {
            world.node.sh(&format!("ip neigh flush dev {link}; ip -6 neigh flush dev {link}"));
            assert!(v.pod.reaches(outside), "{outside}");
            assert!(a.pod.reaches(outside), "{outside}");
        }
    }
    world.is_calm();
}

#[test]
fn between_pods_of_a_node_nothing_leaves_it() {
    let Some(world) = world() else { return };
    let (one, two) = (world.eni(1, &[5, 6]), world.eni(2, &[8]));
    let (a, b, c) = (world.slave("a", &one, 5), world.slave("b", &one, 6), world.slave("c", &two, 8));
    for (to, n) in [(&b, 0), (&b, 1), (&c, 0), (&c, 1)] {
        let ip = to.ips()[n];
        assert!(a.pod.reaches(&ip.to_string()));
        let before = (sent(&world, &one), sent(&world, &two));
        assert_eq!(a.pod.pings(&ip.to_string(), 200).len(), 200);
        let after = (sent(&world, &one), sent(&world, &two));
        // The node itself may ask for a neighbour or report its multicast groups meanwhile.
        assert!(after.0 - before.0 < 50 && after.1 - before.1 < 50, "{ip}: {before:?} {after:?}");
    }
    world.is_calm();
}

#[test]
fn services_and_what_the_operator_leaves_to_the_node_go_through_it() {
    let Some(world) = world() else { return };
    let (one, two) = (world.eni(1, &[5, 6, 7]), world.eni(2, &[8]));
    let (a, b, c) = (world.slave("a", &one, 5), world.slave("b", &one, 6), world.slave("c", &two, 8));
    let v = world.veth("v", &one, 7);
    let (at_a, at_b, at_c, at_v) = (a.serves(8080), b.serves(8080), c.serves(8080), v.serves(8080));
    let remote = (world.remote.tcp_echo("[::]:8080"), world.remote.udp_echo("[::]:8080"));
    world.node.sh(&format!("ip addr add {LOCAL_DNS}/32 dev lo; ip addr add {LOCAL_DNS_V6}/128 dev lo"));
    for (n, net, remote_ip, node, dns) in
        [(0, "172.21.0.1", REMOTE, NODE, LOCAL_DNS), (1, "fd21::1", REMOTE_V6, NODE_V6, LOCAL_DNS_V6)]
    {
        let servers = [
            (1, b.ips()[n], &at_b.0, node.to_string()),
            (2, c.ips()[n], &at_c.0, node.to_string()),
            (3, addr(remote_ip), &remote.0, node.to_string()),
            // Through a Service to itself.
            (4, a.ips()[n], &at_a.0, node.to_string()),
            (5, v.ips()[n], &at_v.0, a.ips()[n].to_string()),
        ];
        for (last, backend, server, seen) in servers {
            let service = at(addr(&format!("{net}{last}")), 80);
            world.leads(&service, &at(backend, 8080));
            assert_eq!(seen_as(&a.pod, &service, server), seen, "{service} -> {backend}");
            assert_eq!(a.pod.udp(&service, 3).len(), 3, "UDP to {service} -> {backend}");
        }
        // The others reach slaves through Services, too.
        let service = at(addr(&format!("{net}1")), 80);
        for (what, from) in [("a veth", &v.pod), ("another ENI", &c.pod)] {
            from.tcp(&service).unwrap_or_else(|e| panic!("{what} to {service}: {e}"));
        }
        world.node.tcp(&service).unwrap_or_else(|e| panic!("the node to {service}: {e}"));
        reaches(&a.pod, "to a server of the node alone", &world.node, dns);
    }
    world.is_calm();
}

/// `externalTrafficPolicy: Local`, host ports: the client's own address reaches the pod, through the node, and is answered through it.
#[test]
fn what_comes_in_by_the_nodes_port_is_answered_by_it_and_the_client_is_seen() {
    let Some(world) = world() else { return };
    let one = world.eni(1, &[5, 6]);
    let (a, b) = (world.slave("a", &one, 5), world.slave("b", &one, 6));
    let at_a = a.serves(8080);
    let outside = world.fabric.outside();
    for (n, node, client, remote) in [(0, NODE, OUTSIDE, REMOTE), (1, NODE_V6, OUTSIDE_V6, REMOTE_V6)] {
        let port = at(addr(node), 30080);
        world.leads(&port, &at(a.ips()[n], 8080));
        assert_eq!(seen_as(outside, &port, &at_a.0), client);
        assert_eq!(outside.udp(&port, 5).len(), 5, "UDP to {port}");
        assert_eq!(seen_as(&world.remote, &port, &at_a.0), remote);
        // The same client by the ENI, while it is known by the node's port.
        let direct = at(a.ips()[n], 8080);
        assert_eq!(seen_as(outside, &direct, &at_a.0), client);
        assert_eq!(outside.udp(&direct, 5).len(), 5);
        // The node's port from a pod beside the one behind it, and from that itself.
        assert_eq!(seen_as(&b.pod, &port, &at_a.0), node);
        assert_eq!(seen_as(&a.pod, &port, &at_a.0), node);
    }
    world.is_calm();
}

#[test]
fn large_datagrams_in_parts_come_through_the_node_and_back() {
    let Some(world) = world() else { return };
    let one = world.eni(1, &[5]);
    let a = world.slave("a", &one, 5);
    world.leads(&at(addr(NODE), 30080), &at(a.ips()[0], 8080));
    let server = a.pod.run(|| std::net::UdpSocket::bind("0.0.0.0:8080").unwrap());
    let client = world.fabric.outside().run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
    }
    let mut room = vec![0; 9000];
    // A short question and a long answer: its later parts bear no port.
    for (question, answer) in [(4, 5000), (6000, 7000)] {
        client.send_to(&vec![1; question], (NODE, 30080)).unwrap();
        let (len, peer) = server.recv_from(&mut room).unwrap();
        assert_eq!((len, peer.ip().to_string()), (question, OUTSIDE.to_string()));
        server.send_to(&vec![2; answer], peer).unwrap();
        let (len, from) = client.recv_from(&mut room).unwrap();
        assert_eq!((len, from.to_string()), (answer, format!("{NODE}:30080")));
    }
    world.is_calm();
}

#[test]
fn an_address_without_a_slave_does_not_go_round_and_round() {
    let Some(world) = world() else { return };
    let one = world.eni(1, &[5]);
    let a = world.slave("a", &one, 5);
    let parent = ours::eni_ifindex(one.table);
    let counted = || -> u64 {
        let text = world.node.sh(&format!("cat /sys/class/net/ipvl_{parent}/statistics/tx_packets"));
        text.trim().parse().unwrap()
    };
    // A sandbox that died, and whose DEL has not come.
    a.pod.sh("ip link del eth0");
    let before = counted();
    assert!(world.fabric.outside().ping(&a.ips()[0].to_string()).is_none());
    assert!(world.node.ping(&a.ips()[0].to_string()).is_none());
    let round = counted() - before;
    assert!(round <= 20, "{round} packets by the node's slave");
    a.apply();
    assert!(world.node.reaches(&a.ips()[0].to_string()));
}

#[test]
fn a_check_finds_what_was_spoilt_and_another_apply_mends_it() {
    let Some(world) = world() else { return };
    let one = world.eni(1, &[5]);
    let a = world.slave("a", &one, 5);
    let parent = ours::eni_ifindex(one.table);
    let netns = a.pod.netns().display().to_string();
    for (damage, found) in [
        ("ip addr flush dev eth0", "addr 192.168.32.5/19 dev eth0: absent".to_string()),
        ("ip route del default", "route default via 192.168.63.253 dev eth0 onlink: absent".into()),
        ("ip link set eth0 down", "state of eth0: down, not up".into()),
        ("ip link set eth0 mtu 1400", "mtu of eth0: 1400, not 1500".into()),
        ("ip link set eth0 alias mine", "alias of eth0: 'mine', not 'terway c-a/eth0 default/a'".into()),
        ("ip link del eth0", format!("link eth0 in {netns}: absent")),
        ("ip neigh del 192.168.0.10 dev eth0", "neigh 192.168.0.10 dev eth0: absent".into()),
    ] {
        a.pod.sh(damage);
        assert_eq!(a.check(), found, "{damage}");
        a.apply();
        assert!(world.node.reaches(&a.ips()[0].to_string()), "after {damage}");
        assert!(a.pod.reaches(OUTSIDE), "after {damage}");
    }
    // On the node, and of its slave.
    world.node.sh("ip route flush table 1000");
    assert_eq!(a.check(), format!("route 192.168.32.5/32 dev ipvl_{parent} table 1000 scope link: absent"));
    a.apply();
    let plan = world.eni_plan(&one);
    let seen = || world.kernel(|kernel| kernel.check(&plan)).unwrap().map_or("clean".into(), |d| d.to_string());
    let link = world.link(&one);
    for (damage, found) in [
        (format!("ip link del ipvl_{parent}"), format!("link ipvl_{parent}: absent")),
        (format!("ip link set ipvl_{parent} arp on"), format!("arp of ipvl_{parent}: on, not off")),
        (format!("ip link set ipvl_{parent} type ipvlan mode l3"), format!("mode of ipvl_{parent}: 1, not 0")),
        (format!("ip addr flush dev ipvl_{parent}"), format!("addr 192.168.0.10/32 dev ipvl_{parent}: absent")),
        (format!("tc qdisc del dev {link} clsact"), format!("filter priority 2052 dev {link} egress: absent")),
    ] {
        world.node.sh(&damage);
        assert_eq!(seen(), found, "{damage}");
        world.kernel(|kernel| kernel.restore(&plan, None, false)).unwrap();
        world.direct();
        a.apply();
        assert_eq!(seen(), "clean", "{damage}");
        assert!(world.node.reaches(&a.ips()[0].to_string()), "after {damage}");
    }
    world.is_calm();
}

#[test]
fn nothing_is_left_of_a_slave_and_of_an_eni_that_had_some() {
    let Some(world) = world() else { return };
    let show = |place: &dyn Fn(&str) -> String| {
        place("ip -o link | sed 's/@.*//; s/^[0-9]*//' | cut -d' ' -f2; ip route show table 1000; ip rule")
    };
    let one = world.eni(1, &[5]);
    let before = show(&|line| world.node.sh(line));
    let a = world.slave("a", &one, 5);
    // Said again it changes nothing.
    let links = a.pod.sh("ip -o link");
    a.apply();
    assert_eq!(a.pod.sh("ip -o link"), links);
    a.undo();
    assert_eq!(show(&|line| world.node.sh(line)), before);
    assert!(!a.pod.sh("ip -o link").contains("eth0"));
    a.undo();
    // What DEL does without daemon and lease, also of a slave that nobody has signed yet.
    let attachment = &a.lease.sandbox.attachment;
    for alias in ["terway c-a/eth0 default/a", ""] {
        a.apply();
        a.pod.sh(&format!("ip link set eth0 alias '{alias}'"));
        world.node.run(|| unwire(Some(a.pod.netns()), Some("cali0"), attachment)).unwrap();
        assert_eq!(show(&|line| world.node.sh(line)), before);
        assert!(!a.pod.sh("ip -o link").contains("eth0"));
    }
    // Another attachment's stays.
    a.apply();
    let other = Attachment { container: "c-other".into(), ifname: "eth0".into() };
    world.node.run(|| unwire(Some(a.pod.netns()), Some("cali0"), &other)).unwrap();
    assert_eq!(a.check(), "clean");
    // A process that remembers nothing finds it.
    let seen = world.node.run(kernel::slaves);
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (&seen[0].attachment, seen[0].ip, seen[0].parent),
        (attachment, a.lease.ip, ours::eni_ifindex(one.table))
    );
    assert_eq!(seen[0].pod, Some(PodName::new("default", "a")));
    world.node.run(|| kernel::take_out(a.pod.netns(), attachment)).unwrap();
    assert!(!a.pod.sh("ip -o link").contains("eth0"));
    world.kernel(|kernel| kernel.undo(&world.eni_plan(&one))).unwrap();
    let left = world.node.sh("ip -o link; tc qdisc; ip rule; ip route show table all");
    assert!(!left.contains("ipvl_") && !left.contains("clsact") && !left.contains("fwmark 0x20"), "{left}");
}

/// Of an ENI's links there need be none but its own: this runs where the kernel has no ipvlan, too.
#[test]
fn a_purge_takes_what_is_on_the_enis_and_nobody_elses() {
    let node = Node::new("node");
    node.sh("ip link add eth1 type veth peer ipvl_x; ip link add ipvl_3 type veth");
    node.sh("tc qdisc add dev ipvl_x clsact; tc filter add dev ipvl_x egress pref 2052 bpf bytecode '1,6 0 0 0'");
    let (link, side, priority) = ("eth1".into(), Side::Egress, ours::HOOK_PRIORITY);
    let hook = Object::Hook(Hook { link, side, priority, program: Program::Leaving, class: None });
    node.run(|| Kernel::host().unwrap().apply(&Plan { host: vec![hook], pod: Vec::new() })).unwrap();
    let filters = |link: &str| node.sh(&format!("tc filter show dev {link} egress"));
    assert!(filters("eth1").contains("terway_leaving") && !filters("ipvl_x").is_empty());
    node.sh(concat!("set -e\n", include_str!("../packaging/purge")));
    assert_eq!(filters("eth1"), "");
    assert!(!filters("ipvl_x").is_empty());
    assert_eq!(node.sh("ip -o link | grep -c ipvl_3 || true").trim(), "0");
    assert_eq!(node.sh("ls -d /sys/fs/bpf/terway /run/terway /var/lib/terway 2>/dev/null || true"), "");
}

#[test]
fn what_is_in_the_pod_and_not_ours_stays_and_one_of_another_eni_is_made_anew() {
    let Some(world) = world() else { return };
    let (one, two) = (world.eni(1, &[5]), world.eni(2, &[8]));
    let a = world.pod("a", &one, 5, Wiring::Ipvlan(Slave::default()));
    a.pod.sh("ip link add eth0 type ifb");
    let refused = a.try_apply().unwrap_err().to_string();
    assert!(refused.contains("interface eth0 exists already"), "{refused}");
    a.pod.sh("ip link del eth0");
    a.apply();
    let mut b = world.pod("b", &two, 8, Wiring::Ipvlan(Slave::default()));
    b.pod = a.pod;
    b.apply();
    assert!(b.pod.reaches(OUTSIDE));
    // An address exists once among the slaves of an ENI.
    let c = world.pod("c", &two, 8, Wiring::Ipvlan(Slave::default()));
    let taken = c.try_apply().unwrap_err().to_string();
    assert!(taken.contains("192.168.32.8/19"), "{taken}");
    world.is_calm();
}

/// Never more than 2 % too much in any second. Nor too little, on a quiet machine: where a guest's timers come late by more than the bucket
/// holds, it loses some of the rate, and one good second must do.
fn keeps_to(limit: u64, what: &str, flood: impl Fn() -> Vec<u64>) {
    let mut best = 0;
    for _ in 0..3 {
        let seconds = flood();
        println!("{what}: {:+.2} % {seconds:?}", error(&seconds, limit));
        assert!(seconds.iter().all(|bits| bits * 100 <= limit * 102), "{what}: {seconds:?}");
        best = best.max(*seconds.iter().max().unwrap());
        if seconds.iter().all(|bits| bits * 100 >= limit * 98) {
            return;
        }
    }
    assert!(best * 100 >= limit * 80, "{what}: {best} at best");
}

#[test]
fn a_slave_keeps_to_its_bandwidth_both_ways() {
    let Some(world) = world() else { return };
    let one = world.eni(1, &[5, 6]);
    let (mut a, b) = (world.slave("a", &one, 5), world.slave("b", &one, 6));
    let limit = 5_000_000;
    a.limit(Limits { ingress: Rate::from_bits(limit), egress: Rate::from_bits(limit) });
    a.apply();
    let (a_ip, b_ip) = (a.ips()[0].to_string(), b.ips()[0].to_string());
    let offered = limit * 3 / 2;
    keeps_to(limit, "to another node", || flood(&a.pod, &world.remote, REMOTE, offered, 2));
    keeps_to(limit, "from another node", || flood(&world.remote, &a.pod, &a_ip, offered, 2));
    keeps_to(limit, "to its node", || flood(&a.pod, &world.node, NODE, offered, 2));
    keeps_to(limit, "from its node", || flood(&world.node, &a.pod, &a_ip, offered, 2));
    keeps_to(limit, "to a pod of its ENI", || flood(&a.pod, &b.pod, &b_ip, offered, 2));
    keeps_to(limit, "from a pod of its ENI", || flood(&b.pod, &a.pod, &a_ip, offered, 2));
    a.limit(Limits::default());
    let limited = Lease { bandwidth: Both::<Limit>::default(), ..a.lease.clone() };
    let (make, undo) = datapath::shape(&Setup::new(&limited, MTU));
    a.kernel(|kernel| kernel.undo(&undo).and_then(|()| kernel.apply(&make))).unwrap();
    assert_eq!(a.check(), "clean");
    assert!(!a.pod.sh("ip -o link; tc qdisc").contains("shape-"), "{}", a.pod.sh("tc qdisc"));
    world.is_calm();
}

/// `make bench` reads what this writes.
#[test]
#[ignore = "figures, no test"]
fn round_trips() {
    const ROUNDS: usize = 60;
    const TRIPS: usize = 60;
    let Some(world) = world() else { return };
    let slave = world.slave("a", &world.eni(1, &[1]), 1);
    let two = world.plug(2, &[2]);
    world.ready(&two, &node_ips());
    let veth = world.veth("b", &two, 2);
    let open = |place: &dyn Fn() -> UdpSocket| {
        let (near, far) = (place(), world.remote.run(|| UdpSocket::bind((REMOTE, 0)).unwrap()));
        near.connect(far.local_addr().unwrap()).unwrap();
        far.connect(near.local_addr().unwrap()).unwrap();
        (near, far)
    };
    let bind = |ip: &str| UdpSocket::bind((ip, 0)).unwrap();
    let pairs = [
        ("slave", open(&|| slave.pod.run(|| bind("192.168.32.1")))),
        ("veth", open(&|| veth.pod.run(|| bind("192.168.32.2")))),
        ("host", open(&|| world.node.run(|| bind(NODE)))),
    ];
    let trip = |(near, far): &(UdpSocket, UdpSocket)| {
        let mut word = [7; 8];
        let start = Instant::now();
        near.send(&word).unwrap();
        far.recv(&mut word).unwrap();
        far.send(&word).unwrap();
        near.recv(&mut word).unwrap();
        start.elapsed()
    };
    let mut times = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        for (n, (_, pair)) in pairs.iter().enumerate() {
            let mut trips: Vec<_> = (0..TRIPS).map(|_| trip(pair)).collect();
            trips.sort();
            // The first finds neighbours and the like.
            times[n].extend((round > 0).then(|| trips[TRIPS / 2]));
        }
    }
    for ((name, _), mut times) in pairs.iter().zip(times) {
        times.sort();
        println!("round trip {name} {} ns", times[ROUNDS / 2].as_nanos());
    }
}

#[test]
fn policies_hold_on_slaves() {
    let Some(world) = world() else { return };
    let policy = guard(&world.node, &[("default/a", 3), ("default/b", 4)], &OPEN);
    let (one, two) = (world.eni(1, &[5, 6, 7]), world.eni(2, &[8]));
    let rate = Rate::from_bits(100_000_000);
    let seated = |name: &str, eni: &EniLease, last, seat| {
        let wiring = Wiring::Ipvlan(Slave { host_stack: Vec::new(), shaper: Shaper::Ifb });
        let mut guest = world.pod(name, eni, last, wiring);
        guest.lease.seat = Some(seat);
        guest.limit(Limits { ingress: rate, egress: rate });
        guest.apply();
        guest
    };
    let (a, b) = (seated("a", &one, 5, 3), seated("b", &two, 8, 4));
    let (c, v) = (world.slave("c", &one, 6), world.veth("v", &one, 7));
    for (n, outside) in [OUTSIDE, OUTSIDE_V6].iter().enumerate() {
        for guest in [&a, &b] {
            guarded(world.fabric.outside(), "by the VPC", &guest.pod, guest.ips()[n]);
            guarded(&world.node, "from its node", &guest.pod, guest.ips()[n]);
            guarded(&c.pod, "from a slave", &guest.pod, guest.ips()[n]);
            guarded(&v.pod, "from a veth", &guest.pod, guest.ips()[n]);
            reaches(&guest.pod, "to a slave", &c.pod, c.ips()[n]);
            reaches(&guest.pod, "to a veth", &v.pod, v.ips()[n]);
            reaches(&guest.pod, "to the outside", world.fabric.outside(), outside);
        }
        guarded(&a.pod, "between them", &b.pod, b.ips()[n]);
    }
    let counts = world.node.run(|| policy.counts()).unwrap();
    assert_eq!(counts.dropped(), counts.of(Why::Rules)[0], "{counts:?}");
    world.is_calm();
}
