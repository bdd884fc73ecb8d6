//! Who reaches whom: pods, nodes, the world beyond the VPC, and Services as kube-proxy makes them.

use std::net::IpAddr;

use serde_json::json;
use terway::ours::host_veth;

use super::wait_for_enis;
use crate::sim::cluster::{Cluster, Member};
use crate::sim::fabric::{Drops, OUTSIDE};
use crate::sim::traffic::{Place, reaches, seen_as};
use crate::sim::world::{self, World};

/// Two nodes; `a` and `c` on one ENI of the first, `b` on its other one, `d` on the second node.
pub(super) struct Town {
    pub cluster: Cluster,
    pub a: Member,
    pub b: Member,
    pub c: Member,
    pub d: Member,
}

impl Town {
    fn new() -> Town {
        Town::of(World::with_nodes(world::config(), 2, "ecs.sim.large"), "ipv4")
    }

    pub fn of(world: World, stack: &str) -> Town {
        let mut cluster = Cluster::over(world);
        for n in [0, 1] {
            cluster.configure(n, &json!({"eni_selection_policy": "least_ips", "min_eni": 2, "ip_stack": stack}));
            cluster.start(n);
        }
        cluster.wait_ready(0);
        cluster.wait_ready(1);
        wait_for_enis(&cluster, 2);
        // The ENI with the fewest pods is next, where it has an address to spare: among three pods two share one.
        let mut pods = ["a", "b", "c"].map(|name| cluster.add(0, name));
        if eni_of(&cluster, &pods[0]) == eni_of(&cluster, &pods[1]) {
            pods.swap(1, 2);
        } else if eni_of(&cluster, &pods[0]) != eni_of(&cluster, &pods[2]) {
            pods.swap(0, 1);
        }
        let [a, b, c] = pods;
        assert_eq!(eni_of(&cluster, &a), eni_of(&cluster, &c));
        assert_ne!(eni_of(&cluster, &a), eni_of(&cluster, &b));
        let d = cluster.add(1, "d");
        Town { cluster, a, b, c, d }
    }

    fn node(&self, n: usize) -> String {
        self.cluster.node(n).addr.to_string()
    }

    pub fn drops(&self) -> Drops {
        self.cluster.world.fabric.drops()
    }
}

fn eni_of(cluster: &Cluster, member: &Member) -> String {
    let ip: IpAddr = member.ip.parse().expect("an address");
    let mut enis = cluster.world.cloud.enis_of("i-1").into_iter();
    enis.find(|eni| eni.v4.iter().map(|a| IpAddr::V4(*a)).chain(eni.v6.iter().map(|a| IpAddr::V6(*a))).any(|a| a == ip))
        .expect("it is on an ENI of the node")
        .id
}

/// The id of the program that marks what the pod sends.
fn marking(cluster: &Cluster, member: &Member) -> String {
    let host = host_veth(&member.sandbox.pod, "eth0");
    let filters = cluster.node(0).sh(&format!("tc filter show dev {host} ingress"));
    let marks = filters.lines().find(|line| line.contains("bpf mark")).expect("its packets are marked");
    marks.split(' ').skip_while(|word| *word != "id").nth(1).expect("tc tells the id").to_owned()
}

#[test]
fn everybody_reaches_everybody_and_no_packet_is_taken_for_a_forged_one() {
    let town = Town::new();
    let Town { cluster, a, b, c, d } = &town;
    let (one, two) = (cluster.node(0), cluster.node(1));
    reaches(&a.pod, "to a pod of the same ENI", &c.pod, &c.ip);
    reaches(&a.pod, "to a pod of the other ENI", &b.pod, &b.ip);
    reaches(&b.pod, "back from the other ENI", &a.pod, &a.ip);
    reaches(&a.pod, "to a pod of the other node", &d.pod, &d.ip);
    reaches(&d.pod, "from the other node to the second ENI", &b.pod, &b.ip);
    reaches(&a.pod, "to itself", &a.pod, &a.ip);
    for member in [a, b] {
        reaches(&member.pod, "to its own node", &one.node, town.node(0));
        reaches(&one.node, "from its own node", &member.pod, &member.ip);
        reaches(&member.pod, "to the other node", &two.node, town.node(1));
        reaches(&two.node, "from the other node", &member.pod, &member.ip);
    }
    reaches(&a.pod, "to the outside", cluster.world.fabric.outside(), OUTSIDE);
    reaches(&b.pod, "to the outside from the other ENI", cluster.world.fabric.outside(), OUTSIDE);
    reaches(cluster.world.fabric.outside(), "from the outside", &b.pod, &b.ip);
    assert_eq!(town.drops(), Drops::default());
    let [a, b, c] = [a, b, c].map(|member| marking(cluster, member));
    assert!(a == c && a != b, "plugins take what the daemon has pinned for the ENI: {a} {b} {c}");
}

