//! IPVS as kube-proxy sets it up: addresses of Services on a dummy link, virtual servers, conntrack, and a mark for what is masqueraded.

use std::net::SocketAddr;

use super::node::Node;
use super::skip;
use super::traffic::Place;

const LINK: &str = "kube-ipvs0";

/// Makes a node ready for virtual servers. False, and said: this kernel has no IPVS.
pub fn begin(node: &Node) -> bool {
    if node.sh("ipvsadm -L >/dev/null 2>&1 || echo none").contains("none") {
        skip::because("needs IPVS");
        return false;
    }
    node.sh(&format!("ip link add {LINK} type dummy; sysctl -qw net.ipv4.vs.conntrack=1"));
    for iptables in ["iptables", "ip6tables"] {
        node.sh(&format!("{iptables} -w -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE"));
    }
    true
}

/// A Service's address.
pub fn bears(node: &Node, ip: &str) {
    let prefix = if ip.contains(':') { 128 } else { 32 };
    node.sh(&format!("ip addr add {ip}/{prefix} dev {LINK}"));
}

/// A virtual server for TCP and UDP, and its one endpoint.
pub fn leads(node: &Node, at: &str, to: &str) {
    for protocol in ["-t", "-u"] {
        node.sh(&format!("ipvsadm -A {protocol} {at} -s rr && ipvsadm -a {protocol} {at} -r {to} -m"));
    }
}

/// Clients of this port are to be seen as the node.
pub fn masquerades(node: &Node, at: &str) {
    let at: SocketAddr = at.parse().unwrap();
    let iptables = if at.is_ipv4() { "iptables" } else { "ip6tables" };
    for protocol in ["tcp", "udp"] {
        let what = format!("-d {} -p {protocol} --dport {}", at.ip(), at.port());
        node.sh(&format!("{iptables} -w -t nat -A PREROUTING {what} -j MARK --set-xmark 0x4000/0x4000"));
    }
}

/// In the sets by which kube-proxy's own rules know it.
pub fn names(node: &Node, service: &str, port: u16) {
    let (set, family) =
        if service.contains(':') { ("KUBE-6-CLUSTER-IP", "inet6") } else { ("KUBE-CLUSTER-IP", "inet") };
    node.sh(&format!("ipset -exist create {set} hash:ip,port family {family}"));
    for protocol in ["tcp", "udp"] {
        node.sh(&format!("ipset add {set} {service},{protocol}:{port}"));
    }
}

/// A port of the node.
pub fn names_port(node: &Node, port: u16) {
    for set in ["KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-UDP", "KUBE-6-NODE-PORT-TCP", "KUBE-6-NODE-PORT-UDP"] {
        node.sh(&format!("ipset create {set} bitmap:port range 0-65535; ipset add {set} {port}"));
    }
}
