//! Pods that shall have their address again: of StatefulSets, of kinds that the operator names, and those that ask for it.

use std::time::Duration;

use serde_json::{Value, json};

use super::{idle_node, node, shown};
use crate::sim::cloud::{Kind, When};
use crate::sim::cluster::{Cluster, Member, node_name, soon};
use crate::sim::fabric::{OUTSIDE, OUTSIDE_V6};
use crate::sim::kube;
use crate::sim::traffic::Place;
use terway::pod::PodName;

/// A pod as its controller makes it, and its sandbox.
fn schedule(cluster: &Cluster, name: &str, metadata: &Value) -> Member {
    let mut pod = kube::pod("default", name, &node_name(0));
    for (key, value) in metadata.as_object().expect("an object") {
        pod["metadata"][key] = value.clone();
    }
    cluster.kube.put(pod);
    cluster.sandbox(0, PodName::new("default", name))
}

fn of(kind: &str) -> Value {
    json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "web", "uid": "1", "controller": true}]})
}

fn add(cluster: &Cluster, name: &str, metadata: &Value) -> Member {
    let mut member = schedule(cluster, name, metadata);
    cluster.wire(&mut member);
    member
}

/// The machine is switched off and on again: sandboxes, their links and everything below /run are gone.
fn reboot(cluster: &mut Cluster, members: Vec<Member>) {
    cluster.kill(0);
    drop(members);
    let node = cluster.node(0);
    soon("no pod has a link any more", || !node.sh("ip -o link").contains("cali"));
    node.sh("rm -r /run/terway; ip rule flush; ip rule add priority 32766 lookup main; ip rule add priority 32767 lookup default");
    node.sh("ip route flush table all proto 116; echo 22222222-2222-4222-8222-222222222222 > /run/boot_id");
    node.sh("mount --bind /run/boot_id /proc/sys/kernel/random/boot_id");
}

#[test]
fn a_pod_of_a_stateful_set_comes_back_with_its_address_and_others_do_not() {
    let cluster = node(&json!({"custom_stateful_workload_kinds": ["CloneSet"]}));
    let asks = json!({"annotations": {"k8s.aliyun.com/pod-ip-reservation": "true"}});
    for (name, metadata) in [("web-0", of("StatefulSet")), ("clone-0", of("CloneSet")), ("asks", asks)] {
        let before = add(&cluster, name, &metadata);
        let ip = before.ip.clone();
        cluster.del(before);
        assert_eq!(shown(&cluster, "/pool/reserved"), 1, "{name}");
        let other = cluster.add(0, &format!("not-{name}"));
        let after = add(&cluster, name, &metadata);
        assert_eq!(after.ip, ip, "{name}");
        assert_eq!(shown(&cluster, "/pool/reserved"), 0, "{name}");
        assert!(other.ip != ip && after.pod.ping(&other.ip).is_some() && after.pod.ping(OUTSIDE).is_some(), "{name}");
        cluster.call_for(&after, "CHECK").ok();
    }
    let before = add(&cluster, "plain", &of("ReplicaSet"));
    let ip = before.ip.clone();
    cluster.del(before);
    assert_ne!(add(&cluster, "plain", &of("ReplicaSet")).ip, ip);
}

/// The runtime goes on while no daemon is there: it deletes one sandbox, and asks for the next before a start has ended.
#[test]
fn one_whose_del_met_no_daemon_has_its_address_again_at_the_first_add() {
    let mut cluster = node(&json!({}));
    let before = add(&cluster, "web-0", &of("StatefulSet"));
    let ip = before.ip.clone();
    cluster.kill(0);
    cluster.del(before);
    assert_eq!(cluster.ledger(0, "tombstones").len(), 1);
    cluster.world.cloud.trouble("DescribeInstanceTypes", When::Next(1), Kind::Late(Duration::from_millis(900)));
    let mut after = schedule(&cluster, "web-0", &of("StatefulSet"));
    cluster.start(0);
    soon("somebody listens", || cluster.call_for(&after, "ADD").code == Some(0));
    cluster.wire(&mut after);
    assert_eq!(after.ip, ip);
    assert!(cluster.ledger(0, "tombstones").is_empty());
}

/// A node that holds three addresses, one of which is kept for `web-0`, and two pods that have the others.
fn full_node(reservation: &str) -> (Cluster, String, Vec<Member>) {
    let mut cluster = idle_node("ecs.sim.small", &json!({"ip_reservation_time": reservation, "ip_cooldown": "1s"}));
    cluster.start_ready(0);
    let web = add(&cluster, "web-0", &of("StatefulSet"));
    let ip = web.ip.clone();
    cluster.del(web);
    let others: Vec<Member> = (0..2).map(|n| cluster.add(0, &format!("other-{n}"))).collect();
    assert!(others.iter().all(|other| other.ip != ip));
    (cluster, ip, others)
}

