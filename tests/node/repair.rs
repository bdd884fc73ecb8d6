//! What others do to rules, routes, neighbours, filters, parameters and links behind the daemon's back, and what becomes of it.

use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;

use super::{deaf, events_about, idle_node, nothing, pings_during, shown};
use crate::sim::cluster::{Cluster, Member, soon, within};
use crate::sim::fabric::{OUTSIDE, OUTSIDE_V6};
use crate::sim::traffic::Place;
use terway::ours;

/// Much longer than a repair takes on a machine with nothing else to do, and less than the minute after which ENIs are
/// compared anyway.
const BOUND: Duration = Duration::from_secs(10);

/// A node with two pods on one ENI, wired and at rest.
struct Site {
    cluster: Cluster,
    a: Member,
    b: Member,
}

impl Site {
    fn new(over: &serde_json::Value) -> Site {
        let cluster = super::node(over);
        let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
        let site = Site { cluster, a, b };
        site.works("before anything happens");
        site
    }

    fn veth(&self) -> String {
        ours::host_veth(&self.a.sandbox.pod, "eth0")
    }

    fn works(&self, when: &str) {
        assert!(self.a.pod.reaches(&self.b.ip), "no ping from pod to pod {when}");
        assert!(self.a.pod.reaches(OUTSIDE), "no ping to the outside {when}");
        assert!(self.cluster.node(0).reaches(&self.a.ip), "no ping from the node {when}");
    }

    /// All that the node's plans are about, in words that do not change when it is made anew.
    fn state(&self) -> String {
        let veth = self.veth();
        self.cluster.node(0).sh(&format!(
            "ip rule | sort; ip route show table all | grep -e 'proto 116' -e 'table 1000' | sort
             ip neigh show nud permanent | sort
             tc filter show dev {veth} ingress | sed -E 's/ id [0-9]+//; s/ jited//'
             ip -o link show {veth} | sed -E 's/.* (mtu [0-9]+) .* state ([A-Z]+) .*(link.ether [^ ]+).*/\\1 \\2 \\3/'
             cat /sys/class/net/{veth}/ifalias
             ip -o link show eth1 | sed -E 's/.* (mtu [0-9]+) .* state ([A-Z]+) .*(link.ether [^ ]+).*/\\1 \\2 \\3/'
             ip -o -4 addr show eth1
             cd /proc/sys/net/ipv4; head ip_forward conf/all/rp_filter conf/default/rp_filter conf/eth1/rp_filter"
        ))
    }

    /// Somebody does this, and what was there before comes back; whom the event is about, and what it names.
    fn is_repaired(&self, damage: &str, about: &str, named: &str) {
        let before = self.state();
        self.cluster.node(0).sh(damage);
        assert!(within(BOUND, || self.state() == before), "{damage}: was {before}\nis {}", self.state());
        let told = || events_about(&self.cluster, about);
        assert!(
            within(BOUND, || told().iter().any(|(_, message)| message.contains(named))),
            "{damage}: no event about {about} names {named}: {:?}",
            told()
        );
        self.works(&format!("after {damage}"));
    }
}

#[test]
fn rules_and_parameters_of_the_node_come_back_at_once() {
    let site = Site::new(&nothing());
    let node = |damage: &str, named: &str| site.is_repaired(damage, "node-1", named);
    node("ip rule del priority 512", "rule priority 512 from all lookup 1000: absent");
    node("ip rule del priority 2047", "rule priority 2047 from all fwmark 0x7e0/0x7e0");
    node(
        "ip rule flush; ip rule add priority 32766 lookup main; ip rule add priority 32767 lookup default",
        "rule priority 2048 from all fwmark",
    );
    node("sysctl -qw net.ipv4.ip_forward=0", "sysctl net/ipv4/ip_forward: 0, not 1");
    node("sysctl -qw net.ipv4.conf.all.rp_filter=1", "sysctl net/ipv4/conf/all/rp_filter: 1, not 0");
    node("sysctl -qw net.ipv4.conf.default.rp_filter=1", "sysctl net/ipv4/conf/default/rp_filter: 1, not 0");
    let mut reasons = events_about(&site.cluster, "node-1");
    reasons.retain(|(reason, _)| reason != "NetworkPolicy");
    assert!(reasons.iter().all(|(reason, _)| reason == "ResourceInvalid"), "{reasons:?}");
}

