//! What the CNI specification promises to a runtime.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use terway::ours::LEDGER;

use super::{deaf, idle_node, is_bare, node, nothing, pings_during, shown};
use crate::sim::cloud::Delays;
use crate::sim::cluster::{Cluster, Member, conf, soon};
use crate::sim::cni::Sandbox;
use crate::sim::fabric::{OUTSIDE, OUTSIDE_V6};
use crate::sim::traffic::Place;

/// Whether the first packet that the pod sends reaches its node.
fn speaks(cluster: &Cluster, member: &Member) -> bool {
    member.pod.reaches(&cluster.node(0).addr.to_string())
}

#[test]
fn a_second_add_of_an_attachment_answers_the_same() {
    let cluster = node(&nothing());
    let mut member = cluster.schedule(0, "web");
    let first = cluster.wire(&mut member);
    assert_eq!(cluster.wire(&mut member), first);
    assert_eq!(shown(&cluster, "/pool/leased"), 1);
    assert!(speaks(&cluster, &member));
}

#[test]
fn an_add_over_what_a_killed_one_left_succeeds_and_one_del_clears_it() {
    let cluster = node(&nothing());
    for round in 0..16 {
        let mut member = cluster.schedule(0, &format!("web-{round}"));
        cluster.node(0).run(|| {
            let plugin = member.sandbox.begin("ADD");
            thread::sleep(Duration::from_micros(fastrand::u64(..20_000)));
            drop(plugin);
        });
        if round % 4 != 0 {
            cluster.wire(&mut member);
            cluster.call_for(&member, "CHECK").ok();
            assert!(speaks(&cluster, &member), "round {round}");
        }
        cluster.del(member);
    }
    soon("nothing is left", || is_bare(&cluster));
    assert_eq!(shown(&cluster, "/pool/leased"), 0);
}

#[test]
fn an_add_that_was_killed_while_it_waited_is_not_served_after_its_del() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"min_pool_size": 0, "max_pool_size": 0}));
    cluster.start_ready(0);
    // Time to look while the ADD still waits.
    cluster.world.cloud.set_delays(Delays { attach: Duration::from_secs(4), ..Delays::default() });
    let member = cluster.schedule(0, "web");
    let plugin = cluster.node(0).run(|| member.sandbox.begin("ADD"));
    soon("an ENI is made for the ADD", || cluster.world.cloud.calls("AttachNetworkInterface") == 1);
    assert_ne!(shown(&cluster, "/pool/waiting"), json!([]));
    drop(plugin);
    cluster.call_for(&member, "DEL").ok();
    soon("the ENI serves", || super::serving(&cluster) == 1);
    assert_eq!(shown(&cluster, "/pool/waiting"), json!([]));
    assert_eq!(shown(&cluster, "/leases"), json!([]));
}

#[test]
fn a_del_succeeds_whatever_is_gone_already() {
    let cluster = node(&nothing());
    let never = cluster.schedule(0, "never-added");
    cluster.call_for(&never, "DEL").ok();

    let twice = cluster.add(0, "twice");
    cluster.call_for(&twice, "DEL").ok();
    cluster.call_for(&twice, "DEL").ok();

    let mut no_netns = cluster.add(0, "no-netns");
    no_netns.sandbox.netns = "".into();
    cluster.call_for(&no_netns, "DEL").ok();

    let Member { pod, sandbox, .. } = cluster.add(0, "dead-netns");
    pod.remove();
    cluster.node(0).run(|| sandbox.call("DEL")).ok();

    soon("nothing is left", || is_bare(&cluster));
    assert_eq!(shown(&cluster, "/pool/leased"), 0);
    assert_eq!(shown(&cluster, "/pool/cooling"), 3);
}

