//! The simulated VPC: real frames, anti-spoofing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::Value;
use terway::pod::PodName;
use terway::uri::percent_encode;

use crate::sim::cloud::EniStatus as Status;
use crate::sim::cluster::{SOON, soon, within};
use crate::sim::cni::Sandbox;
use crate::sim::fabric::{Card, Drops, Fabric, OUTSIDE, OUTSIDE_V6, ROUTER_MAC};
use crate::sim::node::Node;
use crate::sim::ns::Ns;
use crate::sim::sweep;
use crate::sim::traffic::{Place, percentile};
use crate::sim::world::{self, METADATA, OPENAPI, PODS, World};

const A_MAC: &str = "00:16:3e:00:00:0a";
const B_MAC: &str = "00:16:3e:00:00:0b";
const A: &str = "192.168.0.10";
const B: &str = "192.168.0.11";

/// Two nodes on the node vSwitch, each with its primary ENI and nothing else.
struct Pair {
    a: Node,
    b: Node,
    fabric: Fabric,
}

impl Pair {
    fn new() -> Pair {
        let fabric = Fabric::new(&["192.168.0.0/16".parse().unwrap(), "fd00:0:0:1::/64".parse().unwrap()]);
        let pair = Pair { a: Node::new("a"), b: Node::new("b"), fabric };
        pair.boot(&pair.a, "eni-a0", A_MAC, A);
        pair.boot(&pair.b, "eni-b0", B_MAC, B);
        pair
    }

    fn boot(&self, node: &Node, id: &str, mac: &str, addr: &str) {
        self.fabric.plug(&Card::new(id, mac, &[addr]), node.ns().name());
        node.dhcp(format!("{addr}/19").parse().unwrap(), "192.168.31.253".parse().unwrap());
        self.fabric.settle();
    }

    fn link_up(&self, place: &impl Place, link: &str) {
        place.link_up(link);
        self.fabric.settle();
    }

    /// Waits until the VPC has dropped this and nothing else: a packet may lie at its node for a second, until a neighbour is asked for again.
    #[track_caller]
    fn has_dropped(&self, drops: Drops) {
        let mut seen = Drops::default();
        let is_so = within(SOON, || {
            seen = self.fabric.drops();
            seen == drops
        });
        assert!(is_so, "{seen:?}, not {drops:?}");
    }
}

#[test]
fn nodes_reach_each_other_and_the_world_outside() {
    let start = Instant::now();
    let vpc = Pair::new();
    eprintln!("two nodes stand after {:?}", start.elapsed());
    assert!(vpc.a.reaches(B));
    assert!(vpc.a.reaches(OUTSIDE));
    assert!(vpc.fabric.outside().reaches(B));
    let echo = vpc.b.tcp_echo("0.0.0.0:7");
    vpc.a.tcp("192.168.0.11:7").unwrap();
    vpc.fabric.outside().tcp("192.168.0.11:7").unwrap();
    let seen: Vec<String> = echo.peers().iter().map(|peer| peer.ip().to_string()).collect();
    assert_eq!(seen, [A, OUTSIDE]);
    assert_eq!(vpc.fabric.drops(), Drops::default());
}

#[test]
fn a_packet_from_an_address_of_somebody_else_is_dropped() {
    let vpc = Pair::new();
    vpc.a.sh("ip addr add 192.168.0.77/32 dev eth0");
    assert_eq!(vpc.a.ping_from("192.168.0.77", B), None);
    vpc.a.sh("ip addr add 192.168.0.11/32 dev lo");
    assert_eq!(vpc.a.ping_from("192.168.0.11", OUTSIDE), None);
    vpc.has_dropped(Drops { wrong_ip: 2, ..Drops::default() });
    // The address of one ENI of a node is not good on another one.
    vpc.fabric.plug(&Card::new("eni-a1", "00:16:3e:00:01:0a", &["192.168.32.5"]), vpc.a.ns().name());
    vpc.link_up(&vpc.a, "eth1");
    vpc.a.sh("ip route add 203.0.113.0/24 via 192.168.63.253 dev eth1 onlink");
    assert_eq!(vpc.a.ping_from(A, OUTSIDE), None);
    vpc.has_dropped(Drops { wrong_ip: 3, ..Drops::default() });
}

