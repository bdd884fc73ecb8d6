//! Services and ports of the node where kube-proxy leads by IPVS, which takes what is delivered to the node itself. Needs a kernel with IPVS.

use crate::sim::fabric::{OUTSIDE, OUTSIDE_V6};
use crate::sim::ipvs;
use crate::sim::node::Node;
use crate::sim::traffic::{Place, seen_as};
use crate::sim::vpc::{Guest, NODE, NODE_V6, REMOTE, REMOTE_V6, Vpc, addr, at, node_ips};
use terway::rpc::{EniLease, Wiring};

fn vpc() -> Option<Vpc> {
    let node = Node::new("node");
    ipvs::begin(&node).then(|| Vpc::new(node))
}

fn veth<'a>(vpc: &'a Vpc, name: &str, eni: &EniLease, last: u8) -> Guest<'a> {
    let guest = vpc.pod(name, eni, last, Wiring::Shared);
    guest.apply();
    guest
}

#[test]
fn ports_of_the_node_are_answered_by_it() {
    let Some(vpc) = vpc() else { return };
    let one = vpc.plug(1, &[5]);
    vpc.ready(&one, &node_ips());
    let a = veth(&vpc, "a", &one, 5);
    let (server, _udp) = a.serves(8080);
    let outside = vpc.fabric.outside();
    for (n, node, client, remote) in [(0, NODE, OUTSIDE, REMOTE), (1, NODE_V6, OUTSIDE_V6, REMOTE_V6)] {
        let (local, cluster) = (at(addr(node), 30080), at(addr(node), 30081));
        for port in [&local, &cluster] {
            ipvs::leads(&vpc.node, port, &at(a.ips()[n], 8080));
        }
        ipvs::masquerades(&vpc.node, &cluster);
        for (port, seen) in [(&cluster, [node, node]), (&local, [client, remote])] {
            assert_eq!(seen_as(outside, port, &server), seen[0], "from beyond the VPC to {port}");
            assert_eq!(seen_as(&vpc.remote, port, &server), seen[1], "from another node to {port}");
            assert_eq!(outside.udp(port, 3).len(), 3, "UDP to {port}");
        }
        assert_eq!(seen_as(&vpc.node, &local, &server), node, "from the node itself");
        // What the pod opens itself still leaves by its own ENI, as itself.
        let far = outside.tcp_echo(&at(addr(client), 9000 + n as u16));
        assert_eq!(seen_as(&a.pod, &at(addr(client), 9000 + n as u16), &far), a.ips()[n].to_string());
    }
    vpc.is_calm();
}

#[test]
fn pods_reach_services_whose_backends_are_here_and_elsewhere() {
    let Some(vpc) = vpc() else { return };
    let (one, two) = (vpc.plug(1, &[5]), vpc.plug(2, &[8]));
    for eni in [&one, &two] {
        vpc.ready(eni, &node_ips());
    }
    let (a, b) = (veth(&vpc, "a", &one, 5), veth(&vpc, "b", &two, 8));
    let (at_b, _udp_b) = b.serves(8080);
    let (far, _udp) = (vpc.remote.tcp_echo("[::]:8080"), vpc.remote.udp_echo("[::]:8080"));
    for (n, net, remote) in [(0, "172.21.0.1", REMOTE), (1, "fd21::1", REMOTE_V6)] {
        for (last, backend, server) in [(1, b.ips()[n], &at_b), (2, addr(remote), &far)] {
            let service = format!("{net}{last}");
            ipvs::bears(&vpc.node, &service);
            let service = at(addr(&service), 80);
            ipvs::leads(&vpc.node, &service, &at(backend, 8080));
            assert_eq!(seen_as(&a.pod, &service, server), a.ips()[n].to_string(), "{service}");
            assert_eq!(a.pod.udp(&service, 3).len(), 3, "UDP to {service}");
        }
    }
    vpc.is_calm();
}
