//! A pod with an ENI of its own: the plan on the wire, in a VPC that drops what is forged; and the way of the card, there and back.

use std::ops::Deref;
use std::path::Path;

use terway::datapath::{self, Setup};
use terway::ip::IpPair;
use terway::kernel::{self, unwire};
use terway::ours;
use terway::plan::Plan;
use terway::pod::Attachment;
use terway::rate::{Limits, Rate};
use terway::rpc::{Answers, EniLease, Lease, Marker, Shaper, Whole, Wiring};
use terway::verdict::Why;

use crate::bpf::policy::{OPEN, guard, guarded};
use crate::sim::cluster::soon;
use crate::sim::fabric::{OUTSIDE, OUTSIDE_V6};
use crate::sim::flood::{between, flood, keeps_to};
use crate::sim::node::Node;
use crate::sim::traffic::{Place, reaches, seen_as};
use crate::sim::vpc::{GATEWAY, Guest, MTU, NODE, NODE_V6, REMOTE, REMOTE_V6, Vpc, addr, at, services};

struct World {
    vpc: Vpc,
    marker: Marker,
    answers: Answers,
}

impl Deref for World {
    type Target = Vpc;

    fn deref(&self) -> &Vpc {
        &self.vpc
    }
}

impl World {
    fn new() -> World {
        World::with(Marker::Bpf, Answers::Conntrack)
    }

    fn with(marker: Marker, answers: Answers) -> World {
        World { vpc: Vpc::new(Node::new("node")), marker, answers }
    }

    /// A pod that will have a new ENI to itself.
    fn guest(&self, name: &str, n: u8) -> Guest<'_> {
        let eni = self.plug(n, &[n]);
        let (home, services, answers) = (self.link(&eni), services(), self.answers);
        let (shaper, host_stack) = (Shaper::Ifb, Vec::new());
        self.pod(name, n, &eni, Wiring::Whole(Whole { home, services, answers, shaper, host_stack, alone: false }))
    }

    /// A pod that shares a new ENI with nobody yet.
    fn shared(&self, name: &str, n: u8) -> Guest<'_> {
        let eni = self.plug(n, &[n]);
        self.ready(&eni, &IpPair::v4(NODE.parse().unwrap()));
        let guest = self.pod(name, n, &eni, Wiring::Shared);
        guest.apply();
        guest
    }

    fn pod(&self, name: &str, n: u8, eni: &EniLease, wiring: Wiring) -> Guest<'_> {
        let mut guest = self.vpc.pod(name, eni, n, wiring);
        guest.amend(|lease| lease.marker = self.marker);
        guest
    }

    fn links(&self) -> String {
        self.node.sh("ip -o link")
    }
}

impl Guest<'_> {
    fn unwire(&self, netns: Option<&Path>) {
        let veth = ours::host_veth(&self.lease.pod, "eth0");
        self.vpc.node.run(|| unwire(netns, Some(&veth), &self.lease.sandbox.attachment)).unwrap();
    }

    fn ip(&self) -> String {
        self.lease.ip.v4.unwrap().to_string()
    }

    fn mac(&self) -> String {
        self.lease.eni.mac.to_string()
    }

    /// The ENI is on the node again as it was: under its name, down and bare.
    fn is_home_as(&self, name: &str) {
        assert_eq!(self.vpc.node.ifname(&self.mac()).as_deref(), Some(name));
        let seen = self.vpc.node.sh(&format!("ip -d addr show {name}; tc qdisc show dev {name}"));
        assert!(!seen.contains("inet") && !seen.contains("alias") && !seen.contains(",UP"), "{seen}");
        assert!(!seen.contains("clsact"), "{seen}");
    }
}

fn whole(lease: &mut Lease) -> &mut Whole {
    let Wiring::Whole(whole) = &mut lease.wiring else { unreachable!("it is made so") };
    whole
}

