//! Network policies as ipsets and chains, with real packets in namespaces.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use terway::kernel::guard::Guard;
use terway::kernel::tables::{MOST, Tables};
use terway::rules::{self, Pods, Renderer, Rules, TCP, UDP};

use super::field::{Field, Probe, Ruler, cluster};
use super::oracle::World;
use crate::sim::node::Node;
use crate::sim::traffic::Place;

fn policy(name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": "x", "name": name}, "spec": spec})
}

/// `x/a` hears of namespace x only.
fn own_only() -> World {
    let mut world = cluster();
    let from = json!([{"from": [{"podSelector": {}}]}]);
    world
        .policies
        .insert("x/own".into(), policy("own", json!({"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": from})));
    world
}

pub fn closed() -> World {
    let mut world = cluster();
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    world.policies.insert("x/closed".into(), policy("closed", spec));
    world
}

fn probe(field: &Field, from: &str, to: &str, family: usize, protocol: u8) -> Probe {
    Probe { from: field.named(from), to: field.named(to), family, protocol, port: 80, service: None }
}

fn ours(node: &Node) -> String {
    node.sh("iptables-save -t mangle; ip6tables-save -t mangle; iptables-legacy-save -t mangle") + &names(node)
}

/// Sets by another way than ours where there is one; else by the kernel's own count of them.
fn names(node: &Node) -> String {
    node.run(|| {
        let mut sets = terway::kernel::tables::names().unwrap();
        sets.sort();
        sets.join("\n")
    })
}

/// The kind of iptables that old nodes have, in this node only.
pub fn legacy(node: &Node) {
    for program in ["iptables", "ip6tables"] {
        for verb in ["", "-save", "-restore"] {
            node.sh(&format!("ln -sf /usr/sbin/{program}-legacy{verb} /etc/alternatives/{program}{verb}"));
        }
    }
    assert!(node.sh("iptables --version").contains("legacy"));
}

#[test]
fn it_lets_pass_what_is_allowed_and_leaves_nothing() {
    comes_and_goes(Field::new());
}

#[test]
fn it_does_so_with_the_older_iptables() {
    let field = Field::new();
    legacy(&field.node);
    comes_and_goes(field);
}

fn comes_and_goes(mut field: Field) {
    field
        .node
        .sh("iptables -N OTHERS; iptables -A FORWARD -j OTHERS; iptables -t mangle -A FORWARD -s 1.2.3.4/32 -j ACCEPT");
    field.node.sh("ip6tables -t mangle -A FORWARD -s fd99::1/128 -j ACCEPT");
    let before = ours(&field.node);
    let mut tables = Tables::new(MOST);
    let mut ruler = Ruler::new();
    let probes: Vec<Probe> =
        [("x/c", "x/a"), ("y/a", "x/a"), ("outside", "x/a"), ("x/a", "outside"), ("node", "x/a"), ("y/a", "y/b")]
            .iter()
            .flat_map(|(from, to)| [(0, TCP), (0, UDP), (1, TCP), (1, UDP)].map(|(f, p)| probe(&field, from, to, f, p)))
            .collect();
    for world in [cluster(), own_only(), closed(), own_only()] {
        ruler.follow(&world, &field.node, &mut tables);
        let expected: Vec<bool> = probes.iter().map(|probe| field.is_allowed(&world, probe)).collect();
        assert_eq!(field.round(&probes, &expected), [""; 0]);
    }
    let first = field.node.sh("iptables-save -t mangle | grep -m1 '^-A FORWARD'");
    assert!(first.contains("terway network policy"), "{first}");
    // Who remembers nothing writes the same.
    let ours_before = ours(&field.node);
    field.node.run(|| Tables::new(MOST).restore(&ruler.rules, &ruler.pods)).unwrap();
    let plain = |text: &str| text.lines().filter(|line| !line.starts_with(['#', ':'])).collect::<Vec<_>>().join("\n");
    assert_eq!(plain(&ours(&field.node)), plain(&ours_before));
    field.node.run(|| Tables::new(MOST).remove()).unwrap();
    assert_eq!(plain(&ours(&field.node)), plain(&before));
    assert!(!ours(&field.node).contains("TERWAY-P"));
    field.node.sh("iptables -C FORWARD -j OTHERS");
}

