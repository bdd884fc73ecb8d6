//! What the API server is asked for because of policies, and what it and people hear of them.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Bench, only_from, policy, space};
use crate::bpf::cell::Servers;
use crate::cli::cli;
use crate::sim::cloud::{Kind, When};
use crate::sim::cluster::{node_name, soon, within};
use crate::sim::kube;
use crate::sim::traffic::Place;

/// The watches of policies, and of whom they name.
const KINDS: [&str; 8] = [
    "networkpolicies",
    "namespaces",
    "clusternetworkpolicies",
    "globalnetworkpolicies",
    "hostendpoints",
    "networksets",
    "globalnetworksets",
    "serviceaccounts",
];

fn asked(bench: &Bench) -> Vec<&'static str> {
    let kinds = KINDS.into_iter();
    kinds.filter(|kind| bench.cluster.kube.count("list", kind) + bench.cluster.kube.count("watch", kind) > 0).collect()
}

/// Those of its watches of pods that are not of its own ones.
fn of_others(bench: &Bench) -> Vec<String> {
    let seen = bench.cluster.kube.journal().into_iter();
    let pods = seen.filter(|seen| seen.verb == "watch" && seen.resource == "pods" && !seen.target.contains("nodeName"));
    pods.map(|seen| seen.target.split("&allow").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn nothing_is_asked_for_before_a_policy_needs_it() {
    let mut bench = Bench::idle(json!({}));
    bench.cluster.kube.remember(20_000);
    // A cluster of thousands of nodes, of which nothing is said here.
    for n in 0..5000 {
        let pod = kube::pod("elsewhere", &format!("p{n}"), &format!("node-{}", n % 2500));
        bench.cluster.kube.put(pod);
    }
    bench.cluster.start_ready(0);
    bench.cluster.add(0, "web");
    soon("it is in force", || bench.shown(0)["state"] == "enforced");
    assert_eq!(of_others(&bench), [""; 0]);
    let own: IpAddr = bench.cluster.node(0).addr.into();
    let quiet = bench.cluster.kube.bytes_to(own);
    for n in 0..1000 {
        bench.cluster.kube.amend("Pod", "elsewhere", &format!("p{n}"), &json!({"metadata": {"labels": {"a": "b"}}}));
    }
    thread::sleep(Duration::from_millis(500));
    let more = bench.cluster.kube.bytes_to(own) - quiet;
    assert!(more < 20_000, "{more} bytes of what nobody asked for");
    // A policy for pods of ours asks for whom it names; one for others' asks for nothing.
    bench.policy(
        "web",
        json!({"podSelector": {"matchLabels": {"app": "nobody"}}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}),
    );
    thread::sleep(Duration::from_millis(300));
    assert_eq!(of_others(&bench), [""; 0]);
    bench.policy(
        "web",
        json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}]}),
    );
    soon("they are watched", || !of_others(&bench).is_empty());
    let pods = "/api/v1/namespaces/default/pods?labelSelector=app%3Ddb&watch=true";
    assert_eq!(of_others(&bench), [pods]);
    soon("it is in force", || bench.shown(0)["state"] == "enforced");
    // It goes, and so does its watch; what is watched is not listed again.
    let asked = |verb: &str| bench.cluster.kube.count(verb, "pods");
    let (lists, watches) = (asked("list"), asked("watch"));
    let open = bench.cluster.kube.watches_open();
    bench.cluster.kube.delete("NetworkPolicy", "default", "web");
    soon("nobody watches them", || bench.cluster.kube.watches_open() == open - 1);
    bench.cluster.kube.disconnect();
    soon("all is watched again", || asked("watch") > watches && bench.cluster.kube.watches_open() == open - 1);
    assert_eq!(asked("list"), lists);
}

