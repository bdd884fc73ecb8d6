//! What `doctor` finds on a node, one thing after the other, and what it puts right.

use serde_json::{Value, json};

use super::{Said, cli, node, nothing};
use crate::sim::cloud::{Kind, When};
use crate::sim::cluster::{Cluster, node_name, soon};
use crate::sim::traffic::Place;

/// The findings of one check.
fn found(said: &Said, check: &str) -> Vec<Value> {
    let all = said.json()["findings"].as_array().expect("a list").clone();
    all.into_iter().filter(|finding| finding["check"] == check).collect()
}

/// There is a finding of this check with these words in it, and it says what to do.
fn finds(cluster: &Cluster, check: &str, words: &str, remedy: &str) {
    let said = cli(cluster, "doctor --json");
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let fits = |f: &Value| text(f, "what").contains(words) && text(f, "remedy").contains(remedy);
    assert!(found(&said, check).iter().any(fits), "{check}: no {words:?} with {remedy:?} in {said:?}");
}

fn is_silent(cluster: &Cluster, check: &str) {
    let said = cli(cluster, "doctor --json");
    assert_eq!(found(&said, check), Vec::<Value>::new(), "{check}");
}

#[test]
fn a_node_that_is_well_has_no_problem_and_each_that_it_gets_is_found() {
    let mut cluster = node(&nothing());
    let _web = cluster.add(0, "web");
    soon("it is well", || cli(&cluster, "doctor").code == 0);
    let well = cli(&cluster, "doctor");
    assert!(well.out.contains("ok       cloud\n") && well.out.contains("ok       api-server\n"), "{well:?}");
    // Behind kube-proxy they are for iptables, on any kernel.
    assert_eq!(cluster.show(0)["policies"]["renderer"], "iptables");
    assert!(!well.out.contains("policies"), "{well:?}");

    let on_node = [
        ("ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500", "path-mtu", "at most 1400", "`mtu` 1400"),
        (
            "echo {} >/etc/cni/net.d/05-other.conf",
            "rm /etc/cni/net.d/05-other.conf",
            "runtime",
            "05-other.conf comes before",
            "mv /etc",
        ),
        ("mv /opt/cni/bin/terway /opt/t", "mv /opt/t /opt/cni/bin/terway", "runtime", "no plugin", "ln -s"),
        (
            "mkdir /run/NetworkManager",
            "rmdir /run/NetworkManager",
            "managers",
            "NetworkManager runs",
            "NetworkManager/conf.d",
        ),
        ("mkdir -p /run/systemd/netif", "rmdir /run/systemd/netif", "managers", "systemd-networkd runs", "reload"),
        (
            "ip addr add 10.9.9.9/24 dev eth1",
            "ip addr del 10.9.9.9/24 dev eth1",
            "managers",
            "has put 10.9.9.9/24 on ENI eni-",
            "ip addr del 10.9.9.9/24 dev eth1",
        ),
        ("touch /run/dhclient-eth1.pid", "rm /run/dhclient-eth1.pid", "managers", "a DHCP client has ENI", "kill"),
        (
            "ip route add default dev eth1 metric 500",
            "ip route del default dev eth1 metric 500",
            "managers",
            "default route of the node leads by ENI",
            "ip route del default dev eth1",
        ),
        (
            "ip route add blackhole 100.100.100.200/32",
            "ip route del blackhole 100.100.100.200/32",
            "metadata",
            "the metadata service does not answer",
            "curl http://100.100.100.200",
        ),
        (
            "cp /etc/eni/eni.json /run/eni.json; echo '{' >/etc/eni/eni.json",
            "cp /run/eni.json /etc/eni/eni.json",
            "configuration",
            "/etc/eni/eni.json",
            "docs/configuration.md",
        ),
    ];
    for (damage, undo, check, words, remedy) in on_node {
        cluster.node(0).sh(damage);
        finds(&cluster, check, words, remedy);
        cluster.node(0).sh(undo);
    }

    let cloud = &cluster.world.cloud;
    let forbidden = Kind::Refuse { status: 403, code: "Forbidden.RAM".into() };
    cloud.trouble("DescribeInstanceTypes", When::Always, forbidden);
    finds(&cluster, "cloud", "DescribeInstanceTypes", "ram-policy.json");
    cloud.calm();
    cloud.set_clock(1200);
    finds(&cluster, "cloud", "clock", "chronyd");
    cloud.set_clock(0);
    cluster.kube.deny("get", "nodes");
    finds(&cluster, "api-server", "nodes", "rbac.yaml");
    cluster.api_down();
    finds(&cluster, "api-server", "", "reached from here");
    cluster.api_up();
}

#[test]
fn more_pods_than_addresses_are_a_note() {
    let cluster = node(&nothing());
    cluster.kube.amend("Node", "", &node_name(0), &json!({"status": {"capacity": {"pods": "250"}}}));
    finds(&cluster, "max-pods", "takes 250 pods, and 20 can have an address", "--max-pods=20");
    soon("a note is no problem", || cli(&cluster, "doctor").code == 0);
}

