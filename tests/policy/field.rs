//! A small cluster of namespaces: a node with three of its pods, and behind one link all that is elsewhere. Probes between all of them.
//!
//! Nothing waits for a packet that does not come: a probe bears the number of its round, and one that was to be dropped is seen
//! whenever it arrives. A round is over when all has come that should.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};
use serde_json::{Value, json};
use terway::cluster::Name;
use terway::heard::Heard;
use terway::policy::{Here, Model, Told};
use terway::rules::{Direction, ICMP, Placed, Pods, Renderer, Rules, SCTP, TCP, UDP, Write};

use super::oracle::{Flow, NODE, US, World};
use crate::sim::ipvs;
use crate::sim::node::Node;
use crate::sim::ns::Ns;
use crate::sim::traffic::Place;

pub const PORTS: [u16; 2] = [80, 81];
pub const ECHO: u16 = 8 << 8;
const SOURCE: u16 = 40_000;
const PATIENCE: Duration = Duration::from_secs(3);
/// Services: where they are, and the end and port that they lead to.
pub const SERVICES: [(&str, &str, u16); 2] = [("10.96.0.1", "x/b", 81), ("10.96.0.2", "y/b", 80)];

pub const LOCAL: [&str; 3] = ["x/a", "x/b", "y/a"];

/// Who there is: pods by namespace and name, the node, another node, and somebody outside.
const ENDS: [(&str, &str, &str); 12] = [
    ("x/a", "10.0.0.1", "fd00::1"),
    ("x/b", "10.0.0.2", "fd00::2"),
    ("x/c", "10.0.0.3", "fd00::3"),
    ("y/a", "10.0.0.4", "fd00::4"),
    ("y/b", "10.0.0.5", "fd00::5"),
    ("y/c", "10.0.0.6", "fd00::6"),
    ("z/a", "10.0.0.7", "fd00::7"),
    ("z/b", "10.0.0.8", "fd00::8"),
    ("z/c", "10.0.0.9", "fd00::9"),
    ("node", NODE[0], NODE[1]),
    ("other node", "192.168.0.2", "fd00:192::2"),
    ("outside", "203.0.113.9", "2001:db8::9"),
];

struct End {
    name: &'static str,
    addrs: [IpAddr; 2],
    place: usize,
    /// By family, and one of them by port.
    out: Vec<UdpSocket>,
    inward: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
}

/// What a probe is: from an end to an address and port of another, which judges by what it really leads to.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    pub from: usize,
    pub to: usize,
    pub family: usize,
    pub protocol: u8,
    pub port: u16,
    /// A Service that leads there.
    pub service: Option<usize>,
}

pub struct Field {
    pub node: Node,
    /// Namespaces: the node's, three of pods, and that of all others.
    places: Vec<Ns>,
    ends: Vec<End>,
    /// Raw sockets by place: what arrives of SCTP and of ICMP, and one to send either with a header of our own.
    sctp: Vec<OwnedFd>,
    icmp: Vec<OwnedFd>,
    crafted: Vec<OwnedFd>,
    round: u32,
    /// Whether the probes of the round before were to pass.
    before: Vec<bool>,
}

fn pod(name: &str) -> Value {
    let (space, own) = name.split_once('/').unwrap();
    let (_, v4, v6) = ENDS.iter().find(|(end, ..)| *end == name).unwrap();
    let port = |number: u16, protocol: &str| json!({"name": format!("serve-{number}-{}", protocol.to_lowercase()), "containerPort": number, "protocol": protocol});
    let ports: Vec<Value> = PORTS.iter().flat_map(|n| ["TCP", "UDP", "SCTP"].map(|p| port(*n, p))).collect();
    json!({
        "metadata": {"namespace": space, "name": own, "labels": {"pod": own, "a": if own == "a" { "x" } else { "y" }}},
        "spec": {"nodeName": if LOCAL.contains(&name) { US } else { "n2" }, "serviceAccountName": own, "containers": [{"ports": ports}]},
        "status": {"phase": "Running", "podIPs": [{"ip": v4}, {"ip": v6}]},
    })
}