#[test]
fn without_policies_nothing_is_asked_for_and_nothing_enforced() {
    for (file, over) in [
        (None, json!({"disable_network_policy": true})),
        (None, json!({"disable_network_policy": "yes"})),
        (Some("true"), json!({})),
    ] {
        let mut bench = Bench::idle(over);
        if let Some(text) = file {
            bench.cluster.node(0).write_file("/etc/eni/disable_network_policy", text);
        }
        bench.policy("deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
        bench.cluster.start_ready(0);
        let (web, _servers) = bench.serve(0, "web", json!({}));
        let client = bench.cluster.add(0, "client");
        assert!(super::reaches(&client.pod, &web.ip));
        assert_eq!((asked(&bench), bench.shown(0)), (vec![], "disabled".into()));
        let metrics = crate::node::watched::told(&bench.cluster, "GET /metrics HTTP/1.1").1;
        assert!(!metrics.contains("\nterway_policies_enforced "), "nobody is alarmed: {metrics}");
        assert!(bench.cluster.show(0)["leases"].as_array().unwrap().iter().all(|lease| lease["seat"].is_null()));
        let refused = bench.cluster.node(0).sh("/opt/terway/terway-cli policy show default/web 2>&1 || true");
        assert!(refused.contains("not enforced here: disable_network_policy"), "{refused}");
    }
}

#[test]
fn a_pod_waits_for_what_is_not_known_and_is_then_refused() {
    let mut bench = Bench::idle(json!({}));
    bench.cluster.kube.deny("list", "networkpolicies");
    bench.cluster.start_ready(0);
    let pod = bench.cluster.schedule(0, "web");
    let said = bench.cluster.refused(&pod, 11);
    assert!(
        said.contains("network policies of namespace default have not been heard of from the API server")
            && said.contains("networkpolicies is forbidden"),
        "{said}"
    );
    bench.cluster.call_for(&pod, "DEL").ok();
}

#[test]
fn a_pod_made_anew_is_judged_by_what_it_is_now_though_the_watch_is_late() {
    let mut bench = Bench::idle(json!({}));
    bench.cluster.start_ready(0);
    let client = bench.add(0, "client", json!({"app": "client"}));
    bench.policy("web", only_from("other"));
    let (old, servers) = bench.serve(0, "web", json!({"app": "web"}));
    super::comes_to(&client.pod, &old.ip, false);
    bench.label("web", json!({"app": "free"}));
    super::comes_to(&client.pod, &old.ip, true);
    drop(servers);
    bench.cluster.call_for(&old, "DEL").ok();

    // From now on no watch tells anything.
    bench.cluster.kube.fail(1000, "watch", kube::Trouble::Status(500, "away"));
    bench.cluster.kube.disconnect();
    bench.cluster.kube.delete("Pod", "default", "web");
    bench.cluster.kube.clear_journal();
    let mut web = kube::pod("default", "web", &node_name(0));
    web["metadata"]["labels"] = json!({"app": "web"});
    web["metadata"]["annotations"] = json!({"k8s.aliyun.com/ingress-bandwidth": "1M"});
    bench.cluster.kube.put(web);
    let mut web = bench.cluster.sandbox(0, terway::pod::PodName::new("default", "web"));
    bench.cluster.wire(&mut web);
    let _servers = Servers::on(&web.pod, &[&web.ip], super::PORT);
    assert!(!super::reaches(&client.pod, &web.ip));
    assert!(super::reaches(&web.pod, &web.ip));
    let shown = bench.cluster.show(0)["leases"].clone();
    let mut leases = shown.as_array().into_iter().flatten();
    let lease = leases.find(|lease| lease["pod"]["name"] == "web").expect("it has one");
    assert_eq!(lease["bandwidth"]["ingress"]["rate"], 1 << 20, "{lease}");
    assert_eq!(bench.cluster.kube.count("get", "pods"), 1);
}

/// Without a right for a kind that the cluster lacks nothing is unknown; once it is there, everything is.
#[test]
fn a_right_that_lacks_keeps_pods_out_only_where_there_is_something_to_read() {
    const NAMES: [&str; 2] = ["globalnetworkpolicies", "clusternetworkpolicies"];
    let mut bench = Bench::idle(json!({}));
    NAMES.iter().for_each(|plural| bench.cluster.kube.deny("list", plural));
    bench.cluster.start_ready(0);
    bench.cluster.add(0, "first");
    let event = |part: &str| {
        let is = |event: &Value| event["message"].as_str().is_some_and(|message| message.contains(part));
        bench.cluster.kube.events().iter().any(is)
    };
    assert!(!event("may not be read"), "{:?}", bench.cluster.kube.events());
    bench.cluster.kube.put(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy", "metadata": {"name": "closed"},
        "spec": {"selector": "all()", "types": ["Ingress"]},
    }));
    within(Duration::from_secs(30), || event("globalnetworkpolicies of Calico may not be read"))
        .then_some(())
        .expect("an event names the kind");
    assert!(event("grant what cni-conf/rbac.yaml lists"));
    let second = bench.cluster.schedule(0, "second");
    let said = bench.cluster.refused(&second, 11);
    assert!(
        said.contains("globalnetworkpolicies of Calico have not been heard of") && said.contains("rbac.yaml"),
        "{said}"
    );
    bench.cluster.call_for(&second, "DEL").ok();
}