#[test]
fn on_a_full_node_it_is_kept_all_the_same_and_the_refusal_says_so() {
    let (cluster, ip, _others) = full_node("10m");
    let words = cluster.refused(&cluster.schedule(0, "one-more"), 11);
    assert!(words.contains("1 kept for pods that shall have them again (ip_reservation_time)"), "{words}");
    assert_eq!(add(&cluster, "web-0", &of("StatefulSet")).ip, ip);
}

#[test]
fn once_its_time_is_over_it_is_anybodys() {
    let (cluster, ip, _others) = full_node("5s");
    // Its ADD waits for the end of the reservation.
    let one_more = cluster.add(0, "one-more");
    assert_eq!((one_more.ip, shown(&cluster, "/pool/reserved")), (ip, 0.into()));
    assert_eq!(cluster.node(0).sh("ls /var/lib/terway/sticky"), "");
}

#[test]
fn a_daemon_that_is_killed_and_one_that_lost_its_ledger_know_it() {
    let mut cluster = node(&json!({}));
    let gone = add(&cluster, "web-0", &of("StatefulSet"));
    let here = add(&cluster, "web-1", &of("StatefulSet"));
    let (ip, other) = (gone.ip.clone(), here.ip.clone());
    cluster.del(gone);
    for lost in [false, true] {
        cluster.kill(0);
        if lost {
            cluster.node(0).sh("rm -r /run/terway");
        }
        cluster.start_ready(0);
        assert_eq!(shown(&cluster, "/pool/reserved"), 1, "ledger lost: {lost}");
        let strangers: Vec<Member> = (0..4).map(|n| cluster.add(0, &format!("stranger-{lost}-{n}"))).collect();
        assert!(strangers.iter().all(|s| s.ip != ip && s.ip != other));
    }
    let back = add(&cluster, "web-0", &of("StatefulSet"));
    assert_eq!(back.ip, ip);
    // Found in the kernel alone, it has not lost its right to come back.
    cluster.del(here);
    assert_eq!(add(&cluster, "web-1", &of("StatefulSet")).ip, other);
}

#[test]
fn after_a_reboot_pods_of_stateful_sets_come_back_with_their_addresses_and_nothing_else_is_left() {
    let mut cluster = node(&json!({}));
    let (running, gone) = (add(&cluster, "web-0", &of("StatefulSet")), add(&cluster, "web-1", &of("StatefulSet")));
    let plain: Vec<Member> = (0..3).map(|n| cluster.add(0, &format!("plain-{n}"))).collect();
    let (first, second) = (running.ip.clone(), gone.ip.clone());
    cluster.del(gone);
    // No DEL comes for those that run.
    reboot(&mut cluster, plain.into_iter().chain([running]).collect());
    cluster.start_ready(0);
    assert_eq!((shown(&cluster, "/pool/leased"), shown(&cluster, "/pool/reserved")), (0.into(), 2.into()));
    let news: Vec<Member> = (0..5).map(|n| cluster.add(0, &format!("new-{n}"))).collect();
    assert!(news.iter().all(|new| new.ip != first && new.ip != second));
    for (name, ip) in [("web-1", &second), ("web-0", &first)] {
        let back = add(&cluster, name, &of("StatefulSet"));
        assert_eq!(back.ip, *ip, "{name}");
        assert!(back.pod.ping(&news[0].ip).is_some() && back.pod.ping(OUTSIDE).is_some(), "{name}");
    }
    assert_eq!((shown(&cluster, "/pool/leased"), shown(&cluster, "/pool/reserved")), (7.into(), 0.into()));
}

#[test]
fn a_pair_of_addresses_is_kept_as_one_over_a_lost_ledger_and_a_reboot() {
    let mut cluster = node(&json!({"ip_stack": "dual"}));
    let web = add(&cluster, "web-0", &of("StatefulSet"));
    let running = add(&cluster, "web-1", &of("StatefulSet"));
    let (ips, others) = (web.ips.clone(), running.ips.clone());
    assert_eq!((ips.len(), others.len()), (2, 2));
    cluster.del(web);
    cluster.kill(0);
    cluster.node(0).sh("rm -r /run/terway");
    cluster.start_ready(0);
    let strangers: Vec<Member> = (0..4).map(|n| cluster.add(0, &format!("stranger-{n}"))).collect();
    assert!(strangers.iter().flat_map(|s| &s.ips).all(|ip| !ips.contains(ip) && !others.contains(ip)));
    reboot(&mut cluster, strangers.into_iter().chain([running]).collect());
    cluster
        .node(0)
        .sh("ip -6 rule flush; ip -6 rule add priority 32766 lookup main; ip -6 route flush table all proto 116");
    cluster.start_ready(0);
    assert_eq!((shown(&cluster, "/pool/leased"), shown(&cluster, "/pool/reserved")), (0.into(), 2.into()));
    let new = cluster.add(0, "new");
    for (name, ips) in [("web-1", &others), ("web-0", &ips)] {
        let back = add(&cluster, name, &of("StatefulSet"));
        assert_eq!(back.ips, *ips, "{name}");
        for to in [&new.ips[1], OUTSIDE_V6, OUTSIDE] {
            assert!(back.pod.ping(to).is_some(), "{name} to {to}");
        }
    }
}
