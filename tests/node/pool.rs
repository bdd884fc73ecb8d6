//! The pool against the cloud: bursts, exhaustion, refusals, lies, lost replies, what an earlier life left.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{events_about, idle_node, serving, shown};
use crate::sim::cloud::{Delays, EniKind, EniStatus, Kind, Lie, Rate, When};
use crate::sim::cluster::{Cluster, Member, SOON, soon};
use crate::sim::traffic::Place;
use crate::sim::world::{MORE_PODS, PODS};

/// ADDs of all these pods at once; all must succeed, each with an address of its own.
fn burst(cluster: &Cluster, pods: &mut [Member]) {
    thread::scope(|scope| pods.iter_mut().for_each(|pod| drop(scope.spawn(|| cluster.wire(pod)))));
    let ips: BTreeSet<&str> = pods.iter().map(|pod| pod.ip.as_str()).collect();
    assert_eq!(ips.len(), pods.len());
}

fn schedule(cluster: &Cluster, count: usize) -> Vec<Member> {
    (0..count).map(|n| cluster.schedule(0, &format!("web-{n}"))).collect()
}

/// Secondary ENIs of the account, attached or not.
fn secondary(cluster: &Cluster) -> Vec<String> {
    let enis = cluster.world.cloud.enis().into_iter();
    enis.filter(|eni| eni.kind == EniKind::Secondary).map(|eni| eni.id).collect()
}

/// The addresses that the cloud has for pods of the node, as text.
fn addresses(cluster: &Cluster) -> BTreeSet<String> {
    cluster.world.cloud.pod_addresses("i-1").iter().map(ToString::to_string).collect()
}

#[test]
fn a_burst_of_a_hundred_pods_costs_few_calls() {
    let mut cluster = idle_node("ecs.sim.8xlarge", &json!({"min_pool_size": 0, "max_pool_size": 0}));
    cluster.start_ready(0);
    let mut pods = schedule(&cluster, 100);
    burst(&cluster, &mut pods);
    let cloud = &cluster.world.cloud;
    let (creates, assigns) = (cloud.calls("CreateNetworkInterface"), cloud.calls("AssignPrivateIpAddresses"));
    assert!(creates <= 7 && assigns <= 30, "{creates} ENIs and {assigns} assignments");
    let own = addresses(&cluster);
    assert!(pods.iter().all(|pod| own.contains(&pod.ip)));
    assert_eq!(shown(&cluster, "/pool/leased"), 100);
}

#[test]
fn an_exhausted_vswitch_is_said_to_the_runtime_and_to_the_pod() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 0, "max_pool_size": 0}));
    cluster.start_ready(0);
    cluster.world.cloud.crowd(PODS, 0);
    let web = cluster.schedule(0, "web");
    thread::sleep(Duration::from_millis(200));
    let msg = cluster.refused(&web, 11);
    assert!(msg.starts_with("add default/web: no vSwitch of [vsw-pod] has a free address: "), "{msg}");
    assert!(msg.contains("InvalidVSwitchId.IpNotEnough"), "{msg}");
    soon("the pod bears an event", || {
        events_about(&cluster, "web").iter().any(|(reason, said)| reason == "AllocIPFailed" && said.contains("vsw-pod"))
    });
    assert_eq!(cluster.call(0, "STATUS", &Value::Null).json()["code"], 50);
}

#[test]
fn the_next_vswitch_is_used_when_the_first_is_exhausted() {
    let over = json!({
        "vswitches": {"cn-hangzhou-h": [PODS, MORE_PODS]}, "vswitch_selection_policy": "listed",
        "min_pool_size": 0, "max_pool_size": 0,
    });
    let mut cluster = idle_node("ecs.sim.large", &over);
    cluster.start_ready(0);
    cluster.world.cloud.crowd(PODS, 1);
    let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    assert!(a.ip.starts_with("192.168.32.") || a.ip.starts_with("192.168.6"), "{}", a.ip);
    assert!(b.ip.starts_with("192.168.64."), "{}", b.ip);
    soon("b speaks", || b.pod.ping(&a.ip).is_some());
}