/// The watches begin before there is anybody to write events.
#[test]
fn a_right_that_lacks_is_told_by_a_start_that_takes_long_too() {
    const SAID: &str = "globalnetworkpolicies of Calico may not be read";
    let mut bench = Bench::idle(json!({}));
    bench.cluster.kube.deny("list", "globalnetworkpolicies");
    bench.cluster.kube.put(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy", "metadata": {"name": "closed"},
        "spec": {"selector": "all()", "types": ["Ingress"]},
    }));
    bench.cluster.world.cloud.trouble_anywhere(When::Always, Kind::unavailable());
    bench.cluster.start(0);
    soon("it was refused", || bench.cluster.log(0).contains(SAID));
    bench.cluster.world.cloud.calm();
    bench.cluster.wait_ready(0);
    let is = |event: &Value| event["message"].as_str().is_some_and(|said| said.contains(SAID));
    soon("an event says so", || bench.cluster.kube.events().iter().any(is));
}

#[test]
fn a_server_that_starts_and_what_stands_in_its_place_are_not_believed_to_lack_kinds() {
    for status in [500, 404] {
        let mut bench = Bench::idle(json!({}));
        bench.cluster.kube.health(status);
        bench.cluster.start_ready(0);
        let state = || bench.shown(0)["state"].as_str().unwrap_or_default().to_owned();
        soon("it waits", || state().contains("of Calico have not been heard of") || state().contains("clusternetwork"));
        soon("it says why", || state().contains("; get /healthz: "));
        bench.cluster.kube.health(200);
        soon("it is in force", || state() == "enforced");
    }
}

#[test]
fn people_are_told_who_enforces_once_and_not_by_each_life() {
    let mut bench = Bench::idle(json!({"policy_renderer": "ebpf"}));
    let told = |bench: &Bench| {
        let is = |event: &&Value| event["reason"] == "NetworkPolicy";
        bench.cluster.kube.events().iter().filter(is).map(|event| event["count"].as_u64().unwrap_or(1)).sum::<u64>()
    };
    bench.cluster.start_ready(0);
    soon("people are told", || told(&bench) == 1);
    bench.cluster.stop(0);
    bench.cluster.start_ready(0);
    soon("it is in force", || bench.shown(0)["state"] == "enforced");
    bench.cluster.stop(0);
    assert_eq!(told(&bench), 1);
    bench.cluster.configure(0, &json!({"policy_renderer": "iptables", "min_pool_size": 4}));
    bench.cluster.start_ready(0);
    soon("people are told again", || told(&bench) == 2);
}

#[test]
fn kinds_that_come_later_are_taken_up() {
    let mut bench = Bench::idle(json!({}));
    bench.cluster.start_ready(0);
    let client = bench.add(0, "client", json!({}));
    let (web, _servers) = bench.serve(0, "web", json!({"app": "web"}));
    assert!(super::reaches(&client.pod, &web.ip));
    // Nodes, pods, the namespace and its policies are watched, and what is written and asked takes one or two more.
    assert!(bench.cluster.visits() < 10, "{} connections: for kinds that are not there?", bench.cluster.visits());
    let spec = json!({"selector": "app == 'web'", "types": ["Ingress"], "ingress": [{"action": "Deny"}]});
    bench.cluster.kube.put(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy", "metadata": {"name": "closed"}, "spec": spec,
    }));
    let is_closed = || !super::reaches(&client.pod, &web.ip);
    assert!(within(Duration::from_secs(30), is_closed), "kinds are looked for again and again");
    // No other version of the same is asked for, now that there is this one.
    assert_eq!(
        bench
            .cluster
            .kube
            .journal()
            .iter()
            .filter(|s| s.verb == "watch" && s.target.contains("/apis/projectcalico"))
            .count(),
        0
    );
}

