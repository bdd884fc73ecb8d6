//! The configuration while the daemon runs: the file however it is replaced, and what a ConfigMap says for the node.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use terway::ours;
use terway::pod::PodName;

use super::{events_about, idle_node, node, nothing, pings_during, shown};
use crate::cli::cli;
use crate::sim::cloud::EniKind;
use crate::sim::cluster::{Cluster, conf, node_name, soon};
use crate::sim::kube;
use crate::sim::traffic::Place;

const LARGE: &str = "ecs.sim.large";
const CONFIG: &str = "/etc/eni/eni.json";

fn config_map(name: &str, eni_conf: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "kube-system"},
        "data": {"eni_conf": eni_conf},
    })
}

/// The node as the kubelet registers it, with this label.
fn register(cluster: &Cluster, label: Option<&str>) {
    let mut object = kube::node(&node_name(0), "cn-hangzhou.i-1");
    object["metadata"]["labels"] = label.map_or(json!({}), |label| json!({"terway-config": label}));
    cluster.kube.put(object);
}

fn complaints(cluster: &Cluster) -> Vec<String> {
    let events = events_about(cluster, &node_name(0)).into_iter();
    events.filter(|(reason, _)| reason == "ConfigError").map(|(_, words)| words).collect()
}

#[test]
fn a_file_that_is_replaced_is_taken_up_without_a_signal() {
    let mut cluster = node(&nothing());
    // As an editor does it: a new file renamed over the old one.
    cluster.configure(0, &json!({"min_pool_size": 3}));
    soon("a renamed file is seen", || shown(&cluster, "/pool/min_idle") == 3);
    // As a shell does it: into the same file.
    let text = cluster.node(0).read_file(CONFIG).unwrap().replace("\"min_pool_size\":3", "\"min_pool_size\":4");
    cluster.node(0).run(|| std::fs::write(CONFIG, &text).unwrap());
    soon("a file written in place is seen", || shown(&cluster, "/pool/min_idle") == 4);
    // As Kubernetes does it: the file is a link through a link to a folder, and that one is exchanged.
    let folder = |size: u32| {
        let (name, text) = (format!("..{size}"), text.replace("_size\":4", &format!("_size\":{size}")));
        cluster.node(0).run(|| {
            let place = Path::new("/etc/eni");
            std::fs::create_dir(place.join(&name)).unwrap();
            std::fs::write(place.join(&name).join("eni.json"), &text).unwrap();
            std::os::unix::fs::symlink(&name, place.join("..data_tmp")).unwrap();
            std::fs::rename(place.join("..data_tmp"), place.join("..data")).unwrap();
        });
    };
    folder(5);
    cluster.node(0).sh("cd /etc/eni && ln -s ..data/eni.json link && mv link eni.json");
    soon("a link is followed", || shown(&cluster, "/pool/min_idle") == 5);
    folder(6);
    soon("an exchanged folder is seen", || shown(&cluster, "/pool/min_idle") == 6);
    let log = cluster.log(0);
    assert!(log.contains("in force from now on: min_pool_size"), "{log}");
    cluster.kill(0);
}

#[test]
fn what_needs_a_restart_is_said_and_what_is_wrong_changes_nothing() {
    let cluster = node(&nothing());
    cluster.configure(0, &json!({"conflist": "/etc/cni/net.d/11-terway.conflist", "min_pool_size": 4}));
    soon("the rest is taken up", || shown(&cluster, "/pool/min_idle") == 4);
    let log = cluster.log(0);
    assert!(log.contains("a restart of terwayd is needed for a change of conflist to take effect"), "{log}");
    cluster.configure(0, &json!({"min_pool_size": 5, "max_eni": "all"}));
    soon("the node is told", || complaints(&cluster).iter().any(|words| words.contains("max_eni is \"all\"")));
    assert_eq!(shown(&cluster, "/pool/min_idle"), 4);
    cluster.node(0).run(|| std::fs::remove_file(CONFIG).unwrap());
    soon("its absence is said", || cluster.log(0).contains("not reloaded: read /etc/eni/eni.json"));
    assert_eq!(shown(&cluster, "/pool/min_idle"), 4);
    cluster.configure(0, &json!({"min_pool_size": 6}));
    soon("it is taken up again", || shown(&cluster, "/pool/min_idle") == 6);
}

