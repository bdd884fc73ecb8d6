//! Bandwidth: annotations of both families, the runtime's word, changes while a pod runs. Real datagrams, counted by the second.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use terway::ours::host_veth;
use terway::pod::PodName;

use super::{events_about, idle_node, is_bare, node, nothing, shown};
use crate::sim::cluster::{Cluster, Member, conf, node_name, soon, within};
use crate::sim::fabric::{OUTSIDE, OUTSIDE_V6};
use crate::sim::flood::{self, between, flood};
use crate::sim::kube;
use crate::sim::traffic::Place;

const INGRESS: &str = "k8s.aliyun.com/ingress-bandwidth";
const EGRESS: &str = "k8s.aliyun.com/egress-bandwidth";
const K8S_INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const K8S_EGRESS: &str = "kubernetes.io/egress-bandwidth";
const UNLIMITED: [Option<&str>; 2] = [None, None];

/// A pod with these annotations, before its ADD.
fn scheduled(cluster: &Cluster, name: &str, annotations: &Value) -> Member {
    let mut pod = kube::pod("default", name, &node_name(0));
    pod["metadata"]["annotations"] = annotations.clone();
    cluster.kube.put(pod);
    cluster.sandbox(0, PodName::new("default", name))
}

fn annotated(cluster: &Cluster, name: &str, annotations: &Value) -> Member {
    let mut member = scheduled(cluster, name, annotations);
    cluster.wire(&mut member);
    member
}

fn annotate(cluster: &Cluster, name: &str, annotations: &Value) {
    cluster.kube.amend("Pod", "default", name, &json!({"metadata": {"annotations": annotations}}));
}

/// The rates, as tc(8) prints them, of ingress and egress.
fn rates(cluster: &Cluster, member: &Member) -> [Option<String>; 2] {
    let rate = |text: String| {
        let line = text.lines().find(|line| line.starts_with("qdisc tbf 7e4: root"))?.to_owned();
        Some(line.split_once(" rate ")?.1.split(' ').next()?.to_owned())
    };
    let veth = host_veth(&member.sandbox.pod, &member.sandbox.ifname);
    let ingress = cluster.node(0).sh(&format!("tc qdisc show dev {veth}"));
    [rate(ingress), rate(member.pod.sh("tc qdisc show dev eth0"))]
}

fn come_to(cluster: &Cluster, member: &Member, want: [Option<&str>; 2]) {
    let want = want.map(|rate| rate.map(String::from));
    soon(&format!("{:?}", want), || rates(cluster, member) == want);
    cluster.call_for(member, "CHECK").ok();
}

/// See [`flood::keeps_to`].
fn keeps_to(from: &Member, to: &Member, limit: u64) {
    flood::keeps_to(&from.pod, &to.pod, &to.ip, limit);
}

#[test]
fn annotations_of_both_families_hold_from_the_first_second_on() {
    let cluster = node(&nothing());
    let plain = cluster.add(0, "plain");
    let aliyun = annotated(&cluster, "aliyun", &json!({INGRESS: "1M", EGRESS: "512K"}));
    let kubernetes = annotated(&cluster, "kubernetes", &json!({K8S_INGRESS: "1M", K8S_EGRESS: "20M"}));
    assert_eq!(rates(&cluster, &plain), UNLIMITED.map(|_| None));
    // tc(8) rounds what it prints of powers of two.
    assert_eq!(rates(&cluster, &aliyun).map(|rate| rate.is_some()), [true, true]);
    keeps_to(&plain, &aliyun, 8 << 20);
    keeps_to(&aliyun, &plain, 4 << 20);
    keeps_to(&plain, &kubernetes, 1_000_000);
    keeps_to(&kubernetes, &plain, 20_000_000);
    for member in [&plain, &aliyun, &kubernetes] {
        cluster.call_for(member, "CHECK").ok();
    }
    for member in [plain, aliyun, kubernetes] {
        cluster.del(member);
    }
    soon("nothing is left", || is_bare(&cluster));
    assert!(!cluster.node(0).sh("tc qdisc").contains("tbf"));
}

#[test]
fn the_runtimes_word_goes_before_annotations_until_they_change() {
    let mut cluster = node(&nothing());
    let mut web = scheduled(&cluster, "web", &json!({INGRESS: "1M", EGRESS: "125000"}));
    let runtime = json!({"bandwidth": {"ingressRate": 3_000_000, "ingressBurst": 2_147_483_647, "egressRate": 0}});
    let over = json!({"capabilities": {"bandwidth": true}, "runtimeConfig": runtime});
    web.sandbox.conf = conf(&over).to_string();
    cluster.wire(&mut web);
    come_to(&cluster, &web, [Some("3Mbit"), Some("1Mbit")]);
    // A restart and a repeated ADD know of it.
    cluster.kill(0);
    cluster.start_ready(0);
    cluster.wire(&mut web);
    come_to(&cluster, &web, [Some("3Mbit"), Some("1Mbit")]);
    assert_eq!(shown(&cluster, "/leases/0/bandwidth/ingress/rate"), 375_000);
    annotate(&cluster, "web", &json!({INGRESS: "500000"}));
    come_to(&cluster, &web, [Some("4Mbit"), Some("1Mbit")]);
}

