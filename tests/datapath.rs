//! plan, apply, traffic, check, undo, nothing left.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use terway::datapath::{self, EniSetup, NodeSetup, Setup};
use terway::ip::{IpPair, Mac};
use terway::kernel::{Kernel, unwire};
use terway::ours;
use terway::plan::{Object, Plan};
use terway::pod::{Attachment, PodName, Sandbox};
use terway::rate::Both;
use terway::rpc::{EniLease, Lease, Marker};

use crate::sim::cluster::soon;
use crate::sim::ns::Ns;
use crate::sim::skip;
use crate::vm::without_bpf::run_refused;

const MTU: u32 = 1400;
/// How long an answer may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const ENI_MAC: Mac = Mac([0x00, 0x16, 0x3e, 0, 0, 1]);
/// The far side of the VPC, as the router bears it.
const FAR: &str = "198.51.100.7";
const NODE_IP: &str = "192.0.2.10";
const GATEWAY: &str = "203.0.113.253";

/// A node with one ENI (a veth stands in for it) whose other end is a router that knows the whole vSwitch.
struct World {
    node: Ns,
    router: Ns,
    marker: Marker,
}

impl World {
    fn new() -> World {
        World::with_marker(Marker::Bpf)
    }

    fn with_marker(marker: Marker) -> World {
        let (node, router) = (still("node"), still("router"));
        node.sh(&format!("ip link add eth1 address {ENI_MAC} type veth peer name vpc netns {}", router.name()));
        // A way out that nobody may take: what goes to `eth0` is lost.
        node.sh(&format!("ip link add eth0 type veth peer name nowhere; ip addr add {NODE_IP}/24 dev eth0; ip link set eth0 up; ip link set nowhere up; ip route add default via 192.0.2.253"));
        router.sh(&format!("ip link set vpc up; ip addr add {GATEWAY}/24 dev vpc; ip addr add {FAR}/32 dev lo"));
        let world = World { node, router, marker };
        world.node.run(|| Kernel::host().unwrap().apply(&datapath::node(&NodeSetup::default())).unwrap());
        world.node.run(|| Kernel::host().unwrap().apply(&world.eni_plan()).unwrap());
        soon("every link has its carrier", || has_carriers(&world.node));
        world
    }

    fn eni(&self) -> EniLease {
        let eth1 = self.node.run(|| Kernel::host().unwrap().link_by_mac(ENI_MAC).unwrap().unwrap());
        assert_eq!(eth1.name, "eth1");
        EniLease {
            id: "eni-1".into(),
            mac: ENI_MAC,
            vswitch: "vsw-1".into(),
            cidr: terway::ip::Pair::v4("203.0.113.0/24".parse().unwrap()),
            gateway: IpPair::v4(GATEWAY.parse().unwrap()),
            slot: 5,
            table: ours::eni_table(eth1.ifindex),
        }
    }

    fn eni_plan(&self) -> Plan {
        let node = IpPair::v4(NODE_IP.parse().unwrap());
        datapath::eni(&EniSetup { eni: &self.eni(), link: "eth1", mtu: MTU, node: &node })
    }

    fn pod(&self, name: &str, ip: &str) -> Pod<'_> {
        let ns = still(name);
        // The VPC knows where an address is; nobody has to ask.
        self.router.sh(&format!("ip neigh replace {ip} lladdr {ENI_MAC} dev vpc nud permanent"));
        let sandbox = Sandbox {
            attachment: Attachment { container: format!("c-{name}"), ifname: "eth0".into() },
            netns: ns.path().into(),
        };
        let lease = Lease {
            pod: PodName::new("default", name),
            sandbox,
            ip: IpPair::v4(ip.parse().unwrap()),
            eni: self.eni(),
            node: IpPair::v4(NODE_IP.parse().unwrap()),
            marker: self.marker,
            sticky: false,
            heritage: None,
            bandwidth: Both::default(),
            wiring: Default::default(),
            routes: Vec::new(),
            seat: None,
            mtu: None,
            network: None,
        };
        Pod { world: self, plan: datapath::pod(&Setup::new(&lease, MTU)), lease, ns }
    }

    /// Everything that a node's namespace holds, for a look before and after.
    fn inventory(&self) -> String {
        self.node.sh("ip -o link | sed 's/@.*//'; ip route show table all; ip rule; ip neigh show nud permanent; tc qdisc; ip -o addr")
    }
}

