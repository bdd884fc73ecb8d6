//! What goes on while the cloud, the API server, the metadata service, a vSwitch, a right or the right time is missing.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{events_about, idle_node, node, nothing, shown};
use crate::sim::cloud::{Kind, When};
use crate::sim::cluster::{Cluster, Member, node_name, soon, within};
use crate::sim::traffic::Place;
use crate::sim::world::PODS;

const LARGE: &str = "ecs.sim.large";

/// CNI STATUS: its code, 0 where the node is ready.
fn status(cluster: &Cluster) -> u64 {
    let answer = cluster.call(0, "STATUS", &Value::Null);
    if answer.code == Some(0) { 0 } else { answer.json()["code"].as_u64().expect("a failure has a code") }
}

/// Whether an event about this object has this reason and all of these words.
fn told(cluster: &Cluster, about: &str, reason: &str, words: &[&str]) -> bool {
    events_about(cluster, about).iter().any(|(r, said)| r == reason && words.iter().all(|word| said.contains(word)))
}

#[test]
fn while_the_cloud_is_dead_pods_come_and_go_from_the_pool() {
    let over = json!({"min_pool_size": 6, "max_pool_size": 6, "ip_cooldown": "0s", "ip_pool_sync_period": "10s"});
    let cluster = node(&over);
    soon("the pool is warm", || shown(&cluster, "/pool/idle") == 6);
    let stays = cluster.add(0, "stays");
    soon("the pool is warm again", || shown(&cluster, "/pool/idle") == 6);
    cluster.world.cloud.outage(true);
    for round in 0..3 {
        let pods: Vec<Member> = (0..5).map(|i| cluster.add(0, &format!("web-{round}-{i}"))).collect();
        assert!(pods.iter().all(|pod| pod.took < Duration::from_secs(10)), "{:?}", pods.iter().map(|p| p.took).max());
        soon("they speak", || pods[4].pod.ping(&stays.ip).is_some());
        assert_eq!(status(&cluster), 0, "there are addresses left");
        for pod in pods {
            cluster.del(pod);
        }
    }
    // The last address goes; then it is said, and so is its end.
    let all: Vec<Member> = (0..6).map(|i| cluster.add(0, &format!("all-{i}"))).collect();
    assert!(within(Duration::from_secs(90), || status(&cluster) == 50), "{}", cluster.show(0));
    let words = ["the cloud does not answer"];
    soon("the node is told", || told(&cluster, &node_name(0), "AllocResourceFailed", &words));
    cluster.world.cloud.outage(false);
    // The probe under way ends by its timeout, the next comes within a minute and a half.
    assert!(within(Duration::from_secs(120), || status(&cluster) == 0), "{}", cluster.show(0));
    cluster.add(0, "late");
    drop(all);
}

#[test]
fn a_cloud_that_is_back_is_not_called_more_often_than_before() {
    let over = json!({"min_pool_size": 0, "max_pool_size": 0, "ip_cooldown": "0s", "ip_pool_sync_period": "10s"});
    let cluster = node(&over);
    let stays = cluster.add(0, "stays");
    waves(&cluster, 1);
    cluster.world.cloud.forget_calls();
    let start = Instant::now();
    // As many as will wait for the end of the outage.
    let early = [cluster.add(0, "early-0"), cluster.add(0, "early-1")];
    waves(&cluster, 2);
    let (steady, steady_time) = (calls(&cluster), start.elapsed());
    for pod in early {
        cluster.del(pod);
    }
    waves(&cluster, 1);
    cluster.world.cloud.trouble_anywhere(When::Always, Kind::unavailable());
    let late: Vec<Member> = (0..2).map(|n| cluster.schedule(0, &format!("late-{n}"))).collect();
    let (dead, after, after_time) = thread::scope(|scope| {
        let cluster = &cluster;
        let wait = |pod| scope.spawn(move || cluster.call_for(pod, "ADD"));
        let waiting: Vec<_> = late.iter().map(wait).collect();
        soon("it is an outage", || !shown(cluster, "/pool/cloud/outage").is_null());
        cluster.world.cloud.forget_calls();
        thread::sleep(Duration::from_secs(16));
        let dead = calls(cluster);
        cluster.world.cloud.calm();
        cluster.world.cloud.forget_calls();
        let start = Instant::now();
        waiting.into_iter().for_each(|add| drop(add.join().expect("it has an end").ok()));
        waves(cluster, 2);
        (dead, calls(cluster), start.elapsed())
    });
    println!("calls: {steady} in {steady_time:?} before the outage, {dead} in it, {after} in {after_time:?} after it");
    assert!(steady >= 4, "this work costs only {steady} calls");
    assert!(dead < steady, "{dead} calls in the outage, {steady} before");
    // What fell due in the outage is made up for once, a look (two calls) and a count of vSwitches; another look may fall into
    // this window or into that. `pool/tests/outage.rs` holds the rate itself, over ten minutes.
    let steady_rate = steady as f64 / steady_time.as_secs_f64();
    let most = 1.2 * steady_rate * after_time.as_secs_f64() + 5.0;
    assert!(
        after as f64 <= most,
        "{after} calls in {after_time:?} after the outage, {steady} in {steady_time:?} before"
    );
    drop(stays);
}

