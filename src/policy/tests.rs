//! Cases that people ask about, with their answers as literals.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Heard, Here, Model, Need, Told};
use crate::netpol::Document;
use crate::peer::{Namespace, Node, Pod};
use crate::rules::{Direction, Packet, Rules, TCP, UDP};

const OWN: &str = "192.168.0.1";

fn document(value: Value) -> Document {
    serde_json::from_value(value).unwrap()
}

fn model() -> Model {
    let mut model = Model::new(Here { name: "n1".into(), addresses: BTreeSet::from([OWN.parse().unwrap()]) });
    for (name, team) in [("shop", "x"), ("infra", "y")] {
        model.hear_namespaces(Heard::One(space(name, team)));
    }
    for (name, node, ip, app) in
        [("web", "n1", "10.0.0.1", "web"), ("web-2", "n1", "10.0.0.2", "web"), ("db", "n2", "10.0.0.3", "db")]
    {
        model.hear_pods(Heard::One(pod("shop", name, node, ip, app)));
    }
    model.hear_pods(Heard::One(pod("infra", "dns", "n2", "10.0.0.4", "dns")));
    model
}

fn space(name: &str, team: &str) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"team": team}}})).unwrap()
}

fn pod(space: &str, name: &str, node: &str, ip: &str, app: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"namespace": space, "name": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
    }))
    .unwrap()
}

fn policy(name: &str, spec: Value) -> Document {
    document(json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec}))
}

fn cluster_policy(spec: Value) -> Document {
    document(json!({"metadata": {"name": "g"}, "spec": spec}))
}

fn passes(model: &Model, direction: Direction, other: &str, protocol: u8, port: u16) -> bool {
    let packet = Packet { protocol, ports: Some((40_000, port)) };
    model.rules().answer("shop/web", direction, other.parse().unwrap(), &packet).unwrap().allow
}

fn to_web(model: &Model, from: &str, port: u16) -> bool {
    passes(model, Direction::Ingress, from, TCP, port)
}

fn from_web(model: &Model, to: &str, port: u16) -> bool {
    passes(model, Direction::Egress, to, TCP, port)
}

#[test]
fn an_empty_rule_allows_all_and_an_empty_list_nothing() {
    for (spec, ingress, egress) in [
        (json!({"podSelector": {}}), false, true),
        (json!({"podSelector": {}, "ingress": [{}]}), true, true),
        (json!({"podSelector": {}, "ingress": [{"from": [], "ports": []}]}), true, true),
        (json!({"podSelector": {}, "policyTypes": ["Egress"]}), true, false),
        (json!({"podSelector": {}, "egress": []}), false, true),
        (json!({"podSelector": {}, "egress": [{}]}), false, true),
        (json!({"podSelector": {}, "egress": [{}], "policyTypes": ["Ingress"]}), false, true),
        (json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "1.0.0.0/8"}}]}]}), false, false),
        (json!({"podSelector": {"matchLabels": {"app": "db"}}}), true, true),
    ] {
        let mut model = model();
        model.hear(Told::NetworkPolicy, Heard::One(policy("p", spec.clone())));
        model.changes();
        assert_eq!((to_web(&model, "10.0.0.3", 80), from_web(&model, "10.0.0.3", 80)), (ingress, egress), "{spec}");
        assert!(to_web(&model, OWN, 80), "the node's probes pass");
    }
}

#[test]
fn a_cidr_covers_pods_and_its_exception_is_exact() {
    let mut model = model();
    let block = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.3/32", "10.1.0.0/16"]}});
    model
        .hear(Told::NetworkPolicy, Heard::One(policy("p", json!({"podSelector": {}, "ingress": [{"from": [block]}]}))));
    model.changes();
    for (from, allow) in [
        ("10.0.0.2", true),
        ("10.0.0.3", false),
        ("10.0.0.4", true),
        ("10.0.255.255", true),
        ("10.1.0.0", false),
        ("10.1.255.255", false),
        ("10.2.0.0", true),
        ("11.0.0.0", false),
    ] {
        assert_eq!(to_web(&model, from, 80), allow, "{from}");
    }
    let all_but_all = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["0.0.0.0/0"]}});
    model.hear(
        Told::NetworkPolicy,
        Heard::One(policy("p", json!({"podSelector": {}, "ingress": [{"from": [all_but_all]}]}))),
    );
    model.changes();
    assert!(!to_web(&model, "10.0.0.2", 80));
}