/// A namespace in which nothing changes by itself: IPv6 would give links addresses and routes in its own time.
fn still(tag: &str) -> Ns {
    let ns = Ns::new(tag);
    ns.sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    ns
}

/// The kernel tells a link's state a moment after it has come up.
fn has_carriers(ns: &Ns) -> bool {
    ns.try_sh("! ip -o link | grep -v ': lo:' | grep -qv 'state UP'")
}

struct Pod<'a> {
    world: &'a World,
    lease: Lease,
    plan: Plan,
    ns: Ns,
}

impl Pod<'_> {
    fn kernel(&self) -> Kernel {
        self.world.node.run(|| {
            let mut kernel = Kernel::host().unwrap();
            kernel.enter(self.ns.path()).unwrap();
            kernel
        })
    }

    fn apply(&self) {
        self.kernel().apply(&self.plan).unwrap();
        assert_eq!(self.check(), "clean");
    }

    fn check(&self) -> String {
        self.kernel().check(&self.plan).unwrap().map_or("clean".into(), |difference| difference.to_string())
    }

    fn undo(&self) {
        self.kernel().undo(&self.plan).unwrap();
    }

    fn veth(&self) -> String {
        ours::host_veth(&self.lease.pod, "eth0")
    }

    fn ip(&self) -> IpAddr {
        self.lease.ip.v4.unwrap().into()
    }

    fn pings(&self, to: &str) -> bool {
        self.ns.try_sh(&format!("ping -c1 -W2 {to}"))
    }
}

/// Sends a datagram and a stream from one namespace to the other and back.
fn talks(from: &Ns, to: &Ns, at: IpAddr) {
    let udp = to.run(|| UdpSocket::bind((at, 0)).unwrap());
    let tcp = to.run(|| TcpListener::bind((at, 0)).unwrap());
    let (udp_at, tcp_at) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || echo(udp, tcp));
        from.run(|| ask(udp_at, tcp_at));
    });
}

/// Answers one datagram and one stream; gives up when nobody comes.
fn echo(udp: UdpSocket, tcp: TcpListener) {
    let mut bytes = [0; 2000];
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let Ok((len, from)) = udp.recv_from(&mut bytes) else { return };
    udp.send_to(&bytes[..len], from).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match tcp.accept() {
            Ok((stream, _)) => break stream,
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => return,
        }
    };
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut heard = Vec::new();
    if stream.read_to_end(&mut heard).is_ok() {
        stream.write_all(&heard).unwrap();
    }
}

