//! Pods with an ENI each: the node's mode, and single pods by annotation; what becomes of the ENI, whoever dies first.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use terway::pod::PodName;

use super::{events_about, idle_node, is_bare, node, pings_during, serving, shown};
use crate::cli::cli;
use crate::sim::cluster::{Cluster, Member, conf, node_name, soon, within};
use crate::sim::fabric::{Drops, OUTSIDE};
use crate::sim::kube;
use crate::sim::traffic::Place;
use crate::sim::world::SERVICE_CIDR;

/// A node of three secondary ENIs where each pod has one; one idle ENI is kept ready, and addresses do not rest.
fn eni_only(over: &Value) -> Value {
    let mut config = json!({
        "daemon_mode": "ENIOnly", "ip_cooldown": "0s", "min_pool_size": 1, "max_pool_size": 3, "orphan_release_after": "1s",
    });
    for (key, value) in over.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

fn exclusive_node() -> Cluster {
    let mut cluster = idle_node("ecs.sim.2xlarge", &eni_only(&json!({})));
    cluster.start_ready(0);
    cluster
}

/// A pod that asks for an ENI to itself.
fn asking(cluster: &Cluster, name: &str) -> Member {
    let mut member = about_to_ask(cluster, name);
    cluster.wire(&mut member);
    member
}

/// The same before its ADD.
fn about_to_ask(cluster: &Cluster, name: &str) -> Member {
    let mut pod = kube::pod("default", name, &node_name(0));
    pod["metadata"]["annotations"] = json!({"k8s.aliyun.com/ENI": "true"});
    cluster.kube.put(pod);
    cluster.sandbox(0, PodName::new("default", name))
}

fn lease_of(cluster: &Cluster, member: &Member) -> Value {
    let leases = cluster.show(0)["leases"].as_array().expect("a list").clone();
    let of = |lease: &&Value| lease["sandbox"]["attachment"]["container"] == member.sandbox.container.as_str();
    leases.iter().find(of).cloned().unwrap_or_else(|| panic!("no lease of {} in {leases:?}", member.sandbox.pod))
}

fn mac_of(cluster: &Cluster, member: &Member) -> String {
    lease_of(cluster, member)["eni"]["mac"].as_str().expect("a MAC").into()
}

fn has_card(member: &Member, mac: &str) {
    let link = member.pod.sh("ip -o link show eth0");
    assert!(link.contains(mac), "{link}");
}

/// The far end of a simulated card hears up to a second later that it is up; until then what it sends is lost.
fn talks(cluster: &Cluster, member: &Member) {
    within(Duration::from_secs(3), || member.pod.ping(OUTSIDE).is_some());
    let node = cluster.node(0);
    let (ip, addr) = (&member.ip, node.addr.to_string());
    assert!(member.pod.reaches(OUTSIDE), "{} does not reach the outside", member.sandbox.pod);
    assert!(cluster.world.fabric.outside().reaches(ip), "the outside does not reach {}", member.sandbox.pod);
    assert!(node.reaches(ip), "the node does not reach {}", member.sandbox.pod);
    assert!(member.pod.reaches(&addr), "{} does not reach its node", member.sandbox.pod);
}

#[test]
fn each_pod_has_an_eni_and_the_node_one_fewer_than_it_can_hold() {
    let mut cluster = exclusive_node();
    assert_eq!(shown(&cluster, "/pool/capacity"), 3);
    let mut member = cluster.schedule(0, "a");
    let result = cluster.wire(&mut member);
    let mac = mac_of(&cluster, &member);
    // The result names the ENI's own MAC, the pod's interface, and the node's end of the second link.
    let veth = terway::ours::host_veth(&member.sandbox.pod, "eth0");
    assert_eq!(result["interfaces"][0]["name"], "eth0");
    assert_eq!(result["interfaces"][0]["mac"], mac);
    assert_eq!(result["interfaces"][1]["name"], veth);
    assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(2));
    let more = [cluster.add(0, "b"), cluster.add(0, "c")];
    for member in [&member].into_iter().chain(&more) {
        has_card(member, &mac_of(&cluster, member));
        talks(&cluster, member);
        assert_eq!(cluster.call_for(member, "CHECK").code, Some(0));
    }
    assert!(member.pod.ping(&more[0].ip).is_some());
    let full = cluster.schedule(0, "d");
    let words = cluster.refused(&full, 11);
    assert!(words.contains("3 in use"), "{words}");
    // ADD again: the same ENI.
    let again = cluster.wire(&mut member);
    assert_eq!(again, result);
    // DEL brings the ENI home, and again nothing happens.
    for _ in 0..2 {
        let answer = cluster.call_for(&member, "DEL");
        assert_eq!(answer.code, Some(0), "{answer:?}");
        assert!(cluster.node(0).ifname(&mac).is_some_and(|name| name.starts_with("eth")));
        assert!(!member.pod.sh("ip -o link").contains(&mac));
    }
    soon("it can be leased again", || shown(&cluster, "/pool/idle") == 1);
    let next = cluster.add(0, "d");
    assert_eq!(mac_of(&cluster, &next), mac);
    talks(&cluster, &next);
    drop(full);
    for member in more.into_iter().chain([next]) {
        cluster.del(member);
    }
    soon("nothing is left", || is_bare(&cluster));
    let links = cluster.node(0).sh("ip -o link");
    for name in ["eth1", "eth2", "eth3"] {
        assert!(links.contains(&format!(": {name}")), "{links}");
    }
    assert_eq!(cluster.world.fabric.drops(), Drops::default());
    cluster.stop(0);
}

