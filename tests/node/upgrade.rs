//! A node that the old Terway ran: its pods keep their addresses, and do not lose a packet.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use terway::ours::host_veth;

use super::{events_about, idle_node, shown};
use crate::sim::cluster::{Cluster, Member, SOON, node_name, soon, within};
use crate::sim::fabric::{OUTSIDE, OUTSIDE_V6};
use crate::sim::load::{self, Tally};
use crate::sim::old::{Generation, OldEni, Record};
use crate::sim::traffic::{LOST, Place};
use crate::sim::world::Ecs;

const STORE: &str = "/var/lib/cni/terway";

/// A node with two pods that the old Terway has wired, over one ENI.
struct Inherited {
    cluster: Cluster,
    eni: OldEni,
    a: Member,
    b: Member,
}

impl Inherited {
    fn new(generation: Generation) -> Inherited {
        Inherited::with(&json!({"orphan_release_after": "1s"}), generation)
    }

    /// The same with an address of IPv6 beside each.
    fn dual(generation: Generation) -> Inherited {
        Inherited::with(&json!({"orphan_release_after": "1s", "ip_stack": "dual"}), generation)
    }

    fn with(over: &Value, generation: Generation) -> Inherited {
        let cluster = idle_node("ecs.sim.large", over);
        let eni = cluster.old_eni(0, 4);
        let [mut a, mut b] =
            [("a", 1), ("b", 2)].map(|(name, n)| cluster.old_pod(0, name, &eni, eni.ips[n], generation));
        if over["ip_stack"] == "dual" {
            let ips = cluster.old_eni_v6(0, &eni, 4);
            [&mut a, &mut b].into_iter().zip(ips).for_each(|(pod, ip)| cluster.old_pod_v6(0, pod, &eni, ip));
            soon("the old node speaks IPv6", || a.pod.ping(OUTSIDE_V6).is_some() && a.pod.ping(&b.ips[1]).is_some());
        }
        let records = [&a, &b].map(|member| Record::of(member, &eni, generation));
        cluster.old_store(0, &records, 7);
        assert!(a.pod.ping(&b.ip).is_some() && a.pod.ping(OUTSIDE).is_some(), "the old node works");
        Inherited { cluster, eni, a, b }
    }

    /// The files of the old Terway, as they are.
    fn store(&self) -> String {
        self.cluster.node(0).sh(&format!("cd {STORE}; sha256sum *; ls -l --time-style=full-iso"))
    }

    /// What the old Terway has in the kernel for its pods.
    fn old_wiring(&self) -> Vec<String> {
        let seen = self.cluster.node(0).sh("ip rule; ip route show table main");
        let theirs = |line: &&str| {
            line.contains("lookup main") && line.starts_with("512:")
                || line.starts_with("2048:") && !line.contains("fwmark")
                || line.contains("dev cali")
        };
        seen.lines().filter(theirs).map(String::from).collect()
    }

    fn macs(&self) -> String {
        let inside = |member: &Member| member.pod.sh("cat /sys/class/net/eth0/address; ip neigh show nud permanent");
        let outside = self.cluster.node(0).sh("ip -br link show type veth | awk '{print $1, $3}' | grep ^cali");
        format!("{outside}{}{}", inside(&self.a), inside(&self.b))
    }
}

/// Nothing is lost, of something.
fn nothing_lost(tally: Tally) {
    assert!(tally.sent > 200 && tally.lost == 0 && tally.tcp > 0, "{tally:?}");
}

/// Traffic from pod to pod, from a pod to the outside and from the node to a pod, all at once.
fn under_load(a: &Member, b: &Member, cluster: &mut Cluster, story: impl FnOnce(&mut Cluster)) {
    let outside = std::sync::Arc::clone(&cluster.world.fabric);
    let mut tallies = Vec::new();
    let pod_to_pod = load::during(&a.pod, &b.pod, &b.ip, || {
        let there = load::during(&a.pod, outside.outside(), OUTSIDE, || {
            let back = load::during(outside.outside(), &b.pod, &b.ip, || story(cluster));
            tallies.push(back);
        });
        tallies.push(there);
    });
    tallies.push(pod_to_pod);
    tallies.into_iter().for_each(nothing_lost);
}

