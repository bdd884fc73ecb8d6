//! IPvlan on a node: the real daemon and plugin on a kernel that can, and on one that cannot.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use terway::kernel;

use super::{events_about, idle_node, is_bare, node, pings_during, shown};
use crate::cli::cli;
use crate::sim::builds::{Build, REFUSAL};
use crate::sim::cluster::{Cluster, Member, binary, conf, node_name, soon};
use crate::sim::fabric::{Drops, OUTSIDE};
use crate::sim::skip;
use crate::sim::traffic::Place;
use crate::vm::without_bpf;

const QUICK: &str = r#"{"ip_cooldown": "0s", "orphan_release_after": "1s"}"#;

/// A node that serves, where the kernel has ipvlan.
fn able() -> Option<Cluster> {
    let mut cluster = idle_node("ecs.sim.large", &serde_json::from_str(QUICK).unwrap());
    if cluster.node(0).run(kernel::ipvlan).is_err() {
        skip::because("needs ipvlan");
        return None;
    }
    cluster.start_ready(0);
    Some(cluster)
}

fn asks() -> Value {
    json!({"eniip_virtual_type": "IPVlan", "host_stack_cidrs": ["169.254.20.10/32"]})
}

/// A pod whose network configuration asks for IPvlan.
fn asking(cluster: &Cluster, name: &str) -> Member {
    let mut member = cluster.schedule(0, name);
    member.sandbox.conf = conf(&asks()).to_string();
    cluster.wire(&mut member);
    member
}

fn lease_of(cluster: &Cluster, member: &Member) -> Value {
    let leases = cluster.show(0)["leases"].as_array().expect("a list").clone();
    let of = |lease: &&Value| lease["sandbox"]["attachment"]["container"] == member.sandbox.container.as_str();
    leases.iter().find(of).cloned().unwrap_or_else(|| panic!("no lease of {} in {leases:?}", member.sandbox.pod))
}

fn is_slave(member: &Member) -> bool {
    let link = member.pod.sh("ip -d -o link show eth0");
    link.contains(" ipvlan ") && link.contains("mode l2")
}

fn checks(cluster: &Cluster, member: &Member) {
    let answer = cluster.call_for(member, "CHECK");
    assert_eq!(answer.code, Some(0), "{answer:?}");
}

fn talks(cluster: &Cluster, member: &Member) {
    let node = cluster.node(0);
    let (ip, addr) = (&member.ip, node.addr.to_string());
    let name = &member.sandbox.pod;
    soon("it reaches the outside", || member.pod.ping(OUTSIDE).is_some());
    assert!(cluster.world.fabric.outside().reaches(ip), "the outside does not reach {name}");
    assert!(node.reaches(ip), "the node does not reach {name}");
    assert!(member.pod.reaches(&addr), "{name} does not reach its node");
}

/// Every one with every other.
fn mingle(members: &[&Member]) {
    for from in members {
        for to in members {
            let (a, b) = (&from.sandbox.pod, &to.sandbox.pod);
            soon(&format!("{a} reaches {b}"), || from.pod.ping(&to.ip).is_some());
        }
    }
}

fn eni_of(cluster: &Cluster, member: &Member) -> Value {
    lease_of(cluster, member)["eni"]["id"].clone()
}