fn everybody(world: &World) {
    let (x, y, s) = (world.guest("x", 5), world.guest("y", 6), world.shared("s", 7));
    x.apply();
    y.apply();
    for (x_ip, y_ip, s_ip, node, remote, outside) in [
        (x.ips()[0], y.ips()[0], s.ips()[0], NODE, REMOTE, OUTSIDE),
        (x.ips()[1], y.ips()[1], s.ips()[1], NODE_V6, REMOTE_V6, OUTSIDE_V6),
    ] {
        reaches(&x.pod, "to the outside", world.fabric.outside(), outside);
        reaches(world.fabric.outside(), "from the outside", &x.pod, x_ip);
        reaches(&x.pod, "to another node", &world.remote, remote);
        reaches(&world.remote, "from another node", &x.pod, x_ip);
        reaches(&x.pod, "to its node", &world.node, node);
        reaches(&world.node, "from its node", &x.pod, x_ip);
        reaches(&x.pod, "to a pod with an ENI of its own", &y.pod, y_ip);
        // The ENI of the other one is set up for IPv4 alone.
        if s_ip.is_ipv4() {
            reaches(&x.pod, "to a pod of a shared ENI", &s.pod, s_ip);
        }
        reaches(&s.pod, "from a pod of a shared ENI", &x.pod, x_ip);
        reaches(&x.pod, "to itself", &x.pod, x_ip);
    }
    world.is_calm();
}

#[test]
fn a_pod_with_an_eni_of_its_own_reaches_everybody_and_is_reached() {
    everybody(&World::new());
}

#[test]
fn so_it_does_where_tc_cannot_mark() {
    everybody(&World::with(Marker::Rule, Answers::Conntrack));
}

#[test]
fn services_lead_to_every_kind_of_backend_and_back() {
    let world = World::new();
    let (x, y, s) = (world.guest("x", 5), world.guest("y", 6), world.shared("s", 7));
    x.apply();
    y.apply();
    let remote = (world.remote.tcp_echo("[::]:8080"), world.remote.udp_echo("[::]:8080"));
    let (at_y, at_s) = (y.serves(8080), s.serves(8080));
    for (n, [service_s, service_y, service_r], remote_ip, node) in [
        (0, ["172.21.0.10", "172.21.0.11", "172.21.0.12"], REMOTE, NODE),
        (1, ["fd21::10", "fd21::11", "fd21::12"], REMOTE_V6, NODE_V6),
    ] {
        let services = [(service_s, s.ips()[n]), (service_y, y.ips()[n]), (service_r, addr(remote_ip))];
        for (service, backend) in services {
            world.leads(&at(addr(service), 80), &at(backend, 8080));
        }
        let [of_s, of_y, of_r] = [service_s, service_y, service_r].map(|service| at(addr(service), 80));
        let own = x.ips()[n].to_string();
        assert_eq!(seen_as(&x.pod, &of_s, &at_s.0), own, "a pod of this node, shared ENI");
        assert_eq!(seen_as(&x.pod, &of_y, &at_y.0), own, "a pod of this node with an ENI of its own");
        assert_eq!(seen_as(&x.pod, &of_r, &remote.0), node, "a backend elsewhere");
        for service in [&of_s, &of_y, &of_r] {
            assert_eq!(x.pod.udp(service, 3).len(), 3, "UDP to {service}");
        }
        assert_eq!(seen_as(&s.pod, &of_y, &at_y.0), s.ips()[n].to_string(), "from a pod of a shared ENI");
    }
    world.is_calm();
}

fn node_port(world: &World) -> Guest<'_> {
    let x = world.guest("x", 5);
    x.apply();
    world.leads(&format!("{NODE}:30080"), &format!("{}:8080", x.ip()));
    world.leads(&format!("[{NODE_V6}]:30080"), &format!("[{}]:8080", x.ips()[1]));
    x
}

/// `externalTrafficPolicy: Local`: the client's own address reaches the pod, through the node, and is answered through it.
#[test]
fn what_comes_in_by_the_nodes_port_is_answered_by_it_and_the_client_is_seen() {
    let world = World::new();
    let x = node_port(&world);
    let at_x = x.serves(8080);
    let outside = world.fabric.outside();
    for (port, client, node) in
        [(format!("{NODE}:30080"), OUTSIDE, REMOTE), (format!("[{NODE_V6}]:30080"), OUTSIDE_V6, REMOTE_V6)]
    {
        assert_eq!(seen_as(outside, &port, &at_x.0), client);
        assert_eq!(outside.udp(&port, 5).len(), 5, "UDP to {port}");
        assert_eq!(seen_as(&world.remote, &port, &at_x.0), node);
    }
    // The same client by the ENI, while it is known by the node's port.
    assert_eq!(seen_as(outside, &format!("{}:8080", x.ip()), &at_x.0), OUTSIDE);
    assert_eq!(outside.udp(&format!("{}:8080", x.ip()), 5).len(), 5);
    world.is_calm();
}