/// A Service's address becomes its backend's, the way kube-proxy writes it: who reaches itself, and whoever comes from
/// elsewhere through the node's own port, is seen as the node.
fn services(town: &Town, n: usize) {
    let mut lines = vec![
        "-N KUBE-MARK-MASQ".to_owned(),
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000".into(),
        "-N KUBE-SERVICES".into(),
        "-A PREROUTING -j KUBE-SERVICES".into(),
        "-A OUTPUT -j KUBE-SERVICES".into(),
        "-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE".into(),
    ];
    for (service, backend) in [("172.21.0.10", &town.a), ("172.21.0.11", &town.b), ("172.21.0.12", &town.d)] {
        let (ip, to) = (&backend.ip, format!("--to-destination {}:8080", backend.ip));
        lines.push(format!("-A KUBE-SERVICES -s {ip} -d {service} -p tcp --dport 80 -j KUBE-MARK-MASQ"));
        lines.push(format!("-A KUBE-SERVICES -d {service} -p tcp --dport 80 -j DNAT {to}"));
    }
    for (port, backend) in [(30080, &town.a), (30081, &town.d)] {
        let (node, to) = (town.node(n), format!("--to-destination {}:8080", backend.ip));
        lines.push(format!("-A KUBE-SERVICES -d {node} -p tcp --dport {port} -j KUBE-MARK-MASQ"));
        lines.push(format!("-A KUBE-SERVICES -d {node} -p tcp --dport {port} -j DNAT {to}"));
    }
    for line in lines {
        town.cluster.node(n).sh(&format!("iptables -w -t nat {line}"));
    }
}

#[test]
fn services_lead_to_local_and_remote_backends_and_back_to_the_asker() {
    let town = Town::new();
    services(&town, 0);
    services(&town, 1);
    let Town { cluster, a, b, c, d } = &town;
    let [at_a, at_b, at_d] = [a, b, d].map(|member| member.pod.tcp_echo(&format!("{}:8080", member.ip)));

    let (of_a, of_b, of_d) = ("172.21.0.10:80", "172.21.0.11:80", "172.21.0.12:80");
    assert_eq!(seen_as(&c.pod, of_a, &at_a), c.ip, "same ENI");
    assert_eq!(seen_as(&a.pod, of_b, &at_b), a.ip, "other ENI");
    assert_eq!(seen_as(&a.pod, of_d, &at_d), a.ip, "other node");
    assert_eq!(seen_as(&d.pod, of_a, &at_a), d.ip, "from the other node");
    assert_eq!(seen_as(&a.pod, of_a, &at_a), town.node(0), "to itself");
    assert_eq!(seen_as(&d.pod, of_d, &at_d), town.node(1), "to itself on the other node");

    let (one, two) = (cluster.node(0), cluster.node(1));
    assert_eq!(seen_as(&one.node, of_a, &at_a), town.node(0), "from the node to its own pod");
    assert_eq!(seen_as(&one.node, of_b, &at_b), town.node(0), "from the node to a pod of its other ENI");
    assert_eq!(seen_as(&one.node, of_d, &at_d), town.node(0), "from the node to a pod of another node");
    assert_eq!(seen_as(&two.node, of_a, &at_a), town.node(1), "from the other node");

    let port = |n: usize, port: u16| format!("{}:{port}", town.node(n));
    assert_eq!(seen_as(&two.node, &port(0, 30081), &at_d), town.node(0), "the node's port, a remote backend");
    assert_eq!(seen_as(&c.pod, &port(0, 30080), &at_a), town.node(0), "its own node's port from a pod");
    assert_eq!(seen_as(cluster.world.fabric.outside(), &port(0, 30081), &at_d), town.node(0), "from the outside");
    assert_eq!(town.drops(), Drops::default());
}

/// What comes back from the pod is routed while it bears the pod's address and mark, and only then gets the node's address
/// back, which is not the ENI's: a rule after conntrack clears the mark of such replies.
#[test]
fn the_nodes_port_leads_others_to_a_local_backend() {
    let town = Town::new();
    services(&town, 0);
    let Town { cluster, a, d, .. } = &town;
    let (at_a, port) = (a.pod.tcp_echo(&format!("{}:8080", a.ip)), format!("{}:30080", town.node(0)));
    assert_eq!(seen_as(&cluster.node(1).node, &port, &at_a), town.node(0), "from the other node");
    assert_eq!(seen_as(&d.pod, &port, &at_a), town.node(0), "from a pod of the other node");
    assert_eq!(seen_as(cluster.world.fabric.outside(), &port, &at_a), town.node(0), "from the outside");
    assert_eq!(town.drops(), Drops::default());
}
