//! The node as Kubernetes sees it, and as it sees itself there.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use terway::pod::PodName;

use super::{events_about, idle_node, nothing, shown};
use crate::sim::cloud::{Kind, When};
use crate::sim::cluster::{Cluster, Member, node_name, soon};
use crate::sim::kube;
use crate::sim::world::PODS;

const LARGE: &str = "ecs.sim.large";

#[test]
fn a_node_object_of_another_machine_is_named_and_not_written_to() {
    let mut cluster = idle_node(LARGE, &nothing());
    cluster.kube.put(kube::node(&node_name(0), "cn-hangzhou.i-another"));
    cluster.start_ready(0);
    let told = || events_about(&cluster, &node_name(0)).into_iter().find(|(reason, _)| reason == "ConfigError");
    soon("it is told", || told().is_some());
    let said = told().expect("it was there").1;
    assert!(said.contains("node node-1 is instance i-another in Kubernetes"), "{said}");
    assert!(said.contains("this machine is i-1") && said.contains("set node_name"), "{said}");
    assert_eq!(cluster.kube.count("patch", "nodes") + cluster.kube.count("patch", "nodes/status"), 0);
    cluster.add(0, "web");

    // Put right: nothing more is said.
    cluster.kube.amend("Node", "", &node_name(0), &json!({"spec": {"providerID": "cn-hangzhou.i-1"}}));
    cluster.add(0, "web-2");
    assert_eq!(cluster.log(0).matches("ConfigError").count(), 1);
}

#[test]
fn the_node_shows_its_resources_and_its_condition_in_two_requests() {
    let mut cluster = idle_node(LARGE, &nothing());
    cluster.start_ready(0);
    soon("the node shows it", || shows(&cluster, "20") && condition(&cluster)["status"] == "True");
    assert_eq!(condition(&cluster)["reason"], "SufficientIP");
    assert_eq!(own(&cluster)["metadata"]["annotations"]["k8s.aliyun.com/max-available-ip"], "20");
    assert_eq!(own(&cluster)["status"]["capacity"]["aliyun/eni"], "2");
    assert_eq!(written(&cluster), (1, 1), "{:?}", cluster.kube.counts());
    // One of the ENIs carries pods now, and can be no pod's own; how many they are is nobody's business.
    for round in 0..2 {
        let pods: Vec<Member> = (0..5).map(|i| cluster.add(0, &format!("web-{round}-{i}"))).collect();
        for pod in pods {
            cluster.del(pod);
        }
    }
    soon("an ENI is taken", || own(&cluster)["status"]["capacity"]["aliyun/eni"] == "1");
    thread::sleep(Duration::from_millis(500));
    assert_eq!(written(&cluster), (2, 1), "{:?}", cluster.kube.counts());

    // The next life finds it as it should be.
    cluster.stop(0);
    cluster.start_ready(0);
    soon("the node is watched", || cluster.kube.is_watched("nodes"));
    thread::sleep(Duration::from_millis(500));
    assert_eq!(written(&cluster), (2, 1), "{:?}", cluster.kube.counts());
}

#[test]
fn what_a_kubelet_wipes_is_there_again() {
    let mut cluster = idle_node(LARGE, &nothing());
    cluster.start_ready(0);
    soon("the node shows it", || shows(&cluster, "20"));
    // A kubelet that restarts sets extended resources to nothing; one that registers anew makes a bare object.
    cluster.kube.amend("Node", "", &node_name(0), &json!({"status": {"capacity": {"aliyun/eniip": "0"}}}));
    soon("it is there again", || shows(&cluster, "20"));
    cluster.kube.delete("Node", "", &node_name(0));
    cluster.kube.put(kube::node(&node_name(0), "cn-hangzhou.i-1"));
    soon("all of it is there again", || {
        shows(&cluster, "20")
            && condition(&cluster)["status"] == "True"
            && own(&cluster)["metadata"]["annotations"]["k8s.aliyun.com/max-available-ip"] == "20"
    });
    let lasts = written(&cluster);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(written(&cluster), lasts);
}