fn takes_over(generation: Generation) {
    let mut old = Inherited::new(generation);
    let (store, macs) = (old.store(), old.macs());
    assert_eq!(old.old_wiring().len(), 6);
    under_load(&old.a, &old.b, &mut old.cluster, |cluster| cluster.start_ready(0));
    // What leads the pods to their ENI is the one thing that stays.
    let own = |member: &Member| format!("2048:\tfrom {} lookup {}", member.ip, old.eni.table);
    assert_eq!(old.old_wiring(), [own(&old.a), own(&old.b)]);
    assert_eq!((old.store(), old.macs()), (store, macs));
    let cluster = &old.cluster;
    let leased = |cluster: &Cluster| -> BTreeSet<String> {
        let leases = cluster.show(0)["leases"].as_array().expect("a list").clone();
        leases.iter().map(|l| format!("{}={}", l["pod"]["name"], l["ip"]["v4"]).replace('"', "")).collect()
    };
    let both = BTreeSet::from([format!("a={}", old.a.ip), format!("b={}", old.b.ip)]);
    assert_eq!(leased(cluster), both);
    for member in [&old.a, &old.b] {
        cluster.call_for(member, "CHECK").ok();
        assert!(cluster.node(0).ping(&member.ip).is_some(), "no ping from the node");
    }

    // A port of the node that leads to a pod which its address leads to its ENI.
    let port = format!("{}:30080", cluster.node(0).addr);
    cluster.node(0).sh(&format!(
        "iptables -w -t nat -A PREROUTING -d {} -p tcp --dport 30080 -j DNAT --to-destination {}:8080",
        cluster.node(0).addr,
        old.a.ip
    ));
    let _echo = old.a.pod.tcp_echo(&format!("{}:8080", old.a.ip));
    soon("it answers by the way the question came", || {
        cluster.world.fabric.outside().tcp_within(&port, 2 * LOST).is_ok()
    });

    // What comes now is ours altogether, and knows those.
    let c = cluster.add(0, "c");
    assert!(c.ip != old.a.ip && c.ip != old.b.ip && !old.eni.ips[0].is_unspecified());
    assert!(c.pod.ping(&old.a.ip).is_some() && old.b.pod.ping(&c.ip).is_some());
    thread::sleep(Duration::from_millis(2500)); // two sweeps
    assert!(old.a.pod.ping(&old.b.ip).is_some() && old.a.pod.ping(OUTSIDE).is_some());

    // Not even a lost ledger loses them; and nobody reads the old files again.
    old.cluster.kill(0);
    old.cluster.node(0).sh("rm -r /run/terway");
    let said = old.cluster.node(0).read_file("/var/log/terwayd.log").unwrap_or_default().len();
    old.cluster.start_ready(0);
    let log = old.cluster.log(0);
    assert!(!log[said..].contains("the old Terway knew"), "{log}");
    assert_eq!(leased(&old.cluster).len(), 3);
    let Inherited { cluster, a, b, .. } = old;
    cluster.call_for(&a, "CHECK").ok();
    let (ip, kept) = (a.ip.clone(), b.ip.clone());
    cluster.del(a);
    soon("the address of the deleted pod rests", || cluster.ledger(0, "resting") == [format!("{ip}.json")]);
    assert!(!cluster.node(0).sh("ip rule").contains(&format!("from {ip} ")));
    assert!(b.pod.ping(&c.ip).is_some());
    assert!(leased(&cluster).contains(&format!("b={kept}")));
}

#[test]
fn pods_of_the_old_terway_are_taken_over_and_lose_no_packet() {
    takes_over(Generation::Second);
}

#[test]
fn so_are_those_of_its_first_generation_whose_containers_nobody_knows() {
    takes_over(Generation::First);
}

/// What is felix's in netfilter, in both kinds of iptables, and its sets.
fn felix(cluster: &Cluster) -> String {
    let saved = "iptables-nft-save; ip6tables-nft-save; iptables-legacy-save; ip6tables-legacy-save";
    cluster.node(0).sh(&format!("({saved}) 2>&1 | grep -e cali- -e cali: || true; ipset list -n | grep ^cali || true"))
}

/// Felix has ended with the old Terway: nobody tells what it has left of pods that come.
#[test]
fn pods_that_come_after_felix_are_not_cut_off_and_those_before_it_keep_their_way() {
    for (kind, policy, renderer) in
        [("-nft", "ACCEPT", "iptables"), ("-legacy", "DROP", "iptables"), ("-nft", "ACCEPT", "ebpf")]
    {
        let over = json!({"orphan_release_after": "1s", "policy_renderer": renderer});
        let mut old = Inherited::with(&over, Generation::Second);
        old.cluster.old_felix(0, &[&old.a, &old.b], kind);
        let foreign = [
            "-A FORWARD -i cali+ -m comment --comment \"calico: not by felix\"",
            "-A FORWARD -o cali+ -m set --match-set cali40s:foreign src",
            "-A FORWARD -m comment --comment \"-j cali-FORWARD\"",
        ];
        let node = old.cluster.node(0);
        node.sh("ipset create cali40s:foreign hash:net");
        node.sh(&format!("iptables{kind} -P FORWARD {policy}"));
        foreign.iter().for_each(|rule| drop(node.sh(&format!("iptables{kind} {rule}"))));
        let ends = [&old.a.ip, &old.b.ip];
        assert!(old.a.pod.ping(ends[1]).is_some() && old.b.pod.ping(OUTSIDE).is_some(), "the old node works");

        under_load(&old.a, &old.b, &mut old.cluster, |cluster| cluster.start_ready(0));
        let c = old.cluster.add(0, "c");
        let (node, ends) = (old.cluster.node(0), [&old.a.ip, &old.b.ip]);
        assert!(ends.iter().all(|ip| c.pod.ping(ip).is_some()) && old.b.pod.ping(&c.ip).is_some(), "{kind}");
        assert!(c.pod.ping(OUTSIDE).is_some() && c.pod.ping(&node.addr.to_string()).is_some(), "{kind}");
        assert!(node.ping(&c.ip).is_some() && old.a.pod.ping(ends[1]).is_some() && old.a.pod.ping(OUTSIDE).is_some());
        let left = felix(&old.cluster);
        let lines: Vec<&str> = left.lines().collect();
        assert!(lines == [foreign[2], "cali40s:foreign"], "{kind}: {left}");
        let saved = node.sh(&format!("iptables{kind}-save"));
        assert!(foreign.iter().all(|rule| saved.contains(rule)), "{kind}: {saved}");
        assert_eq!(saved.matches("terway lets pods through").count(), if policy == "DROP" { 2 } else { 0 });

        // It is not looked for again.
        old.cluster.kill(0);
        old.cluster.start_ready(0);
        old.cluster.add(0, "d");
        assert_eq!(old.cluster.log(0).matches("that felix had left in netfilter are removed").count(), 1);
    }
}