#[test]
fn a_frame_of_another_mac_is_dropped_and_so_is_its_arp() {
    let vpc = Pair::new();
    assert!(vpc.a.reaches(B));
    vpc.a.sh(&format!("ip link set eth0 address {B_MAC}; ip neigh replace {B} lladdr {ROUTER_MAC} dev eth0"));
    assert_eq!(vpc.a.ping(B), None);
    vpc.has_dropped(Drops { wrong_mac: 1, ..Drops::default() });
    vpc.a.sh("ip neigh flush all; ip neigh del 192.168.0.11 dev eth0 || true");
    assert_eq!(vpc.a.ping(B), None);
    assert!(vpc.fabric.drops().wrong_arp >= 1);
}

#[test]
fn the_gateway_and_everyone_else_have_the_mac_of_the_router() {
    let vpc = Pair::new();
    assert!(vpc.a.reaches(OUTSIDE));
    assert!(vpc.a.reaches(B));
    assert_eq!(vpc.a.ping("192.168.0.200"), None);
    for addr in ["192.168.31.253", B, "192.168.0.200"] {
        let neigh = vpc.a.sh(&format!("ip neigh show {addr}"));
        assert!(neigh.starts_with(&format!("{addr} dev eth0 lladdr {ROUTER_MAC} ")), "{neigh}");
    }
    vpc.has_dropped(Drops { nowhere: 1, ..Drops::default() });
}