#[test]
fn an_eni_whose_namespace_dies_first_comes_home_under_its_own_name() {
    // All ENIs are there before the first goes, so that its name is not given to another.
    let mut cluster = idle_node("ecs.sim.2xlarge", &eni_only(&json!({"min_eni": 3})));
    cluster.start_ready(0);
    soon("three ENIs are ready", || serving(&cluster) == 3);
    let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    let (mac, home) = (mac_of(&cluster, &a), lease_of(&cluster, &a)["wiring"]["whole"]["home"].clone());
    let Member { pod, sandbox, .. } = a;
    pod.remove();
    soon("the kernel hands the card back", || cluster.node(0).ifname(&mac).is_some());
    // DEL without a namespace.
    let answer = cluster.node(0).run(|| sandbox.call("DEL"));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    soon("the card has its name", || cluster.node(0).ifname(&mac).as_deref() == home.as_str());
    soon("it is ready again", || shown(&cluster, "/pool/idle").as_u64() >= Some(1));
    talks(&cluster, &b);
    let c = cluster.add(0, "c");
    talks(&cluster, &c);
    assert_eq!(cluster.call_for(&c, "CHECK").code, Some(0));
}

#[test]
fn a_pod_keeps_its_eni_while_the_daemon_dies_and_starts_again() {
    let mut cluster = exclusive_node();
    let a = cluster.add(0, "a");
    let lease = lease_of(&cluster, &a);
    talks(&cluster, &a);
    let (lost, sent) = pings_during(&a.pod, OUTSIDE, || {
        for _ in 0..2 {
            cluster.kill(0);
            cluster.start_ready(0);
        }
        // Sweeps and comparisons take place.
        thread::sleep(Duration::from_millis(2500));
    });
    assert!(lost == 0 && sent > 100, "{lost} of {sent} pings lost");
    assert_eq!(lease_of(&cluster, &a), lease);
    assert_eq!(cluster.call_for(&a, "CHECK").code, Some(0));
    let b = cluster.add(0, "b");
    talks(&cluster, &b);
    talks(&cluster, &a);
}

#[test]
fn what_the_configuration_leaves_to_the_node_is_put_right_inside_the_pod_too() {
    let mut cluster = exclusive_node();
    let [mut a, mut b] = ["a", "b"].map(|name| cluster.schedule(0, name));
    a.sandbox.conf = conf(&json!({"host_stack_cidrs": ["169.254.20.10/32"]})).to_string();
    b.sandbox.conf = conf(&json!({"disable_host_peer": true})).to_string();
    cluster.wire(&mut a);
    cluster.wire(&mut b);
    let to_local_dns = || a.pod.sh("ip route").contains("169.254.20.10 via 169.254.1.1 dev veth1");
    assert!(to_local_dns());
    let routes = b.pod.sh("ip route");
    // The next life knows it from the ledger.
    for kill in [false, true] {
        if kill {
            cluster.kill(0);
            cluster.start_ready(0);
        }
        a.pod.sh("ip route del 169.254.20.10");
        b.pod.sh("ip route flush default");
        soon("the route of local DNS is back", to_local_dns);
        soon("the other's default route is back", || b.pod.sh("ip route") == routes);
        assert!(!b.pod.sh("ip -o link").contains("veth1"), "a second link that nobody wants");
        for member in [&a, &b] {
            let answer = cluster.call_for(member, "CHECK");
            assert_eq!(answer.code, Some(0), "{answer:?}");
        }
    }
}