/// Felix's rules hold until ours do.
#[test]
fn a_pod_that_felix_held_to_its_policies_is_held_at_every_moment() {
    for renderer in ["iptables", "ebpf"] {
        let mut old = Inherited::with(&json!({"policy_renderer": renderer}), Generation::Second);
        old.cluster.old_felix(0, &[&old.a, &old.b], "");
        let veth = host_veth(&old.b.sandbox.pod, "eth0");
        old.cluster.node(0).sh(&format!("iptables -I cali-FORWARD -o {veth} -j DROP"));
        old.cluster.kube.put(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "default", "name": "closed"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
        }));
        let at = format!("{}:9999", old.b.ip);
        let server = old.b.pod.run(|| UdpSocket::bind(&at).expect("a free port"));
        let client = old.a.pod.run(|| UdpSocket::bind("0.0.0.0:0").expect("a free port"));
        let (sent, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let begun = Instant::now();
                while !done.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(60) {
                    sent.fetch_add(usize::from(client.send_to(b"?", &at).is_ok()), Ordering::Relaxed);
                    thread::sleep(Duration::from_micros(200));
                }
            });
            old.cluster.start_ready(0);
            soon("what felix has left is gone", || felix(&old.cluster).is_empty());
            thread::sleep(Duration::from_millis(100));
            done.store(true, Ordering::Relaxed);
        });
        server.set_nonblocking(true).expect("it is a socket");
        let sent = sent.into_inner();
        assert!(
            sent > 200 && server.recv(&mut [0; 8]).is_err(),
            "{renderer}: something of {sent} packets came through"
        );
        old.cluster.kube.delete("NetworkPolicy", "default", "closed");
        soon("no policy, no felix", || old.a.pod.ping(&old.b.ip).is_some());
    }
}

#[test]
fn felix_that_runs_is_left_alone_until_it_ends() {
    let mut old = Inherited::new(Generation::Second);
    old.cluster.old_felix(0, &[&old.a, &old.b], "");
    old.cluster.node(0).sh("ln -s /bin/sleep /run/calico-felix");
    let elsewhere = old.a.pod.spawn(Command::new("/run/calico-felix").arg("600"));
    let running = old.cluster.node(0).spawn(Command::new("/run/calico-felix").arg("600"));
    let before = felix(&old.cluster);
    old.cluster.start_ready(0);
    soon("it is seen", || old.cluster.log(0).contains("felix runs on this node"));
    assert_eq!(felix(&old.cluster), before);
    drop(running);
    goes_in_time(&old.cluster);
    let c = old.cluster.add(0, "c");
    assert!(c.pod.ping(&old.a.ip).is_some() && c.pod.ping(OUTSIDE).is_some());
    drop(elsewhere);
}

/// Where Calico holds pods to policies, its node's program may be about to start anew whenever it is not there.
#[test]
fn what_is_calicos_stays_whether_or_not_its_node_runs_at_the_moment() {
    let mut old = Inherited::with(&json!({"disable_network_policy": "true"}), Generation::Second);
    old.cluster.old_felix(0, &[&old.a, &old.b], "");
    old.cluster.node(0).sh("ln -s /bin/sleep /run/calico-node");
    let before = felix(&old.cluster);
    let running = old.cluster.node(0).spawn(Command::new("/run/calico-node").arg("600"));
    old.cluster.start_ready(0);
    soon("it is seen", || old.cluster.log(0).contains("Calico's node runs here"));
    drop(running);
    // Another life does not see it, and would take away what it has left once it has looked for it long enough.
    old.cluster.kill(0);
    old.cluster.start_ready(0);
    assert!(!within(Duration::from_secs(14), || felix(&old.cluster) != before), "{}", felix(&old.cluster));
}

#[test]
fn where_nobody_asks_for_policies_what_felix_has_left_goes_too() {
    let mut old = Inherited::with(&json!({"disable_network_policy": "true"}), Generation::Second);
    old.cluster.old_felix(0, &[&old.a, &old.b], "-legacy");
    // Somebody changes netfilter just then, and takes long.
    let lock = old.cluster.node(0).run(|| {
        let file = File::create("/run/xtables.lock").expect("create the lock");
        file.lock().expect("nobody has it");
        file
    });
    old.cluster.start_ready(0);
    let failed = || old.cluster.log(0).contains("new pods are cut off; again in");
    assert!(within(SOON * 3, failed), "{}", old.cluster.log(0));
    assert!(!felix(&old.cluster).is_empty());
    lock.unlock().expect("it is ours");
    goes_in_time(&old.cluster);
    let c = old.cluster.add(0, "c");
    assert!(c.pod.ping(&old.a.ip).is_some() && c.pod.ping(OUTSIDE).is_some());
}

/// Once it has not been seen for a while.
fn goes_in_time(cluster: &Cluster) {
    assert!(within(SOON * 3, || felix(cluster).is_empty()), "{}\n{}", felix(cluster), cluster.log(0));
}