#[test]
fn a_del_without_daemon_clears_the_kernel_and_the_next_daemon_lets_the_address_rest() {
    let mut cluster = node(&nothing());
    let (a, mut b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    cluster.kill(0);
    b.sandbox.netns = "".into();
    for member in [&a, &b] {
        cluster.call_for(member, "DEL").ok();
        cluster.call_for(member, "DEL").ok();
    }
    assert!(is_bare(&cluster));
    assert_eq!((cluster.ledger(0, "leases").len(), cluster.ledger(0, "tombstones").len()), (2, 2));

    cluster.start_ready(0);
    soon("the tombstones are absorbed", || cluster.ledger(0, "tombstones").is_empty());
    assert_eq!(shown(&cluster, "/pool/leased"), 0);
    let c = cluster.add(0, "c");
    assert!(c.ip != a.ip && c.ip != b.ip, "{} rests", c.ip);
    assert_eq!(cluster.ledger(0, "resting").len(), 2);
}

#[test]
fn a_late_del_of_an_older_sandbox_leaves_the_newer_one_alone() {
    let mut cluster = node(&nothing());
    let old = cluster.add(0, "web");
    let mut new = cluster.sandbox(0, old.sandbox.pod.clone());
    cluster.wire(&mut new);
    assert_ne!(old.ip, new.ip);
    assert!(speaks(&cluster, &new));
    let node = cluster.node(0).addr.to_string();
    let (lost, sent) = pings_during(&new.pod, &node, || {
        cluster.call_for(&old, "DEL").ok();
        thread::sleep(Duration::from_millis(400));
    });
    assert!(sent > 10 && lost == 0, "{lost} of {sent} pings were lost");
    cluster.call_for(&new, "CHECK").ok();

    let mut newest = cluster.sandbox(0, new.sandbox.pod.clone());
    cluster.wire(&mut newest);
    assert!(speaks(&cluster, &newest));
    cluster.kill(0);
    let (lost, sent) = pings_during(&newest.pod, &node, || {
        cluster.call_for(&new, "DEL").ok();
        cluster.start_ready(0);
        thread::sleep(Duration::from_millis(400));
    });
    assert!(sent > 10 && lost == 0, "{lost} of {sent} pings were lost");
    cluster.call_for(&newest, "CHECK").ok();
    assert_eq!(shown(&cluster, "/pool/leased"), 1);
}

#[test]
fn check_names_the_first_thing_that_is_not_as_it_was_made() {
    let mut cluster = idle_node("ecs.sim.large", &nothing());
    // A daemon that hears of it puts it right before anybody can ask.
    deaf(|| cluster.start(0));
    cluster.wait_ready(0);
    let mut member = cluster.schedule(0, "web");
    let result = cluster.wire(&mut member);
    let (ip, host) = (&member.ip, result["interfaces"][1]["name"].as_str().unwrap().to_owned());
    let check = || cluster.call_for(&member, "CHECK");
    check().ok();
    let breaks = [
        (true, format!("ip route del {ip} table 1000"), ip.clone()),
        (true, format!("ip neigh del {ip} dev {host}"), ip.clone()),
        (true, format!("tc filter del dev {host} ingress"), host.clone()),
        (true, format!("ip link set {host} mtu 1400"), "1400".into()),
        (true, format!("ip link set {host} down"), host.clone()),
        (false, "ip route del default".into(), "default".into()),
        (false, "ip neigh del 169.254.1.1 dev eth0".into(), "169.254.1.1".into()),
        (false, "ip link set eth0 mtu 1280".into(), "1280".into()),
        (false, format!("ip addr del {ip}/32 dev eth0"), ip.clone()),
        (true, format!("ip link del {host}"), host.clone()),
    ];
    for (outside, line, named) in breaks {
        match outside {
            true => cluster.node(0).sh(&line),
            false => member.pod.sh(&line),
        };
        let answer = check();
        assert_eq!((answer.code, &answer.json()["code"]), (Some(1), &json!(101)), "{line}: {answer:?}");
        let msg = answer.json()["msg"].as_str().unwrap().to_owned();
        assert!(msg.starts_with("check default/web: ") && msg.contains(&named), "{line}: {msg}");
        // A second ADD mends whatever was broken.
        cluster.call_for(&member, "ADD").ok();
        check().ok();
        assert!(speaks(&cluster, &member), "{line}");
    }
    cluster.call_for(&member, "DEL").ok();
    assert_eq!(check().json()["code"], 102);
}

#[test]
fn check_compares_the_lease_with_the_result_that_the_runtime_kept() {
    let cluster = node(&nothing());
    let mut member = cluster.schedule(0, "web");
    let result = cluster.wire(&mut member);
    member.sandbox.conf = conf(&json!({"prevResult": result})).to_string();
    cluster.call_for(&member, "CHECK").ok();
    let other = json!({"prevResult": {"ips": [{"address": "192.168.32.250/19"}]}});
    member.sandbox.conf = conf(&other).to_string();
    let answer = cluster.call_for(&member, "CHECK");
    assert_eq!(answer.json()["code"], 101, "{answer:?}");
}

#[test]
fn gc_takes_what_is_not_listed_and_what_is_goes_on() {
    let cluster = node(&nothing());
    let (keep, drop) = (cluster.add(0, "keep"), cluster.add(0, "drop"));
    let listed = json!([{"containerID": keep.sandbox.container, "ifname": "eth0"}]);
    assert!(speaks(&cluster, &keep));
    let node = cluster.node(0).addr.to_string();
    let (lost, sent) = pings_during(&keep.pod, &node, || {
        let answer = cluster.call(0, "GC", &json!({"cni.dev/valid-attachments": listed})).ok();
        assert_eq!(answer.stdout, "");
        soon("the other pod's link goes", || !drop.pod.sh("ip -o link").contains("eth0"));
    });
    assert!(sent > 0 && lost == 0, "{lost} of {sent} pings were lost");
    assert_eq!(shown(&cluster, "/pool/leased"), 1);
    cluster.call_for(&keep, "CHECK").ok();
    assert_eq!(cluster.call(0, "GC", &nothing()).json()["code"], 7);
    assert_eq!(shown(&cluster, "/pool/leased"), 1);
}

/// As with Multus, which asks for a further interface by a network of another name.
#[test]
fn gc_of_one_network_leaves_alone_what_is_attached_to_another() {
    let mut cluster = node(&nothing());
    let gc = |cluster: &Cluster, network: &str, listed: &[&Member]| {
        let id = |m: &&Member| json!({"containerID": m.sandbox.container, "ifname": m.sandbox.ifname});
        let listed: Vec<Value> = listed.iter().map(id).collect();
        cluster.call(0, "GC", &json!({"name": network, "cni.dev/valid-attachments": listed})).ok();
    };
    let first = cluster.add(0, "web");
    let mut second = cluster.schedule(0, "web");
    second.sandbox =
        Sandbox { ifname: "net1".into(), conf: conf(&json!({"name": "further"})).to_string(), ..first.sandbox.clone() };
    cluster.wire(&mut second);
    gc(&cluster, "further", &[&second]);
    gc(&cluster, "terway-chainer", &[&first]);
    gc(&cluster, "no-pods", &[]);
    assert_eq!(shown(&cluster, "/pool/leased"), 2);
    // As an earlier release wrote them down.
    cluster.stop(0);
    cluster.node(0).sh(&format!(
        r#"sed -i 's/,"network":"[^"]*"//' {LEDGER}/leases/*.json; ! grep -q '"network"' {LEDGER}/leases/*.json"#
    ));
    cluster.start_ready(0);
    gc(&cluster, "further", &[&second]);
    assert_eq!(shown(&cluster, "/pool/leased"), 2);
    gc(&cluster, "terway-chainer", &[]);
    assert_eq!(shown(&cluster, "/pool/leased"), 0);
}

#[test]
fn status_says_whether_an_add_could_be_served() {
    let mut cluster = idle_node("ecs.sim.small", &json!({"min_pool_size": 0}));
    let not_ready = |cluster: &Cluster| {
        let answer = cluster.call(0, "STATUS", &Value::Null);
        assert_eq!((answer.code, &answer.json()["code"]), (Some(1), &json!(50)), "{answer:?}");
        answer.json()["msg"].as_str().unwrap().to_owned()
    };
    assert!(not_ready(&cluster).contains("eni.socket"));
    cluster.start_ready(0);
    assert_eq!(cluster.call(0, "STATUS", &Value::Null).ok().stdout, "");
    let _pods = ["a", "b", "c"].map(|name| cluster.add(0, name));
    // A full node is no broken one.
    assert_eq!(cluster.call(0, "STATUS", &Value::Null).ok().stdout, "");
    cluster.stop(0);
    assert!(not_ready(&cluster).contains("eni.socket"));
}

#[test]
fn a_result_has_the_form_of_the_version_that_was_asked_for() {
    let cluster = node(&nothing());
    let mut member = cluster.schedule(0, "web");
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        member.sandbox.conf = conf(&json!({"cniVersion": version})).to_string();
        let result = cluster.wire(&mut member);
        let netns = member.pod.netns().to_str().unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][0]["name"], "eth0", "{version}");
        assert_eq!(result["interfaces"][0]["sandbox"], netns, "{version}");
        let mac = member.pod.sh("ip -o link show eth0");
        assert!(mac.contains(result["interfaces"][0]["mac"].as_str().unwrap()), "{version}: {mac}");
        let host = result["interfaces"][1]["name"].as_str().unwrap();
        assert!(cluster.node(0).sh("ip -o link").contains(host), "{version}: {host}");
        assert_eq!(result["interfaces"][1].get("sandbox"), None, "{version}");
        assert_eq!(result["ips"][0]["address"], format!("{}/19", member.ip), "{version}");
        assert_eq!(result["ips"][0]["gateway"], "192.168.63.253", "{version}");
        assert_eq!(result["ips"][0]["interface"], 0, "{version}");
        let old = version.starts_with('0');
        assert_eq!(result["ips"][0].get("version"), old.then_some(&json!("4")), "{version}");
        let newest = version == "1.1.0";
        assert_eq!(result["interfaces"][0].get("mtu"), newest.then_some(&json!(1500)), "{version}");
    }
}