#[test]
fn an_eni_gets_back_what_a_network_manager_took() {
    let site = Site::new(&nothing());
    let table = shown(&site.cluster, "/leases/0/eni/table");
    let mac = site.cluster.node(0).sh("cat /sys/class/net/eth1/address");
    let node = |damage: &str, named: &str| site.is_repaired(damage, "node-1", named);
    node(&format!("ip route flush table {table}"), "route default via");
    node("ip rule del priority 2048", "rule priority 2048 from all fwmark 0x20/0x7e0");
    node("ip rule del priority 2049", "rule priority 2049 from all iif eth1 blackhole: absent");
    node("ip addr flush dev eth1", "dev eth1: absent");
    node("ip link set eth1 down", "state of eth1: down, not up");
    node("ip link set eth1 mtu 1400", "mtu of eth1: 1400, not 1500");
    node("sysctl -qw net.ipv4.conf.eth1.rp_filter=2", "sysctl net/ipv4/conf/eth1/rp_filter: 2, not 0");
    node("ip link set eth1 address 02:00:00:00:00:77", &format!("mac of eth1: 02:00:00:00:00:77, not {}", mac.trim()));
    assert_eq!(shown(&site.cluster, "/pool/enis/0/state"), "serving");
}

#[test]
fn a_pod_gets_back_what_belongs_to_it_on_the_node() {
    let site = Site::new(&nothing());
    let (veth, ip) = (site.veth(), &site.a.ip);
    let pod = |damage: String, named: &str| site.is_repaired(&damage, "a", named);
    pod("ip route flush table 1000".into(), &format!("route {ip}/32 dev {veth} table 1000"));
    pod(format!("ip route replace {ip}/32 dev eth1 table 1000 scope link"), &format!("route {ip}/32"));
    pod("ip neigh flush all nud permanent".into(), &format!("neigh {ip} dev {veth}: absent"));
    pod(format!("ip neigh replace {ip} lladdr 02:00:00:00:00:77 dev {veth} nud permanent"), "02:00:00:00:00:77, not");
    pod(format!("tc qdisc del dev {veth} clsact"), &format!("filter priority 2049 dev {veth}: absent"));
    pod(format!("tc filter del dev {veth} ingress"), &format!("filter priority 2049 dev {veth}: absent"));
    pod(format!("ip link set {veth} down"), &format!("state of {veth}: down, not up"));
    pod(format!("ip link set {veth} mtu 1400"), &format!("mtu of {veth}: 1400, not 1500"));
    pod(format!("ip link set {veth} address 02:00:00:00:00:77"), &format!("mac of {veth}: 02:00:00:00:00:77, not"));
    pod(format!("ip link set {veth} alias mine"), &format!("alias of {veth}: 'mine', not"));
    let reasons = events_about(&site.cluster, "a");
    let checks = reasons.iter().filter(|(reason, _)| reason == "ConfigCheck").count();
    assert!(checks >= 9, "{reasons:?}");
}

#[test]
fn what_is_of_ipv6_comes_back_as_well() {
    let site = Site::new(&json!({"ip_stack": "dual"}));
    let (veth, cluster) = (site.veth(), &site.cluster);
    let ip = site.a.ips.iter().find(|ip| ip.contains(':')).expect("it has an IPv6 address");
    let state = || {
        cluster.node(0).sh(&format!(
            "ip -6 rule | sort; ip -6 route show table all | grep -e 'proto 116' -e 'table 1000' | sort
             ip -6 neigh show nud permanent | sort; ip -6 -o addr show dev {veth} | sed 's/.*inet6/inet6/'
             cd /proc/sys/net/ipv6/conf; head all/forwarding eth1/accept_ra eth1/accept_dad {veth}/accept_ra"
        ))
    };
    let before = state();
    let table = shown(cluster, "/leases/0/eni/table");
    for damage in [
        "ip -6 rule del priority 512".to_owned(),
        "ip -6 rule flush; ip -6 rule add priority 32766 lookup main".into(),
        "ip -6 rule del priority 2047".into(),
        "ip -6 rule del priority 2048".into(),
        "ip -6 rule del priority 2049".into(),
        "sysctl -qw net.ipv6.conf.all.forwarding=0".into(),
        "ip -6 route flush table 1000".into(),
        format!("ip -6 route flush table {table}"),
        format!("ip -6 route replace {ip}/128 dev eth1 table 1000"),
        "ip -6 neigh flush all nud permanent".into(),
        format!("ip -6 addr flush dev {veth}"),
        "ip link set eth1 down".into(),
        format!("ip link set {veth} down"),
        format!("ip link del {veth}"),
    ] {
        cluster.node(0).sh(&damage);
        assert!(within(BOUND, || state() == before), "{damage}: was {before}\nis {}", state());
        soon(&format!("a pod reaches the outside after {damage}"), || site.a.pod.ping(OUTSIDE_V6).is_some());
        soon(&format!("the node reaches the pod after {damage}"), || cluster.node(0).ping(ip).is_some());
        site.works(&format!("after {damage}"));
    }
}