/// Who they are is lost, and with it what policies they had.
#[test]
fn people_hear_of_pods_that_felix_alone_held_to_policies() {
    let mut old = Inherited::new(Generation::Second);
    old.cluster.old_felix(0, &[&old.a, &old.b], "");
    for name in ["ResRelation.db", "pod.db"] {
        old.cluster.old_file(0, name, &[]);
    }
    old.cluster.start_ready(0);
    soon("what felix has left is gone", || felix(&old.cluster).is_empty());
    let named = |words: &str| [&old.a, &old.b].iter().all(|member| words.contains(&format!("one with {}", member.ip)));
    soon("the node is told", || {
        let mut events = events_about(&old.cluster, &node_name(0)).into_iter();
        events.any(|(reason, words)| reason == "NetworkPolicyFailed" && words.contains("re-created") && named(&words))
    });
}

/// Its first generation has a configuration of one plugin, which runtimes take before a list of the same name.
#[test]
fn the_runtime_goes_by_our_network_configuration_and_the_old_one_is_kept() {
    let mut old = Inherited::new(Generation::First);
    let folder = "/etc/cni/net.d";
    let theirs = r#"{"cniVersion": "0.3.1", "name": "terway", "type": "terway", "eniip_virtual_type": "Veth"}"#;
    let node = old.cluster.node(0);
    node.write_file(&format!("{folder}/10-terway.conf"), theirs);
    node.write_file(&format!("{folder}/10-terway.conf.old"), "somebody's");
    old.cluster.start_ready(0);
    let node = old.cluster.node(0);
    let files = |node: &Ecs| node.sh(&format!("ls {folder}"));
    assert_eq!(files(node), "10-terway.conf.old\n10-terway.conf.old-1\n10-terway.conflist\n");
    let kept = ["", "-1"].map(|n| node.read_file(&format!("{folder}/10-terway.conf.old{n}")).expect("it is there"));
    assert_eq!(kept, ["somebody's", theirs]);
    // One of another plugin is somebody's wish.
    old.cluster.kill(0);
    let other = r#"{"cniVersion": "0.3.1", "name": "terway", "type": "bridge"}"#;
    old.cluster.node(0).write_file(&format!("{folder}/10-terway.conf"), other);
    old.cluster.start_ready(0);
    assert_eq!(old.cluster.node(0).read_file(&format!("{folder}/10-terway.conf")).as_deref(), Some(other));
}

/// Traffic of IPv6 from pod to pod and from a pod to the outside.
fn under_load_v6(a: &Member, b: &Member, cluster: &mut Cluster, story: impl FnOnce(&mut Cluster)) {
    let outside = std::sync::Arc::clone(&cluster.world.fabric);
    let mut there = Tally::default();
    let between = load::during(&a.pod, &b.pod, &b.ips[1], || {
        there = load::during(&a.pod, outside.outside(), OUTSIDE_V6, || story(cluster));
    });
    [between, there].into_iter().for_each(nothing_lost);
}

/// The addresses that are leased, of both families.
fn pairs(cluster: &Cluster) -> BTreeSet<(String, String)> {
    let leases = cluster.show(0)["leases"].as_array().expect("a list").clone();
    let text = |lease: &Value, family: &str| lease["ip"][family].as_str().unwrap_or_default().to_owned();
    leases.iter().map(|lease| (text(lease, "v4"), text(lease, "v6"))).collect()
}

fn pair(member: &Member) -> (String, String) {
    (member.ips[0].clone(), member.ips[1].clone())
}

#[test]
fn pods_of_two_families_are_taken_over_with_both_addresses_and_a_lost_ledger_finds_them() {
    let mut old = Inherited::dual(Generation::Second);
    under_load_v6(&old.a, &old.b, &mut old.cluster, |cluster| cluster.start_ready(0));
    let both = BTreeSet::from([pair(&old.a), pair(&old.b)]);
    assert_eq!(pairs(&old.cluster), both);
    let left = old.cluster.node(0).sh("ip -6 rule; ip -6 route show table main");
    assert!(!left.contains("512:\tfrom all to") && !left.contains(&format!("{} dev cali", old.a.ips[1])), "{left}");
    old.cluster.kill(0);
    old.cluster.node(0).sh("rm -r /run/terway");
    under_load_v6(&old.a, &old.b, &mut old.cluster, |cluster| cluster.start_ready(0));
    assert_eq!(pairs(&old.cluster), both);
    let cluster = &old.cluster;
    for member in [&old.a, &old.b] {
        cluster.call_for(member, "CHECK").ok();
        assert!(member.ips.iter().all(|ip| cluster.node(0).ping(ip).is_some()), "{:?}", member.ips);
    }
    let c = cluster.add(0, "c");
    assert!(c.pod.ping(&old.a.ips[1]).is_some() && old.b.pod.ping(&c.ips[1]).is_some());
    let Inherited { cluster, a, b, .. } = old;
    let (gone, ip) = (a.ips.clone(), a.ip.clone());
    cluster.del(a);
    soon("its pair rests", || cluster.ledger(0, "resting").iter().any(|name| name.contains(&ip)));
    let rules = cluster.node(0).sh("ip rule; ip -6 rule");
    assert!(gone.iter().all(|ip| !rules.contains(&format!("from {ip} "))), "{rules}");
    assert!(b.pod.ping(&c.ips[1]).is_some() && b.pod.ping(OUTSIDE_V6).is_some());
}