#[test]
fn without_iptables_in_the_pod_tcp_is_answered_all_the_same() {
    let world = World::with(Marker::Bpf, Answers::Sockets);
    let x = node_port(&world);
    let at_x = x.serves(8080);
    assert_eq!(seen_as(world.fabric.outside(), &format!("{NODE}:30080"), &at_x.0), OUTSIDE);
    assert_eq!(seen_as(world.fabric.outside(), &format!("[{NODE_V6}]:30080"), &at_x.0), OUTSIDE_V6);
    assert!(x.pod.reaches(OUTSIDE));
}

#[test]
fn the_eni_goes_in_and_comes_home_under_its_own_name() {
    let world = World::new();
    let x = world.guest("x", 5);
    let before = world.node.sh("ip -o link | sed 's/@.*//; s/^[0-9]*//'; ip route show table all; ip rule");
    for _ in 0..2 {
        x.apply();
        // Said again it changes nothing: the same links, in the same places.
        let links = (world.links(), x.pod.sh("ip -o link"));
        x.apply();
        assert_eq!((world.links(), x.pod.sh("ip -o link")), links);
        assert!(x.pod.sh("ip -o link show eth0").contains(&x.mac()));
        assert_eq!(world.node.ifname(&x.mac()), None);
        x.undo();
        x.is_home_as("eth1");
        assert_eq!(world.node.sh("ip -o link | sed 's/@.*//; s/^[0-9]*//'; ip route show table all; ip rule"), before);
        assert_eq!(x.pod.sh("ip rule; iptables -w -t mangle -S | grep -c -- -A || true").matches("7e0").count(), 0);
        x.undo();
        x.is_home_as("eth1");
    }
}

#[test]
fn a_veth_made_ahead_of_the_lease_becomes_the_second_link() {
    let world = World::new();
    let x = world.guest("x", 5);
    let veth = datapath::veth(&x.lease.pod, &x.lease.sandbox.attachment, MTU);
    x.kernel(|kernel| {
        kernel.begin(&veth);
        kernel.apply(&x.plan).unwrap();
    });
    assert_eq!(x.check(), "clean");
    assert!(x.pod.reaches(OUTSIDE) && world.node.reaches(&x.ip()));
}

#[test]
fn without_a_second_link_the_pod_has_the_vpc_and_no_node() {
    let world = World::new();
    let mut x = world.guest("x", 5);
    x.amend(|lease| whole(lease).alone = true);
    let veth = datapath::veth(&x.lease.pod, &x.lease.sandbox.attachment, MTU);
    x.kernel(|kernel| {
        kernel.begin(&veth);
        kernel.apply(&x.plan).unwrap();
    });
    assert_eq!(x.check(), "clean");
    assert!(!world.links().contains("cali"));
    reaches(&x.pod, "to the outside", world.fabric.outside(), OUTSIDE);
    reaches(world.fabric.outside(), "from the outside", &x.pod, x.ips()[0]);
    x.unwire(Some(x.pod.netns()));
    x.is_home_as("eth1");
}

#[test]
fn check_names_what_is_broken_and_apply_repairs_it() {
    let world = World::new();
    let x = world.guest("x", 5);
    x.apply();
    let netns = x.pod.netns().display().to_string();
    let alias = "terway-eni eth1 c-x/eth0 default/x";
    let cases: Vec<(String, String)> = vec![
        ("ip link set eth0 down".into(), "state of eth0: down, not up".into()),
        ("ip link set eth0 mtu 1300".into(), "mtu of eth0: 1300, not 1500".into()),
        ("ip link set eth0 alias other".into(), format!("alias of eth0: 'other', not '{alias}'")),
        ("ip link set eth0 down; ip link set eth0 name eth7".into(), format!("link eth0 in {netns}: absent")),
        ("ip route del default".into(), format!("route default via {GATEWAY} dev eth0 onlink: absent")),
        ("ip route del 172.21.0.0/20".into(), "route 172.21.0.0/20 via 169.254.1.1 dev veth1 onlink: absent".into()),
        ("ip link set veth1 down".into(), "state of veth1: down, not up".into()),
        ("ip rule del priority 512".into(), "rule priority 512 from all fwmark 0x7e0/0x7e0 lookup 1000: absent".into()),
        (
            "iptables -w -t mangle -F OUTPUT".into(),
            "iptables -t mangle -A OUTPUT -m connmark --mark 0x7e0/0x7e0 -j MARK --set-xmark 0x7e0/0x7e0: absent"
                .into(),
        ),
    ];
    for (harm, difference) in cases {
        x.pod.sh(&harm);
        assert_eq!(x.check(), difference, "after {harm}");
        x.apply();
        assert!(x.pod.reaches(OUTSIDE), "after the repair of {harm}");
    }
    world.kernel(|kernel| kernel.fetch(&world.node.run(kernel::away)[0])).unwrap();
    assert_eq!(x.check(), format!("link eth0 in {netns}: absent"));
    let outside = world.kernel(|kernel| kernel.check(&x.plan)).unwrap().map(|d| d.to_string());
    assert_eq!(outside.as_deref(), Some("place of eth1: the node, not the pod"));
    x.apply();
}