/// The cluster without policies.
pub fn cluster() -> World {
    let mut world = World::default();
    for (name, ..) in ENDS.iter().filter(|(name, ..)| name.contains('/')) {
        world.pods.insert((*name).to_owned(), pod(name));
        let (space, own) = name.split_once('/').unwrap();
        world.spaces.insert(
            space.into(),
            json!({"metadata": {"name": space, "labels": {"ns": space, "team": if space == "x" { "x" } else { "y" }}}}),
        );
        world.accounts.insert(
            (*name).to_owned(),
            json!({"metadata": {"namespace": space, "name": own, "labels": {"role": own}}}),
        );
    }
    for (name, end) in [(US, "node"), ("n2", "other node")] {
        let (_, v4, v6) = ENDS.iter().find(|(own, ..)| *own == end).unwrap();
        let addresses = json!([{"type": "InternalIP", "address": v4}, {"type": "InternalIP", "address": v6}]);
        let node = json!({"metadata": {"name": name, "labels": {"node": name}}, "status": {"addresses": addresses}});
        world.nodes.insert(name.into(), node);
    }
    world
}

fn heard<T: serde::de::DeserializeOwned>(all: &BTreeMap<String, Value>) -> Heard<T> {
    Heard::All(all.values().map(|value| serde_json::from_value(value.clone()).unwrap()).collect())
}

/// What the daemon does: a model, and the renderer that follows it.
pub struct Ruler {
    model: Model,
    pub rules: Rules,
    pub pods: Pods,
}

impl Ruler {
    pub fn new() -> Ruler {
        let here = Here { name: US.into(), addresses: NODE.iter().map(|addr| addr.parse().unwrap()).collect() };
        let pods = LOCAL.iter().zip(1u16..).map(|(name, seat)| {
            let (_, v4, v6) = ENDS.iter().find(|(end, ..)| end == name).unwrap();
            let placed = Placed::new(seat, [v4, v6].map(|a| a.parse().unwrap()));
            (Name::from(*name), placed.by([format!("calipod{}", seat - 1)]))
        });
        Ruler { model: Model::new(here), rules: Rules::default(), pods: pods.collect() }
    }

    pub fn hear(&mut self, world: &World) {
        self.model.hear_pods(heard(&world.pods));
        self.model.hear_namespaces(heard(&world.spaces));
        self.model.hear_accounts(heard(&world.accounts));
        self.model.hear_nodes(heard(&world.nodes));
        self.model.hear(Told::NetworkPolicy, heard(&world.policies));
        self.model.hear(Told::ClusterNetworkPolicy, heard(&world.admin));
        self.model.hear(Told::CalicoNetworkPolicy, heard(&world.calico));
        self.model.hear(Told::CalicoGlobalNetworkPolicy, heard(&world.global));
        self.model.hear(Told::NetworkSet, heard(&world.sets));
        self.model.hear(Told::GlobalNetworkSet, heard(&world.global_sets));
    }

    pub fn settle(&mut self) -> Vec<Write> {
        let writes = self.model.changes().writes;
        writes.iter().for_each(|write| self.rules.apply(write));
        writes
    }

    /// The node's part of it, in the node's namespace.
    pub fn follow(&mut self, world: &World, node: &Node, renderer: &mut dyn Renderer) {
        self.hear(world);
        let writes = self.settle();
        node.run(|| renderer.apply(&writes, &self.rules, &self.pods)).unwrap();
    }
}

/// How the node's pods are wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// A veth to the node, which forwards.
    Veth,
    /// An ENI to itself, by which all is reached but the node.
    Whole,
    /// A slave of the node's ENI, as is the node's own way to its pods.
    Slave,
}

/// Where slaves are, and where all else that is not on the node is.
const ENI: &str = "02:00:00:00:00:03";
const VPC: &str = "02:00:00:00:00:04";

impl Field {
    pub fn new() -> Field {
        Field::wired(Wiring::Veth)
    }