#[test]
fn without_a_ledger_the_enis_that_are_away_are_found_in_their_namespaces() {
    let mut cluster = exclusive_node();
    let a = cluster.add(0, "a");
    let mut b = cluster.schedule(0, "b");
    // One without a second link: nothing on the node speaks of it.
    b.sandbox.conf = conf(&json!({"disable_host_peer": true})).to_string();
    cluster.wire(&mut b);
    assert_eq!(cluster.node(0).sh("ip -o link").matches(": cali").count(), 1);
    let forget_slot = |mut lease: Value| {
        lease["eni"]["slot"] = Value::Null;
        lease["eni"]["table"] = Value::Null;
        lease["seat"] = Value::Null;
        lease["network"] = Value::Null;
        lease
    };
    let before = [&a, &b].map(|member| forget_slot(lease_of(&cluster, member)));
    cluster.kill(0);
    cluster.node(0).sh("rm -r /run/terway");
    cluster.start_ready(0);
    assert_eq!([&a, &b].map(|member| forget_slot(lease_of(&cluster, member))), before);
    thread::sleep(Duration::from_millis(2500));
    talks(&cluster, &a);
    assert!(b.pod.ping(OUTSIDE).is_some());
    for member in [&a, &b] {
        assert_eq!(cluster.call_for(member, "CHECK").code, Some(0));
    }
    let macs = [&a, &b].map(|member| mac_of(&cluster, member));
    cluster.del(a);
    cluster.del(b);
    for mac in macs {
        soon("the card is home", || cluster.node(0).ifname(&mac).is_some());
    }
    assert_eq!(cluster.ledger(0, "leases"), [""; 0]);
}

#[test]
fn a_del_without_a_daemon_brings_the_eni_home() {
    let mut cluster = exclusive_node();
    let a = cluster.add(0, "a");
    let mac = mac_of(&cluster, &a);
    cluster.kill(0);
    let answer = cluster.call_for(&a, "DEL");
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(cluster.node(0).ifname(&mac).is_some());
    assert!(!cluster.node(0).sh("ip -o link").contains("cali"));
    cluster.start_ready(0);
    soon("it can be leased again", || shown(&cluster, "/pool/leased") == 0);
    let b = cluster.add(0, "b");
    talks(&cluster, &b);
}

#[test]
fn a_lock_that_is_held_for_a_moment_decides_nothing_for_a_pods_life() {
    let cluster = exclusive_node();
    let node = cluster.node(0);
    node.write_file(
        "/run/iptables-that-waits",
        "#!/bin/sh\necho 'Another app is currently holding the xtables lock. Stopped waiting after 5s.' >&2\nexit 4\n",
    );
    let real = node.sh("readlink /etc/alternatives/iptables");
    node.sh("chmod +x /run/iptables-that-waits; ln -sf /run/iptables-that-waits /etc/alternatives/iptables");
    let mut a = cluster.schedule(0, "a");
    let said = cluster.refused(&a, 11);
    assert!(said.contains("holding the xtables lock"), "{said}");
    node.sh(&format!("ln -sf {} /etc/alternatives/iptables", real.trim()));
    soon("it is tried again", || cluster.call_for(&a, "ADD").code == Some(0));
    cluster.wire(&mut a);
    assert!(a.pod.sh("iptables -w -t mangle -S").contains("CONNMARK"), "{}", a.pod.sh("iptables -w -t mangle -S"));
    talks(&cluster, &a);
}

#[test]
fn garbage_collection_fetches_the_eni_from_a_namespace_that_lives_on() {
    let cluster = exclusive_node();
    let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    let mac = mac_of(&cluster, &a);
    let valid = json!([{"containerID": b.sandbox.container, "ifname": "eth0"}]);
    assert_eq!(cluster.call(0, "GC", &json!({"cni.dev/valid-attachments": valid})).code, Some(0));
    soon("the card is home", || cluster.node(0).ifname(&mac).is_some());
    assert!(!a.pod.sh("ip -o link").contains(&mac));
    talks(&cluster, &b);
}