#[test]
fn a_thousand_ports_are_a_thousand_entries_and_many_pods_share_them() {
    let mut model = model();
    let ports: Vec<Value> = (0..1000).map(|i| json!({"port": 10_000 + 2 * i})).collect();
    let rule = json!({"from": [{"podSelector": {}}], "ports": ports});
    model.hear(Told::NetworkPolicy, Heard::One(policy("p", json!({"podSelector": {}, "ingress": [rule]}))));
    for i in 0..100 {
        model.hear_pods(Heard::One(pod("shop", &format!("more-{i}"), "n1", &format!("10.9.0.{i}"), "web")));
    }
    model.changes();
    assert!(to_web(&model, "10.0.0.3", 10_000) && to_web(&model, "10.0.0.3", 11_998));
    assert!(
        !to_web(&model, "10.0.0.3", 10_001)
            && !to_web(&model, "10.0.0.3", 12_000)
            && !to_web(&model, "10.0.0.4", 10_000)
    );
    let Rules { programs, sets, pairs, pods, .. } = model.rules();
    assert_eq!(programs.values().map(|program| program.entries.len()).sum::<usize>(), 1002);
    // One for all pods' ingress, one for egress; everyone in the namespace is of one class.
    assert_eq!((sets.len(), pairs.len(), pods.len()), (2, 2, 102));
}

#[test]
fn a_range_is_a_few_blocks() {
    let mut model = model();
    let rule = json!({"ports": [{"port": 1, "endPort": 65534}]});
    model.hear(Told::NetworkPolicy, Heard::One(policy("p", json!({"podSelector": {}, "ingress": [rule]}))));
    model.changes();
    let most = model.rules().programs.values().map(|program| program.entries.len()).max();
    // All ports, the two that are not in it, and fragments.
    assert_eq!(most, Some(4));
    assert!(to_web(&model, "9.9.9.9", 1) && !to_web(&model, "9.9.9.9", 0) && !to_web(&model, "9.9.9.9", 65535));
    assert!(!passes(&model, Direction::Ingress, "9.9.9.9", UDP, 80));
}

#[test]
fn what_is_wrong_with_a_policy_is_named_and_it_denies_what_it_selects() {
    const CLOSED: &str = "until that is right, the policy allows nothing to what it selects";
    const DENIES: &str = "until that is right, the policy denies everything to what it selects";
    let kubernetes = |spec| (Told::NetworkPolicy, policy("p", spec));
    let calico = |spec| (Told::CalicoNetworkPolicy, policy("p", spec));
    for ((kind, document), faults) in [
        (
            kubernetes(json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/40"}}]}]})),
            vec![
                "spec.ingress[0].from[0].ipBlock.cidr is \"10.0.0.0/40\"; it must be a CIDR",
                "spec.ingress[0].from[0].ipBlock.cidr is not there or wrong",
                CLOSED,
            ],
        ),
        (
            kubernetes(
                json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80, "protocol": "ICMP"}]}, {"froms": []}]}),
            ),
            vec![
                "spec.ingress[0].ports[0].protocol is \"ICMP\"; it must be TCP, UDP or SCTP",
                "spec.ingress[1].froms is not known; take it out, or a newer version may know it",
                CLOSED,
            ],
        ),
        (
            kubernetes(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}})),
            vec![
                "spec.podSelector.matchExpressions[0].operator is \"Like\"; it must be In, NotIn, Exists or DoesNotExist",
                CLOSED,
            ],
        ),
        (
            calico(json!({"selector": "app == web", "ingress": [{"action": "Allow"}]})),
            vec![
                "spec.selector is \"app == web\", not a selector: a value in quotes is expected at character 8",
                DENIES,
            ],
        ),
        (
            calico(json!({"tier": "security", "ingress": [{"action": "Allow", "source": {"domains": ["a.b"]}}]})),
            vec![
                "spec.tier is \"security\"; it must be default, the one tier that is supported",
                "spec.ingress[0].source.domains is not known; take it out, or a newer version may know it",
                DENIES,
            ],
        ),
        (
            calico(json!({"ingress": [
                {"action": "Allow", "notProtocol": 0},
                {"action": "Allow", "protocol": "0"},
                {"action": "Allow", "protocol": "ICMP", "icmp": {"type": 255}},
            ]})),
            vec![
                "spec.ingress[0].notProtocol is 0; it must be TCP, UDP, SCTP, ICMP, ICMPv6, UDPLite or a number from 1 to 255",
                "spec.ingress[1].protocol is \"0\"; it must be TCP, UDP, SCTP, ICMP, ICMPv6, UDPLite or a number from 1 to 255",
                "spec.ingress[2].icmp.type is 255; it must be a number from 0 to 254",
                DENIES,
            ],
        ),
    ] {
        let mut model = model();
        model.hear(kind, Heard::One(document));
        let refused: Vec<String> = model.changes().refused.iter().map(|refused| refused.reason.to_string()).collect();
        assert_eq!(refused, faults);
        assert!(!to_web(&model, "10.0.0.3", 80));
        assert!(model.changes().refused.is_empty(), "it is told once");
    }
}

