//! What network policies cost to compile, and what becomes of real packets. What they mean is proved
//! beside the compiler: `src/policy/fuzz.rs`.

mod cases;
mod field;
mod ipvs;
#[allow(dead_code)]
#[path = "../src/policy/oracle.rs"]
mod oracle;
mod sources;
mod tables;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use terway::heard::Heard;
use terway::kernel::bpf::policy::Policy;
use terway::netpol::Document;
use terway::peer::{Namespace, Pod};
use terway::policy::{Here, Model, Told};
use terway::rules::{Placed, Pods, Renderer};
use terway::verdict::Sizes;

use crate::bpf::maps::BpfFs;

fn space(name: &str, team: &str) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"team": team}}})).unwrap()
}

/// `cargo test --release --test main policy::figures -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, for a release build"]
fn figures() {
    const SPACES: usize = 20;
    let mut model = Model::new(Here { name: "n1".into(), addresses: BTreeSet::from(["192.168.0.1".parse().unwrap()]) });
    let name = |i: usize| format!("s{}", i % SPACES);
    let one = |i: usize, version: usize| {
        let node = if i < 250 { "n1" } else { "n2" };
        let ip = format!("10.{}.{}.{}", 1 + i / 65_000, i / 250, 1 + i % 250);
        let labels = json!({"app": format!("app-{}", (i / SPACES + version) % 50), "tier": format!("t{}", i % 3), "pod-template-hash": "abc"});
        serde_json::from_value::<Pod>(json!({
            "metadata": {"namespace": name(i), "name": format!("p{i}"), "labels": labels},
            "spec": {"nodeName": node, "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
        }))
        .unwrap()
    };
    let policy = |i: usize, version: usize| {
        let app = |n: usize| json!({"matchLabels": {"app": format!("app-{}", n % 50)}});
        let from = json!([
            {"podSelector": app(i / SPACES + 1 + version)},
            {"namespaceSelector": {"matchLabels": {"team": format!("t{}", i % 5)}}, "podSelector": app(i / 7)},
            {"ipBlock": {"cidr": format!("172.16.{}.0/24", i % 100), "except": [format!("172.16.{}.128/25", i % 100)]}},
        ]);
        let ports = json!([{"port": 80}, {"port": 443}, {"port": 8000 + i % 50, "endPort": 8100}, {"protocol": "UDP", "port": 53}, {"port": "http"}]);
        serde_json::from_value::<Document>(json!({
            "metadata": {"namespace": name(i), "name": format!("np{i}")},
            "spec": {
                "podSelector": if i.is_multiple_of(10) { json!({}) } else { app(i / SPACES) },
                "ingress": [{"from": from, "ports": ports}],
                "egress": [{"to": [{"podSelector": {}}]}, {"to": [{"namespaceSelector": {}}], "ports": [{"protocol": "UDP", "port": 53}]}],
            },
        }))
        .unwrap()
    };
    for i in 0..SPACES {
        model.hear_namespaces(Heard::One(space(&name(i), &format!("t{}", i % 5))));
    }
    let pods: Vec<Pod> = (0..5250).map(|i| one(i, 0)).collect();
    let policies: Vec<Document> = (0..1000).map(|i| policy(i, 0)).collect();
    let start = Instant::now();
    model.hear_pods(Heard::All(pods));
    model.hear(Told::NetworkPolicy, Heard::All(policies));
    let heard = start.elapsed();
    let writes = model.changes().writes.len();
    let whole = start.elapsed();
    let rules = model.rules();
    let entries: usize = rules.programs.values().map(|program| program.entries.len()).sum();
    println!("1000 policies, 250 + 5000 pods: heard in {heard:?}, compiled in {whole:?}, {writes} writes");
    println!(
        "{} peers, {} classes, {} prefixes, {} sets, {} pairs, {} programs with {entries} entries",
        rules.peers.len(),
        rules.classes.len(),
        rules.prefixes.len(),
        rules.sets.len(),
        rules.pairs.len(),
        rules.programs.len()
    );
    let fs = BpfFs::new("figures");
    let (mut policy_maps, _) = Policy::open(fs.path(), &Sizes::default()).unwrap();
    let seats = rules.pods.keys().zip(1u16..);
    let placed: Pods = seats.map(|(name, seat)| (name.clone(), Placed::new(seat, []))).collect();
    let start = Instant::now();
    policy_maps.restore(rules, &placed).unwrap();
    println!("into the kernel in {:?}", start.elapsed());
    let start = Instant::now();
    policy_maps.restore(rules, &placed).unwrap();
    println!("again beside themselves in {:?}", start.elapsed());
    let mut timed = |what: &str, change: &mut dyn FnMut(&mut Model, usize)| {
        let mut times: Vec<(Duration, Duration, usize)> = (0..500)
            .map(|i| {
                let start = Instant::now();
                change(&mut model, i);
                let writes = model.changes().writes;
                let compiled = start.elapsed();
                policy_maps.apply(&writes, model.rules(), &placed).unwrap();
                (start.elapsed(), compiled, writes.len())
            })
            .collect();
        times.sort();
        println!(
            "{what}: p50 {:?}, p99 {:?}, most {:?}; until it is in the kernel, until it is compiled, and writes",
            times[250], times[495], times[499]
        );
    };
    timed("label of a remote pod", &mut |model, i| model.hear_pods(Heard::One(one(250 + i * 9, 1))));
    timed("label of a local pod", &mut |model, i| model.hear_pods(Heard::One(one(i / 2, 1 + i % 2))));
    timed("peer of a policy", &mut |model, i| model.hear(Told::NetworkPolicy, Heard::One(policy(i * 2, 1))));
    assert!(cfg!(debug_assertions) || whole < Duration::from_millis(500), "{whole:?}");
}