#[test]
fn what_can_be_put_right_without_harm_is_and_once_more_there_is_nothing_to_do() {
    let mut cluster = node(&nothing());
    let _web = cluster.add(0, "web");
    cluster.node(0).sh("ip route add 192.168.40.99/32 dev lo table 1000 proto 116");
    let said = cli(&cluster, "doctor --fix --json");
    assert_eq!(found(&said, "leftovers")[0]["fixed"], true, "{said:?}");
    assert!(!cluster.node(0).sh("ip route show table 1000").contains("192.168.40.99"));
    cluster.kill(0);
    let table = cluster.node(0).sh("ip rule show priority 2048 | sed -E 's/.*lookup ([0-9]+).*/\\1/'");
    cluster.node(0).sh(&format!(
        "ip rule del priority 512; sysctl -qw net.ipv4.ip_forward=0; ip route flush table {}
         ip rule add priority 2048 fwmark 0x7c0/0x7e0 lookup 1999; ip rule add priority 2049 iif eth9 blackhole
         veth=$(ls /sys/class/net | grep cali); ip link set $veth mtu 1600",
        table.trim()
    ));
    let before = cli(&cluster, "doctor");
    assert!(before.code == 3 && before.out.contains("terway-cli doctor --fix does it"), "{before:?}");
    finds(&cluster, "daemon", "terwayd does not answer", "systemctl status terwayd");
    finds(&cluster, "plans", "rule priority 512", "ip rule add priority 512");
    finds(&cluster, "plans", "ip_forward", "sysctl -w net.ipv4.ip_forward=1");
    finds(&cluster, "plans", "route", "ip route replace default via");
    finds(&cluster, "leftovers", "lookup 1999", "ip rule del priority 2048");
    finds(&cluster, "leftovers", "eth9", "ip rule del priority 2049");
    finds(&cluster, "mtu", "pod default/web has MTU 1600", "`mtu`");

    let said = cli(&cluster, "doctor --fix --json");
    let fixable =
        |said: &Said| said.json()["findings"].as_array().unwrap().iter().filter(|f| f["fixable"] == true).count();
    assert!(
        fixable(&said) == 5 && said.json()["findings"].as_array().unwrap().iter().all(|f| f["fixed"] != false),
        "{said:?}"
    );
    is_silent(&cluster, "plans");
    is_silent(&cluster, "leftovers");
    let rules = cluster.node(0).sh("ip rule; cat /proc/sys/net/ipv4/ip_forward");
    assert!(rules.contains("512:") && rules.ends_with("\n1\n") && !rules.contains("1999"), "{rules}");
    assert_eq!(fixable(&cli(&cluster, "doctor --fix --json")), 0, "once more there is nothing to do");
}

#[test]
fn what_felix_has_left_is_found_and_taken_away_once_terwayd_serves() {
    let mut cluster = node(&nothing());
    let web = cluster.add(0, "web");
    is_silent(&cluster, "leftovers");
    cluster.old_felix(0, &[], "");
    let words = "felix is gone and has left its chains";
    finds(&cluster, "leftovers", words, "iptables-save | grep cali");
    assert_eq!(web.pod.ping(&cluster.node(0).addr.to_string()), None);

    cluster.kill(0);
    let silent = cli(&cluster, "doctor --fix --json");
    assert_eq!(
        found(&silent, "leftovers")[0]["fixable"],
        Value::Null,
        "nobody else may hold pods to policies: {silent:?}"
    );

    // What they are is not known yet.
    cluster.api_down();
    cluster.start(0);
    soon("it serves", || cli(&cluster, "status").code != 3);
    let unknowing = cli(&cluster, "doctor --fix --json");
    assert_ne!(cluster.show(0)["policies"]["state"], "enforced");
    let left = &found(&unknowing, "leftovers")[0];
    assert_eq!(left["fixable"], Value::Null, "nothing of ours is in force: {unknowing:?}");
    finds(&cluster, "leftovers", words, "iptables-save | grep cali");

    cluster.api_up();
    soon("it can be put right", || found(&cli(&cluster, "doctor --json"), "leftovers")[0]["fixable"] == true);
    // Those of a Calico that lives are its own.
    cluster.node(0).sh("touch /run/terway/calico-node");
    assert_eq!(found(&cli(&cluster, "doctor --fix --json"), "leftovers")[0]["fixable"], Value::Null);
    cluster.node(0).sh("rm /run/terway/calico-node");
    let said = cli(&cluster, "doctor --fix --json");
    assert_eq!(found(&said, "leftovers")[0]["fixed"], true, "{said:?}");
    is_silent(&cluster, "leftovers");
    assert!(web.pod.ping(&cluster.node(0).addr.to_string()).is_some());
}