#[test]
fn a_full_node_says_so_and_serves_again_after_a_pod_has_gone() {
    let mut cluster = idle_node("ecs.sim.small", &json!({"min_pool_size": 0, "ip_cooldown": "2s"}));
    cluster.start_ready(0);
    let mut pods: Vec<Member> = ["a", "b", "c"].map(|name| cluster.add(0, name)).into();
    let mut late = cluster.schedule(0, "late");
    let msg = cluster.refused(&late, 11);
    assert_eq!(msg, "add default/late: all addresses that this node can hold are taken: 3 in use, 0 cooling down");
    let gone = pods.remove(0);
    let ip = gone.ip.clone();
    let start = Instant::now();
    cluster.del(gone);
    cluster.wire(&mut late);
    assert_eq!(late.ip, ip);
    assert!(start.elapsed() >= Duration::from_secs(2), "{ip} rested only {:?}", start.elapsed());
}

#[test]
fn a_missing_right_is_named_to_the_runtime_and_to_the_pod() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 0, "max_pool_size": 0}));
    cluster.world.cloud.forbid("*", "ecs:CreateNetworkInterface");
    cluster.start_ready(0);
    let web = cluster.schedule(0, "web");
    thread::sleep(Duration::from_millis(200));
    let msg = cluster.refused(&web, 103);
    assert!(msg.contains("CreateNetworkInterface: Forbidden.RAM"), "{msg}");
    soon("the pod bears an event", || {
        let said = events_about(&cluster, "web");
        said.iter().any(|(reason, said)| reason == "AllocIPFailed" && said.contains("CreateNetworkInterface"))
    });
    assert_eq!(secondary(&cluster), Vec::<String>::new());
}

#[test]
fn a_quota_that_is_met_is_said_and_not_run_against_again_and_again() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 0, "max_pool_size": 0}));
    cluster.start_ready(0);
    let quota = Kind::Refuse { status: 400, code: "QuotaExceeded.PrivateIpAddress".into() };
    cluster.world.cloud.trouble("CreateNetworkInterface", When::Always, quota);
    let (a, b) = (cluster.schedule(0, "a"), cluster.schedule(0, "b"));
    let msg = cluster.refused(&a, 104);
    assert!(msg.contains("QuotaExceeded.PrivateIpAddress"), "{msg}");
    cluster.refused(&b, 104);
    assert_eq!(cluster.world.cloud.calls("CreateNetworkInterface"), 1);
    assert_eq!(cluster.call(0, "STATUS", &Value::Null).json()["code"], 50);
}

#[test]
fn a_cloud_that_throttles_only_delays() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 0, "max_pool_size": 0}));
    cluster.start_ready(0);
    cluster.world.cloud.trouble("CreateNetworkInterface", When::Next(1), Kind::throttling());
    cluster.world.cloud.trouble("AttachNetworkInterface", When::Next(1), Kind::throttling());
    cluster.world.cloud.limit("*", Some(Rate { per_second: 5.0, burst: 5 }));
    let mut pods = schedule(&cluster, 12);
    burst(&cluster, &mut pods);
    assert!(cluster.world.cloud.calls_ending("CreateNetworkInterface", "OK") <= 2);
}

#[test]
fn an_eni_that_has_long_been_idle_is_given_back() {
    let mut cluster = idle_node(
        "ecs.sim.large",
        &json!({"min_pool_size": 0, "max_pool_size": 0, "ip_cooldown": "0s", "eni_idle_release_after": "10s"}),
    );
    cluster.start_ready(0);
    let web = cluster.add(0, "web");
    let eni = secondary(&cluster).remove(0);
    let start = Instant::now();
    cluster.del(web);
    soon("the ENI is deleted", || cluster.world.cloud.eni(&eni).is_none());
    assert!(start.elapsed() >= Duration::from_secs(10), "after {:?}", start.elapsed());
    let rules = cluster.node(0).sh("ip rule; ip route show table all");
    assert!(!rules.contains("2048:") && !rules.contains("blackhole") && !rules.contains("eth1"), "{rules}");
    cluster.add(0, "web-2");
}

