//! Who says what: cloud, pool, ledger and kernel of one node side by side, and the first thing they disagree on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde_json::Value;
use terway::ours;

use crate::sim::cloud::EniStatus;
use crate::sim::cluster::{Cluster, Member};
use crate::sim::traffic::Place;

type Addresses = BTreeSet<String>;
/// Addresses by attachment.
type Leases = BTreeMap<String, String>;

/// Nothing is under way, and all agree that these are the node's pods.
pub fn agree(cluster: &Cluster, n: usize, living: &[&Member]) -> Result<(), String> {
    let show = cluster.show(n);
    let enis = cloud_enis(cluster, n)?;
    same("addresses on ENIs", ("cloud", &enis), ("pool", &pool_enis(&show)?))?;
    let held: Leases = living.iter().map(|m| (attachment(m), m.ip.clone())).collect();
    same("leases", ("pods", &held), ("pool", &pool_leases(&show)))?;
    same("leases", ("pods", &held), ("ledger", &ledger_leases(cluster, n)))?;
    let owned: Addresses = enis.into_values().flatten().collect();
    let unowned = held.values().filter(|ip| !owned.contains(*ip));
    same("leases that the cloud does not have", ("nobody", []), ("pods", unowned))?;
    folders_are_empty(cluster, n)?;
    links(cluster, n, living)?;
    routes(cluster, n, living)?;
    rules(cluster, n)
}

/// Says only what one has and the other has not.
fn same<T: Debug>(
    what: &str,
    a: (&str, impl IntoIterator<Item = T>),
    b: (&str, impl IntoIterator<Item = T>),
) -> Result<(), String> {
    let (all_a, all_b) = (sorted(a.1), sorted(b.1));
    if all_a == all_b {
        return Ok(());
    }
    let alone = |these: &[String], those: &[String]| these.iter().filter(|t| !those.contains(t)).cloned().collect();
    let (only_a, only_b): (Vec<String>, Vec<String>) = (alone(&all_a, &all_b), alone(&all_b, &all_a));
    Err(format!("{what}: only {} {only_a:?}, only {} {only_b:?}, {} and {} in all", a.0, b.0, all_a.len(), all_b.len()))
}

fn sorted<T: Debug>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    let mut words: Vec<String> = items.into_iter().map(|item| format!("{item:?}").replace('"', "")).collect();
    words.sort();
    words
}

fn attachment(member: &Member) -> String {
    format!("{}/{}", member.sandbox.container, member.sandbox.ifname)
}

/// Every ENI that was made for the node. One that is not attached is leaked, or about to be dealt with.
fn cloud_enis(cluster: &Cluster, n: usize) -> Result<BTreeMap<String, Addresses>, String> {
    let node = cluster.node(n);
    let has = |tags: &BTreeMap<String, String>, key: &str, value: &str| tags.get(key).is_some_and(|v| v == value);
    let mut found = BTreeMap::new();
    for eni in cluster.world.cloud.enis() {
        if !has(&eni.tags, ours::ENI_TAG.0, ours::ENI_TAG.1) || !has(&eni.tags, ours::NODE_TAG, &node.id) {
            continue;
        }
        if eni.status != EniStatus::InUse || eni.instance.as_ref() != Some(&node.id) {
            return Err(format!("ENI {} is {:?} on {:?}", eni.id, eni.status, eni.instance));
        }
        found.insert(eni.id, eni.v4.iter().map(ToString::to_string).collect());
    }
    Ok(found)
}

fn pool_enis(show: &Value) -> Result<BTreeMap<String, Addresses>, String> {
    let mut found = BTreeMap::new();
    for eni in list(&show["pool"]["enis"]) {
        let id = text(&eni["id"]);
        if eni["state"] != "serving" || !list(&eni["not_used"]).is_empty() {
            return Err(format!("ENI {id} in the pool: {eni}"));
        }
        found.insert(id, list(&eni["addresses"]).iter().map(|a| text(&a["ip"])).collect());
    }
    let quiet = |name: &str| list(&show["pool"][name]).is_empty();
    let pool = &show["pool"];
    let numbers = [&pool["creating"], &pool["cooling"], &pool["cloud"]["calls"]];
    if numbers.iter().any(|n| **n != 0) || !quiet("waiting") || !quiet("lost") {
        return Err(format!("the pool is not at rest: {pool}"));
    }
    let (idle, min, max) = (&pool["idle"], &pool["min_idle"], &pool["max_idle"]);
    // An ENI keeps its primary address, whatever is too much.
    let most = max.as_u64().unwrap_or_default().max(found.len() as u64);
    if idle.as_u64() < min.as_u64() || idle.as_u64() > Some(most) {
        return Err(format!("{idle} idle addresses, not {min} to {most}"));
    }
    Ok(found)
}

fn pool_leases(show: &Value) -> Leases {
    let addresses = list(&show["pool"]["enis"]).iter().flat_map(|eni| list(&eni["addresses"]));
    let leased = addresses.filter(|a| a["state"] == "leased");
    leased.map(|a| (text(&a["attachment"]), text(&a["ip"]))).collect()
}