#[test]
fn without_device_plugin_no_resource_of_ours_is_there() {
    let mut cluster = idle_node(LARGE, &nothing());
    let others = json!({"status": {"capacity": {"aliyun/eni": "3", "nvidia.com/gpu": "1"}}});
    cluster.kube.amend("Node", "", &node_name(0), &others);
    cluster.start_ready(0);
    soon("the node shows it", || shows(&cluster, "20"));
    cluster.configure(0, &json!({"disable_device_plugin": true}));
    cluster.daemon(0).signal(Signal::HUP);
    soon("it is gone", || own(&cluster)["status"]["capacity"] == json!({"nvidia.com/gpu": "1"}));
    assert_eq!(condition(&cluster)["status"], "True");
}

#[test]
fn a_lack_of_addresses_is_a_condition_with_its_reason_and_its_time() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 0, "max_pool_size": 0}));
    cluster.start_ready(0);
    soon("it has enough", || condition(&cluster)["status"] == "True");
    let since = condition(&cluster)["lastTransitionTime"].clone();
    thread::sleep(Duration::from_millis(1100));
    cluster.world.cloud.crowd(PODS, 0);
    cluster.refused(&cluster.schedule(0, "web"), 11);
    assert_eq!(cluster.call(0, "STATUS", &Value::Null).json()["code"], 50);
    soon("it has none", || condition(&cluster)["status"] == "False");
    let bad = condition(&cluster);
    assert_eq!(bad["reason"], "InsufficientIP");
    let said = bad["message"].as_str().expect("a message");
    assert!(said.contains("no vSwitch of [vsw-pod] has a free address"), "{said}");
    assert!(bad["lastTransitionTime"].as_str() > since.as_str(), "{bad}");
    // However often it is refused, the condition is written once.
    let before = cluster.kube.count("patch", "nodes/status");
    (0..3).for_each(|i| drop(cluster.refused(&cluster.schedule(0, &format!("more-{i}")), 11)));
    thread::sleep(Duration::from_millis(500));
    assert_eq!(cluster.kube.count("patch", "nodes/status"), before);
}

#[test]
fn an_api_server_that_was_away_hears_the_present_state_once() {
    let mut cluster = idle_node(LARGE, &nothing());
    cluster.start_ready(0);
    soon("the node shows it", || shows(&cluster, "20"));
    cluster.api_down();
    cluster.kube.clear_journal();
    for max in [1, 2, 1] {
        cluster.configure(0, &json!({"max_eni": max}));
        cluster.daemon(0).signal(Signal::HUP);
        soon("it is in force", || shown(&cluster, "/pool/max_enis") == max);
    }
    cluster.api_up();
    soon("the node shows it", || shows(&cluster, "10"));
    thread::sleep(Duration::from_millis(500));
    assert_eq!(written(&cluster), (1, 1), "{:?}", cluster.kube.counts());
}