#[test]
fn what_is_for_the_node_itself_is_refused_by_name_and_spares_pods() {
    for (field, denies) in [("doNotTrack", false), ("preDNAT", false), ("applyOnForward", true)] {
        let mut model = model();
        model.hear(
            Told::CalicoGlobalNetworkPolicy,
            Heard::One(cluster_policy(json!({field: true, "types": ["Ingress"]}))),
        );
        let refused = model.changes().refused;
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].about.to_string(), "globalnetworkpolicy g");
        assert!(refused[0].reason.to_string().starts_with(&format!("spec.{field} is for host endpoints")));
        assert_eq!(!to_web(&model, "10.0.0.3", 80), denies, "{field}");
    }
    let mut model = model();
    let set = json!({"nets": ["10.0.0.0/8"], "allowedEgressDomains": ["a.b"]});
    model.hear(Told::GlobalNetworkSet, Heard::One(cluster_policy(set)));
    let refused = model.changes().refused;
    assert!(
        refused[0].reason.to_string().contains("spec.allowedEgressDomains is not known"),
        "{:?}",
        refused[0].reason
    );
    model.hear(Told::HostEndpoint, Heard::One(cluster_policy(json!({}))));
    assert_eq!(model.changes().refused[0].about.to_string(), "hostendpoint g");
}

#[test]
fn a_cluster_policy_that_cannot_be_read_denies_all_that_it_may_select() {
    for spec in [
        json!({"tier": "Middle", "priority": 1, "subject": {"namespaces": {}}}),
        json!({"tier": "Admin", "priority": 1001, "subject": {"namespaces": {}}}),
        json!({"tier": "Baseline", "priority": 0, "subject": {"deployments": {}}}),
    ] {
        let mut model = model();
        model.hear(Told::ClusterNetworkPolicy, Heard::One(cluster_policy(spec.clone())));
        assert!(!model.changes().refused.is_empty());
        assert!(!to_web(&model, "10.0.0.3", 80) && !from_web(&model, "10.0.0.3", 80), "{spec}");
    }
}