fn ask(udp_at: SocketAddr, tcp_at: SocketAddr) {
    let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    udp.send_to(&[7; 1000], udp_at).unwrap();
    assert_eq!(udp.recv_from(&mut [0; 2000]).unwrap().0, 1000);
    let mut stream = TcpStream::connect_timeout(&tcp_at, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let said: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    stream.write_all(&said).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    assert!(heard == said);
}

fn traffic(marker: Marker) {
    let world = World::with_marker(marker);
    let (one, two) = (world.pod("one", "203.0.113.11"), world.pod("two", "203.0.113.12"));
    one.apply();
    two.apply();
    let far = FAR.parse().unwrap();
    talks(&one.ns, &world.router, far);
    talks(&world.router, &one.ns, one.ip());
    talks(&one.ns, &two.ns, two.ip());
    talks(&world.node, &one.ns, one.ip());
    talks(&one.ns, &world.node, NODE_IP.parse().unwrap());
    assert!(one.pings(FAR) && two.pings("203.0.113.11"));
    one.undo();
    assert!(!two.pings("203.0.113.11"));
}

#[test]
fn a_pod_talks_to_the_vpc_to_pods_and_to_its_node_and_they_to_it() {
    traffic(Marker::Bpf);
}

#[test]
fn skbedit_serves_where_there_is_no_ebpf() {
    let trial =
        "tc qdisc add dev lo ingress && tc filter add dev lo parent ffff: u32 match u32 0 0 action skbedit mark 1";
    if !Ns::new("trial").try_sh(trial) {
        return skip::because("needs skbedit");
    }
    traffic(Marker::Skbedit);
    let world = World::with_marker(Marker::Skbedit);
    let pod = world.pod("one", "203.0.113.11");
    pod.apply();
    pod.apply();
    let filters = format!("tc filter show dev {} ingress", pod.veth());
    assert_eq!(world.node.sh(&filters).matches("skbedit").count(), 1);
    let other = "replace dev {} ingress prio 2049 protocol all u32 match u32 0 0 action skbedit mark 7";
    for harm in ["del dev {} ingress", other] {
        world.node.sh(&format!("tc filter {}", harm.replace("{}", &pod.veth())));
        assert_ne!(pod.check(), "clean", "after {harm}");
        pod.apply();
        assert_eq!(world.node.sh(&filters).matches("skbedit").count(), 1);
        assert!(pod.pings(FAR));
    }
    pod.undo();
}

#[test]
fn rules_serve_where_nothing_can_mark() {
    traffic(Marker::Rule);
}

#[test]
fn a_packet_for_an_address_that_no_pod_has_does_not_leave_the_node_again() {
    let world = World::new();
    let route = format!("ip route get 203.0.113.77 from {FAR} iif eth1");
    assert!(!world.node.try_sh(&route));
    world.node.sh("ip rule del priority 2049");
    assert!(world.node.sh(&route).contains("dev eth0"));
}

#[test]
fn check_names_what_is_broken_and_apply_repairs_it() {
    let world = World::new();
    let pod = world.pod("one", "203.0.113.11");
    pod.apply();
    let veth = pod.veth();
    let index = |ns: &Ns, link: &str| ns.sh(&format!("ip -o link show {link}")).split(':').next().unwrap().to_string();
    let (eth1, outer) = (index(&world.node, "eth1"), index(&world.node, &veth));
    let mac = ours::pod_mac(&veth);
    let host_mac = ours::host_mac(&veth);
    let node = &world.node;
    let cases: Vec<(&Ns, String, String)> = vec![
        (
            node,
            "ip route del 203.0.113.11 table 1000".into(),
            format!("route 203.0.113.11/32 dev {veth} table 1000 scope link: absent"),
        ),
        (
            node,
            "ip route replace 203.0.113.11 dev eth1 table 1000".into(),
            format!(
                "route 203.0.113.11/32 dev {veth} table 1000 scope link: type 1 dev {eth1} scope 253, not dev {outer}"
            ),
        ),
        (
            node,
            format!("ip neigh flush nud permanent dev {veth}; ip neigh del 203.0.113.11 dev {veth}; true"),
            format!("neigh 203.0.113.11 dev {veth}: absent"),
        ),
        (
            node,
            format!("ip neigh replace 203.0.113.11 lladdr 02:00:00:00:00:01 dev {veth} nud permanent"),
            format!("neigh 203.0.113.11 dev {veth}: 02:00:00:00:00:01, not {mac}"),
        ),
        (
            node,
            format!("ip neigh replace 203.0.113.11 lladdr {mac} dev {veth} nud stale"),
            format!("neigh 203.0.113.11 dev {veth}: learnt, not permanent"),
        ),
        (node, format!("tc filter del dev {veth} ingress"), format!("filter priority 2049 dev {veth}: absent")),
        (node, format!("tc qdisc del dev {veth} clsact"), format!("filter priority 2049 dev {veth}: absent")),
        (
            node,
            format!(
                "tc filter del dev {veth} ingress; tc filter add dev {veth} ingress prio 2049 protocol all u32 match u32 0 0 classid 1:1"
            ),
            format!("filter priority 2049 dev {veth}: u32, not bpf mark 0xa0/0x7e0"),
        ),
        (node, format!("ip link set {veth} down"), format!("state of {veth}: down, not up")),
        (node, format!("ip link set {veth} mtu 1300"), format!("mtu of {veth}: 1300, not 1400")),
        (
            node,
            format!("ip link set {veth} address 02:00:00:00:00:02"),
            format!("mac of {veth}: 02:00:00:00:00:02, not {host_mac}"),
        ),
        (
            &pod.ns,
            "ip link set eth0 address 02:00:00:00:00:03".into(),
            format!("mac of eth0: 02:00:00:00:00:03, not {mac}"),
        ),
        (&pod.ns, "ip link set eth0 mtu 1200".into(), "mtu of eth0: 1200, not 1400".into()),
        (&pod.ns, "ip link set eth0 down".into(), "state of eth0: down, not up".into()),
        (&pod.ns, "ip addr del 203.0.113.11/32 dev eth0".into(), "addr 203.0.113.11/32 dev eth0: absent".into()),
        (&pod.ns, "ip route del default".into(), "route default via 169.254.1.1 dev eth0 onlink: absent".into()),
        (&pod.ns, "ip neigh del 169.254.1.1 dev eth0".into(), "neigh 169.254.1.1 dev eth0: absent".into()),
    ];
    for (ns, harm, difference) in cases {
        ns.sh(&harm);
        assert_eq!(pod.check(), difference, "after {harm}");
        pod.apply();
        assert_eq!(index(&world.node, &veth), outer, "{harm} does not take a new veth");
        assert!(pod.pings(FAR), "after the repair of {harm}");
    }
}

#[test]
fn check_names_what_is_broken_of_an_eni_and_apply_repairs_it() {
    let world = World::new();
    let (plan, table) = (world.eni_plan(), world.eni().table);
    let check = || world.node.run(|| Kernel::host().unwrap().check(&plan).unwrap().map(|d| d.to_string()));
    assert_eq!(check(), None);
    for (harm, difference) in [
        ("sysctl -qw net.ipv4.conf.eth1.rp_filter=1".into(), "sysctl net/ipv4/conf/eth1/rp_filter: 1, not 0".into()),
        ("ip link set eth1 mtu 1300".into(), "mtu of eth1: 1300, not 1400".into()),
        (format!("ip addr del {NODE_IP}/32 dev eth1"), format!("addr {NODE_IP}/32 dev eth1: absent")),
        (
            format!("ip addr change {NODE_IP}/32 dev eth1 valid_lft 900 preferred_lft 900"),
            format!("addr {NODE_IP}/32 dev eth1: unsettled, not permanent"),
        ),
        (
            format!("ip route flush table {table}"),
            format!("route default via {GATEWAY} dev eth1 table {table} onlink: absent"),
        ),
        (
            "ip rule del priority 2048".into(),
            format!("rule priority 2048 from all fwmark 0xa0/0x7e0 lookup {table}: absent"),
        ),
        ("ip rule del priority 2049".into(), "rule priority 2049 from all iif eth1 blackhole: absent".into()),
    ] {
        let (harm, difference): (String, String) = (harm, difference);
        world.node.sh(&harm);
        assert_eq!(check(), Some(difference), "after {harm}");
        world.node.run(|| Kernel::host().unwrap().apply(&plan).unwrap());
        assert_eq!(check(), None, "after the repair of {harm}");
    }
}

/// Kernels before 4.16 refuse it so (`sock_no_ioctl`).
#[test]
fn a_kernel_whose_netlink_sockets_take_no_ioctl_wires_pods_too() {
    let world = World::new();
    let pod = world.pod("old", "203.0.113.12");
    run_refused((libc::SYS_ioctl, 1), &[libc::SIOCGIFINDEX], libc::EOPNOTSUPP, || pod.apply());
    assert!(pod.pings(FAR));
}

#[test]
fn what_is_applied_twice_changes_nothing() {
    let world = World::new();
    let pod = world.pod("one", "203.0.113.11");
    pod.apply();
    soon("every link has its carrier", || has_carriers(&world.node) && has_carriers(&pod.ns));
    let see = || (world.inventory(), pod.ns.sh("ip -d addr; ip route; ip neigh show nud permanent"));
    let before = see();
    let log = std::env::temp_dir().join(format!("{}.monitor", world.node.name()));
    let file = std::fs::File::create(&log).unwrap();
    let mut monitor = std::process::Command::new("ip");
    let monitor = world.node.spawn(monitor.args(["monitor", "link", "address", "route", "rule"]).stdout(file));
    let heard = || std::fs::read_to_string(&log).unwrap();
    // Something that the monitor does see: it listens, and later it has caught up.
    let signs = || heard().matches("lo:").count();
    let sign = |seen| {
        let deadline = Instant::now() + PATIENCE;
        while signs() <= seen {
            assert!(Instant::now() < deadline, "the monitor is deaf: {}", heard());
            world.node.sh("ip link set lo down; ip link set lo up");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    sign(0);
    pod.apply();
    world.node.run(|| {
        let mut kernel = Kernel::host().unwrap();
        kernel.apply(&datapath::node(&NodeSetup::default())).unwrap();
        kernel.apply(&world.eni_plan()).unwrap();
    });
    sign(signs());
    drop(monitor);
    let events = heard();
    std::fs::remove_file(&log).unwrap();
    assert!(!events.contains("cali") && !events.contains("eth1") && !events.contains("from all"), "{events}");
    assert_eq!(see(), before);
}

#[test]
fn after_undo_nothing_is_left() {
    for marker in [Marker::Bpf, Marker::Rule] {
        let world = World::with_marker(marker);
        let before = world.inventory();
        let pod = world.pod("one", "203.0.113.11");
        pod.apply();
        assert_ne!(world.inventory(), before);
        pod.undo();
        assert_eq!(world.inventory(), before);
        assert_eq!(pod.ns.sh("ip -o link | wc -l").trim(), "1");
        pod.undo();
        assert_eq!(world.inventory(), before);
    }
}

#[test]
fn an_eni_is_undone_without_a_trace() {
    let world = World::new();
    let plan = world.eni_plan();
    let kernel = || world.node.run(|| Kernel::host().unwrap());
    kernel().undo(&plan).unwrap();
    let before = world.inventory();
    kernel().apply(&plan).unwrap();
    assert_ne!(world.inventory(), before);
    kernel().undo(&plan).unwrap();
    assert_eq!(world.inventory(), before);
}

#[test]
fn an_add_that_was_cut_off_anywhere_is_finished_by_the_next() {
    let world = World::new();
    let pod = world.pod("one", "203.0.113.11");
    let (host, inside) = (pod.plan.host.len(), pod.plan.pod.len());
    for cut in 1..host + inside {
        let prefix = Plan {
            host: pod.plan.host[..cut.min(host)].to_vec(),
            pod: pod.plan.pod[..cut.saturating_sub(host)].to_vec(),
        };
        pod.kernel().apply(&prefix).unwrap();
        assert_ne!(pod.check(), "clean", "cut after {cut}");
        pod.apply();
        assert!(pod.pings(FAR), "cut after {cut}");
        pod.undo();
    }
}

#[test]
fn a_veth_without_alias_or_of_another_sandbox_is_made_anew() {
    let world = World::new();
    let pod = world.pod("one", "203.0.113.11");
    let (veth, other) = (pod.veth(), Ns::new("other"));
    let alias = ours::alias(&pod.lease.sandbox.attachment, &pod.lease.pod);
    for leftover in [
        // Cut off before the alias; the peer where it should be.
        format!("ip link add {veth} type veth peer name eth0 netns {}", pod.ns.name()),
        // The previous sandbox of the pod, its DEL still to come.
        format!(
            "ip link add {veth} type veth peer name eth0 netns {}; ip link set {veth} alias 'terway c-old/eth0' up; ip route add 203.0.113.11 dev {veth} table 1000",
            other.name()
        ),
        // The right alias, but the pod's end is gone elsewhere.
        format!(
            "ip link add {veth} type veth peer name eth0 netns {}; ip link set {veth} alias '{alias}'",
            other.name()
        ),
        // The right alias, but the daemon is about to delete it.
        format!(
            "ip link add {veth} type veth peer name eth0 netns {}; ip link set {veth} alias '{alias}' group {}",
            pod.ns.name(),
            ours::DOOMED_GROUP
        ),
    ] {
        world.node.sh(&leftover);
        pod.apply();
        pod.kernel().delete_doomed().unwrap();
        assert!(pod.pings(FAR), "after {leftover}");
        pod.undo();
    }
}

#[test]
fn an_interface_of_somebody_else_in_the_pod_stays_and_nothing_is_left_behind() {
    let world = World::new();
    let pod = world.pod("one", "203.0.113.11");
    pod.ns.sh("ip link add eth0 type veth peer name theirs");
    let before = (world.inventory(), pod.ns.sh("ip -o link"));
    let error = pod.kernel().apply(&pod.plan).unwrap_err();
    assert_eq!(error.to_string(), format!("interface eth0 exists already in {}", pod.ns.path().display()));
    assert_eq!((world.inventory(), pod.ns.sh("ip -o link")), before);
}

#[test]
fn undo_and_unwire_keep_their_hands_off_a_later_sandbox_of_the_same_pod() {
    let world = World::new();
    let old = world.pod("one", "203.0.113.11");
    let mut new = world.pod("one", "203.0.113.12");
    new.lease.sandbox.attachment.container = "c-new".into();
    new.plan = datapath::pod(&Setup::new(&new.lease, MTU));
    old.apply();
    new.apply();
    old.undo();
    let unwired = |netns| world.node.run(|| unwire(netns, Some(&old.veth()), &old.lease.sandbox.attachment));
    unwired(Some(old.ns.path())).unwrap();
    unwired(None).unwrap();
    assert_eq!(new.check(), "clean");
    assert!(new.pings(FAR));
}

#[test]
fn unwire_leaves_nothing_whatever_it_is_told() {
    for marker in [Marker::Bpf, Marker::Rule] {
        let world = World::with_marker(marker);
        let before = world.inventory();
        let pod = world.pod("one", "203.0.113.11");
        let attachment = &pod.lease.sandbox.attachment;
        let veth = pod.veth();
        for (netns, name) in [
            (Some(pod.ns.path()), Some(veth.as_str())),
            (Some(pod.ns.path()), None),
            (None, Some(veth.as_str())),
            (None, None),
        ] {
            pod.apply();
            world.node.run(|| unwire(netns, name, attachment)).unwrap();
            assert_eq!(world.inventory(), before, "{netns:?} {name:?}");
            world.node.run(|| unwire(netns, name, attachment)).unwrap();
        }
        world.node.run(|| unwire(Some("/run/netns/never-made".as_ref()), Some(&veth), attachment)).unwrap();
        // Cut off before the alias.
        world.node.sh(&format!(
            "ip link add {veth} type veth peer name eth0 address {} netns {}",
            ours::pod_mac(&veth),
            pod.ns.name()
        ));
        world.node.run(|| unwire(Some(pod.ns.path()), Some(&veth), attachment)).unwrap();
        assert_eq!(world.inventory(), before);
    }
}

#[test]
fn unwire_leaves_an_interface_of_somebody_else() {
    let world = World::new();
    let pod = world.pod("one", "203.0.113.11");
    pod.ns.sh("ip link add eth0 type veth peer name theirs");
    world.node.run(|| unwire(Some(pod.ns.path()), Some(&pod.veth()), &pod.lease.sandbox.attachment)).unwrap();
    assert!(pod.ns.try_sh("ip link show eth0"));
}

#[test]
fn a_pod_cannot_be_wired_without_its_namespace() {
    let world = World::new();
    let pod = world.pod("one", "203.0.113.11");
    let error = world.node.run(|| Kernel::host().unwrap().apply(&pod.plan)).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: there is no pod's network namespace to work in", pod.veth()));
    assert!(pod.plan.host.iter().any(|object| matches!(object, Object::Veth(_))));
}