#[test]
fn drops_are_counted_and_a_flush_by_others_is_seen() {
    let mut field = Field::new();
    let mut tables = Tables::new(MOST);
    let mut ruler = Ruler::new();
    assert!(tables.tally().is_none(), "nobody has rules");
    ruler.follow(&own_only(), &field.node, &mut tables);
    let tally = |tables: &Tables, field: &Field| {
        let tally = tables.tally().expect("there are rules");
        let counted = field.node.run(tally).unwrap();
        let of = |direction: &str| counted.figures["drops"]["policy"][direction].as_u64().unwrap();
        ([of("to_pod"), of("from_pod")], counted.damage.unwrap_or_default())
    };
    assert_eq!(tally(&tables, &field), ([0, 0], String::new()));
    for family in [0, 1] {
        let denied = probe(&field, "y/a", "x/a", family, UDP);
        assert_eq!(field.round(&[denied], &[false]), [""; 0]);
    }
    let ([to, from], damage) = tally(&tables, &field);
    assert!(to >= 2 && from == 0 && damage.is_empty(), "{to} {from} {damage}");
    // What has been counted outlives a change.
    ruler.follow(&closed(), &field.node, &mut tables);
    assert!(tally(&tables, &field).0[0] >= to);
    for damage in ["iptables -t mangle -F", "iptables -t mangle -I FORWARD -j ACCEPT"] {
        field.node.sh(damage);
        assert_eq!(tally(&tables, &field).1, "chains", "{damage}");
        field.node.run(|| tables.restore(&ruler.rules, &ruler.pods)).unwrap();
        assert_eq!(tally(&tables, &field).1, "", "after {damage}");
    }
    field.node.run(|| tables.remove()).unwrap();
}

#[test]
fn sets_that_others_change_are_seen_and_written_anew() {
    let mut field = Field::new();
    let mut tables = Tables::new(MOST);
    let mut ruler = Ruler::new();
    ruler.follow(&own_only(), &field.node, &mut tables);
    let damage = |tables: &Tables, field: &Field| {
        field.node.run(tables.tally().expect("there are rules")).unwrap().damage.unwrap_or_default()
    };
    let probes = |field: &Field| [0, 1].map(|family| probe(field, "y/a", "x/a", family, UDP));
    // All gone; one member less in each; as many members as there were, but others; and another set in the place of each.
    let first = "m=$(ipset list $s | sed '1,/^Members/d' | head -1); ipset del $s $m";
    let other = "ipset add $s $(case $s in *P4*) echo 9.9.9.9;; *) echo fd99::9;; esac)";
    let swap = "ipset create none hash:net family $(case $s in *P4*) echo inet;; *) echo inet6;; esac); \
                ipset swap $s none; ipset destroy none";
    for verb in ["ipset flush $s", first, &format!("{first}; {other}"), swap] {
        assert_eq!(damage(&tables, &field), "", "before {verb}");
        assert_eq!(field.round(&probes(&field), &[false; 2]), [""; 0], "before {verb}");
        field.node.sh(&format!("set -e; for s in $(ipset list -n | grep ^TERWAY-P); do {verb}; done"));
        assert_eq!(damage(&tables, &field), "ipsets", "{verb}");
        assert_eq!(field.round(&probes(&field), &[true; 2]), [""; 0], "it is open: {verb}");
        field.node.run(|| tables.restore(&ruler.rules, &ruler.pods)).unwrap();
        assert_eq!(field.round(&probes(&field), &[false; 2]), [""; 0], "after {verb}");
    }
    // Also while the other family cannot be looked at.
    let save = "/etc/alternatives/ip6tables-save";
    let before = field.node.sh(&format!("readlink {save} && ln -sf /bin/false {save}"));
    let tally = tables.tally().unwrap();
    assert!(field.node.run(tally).is_err());
    field.node.sh("for s in $(ipset list -n | grep ^TERWAY-P4); do ipset flush $s; done");
    assert_eq!(damage(&tables, &field), "ipsets");
    field.node.run(|| tables.restore(&ruler.rules, &ruler.pods)).unwrap_err();
    assert_eq!(field.round(&probes(&field), &[false; 2]), [""; 0], "one family does not wait for the other");
    field.node.sh(&format!("ln -sf {} {save}", before.trim()));
    field.node.run(|| tables.remove()).unwrap();
    assert_eq!(names(&field.node), "");
}

#[test]
fn a_pod_that_runs_on_though_it_was_deleted_is_closed() {
    let mut field = Field::new();
    let mut tables = Tables::new(MOST);
    let mut ruler = Ruler::new();
    let mut world = cluster();
    ruler.follow(&world, &field.node, &mut tables);
    let probes = [("y/a", "x/a"), ("x/a", "outside"), ("node", "x/a"), ("y/a", "x/b")];
    let probes = probes.map(|(from, to)| probe(&field, from, to, 0, UDP));
    assert_eq!(field.round(&probes, &[true; 4]), [""; 0]);
    let pod = world.pods.remove("x/a").unwrap();
    ruler.follow(&world, &field.node, &mut tables);
    assert_eq!(field.round(&probes, &[false, false, true, true]), [""; 0]);
    world.pods.insert("x/a".into(), pod);
    ruler.follow(&world, &field.node, &mut tables);
    assert_eq!(field.round(&probes, &[true; 4]), [""; 0]);
    assert_eq!(names(&field.node), "");
}