#[test]
fn a_label_of_the_node_and_the_command_line_say_the_mode_too() {
    let mut cluster = idle_node("ecs.sim.2xlarge", &json!({"eni_cap_shift": -1, "min_pool_size": 0}));
    let instance = format!("cn-hangzhou.{}", cluster.node(0).id);
    let mut labelled = kube::node(&node_name(0), &instance);
    labelled["metadata"]["labels"] = json!({"k8s.aliyun.com/exclusive-mode-eni-type": "eniOnly"});
    cluster.kube.put(labelled);
    cluster.start_ready(0);
    assert_eq!(
        (cluster.show(0)["daemon_mode"].clone(), shown(&cluster, "/pool/capacity")),
        ("ENIOnly".into(), 2.into())
    );
    cluster.stop(0);
    // The API server is away: what the label said last holds.
    cluster.api_down();
    cluster.start_ready(0);
    assert_eq!(cluster.show(0)["daemon_mode"], "ENIOnly");
    cluster.api_up();
    cluster.stop(0);
    cluster.start_with(0, &["-daemon-mode=ENIMultiIP", "-log-level", "debug"]);
    cluster.wait_ready(0);
    assert_eq!(cluster.show(0)["daemon_mode"], "ENIMultiIP");
}

#[test]
fn a_mode_that_would_break_running_pods_is_refused() {
    let mut cluster = node(&json!({}));
    let a = cluster.add(0, "a");
    cluster.stop(0);
    cluster.configure(0, &eni_only(&json!({})));
    cluster.start(0);
    soon("it ends", || !cluster.daemon(0).is_running());
    let log = cluster.log(0);
    assert!(
        log.contains("exclusive eni mode changed") && log.contains("default/a") && log.contains("drain the node"),
        "{log}"
    );
    assert!(a.pod.ping(OUTSIDE).is_some());
    cluster.ended(0);
    cluster.configure(0, &json!({}));
    cluster.start_ready(0);
    assert_eq!(cluster.call_for(&a, "CHECK").code, Some(0));
}

#[test]
fn a_label_that_changes_is_told_and_takes_nothing_away() {
    let cluster = node(&json!({}));
    let a = cluster.add(0, "a");
    let mut labelled = kube::node(&node_name(0), &format!("cn-hangzhou.{}", cluster.node(0).id));
    labelled["metadata"]["labels"] = json!({"k8s.aliyun.com/exclusive-mode-eni-type": "eniOnly"});
    cluster.kube.put(labelled);
    let told = |(reason, message): &(String, String)| {
        reason == "ConfigError" && message.contains("exclusive eni mode changed")
    };
    soon("the node is told", || events_about(&cluster, &node_name(0)).iter().any(told));
    assert!(a.pod.ping(OUTSIDE).is_some());
}

#[test]
fn one_pod_of_a_shared_node_has_an_eni_to_itself_by_annotation() {
    let cluster = {
        let mut cluster = idle_node("ecs.sim.2xlarge", &json!({"ip_cooldown": "0s", "orphan_release_after": "1s"}));
        cluster.start_ready(0);
        cluster
    };
    let shared = [cluster.add(0, "s1"), cluster.add(0, "s2")];
    let x = asking(&cluster, "x");
    let lease = lease_of(&cluster, &x);
    let (mac, eni) = (mac_of(&cluster, &x), lease["eni"]["id"].clone());
    has_card(&x, &mac);
    talks(&cluster, &x);
    let rules = cluster.node(0).sh("ip rule");
    assert!(!rules.contains(&format!("lookup {}", lease["eni"]["table"])), "{rules}");
    // Nobody else gets an address of its ENI.
    let more: Vec<Member> = (0..12).map(|n| cluster.add(0, &format!("m{n}"))).collect();
    for member in shared.iter().chain(&more) {
        assert_ne!(lease_of(&cluster, member)["eni"]["id"], eni);
    }
    assert!(x.pod.ping(&shared[0].ip).is_some() && shared[1].pod.ping(&x.ip).is_some());
    assert_eq!(cluster.call_for(&x, "CHECK").code, Some(0));
    // Sweeps and comparisons take place.
    thread::sleep(Duration::from_millis(2500));
    talks(&cluster, &x);
    cluster.del(x);
    soon("its ENI serves", || {
        let show = cluster.show(0);
        let enis = show["pool"]["enis"].as_array().expect("a list");
        enis.iter().any(|other| other["id"] == eni && other["state"] == "serving")
    });
    let home = cluster.node(0).ifname(&mac).expect("it is home");
    soon("its rules are there again", || cluster.node(0).sh("ip rule").contains(&format!("iif {home}")));
    let last: Vec<Member> = (0..14).map(|n| cluster.add(0, &format!("l{n}"))).collect();
    assert!(last.iter().any(|member| lease_of(&cluster, member)["eni"]["id"] == eni), "its ENI is shared again");
    for member in [&last[0], &last[13], &shared[0]] {
        assert!(member.pod.ping(OUTSIDE).is_some());
    }
    assert_eq!(cluster.world.fabric.drops(), Drops::default());
}