#[test]
fn max_pods_beyond_what_the_instance_holds_is_said_once_with_both_numbers() {
    let mut cluster = idle_node(LARGE, &nothing());
    cluster.kube.amend("Node", "", &node_name(0), &json!({"status": {"capacity": {"pods": "110"}}}));
    let on_host = json!({"spec": {"hostNetwork": true}});
    cluster.kube.put(kube::pod("kube-system", "kube-proxy", &node_name(0)));
    cluster.kube.amend("Pod", "kube-system", "kube-proxy", &on_host);
    cluster.start_ready(0);
    let told = || {
        let events = events_about(&cluster, &node_name(0)).into_iter();
        events.filter(|(_, said)| said.contains("max-pods")).collect::<Vec<_>>()
    };
    soon("it is told", || !told().is_empty());
    let (reason, said) = told().remove(0);
    assert_eq!(reason, "ConfigError");
    for words in
        ["110 pods", "20 addresses", "ecs.sim.large with 2 ENIs of 10", "1 pods need none", "Set maxPods", "to 21"]
    {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    cluster.kube.amend("Node", "", &node_name(0), &json!({"metadata": {"labels": {"a": "b"}}}));
    cluster.add(0, "web");
    thread::sleep(Duration::from_millis(300));
    assert_eq!(cluster.log(0).matches("max-pods").count(), 1, "{}", cluster.log(0));
    assert_eq!(told().len(), 1);
}

#[test]
fn an_event_that_repeats_is_one_event_with_a_count() {
    let mut cluster = idle_node("ecs.sim.small", &json!({"min_pool_size": 0, "ip_cooldown": "300s"}));
    cluster.start_ready(0);
    let pods = ["a", "b", "c"].map(|name| cluster.add(0, name));
    let late = cluster.schedule(0, "late");
    for _ in 0..6 {
        cluster.refused(&late, 11);
    }
    let about = |name: &str| {
        let events = cluster.kube.events().into_iter();
        events.filter(|e| e["involvedObject"]["name"] == name).collect::<Vec<_>>()
    };
    soon("it is told", || about("late").len() == 1);
    soon("it is counted", || about("late")[0]["count"] == 6);
    let event = about("late").remove(0);
    assert_eq!((&event["reason"], &event["type"]), (&json!("AllocIPFailed"), &json!("Warning")));
    assert_eq!(event["source"], json!({"component": "terway-daemon", "host": node_name(0)}));
    assert!(event["lastTimestamp"].as_str() >= event["firstTimestamp"].as_str(), "{event}");
    assert_eq!(
        cluster.kube.counts().get(&("create".into(), "events".into())),
        Some(&3),
        "one for the pod, one for the node, and one about who enforces policies"
    );

    // It has an address in the end, and that is told as well.
    cluster.configure(0, &json!({"min_pool_size": 0, "ip_cooldown": "0s"}));
    cluster.daemon(0).signal(Signal::HUP);
    soon("it is in force", || cluster.log(0).contains("configuration reloaded"));
    for pod in pods {
        cluster.del(pod);
    }
    let mut late = late;
    cluster.wire(&mut late);
    soon("it is told", || {
        events_about(&cluster, "late").contains(&("AllocIPSucceed".into(), format!("{} was allocated", late.ip)))
    });
}

#[test]
fn pods_bear_their_addresses_where_that_is_asked_for() {
    let annotation = |cluster: &Cluster, name: &str| {
        let pod = cluster.kube.get("Pod", "default", name).expect("it was scheduled");
        pod["metadata"]["annotations"]["k8s.aliyun.com/pod-ips"].clone()
    };
    let mut cluster = idle_node(LARGE, &json!({"enable_patch_pod_ips": true}));
    cluster.start_ready(0);
    let web = cluster.add(0, "web");
    soon("it is written", || annotation(&cluster, "web") == web.ip.as_str());
    // While the server is away nothing is queued; what lacks is written afterwards.
    cluster.api_down();
    let mut known = cluster.schedule(0, "known");
    cluster.api_up();
    soon("the watch goes on", || cluster.kube.is_watched("pods"));
    cluster.wire(&mut known);
    soon("it is written", || annotation(&cluster, "known") == known.ip.as_str());
    thread::sleep(Duration::from_millis(300));
    assert_eq!(cluster.kube.count("patch", "pods"), 2);
    cluster.stop(0);

    cluster.configure(0, &nothing());
    cluster.start_ready(0);
    cluster.add(0, "unasked");
    thread::sleep(Duration::from_millis(300));
    assert_eq!(annotation(&cluster, "unasked"), Value::Null);
}

#[test]
fn the_role_we_ask_for_is_what_we_need() {
    let over = json!({
        "enable_patch_pod_ips": true, "min_pool_size": 0, "max_pool_size": 0,
        // What no kernel can: the API server is asked for Services all the same.
        "ebpf_services": true, "cgroup_root": "/run",
    });
    let mut cluster = idle_node(LARGE, &over);
    // A start that fails tells the node about it; the pod is fetched before the watch tells of it.
    cluster.world.cloud.trouble_anywhere(When::Next(1), Kind::unavailable());
    cluster.kube.put(kube::pod("default", "early", "elsewhere"));
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "kube-system", "name": "big"},
        "data": {"eni_conf": "{}"},
    });
    cluster.kube.put(config);
    cluster.kube.amend("Node", "", &node_name(0), &json!({"metadata": {"labels": {"terway-config": "big"}}}));
    let meta = json!({"name": "default", "labels": {"kubernetes.io/metadata.name": "default"}});
    cluster.kube.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta}));
    // Policies that ask for all that policies can ask for.
    let nodes = json!([{"action": "Accept", "to": [{"nodes": {"matchLabels": {"a": "b"}}}]}]);
    cluster.kube.put(json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "all"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": nodes},
    }));
    let source = json!({"selector": "a == 'b'", "serviceAccounts": {"selector": "c == 'd'"}});
    cluster.kube.put(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy", "metadata": {"name": "all"},
        "spec": {"selector": "all()", "ingress": [{"action": "Allow", "source": source}]},
    }));
    // A server has the kinds that it says it has: those of which there is an object.
    for (kind, spec) in [
        ("NetworkSet", json!({"nets": []})),
        ("GlobalNetworkSet", json!({"nets": []})),
        ("HostEndpoint", json!({"node": "elsewhere"})),
    ] {
        let namespace = if kind == "NetworkSet" { "default" } else { "" };
        let meta = json!({"namespace": namespace, "name": "all"});
        cluster
            .kube
            .put(json!({"apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": meta, "spec": spec}));
    }
    cluster.start_ready(0);
    let early = cluster.sandbox(0, PodName::new("default", "early"));
    cluster.call_for(&early, "ADD");
    cluster.add(0, "web");
    cluster.world.cloud.crowd(PODS, 0);
    let last = cluster.schedule(0, "last");
    while cluster.call_for(&last, "ADD").code == Some(0) {
        cluster.call_for(&last, "DEL");
        cluster.add(0, &format!("more-{}", fastrand::u32(..)));
    }
    (0..3).for_each(|_| drop(cluster.refused(&last, 11)));
    soon("an event was counted", || cluster.kube.count("patch", "events") > 0);
    let sought = ["serviceaccounts", "networksets", "globalnetworksets", "clusternetworkpolicies"];
    soon("what policies ask for is watched", || sought.iter().all(|kind| cluster.kube.is_watched(kind)));
    soon("host endpoints are looked for", || cluster.kube.count("list", "hostendpoints") > 0);
    soon("Services are watched", || ["services", "endpointslices"].iter().all(|kind| cluster.kube.is_watched(kind)));
    let needed: BTreeSet<(String, String)> = cluster.kube.counts().into_keys().collect();
    assert_eq!(needed, granted(include_str!("../../cni-conf/rbac.yaml")));
}