#[test]
fn people_hear_what_is_wrong_with_a_policy_and_why_a_packet_passes() {
    let mut bench = Bench::idle(json!({}));
    bench.cluster.start_ready(0);
    let web = bench.add(0, "web", json!({"app": "web"}));
    let other = bench.add(0, "other", json!({"app": "other"}));
    bench.policy("web", only_from("db"));
    bench.policy(
        "odd",
        json!({"podSelector": {"matchLabels": {"app": "nobody"}}, "ingress": [{"ports": [{"port": 70_000}]}]}),
    );
    let event =
        |event: &Value| event["reason"] == "PolicyRefused" && event["involvedObject"]["kind"] == "NetworkPolicy";
    soon("an event names it", || bench.cluster.kube.events().iter().any(event));
    let said = bench.cluster.kube.events().into_iter().find(|e| event(e)).unwrap();
    assert!(
        said["message"].as_str().unwrap().contains("networkpolicy default/odd: spec.ingress[0].ports[0].port"),
        "{said}"
    );
    soon("it is in force", || bench.cli(0, "policy show default/web").contains("default/web"));
    let rules = bench.cli(0, "policy show default/web");
    assert!(
        rules.contains("allow pods with app = db of namespace default")
            || rules.contains("networkpolicy default/web rule 0"),
        "{rules}"
    );
    let why = bench.cli(0, &format!("policy why default/other default/web:{}", super::PORT));
    assert!(why.contains("denied") && why.contains("networkpolicy default/web (no rule allows it)"), "{why}");
    let why: Value =
        serde_json::from_str(&bench.cli(0, &format!("policy why --json {} default/web:80 udp", other.ip))).unwrap();
    assert_eq!(
        (&why["allow"], &why["ingress"]["pod"], &why["dst"]),
        (&json!(false), &json!("default/web"), &json!(web.ip))
    );
    let said = cli(&bench.cluster, &format!("trace default/other default/web:{} --json", super::PORT));
    let at = said.json()["stops_at"].clone();
    assert_eq!((said.code, &at["place"], &at["what"]), (1, &json!("policy"), &json!("ingress of pod default/web")));
    assert!(at["why"].as_str().unwrap().contains("networkpolicy default/web"), "{at}");
    assert_eq!(cli(&bench.cluster, "trace default/web default/other:80").code, 0, "nothing denies that");
    let wrong = bench.cluster.node(0).sh("/opt/terway/terway-cli policy why default/none default/web:80 2>&1 || true");
    assert!(wrong.contains("the addresses of pod default/none are not known on this node"), "{wrong}");
}

#[test]
fn many_namespaces_are_one_watch_each_and_bytes_follow_the_policies() {
    let mut bench = Bench::idle(json!({}));
    for n in 0..40 {
        space(&bench.cluster.kube, &format!("s{n}"), json!({"team": if n < 3 { "x" } else { "y" }}));
        for m in 0..50 {
            let mut pod = kube::pod(&format!("s{n}"), &format!("p{m}"), &node_name(1));
            pod["status"]["podIP"] = format!("10.77.{n}.{m}").into();
            bench.cluster.kube.put(pod);
        }
    }
    let from = json!([{"namespaceSelector": {"matchLabels": {"team": "x"}}}]);
    policy(&bench.cluster.kube, "default", "web", json!({"podSelector": {}, "ingress": [{"from": from}]}));
    bench.cluster.start_ready(0);
    bench.cluster.add(0, "web");
    let watched = || {
        let mut all = of_others(&bench);
        all.sort();
        all
    };
    let of = |n: usize| format!("/api/v1/namespaces/s{n}/pods?watch=true");
    soon("they are watched", || watched() == [of(0), of(1), of(2)]);
    // Another namespace comes to belong to them.
    bench.cluster.kube.amend("Namespace", "", "s7", &json!({"metadata": {"labels": {"team": "x"}}}));
    soon("it is watched", || watched() == [of(0), of(1), of(2), of(7)]);
    let known = || bench.shown(0)["known_pods"].clone();
    soon("its pods are known", || known() == 201);
}

/// `cargo test --test main netpol::heard::figures -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn figures() {
    let median = |over: Value| {
        let mut bench = Bench::idle(over);
        bench.cluster.start_ready(0);
        let mut times: Vec<Duration> = (0..120)
            .map(|n| {
                let member = bench.cluster.add(0, &format!("p{n}"));
                let took = member.took;
                bench.cluster.del(member);
                took
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    };
    let config = |off: bool| json!({"disable_network_policy": off, "min_pool_size": 8, "ip_cooldown": "0s"});
    for _ in 0..3 {
        println!("ADD: {:?} without policies, {:?} with them", median(config(true)), median(config(false)));
    }
}
