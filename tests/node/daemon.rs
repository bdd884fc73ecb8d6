//! The daemon as the operator and the API server know it: starts, ends, configurations, pods.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use terway::pod::PodName;

use super::{at_once, events_about, idle_node, node, nothing, pings_during, shown};
use crate::sim::cloud::{Kind, When};
use crate::sim::cluster::{CONFLIST, Cluster, DAEMON, Member, SOON, node_name, soon};
use crate::sim::kube;
use crate::sim::traffic::Place;

const LARGE: &str = "ecs.sim.large";
const CONFIG: &str = "/etc/eni/eni.json";
const OWN_CONFLIST: &str = "/etc/eni/10-terway.conflist";

/// Waits until the daemon has heard all that is known of its pods. Its watch tells one thing after the other: this pod asks for another
/// bandwidth, last of all.
fn all_is_heard(cluster: &Cluster, witness: &Member) {
    let rate = fastrand::u32(100_000..10_000_000);
    let annotations = json!({"k8s.aliyun.com/ingress-bandwidth": rate.to_string()});
    let PodName { namespace, name } = &witness.sandbox.pod;
    cluster.kube.amend("Pod", namespace, name, &json!({"metadata": {"annotations": annotations}}));
    let asks = |lease: &Value| lease["pod"]["name"] == *name && lease["bandwidth"]["ingress"]["rate"] == rate;
    soon("the daemon has heard of it", || shown(cluster, "/leases").as_array().expect("a list").iter().any(asks));
}

#[test]
fn a_killed_daemon_is_not_missed_and_its_successor_knows_every_lease() {
    let mut cluster = node(&nothing());
    let mut web = cluster.schedule(0, "web");
    let result = cluster.wire(&mut web);
    let other = cluster.add(0, "other");
    soon("they speak", || web.pod.ping(&other.ip).is_some());
    let (lost, sent) = pings_during(&web.pod, &other.ip, || {
        cluster.kill(0);
        thread::sleep(Duration::from_millis(300));
        cluster.start_ready(0);
        thread::sleep(Duration::from_millis(300));
    });
    assert!(sent > 50 && lost == 0, "{lost} of {sent} pings were lost");
    assert_eq!(shown(&cluster, "/pool/leased"), 2);
    assert_eq!(cluster.wire(&mut web), result);
    cluster.call_for(&other, "CHECK").ok();
    let third = cluster.add(0, "third");
    assert!(third.ip != web.ip && third.ip != other.ip);
    soon("the third speaks", || third.pod.ping(&web.ip).is_some());
}

/// Pods that go make room; for that somebody must be there whom their DEL reaches.
#[test]
fn a_daemon_that_gets_no_thread_waits_for_one_and_ends_when_told_to() {
    let cluster = idle_node(LARGE, &nothing());
    let mut command = Command::new(DAEMON);
    // No machine has room for such a stack: the kernel refuses every thread.
    command.env("RUST_MIN_STACK", (1_u64 << 46).to_string());
    let mut daemon = cluster.node(0).daemon("terwayd", &mut command);
    soon("it says so", || daemon.log().contains("no thread is to be had"));
    thread::sleep(Duration::from_secs(1));
    assert!(daemon.is_running(), "{}", daemon.log());
    assert_eq!(daemon.terminate(SOON).and_then(|status| status.code()), Some(0));
}

#[test]
fn with_no_room_left_for_its_files_the_daemon_starts_and_pods_can_go() {
    let mut cluster = node(&nothing());
    let (web, other) = (cluster.add(0, "web"), cluster.add(0, "other"));
    cluster.kill(0);
    cluster.node(0).sh(
        "cp -a /run/terway /run/copy; mount -t tmpfs -o size=256k,mode=700 tmpfs /run/terway; cp -a /run/copy/. /run/terway
        cat /dev/zero >/run/terway/full || true",
    );
    cluster.start(0);
    soon("it starts", || cluster.log(0).matches("is not noted").count() == 2);
    soon("it serves", || cluster.log(0).matches("serving on").count() == 2);
    cluster.del(web);
    assert_eq!(shown(&cluster, "/pool/leased"), 1);
    cluster.node(0).sh("rm /run/terway/full");
    cluster.wait_ready(0);
    let later = cluster.add(0, "later");
    soon("it speaks", || later.pod.ping(&other.ip).is_some());
}