    pub fn wired(wiring: Wiring) -> Field {
        let home = Node::new("node");
        let node = home.ns();
        let far = Ns::new("far");
        node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        if wiring != Wiring::Veth {
            // It is the VPC between the node's pods, too, and tells nobody of shorter ways.
            far.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
            far.sh("sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0");
        }
        node.sh(&format!("ip link add eth0 type veth peer name eth0 netns {}", far.name()));
        lead(node, "eth0", "02:00:00:00:00:01");
        lead(&far, "eth0", "02:00:00:00:00:02");
        node.sh(&format!("ip addr add {}/32 dev eth0; ip addr add {}/128 dev eth0 nodad", NODE[0], NODE[1]));
        for (name, v4, v6) in ENDS {
            if !LOCAL.contains(&name) && name != "node" {
                far.sh(&format!("ip addr add {v4}/32 dev lo; ip addr add {v6}/128 dev lo nodad"));
                node.sh(&format!("ip route add {v4}/32 via inet 192.168.0.2 dev eth0 onlink src {}", NODE[0]));
                node.sh(&format!("ip route add {v6}/128 via fd00:192::2 dev eth0 onlink src {}", NODE[1]));
            }
        }
        neighbour(node, "eth0", "192.168.0.2", "fd00:192::2", "02:00:00:00:00:02");
        neighbour(&far, "eth0", NODE[0], NODE[1], "02:00:00:00:00:01");
        far.sh(&format!(
            "ip route add default via {} dev eth0 onlink; ip route add default via {} dev eth0 onlink",
            NODE[0], NODE[1]
        ));
        let mut places = Vec::new();
        for (n, name) in LOCAL.iter().enumerate() {
            let (_, v4, v6) = ENDS.iter().find(|(end, ..)| end == name).unwrap();
            let pod = Ns::new("pod");
            match wiring {
                Wiring::Veth => {
                    pair((node, &format!("calipod{n}"), Some(NODE)), n, (&pod, "eth0"), [v4, v6]);
                    default_route(&pod);
                }
                Wiring::Whole => {
                    pair((&far, &format!("eni{n}"), None), n, (&pod, "eth0"), [v4, v6]);
                    default_route(&pod);
                    pair((node, &format!("calipod{n}"), Some(NODE)), 8 + n, (&pod, "veth1"), [v4, v6]);
                    pod.sh(&format!(
                        "ip route add {}/32 via 169.254.1.1 dev veth1 onlink; ip route add {}/128 via fe80::1 dev veth1 onlink",
                        NODE[0], NODE[1]
                    ));
                }
                Wiring::Slave => slave(node, &far, &pod, [v4, v6], n == 0),
            }
            places.push(pod);
        }
        places.push(far);
        let mut field = Field {
            node: home,
            places,
            ends: Vec::new(),
            sctp: Vec::new(),
            icmp: Vec::new(),
            crafted: Vec::new(),
            round: 0,
            before: Vec::new(),
        };
        field.ends = ENDS.iter().map(|end| field.end(*end)).collect();
        for place in 0..=LOCAL.len() + 1 {
            let kinds = [ipproto::SCTP, ipproto::ICMP, ipproto::RAW];
            let [sctp, icmp, crafted] = kinds.map(|kind| field.in_place(place, || raw(kind)));
            field.sctp.push(sctp);
            field.icmp.push(icmp);
            field.crafted.push(crafted);
        }
        field
    }

    /// As kube-proxy does it, and beside rules of ours that are nobody else's.
    pub fn serve(&self) {
        let mut text = String::from("*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n");
        for (service, end, port) in SERVICES {
            let (_, v4, _) = ENDS.iter().find(|(name, ..)| *name == end).unwrap();
            for protocol in ["tcp", "udp"] {
                text += &format!(
                    "-A KUBE-SERVICES -d {service}/32 -p {protocol} -m {protocol} --dport 80 -j DNAT --to-destination {v4}:{port}\n"
                );
            }
        }
        text += "COMMIT\n";
        self.node.sh(&format!("iptables-restore --noflush <<'END'\n{text}END\n"));
    }

    /// The same where it leads by IPVS, whose virtual servers are there before or after the sets that name them.
    pub fn serve_by_ipvs(&self) {
        for (service, end, port) in SERVICES {
            let (_, v4, _) = ENDS.iter().find(|(name, ..)| *name == end).unwrap();
            ipvs::bears(&self.node, service);
            ipvs::leads(&self.node, &format!("{service}:80"), &format!("{v4}:{port}"));
            ipvs::names(&self.node, service, 80);
        }
    }

    fn in_place<T: Send>(&self, place: usize, f: impl FnOnce() -> T + Send) -> T {
        if place == 0 { self.node.run(f) } else { self.places[place - 1].run(f) }
    }