#[test]
fn without_a_database_pods_of_two_families_keep_both_addresses() {
    let mut old = Inherited::dual(Generation::Second);
    old.cluster.node(0).sh(&format!("rm {STORE}/*"));
    under_load_v6(&old.a, &old.b, &mut old.cluster, |cluster| cluster.start_ready(0));
    assert_eq!(pairs(&old.cluster), BTreeSet::from([pair(&old.a), pair(&old.b)]));
    let news: Vec<Member> = (0..4).map(|n| old.cluster.add(0, &format!("new-{n}"))).collect();
    let taken = [&old.a, &old.b].map(|member| &member.ips);
    assert!(news.iter().flat_map(|new| &new.ips).all(|ip| !taken.iter().any(|ips| ips.contains(ip))));
    assert!(old.a.pod.ping(&old.b.ips[1]).is_some() && news[0].pod.ping(&old.a.ips[1]).is_some());
}

#[test]
fn a_take_over_that_is_killed_again_and_again_is_gone_on_with() {
    let mut old = Inherited::new(Generation::First);
    let mut rng = fastrand::Rng::with_seed(5);
    under_load(&old.a, &old.b, &mut old.cluster, |cluster| {
        for _ in 0..25 {
            let daemon = cluster.launch(0, &[]);
            thread::sleep(Duration::from_millis(rng.u64(5..60)));
            daemon.kill();
        }
        cluster.start_ready(0);
    });
    assert_eq!(shown(&old.cluster, "/pool/leased"), 2);
    for member in [&old.a, &old.b] {
        old.cluster.call_for(member, "CHECK").ok();
    }
    assert_eq!(old.old_wiring().len(), 2, "{:?}", old.old_wiring());
}

#[test]
fn nothing_is_done_beside_an_old_terway_that_runs() {
    let mut old = Inherited::new(Generation::Second);
    let (store, wiring) = (old.store(), old.old_wiring());
    let rules = old.cluster.node(0).sh("ip rule; sysctl -n net.ipv4.conf.all.rp_filter");
    let lock = old.cluster.old_lock(0);
    old.cluster.start(0);
    soon("it ends", || !old.cluster.daemon(0).is_running());
    let log = old.cluster.log(0);
    assert_eq!(old.cluster.ended(0), Some(1));
    assert!(
        log.contains("ResRelation.db: the old Terway still runs on this node") && log.contains("stop it first"),
        "{log}"
    );
    assert_eq!((old.store(), old.old_wiring()), (store, wiring));
    assert_eq!(old.cluster.node(0).sh("ip rule; sysctl -n net.ipv4.conf.all.rp_filter"), rules);
    // To close it is not enough: a child that another test has just forked holds it too.
    lock.unlock().expect("it is ours");
    old.cluster.start_ready(0);
    assert_eq!(shown(&old.cluster, "/pool/leased"), 2);
    // And none starts beside us.
    let taken = old
        .cluster
        .node(0)
        .run(|| std::fs::File::open(format!("{STORE}/ResRelation.db")).expect("it is there").try_lock());
    assert!(matches!(taken, Err(std::fs::TryLockError::WouldBlock)), "{taken:?}");
}

/// Whatever is left of the database, nobody else gets the address of a pod that runs, and the pod runs on.
#[test]
fn without_a_readable_database_running_pods_keep_their_addresses() {
    for (what, ruin) in [
        ("no file", (|_| None) as fn(Vec<u8>) -> Option<Vec<u8>>),
        ("no meta", |mut file| {
            file[..8192].fill(0xff);
            Some(file)
        }),
        ("an empty file", |_| Some(Vec::new())),
        ("half of it", |mut file| {
            file.truncate(3 * 4096 + 100);
            Some(file)
        }),
    ] {
        let mut old = Inherited::new(Generation::Second);
        for name in ["ResRelation.db", "pod.db"] {
            let path = format!("{STORE}/{name}");
            let bytes = old.cluster.node(0).run(|| std::fs::read(&path).expect("it was written"));
            match ruin(bytes) {
                Some(bytes) => old.cluster.old_file(0, name, &bytes),
                None => drop(old.cluster.node(0).sh(&format!("rm {path}"))),
            }
        }
        under_load(&old.a, &old.b, &mut old.cluster, |cluster| cluster.start_ready(0));
        assert_eq!(shown(&old.cluster, "/pool/leased"), 2, "{what}");
        // Every other address of the node is given out.
        let news: Vec<Member> = (0..18).map(|n| old.cluster.add(0, &format!("new-{n}"))).collect();
        assert!(news.iter().all(|new| new.ip != old.a.ip && new.ip != old.b.ip), "{what}");
        old.cluster.refused(&old.cluster.schedule(0, "one-too-many"), 11);
        assert!(old.a.pod.ping(&old.b.ip).is_some() && news[0].pod.ping(&old.a.ip).is_some(), "{what}");
        // What the pod leaves behind is told from what others need.
        old.a.pod.remove();
        soon("its address is freed once nothing is left of it", || shown(&old.cluster, "/pool/leased") == 19);
        assert!(old.b.pod.ping(&news[0].ip).is_some(), "{what}");
    }
}

/// A pod that the old Terway has given an ENI of its own, without a second link to the node.
fn old_exclusive(cluster: &Cluster, name: &str, own: &OldEni) -> Member {
    let mut member = cluster.schedule(0, name);
    member.ip = own.ips[0].to_string();
    let (ip, netns) = (&member.ip, member.sandbox.netns.file_name().unwrap().to_str().unwrap());
    cluster.node(0).sh(&format!("ip link set {} down; ip link set {} netns {netns} name eth0", own.link, own.link));
    member.pod.sh(&format!("ip link set eth0 up; ip addr add {ip}/32 dev eth0"));
    let gateway = cluster.world.cloud.eni(&own.id).expect("it is there").gateway;
    member.pod.sh(&format!("ip route add default via {gateway} dev eth0 onlink"));
    // The far end of a simulated card hears up to a second later that it is up.
    soon("the card talks", || member.pod.ping(OUTSIDE).is_some());
    member
}

