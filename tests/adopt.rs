//! What the daemon finds in the kernel though its ledger does not know it, and what it sets right there.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::sim::cluster::{Cluster, Member, soon};
use crate::sim::fabric::OUTSIDE;
use crate::sim::traffic::Place;
use crate::sim::world;

/// A node whose daemon sweeps and mends every second, with two pods.
fn node_with_pods() -> (Cluster, Member, Member) {
    let mut cluster = Cluster::new(world::config(), 1, "ecs.sim.large");
    cluster.configure(0, &json!({"orphan_release_after": "1s"}));
    cluster.start_ready(0);
    let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    (cluster, a, b)
}

/// What a lease says, but for what the kernel does not tell.
fn leases(cluster: &Cluster) -> Vec<Value> {
    let mut leases = cluster.show(0)["leases"].as_array().expect("a list").clone();
    for lease in &mut leases {
        lease["sandbox"]["netns"] = Value::Null;
        lease["seat"] = Value::Null;
        lease["network"] = Value::Null;
    }
    leases
}

fn reaches(a: &Member, b: &Member) {
    assert!(a.pod.reaches(&b.ip), "no ping from pod to pod");
    assert!(a.pod.reaches(OUTSIDE), "no ping to the outside");
}

/// Two sweeps take place.
fn let_it_sweep() {
    thread::sleep(Duration::from_millis(2500));
}

#[test]
fn a_lost_ledger_is_rebuilt_from_what_is_wired() {
    let (mut cluster, a, b) = node_with_pods();
    let before = leases(&cluster);
    assert_eq!(before.len(), 2);
    cluster.stop(0);
    cluster.node(0).sh("rm -r /run/terway");
    cluster.start_ready(0);
    assert_eq!(leases(&cluster), before);
    let_it_sweep();
    assert_eq!(leases(&cluster), before);
    reaches(&a, &b);

    let c = cluster.add(0, "c");
    assert!(c.ip != a.ip && c.ip != b.ip, "{} is leased already", c.ip);
    reaches(&c, &a);
    assert_eq!(cluster.call_for(&a, "CHECK").code, Some(0));
    let ip: Ipv4Addr = a.ip.parse().expect("an address");
    cluster.del(a);
    let links = || cluster.node(0).sh("ip -o link").matches(": cali").count();
    soon("the link of the deleted pod is gone", || links() == 2);
    assert_eq!(cluster.ledger(0, "leases").len(), 2);
    assert_eq!(cluster.ledger(0, "resting"), [format!("{ip}.json")]);
    reaches(&b, &c);
}

#[test]
fn a_pod_outlives_its_record() {
    let (mut cluster, a, b) = node_with_pods();
    let before = leases(&cluster);
    cluster.kill(0);
    cluster.node(0).sh(&format!("echo '{{\"pod\":' > /run/terway/leases/{}@eth0.json", a.sandbox.container));
    cluster.start_ready(0);
    assert_eq!(leases(&cluster), before);
    let_it_sweep();
    reaches(&a, &b);
    cluster.kill(0);
    cluster.start_ready(0);
    assert_eq!(leases(&cluster), before);
}

#[test]
fn a_pod_deleted_while_ledger_and_daemon_were_gone_is_not_adopted() {
    let (mut cluster, a, b) = node_with_pods();
    cluster.kill(0);
    cluster.node(0).sh("rm -r /run/terway");
    cluster.del(b);
    cluster.start_ready(0);
    let leases = leases(&cluster);
    assert_eq!(leases.len(), 1, "{leases:?}");
    assert_eq!(leases[0]["ip"]["v4"], a.ip.as_str());
}

#[test]
fn rules_and_routes_that_somebody_flushed_come_back() {
    let (cluster, a, b) = node_with_pods();
    reaches(&a, &b);
    let node = cluster.node(0);
    let rules = node.sh("ip rule");
    node.sh("ip rule del priority 512; ip rule del priority 2048; ip route flush dev eth1 table all; ip addr flush dev eth1");
    soon("the rules are there again", || node.sh("ip rule") == rules);
    soon("the pods reach the outside again", || a.pod.ping(OUTSIDE).is_some());
    reaches(&a, &b);
}

/// The state of the node's only ENI.
fn eni_state(cluster: &Cluster) -> (Value, bool) {
    let eni = cluster.show(0)["pool"]["enis"][0].clone();
    (eni["state"].clone(), eni["link"].is_object())
}

#[test]
fn an_eni_whose_link_goes_away_serves_no_more_until_it_is_back() {
    let (cluster, a, b) = node_with_pods();
    assert_eq!(eni_state(&cluster), ("serving".into(), true));
    let id = cluster.show(0)["pool"]["enis"][0]["id"].as_str().expect("an id").to_owned();
    cluster.world.fabric.unplug(&id);
    soon("nothing is leased from it", || eni_state(&cluster) == ("InUse".into(), false));
    cluster.world.replug(0, &id);
    soon("it serves again", || eni_state(&cluster) == ("serving".into(), true));
    let c = cluster.add(0, "c");
    assert!(c.ip != a.ip && c.ip != b.ip, "{} is leased already", c.ip);
    reaches(&c, &a);
}