#[test]
fn sigterm_ends_the_daemon_cleanly_and_leaves_the_pods_their_network() {
    let mut cluster = node(&nothing());
    let (web, other) = (cluster.add(0, "web"), cluster.add(0, "other"));
    soon("they speak", || web.pod.ping(&other.ip).is_some());
    let before = cluster.node(0).sh("ip rule; ip route show table all type unicast; ip -o link | grep cali");
    let (lost, sent) = pings_during(&web.pod, &other.ip, || {
        let start = Instant::now();
        cluster.stop(0);
        assert!(start.elapsed() < Duration::from_secs(4), "it took {:?} to end", start.elapsed());
        thread::sleep(Duration::from_secs(1));
    });
    assert!(sent > 20 && lost == 0, "{lost} of {sent} pings were lost");
    assert_eq!(cluster.node(0).sh("ip rule; ip route show table all type unicast; ip -o link | grep cali"), before);
    cluster.start_ready(0);
    cluster.stop(0);
}

#[test]
fn sighup_takes_up_a_new_configuration_and_refuses_a_broken_one() {
    let mut cluster = node(&nothing());
    cluster.configure(0, &json!({"min_pool_size": 7, "max_pool_size": 8}));
    cluster.daemon(0).signal(Signal::HUP);
    soon("the new bounds are in force", || shown(&cluster, "/pool/min_idle") == 7);
    assert_eq!(shown(&cluster, "/pool/max_idle"), 8);
    soon("the pool is filled up", || shown(&cluster, "/pool/idle").as_u64() >= Some(7));

    for (text, reason) in [
        ("{\"version\": ", "not reloaded"),
        ("{\"version\": \"1\", \"min_pool_size\": -3}", "min_pool_size"),
        ("{\"version\": \"1\", \"min_eni\": 9, \"max_eni\": 3}", "max_eni is 3"),
    ] {
        cluster.node(0).write_file(CONFIG, text);
        let heard = cluster.log(0).len();
        cluster.daemon(0).signal(Signal::HUP);
        soon("the mistake is named", || {
            let log = cluster.log(0);
            log[heard..].contains("not reloaded") && log[heard..].contains(reason)
        });
        assert_eq!(shown(&cluster, "/pool/min_idle"), 7);
    }
    cluster.add(0, "web");
}

#[test]
fn the_conflist_appears_whole_and_only_once_the_daemon_serves() {
    let mut cluster = idle_node(LARGE, &nothing());
    cluster.world.cloud.trouble_anywhere(When::Always, Kind::unavailable());
    cluster.start(0);
    soon("the start is tried again", || cluster.log(0).contains("start: "));
    assert_eq!(cluster.node(0).read_file(CONFLIST), None);
    let web = cluster.schedule(0, "web");
    let msg = at_once(|| cluster.refused(&web, 11));
    assert!(msg.starts_with("add default/web: "), "{msg}");
    cluster.call_for(&web, "DEL").ok();

    cluster.world.cloud.calm();
    // Nobody ever reads half of it.
    soon("the conflist is there", || {
        let text = cluster.node(0).read_file(CONFLIST);
        text.map(|t| serde_json::from_str::<Value>(&t).expect("it is whole")).is_some()
    });
    let conflist: Value = serde_json::from_str(&cluster.node(0).read_file(CONFLIST).unwrap()).unwrap();
    assert_eq!(conflist["plugins"][0]["type"], "terway");
    cluster.add(0, "web-2");
    assert_eq!(cluster.node(0).sh("ls -A /etc/cni/net.d"), "10-terway.conflist\n");
}