#[test]
fn a_pod_that_wants_an_eni_where_all_carry_others_is_told_so() {
    let cluster = node(&json!({"ip_cooldown": "0s", "max_eni": 1}));
    let s = cluster.add(0, "s");
    let mut pod = kube::pod("default", "x", &node_name(0));
    pod["metadata"]["annotations"] = json!({"k8s.aliyun.com/ENI": "1"});
    cluster.kube.put(pod);
    let x = cluster.sandbox(0, PodName::new("default", "x"));
    let words = cluster.refused(&x, 11);
    assert!(words.contains("no ENI is free: this node can hold 1"), "{words}");
    assert!(s.pod.ping(OUTSIDE).is_some());
}

/// `externalTrafficPolicy: Local`, and Services with backends on both nodes, from and to a pod with an ENI of its own.
#[test]
fn services_and_node_ports_work_with_the_clients_own_address() {
    let cluster = {
        let mut cluster = Cluster::new(crate::sim::world::config(), 2, "ecs.sim.2xlarge");
        cluster.configure(0, &eni_only(&json!({})));
        cluster.start(0);
        cluster.start_ready(1);
        cluster.wait_ready(0);
        cluster
    };
    let (a, b, r) = (cluster.add(0, "a"), cluster.add(0, "b"), cluster.add(1, "r"));
    for member in [&a, &b] {
        talks(&cluster, member);
    }
    let echoes = [&a, &b, &r].map(|m| (m.pod.tcp_echo("0.0.0.0:8080"), m.pod.udp_echo("0.0.0.0:8080")));
    let node = cluster.node(0);
    let service: Ipv4Addr = SERVICE_CIDR.split('/').next().and_then(|net| net.parse().ok()).expect("a prefix");
    let service = |n: u8| Ipv4Addr::from(u32::from(service) + u32::from(n)).to_string();
    let mut dnat = vec![(format!("{}/32", node.addr), 30080, &a)];
    dnat.extend([&a, &b, &r].into_iter().zip(1..).map(|(m, n)| (service(n), 80, m)));
    for (at, port, to) in &dnat {
        for protocol in ["tcp", "udp"] {
            let rule = format!("-d {at} -p {protocol} --dport {port} -j DNAT --to-destination {}:8080", to.ip);
            node.sh(&format!("iptables -w -t nat -A PREROUTING {rule}"));
        }
    }
    let seen = |n: usize| echoes[n].0.peers().last().map(|peer| peer.ip().to_string());
    let outside = cluster.world.fabric.outside();
    let port = format!("{}:30080", node.addr);
    outside.tcp(&port).expect("TCP to the node's port");
    assert_eq!(seen(0).as_deref(), Some(OUTSIDE));
    assert_eq!(outside.udp(&port, 3).len(), 3);
    a.pod.tcp(&format!("{}:80", service(2))).expect("a backend beside it");
    assert_eq!(seen(1), Some(a.ip.clone()));
    a.pod.tcp(&format!("{}:80", service(3))).expect("a backend elsewhere");
    assert_eq!(seen(2), Some(node.addr.to_string()));
    assert_eq!(a.pod.udp(&format!("{}:80", service(3)), 3).len(), 3);
    assert_eq!(cluster.world.fabric.drops(), Drops::default());
}

fn kubeadm_config(services: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "kube-system", "name": "kubeadm-config"},
        "data": {"ClusterConfiguration": format!("networking:\n  serviceSubnet: {services}\n")},
    })
}