#[test]
fn an_eni_whose_name_was_given_away_comes_home_under_the_next_one() {
    let world = World::new();
    let x = world.guest("x", 5);
    x.apply();
    let other = world.plug(6, &[6]);
    assert_eq!(world.node.ifname(&other.mac.to_string()).as_deref(), Some("eth1"));
    x.undo();
    x.is_home_as("eth2");
}

#[test]
fn without_a_daemon_the_eni_comes_home_all_the_same() {
    let world = World::new();
    let x = world.guest("x", 5);
    x.apply();
    let netns = x.pod.netns().to_owned();
    // The late DEL of an older sandbox leaves it alone.
    let (old, other) = (world.node.pod("old"), Attachment { container: "c-old".into(), ifname: "eth0".into() });
    world.node.run(|| unwire(Some(old.netns()), Some(&ours::host_veth(&x.lease.pod, "eth0")), &other)).unwrap();
    assert_eq!(x.check(), "clean");
    for _ in 0..2 {
        x.unwire(Some(&netns));
        x.is_home_as("eth1");
        assert!(!world.links().contains("cali"));
        assert_eq!(world.node.sh("ip route show table 1000"), "");
    }
}

#[test]
fn an_add_that_was_cut_off_is_undone_and_done_again() {
    let world = World::new();
    let x = world.guest("x", 5);
    for objects in 1..x.plan.host.len() {
        let part = Plan { host: x.plan.host[..objects].to_vec(), pod: Vec::new() };
        x.kernel(|kernel| kernel.apply(&part)).unwrap();
        x.unwire(Some(x.pod.netns()));
        x.is_home_as("eth1");
        assert!(!world.links().contains("cali"), "after {objects} objects");
        x.kernel(|kernel| kernel.apply(&part)).unwrap();
        x.apply();
        assert!(x.pod.reaches(OUTSIDE) && world.node.reaches(&x.ip()));
        x.undo();
        x.is_home_as("eth1");
    }
}

#[test]
fn an_eni_that_the_kernel_handed_back_gets_its_name_again() {
    let world = World::new();
    let x = world.guest("x", 5);
    let alias = ours::card_alias(&x.lease.sandbox.attachment, &x.lease.pod, "eth1");
    let mac = x.lease.eni.mac;
    world.node.sh(&format!("ip link set eth1 name dev7; ip link set dev7 alias '{alias}'; ip link set dev7 up"));
    x.unwire(None);
    x.is_home_as("eth1");
    // One whose alias is lost.
    for (from, home, to) in [("dev7", None, "eth1"), ("dev7", Some("ens6"), "ens6"), ("net1", Some("eth1"), "eth1")] {
        let now = world.node.ifname(&x.mac()).unwrap();
        world.node.sh(&format!("ip link set {now} name {from}"));
        world.kernel(|kernel| kernel.settle(mac, home)).unwrap();
        x.is_home_as(to);
    }
}

#[test]
fn an_eni_that_is_away_is_found_by_someone_who_remembers_nothing() {
    let world = World::new();
    let (x, y) = (world.guest("x", 5), world.shared("y", 6));
    assert_eq!(world.node.run(kernel::away), []);
    x.apply();
    let away = world.node.run(kernel::away);
    assert_eq!(away.len(), 1, "{away:?}");
    assert_eq!((away[0].mac, away[0].netns.as_path()), (x.lease.eni.mac, x.pod.netns()));
    assert_eq!(away[0].lent.attachment, x.lease.sandbox.attachment);
    assert_eq!(away[0].lent.pod.as_ref(), Some(&x.lease.pod));
    world.kernel(|kernel| kernel.fetch(&away[0])).unwrap();
    x.is_home_as("eth1");
    world.kernel(|kernel| kernel.fetch(&away[0])).unwrap();
    assert!(y.pod.reaches(OUTSIDE));
}