#[test]
fn an_address_rests_also_over_a_restart_and_the_one_free_longest_is_next() {
    let over = json!({"min_pool_size": 3, "max_pool_size": 3, "ip_cooldown": "8s"});
    let mut cluster = idle_node("ecs.sim.small", &over);
    cluster.start_ready(0);
    let (a, b, c) = (cluster.add(0, "a"), cluster.add(0, "b"), cluster.add(0, "c"));
    let (first, second) = (b.ip.clone(), a.ip.clone());
    let start = Instant::now();
    cluster.del(b);
    thread::sleep(Duration::from_millis(1200));
    cluster.del(a);
    cluster.kill(0);
    assert_eq!(cluster.ledger(0, "resting").len(), 2);
    cluster.start(0);
    soon("it serves again", || cluster.log(0).matches("serving on").count() == 2);
    // Of rests that were over when it came, nobody knows which was over first.
    let in_time = start.elapsed() < Duration::from_secs(8);
    let (mut d, mut e) = (cluster.schedule(0, "d"), cluster.schedule(0, "e"));
    cluster.wire(&mut d);
    assert!(start.elapsed() > Duration::from_millis(7900), "leased after {:?}", start.elapsed());
    cluster.wire(&mut e);
    assert!(start.elapsed() > Duration::from_millis(9100), "leased after {:?}", start.elapsed());
    assert!(!in_time || (&d.ip, &e.ip) == (&first, &second), "{} and {}, not {first} and {second}", d.ip, e.ip);
    assert!(!c.ip.is_empty());
}

#[test]
fn an_address_that_the_cloud_cannot_mean_is_never_leased() {
    for (lie, words) in [(Lie::Outside, "203.0.113.77"), (Lie::Duplicate, "ours elsewhere")] {
        let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 0, "max_pool_size": 0}));
        cluster.start_ready(0);
        // The first ENI is made in truth, so that there is an address to be given twice.
        let first = cluster.add(0, "first");
        cluster.world.cloud.trouble("AssignPrivateIpAddresses", When::Next(1), Kind::Lie(lie));
        let mut pods = schedule(&cluster, 5);
        burst(&cluster, &mut pods);
        let own = addresses(&cluster);
        assert!(cluster.world.cloud.calls("AssignPrivateIpAddresses") > 0, "{lie:?}");
        for pod in &pods {
            assert!(own.contains(&pod.ip) && pod.ip != first.ip, "{lie:?}: {} is not the node's: {own:?}", pod.ip);
        }
        assert!(lie == Lie::Duplicate || cluster.log(0).contains(words), "{lie:?}");
    }
}

#[test]
fn a_reply_that_is_lost_leaks_nothing() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 0, "max_pool_size": 0}));
    cluster.start_ready(0);
    for action in ["CreateNetworkInterface", "AttachNetworkInterface", "AssignPrivateIpAddresses"] {
        cluster.world.cloud.trouble(action, When::Next(1), Kind::LoseReply);
    }
    let first = cluster.add(0, "first");
    let mut pods = schedule(&cluster, 4);
    burst(&cluster, &mut pods);
    let cloud = &cluster.world.cloud;
    for action in ["CreateNetworkInterface", "AssignPrivateIpAddresses"] {
        let calls = cloud.journal().into_iter().filter(|call| call.action == action);
        let tokens: Vec<String> = calls.map(|call| call.params["ClientToken"].clone()).collect();
        let distinct: BTreeSet<&String> = tokens.iter().collect();
        assert!(tokens.len() > distinct.len(), "{action} was not said again with its token: {tokens:?}");
    }
    assert_eq!(secondary(&cluster).len(), 1);
    assert_eq!(addresses(&cluster).len(), 5);
    assert_eq!(cluster.ledger(0, "intents"), Vec::<String>::new());
    assert!(!first.ip.is_empty());
}