fn way_to_services(member: &Member) -> String {
    member.pod.sh(&format!("ip route show {SERVICE_CIDR}"))
}

fn by_the_node() -> String {
    format!("{SERVICE_CIDR} via 169.254.1.1 dev veth1")
}

#[test]
fn a_pod_whose_node_does_not_know_where_services_are_is_told_so() {
    let mut cluster = idle_node("ecs.sim.2xlarge", &json!({"service_cidr": "", "ip_cooldown": "0s"}));
    cluster.start_ready(0);
    let told = |cluster: &Cluster, name: &str| {
        let events = events_about(cluster, name).into_iter();
        events.filter(|(reason, said)| reason == "ConfigError" && said.contains("service_cidr is not set")).count()
    };
    let web = asking(&cluster, "web");
    assert_eq!(way_to_services(&web), "");
    soon("the pod is told", || told(&cluster, "web") == 1);
    let doctor = cli(&cluster, "doctor");
    assert!(
        doctor.code == 1 && doctor.out.contains("pod default/web has an ENI of its own and no way to Services"),
        "{doctor:?}"
    );

    // What kubeadm has left is gone by, but where the VPC has it too: there the key would end the daemon.
    let overlap = "kubeadm's 192.168.0.0/20 overlaps 192.168.0.0/16 of VPC";
    cluster.kube.put(kubeadm_config("192.168.0.0/20"));
    cluster.stop(0);
    cluster.start_ready(0);
    let lost = asking(&cluster, "lost");
    assert_eq!(way_to_services(&lost), "");
    soon("it is said why", || {
        let mut said = events_about(&cluster, "lost").into_iter().map(|(_, said)| said);
        said.any(|said| said.contains(overlap) && said.contains("set ebpf_services") && !said.contains("set it"))
    });
    let doctor = cli(&cluster, "doctor");
    assert!(doctor.out.contains(overlap) && !doctor.out.contains("set service_cidr"), "{doctor:?}");
    cluster.del(lost);

    cluster.kube.put(kubeadm_config(SERVICE_CIDR));
    cluster.stop(0);
    cluster.start_ready(0);
    let other = asking(&cluster, "other");
    assert!(way_to_services(&other).starts_with(&by_the_node()), "{}", way_to_services(&other));
    let service = SERVICE_CIDR.split('/').next().expect("an address");
    let trace = cli(&cluster, &format!("trace default/other {service}"));
    assert!(trace.out.contains("a Service answers no ping"), "{trace:?}");
    assert_eq!(told(&cluster, "other"), 0);
}

/// ADD as the kubelet has it done: again, for as long as it is only refused for now.
fn asking_again(cluster: &Cluster, name: &str) -> Member {
    let mut member = about_to_ask(cluster, name);
    soon("it is served", || {
        let answer = cluster.call_for(&member, "ADD");
        assert!(answer.code == Some(0) || answer.json()["code"] == 11, "{answer:?}");
        answer.code == Some(0)
    });
    cluster.wire(&mut member);
    member
}

#[test]
fn what_kubeadm_has_left_is_learnt_once_the_api_server_is_there() {
    let mut cluster = idle_node("ecs.sim.2xlarge", &json!({"service_cidr": "", "ip_cooldown": "0s"}));
    cluster.kube.put(kubeadm_config(SERVICE_CIDR));
    cluster.api_down();
    cluster.start_ready(0);
    let asked = || cluster.log(0).matches("service_cidr is not set: get").count();
    soon("pauses between questions are longer than an ADD takes", || asked() > 3);
    cluster.api_up();
    let web = asking_again(&cluster, "web");
    assert!(way_to_services(&web).starts_with(&by_the_node()), "{}", way_to_services(&web));
    assert!(cluster.log(0).contains(&format!("kubeadm has left {SERVICE_CIDR}")));
}

#[test]
fn kubeadm_is_asked_when_service_cidr_is_taken_out() {
    let mut cluster = idle_node("ecs.sim.2xlarge", &json!({"ip_cooldown": "0s"}));
    cluster.kube.put(kubeadm_config(SERVICE_CIDR));
    cluster.start_ready(0);
    cluster.configure(0, &json!({"service_cidr": "", "ip_cooldown": "0s"}));
    soon("it is learnt", || cluster.log(0).contains(&format!("kubeadm has left {SERVICE_CIDR}")));
    let web = asking_again(&cluster, "web");
    assert!(way_to_services(&web).starts_with(&by_the_node()), "{}", way_to_services(&web));
}