#[test]
fn a_second_eni_may_ask_for_its_gateway_in_the_name_of_the_node() {
    let vpc = Pair::new();
    vpc.fabric.plug(&Card::new("eni-a1", "00:16:3e:00:01:0a", &["192.168.32.5"]), vpc.a.ns().name());
    // The kernel takes the interface's own address for the ARP request, as for a pod's packet that it forwards.
    vpc.link_up(&vpc.a, "eth1");
    vpc.a.sh("ip addr add 192.168.0.10/32 dev eth1; echo 2 >/proc/sys/net/ipv4/conf/eth1/arp_announce
         ip addr add 192.168.32.5/32 dev lo
         ip route add default via 192.168.63.253 dev eth1 onlink table 1003
         ip rule add from 192.168.32.5 lookup 1003 priority 2048
         for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done");
    assert!(vpc.a.reaches_from("192.168.32.5", B));
    // And the router has not learned that the node's own address is there now.
    assert!(vpc.b.reaches(A));
    assert_eq!(vpc.fabric.drops(), Drops::default());
}

#[test]
fn an_address_that_moves_to_another_eni_works_there_at_once() {
    let vpc = Pair::new();
    let addr = "192.168.32.9";
    vpc.fabric.assign("eni-a0", addr);
    vpc.a.sh("ip addr add 192.168.32.9/32 dev eth0");
    vpc.b.sh("ip addr add 192.168.32.9/32 dev eth0");
    assert!(vpc.a.reaches_from(addr, OUTSIDE));
    assert!(vpc.fabric.outside().reaches(addr));
    vpc.fabric.assign("eni-b0", addr);
    assert!(vpc.b.reaches_from(addr, OUTSIDE));
    assert_eq!(vpc.a.ping_from(addr, OUTSIDE), None);
    vpc.fabric.unassign("eni-b0", addr);
    assert_eq!(vpc.b.ping_from(addr, OUTSIDE), None);
    assert_eq!(vpc.fabric.outside().ping(addr), None);
    vpc.has_dropped(Drops { wrong_ip: 2, nowhere: 1, ..Drops::default() });
}

#[test]
fn an_eni_comes_and_goes_as_a_link_of_its_node() {
    let vpc = Pair::new();
    let mac = "00:16:3e:00:01:0a";
    let card = Card::new("eni-a1", mac, &["192.168.32.5"]);
    assert_eq!(vpc.a.ifname(mac), None);
    vpc.fabric.plug(&card, vpc.a.ns().name());
    assert_eq!(vpc.a.ifname(mac).as_deref(), Some("eth1"));
    vpc.fabric.unplug("eni-a1");
    assert_eq!(vpc.a.ifname(mac), None);
    assert!(!vpc.fabric.is_plugged("eni-a1"));
    // On to the other node, with the addresses it has.
    vpc.fabric.plug(&card, vpc.b.ns().name());
    assert_eq!(vpc.b.ifname(mac).as_deref(), Some("eth1"));
    vpc.link_up(&vpc.b, "eth1");
    vpc.b.sh("ip addr add 192.168.32.5/32 dev eth1");
    vpc.b.sh("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done");
    vpc.fabric.set_addrs("eni-a1", &["192.168.32.6", "192.168.32.7"].map(|a| a.parse().unwrap()).into());
    assert_eq!(vpc.a.ping("192.168.32.5"), None);
    vpc.has_dropped(Drops { nowhere: 1, ..Drops::default() });
}

#[test]
fn an_eni_whose_pod_dies_comes_back_to_the_node() {
    let vpc = Pair::new();
    let mac = "00:16:3e:00:01:0a";
    vpc.fabric.plug(&Card::new("eni-a1", mac, &["192.168.32.5"]), vpc.a.ns().name());
    let pod = vpc.a.pod("cni-1");
    vpc.a.sh("ip link set eth1 netns cni-1 name eth0");
    vpc.link_up(&pod, "eth0");
    pod.sh("ip addr add 192.168.32.5/32 dev eth0");
    pod.sh("ip route add default via 192.168.63.253 dev eth0 onlink");
    assert!(pod.reaches(B));
    assert_eq!(vpc.fabric.recover(), 0);
    pod.remove();
    soon("the namespace dies", || vpc.fabric.recover() > 0);
    assert_eq!(vpc.a.ifname(mac).as_deref(), Some("dev0"));
    vpc.a.sh("ip link set dev0 name eth1");
    vpc.link_up(&vpc.a, "eth1");
    vpc.a.sh("ip addr add 192.168.32.5/32 dev eth1");
    vpc.a.sh("ip route replace default via 192.168.63.253 dev eth1 onlink");
    assert!(vpc.fabric.outside().reaches("192.168.32.5"));
}

#[test]
fn ipv6_passes_by_the_same_rules() {
    let vpc = Pair::new();
    for (node, id, mac, addr) in [
        (&vpc.a, "eni-a1", "00:16:3e:00:01:0a", "fd00:0:0:1::a"),
        (&vpc.b, "eni-b1", "00:16:3e:00:01:0b", "fd00:0:0:1::b"),
    ] {
        let gateway = "fd00::1:ffff:ffff:ffff:fffd".parse().unwrap();
        vpc.fabric.plug(&Card { gateway_v6: Some(gateway), ..Card::new(id, mac, &[addr]) }, node.ns().name());
        vpc.link_up(node, "eth1");
        node.sh(&format!("ip addr add {addr}/128 dev eth1 nodad"));
        node.sh(&format!("ip route add {gateway}/128 dev eth1; ip route add default via {gateway} dev eth1"));
    }
    assert!(vpc.a.reaches("fd00:0:0:1::b"));
    assert!(vpc.b.reaches(OUTSIDE_V6));
    vpc.a.sh("ip addr add fd00:0:0:1::c/128 dev eth1 nodad");
    assert_eq!(vpc.a.ping_from("fd00:0:0:1::c", "fd00:0:0:1::b"), None);
    assert_eq!(vpc.b.ping("fd00:0:0:1::d"), None);
    vpc.has_dropped(Drops { wrong_ip: 1, nowhere: 1, ..Drops::default() });
}

#[test]
fn a_service_of_the_cloud_sees_nodes_by_their_own_address() {
    let vpc = Pair::new();
    let listener = vpc.fabric.listen("100.100.100.200:80".parse().unwrap());
    let ask = |node: &Node| {
        node.run(|| {
            let mut stream = TcpStream::connect("100.100.100.200:80").unwrap();
            stream.write_all(b"?").unwrap();
            stream
        })
    };
    for (node, addr) in [(&vpc.a, A), (&vpc.b, B)] {
        let _waiting = ask(node);
        let (mut stream, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_string(), addr);
        stream.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn a_node_has_folders_of_its_own() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    for path in [
        "/run/eni/x",
        "/var/run/terway/x",
        "/etc/eni/x",
        "/etc/cni/net.d/x",
        "/opt/cni/bin/x",
        "/var/lib/cni/x",
        "/var/log/x",
    ] {
        a.write_file(path, "mine");
        assert_eq!(a.read_file(path).as_deref(), Some("mine"), "{path}");
        assert_eq!(b.read_file(path), None, "{path}");
        assert!(!fs::exists(path).unwrap(), "{path}");
    }
    a.write_file("/etc/hosts", "mine");
    assert_ne!(fs::read_to_string("/etc/hosts").unwrap(), "mine");
    a.sh("ip link add v0 type veth peer name v1");
    assert_eq!(a.sh("ls /sys/class/net"), "lo\nv0\nv1\n");
    assert_eq!(b.sh("ls /sys/class/net"), "lo\n");
    assert_eq!(a.sh("cat /proc/sys/net/ipv4/conf/all/rp_filter"), "1\n");
    let inside = Ns::new("beside").output(Command::new("sh").args(["-c", &format!("{} cat /etc/eni/x", a.nsenter())]));
    assert_eq!(String::from_utf8_lossy(&inside.stdout), "mine");
    // Pods of different nodes may have the same name.
    let (pod_a, pod_b) = (a.pod("cni-1"), b.pod("cni-1"));
    assert_eq!(a.sh("ls /run/netns"), "cni-1\n");
    a.sh("ip link set v1 netns cni-1");
    assert_eq!(pod_a.sh("ls /sys/class/net | cat; ip -br link | cut -d' ' -f1 | cut -d@ -f1"), "lo\nv0\nlo\nv1\n");
    assert_eq!(pod_b.sh("ip -br link | cut -d' ' -f1"), "lo\n");
    drop(pod_a);
    assert_eq!(a.sh("ls /run/netns"), "");
}

#[test]
fn a_plugin_is_called_as_a_runtime_does() {
    let node = Node::new("a");
    let pod = node.pod("cni-1");
    node.write_file(
        "/opt/cni/bin/tell",
        "#!/bin/sh\nread conf; echo \"{\\\"conf\\\": $conf, \\\"env\\\": \\\"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_PATH $CNI_ARGS\\\"}\"\nls $CNI_NETNS >&2; exit 3\n",
    );
    node.sh("chmod +x /opt/cni/bin/tell");
    let sandbox = Sandbox {
        plugin: "/opt/cni/bin/tell".into(),
        container: "c1".into(),
        netns: pod.netns().into(),
        ifname: "eth0".into(),
        pod: PodName::new("default", "web-0"),
        uid: None,
        conf: "{\"cniVersion\": \"1.0.0\"}\n".into(),
    };
    let answer = node.run(|| sandbox.call("ADD"));
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(3), "/run/netns/cni-1\n"));
    assert_eq!(answer.json()["conf"]["cniVersion"], "1.0.0");
    let env = "ADD c1 /run/netns/cni-1 eth0 /opt/cni/bin \
        IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1";
    assert_eq!(answer.json()["env"], env);
    node.install("/bin/true".as_ref(), "/opt/cni/bin/true");
    let idle = Sandbox { plugin: "/opt/cni/bin/true".into(), ..sandbox };
    let mut took: Vec<Duration> = node.run(|| (0..50).map(|_| idle.call("ADD").ok().took).collect());
    took.sort();
    eprintln!("a plugin that does nothing: p50 {:?}", percentile(&took, 50));
}