#[test]
fn a_pod_whose_link_was_deleted_is_wired_anew_where_its_namespace_is_left() {
    let site = Site::new(&nothing());
    let veth = site.veth();
    let echo = site.a.pod.udp_echo(&format!("{}:7100", site.a.ip));
    site.cluster.node(0).sh(&format!("ip link del {veth}"));
    soon("the pod reaches the outside again", || site.a.pod.ping(OUTSIDE).is_some());
    site.works("after its link was deleted");
    assert_eq!(site.cluster.node(0).udp(&format!("{}:7100", site.a.ip), 3).len(), 3, "its own socket lives on");
    drop(echo);
    let told = || events_about(&site.cluster, "a");
    soon("an event says so", || told().iter().any(|(_, m)| m.contains(&format!("link {veth}: absent"))));
    assert_eq!(site.cluster.call_for(&site.a, "CHECK").code, Some(0));

    // A sandbox that died takes its link along. That is no damage.
    let Site { cluster, a, b } = site;
    let veth = ours::host_veth(&b.sandbox.pod, "eth0");
    b.pod.remove();
    soon("its link is gone", || !cluster.node(0).sh("ip -o link").contains(&veth));
    thread::sleep(Duration::from_millis(300));
    assert!(!cluster.node(0).sh("ip -o link").contains(&veth), "a link for a pod without a namespace");
    assert!(!events_about(&cluster, "b").iter().any(|(reason, _)| reason == "ConfigCheck"));
    cluster.del(a);
}

#[test]
fn what_is_inside_a_pod_is_put_right_by_the_comparison_and_its_own_will_is_left() {
    let site = Site::new(&json!({"orphan_release_after": "1s"}));
    site.a.pod.sh("ip addr flush dev eth0; ip neigh flush all nud permanent; ip link set eth0 mtu 1400");
    soon("the pod reaches the outside again", || site.a.pod.ping(OUTSIDE).is_some());
    site.works("after a flush inside");
    assert_eq!(site.a.pod.sh("cat /sys/class/net/eth0/mtu").trim(), "1500");
    let told = || events_about(&site.cluster, "a");
    soon("an event says so", || {
        told().iter().any(|(_, m)| m.contains(&format!("addr {}/32 dev eth0: absent", site.a.ip)))
    });

    // A link set down inside is seen from outside.
    site.a.pod.sh("ip link set eth0 down");
    soon("the pod reaches the outside again", || site.a.pod.ping(OUTSIDE).is_some());

    site.b.pod.sh("ip link add tunnel type veth peer name far; ip link set far up; ip link set tunnel up; ip route replace default dev tunnel");
    thread::sleep(Duration::from_secs(7));
    assert!(site.b.pod.sh("ip route").contains("default dev tunnel"), "the pod's own route is gone");
}

#[test]
fn the_comparison_comes_to_the_last_of_many_pods() {
    let mut cluster = idle_node("ecs.sim.8xlarge", &json!({"orphan_release_after": "1s", "max_pool_size": 80}));
    cluster.start(0);
    cluster.wait_ready(0);
    // More than are compared at once.
    let pods: Vec<Member> = (0..70).map(|i| cluster.add(0, &format!("many-{i}"))).collect();
    for member in &pods {
        member.pod.sh("ip route flush default");
    }
    soon("every pod has its default route again", || {
        pods.iter().all(|member| member.pod.sh("ip route").contains("default"))
    });
    assert!(pods.iter().all(|member| member.pod.reaches(OUTSIDE)));
}

