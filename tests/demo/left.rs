//! What is left of pods after their DEL: in the kernel, in the ledger, in the cloud, in the log.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::sim::cloud::{Cloud, EniKind};
use crate::sim::cluster::Cluster;
use crate::sim::node::Node;
use crate::sim::traffic::Place;

/// What of the kernel's state pods could leave something in.
const KERNEL: [(&str, &str); 6] = [
    ("links", "ip -o link"),
    ("addresses", "ip -o -4 addr | sed 's/ valid_lft.*//'"),
    (
        "routes, all tables",
        "ip -4 route show table all; ip -6 route show table 1000 2>&1 | grep -v 'does not exist'; true",
    ),
    ("rules", "ip rule; ip -6 rule"),
    ("permanent neighbours", "ip neigh show nud permanent"),
    ("qdiscs", "tc qdisc"),
];

/// Lines of each kind.
pub struct Kernel([BTreeSet<String>; 6]);

impl Kernel {
    pub fn of(node: &Node) -> Kernel {
        Kernel(KERNEL.map(|(_, line)| node.sh(line).lines().map(|line| line.trim().into()).collect()))
    }
}

/// One thing that was looked at.
pub struct Finding {
    pub what: &'static str,
    pub says: String,
    /// What is there and should not be, and the other way round.
    pub wrong: Vec<String>,
}

/// Looks at everything of a node; `pods` are the pairs of addresses that its pods had.
pub fn look(cluster: &Cluster, n: usize, before: &Kernel, pods: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = kernel(before, &Kernel::of(cluster.node(n)));
    findings.extend(ledger(cluster.node(n), pods));
    findings.extend(cloud(&cluster.world.cloud, &cluster.node(n).id, &cluster.show(n)["pool"]));
    findings.push(log(&cluster.log(n)));
    findings
}

fn kernel(before: &Kernel, after: &Kernel) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, (what, _)) in KERNEL.iter().enumerate() {
        let more = after.0[i].difference(&before.0[i]).map(|line| format!("left: {line}"));
        let less = before.0[i].difference(&after.0[i]).map(|line| format!("gone: {line}"));
        findings.push(Finding {
            what,
            says: format!("{} as before", after.0[i].len()),
            wrong: more.chain(less).collect(),
        });
    }
    findings
}

fn ledger(node: &Node, pods: &BTreeSet<String>) -> Vec<Finding> {
    let files = |folder: &str| -> BTreeSet<String> {
        let list = node.sh(&format!("ls /run/terway/{folder}"));
        list.lines().map(|name| name.trim_end_matches(".json").into()).collect()
    };
    let empty = |what, folder: &str| {
        let files = files(folder);
        Finding {
            what,
            says: "none".into(),
            wrong: files.iter().map(|name| format!("left: {folder}/{name}")).collect(),
        }
    };
    let resting = files("resting");
    vec![
        empty("leases", "leases"),
        empty("intents", "intents"),
        empty("tombstones", "tombstones"),
        Finding {
            what: "cooling addresses",
            says: format!("{}, the pods'", resting.len()),
            wrong: apart(&resting, &pods.iter().map(|pair| pair.replace(':', "-")).collect()),
        },
    ]
}

/// The cloud holds what the pool knows, no more: addresses that cool down and the warm pool.
fn cloud(cloud: &Cloud, instance: &str, pool: &Value) -> Vec<Finding> {
    let mut enis = cloud.enis_of(instance);
    enis.retain(|eni| eni.kind != EniKind::Primary);
    let (known, states) = known(pool);
    let ids = enis.iter().map(|eni| eni.id.clone()).collect();
    let v4 = enis.iter().flat_map(|eni| &eni.v4).map(ToString::to_string);
    let addresses: BTreeSet<String> = v4.chain(enis.iter().flat_map(|eni| &eni.v6).map(ToString::to_string)).collect();
    let (idle, cool) = (pool["idle"].as_u64().unwrap_or_default(), pool["cooling"].as_u64().unwrap_or_default());
    let mut wrong = apart(&addresses, &known);
    wrong.extend(
        states
            .iter()
            .filter(|(_, state)| !["idle", "cooling"].contains(&state.as_str()))
            .map(|(ip, state)| format!("{ip} is {state}")),
    );
    if idle > pool["max_idle"].as_u64().unwrap_or_default() {
        wrong.push(format!("{idle} idle pairs are more than the warm pool"));
    }
    vec![
        Finding {
            what: "ENIs in the cloud",
            says: format!("{}, the warm pool", enis.len()),
            wrong: apart(&ids, &strings(&pool["enis"], "id")),
        },
        Finding { what: "their addresses", says: format!("{cool} pairs cool, {idle} idle"), wrong },
    ]
}

/// The addresses that the pool holds, and the state of each.
fn known(pool: &Value) -> (BTreeSet<String>, BTreeMap<String, String>) {
    let all = pool["enis"].as_array().into_iter().flatten().flat_map(|eni| eni["addresses"].as_array()).flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let states: BTreeMap<String, String> = all.map(|addr| (text(&addr["ip"]), text(&addr["state"]))).collect();
    (states.keys().cloned().collect(), states)
}

fn strings(list: &Value, key: &str) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().filter_map(|item| item[key].as_str().map(String::from)).collect()
}

/// What somebody flushed was to be complained of.
fn log(log: &str) -> Finding {
    let told = |line: &str| line.contains("put right what somebody else changed");
    let bad = |line: &&str| ["[ERROR ", "[WARN ", "thread '"].iter().any(|word| line.starts_with(word)) && !told(line);
    Finding {
        what: "complaints in the log",
        says: "none".into(),
        wrong: log.lines().filter(bad).map(String::from).collect(),
    }
}

fn apart(have: &BTreeSet<String>, want: &BTreeSet<String>) -> Vec<String> {
    let more = have.difference(want).map(|item| format!("left: {item}"));
    more.chain(want.difference(have).map(|item| format!("missing: {item}"))).collect()
}