/// Three pods come at once and go, every eight seconds: the pool gives back and must ask again.
fn waves(cluster: &Cluster, count: u32) {
    for _ in 0..count {
        let start = Instant::now();
        let mut pods: Vec<Member> = (0..3).map(|n| cluster.schedule(0, &format!("wave-{n}"))).collect();
        thread::scope(|scope| pods.iter_mut().for_each(|pod| drop(scope.spawn(|| cluster.wire(pod)))));
        for pod in pods {
            cluster.del(pod);
        }
        thread::sleep(Duration::from_secs(8).saturating_sub(start.elapsed()));
    }
}

/// Calls of the API that the cloud has heard.
fn calls(cluster: &Cluster) -> usize {
    cluster.world.cloud.journal().iter().filter(|call| call.action != "metadata").count()
}

#[test]
fn a_daemon_that_starts_without_api_server_serves_the_pods_it_knows() {
    // Of policies it would know nothing, and that lets no pod in.
    let mut cluster = node(&json!({"disable_network_policy": true}));
    let (web, other) = (cluster.add(0, "web"), cluster.add(0, "other"));
    cluster.kill(0);
    cluster.api_down();
    cluster.start_ready(0);
    cluster.call_for(&web, "CHECK").ok();
    // A pod that holds an address gets one in a new sandbox too; one that nobody knows waits for the API server.
    let mut next = cluster.sandbox(0, other.sandbox.pod.clone());
    cluster.wire(&mut next);
    soon("they speak", || next.pod.ping(&web.ip).is_some());
    let unknown = cluster.sandbox(0, terway::pod::PodName::new("default", "unknown"));
    let msg = cluster.refused(&unknown, 11);
    assert!(msg.contains("pod default/unknown is not known yet"), "{msg}");
    assert_eq!(status(&cluster), 0);
    cluster.call_for(&other, "DEL").ok();
    // It is back, and nobody was taken for gone meanwhile.
    cluster.api_up();
    soon("it is watched", || cluster.kube.is_watched("pods") && cluster.kube.is_watched("nodes"));
    cluster.call_for(&next, "CHECK").ok();
    cluster.add(0, "new");
}

#[test]
fn while_a_vswitch_is_exhausted_what_is_freed_is_used_and_a_relief_is_noticed() {
    let over = json!({"min_pool_size": 0, "max_pool_size": 0, "ip_cooldown": "0s", "orphan_release_after": "1s"});
    let cluster = node(&over);
    let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    cluster.world.cloud.crowd(PODS, 0);
    let mut late = cluster.schedule(0, "late");
    assert!(cluster.refused(&late, 11).contains("vSwitch"));
    assert_eq!(status(&cluster), 50);
    // Collection goes on: of a pod that is gone without DEL, and of one with it.
    let freed = a.ip.clone();
    cluster.kube.delete("Pod", "default", "a");
    soon("it is served from what was freed", || cluster.call_for(&late, "ADD").code == Some(0));
    let ip = cluster.wire(&mut late)["ips"][0]["address"].to_string();
    assert!(ip.contains(&freed), "{ip} is not {freed}");
    cluster.del(b);
    cluster.add(0, "c");
    // More room: noticed without a restart, without anybody's doing.
    cluster.world.cloud.relieve(PODS);
    assert!(within(Duration::from_secs(100), || status(&cluster) == 0), "{}", cluster.show(0));
    cluster.add(0, "d");
}