/// Things of others that look as much like ours as they can, in the places that are ours.
const FOREIGN: &str = "
    ip rule add priority 512 to 203.0.113.77 lookup main
    ip rule add priority 2048 from 198.51.100.7 lookup main
    ip rule add priority 2048 fwmark 0x4000/0x4000 lookup main
    ip rule add priority 2049 from 198.51.100.7 iif lo blackhole
    ip rule add priority 2049 from 198.51.100.7 iif gone0 blackhole
    ip rule add priority 100 from 198.51.100.8 lookup 1000
    ip route add 198.51.100.9 dev eth0 table 1000
    ip route add 198.51.100.9 dev eth1 table TABLE
    ip route add default via 192.168.0.77 dev eth0 onlink table TABLE metric 50
    ip addr add 198.51.100.10/32 dev eth1
    ip addr add 198.51.100.11/32 dev VETH
    ip neigh replace 198.51.100.12 lladdr 02:00:00:00:00:12 dev VETH nud permanent
    ip neigh replace 198.51.100.12 lladdr 02:00:00:00:00:12 dev eth1 nud permanent
    tc qdisc add dev VETH root handle 77: pfifo limit 77
    tc filter add dev VETH ingress priority 7777 protocol ip u32 match u32 0 0
    tc filter add dev VETH egress priority 7777 protocol ip u32 match u32 0 0
    ip link add mine type veth peer name cali0000000mine
    ip link add calidead0000001 type veth peer name yours";

const FOREIGN_SEEN: &str = "
    ip rule | sort | grep -e '198.51.100' -e '203.0.113.77' -e 0x4000 -e 'iif lo'
    ip route show table all | grep -e 198.51.100.9 -e 'metric 50'
    ip -o addr | grep -o -e '198.51.100.1[01]/32'
    ip neigh show nud permanent | grep 198.51.100.12
    tc qdisc show dev VETH | grep pfifo
    tc filter show dev VETH ingress | grep -m1 'pref 7777'
    tc filter show dev VETH egress | grep -m1 'pref 7777'
    ip -o link | grep -o -e calidead0000001 -e cali0000000mine";

#[test]
fn nothing_foreign_is_touched_whatever_is_repaired_around_it() {
    let site = Site::new(&json!({"orphan_release_after": "1s"}));
    let table = shown(&site.cluster, "/leases/0/eni/table").to_string();
    let fill = |text: &str| text.replace("TABLE", &table).replace("VETH", &site.veth());
    let node = site.cluster.node(0);
    for line in fill(FOREIGN).lines() {
        node.sh(line);
    }
    let seen = || node.sh(&fill(FOREIGN_SEEN));
    let foreign = seen();
    assert_eq!(foreign.lines().count(), 20, "{foreign}");

    let before = site.state();
    for damage in [
        "ip rule del priority 512 lookup 1000; ip rule del priority 2048 fwmark 0x20/0x7e0; ip rule del priority 2049 iif eth1".into(),
        "ip route flush table 1000 proto 116".into(),
        fill("ip route flush table TABLE proto 116"),
        fill("tc filter del dev VETH ingress priority 2049"),
        fill("ip neigh del $(ip -4 neigh show dev VETH nud permanent | grep -v 198.51 | cut -d' ' -f1) dev VETH"),
        fill("ip link set VETH mtu 1300; ip link set VETH mtu 1500; sysctl -qw net.ipv4.conf.eth1.rp_filter=1"),
    ] {
        node.sh(&damage);
        soon(&format!("{damage} is put right"), || site.state() == before);
    }
    // A comparison and several sweeps.
    thread::sleep(Duration::from_secs(7));
    assert_eq!(seen(), foreign);
    site.works("among strangers");
    let told = || events_about(&site.cluster, "node-1");
    soon("the strange address is told of", || {
        told().iter().any(|(_, m)| m.contains("198.51.100.10/32 on eth1 is not ours"))
    });
}

#[test]
fn an_eni_that_is_pulled_out_is_noticed_at_once_and_serves_again_when_it_is_back() {
    let site = Site::new(&nothing());
    let cluster = &site.cluster;
    let id = shown(cluster, "/leases/0/eni/id").as_str().expect("an id").to_owned();
    cluster.world.cloud.forget_calls();
    cluster.world.fabric.unplug(&id);
    soon("the pool knows", || shown(cluster, "/pool/enis/0/link").is_null());
    soon("the cloud is looked at", || cluster.world.cloud.calls("DescribeNetworkInterfaces") > 0);
    for pod in ["a", "b"] {
        let told = || events_about(cluster, pod);
        soon("the pods hear of it", || told().iter().any(|(_, m)| m.contains(&format!("ENI {id} is gone"))));
    }
    assert!(site.a.pod.reaches(&site.b.ip), "pods of the node reach each other all the same");
    cluster.world.replug(0, &id);
    soon("it serves again", || shown(cluster, "/pool/enis/0/state") == "serving");
    soon("the pods reach the outside again", || site.a.pod.ping(OUTSIDE).is_some());
    site.works("after the ENI is back");
}