#[test]
fn changed_annotations_take_effect_on_running_pods() {
    let mut cluster = node(&nothing());
    let plain = cluster.add(0, "plain");
    let web = annotated(&cluster, "web", &json!({INGRESS: "1250000"}));
    come_to(&cluster, &web, [Some("10Mbit"), None]);
    annotate(&cluster, "web", &json!({INGRESS: "250000", EGRESS: "500000"}));
    come_to(&cluster, &web, [Some("2Mbit"), Some("4Mbit")]);
    keeps_to(&plain, &web, 2_000_000);
    keeps_to(&web, &plain, 4_000_000);

    // Kubernetes' own goes first, and when it goes away the other is there again.
    annotate(&cluster, "web", &json!({K8S_INGRESS: "5M"}));
    come_to(&cluster, &web, [Some("5Mbit"), Some("4Mbit")]);
    annotate(&cluster, "web", &json!({K8S_INGRESS: null, EGRESS: null}));
    come_to(&cluster, &web, [Some("2Mbit"), None]);

    // Changes that no daemon was there to hear of.
    cluster.kill(0);
    annotate(&cluster, "web", &json!({INGRESS: null, K8S_EGRESS: "6M"}));
    cluster.start_ready(0);
    come_to(&cluster, &web, [None, Some("6Mbit")]);
    cluster.kill(0);
    cluster.start_ready(0);
    come_to(&cluster, &web, [None, Some("6Mbit")]);
}

#[test]
fn a_wrong_annotation_is_told_and_changes_nothing() {
    let mut cluster = node(&nothing());
    let wrong = annotated(&cluster, "wrong", &json!({INGRESS: "fast", K8S_EGRESS: "1MiB"}));
    come_to(&cluster, &wrong, UNLIMITED);
    let failures = |name: &str| {
        let mut told = events_about(&cluster, name);
        told.retain(|(reason, _)| reason == "ParseFailed");
        told.into_iter().map(|(_, message)| message).collect::<Vec<_>>()
    };
    soon("two events", || failures("wrong").len() == 2);
    let messages = failures("wrong").join("\n");
    assert!(
        messages.contains(&format!("annotation {INGRESS} is \"fast\": it must be a number of bytes")),
        "{messages}"
    );
    assert!(messages.contains(&format!("annotation {K8S_EGRESS} is \"1MiB\": it must be a quantity")), "{messages}");

    // A pod that runs keeps its limit, over a restart too.
    let web = annotated(&cluster, "web", &json!({INGRESS: "125000"}));
    annotate(&cluster, "web", &json!({INGRESS: "-1"}));
    soon("an event", || failures("web").len() == 1);
    come_to(&cluster, &web, [Some("1Mbit"), None]);
    cluster.kill(0);
    cluster.start_ready(0);
    annotate(&cluster, "web", &json!({EGRESS: "250000"}));
    come_to(&cluster, &web, [Some("1Mbit"), Some("2Mbit")]);
}

#[test]
fn a_limit_that_somebody_takes_away_comes_back_and_check_says_what_nobody_hears() {
    let cluster = node(&nothing());
    let web = annotated(&cluster, "web", &json!({INGRESS: "125000", EGRESS: "125000"}));
    // What happens inside a pod, nobody tells.
    web.pod.sh("tc qdisc del dev eth0 root");
    let answer = cluster.call_for(&web, "CHECK");
    assert_ne!(answer.code, Some(0), "{answer:?}");
    let msg = answer.json()["msg"].as_str().unwrap().to_owned();
    assert!(msg.contains("qdisc of eth0: noqueue 0:, not tbf 7e4: rate 1000000bit burst 2018 limit 14162"), "{msg}");
    annotate(&cluster, "web", &json!({EGRESS: "250000"}));
    come_to(&cluster, &web, [Some("1Mbit"), Some("2Mbit")]);

    let veth = host_veth(&web.sandbox.pod, "eth0");
    let theirs = format!("tc qdisc replace dev {veth} root handle 1: tbf rate 9mbit burst 9000 limit 90000");
    for damage in [format!("{theirs}; tc qdisc del dev {veth} root"), theirs] {
        // An ADD is let settle before its pod is guarded: what is done until then nobody hears, so each time something is done.
        soon("it is guarded", || {
            cluster.node(0).sh(&damage);
            within(Duration::from_secs(1), || rates(&cluster, &web)[0].as_deref() == Some("1Mbit"))
        });
    }

    // Without an annotation, what is not ours stays.
    annotate(&cluster, "web", &json!({INGRESS: null, EGRESS: null}));
    soon("ours are gone", || rates(&cluster, &web) == [None, None]);
    cluster.node(0).sh(&format!("tc qdisc replace dev {veth} root handle 1: tbf rate 9mbit burst 9000 limit 90000"));
    thread::sleep(Duration::from_millis(200));
    assert!(cluster.node(0).sh(&format!("tc qdisc show dev {veth}")).contains("tbf 1: root"));
}

