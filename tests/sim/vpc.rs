//! Two nodes in a VPC that drops what is forged, with neither cloud nor daemon: whoever has a plan applies it, as both would.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use terway::datapath::{self, EniSetup, NodeSetup, Setup};
use terway::error::Error;
use terway::ip::{IpPair, Mac, NetPair, Stack};
use terway::kernel::Kernel;
use terway::ours;
use terway::plan::Plan;
use terway::pod::{Attachment, PodName, Sandbox};
use terway::rate::{Both, Limit, Limits};
use terway::rpc::{EniLease, Lease, Marker, Wiring};

use super::fabric::{Card, Drops, Fabric};
use super::node::{Node, Pod};
use super::traffic::{Place, TcpEcho, UdpEcho};

pub const MTU: u32 = 1500;
pub const NODE: &str = "192.168.0.10";
pub const NODE_V6: &str = "fd00:0:0:1::10";
pub const REMOTE: &str = "192.168.0.11";
pub const REMOTE_V6: &str = "fd00:0:0:1::11";
/// Of the pods' vSwitch.
pub const GATEWAY: &str = "192.168.63.253";
const GATEWAY_V6: &str = "fd00:0:0:2:ffff:ffff:ffff:fffd";

/// The first node has ENIs for pods, the second stands for everything that is elsewhere.
pub struct Vpc {
    pub node: Node,
    pub remote: Node,
    pub fabric: Fabric,
}

impl Vpc {
    pub fn new(node: Node) -> Vpc {
        let fabric = Fabric::new(&["192.168.0.0/16".parse().unwrap(), "fd00::/56".parse().unwrap()]);
        let vpc = Vpc { node, remote: Node::new("remote"), fabric };
        vpc.boot(&vpc.node, "eni-n", "00:16:3e:00:00:0a", [NODE, NODE_V6]);
        vpc.boot(&vpc.remote, "eni-r", "00:16:3e:00:00:0b", [REMOTE, REMOTE_V6]);
        let setup = NodeSetup { stack: Stack::Dual, ..NodeSetup::default() };
        vpc.kernel(|kernel| kernel.apply(&datapath::node(&setup)).unwrap());
        vpc.kernel(|kernel| kernel.apply(&datapath::masquerade(&node_ips())).unwrap());
        for answers in [datapath::answers, datapath::answers_of_ipvs] {
            vpc.kernel(|kernel| kernel.apply(&answers(Stack::Dual)).unwrap());
        }
        vpc
    }

    fn boot(&self, node: &Node, id: &str, mac: &str, [v4, v6]: [&str; 2]) {
        let gateway: Ipv6Addr = "fd00:0:0:1:ffff:ffff:ffff:fffd".parse().unwrap();
        let card = Card { gateway_v6: Some(gateway), ..Card::new(id, mac, &[v4, v6]) };
        self.fabric.plug(&card, node.ns().name());
        node.sh("sysctl -qw net.ipv6.conf.eth0.accept_ra=0 net.ipv6.conf.eth0.accept_dad=0");
        node.dhcp(format!("{v4}/19").parse().unwrap(), "192.168.31.253".parse().unwrap());
        self.fabric.settle();
        node.sh(&format!("ip addr add {v6}/128 dev eth0 nodad; ip route add {gateway}/128 dev eth0"));
        node.sh(&format!("ip route add default via {gateway} dev eth0"));
    }

    /// Works on the node.
    pub fn kernel<T: Send>(&self, f: impl FnOnce(&mut Kernel) -> T + Send) -> T {
        self.node.run(|| f(&mut Kernel::host().unwrap()))
    }

    /// Hot-plugs an ENI with these addresses (by their last part) into the node.
    pub fn plug(&self, slot: u8, last: &[u8]) -> EniLease {
        let (id, mac) = (format!("eni-{slot}"), Mac([0, 0x16, 0x3e, 0, 1, slot]));
        let addrs: Vec<String> = last.iter().flat_map(|n| ips(*n)).map(|ip| ip.to_string()).collect();
        let addrs: Vec<&str> = addrs.iter().map(String::as_str).collect();
        let gateway: Ipv6Addr = GATEWAY_V6.parse().unwrap();
        let card = Card { gateway_v6: Some(gateway), ..Card::new(&id, &mac.to_string(), &addrs) };
        self.fabric.plug(&card, self.node.ns().name());
        let link = self.kernel(|kernel| kernel.link_by_mac(mac).unwrap().unwrap());
        let cidr = NetPair::v4("192.168.32.0/19".parse().unwrap());
        EniLease {
            id,
            mac,
            vswitch: "vsw-pod".into(),
            cidr: NetPair { v6: Some("fd00:0:0:2::/64".parse().unwrap()), ..cidr },
            gateway: IpPair { v6: Some(gateway), ..IpPair::v4(GATEWAY.parse().unwrap()) },
            slot: slot.into(),
            table: ours::eni_table(link.ifindex),
        }
    }