#[test]
fn nothing_passes_while_it_is_not_known_which_policies_there_are_for_a_pod() {
    let mut model = model();
    model.hear_namespaces(Heard::Gone("shop".into()));
    model.changes();
    assert!(to_web(&model, "10.0.0.3", 80), "nobody asks for its labels");
    let rules = json!([{"action": "Accept", "from": [{"namespaces": {}}]}]);
    let spec = json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {"matchLabels": {"team": "y"}}}, "ingress": rules});
    model.hear(Told::ClusterNetworkPolicy, Heard::One(cluster_policy(spec)));
    model.changes();
    assert!(!to_web(&model, "10.0.0.3", 80) && !from_web(&model, "10.0.0.3", 80));
    let why = model.why("10.0.0.3".parse().unwrap(), "10.0.0.1".parse().unwrap(), TCP, Some((1, 80)));
    assert_eq!(why.ingress.unwrap().cell.origin.to_string(), "namespace shop is not known yet");
    model.hear_namespaces(Heard::One(space("shop", "x")));
    model.changes();
    assert!(to_web(&model, "10.0.0.3", 80));
}

#[test]
fn labels_that_calico_gives_from_accounts_and_namespaces_are_waited_for() {
    for (selector, what) in
        [("pcsa.role == 'x'", "serviceaccount shop/default"), ("pcns.team == 'y'", "namespace shop")]
    {
        let mut model = model();
        model.hear_namespaces(Heard::Gone("shop".into()));
        model.changes();
        let spec = json!({"selector": selector, "ingress": [{"action": "Deny"}]});
        model.hear(Told::CalicoGlobalNetworkPolicy, Heard::One(cluster_policy(spec)));
        model.changes();
        assert!(!to_web(&model, "10.0.0.3", 80), "{selector}");
        let why = model.why("10.0.0.3".parse().unwrap(), "10.0.0.1".parse().unwrap(), TCP, Some((1, 80)));
        assert_eq!(why.ingress.unwrap().cell.origin.to_string(), format!("{what} is not known yet"));
    }
}

#[test]
fn pods_of_all_namespaces_are_known_without_their_namespaces() {
    let mut model = model();
    model.hear_pods(Heard::One(pod("new", "peer", "n2", "10.0.0.9", "x")));
    let from = json!([{"namespaceSelector": {}}]);
    let spec = json!({"podSelector": {}, "ingress": [{"from": from}]});
    model.hear(Told::NetworkPolicy, Heard::One(policy("p", spec)));
    model.changes();
    assert!(to_web(&model, "10.0.0.9", 80) && !to_web(&model, "10.0.0.10", 80));
    // Who is denied, too.
    let rules = json!([{"action": "Deny", "from": [{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "x"}}}}]}]);
    let spec = json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": rules});
    model.hear(Told::ClusterNetworkPolicy, Heard::One(cluster_policy(spec)));
    model.changes();
    assert!(!to_web(&model, "10.0.0.9", 80) && to_web(&model, "10.0.0.3", 80));
}

#[test]
fn an_address_counts_as_soon_as_it_is_given() {
    let mut model = model();
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]});
    model.hear(Told::NetworkPolicy, Heard::One(policy("p", spec)));
    let mut early = pod("shop", "early", "n1", "10.0.0.77", "web");
    early.addresses = Box::default();
    model.hear_pods(Heard::One(early));
    model.changes();
    assert!(!to_web(&model, "10.0.0.77", 80));
    model.give(&"shop/early".into(), Some(Box::from(["10.0.0.77".parse().unwrap()])));
    model.changes();
    assert!(to_web(&model, "10.0.0.77", 80));
    let why = model.why("10.0.0.77".parse().unwrap(), "10.0.0.1".parse().unwrap(), TCP, Some((1, 80)));
    assert_eq!(why.egress.map(|side| side.pod), Some("shop/early".into()));
}