#[test]
fn a_daemon_leaves_its_log_and_obeys_signals() {
    let node = Node::new("a");
    let script = "trap 'echo bye; exit 7' TERM; echo hello; while :; do sleep 0.01; done";
    let mut first = node.daemon("d", Command::new("sh").args(["-c", script]));
    wait_for(|| first.log() == "hello\n");
    assert!(first.is_running());
    assert_eq!(first.terminate(Duration::from_secs(5)).and_then(|status| status.code()), Some(7));
    let second = node.daemon("d", Command::new("sh").args(["-c", script]));
    wait_for(|| second.log() == "hello\nbye\nhello\n");
    let pid = second.pid();
    second.kill();
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}

#[test]
fn a_node_takes_everything_with_it() {
    let vpc = Pair::new();
    let names: Vec<String> =
        [vpc.a.ns(), vpc.b.ns(), vpc.fabric.router(), vpc.fabric.outside()].map(|ns| ns.name().into()).into();
    let pod = vpc.a.pod("cni-1");
    // Orphans, one in the node and one in the pod, which no guard of ours knows.
    let orphan = "sleep 1000 >/dev/null 2>&1 & echo $!";
    let pids = [vpc.a.sh(orphan), pod.sh(orphan)].map(|pid| pid.trim().to_owned());
    let alive = |pid: &String| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(pids.iter().all(alive));
    drop(pod);
    drop(vpc);
    wait_for(|| !pids.iter().any(alive));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for name in &names {
        assert!(!fs::exists(format!("/run/netns/{name}")).unwrap(), "{name}");
        assert!(!mounts.contains(name.as_str()), "{name}");
    }
}