fn ledger_leases(cluster: &Cluster, n: usize) -> Leases {
    let text = cluster.node(n).sh(&format!("cat {}/leases/*.json 2>/dev/null || true", ours::LEDGER));
    let leases = serde_json::Deserializer::from_str(&text).into_iter::<terway::rpc::Lease>();
    let leases = leases.map(|lease| lease.expect("a lease that the daemon wrote"));
    leases.map(|l| (l.sandbox.attachment.to_string(), l.ip.v4.map(|ip| ip.to_string()).unwrap_or_default())).collect()
}

/// Nothing rests, is intended, waits to be buried or could not be read.
fn folders_are_empty(cluster: &Cluster, n: usize) -> Result<(), String> {
    let folders = "resting intents tombstones unreadable";
    let found =
        cluster.node(n).sh(&format!("cd {}; find {folders} leases/*.new -type f 2>/dev/null || true", ours::LEDGER));
    if found.trim().is_empty() { Ok(()) } else { Err(format!("left in the ledger: {found}")) }
}

/// Each pod has its veth, and there is no other.
fn links(cluster: &Cluster, n: usize, living: &[&Member]) -> Result<(), String> {
    let all = json(cluster, n, "ip -j link");
    let pods = list(&all).iter().filter(|link| text(&link["ifname"]).starts_with("cali"));
    let owner = |link: &Value| ours::attachment(&text(&link["ifalias"])).map(|a| a.to_string()).unwrap_or_default();
    let seen: BTreeMap<String, String> = pods.map(|link| (text(&link["ifname"]), owner(link))).collect();
    let wanted: BTreeMap<_, _> = living.iter().map(|m| (host_veth(m), attachment(m))).collect();
    same("host links", ("pods", &wanted), ("kernel", &seen))
}

/// One route in the table of pods each, and no table of an ENI that is gone.
fn routes(cluster: &Cluster, n: usize, living: &[&Member]) -> Result<(), String> {
    let all = json(cluster, n, "ip -j -4 route show table all");
    let table = |route: &Value| route["table"].as_str().and_then(|t| t.parse::<u32>().ok()).unwrap_or(0);
    let (pods, enis): (Vec<&Value>, Vec<&Value>) =
        list(&all).iter().filter(|r| table(r) >= ours::PODS_TABLE).partition(|r| table(r) == ours::PODS_TABLE);
    let seen: BTreeMap<String, String> = pods.iter().map(|r| (text(&r["dst"]), text(&r["dev"]))).collect();
    let wanted: BTreeMap<String, String> = living.iter().map(|m| (m.ip.clone(), host_veth(m))).collect();
    same("routes to pods", ("pods", &wanted), ("kernel", &seen))?;
    let seen: Vec<(u32, String)> = enis.iter().map(|r| (table(r), text(&r["dst"]))).collect();
    let wanted: Vec<(u32, String)> = tables(cluster, n)?.keys().map(|table| (*table, "default".into())).collect();
    same("routes of ENIs", ("cloud", &wanted), ("kernel", &seen))
}

/// One rule for all pods and two for each ENI, once each.
fn rules(cluster: &Cluster, n: usize) -> Result<(), String> {
    let all = json(cluster, n, "ip -j rule");
    let of = |priority: u32, field: &str| {
        let ours = list(&all).iter().filter(|rule| rule["priority"] == priority);
        ours.map(|rule| text(&rule[field])).collect::<Vec<String>>()
    };
    let tables = tables(cluster, n)?;
    same("rules to pods", ("one", vec!["1000".to_owned()]), ("kernel", of(ours::TO_POD_PRIORITY, "table")))?;
    let wanted = tables.keys().map(ToString::to_string);
    same("rules of ENIs", ("cloud", wanted), ("kernel", of(ours::FROM_POD_PRIORITY, "table")))?;
    same("rules for strays", ("cloud", tables.into_values()), ("kernel", of(ours::STRAY_PRIORITY, "iif")))
}

/// The tables that the ENIs' links should have, with their names.
fn tables(cluster: &Cluster, n: usize) -> Result<BTreeMap<u32, String>, String> {
    let all = json(cluster, n, "ip -j link");
    let enis = cluster.world.cloud.enis_of(&cluster.node(n).id).into_iter().skip(1);
    enis.map(|eni| {
        let link = list(&all).iter().find(|link| link["address"] == eni.mac.to_string().as_str());
        let link = link.ok_or_else(|| format!("no link for ENI {}", eni.id))?;
        let ifindex = link["ifindex"].as_u64().ok_or("a link has an index")? as u32;
        Ok((ours::eni_table(ifindex), text(&link["ifname"])))
    })
    .collect()
}

fn host_veth(member: &Member) -> String {
    ours::host_veth(&member.sandbox.pod, &member.sandbox.ifname)
}

fn json(cluster: &Cluster, n: usize, command: &str) -> Value {
    serde_json::from_str(&cluster.node(n).sh(command)).unwrap_or_else(|e| panic!("{command}: {e}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}