#[test]
fn a_right_that_is_missing_is_named_with_what_it_is_needed_on() {
    let cluster = node(&json!({"min_pool_size": 0, "max_pool_size": 0, "max_eni": 1}));
    let first = cluster.add(0, "first");
    let eni = shown(&cluster, "/pool/enis/0/id").as_str().expect("an id").to_owned();
    cluster.world.cloud.forbid("*", "ecs:AssignPrivateIpAddresses");
    let web = cluster.schedule(0, "web");
    let msg = cluster.refused(&web, 103);
    let resource = format!("ecs:AssignPrivateIpAddresses on acs:ecs:cn-hangzhou:*:eni/{eni}");
    assert!(msg.contains(&resource), "{msg}");
    assert_eq!(status(&cluster), 50);
    soon("the pod is told", || told(&cluster, "web", "AllocIPFailed", &[&resource]));
    soon("the node is told", || told(&cluster, &node_name(0), "AllocResourceFailed", &[&resource]));
    cluster.call_for(&first, "CHECK").ok();
    cluster.del(first);
}

#[test]
fn a_right_to_look_that_is_missing_is_told_to_the_node() {
    let cluster = node(&json!({"min_pool_size": 0, "max_pool_size": 0, "ip_pool_sync_period": "10s"}));
    cluster.add(0, "first");
    cluster.world.cloud.forbid("*", "ecs:DescribeNetworkInterfaces");
    let words = ["ecs:DescribeNetworkInterfaces on acs:ecs:cn-hangzhou:*:eni/*"];
    assert!(
        within(Duration::from_secs(40), || told(&cluster, &node_name(0), "AllocResourceFailed", &words)),
        "{:?}",
        events_about(&cluster, &node_name(0))
    );
}

#[test]
fn a_start_that_the_cloud_forbids_is_told_to_the_node() {
    let mut cluster = idle_node(LARGE, &nothing());
    cluster.world.cloud.forbid("*", "ecs:DescribeInstanceTypes");
    cluster.start(0);
    let words = ["terwayd cannot start", "ecs:DescribeInstanceTypes on acs:ecs:cn-hangzhou:*:*"];
    soon("the node is told", || told(&cluster, &node_name(0), "AllocResourceFailed", &words));
    soon("the condition says so", || {
        let node = cluster.kube.get("Node", "", &node_name(0)).expect("it is there");
        let text = node["status"]["conditions"].to_string();
        text.contains("SufficientIP") && text.contains("\"False\"") && text.contains("DescribeInstanceTypes")
    });
    assert_eq!(status(&cluster), 50);
    cluster.world.cloud.permit("*", "ecs:DescribeInstanceTypes");
    cluster.wait_ready(0);
    cluster.add(0, "web");
}

#[test]
fn an_instance_type_that_nobody_knows_is_named() {
    let mut cluster = idle_node(LARGE, &nothing());
    let lost = Kind::Refuse { status: 404, code: "InvalidInstanceType.NotFound".into() };
    cluster.world.cloud.trouble("DescribeInstanceTypes", When::Always, lost);
    cluster.start(0);
    soon("the node is told", || told(&cluster, &node_name(0), "AllocResourceFailed", &["ecs.sim.large"]));
    cluster.world.cloud.calm();
    cluster.wait_ready(0);
}