#[test]
fn a_pod_that_is_over_has_its_rules_until_its_addresses_are_taken() {
    let mut model = model();
    let from = json!([{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]);
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": from});
    model.hear(Told::NetworkPolicy, Heard::One(policy("p", spec)));
    let addresses = || Some(Box::from(["10.0.0.1".parse().unwrap()]));
    model.give(&"shop/web".into(), addresses());
    let mut over = pod("shop", "web", "n1", "10.0.0.1", "web");
    over.is_over = true;
    model.hear_pods(Heard::One(over));
    model.changes();
    assert!(to_web(&model, "10.0.0.2", 80) && !to_web(&model, "10.0.0.3", 80) && !from_web(&model, "10.0.0.2", 80));
    // To others it is nobody: its address may be given to another one soon.
    let why = model.why("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), TCP, Some((1, 80)));
    assert!(!why.ingress.unwrap().cell.allow);
    model.give(&"shop/web".into(), None);
    model.changes();
    assert!(!model.rules().pods.contains_key("shop/web"));
}

#[test]
fn why_names_policy_rule_and_class_on_both_sides() {
    let mut model = model();
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": "http"}]}]});
    model.hear(Told::NetworkPolicy, Heard::One(policy("web", spec)));
    model.changes();
    let why = |src: &str, dst: &str, port| {
        model.why(src.parse().unwrap(), dst.parse().unwrap(), TCP, Some((1, port))).to_string()
    };
    assert_eq!(
        why("10.0.0.3", "10.0.0.1", 8080),
        "allowed\n\
         ingress of shop/web: allowed by networkpolicy shop/web rule 0; the other side is of class 1\n  \
         pods with app == 'db' of namespace shop"
    );
    assert_eq!(
        why("10.0.0.1", "10.0.0.2", 80),
        "denied\n\
         egress of shop/web: allowed by no policy; the other side is of class 0\n\
         ingress of shop/web-2: denied by networkpolicy shop/web (no rule allows it); the other side is of class 0"
    );
    assert_eq!(why("10.0.0.1", "10.0.0.1", 80), "allowed");
    assert_eq!(why("10.0.0.3", "10.0.0.4", 80), "allowed");
}

/// What is needed, in words.
fn needed(model: &Model) -> Vec<String> {
    let scope = |s: &super::needs::Scope| format!("{} {}", s.space.as_deref().unwrap_or("*"), s.labels);
    let show = |need: Need| match need {
        Need::Policies(space) => format!("policies {space}"),
        Need::GlobalPolicies => "global policies".to_owned(),
        Need::Pods(s) => format!("pods {}", scope(&s)),
        Need::Namespaces(s) => format!("namespaces {}", scope(&s)),
        Need::Accounts(s) => format!("accounts {}", scope(&s)),
        Need::Nodes(s) => format!("nodes {}", scope(&s)),
        Need::Sets(space) => format!("sets {}", space.as_deref().unwrap_or("*")),
    };
    model.needs().into_iter().map(show).collect()
}

#[test]
fn of_many_selectors_all_that_they_are_about_is_watched() {
    // So many selectors of pods in each of these namespaces, all of them of one policy for ours.
    let pods = |spaces: &[(&str, usize)]| -> Vec<String> {
        let mut model = model();
        for (space, _) in spaces {
            let meta = json!({"name": space, "labels": {"kubernetes.io/metadata.name": space}});
            model.hear_namespaces(Heard::One(serde_json::from_value(json!({"metadata": meta})).unwrap()));
        }
        let peers = spaces.iter().flat_map(|(space, count)| {
            (0..*count).map(move |i| {
                json!({
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space}},
                    "podSelector": {"matchLabels": {"app": format!("a{i}")}},
                })
            })
        });
        let peers: Vec<Value> = peers.collect();
        model.hear(
            Told::NetworkPolicy,
            Heard::One(policy("p", json!({"podSelector": {}, "ingress": [{"from": peers}]}))),
        );
        model.changes();
        needed(&model).into_iter().filter(|need| need.starts_with("pods")).collect()
    };
    assert_eq!(pods(&[("a", 16), ("b", 1)]).len(), 17);
    assert_eq!(pods(&[("a", 17), ("b", 1)]), ["pods a ", "pods b app=a0"]);
    let spaces: Vec<String> = (10..75).map(|i| format!("s{i}")).collect();
    let some =
        |many: usize, each: usize| spaces.iter().take(many).map(|space| (space.as_str(), each)).collect::<Vec<_>>();
    assert_eq!(pods(&some(32, 2)).len(), 64);
    let whole = pods(&[&some(32, 2)[..], &[("a", 1)]].concat());
    assert_eq!((whole.len(), &*whole[0], &*whole[1]), (33, "pods a app=a0", "pods s10 "));
    assert_eq!(pods(&some(64, 2)).len(), 64);
    assert_eq!(pods(&some(65, 1)), ["pods * "]);
}

