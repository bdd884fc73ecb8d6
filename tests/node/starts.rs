//! How soon a daemon that starts serves, and what it goes by.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use super::{at_once, idle_node, node, nothing, shown};
use crate::sim::cloud::{Kind, When};
use crate::sim::cluster::{Cluster, Member, soon, within};
use crate::sim::traffic::Place;

/// A node with one pod and six idle addresses, of which none is asked for.
fn warm() -> (Cluster, Member) {
    let cluster = node(&json!({"min_pool_size": 6, "max_pool_size": 7}));
    let old = cluster.add(0, "old");
    soon("the pool is warm", || shown(&cluster, "/pool/idle") == 6 && shown(&cluster, "/pool/cloud/calls") == 0);
    (cluster, old)
}

fn is_ready(cluster: &Cluster) -> bool {
    cluster.call(0, "STATUS", &Value::Null).code == Some(0)
}

fn left(cluster: &Cluster) -> bool {
    cluster.node(0).read_file("/run/terway/legacy.json").is_some()
}

#[test]
fn a_daemon_that_ended_in_order_serves_again_before_the_cloud_has_answered() {
    let (mut cluster, old) = warm();
    cluster.stop(0);
    assert!(left(&cluster));
    cluster.world.cloud.trouble_anywhere(When::Always, Kind::unavailable());
    cluster.start(0);
    let mut new = cluster.schedule(0, "new");
    soon("it listens", || cluster.call_for(&new, "ADD").code == Some(0));
    cluster.wire(&mut new);
    soon("they speak", || new.pod.ping(&old.ip).is_some());
    assert!(!left(&cluster), "what was left is believed once");
    // Whoever is killed leaves nothing: then the cloud is asked.
    cluster.kill(0);
    cluster.start(0);
    assert!(!within(Duration::from_secs(2), || is_ready(&cluster)));
    cluster.world.cloud.calm();
    cluster.wait_ready(0);
    cluster.call_for(&new, "CHECK").ok();
}

#[test]
fn what_happens_in_the_cloud_between_two_lives_is_seen_soon() {
    let (mut cluster, old) = warm();
    let eni = shown(&cluster, "/leases/0/eni/id").as_str().expect("an id").to_owned();
    cluster.stop(0);
    let there = cluster.world.cloud.eni(&eni).expect("it is there");
    let others: Vec<Ipv4Addr> = there.v4.iter().copied().skip(1).filter(|ip| ip.to_string() != old.ip).collect();
    others.iter().for_each(|ip| cluster.world.cloud.vanish_address(&eni, *ip));
    cluster.world.cloud.forget_calls();
    cluster.start_ready(0);
    // Others are asked for in their place; the cloud may give the same again.
    soon("they are missed", || cluster.world.cloud.calls("AssignPrivateIpAddresses") == 1);
    cluster.call_for(&old, "CHECK").ok();
}

#[test]
fn what_is_left_is_not_believed_by_a_life_that_did_not_follow_at_once() {
    let (mut cluster, _old) = warm();
    cluster.stop(0);
    let kept = cluster.node(0).read_file("/run/terway/legacy.json").expect("it was left");
    cluster.start_ready(0);
    cluster.kill(0);
    // As a release leaves it that knows nothing of it.
    cluster.node(0).write_file("/run/terway/legacy.json", &kept);
    cluster.world.cloud.trouble_anywhere(When::Always, Kind::unavailable());
    cluster.start(0);
    assert!(!within(Duration::from_secs(2), || is_ready(&cluster)));
    assert!(!left(&cluster));
    cluster.world.cloud.calm();
    cluster.wait_ready(0);
}

#[test]
fn an_add_that_comes_during_a_start_waits_for_its_end_and_is_told_at_once_that_it_failed() {
    let mut cluster = idle_node("ecs.sim.large", &nothing());
    cluster.world.cloud.trouble("DescribeInstanceTypes", When::Next(1), Kind::Late(Duration::from_millis(300)));
    let mut web = cluster.schedule(0, "web");
    cluster.start(0);
    soon("the start waits for the cloud", || cluster.world.cloud.calls("DescribeInstanceTypes") == 1);
    let answer = cluster.call_for(&web, "ADD");
    assert_eq!(answer.code, Some(0), "{answer:?}");
    cluster.wire(&mut web);
    cluster.kill(0);
    let refusal = Kind::Refuse { status: 503, code: "ServiceUnavailable".into() };
    cluster.world.cloud.trouble("DescribeInstanceTypes", When::Always, refusal);
    cluster.start(0);
    soon("it has failed", || cluster.log(0).contains("start: "));
    // Who waits for the end of the start waits for two seconds.
    let answer = at_once(|| cluster.call_for(&web, "ADD"));
    assert_eq!(answer.json()["code"], 11, "{answer:?}");
    assert!(answer.json()["msg"].as_str().is_some_and(|msg| msg.contains("ServiceUnavailable")), "{answer:?}");
}
