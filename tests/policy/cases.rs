//! A table of policies over one small cluster, each with real packets between all of its ends: what the specifications say, passes.
//!
//! `POLICY_CASE=peer cargo test --test main policy::cases -- --nocapture` runs those whose names begin so.

use std::time::Instant;

use serde_json::{Value, json};
use terway::error::Error;
use terway::kernel;
use terway::kernel::bpf::policy::Policy;
use terway::kernel::tables::{MOST, Tables};
use terway::rules::{Pods, Renderer, Rules, Write};
use terway::verdict::{Sizes, Why};

use super::field::{Field, LOCAL, Probe, Ruler, Wiring, cluster};
use super::oracle::World;
use crate::bpf::maps::BpfFs;
use crate::sim::node::Node;
use crate::sim::ns::Ns;
use crate::sim::skip;
use crate::sim::traffic::Place;

/// What is put into the cluster, by its kind.
#[derive(Clone, Copy)]
enum Kind {
    Kubernetes,
    Cluster,
    Calico,
    Global,
    Set,
    GlobalSet,
}

struct Case {
    name: String,
    objects: Vec<(Kind, Value)>,
}

const SIDES: [(&str, &str, &str); 2] = [("Ingress", "ingress", "from"), ("Egress", "egress", "to")];

fn object(kind: Kind, space: &str, name: &str, spec: Value) -> (Kind, Value) {
    let metadata = if space.is_empty() { json!({"name": name}) } else { json!({"name": name, "namespace": space}) };
    (kind, json!({"metadata": metadata, "spec": spec}))
}

fn kubernetes(space: &str, name: &str, spec: Value) -> (Kind, Value) {
    object(Kind::Kubernetes, space, name, spec)
}

/// Selectors of one label, `key`, of which there are values `one` and `other`.
fn selectors(key: &str, one: &str, other: &str) -> Vec<Value> {
    let expression = |operator: &str, values: &[&str]| {
        let mut is = json!({"key": key, "operator": operator});
        if !values.is_empty() {
            is["values"] = json!(values);
        }
        json!({"matchExpressions": [is]})
    };
    vec![
        json!({}),
        json!({"matchLabels": {key: one}}),
        json!({"matchLabels": {key: "nobody"}}),
        expression("In", &[one, other]),
        expression("NotIn", &[one]),
        expression("Exists", &[]),
        expression("DoesNotExist", &[]),
    ]
}

fn peers() -> Vec<Value> {
    let pods = selectors("pod", "a", "b");
    let spaces = selectors("ns", "y", "z");
    let mut all: Vec<Value> = pods.iter().map(|pods| json!([{"podSelector": pods}])).collect();
    all.extend(spaces.iter().map(|spaces| json!([{"namespaceSelector": spaces}])));
    for (space, own) in [(0, 1), (1, 3), (3, 4), (4, 0)] {
        all.push(json!([{"namespaceSelector": spaces[space], "podSelector": pods[own]}]));
    }
    for (cidr, except) in [
        ("10.0.0.0/24", vec![]),
        ("10.0.0.4/32", vec![]),
        ("10.0.0.0/29", vec!["10.0.0.4/30"]),
        ("0.0.0.0/0", vec![]),
        ("0.0.0.0/0", vec!["10.0.0.0/24", "192.168.0.0/24"]),
        ("0.0.0.0/1", vec!["10.0.0.0/30"]),
        ("192.168.0.0/24", vec![]),
        ("203.0.113.9/32", vec![]),
        ("fd00::/64", vec!["fd00::4/126"]),
        ("::/0", vec![]),
        ("::/0", vec!["fd00::/16"]),
    ] {
        all.push(json!([{"ipBlock": {"cidr": cidr, "except": except}}]));
    }
    all.push(json!([{"ipBlock": {"cidr": "10.0.0.0/29"}}, {"namespaceSelector": {"matchLabels": {"ns": "z"}}}]));
    all.push(json!([]));
    all
}