#[test]
fn a_test_that_panics_leaves_nothing() {
    let (tell, told) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let vpc = Pair::new();
        tell.send(vpc.a.ns().name().to_owned()).unwrap();
        vpc.a.run(|| panic!("on purpose"));
    });
    assert!(test.join().is_err());
    assert!(!fs::exists(format!("/run/netns/{}", told.recv().unwrap())).unwrap());
}

#[test]
fn what_a_killed_run_left_is_swept() {
    let live = Ns::new("live");
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let name = format!("tw{}-0-dead", dead.id());
    crate::sim::ns::sh(&format!("ip netns add {name}"));
    let mut orphan = Command::new("ip").args(["netns", "exec", &name, "sleep", "1000"]).spawn().unwrap();
    wait_for(|| fs::read_to_string(format!("/proc/{}/comm", orphan.id())).is_ok_and(|comm| comm == "sleep\n"));
    sweep::sweep();
    assert!(!fs::exists(format!("/run/netns/{name}")).unwrap());
    assert!(!orphan.wait().unwrap().success());
    assert!(live.path().exists());
}

#[test]
fn the_router_forwards_in_the_kernel() {
    let vpc = Pair::new();
    let _echo = vpc.b.udp_echo("0.0.0.0:7");
    let (pings, trips) = (vpc.a.pings(B, 1000), vpc.a.udp("192.168.0.11:7", 1000));
    assert_eq!((pings.len(), trips.len()), (1000, 1000));
    for (what, times) in [("ping", pings), ("udp", trips)] {
        eprintln!("{what} through the router: p50 {:?}, p99 {:?}", percentile(&times, 50), percentile(&times, 99));
        // Datagrams are answered by a thread, which waits for a CPU.
        assert!(what == "udp" || percentile(&times, 50) < Duration::from_millis(2), "{what}: {times:?}");
    }
}

fn wait_for(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "it does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A pod on a policy route by hand: veth, host route, rule, the ENI's table.
fn wire(node: &Node, pod_name: &str, addr: &str, eni: &str, gateway: &str, node_addr: &str) {
    node.sh(&format!(
        "ip link add cali0 type veth peer name eth0 netns {pod_name}; ip link set cali0 up
         for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done; echo 1 >/proc/sys/net/ipv4/ip_forward
         ip addr add {node_addr}/32 dev {eni}
         ip route add {addr}/32 dev cali0; ip rule add to {addr} lookup main priority 512
         ip rule add from {addr} lookup 1003 priority 2048
         ip route add default via {gateway} dev {eni} onlink table 1003
         mac=$(cat /sys/class/net/cali0/address)
         ip -n {pod_name} link set eth0 up; ip -n {pod_name} addr add {addr}/32 dev eth0
         ip -n {pod_name} route add default via 169.254.1.1 dev eth0 onlink
         ip -n {pod_name} neigh replace 169.254.1.1 lladdr $mac dev eth0 nud permanent"
    ));
}

#[test]
fn pods_on_policy_routes_talk_through_their_enis() {
    let vpc = Pair::new();
    let pods = [
        (&vpc.a, "eni-a1", "00:16:3e:00:01:0a", "192.168.32.5", A),
        (&vpc.b, "eni-b1", "00:16:3e:00:01:0b", "192.168.32.6", B),
    ]
    .map(|(node, id, mac, addr, node_addr)| {
        vpc.fabric.plug(&Card::new(id, mac, &[addr]), node.ns().name());
        let pod = node.pod("cni-1");
        vpc.link_up(node, "eth1");
        wire(node, "cni-1", addr, "eth1", "192.168.63.253", node_addr);
        pod
    });
    assert!(pods[0].reaches("192.168.32.6"));
    assert!(pods[1].reaches(A));
    assert!(vpc.fabric.outside().reaches("192.168.32.5"));
    let echo = pods[1].tcp_echo("0.0.0.0:7");
    pods[0].tcp("192.168.32.6:7").unwrap();
    assert_eq!(echo.peers()[0].ip().to_string(), "192.168.32.5");
    let times = pods[0].pings("192.168.32.6", 1000);
    eprintln!("ping from pod to pod on another node: p50 {:?}", percentile(&times, 50));
    assert_eq!(vpc.fabric.drops(), Drops::default());
}

/// Calls the ECS API from a node, signed in the RPC form, for its answer.
fn api(node: &Node, action: &str, params: &[(&str, &str)]) -> Value {
    let nonce = fastrand::u64(..).to_string();
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let protocol = [
        ("AccessKeyId", "testid"),
        ("Action", action),
        ("Format", "JSON"),
        ("RegionId", "cn-hangzhou"),
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureNonce", &nonce),
        ("SignatureVersion", "1.0"),
        ("Timestamp", &now),
        ("Version", "2014-05-26"),
    ];
    let all: BTreeMap<&str, &str> = protocol.iter().chain(params).copied().collect();
    let query: Vec<String> = all.iter().map(|(k, v)| format!("{}={}", percent_encode(k), percent_encode(v))).collect();
    let query = query.join("&");
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"testsecret&");
    let signature = STANDARD.encode(hmac::sign(&key, format!("GET&%2F&{}", percent_encode(&query)).as_bytes()));
    let answer = get(node, OPENAPI, &format!("/?{query}&Signature={}", percent_encode(&signature)));
    let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{action}: {e}: {answer}"));
    assert_eq!(answer["Code"], Value::Null, "{action}: {answer}");
    answer
}

