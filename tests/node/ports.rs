//! Ports of the node that lead to pods: `hostPort` by Debian's `portmap` chained after us, and node ports with
//! `externalTrafficPolicy: Local`. What a pod answers leaves by the way the question came, whatever ENI the pod is on.

use std::path::Path;

use serde_json::{Value, json};

use super::wait_for_enis;
use crate::sim::cluster::{Cluster, Member, soon};
use crate::sim::cni::Sandbox;
use crate::sim::fabric::{Drops, OUTSIDE};
use crate::sim::traffic::{self, LOST, Place, TcpEcho};
use crate::sim::world;
use crate::vm::without_bpf;

/// Two nodes, the first with a pod on either of its two secondary ENIs.
struct Site {
    cluster: Cluster,
    pods: [Member; 2],
}

impl Site {
    fn new() -> Site {
        let mut cluster = Cluster::new(world::config(), 2, "ecs.sim.large");
        cluster.configure(0, &json!({"eni_selection_policy": "least_ips", "min_eni": 2}));
        cluster.start_ready(0);
        wait_for_enis(&cluster, 2);
        let one = cluster.add(0, "one");
        let mut other = cluster.add(0, "other");
        if eni_of(&cluster, &one) == eni_of(&cluster, &other) {
            other = cluster.add(0, "another");
        }
        let pods = [one, other];
        assert_ne!(eni_of(&cluster, &pods[0]), eni_of(&cluster, &pods[1]));
        let mangle = || cluster.node(0).sh("iptables -w -t mangle -S PREROUTING");
        soon("answers are guarded", || mangle().contains("-i cali+"));
        Site { cluster, pods }
    }

    fn node(&self) -> String {
        self.cluster.node(0).addr.to_string()
    }

    /// Nobody's packet was taken for a forged one.
    fn nothing_is_lost(&self) {
        assert_eq!(self.cluster.world.fabric.drops(), Drops::default());
    }
}

fn eni_of(cluster: &Cluster, member: &Member) -> String {
    let ip = member.ip.parse().expect("an address");
    let mut enis = cluster.world.cloud.enis_of("i-1").into_iter();
    enis.find(|eni| eni.v4.contains(&ip)).expect("it is on an ENI of the node").id
}

/// Asks by TCP and UDP; who the pod has seen by TCP.
fn seen_as(from: &impl Place, at: &str, echo: &TcpEcho) -> String {
    let seen = traffic::seen_as(from, at, echo);
    assert_eq!(from.udp(at, 3).len(), 3, "UDP to {at}");
    seen
}

/// A conflist of ours with portmap behind, as an operator writes it.
fn conflist() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "terway-chainer",
        "plugins": [
            {"type": "terway", "capabilities": {"bandwidth": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    })
}

/// Docker's, for example; it may set the policy whenever it starts.
#[test]
fn a_node_that_forwards_by_rule_only_forwards_what_is_pods() {
    let mut cluster = Cluster::new(world::config(), 2, "ecs.sim.large");
    cluster.configure(0, &json!({"orphan_release_after": "1s", "ip_stack": "dual"}));
    cluster.node(0).sh("iptables -w -P FORWARD DROP");
    cluster.start_ready(0);
    let a = cluster.add(0, "a");
    let node = cluster.node(0);
    soon("pods are let through", || a.pod.ping(OUTSIDE).is_some());
    let forward = |tool: &str| node.sh(&format!("{tool} -w -S FORWARD")).matches("cali+").count();
    assert_eq!((forward("iptables"), forward("ip6tables")), (2, 0));
    node.sh("iptables -w -F FORWARD; ip6tables -w -P FORWARD DROP");
    soon("and again", || a.pod.ping(OUTSIDE).is_some() && forward("ip6tables") == 2);
    assert_eq!(forward("iptables"), 2);
}

/// As 1.4.21 was released.
#[test]
fn an_iptables_that_counts_no_seconds_lets_pods_through_too() {
    let mut cluster = Cluster::new(world::config(), 2, "ecs.sim.large");
    let node = cluster.node(0);
    node.sh("iptables -w -P FORWARD DROP");
    let old = r#"#!/bin/sh
[ "$1" != -w ] || [ "$2" != 5 ] || { echo "iptables v1.4.21: Bad argument \`5'" >&2; exit 2; }
exec /usr/sbin/iptables-nft "$@"
"#;
    node.write_file("/run/iptables-1.4.21", old);
    node.sh("chmod +x /run/iptables-1.4.21; ln -sf /run/iptables-1.4.21 /etc/alternatives/iptables");
    cluster.start_ready(0);
    let a = cluster.add(0, "a");
    soon("pods are let through", || a.pod.ping(OUTSIDE).is_some());
    let mangle = || cluster.node(0).sh("iptables -w -t mangle -S PREROUTING");
    soon("node ports answer", || mangle().contains("--ctdir REPLY"));
}

/// What libcni makes of a plugin of the list.
fn conf(plugin: usize, runtime: &Value, prev: &Value) -> Value {
    let list = conflist();
    let mut conf = list["plugins"][plugin].clone();
    for key in ["cniVersion", "name"] {
        conf[key] = list[key].clone();
    }
    let capabilities = conf.as_object_mut().expect("an object").remove("capabilities").unwrap_or_default();
    for (name, _) in capabilities.as_object().into_iter().flatten() {
        if !runtime[name].is_null() {
            conf["runtimeConfig"][name] = runtime[name].clone();
        }
    }
    if !prev.is_null() {
        conf["prevResult"] = prev.clone();
    }
    conf
}