#[test]
fn a_mac_that_was_changed_inside_is_put_right_and_the_eni_comes_home_with_its_own() {
    let over = json!({"ip_cooldown": "0s", "orphan_release_after": "1s", "min_pool_size": 0, "max_pool_size": 0});
    let cluster = node(&over);
    let member = asking(&cluster, "web");
    let mac = mac_of(&cluster, &member);
    talks(&cluster, &member);
    let disguise = || member.pod.sh("ip link set eth0 address 02:00:00:00:00:99");
    // The daemon may be faster, with one of its comparisons.
    soon("CHECK finds it", || {
        disguise();
        let answer = cluster.call_for(&member, "CHECK");
        answer.code != Some(0) && answer.json()["code"] == 101
    });
    soon("its own MAC is back", || member.pod.sh("ip -o link show eth0").contains(&mac));
    soon("CHECK agrees", || cluster.call_for(&member, "CHECK").code == Some(0));
    talks(&cluster, &member);
    let words = format!("mac of eth0: 02:00:00:00:00:99, not {mac}");
    soon("the pod is told", || {
        events_about(&cluster, "web").iter().any(|(reason, said)| reason == "ConfigCheck" && said.contains(&words))
    });
    disguise();
    cluster.call_for(&member, "DEL").ok();
    soon("the card is home", || cluster.node(0).ifname(&mac).is_some());
    let next = asking(&cluster, "next");
    assert_eq!(mac_of(&cluster, &next), mac);
    talks(&cluster, &next);
}

#[test]
fn a_pod_of_a_stateful_set_has_its_eni_and_address_again_and_others_get_around_them() {
    let cluster =
        node(&json!({"ip_cooldown": "0s", "min_pool_size": 0, "max_pool_size": 0, "orphan_release_after": "1s"}));
    let sticky = |name: &str| {
        let mut member = cluster.schedule(0, name);
        let mut pod = kube::pod("default", name, &node_name(0));
        pod["metadata"]["annotations"] = json!({"k8s.aliyun.com/ENI": "true"});
        pod["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "1", "controller": true}]);
        cluster.kube.put(pod);
        cluster.wire(&mut member);
        member
    };
    let (first, shares) = (sticky("db-0"), cluster.add(0, "shares"));
    let (ip, mac) = (first.ip.clone(), mac_of(&cluster, &first));
    talks(&cluster, &first);
    cluster.del(first);
    assert_eq!(shown(&cluster, "/pool/reserved"), 1);
    let more = cluster.add(0, "shares-too");
    let back = sticky("db-0");
    assert_eq!((back.ip.clone(), mac_of(&cluster, &back)), (ip.clone(), mac));
    has_card(&back, &mac_of(&cluster, &back));
    assert!(more.ip != ip && shares.ip != ip);
    assert_eq!(shown(&cluster, "/pool/reserved"), 0);
    talks(&cluster, &back);
    assert!(back.pod.ping(&shares.ip).is_some() && shares.pod.ping(&ip).is_some());
}

#[test]
fn a_further_interface_is_an_eni_too_and_leaves_the_first_ones_routes_alone() {
    let cluster = exclusive_node();
    let first = cluster.add(0, "web");
    let before = first.pod.sh("ip route show table main");
    let mut second = cluster.schedule(0, "web");
    second.sandbox.container = first.sandbox.container.clone();
    second.sandbox.netns = first.sandbox.netns.clone();
    second.sandbox.ifname = "net1".into();
    cluster.wire(&mut second);
    assert_eq!(first.pod.sh("ip route show table main"), before);
    talks(&cluster, &first);
    soon("it reaches the outside by it", || first.pod.ping_from(&second.ip, OUTSIDE).is_some());
    assert!(cluster.world.fabric.outside().ping(&second.ip).is_some());
    for member in [&first, &second] {
        assert_eq!(cluster.call_for(member, "CHECK").code, Some(0));
    }
    assert_eq!(cluster.world.fabric.drops(), Drops::default());
    cluster.call_for(&second, "DEL").ok();
    let inside = first.pod.sh("ip -o link; ip rule");
    assert!(!inside.contains("net1") && !inside.contains("2048:"), "{inside}");
    talks(&cluster, &first);
}