/// Verbs and resources that the manifest's ClusterRole grants.
fn granted(manifest: &str) -> BTreeSet<(String, String)> {
    let list = |line: &str, key: &str| -> Option<Vec<String>> {
        let words = line.trim_start_matches(['-', ' ']).strip_prefix(key)?.trim().trim_matches(['[', ']']);
        Some(words.split(',').map(|w| w.trim().trim_matches('"').to_owned()).collect())
    };
    let mut all = BTreeSet::new();
    let mut resources = Vec::new();
    for line in manifest.lines() {
        resources = list(line, "resources:").or_else(|| list(line, "nonResourceURLs:")).unwrap_or(resources);
        for verb in list(line, "verbs:").unwrap_or_default() {
            all.extend(resources.iter().map(|resource| (verb.clone(), resource.clone())));
        }
    }
    all
}

fn own(cluster: &Cluster) -> Value {
    cluster.kube.get("Node", "", &node_name(0)).unwrap_or_default()
}

/// The node shows so many addresses for pods, as a resource and as an annotation.
fn shows(cluster: &Cluster, addresses: &str) -> bool {
    let node = own(cluster);
    node["status"]["capacity"]["aliyun/eniip"] == addresses
        && node["metadata"]["annotations"]["k8s.aliyun.com/max-available-ip"] == addresses
}

fn condition(cluster: &Cluster) -> Value {
    let node = own(cluster);
    let all = node["status"]["conditions"].as_array().into_iter().flatten();
    all.clone().find(|c| c["type"] == "SufficientIP").cloned().unwrap_or_default()
}

/// Patches of the node's status, and of the rest of it.
fn written(cluster: &Cluster) -> (usize, usize) {
    (cluster.kube.count("patch", "nodes/status"), cluster.kube.count("patch", "nodes"))
}