#[test]
fn pods_are_slaves_where_the_network_configuration_says_so() {
    let Some(mut cluster) = able() else { return };
    // One with a veth first: what the configuration says now changes nothing about it.
    let veth = cluster.add(0, "veth");
    let mut first = cluster.schedule(0, "p0");
    first.sandbox.conf = conf(&asks()).to_string();
    let result = cluster.wire(&mut first);
    assert!(is_slave(&first) && !is_slave(&veth));
    // The result names the ENI's own MAC and the pod's interface, and no link of the node.
    assert_eq!(result["interfaces"][0]["mac"], lease_of(&cluster, &first)["eni"]["mac"]);
    assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(1));
    assert!(result["ips"][0]["address"].as_str().is_some_and(|ip| ip.ends_with("/19")));
    assert_eq!(lease_of(&cluster, &first)["wiring"]["ipvlan"]["host_stack"], json!(["169.254.20.10/32"]));
    // ADD again is the same again.
    assert_eq!(cluster.wire(&mut first), result);
    // As many as fill the first ENI and begin another.
    let more: Vec<Member> = (1..11).map(|n| asking(&cluster, &format!("p{n}"))).collect();
    let last = more.last().unwrap();
    assert_ne!(eni_of(&cluster, last), eni_of(&cluster, &first));
    for member in [&veth, &first, last] {
        talks(&cluster, member);
        checks(&cluster, member);
    }
    mingle(&[&veth, &first, &more[0], last]);
    // And back: those who run stay what they are.
    let other = cluster.add(0, "other");
    assert!(!is_slave(&other) && is_slave(&first));
    mingle(&[&other, &first, last]);
    assert!(events_about(&cluster, &node_name(0)).iter().all(|(reason, _)| reason != "VirtualModeChanged"));
    // DEL while the namespace is there, twice.
    for _ in 0..2 {
        let answer = cluster.call_for(&first, "DEL");
        assert_eq!(answer.code, Some(0), "{answer:?}");
        assert!(!first.pod.sh("ip -o link").contains("eth0"));
    }
    assert!(veth.pod.ping(&first.ip).is_none());
    // And when it is gone already.
    let Member { pod, sandbox, .. } = first;
    pod.remove();
    assert_eq!(cluster.node(0).run(|| sandbox.call("DEL")).code, Some(0));
    let again = asking(&cluster, "again");
    talks(&cluster, &again);
    for member in more.into_iter().chain([veth, other, again]) {
        cluster.del(member);
    }
    soon("nothing is left of the pods", || is_bare(&cluster));
    assert_eq!(cluster.world.fabric.drops(), Drops::default());
    cluster.stop(0);
}

/// Held against what packets do.
#[test]
fn trace_follows_a_packet_of_a_slave() {
    let Some(cluster) = able() else { return };
    let (a, b, veth) = (asking(&cluster, "a"), asking(&cluster, "b"), cluster.add(0, "veth"));
    let own = cluster.node(0).addr.to_string();
    let trace = |to: &str| cli(&cluster, &format!("trace default/a {to}"));
    let follows = |to: &str, address: &str, by: &str| {
        soon(&format!("{address} answers"), || a.pod.ping(address).is_some());
        let said = trace(to);
        assert!(said.code == 0 && said.out.ends_with("nothing on this node stops it\n"), "{to}: {said:?}");
        assert!(said.out.contains(by), "{to}: {by}: {said:?}");
    };
    follows(OUTSIDE, OUTSIDE, "leaves by ENI eni-");
    follows("default/b", &b.ip, "the driver hands it to the slave of pod default/b");
    follows("default/veth", &veth.ip, "terway_leaving leads it to ipvl_");
    follows(&own, &own, "it comes to the node by ipvl_");
    // What is broken is what is named, while nobody puts it right.
    let mut cluster = cluster;
    cluster.kill(0);
    let stops = |damage: &str, to: &str, what: &str| {
        let said = cli(&cluster, &format!("trace default/a {to} --json"));
        let at = said.json()["stops_at"]["what"].clone();
        assert!(said.code == 1 && at.as_str().is_some_and(|at| at.contains(what)), "{damage}: {at}, not {what}");
    };
    b.pod.sh("ip link set eth0 down");
    stops("the other slave is down", "default/b", "ip link set eth0 up");
    cluster.node(0).sh("tc qdisc del dev eth1 clsact");
    stops("the ENI has no programs", OUTSIDE, "terway_leaving");
    a.pod.sh("ip route del default");
    stops("no route in the pod", OUTSIDE, "ip route replace default via");
}