#[test]
fn a_jump_that_others_have_pushed_back_is_first_again() {
    let field = Field::new();
    let mut tables = Tables::new(MOST);
    let mut ruler = Ruler::new();
    ruler.follow(&own_only(), &field.node, &mut tables);
    field.node.sh("iptables -t mangle -I FORWARD -j ACCEPT");
    field.node.sh("iptables -t mangle -A FORWARD -m comment --comment 'terway network policy' -j TERWAY-P-FORWARD");
    field.node.run(|| tables.restore(&ruler.rules, &ruler.pods)).unwrap();
    let rules = field.node.sh("iptables-save -t mangle | grep '^-A FORWARD'");
    assert_eq!(rules.lines().filter(|line| line.contains("TERWAY-P")).count(), 1, "{rules}");
    assert!(rules.lines().next().unwrap().contains("TERWAY-P-FORWARD"), "{rules}");
}

#[test]
fn a_changed_policy_cuts_a_connection_that_stands() {
    let field = Field::new();
    let mut tables = Tables::new(MOST);
    let mut ruler = Ruler::new();
    ruler.follow(&own_only(), &field.node, &mut tables);
    for family in 0..2 {
        let at = SocketAddr::new(field.addr(field.named("x/a"), family), 7000);
        let pod = field.place("x/a");
        let listener = pod.run(|| TcpListener::bind(at)).unwrap();
        let mut client = field.place("x/b").run(|| TcpStream::connect(at)).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        let mut byte = [0];
        let mut passes = |from: &mut TcpStream, to: &mut TcpStream, patience: Duration| {
            to.set_read_timeout(Some(patience)).unwrap();
            from.write_all(b"x").unwrap();
            to.read_exact(&mut byte).is_ok()
        };
        let (short, long) = (Duration::from_millis(150), Duration::from_secs(60));
        assert!(passes(&mut client, &mut served, long) && passes(&mut served, &mut client, long));
        // Whoever speaks first after the change.
        ruler.follow(&closed(), &field.node, &mut tables);
        assert!(!passes(&mut served, &mut client, short), "the server still speaks");
        assert!(!passes(&mut client, &mut served, short), "the client still speaks");
        ruler.follow(&own_only(), &field.node, &mut tables);
        // What was dropped is sent again, each time after twice as long.
        client.set_read_timeout(Some(long)).unwrap();
        client.read_exact(&mut byte).unwrap();
    }
}

/// How many datagrams a flood has sent from one end, and how many came to the other.
fn flood(field: &Field, from: &str, to: &str, port: u16, while_it_runs: impl FnOnce()) -> (u64, u64) {
    let (done, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let at = SocketAddr::new(field.addr(field.named(to), 0), port);
    let inward = field.place(to).run(|| UdpSocket::bind(at)).unwrap();
    let source = SocketAddr::new(field.addr(field.named(from), 0), port);
    let out = field.place(from).run(|| UdpSocket::bind(source)).unwrap();
    inward.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    // On a busy machine the receiver may be late by more than the usual two hundred.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&inward, 32 << 20).unwrap();
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                out.send_to(b"x", at).unwrap();
                sent += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
            sent
        });
        let received = scope.spawn(|| {
            let (mut received, mut byte) = (0, [0]);
            loop {
                // All that there will be has been sent: the next silence is the last.
                let is_over = over.load(Ordering::Relaxed);
                match inward.recv(&mut byte) {
                    Ok(_) => received += 1,
                    Err(_) if is_over => return received,
                    Err(_) => {}
                }
            }
        });
        while_it_runs();
        done.store(true, Ordering::Relaxed);
        let sent = sent.join().unwrap();
        over.store(true, Ordering::Relaxed);
        (sent, received.join().unwrap())
    })
}

#[test]
fn changes_and_restarts_under_traffic_open_and_lose_nothing() {
    open_and_lose_nothing(&Field::new());
}

#[test]
fn nor_do_they_with_the_older_iptables() {
    let field = Field::new();
    legacy(&field.node);
    open_and_lose_nothing(&field);
}