/// A pod that the node reaches as those on IPvlan: here a veth plays the node's slave of the ENI.
fn old_on_ipvlan(cluster: &Cluster, name: &str, ip: &str) -> Member {
    let mut member = cluster.schedule(0, name);
    member.ip = ip.to_string();
    let (node, netns) = (cluster.node(0), member.sandbox.netns.file_name().unwrap().to_str().unwrap());
    node.sh(&format!(
        "ip link add ipvl_3 type veth peer name eth0 netns {netns}; ip link set ipvl_3 up; ip route add {ip} dev ipvl_3 scope link"
    ));
    member.pod.sh(&format!(
        "ip link set eth0 up; ip addr add {ip}/32 dev eth0; ip route add {} dev eth0 scope link",
        node.addr
    ));
    member
}

/// What is not on policy routing runs on as it is.
#[test]
fn pods_on_ipvlan_and_with_an_eni_of_their_own_run_on_untouched() {
    let mut old = Inherited::new(Generation::Second);
    let (cluster, shared) = (&old.cluster, &old.eni);
    let on_ipvlan = old_on_ipvlan(cluster, "on-ipvlan", &shared.ips[3].to_string());
    let own = cluster.old_eni(0, 1);
    let exclusive = old_exclusive(cluster, "exclusive", &own);
    let members = [&old.a, &old.b, &on_ipvlan];
    let mut records: Vec<Record> =
        members.into_iter().map(|member| Record::of(member, shared, Generation::Second)).collect();
    records.push(Record::exclusive(&exclusive, &own));
    cluster.old_store(0, &records, 8);
    assert!(cluster.node(0).ping(&on_ipvlan.ip).is_some() && exclusive.pod.ping(OUTSIDE).is_some());

    old.cluster.start_ready(0);
    let cluster = &old.cluster;
    assert_eq!(shown(cluster, "/pool/leased"), 4);
    for (name, why) in [("on-ipvlan", "it is on IPvlan"), ("exclusive", "it has an ENI of its own")] {
        soon("an event says so", || {
            let events = events_about(cluster, name);
            events.iter().any(|(reason, words)| {
                reason == "VirtualModeChanged" && words.contains(why) && words.contains("re-create")
            })
        });
    }
    let news: Vec<Member> = (0..6).map(|n| cluster.add(0, &format!("new-{n}"))).collect();
    assert!(news.iter().all(|new| ![&on_ipvlan.ip, &exclusive.ip].contains(&&new.ip)));
    thread::sleep(Duration::from_millis(2500)); // two sweeps
    assert!(cluster.node(0).ping(&on_ipvlan.ip).is_some() && exclusive.pod.ping(OUTSIDE).is_some());
    assert_eq!(shown(cluster, "/pool/leased"), 10);
    let ip = on_ipvlan.ip.clone();
    cluster.del(on_ipvlan);
    assert!(!cluster.node(0).sh("ip route").contains(&ip), "its route goes with it");
    assert!(cluster.ledger(0, "resting").contains(&format!("{ip}.json")));
}

/// What leads such a pod to its ENI is a rule of its own, which names the table of a link.
#[test]
fn pods_taken_over_follow_their_eni_to_another_link() {
    // Nothing compares all pods for minutes.
    let mut old = Inherited::with(&json!({}), Generation::Second);
    old.cluster.start_ready(0);
    let wired = |old: &Inherited| old.cluster.show(0)["wired"][&old.eni.id]["table"].as_u64();
    let rules = |table: u64, old: &Inherited| {
        BTreeSet::from([&old.a, &old.b].map(|member| format!("2048:\tfrom {} lookup {table}", member.ip)))
    };
    let are_led = |old: &Inherited| {
        let table = wired(old).filter(|_| old.old_wiring().len() == 2);
        table.is_some_and(|table| old.old_wiring().into_iter().collect::<BTreeSet<_>>() == rules(table, old))
    };
    let first = u64::from(old.eni.table);
    soon("the ENI serves", || wired(&old) == Some(first) && are_led(&old));
    old.cluster.world.fabric.unplug(&old.eni.id);
    soon("it is missed", || wired(&old).is_none());
    old.cluster.world.replug(0, &old.eni.id);
    soon("its pods are led to its new link", || wired(&old).is_some_and(|table| table != first) && are_led(&old));
    for member in [&old.a, &old.b] {
        soon("the outside answers", || member.pod.ping(OUTSIDE).is_some());
        old.cluster.call_for(member, "CHECK").ok();
    }

    // A life that died before it had led them there.
    let table = wired(&old).expect("it serves");
    old.cluster.kill(0);
    for member in [&old.a, &old.b] {
        let rule = format!("priority 2048 from {} lookup", member.ip);
        old.cluster.node(0).sh(&format!("ip rule add {rule} 1999; ip rule del {rule} {table}"));
    }
    old.cluster.node(0).sh(&format!("sed -i 's/\"table\":{table}/\"table\":1999/' /run/terway/leases/*.json"));
    old.cluster.start_ready(0);
    soon("they are led all the same", || are_led(&old));
    assert!(old.a.pod.ping(OUTSIDE).is_some() && old.b.pod.ping(OUTSIDE).is_some());
    let Inherited { cluster, a, .. } = old;
    let ip = a.ip.clone();
    cluster.del(a);
    assert!(!cluster.node(0).sh("ip rule").contains(&format!("from {ip} ")));
}