    /// The name of the ENI's link on the node.
    pub fn link(&self, eni: &EniLease) -> String {
        self.node.ifname(&eni.mac.to_string()).unwrap()
    }

    /// Makes an ENI ready for pods with a veth, on a node of these addresses.
    pub fn ready(&self, eni: &EniLease, node: &IpPair) {
        let plan = datapath::eni(&EniSetup { eni, link: &self.link(eni), mtu: MTU, node });
        self.kernel(|kernel| kernel.apply(&plan).unwrap());
    }

    /// A pod that has its lease, and is not wired yet.
    pub fn pod(&self, name: &str, eni: &EniLease, last: u8, wiring: Wiring) -> Guest<'_> {
        let pod = self.node.pod(name);
        let attachment = Attachment { container: format!("c-{name}"), ifname: "eth0".into() };
        let lease = Lease {
            pod: PodName::new("default", name),
            sandbox: Sandbox { attachment, netns: pod.netns().into() },
            ip: ips(last).into_iter().collect(),
            eni: eni.clone(),
            node: node_ips(),
            marker: Marker::Bpf,
            sticky: false,
            heritage: None,
            bandwidth: Both::default(),
            wiring,
            routes: Vec::new(),
            seat: None,
            mtu: None,
            network: None,
        };
        Guest { vpc: self, plan: datapath::pod(&Setup::new(&lease, MTU)), lease, pod }
    }

    /// What kube-proxy would write for a Service and its one endpoint, or for a port of the node.
    pub fn leads(&self, at: &str, to: &str) {
        let (at, to): (SocketAddr, SocketAddr) = (at.parse().unwrap(), to.parse().unwrap());
        let iptables = if at.is_ipv4() { "iptables" } else { "ip6tables" };
        for (chain, protocol) in [("PREROUTING", "tcp"), ("PREROUTING", "udp"), ("OUTPUT", "tcp"), ("OUTPUT", "udp")] {
            let what = format!("-d {} -p {protocol} --dport {}", at.ip(), at.port());
            self.node.sh(&format!("{iptables} -w -t nat -A {chain} {what} -j DNAT --to-destination {to}"));
        }
    }

    /// Nobody's packet was taken for a forged one.
    pub fn is_calm(&self) {
        assert_eq!(self.fabric.drops(), Drops::default());
    }
}

pub fn node_ips() -> IpPair {
    IpPair { v6: Some(NODE_V6.parse().unwrap()), ..IpPair::v4(NODE.parse().unwrap()) }
}

/// Where Services are.
pub fn services() -> NetPair {
    NetPair { v6: Some("fd21::/112".parse().unwrap()), ..NetPair::v4("172.21.0.0/20".parse().unwrap()) }
}

/// The addresses of a pod.
fn ips(last: u8) -> [IpAddr; 2] {
    [addr(&format!("192.168.32.{last}")), addr(&format!("fd00:0:0:2::{last:x}"))]
}

pub fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn at(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

/// A pod of the first node.
pub struct Guest<'a> {
    pub vpc: &'a Vpc,
    pub lease: Lease,
    pub plan: Plan,
    pub pod: Pod,
}

impl Guest<'_> {
    /// Works on the node and in the pod.
    pub fn kernel<T: Send>(&self, f: impl FnOnce(&mut Kernel) -> T + Send) -> T {
        self.vpc.kernel(|kernel| {
            kernel.enter(self.pod.netns()).unwrap();
            f(kernel)
        })
    }

    pub fn try_apply(&self) -> Result<(), Error> {
        self.kernel(|kernel| kernel.apply(&self.plan))
    }

    pub fn apply(&self) {
        self.try_apply().unwrap();
        // A pod may have brought up a link of the VPC.
        self.vpc.fabric.settle();
        assert_eq!(self.check(), "clean");
    }

    pub fn check(&self) -> String {
        self.kernel(|kernel| kernel.check(&self.plan)).unwrap().map_or("clean".into(), |d| d.to_string())
    }

    pub fn undo(&self) {
        self.kernel(|kernel| kernel.undo(&self.plan)).unwrap();
    }

    /// Makes its lease another one, and the plan with it.
    pub fn amend(&mut self, how: impl FnOnce(&mut Lease)) {
        how(&mut self.lease);
        self.plan = datapath::pod(&Setup::new(&self.lease, MTU));
    }

    pub fn limit(&mut self, limits: Limits) {
        self.amend(|lease| lease.bandwidth = Both::<Limit>::default().ask(limits));
    }

    pub fn ips(&self) -> Vec<IpAddr> {
        self.lease.ip.iter().collect()
    }

    /// An echo server for TCP and UDP in this pod.
    pub fn serves(&self, port: u16) -> (TcpEcho, UdpEcho) {
        let at = format!("[::]:{port}");
        (self.pod.tcp_echo(&at), self.pod.udp_echo(&at))
    }
}