#[test]
fn a_pods_own_interface_is_never_pushed_aside() {
    let world = World::new();
    let x = world.guest("x", 5);
    x.pod.sh("ip link add eth0 type veth peer name other");
    let refused = x.try_apply().unwrap_err().to_string();
    assert_eq!(refused, format!("interface eth0 exists already in {}", x.pod.netns().display()));
    x.is_home_as("eth1");
    x.unwire(Some(x.pod.netns()));
    assert!(x.pod.sh("ip link show eth0").contains("eth0"));
    assert!(!world.links().contains("cali"));
}

/// A namespace that dies takes the simulated card along; the fabric makes it anew, as the kernel hands back a real one.
#[test]
fn a_namespace_that_dies_gives_the_eni_back() {
    let world = World::new();
    let x = world.guest("x", 5);
    x.apply();
    let (mac, text) = (x.lease.eni.mac, x.mac());
    x.pod.remove();
    soon("the card is back", || world.fabric.recover() == 1);
    assert!(world.node.ifname(&text).unwrap().starts_with("dev"));
    world.kernel(|kernel| kernel.settle(mac, None)).unwrap();
    assert_eq!(world.node.ifname(&text).as_deref(), Some("eth1"));
    soon("the veth is gone", || !world.links().contains("cali"));
}

#[test]
fn one_bandwidth_holds_for_the_eni_and_the_second_link_together() {
    let world = World::new();
    let mut x = world.guest("x", 5);
    let limit = 8_000_000;
    let rate = Rate::from_bits(limit);
    x.limit(Limits { ingress: rate, egress: rate });
    x.apply();
    reaches(&world.remote, "from another node", &x.pod, x.ips()[1]);
    reaches(&world.node, "from its node", &x.pod, x.ips()[0]);
    let ip = x.ip();
    let offered = limit * 3 / 2;
    between(limit, || flood(&world.remote, &x.pod, &ip, offered, 2), || flood(&world.node, &x.pod, &ip, offered, 2));
    between(
        limit,
        || flood(&x.pod, &world.remote, REMOTE, offered, 2),
        || flood(&x.pod, &world.node, NODE, offered, 2),
    );

    // Another limit for a pod that runs, and none.
    let shown = |x: &Guest| x.pod.sh("ip -o link | grep -c shape-; tc qdisc | grep -o 'tbf.*rate [^ ]*' || true");
    for (limits, links) in
        [(Limits { ingress: Rate::from_bits(2_000_000), egress: None }, "1\n"), (Limits::default(), "0\n")]
    {
        x.limit(limits);
        let (make, undo) = datapath::shape(&Setup::new(&x.lease, MTU));
        x.kernel(|kernel| kernel.undo(&undo).and_then(|()| kernel.apply(&make))).unwrap();
        assert_eq!(x.check(), "clean");
        assert!(shown(&x).starts_with(links), "{}", shown(&x));
        assert_eq!(
            shown(&x).contains("dev shape-in root refcnt 2 rate 2Mbit"),
            limits.ingress.is_some(),
            "{}",
            shown(&x)
        );
    }
    assert!(!x.pod.sh("tc filter show dev eth0 ingress; tc filter show dev eth0 egress; tc qdisc").contains("mirred"));
    reaches(&x.pod, "to another node", &world.remote, REMOTE);

    // An ENI comes home without what led its packets astray.
    x.limit(Limits { ingress: rate, egress: rate });
    x.apply();
    x.undo();
    x.is_home_as("eth1");
    world.is_calm();
}

#[test]
fn without_ifb_each_link_has_a_bucket_of_its_own() {
    let world = World::new();
    let mut x = world.guest("x", 5);
    let limit = 8_000_000;
    x.amend(|lease| whole(lease).shaper = Shaper::Links);
    x.limit(Limits { ingress: Rate::from_bits(limit), egress: Rate::from_bits(limit) });
    x.apply();
    let ip = x.ip();
    keeps_to(&x.pod, &world.remote, REMOTE, limit);
    keeps_to(&x.pod, &world.node, NODE, limit);
    keeps_to(&world.node, &x.pod, &ip, limit);
}