/// A node of the old Terway on which each pod has an ENI to itself goes on as one.
#[test]
fn where_each_pod_has_an_eni_those_of_the_old_terway_run_on_beside_new_ones() {
    let mut cluster = idle_node("ecs.sim.2xlarge", &json!({"daemon_mode": "ENIOnly", "min_pool_size": 0}));
    let own = cluster.old_eni(0, 1);
    let exclusive = old_exclusive(&cluster, "exclusive", &own);
    cluster.old_store(0, &[Record::exclusive(&exclusive, &own)], 8);
    let mut news: Vec<Member> = Vec::new();
    for life in 1..=2 {
        cluster.start_ready(0);
        assert_eq!(shown(&cluster, "/pool/leased"), life, "life {life}");
        news.push(cluster.add(0, &format!("new-{life}")));
        assert!(news.iter().all(|new| new.ip != exclusive.ip));
        soon("all of them talk", || news.iter().chain([&exclusive]).all(|pod| pod.pod.ping(OUTSIDE).is_some()));
        cluster.kill(0);
    }
    cluster.start_ready(0);
    assert!(events_about(&cluster, "exclusive").iter().any(|(_, words)| words.contains("it has an ENI of its own")));
    let ip = exclusive.ip.clone();
    cluster.del(exclusive);
    assert!(cluster.ledger(0, "resting").contains(&format!("{ip}.json")));
}

/// Gives out all that is left of an ENI with ten addresses; nobody gets one of these.
fn fill(cluster: &Cluster, taken: &[&Member]) -> Vec<Member> {
    let room = 10 - taken.len();
    let news: Vec<Member> = (0..room).map(|n| cluster.add(0, &format!("new-{n}"))).collect();
    let all: BTreeSet<&String> = news.iter().chain(taken.iter().copied()).map(|member| &member.ip).collect();
    assert_eq!(all.len(), 10, "{all:?}");
    news
}