#[test]
fn who_keeps_undoing_us_is_met_with_patience_and_told_of_once() {
    let site = Site::new(&nothing());
    let node = site.cluster.node(0);
    let script = "for i in $(seq 20000); do ip rule del priority 512 2>/dev/null; sleep 0.002; done";
    let enemy = node.spawn(Command::new("sh").args(["-c", script]));
    soon("the log says it", || site.cluster.log(0).contains("somebody keeps undoing"));
    // From now on each repair waits longer than the one before.
    thread::sleep(Duration::from_secs(2));
    drop(enemy);
    let log = site.cluster.log(0);
    let repairs = log.lines().filter(|line| line.contains("put right what somebody else changed")).count();
    assert!((10..100).contains(&repairs), "{repairs} repairs");
    let told = || events_about(&site.cluster, "node-1");
    soon("an event says that somebody does", || told().iter().any(|(_, m)| m.contains("keeps undoing")));
    assert_eq!(log.matches("somebody keeps undoing").count(), 1, "{log}");
    soon("it is put right in the end", || node.sh("ip rule").contains("512:"));
}

/// Each right after an ADD, while what the ADD itself has brought about is still on its way to the daemon.
#[test]
fn what_is_taken_from_a_pod_at_its_very_birth_comes_back() {
    let site = Site::new(&nothing());
    let cluster = &site.cluster;
    for (i, damage) in [
        "ip route flush table 1000",
        "ip neigh flush all nud permanent",
        "tc qdisc del dev VETH clsact",
        "ip link set VETH down",
        "ip link set VETH address 02:00:00:00:00:77",
    ]
    .into_iter()
    .enumerate()
    {
        let pod = cluster.add(0, &format!("newborn-{i}"));
        let veth = ours::host_veth(&pod.sandbox.pod, "eth0");
        cluster.node(0).sh(&damage.replace("VETH", &veth));
        soon(&format!("it is as it was after {damage}"), || {
            events_about(cluster, &format!("newborn-{i}")).iter().any(|(_, m)| m.contains("put right"))
        });
        soon(&format!("it reaches the outside after {damage}"), || pod.pod.ping(OUTSIDE).is_some());
        cluster.del(pod);
    }
}

#[test]
fn pods_that_come_and_go_are_no_damage() {
    let site = Site::new(&nothing());
    let cluster = &site.cluster;
    let looks = || cluster.log(0).matches("plans looked at").count();
    let before = looks();
    let (lost, sent) = pings_during(&site.a.pod, &site.b.ip, || {
        for round in 0..3 {
            let pods: Vec<Member> = (0..4).map(|i| cluster.add(0, &format!("p{round}-{i}"))).collect();
            pods.into_iter().for_each(|pod| {
                cluster.del(pod);
            });
        }
    });
    assert_eq!(lost, 0, "of {sent}");
    thread::sleep(Duration::from_millis(500));
    let log = cluster.log(0);
    let repairs: Vec<&str> =
        log.lines().filter(|line| line.contains("put right") || line.contains("repair of")).collect();
    assert!(repairs.is_empty(), "{repairs:?}");
    // Nor does an ADD have its pod looked at, unless this machine keeps the daemon from hearing of it in time.
    let looked = looks() - before;
    assert!(looked < 12, "{looked} looks for 12 pods");
}