#[test]
fn an_interface_name_that_is_taken_is_refused_and_del_leaves_the_others_link() {
    let cluster = node(&nothing());
    let first = cluster.add(0, "first");
    let mut second = cluster.schedule(0, "second");
    second.sandbox.netns = first.sandbox.netns.clone();
    let msg = cluster.refused(&second, 100);
    assert!(msg.contains("interface eth0 exists already in"), "{msg}");
    cluster.call_for(&second, "DEL").ok();
    cluster.call_for(&first, "CHECK").ok();
    assert!(speaks(&cluster, &first));

    let foreign = cluster.schedule(0, "foreign");
    foreign.pod.sh("ip link add eth0 type veth peer name other");
    let msg = cluster.refused(&foreign, 100);
    assert!(msg.contains("add default/foreign: interface eth0 exists already in"), "{msg}");
    cluster.call_for(&foreign, "DEL").ok();
    assert!(foreign.pod.sh("ip -o link").contains("eth0@other"));
    assert_eq!(shown(&cluster, "/pool/leased"), 1);
    cluster.call_for(&first, "DEL").ok();
    soon("nothing is left", || is_bare(&cluster));
}

#[test]
fn two_interfaces_of_one_pod_are_two_attachments_and_the_first_has_its_routes() {
    let cluster = node(&json!({"ip_stack": "dual"}));
    let (first, other) = (cluster.add(0, "web"), cluster.add(0, "other"));
    let routes = || ["-4", "-6"].map(|family| first.pod.sh(&format!("ip {family} route show table main")));
    let before = routes();
    let mut second = cluster.schedule(0, "web");
    second.sandbox.container = first.sandbox.container.clone();
    second.sandbox.netns = first.sandbox.netns.clone();
    second.sandbox.ifname = "net1".into();
    cluster.wire(&mut second);
    assert_eq!(shown(&cluster, "/pool/leased"), 3);
    let own = |route: &&str| !route.contains("dev net1");
    let of_others = |text: &String| text.lines().filter(own).map(String::from).collect::<Vec<_>>();
    assert_eq!(routes().each_ref().map(of_others), before.each_ref().map(of_others));
    assert!(routes().iter().all(|text| !text.contains("default via 169.254.1.1 dev net1")), "{:?}", routes());
    for (outside, (own, further)) in [OUTSIDE, OUTSIDE_V6].iter().zip(first.ips.iter().zip(&second.ips)) {
        // Each address by its own interface: the VPC drops what comes by another's ENI.
        assert!(first.pod.reaches(outside) && first.pod.reaches_from(further, outside), "{outside}");
        assert!(other.pod.ping(own).is_some() && other.pod.ping(further).is_some(), "{own} {further}");
        assert!(cluster.node(0).ping(further).is_some(), "{further}");
    }
    let way = first.pod.sh(&format!("ip route get {OUTSIDE}; ip -6 route get {OUTSIDE_V6}"));
    assert!(!way.contains("net1"), "the pod's own traffic leaves by eth0: {way}");
    for member in [&first, &second] {
        cluster.call_for(member, "CHECK").ok();
    }
    cluster.call_for(&second, "DEL").ok();
    soon("its link goes", || !first.pod.sh("ip -o link").contains("net1"));
    assert_eq!(shown(&cluster, "/pool/leased"), 2);
    assert!(!first.pod.sh("ip rule; ip -6 rule").contains("2048"), "{}", first.pod.sh("ip rule; ip -6 rule"));
    cluster.call_for(&first, "CHECK").ok();
    assert!(first.pod.ping(OUTSIDE).is_some());
    // Of a namespace that is gone a plain file may be left.
    cluster.wire(&mut second);
    second.sandbox.netns = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into();
    cluster.call_for(&second, "DEL").ok();
    soon("its link goes", || !first.pod.sh("ip -o link").contains("net1"));
}