fn pods_of(n: usize) -> Value {
    selectors("pod", "a", "b").swap_remove(n)
}

fn ports() -> Vec<Value> {
    vec![
        json!([]),
        json!([{"port": 80}]),
        json!([{"protocol": "TCP", "port": 81}]),
        json!([{"protocol": "UDP", "port": 80}]),
        json!([{"protocol": "SCTP", "port": 80}]),
        json!([{"protocol": "SCTP", "port": 81}]),
        json!([{"protocol": "TCP"}]),
        json!([{"protocol": "UDP"}]),
        json!([{"protocol": "SCTP"}]),
        json!([{"protocol": "TCP", "port": "serve-80-tcp"}]),
        json!([{"protocol": "UDP", "port": "serve-81-udp"}]),
        json!([{"protocol": "SCTP", "port": "serve-80-sctp"}]),
        json!([{"protocol": "UDP", "port": "serve-80-tcp"}]),
        json!([{"protocol": "TCP", "port": "nobody"}]),
        json!([{"protocol": "TCP", "port": 80, "endPort": 81}]),
        json!([{"protocol": "UDP", "port": 81, "endPort": 65535}]),
        json!([{"protocol": "TCP", "port": 1, "endPort": 79}]),
        json!([{"protocol": "TCP", "port": 80}, {"protocol": "UDP", "port": 81}]),
        json!((0..40).map(|n| json!({"port": 40 + 2 * n, "protocol": "TCP"})).collect::<Vec<_>>()),
    ]
}