fn open_and_lose_nothing(field: &Field) {
    let mut ruler = Ruler::new();
    let mut tables = Tables::new(MOST);
    ruler.follow(&own_only(), &field.node, &mut tables);
    // Another pod of namespace x comes and goes.
    let (own, mut other, mut wider) = (own_only(), own_only(), own_only());
    other.pods.remove("x/c");
    // And rules of theirs change.
    let udp = json!([{"from": [{"podSelector": {}}], "ports": [{"protocol": "UDP", "port": 1, "endPort": 9000}]}]);
    wider.policies.get_mut("x/own").unwrap()["spec"]["ingress"] = udp;
    let mut changes = || {
        for n in 0..20 {
            ruler.follow([&other, &own, &wider][n % 3], &field.node, &mut tables);
            tables = Tables::new(MOST);
            field.node.run(|| tables.restore(&ruler.rules, &ruler.pods)).unwrap();
        }
    };
    let (sent, received) = flood(field, "x/b", "x/a", 7001, &mut changes);
    assert!(sent > 100 && sent == received, "{received} of {sent} allowed packets came");
    let (sent, received) = flood(field, "y/a", "x/a", 7002, &mut changes);
    assert!(sent > 100 && received == 0, "{received} of {sent} forbidden packets came");
}

#[test]
fn a_set_that_is_full_is_named_and_what_was_there_goes_on() {
    let mut field = Field::new();
    let mut tables = Tables::new(2);
    let mut ruler = Ruler::new();
    let mut world = own_only();
    world.pods.remove("x/c");
    ruler.follow(&world, &field.node, &mut tables);
    let three = own_only();
    let mut fuller = Ruler::new();
    fuller.hear(&three);
    fuller.settle();
    let prefixes = fuller.rules.prefixes.iter();
    let writes: Vec<rules::Write> = prefixes.map(|(net, class)| rules::Write::Prefix(*net, Some(*class))).collect();
    let refused = field.node.run(|| tables.apply(&writes, &fuller.rules, &fuller.pods)).unwrap_err().to_string();
    assert!(
        refused.contains("3 addresses and prefixes of one peer") && refused.contains("policy_addresses is 2"),
        "{refused}"
    );
    let probes = [probe(&field, "x/b", "x/a", 0, UDP), probe(&field, "y/a", "x/a", 0, UDP)];
    assert_eq!(field.round(&probes, &[true, false]), [""; 0]);
    field.node.run(|| tables.restore(&Rules::default(), &Pods::new())).unwrap();
    assert_eq!(names(&field.node), "");
}

/// iptables-restore(8) takes no line of more than 255 words, and one that it does not take keeps all others out.
#[test]
fn ports_that_a_rule_is_not_about_may_be_many() {
    let mut field = Field::new();
    let mut tables = Tables::new(MOST);
    let mut ruler = Ruler::new();
    let others: Vec<Value> = (0..800).map(|n| json!(80 + 2 * n)).collect();
    for kind in ["new", "older"] {
        let mut world = own_only();
        let rule = json!({"action": "Allow", "protocol": "UDP", "destination": {"notPorts": others}});
        let spec = json!({"selector": "pod == 'b'", "types": ["Ingress"], "ingress": [rule]});
        world.calico.insert("x/most".into(), policy("most", spec));
        ruler.follow(&world, &field.node, &mut tables);
        let on = |port, family| Probe { port, ..probe(&field, "x/c", "x/b", family, UDP) };
        let closed = probe(&field, "y/a", "x/a", 0, UDP);
        let probes = [on(80, 0), on(81, 0), on(80, 1), on(81, 1), closed];
        assert_eq!(field.round(&probes, &[false, true, false, true, false]), [""; 0], "{kind} iptables");
        field.node.run(|| tables.remove()).unwrap();
        legacy(&field.node);
        (tables, ruler) = (Tables::new(MOST), Ruler::new());
    }
}

#[test]
fn a_pod_reaches_itself_by_its_service_and_others_only_as_far_as_rules_go() {
    let field = Field::new();
    field.serve();
    field.node.sh("iptables -t nat -A POSTROUTING -s 10.0.0.2/32 -d 10.0.0.2/32 -j MASQUERADE");
    field.node.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.calipod1.rp_filter=0");
    let mut tables = Tables::new(MOST);
    let mut ruler = Ruler::new();
    ruler.follow(&closed(), &field.node, &mut tables);
    field.node.run(|| Guard::default().restore());
    let reaches = |from: &str| {
        let service = SocketAddr::new("10.96.0.1".parse().unwrap(), 80);
        field.place(from).run(|| TcpStream::connect_timeout(&service, Duration::from_millis(300))).is_ok()
    };
    assert!(reaches("x/b"), "a pod does not reach itself");
    assert!(!reaches("y/a"), "others do");
}