#[test]
fn pods_on_ipvlan_and_with_an_eni_keep_their_addresses_though_the_ledger_is_lost() {
    let mut old = Inherited::new(Generation::Second);
    let on_ipvlan = old_on_ipvlan(&old.cluster, "on-ipvlan", &old.eni.ips[3].to_string());
    let own = old.cluster.old_eni(0, 1);
    let exclusive = old_exclusive(&old.cluster, "exclusive", &own);
    let members = [&old.a, &old.b, &on_ipvlan];
    let mut records: Vec<Record> = members.map(|member| Record::of(member, &old.eni, Generation::Second)).into();
    records.push(Record::exclusive(&exclusive, &own));
    old.cluster.old_store(0, &records, 8);
    old.cluster.start_ready(0);
    assert_eq!(shown(&old.cluster, "/pool/leased"), 4);
    old.cluster.kill(0);
    old.cluster.node(0).sh("rm -r /run/terway");
    old.cluster.start_ready(0);
    let names = |cluster: &Cluster| -> BTreeSet<String> {
        let leases = cluster.show(0)["leases"].as_array().expect("a list").clone();
        leases.iter().map(|l| l["pod"]["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&old.cluster), ["a", "b", "exclusive", "on-ipvlan"].map(String::from).into());
    let news = fill(&old.cluster, &[&old.a, &old.b, &on_ipvlan]);
    assert!(news[0].pod.ping(&old.a.ip).is_some() && old.cluster.node(0).ping(&on_ipvlan.ip).is_some());
    assert!(exclusive.pod.ping(OUTSIDE).is_some());
    let cluster = &old.cluster;
    let ips = [&on_ipvlan, &exclusive].map(|member| format!("{}.json", member.ip));
    for member in [on_ipvlan, exclusive] {
        cluster.del(member);
    }
    assert!(ips.iter().all(|ip| cluster.ledger(0, "resting").contains(ip)));
}

#[test]
fn so_they_do_without_a_database_until_they_go() {
    let mut old = Inherited::new(Generation::Second);
    let on_ipvlan = old_on_ipvlan(&old.cluster, "on-ipvlan", &old.eni.ips[3].to_string());
    let own = old.cluster.old_eni(0, 1);
    let exclusive = old_exclusive(&old.cluster, "exclusive", &own);
    old.cluster.node(0).sh(&format!("rm {STORE}/*"));
    old.cluster.start_ready(0);
    assert_eq!(shown(&old.cluster, "/pool/leased"), 4);
    let _news = fill(&old.cluster, &[&old.a, &old.b, &on_ipvlan]);
    thread::sleep(Duration::from_millis(2500)); // two sweeps
    assert_eq!(shown(&old.cluster, "/pool/leased"), 11);
    assert!(old.cluster.node(0).ping(&on_ipvlan.ip).is_some() && exclusive.pod.ping(OUTSIDE).is_some());
    let cluster = &old.cluster;
    let rests = |ip: &str| cluster.ledger(0, "resting").contains(&format!("{ip}.json"));
    // By a DEL, which finds it by its namespace.
    let ip = on_ipvlan.ip.clone();
    cluster.del(on_ipvlan);
    assert!(rests(&ip) && !cluster.node(0).sh("ip route").contains(&ip));
    // And without one, once its namespace is gone.
    exclusive.pod.remove();
    soon("its address rests", || rests(&exclusive.ip));
    assert_eq!(shown(cluster, "/pool/leased"), 9);
}

#[test]
fn rules_of_old_pods_that_are_gone_go_and_those_of_others_stay() {
    let mut old = Inherited::new(Generation::First);
    let (cluster, free) = (&old.cluster, old.eni.ips[3]);
    let mut gone = cluster.schedule(0, "gone");
    gone.ip = free.to_string();
    let records = [&old.a, &old.b, &gone].map(|member| Record::of(member, &old.eni, Generation::First));
    cluster.old_store(0, &records, 9);
    let foreign = [
        "512:\tfrom all to 192.168.40.7 lookup main",
        "2048:\tfrom 192.168.40.7 lookup 1003",
        "2048:\tfrom 192.168.40.0/24 lookup 1003",
    ];
    for rule in foreign {
        let (priority, rest) = rule.split_once(":\t").unwrap();
        cluster.node(0).sh(&format!("ip rule add priority {priority} {rest}"));
    }
    cluster.node(0).sh(&format!(
        "ip rule add priority 512 to {free} lookup main; ip rule add priority 2048 from {free} lookup 1003"
    ));
    drop(gone);
    old.cluster.start_ready(0);
    let rules = old.cluster.node(0).sh("ip rule");
    for rule in foreign {
        assert!(rules.contains(rule), "{rule} is gone: {rules}");
    }
    assert!(!rules.contains(&free.to_string()), "{rules}");
}

#[test]
fn a_killed_daemon_costs_no_packet_under_load() {
    let mut cluster = super::node(&json!({"orphan_release_after": "1s"}));
    let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    assert!(a.pod.ping(&b.ip).is_some() && a.pod.ping(OUTSIDE).is_some());
    under_load(&a, &b, &mut cluster, |cluster| {
        for _ in 0..5 {
            cluster.kill(0);
            cluster.start_ready(0);
            thread::sleep(Duration::from_millis(100));
        }
        cluster.stop(0);
        cluster.start_ready(0);
    });
}

/// `old/records/` holds what earlier releases wrote: this one reads it, and pods go on without losing a packet. The other way
/// round a test beside the types sees to it that what this release writes has every field that those knew.
#[test]
fn records_of_an_earlier_release_are_read_and_no_packet_is_lost() {
    let mut cluster = super::node(&json!({}));
    let (a, b) = (cluster.add(0, "a"), cluster.add(0, "b"));
    let names = cluster.ledger(0, "leases");
    under_load(&a, &b, &mut cluster, |cluster| {
        cluster.kill(0);
        for name in &names {
            let path = format!("/run/terway/leases/{name}");
            let record = cluster.node(0).read_file(&path).expect("it is there");
            let mut record: Value = serde_json::from_str(&record).expect("it is JSON");
            // What the release before this one knew, and nothing else.
            let known = ["pod", "sandbox", "ip", "eni", "node", "marker"];
            record.as_object_mut().expect("an object").retain(|key, _| known.contains(&key.as_str()));
            // And something of a release to come.
            record["of_tomorrow"] = json!({"a": [1, 2]});
            cluster.node(0).write_file(&path, &record.to_string());
        }
        cluster.start_ready(0);
    });
    assert_eq!(shown(&cluster, "/pool/leased"), 2);
    for member in [&a, &b] {
        cluster.call_for(member, "CHECK").ok();
    }
}

#[test]
fn a_lease_without_a_container_ends_with_its_own_sandbox_and_no_other() {
    let mut old = Inherited::new(Generation::First);
    old.cluster.start_ready(0);
    let earlier = old.cluster.sandbox(0, old.a.sandbox.pod.clone());
    old.cluster.call_for(&earlier, "DEL").ok();
    assert_eq!(shown(&old.cluster, "/pool/leased"), 2);
    assert!(old.a.pod.ping(&old.b.ip).is_some());
    // A DEL that finds no daemon is heard of later.
    old.cluster.kill(0);
    old.cluster.call_for(&old.a, "DEL").ok();
    old.cluster.start_ready(0);
    soon("its lease is over", || shown(&old.cluster, "/pool/leased") == 1);
    assert!(old.cluster.ledger(0, "resting").contains(&format!("{}.json", old.a.ip)));
    assert!(old.b.pod.ping(OUTSIDE).is_some());
}

#[test]
fn an_address_that_the_old_terway_kept_for_a_pod_is_kept_on() {
    let mut old = Inherited::new(Generation::Second);
    let mut web = old.cluster.schedule(0, "web-0");
    web.ip = old.eni.ips[3].to_string();
    let mut records: Vec<Record> = [&old.a, &old.b].map(|m| Record::of(m, &old.eni, Generation::Second)).into();
    records.push(Record::of(&web, &old.eni, Generation::Second).sticky());
    old.cluster.old_store(0, &records, 8);
    let ip = web.ip.clone();
    drop(web);
    old.cluster.start_ready(0);
    assert_eq!((shown(&old.cluster, "/pool/leased"), shown(&old.cluster, "/pool/reserved")), (2.into(), 1.into()));
    let others: Vec<Member> = (0..4).map(|n| old.cluster.add(0, &format!("new-{n}"))).collect();
    assert!(others.iter().all(|other| other.ip != ip));
    assert_eq!(old.cluster.add(0, "web-0").ip, ip);
}