fn get(node: &Node, server: &str, path: &str) -> String {
    let mut stream = node.run(|| TcpStream::connect(server).unwrap());
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned()
}

#[test]
fn links_come_and_go_as_the_cloud_says() {
    let world = World::with_nodes(world::config(), 2, "ecs.sim.large");
    let [one, two] = &world.nodes[..] else { panic!("two nodes") };
    assert!(one.reaches(&two.addr.to_string()));
    // The metadata service knows nodes by the address they call from.
    assert_eq!(get(one, METADATA, "/latest/meta-data/instance-id"), "i-1");
    assert_eq!(get(two, METADATA, "/latest/meta-data/instance-id"), "i-2");
    let made = api(one, "CreateNetworkInterface", &[("VSwitchId", PODS), ("SecurityGroupId", "sg-sim")]);
    let id = made["NetworkInterfaceId"].as_str().unwrap();
    let mac = made["MacAddress"].as_str().unwrap();
    let primary = made["PrivateIpAddress"].as_str().unwrap();
    wait_for(|| world.cloud.eni(id).unwrap().status == Status::Available);
    assert_eq!(one.ifname(mac), None);
    api(one, "AttachNetworkInterface", &[("NetworkInterfaceId", id), ("InstanceId", "i-1")]);
    wait_for(|| world.cloud.eni(id).unwrap().status == Status::InUse);
    assert_eq!(one.ifname(mac).as_deref(), Some("eth1"));
    one.link_up("eth1");
    world.fabric.settle();
    one.sh(&format!("ip addr add {primary}/32 dev eth1; ip route replace default via 192.168.63.253 dev eth1 onlink"));
    assert!(world.fabric.outside().reaches(primary));
    let count = [("NetworkInterfaceId", id), ("SecondaryPrivateIpAddressCount", "1")];
    let assigned = api(one, "AssignPrivateIpAddresses", &count);
    let second = assigned["AssignedPrivateIpAddressesSet"]["PrivateIpSet"]["PrivateIpAddress"][0].as_str().unwrap();
    one.sh(&format!("ip addr add {second}/32 dev eth1"));
    assert!(world.fabric.outside().reaches(second));
    api(one, "UnassignPrivateIpAddresses", &[("NetworkInterfaceId", id), ("PrivateIpAddress.1", second)]);
    assert_eq!(world.fabric.outside().ping(second), None);
    api(two, "DetachNetworkInterface", &[("NetworkInterfaceId", id), ("InstanceId", "i-1")]);
    wait_for(|| world.cloud.eni(id).unwrap().status == Status::Available);
    assert_eq!(one.ifname(mac), None);
}

#[test]
fn an_instance_that_ends_takes_its_node_with_it() {
    let mut world = World::with_nodes(world::config(), 3, "ecs.sim.small");
    let name = world.nodes[1].ns().name().to_owned();
    world.remove_node("i-2");
    assert!(!fs::exists(format!("/run/netns/{name}")).unwrap());
    assert!(world.nodes[0].reaches(&world.nodes[1].addr.to_string()));
    assert_eq!(world.nodes[1].id, "i-3");
    assert_eq!(get(&world.nodes[1], METADATA, "/latest/meta-data/instance-id"), "i-3");
}