#[test]
fn slaves_live_on_while_the_daemon_dies_and_starts_again_and_when_it_has_lost_its_ledger() {
    let Some(mut cluster) = able() else { return };
    let (a, b) = (asking(&cluster, "a"), asking(&cluster, "b"));
    let lease = lease_of(&cluster, &a);
    let pin = "stat -c %i /sys/fs/bpf/terway/eni1/near";
    let pinned = cluster.node(0).sh(pin);
    talks(&cluster, &a);
    let (lost, sent) = pings_during(&a.pod, OUTSIDE, || {
        for _ in 0..2 {
            cluster.kill(0);
            cluster.start_ready(0);
        }
        std::thread::sleep(Duration::from_millis(2500));
    });
    assert!(lost == 0 && sent > 100, "{lost} of {sent} pings lost");
    assert_eq!(lease_of(&cluster, &a), lease);
    // What the programs look things up in is what the daemon writes, though Services are nobody's wish.
    assert_eq!(cluster.node(0).sh(pin), pinned);
    cluster.kill(0);
    cluster.node(0).sh("rm -r /run/terway");
    cluster.start_ready(0);
    let mut found = lease_of(&cluster, &a);
    // What the network configuration said beside is told by the next ADD.
    assert_eq!(found["wiring"]["ipvlan"]["host_stack"], json!([]));
    (found["wiring"], found["network"]) = (lease["wiring"].clone(), lease["network"].clone());
    assert_eq!(found, lease);
    let c = asking(&cluster, "c");
    for member in [&a, &b, &c] {
        talks(&cluster, member);
        checks(&cluster, member);
    }
    mingle(&[&a, &b, &c]);
    // Without a daemon the plugin takes the slave out; its address is free once the daemon knows.
    cluster.kill(0);
    let answer = cluster.call_for(&a, "DEL");
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(!a.pod.sh("ip -o link").contains("eth0"));
    assert!(!cluster.node(0).sh("ip route show table 1000").contains(&a.ip));
    cluster.start_ready(0);
    soon("its lease is over", || shown(&cluster, "/pool/leased") == 2);
    // GC takes out what nobody names, from a namespace that lives on.
    let valid = json!([{"containerID": c.sandbox.container, "ifname": "eth0"}]);
    let answer = cluster.call(0, "GC", &json!({"cni.dev/valid-attachments": valid}));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    soon("the slave is gone", || !b.pod.sh("ip -o link").contains("eth0"));
    talks(&cluster, &c);
    assert_eq!(cluster.world.fabric.drops(), Drops::default());
}

#[test]
fn what_others_break_about_slaves_is_put_right() {
    let Some(cluster) = able() else { return };
    let (a, b) = (asking(&cluster, "a"), asking(&cluster, "b"));
    let table = lease_of(&cluster, &a)["eni"]["table"].as_u64().unwrap();
    let slave = format!("ipvl_{}", table - 1000);
    let node = cluster.node(0);
    // Pods are guarded from the moment on that their plugin has hung up.
    std::thread::sleep(Duration::from_millis(100));
    for damage in [
        format!("ip link del {slave}"),
        format!("ip link set {slave} down"),
        "ip route flush table 1000".into(),
        "tc qdisc del dev eth1 clsact".into(),
        format!("tc qdisc del dev {slave} clsact"),
    ] {
        node.sh(&damage);
        soon(&format!("right after {damage}"), || {
            node.ping(&a.ip).is_some()
                && node.sh(&format!("tc filter show dev {slave} egress")).contains("terway_entering")
        });
        soon(&format!("right after {damage}"), || node.sh("tc filter show dev eth1 egress").contains("terway_leaving"));
    }
    // The pod's own link, which tells nobody: found by the comparison of all pods.
    a.pod.sh("ip link del eth0");
    soon("the pod has a link again", || node.ping(&a.ip).is_some());
    mingle(&[&a, &b]);
    checks(&cluster, &a);

    // The ENI itself, and all slaves with it; it comes back by another index.
    let id = eni_of(&cluster, &a).as_str().unwrap().to_owned();
    let wired = || cluster.show(0)["wired"][&id]["table"].clone();
    cluster.world.fabric.unplug(&id);
    soon("the ENI is missed", || wired().is_null());
    cluster.world.replug(0, &id);
    soon("it is there again", || wired().as_u64().is_some_and(|now| now != table));
    assert!([&a, &b].iter().all(|member| lease_of(&cluster, member)["eni"]["table"] == wired()));
    mingle(&[&a, &b]);
    for member in [&a, &b] {
        talks(&cluster, member);
        checks(&cluster, member);
    }
}

/// A plugin that is killed at any moment leaves nothing that DEL does not take away, and the pod's next ADD succeeds.
#[test]
fn an_add_that_is_killed_leaves_nothing() {
    let Some(cluster) = able() else { return };
    let first = asking(&cluster, "first");
    for n in 0..12 {
        let mut member = cluster.schedule(0, &format!("p{n}"));
        member.sandbox.conf = conf(&asks()).to_string();
        let plugin = cluster.node(0).run(|| member.sandbox.begin("ADD"));
        std::thread::sleep(Duration::from_millis(n * 8));
        drop(plugin);
        if n % 2 == 0 {
            let answer = cluster.call_for(&member, "DEL");
            assert_eq!(answer.code, Some(0), "{answer:?}");
            let links = member.pod.sh("ip -o link");
            assert_eq!(links.lines().count(), 1, "{links}");
        }
        cluster.wire(&mut member);
        talks(&cluster, &member);
        cluster.del(member);
    }
    soon("one pod is left", || shown(&cluster, "/pool/leased") == 1);
    talks(&cluster, &first);
}