#[test]
fn the_operators_own_conflist_wins() {
    let mut cluster = idle_node(LARGE, &nothing());
    let own = r#"{"cniVersion": "0.4.0", "name": "mine", "plugins": [{"type": "terway"}, {"type": "portmap"}]}"#;
    cluster.node(0).write_file(OWN_CONFLIST, own);
    cluster.node(0).write_file(CONFLIST, "{\"an\": \"older one\"}");
    cluster.start_ready(0);
    soon("it is replaced", || cluster.node(0).read_file(CONFLIST).as_deref() == Some(own));
}

#[test]
fn keys_that_nobody_knows_are_warned_of_and_wrong_values_end_the_daemon() {
    let mut cluster = idle_node(LARGE, &json!({"min_pol_size": 3, "enable_eip_pool": "true"}));
    cluster.start_ready(0);
    let log = cluster.log(0);
    assert!(log.contains("min_pol_size is not a key that Terway knows"), "{log}");
    assert!(log.contains("enable_eip_pool has no effect here"), "{log}");
    cluster.stop(0);
    for (over, words) in [
        (json!({"min_pool_size": "many"}), ["min_pool_size", "many", "from 0 to 10000"]),
        (json!({"vswitch_selection_policy": "best"}), ["vswitch_selection_policy", "best", "random"]),
        (json!({"vswitches": {"cn-hangzhou-h": "vsw-pod"}}), ["vswitches", "vsw-pod", "a list of vSwitch ids"]),
        (json!({"ip_cooldown": "5 minutes"}), ["ip_cooldown", "5 minutes", "a duration"]),
        (json!({"service_cidr": "192.168.64.0/20"}), ["service_cidr", "192.168.64.0/20", "overlaps 192.168.0.0/16"]),
    ] {
        cluster.configure(0, &over);
        let heard = cluster.log(0).len();
        cluster.start(0);
        soon("it ends", || !cluster.daemon(0).is_running());
        let log = cluster.log(0);
        assert_eq!(cluster.ended(0), Some(1), "{over}");
        for word in words {
            assert!(log[heard..].contains(word), "{over}: no {word:?} in {log}");
        }
    }
    cluster.configure(0, &nothing());
    cluster.start_ready(0);
}

#[test]
fn a_pod_that_the_watch_knows_costs_no_request_and_another_exactly_one() {
    let cluster = node(&nothing());
    let witness = cluster.add(0, "witness");
    let known = cluster.schedule(0, "known");
    all_is_heard(&cluster, &witness);
    cluster.kube.clear_journal();
    cluster.call_for(&known, "ADD").ok();
    assert_eq!(cluster.kube.count("get", "pods"), 0);

    // The kubelet calls a pod of a file of its own by another uid than the API server, whose object mirrors that.
    let mut fixed = cluster.schedule(0, "fixed");
    fixed.sandbox.uid = Some("6f1ed002ab5595859014ebf0951522d9".into());
    let mirrored = json!({"metadata": {"annotations": {"kubernetes.io/config.hash": fixed.sandbox.uid}}});
    cluster.kube.amend("Pod", "default", "fixed", &mirrored);
    all_is_heard(&cluster, &witness);
    cluster.call_for(&fixed, "ADD").ok();
    assert_eq!(cluster.kube.count("get", "pods"), 0);

    // Scheduled to this node according to the runtime, while the API server's watch tells nothing of it.
    cluster.kube.put(kube::pod("default", "unknown", "another-node"));
    let unknown = cluster.sandbox(0, PodName::new("default", "unknown"));
    cluster.call_for(&unknown, "ADD").ok();
    cluster.call_for(&unknown, "ADD").ok();
    assert_eq!(cluster.kube.count("get", "pods"), 1, "{:?}", cluster.kube.journal());
    assert_eq!(cluster.kube.count("list", "pods"), 0);
}