    fn end(&self, (name, v4, v6): (&'static str, &str, &str)) -> End {
        let addrs: [IpAddr; 2] = [v4, v6].map(|addr| addr.parse().unwrap());
        let local = LOCAL.iter().position(|local| *local == name);
        let place = if name == "node" { 0 } else { local.map_or(LOCAL.len() + 1, |n| n + 1) };
        let udp = |addr: IpAddr, port| {
            let socket = UdpSocket::bind((addr, port)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let tcp = |addr: IpAddr, port| {
            let listener = TcpListener::bind((addr, port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        self.in_place(place, || End {
            name,
            addrs,
            place,
            out: addrs.iter().map(|addr| udp(*addr, SOURCE)).collect(),
            inward: addrs.iter().flat_map(|addr| PORTS.map(|port| udp(*addr, port))).collect(),
            listeners: addrs.iter().flat_map(|addr| PORTS.map(|port| tcp(*addr, port))).collect(),
        })
    }

    /// The namespace that an end is in.
    pub fn place(&self, name: &str) -> &Ns {
        let place = self.ends[self.named(name)].place;
        if place == 0 { self.node.ns() } else { &self.places[place - 1] }
    }

    pub fn named(&self, name: &str) -> usize {
        self.ends.iter().position(|end| end.name == name).unwrap()
    }

    pub fn name(&self, end: usize) -> &'static str {
        self.ends[end].name
    }

    pub fn addr(&self, end: usize, family: usize) -> IpAddr {
        self.ends[end].addrs[family]
    }

    /// Between all ends of which at least one is a pod of the node's, and to the Services.
    pub fn matrix(&self, with_services: bool) -> Vec<Probe> {
        let is_local = |end: usize| LOCAL.contains(&self.name(end));
        let mut probes = Vec::new();
        for from in 0..self.ends.len() {
            for to in (0..self.ends.len()).filter(|to| *to != from && (is_local(from) || is_local(*to))) {
                for family in 0..2 {
                    let probe = |protocol, port| Probe { from, to, family, protocol, port, service: None };
                    probes.extend(PORTS.map(|port| probe(UDP, port)));
                    probes.extend(PORTS.map(|port| probe(TCP, port)));
                    if family == 0 {
                        probes.extend([probe(SCTP, 80), probe(ICMP, ECHO)]);
                    }
                }
            }
            for (n, (_, end, port)) in SERVICES.iter().enumerate().filter(|_| with_services && is_local(from)) {
                let to = self.named(end);
                let probe = |protocol| Probe { from, to, family: 0, protocol, port: *port, service: Some(n) };
                probes.extend([UDP, TCP].map(probe).into_iter().filter(|_| to != from));
            }
        }
        probes
    }

    /// By the specifications: what each side says that is a pod of this node.
    pub fn is_allowed(&self, world: &World, probe: &Probe) -> bool {
        let [from, to] = [probe.from, probe.to];
        let says = |pod: usize, other: usize, direction| {
            let Probe { family, protocol, port, .. } = *probe;
            let other = self.addr(other, family);
            let source = if protocol == ICMP { 0 } else { SOURCE };
            let flow = Flow { pod: self.name(pod), direction, other, protocol, from: source, to: port };
            !LOCAL.contains(&self.name(pod)) || world.says(&flow).allow
        };
        says(from, to, Direction::Egress) && says(to, from, Direction::Ingress)
    }

    fn target(&self, probe: &Probe) -> SocketAddr {
        match probe.service {
            Some(n) => SocketAddr::new(SERVICES[n].0.parse().unwrap(), 80),
            None => SocketAddr::new(self.addr(probe.to, probe.family), probe.port),
        }
    }

    /// Sends all of them, and says which went otherwise than expected.
    pub fn round(&mut self, probes: &[Probe], expected: &[bool]) -> Vec<String> {
        self.round += 1;
        let mut round = Round { number: self.round, passed: vec![false; probes.len()], late: BTreeSet::new() };
        let connecting = self.connect(probes);
        for (n, probe) in probes.iter().enumerate() {
            self.send(n, probe);
        }
        let begun = Instant::now();
        loop {
            let has_all = round.passed.iter().zip(expected).all(|(passed, expected)| *passed || !expected);
            self.hear(&mut round);
            for (n, socket) in &connecting {
                round.passed[*n] |= rustix::net::getpeername(socket).is_ok();
            }
            // Once more, for what was not to come.
            if has_all || begun.elapsed() > PATIENCE {
                break;
            }
            std::thread::yield_now();
        }
        self.accept();
        let mut wrong: Vec<String> = probes
            .iter()
            .zip(round.passed.iter().zip(expected))
            .filter(|(_, (passed, expected))| passed != expected)
            .map(|(probe, (passed, _))| self.tell(probe, *passed))
            .collect();
        let before = std::mem::replace(&mut self.before, expected.to_vec());
        let late = round.late.into_iter().filter(|n| before.get(*n) == Some(&false));
        wrong.extend(late.map(|n| format!("probe {n} of the round before passed, late")));
        wrong
    }

    fn tell(&self, probe: &Probe, passed: bool) -> String {
        let Probe { from, to, protocol, port, service, family } = *probe;
        let way = service.map(|n| format!(" by {}", SERVICES[n].0)).unwrap_or_default();
        let what = if passed { "passed" } else { "did not pass" };
        format!(
            "{} -> {}{way}, protocol {protocol} port {port} of family {family} {what}",
            self.name(from),
            self.name(to)
        )
    }

    fn send(&self, n: usize, probe: &Probe) {
        let End { out, place, addrs, .. } = &self.ends[probe.from];
        let target = self.target(probe);
        let mut tag = self.round.to_be_bytes().to_vec();
        tag.extend((n as u32).to_be_bytes());
        match probe.protocol {
            // A full buffer would be an error that says so.
            UDP => drop(out[probe.family].send_to(&tag, target).unwrap()),
            SCTP => send_raw(&self.crafted[*place], addrs[0], target.ip(), 132, &init(probe.port, &tag)),
            ICMP => send_raw(&self.crafted[*place], addrs[0], target.ip(), 1, &echo(&tag)),
            _ => {}
        }
    }

    /// Connections of TCP, begun.
    fn connect(&self, probes: &[Probe]) -> Vec<(usize, OwnedFd)> {
        let mut begun = Vec::new();
        for place in 0..=LOCAL.len() + 1 {
            let of: Vec<(usize, &Probe)> = probes
                .iter()
                .enumerate()
                .filter(|(_, probe)| probe.protocol == TCP && self.ends[probe.from].place == place)
                .collect();
            begun.extend(self.in_place(place, || {
                let connect = |(n, probe): &(usize, &Probe)| {
                    (*n, connect(self.addr(probe.from, probe.family), own_port(probe), self.target(probe)))
                };
                of.iter().map(connect).collect::<Vec<_>>()
            }));
        }
        begun
    }

    fn accept(&self) {
        for listener in self.ends.iter().flat_map(|end| &end.listeners) {
            while let Ok((stream, _)) = listener.accept() {
                // No connection stays behind that waits for its end.
                sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            }
        }
    }

    fn hear(&self, round: &mut Round) {
        let mut buffer = [0; 256];
        for socket in self.ends.iter().flat_map(|end| &end.inward) {
            while let Some((len, from)) = received(socket, &mut buffer) {
                round.seen(&buffer[..len], false);
                socket.send_to(&buffer[..len], from).unwrap();
            }
        }
        for socket in self.ends.iter().flat_map(|end| &end.out) {
            while let Some((len, _)) = received(socket, &mut buffer) {
                round.seen(&buffer[..len], true);
            }
        }
        for socket in &self.sctp {
            while let Ok((len, _)) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                // After the headers of IP and SCTP and the chunk's fixed part.
                round.seen(buffer.get(20 + 12 + 20 + 4..len).unwrap_or_default(), true);
            }
        }
        for socket in &self.icmp {
            while let Ok((len, _)) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                // The answer, not the question that others see too.
                round.seen(buffer.get(28..len).unwrap_or_default(), buffer[20] == 0);
            }
        }
    }
}

struct Round {
    number: u32,
    passed: Vec<bool>,
    /// Of the round before.
    late: BTreeSet<usize>,
}

impl Round {
    /// Of one that was to be dropped the first half of the way is too much already.
    fn seen(&mut self, tag: &[u8], is_answered: bool) {
        let number = |at: usize| tag.get(at..at + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
        let (Some(round), Some(n)) = (number(0), number(4)) else { return };
        if round == self.number && is_answered {
            self.passed[n as usize] = true;
        } else if round + 1 == self.number {
            self.late.insert(n as usize);
        }
    }
}

fn received(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Ok(got) => return Some(got),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
            // What ICMP says of an earlier packet.
            Err(_) => {}
        }
    }
}

/// IPVS changes no client's port: what it leads to a backend must not be taken for what a client sent there itself, for as long as it
/// remembers. 0: whichever is free.
fn own_port(probe: &Probe) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    probe.service.map_or(0, |_| NEXT.fetch_add(1, Ordering::Relaxed))
}

fn connect(from: IpAddr, port: u16, to: SocketAddr) -> OwnedFd {
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket =
        rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
            .unwrap();
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    rustix::net::bind(&socket, &SocketAddr::new(from, port)).unwrap();
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => socket,
        Err(e) => panic!("connect {from} to {to}: {e}"),
    }
}