#[test]
fn a_daemon_killed_while_an_eni_is_made_finds_it_again() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 2, "max_pool_size": 2}));
    cluster.world.cloud.trouble("CreateNetworkInterface", When::Next(1), Kind::Late(Duration::from_secs(1)));
    cluster.start(0);
    soon("an ENI is being made", || !secondary(&cluster).is_empty());
    cluster.kill(0);
    assert_eq!(cluster.ledger(0, "intents").len(), 1);
    cluster.start_ready(0);
    soon("it serves", || serving(&cluster) == 1);
    assert_eq!(secondary(&cluster).len(), 1);
    assert_eq!(cluster.world.cloud.enis_of("i-1").len(), 2);
    cluster.add(0, "web");
}

#[test]
fn an_eni_of_an_earlier_life_is_adopted_where_it_is_wanted_and_deleted_where_it_is_not() {
    let made = |cluster: &Cluster, node: &str| {
        let tags = [("Tag.1.Key", "creator"), ("Tag.1.Value", "terway")];
        let mine = [("Tag.2.Key", "terway.alibabacloud.com/node"), ("Tag.2.Value", node)];
        let place = [("VSwitchId", PODS), ("SecurityGroupId", "sg-sim")];
        let all: Vec<(&str, &str)> = tags.into_iter().chain(mine).chain(place).collect();
        let answer = cluster.world.cloud.operate("CreateNetworkInterface", &all).expect("the account's owner may");
        let id = answer["NetworkInterfaceId"].as_str().unwrap().to_owned();
        soon("it is made", || cluster.world.cloud.eni(&id).unwrap().status == EniStatus::Available);
        id
    };
    // Wanted: one that is loose and one that is attached already. Another node's is not ours to touch.
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_eni": 2}));
    let (loose, attached, others) = (made(&cluster, "i-1"), made(&cluster, "i-1"), made(&cluster, "i-2"));
    let attach = [("NetworkInterfaceId", attached.as_str()), ("InstanceId", "i-1")];
    cluster.world.cloud.operate("AttachNetworkInterface", &attach).unwrap();
    soon("it is attached", || cluster.world.cloud.eni(&attached).unwrap().status == EniStatus::InUse);
    cluster.start_ready(0);
    soon("both serve", || serving(&cluster) == 2);
    assert_eq!(cluster.world.cloud.calls("CreateNetworkInterface"), 0);
    assert_eq!(cluster.world.cloud.eni(&loose).unwrap().instance.as_deref(), Some("i-1"));
    assert_eq!(cluster.world.cloud.eni(&others).unwrap().status, EniStatus::Available);
    cluster.add(0, "web");

    // Not wanted: there is one already, and nobody waits.
    let mut cluster = idle_node("ecs.sim.small", &json!({"min_pool_size": 0, "max_pool_size": 0}));
    let loose = made(&cluster, "i-1");
    cluster.start(0);
    soon("it is deleted", || cluster.world.cloud.eni(&loose).is_none());
}

#[test]
fn an_outage_after_the_start_is_survived_by_those_who_wait() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 0, "max_pool_size": 0}));
    cluster.start_ready(0);
    cluster.world.cloud.set_delays(Delays { attach: Duration::from_millis(300), ..Delays::default() });
    cluster.world.cloud.trouble_anywhere(When::Next(4), Kind::unavailable());
    let mut pods = schedule(&cluster, 2);
    let start = Instant::now();
    burst(&cluster, &mut pods);
    assert!(start.elapsed() < SOON);
    assert_eq!(secondary(&cluster).len(), 1);
}