#[test]
fn a_limit_holds_in_ipv6_as_in_ipv4() {
    let cluster = node(&json!({"ip_stack": "dual"}));
    let plain = cluster.add(0, "plain");
    let web = annotated(&cluster, "web", &json!({K8S_INGRESS: "4M", K8S_EGRESS: "8M"}));
    for (member, other) in [(&web, &plain), (&plain, &web)] {
        soon("they speak", || member.pod.ping(&other.ips[1]).is_some());
    }
    flood::keeps_to(&plain.pod, &web.pod, &web.ips[1], 4_000_000);
    flood::keeps_to(&web.pod, &plain.pod, &plain.ips[1], 8_000_000);
}

/// Of a card of its own, two families have one limit between them.
#[test]
fn a_pod_with_an_eni_of_its_own_has_one_limit_for_both_families() {
    let over = json!({"daemon_mode": "ENIOnly", "ip_stack": "dual", "min_pool_size": 1, "max_pool_size": 2});
    let mut cluster = idle_node("ecs.sim.2xlarge", &over);
    cluster.start_ready(0);
    let limit = 8_000_000;
    let web = annotated(&cluster, "web", &json!({K8S_INGRESS: "8M", K8S_EGRESS: "8M"}));
    let outside = cluster.world.fabric.outside();
    soon("it speaks", || web.pod.ping(OUTSIDE).is_some() && web.pod.ping(OUTSIDE_V6).is_some());
    let offered = limit * 3 / 2;
    let to_web = |ip: &str| flood(outside, &web.pod, ip, offered, 2);
    let from_web = |ip: &str| flood(&web.pod, outside, ip, offered, 2);
    between(limit, || to_web(&web.ips[0]), || to_web(&web.ips[1]));
    between(limit, || from_web(OUTSIDE), || from_web(OUTSIDE_V6));
}

/// What arrives by the ENI and what comes through the node have one limit between them, and so has what leaves.
#[test]
fn a_pod_with_an_eni_of_its_own_has_one_limit_for_both_links() {
    let mut cluster =
        idle_node("ecs.sim.2xlarge", &json!({"daemon_mode": "ENIOnly", "min_pool_size": 1, "max_pool_size": 2}));
    cluster.start_ready(0);
    let limit = 8_000_000;
    let web = annotated(&cluster, "web", &json!({K8S_INGRESS: "8M", K8S_EGRESS: "8M"}));
    cluster.call_for(&web, "CHECK").ok();
    let (outside, node, addr) = (cluster.world.fabric.outside(), cluster.node(0), cluster.node(0).addr.to_string());
    soon("it speaks", || web.pod.ping(OUTSIDE).is_some() && node.ping(&web.ip).is_some());
    let offered = limit * 3 / 2;
    between(
        limit,
        || flood(outside, &web.pod, &web.ip, offered, 2),
        || flood(&node.node, &web.pod, &web.ip, offered, 2),
    );
    between(limit, || flood(&web.pod, outside, OUTSIDE, offered, 2), || flood(&web.pod, &node.node, &addr, offered, 2));

    let waits =
        || web.pod.sh("tc qdisc | grep -o 'tbf 7e4: dev [^ ]* root refcnt 2 rate [^ ]*' | cut -d' ' -f4,9 || true");
    assert_eq!(waits(), "shape-in 8Mbit\nshape-out 8Mbit\n");
    annotate(&cluster, "web", &json!({K8S_INGRESS: "2M", K8S_EGRESS: null}));
    soon("another limit", || waits() == "shape-in 2Mbit\n");
    soon("as the plan has it", || cluster.call_for(&web, "CHECK").code == Some(0));
    annotate(&cluster, "web", &json!({K8S_INGRESS: null}));
    soon("no limit", || !web.pod.sh("ip -o link").contains("shape-"));
    assert!(web.pod.ping(OUTSIDE).is_some());
    cluster.del(web);
    soon("nothing is left", || is_bare(&cluster));
}