/// The daemon can open nothing for a while, not even a kernel parameter. Pods are compared minutes later only.
#[test]
fn what_could_not_be_looked_at_when_it_was_damaged_is_repaired_all_the_same() {
    let mut site = Site::new(&nothing());
    let pid = site.cluster.daemon(0).pid();
    let before = site.state();
    let limit = |files| {
        let pid = Pid::from_raw(pid as i32);
        prlimit(pid, Resource::Nofile, files).expect("we may")
    };
    let files = || {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
        open.filter_map(|file| file.file_name().to_str()?.parse().ok()).collect::<Vec<u64>>()
    };
    // poll(2) takes no more than this either.
    let room = files().len() as u64 + 8;
    let own = limit(Rlimit { current: Some(room), ..getrlimit(Resource::Nofile) });
    // Whoever connects takes one, for five seconds. A repair may find one free all the same: then it is hurt again.
    let mut guests = Vec::new();
    let failed = || site.cluster.log(0).matches("cannot be put right: read sysctl").count();
    let mut stays_hurt = || {
        soon("it can open nothing", || {
            guests.push(site.cluster.dial(0));
            files().into_iter().filter(|file| *file < room).count() as u64 == room
        });
        let before = failed();
        site.cluster.node(0).sh("ip rule del priority 512; ip route flush table 1000");
        within(BOUND, || {
            guests.push(site.cluster.dial(0));
            failed() >= before + 3
        })
    };
    assert!((0..3).any(|_| stays_hurt()), "it is repaired, or not tried");
    limit(own);
    drop(guests);
    assert!(within(BOUND, || site.state() == before), "was {before}\nis {}", site.state());
    site.works("once it can be looked at");
}

#[test]
fn a_daemon_that_hears_nothing_compares_all_the_same() {
    let mut cluster = idle_node("ecs.sim.large", &json!({"orphan_release_after": "1s"}));
    deaf(|| cluster.start(0));
    cluster.wait_ready(0);
    let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    let site = Site { cluster, a, b };
    assert!(site.cluster.log(0).contains("seen by comparison only: listen to what happens in the kernel"));
    site.is_repaired("ip rule del priority 512", "node-1", "rule priority 512");
    site.is_repaired("ip route flush table 1000", "a", "route");
}

/// How often any of the daemon's threads has gone to sleep.
fn sleeps(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let count = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or_default()
    };
    tasks.map(count).sum()
}

#[test]
fn what_happens_everyday_wakes_nobody() {
    let mut site = Site::new(&nothing());
    thread::sleep(Duration::from_secs(1));
    let pid = site.cluster.daemon(0).pid();
    let before = sleeps(pid);
    for i in 0..20 {
        site.cluster.node(0).sh(&format!(
            "ip neigh replace 192.168.0.{} lladdr 02:00:00:00:00:01 dev eth0 nud reachable
             ip neigh replace 192.168.0.{} lladdr 02:00:00:00:00:01 dev eth0 nud stale
             ip route add 198.51.100.{i} dev eth0; ip route del 198.51.100.{i} dev eth0
             ip rule add priority 300 from 198.51.100.{i}
             ip addr add 198.51.100.{i}/32 dev lo",
            100 + i,
            100 + i
        ));
    }
    let woken = sleeps(pid) - before;
    assert!(woken <= 20, "{woken} wake-ups for 120 things that are nothing to us");
}

#[test]
fn a_route_of_ours_to_an_address_that_nobody_holds_is_swept() {
    let site = Site::new(&json!({"orphan_release_after": "1s"}));
    let node = site.cluster.node(0);
    node.sh("ip route add 198.51.100.20 dev eth0 table 1000 proto 116; ip route add 198.51.100.21 dev eth0 table 1000");
    let routes = || node.sh("ip route show table 1000");
    soon("it is gone", || !routes().contains("198.51.100.20"));
    assert!(routes().contains("198.51.100.21") && routes().contains(&site.a.ip), "{}", routes());
}

#[test]
fn what_was_damaged_while_no_daemon_was_there_is_put_right_at_its_start() {
    let mut site = Site::new(&json!({"orphan_release_after": "1s"}));
    let (before, veth) = (site.state(), site.veth());
    site.cluster.kill(0);
    site.cluster.node(0).sh(&format!(
        "ip rule del priority 512; ip route flush table 1000; ip neigh flush all nud permanent; tc qdisc del dev {veth} clsact"
    ));
    site.cluster.start_ready(0);
    soon("all is as it was", || site.state() == before);
    site.works("after the start");

    // The lease is old enough by then: no plugin is at work on the link. It is made anew as it was, and not as those of new pods.
    site.cluster.kill(0);
    site.cluster.node(0).sh(&format!("ip link del {veth}"));
    site.cluster.configure(0, &json!({"orphan_release_after": "1s", "mtu": 1400}));
    site.cluster.start_ready(0);
    soon("the pod has its link again", || site.a.pod.ping(OUTSIDE).is_some());
    site.works("after the second start");
    assert_eq!(site.cluster.node(0).sh(&format!("cat /sys/class/net/{veth}/mtu")).trim(), "1500");
    assert_eq!(site.cluster.call_for(&site.a, "CHECK").code, Some(0));
}