fn mtu(place: &impl Place, link: &str) -> String {
    let shown = place.sh(&format!("ip -o link show {link}"));
    shown.split(" mtu ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned()
}

#[test]
fn one_mtu_is_enough_for_enis_and_pods_whichever_configuration_says_it() {
    let mut cluster = idle_node(LARGE, &nothing());
    let network = |over: &Value| json!({"cniVersion": "1.0.0", "name": "terway", "plugins": [conf(over)]}).to_string();
    let of_network = json!({"mtu": 1400});
    cluster.node(0).write_file("/etc/eni/10-terway.conflist", &network(&of_network));
    cluster.start_ready(0);
    let eni = |cluster: &Cluster| {
        let of_node = cluster.world.cloud.enis_of("i-1").into_iter().find(|eni| eni.kind == EniKind::Secondary);
        cluster.node(0).ifname(&of_node.expect("an ENI").mac.to_string()).expect("its link")
    };
    let mut web = cluster.schedule(0, "web");
    web.sandbox.conf = conf(&of_network).to_string();
    cluster.wire(&mut web);
    assert_eq!((mtu(&cluster.node(0).node, &eni(&cluster)), mtu(&web.pod, "eth0")), ("1400".into(), "1400".into()));

    // The other way round, and on an ENI that runs.
    cluster.stop(0);
    cluster.node(0).write_file(
        "/etc/eni/10-terway.conflist",
        &network(&json!({"auto_mtu": true, "enable_network_priority": true})),
    );
    cluster.configure(0, &json!({"mtu": 1450}));
    cluster.start_ready(0);
    for key in ["auto_mtu", "enable_network_priority"] {
        assert!(cluster.log(0).contains(&format!("network configuration: {key} is not available")), "{key}");
    }
    let other = cluster.add(0, "other");
    soon("the ENI follows", || mtu(&cluster.node(0).node, &eni(&cluster)) == "1450");
    assert_eq!(mtu(&other.pod, "eth0"), "1450");
    for member in [&web, &other] {
        cluster.call_for(member, "CHECK").ok();
    }
    // Said twice and otherwise, it is said.
    cluster.stop(0);
    cluster.node(0).write_file("/etc/eni/10-terway.conflist", &network(&of_network));
    cluster.start_ready(0);
    let log = cluster.log(0);
    assert!(log.contains("mtu is 1450 in the configuration, for ENIs, and 1400 in the network configuration"), "{log}");
}

#[test]
fn credentials_that_change_are_used_without_a_restart() {
    let cluster = node(&nothing());
    let cloud = &cluster.world.cloud;
    let by = |key: &str, min: u32| {
        let secret = format!("{key}-secret");
        cluster.configure(0, &json!({"access_key": key, "access_secret": secret, "min_pool_size": min}));
    };
    cloud.add_key("first", "first-secret");
    by("first", 2);
    soon("calls bear the key", || cloud.journal().iter().any(|call| call.key == "first"));
    cloud.remove_key("first");
    by("first", 7);
    soon("it is refused", || shown(&cluster, "/pool/cloud/refused") != json!([]));
    cloud.add_key("rotated", "rotated-secret");
    // Nothing else changes: what the first key was refused must not hold for this one.
    by("rotated", 7);
    soon("calls bear the new key", || cloud.journal().iter().any(|call| call.key == "rotated"));
    soon("the pool fills", || shown(&cluster, "/pool/idle").as_u64() >= Some(7));
    assert!(!cluster.log(0).contains("rotated-secret"));
}

#[test]
fn a_configmap_patches_the_configuration_of_the_node_that_names_it() {
    let mut cluster = idle_node(LARGE, &json!({"min_pool_size": 1, "max_pool_size": 8}));
    cluster.kube.put(config_map("gpu", r#"{"min_pool_size": 3, "max_pool_size": null}"#));
    register(&cluster, Some("gpu"));
    cluster.start_ready(0);
    let bounds = |cluster: &Cluster| (shown(cluster, "/pool/min_idle"), shown(cluster, "/pool/max_idle"));
    // From the first breath on, not only once a watch tells.
    assert_eq!(bounds(&cluster), (json!(3), json!(5)));

    cluster.kube.put(config_map("gpu", r#"{"min_pool_size": 4}"#));
    soon("a change is taken up", || bounds(&cluster) == (json!(4), json!(8)));
    cluster.configure(0, &json!({"min_pool_size": 1, "max_pool_size": 9}));
    soon("the file below is taken up", || bounds(&cluster) == (json!(4), json!(9)));

    cluster.kube.put(config_map("gpu", r#"{"min_pool_size": 12}"#));
    soon("it goes before the file's upper bound", || bounds(&cluster) == (json!(12), json!(12)));
    let log = cluster.log(0);
    assert!(log.contains("min_pool_size is 12 and max_pool_size is 9; 12 are kept"), "{log}");
    cluster.kube.put(config_map("gpu", r#"{"min_pool_size": 4}"#));
    soon("a change is taken up", || bounds(&cluster) == (json!(4), json!(9)));

    cluster.kube.put(config_map("gpu", r#"{"min_pool_size": "lots"}"#));
    soon("the node is told", || complaints(&cluster).iter().any(|words| words.contains("min_pool_size is \"lots\"")));
    assert_eq!(bounds(&cluster), (json!(4), json!(9)));
    cluster.kube.put(config_map("gpu", "{"));
    soon("the node is told", || {
        complaints(&cluster).iter().any(|words| words.contains("configmap kube-system/gpu: eni_conf"))
    });
    assert_eq!(bounds(&cluster), (json!(4), json!(9)));

    cluster.kube.put(config_map("other", r#"{"min_pool_size": 2}"#));
    register(&cluster, Some("other"));
    soon("another one is named", || bounds(&cluster) == (json!(2), json!(9)));
    cluster.kube.delete("ConfigMap", "kube-system", "other");
    soon("without it the file holds", || bounds(&cluster) == (json!(1), json!(9)));
    soon("and that is said", || complaints(&cluster).iter().any(|words| words.contains("other does not exist")));
    cluster.kube.put(config_map("other", r#"{"min_pool_size": 5}"#));
    soon("it is there again", || bounds(&cluster) == (json!(5), json!(9)));
    register(&cluster, None);
    soon("without label the file holds", || bounds(&cluster) == (json!(1), json!(9)));
}

#[test]
fn a_start_without_api_server_goes_by_what_the_node_had_last() {
    let mut cluster = idle_node(LARGE, &json!({"min_pool_size": 1}));
    cluster.kube.put(config_map("gpu", r#"{"min_pool_size": 3}"#));
    register(&cluster, Some("gpu"));
    cluster.start_ready(0);
    soon("it is noted", || cluster.node(0).read_file("/run/terway/node-config.json").is_some());
    cluster.stop(0);
    cluster.api_down();
    cluster.start_ready(0);
    assert_eq!(shown(&cluster, "/pool/min_idle"), 3);
    cluster.kube.delete("ConfigMap", "kube-system", "gpu");
    cluster.api_up();
    soon("what has changed meanwhile is taken up", || shown(&cluster, "/pool/min_idle") == 1);
}

/// The node's secondary ENIs as the cloud has them: security groups, and tags beside those of every ENI of ours.
fn dressed(cluster: &Cluster) -> Vec<(String, String)> {
    let enis = cluster.world.cloud.enis_of("i-1").into_iter().filter(|eni| eni.kind == EniKind::Secondary);
    let own = [ours::ENI_TAG.0, ours::NODE_TAG, ours::TAGS_TAG];
    enis.map(|eni| {
        let tags = eni.tags.iter().filter(|(key, _)| !own.contains(&key.as_str()));
        let tags: Vec<String> = tags.map(|(key, value)| format!("{key}={value}")).collect();
        (eni.security_groups.join(" "), tags.join(" "))
    })
    .collect()
}

fn all_bear(cluster: &Cluster, groups: &str, tags: &str) -> bool {
    dressed(cluster).iter().all(|eni| *eni == (groups.into(), tags.into()))
}

#[test]
fn changed_security_groups_and_tags_reach_the_enis_that_run_and_pods_notice_nothing() {
    let mut cluster = node(&json!({"min_eni": 2, "eni_tags": {"team": "a"}}));
    super::wait_for_enis(&cluster, 2);
    let (web, other) = (cluster.add(0, "web"), cluster.add(0, "other"));
    soon("they speak", || web.pod.ping(&other.ip).is_some());
    let (lost, sent) = pings_during(&web.pod, &other.ip, || {
        cluster.configure(
            0,
            &json!({
                "min_eni": 2, "security_groups": ["sg-sim", "sg-web"], "eni_tags": {"team": "b", "env": "test"}
            }),
        );
        soon("both ENIs bear what the configuration says", || all_bear(&cluster, "sg-sim sg-web", "env=test team=b"));
    });
    assert!(sent > 10 && lost == 0, "{lost} of {sent} pings were lost");
    // What others have put there stays; what is gone from the configuration goes, and the groups are the instance's again.
    for eni in cluster.world.cloud.enis_of("i-1").into_iter().filter(|eni| eni.kind == EniKind::Secondary) {
        let theirs = [("ResourceType", "eni"), ("ResourceId.1", &eni.id), ("Tag.1.Key", "bill"), ("Tag.1.Value", "7")];
        cluster.world.cloud.operate("TagResources", &theirs).unwrap();
    }
    cluster.kill(0);
    cluster.configure(0, &json!({"min_eni": 2, "security_groups": [], "eni_tags": {"team": "b"}}));
    cluster.start_ready(0);
    soon("the new life knows which tags are its own", || all_bear(&cluster, "sg-sim", "bill=7 team=b"));
    let calls = |action| cluster.world.cloud.calls(action);
    assert!(calls("ModifyNetworkInterfaceAttribute") <= 4 && calls("UntagResources") <= 2, "{}", cluster.log(0));
    cluster.call_for(&web, "CHECK").ok();
}

#[test]
fn security_groups_that_cannot_be_had_are_told_with_eni_and_group() {
    let cluster = node(&nothing());
    super::wait_for_enis(&cluster, 1);
    let eni = cluster.world.cloud.enis_of("i-1").into_iter().find(|eni| eni.kind == EniKind::Secondary).unwrap().id;
    let told = |words: [&str; 3]| {
        soon("the node is told", || {
            let events = events_about(&cluster, &node_name(0)).into_iter();
            let mut about = events.filter(|(reason, _)| reason == "ResourceInvalid").map(|(_, said)| said);
            about.any(|said| words.iter().all(|word| said.contains(word)))
        });
    };
    cluster.configure(0, &json!({"security_groups": ["sg-sim", "sg-elsewhere"]}));
    told([&eni, "sg-elsewhere", "VpcMismatch"]);
    cluster.configure(0, &json!({"security_groups": ["sg-sim", "sg-tiny"]}));
    told([&eni, "sg-tiny", "SecurityGroupInstanceLimitExceed"]);
    cluster.world.cloud.forbid("*", "ecs:ModifyNetworkInterfaceAttribute");
    cluster.configure(0, &json!({"security_groups": ["sg-sim", "sg-web"]}));
    told([&eni, "sg-web", "allow ecs:ModifyNetworkInterfaceAttribute in the RAM policy"]);
    cluster.world.cloud.permit("*", "ecs:ModifyNetworkInterfaceAttribute");
    assert!(all_bear(&cluster, "sg-sim", ""));
    // Whatever became of the groups, pods come.
    cluster.add(0, "web");
    cluster.configure(0, &json!({"security_groups": ["sg-web"]}));
    soon("it is tried again with what is new", || all_bear(&cluster, "sg-web", ""));
}

#[test]
fn an_eni_that_others_exclude_keeps_its_pods_and_gets_no_new_ones() {
    let mut cluster = node(&json!({"max_pool_size": 2, "ip_pool_sync_period": "10s"}));
    let web = cluster.add(0, "web");
    let eni = cluster.world.cloud.enis().into_iter().find(|eni| eni.kind == EniKind::Secondary).unwrap();
    let tag = [("Tag.1.Key", "terway.alibabacloud.com/excluded"), ("Tag.1.Value", "true")];
    let about = [("ResourceType", "eni"), ("ResourceId.1", eni.id.as_str())];
    cluster.world.cloud.operate("TagResources", &[&about[..], &tag].concat()).unwrap();
    soon("it is left alone", || shown(&cluster, "/pool/enis").to_string().contains("left alone"));
    let new = cluster.add(0, "new");
    let excluded = cluster.world.cloud.eni(&eni.id).unwrap();
    assert!(excluded.v4.iter().all(|ip| ip.to_string() != new.ip), "{} is on the excluded ENI", new.ip);
    soon("old and new speak", || new.pod.ping(&web.ip).is_some());
    cluster.kill(0);
    cluster.start_ready(0);
    cluster.call_for(&web, "CHECK").ok();
    soon("old and new speak", || web.pod.ping(&new.ip).is_some());
    assert!(!cluster.log(0).contains("re-create the pod"));
}

#[test]
fn keys_of_pods_and_of_clients_are_taken_up_by_what_comes_after() {
    let cluster = node(&nothing());
    let before = cluster.add(0, "before");
    cluster.configure(0, &json!({
        "extra_routes": [{"dst": "10.9.0.0/16"}], "kube_client_qps": 2, "kube_client_burst": 1, "enable_erdma": true,
        "rate_limit": {"AssignPrivateIpAddresses": 1},
    }));
    soon("it is taken up", || cluster.log(0).contains("in force from now on: enable_erdma, extra_routes, kube_client"));
    assert!(cluster.log(0).contains("enable_erdma has no effect here: eRDMA is not supported"));
    let after = cluster.add(0, "after");
    assert!(after.pod.sh("ip route").contains("10.9.0.0/16 via 169.254.1.1 dev eth0"), "{}", after.pod.sh("ip route"));
    assert!(!before.pod.sh("ip route").contains("10.9.0.0"));
    cluster.call_for(&after, "CHECK").ok();
    cluster.call_for(&before, "CHECK").ok();
    // Two requests a second, one at once: the third of pods that nobody knows waits for a second.
    let strangers: Vec<_> =
        (0..3).map(|n| cluster.sandbox(0, PodName::new("default", format!("stranger-{n}")))).collect();
    let start = Instant::now();
    for stranger in &strangers {
        cluster.refused(stranger, 105);
    }
    assert!(start.elapsed() >= Duration::from_millis(900), "after {:?}", start.elapsed());
}

#[test]
fn addresses_come_in_prefixes_where_the_configuration_wants_them() {
    let over =
        json!({"enable_ip_prefix": true, "min_pool_size": 0, "max_pool_size": 0, "ip_cooldown": "1s", "max_eni": 1});
    let mut cluster = idle_node(LARGE, &over);
    cluster.start_ready(0);
    assert_eq!(shown(&cluster, "/pool/capacity"), 1 + 9 * 16);
    let pods: Vec<_> = (0..20).map(|n| cluster.add(0, &format!("web-{n}"))).collect();
    let eni = cluster.world.cloud.enis_of("i-1").into_iter().find(|eni| eni.kind == EniKind::Secondary).unwrap();
    assert_eq!((eni.v4.len(), eni.prefixes.len()), (1, 2), "{:?}", eni.prefixes);
    assert!(cluster.world.cloud.calls("AssignPrivateIpAddresses") <= 3);
    let own: Vec<String> = eni.all_v4().map(|ip| ip.to_string()).collect();
    assert!(pods.iter().all(|pod| own.contains(&pod.ip)));
    // The VPC takes packets from each of the sixteen, in and out of the node.
    let node = cluster.node(0).addr.to_string();
    for pod in &pods[1..] {
        soon("it speaks", || pod.pod.ping(&node).is_some() && pod.pod.ping(&pods[0].ip).is_some());
    }
    let audit = cli(&cluster, "execute factory eniip audit");
    assert!(audit.code == 0 && audit.out.ends_with("agreed\n") && audit.out.lines().count() == 1, "{audit:?}");
    cluster.kill(0);
    cluster.start_ready(0);
    cluster.call_for(&pods[19], "CHECK").ok();
    assert!(!cluster.log(0).contains("re-create the pod"), "{}", cluster.log(0));
    for pod in pods {
        cluster.del(pod);
    }
    let prefixes = |cluster: &Cluster| cluster.world.cloud.eni(&eni.id).map_or(0, |eni| eni.prefixes.len());
    soon("whole prefixes are given back once they have rested", || prefixes(&cluster) == 0);
}

#[test]
fn a_fragmented_vswitch_gives_single_addresses() {
    let over = json!({"enable_ip_prefix": true, "min_pool_size": 0, "max_pool_size": 0});
    let mut cluster = idle_node(LARGE, &over);
    cluster.world.cloud.crowd("vsw-pod", 12);
    cluster.start_ready(0);
    for n in 0..3 {
        cluster.add(0, &format!("web-{n}"));
    }
    soon("the node is told", || {
        let events = events_about(&cluster, &node_name(0)).into_iter();
        events.filter(|(_, said)| said.contains("vsw-pod has no free block of 16 addresses")).count() == 1
    });
}
