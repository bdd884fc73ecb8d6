//! Policies as ipsets and chains where kube-proxy leads by IPVS, with real packets. Needs a kernel with IPVS.

use std::net::{SocketAddr, UdpSocket};

use ipnet::IpNet;
use serde_json::{Value, json};
use terway::kernel::tables::{MOST, Tables};
use terway::rules::{Renderer, TCP, UDP};

use super::cases::{every, run};
use super::field::{Field, Probe, Ruler, cluster};
use super::oracle::World;
use crate::sim::ipvs;
use crate::sim::traffic::{LOST, Place};

fn field() -> Option<Field> {
    let field = Field::new();
    ipvs::begin(&field.node).then_some(field)
}

/// Of `x/a`, with these rules alone.
fn with(spec: Value) -> World {
    let mut world = cluster();
    let mut policy = json!({"metadata": {"namespace": "x", "name": "a"}, "spec": spec});
    policy["spec"]["podSelector"] = json!({"matchLabels": {"pod": "a"}});
    world.policies.insert("x/a".into(), policy);
    world
}

/// `POLICY_EVERY=1` for all cases.
#[test]
fn packets_go_behind_ipvs_as_is_specified() {
    let Some(mut field) = field() else { return };
    field.serve_by_ipvs();
    run(&mut field, &mut Tables::new(MOST), true, every(12));
}

/// A node is up before kube-proxy is.
#[test]
fn services_are_let_alone_on_their_way_to_ipvs_once_kube_proxy_has_begun() {
    let Some(mut field) = field() else { return };
    let (mut tables, mut ruler) = (Tables::new(MOST), Ruler::new());
    let to_b = json!([{"to": [{"podSelector": {"matchLabels": {"pod": "b"}}}]}]);
    ruler.follow(&with(json!({"policyTypes": ["Egress"], "egress": to_b})), &field.node, &mut tables);
    let is_stale = |tables: &Tables, field: &Field| field.node.run(tables.tally().unwrap()).unwrap().is_stale;
    assert!(!is_stale(&tables, &field));
    field.serve_by_ipvs();
    let by = |field: &Field, n, end, port, protocol| {
        let (from, to) = (field.named("x/a"), field.named(end));
        Probe { from, to, family: 0, protocol, port, service: Some(n) }
    };
    // To x/b, and to the y/b that the policy does not mean.
    let probes: Vec<Probe> = [UDP, TCP]
        .iter()
        .flat_map(|protocol| [by(&field, 0, "x/b", 81, *protocol), by(&field, 1, "y/b", 80, *protocol)])
        .collect();
    assert_eq!(field.round(&probes, &[false; 4]), [""; 0], "judged by the Service's address");
    assert!(is_stale(&tables, &field));
    field.node.run(|| tables.restore(&ruler.rules, &ruler.pods)).unwrap();
    assert!(!is_stale(&tables, &field));
    assert_eq!(field.round(&probes, &[true, false, true, false]), [""; 0]);
    let (service, _echo) = ("[fd96::1]:80", field.place("x/b").udp_echo("[fd00::2]:8080"));
    ipvs::bears(&field.node, "fd96::1");
    ipvs::leads(&field.node, service, "[fd00::2]:8080");
    assert!(field.place("x/a").udp(service, 1).is_empty(), "IPv6 has sets of its own");
    ipvs::names(&field.node, "fd96::1", 80);
    assert!(is_stale(&tables, &field));
    field.node.run(|| tables.restore(&ruler.rules, &ruler.pods)).unwrap();
    assert_eq!(field.place("x/a").udp(service, 3).len(), 3);
    // The node's own ports are not open by a Service's address.
    let node = field.node.udp_echo("10.96.0.1:22");
    assert!(field.place("x/a").udp("10.96.0.1:22", 1).is_empty());
    drop(node);
    field.node.run(|| tables.remove()).unwrap();
}

#[test]
fn clients_of_a_port_of_the_node_are_judged_by_their_own_addresses() {
    let Some(field) = field() else { return };
    let (mut tables, mut ruler) = (Tables::new(MOST), Ruler::new());
    ipvs::names_port(&field.node, 30080);
    let ends = ["outside", "y/c", "x/b", "node"];
    let addr = |end: &str, family| field.addr(field.named(end), family);
    let own = [0, 1].map(|family| SocketAddr::new(addr("x/a", family), 8080).to_string());
    let ports = [0, 1].map(|family| SocketAddr::new(addr("node", family), 30080).to_string());
    for (port, own) in ports.iter().zip(&own) {
        ipvs::leads(&field.node, port, own);
        ipvs::masquerades(&field.node, port);
    }
    let bound = |end: &str, at: SocketAddr| {
        let socket = field.place(end).run(|| UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(LOST)).unwrap();
        socket
    };
    let servers = own.map(|own| bound("x/a", own.parse().unwrap()));
    let mut room = [0; 16];
    // Whether the pod hears of it, and then whether its answer comes.
    let mut is_served = |end: &str, family: usize| {
        let client = bound(end, SocketAddr::new(addr(end, family), 0));
        client.send_to(b"hello", &ports[family]).unwrap();
        let Ok((len, peer)) = servers[family].recv_from(&mut room) else { return false };
        servers[family].send_to(&room[..len], peer).unwrap();
        assert!(client.recv(&mut room).is_ok(), "{end} is heard and not answered");
        true
    };
    let mut served = || [0, 1].map(|family| ends.map(|end| is_served(end, family)));
    assert_eq!(served(), [[true; 4]; 2], "without policies");
    let from = [0, 1].map(|family| json!({"ipBlock": {"cidr": IpNet::from(addr("outside", family)).to_string()}}));
    let world = with(json!({"policyTypes": ["Ingress"], "ingress": [{"from": from}]}));
    ruler.follow(&world, &field.node, &mut tables);
    assert_eq!(served(), [[true, false, false, true]; 2]);
    field.node.run(|| tables.remove()).unwrap();
}