fn raw(protocol: Protocol) -> OwnedFd {
    rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(protocol)).unwrap()
}

/// From any of the place's addresses.
fn send_raw(socket: &OwnedFd, from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (from, to) else { panic!("IPv4 only") };
    let mut packet = vec![0x45, 0];
    packet.extend((20 + body.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend(src.octets().iter().chain(&dst.octets()));
    packet.extend(body);
    rustix::net::sendto(socket, &packet, SendFlags::empty(), &SocketAddr::new(to, 0)).unwrap();
}

fn echo(tag: &[u8]) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0, tag[6], tag[7], tag[2], tag[3]];
    packet.extend(tag);
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// An INIT of SCTP that conntrack takes for one, with the tag as a parameter.
fn init(port: u16, tag: &[u8]) -> Vec<u8> {
    let mut packet = SOURCE.to_be_bytes().to_vec();
    packet.extend(port.to_be_bytes());
    // No verification tag yet, and no checksum.
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 32, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    packet.extend([0x80, 0x77, 0, 12]);
    packet.extend(tag);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A veth to a pod, whose addresses are there.
fn pair((outer, veth, own): (&Ns, &str, Option<[&str; 2]>), n: usize, (pod, link): (&Ns, &str), [v4, v6]: [&str; 2]) {
    let [outside, inside] = [1, 2].map(|side| format!("02:00:00:00:0{side}:{n:02x}"));
    outer.sh(&format!("ip link add {veth} type veth peer name {link} netns {}", pod.name()));
    lead(outer, veth, &outside);
    lead(pod, link, &inside);
    // The second link bears none: they are the pod's already.
    if link == "eth0" {
        pod.sh(&format!("ip addr add {v4}/32 dev {link}; ip addr add {v6}/128 dev {link} nodad"));
    }
    neighbour(pod, link, "169.254.1.1", "fe80::1", &outside);
    let [from, from_v6] = own.map_or_else(Default::default, |own| own.map(|addr| format!(" src {addr}")));
    outer.sh(&format!("ip route add {v4}/32 dev {veth}{from}; ip route add {v6}/128 dev {veth}{from_v6}"));
    neighbour(outer, veth, v4, v6, &inside);
}

fn default_route(pod: &Ns) {
    pod.sh("ip route add default via 169.254.1.1 dev eth0 onlink; ip route add default via fe80::1 dev eth0 onlink");
}

/// A slave in the pod, and with the first one the ENI itself and the node's own slave.
fn slave(node: &Ns, far: &Ns, pod: &Ns, [v4, v6]: [&str; 2], is_first: bool) {
    let kind = "type ipvlan mode l2";
    if is_first {
        node.sh(&format!("ip link add eni type veth peer name eni netns {}", far.name()));
        lead(node, "eni", ENI);
        lead(far, "eni", VPC);
        node.sh(&format!(
            "ip link add ipvl link eni {kind}; ip link set ipvl arp off up; ip addr add {}/32 dev ipvl; ip addr add {}/128 dev ipvl nodad",
            NODE[0], NODE[1]
        ));
    }
    node.sh(&format!("ip link add link eni name slave netns {} {kind}", pod.name()));
    pod.sh("ip link set slave name eth0; sysctl -qw net.ipv6.conf.eth0.accept_dad=0 net.ipv6.conf.eth0.accept_redirects=0; ip link set eth0 arp off up");
    pod.sh(&format!("ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad"));
    default_route(pod);
    neighbour(pod, "eth0", "169.254.1.1", "fe80::1", VPC);
    // The node is a slave like they are.
    pod.sh(&format!("ip route add {}/32 dev eth0; ip route add {}/128 dev eth0", NODE[0], NODE[1]));
    neighbour(pod, "eth0", NODE[0], NODE[1], ENI);
    node.sh(&format!("ip route add {v4}/32 dev ipvl src {}; ip route add {v6}/128 dev ipvl src {}", NODE[0], NODE[1]));
    neighbour(node, "ipvl", v4, v6, ENI);
    far.sh(&format!("ip route add {v4}/32 dev eni; ip route add {v6}/128 dev eni"));
    neighbour(far, "eni", v4, v6, ENI);
}

fn lead(ns: &Ns, link: &str, mac: &str) {
    ns.sh(&format!("sysctl -qw net.ipv6.conf.{link}.accept_dad=0; ip link set {link} address {mac} up"));
}

fn neighbour(ns: &Ns, link: &str, v4: &str, v6: &str, mac: &str) {
    for addr in [v4, v6] {
        ns.sh(&format!("ip neigh add {addr} lladdr {mac} dev {link} nud permanent"));
    }
}