fn table() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |group: &str, objects: Vec<(Kind, Value)>| {
        let number = cases.iter().filter(|case: &&Case| case.name.starts_with(group)).count();
        cases.push(Case { name: format!("{group} {number}"), objects });
    };
    for (r#type, rules, others) in SIDES {
        for target in [pods_of(1), json!({})] {
            for peer in peers() {
                let spec = json!({"podSelector": target, "policyTypes": [r#type], rules: [{others: peer}]});
                add("peer", vec![kubernetes("x", "p", spec)]);
            }
        }
        for peer in [None, Some(json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]))] {
            for ports in ports() {
                let mut rule = json!({"ports": ports});
                peer.iter().for_each(|peer| rule[others] = peer.clone());
                add(
                    "port",
                    vec![kubernetes("x", "p", json!({"podSelector": {}, "policyTypes": [r#type], rules: [rule]}))],
                );
            }
        }
    }
    for target in selectors("pod", "a", "b") {
        add("target", vec![kubernetes("x", "p", json!({"podSelector": target, "policyTypes": ["Ingress", "Egress"]}))]);
    }
    for spec in [
        json!({"podSelector": {}}),
        json!({"podSelector": {}, "ingress": []}),
        json!({"podSelector": {}, "ingress": [{}]}),
        json!({"podSelector": {}, "egress": [{}]}),
        json!({"podSelector": {}, "policyTypes": ["Egress"]}),
        json!({"podSelector": {}, "policyTypes": ["Egress", "Ingress"], "egress": [{}], "ingress": [{}]}),
    ] {
        add("rules", vec![kubernetes("x", "p", spec.clone())]);
        add("rules", vec![kubernetes("x", "p", spec.clone()), kubernetes("y", "p", spec)]);
    }
    conflicts(&mut add);
    actions(&mut add);
    tiers(&mut add);
    cases
}

/// Policies that say different things of the same pods.
fn conflicts(add: &mut impl FnMut(&str, Vec<(Kind, Value)>)) {
    let denied =
        |space: &str| kubernetes(space, "none", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    for (_, rules, others) in SIDES {
        for peer in
            [json!({"podSelector": {}}), json!({"namespaceSelector": {}}), json!({"ipBlock": {"cidr": "10.0.0.4/30"}})]
        {
            let rule = json!([{others: [peer], "ports": [{"port": 80}, {"port": 81, "protocol": "UDP"}]}]);
            let some = kubernetes("x", "some", json!({"podSelector": {}, rules: rule}));
            add("conflict", vec![denied("x"), some.clone()]);
            add("conflict", vec![denied("x"), denied("y"), some.clone()]);
            let all = kubernetes("x", "all", json!({"podSelector": {"matchLabels": {"pod": "a"}}, rules: [{}]}));
            add("conflict", vec![some, all, denied("y")]);
        }
    }
}

/// Calico's: in order, and with all that a rule can ask.
fn actions(add: &mut impl FnMut(&str, Vec<(Kind, Value)>)) {
    let global = |name: &str, spec: Value| object(Kind::Global, "", name, spec);
    let set = |kind, space: &str, nets: Value| {
        let (kind, mut set) = object(kind, space, "set", json!({"nets": nets}));
        set["metadata"]["labels"] = json!({"a": "x"});
        (kind, set)
    };
    for (r#type, rules, _) in SIDES {
        let other = if rules == "ingress" { "source" } else { "destination" };
        let all = json!({"action": "Allow"});
        for first in [
            json!({"action": "Deny", other: {"selector": "a == 'x'"}}),
            json!({"action": "Deny", other: {"notSelector": "a == 'x'"}}),
            json!({"action": "Deny", "protocol": "TCP", "destination": {"ports": [80]}}),
            json!({"action": "Deny", "protocol": "UDP", "destination": {"notPorts": ["81:90"]}}),
            json!({"action": "Deny", "protocol": "UDP", "destination": {"ports": ["serve-80-udp"]}}),
            json!({"action": "Deny", "protocol": "UDP", "destination": {"notPorts": ["serve-80-udp"]}}),
            json!({"action": "Deny", "protocol": "UDP", "source": {"ports": [40000]}}),
            json!({"action": "Deny", "protocol": "UDP", "source": {"notPorts": ["1:39999"]}, "destination": {"ports": [81]}}),
            json!({"action": "Deny", "notProtocol": "UDP"}),
            json!({"action": "Deny", "protocol": "ICMP"}),
            json!({"action": "Deny", "protocol": "ICMP", "icmp": {"type": 8}}),
            json!({"action": "Deny", "protocol": "ICMP", "icmp": {"type": 8, "code": 1}}),
            json!({"action": "Deny", "protocol": "ICMP", "notICMP": {"type": 0}}),
            json!({"action": "Deny", "protocol": 132}),
            json!({"action": "Deny", "ipVersion": 6}),
            json!({"action": "Deny", other: {"nets": ["10.0.0.0/29"], "notNets": ["10.0.0.4/32"]}}),
            json!({"action": "Deny", other: {"notNets": ["10.0.0.0/24", "fd00::/64"]}}),
            json!({"action": "Deny", other: {"namespaceSelector": "team != 'x'"}}),
            json!({"action": "Deny", other: {"serviceAccounts": {"names": ["a", "b"]}}}),
            json!({"action": "Log", "protocol": "TCP"}),
            json!({"action": "Pass", "protocol": "TCP"}),
        ] {
            add("action", vec![global("g", json!({"types": [r#type], rules: [first, all]}))]);
        }
        let deny = json!({"types": [r#type], "order": 10, rules: [{"action": "Deny", "protocol": "TCP"}]});
        for order in [5, 20, 2000] {
            let allow = json!({"types": [r#type], "order": order, rules: [{"action": "Allow"}]});
            add("order", vec![global("g1", deny.clone()), global("g2", allow.clone())]);
            let own = kubernetes("x", "p", json!({"podSelector": {}, "policyTypes": [r#type]}));
            add("order", vec![own, object(Kind::Calico, "x", "c", allow)]);
        }
        for kind in [(Kind::Set, "x"), (Kind::GlobalSet, "")] {
            let by_set = |space: &str| json!({"types": [r#type], rules: [{"action": "Allow", other: {"selector": "a == 'x'", "namespaceSelector": space}}]});
            let nets = json!(["203.0.113.0/24", "2001:db8::/32"]);
            for space in ["projectcalico.org/name == 's1'", "global()", "all()"] {
                add("set", vec![set(kind.0, kind.1, nets.clone()), object(Kind::Calico, "x", "c", by_set(space))]);
            }
        }
    }
}

/// ClusterNetworkPolicy around the others.
fn tiers(add: &mut impl FnMut(&str, Vec<(Kind, Value)>)) {
    let admin = |name: &str, tier: &str, priority: u32, rules: &str, rule: Value| {
        let spec = json!({"tier": tier, "priority": priority, "subject": {"namespaces": {}}, rules: [rule]});
        object(Kind::Cluster, "", name, spec)
    };
    for (r#type, rules, others) in SIDES {
        let closed = kubernetes("x", "p", json!({"podSelector": {}, "policyTypes": [r#type]}));
        let peer = json!([{"namespaces": {"matchLabels": {"ns": "y"}}}]);
        let pods = json!([{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a"}}}}]);
        for tier in ["Admin", "Baseline"] {
            for action in ["Accept", "Deny", "Pass"] {
                let rule = json!({"action": action, others: peer});
                add("tier", vec![admin("a", tier, 5, rules, rule.clone())]);
                add("tier", vec![admin("a", tier, 5, rules, rule.clone()), closed.clone()]);
                let against = json!({"action": "Deny", others: pods, "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]});
                add("tier", vec![admin("a", tier, 5, rules, rule), admin("b", tier, 1, rules, against)]);
            }
        }
    }
    for to in [
        json!({"nodes": {}}),
        json!({"nodes": {"matchLabels": {"node": "n2"}}}),
        json!({"networks": ["203.0.113.0/24", "fd00::/64"]}),
    ] {
        add("tier", vec![admin("a", "Admin", 5, "egress", json!({"action": "Deny", "to": [to]}))]);
    }
}

fn world(case: &Case) -> World {
    let mut world = cluster();
    for (kind, object) in &case.objects {
        let name = object["metadata"]["name"].as_str().unwrap();
        let name = object["metadata"]["namespace"].as_str().map_or(name.to_owned(), |space| format!("{space}/{name}"));
        let of = match kind {
            Kind::Kubernetes => &mut world.policies,
            Kind::Cluster => &mut world.admin,
            Kind::Calico => &mut world.calico,
            Kind::Global => &mut world.global,
            Kind::Set => &mut world.sets,
            Kind::GlobalSet => &mut world.global_sets,
        };
        of.insert(name, object.clone());
    }
    world
}

/// Every so many-th case on this renderer; with Services where it sees what they lead to.
pub fn run(field: &mut Field, renderer: &mut dyn Renderer, with_services: bool, every: usize) {
    let table = table();
    assert!(table.len() >= 230, "{} cases", table.len());
    let only = std::env::var("POLICY_CASE").unwrap_or_default();
    let probes = field.matrix(with_services);
    let mut ruler = Ruler::new();
    ruler.hear(&cluster());
    ruler.settle();
    field.node.run(|| renderer.restore(&ruler.rules, &ruler.pods)).unwrap();
    let (begun, mut denied, mut judged) = (Instant::now(), 0, 0);
    let cases: Vec<&Case> = table.iter().filter(|case| case.name.starts_with(&only)).step_by(every).collect();
    for case in &cases {
        let world = world(case);
        ruler.follow(&world, &field.node, renderer);
        let expected: Vec<bool> = probes.iter().map(|probe: &Probe| field.is_allowed(&world, probe)).collect();
        let wrong = field.round(&probes, &expected);
        assert!(wrong.is_empty(), "{}: {}\n{:#?}", case.name, json!(objects(case)), wrong);
        denied += expected.iter().filter(|allowed| !**allowed).count();
        judged += expected.len();
    }
    // What comes late comes now.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(field.round(&[], &[]), [""; 0]);
    assert!(!only.is_empty() || denied > judged / 10 && denied < judged / 2, "{denied} of {judged} denied");
    println!("{} cases, {judged} probes, {denied} of them denied, in {:?}", cases.len(), begun.elapsed());
}

fn objects(case: &Case) -> Vec<&Value> {
    case.objects.iter().map(|(_, object)| object).collect()
}

/// Enforces nothing.
struct Idle;

impl Renderer for Idle {
    fn restore(&mut self, _: &Rules, _: &Pods) -> Result<(), Error> {
        Ok(())
    }

    fn apply(&mut self, _: &[Write], _: &Rules, _: &Pods) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn what_passes_and_should_not_is_seen() {
    let mut field = Field::new();
    let probes = field.matrix(false);
    let (mut ruler, mut world) = (Ruler::new(), cluster());
    let none = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    world.policies.insert("x/none".into(), kubernetes("x", "none", none).1);
    ruler.follow(&world, &field.node, &mut Idle);
    let expected: Vec<bool> = probes.iter().map(|probe| field.is_allowed(&world, probe)).collect();
    let wrong = field.round(&probes, &expected).len() + field.round(&[], &[]).len();
    let denied = expected.iter().filter(|allowed| !**allowed).count();
    assert!(wrong >= denied, "{wrong} of {denied} were seen");
}

#[test]
fn packets_go_by_ipsets_and_chains_as_is_specified() {
    let mut field = Field::new();
    field.serve();
    run(&mut field, &mut Tables::new(MOST), true, 1);
}

/// Services would have to be led at the socket: on a pod's first link the real backend is not seen yet.
#[test]
fn packets_go_by_ebpf_as_is_specified() {
    by_ebpf(Wiring::Veth, 1);
}

/// `POLICY_EVERY=1` for all cases.
#[test]
fn packets_go_by_ebpf_on_enis_of_pods_as_is_specified() {
    by_ebpf(Wiring::Whole, every(6));
}

#[test]
fn packets_go_by_ebpf_on_slaves_as_is_specified() {
    if let Err(e) = Node::new("node").run(kernel::ipvlan) {
        println!("{e}");
        return skip::because("needs ipvlan");
    }
    by_ebpf(Wiring::Slave, every(12));
}

pub fn every(usual: usize) -> usize {
    std::env::var("POLICY_EVERY").ok().and_then(|number| number.parse().ok()).unwrap_or(usual)
}

fn by_ebpf(wiring: Wiring, every: usize) {
    let mut field = Field::wired(wiring);
    let fs = BpfFs::new(&format!("cases{wiring:?}"));
    let (mut policy, _) = Policy::open(fs.path(), &Sizes::default()).unwrap();
    // Links speak as soon as they can: who sits where is known before.
    let mut ruler = Ruler::new();
    ruler.hear(&cluster());
    ruler.settle();
    policy.restore(&ruler.rules, &ruler.pods).unwrap();
    let pins = policy.folder().display().to_string();
    for (n, seat) in (1..=LOCAL.len()).enumerate() {
        let guard = |place: &Ns, link: &str, [to_pod, from_pod]: [&str; 2]| {
            let filter = |side: &str, way: &str| {
                let program = format!("bpf direct-action object-pinned {pins}/terway_{way}_pod classid 0:{seat}");
                format!("tc filter add dev {link} {side} prio 2048 {program}; ")
            };
            let filters = [filter(to_pod, "to"), filter(from_pod, "from")].concat();
            place.sh(&format!("tc qdisc add dev {link} clsact; {filters}"));
        };
        if wiring != Wiring::Slave {
            guard(field.node.ns(), &format!("calipod{n}"), ["egress", "ingress"]);
        }
        if wiring != Wiring::Veth {
            guard(field.place(LOCAL[n]), "eth0", ["ingress", "egress"]);
        }
    }
    run(&mut field, &mut policy, false, every);
    let counts = policy.counts().unwrap();
    println!("{counts:?}, {:?}", policy.pressure().unwrap());
    let denied: u64 = [Why::Rules, Why::Flow].iter().flat_map(|why| counts.of(*why)).sum();
    assert_eq!(counts.dropped(), denied, "for no other reason");
}