#[test]
fn policies_hold_on_both_links_of_a_pod() {
    let world = World::new();
    let policy = guard(&world.node, &[("default/own", 3), ("default/veth", 4)], &OPEN);
    let mut own = world.guest("own", 1);
    own.lease.seat = Some(3);
    // What leads elsewhere comes behind.
    let rate = Rate::from_bits(100_000_000);
    own.limit(Limits { ingress: rate, egress: rate });
    own.apply();
    let (mut veth, free) = (world.shared("veth", 2), world.shared("free", 5));
    veth.amend(|lease| lease.seat = Some(4));
    assert!(veth.check().contains("filter priority 2048"), "{}", veth.check());
    // A pod that runs already gets them, too.
    veth.apply();
    for n in 0..2 {
        for guest in [&own, &veth] {
            guarded(&world.remote, "by the VPC", &guest.pod, guest.ips()[n]);
            guarded(&world.node, "from its node", &guest.pod, guest.ips()[n]);
            guarded(&free.pod, "from a pod", &guest.pod, guest.ips()[n]);
            reaches(&guest.pod, "to a pod", &free.pod, free.ips()[n]);
            reaches(&guest.pod, "to the outside", world.fabric.outside(), [OUTSIDE, OUTSIDE_V6][n]);
            reaches(&guest.pod, "to its node", &world.node, [NODE, NODE_V6][n]);
        }
        guarded(&own.pod, "between them", &veth.pod, veth.ips()[n]);
        guarded(&veth.pod, "between them, back", &own.pod, own.ips()[n]);
    }
    let counts = world.node.run(|| policy.counts()).unwrap();
    assert!(counts.of(Why::Rules)[0] >= 32 && counts.dropped() == counts.of(Why::Rules)[0], "{counts:?}");
    // Another seat, another program: both are seen, and put right.
    let veth_link = ours::host_veth(&veth.lease.pod, "eth0");
    for (link, side, inside) in [(veth_link.as_str(), "ingress", false), ("eth0", "egress", true)] {
        let guest = if inside { &own } else { &veth };
        let harm = format!("tc filter del dev {link} {side} prio 2048");
        if inside {
            own.pod.sh(&harm)
        } else {
            world.node.sh(&harm)
        };
        assert!(guest.check().contains(&format!("filter priority 2048 dev {link} {side}")), "{}", guest.check());
        guest.apply();
    }
    veth.amend(|lease| lease.seat = Some(3));
    assert!(veth.check().contains("class 0x4, not terway_to_pod"), "{}", veth.check());
    veth.apply();
    // Without a seat, nothing of it is left.
    let lease = Lease { seat: None, ..veth.lease.clone() };
    let (_, undo) = datapath::policed(&Setup::new(&lease, MTU));
    veth.kernel(|kernel| kernel.undo(&undo)).unwrap();
    let filters =
        world.node.sh(&format!("tc filter show dev {veth_link} ingress; tc filter show dev {veth_link} egress"));
    assert!(!filters.contains("terway_"), "{filters}");
    // Somebody's older qdisc would take a filter for the other side and have it look at what arrives.
    world.node.sh(&format!("tc qdisc del dev {veth_link} clsact; tc qdisc add dev {veth_link} ingress"));
    let refused = veth.try_apply().unwrap_err().to_string();
    assert!(refused.ends_with(&format!("tc qdisc del dev {veth_link} ingress")), "{refused}");
    own.undo();
    // Its own name is taken by now.
    own.is_home_as("eth3");
}

/// `cargo test --test main exclusive::figures -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn figures() {
    const PODS: u8 = 40;
    let world = World::new();
    let names: Vec<(String, u16)> = (0..PODS).map(|n| (format!("default/p{n}"), u16::from(n) + 1)).collect();
    let pods: Vec<(&str, u16)> = names.iter().map(|(name, seat)| (name.as_str(), *seat)).collect();
    let _policy = guard(&world.node, &pods[..15], &OPEN);
    let first = world.shared("first", 1);
    let mut times = [Vec::new(), Vec::new()];
    for n in 0..PODS {
        let seat = (n % 2 == 1).then_some(u16::from(n) + 1);
        let mut guest = world.pod(&format!("p{n}"), n + 10, &first.lease.eni, Wiring::Shared);
        guest.amend(|lease| lease.seat = seat);
        guest.kernel(|kernel| {
            let start = std::time::Instant::now();
            kernel.apply(&guest.plan).unwrap();
            times[usize::from(seat.is_some())].push(start.elapsed());
        });
    }
    times.iter_mut().for_each(|times| times.sort());
    println!("a pod is wired in {:?} without and {:?} with policies (p50)", times[0][10], times[1][10]);
}