fn sandbox(member: &Member, plugin: usize, runtime: &Value, prev: &Value) -> Sandbox {
    let program = conflist()["plugins"][plugin]["type"].as_str().expect("a name").to_owned();
    Sandbox {
        plugin: Path::new("/opt/cni/bin").join(program),
        conf: conf(plugin, runtime, prev).to_string(),
        ..member.sandbox.clone()
    }
}

/// The whole list, as a runtime runs it: the result of the first is what the second starts from.
fn add(cluster: &Cluster, member: &Member, runtime: &Value) -> Value {
    let call =
        |plugin, prev: &Value| cluster.node(0).run(|| sandbox(member, plugin, runtime, prev).call("ADD").ok().json());
    let ours = call(0, &Value::Null);
    call(1, &ours)
}

fn del(cluster: &Cluster, member: &Member, runtime: &Value, prev: &Value) {
    for plugin in [1, 0] {
        cluster.node(0).run(|| sandbox(member, plugin, runtime, prev).call("DEL").ok());
    }
}

#[test]
fn host_ports_of_a_chained_portmap_answer_clients_beyond_the_vpc() {
    let site = Site::new();
    let (cluster, node) = (&site.cluster, site.node());
    cluster.node(0).install(Path::new("/usr/lib/cni/portmap"), "/opt/cni/bin/portmap");
    let mut results = Vec::new();
    for (n, member) in site.pods.iter().enumerate() {
        let port = 8100 + n;
        let mapping = |protocol: &str| json!({"hostPort": port, "containerPort": 80, "protocol": protocol});
        let runtime = json!({"portMappings": [mapping("tcp"), mapping("udp")]});
        // The pod has its address already: the same attachment is answered with the same.
        let result = add(cluster, member, &runtime);
        assert!(result["ips"][0]["address"].as_str().is_some_and(|a| a.starts_with(&format!("{}/", member.ip))));
        let (echo, _udp) = (member.pod.tcp_echo("0.0.0.0:80"), member.pod.udp_echo(&format!("{}:80", member.ip)));
        let at = format!("{node}:{port}");
        let two = cluster.node(1);
        assert_eq!(seen_as(cluster.world.fabric.outside(), &at, &echo), OUTSIDE, "from beyond the VPC");
        assert_eq!(seen_as(&two.node, &at, &echo), two.addr.to_string(), "from another node");
        let other = &site.pods[1 - n];
        // Whoever shares the pod's prefix is seen as the node: portmap's own way to have the answer come back through it.
        assert_eq!(seen_as(&other.pod, &at, &echo), node, "from a pod of the node");
        results.push((member, runtime, result));
    }
    site.nothing_is_lost();
    for (member, runtime, result) in &results {
        del(cluster, member, runtime, result);
    }
    assert!(
        cluster.world.fabric.outside().tcp_within(&format!("{node}:8100"), 2 * LOST).is_err(),
        "a port of a pod that is gone"
    );
}

#[test]
fn node_ports_of_local_traffic_policy_answer_clients_beyond_the_vpc() {
    local_node_ports(&Site::new());
}

/// Where the kernel cannot mark what a pod sends, its address leads to the ENI, and netfilter's mark away from there.
#[test]
fn they_do_so_too_where_pods_are_led_by_their_addresses() {
    without_bpf::run(libc::ENOSYS, || {
        let site = Site::new();
        println!("packets of pods are marked by {}", site.cluster.show(0)["marker"]);
        local_node_ports(&site);
    });
}

/// What kube-proxy writes for a node port with `externalTrafficPolicy: Local`: no masquerading, the pod sees the client.
fn local_node_ports(site: &Site) {
    let (cluster, node) = (&site.cluster, site.node());
    for (n, member) in site.pods.iter().enumerate() {
        let port = 30090 + n;
        for protocol in ["tcp", "udp"] {
            cluster.node(0).sh(&format!(
                "iptables -w -t nat -A PREROUTING -d {node} -p {protocol} --dport {port} -j DNAT --to-destination {}:8080",
                member.ip
            ));
        }
        let at = format!("{}:8080", member.ip);
        let (echo, _udp) = (member.pod.tcp_echo(&at), member.pod.udp_echo(&at));
        let at = format!("{node}:{port}");
        let two = cluster.node(1);
        assert_eq!(seen_as(cluster.world.fabric.outside(), &at, &echo), OUTSIDE, "from beyond the VPC");
        assert_eq!(seen_as(&two.node, &at, &echo), two.addr.to_string(), "from another node");
        // A connection that the pod opens itself still leaves by its own ENI, as itself.
        let far = cluster.world.fabric.outside().tcp_echo(&format!("{OUTSIDE}:{port}"));
        member.pod.tcp(&format!("{OUTSIDE}:{port}")).expect("the outside is reached");
        assert_eq!(far.peers()[0].ip().to_string(), member.ip);
    }
    site.nothing_is_lost();
}