#[test]
fn only_what_policies_for_our_pods_ask_for_is_watched() {
    let shown = needed;
    const ALWAYS: [&str; 3] = ["policies shop", "global policies", "namespaces shop "];
    let with = |more: &[&'static str]| [&ALWAYS[..2], more, &ALWAYS[2..]].concat().into_iter().collect::<BTreeSet<_>>();
    let mut model = model();
    model.changes();
    assert_eq!(shown(&model).iter().map(String::as_str).collect::<BTreeSet<_>>(), with(&[]));
    for (to, needs) in [
        (json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}]), vec!["pods * "]),
        (json!([{"podSelector": {"matchLabels": {"app": "db"}}}]), vec!["pods shop app=db"]),
        (
            json!([{"namespaceSelector": {"matchLabels": {"team": "y"}}, "podSelector": {"matchLabels": {"app": "dns"}}}]),
            vec!["namespaces * team=y", "pods infra app=dns"],
        ),
        (json!([{"namespaceSelector": {}}, {"podSelector": {}}]), vec!["pods * "]),
    ] {
        let spec = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}, "egress": [{"to": to, "ports": [{"port": "http"}]}]});
        model.hear(Told::NetworkPolicy, Heard::One(policy("p", spec("web"))));
        model.changes();
        assert_eq!(shown(&model).iter().map(String::as_str).collect::<BTreeSet<_>>(), with(&needs), "{to}");
        // For pods that are elsewhere it is others who watch.
        model.hear(Told::NetworkPolicy, Heard::One(policy("p", spec("db"))));
        model.changes();
        assert_eq!(shown(&model).len(), 3);
    }
    let rules = |rule: Value| json!({"selector": "app == 'web'", "egress": [rule]});
    for (rule, needs) in [
        (
            json!({"action": "Allow", "destination": {"selector": "app == 'db' && projectcalico.org/namespace == 'shop'"}}),
            vec!["pods * app=db", "sets *"],
        ),
        (json!({"action": "Allow", "protocol": "TCP", "destination": {"ports": ["http"]}}), vec!["pods * "]),
        (
            json!({"action": "Deny", "destination": {"serviceAccounts": {"selector": "role == 'x'"}}}),
            vec!["accounts * ", "pods * ", "sets *"],
        ),
        (
            json!({"action": "Deny", "destination": {"selector": "app == 'db' && pcsa.role == 'x'"}}),
            vec!["accounts * ", "pods * app=db", "sets *"],
        ),
        (json!({"action": "Deny", "source": {"notSelector": "pcsa.role == 'x'"}}), vec!["accounts shop "]),
    ] {
        model.hear(Told::CalicoGlobalNetworkPolicy, Heard::One(cluster_policy(rules(rule.clone()))));
        model.changes();
        assert_eq!(shown(&model).iter().map(String::as_str).collect::<BTreeSet<_>>(), with(&needs), "{rule}");
    }
    let nodes = json!([{"action": "Deny", "to": [{"nodes": {"matchLabels": {"role": "edge"}}}]}]);
    model.hear(Told::CalicoGlobalNetworkPolicy, Heard::All(Vec::new()));
    let spec = json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": nodes});
    model.hear(Told::ClusterNetworkPolicy, Heard::One(cluster_policy(spec)));
    model.changes();
    assert_eq!(shown(&model).iter().map(String::as_str).collect::<BTreeSet<_>>(), with(&["nodes * role=edge"]));
    let node = |ip: &str| -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": "n9", "labels": {"role": "edge"}}, "status": {"addresses": [{"address": ip}]}}),
        )
        .unwrap()
    };
    model.hear_nodes(Heard::One(node("192.168.0.9")));
    model.changes();
    assert!(!from_web(&model, "192.168.0.9", 80) && from_web(&model, "192.168.0.8", 80));
}