/// Here because the kernel has no ipvlan; where it has, it is refused eBPF.
#[test]
fn where_the_kernel_cannot_pods_are_wired_by_policy_routing_and_one_event_says_why() {
    let lacks_ipvlan = crate::sim::ns::Ns::new("trial").run(kernel::ipvlan).is_err();
    let story = |why: &str| {
        let cluster = node(&serde_json::from_str(QUICK).unwrap());
        let (a, b) = (asking(&cluster, "a"), asking(&cluster, "b"));
        for member in [&a, &b] {
            assert_eq!(lease_of(&cluster, member)["wiring"], "shared");
            assert!(!is_slave(member));
            talks(&cluster, member);
            checks(&cluster, member);
        }
        mingle(&[&a, &b]);
        let told = || {
            let events = events_about(&cluster, &node_name(0));
            events.into_iter().filter(|(reason, _)| reason == "VirtualModeChanged").collect::<Vec<_>>()
        };
        soon("the node is told", || !told().is_empty());
        let told = told();
        assert_eq!(told.len(), 1, "{told:?}");
        let words = &told[0].1;
        assert!(words.starts_with("the network configuration asks for IPvlan, and kernel "), "{words}");
        assert!(words.contains(why) && words.ends_with(": pods are wired by policy routing instead"), "{words}");
        cluster.del(a);
        cluster.del(b);
        soon("nothing is left", || is_bare(&cluster));
    };
    match lacks_ipvlan {
        true => story("type ipvlan mode l2 bridge: "),
        false => without_bpf::run(libc::ENOSYS, || story("function not implemented")),
    }
}

#[test]
fn where_the_verifier_refuses_the_programs_pods_have_a_veth_and_slaves_live_on() {
    let Some(mut cluster) = able() else { return };
    let broken = Build::refused(&["eni.o"]);
    let run = |cluster: &mut Cluster, program: &Path| {
        cluster.stop(0);
        cluster.release(0, program);
        cluster.start_ready(0);
    };
    let told = |cluster: &Cluster, why: &str| {
        let events = events_about(cluster, &node_name(0));
        events.iter().any(|(reason, words)| reason == why && words.contains(REFUSAL))
    };
    run(&mut cluster, &broken.path);
    let veth = asking(&cluster, "veth");
    assert!(!is_slave(&veth) && lease_of(&cluster, &veth)["wiring"] == "shared");
    soon("the node is told", || told(&cluster, "VirtualModeChanged"));
    run(&mut cluster, &binary());
    let first = asking(&cluster, "first");
    assert!(is_slave(&first));
    // An ENI that has slaves goes on to have some, by the programs that are there.
    run(&mut cluster, &broken.path);
    let second = asking(&cluster, "second");
    assert!(is_slave(&second));
    soon("the node is told", || told(&cluster, "ResourceInvalid"));
    for member in [&veth, &first, &second] {
        talks(&cluster, member);
    }
    mingle(&[&veth, &first, &second]);
}

#[test]
fn a_further_interface_is_a_slave_too_and_leaves_the_first_ones_routes_alone() {
    let Some(cluster) = able() else { return };
    let (first, other) = (asking(&cluster, "web"), asking(&cluster, "other"));
    let before = first.pod.sh("ip route show table main");
    let mut second = cluster.schedule(0, "web");
    second.sandbox.container = first.sandbox.container.clone();
    second.sandbox.netns = first.sandbox.netns.clone();
    second.sandbox.ifname = "net1".into();
    second.sandbox.conf = conf(&asks()).to_string();
    cluster.wire(&mut second);
    assert_eq!(first.pod.sh("ip route show table main"), before);
    soon("it reaches the outside by it", || first.pod.ping_from(&second.ip, OUTSIDE).is_some());
    for ip in [&first.ip, &second.ip] {
        soon(&format!("{ip} is reached"), || other.pod.ping(ip).is_some() && cluster.node(0).ping(ip).is_some());
    }
    talks(&cluster, &first);
    checks(&cluster, &first);
    checks(&cluster, &second);
    cluster.call_for(&second, "DEL").ok();
    soon("its link goes", || !first.pod.sh("ip -o link").contains("net1"));
    assert!(!first.pod.sh("ip rule").contains("2048"));
    checks(&cluster, &first);
}