#[test]
fn an_attachment_that_is_added_again_before_its_old_link_is_swept_has_only_its_new_address() {
    let cluster = node(&json!({"min_pool_size": 4, "max_pool_size": 4, "ip_cooldown": "10m"}));
    let mut web = cluster.add(0, "web");
    let former = web.ip.clone();
    cluster.call_for(&web, "DEL").ok();
    cluster.wire(&mut web);
    assert_ne!(web.ip, former, "the former address rests");
    let inside = web.pod.sh("ip -4 -o addr show dev eth0");
    assert!(inside.contains(&format!("inet {}/32 ", web.ip)) && !inside.contains(&former), "{inside}");
    assert!(!cluster.node(0).sh("ip neigh").contains(&format!("{former} ")));
    // By its first address, which would be the former one.
    assert!(web.pod.ping(OUTSIDE).is_some());
    cluster.call_for(&web, "CHECK").ok();
}

#[test]
fn an_attachment_that_is_added_again_while_its_old_link_is_swept_keeps_its_new_one() {
    let cluster = node(&json!({"ip_cooldown": "0s"}));
    let mut web = cluster.add(0, "web");
    for round in 0..8 {
        cluster.call_for(&web, "DEL").ok();
        // Links are swept a quarter of a second after the last DEL.
        thread::sleep(Duration::from_millis(240 + round * 3));
        cluster.wire(&mut web);
        cluster.call_for(&web, "CHECK").ok();
        thread::sleep(Duration::from_millis(100));
        cluster.call_for(&web, "CHECK").ok();
    }
}