#[test]
fn a_pod_that_is_gone_without_del_gives_its_address_back_after_the_grace_time() {
    let mut cluster = node(&json!({"orphan_release_after": "2s"}));
    let (stays, goes) = (cluster.add(0, "stays"), cluster.add(0, "goes"));
    let start = Instant::now();
    cluster.kube.delete("Pod", "default", "goes");
    soon("its address rests", || shown(&cluster, "/pool/leased") == 1);
    assert!(start.elapsed() >= Duration::from_secs(2), "after {:?}", start.elapsed());
    assert_eq!(cluster.ledger(0, "resting"), [format!("{}.json", goes.ip)]);
    assert!(goes.pod.ping(&cluster.node(0).addr.to_string()).is_none());
    cluster.call_for(&stays, "CHECK").ok();

    // While the API server is away nobody is known to be gone.
    cluster.api_down();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(shown(&cluster, "/pool/leased"), 1);
}

#[test]
fn pods_that_are_not_ours_are_refused() {
    let cluster = node(&nothing());
    let witness = cluster.add(0, "witness");
    let amend = |name: &str, patch: Value| {
        let member = cluster.schedule(0, name);
        cluster.kube.amend("Pod", "default", name, &patch);
        all_is_heard(&cluster, &witness);
        cluster.refused(&member, 105)
    };
    let host = amend("on-host", json!({"spec": {"hostNetwork": true}}));
    assert_eq!(host, "add default/on-host: pod default/on-host is on the host network or labelled to be ignored");
    let ignored = amend("ignored", json!({"metadata": {"labels": {"k8s.aliyun.com/ignore-by-terway": "true"}}}));
    assert_eq!(ignored, "add default/ignored: pod default/ignored is on the host network or labelled to be ignored");
    let over = amend("over", json!({"status": {"phase": "Succeeded"}}));
    assert_eq!(over, "add default/over: pod default/over is over");
    let absent = cluster.sandbox(0, PodName::new("default", "absent"));
    let msg = cluster.refused(&absent, 105);
    assert_eq!(msg, "add default/absent: the API server knows no pod default/absent on node node-1");
    assert_eq!(shown(&cluster, "/pool/leased"), 1, "the witness has one");
}

#[test]
fn without_api_server_pods_that_are_known_get_their_network() {
    let mut cluster = node(&nothing());
    let witness = cluster.add(0, "witness");
    let mut known = cluster.schedule(0, "known");
    all_is_heard(&cluster, &witness);
    cluster.api_down();
    cluster.wire(&mut known);
    let unknown = cluster.schedule(0, "unknown");
    let msg = cluster.refused(&unknown, 11);
    assert!(msg.starts_with("add default/unknown: pod default/unknown is not known yet: "), "{msg}");

    cluster.call_for(&known, "DEL").ok();
    cluster.api_up();
    let mut unknown = unknown;
    cluster.wire(&mut unknown);
}

#[test]
fn a_second_daemon_on_the_node_refuses_to_start_and_the_first_goes_on() {
    let mut cluster = node(&nothing());
    let first = cluster.daemon(0).pid();
    let second = cluster.node(0).daemon("second", &mut std::process::Command::new("/opt/terway/terwayd"));
    let status = second.wait(SOON);
    assert_eq!(status.expect("it ends by itself").code(), Some(1));
    let said = cluster.node(0).read_file("/var/log/second.log").unwrap();
    assert!(said.contains(&format!("another terwayd (process {first}) serves this node")), "{said}");
    cluster.add(0, "web");
    cluster.kill(0);
    cluster.start_ready(0);
}

#[test]
fn the_node_is_told_when_addresses_cannot_be_had_and_when_they_can_again() {
    let mut cluster = idle_node("ecs.sim.small", &json!({"ip_cooldown": "1s"}));
    cluster.start_ready(0);
    let pods = ["a", "b", "c"].map(|name| cluster.add(0, name));
    let about_node = |reason: &str| events_about(&cluster, &node_name(0)).iter().filter(|(r, _)| r == reason).count();
    cluster.refused(&cluster.schedule(0, "one-too-many"), 11);
    soon("it is told", || about_node("AllocResourceFailed") == 1);
    for pod in pods {
        cluster.del(pod);
    }
    soon("it is told", || about_node("AllocIPSucceed") == 1);
    assert_eq!(shown(&cluster, "/pool/leased"), 0);
}