#[test]
fn a_wrong_clock_is_named_and_made_good() {
    let mut cluster = idle_node(LARGE, &json!({"min_pool_size": 0, "max_pool_size": 0}));
    // Twenty minutes: more than a signature may be old.
    cluster.world.cloud.set_clock(1200);
    cluster.start_ready(0);
    cluster.add(0, "web");
    let words = ["of this machine is", "behind the cloud's", "chronyc makestep"];
    soon("the node is told", || told(&cluster, &node_name(0), "ConfigError", &words));
    // It is set while we run, to the other side: no pod notices.
    cluster.world.cloud.set_clock(-4000);
    let more: Vec<Member> = (0..11).map(|i| cluster.add(0, &format!("more-{i}"))).collect();
    soon("the node is told", || told(&cluster, &node_name(0), "ConfigError", &["ahead of the cloud's"]));
    cluster.world.cloud.set_clock(0);
    (0..4).for_each(|i| drop(cluster.add(0, &format!("last-{i}"))));
    soon("it is noticed", || cluster.log(0).contains("agrees with the cloud's again"));
    drop(more);
}

#[test]
fn a_metadata_service_that_is_dead_at_the_start_only_delays_it() {
    let mut cluster = idle_node(LARGE, &nothing());
    let gone = Kind::Refuse { status: 503, code: "unavailable".into() };
    cluster.world.cloud.trouble("metadata", When::Always, gone.clone());
    cluster.start(0);
    soon("the node is told", || told(&cluster, &node_name(0), "AllocResourceFailed", &["metadata"]));
    assert_eq!(status(&cluster), 50);
    cluster.world.cloud.calm();
    cluster.wait_ready(0);
    cluster.add(0, "web");

    // Later it is needed for credentials only: those we hold are good until they end.
    cluster.world.cloud.trouble("metadata", When::Always, gone);
    let pods: Vec<Member> = (0..12).map(|i| cluster.add(0, &format!("web-{i}"))).collect();
    // They end, and there are no others: pods come from the pool, and it is said what is missing.
    cluster.world.cloud.expire_credentials();
    while shown(&cluster, "/pool/idle") != 0 {
        cluster.add(0, &format!("more-{}", fastrand::u32(..)));
    }
    assert!(within(Duration::from_secs(60), || status(&cluster) == 50), "{}", cluster.show(0));
    let why = ["InvalidSecurityToken.Expired", "there are no newer credentials", "metadata"];
    soon("it is named", || cluster.log(0).lines().any(|line| why.iter().all(|word| line.contains(word))));
    cluster.world.cloud.calm();
    assert!(within(Duration::from_secs(90), || status(&cluster) == 0), "{}", cluster.show(0));
    drop(pods);
}

#[test]
fn credentials_that_end_during_an_outage_are_renewed_after_it() {
    let cluster = node(&json!({"min_pool_size": 0, "max_pool_size": 0}));
    cluster.add(0, "web");
    cluster.world.cloud.trouble_anywhere(When::Always, Kind::unavailable());
    let mut late = cluster.schedule(0, "late");
    thread::scope(|scope| {
        let waits = scope.spawn(|| cluster.call_for(&late, "ADD"));
        soon("it is an outage", || !shown(&cluster, "/pool/cloud/outage").is_null());
        cluster.world.cloud.expire_credentials();
        cluster.world.cloud.calm();
        waits.join().expect("it has an end");
    });
    cluster.wire(&mut late);
    assert!(cluster.world.cloud.calls_ending("AssignPrivateIpAddresses", "OK") >= 1);
}

#[test]
fn a_ledger_that_takes_no_leases_shows_and_so_does_its_end() {
    let cluster = node(&nothing());
    cluster.add(0, "web");
    let folder = "/run/terway/leases";
    cluster.node(0).sh(&format!("mv {folder} {folder}.away && touch {folder}"));
    let late = cluster.schedule(0, "late");
    cluster.refused(&late, 100);
    assert_eq!(status(&cluster), 50);
    soon("the pod is told", || told(&cluster, "late", "AllocIPFailed", &["could not be written down"]));
    cluster.node(0).sh(&format!("rm {folder} && mv {folder}.away {folder}"));
    assert_eq!(status(&cluster), 0);
    let mut late = late;
    cluster.wire(&mut late);
}
